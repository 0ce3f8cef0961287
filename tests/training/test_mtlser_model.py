import copy

import pytest
import torch

from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.models.losses import build_loss
from espnet_adaltm.models.mtlser import MTLHead, TaskWeights
from espnet_adaltm.training.espnet_models import CTCModel, EmotionModel
from espnet_adaltm.training.gradient_conflict import GradientConflict
from espnet_adaltm.training.mtlser_model import MTLSERModel, SpeakerMetric

CLASSES, VOCAB, SPEAKERS = 3, 6, 4
SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 8],
    "conv_stride": [5, 64],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
}
LAYERS_HEAD = {"emotion": "layers", "emotion_options": {"hidden": 8}}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "speech": torch.randn(3, 6000, generator=generator),
        "speech_lengths": torch.tensor([6000, 4000, 5000]),
        "emotion": torch.eye(CLASSES),
        "text": torch.tensor([[1, 2, 3], [4, -1, -1], [5, 2, -1]]),
        "text_lengths": torch.tensor([3, 1, 2]),
        "speaker": torch.tensor([[0], [3], [1]]),
    }


def build(alpha=0.1, beta=0.15, interval=0, **options):
    torch.set_num_threads(1)
    encoder = random_encoder(tiny_config(**SHAPE), seed=0)
    encoder.freeze_cnn()
    encoder.train_mask_embedding(False)
    torch.manual_seed(1)
    head = MTLHead(
        2, 8, CLASSES, vocab=VOCAB if alpha else 0, speakers=SPEAKERS if beta else 0, **options
    )
    return MTLSERModel(
        encoder,
        head,
        build_loss("cb_soft_ce", [5, 3, 2]),
        CLASSES,
        TaskWeights(alpha, beta),
        decode=lambda ids: " ".join(map(str, ids)),
        conflict=GradientConflict(encoder, interval) if interval else None,
    )


def gradients(model, batch):
    model.zero_grad()
    loss, _, _ = model(**batch)
    loss.sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True])
def test_without_auxiliary_tasks_it_is_the_emotion_expert(batch, training):
    model = build(0, 0, **LAYERS_HEAD).train(training)
    head = EmotionHead(2, 8, CLASSES, hidden=8)
    head.load_state_dict(model.head.layers.state_dict())
    loss = build_loss("cb_soft_ce", [5, 3, 2])
    expert = EmotionModel(copy.deepcopy(model.encoder), head, loss, CLASSES).train(training)
    emotion = {name: batch[name] for name in ("speech", "speech_lengths", "emotion")}
    results = []
    for each, given in ((model, batch), (expert, emotion)):
        torch.manual_seed(5)  # of dropout
        results.append(each(**given)[0])
    assert torch.equal(*results)
    assert torch.equal(model(**emotion)[0], model(**batch)[0]) or training


def test_the_loss_is_the_sum_of_its_parts(batch):
    model = build(0.4, 0.7).eval()
    loss, stats, weight = model(**batch)
    expected = stats["loss_emotion"] + 0.4 * stats["loss_ctc"] + 0.7 * stats["loss_speaker"]
    torch.testing.assert_close(loss, expected)
    assert weight.item() == 3
    # CTC as the recognition expert counts it, over the tokens of each transcript
    expert = CTCModel(model.encoder, model.head.ctc, str).eval()
    nats = [
        expert(**{name: value[row : row + 1] for name, value in batch.items()})[0].item()
        for row in range(3)
    ]
    mean = sum(n / size for n, size in zip(nats, (3, 1, 2))) / 3
    assert stats["loss_ctc"].item() == pytest.approx(mean, rel=1e-5)


def test_what_an_utterance_lacks_trains_nothing(batch):
    model = build().eval()
    whole = gradients(model, batch)
    batch["speaker"][1] = -1
    batch["emotion"][1] = 0
    batch["text_lengths"][1] = 0
    lacking = gradients(model, batch)
    rows = torch.tensor([0, 2])
    alone = gradients(model, {name: value[rows] for name, value in batch.items()})
    for name, gradient in lacking.items():
        torch.testing.assert_close(gradient, alone[name], atol=1e-6, rtol=1e-4)
    assert any(not torch.allclose(lacking[name], whole[name], atol=1e-4) for name in whole)
    batch |= {
        "speaker": torch.full((3, 1), -1),
        "emotion": torch.zeros(3, CLASSES),
        "text": torch.zeros(3, 0, dtype=torch.int64),
        "text_lengths": torch.zeros(3, dtype=torch.int64),
    }
    nothing = gradients(model, batch)
    assert nothing.keys() == whole.keys()  # DDP waits for every one of them
    assert all(gradient.abs().max() == 0 for gradient in nothing.values())
    assert model(**batch)[0].item() == 0


def test_metrics_count_what_is_known(batch):
    model = build().eval()
    model.head.speaker.weight.data.zero_()
    model.head.speaker.bias.data.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))
    model.head.emotion.weight.data.zero_()
    model.head.emotion.bias.data.copy_(torch.tensor([0.0, 0.0, 9.0]))
    batch["speaker"][0] = -1
    batch["emotion"][0] = 0
    model(**batch)
    found = model.metric.compute()
    assert found["spk_acc"] == 1 / 2  # speaker 1 is right, 3 is not, the other is nobody
    assert found["acc"] == 1 / 2
    assert set(found) == {"macro_f1", "uar", "acc", "wer", "cer", "spk_acc"}
    metric = SpeakerMetric()
    metric.update(torch.tensor([2, 2]), torch.tensor([-1, -1]))
    assert metric.compute() == {}


def test_measuring_conflict_does_not_change_training(batch, tmp_path):
    states = []
    for interval in (0, 1):
        model = build(interval=interval).train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        torch.manual_seed(7)
        for _ in range(3):
            optimizer.zero_grad()
            model(**batch)[0].sum().backward()
            optimizer.step()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
    model.record_epoch(tmp_path, 1)
    from espnet_adaltm.files import read_json

    epoch = read_json(tmp_path / "gradient_conflict.json")["epochs"]["1"]
    assert epoch["steps"] == 3
    assert list(epoch["cosine"]) == ["emotion,ctc", "emotion,speaker", "ctc,speaker"]
    assert all(-1 <= value <= 1 for value in epoch["cosine"]["emotion,ctc"])


def test_measured_gradients_add_up_to_the_trained_one(batch):
    model = build(interval=1).eval()
    model.training = True  # the step, without dropout
    model.head.training = model.encoder.training = False
    trained = gradients(model, batch)
    (found,) = model.conflict._found
    names = ("emotion", "ctc", "speaker")
    for block in range(3):
        squares = sum(found["norm"][name][block] ** 2 for name in names)
        for pair, cosine in found["cosine"].items():
            one, other = pair.split(",")
            squares += 2 * cosine[block] * found["norm"][one][block] * found["norm"][other][block]
        total = sum(
            float(trained[f"encoder.body.{name}"].square().sum())
            for (name, p), place in zip(
                ((n, p) for n, p in model.encoder.named_encoder_parameters() if p.requires_grad),
                model.conflict.blocks,
                strict=True,
            )
            if place == block
        )
        assert squares == pytest.approx(total, rel=1e-3)
