"""Batched inference over a prepared data set, the same numbers whatever the batch size."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espnet_adaltm.backbone.arks import SAMPLE_RATE, Waveforms
from espnet_adaltm.backbone.features import make_batches
from espnet_adaltm.data.labels import Labels
from espnet_adaltm.data.tokens import MODEL_FILE, Tokenizer
from espnet_adaltm.decoding.systems import Output
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_open, require
from espnet_adaltm.kaldi import read_scp, safe_kaldiio, write_scp
from espnet_adaltm.progress import progress

OUTPUTS = ("utt2prob", "utt2emo", "text", "utt2spk_hyp")
# Everything said about an utterance on one line, where speakers are recognised as well.
TOGETHER = "utt2all.jsonl"
_LOADERS = 2
_LEAST_SHARE = 0.9  # of an utterance's length by that of the longest in its batch

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@dataclass(frozen=True)
class Inputs:
    """The utterances of a set and how to read them.

    Attributes:
        lengths: Utterance to samples or frames, in the order of the set.
        load: Utterance to samples [N] or features [T, C], float32.
        per_second: Samples or frames in a second.
    """

    lengths: Mapping[str, int]
    load: Callable[[str], Array]
    per_second: float

    def only(self, utterances: Collection[str], where: str) -> "Inputs":
        """The same with some of the utterances, in the same order.

        Args:
            utterances: Which; at least one.
            where: What names them, for the error.

        Raises:
            UserError: One of them is not in the set, or there is none.
        """
        unknown = [utt for utt in utterances if utt not in self.lengths]
        if unknown or not utterances:
            raise UserError(
                f"{where} names {unknown[0] if unknown else 'no utterance'!r}"
                f"{', which the set lacks' if unknown else ''}: give utterances of the set"
            )
        chosen = set(utterances)
        lengths = {utt: length for utt, length in self.lengths.items() if utt in chosen}
        return Inputs(lengths, self.load, self.per_second)


def raw_inputs(dump: Pathlike) -> Inputs:
    """Waveforms of ``dump/<set>``.

    Raises:
        UserError: A file is missing, or an utterance has no length.
    """
    waveforms = Waveforms(dump)
    lengths = _lengths(Path(dump) / "utt2num_samples", waveforms, "stage `audio`")
    return Inputs(lengths, waveforms.__getitem__, SAMPLE_RATE)


def feature_inputs(dump: Pathlike, feats: Pathlike, hop: int) -> Inputs:
    """Stored CNN features of the utterances of ``dump/<set>``.

    Args:
        dump: The set; its ``wav.scp`` says which utterances there are.
        feats: Folder with ``feats.scp`` and ``feats_shape`` of the same set.
        hop: Samples from one frame to the next.

    Raises:
        UserError: A file is missing, or an utterance has no features.
    """
    feats = Path(feats)
    stage = "stage `base` with --feats_type extracted"
    utterances = read_scp(require(Path(dump) / "wav.scp", "stage `audio`"))
    sources = read_scp(require(feats / "feats.scp", stage))
    _check_covered(utterances, sources, feats / "feats.scp", stage)
    lengths = _lengths(feats / "feats_shape", utterances, stage)

    def load(utt: str) -> Array:
        try:
            return np.asarray(safe_kaldiio().load_mat(sources[utt]), dtype=np.float32)
        except Exception as error:  # kaldiio raises whatever the damage leads to
            raise UserError(
                f"{feats / 'feats.scp'}: {utt!r} cannot be read ({error}): run {stage} again"
            ) from error

    return Inputs(lengths, load, SAMPLE_RATE / hop)


def _lengths(path: Path, utterances: Iterable[str], stage: str) -> dict[str, int]:
    values = read_scp(require(path, stage))
    utterances = list(utterances)
    _check_covered(utterances, values, path, stage)
    try:
        # ESPnet's shape files may hold `frames,width`.
        return {utt: int(values[utt].split(",")[0]) for utt in utterances}
    except ValueError as error:
        raise UserError(
            f"{path} holds something else than a length ({error}): run {stage}"
        ) from error


def _check_covered(
    utterances: Iterable[str], found: Mapping[str, str], path: Path, stage: str
) -> None:
    missing = [utt for utt in utterances if utt not in found]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} utterance(s), the first is {missing[0]!r}: run {stage} "
            "again"
        )


def pad(arrays: Sequence[Array], device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack arrays [N_i, ...] to [B, max N, ...] with zeros behind, and their lengths [B]."""
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    return padded.to(device), lengths.to(device)


