"""Train sentencepiece tokens on the transcripts of the training set."""

import argparse
from collections.abc import Sequence

from espnet_adaltm.bin import cli
from espnet_adaltm.data.tokens import TYPES, prepare_tokens

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.prepare_tokens --text dump/train/text --type unigram \\
      --vocab_size 200 --out data/tokens/unigram200
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("--text", required=True, help="Kaldi text file of the training set")
    parser.add_argument("--type", choices=TYPES, default="unigram", help="kind of tokens")
    parser.add_argument(
        "--vocab_size",
        type=int,
        help="number of tokens with <blank>, <unk> and <sos/eos>; char may go without",
    )
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--lowercase", action="store_true", help="fold case inside the model")
    parser.add_argument(
        "--soft_vocab",
        action="store_true",
        help="take the largest possible vocabulary where vocab_size is too large",
    )
    return parser


def work(args: argparse.Namespace) -> None:
    """Train and write."""
    tokenizer = prepare_tokens(
        args.text,
        args.out,
        args.type,
        args.vocab_size,
        lowercase=args.lowercase,
        soft_vocab=args.soft_vocab,
    )
    print(f"{args.out}: {tokenizer.vocab_size} tokens")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
