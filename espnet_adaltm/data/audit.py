"""What is in the data, and what is wrong with it, before anything is trained.

`audit_set` looks at one set, when its audio is formatted; `compare_sets` looks across sets for the
leaks that make emotion scores look good: shared speakers, shared utterances, shared audio. Run the
latter with ``python -m espnet_adaltm.bin.audit``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations
from pathlib import Path

import numpy as np

from espnet_adaltm.data.audio import AudioStats
from espnet_adaltm.data.broken import BROKEN
from espnet_adaltm.data.datadir import UNKNOWN_SPEAKER, DataDir, read_data_dir
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_open, read_text, require
from espnet_adaltm.text import markdown_cell, some

STATS_FILE, DROPPED_FILE = "audio_stats.tsv", "dropped.tsv"
_SHOWN = 10
_CLIPPED_SHARE = 0.001
_LEADING_SECONDS = 0.5
_NEARLY_SILENT_DB = -80  # of full scale: a few steps of 16 bits


@dataclass(frozen=True)
class Finding:
    """One remark of an audit: ``error`` stops the pipeline, ``warning`` and ``info`` do not."""

    level: str
    message: str


@dataclass(frozen=True)
class AuditedSet:
    """A data directory, by utterance the statistics of its audio, and why others were left out."""

    data: DataDir
    stats: Mapping[str, AudioStats]
    sample_rate: int = 16000
    dropped: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the set, the last part of its path."""
        return self.data.path.name

    @property
    def speakers(self) -> set[str]:
        """Speakers that are somebody."""
        return {s for s in self.data.utt2spk.values() if s.casefold() != UNKNOWN_SPEAKER}


def write_stats(path: Pathlike, stats: Mapping[str, AudioStats]) -> None:
    """Write ``audio_stats.tsv``, sorted by utterance."""
    names = [column.name for column in fields(AudioStats)]
    with atomic_open(path) as handle:
        handle.write("\t".join(["utt", *names]) + "\n")
        for utt in sorted(stats, key=str.encode):
            values = asdict(stats[utt]).values()
            cells = (f"{v:.6f}" if isinstance(v, float) else str(v) for v in values)
            handle.write("\t".join([utt, *cells]) + "\n")


def read_stats(path: Pathlike) -> dict[str, AudioStats]:
    """Read ``audio_stats.tsv``.

    Raises:
        UserError: Missing or malformed; names file and line.
    """
    lines = read_text(require(path, "the audio stage")).splitlines()
    kinds = [(column.name, column.type) for column in fields(AudioStats)]
    if lines[0].split("\t") != ["utt", *(name for name, _ in kinds)]:
        raise UserError(f"{path}:1: unexpected columns: run the audio stage again")
    result = {}
    for number, line in enumerate(lines[1:], 2):
        utt, *cells = line.split("\t")
        try:
            values = [kind(cell) for (_, kind), cell in zip(kinds, cells, strict=True)]
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}: run the audio stage again") from error
        result[utt] = AudioStats(*values)
    return result


def read_dropped(path: Pathlike) -> dict[str, str]:
    """Read ``dropped.tsv``: utterance to the reason why it was left out."""
    lines = read_text(path).splitlines()[1:]
    return {utt: reason for utt, _, reason in (line.partition("\t") for line in lines)}


def load_audited_set(dump: Pathlike) -> AuditedSet:
    """Read a formatted set and the statistics of its audio.

    Raises:
        UserError: An invalid directory, or statistics of other utterances.
    """
    data = read_data_dir(dump)
    stats = read_stats(data.path / STATS_FILE)
    if differing := set(stats) ^ set(data.utterances):
        raise UserError(
            f"{data.path / STATS_FILE} does not fit wav.scp at utterance {min(differing)!r}: "
            "run the audio stage again"
        )
    path = data.path / DROPPED_FILE
    return AuditedSet(data, stats, dropped=read_dropped(path) if path.exists() else {})


def _equal(groups: Iterable[Sequence[str]]) -> list[str]:
    """Groups of utterances as text, long ones cut short."""
    return [
        " = ".join(group[:3]) + (f" = {len(group) - 3} more" if len(group) > 3 else "")
        for group in groups
    ]


def _groups(values: Mapping[str, object]) -> list[list[str]]:
    """Utterances with the same value, where there are at least two."""
    by_value: dict[object, list[str]] = {}
    for utt, value in values.items():
        by_value.setdefault(value, []).append(utt)
    return [group for group in by_value.values() if len(group) > 1]


