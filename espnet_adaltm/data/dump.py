"""From a data directory to ``dump/<set>``: the same tables, and the audio as FLAC in Kaldi arks.

Every utterance is mono, 16 bits, at one sample rate; the arks are read by ``kaldiio.load_scp`` and
by ESPnet's ``kaldi_ark``. What is too short, too long or digitally silent is dropped and listed in
``dropped.tsv``; what is broken stops everything, unless it is little and little is allowed
(``--max_broken``): then it is dropped as well. The bytes do not depend on the number of workers.
Run it with ``python -m espnet_adaltm.bin.format_audio``.
"""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from espnet_adaltm.data.audio import (
    AudioStats,
    check_pipe,
    cut,
    load_audio,
    measure,
    resample,
    to_int16,
)
from espnet_adaltm.data.audit import (
    DROPPED_FILE,
    STATS_FILE,
    AuditedSet,
    audit_set,
    render,
    write_stats,
)
from espnet_adaltm.data.broken import BROKEN, allowed_broken, list_file, table_of, too_many
from espnet_adaltm.data.datadir import (
    DataDir,
    Table,
    build_data_dir,
    fill_data_dir,
    read_data_dir,
)
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_dir, atomic_open, write_text
from espnet_adaltm.kaldi import write_scp
from espnet_adaltm.progress import progress
from espnet_adaltm.workers import process_pool

SILENT_CHOICES = ("drop", "keep", "error")
_UTTERANCES_PER_ARK = 5000
_MANY_DROPPED = 0.1


@dataclass(frozen=True)
class Limits:
    """What an utterance has to be.

    Attributes:
        min_seconds: Shorter ones are dropped.
        max_seconds: Longer ones are dropped.
        sample_rate: Wanted sample rate in Hz.
        silent: What to do with all-zero audio: ``drop``, ``keep`` or ``error``.
        allow_pipes: Run entries of ``wav.scp`` that are commands.
    """

    min_seconds: float = 0.1
    max_seconds: float = 30.0
    sample_rate: int = 16000
    silent: str = "drop"
    allow_pipes: bool = False


@dataclass(frozen=True)
class Recording:
    """One entry of ``wav.scp`` and the (utterance, start, end) to cut from it, in seconds."""

    key: str
    source: str
    parts: tuple[tuple[str, float, float], ...]


@dataclass
class Outcome:
    """What became of a recording: encoded utterances; why others were dropped or are broken."""

    records: list[tuple[str, bytes, AudioStats, bool]] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def format_data_dir(
    in_dir: Pathlike,
    out_dir: Pathlike,
    min_seconds: float = 0.1,
    max_seconds: float = 30.0,
    sample_rate: int = 16000,
    num_workers: int = 1,
    silent: str = "drop",
    max_broken: str = "0",
    allow_pipes: bool = False,
) -> DataDir:
    """Decode, mix down, resample, cut and encode the audio of a data directory.

    Args:
        in_dir: Data directory to read.
        out_dir: Folder to write; ``wav.scp`` will hold ark paths that begin with it, as given.
        min_seconds: Shorter utterances are dropped.
        max_seconds: Longer utterances are dropped.
        sample_rate: In Hz.
        num_workers: Processes; 1 works in this one.
        silent: ``drop``, ``keep`` or ``error`` for all-zero audio.
        max_broken: How many utterances may be broken (``10``) or which share of them (``1%``).
        allow_pipes: Run entries of ``wav.scp`` that are commands.

    Returns:
        The data directory that was written, beside ``utt2num_samples``, ``all_shape``,
        ``asr_shape`` (with text only), ``ser_shape`` (with emotion only), ``audio_stats.tsv``,
        ``dropped.tsv`` and ``audit.md``.

    Raises:
        UserError: An invalid directory or option; more broken audio than ``max_broken`` (all of it
            is looked at; the first ten are named, and all of more than ten are listed in
            ``<out_dir>.broken.tsv``); no utterance left; a full disk. Nothing is left under
            ``out_dir`` then, and an older ``out_dir`` stays as it was.
    """
    in_dir, out_dir = Path(in_dir), Path(out_dir)
    limits = Limits(min_seconds, max_seconds, sample_rate, silent, allow_pipes)
    _check_options(in_dir, out_dir, limits, num_workers)
    allowed_broken(max_broken, 0)
    data = read_data_dir(in_dir)
    for key, source in data.wav_scp.items():
        check_pipe(source, f"{in_dir / 'wav.scp'}: {key!r}", allow_pipes)
    recordings = list_recordings(data)
    allowed = allowed_broken(max_broken, len(data.utterances))
    with atomic_dir(out_dir) as temporary:
        writer = _ArkWriter(temporary, out_dir)
        dropped: dict[str, str] = {}
        broken: dict[str, str] = {}
        with writer:
            outcomes = _work(recordings, limits, num_workers)
            for outcome in progress(outcomes, f"audio of {in_dir}", len(recordings), "recording"):
                dropped.update(outcome.dropped)
                broken.update(outcome.broken)
                if len(broken) <= allowed:
                    writer.write(outcome)
        list_file(out_dir).unlink(missing_ok=True)  # of an earlier run
        if len(broken) > allowed:
            raise too_many(data.path, out_dir, broken, len(data.utterances), max_broken)
        dropped.update({utt: BROKEN + reason for utt, reason in broken.items()})
        _check_outcome(data, dropped, writer)
        return _finish(data, temporary, out_dir, writer, dropped, sample_rate)


