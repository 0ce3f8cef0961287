"""Write labels.json: the emotions in the order of every model output, with counts per set."""

import argparse
from collections.abc import Sequence

from espnet_adaltm.bin import cli
from espnet_adaltm.config import check_keys
from espnet_adaltm.data.datadir import read_data_dir
from espnet_adaltm.data.labels import check_scheme, collect_labels, save_labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.prepare_labels --out data/labels.json \\
      --sets train=dump/train dev=dump/dev test=dump/test --labels angry happy neutral sad
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument(
        "--sets", nargs="+", required=True, metavar="NAME=FOLDER", help="the sets, training first"
    )
    parser.add_argument("--train", help="name of the training set, if it is not the first")
    parser.add_argument(
        "--labels", nargs="+", help="emotions in order; sorted training emotions unless given"
    )
    parser.add_argument(
        "--codes", nargs="+", default=[], metavar="CODE=EMOTION", help="the corpus's own codes"
    )
    parser.add_argument("--policy", default="", help="what was left out and why, in words")
    parser.add_argument(
        "--scheme",
        metavar="FILE",
        help="JSON file of data preparation with labels, codes and policy, where not given here",
    )
    parser.add_argument("--out", required=True, help="labels.json to write")
    return parser


def _pairs(items: Sequence[str], option: str) -> dict[str, str]:
    result: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise UserError(f"{option} {item!r}: expected NAME=VALUE")
        if key in result:
            raise UserError(f"{option} {item!r}: {key!r} is given twice")
        result[key] = value
    return result


def work(args: argparse.Namespace) -> None:
    """Collect and write."""
    sets = {name: read_data_dir(path) for name, path in _pairs(args.sets, "--sets").items()}
    # `--labels "a b c"` is what a shell script passes on, `--labels a b c` what people type.
    names = " ".join(args.labels).split() if args.labels else None
    codes, policy = _pairs(args.codes, "--codes"), args.policy
    if args.scheme:
        scheme = read_json(args.scheme)
        check_keys(scheme, ("labels", "codes", "policy"), args.scheme)
        if not isinstance(scheme.get("labels", []), list):
            raise UserError(f"{args.scheme}: `labels` must be a list of emotions")
        names = names or scheme.get("labels")
        theirs = check_scheme(scheme, args.scheme)
        codes, policy = codes or theirs[0], policy or theirs[1]
    labels = collect_labels(
        {name: data.utt2emo for name, data in sets.items()},
        train=args.train or next(iter(sets)),
        soft={name: data.utt2soft for name, data in sets.items()},
        names=names,
        codes=codes,
        policy=policy,
    )
    save_labels(args.out, labels)
    print(f"{args.out}: {' '.join(labels.labels)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
