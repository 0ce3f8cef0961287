"""Encoders from the Hub, from a folder or from a UniLM ``.pt`` file, and back into a folder."""

import json
import logging
import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from espnet_adaltm.backbone.encoder import (
    MODELS,
    POSITION_WEIGHT,
    SpeechEncoder,
    build_body,
    check_state,
)
from espnet_adaltm.backbone.unilm import config_of_unilm, convert_unilm
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import (
    Pathlike,
    atomic_open,
    read_json,
    sha256_file,
    write_json,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_G, _V = (
    f"encoder.pos_conv_embed.conv.parametrizations.weight.original{index}" for index in (0, 1)
)
_LEGACY = {
    "encoder.pos_conv_embed.conv.weight_g": _G,
    "encoder.pos_conv_embed.conv.weight_v": _V,
}
_ENCODER_PARTS = ("masked_spec_embed", "feature_extractor.", "feature_projection.", "encoder.")
WEIGHTS = "model.safetensors"
_MOST = {
    "num_hidden_layers": 1000,
    "hidden_size": 100_000,
    "conv_dim": 100_000,
    "conv_kernel": 100_000,
    "conv_stride": 100_000,
}
# what torch.load raises on damaged files, and on pickles that would run code
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError)


def load_encoder(source: Pathlike) -> SpeechEncoder:
    """Load a pre-trained encoder, in evaluation mode and on the CPU.

    Args:
        source: A folder with ``config.json`` and weights, a UniLM checkpoint (``WavLM-Large.pt``),
            or the id of a model on the Hugging Face Hub. Heads beside the encoder are left out, and
            named in the log.

    Raises:
        UserError: Nothing there, damaged weights, weights that do not fit, or a Hub id that cannot
            be fetched.
    """
    path = Path(source)
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_unilm(path)
    name = str(source)
    if path.suffix in (".pt", ".safetensors") or name.startswith((".", "/", "~")):
        raise UserError(f"{name} does not exist: give a folder, a .pt file or a Hub id")
    if name.count("/") != 1:
        raise UserError(f"{name!r} is neither an existing path nor a Hub id (user/model)")
    return _from_folder(download(name))


def _from_folder(folder: Path) -> SpeechEncoder:
    config = read_config(folder)
    state = _strip(read_weights(folder), config.model_type, str(folder))
    preprocessor = folder / "preprocessor_config.json"
    normalize = read_json(preprocessor).get("do_normalize", True) if preprocessor.exists() else True
    return _assemble(config, state, do_normalize=normalize, where=str(folder))


def _from_unilm(path: Path) -> SpeechEncoder:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read as a UniLM checkpoint ({_first_line(error)}): expected a file "
            "such as WavLM-Large.pt; is the download complete?"
        ) from error
    if not isinstance(checkpoint, dict) or not {"cfg", "model"} <= checkpoint.keys():
        raise UserError(f"{path} is no UniLM checkpoint: expected the entries 'cfg' and 'model'")
    config = config_of_unilm(checkpoint["cfg"], where=str(path))
    _check_sizes(config, str(path))
    state, ignored = convert_unilm(check_tensors(checkpoint["model"], path), config)
    _report(ignored, str(path))
    normalize = bool(checkpoint["cfg"].get("normalize", False))
    return _assemble(config, state, do_normalize=normalize, where=str(path))


def _assemble(
    config: "PretrainedConfig", state: Mapping[str, Tensor], *, do_normalize: bool, where: str
) -> SpeechEncoder:
    try:
        with torch.device("meta"):  # the random initialisation of a large model takes seconds
            encoder = SpeechEncoder(build_body(config), do_normalize=do_normalize)
    except Exception as error:  # sizes that do not fit each other fail anywhere in transformers
        raise UserError(
            f"{where}: no encoder can be built as its configuration says ({_first_line(error)})"
        ) from error
    state = {name: tensor.float() for name, tensor in effective_position_weight(state).items()}
    expected = encoder.encoder_state()
    if "masked_spec_embed" in expected and "masked_spec_embed" not in state:
        # published CTC models may lack it; drawn as Hugging Face does, but always the same
        generator = torch.Generator().manual_seed(0)
        state["masked_spec_embed"] = torch.rand(config.hidden_size, generator=generator)
        logging.warning("%s has no masked_spec_embed: a random one is used", where)
    try:
        check_state(expected, state)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    encoder.body.load_state_dict(state, strict=True, assign=True)
    return encoder.eval()


