import itertools
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_adaltm.bin import prepare_mini_espeak
from espnet_adaltm.data.corpora.espeak import Espeak, Settings, short_path
from espnet_adaltm.data.corpora.mini_espeak import (
    CHANNELS,
    SIZES,
    STAY,
    Options,
    channel_ceilings,
    labelled_subset,
    plan,
    prepare,
    render,
    write_audio,
)
from espnet_adaltm.data.corpora.mini_espeak_grammar import (
    EMOTIONS,
    SETS,
    cue_emotions,
    set_of,
    vocabulary,
)
from espnet_adaltm.data.corpora.mini_espeak_voices import apply_effort, perform, speaker_bank
from espnet_adaltm.data.datadir import read_data_dir
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json


@pytest.fixture(scope="module")
def full():
    return plan(Options("full"))


@pytest.fixture(scope="module")
def some():
    """Every fifth utterance of the smallest size: several speakers, emotions and channels."""
    return plan(Options("ci"))["train"][::5]


def everything(corpus):
    return [utterance for utterances in corpus.values() for utterance in utterances]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_speakers_and_order(size):
    corpus = plan(Options(size))
    speakers = {name: {u.speaker.name for u in corpus[name]} for name in SETS}
    assert tuple(len(corpus[name]) for name in SETS) == SIZES[size].utterances
    assert tuple(len(speakers[name]) for name in SETS) == SIZES[size].speakers
    assert not speakers["train"] & speakers["dev"]
    assert not speakers["train"] & speakers["test"]
    assert not speakers["dev"] & speakers["test"]
    for utterances in corpus.values():
        keys = [u.key for u in utterances]
        assert keys == sorted(set(keys), key=str.encode)
        names = [u.speaker.name for u in utterances]
        assert names == sorted(names)
        assert all(u.key == f"{u.speaker.name}-{u.dialog}-t{u.turn}" for u in utterances)


@pytest.mark.parametrize("size", SIZES)
def test_no_sentence_twice_and_every_word_in_train(size):
    corpus = plan(Options(size))
    texts = [u.text for u in everything(corpus)]
    assert len(texts) == len(set(texts))
    words = {name: {w for u in corpus[name] for w in u.text.split()} for name in SETS}
    assert words["dev"] | words["test"] <= words["train"]
    if size != "ci":
        assert words["train"] == vocabulary()


def test_grammar(full):
    assert 150 <= len(vocabulary()) <= 200
    lengths = [len(u.text.split()) for u in everything(full)]
    assert (min(lengths), max(lengths)) == (5, 8)
    for name, utterances in full.items():
        assert {set_of(u.text) for u in utterances} == {name}


def test_words_tell_the_emotion_in_their_channels_only(full):
    for utterance in everything(full):
        cues = cue_emotions(utterance.text)
        if utterance.channel == "voice":
            assert cues == {"neutral"}
        else:
            assert utterance.emotion in cues
            assert cues <= {utterance.emotion, "neutral"}


def test_prosody_tells_the_emotion_in_its_channels_only(full):
    shifts = defaultdict(list)
    for u in everything(full):
        cue = "none" if u.channel == "words" else u.emotion
        habit = u.speaker.habit
        shifts[cue].append((u.prosody.pitch - habit.pitch, u.prosody.rate / habit.rate))
    pitch, rate = ({k: np.mean(v, axis=0)[i] for k, v in shifts.items()} for i in (0, 1))
    assert pitch == pytest.approx(
        {"none": 0, "neutral": 0, "angry": 5.2, "happy": 31.2, "sad": -18.2}, abs=0.4
    )
    assert rate == pytest.approx(
        {"none": 1, "neutral": 1, "angry": 1.267, "happy": 1.052, "sad": 0.785}, abs=0.01
    )


def test_words_channel_prosody_is_the_same_for_all_emotions(full):
    words = [u for u in everything(full) if u.channel == "words"]
    for emotion in EMOTIONS:
        values = [u.prosody.pitch - u.speaker.habit.pitch for u in words if u.emotion == emotion]
        assert abs(np.mean(values)) < 4 * 3 / np.sqrt(len(values))


def test_marginals_and_channel_shares(full):
    for utterances in full.values():
        counts = Counter(u.emotion for u in utterances)
        for emotion in EMOTIONS:
            assert counts[emotion] / len(utterances) == pytest.approx(0.25, abs=0.03)
            channels = Counter(u.channel for u in utterances if u.emotion == emotion)
            for channel, share in zip(CHANNELS, (0.40, 0.45, 0.15)):
                assert channels[channel] == pytest.approx(share * counts[emotion], abs=1)


