"""Bring what an ESPnet recipe decoded into our results table, scored as every other system.

DIR is the folder of its experiment, or of one decoding: `cls_<set>/{text,score}` of a
classification, `<decoding>/<set>/text` of a recognition whose transcripts begin with the emotion
(`<hap> hello`).
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.labels import load_labels
from espnet_adaltm.data.tokens import MODEL_FILE, Tokenizer
from espnet_adaltm.decoding.espnet_results import (
    SCORE,
    TEXT,
    Answers,
    Names,
    find_set,
    read_answers,
)
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import atomic_dir, require, sha256_file, write_json
from espnet_adaltm.kaldi import read_scp, write_scp

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.import_espnet --dir egs2/iemocap/asr1/exp/asr_train_asr_raw_en_word \\
      --dumps dump/test --labels data/labels.json --out exp/import_espnet
"""
RECORD = "import.json"


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("--dir", type=Path, required=True, help="what ESPnet's recipe left")
    parser.add_argument("--dumps", type=Path, nargs="+", required=True, help="our prepared sets")
    parser.add_argument("--labels", required=True, help="labels.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--folders",
        nargs="*",
        default=[],
        metavar="SET=FOLDER",
        help="where a set lies in DIR, if not under its own name",
    )
    parser.add_argument(
        "--codes", nargs="*", default=[], metavar="NAME=OURS", help="other names of the emotions"
    )
    parser.add_argument(
        "--first_word",
        action="store_true",
        help="transcripts begin with the emotion as a plain word, as in ESPnet's MELD recipe",
    )
    parser.add_argument(
        "--missing_emotion",
        help="what utterances without an emotion count as; else they are refused",
    )
    parser.add_argument(
        "--config", type=Path, help="config.yaml of a classification's training, if not above"
    )
    parser.add_argument(
        "--tokens",
        type=Path,
        help="our tokens.model or its folder: normalises transcripts and references alike",
    )
    return parser


def _main(args: argparse.Namespace) -> None:
    require(args.dir, "ESPnet's recipe")
    labels = load_labels(args.labels)
    names = Names(labels, _pairs(args.codes, "--codes"))
    tokenizer = None if args.tokens is None else Tokenizer(args.tokens)
    places = _pairs(args.folders, "--folders")
    answers: dict[str, Answers] = {}
    for dump in args.dumps:
        name = dump.resolve().name
        only = len(args.dumps) == 1
        found = args.dir / places[name] if name in places else args.dir
        answers[name] = read_answers(
            find_set(found, name, only=only or name in places),
            read_scp(require(dump / "wav.scp", "stage `audio`")),
            names,
            config=args.config,
            first_word=args.first_word,
            missing=args.missing_emotion,
        )
    unknown = places.keys() - answers.keys()
    if unknown:
        raise UserError(f"--folders names {min(unknown)!r}, which is no set of --dumps")
    for name, found in answers.items():
        _write(args.out / "decode" / name, found, labels.labels, tokenizer)
        _tell(name, found)
    write_json(args.out / RECORD, _record(args, labels.labels, answers))


def _pairs(entries: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for entry in entries:
        left, equals, right = entry.partition("=")
        if not (left and equals and right):
            raise UserError(f"{option}: {entry!r} is not left=right")
        pairs[left] = right
    return pairs


def _write(
    folder: Path, answers: Answers, labels: Sequence[str], tokenizer: Tokenizer | None
) -> None:
    """Write the files that decoding would have written."""
    rows, texts = answers.probabilities, answers.texts
    with atomic_dir(folder) as made:
        if rows:
            lines = {utt: " ".join(f"{p:.6f}" for p in row) for utt, row in rows.items()}
            write_scp(made / "utt2prob", lines)
            best = {utt: labels[row.index(max(row))] for utt, row in rows.items()}
            write_scp(made / "utt2emo", best)
        if texts and tokenizer is not None:
            texts = {utt: tokenizer.normalize(text) for utt, text in texts.items()}
            (made / MODEL_FILE).write_bytes(tokenizer.serialized())
        if texts:
            write_scp(made / TEXT, texts)


def _tell(name: str, answers: Answers) -> None:
    count = len(answers.probabilities or answers.texts)
    what = [
        kind
        for kind, found in (("emotions", answers.probabilities), ("transcripts", answers.texts))
        if found
    ]
    print(f"{name}: {' and '.join(what)} of {count} utterances from {answers.folder}")
    if answers.silent:
        logging.warning("%s: %d utterances had no emotion", name, len(answers.silent))


def _record(
    args: argparse.Namespace, labels: Sequence[str], answers: dict[str, Answers]
) -> dict[str, object]:
    """Where it all came from."""
    return {
        "kind": "espnet_import",
        "labels": list(labels),
        "sets": {
            name: {
                "folder": os.path.relpath(found.folder, args.out),
                "sha256": {
                    file: sha256_file(found.folder / file)
                    for file in (TEXT, SCORE)
                    if (found.folder / file).is_file()
                },
                "without_emotion": len(found.silent),
            }
            for name, found in answers.items()
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(_main, get_parser(), argv)


if __name__ == "__main__":
    main()
