import numpy as np
import pytest
import torch
from decoding_common import LABELS, SAMPLES, make_scene

from espnet_adaltm.backbone.features import make_batches
from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.data.audio import load_audio
from espnet_adaltm.data.tokens import Tokenizer
from espnet_adaltm.decoding.batch import (
    Decoded,
    batches_of,
    decode,
    feature_inputs,
    pad,
    raw_inputs,
    write_outputs,
)
from espnet_adaltm.decoding.systems import load_system
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    torch.set_num_threads(1)
    return make_scene(tmp_path_factory.mktemp("decoding"))


@pytest.fixture(scope="module")
def merge(scene):
    return load_system(scene / "merge", asr_expert=scene / "asr")


def _inputs(scene, kind, system):
    if kind == "raw":
        return raw_inputs(scene / "dump/test")
    return feature_inputs(
        scene / "dump/test", scene / "base/feats/test", system.encoder.geometry.hop
    )


@pytest.mark.parametrize("kind", ["raw", "extracted"])
def test_results_do_not_depend_on_the_batch(scene, merge, kind):
    inputs = _inputs(scene, kind, merge)
    single = decode(merge, inputs, batch_seconds=1e-6)
    together = decode(merge, inputs, batch_seconds=8)
    assert make_batches(inputs.lengths, int(8 * inputs.per_second))[0][:4] == [
        "u1",
        "u5",
        "u4",
        "u9",
    ]
    assert list(single.probabilities) == [f"u{index}" for index in range(10)]
    for utt, row in single.probabilities.items():
        np.testing.assert_allclose(together.probabilities[utt], row, atol=1e-5)
        assert sum(row) == pytest.approx(1, abs=1e-9)
    assert together.texts == single.texts
    assert len(set(single.texts.values())) > 5  # they say different things
    spread = np.array(list(single.probabilities.values())).std(0)
    assert spread.max() > 0.01


def test_stored_features_give_the_same_as_waveforms(scene, merge):
    raw = decode(merge, _inputs(scene, "raw", merge))
    stored = decode(merge, _inputs(scene, "extracted", merge))
    for utt, row in raw.probabilities.items():
        np.testing.assert_allclose(stored.probabilities[utt], row, atol=2e-3)  # float16 features


def test_one_utterance_by_hand(scene, merge):
    samples, _ = load_audio(read_scp(scene / "dump/test/wav.scp")["u3"])
    with torch.no_grad():
        hidden, lengths = merge.encoder(torch.from_numpy(samples)[None], torch.tensor([4000]))
        probabilities = merge.emotion_head(hidden, lengths).softmax(-1)[0]
    got = decode(merge, _inputs(scene, "raw", merge), batch_seconds=8).probabilities["u3"]
    np.testing.assert_allclose(got, probabilities.numpy(), atol=1e-5)


def test_padding_is_zero_behind():
    padded, lengths = pad([np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)], "cpu")
    assert padded.shape == (2, 4, 3)
    assert lengths.tolist() == [2, 4]
    assert padded[0].sum() == 6


def test_outputs_are_written_and_stale_ones_removed(tmp_path, scene):
    rows = {"b": [0.2, 0.3, 0.5], "a": [0.9, 0.05, 0.05]}
    write_outputs(tmp_path, Decoded(rows, {"a": "hello there", "b": ""}), LABELS)
    assert (tmp_path / "utt2prob").read_text() == (
        "a 0.900000 0.050000 0.050000\nb 0.200000 0.300000 0.500000\n"
    )
    assert (tmp_path / "utt2emo").read_text() == "a angry\nb sad\n"
    assert (tmp_path / "text").read_text() == "a hello there\nb\n"
    assert not (tmp_path / "tokens.model").exists()
    text = {"a": "hello there", "b": ""}
    write_outputs(tmp_path, Decoded(rows, text), LABELS, Tokenizer(scene / "tokens"))
    model = (scene / "tokens/tokens.model").read_bytes()
    assert (tmp_path / "tokens.model").read_bytes() == model
    written = write_outputs(tmp_path, Decoded(rows, {}), LABELS, Tokenizer(scene / "tokens"))
    assert [path.name for path in written] == ["utt2prob", "utt2emo"]
    assert not (tmp_path / "text").exists()
    assert not (tmp_path / "tokens.model").exists()


