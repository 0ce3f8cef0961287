"""Merge experts into one encoder, without training, file to file.

    python -m espnet_adaltm.bin.merge --config merge.yaml --base exp/base_tiny \\
        --experts asr=exp/asr_expert_tiny ser=exp/ser_expert_tiny --out exp/merged

merge.yaml, for one number per layer (all keys: `espnet_adaltm.merging.recipe`):

    method: task_arithmetic       # or ties, dare, dare_ties, della, breadcrumbs, slerp, model_stock
    weights:
      asr: 0.3
      ser: {"*": 0.5, block0: 0, block12: 0.8}

A row of conf/merge works as well, and the coefficients that a training has learned:
--coefficients exp/merge_adaltm_seed1/coefficients.json.

Everything is checked before anything is written. The folder loads with
`transformers.AutoModel.from_pretrained`; merge_recipe.yaml in it makes the same weights again.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_adaltm.bin import cli
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import atomic_dir, atomic_open, write_text
from espnet_adaltm.merging.places import (
    RECIPE,
    REPORT,
    WEIGHTS,
    check_apart,
    check_file,
    check_merged,
    check_new_name,
    check_task,
    real,
)
from espnet_adaltm.merging.weight_files import Identities

if TYPE_CHECKING:
    from espnet_adaltm.merging.plan import MergePlan


def get_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=Path, help="recipe, or a row of conf/merge")
    parser.add_argument(
        "--coefficients", type=Path, help="coefficients.json of a merge that was trained"
    )
    parser.add_argument("--base", type=Path, required=True, help="folder of the base encoder")
    parser.add_argument(
        "--experts", nargs="+", default=[], metavar="TASK=PATH", help="fine-tuned encoders"
    )
    parser.add_argument(
        "--vectors", nargs="+", default=[], metavar="TASK=FILE", help="task vectors instead"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--save_vectors",
        type=Path,
        metavar="DIR",
        help="keep the experts' task vectors, not preprocessed",
    )
    parser.add_argument(
        "--mergekit_yaml",
        type=Path,
        metavar="FILE",
        help="write the same merge for mergekit-pytorch",
    )
    parser.add_argument("--dry_run", action="store_true", help="check and tell, write nothing")
    parser.add_argument("--threads", type=int, help="by default one for each processor")
    parser.add_argument(
        "--sync", action="store_true", help="return only when the disk has everything"
    )
    return parser


def named_paths(words: Sequence[str], option: str) -> dict[str, Path]:
    """Read ``task=path`` words.

    Raises:
        UserError: A word without a task or a path, a task twice, or a name that none can have.
    """
    found: dict[str, Path] = {}
    for word in words:
        task, equals, path = word.partition("=")
        if not (task and equals and path):
            raise UserError(f"{option} {word!r}: expected TASK=PATH, such as asr=exp/asr_expert")
        try:
            check_task(task)
        except UserError as error:
            raise UserError(f"{option} {word!r}: {error}") from error
        if task in found:
            raise UserError(f"{option} names the task {task} twice")
        found[task] = Path(path)
    return found


def _drop(tasks: Sequence[str], *given: dict[str, Path]) -> list[str]:
    """Take out, and return, what a recipe does not merge: one command line serves many recipes."""
    unused = sorted(set().union(*given) - set(tasks))
    for paths in given:
        for task in unused:
            paths.pop(task, None)
    return unused


def _unused(tasks: Sequence[str]) -> str:
    return f"not used, as the recipe does not name it: {', '.join(tasks)}\n" if tasks else ""


def work(args: argparse.Namespace) -> None:
    """Do what the module says."""
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads {args.threads}: give 1 or more")
    experts = named_paths(args.experts, "--experts")
    vectors = named_paths(args.vectors, "--vectors")
    if args.save_vectors and vectors:
        raise UserError("--save_vectors takes differences of --experts: there are --vectors")
    _check_places(args, experts, vectors)
    with Identities([args.base, *experts.values()]) as identities:
        _merge(args, experts, vectors, identities)


def _check_places(
    args: argparse.Namespace, experts: dict[str, Path], vectors: dict[str, Path]
) -> None:
    """Refuse outputs that would cost an input, each other or somebody's files."""
    given = {f"--{name}": getattr(args, name) for name in ("config", "coefficients", "base")}
    # A merge may be made again in its place, by the recipe that is written there again.
    if args.config and real(args.config) == real(args.out / RECIPE):
        given.pop("--config")
    for option, paths in (("experts", experts), ("vectors", vectors)):
        given |= {f"--{option} {task}": path for task, path in paths.items()}
    outputs = {"--out": args.out, "--save_vectors": args.save_vectors}
    check_merged(args.out)
    if args.mergekit_yaml:
        check_file(args.mergekit_yaml)
        if _beside_weights(args):
            check_new_name(args.mergekit_yaml)
        else:
            outputs["--mergekit_yaml"] = args.mergekit_yaml
    inputs, outputs = ({k: path for k, path in d.items() if path} for d in (given, outputs))
    check_apart(outputs, inputs)


