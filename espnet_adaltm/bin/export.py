"""Export a trained system: one folder that `EmotionRecognizer` and transformers load.

    espnet-adaltm export --system exp/merge_adaltm_seed1 --asr_expert exp/asr_expert_tiny \\
        --out exp/merge_adaltm_seed1/export --onnx

A merge's coefficients are baked in: the encoder is a plain Hugging Face model of the base's size.
With the projector head (--head_conf kind=projector in training) `transformers.pipeline` loads the
folder as it is. Beside the weights: labels, a model card, about.json. Nothing is uploaded without
--push_to_hub.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_adaltm.bin import cli
from espnet_adaltm.files import atomic_dir, write_json, write_text

if TYPE_CHECKING:
    from torch import nn


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--system", type=Path, required=True, help="folder of a merge, a SER expert or an MTLSER"
    )
    parser.add_argument("--base", type=Path, help="base encoder; a merge knows its own")
    parser.add_argument("--asr_expert", type=Path, help="lends a merge its CTC head and tokens")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--onnx", action="store_true", help="also write onnx/model.onnx (needs the package onnx)"
    )
    card = parser.add_argument_group("model card")
    card.add_argument("--labels", type=Path, help="labels.json, to tell the size of the data")
    card.add_argument("--recipe", help="name of the recipe under egs")
    card.add_argument("--command", help="what the recipe was run with")
    card.add_argument("--data", help="a sentence on the corpus")
    card.add_argument("--note", help="a sentence more")
    card.add_argument("--license", dest="licence", help="identifier of the Hub, e.g. cc-by-4.0")
    card.add_argument("--language", nargs="+", help="codes, e.g. en")
    hub = parser.add_argument_group("upload")
    hub.add_argument(
        "--push_to_hub", metavar="USER/MODEL", help="also upload it to the Hugging Face Hub"
    )
    hub.add_argument("--private", action="store_true", help="make a new model there private")
    return parser


def work(args: argparse.Namespace) -> None:
    """Bake, write, and upload on request."""
    from espnet_adaltm.decoding.systems import load_system, read_description
    from espnet_adaltm.export import hub
    from espnet_adaltm.export.facts import ABOUT, collect
    from espnet_adaltm.export.folder import save_system

    if args.push_to_hub:
        hub.check_id(args.push_to_hub)
    merge = read_description(args.system)["kind"] == "merge"
    system = load_system(args.system, base=args.base, asr_expert=args.asr_expert if merge else None)
    given = ("recipe", "command", "data", "note", "licence", "language")
    facts = collect(
        args.system,
        base=args.base,
        labels=args.labels,
        **{name: getattr(args, name) for name in given},
    )
    with atomic_dir(args.out) as folder:
        save_system(system, folder)
        if args.onnx:
            from espnet_adaltm.export.onnx import export_onnx

            export_onnx(system, folder / "onnx" / "model.onnx")
        write_json(folder / ABOUT, facts)
        _card(folder, facts, system)
    print(f"written: {args.out}")
    if args.push_to_hub:
        hub.push(args.out, args.push_to_hub, args.private)
        print(f"uploaded: {args.push_to_hub}")


def _card(folder: Path, facts: dict[str, Any], system: "nn.Module") -> None:
    from espnet_adaltm.backbone.encoder import MODELS
    from espnet_adaltm.export.card import PICTURE, write_card
    from espnet_adaltm.models.emotion import ProjectorHead

    table = facts.get("coefficients")
    if table:
        import numpy as np

        from espnet_adaltm.scoring.plots import final_coefficients

        values = np.array([table["final"]])
        title = facts["method"]
        final_coefficients(folder / PICTURE, title, table["tasks"], table["groups"], values)
    parts = {
        "family": MODELS[system.encoder.body.config.model_type].removesuffix("Model"),
        "parameters": sum(tensor.numel() for tensor in system.state_dict().values()),
        "projector": isinstance(getattr(system, "emotion_head", None), ProjectorHead),
        "words": system.tokenizer is not None,
        "speakers": bool(getattr(system, "speakers", ())),
        "onnx": (folder / "onnx").exists(),
        "picture": table is not None,
    }
    write_text(folder / "README.md", write_card(facts, parts))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
