"""Waves of turns."""

from espnet_adaltm.data.dialogs import Dialogs
from espnet_adaltm.decoding.dialog import HISTORIES, MEANS, waves


def test_a_wave_has_one_turn_of_every_dialogue_that_has_it():
    dialogs = Dialogs({"a": ("a0",), "b": ("b0", "b1", "b2"), "c": ("c0", "c1")})
    found = [(dict(wave.turns), wave.first) for wave in waves(dialogs)]
    assert found == [
        ({"b0": "b", "c0": "c", "a0": "a"}, True),
        ({"b1": "b", "c1": "c"}, False),
        ({"b2": "b"}, False),
    ]
    few = [list(wave.turns) for wave in waves(dialogs, most=2)]
    assert few == [["b0", "c0"], ["b1", "c1"], ["b2"], ["a0"]]
    heard = [utt for wave in waves(dialogs, most=1) for utt in wave.turns]
    assert heard == ["b0", "b1", "b2", "c0", "c1", "a0"]


def test_every_history_is_explained():
    assert list(MEANS) == list(HISTORIES)
