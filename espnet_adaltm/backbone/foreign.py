"""Experts that others trained: their checkpoints as encoder, head and labels of ours.

Three layouts are known, told apart by the names of the tensors:

- ``vox_profile``: Vox-Profile's WavLM emotion models (``backbone_model.``, ``model_seq.``,
  ``emotion_layer.``), nine outputs
- ``msp_baseline``: the baselines of the MSP-Podcast challenges (``ssl_model.``, ``pool_model.``,
  ``ser_model.``), one file on the Hub, or ``final_ssl.pt``, ``final_pool.pt``, ``final_ser.pt``
- ``ctc``: ``WavLMForCTC`` and its like (``lm_head.``) with ``vocab.json``

The encoder must have been fine-tuned from the base that it is used with: same names, same shapes.
What fine-tuning left out (``masked_spec_embed``) is the base's, so that its task vector is zero.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espnet_adaltm.backbone.loading import (
    check_tensors,
    download,
    effective_position_weight,
    read_weights,
)
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, read_json

VOX_PROFILE, MSP_BASELINE, CTC = LAYOUTS = ("vox_profile", "msp_baseline", "ctc")
KIND = {VOX_PROFILE: "ser", MSP_BASELINE: "ser", CTC: "asr"}
# In the order of the outputs, as the models' authors give it.
VOX_PROFILE_LABELS = (
    "anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "other",
)  # fmt: skip
MSP_BASELINE_LABELS = (
    "anger", "sadness", "happiness", "surprise", "fear", "disgust", "contempt", "neutral",
)  # fmt: skip
_ALIASES = {
    "anger": ("angry", "ang", "a"),
    "contempt": ("c",),
    "disgust": ("disgusted", "dis", "d"),
    "fear": ("fearful", "fea", "f"),
    "happiness": ("happy", "joy", "hap", "h"),
    "neutral": ("neu", "n"),
    "sadness": ("sad", "s"),
    "surprise": ("surprised", "sur", "u"),
    "other": ("oth", "o"),
}
_CANONICAL = {alias: name for name, others in _ALIASES.items() for alias in (name, *others)}
_PARTS = {
    "final_ssl.pt": "ssl_model.",
    "final_pool.pt": "pool_model.",
    "final_ser.pt": "ser_model.",
}
_MASK = "masked_spec_embed"
_BLANKS = ("<pad>", "[PAD]", "<blank>")
_CTC_TYPES = ("wavlm", "hubert", "wav2vec2")


@dataclass(frozen=True)
class Foreign:
    """An expert as it was published, under our names.

    Attributes:
        layout: One of `LAYOUTS`.
        encoder: Tensors under Hugging Face's names, the positional convolution by its effective
            weight.
        head: Tensors under the names of our head.
        head_options: What `models.emotion.build_head` makes the head with; empty for ``ctc``.
        labels: Outputs of an emotion head, in order.
        vocabulary: Token to output of a CTC head.
    """

    layout: str
    encoder: dict[str, Tensor]
    head: dict[str, Tensor]
    head_options: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    vocabulary: dict[str, int] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """``asr`` or ``ser``."""
        return KIND[self.layout]


def read_foreign(source: Pathlike) -> Foreign:
    """Read an expert from a folder or from the Hub.

    Raises:
        UserError: Nothing there, damaged, or of none of the layouts.
    """
    folder = Path(source)
    if not folder.is_dir():
        name = str(source)
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise UserError(f"{name!r} is neither a folder nor a Hub id (user/model)")
        folder = download(name, "vocab.json")
    state = _read_state(folder)
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if any(name.startswith("backbone_model.") for name in state):
        return _vox_profile(state, str(folder))
    if any(name.startswith("ssl_model.") for name in state):
        return _msp_baseline(state, config, str(folder))
    if "lm_head.weight" in state:
        return _ctc(state, config, folder)
    raise UserError(
        f"{folder} has none of the known layouts (Vox-Profile's WavLM emotion model, the "
        "MSP-Podcast challenge's baseline, a CTC model of transformers); its tensors begin with "
        f"{', '.join(sorted({name.partition('.')[0] for name in state})[:8])}"
    )


def _read_state(folder: Path) -> dict[str, Tensor]:
    if not (folder / "final_ssl.pt").exists():
        return read_weights(folder)
    state: dict[str, Tensor] = {}
    for name, prefix in _PARTS.items():
        try:
            loaded = torch.load(folder / name, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle and zip errors of every kind
            raise UserError(f"{folder / name} cannot be read ({error}): fetch it again") from error
        part = check_tensors(loaded, folder / name)
        state |= {f"{prefix}{key}": tensor for key, tensor in part.items()}
    return state


def _take(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor.float()
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def _encoder(state: Mapping[str, Tensor], prefix: str, where: str) -> dict[str, Tensor]:
    encoder = _take(state, prefix)
    adapted = [name for name in encoder if ".lora_" in name or ".adapter." in name]
    if adapted:
        raise UserError(
            f"{where}: {adapted[0]} is an adapter beside the weights: only models whose weights "
            "were fine-tuned themselves have a task vector; merge the adapter into them first"
        )
    return effective_position_weight(encoder)


def _vox_profile(state: Mapping[str, Tensor], where: str) -> Foreign:
    head = {f"frame_net.{name}": tensor for name, tensor in _take(state, "model_seq.").items()}
    head |= {f"output.{name}": tensor for name, tensor in _take(state, "emotion_layer.").items()}
    if "weights" not in state or "output.2.weight" not in head:
        raise UserError(f"{where}: no `weights` or `emotion_layer`: is it an emotion model?")
    head["layer_sum.weights"] = state["weights"].float()
    outputs, hidden = head["output.2.weight"].shape
    labels = VOX_PROFILE_LABELS[:outputs]
    if outputs not in (8, 9):
        raise UserError(f"{where} has {outputs} emotions, Vox-Profile's models have 9 (or 8)")
    options: dict[str, Any] = {"hidden": int(hidden), "pooling": "mean"}
    # Their models mix all hidden states, or those behind the layers, as ours do.
    layers = {name.split(".")[3] for name in state if ".encoder.layers." in name}
    if len(head["layer_sum.weights"]) == len(layers) + 1:
        options["kind"] = "vox_profile"
    encoder = _encoder(state, "backbone_model.", where)
    return Foreign(VOX_PROFILE, encoder, head, options, labels)


def _msp_baseline(state: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> Foreign:
    names = {
        "pool_model.sap_linear.weight": "project.weight",
        "pool_model.sap_linear.bias": "project.bias",
        "pool_model.attention": "score.weight",
        "ser_model.fc.0.0.weight": "output.1.weight",
        "ser_model.fc.0.0.bias": "output.1.bias",
        "ser_model.fc.0.1.weight": "output.2.weight",
        "ser_model.fc.0.1.bias": "output.2.bias",
        "ser_model.out.0.weight": "output.5.weight",
        "ser_model.out.0.bias": "output.5.bias",
    }
    missing = [name for name in names if name not in state]
    if missing:
        raise UserError(
            f"{where} has no {missing[0]}: only the categorical baseline with attentive statistics "
            "pooling and one hidden layer is known"
        )
    head = {ours: state[theirs].float() for theirs, ours in names.items()}
    head["score.weight"] = head["score.weight"].T.contiguous()
    listed = config.get("id2label") or dict(enumerate(MSP_BASELINE_LABELS))
    labels = tuple(str(listed[key]) for key in sorted(listed, key=int))
    if len(labels) != len(head["output.5.bias"]):
        raise UserError(f"{where} has {len(head['output.5.bias'])} outputs for {len(labels)} names")
    logging.info(
        "%s: waveforms are normalised one by one here, not by the mean and deviation of its "
        "training set", where,
    )  # fmt: skip
    options = {
        "kind": "statistics",
        "hidden": int(head["output.1.weight"].shape[0]),
        "pooling": "attentive",
    }
    return Foreign(MSP_BASELINE, _encoder(state, "ssl_model.", where), head, options, labels)


def _ctc(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> Foreign:
    model_type = config.get("model_type")
    if model_type not in _CTC_TYPES:
        raise UserError(f"{folder}: model_type {model_type!r} is none of {', '.join(_CTC_TYPES)}")
    path = folder / "vocab.json"
    if not path.exists():
        raise UserError(f"{path} is missing: a CTC model needs its vocabulary")
    vocabulary = read_json(path)
    if vocabulary and all(isinstance(value, dict) for value in vocabulary.values()):
        raise UserError(f"{path} has vocabularies of several languages: that is not supported")
    head = {"weight": state["lm_head.weight"].float(), "bias": state["lm_head.bias"].float()}
    encoder = _encoder(state, f"{model_type}.", str(folder))
    return Foreign(CTC, encoder, head, vocabulary={str(k): int(v) for k, v in vocabulary.items()})


def complete_encoder(
    found: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Take from the base what fine-tuned models leave out.

    Returns:
        The tensors, and the names of those that are the base's.
    """
    taken = [name for name in base if name not in found and name == _MASK]
    return {**found, **{name: base[name] for name in taken}}, taken


