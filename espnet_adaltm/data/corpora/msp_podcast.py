"""MSP-Podcast (Lotfian and Busso): natural speech from podcasts, rated by five people and more.

The corpus is given under a licence only, from https://lab-msp.com/MSP/MSP-Podcast.html. Of its
release this makes the sets train, dev, test1, test2 and test3 with the official splits. Test1 and
Test2 differ by about eight points of macro-F1, so they stay apart; the labels of test3 are hidden.

What is left out, and why, is written beside the sets: ``preparation.md`` for people, and
``left_out.tsv`` with every utterance. `Options` holds the choices.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espnet_adaltm.data.corpora import msp_podcast_release as release
from espnet_adaltm.data.corpora.msp_podcast_options import DEV, TRAIN, VOTES, WORDS, Options
from espnet_adaltm.data.corpora.msp_podcast_release import EMOTIONS, TEST3, VOTED, Release, Turn
from espnet_adaltm.data.corpora.msp_podcast_report import Findings, compare_sizes, write_report
from espnet_adaltm.data.corpora.transcripts import read_transcripts
from espnet_adaltm.data.datadir import UNKNOWN_SPEAKER, DataDir, write_data_dir
from espnet_adaltm.data.dialogs import show_of
from espnet_adaltm.errors import UserError

# Rows of the label file without Test3: 1.11 has 151,654 turns, 2,347 of them in Test3; 2.0 has
# 267,905 and 3,200.
_ROWS = {"1.11": 149_307, "2.0": 264_705}
_NEAR = 0.02
_MANY_UNLABELLED = 0.01
_OF_TRAINING = (TRAIN, DEV)


def prepare(
    root: Path, out_data: Path, options: Options | None = None, num_workers: int = 1
) -> dict[str, DataDir]:
    """Write the data directories; those of sets that the release lacks are left out.

    Args:
        root: The unpacked release.
        out_data: Folder of the sets.
        options: The choices.
        num_workers: Processes that read transcripts.

    Raises:
        UserError: An incomplete or mixed-up release; see `msp_podcast_release`.
    """
    options = options or Options()
    where = release.locate(root)
    audio = release.audio_of(where)
    turns = release.read_turns(where.consensus)
    hidden = release.test3_stems(where, turns, audio)
    turns = [turn for turn in turns if turn.stem not in hidden]
    found = Findings()
    for turn in turns:
        found.counts.setdefault(turn.set, Counter())[turn.code] += 1
    _check_version(options, where, len(turns), found)
    dialogs = _dialogs(turns)
    turns = _with_audio(turns, audio, hidden, where, options, found)
    _check_partitions(where, turns, found)
    turns = _without_shared(turns, options, found)
    turns, soft = _with_emotion(turns, where, options, found)
    tests = _test3(hidden & audio.keys(), where, options)
    texts = _texts(where, [turn.stem for turn in (*turns, *tests)], options, num_workers, found)
    if options.drop_empty_text:
        turns = [turn for turn in turns if texts[turn.stem] or found.leave(turn, "no transcript")]
    emotions = _emotions(turns, soft, options)
    folder = str(where.audio)
    result = {}
    for name, members in _by_set((*turns, *tests), where).items():
        stems = [turn.stem for turn in members]
        result[name] = write_data_dir(
            out_data / name,
            wav_scp={stem: f"{folder}/{audio[stem]}" for stem in stems},
            utt2spk={turn.stem: turn.speaker for turn in members},
            text={stem: text for stem in stems if (text := texts[stem])},
            utt2emo={stem: emotions[stem] for stem in stems if stem in emotions},
            utt2soft={stem: soft[stem] for stem in stems if stem in emotions and stem in soft},
            utt2dialog={stem: dialogs[stem] for stem in stems if stem in dialogs},
            utt2gender={turn.stem: turn.gender for turn in members if turn.gender},
        )
    compare_sizes(options, result, found)
    write_report(out_data, where, options, result, found)
    return result


def _test3(stems: Iterable[str], where: Release, options: Options) -> list[Turn]:
    turns = [Turn(stem, "", UNKNOWN_SPEAKER, "", TEST3) for stem in sorted(stems)]
    if options.test3 == "true" and not turns:
        raise UserError(f"{where.audio} has no recordings of Test3: give --test3 false")
    return [] if options.test3 == "false" else turns


def _by_set(turns: Sequence[Turn], where: Release) -> dict[str, list[Turn]]:
    sets: dict[str, list[Turn]] = defaultdict(list)
    for turn in turns:
        sets[turn.set].append(turn)
    for name in _OF_TRAINING:
        if not sets[name]:
            raise UserError(f"{where.consensus}: nothing is left for the set {name!r}")
    return {name: sets[name] for name in dict.fromkeys(release.SETS.values()) if sets[name]}


# -------------------------------------------------------------------------------- checks
def _check_version(options: Options, where: Release, rows: int, found: Findings) -> None:
    """Label files of one release with the audio of another are the commonest mistake."""
    like = [version for version, known in _ROWS.items() if abs(rows - known) <= _NEAR * known]
    if options.version and like and options.version not in like:
        raise UserError(
            f"{where.consensus} has {rows} labelled turns, as release {like[0]} has, but "
            f"--msp_version is {options.version}: give the version, or its label file"
        )
    expected = _ROWS.get(options.version)
    if expected and not like:
        found.remark(
            f"{rows} labelled turns, but release {options.version} has about {expected}: parts are "
            "missing, or it is another release"
        )


def _with_audio(
    turns: Sequence[Turn],
    audio: Mapping[str, str],
    hidden: set[str],
    where: Release,
    options: Options,
    found: Findings,
) -> list[Turn]:
    kept = [turn for turn in turns if turn.stem in audio or found.leave(turn, "no audio")]
    if missing := len(turns) - len(kept):
        first = next(turn.stem for turn in turns if turn.stem not in audio)
        told = f"{missing} of {len(turns)} labelled recordings are missing, the first is {first}"
        if missing > options.max_missing:
            raise UserError(
                f"{where.audio}: {told}: unpack all of the audio, check that labels and audio are "
                "of one release, or allow it with --max_missing"
            )
        found.remark(told)
    known = {turn.stem for turn in turns} | hidden
    extra = [stem for stem in audio if stem not in known]
    if extra:
        told = f"{len(extra)} recordings have no label, the first is {extra[0]}"
        if len(extra) > max(options.max_missing, _MANY_UNLABELLED * len(turns)):
            raise UserError(
                f"{where.audio}: {told}: {where.consensus} belongs to another release; take the "
                "label file that came with the audio"
            )
        found.remark(told)
    return kept


def _check_partitions(where: Release, turns: Sequence[Turn], found: Findings) -> None:
    if where.partitions is None:
        return
    other = release.read_partitions(where.partitions)
    differing = [turn for turn in turns if other.get(turn.stem, turn.set) != turn.set]
    if differing:
        found.remark(
            f"{where.partitions.name} puts {len(differing)} turns into other sets than "
            f"{where.consensus.name}, which is followed; the first is {differing[0].stem}"
        )


def _without_shared(turns: Sequence[Turn], options: Options, found: Findings) -> list[Turn]:
    """Tell which speakers two sets share; drop them from the earlier one if so asked."""
    heard: dict[str, Counter[str]] = defaultdict(Counter)
    for turn in turns:
        if turn.speaker != UNKNOWN_SPEAKER:
            heard[turn.set][turn.speaker] += 1
    names = [name for name in (TRAIN, DEV, "test1", "test2") if name in heard]
    later: dict[str, set[str]] = {}
    for place, first in enumerate(names[:-1]):
        later[first] = set().union(*(heard[name] for name in names[place + 1 :]))
        for second in names[place + 1 :]:
            if both := heard[first].keys() & heard[second].keys():
                sizes = (sum(heard[name][speaker] for speaker in both) for name in (first, second))
                found.shared[first, second] = (len(both), *sizes)
    if options.shared_speakers == "keep":
        return list(turns)
    return [
        turn
        for turn in turns
        if turn.set not in _OF_TRAINING
        or turn.speaker not in later.get(turn.set, ())
        or found.leave(turn, "speaker of a later set")
    ]


# -------------------------------------------------------------------------------- labels
def _with_emotion(
    turns: Sequence[Turn], where: Release, options: Options, found: Findings
) -> tuple[list[Turn], dict[str, str]]:
    """Turns that stay, and the annotators' distributions by stem, if they are the targets."""
    soft: dict[str, str] = {}
    if options.targets == VOTES:
        if where.annotations is None:
            raise UserError(
                f"{where.consensus.parent} has no labels_detailed.csv (nor .json, nor labels.txt), "
                "which --targets votes needs"
            )
        votes = release.read_votes(where.annotations, (turn.stem for turn in turns))
        soft = _distributions(turns, votes, options)
        if not soft:
            raise UserError(f"{where.annotations} has no annotation of any of the turns")
    kept = [
        turn
        for turn in turns
        if turn.code in options.codes
        or _stays(turn, soft, options)
        or found.leave(turn, f"EmoClass {turn.code}")
    ]
    return kept, soft


