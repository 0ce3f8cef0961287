"""Tell the emotion of recordings, and what is said in them if the model can.

    espnet-adaltm predict -m exp/merge_adaltm_seed1/export speech.wav
    espnet-adaltm predict -m user/model data/test --format json --out test.json
    espnet-adaltm predict -m user/model meeting.flac --window 5 --step 1 --timeline meeting.png
    arecord -d 3 -f S16_LE -r 16000 | espnet-adaltm predict -m user/model -

Any sample rate, number of channels and format that libsndfile reads (WAV, FLAC, Ogg, MP3 ...).
Recordings longer than a window are heard in overlapping windows. A recording that cannot be read
is named on standard error, the others are told, and the exit status is 1.
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_adaltm.bin import cli
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_text
from espnet_adaltm.progress import progress
from espnet_adaltm.text import spelled

if TYPE_CHECKING:
    from espnet_adaltm.decoding.sources import Clip
    from espnet_adaltm.recognizer import Prediction

MODEL_VARIABLE = "ADALTM_MODEL"
FORMATS = ("table", "json", "csv")
STANDARD = "-"


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="audio files, *.scp lists or Kaldi data directories; - is audio on standard input",
    )
    parser.add_argument(
        "-m",
        "--model",
        default=os.environ.get(MODEL_VARIABLE),
        help=f"export, trained system or Hub id; by default the variable {MODEL_VARIABLE}",
    )
    parser.add_argument(
        "--files_from", metavar="LIST", help="more files, one on a line; - is standard input"
    )
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the answer")
    parser.add_argument("-o", "--out", default=STANDARD, help="file; - is standard output")
    parser.add_argument("--timeline", type=Path, metavar="PNG", help="draw emotions over time")
    parser.add_argument(
        "--window", type=float, default=20.0, metavar="SECONDS", help="longest part heard at once"
    )
    parser.add_argument(
        "--step",
        type=float,
        metavar="SECONDS",
        help="from one window to the next; by default half a window",
    )
    parser.add_argument("--batch_seconds", type=float, default=40.0, help="of audio in a batch")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--base", type=Path, help="of a trained system that does not name its own")
    parser.add_argument("--asr_expert", type=Path, help="lends a trained merge its CTC head")
    parser.add_argument(
        "--allow_pipes", action="store_true", help="run entries of a wav.scp that are commands"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="tell what is being done")
    return parser


def find_clips(args: argparse.Namespace) -> "list[Clip]":
    """The recordings that the command line means.

    Raises:
        UserError: There is none, or a list cannot be read.
    """
    from espnet_adaltm.decoding.sources import open_clips, stream_clip

    names = list(args.files)
    if args.files_from is not None:
        names += _lines(args.files_from)
    if not names:
        raise UserError("no recording is given: name files, or a list of them with --files_from")
    if STANDARD in names and (names.count(STANDARD) > 1 or args.files_from == STANDARD):
        raise UserError("standard input can be read once: give - once")
    clips = []
    for name in names:
        if name == STANDARD:
            clips.append(stream_clip(sys.stdin.buffer.read(), "standard input"))
        else:
            clips += open_clips(name, allow_pipes=args.allow_pipes)[1]
    return clips


def _lines(source: str) -> list[str]:
    try:
        text = sys.stdin.read() if source == STANDARD else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--files_from {source} cannot be read: {error}") from error
    return [line for line in text.splitlines() if line.strip()]


Rows = Sequence[tuple[str, "Prediction"]]


def as_table(rows: Rows) -> str:
    """Columns for people: percentages, the transcript last."""
    if not rows:
        return ""
    labels = list(rows[0][1].probabilities)
    some_text = any(said.text is not None for _, said in rows)
    some_speaker = any(said.speaker is not None for _, said in rows)
    table = [["recording", "seconds", "emotion", *(f"{name} %" for name in labels)]]
    table[0] += ["speaker"] * some_speaker + ["text"] * some_text
    for name, said in rows:
        row = [name, f"{said.seconds:.2f}", said.emotion]
        row += [f"{100 * value:.1f}" for value in said.probabilities.values()]
        row += [said.speaker or ""] * some_speaker + [said.text or ""] * some_text
        table.append([spelled(cell) for cell in row])
    widths = [max(map(len, column)) for column in zip(*table)]
    numbers = {1, *range(3, 3 + len(labels))}
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if index in numbers else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def as_json(rows: Rows) -> str:
    """A list of objects: `Prediction.to_dict` and the name of the recording."""
    found = [{"recording": name, **said.to_dict()} for name, said in rows]
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def as_csv(rows: Rows) -> str:
    """A line per recording; the columns of the emotions are called after them."""
    if not rows:
        return ""
    labels = list(rows[0][1].probabilities)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["recording", "seconds", "emotion", *labels, "speaker", "text"])
    for name, said in rows:
        values = [f"{value:.6f}" for value in said.probabilities.values()]
        row = [name, f"{said.seconds:.3f}", said.emotion, *values, said.speaker, said.text]
        writer.writerow(row)
    return text.getvalue()


def work(args: argparse.Namespace) -> None:
    """Do what the module says."""
    if not args.model:
        raise UserError(f"--model is missing: give one, or set the variable {MODEL_VARIABLE}")
    clips = find_clips(args)
    # Importing torch takes seconds: mistakes in the options are told before.
    import torch

    from espnet_adaltm.bin.decode import choose_device
    from espnet_adaltm.recognizer import EmotionRecognizer

    recognizer = EmotionRecognizer.from_pretrained(
        args.model,
        base=args.base,
        asr_expert=args.asr_expert,
        device=choose_device(args.device, torch.cuda.is_available()),
        batch_seconds=args.batch_seconds,
        window_seconds=args.window,
        step_seconds=args.step,
    )
    rows, failed = [], 0
    for clip, said in progress(recognizer.stream(clips), "predict", len(clips), "recording"):
        if isinstance(said, UserError):
            failed += 1
            cli.tell(said)
        else:
            rows.append((clip.name, said))
    written = {"table": as_table, "json": as_json, "csv": as_csv}[args.format](rows)
    if args.out == STANDARD:
        sys.stdout.write(written)
    else:
        write_text(args.out, written)
    if args.timeline is not None and rows:
        from espnet_adaltm.scoring.timeline_plot import timeline_plot

        timeline_plot(args.timeline, rows)
    if failed:
        if len(clips) > 1:
            cli.tell(f"{failed} of {len(clips)} recording(s) could not be read")
        sys.exit(1)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
