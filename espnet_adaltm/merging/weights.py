"""Encoder weights under one set of names, read tensor by tensor or piece by piece.

Names are Hugging Face's without a model prefix (``encoder.layers.0...``). A weight-normed
positional convolution is read as its effective weight, whichever spelling the checkpoint uses:
merging g and v linearly is not merging what they stand for.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from espnet_adaltm.backbone.blocks import common_name
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike
from espnet_adaltm.merging.tensor_file import Spec, TensorFile
from espnet_adaltm.merging.weight_files import weight_files

# What marks the file of a task vector, in its metadata.
FORMAT = "task_vector"
POS_CONV = "encoder.pos_conv_embed.conv"
POS_WEIGHT = f"{POS_CONV}.weight"
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
# Magnitude g and direction v; the first spelling is what transformers reads.
NORM_SPELLINGS = (
    (
        f"{POS_CONV}.parametrizations.weight.original0",
        f"{POS_CONV}.parametrizations.weight.original1",
    ),
    (f"{POS_CONV}.weight_g", f"{POS_CONV}.weight_v"),
)
Source = Pathlike | Mapping[str, Tensor]


@dataclass(frozen=True)
class Weights:
    """The float and integer tensors of one encoder, loaded when asked for.

    Attributes:
        source: What to call it in errors: a path, or "state".
        specs: Every tensor's name, sorted, and what it is; known without reading any.
        load: Name to tensor.
        fill: ``(name, start, out)``: fill a flat tensor with elements from ``start`` on; for the
            names that are stored as they are (`stored`).
        stored: Name to the keys that it is stored under: one, or g and v of a weight norm.
        load_key: Such a key to its tensor.
        left_out: Keys of known heads.
    """

    source: str
    specs: dict[str, Spec]
    load: Callable[[str], Tensor]
    fill: Callable[[str, int, Tensor], None] = field(repr=False)
    stored: dict[str, tuple[str, ...]]
    load_key: Callable[[str], Tensor] = field(repr=False)
    left_out: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, sorted."""
        return tuple(self.specs)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, one tensor alive at a time."""
        for name in self.names:
            yield name, self.load(name)


@dataclass(frozen=True)
class _Keys:
    """Tensors under the keys that they are stored with."""

    source: str
    specs: Mapping[str, Spec]
    load: Callable[[str], Tensor]
    fill: Callable[[str, int, Tensor], None]


@contextmanager
def open_weights(source: Source, *, any_names: bool = False) -> Iterator[Weights]:
    """Open safetensors (a file, shards, an encoder's folder) or a state dictionary.

    Args:
        source: What to read.
        any_names: Take every tensor under its own key, of whatever network; nothing is a head.

    Raises:
        UserError: Unreadable file, the file of a task vector, a key that is neither the encoder's
            nor a known head's, two keys of one tensor, or a state dictionary that holds something
            else than tensors.
    """
    if isinstance(source, Mapping):
        yield _weights(_of_state(source), any_names)
        return
    paths = weight_files(source)
    with ExitStack() as stack:
        files = [stack.enter_context(TensorFile(path)) for path in paths]
        for file, path in zip(files, paths):
            if FORMAT in file.metadata:  # the base would be subtracted once more
                raise UserError(
                    f"{path} is a task vector, not a checkpoint: give it as a vector (--vectors), "
                    "or give the fine-tuned encoder"
                )
        yield _weights(_of_files(files), any_names)


def effective_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's encoder tensors under their common names, heads left out."""
    with open_weights(state) as weights:
        return dict(weights.items())


def _of_state(state: Mapping[str, Tensor]) -> _Keys:
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            hint = f", perhaps the one under {key!r}" if isinstance(value, Mapping) else ""
            raise UserError(
                f"state: entry {key!r} is of type {type(value).__name__}: give a state dictionary "
                f"of names and tensors{hint}"
            )

    def fill(key: str, start: int, out: Tensor) -> None:
        out.copy_(state[key].detach().reshape(-1)[start : start + out.numel()])

    return _Keys("state", {k: Spec.of(t) for k, t in state.items()}, state.__getitem__, fill)


def _of_files(files: list[TensorFile]) -> _Keys:
    owner: dict[str, TensorFile] = {}
    for file in files:
        for key in file.specs:
            if key in owner:
                raise UserError(f"tensor {key!r} is in both {owner[key].path} and {file.path}")
            owner[key] = file
    name = str(files[0].path if len(files) == 1 else files[0].path.parent)
    return _Keys(
        name,
        {key: file.specs[key] for key, file in owner.items()},
        lambda key: owner[key].read(key),
        lambda key, start, out: owner[key].read_into(key, start, out),
    )


def _weights(keys: _Keys, any_names: bool) -> Weights:
    names, heads = {key: key for key in keys.specs}, []
    if not any_names:
        names, heads = _body_names(keys.source, keys.specs)
    stored = {name: (key,) for name, key in names.items()}
    specs = {name: keys.specs[key] for name, key in names.items()}
    for g, v in NORM_SPELLINGS if not any_names else ():
        if g in stored and v in stored:
            if POS_WEIGHT in stored:
                raise _twice(keys.source, POS_WEIGHT, stored[POS_WEIGHT][0], *stored[g])
            stored[POS_WEIGHT] = (*stored.pop(g), *stored.pop(v))
            specs.pop(g)
            specs[POS_WEIGHT] = specs.pop(v)

    def load(name: str) -> Tensor:
        tensors = [keys.load(key) for key in stored[name]]
        return tensors[0] if len(tensors) == 1 else effective_weight(*tensors)

    def fill(name: str, start: int, out: Tensor) -> None:
        (key,) = stored[name]
        keys.fill(key, start, out)

    specs = {name: specs[name] for name in sorted(specs)}
    return Weights(keys.source, specs, load, fill, stored, keys.load, tuple(heads))


def _body_names(source: str, keys: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Map common names to stored keys; refuse what is neither body nor head (trap T1)."""
    names: dict[str, str] = {}
    heads: list[str] = []
    for key in keys:
        name = common_name(key)
        if _BODY.match(name):
            if name in names:
                raise _twice(source, name, names[name], key)
            names[name] = key
        elif name.startswith(HEAD_PREFIXES):
            heads.append(key)
        else:
            raise UserError(
                f"{source}: tensor {key!r} belongs neither to a WavLM, HuBERT or wav2vec 2.0 "
                "encoder nor to a known head: remove it or give the right checkpoint"
            )
    return names, heads


def _twice(source: str, name: str, first: str, second: str) -> UserError:
    return UserError(
        f"{source}: tensors {first!r} and {second!r} are both {name!r}: give a checkpoint of one "
        "encoder"
    )


def effective_weight(g: Tensor, v: Tensor) -> Tensor:
    """Return `g v / ||v||`, the weight that a weight-normed layer uses.

    The norm runs over all axes but the one along which ``g`` varies (kernel taps, axis 2, in the
    positional convolution). The arithmetic is PyTorch's own on one thread: the bits of taking the
    parametrisation off the module there, whatever machine this is (PyTorch adds up in another order
    for every number of threads).
    """
    axes = [axis for axis, size in enumerate(g.shape) if size > 1]
    with one_thread():
        return torch._weight_norm(v, g, axes[0] if len(axes) == 1 else 2)


def factored_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return g and v with `effective_weight(g, v) == weight`, bit for bit.

    v is the weight and g its norm as PyTorch's weight norm takes it, so that their quotient is
    exactly 1 there. Where a norm is 0, v is 1 (0 / 0 otherwise).

    Args:
        weight: Of a positional convolution, float, three axes.
    """
    g = torch.ones(1, 1, weight.shape[2], dtype=weight.dtype)
    with one_thread():
        norm = torch._weight_norm_interface(weight, g, 2)[1].to(weight.dtype)
    return norm, torch.where(norm == 0, torch.ones_like(weight), weight)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute on the calling thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
