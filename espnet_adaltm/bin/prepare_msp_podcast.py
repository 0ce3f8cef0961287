"""Make the data directories train, dev, test1, test2 and test3 of MSP-Podcast.

The corpus is given under a licence: https://lab-msp.com/MSP/MSP-Podcast.html
The audio stays where it is: wav.scp points to it. What was left out, and why, is in
preparation.md and left_out.tsv beside the sets.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.corpora.msp_podcast import prepare
from espnet_adaltm.data.corpora.msp_podcast_options import (
    CLASSES,
    LEFT_OUT,
    SHARED,
    TARGETS,
    VERSIONS,
    Options,
)
from espnet_adaltm.data.corpora.msp_podcast_report import REPORT


def get_parser() -> argparse.ArgumentParser:
    """The command line of this program."""
    default = Options()
    parser = cli.parser(__doc__)
    parser.add_argument("--msp_root", type=Path, required=True, help="the unpacked release")
    parser.add_argument("--out_data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument(
        "--msp_version", choices=VERSIONS, required=True, help="counts are compared with its own"
    )
    parser.add_argument(
        "--classes",
        type=int,
        choices=CLASSES,
        default=default.classes,
        help="4: A H N S; 8: and C D F U; 9: and O; 10: and X",
    )
    parser.add_argument(
        "--left_out",
        choices=LEFT_OUT,
        default=default.left_out,
        help="turns of other classes (O and X, unless they are classes) are dropped; or kept in "
        "train and dev for their words; or kept in train with the annotators' votes",
    )
    parser.add_argument(
        "--targets",
        choices=TARGETS,
        default=default.targets,
        help="votes: also write the annotators' distributions, utt2soft",
    )
    parser.add_argument(
        "--drop_empty_text",
        choices=("true", "false"),
        default="false",
        help="leave out turns without a transcript, as AdaLTM does",
    )
    parser.add_argument(
        "--shared_speakers",
        choices=SHARED,
        default=default.shared_speakers,
        help="drop: leave out of train the speakers of dev and tests, of dev those of tests",
    )
    parser.add_argument(
        "--max_missing",
        type=int,
        default=default.max_missing,
        help="recordings that may be missing",
    )
    parser.add_argument(
        "--test3",
        choices=("auto", "true", "false"),
        default=default.test3,
        help="make the set of the challenge; auto: if the release has it",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=min(8, len(os.sched_getaffinity(0))),
        help="processes; does not change the result",
    )
    return parser


def _work(args: argparse.Namespace) -> None:
    options = Options(
        version=args.msp_version,
        classes=args.classes,
        left_out=args.left_out,
        targets=args.targets,
        drop_empty_text=args.drop_empty_text == "true",
        shared_speakers=args.shared_speakers,
        max_missing=args.max_missing,
        test3=args.test3,
    )
    for name, data in prepare(args.msp_root, args.out_data, options, args.num_workers).items():
        print(
            f"{name}: {len(data.utterances)} utterances, {len(data.utt2emo)} with emotion, "
            f"{len(data.text)} with text"
        )
    print(f"what was left out: {args.out_data / REPORT}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(_work, get_parser(), argv)


if __name__ == "__main__":
    main()