def _beside_weights(args: argparse.Namespace) -> bool:
    """Whether the mergekit configuration is to be written into the folder of the merge."""
    return real(args.mergekit_yaml).parent == real(args.out)


def _merge(
    args: argparse.Namespace,
    experts: dict[str, Path],
    vectors: dict[str, Path],
    identities: Identities,
) -> None:
    # Importing torch takes seconds: mistakes in the options, and help, are told before.
    from espnet_adaltm.merging import folder
    from espnet_adaltm.merging.merge_report import merge_report
    from espnet_adaltm.merging.mergekit import mergekit_text
    from espnet_adaltm.merging.plan import MergePlan
    from espnet_adaltm.merging.recipe import load_recipe

    recipe = load_recipe(args.config, args.coefficients)
    unused = [] if recipe.named_tasks is None else _drop(recipe.named_tasks, experts, vectors)
    config = folder.read_base_config(args.base, any_names=recipe.any_names)
    norm_first = folder.is_norm_first(config)
    with MergePlan(
        args.base, recipe, experts=experts, vectors=vectors, norm_first=norm_first
    ) as plan:
        folder.check_config(plan, config, args.base)
        folder.check_output(plan, args.out, args.save_vectors)
        translated = mergekit_text(plan) if args.mergekit_yaml else ""
        hashes = plan.hashes(identities)
        if args.dry_run:
            print(merge_report(plan) + _unused(unused), end="")
            return
        print(_write(args, plan, config, hashes, translated) + _unused(unused), end="")
        print(f"written: {args.out} ({WEIGHTS}, {RECIPE}, {REPORT})")


def _write(
    args: argparse.Namespace,
    plan: "MergePlan",
    config: dict,
    hashes: dict[str, str],
    translated: str,
) -> str:
    from espnet_adaltm.merging.folder import merged_folder, write_recipe
    from espnet_adaltm.merging.merge_report import merge_report
    from espnet_adaltm.merging.offline import write_merged

    with ExitStack() as stack:
        # Opened before the work, so that a place that refuses is told before.
        if args.mergekit_yaml and not _beside_weights(args):
            stack.enter_context(atomic_open(args.mergekit_yaml)).write(translated)
        files = {}
        if args.save_vectors:
            kept = stack.enter_context(atomic_dir(args.save_vectors))
            files = {task: kept / f"{task}.safetensors" for task in plan.recipe.tasks}
        folder = stack.enter_context(merged_folder(args.out, plan, args.base, config))
        sizes = write_merged(
            plan,
            folder / WEIGHTS,
            vectors=files,
            hashes=hashes,
            threads=args.threads,
            sync=args.sync,
        )
        told = merge_report(plan, sizes)
        write_recipe(folder, plan, args.base, hashes)
        write_text(folder / REPORT, told)
        if args.mergekit_yaml and _beside_weights(args):
            write_text(folder / args.mergekit_yaml.name, translated)
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
