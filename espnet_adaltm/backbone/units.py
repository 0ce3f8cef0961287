"""Targets for masked prediction: clusters of frame features at the CNN's frame rate.

As in HuBERT (Hsu et al., arXiv 2106.07447): the first iteration clusters MFCCs with deltas, a later
one may cluster a hidden layer of an encoder (`hidden_features`). Frame t is analysed around the
centre of what the CNN's frame t sees, and an utterance has exactly as many units as the encoder has
frames. Run it with ``python -m espnet_adaltm.bin.fit_units``.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from espnet_adaltm.backbone.arks import SAMPLE_RATE, ArkWriter, Waveforms
from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.geometry import CnnGeometry
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_dir, atomic_path, require
from espnet_adaltm.merging.tensor_file import write_tensor_file
from espnet_adaltm.progress import progress

FeaturesFn = Callable[[np.ndarray], Tensor]
KINDS = ("mfcc", "logmel")
_FFT = 512
_WINDOW = 400  # 25 ms
_MELS = 40
_CEPSTRA = 13
_DELTA_FRAMES = 2


@dataclass(frozen=True)
class UnitModel:
    """Centroids and what belongs to them.

    Attributes:
        centroids: float32 ``[K, F]``, of standardised features.
        mean: float32 ``[F]``, subtracted before clustering.
        scale: float32 ``[F]``, divided by before clustering.
    """

    centroids: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def assign(self, features: np.ndarray) -> np.ndarray:
        """Nearest centroid of every frame: ``[T, F]`` to int32 ``[T]``."""
        x = (features - self.mean) / self.scale
        distance = (self.centroids**2).sum(1) - 2 * x @ self.centroids.T
        return distance.argmin(1).astype(np.int32)


def frame_features(
    wave: np.ndarray, geometry: CnnGeometry, kind: str = "mfcc", mean_norm: bool = True
) -> Tensor:
    """Spectral features, one vector per frame of the CNN.

    Args:
        wave: Samples at 16 kHz, float32 ``[N]``.
        geometry: Of the CNN whose frames are meant.
        kind: ``mfcc``: 13 cepstra with first and second differences, 39 in all (HuBERT's first
            iteration); ``logmel``: 40 log mel energies.
        mean_norm: Subtract the mean over the utterance (loudness, channel).

    Returns:
        float32 ``[T, F]`` with ``T = geometry.frames(N)``.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of features {kind!r}: expected one of {', '.join(KINDS)}")
    features = _log_mel(torch.from_numpy(wave), geometry)
    if kind == "mfcc":
        cepstra = features @ _dct()
        first = _differences(cepstra)
        features = torch.cat([cepstra, first, _differences(first)], dim=1)
    return features - features.mean(0) if mean_norm else features


def _log_mel(wave: Tensor, geometry: CnnGeometry) -> Tensor:
    frames = geometry.frames(len(wave))
    # the first analysis window is centred where the first frame's receptive field is
    left = _FFT // 2 - geometry.receptive_field // 2
    size = (frames - 1) * geometry.hop + _FFT
    # a negative pad cuts off
    wave = F.pad(wave, (left, size - left - len(wave)))
    spectrum = torch.stft(
        wave,
        n_fft=_FFT,
        hop_length=geometry.hop,
        win_length=_WINDOW,
        window=torch.hann_window(_WINDOW),
        center=False,
        return_complex=True,
    )
    return (spectrum.abs().square().t() @ _mel_filters()).clamp(min=1e-10).log()


