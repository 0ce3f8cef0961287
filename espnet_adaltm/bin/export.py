"""Export a merge: one folder that `EmotionRecognizer.from_pretrained` and transformers load.

    python -m espnet_adaltm.bin.export --system exp/merge_adaltm_seed1 --base exp/base_tiny \\
        --asr_expert exp/asr_expert_tiny --out exp/merge_adaltm_seed1/export

The coefficients are baked in: the encoder is a plain Hugging Face folder, with the emotion head,
the CTC head (with ``--asr_expert``), the labels and a model card beside it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, require, write_text

CARD = """---
library_name: espnet_adaltm
pipeline_tag: audio-classification
tags: [speech-emotion-recognition, model-merging]
---
# {name}

Recognises {labels} in speech. The encoder is a base encoder plus learned shares of the task vectors
{tasks}, layer by layer (merge `{merge}`), baked into plain weights.

```python
from espnet_adaltm.recognizer import EmotionRecognizer

recognizer = EmotionRecognizer.from_pretrained("path/or/hub-id")
print(recognizer.predict("speech.wav"))
```

The encoder alone: `transformers.AutoModel.from_pretrained("path/or/hub-id")`.
{scores}"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__)
    parser.add_argument("--system", type=Path, required=True, help="folder of a merge")
    parser.add_argument("--base", type=Path, help="base encoder; a merge knows its own")
    parser.add_argument("--asr_expert", type=Path, help="lends its CTC head and tokens")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--upload", metavar="USER/MODEL", help="also push it to the Hugging Face Hub"
    )
    return parser


def model_card(system: Path, labels: Sequence[str]) -> str:
    """README of an export, with the system's test scores if it has been scored."""
    merge = read_json(require(system / "merge.json", "stage 8 (merge)"))
    options = merge.get("options", {})
    return CARD.format(
        name=system.name,
        labels=", ".join(labels),
        tasks=" and ".join(options.get("tasks", [])) or "(none)",
        merge=merge.get("name", system.name),
        scores=_scores(system / "results.json"),
    )


def _scores(path: Path) -> str:
    if not path.exists():
        return ""
    rows = ["", "| set | macro F1 | 95 % interval |", "|---|---|---|"]
    for name, parts in read_json(path)["sets"].items():
        value = parts.get("emotion", {}).get("metrics", {}).get("macro_f1")
        if value:
            interval = f"{value['low']:.3f} to {value['high']:.3f}"
            rows.append(f"| {name} | {value['value']:.3f} | {interval} |")
    return "\n".join(rows) + "\n"


def work(args: argparse.Namespace) -> None:
    """Bake, write, and upload on request."""
    from espnet_adaltm.decoding.systems import load_system
    from espnet_adaltm.recognizer import EmotionRecognizer

    system = load_system(args.system, base=args.base, asr_expert=args.asr_expert)
    if not system.labels:
        raise UserError(f"{args.system} recognises no emotions: export a merge")
    tokens = args.asr_expert / "tokens.model" if args.asr_expert else None
    EmotionRecognizer(system).save_pretrained(args.out, tokens)
    write_text(args.out / "README.md", model_card(args.system, system.labels))
    print(f"written: {args.out}")
    if args.upload:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(args.upload, exist_ok=True)
        api.upload_folder(repo_id=args.upload, folder_path=str(args.out))
        print(f"uploaded: {args.upload}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
