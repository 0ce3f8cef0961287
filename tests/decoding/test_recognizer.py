"""EmotionRecognizer: whatever is given and however, the same answer."""

import logging

import numpy as np
import pytest
import soundfile
import torch
from decoding_common import LABELS, make_scene
from export_common import SPEAKERS, make_mtlser
from transformers import WavLMModel

import espnet_adaltm
from espnet_adaltm.backbone.loading import save_encoder
from espnet_adaltm.decoding.sources import open_clips
from espnet_adaltm.decoding.systems import load_system
from espnet_adaltm.decoding.windows import cut_windows
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import write_scp
from espnet_adaltm.models.ctc import collapse
from espnet_adaltm.recognizer import EmotionRecognizer, Prediction

SIZES = {"a": 16_000, "b": 5_000, "c": 9_000, "d": 100}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    torch.set_num_threads(1)
    root = make_scene(tmp_path_factory.mktemp("recognizer"))
    system = load_system(root / "merge", asr_expert=root / "asr")
    EmotionRecognizer(system).save_pretrained(root / "export")
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        soundfile.write(root / f"{name}.wav", 0.1 * rng.standard_normal(size), 16_000)
    return root


@pytest.fixture(scope="module")
def recognizer(scene):
    return EmotionRecognizer.from_pretrained(scene / "export")


def values(prediction):
    return list(prediction.probabilities.values())


def same(first, second, tolerance=1e-6):
    assert (first.emotion, first.text, first.speaker) == (
        second.emotion,
        second.text,
        second.speaker,
    )
    assert values(first) == pytest.approx(values(second), abs=tolerance)
    assert len(first.timeline) == len(second.timeline)


def test_the_package_gives_it_by_name():
    assert espnet_adaltm.EmotionRecognizer is EmotionRecognizer
    assert espnet_adaltm.Prediction is Prediction
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        espnet_adaltm.Other  # noqa: B018


