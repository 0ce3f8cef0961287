import math

import pytest
import torch

from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.training.gradient_conflict import FILE, GradientConflict, conflicts, summary

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
}


def test_cosines_by_hand():
    one = [torch.tensor([[3.0, 0.0]]), torch.tensor([4.0]), torch.tensor([1.0, 2.0]), None]
    other = [torch.tensor([[0.0, 5.0]]), torch.tensor([-12.0]), torch.zeros(2), torch.ones(1)]
    found = conflicts({"emotion": one, "ctc": other}, [0, 0, 1, 2], 3)
    assert found["norm"]["emotion"] == pytest.approx([5.0, math.sqrt(5), 0.0])
    assert found["norm"]["ctc"] == pytest.approx([13.0, 0.0, 1.0])
    first, *rest = found["cosine"]["emotion,ctc"]
    assert first == pytest.approx(-48 / 65)
    assert rest == [None, None]


def test_summary_by_hand():
    steps = [
        {"norm": {"a": [1.0, 2.0]}, "cosine": {"a,b": [0.5, None]}},
        {"norm": {"a": [3.0, 0.0]}, "cosine": {"a,b": [-0.1, None]}},
        {"norm": {"a": [5.0, 1.0]}, "cosine": {"a,b": [-0.7, 0.2]}},
    ]
    found = summary(steps)
    assert found["steps"] == 3
    assert found["norm"]["a"] == [3.0, 1.0]
    assert found["cosine"]["a,b"] == pytest.approx([-0.1, 0.2])
    assert found["opposed"]["a,b"] == pytest.approx([2 / 3, 0.0])


@pytest.fixture
def encoder():
    torch.set_num_threads(1)
    encoder = random_encoder(tiny_config(**SHAPE), seed=0)
    encoder.freeze_cnn()
    encoder.train_mask_embedding(False)
    return encoder.eval()


def test_losses_that_are_multiples_agree_or_oppose(encoder):
    measure = GradientConflict(encoder, 1)
    speech = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    hidden, _ = encoder(speech, torch.tensor([4000, 3000]))
    loss = hidden[-1].square().mean()
    measure.step({"emotion": loss, "ctc": 3 * loss, "speaker": -loss})
    (found,) = measure._found
    for pair, cosine in (("emotion,ctc", 1.0), ("emotion,speaker", -1.0), ("ctc,speaker", -1.0)):
        assert found["cosine"][pair] == pytest.approx([cosine] * 3, abs=1e-5)
    for small, large in zip(found["norm"]["emotion"], found["norm"]["ctc"], strict=True):
        assert large == pytest.approx(3 * small, rel=1e-4)
    # nothing was left behind in the parameters, and the graph still serves
    assert all(parameter.grad is None for parameter in encoder.parameters())
    loss.backward()
    norms = [0.0] * 3
    for parameter, block in zip(measure.parameters, measure.blocks, strict=True):
        norms[block] += float(parameter.grad.square().sum())
    assert found["norm"]["emotion"] == pytest.approx([math.sqrt(n) for n in norms], rel=1e-4)


def test_epochs_are_recorded_and_replaced(encoder, tmp_path):
    measure = GradientConflict(encoder, 2)
    weight = measure.parameters[-1]
    for _ in range(5):  # steps 0, 2 and 4
        measure.step({"a": weight.sum(), "b": -2 * weight.sum()})
    write_json(tmp_path / FILE, {"epochs": {"1": "kept", "2": "dropped", "3": "dropped"}})
    measure.record(tmp_path, 2)
    written = read_json(tmp_path / FILE)
    assert list(written["epochs"]) == ["1", "2"]
    assert written["blocks"] == ["block0", "block1", "block2"]
    assert written["epochs"]["2"]["steps"] == 3
    block = measure.blocks[-1]
    assert written["epochs"]["2"]["cosine"]["a,b"][block] == pytest.approx(-1.0)
    measure.record(tmp_path, 3)  # an epoch without a measurement leaves none
    assert list(read_json(tmp_path / FILE)["epochs"]) == ["1", "2"]


def test_one_task_has_nobody_to_disagree_with(encoder):
    measure = GradientConflict(encoder, 1)
    measure.step({"emotion": measure.parameters[0].sum()})
    assert measure._found == []
