"""Any number of experts, any constraint, any module: the same numbers as `functional_call`."""

import copy
import itertools

import pytest
import torch
from backbone_common import FAMILIES, clips, small_body, small_config
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from espnet_adaltm.backbone.blocks import BlockMap, common_name
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging import pieces
from espnet_adaltm.merging.coefficients import CONSTRAINTS
from espnet_adaltm.merging.groups import GRANULARITIES, map_group
from espnet_adaltm.merging.merged import MergedEncoder, coefficients_for
from espnet_adaltm.merging.task_vector import TaskVector

PATTERN = r"^layers\.(?P<block>\d+)\.(?P<module>\w+)\."


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        return x + self.norm(self.mix(x)).tanh()


class Network(nn.Module):
    """Layers, a shared embedding, and a head that no expert touches."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x, *, scale=1.0):
        for layer in self.layers:
            x = layer(x)
        return self.head(x) * scale


def network():
    torch.manual_seed(0)
    return Network().double()


def differences(module, names, tasks, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in module.named_parameters() if name in names}
    return {
        task: TaskVector(
            {
                name: 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)
                for name, shape in shapes.items()
            }
        )
        for task in tasks
    }


def oracle(module, blocks, taus, coefficients, names=lambda path: path):
    """`state + lambda tau` through autograd, tensor by tensor."""
    columns = {group: place for place, group in enumerate(coefficients.groups)}
    values = coefficients()
    state = {}
    for path, weight in module.named_parameters():
        name = names(path)
        if name not in blocks:
            continue
        column = columns[map_group(blocks, name, coefficients.granularity)]
        delta = sum(values[k, column] * taus[t].tensors[name] for k, t in enumerate(taus))
        state[path] = weight.detach() + delta
    return lambda *args, **kwargs: functional_call(module, state, args, kwargs)


def merged_network():
    base = network()
    blocks = BlockMap.by_pattern(dict(base.named_parameters()), PATTERN)
    coefficients = coefficients_for(base, ["asr"], blocks=blocks)
    return MergedEncoder(base, differences(base, blocks, ["asr"]), coefficients, blocks=blocks)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("large", [1, 2**18])
def test_gradient_is_the_oracles(monkeypatch, count, granularity, constraint, large):
    monkeypatch.setattr(pieces, "LARGE", large)
    base = network()
    blocks = BlockMap.by_pattern(dict(base.named_parameters()), PATTERN)
    tasks = [f"task{k}" for k in range(count)]
    taus = differences(base, blocks, tasks)
    init = 1.0 if (constraint, count) == ("softmax", 1) else 1 / count if count > 1 else 0.4
    coefficients = coefficients_for(
        base, tasks, granularity, blocks=blocks, init=init, constraint=constraint
    )
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        coefficients.raw += 0.2 * torch.randn(coefficients.raw.shape, generator=generator)
    model = MergedEncoder(base, taus, coefficients, blocks=blocks).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = oracle(copy.deepcopy(base), blocks, taus, coefficients)(x, scale=2.0)
    (wanted,) = torch.autograd.grad(expected.sin().sum(), coefficients.raw)
    found = model(x, scale=2.0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    found.sin().sum().backward()
    scale = wanted.norm().clamp(min=1e-30)
    assert ((coefficients.raw.grad - wanted).norm() / scale).item() < 1e-6
    if constraint != "softmax" or count > 1:
        assert wanted.norm() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("large", [True, False])
def test_hugging_face_models_as_they_are(family, large):
    body = small_body(small_config(family, large=large)).double()
    tasks = ["asr", "ser"]
    coefficients = coefficients_for(body, tasks, "module")
    assert not any(parametrize.is_parametrized(part) for part in body.modules())
    blocks = BlockMap.of_module(body)
    assert not blocks.unmatched
    taus = differences(body, blocks, tasks)
    model = MergedEncoder(copy.deepcopy(body), taus, coefficients).double()
    assert model.unmerged == ()
    speech = clips(400, 400)[0].double()
    expected = oracle(body, blocks, taus, coefficients)(speech, output_hidden_states=True)
    (wanted,) = torch.autograd.grad(
        sum(hidden.sin().sum() for hidden in expected.hidden_states), coefficients.raw
    )
    found = model(speech, output_hidden_states=True)
    for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    sum(hidden.sin().sum() for hidden in found.hidden_states).backward()
    assert ((coefficients.raw.grad - wanted).norm() / wanted.norm()).item() < 1e-6
    body.load_state_dict(model.bake())
    with torch.no_grad():
        baked = body(speech).last_hidden_state
    torch.testing.assert_close(baked, expected.last_hidden_state, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [False, True])
def test_what_is_baked_fits_a_model_of_transformers_and_its_files(family, head, tmp_path):
    import transformers

    name = {"wavlm": "WavLM", "hubert": "Hubert", "wav2vec2": "Wav2Vec2"}[family]
    kind = getattr(transformers, f"{name}{'ForCTC' if head else 'Model'}")
    torch.manual_seed(0)
    base = kind(small_config(family, large=True, vocab_size=7)).eval()
    plain = kind(base.config)
    body = getattr(base, family) if head else base
    coefficients = coefficients_for(base, ["asr"])
    names = {common_name(path) for path, _ in body.named_parameters()}
    model = MergedEncoder(base, differences(body, names, ["asr"]), coefficients)
    speech, _ = clips(400, 400)
    with torch.no_grad():
        expected = model(speech)[0]
    plain.load_state_dict(model.bake(factored=True))
    plain.save_pretrained(tmp_path)
    read = kind.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(speech)[0], expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(read(speech)[0], plain(speech)[0])


def test_a_copy_of_the_base_outlives_its_weight_norm():
    base = small_body(small_config("wavlm", large=True))
    speech, _ = clips(400, 400)
    copied = copy.deepcopy(base)
    with torch.no_grad():
        expected = base(speech).last_hidden_state
        coefficients_for(base, ["asr"])
        assert torch.equal(copied(speech).last_hidden_state, expected)
        torch.testing.assert_close(base(speech).last_hidden_state, expected, rtol=0, atol=0)
    assert any(parametrize.is_parametrized(part) for part in copied.modules())
    assert not any(parametrize.is_parametrized(part) for part in base.modules())


def test_merging_within_a_forward_pass_is_refused():
    model = merged_network()
    before = model.merge()
    hook = model.encoder.layers[1].norm.register_forward_hook(lambda *_: model.merge())
    with pytest.raises(RuntimeError, match="within a forward pass"):
        model(torch.ones(2, 6, dtype=torch.float64))
    hook.remove()
    model(torch.ones(2, 6, dtype=torch.float64))
    after = model.merge()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_coefficients_that_are_not_finite_are_not_baked():
    model = merged_network()
    with torch.no_grad():
        model.coefficients.raw[0, 0] = float("nan")
    with pytest.raises(UserError, match="coefficients are not finite"):
        model.bake()


def test_a_model_with_a_head_is_merged_below_it():
    from transformers import WavLMForCTC

    torch.manual_seed(0)
    whole = WavLMForCTC(small_config("wavlm", large=True, vocab_size=7)).eval()
    head = whole.lm_head.weight.detach().clone()
    coefficients = coefficients_for(whole, ["asr"])
    names = {common_name(path) for path, _ in whole.wavlm.named_parameters()}
    taus = differences(whole.wavlm, names, ["asr"])
    model = MergedEncoder(whole, taus, coefficients)
    assert sorted(model.unmerged) == ["lm_head.bias", "lm_head.weight"]
    state = model.bake()
    assert torch.equal(state["lm_head.weight"], head)
    name = "encoder.layers.0.layer_norm.bias"
    expected = whole.get_parameter(f"wavlm.{name}") + 0.5 * taus["asr"].tensors[name].float()
    torch.testing.assert_close(state[f"wavlm.{name}"], expected)
    speech, _ = clips(400, 400)
    model(speech).logits.square().sum().backward()
    assert (coefficients.raw.grad != 0).all()
    assert whole.lm_head.weight.grad is None


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def test_shared_parameters_are_merged_in_every_place():
    base = Tied().double()
    blocks = BlockMap({"first.weight": (0, "all")})
    taus = differences(base, blocks, ["a"])
    coefficients = coefficients_for(base, ["a"], blocks=blocks)
    model = MergedEncoder(base, taus, coefficients, blocks=blocks)
    x = torch.randn(3, 4, dtype=torch.float64)
    weight = base.first.weight + 0.5 * taus["a"].tensors["first.weight"]
    found = model(x)
    torch.testing.assert_close(found, x @ weight.T @ weight.T)
    found.square().sum().backward()
    (wanted,) = torch.autograd.grad(
        oracle(base, blocks, taus, coefficients)(x).square().sum(), coefficients.raw
    )
    torch.testing.assert_close(coefficients.raw.grad, wanted)
    state = model.bake()
    assert set(state) == {"first.weight", "second.weight"}
    torch.testing.assert_close(state["second.weight"], weight)


class Speaker(nn.Module):
    """Words in and out by one table, with statistics between them."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.scale = nn.BatchNorm1d(4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(self.mix(self.scale(self.words(x))))


