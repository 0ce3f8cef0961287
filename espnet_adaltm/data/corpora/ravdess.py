"""RAVDESS speech: acted, North American English (Livingstone and Russo, 2018), eight emotions.

Release: ``Actor_NN/MM-VC-EM-IN-ST-RE-AA.wav`` (https://zenodo.org/records/1188976, the archive
``Audio_Speech_Actors_01-24.zip``): modality, vocal channel, emotion, intensity, statement,
repetition and actor; odd actors are men. Only audio of speech (``03-01``) is taken. There is no
official split. Ours is by actor: test 13 to 16 (two women, two men), dev 10 to 12, train all
others, whether 16 or 24 actors are present.

There are two sentences in all, in every set: error rates on them say nothing about recognition.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_adaltm.data.corpora.release import index_audio, split_speakers
from espnet_adaltm.data.datadir import DataDir, write_data_dir
from espnet_adaltm.errors import UserError

EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
SENTENCES = {"01": "kids are talking by the door", "02": "dogs are sitting by the door"}
TEST_ACTORS = ("13", "14", "15", "16")
DEV_ACTORS = ("10", "11", "12")
_AUDIO_ONLY, _SPEECH = "03", "01"
_CODES = (
    ("modality", {"01", "02", "03"}),
    ("vocal channel", {"01", "02"}),
    ("emotion", set(EMOTIONS)),
    ("intensity", {"01", "02"}),
    ("statement", set(SENTENCES)),
    ("repetition", {"01", "02"}),
    ("actor", {f"{number:02d}" for number in range(1, 25)}),
)


@dataclass(frozen=True)
class Recording:
    """One file of speech; ``key`` begins with the speaker."""

    path: Path
    actor: str
    emotion: str
    text: str

    @property
    def key(self) -> str:
        """Utterance id."""
        return f"{self.speaker}-{self.path.stem}"

    @property
    def speaker(self) -> str:
        """Speaker id."""
        return f"actor{self.actor}"

    @property
    def gender(self) -> str:
        """``m`` for odd actors, ``f`` for even ones."""
        return "m" if int(self.actor) % 2 else "f"


def parse(path: Path) -> Recording | None:
    """Read the codes of a file name.

    Returns:
        None for video and song.

    Raises:
        UserError: Not seven codes, an unknown code, or a file in another actor's folder.
    """
    codes = path.stem.split("-")
    if len(codes) != len(_CODES):
        raise UserError(f"{path}: expected a name of {len(_CODES)} codes, MM-VC-EM-IN-ST-RE-AA")
    for code, (name, known) in zip(codes, _CODES):
        if code not in known:
            raise UserError(f"{path}: unknown {name} {code!r}, expected {', '.join(sorted(known))}")
    modality, channel, emotion, _, statement, _, actor = codes
    if path.parent.name != f"Actor_{actor}":
        raise UserError(f"{path}: a recording of actor {actor} lies in {path.parent.name}")
    if modality != _AUDIO_ONLY or channel != _SPEECH:
        return None
    return Recording(path, actor, EMOTIONS[emotion], SENTENCES[statement])


def read_recordings(root: Path) -> list[Recording]:
    """All recordings of speech under ``Actor_*``.

    Raises:
        UserError: No folders of actors, a folder without audio of speech, or as `parse`.
    """
    folders = sorted(path for path in root.glob("Actor_*") if path.is_dir())
    if not folders:
        raise UserError(f"{root} holds no folders Actor_NN: give the root of the unpacked release")
    result = []
    for folder in folders:
        found = [parse(path) for _, path in sorted(index_audio(folder).items())]
        speech = [recording for recording in found if recording is not None]
        if not speech:
            raise UserError(
                f"{folder} holds no audio of speech (03-01-*, in a format that libsndfile reads): "
                "unpack it again or remove it"
            )
        result += speech
    return result


def prepare(
    root: Path,
    out_data: Path,
    dev_actors: Sequence[str] = DEV_ACTORS,
    test_actors: Sequence[str] = TEST_ACTORS,
) -> dict[str, DataDir]:
    """Write the data directories train, dev and test.

    Args:
        root: Folder with ``Actor_NN``; audio in any format that libsndfile reads.
        out_data: Folder of the sets.
        dev_actors: Two-digit numbers held out for development.
        test_actors: Two-digit numbers held out for the test.

    Raises:
        UserError: See `read_recordings` and `split_speakers`.
    """
    recordings = read_recordings(root)
    actors = split_speakers((r.actor for r in recordings), dev_actors, test_actors, "actor")
    sets: dict[str, list[Recording]] = defaultdict(list)
    for recording in recordings:
        sets[actors[recording.actor]].append(recording)
    return {
        name: write_data_dir(
            out_data / name,
            wav_scp={r.key: str(r.path) for r in members},
            utt2spk={r.key: r.speaker for r in members},
            text={r.key: r.text for r in members},
            utt2emo={r.key: r.emotion for r in members},
            utt2gender={r.key: r.gender for r in members},
        )
        for name, members in sorted(sets.items())
    }