def audit_set(audited: AuditedSet) -> list[Finding]:
    """Look for duplicates, clipping, silence and thin classes in one set."""
    data, stats = audited.data, audited.stats
    same_audio = _groups({utt: stat.digest for utt, stat in stats.items()})
    same_words = _groups({utt: (data.utt2spk[utt], text) for utt, text in data.text.items()})
    clipped = [utt for utt, stat in stats.items() if stat.clipped > _CLIPPED_SHARE]
    late = [utt for utt, stat in stats.items() if stat.leading_silence > _LEADING_SECONDS]
    faint = [u for u, s in stats.items() if 0 < s.peak < 10 ** (_NEARLY_SILENT_DB / 20)]
    unknown = sum(s.casefold() == UNKNOWN_SPEAKER for s in data.utt2spk.values())
    conflicting = [
        group for group in same_audio if len({data.utt2emo.get(utt) for utt in group} - {None}) > 1
    ]
    counts = Counter(data.utt2emo.values())
    broken = [utt for utt, reason in audited.dropped.items() if reason.startswith(BROKEN)]
    others = [utt for utt, reason in audited.dropped.items() if not reason.startswith(BROKEN)]
    rare = [f"{emotion} ({count})" for emotion, count in sorted(counts.items()) if count < 5]
    checks = [
        ("warning", "left out because their audio is broken", broken),
        ("info", "left out because they are too short, too long or silent", others),
        ("warning", "identical audio", _equal(same_audio)),
        (
            "warning",
            "identical audio with different emotions",
            _equal(conflicting),
        ),
        ("info", "same words by the same speaker", _equal(same_words)),
        ("warning", f"more than {_CLIPPED_SHARE:.1%} of the samples clipped", clipped),
        ("warning", f"nearly silent (peak below {_NEARLY_SILENT_DB} dBFS)", faint),
        ("info", f"more than {_LEADING_SECONDS} s of silence at the start", late),
        ("warning", "fewer than 5 utterances of an emotion", rare),
    ]
    findings = [
        Finding(level, f"{what}: {len(items)}: {some(items, _SHOWN)}")
        for level, what, items in checks
        if items
    ]
    if unknown:
        findings.append(Finding("info", f"utterances of an unknown speaker: {unknown}"))
    for what, table in (("transcript", data.text), ("emotion", data.utt2emo)):
        if missing := len(stats) - len(table):
            findings.append(Finding("info", f"utterances without {what}: {missing}"))
    return findings


def compare_sets(
    sets: Sequence[AuditedSet],
    train: Pathlike,
    *,
    valid: Pathlike | None = None,
    allow_speaker_overlap: bool = False,
) -> list[Finding]:
    """Look for what two sets share, and for emotions that the training set lacks.

    Args:
        sets: All sets of a recipe.
        train: Path of the training set among them.
        valid: Path of the validation set. With it, two *test* sets may share speakers and
            utterances (a warning); without it any two sets that do are in error.
        allow_speaker_overlap: Turn errors about shared speakers into warnings.
    """
    paths = [audited.data.path for audited in sets]
    for path in (train, valid):
        if path is not None and Path(path) not in paths:
            raise UserError(f"{path} is not among the audited sets: {some(paths, _SHOWN)}")
    chosen = {Path(train), *([Path(valid)] if valid is not None else paths)}
    findings = []
    for first, second in combinations(sets, 2):
        leak = bool({first.data.path, second.data.path} & chosen)
        findings += _compare_pair(first, second, leak, allow_speaker_overlap)
    source = next(audited for audited in sets if audited.data.path == Path(train))
    for audited in sets:
        findings += _missing_emotions(source, audited)
    return findings


