"""A test set and decoded systems made of plain files, with known errors."""

from pathlib import Path

import numpy as np

from espnet_adaltm.data.labels import Labels, save_labels
from espnet_adaltm.files import write_json
from espnet_adaltm.kaldi import write_scp

LABELS = Labels(("angry", "happy", "sad"))
CHANNELS = ("both", "voice", "words")


def make_dump(folder: Path, size: int = 60, unlabelled: int = 0) -> Path:
    """``dump/test``: emotions cycle through `LABELS`, channels through `CHANNELS`."""
    rng = np.random.default_rng(0)
    utterances = [f"u{index:03d}" for index in range(size)]
    labelled = utterances[: size - unlabelled]
    emotions = [LABELS.labels[index % 3] for index in range(size)]
    write_scp(folder / "wav.scp", dict.fromkeys(utterances, "x.ark:1"))
    write_scp(folder / "utt2emo", dict(zip(labelled, emotions)))
    write_scp(folder / "utt2spk", {u: f"s{i % 6}" for i, u in enumerate(utterances)})
    write_scp(folder / "utt2channel", {u: CHANNELS[i // 3 % 3] for i, u in enumerate(utterances)})
    words = ["the", "red", "door", "is", "shut"]
    write_scp(
        folder / "text", {u: " ".join(rng.choice(words, rng.integers(2, 6))) for u in utterances}
    )
    save_labels(folder.parent / "labels.json", LABELS)
    return folder


def make_system(
    system: Path,
    dump: Path,
    wrong: set[int] = frozenset(),
    deleted: set[int] = frozenset(),
    *,
    text: bool = True,
    emotion: bool = True,
) -> Path:
    """Decode ``dump``: emotion off by one class at ``wrong``, first word lost at ``deleted``."""
    folder = system / "decode" / dump.name
    utterances = [line.split()[0] for line in (dump / "wav.scp").read_text().splitlines()]
    if emotion:
        chosen = {u: (i + (i in wrong)) % 3 for i, u in enumerate(utterances)}
        rows = {u: ["0.200000"] * 3 for u in utterances}
        for utt, index in chosen.items():
            rows[utt][index] = "0.600000"
        write_scp(folder / "utt2prob", {u: " ".join(row) for u, row in rows.items()})
        write_scp(folder / "utt2emo", {u: LABELS.labels[i] for u, i in chosen.items()})
        write_json(system / "merge.json", {"labels": list(LABELS.labels)})
    if text:
        lines = (dump / "text").read_text().splitlines()
        found = {line.split()[0]: line.split()[1:] for line in lines}
        write_scp(
            folder / "text",
            {u: " ".join(words[i in deleted :]) for i, (u, words) in enumerate(found.items())},
        )
    return system


def replace_line(path: Path, number: int, line: str) -> None:
    """Overwrite one line of a file; an empty ``line`` removes it."""
    lines = path.read_text().splitlines()
    lines[number : number + 1] = [line] if line else []
    path.write_text("".join(f"{entry}\n" for entry in lines))
