"""Subtract the base from its experts, and tell how large and how alike the differences are.

    python -m espnet_adaltm.bin.task_vectors --base exp/base_tiny --asr exp/asr_expert_tiny \\
        --ser exp/ser_expert_tiny --out exp/task_vectors

Writes asr.safetensors, ser.safetensors and similarity.json.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from espnet_adaltm.bin import cli
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, require, write_json
from espnet_adaltm.merging.analysis import analyse
from espnet_adaltm.merging.extract import extract_vectors
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.merging.weights import open_weights

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def get_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base encoder")
    parser.add_argument("--asr", type=Path, help="folder of the ASR expert")
    parser.add_argument("--ser", type=Path, help="folder of the SER expert")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        default="float32",
        help="how the differences are stored; they are always taken in float32",
    )
    return parser


def check_expert(base: Path, expert: Path) -> Path:
    """Return an expert's weights, after a look at what it was fine-tuned from.

    Raises:
        UserError: A folder is incomplete, or the expert was fine-tuned from another base.
    """
    base_hash = _entry(base / "base.json", "sha256", "stage base")
    used_hash = _entry(expert / "expert.json", "base_sha256", "the expert's training stage")
    if used_hash != base_hash:
        raise UserError(
            f"{expert} was fine-tuned from the base {used_hash[:12]}, but {base} is "
            f"{base_hash[:12]}: train the expert again from this base, or give its own"
        )
    return require(expert / "expert.safetensors", "the expert's training stage")


def _entry(path: Path, key: str, made_by: str) -> str:
    values = read_json(require(path, made_by))
    if not isinstance(values.get(key), str):
        raise UserError(f"{path} has no {key!r}: run {made_by} again")
    return values[key]


def work(args: argparse.Namespace) -> None:
    """Do what the module says."""
    given = {"asr": args.asr, "ser": args.ser}
    experts = {task: check_expert(args.base, path) for task, path in given.items() if path}
    if not experts:
        raise UserError("no expert given: use --asr, --ser or both")
    config = read_json(require(args.base / "config.json", "stage base"))
    files = {task: args.out / f"{task}.safetensors" for task in experts}
    base_hash = _entry(args.base / "base.json", "sha256", "stage base")
    dtype = _DTYPES[args.dtype]
    extract_vectors(args.base, experts, files, dtype=dtype, base_sha256=base_hash)
    with ExitStack() as stack:
        vectors = {t: stack.enter_context(TaskVector.open(file)) for t, file in files.items()}
        weights = stack.enter_context(open_weights(args.base))
        norm_first = bool(config.get("do_stable_layer_norm", False))
        report = analyse(vectors, weights.items(), norm_first=norm_first)
    # Last: a reader of the report finds the vectors.
    write_json(args.out / "similarity.json", report)
    total = report["total"]
    for task in experts:
        print(f"{task}: |tau| / |base| = {total['relative_norm'][task]:.4f}")
    for pair, value in total["cosine"].items():
        print(f"{pair}: cosine {'undefined' if value is None else f'{value:.4f}'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
