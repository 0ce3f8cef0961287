"""A joint system (weights made up) decoded in one pass, by the programs that decode the merges."""

import json

import pytest
import torch
from decoding_common import LABELS, make_expert, make_scene
from safetensors.torch import save_file

from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.bin import decode
from espnet_adaltm.decoding import baselines, batch
from espnet_adaltm.decoding.systems import load_system, load_weights, read_description
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.kaldi import read_scp
from espnet_adaltm.models.mtlser import MTLHead

SPEAKERS = ["anna", "bert", "cleo"]
HEAD = {"dropout": 0.1, "pooling": "mean", "emotion": "linear"}


def make_mtlser(scene, name="mtlser", cnn=False, **changes):
    """The SER expert's encoder under three random heads."""
    make_expert(scene / name, scene / "base", "ser", scene / "tokens", cnn=cnn)
    folder = scene / name
    (folder / "expert.json").unlink()
    (folder / "expert.safetensors").rename(folder / "encoder.safetensors")
    (folder / "tokens.model").write_bytes((scene / "tokens/tokens.model").read_bytes())
    tokens = (scene / "tokens/tokens.txt").read_text(encoding="utf-8").splitlines()
    torch.manual_seed(3)
    head = MTLHead(2, 16, 3, vocab=len(tokens), speakers=3, **HEAD)
    encoder = load_encoder(scene / "base").eval()
    load_weights(encoder, folder / "encoder.safetensors")
    inputs = batch.raw_inputs(scene / "dump/test")
    with torch.no_grad():  # centred, so that one clip differs from another
        clips = [torch.from_numpy(inputs.load(utt))[None] for utt in inputs.lengths]
        means = [encoder(clip, torch.tensor([clip.shape[1]])).hidden[-1].mean(1) for clip in clips]
        head.speaker.bias.copy_(-head.speaker.weight @ torch.cat(means).mean(0))
    save_file(head.state_dict(), folder / "head.safetensors")
    info = {
        "kind": "mtlser",
        "labels": list(LABELS.labels),
        "tokens": tokens,
        "speakers": SPEAKERS,
        "base": "../base",
        "base_sha256": read_json(scene / "base/base.json")["sha256"],
        "head": HEAD,
        **changes,
    }
    write_json(folder / "baseline.json", {k: v for k, v in info.items() if v != "removed"})
    return folder


@pytest.fixture
def scene(tmp_path):
    torch.set_num_threads(1)
    return make_scene(tmp_path)


def run(scene, system, *more):
    places = ("--system", str(system), "--dump", str(scene / "dump/test"))
    decode.main([*places, "--labels", str(scene / "labels.json"), "--device", "cpu", *more])


def test_one_pass_says_everything(scene):
    folder = make_mtlser(scene)
    run(scene, folder)
    out = folder / "decode/test"
    files = ["text", "tokens.model", "utt2all.jsonl", "utt2emo", "utt2prob", "utt2spk_hyp"]
    assert sorted(path.name for path in out.iterdir()) == files
    lines = [json.loads(line) for line in (out / "utt2all.jsonl").read_text().splitlines()]
    assert [line["utt"] for line in lines] == list(read_scp(out / "utt2prob"))
    assert list(lines[0]) == ["utt", "emotion", "probabilities", "text", "speaker"]
    names = ("utt2emo", "text", "utt2spk_hyp")
    tables = {name: read_scp(out / name, allow_empty_value=True) for name in names}
    for line in lines:
        assert line["emotion"] == tables["utt2emo"][line["utt"]]
        assert line["text"] == tables["text"][line["utt"]]
        assert line["speaker"] == tables["utt2spk_hyp"][line["utt"]]
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert len(set(tables["utt2spk_hyp"].values())) > 1


