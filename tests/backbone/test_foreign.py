"""Experts that others trained, against their own architectures written down with transformers."""

import json

import pytest
import torch
from backbone_common import clips, difference, small_body, small_config
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCTC

from espnet_adaltm.backbone.foreign import (
    MSP_BASELINE_LABELS,
    VOX_PROFILE_LABELS,
    characters,
    choose_outputs,
    read_foreign,
)
from espnet_adaltm.backbone.loading import load_encoder, save_encoder, write_base_info
from espnet_adaltm.bin import import_expert, task_vectors
from espnet_adaltm.data.labels import Labels, save_labels
from espnet_adaltm.decoding.systems import load_system, read_tensors
from espnet_adaltm.errors import UserError

OURS = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "A": 7, "'": 8}


class VoxProfile(nn.Module):
    """The published forward pass: all hidden states, kernel-1 convolutions, mean, two layers."""

    def __init__(self, body, outputs=9, width=6):
        super().__init__()
        dim, layers = body.config.hidden_size, body.config.num_hidden_layers
        body.config.tie_last_hidden_states = True  # as transformers did when these were trained
        self.backbone_model = body
        self.model_seq = nn.Sequential(
            nn.Conv1d(dim, width, 1), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv1d(width, width, 1), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv1d(width, width, 1),
        )  # fmt: skip
        self.weights = nn.Parameter(torch.randn(layers + 1))
        self.emotion_layer = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
        )
        self.arousal_layer = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid())  # left out by us

    def forward(self, signal):
        states = torch.stack(self.backbone_model(signal, output_hidden_states=True).hidden_states)
        mixed = (self.weights.softmax(-1)[:, None, None, None] * states).sum(0)
        features = self.model_seq(mixed.transpose(1, 2)).transpose(1, 2)
        return self.emotion_layer(features.mean(1))


