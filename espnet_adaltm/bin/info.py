"""Tell what a model is: labels, size, coefficients, scores. Reads no weights.

    espnet-adaltm info exp/merge_adaltm_seed1/export
    espnet-adaltm info user/model --format json

MODEL is an export, a trained expert, merge or baseline, a base encoder, any WavLM, HuBERT or
wav2vec 2.0 folder, or the id of one on the Hugging Face Hub.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from espnet_adaltm.bin import cli
from espnet_adaltm.errors import UserError
from espnet_adaltm.export.facts import ABOUT, DESCRIPTIONS, coefficient_rows, collect
from espnet_adaltm.export.hub import local_folder
from espnet_adaltm.files import read_json

_CONFIG = "config.json"
_ENCODER = ("feature_extractor.", "feature_projection.", "encoder.", "masked_spec_embed")
_SHOWN = {
    "model_type": "family",
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "attention heads",
}


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the answer")
    return parser


def describe(folder: Path) -> dict[str, Any]:
    """Everything that the files of a model say, ready for JSON.

    Raises:
        UserError: The folder holds no model that this package knows, or a file is damaged.
    """
    found: dict[str, Any] = {"folder": str(folder)}
    if (folder / ABOUT).exists():
        found["about"] = read_json(folder / ABOUT)
    elif any((folder / name).exists() for name in DESCRIPTIONS):
        found["about"] = collect(folder)
    if (folder / "recognizer.json").exists():
        found["recognizer"] = read_json(folder / "recognizer.json")
    if (folder / "base.json").exists():
        found["base"] = read_json(folder / "base.json")
    if (folder / _CONFIG).exists():
        config = read_json(folder / _CONFIG)
        found["encoder"] = {name: config[key] for key, name in _SHOWN.items() if key in config}
        if config.get("conv_stride"):
            found["encoder"]["frame (ms)"] = prod(config["conv_stride"]) / 16
        found["classes of transformers"] = config.get("architectures") or []
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        files[path.name] = parameters(path)
    if files:
        found["parameters"] = files
    if len(found) == 1:
        raise UserError(
            f"{folder} holds no model: expected {_CONFIG}, recognizer.json or one of "
            f"{', '.join(DESCRIPTIONS)}"
        )
    return found


def parameters(path: Path) -> dict[str, int]:
    """Numbers in a safetensors file: of an encoder, and of what is beside it.

    Raises:
        UserError: Damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    counts = {"encoder": 0, "heads": 0}
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                short = name.split(".", 1)[-1] if name.split(".")[0] in _FAMILIES else name
                part = "encoder" if short.startswith(_ENCODER) else "heads"
                counts[part] += prod(file.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged or cut short ({reason}): make it again") from error
    return {part: count for part, count in counts.items() if count}


_FAMILIES = ("wavlm", "hubert", "wav2vec2")


def as_text(found: Mapping[str, Any]) -> str:
    """For people, on a terminal."""
    about = found.get("about", {})
    lines = [("folder", found["folder"])]
    lines += [(key, about[key]) for key in ("name", "kind", "method", "seed") if about.get(key)]
    recognizer = found.get("recognizer", {})
    labels = recognizer.get("labels") or about.get("labels")
    if labels:
        lines.append(("emotions", ", ".join(labels)))
    if recognizer:
        lines.append(("transcribes", "yes" if recognizer.get("words") else "no"))
    if recognizer.get("speakers"):
        lines.append(("speakers", str(len(recognizer["speakers"]))))
    if found.get("encoder"):
        told = ", ".join(f"{name} {value}" for name, value in found["encoder"].items())
        lines.append(("encoder", told))
    for name, parts in found.get("parameters", {}).items():
        told = ", ".join(f"{part} {count:,}" for part, count in parts.items())
        lines.append((name, told))
    if found.get("classes of transformers"):
        lines.append(("transformers", ", ".join(found["classes of transformers"])))
    base = about.get("base") or found.get("base")
    if base:
        lines.append(("base", f"{base['kind']}, {base['source']} ({base['sha256'][:12]})"))
    for key, name in (("licence", "licence"), ("trained_with", "trained with")):
        if about.get(key):
            lines.append((name, about[key]))
    width = max(len(name) for name, _ in lines)
    text = "".join(f"{name:<{width}}  {value}\n" for name, value in lines)
    if about.get("coefficients"):
        text += "\ncoefficients\n" + _columns(coefficient_rows(about["coefficients"]))
    if about.get("scores"):
        text += "\nscores (percent, 95 % interval)\n" + _columns(_score_rows(about["scores"]))
    return text


def _score_rows(scores: Mapping[str, Any]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for name, entry in scores.items():
        for metric, value in entry["metrics"].items():
            low, high = 100 * value["low"], 100 * value["high"]
            rows.append((name, metric, f"{100 * value['value']:.1f}", f"[{low:.1f}, {high:.1f}]"))
    return rows


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows)
    return "".join(f"  {line.rstrip()}\n" for line in lines)


def work(args: argparse.Namespace) -> None:
    """Do what the module says."""
    found = describe(local_folder(args.model))
    if args.format == "json":
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(as_text(found), end="")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