def speaker(seed):
    """A base, or with another seed an expert of it: all parameters moved, no statistics."""
    torch.manual_seed(0)
    module = Speaker().double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters() if seed else ():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.1 * noise
    return module


def speakers():
    base, expert = speaker(0), speaker(1)
    with torch.no_grad():
        expert.scale.running_mean += 0.5
    tau = TaskVector.from_checkpoints(base.state_dict(), expert.state_dict(), any_names=True)
    blocks = BlockMap(
        {name: (0, "all") for name, _ in base.named_parameters() if "scale" not in name}
        | {"scale.weight": (1, "all"), "scale.bias": (1, "all")}
    )
    return base, expert, tau, blocks


def test_vectors_of_networks_with_tied_weights_and_buffers():
    base, expert, tau, blocks = speakers()
    assert {"out.weight", "words.weight", "scale.running_mean"} <= tau.tensors.keys()
    words = torch.arange(7)
    coefficients = coefficients_for(base, ["a"], blocks=blocks)
    model = MergedEncoder(base, {"a": tau}, coefficients, blocks=blocks)
    assert model.unmerged == ("scale.running_mean", "scale.running_var")
    torch.nn.init.zeros_(coefficients.raw)
    assert torch.equal(model(words), base(words))
    state = model.bake()
    assert all(torch.equal(state[name], value) for name, value in base.state_dict().items())
    torch.nn.init.ones_(coefficients.raw)
    plain = copy.deepcopy(expert)
    plain.scale.running_mean.copy_(base.scale.running_mean)
    torch.testing.assert_close(model(words), plain(words), rtol=0, atol=1e-6)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.bake()[name], value, rtol=0, atol=1e-7)


