"""A share of the emotion labels, for the question how many of them a method needs."""

import itertools
import random
from collections import defaultdict
from collections.abc import Mapping

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, require
from espnet_adaltm.kaldi import read_scp, write_scp


def nested_subset(
    utt2emo: Mapping[str, str], utt2spk: Mapping[str, str], share: float, seed: int
) -> set[str]:
    """Choose a share of the utterances.

    The share holds within every emotion, up to rounding, and is taken from all speakers in turn.
    With the same seed a smaller share is a subset of a larger one.

    Args:
        utt2emo: Utterance to emotion.
        utt2spk: At least the same utterances to their speaker.
        share: Above 0, at most 1.
        seed: Of the choice.
    """
    chosen: set[str] = set()
    for emotion in set(utt2emo.values()):
        rng = random.Random(f"{seed}/labelled/{emotion}")
        queues: dict[str, list[str]] = defaultdict(list)
        for utt, found in utt2emo.items():
            if found == emotion:
                queues[utt2spk[utt]].append(utt)
        for name in sorted(queues):
            rng.shuffle(queues[name])
        order = rng.sample(sorted(queues), len(queues))
        rounds = itertools.zip_longest(*(queues[name] for name in order))
        keys = [key for turn in rounds for key in turn if key is not None]
        chosen.update(keys[: round(share * len(keys))])
    return chosen


def write_label_share(dump: Pathlike, share: float, out: Pathlike, seed: int = 0) -> int:
    """Write the lines of ``<dump>/ser_shape`` that belong to a share of the labelled utterances.

    Returns:
        Number of utterances.

    Raises:
        UserError: A file is missing, the share is no share, or leaves an emotion without any.
    """
    if not 0 < share <= 1:
        raise UserError(f"--share {share}: expected above 0, at most 1")
    shapes, emotions, speakers = (
        read_scp(require(f"{dump}/{name}", "stage `audio`"))
        for name in ("ser_shape", "utt2emo", "utt2spk")
    )
    emotions = {utt: emotions[utt] for utt in shapes}
    chosen = nested_subset(emotions, speakers, share, seed)
    lost = set(emotions.values()) - {emotions[utt] for utt in chosen}
    if lost:
        raise UserError(f"--share {share} of {dump} leaves no utterance that is {min(lost)!r}")
    write_scp(out, {utt: shape for utt, shape in shapes.items() if utt in chosen})
    return len(chosen)