def test_dialogues_alternate_and_repeat_emotions(full):
    dialogs = defaultdict(dict)
    for u in everything(full):
        dialogs[u.dialog][u.turn] = u
    stays, moves = 0, Counter()
    per_speaker = Counter()
    for turns in dialogs.values():
        assert sorted(turns) == list(range(len(turns)))
        assert len(turns) <= 8
        ordered = [turns[i] for i in sorted(turns)]
        names = [u.speaker.name for u in ordered]
        assert len(set(names)) == 2
        assert all(a != b for a, b in itertools.pairwise(names))
        per_speaker.update(set(names))
        for a, b in itertools.pairwise(u.emotion for u in ordered):
            stays += a == b
            moves[a, b] += a != b
    total = stays + moves.total()
    # Four standard errors of a proportion of 8,925 transitions.
    assert stays / total == pytest.approx(STAY, abs=0.021)
    for pair in itertools.permutations(EMOTIONS, 2):
        assert moves[pair] / total == pytest.approx((1 - STAY) / 12, abs=0.01)
    assert min(per_speaker.values()) >= 3


def test_plan_depends_on_the_seed_only():
    assert plan(Options("ci")) == plan(Options("ci"))
    assert plan(Options("ci")) != plan(Options("ci", seed=1))


def test_speaker_bank_is_balanced_and_distinct():
    bank = speaker_bank(2025)
    assert len(bank) == len({s.voice for s in bank}) == 100
    assert [s.gender for s in bank] == ["f", "m"] * 50


def test_labelled_subset(full):
    train = full["train"]
    chosen = labelled_subset(train, 0.25, 2025)
    by_key = {u.key: u for u in train}
    totals = Counter(u.emotion for u in train)
    counts = Counter(by_key[key].emotion for key in chosen)
    assert counts == {emotion: round(0.25 * totals[emotion]) for emotion in EMOTIONS}
    speakers = Counter(by_key[key].speaker.name for key in chosen)
    assert len(speakers) == 64
    assert min(speakers.values()) >= 15
    assert labelled_subset(train, 0.1, 2025) < chosen
    assert labelled_subset(train, 0.25, 1) != chosen
    assert labelled_subset(train, 1.0, 2025) == set(by_key)


def test_channel_ceilings_closed_form():
    emotions = {"a": "sad", "b": "happy", "c": "sad", "d": "sad", "e": "angry", "f": "happy"}
    channels = dict(zip("abcdef", ("voice", "voice", "words", "words", "words", "both")))
    # The voice: a, b, f and the two sad of c, d, e. The words: c, d, e, f and one of a, b.
    assert channel_ceilings(emotions, channels) == pytest.approx({"voice": 5 / 6, "words": 5 / 6})
    emotions["d"] = "happy"
    assert channel_ceilings(emotions, channels) == pytest.approx({"voice": 4 / 6, "words": 5 / 6})
    assert channel_ceilings({"f": "sad"}, channels) == {"voice": 1.0, "words": 1.0}


def test_channel_ceilings_of_the_test_set(full):
    test = full["test"]
    result = channel_ceilings({u.key: u.emotion for u in test}, {u.key: u.channel for u in test})
    assert result["voice"] == pytest.approx(0.55 + 0.45 / 4, abs=0.01)
    assert result["words"] == pytest.approx(0.60 + 0.40 / 4, abs=0.01)


def test_channel_ceilings_errors():
    with pytest.raises(UserError, match="empty"):
        channel_ceilings({}, {})
    with pytest.raises(UserError, match="u1 has None"):
        channel_ceilings({"u1": "sad"}, {})


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*.wav")}


def test_same_bytes_for_any_workers_and_order(some, tmp_path):
    assert write_audio(some, tmp_path / "one", num_workers=1)
    assert write_audio(some[::-1], tmp_path / "two", num_workers=2)
    one = read_bytes(tmp_path / "one")
    assert sorted(one) == sorted(f"{u.key}.wav" for u in some)
    assert one == read_bytes(tmp_path / "two")
    # The words differ and so must the samples.
    assert len(set(one.values())) == len(one)


def test_audio_is_made_once(some, tmp_path):
    first = some[:2]
    assert write_audio(first, tmp_path, 1)
    assert not write_audio(first, tmp_path, 1)
    path = next(tmp_path.rglob("*.wav"))
    expected = path.read_bytes()
    path.unlink()
    assert write_audio(first, tmp_path, 1)
    assert path.read_bytes() == expected
    changed = [replace(first[0], text="they counted the regular paper"), first[1]]
    assert write_audio(changed, tmp_path, 1)


