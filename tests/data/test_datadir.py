import pytest

from espnet_adaltm.data.datadir import invert, read_data_dir, write_data_dir
from espnet_adaltm.errors import UserError

WAVS = {"a-1": "1.wav", "a-2": "2.wav", "b-1": "3.wav"}
SPEAKERS = {"a-1": "a", "a-2": "a", "b-1": "b"}


@pytest.fixture
def folder(tmp_path):
    """A valid directory, to be spoiled file by file."""
    path = tmp_path / "train"
    write_data_dir(path, WAVS, SPEAKERS, text={"a-1": "zażółć gęślą", "b-1": "hi"})
    return path


def spoil(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def refused(folder, *culprits):
    with pytest.raises(UserError) as caught:
        read_data_dir(folder)
    for culprit in culprits:
        assert culprit in str(caught.value)


def test_round_trip_with_every_table(tmp_path):
    written = write_data_dir(
        tmp_path / "x",
        {"rec": "r.wav"},
        {"u2": "b", "u1": "a"},
        text={"u1": "one"},
        utt2emo={"u2": "sad"},
        segments={"u1": "rec 0 1.5", "u2": "rec 2 -1"},
        utt2soft={"u2": "sad=0.6 happy=0.4"},
        utt2dialog={"u1": "d 0", "u2": "d 1"},
        utt2channel={"u1": "voice"},
        utt2gender={"u1": "f"},
        utt2lang={"u1": "pl"},
    )
    data = read_data_dir(tmp_path / "x")
    assert data == written
    assert data.utterances == ["u1", "u2"]
    assert data.segments == {"u1": ("rec", 0.0, 1.5), "u2": ("rec", 2.0, -1.0)}
    assert data.extras == {"utt2lang": {"u1": "pl"}}
    assert (tmp_path / "x/spk2utt").read_text() == "a u1\nb u2\n"
    assert data.spk2utt == {"a": ["u1"], "b": ["u2"]}


def test_empty_tables_are_not_written(tmp_path):
    write_data_dir(tmp_path / "x", WAVS, SPEAKERS, text={}, utt2emo=None)
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"wav.scp", "utt2spk", "spk2utt"}
    assert read_data_dir(tmp_path / "x").text == {}


def test_writing_replaces_the_old_directory(folder):
    write_data_dir(folder, {"z": "z.wav"}, {"z": "s"})
    assert read_data_dir(folder).utterances == ["z"]
    assert not (folder / "text").exists()


def test_sorted_as_bytes():
    assert list(invert({"é": "s", "z": "s", "Z": "t"})["s"]) == ["z", "é"]


def test_missing_directory(tmp_path):
    refused(tmp_path / "nope", "nope", "data stage")


@pytest.mark.parametrize("name", ["wav.scp", "utt2spk"])
def test_missing_required_file(folder, name):
    (folder / name).unlink()
    refused(folder, str(folder / name), "missing")


@pytest.mark.parametrize("name", ["wav.scp", "utt2spk"])
def test_empty_required_file(folder, name):
    spoil(folder, name, "")
    refused(folder, str(folder / name), "no entries")


@pytest.mark.parametrize("name", ["text", "utt2emo", "utt2spk", "utt2lang"])
def test_utterance_without_audio(folder, name):
    spoil(folder, name, "a-1 x\na-2 x\nb-1 x\nghost x\n")
    refused(folder, f"{name}:4", "'ghost'", "wav.scp")


def test_utterance_without_speaker(folder):
    spoil(folder, "utt2spk", "a-1 a\nb-1 b\n")
    refused(folder, "utt2spk", "'a-2'", "no speaker")


def test_empty_transcript(folder):
    spoil(folder, "text", "a-1 hello\na-2 \n")
    refused(folder, "text:2", "'a-2'", "empty transcript")


def test_text_that_is_not_utf8(folder):
    spoil(folder, "text", b"a-1 hello\na-2 caf\xe9\n")
    refused(folder, "text:2", "UTF-8")


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        ("a-1 x\na-1 y\n", ("text:2", "duplicate", "'a-1'")),
        ("a-2 x\na-1 y\n", ("text:2", "'a-1'", "sort")),
        ("a-1 x\n\na-2 y\n", ("text:2", "empty line")),
    ],
)
def test_duplicate_unsorted_and_blank_lines(folder, content, culprits):
    spoil(folder, "text", content)
    refused(folder, *culprits)


@pytest.mark.parametrize(
    "content", ["a a-1\nb b-1\n", "a a-1 a-2\nb b-1\nc b-1\n", "a a-1 a-2 a-2\nb b-1\n"]
)
def test_contradicting_spk2utt(folder, content):
    spoil(folder, "spk2utt", content)
    refused(folder, "spk2utt", "utt2spk", "speaker")


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ("rec 0", "expected"),
        ("rec 2 1", "start < end"),
        ("rec -1 1", "start < end"),
        ("rec nan 1", "start < end"),
        ("other 0 1", "'other'"),
    ],
)
def test_malformed_segments(tmp_path, line, culprit):
    with pytest.raises(UserError, match="utterance 'u'") as caught:
        write_data_dir(tmp_path / "x", {"rec": "r.wav"}, {"u": "s"}, segments={"u": line})
    assert culprit in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "entry"),
    [
        ("utt2emo", "very sad"),
        ("utt2soft", "sad=0.5 happy=0.4"),
        ("utt2soft", "sad"),
        ("utt2dialog", "d"),
        ("utt2dialog", "d first"),
    ],
)
def test_malformed_entries_leave_nothing(tmp_path, table, entry):
    with pytest.raises(UserError, match=f"{table}: utterance 'a-1'"):
        write_data_dir(tmp_path / "x", WAVS, SPEAKERS, **{table: {"a-1": entry}})
    assert list(tmp_path.iterdir()) == []


def test_same_turn_twice(tmp_path):
    turns = {"a-1": "d 0", "b-1": "d 0"}
    with pytest.raises(UserError, match="'b-1'.*turn 0 of dialogue 'd' is 'a-1'"):
        write_data_dir(tmp_path / "x", WAVS, SPEAKERS, utt2dialog=turns)


@pytest.mark.parametrize(("key", "value"), [("a 1", "x.wav"), ("a", "x\ny")])
def test_ids_and_values_that_would_break_the_file(tmp_path, key, value):
    with pytest.raises(UserError, match="wav.scp"):
        write_data_dir(tmp_path / "x", {key: value}, {key: "s"})
    assert list(tmp_path.iterdir()) == []
