"""Score one decoded system: metrics with intervals, per class, per channel, and word errors."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.labels import load_labels
from espnet_adaltm.files import write_json
from espnet_adaltm.scoring.places import relative_place
from espnet_adaltm.scoring.readers import read_references
from espnet_adaltm.scoring.results import RESAMPLED_UNITS, Bootstrap, score_system
from espnet_adaltm.scoring.seeds import INTERVALS

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.score --system exp/merge_adaltm_seed1 --name adaltm --seed 1 \\
      --dumps dump/test --labels data/labels.json --out exp/merge_adaltm_seed1/results.json
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("--system", required=True, help="folder with decode/<set>/")
    parser.add_argument("--name", required=True, help="of the method, shared by its seeds")
    parser.add_argument("--seed", type=int, help="of the training, where there are several")
    parser.add_argument("--dumps", nargs="+", required=True, help="test sets, e.g. dump/test")
    parser.add_argument("--labels", required=True, help="labels.json")
    parser.add_argument("--out", required=True, help="results.json to write")
    add_bootstrap_arguments(parser)
    return parser


def add_bootstrap_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that `bootstrap_options` reads."""
    defaults = Bootstrap()
    parser.add_argument(
        "--resamples", type=_positive, default=defaults.resamples, help="of the bootstrap"
    )
    parser.add_argument(
        "--bootstrap_seed", type=int, default=defaults.seed, help="seed of the resampling"
    )
    parser.add_argument(
        "--resample_by",
        choices=RESAMPLED_UNITS,
        default=defaults.unit,
        help="draw utterances, or speakers with all their utterances",
    )
    parser.add_argument(
        "--interval",
        choices=INTERVALS,
        default=defaults.interval,
        help="kind of interval that is shown first",
    )


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return number


def bootstrap_options(args: argparse.Namespace) -> Bootstrap:
    """The options that `add_bootstrap_arguments` added."""
    return Bootstrap(
        args.resamples, seed=args.bootstrap_seed, unit=args.resample_by, interval=args.interval
    )


def _main(args: argparse.Namespace) -> None:
    labels = load_labels(args.labels)
    references = read_references(args.dumps, labels)
    results = score_system(
        args.system,
        references,
        labels,
        name=args.name,
        seed=args.seed,
        options=bootstrap_options(args),
    )
    out = Path(args.out)
    results["folder"] = relative_place(Path(args.system), out.parent)
    results["dumps"] = {
        Path(dump).name: relative_place(Path(dump), out.parent) for dump in args.dumps
    }
    write_json(out, results)
    for name, scores in results["sets"].items():
        print(f"{args.system} on {name}: {_summary(scores)}")
    if "held_out_speakers" in results:
        scores = {"speaker": results["held_out_speakers"]}
        print(f"{args.system} on what it put aside: {_summary(scores)}")


def _summary(scores: dict) -> str:
    parts = []
    shown_of = {"emotion": ("macro_f1", "uar", "wa"), "asr": ("wer",), "speaker": ("spk_acc",)}
    for part, shown in shown_of.items():
        for metric in shown if "metrics" in scores.get(part, {}) else ():
            value = scores[part]["metrics"][metric]
            low, high = 100 * value["low"], 100 * value["high"]
            parts.append(f"{metric} {100 * value['value']:.1f} [{low:.1f}, {high:.1f}]")
    return ", ".join(parts) or "nothing to score"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(_main, get_parser(), argv)


if __name__ == "__main__":
    main()
