"""The front end's output, computed once and stored.

The usual recipes freeze the CNN, so that its output never changes: storing it saves the most
expensive part of every later forward pass. Run it with
``python -m espnet_adaltm.bin.extract_features``.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from espnet_adaltm.backbone.arks import SAMPLE_RATE, ArkWriter, Waveforms
from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_dir, require
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.progress import progress

_LARGEST_HALF = 65504.0


def extract_features(
    encoder: SpeechEncoder, dump_dir: Pathlike, out_dir: Pathlike, batch_seconds: float = 60.0
) -> int:
    """Write the CNN's output of every utterance of a dump directory.

    Args:
        encoder: Its CNN is run where it lies (CPU or GPU).
        dump_dir: Folder with ``wav.scp`` and ``utt2num_samples``.
        out_dir: Folder to replace: ``feats.ark`` (float16 ``[T, C]``), ``feats.scp`` and
            ``feats_shape`` (``utt T,C``). The paths in ``feats.scp`` begin with it, as given.
        batch_seconds: Audio in one batch, padding included; changes speed and memory only.

    Returns:
        Number of utterances.

    Raises:
        UserError: Missing or damaged inputs, or features that half precision cannot hold.
    """
    waveforms = Waveforms(dump_dir)
    samples = _num_samples(Path(dump_dir), waveforms)
    batches = make_batches(samples, int(batch_seconds * SAMPLE_RATE))
    out_dir = Path(out_dir)
    shapes: dict[str, str] = {}
    with atomic_dir(out_dir) as temporary, ArkWriter(temporary, out_dir, "feats") as writer:
        for batch in progress(batches, f"features of {dump_dir}", unit="batch"):
            for utt, features in _run(encoder, waveforms, batch).items():
                if not np.abs(features).max() <= _LARGEST_HALF:
                    raise UserError(
                        f"{waveforms.path}: utterance {utt!r}: a feature is not finite in half "
                        "precision: use --feats_type raw with this encoder"
                    )
                writer.write(utt, features.astype(np.float16))
                shapes[utt] = f"{features.shape[0]},{features.shape[1]}"
        write_scp(temporary / "feats_shape", shapes)
    return len(shapes)


def make_batches(
    samples: Mapping[str, int], max_samples: int, least_share: float = 0.0
) -> list[list[str]]:
    """Group utterances of like length.

    Args:
        samples: Utterance to its length.
        max_samples: Of a batch, padding included; one utterance may be longer.
        least_share: Shortest utterance of a batch by its longest.
    """
    batches: list[list[str]] = []
    longest = 0
    for utt in sorted(samples, key=lambda name: (-samples[name], name)):
        fits = batches and longest * (len(batches[-1]) + 1) <= max_samples
        if fits and samples[utt] >= least_share * longest:
            batches[-1].append(utt)
        else:
            batches.append([utt])
            longest = samples[utt]
    return batches


def _num_samples(dump_dir: Path, waveforms: Waveforms) -> dict[str, int]:
    path = require(dump_dir / "utt2num_samples", "the stage 'audio'")
    lengths = {utt: int(value) for utt, value in read_scp(path).items()}
    if lengths.keys() != set(waveforms):
        raise UserError(
            f"{path} and {waveforms.path} list different utterances: run the stage 'audio' again"
        )
    return lengths


def pad_batch(waves: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack waveforms into ``[B, N]`` with zeros behind, and give their lengths ``[B]``."""
    lengths = torch.tensor([len(wave) for wave in waves])
    speech = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(speech, waves):
        row[: len(wave)] = torch.from_numpy(wave)
    return speech, lengths


@torch.no_grad()
def _run(encoder: SpeechEncoder, waveforms: Waveforms, batch: list[str]) -> dict[str, np.ndarray]:
    speech, lengths = pad_batch([waveforms[utt] for utt in batch])
    device = next(encoder.parameters()).device
    features, frames = encoder.cnn(speech.to(device), lengths.to(device))
    features = features.float().cpu()
    return {utt: row[:n].numpy() for utt, row, n in zip(batch, features, frames.tolist())}
