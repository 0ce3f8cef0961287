"""MSP-Podcast on miniatures of its releases, with every fault that the real ones have."""

import shutil

import numpy as np
import pytest
import soundfile

from espnet_adaltm.bin import make_miniature, prepare_labels, prepare_msp_podcast
from espnet_adaltm.data.corpora import msp_podcast
from espnet_adaltm.data.corpora.miniature_msp import (
    LAYOUTS,
    write_json_twins,
    write_labels_txt,
    write_msp_podcast,
)
from espnet_adaltm.data.corpora.msp_podcast import prepare
from espnet_adaltm.data.corpora.msp_podcast_options import Options
from espnet_adaltm.data.corpora.msp_podcast_release import (
    VOTED,
    locate,
    read_turns,
    read_votes,
)
from espnet_adaltm.data.corpora.msp_podcast_release import (
    test3_stems as stems_of_test3,
)
from espnet_adaltm.data.corpora.transcripts import clean, read_transcripts
from espnet_adaltm.data.datadir import read_data_dir
from espnet_adaltm.data.dialogs import read_dialogs
from espnet_adaltm.data.labels import load_labels
from espnet_adaltm.errors import UserError

SETS = ("train", "dev", "test1", "test2", "test3")


@pytest.fixture(scope="module", params=["1.8", "1.12", "2.0"])
def release(request, tmp_path_factory):
    """A miniature and the rows of its label file."""
    root = tmp_path_factory.mktemp("msp") / request.param
    return root, write_msp_podcast(root, request.param, 120), request.param


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("msp") / "1.12"
    return root, write_msp_podcast(root, "1.12", 120)


@pytest.fixture
def copy(small, tmp_path):
    """One that a test may spoil."""
    root = tmp_path / "release"
    shutil.copytree(small[0], root)
    return root


def read(folder):
    return {name: read_data_dir(folder / name) for name in SETS if (folder / name).exists()}


def by_code(rows, codes):
    """Stems of the rows with these codes whose recording exists (the first one's is missing)."""
    return {row.stem for row in rows[1:] if row.code in codes}


def test_every_layout_gives_the_official_sets(release, tmp_path):
    root, rows, version = release
    prepare(root, tmp_path, Options(version=version if version != "1.8" else ""))
    sets = read(tmp_path)
    kept = by_code(rows, "ACDFHNSU")
    names = {"Train": "train", LAYOUTS[version].valid: "dev", "Test1": "test1", "Test2": "test2"}
    for split, name in names.items():
        expected = {row.stem for row in rows if row.split == split} & kept
        assert set(sets[name].utterances) == set(sets[name].utt2emo) == expected
        assert len(set(sets[name].utt2emo.values())) == 8
    emotions = {"A": "anger", "N": "neutral", "U": "surprise"}
    everything = {u: e for name in SETS[:4] for u, e in sets[name].utt2emo.items()}
    for row in rows[1:]:
        if row.code in emotions:
            assert everything[row.stem] == emotions[row.code]
    assert len(sets["test3"].utterances) == 6
    assert sets["test3"].utt2emo == {}
    # Files are read whatever their channels and rates.
    kinds = {
        (soundfile.info(p).samplerate, soundfile.info(p).channels)
        for data in sets.values()
        for p in data.wav_scp.values()
    }
    assert {(16000, 1), (44100, 2), (8000, 1)} >= kinds
    assert (16000, 1) in kinds


def test_what_is_left_out_is_told_with_its_reason(small, tmp_path):
    root, rows = small
    prepare(root, tmp_path, Options(drop_empty_text=True))
    sets = read(tmp_path)
    left = dict(
        line.split("\t")[::2] for line in (tmp_path / "left_out.tsv").read_text().splitlines()[1:]
    )
    assert left[rows[0].stem] == "no audio"
    spoken = {row.stem for row in rows if row.text and not row.text.startswith("[")}
    for row in rows[1:]:
        if row.code in "OX":
            assert left[row.stem] == f"EmoClass {row.code}"
        elif row.stem not in spoken:
            assert left[row.stem] == "no transcript"
        else:
            assert row.stem not in left
    kept = {utt for name in SETS[:4] for utt in sets[name].utterances}
    assert kept == by_code(rows, "ACDFHNSU") & spoken
    for name in SETS[:4]:
        assert sets[name].text.keys() == sets[name].utt2emo.keys()
    report = (tmp_path / "preparation.md").read_text()
    assert "1 of 120 labelled recordings are missing, the first is MSP-PODCAST_0001_0001" in report
    assert "only turns with a transcript" in report