@pytest.mark.parametrize("kind", ["raw", "extracted"])
def test_results_do_not_depend_on_the_batch(scene, kind):
    system = load_system(make_mtlser(scene))
    if kind == "raw":
        inputs = batch.raw_inputs(scene / "dump/test")
    else:
        hop = system.encoder.geometry.hop
        inputs = batch.feature_inputs(scene / "dump/test", scene / "base/feats/test", hop)
    single = batch.decode(system, inputs, batch_seconds=1e-6)
    together = batch.decode(system, inputs, batch_seconds=8)
    assert single.texts == together.texts
    assert single.speakers == together.speakers
    for utt, row in single.probabilities.items():
        assert together.probabilities[utt] == pytest.approx(row, abs=1e-5)


def test_a_part_of_a_set(scene, capsys):
    folder = make_mtlser(scene)
    run(scene, folder)
    whole = read_scp(folder / "decode/test/utt2spk_hyp")
    (scene / "some").write_text("u7 anna\nu2 bert\n")
    run(scene, folder, "--only", str(scene / "some"), "--out", str(scene / "part"))
    assert read_scp(scene / "part/utt2spk_hyp") == {utt: whole[utt] for utt in ("u2", "u7")}
    (scene / "some").write_text("u2\nu77\n")
    with pytest.raises(SystemExit):
        run(scene, folder, "--only", str(scene / "some"))
    assert "names 'u77', which the set lacks" in capsys.readouterr().err


def test_a_system_that_needs_waveforms_gets_them(scene, capsys):
    moved = make_mtlser(scene, cnn=True)
    with pytest.raises(SystemExit):
        run(scene, moved, "--feats_type", "extracted")
    assert "changed the CNN front end" in capsys.readouterr().err
    info = read_json(moved / "baseline.json")
    write_json(moved / "baseline.json", {**info, "feats_type": "raw"})
    run(scene, moved, "--feats_type", "extracted")
    first = (moved / "decode/test/utt2prob").read_bytes()
    run(scene, moved)
    assert (moved / "decode/test/utt2prob").read_bytes() == first


def test_older_outputs_of_other_systems_are_removed(scene, tmp_path):
    folder = make_mtlser(scene)
    run(scene, folder, "--out", str(tmp_path / "out"))
    run(scene, scene / "ser", "--base", str(scene / "base"), "--out", str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["utt2emo", "utt2prob"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "magic"}, "kind 'magic' is none of .*mtlser"),
        ({"kind": "../mtlser"}, r"kind '../mtlser' is none of"),
        ({"head": "removed"}, "baseline.json lacks head"),
        ({"base_sha256": "0" * 64}, "was made from the base 000000000000"),
        ({"speakers": SPEAKERS[:2]}, "head.safetensors does not fit its description"),
        ({"tokens": ["<blank>", "x"]}, "baseline.json"),
        ({"base": "removed"}, "--base is missing"),
    ],
)
def test_what_does_not_fit_is_refused(scene, changes, message):
    folder = make_mtlser(scene, **changes)
    with pytest.raises(UserError, match=message):
        load_system(folder)


def test_one_description_per_folder(scene):
    folder = make_mtlser(scene)
    assert read_description(folder)["speakers"] == SPEAKERS
    assert "mtlser" in baselines.kinds()
    write_json(folder / "expert.json", {"kind": "ser"})
    with pytest.raises(UserError, match="found expert.json and baseline.json"):
        read_description(folder)


def test_a_kind_may_bring_its_own_loop(scene, monkeypatch):
    folder = make_mtlser(scene)
    seen = {}

    def own(system, inputs, *, dump, batch_seconds, device):
        seen.update(dump=dump, device=device)
        return batch.Decoded({}, dict.fromkeys(inputs.lengths, "in order"))

    module = baselines.module_of("mtlser", "test")
    monkeypatch.setattr(module, "decode", own, raising=False)
    run(scene, folder)
    assert set(read_scp(folder / "decode/test/text").values()) == {"in order"}
    assert seen == {"dump": scene / "dump/test", "device": "cpu"}


def test_encoder_weights_are_those_of_the_training(scene):
    folder = make_mtlser(scene)
    system = load_system(folder, base=scene / "base")
    base = load_encoder(scene / "base").encoder_state()
    moved = [n for n, t in system.encoder.encoder_state().items() if not torch.equal(t, base[n])]
    assert moved
    assert not any(name.startswith("feature_extractor.") for name in moved)
