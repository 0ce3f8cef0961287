"""Half of the validation speakers to learn on, the other half to choose on."""

import pytest

from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.training.held_out import (
    complete_text,
    describe,
    split_dialogs,
    split_shapes,
    split_speakers,
)

NAMES = [f"s{index:02d}" for index in range(10)]


def test_halves_are_disjoint_complete_and_the_same_everywhere():
    halves = split_speakers(NAMES)
    assert sorted(halves.learn + halves.choose) == NAMES
    assert len(halves.learn) == len(halves.choose) == 5
    assert halves == split_speakers(NAMES[::-1])
    # by SHA-256 of "0 s00" ...: what every machine gets
    assert halves.learn == ["s02", "s03", "s04", "s07", "s08"]
    assert split_speakers(NAMES, seed=1) != halves


def test_an_odd_one_is_learned_on():
    assert [len(part) for part in vars(split_speakers(NAMES[:5])).values()] == [3, 2]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_four_speakers_are_refused(count):
    with pytest.raises(UserError, match=f"at least 4 validation speakers, found {count}"):
        split_speakers(NAMES[:count])


@pytest.fixture
def dump(tmp_path):
    speakers = {f"u{index:02d}": NAMES[index % 6] for index in range(24)}
    write_scp(tmp_path / "utt2spk", speakers)
    write_scp(tmp_path / "all_shape", dict.fromkeys(speakers, "100"))
    labelled = [utt for utt in speakers if utt not in ("u00", "u07")]
    write_scp(tmp_path / "ser_shape", dict.fromkeys(labelled, "100"))
    return tmp_path


def test_shapes_hold_the_utterances_of_their_speakers(dump):
    shapes = split_shapes(dump, dump / "all_shape", dump / "ser_shape", 0, dump / "data")
    speakers = read_scp(dump / "utt2spk")
    found = {part: {speakers[utt] for utt in read_scp(shape)} for part, shape in shapes.items()}
    assert not found["train"] & found["valid"]
    assert len(found["train"]) == len(found["valid"]) == 3
    everything = {utt for shape in shapes.values() for utt in read_scp(shape)}
    unlabelled_to_choose = {u for u in ("u00", "u07") if speakers[u] in found["valid"]}
    assert everything == speakers.keys() - unlabelled_to_choose
    described = describe(dump, shapes["train"], shapes["valid"])["speakers"]
    assert described == {
        "learn": sorted(found["train"]),
        "choose": sorted(found["valid"]),
    }


def test_an_utterance_without_a_speaker_is_named(dump):
    write_scp(dump / "all_shape", {"u00": "1", "u99": "1"})
    with pytest.raises(UserError, match="utt2spk has no utterance 'u99'"):
        split_shapes(dump, dump / "all_shape", dump / "all_shape", 0, dump / "data")


def test_missing_transcripts_become_empty_ones(tmp_path):
    write_scp(tmp_path / "text", {"u1": "one", "u3": "three"})
    write_scp(tmp_path / "shape", {"u1": "1", "u2": "1"})
    out = complete_text(tmp_path / "text", tmp_path / "shape", tmp_path / "out")
    assert read_scp(out, allow_empty_value=True) == {"u1": "one", "u2": ""}
    write_scp(tmp_path / "shape", {"u2": "1"})
    with pytest.raises(UserError, match="no utterance of .* has a transcript"):
        complete_text(tmp_path / "text", tmp_path / "shape", tmp_path / "out")


def test_dialogues_are_halved_whole(tmp_path):
    dialogs = {f"d{d}": [f"d{d}-t{t}" for t in range(3)] for d in range(7)}
    utts = [utt for turns in dialogs.values() for utt in turns]
    write_scp(tmp_path / "shape", dict.fromkeys(utts, "100"))
    written = split_dialogs(dialogs, tmp_path / "shape", 0, tmp_path / "out")
    halves = {part: list(read_scp(path)) for part, path in written.items()}
    assert [len(halves[part]) for part in ("train", "valid")] == [12, 9]
    assert sorted(halves["train"] + halves["valid"]) == utts
    names = [{utt.split("-")[0] for utt in half} for half in halves.values()]
    assert not names[0] & names[1]
    other = split_dialogs(dialogs, tmp_path / "shape", 1, tmp_path / "other")
    assert list(read_scp(other["train"])) != halves["train"]
    with pytest.raises(UserError, match="at least 4 validation dialogues, found 3"):
        split_dialogs(dict(list(dialogs.items())[:3]), tmp_path / "shape", 0, tmp_path / "few")