def test_unknown_speakers_are_nobody_and_shared_ones_are_told(small, tmp_path):
    root, rows = small
    prepare(root, tmp_path / "keep")
    sets = read(tmp_path / "keep")
    unknown = {row.stem for row in rows if row.speaker == "Unknown"}
    train = sets["train"].utt2spk
    assert {u for u, s in train.items() if s == "unknown"} == unknown & train.keys()
    assert "spk1" in set(train.values()) & set(sets["test2"].utt2spk.values())
    report = (tmp_path / "keep" / "preparation.md").read_text()
    of_train = sum(speaker == "spk1" for speaker in train.values())
    assert "train and test2 share 1 speaker(s): " in report
    prepare(root, tmp_path / "drop", Options(shared_speakers="drop"))
    dropped = read(tmp_path / "drop")
    assert "spk1" not in dropped["train"].utt2spk.values()
    assert len(train) - len(dropped["train"].utt2spk) == of_train > 0
    assert dropped["test2"].utt2spk == sets["test2"].utt2spk


@pytest.mark.parametrize("classes", [4, 8, 9, 10])
def test_classes_and_their_order(small, tmp_path, classes):
    root, rows = small
    prepare(root, tmp_path, Options(classes=classes))
    sets = read(tmp_path)
    codes = "ACDFHNSUOX"[:classes] if classes > 4 else "AHNS"
    kept = {utt for name in SETS[:4] for utt in sets[name].utt2emo}
    assert kept == by_code(rows, codes)
    words = ["--out", tmp_path / "labels.json", "--scheme", tmp_path / "label_scheme.json"]
    words += ["--sets", *(f"{name}={tmp_path / name}" for name in SETS)]
    prepare_labels.main([str(word) for word in words])
    labels = load_labels(tmp_path / "labels.json")
    order = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
    order += ("other", "no_agreement")
    expected = order[:classes] if classes > 4 else ("anger", "happiness", "neutral", "sadness")
    assert labels.labels == expected
    assert "".join(labels.codes) == codes
    assert f"{classes} classes" in labels.policy
    assert ("left out" in labels.policy) == (classes < 10)


def test_words_of_turns_without_a_class_can_stay(small, tmp_path):
    root, rows = small
    prepare(root, tmp_path, Options(left_out="words"))
    sets = read(tmp_path)
    of_training = {row.stem for row in rows[1:] if row.split in ("Train", "Development")}
    other = by_code(rows, "OX")
    heard = {*sets["train"].utterances, *sets["dev"].utterances}
    assert other & of_training <= heard
    labelled = {u for name in SETS for u in sets[name].utt2emo}
    assert not other & labelled
    assert not other & {*sets["test1"].utterances, *sets["test2"].utterances}


def test_distributions_of_the_annotators(small, tmp_path):
    root, rows = small
    prepare(root, tmp_path, Options(targets="votes", left_out="votes"))
    sets = read(tmp_path)
    train, dev = sets["train"], sets["dev"]
    assert train.utt2soft.keys() == train.utt2emo.keys()
    assert dev.utt2soft.keys() == dev.utt2emo.keys()
    found = {row.stem: row for row in rows}
    for utt, entry in train.utt2soft.items():
        row = found[utt]
        shares = dict(part.split("=") for part in entry.split())
        if row.code in "ACDFHNSU":  # three votes of five
            assert shares[train.utt2emo[utt]] == "0.600000"
            assert len(shares) == 3
        elif row.code == "O":  # two others are for classes
            assert sorted(shares.values()) == ["0.500000", "0.500000"]
        else:  # two, two and one
            assert sorted(shares.values()) == ["0.200000", "0.400000", "0.400000"]
            assert shares[train.utt2emo[utt]] == "0.400000"
    assert (
        by_code(rows, "OX") & {r.stem for r in rows if r.split == "Train"} <= train.utt2emo.keys()
    )
    assert not by_code(rows, "OX") & {*dev.utterances, *sets["test1"].utterances}


def test_annotations_of_every_layout_are_the_same(tmp_path):
    counts = []
    for number, version in enumerate(("1.12", "2.0", "1.12", "1.12")):
        root = tmp_path / str(number)
        rows = write_msp_podcast(root, version, 60, linked=True)
        if number == 2:
            write_json_twins(root, version, rows)
        if number == 3:
            write_labels_txt(root, version, rows)
        where = locate(root)
        turns = read_turns(where.consensus)
        assert [(turn.stem, turn.code) for turn in turns] == [(r.stem, r.code) for r in rows]
        counts.append(read_votes(where.annotations, [turn.stem for turn in turns]))
    assert all(np.array_equal(counts[0], other) for other in counts[1:])
    assert (counts[0].sum(1) == 5).all()
    place = next(i for i, row in enumerate(rows) if row.code == "O")
    assert counts[0][place, VOTED.index("O")] == 3