def _check_options(in_dir: Path, out_dir: Path, limits: Limits, num_workers: int) -> None:
    if in_dir.resolve() == out_dir.resolve():
        raise UserError(f"--data and --out are both {in_dir}: write to another folder")
    if not 0 < limits.min_seconds < limits.max_seconds:
        raise UserError(
            f"--min_seconds {limits.min_seconds:g} must lie between 0 and --max_seconds "
            f"{limits.max_seconds:g}"
        )
    if limits.sample_rate < 1 or num_workers < 1:
        raise UserError("--sample_rate and --num_workers must be at least 1")
    if limits.silent not in SILENT_CHOICES:
        raise UserError(f"--silent {limits.silent!r} is none of {', '.join(SILENT_CHOICES)}")


def list_recordings(data: DataDir) -> list[Recording]:
    """The recordings with what to cut from each, so that every file is decoded once."""
    if not data.segments:
        return [Recording(utt, src, ((utt, 0.0, -1.0),)) for utt, src in data.wav_scp.items()]
    parts: dict[str, list[tuple[str, float, float]]] = {}
    for utt, (recording, start, end) in data.segments.items():
        parts.setdefault(recording, []).append((utt, start, end))
    return [Recording(key, data.wav_scp[key], tuple(parts[key])) for key in parts]


def process(recording: Recording, limits: Limits) -> Outcome:
    """Load, cut, resample and encode one recording; what is broken is collected, not raised."""
    outcome = Outcome()
    try:
        samples, rate = load_audio(recording.source, allow_pipes=limits.allow_pipes)
    except UserError as error:
        outcome.broken = dict.fromkeys((utt for utt, _, _ in recording.parts), str(error))
        return outcome
    for utt, start, end in recording.parts:
        try:
            _process_part(outcome, utt, cut(samples, rate, start, end), rate, limits)
        except UserError as error:
            outcome.broken[utt] = f"{recording.source}: {error}"
    return outcome


def _process_part(
    outcome: Outcome, utt: str, samples: np.ndarray, rate: int, limits: Limits
) -> None:
    seconds = len(samples) / rate
    if seconds < limits.min_seconds:
        outcome.dropped[utt] = f"too short: {seconds:.3f} s < {limits.min_seconds:g} s"
        return
    if seconds > limits.max_seconds:
        outcome.dropped[utt] = f"too long: {seconds:.3f} s > {limits.max_seconds:g} s"
        return
    pcm, clipped = to_int16(resample(samples, rate, limits.sample_rate))
    if limits.silent != "keep" and not pcm.any():
        if limits.silent == "error":
            raise UserError("silent: every sample is zero")
        outcome.dropped[utt] = "silent: every sample is zero"
        return
    record = encode(utt, pcm, limits.sample_rate)
    outcome.records.append((utt, record, measure(pcm, limits.sample_rate), clipped))


def encode(utt: str, samples: np.ndarray, rate: int) -> bytes:
    """One ark record, ``<utt> AUDIO<length><FLAC file>``, of [N] int16 samples."""
    import kaldiio

    buffer = io.BytesIO()
    options = {"format": "FLAC", "subtype": "PCM_16"}
    kaldiio.save_ark(
        buffer, {utt: (rate, samples)}, write_function="soundfile", write_kwargs=options
    )
    return buffer.getvalue()