@cache
def _mel_filters() -> Tensor:
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(_FFT // 2 + 1, _MELS, 20.0, 7600.0, SAMPLE_RATE, mel_scale="htk")
    return torch.from_numpy(bank).float()


@cache
def _dct() -> Tensor:
    """Orthonormal DCT-II, ``[mels, cepstra]``."""
    mel = torch.arange(_MELS, dtype=torch.float64) + 0.5
    basis = torch.cos(math.pi / _MELS * mel[:, None] * torch.arange(_CEPSTRA)) * math.sqrt(
        2 / _MELS
    )
    basis[:, 0] /= math.sqrt(2)
    return basis.float()


def _differences(x: Tensor) -> Tensor:
    """Regression slope over five frames, edges repeated: ``[T, F]`` to ``[T, F]``."""
    reach = _DELTA_FRAMES
    padded = F.pad(x.t().unsqueeze(0), (reach, reach), mode="replicate")[0].t()
    size = len(x)
    total = sum(
        step * (padded[reach + step :][:size] - padded[reach - step :][:size])
        for step in range(1, reach + 1)
    )
    return total / (2 * sum(step**2 for step in range(1, reach + 1)))


def hidden_features(encoder: SpeechEncoder, layer: int) -> FeaturesFn:
    """Features of a later iteration: a hidden layer of an encoder.

    Args:
        encoder: Run in evaluation mode, utterance by utterance.
        layer: 0 (input of the first layer) to L.

    Returns:
        A function from samples ``[N]`` to ``[T, D]``.
    """
    if not 0 <= layer <= encoder.num_layers:
        raise UserError(f"layer {layer} does not exist: expected 0 to {encoder.num_layers}")
    encoder = encoder.eval()

    @torch.no_grad()
    def features(wave: np.ndarray) -> Tensor:
        speech = torch.from_numpy(wave).unsqueeze(0)
        return encoder(speech, torch.tensor([len(wave)])).hidden[layer][0].float()

    return features


def fit_units(
    dump_dir: Pathlike,
    features_fn: FeaturesFn,
    *,
    num_units: int = 100,
    max_frames: int = 200_000,
    seed: int = 0,
) -> UnitModel:
    """Cluster the frames of randomly chosen utterances with mini-batch k-means.

    The same data, options and seed give the same centroids, bit for bit, on one machine.

    Args:
        dump_dir: Folder with ``wav.scp``.
        features_fn: Samples ``[N]`` to features ``[T, F]``, from `frame_features` or
            `hidden_features`.
        num_units: K.
        max_frames: Utterances are drawn until they have this many frames.
        seed: Of the draw and of the clustering.

    Raises:
        UserError: Fewer frames than units, or features that are not finite.
    """
    from sklearn.cluster import MiniBatchKMeans

    sample = np.concatenate(list(_sample(Waveforms(dump_dir), features_fn, max_frames, seed)))
    if len(sample) < num_units:
        raise UserError(
            f"{dump_dir} has {len(sample)} frames, fewer than the {num_units} units asked for: use "
            "more data or fewer units"
        )
    mean, scale = sample.mean(0), sample.std(0) + 1e-5
    kmeans = MiniBatchKMeans(
        num_units, batch_size=10_000, n_init=3, max_no_improvement=20, random_state=seed
    )
    kmeans.fit((sample - mean) / scale)
    return UnitModel(kmeans.cluster_centers_.astype(np.float32), mean, scale)


def _sample(
    waveforms: Waveforms, features_fn: FeaturesFn, max_frames: int, seed: int
) -> Iterator[np.ndarray]:
    utterances = np.random.default_rng(seed).permutation(list(waveforms)).tolist()
    frames = 0
    for utt in utterances:
        if frames >= max_frames:
            return
        features = features_fn(waveforms[utt]).numpy()[: max_frames - frames]
        if not np.isfinite(features).all():
            raise UserError(f"{waveforms.path}: utterance {utt!r}: features are not finite")
        frames += len(features)
        yield features


def apply_units(
    dump_dir: Pathlike, out_dir: Pathlike, model: UnitModel, features_fn: FeaturesFn
) -> int:
    """Write ``units.ark`` and ``units.scp`` (int32 ``[T]``) of every utterance, all or nothing.

    Args:
        dump_dir: Folder with ``wav.scp``.
        out_dir: Folder to replace; the paths in ``units.scp`` begin with it, as given.
        model: From `fit_units`.
        features_fn: The one that the model was fitted with.

    Returns:
        Number of utterances.
    """
    waveforms = Waveforms(dump_dir)
    out_dir = Path(out_dir)
    with atomic_dir(out_dir) as temporary, ArkWriter(temporary, out_dir, "units") as writer:
        for utt in progress(waveforms, f"units of {dump_dir}", len(waveforms)):
            writer.write(utt, model.assign(features_fn(waveforms[utt]).numpy()))
    return len(waveforms)


def save_units(model: UnitModel, path: Pathlike, **metadata: str) -> None:
    """Write the model as safetensors, with ``metadata`` (how its features were made).

    The bytes are the same every time: the safetensors package writes metadata in a random order.
    """
    values = {"centroids": model.centroids, "mean": model.mean, "scale": model.scale}
    with atomic_path(path) as temporary:
        tensors = {name: torch.from_numpy(value) for name, value in values.items()}
        write_tensor_file(temporary, tensors, metadata)


def load_units(path: Pathlike) -> tuple[UnitModel, dict[str, str]]:
    """Read what `save_units` wrote: the model and its metadata.

    Raises:
        UserError: Missing or damaged.
    """
    path = require(path, "bin/fit_units.py")
    try:
        with safe_open(path, "numpy") as file:
            values = {name: file.get_tensor(name) for name in ("centroids", "mean", "scale")}
            return UnitModel(**values), dict(file.metadata() or {})
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it and fit the units again"
        ) from error