def test_dialogues_are_shows_in_order(small, tmp_path):
    root, rows = small
    prepare(root, tmp_path)
    data = read(tmp_path)["train"]
    shows = read_dialogs(tmp_path / "train", data.utterances, "given").turns
    assert shows == read_dialogs(tmp_path / "train", data.utterances, "show").turns
    # Of the 12 turns of the first show, all of train, those with O and X are missing.
    places = [data.utt2dialog[utt] for utt in shows["MSP-PODCAST_0001"]]
    kept = [i for i, row in enumerate(rows[:12]) if row.code not in "OX" and i > 0]
    assert places == [f"MSP-PODCAST_0001 {i}" for i in kept]
    with pytest.raises(UserError, match="not one of the 6 utterances has a show"):
        read_dialogs(tmp_path / "test3", read_data_dir(tmp_path / "test3").utterances, "show")


def test_test3_is_found_in_rows_lists_and_names(copy, tmp_path):
    labels = copy / "Labels" / "labels_consensus.csv"
    audio = copy / "Audios"
    (audio / "MSP-PODCAST_test3_0001.wav").rename(audio / "MSP-PODCAST_9001_0001.wav")
    (audio / "MSP-PODCAST_test3_0002.wav").rename(audio / "MSP-PODCAST_9001_0002.wav")
    with open(labels, "a") as handle:  # in some releases with something for a label
        handle.write("MSP-PODCAST_9001_0001.wav,N,1,1,1,Unknown,Unknown,Test3\n")
    with open(copy / "Partitions.txt", "a") as handle:
        handle.write("Test3; MSP-PODCAST_9001_0002.wav\nTest3; MSP-PODCAST_9001_0009.wav\n")
    where = locate(copy)
    turns = read_turns(where.consensus)
    assert turns[-1].code == ""
    listed = {path.stem: path.name for path in audio.glob("*.wav")}
    found = stems_of_test3(where, turns, listed)
    assert found == {
        *(f"MSP-PODCAST_test3_{n:04d}" for n in range(3, 7)),
        "MSP-PODCAST_9001_0001",
        "MSP-PODCAST_9001_0002",
    }
    prepare(copy, tmp_path / "data")
    assert set(read(tmp_path / "data")["test3"].utterances) == found
    for path in audio.iterdir():
        if path.stem in found:
            path.unlink()
    prepare(copy, tmp_path / "without")
    assert not (tmp_path / "without" / "test3").exists()
    with pytest.raises(UserError, match="no recordings of Test3: give --test3 false"):
        prepare(copy, tmp_path / "wanted", Options(test3="true"))


def test_label_file_of_another_release(copy, monkeypatch):
    monkeypatch.setattr(msp_podcast, "_ROWS", {"1.11": 60, "2.0": 121})
    with pytest.raises(
        UserError, match=r"120 labelled turns, as release 2.0.*--msp_version is 1.11"
    ):
        prepare(copy, copy / "data", Options(version="1.11"))
    prepare(copy, copy / "data", Options(version="2.0"))
    monkeypatch.setattr(msp_podcast, "_ROWS", {"1.11": 60, "2.0": 300})
    prepare(copy, copy / "data", Options(version="2.0"))
    assert "release 2.0 has about 300" in (copy / "data" / "preparation.md").read_text()


def test_audio_of_another_release(copy):
    for path in sorted((copy / "Audios").glob("MSP-PODCAST_0002*")):
        path.unlink()
    told = r"13 of 120 labelled recordings are missing.*of one release, or allow it"
    with pytest.raises(UserError, match=told):
        prepare(copy, copy / "data")
    prepare(copy, copy / "data", Options(max_missing=13))
    labels = copy / "Labels" / "labels_consensus.csv"
    rows = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join(rows[:90]))
    with pytest.raises(UserError, match=r"31 recordings have no label.*belongs to another release"):
        prepare(copy, copy / "data", Options(max_missing=13))


def test_two_label_files_are_refused(copy):
    labels = copy / "Labels"
    shutil.copy(labels / "labels_consensus.csv", labels / "labels_concensus.csv")
    with pytest.raises(UserError, match="two label files, probably of two releases"):
        prepare(copy, copy / "data")


