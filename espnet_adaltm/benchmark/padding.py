"""How much of a batch is padding, with the samplers that the trainings use."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from espnet_adaltm.decoding.batch import batches_of
from espnet_adaltm.kaldi import read_scp, write_scp

# The batches of conf/wavlm_large: experts, merges.
_KINDS = {
    "experts, 160 s": {"type": "numel", "batch_size": 1, "batch_bins": 2_560_000},
    "merges, 32 clips": {"type": "sorted", "batch_size": 32, "batch_bins": 1},
}
_DECODED = 640_000  # samples in a batch of `bin.decode`
_RATE = 16_000
_MADE = "like MSP-Podcast"
_TURNS = 20_000


def msp_like_lengths(number: int = _TURNS, seed: int = 0) -> dict[str, int]:
    """Lengths in samples of turns as MSP-Podcast's: 2.75 to 11 s, 5.8 s on average.

    The corpus admits no others (Lotfian and Busso, IEEE TAC 2019); in between a log-normal
    distribution that is cut off there is ours.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.lognormal(np.log(5.5), 0.45, 4 * number)
    kept = drawn[(drawn >= 2.75) & (drawn <= 11.0)][:number]
    return {f"turn{index:06d}": int(value * _RATE) for index, value in enumerate(kept)}


def measure_padding(shapes: Sequence[Path] = ()) -> dict[str, dict[str, float]]:
    """Share of padding for made-up lengths and for those of dumps.

    Args:
        shapes: Files of ``utterance samples``.

    Returns:
        Name to ``grouped`` and ``random``, shares of the padded batch, and ``batches``.
    """
    sources = {_MADE: msp_like_lengths()}
    for path in shapes:
        sources[str(path)] = {utt: int(size) for utt, size in read_scp(path).items()}
    return {
        f"{name}: {kind}": row
        for name, lengths in sources.items()
        for kind, row in _of_lengths(lengths).items()
    }


def _of_lengths(lengths: Mapping[str, int]) -> dict[str, dict[str, float]]:
    from espnet2.samplers.build_batch_sampler import build_batch_sampler

    grouped = {}
    with TemporaryDirectory() as name:
        shape = Path(name) / "shape"
        write_scp(shape, lengths)
        for kind, options in _KINDS.items():
            grouped[kind] = [
                list(b) for b in build_batch_sampler(shape_files=[str(shape)], **options)
            ]
    grouped["decoding, 40 s"] = batches_of(lengths, _DECODED)
    return {
        kind: {
            "grouped": padding_share(batches, lengths),
            "random": padding_share(_shuffled(batches), lengths),
            "batches": len(batches),
        }
        for kind, batches in grouped.items()
    }


def _shuffled(batches: Sequence[Sequence[str]]) -> list[list[str]]:
    """As many batches as large, of utterances in random order."""
    utts = [utt for batch in batches for utt in batch]
    random.Random(0).shuffle(utts)
    following = iter(utts)
    return [[next(following) for _ in batch] for batch in batches]


def padding_share(batches: Sequence[Sequence[str]], lengths: Mapping[str, int]) -> float:
    """Share of padded batches that is no speech."""
    padded = sum(len(batch) * max(lengths[utt] for utt in batch) for batch in batches)
    return 1 - sum(lengths[utt] for batch in batches for utt in batch) / padded
