"""Audit the formatted sets of a recipe: sizes, and everything two of them should not share."""

import argparse
from collections.abc import Sequence

from espnet_adaltm.bin import cli
from espnet_adaltm.data.audit import (
    audit_set,
    compare_sets,
    load_audited_set,
    raise_errors,
    render,
)
from espnet_adaltm.files import write_text

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.audit --dumps dump/train dump/dev dump/test --train dump/train \\
      --valid dump/dev --out dump/audit.md
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("--dumps", nargs="+", required=True, help="every set of the recipe")
    parser.add_argument("--train", required=True, help="the training set among them")
    parser.add_argument(
        "--valid",
        help="the validation set among them; with it, test sets may share speakers or utterances "
        "with each other",
    )
    parser.add_argument("--out", required=True, help="Markdown file to write")
    parser.add_argument(
        "--allow_speaker_overlap",
        action="store_true",
        help="only warn where sets share speakers: scores are then not speaker-independent",
    )
    return parser


def work(args: argparse.Namespace) -> None:
    """Compare the sets; write the report if nothing is in error."""
    sets = [load_audited_set(dump) for dump in args.dumps]
    findings = compare_sets(
        sets, args.train, valid=args.valid, allow_speaker_overlap=args.allow_speaker_overlap
    )
    raise_errors(findings)
    for audited in sets:
        findings += [
            type(finding)(finding.level, f"{audited.name}: {finding.message}")
            for finding in audit_set(audited)
        ]
    report = render("Audit of all sets", sets, findings)
    write_text(args.out, report)
    print(report)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
