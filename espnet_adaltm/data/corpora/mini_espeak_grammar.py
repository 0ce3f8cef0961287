"""The sentences of mini_espeak: a small grammar whose cue words carry the emotion.

Every template has one or two cue slots (``{adj}``, ``{verb}``, ``{noun}``). A neutral sentence
fills them from the neutral lexicon; an emotional one takes at least one from its emotion's.
Carriers and all other slots are shared, so nothing but the cues tells the emotion. Sentences are
dealt to train, dev and test by a hash of their text: the three sets can never share one.
"""

import hashlib
import random
import re
from collections.abc import Mapping

EMOTIONS = ("angry", "happy", "neutral", "sad")
SETS = ("train", "dev", "test")

CUES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "angry": {
        "adj": ("furious", "rotten", "nasty", "hateful", "disgusting"),
        "verb": ("smashed", "hated", "attacked", "cursed"),
        "noun": ("fight", "insult", "threat", "outrage", "quarrel"),
    },
    "happy": {
        "adj": ("wonderful", "lovely", "joyful", "delightful", "cheerful"),
        "verb": ("loved", "enjoyed", "praised", "celebrated"),
        "noun": ("party", "holiday", "birthday", "wedding", "victory"),
    },
    "neutral": {
        "adj": ("regular", "normal", "plain", "square", "typical"),
        "verb": ("opened", "checked", "counted", "copied"),
        "noun": ("meeting", "schedule", "number", "paper", "folder"),
    },
    "sad": {
        "adj": ("lonely", "gloomy", "hopeless", "miserable", "tragic"),
        "verb": ("missed", "mourned", "lost", "regretted"),
        "noun": ("funeral", "sorrow", "goodbye", "illness", "tears"),
    },
}

_FILLERS: Mapping[str, tuple[str, ...]] = {
    "who": (
        *("my brother", "my sister", "my cousin", "the teacher", "the doctor", "the driver"),
        *("the manager", "our neighbor", "our uncle", "she", "he", "they", "we", "anna", "peter"),
    ),
    "thing": (
        *("window", "garden", "ticket", "engine", "bottle", "camera", "carpet", "jacket", "letter"),
        *("machine", "pencil", "picture", "basket", "blanket", "ladder", "market", "sofa", "fence"),
        *("tractor", "computer", "magazine", "guitar", "candle", "story", "umbrella", "television"),
    ),
    "where": (
        *("at the station", "in the kitchen", "near the river", "by the bridge", "at the airport"),
        *("behind the school", "in the village", "on the roof", "under the stairs"),
        *("at the office", "in the library", "near the harbor"),
    ),
    "when": (
        *("today", "yesterday", "this morning", "last week", "on monday", "on friday"),
        *("last night", "before lunch", "after dinner", "in october", "again", "this summer"),
    ),
    "did": ("brought", "noticed", "described", "expected", "remembered"),
}

# Adjectives begin with a consonant, so `a` is right everywhere.
TEMPLATES = (
    "{who} {verb} the {thing} {when}",
    "{who} {verb} the {thing} {where}",
    "{who} {verb} the {adj} {thing}",
    "{who} {verb} the {noun} {when}",
    "{who} {did} the {adj} {thing} {when}",
    "{who} {did} the {adj} {noun}",
    "{who} {did} the {noun} {where}",
    "{who} talked about the {noun} {when}",
    "{who} told me about the {adj} {noun}",
    "that was a {adj} {thing}",
    "it was a {adj} {noun} {when}",
    "there was a {adj} {thing} {where}",
    "the {thing} seemed {adj} {when}",
    "the {noun} and the {thing} seemed {adj}",
    "{when} {who} {verb} the {noun}",
)
_SLOT = re.compile(r"{(\w+)}")
_CUE_SLOTS = frozenset(("adj", "verb", "noun"))
_SHARES = {"train": 6, "dev": 2, "test": 2}
_EMOTIONAL_SLOT = 0.75


def vocabulary() -> set[str]:
    """Every word the grammar can say."""
    phrases = [phrase for slot in _FILLERS.values() for phrase in slot]
    phrases += [word for lexicon in CUES.values() for slot in lexicon.values() for word in slot]
    phrases += [_SLOT.sub(" ", template) for template in TEMPLATES]
    return {word for phrase in phrases for word in phrase.split()}


def cue_emotions(sentence: str) -> set[str]:
    """The emotions whose cue words occur in a sentence (``neutral`` included)."""
    words = set(sentence.split())
    return {
        emotion
        for emotion, lexicon in CUES.items()
        if any(words.intersection(slot) for slot in lexicon.values())
    }


def set_of(sentence: str) -> str:
    """The set that owns a sentence: a hash deals 60, 20 and 20 % to train, dev and test."""
    point = int(hashlib.sha256(sentence.encode()).hexdigest(), 16) % sum(_SHARES.values())
    for name, share in _SHARES.items():
        if point < share:
            return name
        point -= share
    raise AssertionError("unreachable: the shares cover the hash")


def sentence(emotion: str, rng: random.Random) -> str:
    """Draw one sentence of 5 to 8 words whose words carry ``emotion``."""
    template = rng.choice(TEMPLATES)
    cue_slots = [slot for slot in _SLOT.findall(template) if slot in _CUE_SLOTS]
    emotional = {slot for slot in cue_slots if rng.random() < _EMOTIONAL_SLOT}
    emotional = emotional or {rng.choice(cue_slots)}

    def fill(match: re.Match[str]) -> str:
        slot = match.group(1)
        if slot not in _CUE_SLOTS:
            return rng.choice(_FILLERS[slot])
        return rng.choice(CUES[emotion if slot in emotional else "neutral"][slot])

    return _SLOT.sub(fill, template)
