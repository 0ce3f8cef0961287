"""What was found while MSP-Podcast was prepared, for people: ``preparation.md``."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_adaltm.data.corpora.msp_podcast_options import DROP, Options
from espnet_adaltm.data.corpora.msp_podcast_release import EMOTIONS, Release, Turn
from espnet_adaltm.data.datadir import UNKNOWN_SPEAKER, DataDir
from espnet_adaltm.files import atomic_open, write_json, write_text

SCHEME, REPORT, LIST = "label_scheme.json", "preparation.md", "left_out.tsv"

# Utterances of the eight classes, as published; those of 1.12 with transcripts only (AdaLTM).
_PUBLISHED = {
    "1.12": {"train": 89_752, "dev": 25_232, "test1 + test2": 46_366},
    "2.0": {"train": 137_168, "dev": 27_205, "test1": 36_768, "test2": 11_667},
}


@dataclass
class Findings:
    """What was seen on the way.

    Attributes:
        remarks: Lines for the report.
        left_out: Stem to (set, reason).
        counts: Set to code to turns in the label file.
        shared: Pair of sets to shared speakers with the turns that each has of them.
    """

    remarks: list[str] = field(default_factory=list)
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    shared: dict[tuple[str, str], tuple[int, int, int]] = field(default_factory=dict)

    def remark(self, message: str) -> None:
        """Add a line, and tell it in the log."""
        logging.warning("%s", message)
        self.remarks.append(message)

    def leave(self, turn: Turn, reason: str) -> bool:
        """Note that a turn is left out; always false."""
        self.left_out[turn.stem] = (turn.set, reason)
        return False


def compare_sizes(options: Options, sets: Mapping[str, DataDir], found: Findings) -> None:
    """Tell how the sets compare with published sizes, where the choices are the same."""
    expected = _PUBLISHED.get(options.version, {})
    if options.classes != 8 or options.left_out != DROP or options.shared_speakers != "keep":
        return
    if options.version == "1.12" and not options.drop_empty_text:
        return
    if options.version == "2.0" and options.drop_empty_text:
        return
    for name, count in expected.items():
        actual = sum(len(sets[part].utt2emo) for part in name.split(" + ") if part in sets)
        told = "as published" if actual == count else f"published are {count}"
        found.remarks.append(f"{name}: {actual} utterances, {told}")


def write_report(
    out_data: Path,
    where: Release,
    options: Options,
    sets: Mapping[str, DataDir],
    found: Findings,
) -> None:
    """Write the report, the list of what was left out, and what ``labels.json`` needs to know."""
    codes = {code: EMOTIONS[code] for code in options.codes}
    scheme = {"labels": list(options.labels), "codes": codes, "policy": options.policy()}
    write_json(out_data / SCHEME, scheme)
    with atomic_open(out_data / LIST) as handle:
        handle.write("utt\tset\treason\n")
        for stem, (name, reason) in sorted(found.left_out.items()):
            handle.write(f"{stem}\t{name}\t{reason}\n")
    write_text(out_data / REPORT, _report(where, options, sets, found))


def _report(where: Release, options: Options, sets: Mapping[str, DataDir], found: Findings) -> str:
    names = list(sets)
    header = f"| | {' | '.join(names)} |\n|---{'|---:' * len(names)}|\n"

    def row(title: str, values: Sequence[object]) -> str:
        return f"| {title} | {' | '.join(map(str, values))} |\n"

    kept = [sets[name] for name in names]
    known = [len(set(data.utt2spk.values()) - {UNKNOWN_SPEAKER}) for data in kept]
    unknown = [sum(s == UNKNOWN_SPEAKER for s in data.utt2spk.values()) for data in kept]
    sizes = header + row("utterances", [len(data.utterances) for data in kept])
    sizes += row("with emotion", [len(data.utt2emo) for data in kept])
    sizes += row("with transcript", [len(data.text) for data in kept])
    sizes += row("speakers known by name", known)
    sizes += row("of an unknown speaker", unknown)
    released = header + "".join(
        row(f"{code} {EMOTIONS[code]}", [found.counts.get(name, {}).get(code, 0) for name in names])
        for code in EMOTIONS
    )
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for name, reason in found.left_out.values():
        reasons[reason][name] += 1
    left = header + "".join(
        row(reason, [reasons[reason][name] for name in names]) for reason in sorted(reasons)
    )
    remarks = [f"- {line}" for line in found.remarks]
    remarks += [
        f"- {first} and {second} share {count} speaker(s): {one} turns of {first}, {two} of "
        f"{second}"
        for (first, second), (count, one, two) in found.shared.items()
    ]
    return "\n".join(
        [
            "# Preparation of MSP-Podcast\n",
            f"{options.policy()}. Labels: `{where.consensus.name}`.\n",
            "## Sets\n",
            sizes,
            "## Turns in the label file\n",
            released,
            "## Left out\n",
            left if reasons else "Nothing.\n",
            f"Every one of them is in `{LIST}`.\n",
            "## Remarks\n",
            "\n".join(remarks) or "None.",
            "",
        ]
    )
