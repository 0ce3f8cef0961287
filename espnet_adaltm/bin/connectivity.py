"""Loss and scores along straight lines: base to experts, expert to expert, base to merges."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_adaltm.bin import cli
from espnet_adaltm.bin.decode import choose_device, open_inputs
from espnet_adaltm.data.labels import Labels, check_same_labels, load_labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_json
from espnet_adaltm.scoring.connectivity_plot import connectivity_plot
from espnet_adaltm.scoring.readers import read_reference

if TYPE_CHECKING:
    from espnet_adaltm.decoding.systems import SpeechSystem

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.connectivity --base exp/base_tiny --asr exp/asr_expert_x \\
      --ser exp/ser_expert_x --merges adaltm=exp/merge_adaltm_seed1 --dump dump/dev \\
      --labels data/labels.json --out exp/connectivity

The SER expert's head judges every encoder, and so does each merge's own; the ASR expert's head
judges the words. Writes connectivity.json and connectivity.png.
"""
# Names of the ends of a line; a merge has its own.
BASE, ASR, SER = "base", "asr", "ser"
EXPERT_HEAD = "ser_expert"


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base encoder")
    parser.add_argument("--ser", type=Path, required=True, help="folder of the SER expert")
    parser.add_argument("--asr", type=Path, help="folder of the ASR expert")
    parser.add_argument(
        "--merges", nargs="*", default=[], help="name=folder of merges, each a line from the base"
    )
    parser.add_argument("--dump", type=Path, required=True, help="prepared set, e.g. dump/dev")
    parser.add_argument("--labels", required=True, help="labels.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--points", type=int, default=11, help="of every line, both ends included")
    parser.add_argument(
        "--max_utts",
        type=int,
        default=200,
        help="draw so many utterances with an emotion and so many with text, if there are",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of utterances")
    parser.add_argument(
        "--feats_type",
        choices=("raw", "extracted"),
        default="raw",
        help="waveforms or CNN features",
    )
    parser.add_argument("--feats_dir", type=Path, help="default: BASE/feats; has a folder per set")
    parser.add_argument(
        "--batch_seconds", type=float, default=40.0, help="largest padded duration of a batch"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    return parser


def parse_merges(entries: Sequence[str]) -> dict[str, Path]:
    """Parse ``name=folder``.

    Raises:
        UserError: Malformed or repeated.
    """
    found: dict[str, Path] = {}
    for entry in entries:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--merges: {entry!r} is not name=folder")
        if name in (BASE, ASR, SER, EXPERT_HEAD):  # not to be taken for that one
            name = f"merge_{name}"
        if name in found:
            raise UserError(f"--merges: {name!r} is given twice")
        found[name] = Path(folder)
    return found


def _main(args: argparse.Namespace) -> None:
    for name, least in (("points", 2), ("max_utts", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)} is less than {least}")
    cli.check_positive("batch_seconds", args.batch_seconds)
    merges = parse_merges(args.merges)
    labels = load_labels(args.labels)
    reference = read_reference(args.dump, labels)
    # Importing torch takes seconds: mistakes in the options are told before.
    import torch

    from espnet_adaltm.backbone.loading import load_encoder
    from espnet_adaltm.decoding import connectivity, systems

    device = torch.device(choose_device(args.device, torch.cuda.is_available()))
    folders = {SER: args.ser, ASR: args.asr, **merges}
    loaded = {
        name: systems.load_system(folder, base=args.base)
        for name, folder in folders.items()
        if folder is not None
    }
    _check(folders, loaded, labels)
    encoder = load_encoder(args.base)
    states = {BASE: {name: t.clone() for name, t in encoder.encoder_state().items()}}
    states |= {name: system.encoder.encoder_state() for name, system in loaded.items()}
    inputs = open_inputs(args, args.base, {folders[name]: s.encoder for name, s in loaded.items()})
    texts = reference.texts if ASR in loaded else {}
    parts = (reference.emotions, texts)
    utterances = connectivity.choose(reference.utterances, parts, args.max_utts, args.seed)
    batches = connectivity.load_batches(
        inputs,
        utterances,
        reference.emotions,
        texts,
        batch_seconds=args.batch_seconds,
        device=device,
    )
    judges = {EXPERT_HEAD: loaded[SER], **{name: loaded[name] for name in merges}}
    asr = loaded.get(ASR)
    heads = connectivity.Heads(
        {name: system.emotion_head.to(device) for name, system in judges.items()},
        len(labels),
        None if asr is None else (asr.ctc_head.to(device), asr.tokenizer),
    )
    ends = [(BASE, ASR), (BASE, SER), (ASR, SER), *[(BASE, name) for name in merges]]
    lines = [line for line in ends if all(end in states for end in line)]
    points = [index / (args.points - 1) for index in range(args.points)]
    encoder.to(device)
    report = {
        "set": reference.name,
        "utterances": {
            "emotion": sum(utt in reference.emotions for utt in utterances),
            "words": sum(utt in texts for utt in utterances),
        },
        "seed": args.seed,
        "points": points,
        "lines": connectivity.measure_lines(encoder, states, lines, points, batches, heads),
    }
    # The picture first: who finds the numbers finds both.
    connectivity_plot(args.out / "connectivity.png", report)
    write_json(args.out / "connectivity.json", report)
    for line in report["lines"]:
        print(f"{line['from']} to {line['to']}: {_summary(line)}")
    print(f"written: {args.out / 'connectivity.json'}")


def _check(
    folders: Mapping[str, Path], loaded: "Mapping[str, SpeechSystem]", labels: Labels
) -> None:
    """Refuse folders of another kind than their option says, or of other labels."""
    for name, system in loaded.items():
        if (system.emotion_head is None) != (name == ASR):
            wanted = "an ASR expert" if name == ASR else "a system with an emotion head"
            raise UserError(f"{folders[name]} is not {wanted}, which {name!r} has to be")
        if name != ASR:
            check_same_labels(labels, system.labels, f"labels.json and {folders[name]}")


def _summary(line: Mapping[str, Any]) -> str:
    parts = []
    for head, values in line.get("emotion", {}).items():
        if head not in (EXPERT_HEAD, line["to"]):  # of a merge on another line
            continue
        first, last = (100 * values["macro_f1"][end] for end in (0, -1))
        hill = line["barrier"]["emotion"][head]
        parts.append(f"macro-F1 {first:.1f} to {last:.1f}, barrier {hill:.3f} (head {head})")
    if "words" in line:
        first, last = (100 * line["words"]["wer"][end] for end in (0, -1))
        parts.append(f"WER {first:.1f} to {last:.1f}, barrier {line['barrier']['words']:.3f}")
    return "; ".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(_main, get_parser(), argv)


if __name__ == "__main__":
    main()
