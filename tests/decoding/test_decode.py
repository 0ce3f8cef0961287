import pytest
from decoding_common import make_expert, make_scene

from espnet_adaltm.bin import decode
from espnet_adaltm.data.labels import Labels, save_labels
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.scoring.readers import read_hypothesis, read_reference


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path)


def _decode(scene, system, *more):
    decode.main(
        [
            *("--system", str(scene / system), "--dump", str(scene / "dump/test")),
            *("--labels", str(scene / "labels.json"), "--device", "cpu", *more),
        ]
    )


def _outputs(scene, system):
    return sorted(path.name for path in (scene / system / "decode/test").iterdir())


def test_every_kind_writes_what_it_knows(scene):
    base = ("--base", str(scene / "base"))
    _decode(scene, "asr", *base)
    assert _outputs(scene, "asr") == ["text", "tokens.model"]
    _decode(scene, "ser", *base)
    assert _outputs(scene, "ser") == ["utt2emo", "utt2prob"]
    _decode(scene, "merge")
    assert _outputs(scene, "merge") == ["utt2emo", "utt2prob"]
    _decode(scene, "merge", "--asr_expert", str(scene / "asr"))
    assert _outputs(scene, "merge") == ["text", "tokens.model", "utt2emo", "utt2prob"]


def test_scoring_reads_what_decoding_writes(scene):
    dump = scene / "dump/test"
    labels = Labels(("angry", "happy", "sad"))
    utterances = list(read_scp(dump / "wav.scp"))
    write_scp(dump / "utt2emo", dict.fromkeys(utterances, "happy"))
    write_scp(dump / "text", dict.fromkeys(utterances, "the red door"))
    _decode(scene, "merge", "--asr_expert", str(scene / "asr"))
    got = read_hypothesis(scene / "merge", read_reference(dump, labels), labels)
    assert got.probabilities.shape == (10, 3)
    assert got.words.lengths.tolist() == [3] * 10


def test_stored_features_decide_alike(scene):
    _decode(scene, "merge", "--out", str(scene / "raw"))
    _decode(scene, "merge", "--out", str(scene / "feats"), "--feats_type", "extracted")
    raw, feats = (read_scp(scene / name / "utt2prob") for name in ("raw", "feats"))
    for utt, row in raw.items():
        first, second = (map(float, values.split()) for values in (row, feats[utt]))
        assert list(second) == pytest.approx(list(first), abs=2e-3)


def test_two_runs_write_the_same_bytes(scene):
    path = scene / "merge/decode/test/utt2prob"
    _decode(scene, "merge")
    first = path.read_bytes()
    path.unlink()
    _decode(scene, "merge")
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch_seconds", "0"), "--batch_seconds 0.0 is not positive"),
        (("--batch_seconds", "nan"), "--batch_seconds nan is not positive"),
        (("--base", "nowhere"), "nowhere/base.json is missing"),
        (("--device", "cuda:9"), "no GPU is usable here"),
    ],
)
def test_wrong_options_are_one_line(scene, capsys, options, message):
    if "cuda:9" in options:
        options = (*options, "--base", str(scene / "base"))
    with pytest.raises(SystemExit) as exit_info:
        _decode(scene, "ser", *options)
    lines = capsys.readouterr().err.strip().splitlines()
    assert exit_info.value.code == 1
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]


def test_other_labels_are_refused(scene, capsys):
    save_labels(scene / "labels.json", Labels(("happy", "angry", "sad")))
    with pytest.raises(SystemExit):
        _decode(scene, "merge")
    error = capsys.readouterr().err
    assert "the label lists differ in their order: [happy, angry, sad] against [angry" in error
    assert not (scene / "merge/decode").exists()


def test_features_of_another_front_end_are_refused(scene, capsys):
    make_expert(scene / "moved", scene / "base", "ser", scene / "tokens", cnn=True)
    with pytest.raises(SystemExit):
        _decode(scene, "moved", "--base", str(scene / "base"), "--feats_type", "extracted")
    assert "changed the CNN front end ('feature_extractor." in capsys.readouterr().err
