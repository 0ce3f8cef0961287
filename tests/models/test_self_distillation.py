"""Teacher, targets and the two losses, each against numbers computed by hand."""

import math

import pytest
import torch
from torch.nn import functional

from espnet_adaltm.backbone.encoder import span_mask
from espnet_adaltm.models.prototypes import Prototypes
from espnet_adaltm.models.self_distillation import EmaSchedule, SelfDistillation, Teacher
from espnet_adaltm.models.wap_adapter import AdapterConfig, WapAdapter

CONFIG = AdapterConfig(dim=16, heads=2, feed_forward=32, dropout=0.1, kernel=5)


def make(**options):
    torch.manual_seed(0)
    student = WapAdapter(8, CONFIG)
    clusters = options.pop("clusters", 6)
    prototypes = Prototypes(clusters, 16) if clusters else None
    objective = SelfDistillation(student, EmaSchedule(0.5, 0.9, 4), prototypes, **options)
    return student, objective


def batch(*lengths):
    frames = torch.randn(len(lengths), max(lengths), 8, generator=torch.Generator().manual_seed(1))
    return frames, torch.tensor(lengths)


@pytest.mark.parametrize(
    ("updates", "expected"),
    [(0, 0.999), (15_000, 0.99945), (30_000, 0.9999), (90_000, 0.9999)],
)
def test_decay_rises_and_stays(updates, expected):
    assert EmaSchedule().decay(updates) == pytest.approx(expected, abs=1e-9)


def test_no_ramp_is_the_end_at_once():
    assert EmaSchedule(0.1, 0.8, 0).decay(0) == 0.8


def test_teacher_follows_by_the_formula():
    torch.manual_seed(0)
    student = WapAdapter(8, CONFIG)
    teacher = Teacher(student, EmaSchedule(0.5, 0.9, 4))
    name = "layers.2.linear1.weight"
    start = student.get_parameter(name).detach().clone()
    expected = start.clone()
    for step, decay in enumerate((0.5, 0.6, 0.7, 0.8, 0.9, 0.9)):
        with torch.no_grad():
            student.get_parameter(name).add_(1.0)
        teacher.update(student)
        expected = decay * expected + (1 - decay) * (start + step + 1)
    assert int(teacher.updates) == 6
    found = dict(teacher.adapter.named_buffers())[name]
    torch.testing.assert_close(found, expected)
    other = "layers.0.linear1.weight"
    torch.testing.assert_close(
        dict(teacher.adapter.named_buffers())[other], student.get_parameter(other)
    )


