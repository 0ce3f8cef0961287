"""Encoder weights under one set of names, read tensor by tensor.

Names are Hugging Face's without a model prefix (``encoder.layers.0...``). A weight-normed
positional convolution is read as its effective weight, whichever spelling the checkpoint uses:
merging g and v linearly is not merging what they stand for.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike

POS_CONV = "encoder.pos_conv_embed.conv"
_MODEL_PREFIXES = ("wavlm.", "hubert.", "wav2vec2.")
_BODY = re.compile(r"^(feature_extractor|feature_projection|encoder)\.|^masked_spec_embed$")
HEAD_PREFIXES = (
    "lm_head.",
    "ctc.",
    "ctc_head.",
    "head.",
    "emotion_head.",
    "classifier.",
    "projector.",
    "layer_weights",
    "layer_sum.",
    "final_proj.",
    "quantizer.",
    "project_q.",
    "project_hid.",
    "unit_head.",
)
_NORM_SPELLINGS = (
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight_g", "weight_v"),
)
_FOLDER_FILES = ("expert.safetensors", "model.safetensors")


@dataclass(frozen=True)
class Weights:
    """The float and integer tensors of one encoder, loaded when asked for.

    Attributes:
        source: What to call it in errors: a path, or "state".
        names: Every tensor's name, sorted.
        load: Name to tensor.
    """

    source: str
    names: tuple[str, ...]
    load: Callable[[str], Tensor]

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, one tensor alive at a time."""
        for name in self.names:
            yield name, self.load(name)


def weight_file(path: Pathlike) -> Path:
    """Return the safetensors file that ``path``, a file or an encoder's folder, stands for.

    Raises:
        UserError: There is none.
    """
    path = Path(path)
    if path.is_dir():
        for name in _FOLDER_FILES:
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path} holds neither {' nor '.join(_FOLDER_FILES)}: run its stage first")
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected a safetensors file or a folder with one")
    return path


@contextmanager
def open_weights(source: Pathlike | Mapping[str, Tensor]) -> Iterator[Weights]:
    """Open a safetensors file, an encoder's folder or a state dictionary.

    Raises:
        UserError: Unreadable file, or a key that is neither the encoder's nor a known head's.
    """
    if isinstance(source, Mapping):
        yield _effective("state", source.keys(), source.__getitem__)
        return
    path = weight_file(source)
    try:
        handle = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}): it may be cut off; make it again"
        ) from error
    with handle as file:
        yield _effective(str(path), file.keys(), file.get_tensor)


def effective_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's encoder tensors under their common names, heads left out."""
    with open_weights(state) as weights:
        return dict(weights.items())


def _effective(source: str, keys: Iterator[str], load: Callable[[str], Tensor]) -> Weights:
    stored = _body_names(source, keys)
    readers = {name: _reader(load, key) for name, key in stored.items()}
    for first, second in _NORM_SPELLINGS:
        g, v = f"{POS_CONV}.{first}", f"{POS_CONV}.{second}"
        if g in readers and v in readers:
            readers[f"{POS_CONV}.weight"] = _normed(readers.pop(g), readers.pop(v))
    return Weights(source, tuple(sorted(readers)), lambda name: readers[name]())


def _body_names(source: str, keys: Iterator[str]) -> dict[str, str]:
    """Map common names to stored keys; refuse what is neither body nor head (trap T1)."""
    names: dict[str, str] = {}
    for key in keys:
        name = next((key[len(p) :] for p in _MODEL_PREFIXES if key.startswith(p)), key)
        if _BODY.match(name):
            names[name] = key
        elif not name.startswith(HEAD_PREFIXES):
            raise UserError(
                f"{source}: tensor {key!r} belongs neither to a WavLM, HuBERT or wav2vec 2.0 "
                "encoder nor to a known head: remove it or give the right checkpoint"
            )
    return names


def _reader(load: Callable[[str], Tensor], key: str) -> Callable[[], Tensor]:
    return lambda: load(key)


def _normed(g: Callable[[], Tensor], v: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: effective_weight(g(), v())


def effective_weight(g: Tensor, v: Tensor) -> Tensor:
    """Return `g v / ||v||`, the weight that a weight-normed layer uses.

    The norm runs over all axes but the one along which ``g`` varies (kernel taps, axis 2, in the
    positional convolution). The arithmetic is PyTorch's own, so the result has the same bits as
    taking the parametrisation off the module.
    """
    axes = [axis for axis, size in enumerate(g.shape) if size > 1]
    return torch._weight_norm(v, g, axes[0] if len(axes) == 1 else 2)