def _work(recordings: Sequence[Recording], limits: Limits, num_workers: int) -> Iterator[Outcome]:
    """Outcomes in the order of ``recordings``."""
    work = partial(process, limits=limits)
    if num_workers == 1 or len(recordings) == 1:
        yield from map(work, recordings)
        return
    with process_pool(min(num_workers, len(recordings))) as pool:
        yield from pool.map(work, recordings, chunksize=8)


class _ArkWriter:
    """Appends records to arks in a temporary folder, and remembers where they will lie."""

    def __init__(self, temporary: Path, final: Path) -> None:
        self._temporary, self._final = temporary, final
        self._handle: BinaryIO | None = None
        self._stack = ExitStack()
        self._name = ""
        self.wav_scp: dict[str, str] = {}
        self.stats: dict[str, AudioStats] = {}
        self.clipped: list[str] = []

    def __enter__(self) -> "_ArkWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _next_ark(self) -> BinaryIO:
        self._stack.close()
        self._name = f"audio/data.{len(self.wav_scp) // _UTTERANCES_PER_ARK + 1}.ark"
        return self._stack.enter_context(atomic_open(self._temporary / self._name, "wb"))

    def write(self, outcome: Outcome) -> None:
        for utt, record, stats, clipped in outcome.records:
            if self._handle is None or len(self.wav_scp) % _UTTERANCES_PER_ARK == 0:
                self._handle = self._next_ark()
            offset = self._handle.tell() + len(utt.encode()) + 1
            self._handle.write(record)
            self.wav_scp[utt] = f"{self._final / self._name}:{offset}"
            self.stats[utt] = stats
            if clipped:
                self.clipped.append(utt)


def _check_outcome(data: DataDir, dropped: dict[str, str], writer: _ArkWriter) -> None:
    total = len(data.utterances)
    if not writer.wav_scp:
        utt, reason = next(iter(dropped.items()))
        raise UserError(
            f"{data.path}: all {total} utterances were dropped (the first, {utt!r}: {reason}): "
            "check --min_seconds and --max_seconds"
        )
    for utt, reason in sorted(dropped.items()):
        logging.info("%s: dropped %s: %s", data.path, utt, reason)
    if len(dropped) > _MANY_DROPPED * total:
        logging.warning("%s: %d of %d utterances dropped", data.path, len(dropped), total)
    if writer.clipped:
        logging.warning(
            "%s: %d utterance(s) exceed full scale and were clipped, the first is %s",
            data.path, len(writer.clipped), writer.clipped[0],
        )  # fmt: skip


def _finish(
    data: DataDir,
    temporary: Path,
    out_dir: Path,
    writer: _ArkWriter,
    dropped: dict[str, str],
    sample_rate: int,
) -> DataDir:
    """Write every table beside the arks, filtered to what is left."""
    stats = {utt: writer.stats[utt] for utt in sorted(writer.stats, key=str.encode)}
    wav_scp = {utt: writer.wav_scp[utt] for utt in stats}
    result = write_dump(temporary, out_dir, wav_scp, data.tables, stats)
    with atomic_open(temporary / DROPPED_FILE) as handle:
        handle.writelines(table_of(dropped))
    audited = AuditedSet(result, stats, sample_rate, dropped)
    write_text(temporary / "audit.md", render(f"Audit of {out_dir}", [audited], audit_set(audited)))
    return result


def write_dump(
    folder: Path,
    final: Path,
    wav_scp: Mapping[str, str],
    tables: Mapping[str, Table],
    stats: Mapping[str, AudioStats],
) -> DataDir:
    """Write the tables of a formatted set.

    Args:
        folder: Where to write; exists.
        final: Where it will lie, for messages.
        wav_scp: Utterance to place in an ark, sorted.
        tables: By file name; entries of other utterances are left out.
        stats: Of the audio of the same utterances, in the same order.

    Returns:
        The set as `read_data_dir` reads it; its path is ``final``.
    """
    sizes = {utt: str(stat.num_samples) for utt, stat in stats.items()}
    kept = {
        name: {utt: value for utt, value in table.items() if utt in stats}
        for name, table in tables.items()
    }
    everything = {"wav.scp": dict(wav_scp), **kept, "utt2num_samples": sizes}
    result = build_data_dir(final, {name: table for name, table in everything.items() if table})
    fill_data_dir(folder, {"wav.scp": wav_scp, **result.tables})
    for name, utts in (("all", stats), ("asr", result.text), ("ser", result.utt2emo)):
        if utts:
            write_scp(folder / f"{name}_shape", {utt: sizes[utt] for utt in utts})
    write_stats(folder / STATS_FILE, stats)
    return result
