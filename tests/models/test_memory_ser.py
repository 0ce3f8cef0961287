"""Our recogniser as a host: the same numbers without a memory, and what a memory can learn."""

import pytest
import torch
from torch import nn

from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.models.memory import Memory
from espnet_adaltm.models.memory_layer import Turns
from espnet_adaltm.models.memory_ser import SerHost, TapEncoder

SHAPE = {
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8, 16],
    "conv_kernel": [10, 8, 8],
    "conv_stride": [5, 8, 8],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def make_host(**shape):
    encoder = random_encoder(tiny_config(**{**SHAPE, **shape}), seed=0)
    torch.manual_seed(0)
    return SerHost(encoder, EmotionHead(3, 16, 3, hidden=8)).eval(), encoder


def make_memory(host, gate):
    torch.manual_seed(1)
    memory = Memory(host.hidden_size, [1, 2], size=6, width=8, chunk=4, max_step=4.0)
    with torch.no_grad():
        for layer in memory:
            layer.gate.fill_(gate)
            layer.second.normal_(std=0.3)
            layer.gates.bias.copy_(torch.tensor([0.0, 4.0, -7.0]))  # learns fast enough to see
    host.attach(memory)
    return memory


def speech(*lengths):
    generator = torch.Generator().manual_seed(0)
    wave = torch.randn(len(lengths), max(lengths), generator=generator)
    lengths = torch.tensor(lengths)
    return wave * (torch.arange(wave.shape[1]) < lengths[:, None]), lengths


@torch.no_grad()
@pytest.mark.parametrize("shape", [{}, {"do_stable_layer_norm": False}], ids=["pre", "post"])
def test_taps_and_closed_gates_change_no_bit(shape):
    host, encoder = make_host(**shape)
    wave, lengths = speech(5000, 9000)
    plain = encoder(wave, lengths)
    tapped = TapEncoder(encoder)
    assert tapped.state_dict().keys() == encoder.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(tapped(wave, lengths).hidden, plain.hidden))
    expected = host.head(plain.hidden, plain.lengths)
    memory = make_memory(host, gate=0.0)
    turns = Turns(("a", "a"))
    assert torch.equal(host(wave, lengths, memory, turns), expected)
    for layer in memory:
        layer.gate.fill_(0.5)
    assert not torch.equal(host(wave, lengths, memory, turns), expected)
    with memory.paused():
        assert torch.equal(host(wave, lengths, memory, turns), expected)


@torch.no_grad()
def test_a_batch_of_dialogues_is_one_utterance_after_the_other():
    host, _ = make_host()
    memory = make_memory(host, gate=0.8)
    wave, lengths = speech(5000, 9000, 3000, 7000, 700)
    names = ("a", "b", "a", "a", "b")
    together = host(wave, lengths, memory, Turns(names))
    for row, name in enumerate(names):
        size = int(lengths[row])
        turn = Turns((name,), carry=True)
        alone = host(wave[[row], :size], lengths[[row]], memory, turn)
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)
    features, frames = host.encoder.cnn(wave, lengths)
    from_features = host(features, frames, memory, Turns(names))
    torch.testing.assert_close(from_features, together, atol=1e-5, rtol=1e-4)
    fresh = host(wave[[3]], lengths[[3]], memory, Turns(("x",)))
    assert (fresh[0] - together[3]).abs().max() > 1e-3


class Relative:
    """Utterances whose loudness is the speaker's habit + 1 (class 1) or - 1 (class 0).

    Habits are + 1 or - 1, too: half of the utterances cannot be told without having heard others.
    """

    size = 8

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.way = nn.functional.normalize(torch.tensor([1.0, -1.0] * 4), dim=0)
        self.head = nn.Linear(self.size, 2, bias=False).requires_grad_(False)
        self.head.weight.data.copy_(torch.stack([-self.way, self.way]))

    def batch(self, dialogs, turns):
        """Frames [D * T, 4, size], classes [D * T] and their `Turns`."""
        habit = torch.randint(2, (dialogs, 1), generator=self.generator) * 2 - 1
        wanted = torch.randint(2, (dialogs, turns), generator=self.generator)
        loudness = habit + 2 * wanted - 1
        noise = torch.randn(dialogs, turns, 4, self.size, generator=self.generator)
        frames = loudness[..., None, None] * self.way + 0.3 * noise
        names = tuple(str(dialog) for dialog in range(dialogs) for _ in range(turns))
        return frames.flatten(0, 1), wanted.flatten(), Turns(names)


@pytest.mark.slow
def test_a_memory_learns_what_is_relative_to_the_speakers_habit():
    torch.manual_seed(0)
    task, host = Relative(seed=0), nn.Identity()
    memory = Memory(task.size, [1], size=8, width=16, chunk=4)
    memory.attach([host])
    optimizer = torch.optim.Adam(memory.parameters(), lr=0.005)
    for _ in range(300):
        frames, wanted, turns = task.batch(16, 6)
        with memory.listen(turns):
            loss = nn.functional.cross_entropy(task.head(host(frames).mean(1)), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frames, wanted, turns = Relative(seed=1).batch(200, 6)

    @torch.no_grad()
    def right(turns):
        """Share of right answers by turn, [6]."""
        with memory.listen(turns):
            guess = task.head(host(frames).mean(1)).argmax(1)
        return (guess == wanted).float().view(200, 6).mean(0)

    after = right(turns)
    assert after[0] < 0.85  # no history yet: half of them are a guess
    assert after[3:].mean() > 0.92
    never = right(Turns(turns.dialogs, learn=False))
    assert never.mean() < 0.85
    # the history of another dialogue: half of the habits are the opposite
    order = torch.arange(200).roll(1)
    others = frames.view(200, 6, 4, -1)[order].clone()
    others[:, 5] = frames.view(200, 6, 4, -1)[:, 5]
    with torch.no_grad(), memory.listen(turns):
        guess = task.head(host(others.flatten(0, 1)).mean(1)).argmax(1).view(200, 6)
    strange = (guess[:, 5] == wanted.view(200, 6)[:, 5]).float().mean()
    assert strange < after[5] - 0.15
