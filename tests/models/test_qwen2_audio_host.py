"""Qwen2-Audio with random weights and a few words: real processor, real loading, a memory in it."""

import pytest
import torch
from qwen_common import LABELS, make_folder

from espnet_adaltm.errors import UserError
from espnet_adaltm.models.memory import Memory
from espnet_adaltm.models.memory_layer import Turns
from espnet_adaltm.models.qwen2_audio_host import Qwen2AudioHost


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def host(folder):
    return Qwen2AudioHost.from_pretrained(str(folder), LABELS, dtype="float32")


def make_memory(host, gate=0.0):
    torch.manual_seed(1)
    memory = Memory(host.hidden_size, [2], size=6, width=8, chunk=4, max_step=1.0)
    with torch.no_grad():
        memory.layers["2"].gate.fill_(gate)
        memory.layers["2"].second.normal_(std=0.6)
    host.attach(memory)
    return memory


def speech(*lengths):
    generator = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(len(lengths), max(lengths), generator=generator)
    lengths = torch.tensor(lengths)
    return wave * (torch.arange(wave.shape[1]) < lengths[:, None]), lengths


@torch.no_grad()
def test_scores_are_the_likelihoods_of_whole_answers(folder):
    words = {"angry": "very very angry", "sad": "very sad"}
    host = Qwen2AudioHost.from_pretrained(str(folder), LABELS, dtype="float32", words=words)
    assert [len(answer) for answer in host.answers] == [3, 1, 2]
    assert host.text.count("<|AUDIO|>") == 1
    memory = make_memory(host)
    wave, lengths = speech(9000, 16000)
    scores = host(wave, lengths, memory, Turns(("a", "b")))
    for row in range(2):
        inputs = host.prepare(wave[[row]], lengths[[row]])
        for column, answer in enumerate(host.answers):
            ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
            whole = host.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                input_features=inputs["input_features"],
                feature_attention_mask=inputs["feature_attention_mask"],
            ).logits.log_softmax(-1)[0, -len(answer) - 1 : -1]
            expected = whole[range(len(answer)), answer].sum()
            assert float(scores[row, column]) == pytest.approx(float(expected), abs=1e-4)


@torch.no_grad()
def test_memory_hears_audio_positions_only_and_all_of_them(host):
    memory = make_memory(host, gate=0.8)
    wave, lengths = speech(16000, 6000)
    inputs = host.prepare(wave, lengths)
    mask = host.audio_mask(inputs["input_ids"])
    # 100 and 38 mel frames; two strides of 2
    assert mask.sum(1).tolist() == [25, 9]
    assert not mask[1, 0]  # padding on the left
    heard = {}
    layer = memory.layers["2"]
    before = host.model.model.language_model.layers[1]
    handles = [
        before.register_forward_hook(lambda m, i, o: heard.update(after=o)),
        before.register_forward_hook(lambda m, i, o: heard.update(plain=o), prepend=True),
    ]
    host(wave, lengths, memory, Turns(("a", "b")))
    for handle in handles:
        handle.remove()
    changed = (heard["after"] != heard["plain"]).any(-1)
    assert torch.equal(changed, mask)
    expected = layer(heard["plain"], mask, Turns(("a", "b")))
    assert torch.equal(heard["after"], expected)


@torch.no_grad()
def test_a_closed_gate_and_a_paused_memory_change_nothing(host):
    memory = make_memory(host)
    wave, lengths = speech(9000, 16000)
    turns = Turns(("a", "a"), carry=True)
    scores = [host(wave, lengths, memory, turns) for _ in range(2)]
    with memory.paused():
        plain = host(wave, lengths, memory, turns)
    assert torch.equal(scores[0], plain)
    assert torch.equal(scores[1], plain)


@torch.no_grad()
def test_history_counts_and_company_does_not(host):
    memory = make_memory(host, gate=1.0)
    wave, lengths = speech(5000, 16000, 9000)
    together = host(wave, lengths, memory, Turns(("a", "b", "a")))
    for row, name in ((0, "a"), (1, "b"), (2, "a")):
        turn = Turns((name,), carry=True)
        alone = host(wave[[row], : lengths[row]], lengths[[row]], memory, turn)
        torch.testing.assert_close(alone[0], together[row], atol=2e-4, rtol=1e-4)
    fresh = host(wave[[2]], lengths[[2]], memory, Turns(("x",)))
    assert (fresh[0] - together[2]).abs().max() > 1e-3


def test_only_the_memory_learns(host):
    memory = make_memory(host, gate=0.5)
    wave, lengths = speech(9000, 9000)
    optimizer = torch.optim.Adam(memory.parameters(), lr=0.03)
    target = torch.tensor([0, 2])
    before = {name: p.clone() for name, p in host.model.named_parameters()}
    losses = []
    for _ in range(30):
        scores = host(wave, lengths, memory, Turns(("a", "a")))
        loss = torch.nn.functional.cross_entropy(scores, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.93 * losses[0]
    assert all(torch.equal(p, before[name]) for name, p in host.model.named_parameters())
    assert all(p.grad is None for p in host.model.parameters())


def test_half_precision_host_and_single_precision_memory(folder):
    host = Qwen2AudioHost.from_pretrained(str(folder), LABELS, dtype="bfloat16")
    memory = make_memory(host, gate=0.5)
    scores = host(*speech(9000, 5000), memory, Turns(("a", "a")))
    assert scores.dtype == torch.float32
    scores.sum().backward()
    gradients = [p.grad for p in memory.parameters()]
    assert all(g is not None and g.dtype == torch.float32 for g in gradients)


def test_mistakes_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="cannot be loaded from"):
        Qwen2AudioHost.from_pretrained(str(tmp_path), LABELS)
    with pytest.raises(UserError, match="angy.*angry"):
        Qwen2AudioHost.from_pretrained(str(folder), LABELS, words={"angy": "x"})
    with pytest.raises(UserError, match="'sad' is another one to the tokenizer"):
        Qwen2AudioHost.from_pretrained(str(folder), LABELS, words={"happy": "sad"})
    with pytest.raises(UserError, match="host_conf.*promt"):
        Qwen2AudioHost.from_pretrained(str(folder), LABELS, promt="x")
