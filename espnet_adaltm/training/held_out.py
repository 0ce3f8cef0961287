"""Learning on speakers that no expert was trained on.

An expert's task vector was made for the training set: on it, the emotion loss asks for more of the
SER vector than new speakers would, and a memory finds little left to add to a SER expert. Half of
the validation speakers can take the training set's place; the other half then chooses the epoch.
(Both experts chose their own epochs on all of them, which costs neither half its speakers'
independence, but is no test set.)
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import require
from espnet_adaltm.kaldi import read_scp, write_scp

FEWEST = 4
FOLDER = "data"


@dataclass(frozen=True)
class Halves:
    """Disjoint speakers of a validation set, sorted.

    Attributes:
        learn: To learn on; one more than the others if their number is odd.
        choose: To choose epochs on.
    """

    learn: list[str]
    choose: list[str]


def split_speakers(speakers: Collection[str], seed: int = 0) -> Halves:
    """Cut speakers into two halves by a hash of their names: the same on every machine.

    Args:
        speakers: Names.
        seed: Another one cuts differently.

    Raises:
        UserError: Fewer than 4 speakers.
    """
    names = sorted(set(speakers), key=lambda name: _hash(f"{seed} {name}"))
    if len(names) < FEWEST:
        raise UserError(
            f"learn_on held_out needs at least {FEWEST} validation speakers, found {len(names)} "
            f"({', '.join(sorted(names))}): give a larger validation set, or learn_on: train"
        )
    middle = (len(names) + 1) // 2
    return Halves(sorted(names[:middle]), sorted(names[middle:]))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def speakers_of(dump: Path, utterances: Iterable[str]) -> dict[str, str]:
    """Utterance to speaker.

    Raises:
        UserError: One has none.
    """
    known = read_scp(require(dump / "utt2spk", "stage `audio`"))
    result = {}
    for utt in utterances:
        if utt not in known:
            raise UserError(f"{dump / 'utt2spk'} has no utterance {utt!r}: run stage `audio` again")
        result[utt] = known[utt]
    return result


def split_shapes(dump: Path, learn: Path, choose: Path, seed: int, out: Path) -> dict[str, Path]:
    """Write the shape files of both halves.

    Args:
        dump: The validation set.
        learn: Shape file with the utterances that may be learned on.
        choose: Shape file with those that may choose epochs; its speakers are divided.
        seed: See `split_speakers`.
        out: Folder to write to.

    Returns:
        ``train`` and ``valid`` to the file of the learning and the choosing half.
    """
    shapes = {"train": read_scp(learn), "valid": read_scp(choose)}
    halves = split_speakers(set(speakers_of(dump, shapes["valid"]).values()), seed)
    written = {}
    for part, speakers in (("train", halves.learn), ("valid", halves.choose)):
        speaker = speakers_of(dump, shapes[part])
        written[part] = out / f"{part}_shape"
        chosen = {utt: size for utt, size in shapes[part].items() if speaker[utt] in speakers}
        write_scp(written[part], chosen)
    return written


def split_dialogs(
    dialogs: Mapping[str, Sequence[str]], shape: Path, seed: int, out: Path
) -> dict[str, Path]:
    """Write the shape files of two halves of a set's dialogues, by a hash of their names.

    Speakers talk to each other, so that they cannot be told apart without cutting dialogues.

    Args:
        dialogs: Dialogue to its utterances.
        shape: Shape file of all of them.
        seed: Another one cuts differently.
        out: Folder to write to.

    Returns:
        ``train`` and ``valid`` to the file of the half to learn on (one more if the number is odd)
        and of that to choose epochs on.

    Raises:
        UserError: Fewer than 4 dialogues.
    """
    names = sorted(dialogs, key=lambda name: _hash(f"{seed} {name}"))
    if len(names) < FEWEST:
        raise UserError(
            f"learn_on held_out needs at least {FEWEST} validation dialogues, found {len(names)}: "
            "give a larger validation set, or learn_on: train"
        )
    middle = (len(names) + 1) // 2
    sizes = read_scp(shape)
    written = {}
    for part, half in (("train", names[:middle]), ("valid", names[middle:])):
        chosen = {utt for name in half for utt in dialogs[name]}
        written[part] = out / f"{part}_shape"
        write_scp(written[part], {utt: size for utt, size in sizes.items() if utt in chosen})
    return written


def describe(dump: Path, train_shape: Path, valid_shape: Path) -> dict[str, dict[str, list[str]]]:
    """The speakers that were in either half, for ``merge.json``."""
    found = {
        part: sorted(set(speakers_of(dump, read_scp(shape)).values()))
        for part, shape in (("learn", train_shape), ("choose", valid_shape))
    }
    return {"speakers": asdict(Halves(**found))}


def complete_text(text: Path, shape: Path, out: Path) -> Path:
    """Write a ``text`` in which every utterance of ``shape`` has an entry, an empty one if need be.

    ESPnet reads an utterance's parts all or not at all; one without a transcript still has an
    emotion to learn from.

    Raises:
        UserError: Not one of the utterances has a transcript.
    """
    known = read_scp(text, allow_empty_value=True)
    entries = {utt: known.get(utt, "") for utt in read_scp(shape)}
    if not any(entries.values()):
        raise UserError(
            f"no utterance of {shape} has a transcript in {text}, which objective supervised_ctc "
            "learns from: give transcripts, or another objective"
        )
    write_scp(out, entries)
    return out
