"""ONNX: the same answers as here, whatever batch and length."""

import importlib.util
import sys

import numpy as np
import pytest
from backbone_common import clips
from export_common import make_mtlser, make_system

from espnet_adaltm.errors import UserError
from espnet_adaltm.export.onnx import export_onnx

BATCHES = ((4000, 2345, 30), (1,), (777, 9000), (5000, 5000))


def _session(system, path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    names = export_onnx(system, path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == names
    return session


@pytest.mark.parametrize(
    ("family", "large", "head", "words"),
    [
        ("wavlm", True, "projector", True),
        ("wavlm", False, "convolutions", False),
        ("hubert", False, "projector", True),
        ("wav2vec2", True, "convolutions", True),
    ],
)
def test_outputs_are_those_of_the_system(tmp_path, family, large, head, words):
    system = make_system(tmp_path, family, large=large, head=head, words=words)
    session = _session(system, tmp_path / "onnx" / "model.onnx")
    for seed, sizes in enumerate(BATCHES):
        speech, lengths = clips(*sizes, seed=seed)
        expected = system(speech, lengths)
        feed = {"speech": speech.numpy(), "lengths": lengths.numpy()}
        got = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed)))
        np.testing.assert_allclose(got["probabilities"], expected.probabilities, rtol=0, atol=1e-5)
        frames = system.encoder.frame_lengths(lengths).tolist()
        assert got["frames"].tolist() == frames
        assert ("tokens" in got) == words
        if words:
            for path, tokens in zip(expected.paths, got["tokens"], strict=True):
                assert tokens[: len(path)].tolist() == path.tolist()


def test_speakers_too(tmp_path):
    system = make_mtlser(tmp_path)
    session = _session(system, tmp_path / "model.onnx")
    speech, lengths = clips(4000, 1500)
    expected = system(speech, lengths)
    feed = {"speech": speech.numpy(), "lengths": lengths.numpy()}
    probabilities, _, _, speaker = session.run(None, feed)
    np.testing.assert_allclose(probabilities, expected.probabilities, rtol=0, atol=1e-5)
    assert [system.speakers[i] for i in speaker.argmax(-1)] == expected.speakers
    np.testing.assert_allclose(speaker.sum(-1), 1, atol=1e-5)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else found(name, *a)
    )
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    with pytest.raises(UserError, match="needs the package onnx: pip install"):
        export_onnx(make_system(tmp_path), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
