"""Put our results on MSP-Podcast beside the published ones."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.labels import load_labels
from espnet_adaltm.files import read_json, require, taken_apart, write_text
from espnet_adaltm.scoring.published import compare

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.compare_published --results results.json \\
      --labels data/labels.json --out COMPARISON.md
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("--results", type=Path, required=True, help="results.json of the recipe")
    parser.add_argument(
        "--ood_results",
        type=Path,
        help="results.json of the run with an ASR expert of other speech",
    )
    parser.add_argument("--labels", type=Path, help="labels.json, which tells what was left out")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    return parser


def work(args: argparse.Namespace) -> None:
    """Read, compare, write."""
    policy = load_labels(args.labels).policy if args.labels else ""
    result = read_json(require(args.results, "stage `score`"))
    ood = None
    if args.ood_results is not None:
        ood = read_json(require(args.ood_results, "the run with --ood_asr_expert"))
    with taken_apart(args.results, "stage `score`"):
        text = compare(result, policy, ood)
    write_text(args.out, text)
    print(f"ours and published: {args.out}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