@dataclass(frozen=True)
class Decoded:
    """Outputs by utterance, in the order of the set; a part that a system lacks is empty."""

    probabilities: dict[str, list[float]]
    texts: dict[str, str]
    speakers: dict[str, str] = field(default_factory=dict)


def decode(
    system: nn.Module,
    inputs: Inputs,
    *,
    batch_seconds: float = 40.0,
    device: torch.device | str = "cpu",
) -> Decoded:
    """Run ``system`` over all utterances.

    Args:
        system: What `load_system` loaded: called with a padded batch, it returns an `Output`.
        inputs: What to read.
        batch_seconds: Largest padded duration of a batch; it changes speed and memory only.
        device: Where to compute.

    Raises:
        UserError: Unreadable input, an utterance without a sample, or an output that is not finite.
    """
    device = torch.device(device)
    system = system.to(device)
    largest = batch_seconds * inputs.per_second
    batches = batches_of(inputs.lengths, largest, workers_for(system, device))
    found: dict[str, tuple[list[float] | None, str | None, str | None]] = {}
    results = _run(system, inputs, batches, device)
    for utt, *said in progress(results, "decode", total=len(inputs.lengths)):
        found[utt] = tuple(said)
    parts = [
        {utt: found[utt][part] for utt in inputs.lengths if found[utt][part] is not None}
        for part in range(3)
    ]
    return Decoded(*parts)


def _run(
    system: nn.Module, inputs: Inputs, batches: Sequence[list[str]], device: torch.device
) -> Iterator[tuple[str, list[float] | None, str | None, str | None]]:
    outputs = hear(system, prefetch(inputs, batches), len(batches), device)
    for batch, output in zip(batches, outputs, strict=True):
        for index, utt in enumerate(batch):
            yield utt, *_said(output, index, utt)


def workers_for(system: nn.Module, device: torch.device) -> int:
    """How many batches are computed at a time.

    A processor's cores are used best by a batch each: sharing one, they wait for each other in
    every operation. Only for systems that say that they may be called so (``thread_safe``).
    """
    if device.type != "cpu" or not getattr(system, "thread_safe", False):
        return 1
    return torch.get_num_threads()


def batches_of(lengths: Mapping[str, int], largest: float, workers: int = 1) -> list[list[str]]:
    """`make_batches` of at most ``largest``; several workers get one each where there is little.

    Padding costs a processor more than it gains by a larger batch, so there is little of it.
    """
    if workers > 1:
        largest = min(largest, sum(lengths.values()) / workers)
    return make_batches(lengths, int(largest), _LEAST_SHARE)


def hear(
    system: nn.Module, batches: Iterable[Sequence[Array]], count: int, device: torch.device
) -> Iterator[Output]:
    """Call a system with ``count`` batches of arrays [N_i, ...]; outputs come in their order."""

    def call(arrays: Sequence[Array]) -> Output:
        return system(*pad(arrays, device))

    workers = min(workers_for(system, device), count)
    if workers <= 1:
        yield from map(call, batches)
        return
    each = torch.get_num_threads() // workers
    options = {"initializer": torch.set_num_threads, "initargs": (each,)}
    with _threads(each), ThreadPoolExecutor(workers, **options) as pool:
        waiting: list[Future] = []
        for arrays in batches:
            waiting.append(pool.submit(call, arrays))
            if len(waiting) > workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let operations use so many threads for the time being."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _said(
    output: Output, index: int, utt: str
) -> tuple[list[float] | None, str | None, str | None]:
    """Probabilities, transcript and speaker of one utterance of a batch."""
    row = None if output.probabilities is None else output.probabilities[index].tolist()
    if row is not None and not np.isfinite(row).all():
        raise UserError(
            f"utterance {utt!r}: the emotion probabilities are not finite: the training "
            "diverged, or the audio is damaged"
        )
    text = None if output.texts is None else output.texts[index]
    return row, text, None if output.speakers is None else output.speakers[index]


