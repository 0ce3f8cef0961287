import numpy as np
import pytest
import soundfile
import torch
from decoding_common import make_scene
from transformers import WavLMModel

from espnet_adaltm.decoding.systems import load_system
from espnet_adaltm.errors import UserError
from espnet_adaltm.recognizer import EmotionRecognizer


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    root = make_scene(tmp_path_factory.mktemp("recognizer"))
    system = load_system(root / "merge", asr_expert=root / "asr")
    recognizer = EmotionRecognizer(system)
    recognizer.save_pretrained(root / "export", root / "asr/tokens.model")
    rng = np.random.default_rng(0)
    for name, size in (("a", 16_000), ("b", 5_000), ("c", 9_000)):
        soundfile.write(root / f"{name}.wav", 0.1 * rng.standard_normal(size), 16_000)
    return root


def test_export_predicts_what_the_system_predicts(scene):
    system = load_system(scene / "merge", asr_expert=scene / "asr")
    samples, _ = soundfile.read(scene / "a.wav", dtype="float32")
    output = system(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    got = EmotionRecognizer.from_pretrained(scene / "export").predict(scene / "a.wav")
    assert list(got.probabilities) == ["angry", "happy", "sad"]
    expected = output.probabilities[0].tolist()
    assert list(got.probabilities.values()) == pytest.approx(expected, abs=1e-5)
    assert got.probabilities[got.emotion] == max(got.probabilities.values())
    assert got.text == output.texts[0]


def test_a_list_gives_the_same_as_one_by_one(scene):
    recognizer = EmotionRecognizer.from_pretrained(scene / "export")
    paths = [scene / f"{name}.wav" for name in "abc"]
    for path, together in zip(paths, recognizer.predict(paths), strict=True):
        alone = recognizer.predict(path)
        assert together.text == alone.text
        assert list(together.probabilities.values()) == pytest.approx(
            list(alone.probabilities.values()), abs=1e-5
        )


def test_other_rates_and_channels_are_converted(scene):
    time = np.arange(44_100) / 44_100
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(scene / "tone.wav", np.stack([tone, tone], 1), 44_100)
    soundfile.write(
        scene / "tone16.wav", 0.3 * np.sin(2 * np.pi * 440 * time[:16_000] * 2.75625), 16_000
    )
    recognizer = EmotionRecognizer.from_pretrained(scene / "export")
    first, second = recognizer.predict([scene / "tone.wav", scene / "tone16.wav"])
    assert list(first.probabilities.values()) == pytest.approx(
        list(second.probabilities.values()), abs=0.05
    )


def test_transformers_loads_the_export(scene):
    model = WavLMModel.from_pretrained(scene / "export").eval()
    encoder = load_system(scene / "merge").encoder
    speech = torch.randn(1, 8000)
    lengths = torch.tensor([8000])
    with torch.no_grad():
        hidden, _ = encoder(speech, lengths)
        theirs = model(encoder.normalize_waveform(speech, lengths)).last_hidden_state
    torch.testing.assert_close(theirs, hidden[-1], atol=1e-4, rtol=1e-4)


def test_mistakes_are_named(scene, tmp_path):
    with pytest.raises(UserError, match="has no emotion head"):
        EmotionRecognizer(load_system(scene / "asr", base=scene / "base"))
    with pytest.raises(UserError, match="recognizer.json is missing: run stage `export`"):
        EmotionRecognizer.from_pretrained(scene / "base")
    with pytest.raises(UserError, match="neither a folder nor a model"):
        EmotionRecognizer.from_pretrained("/no/such/folder")
    system = load_system(scene / "merge", asr_expert=scene / "asr")
    with pytest.raises(UserError, match="tokens_model is missing"):
        EmotionRecognizer(system).save_pretrained(tmp_path / "export")
    recognizer = EmotionRecognizer.from_pretrained(scene / "export")
    with pytest.raises(UserError, match="gone.wav does not exist"):
        recognizer.predict(tmp_path / "gone.wav")
