"""A recogniser as a folder: for `EmotionRecognizer`, and for `transformers`.

``model.safetensors`` and ``config.json`` are a Hugging Face model: the encoder, loaded by
`AutoModel`; a CTC head beside it makes the folder a ``WavLMForCTC``, a projector head a
``WavLMForSequenceClassification`` too (or HuBERT's, or wav2vec 2.0's). One file holds all of them:
every class takes its own tensors. Heads that `transformers` has no class for are in
``head.safetensors``. ``recognizer.json`` says what there is. No file is a pickle.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from espnet_adaltm.backbone.encoder import MODELS, SpeechEncoder
from espnet_adaltm.backbone.loading import WEIGHTS, load_encoder, save_encoder
from espnet_adaltm.data.labels import check_names
from espnet_adaltm.data.tokens import MODEL_FILE, Tokenizer
from espnet_adaltm.decoding.baselines.mtlser import MTLSystem
from espnet_adaltm.decoding.systems import SpeechSystem
from espnet_adaltm.errors import UserError
from espnet_adaltm.export.ctc_tokenizer import write_ctc_tokenizer
from espnet_adaltm.files import atomic_open, read_json, require, write_json
from espnet_adaltm.merging.folder import RECIPE
from espnet_adaltm.models.ctc import BLANK, CTCHead
from espnet_adaltm.models.emotion import ProjectorHead, build_head
from espnet_adaltm.models.mtlser import MTLHead

DESCRIPTION, HEAD = "recognizer.json", "head.safetensors"
FORMAT = 2
# Kind in the description to the class, and how its state names the CTC head's linear layer.
_KINDS: Mapping[str, tuple[type[nn.Module], str]] = {
    "recognizer": (SpeechSystem, "ctc_head.linear."),
    "mtlser": (MTLSystem, "head.ctc.linear."),
}
_LM_HEAD = "lm_head."
_PROJECTOR = "emotion_head."


def save_system(system: nn.Module, folder: Path) -> None:
    """Write a system for `load_system_folder` and `transformers`.

    Args:
        system: `SpeechSystem` with an emotion head, or `MTLSystem`.
        folder: An existing folder.

    Raises:
        UserError: No emotion head, or another class.
    """
    kind = next((name for name, (cls, _) in _KINDS.items() if isinstance(system, cls)), None)
    if kind is None:
        raise UserError(
            f"{type(system).__name__} cannot be exported: give a SER expert, a merge or an MTLSER"
        )
    if not system.labels:
        raise UserError("this system recognises no emotions: export a SER expert or a merge")
    state = _head_state(system)
    theirs = {name: _their_name(system, kind, name) for name in state}
    heads = {other: state[name] for name, other in theirs.items() if other}
    save_encoder(system.encoder, folder, heads=heads, **_config(system))
    own = {name: tensor for name, tensor in state.items() if not theirs[name]}
    if own:
        with atomic_open(folder / HEAD, "wb") as handle:
            plain = {name: tensor.cpu().contiguous() for name, tensor in own.items()}
            handle.write(to_bytes(plain, metadata={"format": "pt"}))
    if system.tokenizer is not None:
        with atomic_open(folder / MODEL_FILE, "wb") as handle:
            handle.write(system.tokenizer.serialized())
        write_ctc_tokenizer(folder, system.tokenizer.tokens)
    write_json(folder / DESCRIPTION, _description(system, kind))


def load_system_folder(folder: Path) -> nn.Module:
    """Read what `save_system` wrote, in evaluation mode on the CPU.

    Raises:
        UserError: Something is missing, damaged, or does not fit.
    """
    if (folder / RECIPE).exists() and not (folder / DESCRIPTION).exists():
        raise UserError(
            f"{folder} is a merged encoder without an emotion head, as bin/merge.py writes it: "
            "give an export, a SER expert or a merge that was trained, or train a head (--base)"
        )
    path = require(folder / DESCRIPTION, "stage `export`")
    info = read_json(path)
    lacking = [key for key in ("format", "kind", "labels", "head") if key not in info]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}: export it again")
    if info["format"] != FORMAT or info["kind"] not in _KINDS:
        raise UserError(
            f"{path}: format {info['format']!r}, kind {info['kind']!r} are not known here: "
            "export it again, or update this package"
        )
    labels = check_names(info["labels"], str(path))
    require(folder / WEIGHTS, "stage `export`")
    encoder = load_encoder(folder)
    tokenizer = Tokenizer(folder / MODEL_FILE) if info.get("words") else None
    try:
        system = _build(info, encoder, labels, tokenizer)
    except TypeError as error:
        raise UserError(f"{path}: `head` does not describe one ({error})") from error
    state = _head_state(system)
    theirs = {name: _their_name(system, info["kind"], name) for name in state}
    found = _read(folder / WEIGHTS, [name for name in theirs.values() if name])
    found |= _read(folder / HEAD, [name for name, other in theirs.items() if not other])
    for name, tensor in state.items():
        value = found[theirs[name] or name]
        if value.shape != tensor.shape:
            raise UserError(
                f"{folder}: {theirs[name] or name} is {tuple(value.shape)}, {DESCRIPTION} means "
                f"{tuple(tensor.shape)}: export it again"
            )
        tensor.copy_(value)
    return system


def _build(
    info: Mapping[str, Any],
    encoder: SpeechEncoder,
    labels: tuple[str, ...],
    tokenizer: Tokenizer | None,
) -> nn.Module:
    layers, dim = encoder.num_layers, encoder.hidden_size
    vocab = 0 if tokenizer is None else tokenizer.vocab_size
    common = {"labels": labels, "tokenizer": tokenizer, "head_options": info["head"]}
    if info["kind"] == "mtlser":
        speakers = info.get("speakers", [])
        sizes = {"vocab": vocab, "speakers": len(speakers)}
        head = MTLHead(layers, dim, len(labels), **sizes, **info["head"])
        return MTLSystem(encoder, head, speakers=speakers, **common)
    head = build_head(layers, dim, len(labels), **info["head"])
    ctc = CTCHead(dim, vocab) if vocab else None
    return SpeechSystem(encoder, emotion_head=head, ctc_head=ctc, **common)


def _head_state(system: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in system.state_dict().items() if not n.startswith("encoder.")}


def _their_name(system: nn.Module, kind: str, name: str) -> str | None:
    """Name in a model class of `transformers`, None for what they have no class for."""
    ctc = _KINDS[kind][1]
    if name.startswith(ctc):
        return _LM_HEAD + name.removeprefix(ctc)
    if isinstance(getattr(system, "emotion_head", None), ProjectorHead):
        return name.removeprefix(_PROJECTOR)
    return None


def _config(system: nn.Module) -> dict[str, Any]:
    """Entries of ``config.json`` that the heads ask for."""
    model = MODELS[system.encoder.body.config.model_type].removesuffix("Model")
    described: dict[str, Any] = {}
    architectures = []
    head = getattr(system, "emotion_head", None)
    if isinstance(head, ProjectorHead):
        # Names only where there is a classifier: a folder without one must not look like one.
        names = dict(enumerate(system.labels))
        described |= {
            "use_weighted_layer_sum": True,
            "classifier_proj_size": head.projector.out_features,
            "id2label": {str(index): name for index, name in names.items()},
            "label2id": {name: index for index, name in names.items()},
        }
        architectures.append(f"{model}ForSequenceClassification")
    if system.tokenizer is not None:
        described |= {"vocab_size": system.tokenizer.vocab_size, "pad_token_id": BLANK}
        architectures.append(f"{model}ForCTC")
    return described | ({"architectures": architectures} if architectures else {})


def _description(system: nn.Module, kind: str) -> dict[str, Any]:
    described = {
        "format": FORMAT,
        "kind": kind,
        "labels": list(system.labels),
        "head": system.head_options,
        "words": system.tokenizer is not None,
    }
    if kind == "mtlser":
        described["speakers"] = list(system.speakers)
    return described


def _read(path: Path, names: list[str]) -> dict[str, Tensor]:
    if not names:
        return {}
    require(path, "stage `export`")
    try:
        with safe_open(path, "pt") as file:
            there = set(file.keys())
            lacking = [name for name in names if name not in there]
            if lacking:
                raise UserError(f"{path} lacks {lacking[0]!r}: export it again")
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged or cut short ({reason}): export it again") from error