def prefetch(inputs: Inputs, batches: Sequence[list[str]]) -> Iterator[list[Array]]:
    """Yield the arrays of batches; the next batch is read while this one is computed.

    Raises:
        UserError: An utterance without samples; the message names it.
    """

    def checked(utt: str) -> Array:
        array = inputs.load(utt)
        if len(array) == 0:
            raise UserError(f"utterance {utt!r} has no samples: remove it from the set")
        return array

    with ThreadPoolExecutor(_LOADERS) as pool:
        waiting: list[list[Future]] = []
        for batch in chain(batches, [None]):
            if batch is not None:
                waiting.append([pool.submit(checked, utt) for utt in batch])
            if waiting and (batch is None or len(waiting) > 1):
                yield [future.result() for future in waiting.pop(0)]


def write_outputs(
    folder: Pathlike, decoded: Decoded, labels: Labels, tokenizer: Tokenizer | None = None
) -> list[Path]:
    """Write ``utt2prob``, ``utt2emo``, ``text``, ``utt2spk_hyp``, whichever there are, atomically.

    With speakers, ``utt2all.jsonl`` has all that is said of an utterance on one line. Beside
    ``text`` lies the ``tokens.model`` that wrote it: a system that folds case must not be scored
    against references that don't. What an earlier run left and this one doesn't make is removed.

    Args:
        folder: ``<system>/decode/<set>``.
        decoded: What to write.
        labels: The order of the probabilities.
        tokenizer: Of the transcripts.
    """
    folder = Path(folder)
    rows = decoded.probabilities
    names = labels.labels
    contents = {
        "utt2prob": {utt: " ".join(f"{p:.6f}" for p in row) for utt, row in rows.items()},
        "utt2emo": {utt: names[int(np.argmax(row))] for utt, row in rows.items()},
        "text": decoded.texts,
        "utt2spk_hyp": decoded.speakers,
    }
    written = []
    if decoded.texts and tokenizer is not None:
        with atomic_open(folder / MODEL_FILE, "wb") as handle:
            handle.write(tokenizer.serialized())
        written.append(folder / MODEL_FILE)
    else:
        (folder / MODEL_FILE).unlink(missing_ok=True)
    for name in OUTPUTS:
        if contents[name]:
            write_scp(folder / name, contents[name])
            written.append(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    if decoded.speakers:
        with atomic_open(folder / TOGETHER) as handle:
            for utt in decoded.speakers:
                handle.write(json.dumps(_together(utt, decoded, names), ensure_ascii=False) + "\n")
        written.append(folder / TOGETHER)
    else:
        (folder / TOGETHER).unlink(missing_ok=True)
    return written


def _together(utt: str, decoded: Decoded, names: Sequence[str]) -> dict[str, Any]:
    """What is said about one utterance; without what the system does not know."""
    result: dict[str, Any] = {"utt": utt}
    if utt in decoded.probabilities:
        row = decoded.probabilities[utt]
        result["emotion"] = names[int(np.argmax(row))]
        result["probabilities"] = {name: round(p, 6) for name, p in zip(names, row, strict=True)}
    if utt in decoded.texts:
        result["text"] = decoded.texts[utt]
    return {**result, "speaker": decoded.speakers[utt]}