def test_an_export_says_what_the_system_says(scene, recognizer):
    system = load_system(scene / "merge", asr_expert=scene / "asr")
    samples, _ = soundfile.read(scene / "a.wav", dtype="float32")
    output = system(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    got = recognizer.predict(scene / "a.wav")
    assert tuple(got.probabilities) == LABELS.labels == recognizer.labels
    assert values(got) == pytest.approx(output.probabilities[0].tolist(), abs=1e-6)
    assert got.probabilities[got.emotion] == max(values(got))
    assert sum(values(got)) == pytest.approx(1, abs=1e-12)
    assert got.text == output.texts[0] != ""
    assert got.speaker is None
    assert got.seconds == 1.0
    (moment,) = got.timeline
    assert (moment.start, moment.end) == (0.0, 1.0)
    assert moment.probabilities == pytest.approx(got.probabilities, abs=1e-12)


def test_trained_folders_load_too(scene, recognizer):
    merge = EmotionRecognizer.from_pretrained(scene / "merge", asr_expert=scene / "asr")
    same(merge.predict(scene / "a.wav"), recognizer.predict(scene / "a.wav"))
    expert = EmotionRecognizer.from_pretrained(scene / "ser", base=scene / "base")
    assert expert.predict(scene / "a.wav").text is None


def test_one_by_one_in_a_batch_and_in_another_order(scene, recognizer):
    paths = [scene / f"{name}.wav" for name in SIZES]
    alone = [recognizer.predict(path) for path in paths]
    together = recognizer.predict(paths)
    backwards = recognizer.predict(paths[::-1])[::-1]
    for first, second, third in zip(alone, together, backwards, strict=True):
        same(first, second)
        same(first, third)
    assert len({round(values(row)[0], 4) for row in alone}) == len(paths)
    small = EmotionRecognizer(recognizer.system, batch_seconds=0.1)
    for first, second in zip(alone, small.predict(paths), strict=True):
        same(first, second)
    assert recognizer.predict([]) == []


def test_several_batches_at_a_time_say_the_same(scene, recognizer):
    paths = [scene / f"{name}.wav" for name in SIZES] * 3
    before = recognizer.predict(paths)
    torch.set_num_threads(3)
    try:
        after = recognizer.predict(paths)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    for first, second in zip(before, after, strict=True):
        same(first, second)


def test_files_arrays_lists_and_data_directories(scene, recognizer, tmp_path):
    expected = recognizer.predict(scene / "a.wav")
    samples, _ = soundfile.read(scene / "a.wav", dtype="float32")
    same(recognizer.predict(samples), expected)
    same(recognizer.predict({"array": samples, "sampling_rate": 16_000}), expected)
    write_scp(tmp_path / "wav.scp", {"z1": scene / "b.wav", "z2": scene / "a.wav"})
    by_name = recognizer.predict(tmp_path / "wav.scp")
    assert list(by_name) == ["z1", "z2"]
    same(by_name["z2"], expected)
    write_scp(tmp_path / "utt2spk", {"z1": "s", "z2": "s"})
    same(recognizer.predict(tmp_path)["z2"], expected)
    arks = recognizer.predict(scene / "dump/test/wav.scp")
    assert list(arks) == [f"u{index}" for index in range(10)]


def test_rates_channels_and_formats(scene, recognizer):
    time = np.arange(44_100) / 44_100
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(scene / "tone.flac", np.stack([tone, tone], 1), 44_100)
    low = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    soundfile.write(scene / "tone16.wav", low, 16_000)
    soundfile.write(scene / "tone.ogg", np.stack([tone, tone, tone], 1), 44_100)
    flac, wav, ogg = (
        recognizer.predict(scene / name) for name in ("tone.flac", "tone16.wav", "tone.ogg")
    )
    assert values(flac) == pytest.approx(values(wav), abs=0.02)
    assert values(ogg) == pytest.approx(values(wav), abs=0.05)
    assert flac.seconds == wav.seconds == 1.0


def test_long_recordings_are_heard_in_windows(scene, recognizer):
    rng = np.random.default_rng(1)
    samples = (0.1 * rng.standard_normal(16_000 * 5 + 777)).astype(np.float32)
    windowed = EmotionRecognizer(recognizer.system, window_seconds=2.0, step_seconds=1.0)
    got = windowed.predict(samples)
    hop = recognizer.system.encoder.geometry.hop
    spans = cut_windows(len(samples), 32_000, 16_000, hop)
    parts = [recognizer.predict(samples[span.start : span.end]) for span in spans]
    assert len(spans) == 5
    edges = [moment.start for moment in got.timeline] + [got.timeline[-1].end]
    assert edges == sorted(edges)
    assert edges[0] == 0
    assert edges[-1] == got.seconds == len(samples) / 16_000
    total = np.zeros(len(LABELS.labels))
    for moment in got.timeline:
        middle = (moment.start + moment.end) / 2 * 16_000
        inside = [values(p) for s, p in zip(spans, parts) if s.start <= middle < s.end]
        assert list(moment.probabilities.values()) == pytest.approx(
            np.mean(inside, 0).tolist(), abs=1e-6
        )
        total += (moment.end - moment.start) * np.mean(inside, 0)
    assert values(got) == pytest.approx((total / got.seconds).tolist(), abs=1e-6)
    # words: one path without the seams' doubles, so about as many as a single pass finds
    whole = recognizer.predict(samples)
    assert len(whole.timeline) == 1
    assert 0.8 < len(got.text) / len(whole.text) < 1.25
    assert got.text != whole.text  # an encoder hears less of a window


def test_speakers_are_named(tmp_path):
    system = make_mtlser(tmp_path)
    EmotionRecognizer(system).save_pretrained(tmp_path / "export")
    recognizer = EmotionRecognizer.from_pretrained(
        tmp_path / "export", window_seconds=0.5, step_seconds=0.5
    )
    samples = (0.1 * np.random.default_rng(0).standard_normal(20_000)).astype(np.float32)
    got = recognizer.predict(samples)
    assert got.speaker in SPEAKERS
    assert got.text is not None
    assert len(got.timeline) > 1
    assert got.to_dict()["speaker"] == got.speaker


def test_short_recordings_are_heard_with_a_warning(scene, recognizer, caplog):
    """Below a frame zeros are appended: the encoder's rule, so one sample is enough."""
    with caplog.at_level(logging.WARNING):
        got = recognizer.predict(np.full(1, 0.5, np.float32))
        recognizer.predict(scene / "a.wav")
    (record,) = caplog.records
    assert "array has only 0.00 s" in record.getMessage()
    assert sum(values(got)) == pytest.approx(1)


def test_broken_recordings_do_not_stop_the_others(scene, recognizer, tmp_path):
    (tmp_path / "empty.wav").touch()
    names = [scene / "a.wav", tmp_path / "gone.wav", tmp_path / "empty.wav", scene / "b.wav"]
    _, clips = open_clips(names)
    said = [answer for _, answer in recognizer.stream(clips)]
    assert [isinstance(answer, UserError) for answer in said] == [False, True, True, False]
    same(said[3], recognizer.predict(scene / "b.wav"))
    with pytest.raises(UserError, match="gone.wav does not exist"):
        recognizer.predict(names)


def test_transformers_loads_the_export(scene):
    model = WavLMModel.from_pretrained(scene / "export").eval()
    encoder = load_system(scene / "merge").encoder
    speech = torch.randn(1, 8000)
    lengths = torch.tensor([8000])
    with torch.no_grad():
        hidden, _ = encoder(speech, lengths)
        theirs = model(encoder.normalize_waveform(speech, lengths)).last_hidden_state
    torch.testing.assert_close(theirs, hidden[-1], atol=1e-4, rtol=1e-4)


def test_a_merge_is_as_large_as_its_base(scene):
    merged = WavLMModel.from_pretrained(scene / "export")
    base = WavLMModel.from_pretrained(scene / "base")
    counts = [sum(p.numel() for p in model.parameters()) for model in (merged, base)]
    assert counts[0] == counts[1]
    assert merged.config.num_hidden_layers == base.config.num_hidden_layers


def test_mistakes_are_named(scene, recognizer, tmp_path):
    with pytest.raises(UserError, match="recognises no emotions of single recordings"):
        EmotionRecognizer(load_system(scene / "asr", base=scene / "base"))
    with pytest.raises(UserError, match="recognizer.json is missing: run stage `export`"):
        EmotionRecognizer.from_pretrained(scene / "base")
    with pytest.raises(UserError, match="neither a folder nor a model"):
        EmotionRecognizer.from_pretrained("/no/such/folder")
    with pytest.raises(UserError, match="windows of 1 s every 2 s"):
        EmotionRecognizer(recognizer.system, window_seconds=1, step_seconds=2)
    with pytest.raises(UserError, match="batch_seconds 0 is not positive"):
        EmotionRecognizer(recognizer.system, batch_seconds=0)
    save_encoder(recognizer.system.encoder, tmp_path)
    (tmp_path / "recognizer.json").write_text('{"labels": ["a", "b"], "head": {}}')
    with pytest.raises(UserError, match="lacks format, kind: export it again"):
        EmotionRecognizer.from_pretrained(tmp_path)


def test_probabilities_that_are_no_numbers_are_an_error(scene):
    broken = EmotionRecognizer(load_system(scene / "merge"))
    with torch.no_grad():
        broken.system.emotion_head.output[-1].bias.fill_(float("nan"))
    with pytest.raises(UserError, match="a.wav: the emotion probabilities are not finite"):
        broken.predict(scene / "a.wav")


def test_paths_spell_the_texts(scene):
    system = load_system(scene / "merge", asr_expert=scene / "asr")
    speech = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    output = system(speech, torch.tensor([9000, 5000]))
    assert [system.tokenizer.decode(collapse(p)) for p in output.paths] == output.texts
    assert [len(p) for p in output.paths] == system.encoder.frame_lengths(
        torch.tensor([9000, 5000])
    ).tolist()