def effective_position_weight(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace weight norm's two factors of the positional convolution by the weight they stand for.

    Both names that versions of torch have given to the factors are understood. A state that holds
    the effective weight already is returned as it is.
    """
    out = {_LEGACY.get(name, name): tensor for name, tensor in state.items()}
    if _G in out and _V in out:
        magnitude, direction = out.pop(_G).float(), out.pop(_V).float()
        out[POSITION_WEIGHT] = torch._weight_norm(direction, magnitude, 2)
    return out


def factored_position_weight(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `effective_position_weight`, under the names that `transformers` reads."""
    out = dict(state)
    weight = out.pop(POSITION_WEIGHT)
    norm = weight.float().norm(dim=(0, 1), keepdim=True).to(weight.dtype)
    out[_G] = norm
    out[_V] = torch.where(norm == 0, torch.ones_like(weight), weight)  # 0 / 0 otherwise
    return out


def _strip(state: Mapping[str, Tensor], model_type: str, where: str) -> dict[str, Tensor]:
    prefix = f"{model_type}."
    prefixed = any(name.startswith(prefix) for name in state)
    kept: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, tensor in state.items():
        short = name.removeprefix(prefix)
        if short.startswith(_ENCODER_PARTS) and (not prefixed or short != name):
            kept[short] = tensor
        else:
            ignored.append(name)
    _report(ignored, where)
    return kept


def _report(ignored: list[str], where: str) -> None:
    if ignored:
        logging.info("%s: left out, not part of the encoder: %s", where, ", ".join(ignored))


def read_config(folder: Path) -> "PretrainedConfig":
    """Read the sizes of an encoder without its weights.

    Raises:
        UserError: No ``config.json``, one of another kind of model, or sizes that no encoder has.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{path} is missing: {folder} holds no Hugging Face model")
    model_type = read_json(path).get("model_type")
    if model_type not in [*MODELS]:
        raise UserError(
            f"{path}: model_type {model_type!r} is not supported: use one of {', '.join(MODELS)}"
        )
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers checks types with exceptions of its own
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a valid configuration: {reason}") from error
    _check_sizes(config, str(path))
    return config


def _check_sizes(config: "PretrainedConfig", where: str) -> None:
    """Refuse what no encoder has, and what would be built without end, before it is built."""
    for name, most in _MOST.items():
        value = getattr(config, name)
        sizes = value if isinstance(value, list | tuple) else [value]
        if not sizes or not all(type(size) is int and 0 < size <= most for size in sizes):
            raise UserError(f"{where}: {name} is {value!r}, expected 1 to {most}")


def check_tensors(value: object, path: Path) -> dict[str, Tensor]:
    """What a checkpoint holds, if that is tensors by name.

    Raises:
        UserError: It is something else.
    """
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    ):
        raise UserError(f"{path} holds something else than tensors by name: it is no model")
    return dict(value)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder of `transformers`, in one file or several.

    Raises:
        UserError: There are none, or damaged ones.
    """
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).exists():
        return _read_safetensors(folder / WEIGHTS)
    if index.exists():
        state: dict[str, Tensor] = {}
        for part in _parts(index):
            state.update(_read_safetensors(part))
        return state
    path = folder / "pytorch_model.bin"
    if not path.exists():
        raise UserError(f"{folder} has neither {WEIGHTS} nor {path.name}: where are the weights?")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise UserError(f"{path} is damaged ({_first_line(error)}): fetch it again") from error
    return check_tensors(state, path)


