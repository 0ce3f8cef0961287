"""What is chosen when MSP-Podcast is prepared: classes, targets, and what is left out."""

from dataclasses import dataclass

from espnet_adaltm.data.corpora.msp_podcast_release import EMOTIONS
from espnet_adaltm.errors import UserError

# The order of AdaLTM and of Vox-Profile. Four are those that most papers with four take.
CLASSES = {4: "AHNS", 8: "ACDFHNSU", 9: "ACDFHNSUO", 10: "ACDFHNSUOX"}
VERSIONS = ("1.11", "1.12", "2.0")
DROP, WORDS, VOTES = LEFT_OUT = ("drop", "words", "votes")
TARGETS = CONSENSUS, _ = ("consensus", VOTES)
SHARED = ("keep", "drop")
TRAIN, DEV = "train", "dev"


@dataclass(frozen=True)
class Options:
    """The choices that a recipe makes.

    Attributes:
        version: Of the release, one of `VERSIONS`; empty if unknown. Counts are compared with it.
        classes: 4 (A H N S), 8, 9 (with O, other) or 10 (with X, no agreement).
        left_out: What becomes of turns outside the classes, such as O and X: ``drop``; ``words``:
            in train and dev they stay for their transcripts, without an emotion; ``votes``: in
            train they stay with what the annotators said, if anybody named a class.
        targets: ``consensus``, or ``votes``: the distribution of the annotators' primary emotions
            over the classes, beside the consensus.
        drop_empty_text: Leave out turns without transcript, as AdaLTM does.
        shared_speakers: ``keep`` the official splits, or ``drop`` from train the speakers of dev
            and tests, and from dev those of tests.
        max_missing: Recordings that may be missing; 2.0 lacks one.
        test3: Whether that set is made: ``true``, ``false``, or ``auto``: if the release has it.
    """

    version: str = ""
    classes: int = 8
    left_out: str = DROP
    targets: str = CONSENSUS
    drop_empty_text: bool = False
    shared_speakers: str = "keep"
    max_missing: int = 10
    test3: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what is none of the choices."""
        for name, allowed in (
            ("version", ("", *VERSIONS)),
            ("classes", tuple(CLASSES)),
            ("left_out", LEFT_OUT),
            ("targets", TARGETS),
            ("shared_speakers", SHARED),
            ("test3", ("auto", "true", "false")),
        ):
            if getattr(self, name) not in allowed:
                known = ", ".join(str(value) for value in allowed if value != "")
                raise UserError(f"{name} {getattr(self, name)!r} is none of {known}")
        if self.left_out == VOTES and self.targets != VOTES:
            raise UserError("--left_out votes needs --targets votes: nothing else tells an emotion")
        if self.targets == VOTES and "X" in self.codes:
            raise UserError("--targets votes has 4, 8 or 9 classes: no annotator votes for X")

    @property
    def codes(self) -> str:
        """Codes of the classes, in the order of every output."""
        return CLASSES[self.classes]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the same order."""
        return tuple(EMOTIONS[code] for code in self.codes)

    def policy(self) -> str:
        """What was done, in words, for ``labels.json``."""
        other = "".join(code for code in EMOTIONS if code not in self.codes)
        became = {
            DROP: "left out",
            WORDS: "kept in train and dev for their words, without an emotion",
            VOTES: "kept in train with the annotators' votes, where one is for a class",
        }[self.left_out]
        parts = [f"MSP-Podcast {self.version}".strip(), f"{self.classes} classes"]
        if other:
            parts.append(f"{other} {became}")
        parts.append("annotators' distributions" if self.targets == VOTES else "consensus")
        if self.drop_empty_text:
            parts.append("only turns with a transcript")
        if self.shared_speakers == "drop":
            parts.append("speakers shared between sets left out of train, then of dev")
        return "; ".join(parts)
