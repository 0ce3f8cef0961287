"""What a recogniser can be given: files, arrays, lists of them, ``wav.scp``, data directories."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.backbone.arks import SAMPLE_RATE
from espnet_adaltm.data.audio import check_pipe, cut, decode_audio, load_audio, resample, to_mono
from espnet_adaltm.data.datadir import read_data_dir
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike
from espnet_adaltm.kaldi import read_scp

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
ONE, SEVERAL, NAMED = "one", "several", "named"
_LOADERS = 2
_AHEAD = 8


@dataclass(frozen=True)
class Clip:
    """One recording, not read yet.

    Attributes:
        name: Path, utterance, or place in a list.
        load: Reads it: 16 kHz, mono, float32 [N].
    """

    name: str
    load: Callable[[], Array]


def open_clips(
    source: Any, *, sample_rate: int | None = None, allow_pipes: bool = False
) -> tuple[str, list[Clip]]:
    """Find the recordings that ``source`` means.

    Args:
        source: A path; an array [N], or [N, channels] or [channels, N] (the shorter axis is the
            channels), of floats with full scale 1 or of signed integers; a mapping with ``array``
            (or ``raw``) and ``sampling_rate``, as `datasets` gives it; a sequence of any of these;
            a ``*.scp`` file; or a folder with ``wav.scp`` (and ``segments``).
        sample_rate: Of plain arrays in Hz; 16000 unless given.
        allow_pipes: Run entries of a ``wav.scp`` that are shell commands (``... |``).

    Returns:
        `ONE`, `SEVERAL` (a sequence) or `NAMED` (utterances), and the recordings in order.

    Raises:
        UserError: Nothing that can be heard, a missing or wrong list, or a pipe.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return NAMED, _data_dir(path, allow_pipes)
        if path.suffix == ".scp":
            table = read_scp(path, require_sorted=False)
            return NAMED, [_entry(utt, table[utt], path, allow_pipes) for utt in table]
        return ONE, [_file(source)]
    if isinstance(source, (list, tuple)):
        if source and isinstance(source[0], (int, float)):
            raise UserError(
                "a list is taken for recordings, this one holds numbers: give the samples of a "
                "recording as an array"
            )
        clips = []
        for index, item in enumerate(source):
            kind, found = open_clips(item, sample_rate=sample_rate, allow_pipes=allow_pipes)
            if kind != ONE:
                raise UserError(f"{item} in a list holds several recordings: give it alone")
            named = isinstance(item, (str, os.PathLike))
            clips.append(found[0] if named else Clip(f"array {index}", found[0].load))
        return SEVERAL, clips
    return ONE, [_array(source, sample_rate)]


def _file(source: Pathlike) -> Clip:
    name = os.fspath(source)
    check_pipe(name, name, allow_pipes=False)
    return Clip(name, partial(_load, name))


def stream_clip(content: bytes, name: str) -> Clip:
    """A recording whose file is in memory."""

    def load() -> Array:
        return _to_model(*decode_audio(content, name), name)

    return Clip(name, load)


def _data_dir(path: Path, allow_pipes: bool) -> list[Clip]:
    if not (path / "wav.scp").is_file():
        raise UserError(
            f"{path} is a folder without wav.scp: give audio files, a wav.scp or a Kaldi data "
            "directory"
        )
    data = read_data_dir(path)
    clips = {
        name: _entry(name, value, path / "wav.scp", allow_pipes)
        for name, value in data.wav_scp.items()
    }
    if not data.segments:
        return list(clips.values())
    return [
        Clip(utt, partial(_segment, clips[recording].load, utt, start, end))
        for utt, (recording, start, end) in data.segments.items()
    ]


def _segment(load: Callable[[], Array], utt: str, start: float, end: float) -> Array:
    try:
        return _not_empty(cut(load(), SAMPLE_RATE, start, end), utt)
    except UserError as error:
        raise UserError(f"utterance {utt!r}: {error}") from error


def _entry(utt: str, value: str, path: Path, allow_pipes: bool) -> Clip:
    check_pipe(value, f"{path}: utterance {utt!r}", allow_pipes)
    return Clip(utt, partial(_load, value, allow_pipes))


def _load(source: str, allow_pipes: bool = False) -> Array:
    return _to_model(*load_audio(source, allow_pipes=allow_pipes), source)


def _array(source: Any, sample_rate: int | None) -> Clip:
    rate = SAMPLE_RATE if sample_rate is None else sample_rate
    if isinstance(source, Mapping):
        samples = source.get("array", source.get("raw"))
        rate = source.get("sampling_rate", rate)
        if samples is None:
            raise UserError("a mapping needs `array` and `sampling_rate`")
    else:
        samples = source
    if hasattr(samples, "detach"):  # a tensor
        samples = samples.detach().cpu().numpy()
    if not isinstance(samples, np.ndarray):
        raise UserError(
            f"{type(source).__name__} is no recording: give a path, an array, a list of them, a "
            "wav.scp or a data directory"
        )
    if not isinstance(rate, (int, np.integer)) or rate < 1:
        raise UserError(f"sample rate {rate!r}: a whole number of Hz is expected")
    return Clip("array", partial(_from_array, samples, int(rate)))


def _from_array(samples: np.ndarray, rate: int) -> Array:
    shape = f"array of shape {samples.shape} and type {samples.dtype}"
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "fi":
        raise UserError(
            f"{shape}: expected [N] or [N, channels], floats with full scale 1 or signed integers"
        )
    if samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    if samples.ndim == 1:
        samples = samples[:, None]
    elif samples.shape[0] < samples.shape[1]:
        samples = samples.T
    return _to_model(to_mono(samples, shape), rate, shape)


def _to_model(samples: np.ndarray, rate: int, name: str) -> Array:
    return _not_empty(resample(_not_empty(samples, name), rate, SAMPLE_RATE), name)


def _not_empty(samples: Array, name: str) -> Array:
    if len(samples) == 0:
        raise UserError(f"{name} has no samples")
    return samples


def read_ahead(clips: Sequence[Clip]) -> Iterator[tuple[Clip, Array | UserError]]:
    """Read recordings in order, the next ones while the caller computes; errors come instead."""

    def read(clip: Clip) -> Array | UserError:
        try:
            return clip.load()
        except UserError as error:
            return error

    with ThreadPoolExecutor(_LOADERS) as pool:
        coming = iter(clips)
        waiting: list[tuple[Clip, Future]] = []
        try:
            while True:
                for clip in islice(coming, _AHEAD - len(waiting)):
                    waiting.append((clip, pool.submit(read, clip)))
                if not waiting:
                    return
                clip, future = waiting.pop(0)
                yield clip, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