def _stays(turn: Turn, soft: Mapping[str, str], options: Options) -> bool:
    """Whether a turn outside the classes is kept."""
    if options.left_out == WORDS:
        return turn.set in _OF_TRAINING
    return options.left_out == VOTES and turn.set == TRAIN and turn.stem in soft


def _distributions(
    turns: Sequence[Turn], votes: NDArray[np.int64], options: Options
) -> dict[str, str]:
    """Shares of the classes among the votes for any of them; the consensus where nobody did."""
    columns = [VOTED.index(code) for code in options.codes if code in VOTED]
    names = [EMOTIONS[VOTED[column]] for column in columns]
    patterns, rows = np.unique(votes[:, columns], axis=0, return_inverse=True)
    texts = [_shares(pattern, names) for pattern in patterns.tolist()]
    soft = {}
    for turn, row in zip(turns, rows.reshape(-1).tolist(), strict=True):
        if text := texts[row]:
            soft[turn.stem] = text
        elif turn.code in options.codes:
            soft[turn.stem] = f"{EMOTIONS[turn.code]}=1"
    return soft


def _shares(counts: Sequence[int], names: Sequence[str]) -> str:
    total = sum(counts)
    return " ".join(
        f"{name}={count / total:.6f}" for name, count in zip(names, counts, strict=True) if count
    )


