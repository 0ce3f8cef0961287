"""Dialogues from files, names and speakers; what is missing, alone or doubled."""

import pytest

from espnet_adaltm.data.dialogs import others, read_dialogs, shuffled, source_file
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import write_scp


def test_given_turns_in_order_with_gaps_and_strays(tmp_path):
    table = {"a1": "d1 10", "a2": "d1 2", "b": "d2 0", "c1": "d0 0", "c2": "d0 2", "x": "d9 0"}
    write_scp(tmp_path / "utt2dialog", table)
    dialogs = read_dialogs(tmp_path, ["stray", "a1", "a2", "b", "c1", "c2"], "given")
    assert dialogs.turns == {
        "d0": ("c1", "c2"),
        "d1": ("a2", "a1"),
        "d2": ("b",),
        "utt:stray": ("stray",),
    }
    assert (dialogs.alone, dialogs.gaps) == (1, 2)
    assert dialogs.places["a1"] == ("d1", 1, 2)
    assert dialogs.summary() == (
        "3 dialogues of up to 2 turns, 1 of a single turn, 2 with missing turns; 1 utterances "
        "without a dialogue"
    )
    assert source_file(tmp_path, "given") == tmp_path / "utt2dialog"
    assert source_file(tmp_path, "show") is None


def test_shows_of_msp_podcast(tmp_path):
    utts = [f"MSP-PODCAST_{name}" for name in ("0002_0010", "0002_0009", "01_3_0002", "01_3_0001")]
    turns = read_dialogs(tmp_path, [*utts, "other"], "show").turns
    assert turns == {
        "MSP-PODCAST_0002": (utts[1], utts[0]),
        "MSP-PODCAST_01": (utts[3], utts[2]),
        "utt:other": ("other",),
    }


def test_pseudo_dialogues_of_a_speaker_are_in_no_order_of_the_corpus(tmp_path):
    utts = [f"{speaker}-{number:02d}" for speaker in "ab" for number in range(20)]
    write_scp(tmp_path / "utt2spk", {utt: utt[0] for utt in utts} | {"z": "Unknown"})
    dialogs = read_dialogs(tmp_path, [*utts, "z"], "speaker", pseudo_turns=6)
    sizes = {name: len(turns) for name, turns in dialogs.turns.items()}
    assert sizes == {f"{s}/{n}": 6 - 4 * (n == 3) for s in "ab" for n in range(4)} | {"utt:z": 1}
    for name, turns in dialogs.turns.items():
        assert {utt[0] for utt in turns} == {name[0] if name != "utt:z" else "z"}
    heard = [utt for name, turns in dialogs.turns.items() if name[0] == "a" for utt in turns]
    assert sorted(heard) == utts[:20]
    assert heard != utts[:20]
    assert read_dialogs(tmp_path, utts[::-1], "speaker", 6).turns == {
        name: turns for name, turns in dialogs.turns.items() if name != "utt:z"
    }


def test_what_cannot_be_arranged_is_refused(tmp_path):
    with pytest.raises(UserError, match="utt2dialog is missing.*dialogs: speaker"):
        read_dialogs(tmp_path, ["a"], "given")
    with pytest.raises(UserError, match="'shows' is none of given, speaker, show"):
        read_dialogs(tmp_path, ["a"], "shows")
    with pytest.raises(UserError, match="not one of the 1 utterances has a show"):
        read_dialogs(tmp_path, ["a"], "show")
    write_scp(tmp_path / "utt2spk", {"a": "unknown", "b": "unknown"})
    with pytest.raises(UserError, match="not one of the 2 utterances has a known speaker"):
        read_dialogs(tmp_path, ["a", "b"], "speaker")
    write_scp(tmp_path / "utt2dialog", {"a": "d 1", "b": "d 1"})
    with pytest.raises(UserError, match="'d' has a turn twice"):
        read_dialogs(tmp_path, ["a", "b"], "given")
    write_scp(tmp_path / "utt2dialog", {"a": "d first"})
    with pytest.raises(UserError, match="'a' has 'd first', expected `dialog turn`"):
        read_dialogs(tmp_path, ["a"], "given")
    with pytest.raises(UserError, match="not one of the 1 utterances has a dialogue"):
        read_dialogs(tmp_path, ["c"], "given")


def test_ablations_rearrange_and_exchange(tmp_path):
    table = {
        f"{d}{t}": f"{d} {t}" for d, size in (("p", 9), ("q", 9), ("r", 3)) for t in range(size)
    }
    write_scp(tmp_path / "utt2dialog", table)
    dialogs = read_dialogs(tmp_path, table, "given")
    mixed = shuffled(dialogs)
    assert mixed.turns.keys() == dialogs.turns.keys()
    assert {k: sorted(v) for k, v in mixed.turns.items()} == {
        k: sorted(v) for k, v in dialogs.turns.items()
    }
    assert mixed.turns["p"] != dialogs.turns["p"]
    assert shuffled(dialogs).turns == mixed.turns
    speakers = dict.fromkeys(table, "x") | {utt: "y" for utt in table if utt[0] == "q"}
    # p and r share their speaker; q is the longest of the others
    assert others(dialogs, speakers) == {"p": "q", "q": "p", "r": "q"}
    assert others(dialogs, {}) == {"p": "q", "q": "p", "r": "p"}
    write_scp(tmp_path / "utt2dialog", {"a": "d 0", "b": "d 1"})
    with pytest.raises(UserError, match="at least two dialogues"):
        others(read_dialogs(tmp_path, ["a", "b"], "given"), {})