def test_the_gradient_of_a_tied_weight_is_exact():
    base, _, tau, blocks = speakers()
    coefficients = coefficients_for(base, ["a"], init=0.3, blocks=blocks)
    model = MergedEncoder(base, {"a": tau}, coefficients, blocks=blocks)
    words = torch.arange(7)
    model(words).square().sum().backward()
    (wanted,) = torch.autograd.grad(
        oracle(base, blocks, {"a": tau}, coefficients)(words).square().sum(), coefficients.raw
    )
    torch.testing.assert_close(coefficients.raw.grad, wanted, rtol=1e-6, atol=0)
    once = {name: t for name, t in tau.tensors.items() if name != "words.weight"}
    other = MergedEncoder(base, {"a": TaskVector(once)}, coefficients, blocks=blocks)
    assert torch.equal(other.merge()["words.weight"], model.merge()["words.weight"])


def test_tied_weights_that_do_not_belong_together_are_told():
    base, _, tau, blocks = speakers()
    tensors = {**tau.tensors, "out.weight": tau.tensors["out.weight"] + 1}
    coefficients = coefficients_for(base, ["a"], blocks=blocks)
    with pytest.raises(UserError, match="'words.weight' are one tied weight .* move differently"):
        MergedEncoder(base, {"a": TaskVector(tensors)}, coefficients, blocks=blocks)
    for name, message in (
        ("out.weight", "is another name of the tied weight 'words.weight'"),
        ("scale.running_var", "is a buffer, which stays the base's"),
    ):
        wrong = BlockMap({name: (0, "all")})
        with pytest.raises(UserError, match=f"block map: '{name}' {message}"):
            MergedEncoder(
                base, {"a": tau}, coefficients_for(base, ["a"], blocks=wrong), blocks=wrong
            )


