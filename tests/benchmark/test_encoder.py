"""The benchmark of the encoder, on a small one: what is compared, and that it is the same thing."""

import argparse

import pytest
import torch

from espnet_adaltm.benchmark import encoder
from espnet_adaltm.benchmark.encoder_steps import PROGRAMS, EncoderTask, Unavailable, freeze_cnn
from espnet_adaltm.benchmark.padding import measure_padding, msp_like_lengths, padding_share
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import write_scp

TASK = EncoderTask("", batch=2, seconds=0.5)


@pytest.fixture(scope="module")
def last_layers():
    """Program to its last hidden state of the same clips, and to whether its CNN can be frozen."""
    found = {}
    for name in ("ours", "hugging_face", "espnet", "torchaudio", "hugging_face_checkpointed"):
        model, encode = PROGRAMS[name](TASK)
        model.eval()
        with torch.no_grad():
            found[name] = encode()[-1]
        freeze_cnn(model)
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        assert sum("conv_layers" in n for n in frozen) >= 7, name
        assert not any("layers.3.attention" in n and "q_proj" in n for n in frozen), name
    return found


def test_all_programs_compute_the_same(last_layers):
    # ours ends with the encoder's final norm; so does ESPnet's frontend, which gives nothing else
    torch.testing.assert_close(last_layers["ours"], last_layers["espnet"], atol=1e-4, rtol=1e-4)
    theirs = last_layers["hugging_face"]
    for name in ("torchaudio", "hugging_face_checkpointed"):
        torch.testing.assert_close(last_layers[name], theirs, atol=1e-4, rtol=1e-4)


def test_what_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3prl", None)
    with pytest.raises(Unavailable, match="s3prl"):
        PROGRAMS["s3prl"](TASK)


def options(**changes):
    values = {"size": "small", "batch": 2, "seconds": 0.5, "rounds": 1, "steps": 1, "threads": 1}
    values |= {"precision": "float32", "modes": ["train"], "shapes": []}
    return argparse.Namespace(**{**values, "programs": ["ours", "hugging_face"], **changes})


def test_whole_benchmark():
    result = encoder.measure(options())
    rows = result["modes"]["train"]
    assert list(rows) == ["ours", "hugging_face"]
    ours, theirs = rows["ours"], rows["hugging_face"]
    assert theirs["times_faster"] == theirs["memory"] == 1.0
    assert ours["times_faster"] == pytest.approx(theirs["seconds"] / ours["seconds"])
    assert ours["memory"] == pytest.approx(ours["peak_mb"] / theirs["peak_mb"])
    assert ours["whole_mb"] > ours["peak_mb"] > 1
    assert 0 < result["difference"]["hidden"] < 2e-5
    assert 0 < result["difference"]["hidden_padded"] < 2e-5
    assert 0 < result["difference"]["gradient"] < 1e-5
    text = encoder.table(result)
    assert "hugging_face" in text and "asked for: 1.5 x" in text and "like MSP-Podcast" in text


def test_options_that_make_no_sense():
    with pytest.raises(UserError, match="--rounds 0"):
        encoder.measure(options(rounds=0))


def test_padding_by_hand():
    lengths = {"a": 4, "b": 2, "c": 3, "d": 3}
    assert padding_share([["a", "b"], ["c", "d"]], lengths) == pytest.approx(1 - 12 / 14)


def test_batches_that_are_grouped_have_little_padding(tmp_path):
    lengths = msp_like_lengths(500)
    assert len(lengths) == 500
    assert min(lengths.values()) >= 2.75 * 16_000
    assert max(lengths.values()) <= 11 * 16_000
    write_scp(tmp_path / "ser_shape", {f"u{n}": 16_000 + 10 * n for n in range(3000)})
    rows = measure_padding([tmp_path / "ser_shape"])
    assert len(rows) == 6
    for row in rows.values():
        assert row["grouped"] < encoder.TARGET_PADDING < 0.2 < row["random"]