def test_state_of_the_synthesiser_does_not_leak(some):
    engine = Espeak()
    before = render(some[0], engine)
    for other in some[1:4]:
        render(other, engine)
    np.testing.assert_array_equal(render(some[0], engine), before)


def test_emotion_is_audible_in_the_samples():
    engine = Espeak()
    speaker = speaker_bank(2025)[1]
    base = plan(Options("ci"))["train"][0]
    samples = {}
    for emotion in EMOTIONS:
        rng = random.Random(0)
        prosody = perform(speaker.habit, emotion, rng)
        said = replace(base, speaker=speaker, text="he opened the plain folder", prosody=prosody)
        samples[emotion] = render(said, engine).astype(float)
    seconds = {emotion: len(x) / 16000 for emotion, x in samples.items()}
    assert seconds["angry"] < 0.9 * seconds["neutral"] < 0.9 * seconds["sad"] / 1.1
    assert samples["angry"].std() > 1.2 * samples["neutral"].std() > 1.4 * samples["sad"].std()


def test_apply_effort_tilts_and_keeps_power():
    time = np.arange(16000) / 16000
    low, high = np.sin(2 * np.pi * 100 * time), np.sin(2 * np.pi * 7000 * time)
    tilted = apply_effort(low + high, 0.5)
    assert np.mean(tilted**2) == pytest.approx(1.0, rel=1e-6)
    # The part in phase with the input is 1 - k cos(w): 1.46 at 7 kHz, 0.50 at 100 Hz.
    ratio = np.mean(tilted * high) / np.mean(tilted * low)
    assert ratio == pytest.approx(2.922, rel=0.01)
    assert not apply_effort(np.zeros(5), 0.3).any()


def test_unknown_voice_is_named():
    with pytest.raises(UserError, match="no-such-voice"):
        Espeak().speak("hello", "no-such-voice", Settings(175, 100, 50, 50))


def test_long_data_path_gets_a_link(tmp_path):
    deep = tmp_path.joinpath(*["folder"] * 30, "espeak-ng-data")
    deep.mkdir(parents=True)
    (deep / "phontab").write_text("x")
    assert (short_path(deep) / "phontab").read_text() == "x"
    assert len(str(short_path(deep))) < 120
    assert short_path(tmp_path, longest=1000) == tmp_path


def test_prepare_from_the_command_line(tmp_path, capsys):
    arguments = ["--size", "ci", "--out_data", tmp_path / "data", "--audio_dir", tmp_path / "wav"]
    prepare_mini_espeak.main([str(a) for a in arguments])
    assert "train: 80 utterances, 4 speakers, 40 with emotion" in capsys.readouterr().out
    corpus = plan(Options("ci"))
    for name, count in zip(SETS, (80, 24, 32)):
        data = read_data_dir(tmp_path / "data" / name)
        assert len(data.utterances) == len(data.text) == len(data.utt2channel) == count
        assert len(data.utt2emo) == (40 if name == "train" else count)
        planned = {u.key: u for u in corpus[name]}
        assert all(planned[key].emotion == emotion for key, emotion in data.utt2emo.items())
        assert set(data.utt2gender.values()) == {"f", "m"}
        lengths, clipped = [], 0
        for path in data.wav_scp.values():
            info = soundfile.info(path)
            assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
            lengths.append(info.duration)
            clipped += np.abs(soundfile.read(path)[0]).max() > 0.999
        assert 1.7 < np.mean(lengths) < 2.4
        assert clipped <= 0.01 * count
    assert read_json(tmp_path / "data" / "corpus.json")["sets"]["test"]["utterances"] == 32


def test_labelled_share_is_an_option_and_audio_is_kept(tmp_path):
    prepare(Options("ci"), tmp_path / "a", tmp_path / "wav", 1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "wav").rglob("*.wav")}
    summary = prepare(Options("ci", labelled_share=0.25), tmp_path / "b", tmp_path / "wav", 1)
    assert summary["train"]["labelled"] == pytest.approx(20, abs=2)
    assert summary["test"]["labelled"] == 32
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "wav").rglob("*.wav")}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--labelled_share", "0"], "--labelled_share 0.0"),
        (["--voice_share", "0.8"], "channel shares"),
        (["--num_workers", "0"], "--num_workers 0"),
    ],
)
def test_bad_options_end_in_one_line(tmp_path, capsys, extra, message):
    arguments = ["--size", "ci", "--out_data", tmp_path / "data", "--audio_dir", tmp_path / "wav"]
    with pytest.raises(SystemExit) as caught:
        prepare_mini_espeak.main([str(a) for a in arguments] + extra)
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "data").exists()


def test_unknown_size():
    with pytest.raises(UserError, match="--size huge"):
        Options("huge")