def test_teacher_has_no_parameters_and_no_dropout_and_is_saved():
    student, objective = make()
    teacher = objective.train().teacher
    assert not list(teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    saved = {name.removeprefix("adapter.") for name in teacher.state_dict()}
    assert saved == {name for name, _ in student.named_parameters()} | {"updates"}
    features, lengths = batch(6)
    assert torch.equal(teacher(features, lengths), teacher(features, lengths))


def test_targets_are_normalised_layers_averaged():
    student, objective = make()
    features, lengths = batch(7, 4)
    with torch.no_grad():
        layers = student.eval().hidden(features, lengths)[1:]
    expected = (
        sum((x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True) for x in layers)
        / 3
    )
    expected = (expected - expected.mean(-1, keepdim=True)) / expected.std(
        -1, correction=0, keepdim=True
    )
    found = objective.teacher(features, lengths)
    torch.testing.assert_close(found[0], expected[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[1, :4], expected[1, :4], atol=1e-3, rtol=1e-3)


def test_both_losses_by_their_formulas():
    student, objective = make(attribute_weight=2.0, distill_weight=3.0)
    student.eval(), objective.eval()
    features, lengths = batch(9, 5)
    targets = objective.teacher(features, lengths)
    objective.prototypes.update(torch.cat([targets[0], targets[1, :5]]))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 2:5] = mask[1, 1:3] = True
    scores = objective(student, features, lengths, mask)
    with torch.no_grad():
        z = student(features, lengths, mask_time=mask).hidden[-1]
        guess = objective.regress(z)
        smooth, entropy, hits = [], [], 0
        embeddings = functional.normalize(objective.classify.embeddings, dim=-1)
        for row, frame in mask.nonzero().tolist():
            for found, wanted in zip(guess[row, frame].tolist(), targets[row, frame].tolist()):
                gap = abs(found - wanted)
                smooth.append(0.5 * gap**2 if gap < 1 else gap - 0.5)
            direction = functional.normalize(targets[row, frame], dim=0)
            wanted = int((objective.prototypes.centroids @ direction).argmax())
            projected = functional.normalize(objective.classify.project(z[row, frame]), dim=0)
            logits = (embeddings @ projected / 0.1).tolist()
            entropy.append(math.log(sum(math.exp(v) for v in logits)) - logits[wanted])
            hits += logits.index(max(logits)) == wanted
    assert float(scores.distill_loss) == pytest.approx(sum(smooth) / len(smooth), abs=1e-5)
    assert float(scores.attribute_loss) == pytest.approx(sum(entropy) / 5, abs=1e-4)
    assert float(scores.accuracy) == pytest.approx(hits / 5)
    assert int(scores.frames) == 5
    assert len(scores.attributes) == 14
    both = 2 * float(scores.attribute_loss) + 3 * float(scores.distill_loss)
    assert float(scores.loss.detach()) == pytest.approx(both, abs=1e-5)


def test_only_the_student_and_the_heads_learn():
    student, objective = make()
    features, lengths = batch(9, 5)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 1:4] = True
    objective.train()(student.train(), features, lengths, mask).loss.backward()
    for name, parameter in [*student.named_parameters(), *objective.named_parameters()]:
        assert float(parameter.grad.abs().sum()) > 0, name
    assert not any(buffer.requires_grad for buffer in objective.buffers())


def test_clusters_move_in_training_only():
    student, objective = make()
    features, lengths = batch(9, 5)
    mask = span_mask(lengths, 0.3, 2)
    objective.eval()(student, features, lengths, mask)
    assert not objective.prototypes.is_started
    objective.train()(student, features, lengths, mask)
    assert objective.prototypes.is_started


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"clusters": 0}, ("attribute_loss", "accuracy", "attributes")),
        ({"distill_weight": 0.0}, ("distill_loss",)),
    ],
)
def test_ablations_leave_out_their_part(options, missing):
    student, objective = make(**options)
    features, lengths = batch(9, 5)
    scores = objective(student, features, lengths, span_mask(lengths, 0.3, 2))
    assert {name for name, value in scores._asdict().items() if value is None} == set(missing)
    left = {"attribute_loss", "distill_loss"} - set(missing)
    assert float(scores.loss.detach()) == pytest.approx(float(getattr(scores, left.pop())))
    scores.loss.backward()
    used = [p.grad is not None for p in objective.parameters()]
    assert all(used)


def test_no_masked_frame_is_no_loss():
    student, objective = make()
    features, lengths = batch(4)
    scores = objective(student, features, lengths, torch.zeros(1, 4, dtype=torch.bool))
    assert float(scores.loss.detach()) == 0
    scores.loss.backward()


def test_spread_tells_a_collapsed_teacher():
    student, objective = make()
    features, lengths = batch(9)
    mask = span_mask(lengths, 0.3, 2)
    assert float(objective(student, features, lengths, mask).spread) > 0.5
    still = features[:, :1].expand(-1, 9, -1)
    with torch.no_grad():
        for name, buffer in objective.teacher.adapter.named_buffers():
            if name.startswith("position"):
                buffer.zero_()
    assert float(objective(student, still, lengths, mask).spread) < 1e-3


def test_about_half_of_the_frames_are_masked():
    torch.manual_seed(0)
    lengths = torch.full((64,), 400)
    mask = span_mask(lengths, 0.065, 10)
    # a frame is free if none of the 10 spans over it starts: 0.935^10 = 0.511
    assert float(mask[:, 10:].float().mean()) == pytest.approx(1 - 0.935**10, abs=0.01)