def test_parameters_are_merged_however_the_module_asks_for_them():
    class Curious(nn.Linear):
        def forward(self, x):
            ways = [
                self.weight,
                self._parameters["weight"],
                self._parameters.get("weight"),
                dict(self.named_parameters())["weight"],
                next(self.parameters()),
                next(iter(self._parameters.values())),
                self.state_dict()["weight"],
            ]
            assert self._parameters.get("none", 3) == 3
            assert all(torch.equal(a, b) for a, b in itertools.pairwise(ways))
            return x @ ways[0].T

    base = Curious(3, 3, bias=False)
    blocks = BlockMap({"weight": (0, "all")})
    coefficients = coefficients_for(base, ["a"], blocks=blocks)
    model = MergedEncoder(
        base, {"a": TaskVector({"weight": torch.eye(3)})}, coefficients, blocks=blocks
    )
    expected = base.weight.detach() + 0.5 * torch.eye(3)
    torch.testing.assert_close(model(torch.eye(3)), expected.T)


def test_mixed_precisions_keep_theirs():
    base = network().float()
    base.layers[1].norm.bfloat16()
    blocks = BlockMap.by_pattern(dict(base.named_parameters()), PATTERN)
    taus = {
        task: TaskVector({name: tensor.float() for name, tensor in tau.tensors.items()})
        for task, tau in differences(base, blocks, ["a"]).items()
    }
    model = MergedEncoder(base, taus, coefficients_for(base, ["a"], blocks=blocks), blocks=blocks)
    state = model.merge()
    assert state["layers.1.norm.weight"].dtype == torch.bfloat16
    assert state["layers.1.mix.weight"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 6)).sum().backward()
    assert model.coefficients.raw.grad.isfinite().all()


def test_what_cannot_be_merged_is_refused():
    recurrent = nn.LSTM(3, 3)
    names = [name for name, _ in recurrent.named_parameters()]
    blocks = BlockMap(dict.fromkeys(names, (0, "all")))
    taus = differences(recurrent, names, ["a"])
    with pytest.raises(UserError, match="recurrent layer"):
        MergedEncoder(
            recurrent, taus, coefficients_for(recurrent, ["a"], blocks=blocks), blocks=blocks
        )
    base = network()
    blocks = BlockMap({"layers.7.mix.weight": (0, "all")})
    with pytest.raises(UserError, match="'layers.7.mix.weight' is no parameter"):
        MergedEncoder(base, {}, coefficients_for(base, [], blocks=blocks), blocks=blocks)
    blocks = BlockMap.by_pattern(dict(base.named_parameters()), PATTERN)
    taus = differences(base, blocks, ["a"])
    taus["a"].tensors["layers.1.mix.bias"][3] = torch.nan
    with pytest.raises(UserError, match="task vector a: tensor 'layers.1.mix.bias' has NaN"):
        MergedEncoder(base, taus, coefficients_for(base, ["a"], blocks=blocks), blocks=blocks)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
def test_gradient_checkpointing_is_refused_where_it_would_run():
    body = small_body(small_config("wavlm", large=True))
    blocks = BlockMap.of_module(body)
    coefficients = coefficients_for(body, ["a"])
    taus = differences(body, BlockMap.of_module(body), ["a"])
    assert len(blocks) >= len(taus["a"].tensors)
    model = MergedEncoder(body, taus, coefficients, encoder_dropout=True)
    body.gradient_checkpointing_enable()
    speech, _ = clips(400, 400)
    model.eval()
    model(speech)
    model.train()
    with pytest.raises(UserError, match="gradient checkpointing"):
        model(speech)
