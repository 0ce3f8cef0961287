"""Models that others made: no pickles, no code, no sizes without end, nothing from elsewhere."""

import json
import os
import warnings
from pathlib import Path

import decoding_common
import pytest
import torch
from safetensors.torch import save_file

from espnet_adaltm.backbone.foreign import read_foreign
from espnet_adaltm.backbone.loading import load_encoder, read_weights
from espnet_adaltm.backbone.unilm import parse_conv_layers
from espnet_adaltm.bin import merge
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json, write_text
from espnet_adaltm.merging.tensor_file import TensorFile


class Evil:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return (open, ("pwned", "w"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Work in a folder of its own, in which nothing may have been run at the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob("pwned"))


def config(folder, **changes):
    base = decoding_common.make_base(Path("base"))
    values = read_json(base / "config.json") | changes
    write_json(Path(folder) / "config.json", values)
    (Path(folder) / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())


def pickles():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"cfg": Evil(), "model": {}}, "evil.pt")
        for name in ("bin/pytorch_model.bin", "msp/final_ssl.pt", "checkpoint.pth"):
            Path(name).parent.mkdir(exist_ok=True)
            torch.save({"x": Evil()}, name)


def test_pickles_of_models_are_not_loaded():
    checkpoint = pytest.importorskip("espnet_adaltm.training.checkpoint")
    pickles()
    config("bin")
    Path("bin/model.safetensors").unlink()
    for load, culprit in (
        (lambda: load_encoder("evil.pt"), "evil.pt"),
        (lambda: load_encoder("bin"), "pytorch_model.bin"),
        (lambda: read_foreign("bin"), "pytorch_model.bin"),
        (lambda: read_foreign("msp"), "final_ssl.pt"),
        (lambda: checkpoint.load_weights("checkpoint.pth"), "checkpoint.pth"),
        (lambda: checkpoint.load_checkpoint(Path()), "checkpoint.pth"),
    ):
        with pytest.raises(UserError, match=culprit):
            load()


def test_code_of_a_model_is_not_run():
    config("model", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    Path("model/evil.py").write_text("open('pwned', 'w')\n")
    assert load_encoder("model").num_layers == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": "many"},
        {"num_hidden_layers": -1},
        {"hidden_size": 0},
        {"hidden_size": 10**9},
        {"num_attention_heads": 0},
        {"conv_dim": []},
        {"conv_stride": [0, 0, 0]},
        {"conv_kernel": "10"},
        {"model_type": ["wavlm"]},
    ],
    ids=str,
)
def test_configurations_that_describe_no_encoder(changes):
    config("model", **changes)
    with pytest.raises(UserError, match="model"):
        load_encoder("model")


@pytest.mark.parametrize(
    "table", [{}, {"weight_map": []}, {"weight_map": {"x": "../evil.safetensors"}},
              {"weight_map": {"x": "/etc/hostname"}}, {"weight_map": {"x": 7}}, {"weight_map": {}}],
    ids=str,
)  # fmt: skip
def test_shards_lie_beside_their_index(table):
    save_file({"x": torch.zeros(1)}, "evil.safetensors")
    write_json("model/model.safetensors.index.json", table)
    with pytest.raises(UserError, match="weight_map"):
        read_weights(Path("model"))


@pytest.mark.parametrize(
    "value", [[1], torch.zeros(2), {"x": 7}, {7: torch.zeros(1)}, "x"], ids=repr
)
def test_checkpoints_of_other_things(value):
    Path("bin").mkdir()
    torch.save(value, "bin/pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin holds something else"):
        read_weights(Path("bin"))


def test_the_expression_of_a_unilm_checkpoint_is_parsed_within_limits():
    assert len(parse_conv_layers("[(8,3,2)] * 4 + [(8,2,2)]", "x.pt")) == 5
    for text in ("[(8,3,2)] * 999999999", "__import__('os').system('touch pwned')", ["x"], None):
        with pytest.raises(UserError, match="x.pt: conv_feature_layers"):
            parse_conv_layers(text, "x.pt")


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 8,
        (10**7).to_bytes(8, "little") + b"[" * 10**7,
        header(x={"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}) + bytes(8),
        header(x={"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}) + bytes(8),
        header(x={"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}) + bytes(8),
        header(x={"dtype": "F32", "shape": [2], "data_offsets": []}) + bytes(8),
        header(x={"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}) + bytes(8),
        header(x=7),
        header(__metadata__=7),
    ],
    ids=["huge", "deep", "negative", "float", "before", "nowhere", "list", "number", "metadata"],
)
def test_headers_of_weights_that_lie(content):
    Path("x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="x.safetensors is not a readable safetensors file"):
        TensorFile("x.safetensors")


def test_what_an_export_copies_is_read_first():
    root = decoding_common.make_scene(Path("scene"))
    write_text("secret", "my password")
    (root / "base/preprocessor_config.json").unlink()
    os.symlink("../../secret", root / "base/preprocessor_config.json")
    write_text("r.yaml", "weights: 1\n")
    words = ["--config", "r.yaml", "--base", "scene/base", "--experts", "asr=scene/asr"]
    with pytest.raises(SystemExit):
        merge.main([*words, "--out", "merged"])
    assert not Path("merged").exists()
