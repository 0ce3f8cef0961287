import math

import pytest
import torch

from espnet_adaltm.errors import UserError
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.models.mtlser import (
    MTLHead,
    TaskWeights,
    ctc_per,
    joint_loss,
    masked_mean,
    speaker_loss,
)

LAYERS, DIM, CLASSES, VOCAB, SPEAKERS = 2, 8, 3, 5, 4


def head(**options):
    torch.manual_seed(0)
    return MTLHead(LAYERS, DIM, CLASSES, vocab=VOCAB, speakers=SPEAKERS, **options).eval()


def hidden(batch=2, frames=6):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, frames, DIM, generator=generator) for _ in range(LAYERS + 1)]


def test_joint_loss_by_hand():
    emotion = torch.tensor([[2.0, 0.0, 0.0]]).log_softmax(-1)
    speaker = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])
    losses = {
        "emotion": -emotion[0, 0],
        # two frames, blank or a token each: three of four paths spell the token
        "ctc": ctc_per("token", torch.tensor([-math.log(0.75)]), torch.tensor([1])).mean(),
        "speaker": masked_mean(
            speaker_loss(speaker, torch.tensor([1, -1])), torch.tensor([True, False])
        ),
    }
    by_hand = math.log(1 + 2 * math.exp(-2)) + 0.1 * math.log(4 / 3) + 0.15 * math.log(4 / 3)
    assert float(joint_loss(losses, TaskWeights(0.1, 0.15))) == pytest.approx(by_hand, abs=1e-6)
    assert float(joint_loss(losses, TaskWeights(0, 0))) == float(losses["emotion"])


def test_ctc_of_the_head_is_the_probability_of_the_paths():
    module = head()
    with torch.no_grad():
        module.ctc.linear.weight.zero_()
        module.ctc.linear.bias.zero_()
    # uniform over 5 tokens: of 25 paths of two frames, "aa", "a-" and "-a" spell a
    nats = module.ctc.loss(
        hidden(1, 2)[-1], torch.tensor([2]), torch.tensor([[3]]), torch.tensor([1])
    )
    assert nats.item() == pytest.approx(-math.log(3 / 25), abs=1e-6)


def test_ctc_units():
    nats, sizes = torch.tensor([6.0, 5.0, 0.0]), torch.tensor([3, 5, 0])
    assert ctc_per("token", nats, sizes).tolist() == [2.0, 1.0, 0.0]
    assert ctc_per("utterance", nats, sizes) is nats


@pytest.mark.parametrize("pooling", ["mean", "mean_std", "attentive"])
def test_padding_changes_nothing(pooling):
    module, lengths = head(pooling=pooling), torch.tensor([6, 4])
    short = hidden()
    long = [torch.cat([layer, 100 * torch.ones(2, 3, DIM)], 1) for layer in short]
    for layer in long:
        layer[1, 4:] = -77.0
    first, second = module(short, lengths), module(long, lengths)
    torch.testing.assert_close(first.emotion, second.emotion)
    torch.testing.assert_close(first.speaker, second.speaker)
    alone = module([layer[1:, :4] for layer in short], torch.tensor([4]))
    torch.testing.assert_close(alone.emotion, first.emotion[1:])


def test_published_heads_are_linear_on_the_mean():
    module, states = head(), hidden()
    mean = states[-1].mean(1)
    said = module(states, torch.tensor([6, 6]))
    expected = mean @ module.emotion.weight.T + module.emotion.bias
    torch.testing.assert_close(said.emotion, expected)
    torch.testing.assert_close(said.speaker, mean @ module.speaker.weight.T + module.speaker.bias)
    count = sum(p.numel() for p in module.parameters())
    assert count == 9 * (CLASSES + VOCAB + SPEAKERS)


def test_layers_head_is_that_of_the_expert():
    options = {"hidden": 8, "dropout": 0.1, "pooling": "mean"}
    module = head(emotion="layers", emotion_options=options)
    expert = EmotionHead(LAYERS, DIM, CLASSES, **options).eval()
    expert.load_state_dict(module.layers.state_dict())
    lengths = torch.tensor([6, 3])
    assert torch.equal(module(hidden(), lengths).emotion, expert(hidden(), lengths))


def test_unknown_speakers_have_no_gradient():
    module = head()
    states = hidden(3)
    states[-1].requires_grad_()
    said = module(states, torch.tensor([6, 6, 6]))
    speaker = torch.tensor([-1, 2, -1])
    masked_mean(speaker_loss(said.speaker, speaker), speaker >= 0).backward()
    gradient = states[-1].grad
    assert gradient[0].abs().max() == gradient[2].abs().max() == 0
    assert gradient[1].abs().max() > 0
    # the mean is over the known ones: one of three counts as much as if it were alone
    alone = [layer[1:2].detach().clone() for layer in states]
    alone[-1].requires_grad_()
    speaker_loss(module(alone, torch.tensor([6])).speaker, speaker[1:2]).mean().backward()
    torch.testing.assert_close(alone[-1].grad[0], gradient[1])


def test_a_batch_of_unknown_speakers_trains_nothing():
    module = head()
    said = module(hidden(), torch.tensor([6, 6]))
    speaker = torch.tensor([-1, -1])
    loss = masked_mean(speaker_loss(said.speaker, speaker), speaker >= 0)
    loss.backward()
    assert float(loss) == 0
    assert module.speaker.weight.grad.abs().max() == 0


def test_nan_of_an_unknown_target_does_not_spread():
    values = torch.tensor([1.0, float("nan")], requires_grad=True)
    loss = masked_mean(values, torch.tensor([True, False]))
    loss.backward()
    assert float(loss) == 1.0
    assert values.grad.tolist() == [1.0, 0.0]


def test_what_is_not_asked_for_has_no_parameters():
    module = MTLHead(LAYERS, DIM, CLASSES, pooling="attentive", emotion="layers")
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"layers"}
    assert module(hidden(), torch.tensor([6, 6])).speaker is None


def test_wrong_values_are_refused():
    with pytest.raises(UserError, match="emotion head 'deep' is none of linear, layers"):
        head(emotion="deep")
    for weights in ({"alpha": -0.1}, {"alpha": float("nan")}):
        with pytest.raises(UserError, match="--alpha"):
            TaskWeights(**weights)
    with pytest.raises(UserError, match="--beta inf is not a number from 0 on"):
        TaskWeights(beta=float("inf"))
