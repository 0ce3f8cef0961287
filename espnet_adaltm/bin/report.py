"""Compare systems over their seeds: aggregated results.json, RESULTS.md and pictures."""

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.bin.score import add_bootstrap_arguments, bootstrap_options
from espnet_adaltm.data.labels import load_labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json, write_text
from espnet_adaltm.scoring import tables
from espnet_adaltm.scoring.aggregate import aggregate, parse_comparisons, parse_systems
from espnet_adaltm.scoring.document import Story, results_document
from espnet_adaltm.scoring.environment import environment
from espnet_adaltm.scoring.pictures import draw_all
from espnet_adaltm.scoring.readers import read_references

# An absolute path at the beginning of a word, or after one of these characters; not of a URL.
_PATH = re.compile(r"""(?<![^\s=:,;'"({\[])/(?!/)[^\s=:,;'"(){}\[\]]+""")
EXAMPLE = """
example:
  python -m espnet_adaltm.bin.report --dumps dump/test --labels data/labels.json \\
      --systems "asr_expert=exp/asr_expert_x ser_expert=exp/ser_expert_x \\
          adaltm:1=exp/merge_adaltm_seed1 adaltm:2=exp/merge_adaltm_seed2" \\
      --compare "adaltm:ser_expert" --recipe mini_espeak --command "./run.sh" --out_dir .
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument(
        "--systems", nargs="+", required=True, help="name=folder or name:seed=folder, in order"
    )
    parser.add_argument("--dumps", nargs="+", required=True, help="test sets, e.g. dump/test")
    parser.add_argument("--labels", required=True, help="labels.json")
    parser.add_argument(
        "--compare", nargs="*", default=[], help="first:second, paired tests to highlight"
    )
    parser.add_argument("--out_dir", type=Path, default=Path(), help="gets RESULTS.md and the rest")
    parser.add_argument("--recipe", default="adaltm", help="heading of RESULTS.md")
    parser.add_argument("--command", action="append", default=[], help="what was typed; repeatable")
    parser.add_argument("--note", default="", help="text under the heading")
    parser.add_argument(
        "--base", type=Path, help="base encoder's folder, for its base.json and its training"
    )
    parser.add_argument(
        "--task_vectors",
        type=Path,
        nargs="+",
        default=[],
        help="folders with similarity.json, for the picture of their mean",
    )
    parser.add_argument(
        "--connectivity", type=Path, help="connectivity.json of bin/connectivity.py, for a picture"
    )
    parser.add_argument(
        "--plots", choices=("true", "false"), default="true", help="draw pictures or not"
    )
    add_bootstrap_arguments(parser)
    return parser


def _main(args: argparse.Namespace) -> None:
    systems = parse_systems(_words(args.systems))
    pairs = parse_comparisons(_words(args.compare), systems)
    labels = load_labels(args.labels)
    options = bootstrap_options(args)
    references = read_references(_words(args.dumps), labels)
    result, scores = aggregate(systems, references, labels, pairs, options)
    pictures = {}
    if args.plots == "true":
        folder = args.out_dir / "plots"
        pictures = draw_all(
            folder,
            systems,
            scores,
            labels.labels,
            args.task_vectors,
            args.base,
            args.connectivity,
        )
    commands = [without_places(command) for command in args.command]
    story = Story(args.recipe, commands, args.note, _base_facts(args.base))
    document = results_document(
        story,
        environment(),
        systems,
        scores,
        pairs,
        options,
        labels.labels,
        pictures,
        args.out_dir,
    )
    write_json(args.out_dir / "results.json", result)
    write_text(args.out_dir / "RESULTS.md", document)
    for score in scores:
        header, rows = tables.main_table(score, systems, terse=True, level=options.level)
        print(f"\n{score.reference.name} (percent, ± half of the 95 % interval)\n")
        print(tables.plain(header, rows))
    print(f"\nwritten: {args.out_dir / 'RESULTS.md'}")


def _words(entries: Sequence[str]) -> list[str]:
    """Split entries at blanks, so that a list may come as one shell variable."""
    return [word for entry in entries for word in entry.split()]


def without_places(command: str) -> str:
    """A command line with absolute paths, which are of one machine, as ``/path/to/<last part>``."""
    try:
        words = shlex.split(command)
    except ValueError:  # no command line of a shell; still no paths
        return _PATH.sub(_placed, command)
    # A word may be a path with blanks, or itself hold options.
    kept = [_placed(word) if _is_path(word) else _PATH.sub(_placed, word) for word in words]
    return shlex.join(kept)


def _is_path(word: str) -> bool:
    return word.startswith("/") and " -" not in word and " /" not in word


def _placed(path: str | re.Match[str]) -> str:
    text = path if isinstance(path, str) else path[0]
    return f"/path/to/{text.rstrip('/').rpartition('/')[2]}"


def _base_facts(base: Path | None) -> dict[str, str]:
    if base is None:
        return {}
    facts = read_json(base / "base.json")
    if not isinstance(facts, dict):
        raise UserError(f"{base / 'base.json'} is no JSON object: run stage `base` again")
    shown = {}
    for key in ("kind", "source", "unit_accuracy"):
        value = facts.get(key)
        if value is not None and not str(value).startswith("/"):  # no paths of this machine
            shown[key.replace("_", " ")] = (
                f"{value:.4f}" if isinstance(value, float) else str(value)
            )
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(_main, get_parser(), argv)


if __name__ == "__main__":
    main()
