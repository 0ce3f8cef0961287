"""A merge's loss under every objective, against what it is by definition."""

import itertools
import math

import pytest
import torch
from training_common import ENCODER

from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.merging.merged import MergedEncoder, coefficients_for
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.models.ctc import CTCHead
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.models.losses import build_loss
from espnet_adaltm.training.merge_model import MergeModel, Objective, Teacher

COUNTS = [6, 3, 1]
VOCAB = 3
TARGETS = torch.tensor([[1, 2], [2, -1], [-1, -1]])  # token ids; the last has no transcript
FRAMES = torch.tensor([5, 4, 3])


def encoder(seed=0, move=0.0):
    built = random_encoder(tiny_config(**ENCODER), seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(move * torch.randn(parameter.shape, generator=generator))
    return built


def emotion_head(seed):
    torch.manual_seed(seed)
    head = EmotionHead(2, 16, len(COUNTS), hidden=8)
    with torch.no_grad():  # opinions that depend on what is heard
        for parameter in head.parameters():
            parameter.mul_(3)
    return head


def ctc_head():
    torch.manual_seed(9)
    head = CTCHead(16, VOCAB, dropout=0.5)
    torch.nn.init.normal_(head.linear.weight, std=0.5)
    return head


def teachers():
    """Two experts, by task: encoder and head."""
    return {
        "asr": Teacher(ctc_head(), encoder(1, 0.1), _Decoder()),
        "ser": Teacher(emotion_head(8), encoder(2, 0.1)),
    }


class _Decoder:
    @staticmethod
    def decode(ids):
        return " ".join("-ab"[index] for index in ids)


def model(objective=None, tasks=("asr", "ser"), init=0.5, loss=True, train_head=True):
    base = encoder()
    experts = teachers()
    vectors = {
        task: TaskVector.from_checkpoints(
            base.encoder_state(), experts[task].encoder.encoder_state()
        )
        for task in tasks
    }
    coefficients = coefficients_for(base, tasks, "block", init=init)
    merged = MergedEncoder(base, vectors, coefficients)
    head = emotion_head(3).requires_grad_(train_head)
    chosen = build_loss("cb_soft_ce", COUNTS) if loss else None
    return MergeModel(merged, head, chosen, len(COUNTS), None, objective)


def batch():
    """CNN features of three utterances, [3, 5, 16]; emotions; transcripts."""
    generator = torch.Generator().manual_seed(4)
    return {
        "speech": torch.randn(3, 5, 16, generator=generator),
        "speech_lengths": FRAMES,
        "emotion": torch.eye(3)[[0, 2, 1]],
        "text": TARGETS,
        "text_lengths": torch.tensor([2, 1, 0]),
    }


def outputs(built):
    built.eval()
    with torch.no_grad():
        output = built.encode(batch()["speech"], FRAMES)
        return output, built.head(output.hidden, output.lengths)


def emotion_loss(logits):
    """AdaLTM's: weight of the class times cross-entropy."""
    beta = (sum(COUNTS) - 1) / sum(COUNTS)
    raw = [(1 - beta) / (1 - beta**count) for count in COUNTS]
    weights = [value * len(COUNTS) / sum(raw) for value in raw]
    logs = logits.log_softmax(-1)
    return [-weights[label] * float(logs[row, label]) for row, label in enumerate((0, 2, 1))]


def loss_of(built):
    built.eval()
    with torch.no_grad():
        loss, stats, weight = built(**batch(), utt_id=["a", "b", "c"])
    assert float(weight) == 3
    return float(loss), {name: float(value) for name, value in stats.items()}


def test_supervised_is_the_emotion_loss_alone():
    built = model()
    expected = sum(emotion_loss(outputs(built)[1])) / 3
    loss, stats = loss_of(built)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert set(stats) == {"loss"}


def test_entropy_is_that_of_the_predictions():
    built = model(Objective("entropy"), loss=False, train_head=False)
    p = outputs(built)[1].double().softmax(-1)
    expected = sum(-float(v) * math.log(float(v)) for v in p.flatten()) / 3
    assert loss_of(built)[0] == pytest.approx(expected, rel=1e-5)


def test_entropy_needs_no_labels_and_others_change_nothing():
    built = model(Objective("entropy"), loss=False, train_head=False).train()
    losses = []
    for change in (
        {},
        {"emotion": torch.eye(3)[[1, 1, 0]]},
        {"emotion": None, "text": None},
    ):
        loss, *_ = built(**{**batch(), **change})
        built.zero_grad()
        loss.backward()
        losses.append((float(loss.detach()), built.encoder.coefficients.raw.grad.clone()))
    assert losses[0][0] == losses[1][0] == losses[2][0]
    assert torch.equal(losses[0][1], losses[1][1])
    assert torch.equal(losses[0][1], losses[2][1])
    assert losses[0][1].abs().min() > 0
    assert all(parameter.grad is None for parameter in built.head.parameters())


def collapse(path):
    return [token for token, _ in itertools.groupby(path) if token]


def brute_force_ctc(log_probs, target):
    """- log of the summed probability of every path that spells the target."""
    frames, vocab = log_probs.shape
    total = sum(
        math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
        for path in itertools.product(range(vocab), repeat=frames)
        if collapse(path) == target
    )
    return -math.log(total)


def test_ctc_term_is_the_experts_head_on_the_merged_encoder():
    built = model(Objective("supervised_ctc", ctc_weight=0.7, teachers={"asr": teachers()["asr"]}))
    output, logits = outputs(built)
    head = ctc_head()
    with torch.no_grad():
        logs = (output.hidden[-1] @ head.linear.weight.T + head.linear.bias).log_softmax(-1)
    per_token = [
        brute_force_ctc(logs[0, :5], [1, 2]) / 2,
        brute_force_ctc(logs[1, :4], [2]) / 1,
        0.0,  # no transcript
    ]
    emotion = emotion_loss(logits)
    loss, stats = loss_of(built)
    expected = sum(e + 0.7 * c for e, c in zip(emotion, per_token)) / 3
    assert loss == pytest.approx(expected, rel=1e-4)
    assert stats["loss_ctc"] == pytest.approx(sum(per_token) / 3, rel=1e-4)
    assert stats["loss_emotion"] == pytest.approx(sum(emotion) / 3, rel=1e-5)


def test_words_are_counted_where_there_is_a_transcript():
    built = model(Objective("supervised_ctc", teachers={"asr": teachers()["asr"]}))
    loss_of(built)
    assert built.metric.parts[1].counts[1] == 3  # words of the references "a b" and "b"
    values = built.metric.compute()
    assert {"macro_f1", "uar", "acc", "wer", "cer"} == values.keys()
    built.metric.reset()
    assert built.metric.compute() == {}


def test_only_coefficients_and_emotion_head_learn_or_are_saved():
    experts = teachers()
    for objective in (
        Objective("supervised_ctc", teachers={"asr": experts["asr"]}),
        Objective("supervised_distill", distill_weights={"asr": 1, "ser": 1}, teachers=experts),
    ):
        built = model(objective).train()
        assert {name.split(".")[0] for name in built.state_dict()} == {"encoder", "head"}
        before = experts["asr"].head.linear.weight.clone()
        loss, *_ = built(**batch())
        loss.backward()
        learned = {name for name, p in built.named_parameters() if p.grad is not None}
        assert learned == {name for name, _ in built.named_parameters()}
        assert built.encoder.coefficients.raw.grad.abs().min() > 0
        for teacher in objective.teachers.values():
            for module in (teacher.head, teacher.encoder):
                assert not module.training
                assert all(p.grad is None and not p.requires_grad for p in module.parameters())
        assert torch.equal(experts["asr"].head.linear.weight, before)


def distilled(on="logits", weights=None, **options):
    weights = {"asr": 0.4, "ser": 2.0} if weights is None else weights
    experts = {task: teacher for task, teacher in teachers().items() if task in weights}
    return model(Objective("supervised_distill", 0.0, weights, on, experts), **options)


def kl(teacher, student):
    p, q = (logits.double().softmax(-1) for logits in (teacher, student))
    return (p * (p.log() - q.log())).sum(-1)


def test_distillation_on_what_the_heads_say():
    built = distilled()
    output, logits = outputs(built)
    asr, ser = teachers().values()
    with torch.no_grad():
        hidden = {
            task: teacher.encoder.eval()(batch()["speech"], FRAMES).hidden
            for task, teacher in (("asr", asr), ("ser", ser))
        }
        for teacher in (asr, ser):
            teacher.head.eval()
        frames = kl(asr.head(hidden["asr"][-1]), asr.head(output.hidden[-1]))
        words = [float(row[:n].mean()) for row, n in zip(frames, FRAMES)]
        feelings = kl(ser.head(hidden["ser"], FRAMES), ser.head(output.hidden, FRAMES)).tolist()
    emotion = emotion_loss(logits)
    expected = sum(e + 0.4 * a + 2.0 * s for e, a, s in zip(emotion, words, feelings)) / 3
    loss, stats = loss_of(built)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert stats["loss_distill_asr"] == pytest.approx(sum(words) / 3, rel=1e-4)
    assert stats["loss_distill_ser"] == pytest.approx(sum(feelings) / 3, rel=1e-4)


@pytest.mark.parametrize("on", ["logits", "hidden"])
@pytest.mark.parametrize("task", ["asr", "ser"])
def test_distillation_is_zero_when_the_student_is_the_teacher(on, task):
    """One task vector under 1 is its expert."""
    name = f"loss_distill_{task}"
    same = loss_of(distilled(on, {task: 1.0}, tasks=(task,), init=1.0))[1]
    apart = loss_of(distilled(on, {task: 1.0}, tasks=(task,), init=0.5))[1]
    assert same[name] == pytest.approx(0.0, abs=1e-6)
    assert apart[name] > 1e-3
    assert same["loss"] == pytest.approx(same["loss_emotion"], abs=1e-6)


def test_teachers_do_not_see_padding_or_its_frames():
    built = distilled()
    alone = {name: value[1:2] for name, value in batch().items()}
    alone |= {"speech": alone["speech"][:, :4]}
    built.eval()
    with torch.no_grad():
        output = built.encode(batch()["speech"], FRAMES)
        logits = built.head(output.hidden, FRAMES)
        many = built._distances(output, logits, batch()["speech"], FRAMES)
        output = built.encode(alone["speech"], alone["speech_lengths"])
        one = built._distances(output, logits[1:2], alone["speech"], alone["speech_lengths"])
    for task in ("asr", "ser"):
        assert float(one[task]) == pytest.approx(float(many[task][1]), rel=1e-4)


def test_a_frozen_head_has_no_dropout_in_training():
    built = model(Objective("entropy"), loss=False, train_head=False).train()
    assert built.training
    assert not built.head.training
    first, second = (float(built(**batch())[0].detach()) for _ in range(2))
    assert first == second
    trained = model().train()
    assert trained.head.training
    losses = {float(trained(**batch())[0].detach()) for _ in range(4)}
    assert len(losses) > 1


def test_teachers_follow_to_another_type():
    built = distilled().to(torch.float64)
    for part in ("asr", "asr_head", "ser", "ser_head"):
        parameters = built.teachers[part].module.parameters()
        assert {parameter.dtype for parameter in parameters} == {torch.float64}