class MspBaseline(nn.Module):
    """The published forward pass: attentive statistics of the last state, one hidden layer."""

    def __init__(self, body, outputs=8, width=10):
        super().__init__()
        dim = body.config.hidden_size
        self.ssl_model = body
        self.pool_model = nn.Module()
        self.pool_model.sap_linear = nn.Linear(dim, dim)
        self.pool_model.attention = nn.Parameter(torch.randn(dim, 1))
        self.ser_model = nn.Module()
        block = nn.Sequential(nn.Linear(2 * dim, width), nn.LayerNorm(width), nn.ReLU())
        self.ser_model.fc = nn.ModuleList([block])
        self.ser_model.out = nn.Sequential(nn.Linear(width, outputs))

    def forward(self, signal):
        x = self.ssl_model(signal).last_hidden_state
        weights = torch.tanh(self.pool_model.sap_linear(x)) @ self.pool_model.attention
        weights = weights.softmax(1)
        mean = (x * weights).sum(1)
        deviation = ((x**2 * weights).sum(1) - mean**2).clamp(min=1e-5).sqrt()
        return self.ser_model.out(self.ser_model.fc[0](torch.cat([mean, deviation], 1)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base as stage 4 leaves it, and labels."""
    folder = tmp_path_factory.mktemp("foreign")
    from espnet_adaltm.backbone.encoder import SpeechEncoder

    encoder = SpeechEncoder(small_body(small_config("wavlm", large=True)), do_normalize=False)
    save_encoder(encoder, folder / "base")
    write_base_info(folder / "base", "folder", "test")
    save_labels(folder / "labels.json", Labels(OURS))
    return folder


def expert_body():
    """What fine-tuning made of the base: other weights everywhere."""
    return small_body(small_config("wavlm", large=True), seed=1)


def write(model, folder, config=None, skip=()):
    folder.mkdir()
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.endswith(skip)}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))


def imported(base, source, out, *words):
    command = ["--source", source, "--base", base / "base", "--out", out, *words]
    import_expert.main([str(word) for word in command])
    return load_system(out, base=base / "base")


@torch.no_grad()
def logits_of(model, speech, lengths):
    return torch.cat([model(s[None, :n]) for s, n in zip(speech, lengths.tolist())])


def test_vox_profile_says_the_same_in_our_order(base, tmp_path):
    model = VoxProfile(expert_body()).eval()
    write(model, tmp_path / "vox", {"pretrain_model": "wavlm_large"})
    system = imported(base, tmp_path / "vox", tmp_path / "ser", "--labels", base / "labels.json")
    assert system.labels == OURS
    speech, lengths = clips(700, 1200)
    theirs = logits_of(model, speech, lengths)[:, :8].softmax(-1)
    assert difference(system(speech, lengths).probabilities.float(), theirs) < 1e-5
    described = json.loads((tmp_path / "ser" / "expert.json").read_text())
    assert described["head"]["kind"] == "vox_profile"
    assert described["imported"]["layout"] == "vox_profile"


def test_layers_without_the_input_are_our_own_head(base, tmp_path):
    model = VoxProfile(expert_body()).eval()
    model.weights = nn.Parameter(model.weights[1:].detach())
    write(model, tmp_path / "vox")
    foreign = read_foreign(tmp_path / "vox")
    assert foreign.head_options == {"hidden": 6, "pooling": "mean"}


def test_the_challenge_baseline_in_its_order_and_in_ours(base, tmp_path):
    model = MspBaseline(expert_body()).eval()
    names = ("Angry", "Sad", "Happy", "Surprise", "Fear", "Disgust", "Contempt", "Neutral")
    write(model, tmp_path / "msp", {"id2label": {str(i): n for i, n in enumerate(names)}})
    system = imported(base, tmp_path / "msp", tmp_path / "ser", "--labels", base / "labels.json")
    speech, lengths = clips(700, 1200)
    theirs = logits_of(model, speech, lengths).softmax(-1)
    order = [MSP_BASELINE_LABELS.index(name) for name in OURS]
    assert difference(system(speech, lengths).probabilities.float(), theirs[:, order]) < 1e-5
    # The same from the three files of the challenge's own archive.
    parts = tmp_path / "parts"
    parts.mkdir()
    for name, module in (("ssl", "ssl_model"), ("pool", "pool_model"), ("ser", "ser_model")):
        torch.save(getattr(model, module).state_dict(), parts / f"final_{name}.pt")
    again = read_foreign(parts)
    assert again.labels == MSP_BASELINE_LABELS
    one = read_foreign(tmp_path / "msp")
    assert all(torch.equal(again.head[name], one.head[name]) for name in one.head)
    assert all(torch.equal(again.encoder[name], one.encoder[name]) for name in one.encoder)


def test_a_ctc_model_writes_the_same(base, tmp_path):
    config = small_config("wavlm", large=True, vocab_size=len(VOCABULARY))
    torch.manual_seed(0)
    model = AutoModelForCTC.from_config(config).eval()
    model.wavlm.load_state_dict(expert_body().state_dict())
    model.save_pretrained(tmp_path / "ctc")
    (tmp_path / "ctc" / "vocab.json").write_text(json.dumps(VOCABULARY))
    system = imported(base, tmp_path / "ctc", tmp_path / "asr", "--kind", "asr")
    speech, lengths = clips(3000, 2100)
    texts = []
    for row in (model(s[None, :n]).logits[0] for s, n in zip(speech, lengths.tolist())):
        # <s>, </s> and <unk> are never said by ours
        row[:, 1:4] = -1e4
        path = torch.unique_consecutive(row.argmax(-1)).tolist()
        letters = {number: token for token, number in VOCABULARY.items()}
        said = "".join(letters[n].replace("|", " ").lower() for n in path if n != 0)
        texts.append(" ".join(said.split()))
    assert any(texts)
    assert system(speech, lengths).texts == texts
    described = json.loads((tmp_path / "asr" / "expert.json").read_text())
    assert described["kind"] == "asr"
    assert {"<blank>", "a", "t", "e", "'"} <= set(described["tokens"])


def test_task_vectors_of_imported_experts(base, tmp_path):
    model = VoxProfile(expert_body()).eval()
    write(model, tmp_path / "vox", skip=("masked_spec_embed",))
    imported(base, tmp_path / "vox", tmp_path / "ser", "--labels", base / "labels.json")
    described = json.loads((tmp_path / "ser" / "expert.json").read_text())
    assert described["imported"]["from_base"] == ["masked_spec_embed"]
    words = ["--base", base / "base", "--ser", tmp_path / "ser", "--out", tmp_path / "vectors"]
    task_vectors.main([str(word) for word in words])
    vector = read_tensors(tmp_path / "vectors" / "ser.safetensors")
    ours = load_encoder(base / "base").encoder_state()
    assert not vector["masked_spec_embed"].any()
    name = "encoder.layers.2.feed_forward.output_dense.weight"
    expected = model.backbone_model.state_dict()[name] - ours[name]
    assert difference(vector[name], expected) < 1e-6
    assert float(vector["encoder.pos_conv_embed.conv.weight"].abs().max()) > 0


def test_labels_are_mapped_by_meaning():
    assert choose_outputs(VOX_PROFILE_LABELS, OURS, "x") == list(range(8))
    assert choose_outputs(VOX_PROFILE_LABELS, ("angry", "happy", "neutral", "sad"), "x") == [
        0, 4, 5, 6,
    ]  # fmt: skip
    assert choose_outputs(MSP_BASELINE_LABELS, OURS, "x") == [0, 6, 5, 4, 2, 7, 1, 3]
    with pytest.raises(UserError, match=r"x: the emotion 'calm' is none of its outputs, anger"):
        choose_outputs(VOX_PROFILE_LABELS, ("anger", "calm"), "x")
    with pytest.raises(UserError, match="two of the labels anger, angry are one"):
        choose_outputs(VOX_PROFILE_LABELS, ("anger", "angry"), "x")


def test_what_is_not_known_is_refused(base, tmp_path, capsys):
    def told(source, *words):
        with pytest.raises(SystemExit):
            imported(base, source, tmp_path / "out", *words)
        return capsys.readouterr().err

    write(nn.Sequential(nn.Linear(2, 2)), tmp_path / "other")
    assert "none of the known layouts" in told(tmp_path / "other")
    assert "neither a folder nor a Hub id" in told(tmp_path / "nowhere")
    write(VoxProfile(expert_body()), tmp_path / "vox")
    assert "of kind ser, not asr" in told(tmp_path / "vox", "--kind", "asr")
    assert "--labels is missing" in told(tmp_path / "vox")
    deeper = small_config("wavlm", large=True, num_hidden_layers=4)
    write(VoxProfile(small_body(deeper)), tmp_path / "deeper")
    words = ("--labels", base / "labels.json")
    assert "was not fine-tuned from the base" in told(tmp_path / "deeper", *words)
    adapted = VoxProfile(expert_body())
    layer = adapted.backbone_model.encoder.layers[2].feed_forward.intermediate_dense
    layer.lora_A = nn.Parameter(torch.zeros(1))
    write(adapted, tmp_path / "adapted")
    assert "lora_A is an adapter beside the weights" in told(tmp_path / "adapted", *words)
    with pytest.raises(UserError, match="only vocabularies of characters"):
        characters({"<pad>": 0, "the": 1})


def test_the_login_node_is_told_what_to_run(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"run `hf download some/expert` on the login node.*HF_HOME"
    ):
        read_foreign("some/expert")


def test_a_filled_cache_is_enough(base, monkeypatch, tmp_path):
    import huggingface_hub.constants

    repository = tmp_path / "hub" / "models--some--expert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    write(VoxProfile(expert_body()), repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert read_foreign("some/expert").labels == VOX_PROFILE_LABELS