def test_broken_inputs_are_named(scene, merge, tmp_path):
    entries = read_scp(scene / "dump/test/wav.scp")
    write_scp(tmp_path / "wav.scp", entries)
    with pytest.raises(UserError, match=r"utt2num_samples is missing: run stage `audio`"):
        raw_inputs(tmp_path)
    write_scp(tmp_path / "utt2num_samples", {"u0": 9000})
    with pytest.raises(UserError, match="utt2num_samples lacks 9 utterance.*'u1'"):
        raw_inputs(tmp_path)
    write_scp(tmp_path / "utt2num_samples", dict.fromkeys(entries, "many"))
    with pytest.raises(UserError, match="utt2num_samples holds something else than a length"):
        raw_inputs(tmp_path)
    write_scp(tmp_path / "utt2num_samples", dict.fromkeys(entries, 100))
    write_scp(tmp_path / "wav.scp", {**entries, "u2": str(tmp_path / "gone.flac")})
    with pytest.raises(UserError, match="utterance 'u2': cannot read .*gone.flac"):
        decode(merge, raw_inputs(tmp_path))
    with pytest.raises(UserError, match=r"feats.scp is missing: run stage `base`"):
        feature_inputs(scene / "dump/test", tmp_path, 320)


def test_not_finite_outputs_are_refused(scene):
    system = load_system(scene / "ser", base=scene / "base")
    system.emotion_head.output[-1].bias[0] = float("nan")
    with pytest.raises(UserError, match="utterance 'u1': the emotion probabilities are not finite"):
        decode(system, raw_inputs(scene / "dump/test"))


def test_base_with_another_hop_counts_other_frames(scene):
    encoder = load_encoder(scene / "base")
    inputs = feature_inputs(scene / "dump/test", scene / "base/feats/test", encoder.geometry.hop)
    assert encoder.geometry.hop == 320
    assert inputs.per_second == 50
    frames = encoder.frame_lengths(torch.tensor(SAMPLES)).tolist()
    assert list(inputs.lengths.values()) == frames


def test_batches_have_little_padding_and_give_every_worker_one():
    lengths = {"a": 100, "b": 95, "c": 89, "d": 80, "e": 10}
    assert batches_of(lengths, 1000) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert batches_of(dict.fromkeys("abcd", 100), 1000) == [["a", "b", "c", "d"]]
    assert batches_of(dict.fromkeys("abcd", 100), 1000, workers=2) == [["a", "b"], ["c", "d"]]
    assert batches_of(dict.fromkeys("abcd", 100), 100) == [["a"], ["b"], ["c"], ["d"]]


def test_several_batches_at_a_time_are_the_same_utterances(scene, merge):
    inputs = raw_inputs(scene / "dump/test")
    expected = decode(merge, inputs)
    torch.set_num_threads(3)
    try:
        got = decode(merge, inputs)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert list(got.probabilities) == list(expected.probabilities)
    assert got.texts == expected.texts
    for utt, row in expected.probabilities.items():
        np.testing.assert_allclose(got.probabilities[utt], row, rtol=0, atol=1e-6)


def test_an_error_in_a_worker_is_raised_and_threads_are_as_before(scene, merge):
    inputs = raw_inputs(scene / "dump/test")
    empty = inputs.only(["u0", "u1"], "test")
    broken = type(inputs)(empty.lengths, lambda utt: np.zeros(0, np.float32), inputs.per_second)
    torch.set_num_threads(2)
    try:
        with pytest.raises(UserError, match="has no samples"):
            decode(merge, broken)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