def _emotions(turns: Sequence[Turn], soft: Mapping[str, str], options: Options) -> dict[str, str]:
    """Stem to emotion: the consensus; outside the classes the first of the most frequent votes."""
    emotions = {turn.stem: EMOTIONS[turn.code] for turn in turns if turn.code in options.codes}
    if options.left_out != VOTES:
        return emotions
    for turn in turns:
        if turn.code not in options.codes:
            shares = [part.rpartition("=") for part in soft[turn.stem].split()]
            emotions[turn.stem] = max(shares, key=lambda share: float(share[2]))[0]
    return emotions


# -------------------------------------------------------------------------------- the rest
def _texts(
    where: Release, stems: Sequence[str], options: Options, num_workers: int, found: Findings
) -> dict[str, str | None]:
    if where.transcripts is None:
        if options.drop_empty_text:
            raise UserError(f"{where.root} has no Transcripts/, which --drop_empty_text needs")
        found.remark("no Transcripts/: there is nothing to train an ASR expert on")
        return dict.fromkeys(stems)
    texts = read_transcripts(where.transcripts, stems, num_workers)
    absent = sum(text is None for text in texts.values())
    empty = sum(text == "" for text in texts.values())
    if absent == len(texts):
        raise UserError(
            f"{where.transcripts} has a text file for none of the recordings, e.g. "
            f"{stems[0]}.txt: unpack the transcripts of this release"
        )
    if absent or empty:
        found.remarks.append(f"{absent} turns have no transcript, {empty} an empty one")
    return texts


def _dialogs(turns: Sequence[Turn]) -> dict[str, str]:
    """Stem to ``show turn-index``: the place among all labelled turns of the show, any set's."""
    shows: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for turn in turns:
        if place := show_of(turn.stem):
            shows[place[0]].append((place[1], place[2], turn.stem))
    return {
        stem: f"{show} {index}"
        for show, places in shows.items()
        for index, (_, _, stem) in enumerate(sorted(places))
    }