def _parts(index: Path) -> list[Path]:
    """The files that an index of shards names, all of which lie beside it."""
    table = read_json(index).get("weight_map")
    names = set(table.values()) if isinstance(table, dict) else set()
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise UserError(f"{index} has no `weight_map` of files beside it: fetch it again")
    return [index.parent / name for name in sorted(names)]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or incomplete ({_first_line(error)}): make or fetch it again"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def download(name: str, *more: str) -> Path:
    """Bring the configuration and the weights of a model on the Hub into the local cache.

    Args:
        name: ``user/model``.
        more: Other files to bring, where the model has them.

    Returns:
        The folder in the cache.

    Raises:
        UserError: They are not in the cache and cannot be fetched; or there are none.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    def fetch(*files: str) -> Path | None:
        for file in files:
            try:
                return Path(hf_hub_download(name, file))
            except LocalEntryNotFoundError:  # a kind of EntryNotFoundError: no network, not cached
                if file == files[-1]:
                    raise
            except EntryNotFoundError:
                continue
        return None

    try:
        config = fetch("config.json")
        for file in ("preprocessor_config.json", *more):
            with suppress(LocalEntryNotFoundError):  # not in the cache: the model may lack it
                fetch(file)
        weights = fetch(WEIGHTS, "pytorch_model.bin")
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"cannot get {name!r} from the Hugging Face Hub ({_first_line(error)}): check the id "
            f"and the network. For nodes without network run `hf download {name}` on the login "
            "node, with HF_HOME on a disk that they see; then set the same HF_HOME and "
            "HF_HUB_OFFLINE=1. Or give the path of a folder with config.json and weights"
        ) from error
    if config is None or weights is None:
        raise UserError(f"{name!r} on the Hugging Face Hub has no config.json or no weights")
    return config.parent


def save_encoder(
    encoder: SpeechEncoder,
    folder: Pathlike,
    *,
    heads: Mapping[str, Tensor] | None = None,
    **described: Any,
) -> None:
    """Write a folder that `load_encoder` and `transformers` load with the same outputs.

    Files are written one by one, the weights last; others in the folder stay.

    Args:
        encoder: What to write.
        folder: Where to.
        heads: Tensors beside the encoder's, by the names that a model class of `transformers`
            with heads gives them.
        described: More entries of ``config.json``; those here come last.
    """
    folder = Path(folder)
    config = encoder.body.config
    # transformers 5 would return the last hidden state before the final norm
    tied = {"architectures": [MODELS[config.model_type]], "tie_last_hidden_states": True}
    write_json(folder / "config.json", json.loads(config.to_json_string()) | tied | described)
    write_json(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": 16000,
            "padding_value": 0.0,
            "padding_side": "right",
            "do_normalize": encoder.do_normalize,
            "return_attention_mask": True,
        },
    )
    state = factored_position_weight(encoder.encoder_state())
    if heads:
        state = {f"{config.model_type}.{name}": tensor for name, tensor in state.items()} | heads
    state = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    with atomic_open(folder / WEIGHTS, "wb") as handle:
        handle.write(to_bytes(state, metadata={"format": "pt"}))


def write_base_info(folder: Pathlike, kind: str, source: str, **extra: Any) -> dict[str, Any]:
    """Write ``base.json``: what the folder's encoder is and the SHA-256 of its weights.

    Args:
        folder: A folder written by `save_encoder`.
        kind: ``random | pretrained | tiny`` or another word.
        source: Where the weights come from.
        extra: Further entries, e.g. ``unit_accuracy``.
    """
    folder = Path(folder)
    info = {"kind": kind, "source": source, "sha256": sha256_file(folder / WEIGHTS), **extra}
    write_json(folder / "base.json", info)
    return info


def read_base_info(folder: Pathlike) -> dict[str, Any]:
    """Read ``base.json``.

    Raises:
        UserError: Missing, or without its entries.
    """
    path = Path(folder) / "base.json"
    if not path.exists():
        raise UserError(f"{path} is missing: run the stage 'base' first")
    info = read_json(path)
    lacking = [key for key in ("kind", "source", "sha256") if key not in info]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}: run the stage 'base' again")
    return info