def test_contradicting_partitions_are_told(copy):
    path = copy / "Partitions.txt"
    path.write_text(
        path.read_text().replace("Train; MSP-PODCAST_0001_0008", "Test1; MSP-PODCAST_0001_0008")
    )
    prepare(copy, copy / "data")
    report = (copy / "data" / "preparation.md").read_text()
    assert "Partitions.txt puts 1 turns into other sets than labels_consensus.csv" in report
    assert "MSP-PODCAST_0001_0008" in read(copy / "data")["train"].utterances


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("FileName,EmoClass", "Name,EmoClass", r"csv:1: no column FileName, found Name"),
        (",F,", ",Q,", r"csv:\d+: MSP-PODCAST\S+ has the unknown EmoClass 'Q'"),
        (",Test1\n", ",Test9\n", r"csv:\d+: \S+ is in the unknown split 'Test9'"),
        ("MSP-PODCAST_0001_0015.wav", "MSP-PODCAST_0001_0008.wav", r"0001_0008 is listed twice"),
        (".wav,C,", ",C,", r"csv:\d+: 'MSP-PODCAST_\S+' is no name of a recording"),
    ],
)
def test_malformed_labels_are_named(copy, old, new, message):
    path = copy / "Labels" / "labels_consensus.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        prepare(copy, copy / "data")


def test_missing_parts_are_named(copy, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        prepare(tmp_path / "nowhere", tmp_path / "data")
    shutil.rmtree(copy / "Transcripts")
    with pytest.raises(UserError, match="no Transcripts/, which --drop_empty_text needs"):
        prepare(copy, copy / "data", Options(drop_empty_text=True))
    prepare(copy, copy / "data")
    assert read(copy / "data")["train"].text == {}
    (copy / "Labels" / "labels_detailed.csv").unlink()
    with pytest.raises(UserError, match="no labels_detailed.csv.*--targets votes needs"):
        prepare(copy, copy / "data", Options(targets="votes"))
    shutil.rmtree(copy / "Labels")
    with pytest.raises(UserError, match=r"no Labels/labels_consensus.csv"):
        prepare(copy, copy / "data")
    shutil.rmtree(copy / "Audios")
    with pytest.raises(UserError, match="neither Audios/ nor Audio/"):
        prepare(copy, copy / "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 5}, "classes 5 is none of 4, 8, 9, 10"),
        ({"version": "3"}, "version '3' is none of 1.11, 1.12, 2.0"),
        ({"left_out": "votes"}, "needs --targets votes"),
        ({"classes": 10, "targets": "votes"}, "no annotator votes for X"),
    ],
)
def test_choices_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        Options(**options)


def test_sizes_are_compared_with_published_ones(small, tmp_path):
    prepare(small[0], tmp_path, Options(version="1.12", drop_empty_text=True))
    train = len(read(tmp_path)["train"].utterances)
    report = (tmp_path / "preparation.md").read_text()
    assert f"train: {train} utterances, published are 89752" in report
    assert "test1 + test2: " in report


def test_the_programs(tmp_path, capsys):
    make_miniature.main(["msp_podcast", "--out", str(tmp_path / "m"), "--turns", "60"])
    words = ["--msp_root", tmp_path / "m", "--msp_version", "1.12", "--out_data", tmp_path / "d"]
    prepare_msp_podcast.main([*map(str, words), "--num_workers", "1"])
    told = capsys.readouterr().out
    assert f"train: {len(read(tmp_path / 'd')['train'].utterances)} utterances" in told
    with pytest.raises(SystemExit):
        make_miniature.main(["msp_podcast", "--out", str(tmp_path / "m")])
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "cleaned"),
    [
        ("I don\u2019t KNOW, really.", "i don't know really"),
        ("[laughter] 'Cause it's <noise> 50-50!", "cause it's 50 50"),
        ("[LAUGHTER]", ""),
        ("well -- the dogs' bowl_", "well the dogs bowl"),
        ("caf\u00e9", "caf\u00e9"),
    ],
)
def test_words(said, cleaned):
    assert clean(said) == cleaned


def test_transcripts_are_read_in_order_by_any_number_of_processes(tmp_path, monkeypatch):
    stems = [f"u{number}" for number in range(7)]
    for number, stem in enumerate(stems[:5]):
        (tmp_path / f"{stem}.txt").write_bytes(f"Word {number}.\n".encode())
    (tmp_path / "u5.txt").write_bytes(b"na\xefve \x93quoted\x94")  # Windows' encoding
    monkeypatch.setattr("espnet_adaltm.data.corpora.transcripts._CHUNK", 3)
    texts = read_transcripts(tmp_path, stems, 2)
    assert list(texts) == stems
    assert list(texts.values()) == [
        "word 0", "word 1", "word 2", "word 3", "word 4", "na\u00efve quoted", None,
    ]  # fmt: skip
    assert read_transcripts(tmp_path, stems) == texts
    (tmp_path / "u6.txt").write_bytes(b"\xff\xfe\0\1")
    with pytest.raises(UserError, match=r"u6.txt is no text file"):
        read_transcripts(tmp_path, stems)