def choose_outputs(theirs: Sequence[str], ours: Sequence[str], where: str) -> list[int]:
    """Their output for each of our labels; names may differ as `anger` and `angry` do.

    Raises:
        UserError: One of ours is none of theirs, or ambiguous.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(theirs):
        places.setdefault(_canonical(name), []).append(place)
    chosen = []
    for name in ours:
        found = places.get(_canonical(name), [])
        if len(found) != 1:
            raise UserError(
                f"{where}: the emotion {name!r} is none of its outputs, {', '.join(theirs)}: use "
                "labels that it knows"
            )
        chosen.append(found[0])
    if len(set(chosen)) < len(chosen):
        raise UserError(f"{where}: two of the labels {', '.join(ours)} are one of its outputs")
    return chosen


def _canonical(name: str) -> str:
    key = name.strip().lower()
    return _CANONICAL.get(key, key)


def keep_outputs(foreign: Foreign, chosen: Sequence[int]) -> dict[str, Tensor]:
    """The head with these outputs only, in this order.

    Its probabilities are theirs, divided by the sum of those that are kept.
    """
    last = "output.5" if foreign.layout == MSP_BASELINE else "output.2"
    head = dict(foreign.head)
    for part in ("weight", "bias"):
        head[f"{last}.{part}"] = head[f"{last}.{part}"][list(chosen)].contiguous()
    return head


def characters(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Lower-case character to output: what of a CTC vocabulary is written; the blank between words
    is ``" "``.

    Raises:
        UserError: Tokens of several characters: only characters are translated.
    """
    found: dict[str, int] = {}
    for token, output in vocabulary.items():
        if len(token) > 1 and token.startswith(("<", "[")):
            continue
        if len(token) != 1:
            raise UserError(
                f"the CTC vocabulary holds {token!r}: only vocabularies of characters are supported"
            )
        found.setdefault(" " if token == "|" else token.lower(), output)
    return found


def ctc_head(foreign: Foreign, tokens: Sequence[str]) -> dict[str, Tensor]:
    """The CTC head with an output for each of our tokens.

    Args:
        foreign: Of the layout ``ctc``.
        tokens: Of a character model, ``<blank>`` first; ``▁`` is the blank between words.

    Returns:
        ``linear.weight`` and ``linear.bias`` of `models.ctc.CTCHead`. Tokens that it does not know
        are never said.

    Raises:
        UserError: The vocabulary has no blank token.
    """
    vocabulary = foreign.vocabulary
    blanks = [vocabulary[name] for name in _BLANKS if name in vocabulary]
    if not blanks:
        raise UserError(f"the CTC vocabulary has none of {', '.join(_BLANKS)}, its blank")
    known = characters(vocabulary)
    weight, bias = foreign.head["weight"], foreign.head["bias"]
    rows = torch.zeros(len(tokens), weight.shape[1])
    offsets = torch.full((len(tokens),), -1e4)
    for place, token in enumerate(tokens):
        output = blanks[0] if place == 0 else known.get(" " if token == "\u2581" else token)
        if output is not None:
            rows[place], offsets[place] = weight[output], bias[output]
    return {"linear.weight": rows, "linear.bias": offsets}
