import kaldiio
import numpy as np
import pytest
import torch

from espnet_adaltm.backbone.features import extract_features, make_batches, pad_batch
from espnet_adaltm.backbone.loading import load_encoder, save_encoder
from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.bin import build_base
from espnet_adaltm.bin import extract_features as program
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp
from tests.backbone.test_units import make_dump

LENGTHS = {"a": 9000, "b": 5000, "c": 50, "d": 8000}


@pytest.fixture(scope="module")
def encoder():
    return random_encoder(tiny_config(num_hidden_layers=2), 0)


@pytest.fixture
def dump(tmp_path):
    generator = np.random.default_rng(0)
    waves = {utt: generator.normal(size=n) * 0.1 for utt, n in LENGTHS.items()}
    return make_dump(tmp_path / "dump" / "train", waves)


def test_stored_features_equal_the_raw_path(encoder, dump, tmp_path):
    out = tmp_path / "feats" / "train"
    assert extract_features(encoder, dump, out, batch_seconds=1.0) == 4
    shapes = {"a": "27,128", "b": "15,128", "c": "1,128", "d": "24,128"}
    assert read_scp(out / "feats_shape") == shapes
    assert list(read_scp(out / "feats.scp")) == list("abcd")
    assert read_scp(out / "feats.scp")["a"].startswith(f"{out}/feats.ark:")
    stored = kaldiio.load_scp(str(out / "feats.scp"))
    audio = kaldiio.load_scp(str(dump / "wav.scp"))
    with torch.no_grad():
        for utt in LENGTHS:
            assert stored[utt].dtype == np.float16
            wave = torch.tensor(audio[utt][1] / 32768).float()
            raw = encoder(wave.unsqueeze(0), torch.tensor([len(wave)]))
            features = torch.from_numpy(stored[utt].astype(np.float32)).unsqueeze(0)
            from_stored = encoder(features, torch.tensor([features.shape[1]]))
            assert raw.lengths.tolist() == from_stored.lengths.tolist()
            for ours, theirs in zip(from_stored.hidden, raw.hidden):
                assert float((ours - theirs).norm() / theirs.norm()) < 2e-3


def test_batches_do_not_change_the_features(encoder, dump, tmp_path):
    for name, seconds in (("one", 0.001), ("all", 100.0)):
        extract_features(encoder, dump, tmp_path / name, seconds)
    one, both = (kaldiio.load_scp(str(tmp_path / n / "feats.scp")) for n in ("one", "all"))
    for utt in LENGTHS:
        difference = np.abs(one[utt].astype(np.float32) - both[utt].astype(np.float32))
        # at most one step of half precision
        assert (difference <= np.abs(one[utt]).astype(np.float32) * 2**-10 + 1e-6).all()


def test_batches_hold_like_lengths_within_the_limit():
    samples = {"a": 10, "b": 30, "c": 20, "d": 9, "e": 31}
    assert make_batches(samples, 60) == [["e"], ["b", "c"], ["a", "d"]]
    assert make_batches(samples, 1) == [["e"], ["b"], ["c"], ["a"], ["d"]]


def test_padding_of_a_batch():
    speech, lengths = pad_batch([np.ones(3, np.float32), np.ones(1, np.float32)])
    assert speech.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert lengths.tolist() == [3, 1]


def test_features_beyond_half_precision_are_refused(dump, tmp_path):
    encoder = random_encoder(tiny_config(num_hidden_layers=1), 0)
    with torch.no_grad():
        encoder.body.feature_extractor.conv_layers[6].layer_norm.weight.fill_(1e6)
    with pytest.raises(UserError, match="--feats_type raw"):
        extract_features(encoder, dump, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lists_that_differ_are_refused(encoder, dump, tmp_path):
    (dump / "utt2num_samples").write_text("a 9000\n")
    with pytest.raises(UserError, match="list different utterances"):
        extract_features(encoder, dump, tmp_path / "out")
    (dump / "utt2num_samples").unlink()
    with pytest.raises(UserError, match="run the stage 'audio' first"):
        extract_features(encoder, dump, tmp_path / "out")


def test_programs(dump, tmp_path, capsys):
    config = tmp_path / "train_base.yaml"
    config.write_text("encoder_conf:\n  num_hidden_layers: 1\n")
    base = tmp_path / "base"
    words = ["--base", "random", "--config", str(config), "--seed", "7", "--out", str(base)]
    build_base.main(words)
    expected = random_encoder(tiny_config(num_hidden_layers=1), 7).encoder_state()
    found = load_encoder(base).encoder_state()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    program.main(["--base", str(base), "--dump", str(dump)])
    assert read_scp(base / "feats" / "train" / "feats_shape")["b"] == "15,128"
    # a copy of a folder, and what may not be asked for
    build_base.main(["--base", str(base), "--out", str(tmp_path / "copy")])
    assert (tmp_path / "copy" / "model.safetensors").exists()
    capsys.readouterr()
    for wrong in (["--out", str(base)], ["--out", str(tmp_path / "x"), "--config", str(config)]):
        with pytest.raises(SystemExit) as stopped:
            build_base.main(["--base", str(base), *wrong])
        assert stopped.value.code == 1
        assert capsys.readouterr().err.startswith("error: --")


def test_saved_encoder_gives_the_same_features(encoder, tmp_path):
    save_encoder(encoder, tmp_path)
    speech, lengths = pad_batch([np.random.default_rng(0).normal(size=4000).astype(np.float32)])
    with torch.no_grad():
        assert torch.equal(
            load_encoder(tmp_path).cnn(speech, lengths)[0], encoder.cnn(speech, lengths)[0]
        )
