"""Folds of a corpus without official sets, made from its formatted audio.

Leaving out one group (a session) or one speaker at a time: every utterance is tested once. The
development speaker is of the next group, never of the tested one, whose speakers talk to each
other; its sex changes from fold to fold. Everybody else trains. The audio is not copied:
``dump/fold1/train`` points into the arks of ``dump/all``. Run it with
``python -m espnet_adaltm.bin.make_folds``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_adaltm.data.audit import AuditedSet, audit_set, compare_sets, raise_errors, render
from espnet_adaltm.data.audit import load_audited_set as load
from espnet_adaltm.data.dump import write_dump
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_dir, write_json, write_text

SETS = TRAIN, DEV, TEST = ("train", "dev", "test")
GROUP, SPEAKER = KINDS = ("group", "speaker")
FILE = "fold.json"


@dataclass(frozen=True)
class Fold:
    """Who is heard when; everybody else trains.

    Attributes:
        name: ``fold1`` ...
        test: Speakers of the test.
        dev: Speaker of the development set.
    """

    name: str
    test: tuple[str, ...]
    dev: str

    def set_of(self, speaker: str) -> str:
        """``train``, ``dev`` or ``test``."""
        if speaker in self.test:
            return TEST
        return DEV if speaker == self.dev else TRAIN


def leave_one_out(groups: Mapping[str, str], kind: str) -> list[Fold]:
    """Folds in the order of groups and speakers.

    Args:
        groups: Speaker to group.
        kind: What is tested at a time: ``group`` or ``speaker``.

    Raises:
        UserError: Fewer than two groups, or nobody is left for training.
    """
    members: dict[str, list[str]] = {}
    for speaker in sorted(groups):
        members.setdefault(groups[speaker], []).append(speaker)
    names = sorted(members)
    if kind not in KINDS:
        raise UserError(f"folds by {kind!r}: expected {' or '.join(KINDS)}")
    if len(names) < 2 or len(groups) < 3:
        raise UserError(
            f"{len(groups)} speakers in {len(names)} groups: folds need at least three speakers "
            "in two groups"
        )
    if kind == GROUP:
        tested = [(place, tuple(members[name])) for place, name in enumerate(names)]
    else:
        tested = [(p, (speaker,)) for p, name in enumerate(names) for speaker in members[name]]
    folds = []
    for number, (place, test) in enumerate(tested, 1):
        others = members[names[(place + 1) % len(names)]]
        fold = Fold(f"fold{number}", test, others[(number - 1) % len(others)])
        if all(fold.set_of(speaker) != TRAIN for speaker in groups):
            raise UserError(f"{fold.name}: nobody is left for training")
        folds.append(fold)
    return folds


def make_folds(dump: Pathlike, out: Pathlike, kind: str, group_length: int) -> list[Fold]:
    """Write ``out/fold<n>/{train,dev,test}``, each with an audit of its sets.

    Args:
        dump: A formatted set.
        out: Folder of the folds.
        kind: See `leave_one_out`.
        group_length: Characters at the beginning of a speaker's name that tell the group.

    Raises:
        UserError: An invalid dump, or as `leave_one_out`.
    """
    whole = load(dump)
    speakers = sorted(whole.data.spk2utt)
    short = [name for name in speakers if len(name) <= group_length]
    if short:
        raise UserError(f"{dump}: speaker {short[0]!r} has no group in its name")
    folds = leave_one_out({name: name[:group_length] for name in speakers}, kind)
    for fold in folds:
        _write_fold(whole, fold, Path(out) / fold.name)
    return folds


def _write_fold(whole: AuditedSet, fold: Fold, folder: Path) -> None:
    with atomic_dir(folder) as temporary:
        sets = [_write_set(whole, fold, name, temporary, folder / name) for name in SETS]
        train, dev, _ = (audited.data.path for audited in sets)
        findings = compare_sets(sets, train, valid=dev)
        raise_errors(findings)
        for audited in sets:
            findings += [
                type(finding)(finding.level, f"{audited.name}: {finding.message}")
                for finding in audit_set(audited)
            ]
        write_text(temporary / "audit.md", render(f"Audit of {folder}", sets, findings))
        write_json(temporary / FILE, {"name": fold.name, "test": fold.test, "dev": fold.dev})


def _write_set(
    whole: AuditedSet, fold: Fold, name: str, temporary: Path, final: Path
) -> AuditedSet:
    utt2spk = whole.data.utt2spk
    chosen = [utt for utt in whole.stats if fold.set_of(utt2spk[utt]) == name]
    if not chosen:
        raise UserError(f"{fold.name}: the set {name!r} has no utterances")
    stats = {utt: whole.stats[utt] for utt in chosen}
    wav_scp = {utt: whole.data.wav_scp[utt] for utt in chosen}
    (temporary / name).mkdir()
    data = write_dump(temporary / name, final, wav_scp, whole.data.tables, stats)
    return AuditedSet(data, stats, whole.sample_rate)


def describe(folds: Sequence[Fold]) -> str:
    """A line per fold."""
    return "\n".join(f"{f.name}: test {' '.join(f.test)}, dev {f.dev}" for f in folds)