def _compare_pair(
    first: AuditedSet, second: AuditedSet, leak: bool, allow_speakers: bool
) -> list[Finding]:
    pair = f"{first.name} and {second.name}"
    severe = "error" if leak else "warning"
    findings = []
    if speakers := sorted(first.speakers & second.speakers):
        advice = (
            ""
            if allow_speakers or not leak
            else (
                ": scores would not be speaker-independent; move each speaker to one set, or pass "
                "--allow_speaker_overlap and say so in the results"
            )
        )
        level = "warning" if allow_speakers else severe
        findings.append(
            Finding(
                level, f"{pair} share {len(speakers)} speaker(s): {some(speakers, _SHOWN)}{advice}"
            )
        )
    shared = [utt for utt in first.stats if utt in second.stats]
    if same := [u for u in shared if first.stats[u].digest == second.stats[u].digest]:
        findings.append(
            Finding(severe, f"{pair} hold the same {len(same)} utterance(s): {some(same, _SHOWN)}")
        )
    if homonyms := [utt for utt in shared if utt not in set(same)]:
        findings.append(
            Finding("warning", f"{pair} use {len(homonyms)} id(s) twice: {some(homonyms, _SHOWN)}")
        )
    digests: dict[str, str] = {}
    for utt, stat in first.stats.items():
        digests.setdefault(stat.digest, utt)
    twins = [
        f"{digests[stat.digest]} = {utt}"
        for utt, stat in second.stats.items()
        if stat.digest in digests and utt not in set(same)
    ]
    if twins:
        findings.append(
            Finding("warning", f"{pair} share audio: {len(twins)}: {some(twins, _SHOWN)}")
        )
    return findings + _shared_text(first, second)


def _shared_text(first: AuditedSet, second: AuditedSet) -> list[Finding]:
    texts = set(first.data.text.values())
    common = sum(text in texts for text in second.data.text.values())
    if not common:
        return []
    share = common / len(second.data.text)
    return [
        Finding(
            "info",
            f"{share:.1%} of the transcripts of {second.name} ({common}) occur in {first.name}",
        )
    ]


def _missing_emotions(train: AuditedSet, other: AuditedSet) -> list[Finding]:
    known = set(train.data.utt2emo.values())
    if not known:
        return []
    first: dict[str, str] = {}
    for utt, emotion in other.data.utt2emo.items():
        if emotion not in known:
            first.setdefault(emotion, utt)
    return [
        Finding(
            "error",
            f"emotion {emotion!r} of {other.name} (utterance {utt!r}) has no utterance in the "
            f"training set {train.name}: remove it from {other.name} or add training data",
        )
        for emotion, utt in first.items()
    ]


def raise_errors(findings: Sequence[Finding]) -> None:
    """Raise one `UserError` with every finding of level ``error``, if there are any."""
    errors = [finding.message for finding in findings if finding.level == "error"]
    if errors:
        raise UserError("\n  ".join(["the audit of the data failed:", *errors]))


def describe_sets(sets: Sequence[AuditedSet]) -> str:
    """Markdown tables of sizes, durations and emotions, one column per set."""
    names = [audited.name for audited in sets]
    rows: dict[str, list[str]] = {
        key: []
        for key in (
            "utterances", "hours", "speakers", "with transcript", "with emotion",
            "seconds: shortest", "seconds: median", "seconds: mean", "seconds: longest",
        )
    }  # fmt: skip
    for audited in sets:
        seconds = np.array([s.num_samples for s in audited.stats.values()]) / audited.sample_rate
        values = [
            str(len(seconds)),
            f"{seconds.sum() / 3600:.2f}",
            str(len(audited.speakers)),
            str(len(audited.data.text)),
            str(len(audited.data.utt2emo)),
            *(f"{f(seconds):.2f}" for f in (np.min, np.median, np.mean, np.max)),
        ]
        for row, value in zip(rows.values(), values):
            row.append(value)
    emotions = sorted({e for audited in sets for e in audited.data.utt2emo.values()})
    counts = [Counter(audited.data.utt2emo.values()) for audited in sets]
    shares = {
        emotion: [f"{c[emotion]} ({c[emotion] / max(1, c.total()):.1%})" for c in counts]
        for emotion in emotions
    }
    parts = [_table("", names, rows)]
    if shares:
        parts.append(_table("emotion", names, shares))
    return "\n".join(parts)


def _table(corner: str, names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [f"| {corner} | {_cells(names)} |", "|---" + "|---:" * len(names) + "|"]
    lines += [f"| {markdown_cell(key)} | {_cells(values)} |" for key, values in rows.items()]
    return "\n".join(lines) + "\n"


def _cells(values: Iterable[str]) -> str:
    return " | ".join(markdown_cell(value) for value in values)


def render(title: str, sets: Sequence[AuditedSet], findings: Sequence[Finding]) -> str:
    """The text of ``audit.md``."""
    order = ("error", "warning", "info")
    remarks = [
        f"- {finding.level}: {markdown_cell(finding.message)}"
        for finding in sorted(findings, key=lambda finding: order.index(finding.level))
    ]
    body = "\n".join(remarks) if remarks else "Nothing to remark."
    return f"# {title}\n\n{describe_sets(sets)}\n## Findings\n\n{body}\n"
