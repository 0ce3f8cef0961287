import pytest

from espnet_adaltm.bin import leaky_split as program
from espnet_adaltm.data.datadir import read_data_dir, write_data_dir
from espnet_adaltm.data.leaky_split import NAME, WARNING, choose, leaky_split
from espnet_adaltm.errors import UserError


def make(folder, speakers, each=20, **more):
    utts = {f"{s}-{i:02d}": s for s in speakers for i in range(each)}
    wavs = {utt: f"{utt}.wav" for utt in utts}
    emotions = {utt: ("sad", "happy")[int(utt[-1]) % 2] for utt in utts}
    return write_data_dir(folder, wavs, utts, dict.fromkeys(utts, "a b"), emotions, **more).path


def test_a_tenth_of_every_speaker_is_put_aside(tmp_path):
    sets = [make(tmp_path / "train", ["a", "b"]), make(tmp_path / "test", ["c"], 30)]
    leaky_split(sets, tmp_path / "out")
    train, test = (read_data_dir(tmp_path / "out" / name) for name in ("train", NAME))
    assert {spk: len(utts) for spk, utts in train.spk2utt.items()} == {"a": 18, "b": 18, "c": 27}
    assert {spk: len(utts) for spk, utts in test.spk2utt.items()} == {"a": 2, "b": 2, "c": 3}
    assert not set(train.utterances) & set(test.utterances)
    assert test.wav_scp == {utt: f"{utt}.wav" for utt in test.utterances}
    assert set(test.text) == set(test.utt2emo) == set(test.utterances)
    first = (tmp_path / "out" / NAME / "utt2spk").read_bytes()
    leaky_split(reversed(sets), tmp_path / "out")
    assert (tmp_path / "out" / NAME / "utt2spk").read_bytes() == first


def test_shares_and_seeds():
    utt2spk = {f"a{i}": "a" for i in range(7)} | {"b1": "b", "b2": "b", "c1": "c"}
    chosen = choose(utt2spk)
    assert sorted(utt[0] for utt in chosen) == ["a", "b"]  # the only one of c stays
    assert len(choose(utt2spk, 0.5)) == 4 + 1
    assert len({frozenset(choose(utt2spk, 0.3, seed)) for seed in range(8)}) > 1


def test_segments_of_both_sides_keep_their_recording(tmp_path):
    whole = make(tmp_path / "whole", ["a"], 10)
    utts = {f"r-{i}": "r" for i in range(10)}
    segments = {utt: f"tape {i} {i + 0.5}" for i, utt in enumerate(utts)}
    cut = write_data_dir(tmp_path / "cut", {"tape": "tape.wav"}, utts, segments=segments).path
    leaky_split([whole, cut], tmp_path / "out")
    for name in ("train", NAME):
        data = read_data_dir(tmp_path / "out" / name)
        assert data.wav_scp["tape"] == "tape.wav"
        for utt, (recording, start, end) in data.segments.items():
            index = float(utt.partition("-")[2])
            expected = ("tape", index, index + 0.5) if utt[0] == "r" else (utt, 0.0, -1.0)
            assert (recording, start, end) == expected
    assert len(read_data_dir(tmp_path / "out" / NAME).utterances) == 2


def test_what_cannot_be_split_is_refused(tmp_path):
    alone = make(tmp_path / "alone", ["a", "b"], 1)
    with pytest.raises(UserError, match="no speaker has two utterances"):
        leaky_split([alone], tmp_path / "out")
    first, second = make(tmp_path / "one", ["a"]), make(tmp_path / "two", ["a"])
    (second / "wav.scp").write_text((second / "wav.scp").read_text().replace(".wav", ".flac"))
    with pytest.raises(UserError, match="'a-00' is 'a-00.flac', in another set it is 'a-00.wav'"):
        leaky_split([first, second], tmp_path / "out")
    with pytest.raises(UserError, match="--share 1.0 does not lie between 0 and 1"):
        leaky_split([first], tmp_path / "out", share=1.0)


def test_the_program_says_what_it_is(tmp_path, capsys):
    folder = make(tmp_path / "all", ["a", "b"])
    program.main(["--sets", str(folder), "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "published_leaky: 4 utterances of 2 speakers" in shown
    assert WARNING in shown
