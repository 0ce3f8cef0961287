"""The same numbers as three independent implementations: peft, mergekit and FusionBench.

``tools/setup.sh --dev`` installs them. peft is equal element for element, mergekit's merged weights
are within 1e-6, FusionBench's gradients of the coefficients within 1e-5.
"""

import copy
import importlib.util
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import torch
from merging_common import any_precision, base_encoder, batch, moved, readout, seeded, vectors
from torch.func import functional_call

from espnet_adaltm.merging import arithmetic, sparsify
from espnet_adaltm.merging.groups import group_of
from espnet_adaltm.merging.merged import MergedEncoder, coefficients_for
from espnet_adaltm.merging.static import scaled
from espnet_adaltm.merging.task_vector import TaskVector

TASKS = ("asr", "ser")
DENSITIES = (0.0, 0.05, 0.3, 0.5, 0.77, 0.99)
SHAPES = ((), (1,), (7,), (33, 17), (4, 5, 6), (300, 300))


def load(package: str, file: str) -> ModuleType:
    """Run one file of an installed package, without what the package imports on its way."""
    try:
        path = Path(metadata.distribution(package).locate_file(file))
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed: run tools/setup.sh --dev")
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peft():
    return load("peft", "peft/utils/merge_utils.py")


@pytest.fixture(scope="module")
def mergekit():
    return pytest.importorskip("mergekit.merge_methods")


@pytest.fixture(scope="module")
def layer_wise():
    return pytest.importorskip("fusion_bench.models.wrappers.layer_wise_fusion")


def deltas(shape, count, seed=0):
    """Differences with equal magnitudes and zeros among them."""
    rows = [torch.randn(shape, generator=seeded(seed + k)) for k in range(count)]
    rounded = (torch.rand(shape, generator=seeded(seed + 99)) < 0.3).float()
    return [row * (1 - rounded) + (4 * row).round() / 4 * rounded for row in rows]


def factors(count):
    return torch.tensor([0.3, -1.7, 0.9, 2.0, 1.1, 0.1][:count])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
class TestPeft:
    """Element for element."""

    def test_task_arithmetic(self, peft, shape, count):
        rows, weights = deltas(shape, count), factors(count)
        expected = peft.task_arithmetic(rows, weights)
        assert torch.equal(arithmetic.task_arithmetic(rows, weights), expected)
        assert torch.equal(arithmetic.task_arithmetic(rows, weights.tolist()), expected)

    def test_magnitude_prune(self, peft, shape, count):
        rows, weights = deltas(shape, count), factors(count)
        for density in DENSITIES:
            expected = peft.magnitude_prune(rows, weights, density)
            assert torch.equal(arithmetic.magnitude_prune(rows, weights, density), expected)

    @pytest.mark.parametrize("elect", ["total", "frequency"])
    def test_ties(self, peft, shape, count, elect):
        rows, weights = deltas(shape, count), factors(count)
        for density in DENSITIES:
            expected = peft.ties(rows, weights, density, elect)
            assert torch.equal(arithmetic.ties(rows, weights, density, elect=elect), expected)

    def test_dare_linear(self, peft, shape, count):
        rows, weights = deltas(shape, count), factors(count)
        for density in DENSITIES[1:]:  # peft divides by the density: NaN at 0
            torch.manual_seed(5)
            expected = peft.dare_linear(rows, weights, density)
            torch.manual_seed(5)
            assert torch.equal(arithmetic.dare(rows, weights, density), expected)
            found = arithmetic.dare(rows, weights, density, generator=seeded(5))
            assert torch.equal(found, expected)

    @pytest.mark.parametrize("elect", ["total", "frequency"])
    def test_dare_ties(self, peft, shape, count, elect):
        rows, weights = deltas(shape, count), factors(count)
        for density in DENSITIES[1:]:
            torch.manual_seed(6)
            expected = peft.dare_ties(rows, weights, density, elect)
            found = arithmetic.dare_ties(rows, weights, density, elect=elect, generator=seeded(6))
            assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:The density")
def test_peft_with_everything_kept(peft):
    rows, weights = deltas((9, 9), 2), factors(2)
    expected = peft.ties(rows, weights, 1.0)
    assert torch.equal(arithmetic.ties(rows, weights, 1.0), expected)
    assert torch.equal(arithmetic.dare(rows, weights, 1.0), peft.dare_linear(rows, weights, 1.0))


def test_ties_over_the_whole_model_is_the_published_code():
    """FusionBench ships the TIES authors' functions, which keep one element more than asked for."""
    pytest.importorskip("fusion_bench.utils.type")
    published = load("fusion-bench", "fusion_bench/method/ties_merging/ties_merging_utils.py")
    vectors_ = [torch.randn(1024, generator=seeded(k)) for k in range(3)]
    for kept in (64, 512, 900):
        expected = published.ties_merging(
            torch.stack(vectors_), reset_thresh=(kept - 1) / 1024, merge_func="dis-mean"
        )
        whole = {str(k): TaskVector(split(vector)) for k, vector in enumerate(vectors_)}
        found = arithmetic.merge_vectors("ties", whole, density=kept / 1024, scope="model")
        flat = torch.cat([tensor.flatten() for tensor in found.tensors.values()])
        torch.testing.assert_close(flat, expected, rtol=0, atol=1e-6)


def split(vector):
    return {"large": vector[:1000].reshape(10, 100), "small": vector[1000:]}


def experts_of(base):
    """The base and its experts as state dictionaries, and the experts' vectors."""
    models = {"base": base, "asr": moved(base, 11), "ser": moved(base, 12)}
    states = {
        name: {key: tensor.detach().clone() for key, tensor in model.encoder_state().items()}
        for name, model in models.items()
    }
    return states, vectors(base)


def scattered(model, seed=5):
    with torch.no_grad():
        raw = model.coefficients.raw
        raw.copy_(torch.rand(raw.shape, generator=seeded(seed)) * 1.5 - 0.25)


@pytest.mark.parametrize("granularity", ["tensor", "block"])
def test_baked_weights_are_those_of_mergekit(mergekit, granularity):
    base = base_encoder()
    states, taus = experts_of(base)
    model = MergedEncoder(base, taus, coefficients_for(base, TASKS, granularity))
    scattered(model)
    columns = {group: place for place, group in enumerate(model.coefficients.groups)}
    table = model.coefficients.table()
    places = [columns[group_of(name, base.num_layers, granularity)] for name in states["base"]]
    weights = [{task: row[place] for task, row in zip(TASKS, table)} for place in places]
    expected = mergekit.merge_state_dicts(
        states,
        "task_arithmetic",
        base="base",
        parameters={"weight": mergekit.PerGroupValues(weights), "normalize": False},
    )
    found = model.bake()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
        assert not torch.equal(tensor, states["base"][name])


def test_merged_vectors_are_those_of_mergekit(mergekit):
    states, taus = experts_of(base_encoder())
    weights = {"asr": 0.3, "ser": -1.2}
    shared = {"weight": weights, "density": 0.4}
    rows = (
        ("ties", shared, {"minimum": 1, "elect_on": "weighted", "normalize": "weights"}),
        ("breadcrumbs", {**shared, "gamma": 0.05}, {"outliers": 0.05}),
    )
    for method, theirs, ours in rows:
        expected = mergekit.merge_state_dicts(states, method, base="base", parameters=theirs)
        found = arithmetic.merge_vectors(method, taus, weights, density=0.4, **ours)
        for name, tensor in expected.items():
            merged = states["base"][name] + found.tensors[name]
            torch.testing.assert_close(merged, tensor, rtol=0, atol=1e-6)


def test_model_stock_and_slerp_are_those_of_mergekit(mergekit):
    states, taus = experts_of(base_encoder())
    # deltas with a common part, so that the experts agree somewhat
    rows = [tau.tensors for tau in taus.values()]
    for name, base in states["base"].items():
        pair = [rows[0][name] + rows[1][name], rows[0][name] - 0.5 * rows[1][name]]
        experts = [base + delta for delta in pair]
        expected = mergekit.merge_tensors([base, *experts], "model_stock", base_index=0)
        found = base + arithmetic.model_stock([expert - base for expert in experts])
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)
        flat = [delta.reshape(1, -1) for delta in pair]
        expected = mergekit.merge_tensors(flat, "slerp", parameters={"t": 0.3}, base_index=0)
        found = arithmetic.slerp(*pair, 0.3)
        torch.testing.assert_close(found.reshape(1, -1), expected, rtol=1e-5, atol=1e-6)


def test_probabilities_of_della_are_those_of_mergekit(mergekit):
    from mergekit.sparsify import della_magprune, magnitude_outliers

    for shape in ((50, 40), (300,)):
        values = torch.randn(shape, generator=seeded(1))
        torch.manual_seed(2)
        expected = della_magprune(values, 0.4, 0.2)
        found = sparsify.magprune(values, 0.4, epsilon=0.2, rescale=False, generator=seeded(2))
        assert torch.equal(found, expected)
        for density, gamma in ((0.4, 0.1), (0.95, 0.2)):
            expected = magnitude_outliers(values, density, gamma=gamma)
            found = sparsify.without_outliers(values, density, outliers=gamma)
            assert torch.equal(found, expected)


def fusion_gradient(layer_wise, base, values, names, inputs):
    """dL/dlambda [K, tensors] by FusionBench, its columns in the order of ``names``."""
    experts = [moved(base, seed).requires_grad_(True) for seed in (11, 12)]
    paths = [path for path, _ in base.named_parameters()]
    order = [paths.index(f"body.{name}") for name in names]
    weights = torch.empty(len(TASKS), len(paths), dtype=values.dtype)
    weights[:, order] = values
    model = layer_wise.LayerWiseMergedModel(weights, base, experts, clamp_weights=False)
    readout(model(*inputs)).backward()
    return model.merge_weight.grad[:, order]


def oracle_gradient(base, taus, values, names, inputs):
    """The same through `state + lambda tau`, tensor by tensor."""
    values = values.clone().requires_grad_(True)
    state = {
        f"body.{name}": base.get_parameter(f"body.{name}").detach()
        + sum(values[k, column] * taus[task].tensors[name] for k, task in enumerate(TASKS))
        for column, name in enumerate(names)
    }
    readout(functional_call(base, state, inputs)).backward()
    return values.grad


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_gradient_is_that_of_fusion_bench_and_of_the_oracle(layer_wise, dtype, tolerance):
    base = any_precision(base_encoder()).to(dtype).requires_grad_(True)
    speech, lengths = batch()
    inputs = (speech.to(dtype), lengths)
    states = [moved(base, seed).encoder_state() for seed in (11, 12)]
    taus = {
        task: TaskVector({n: (t - base.encoder_state()[n]).detach() for n, t in state.items()})
        for task, state in zip(TASKS, states)
    }
    ours = MergedEncoder(copy.deepcopy(base), taus, coefficients_for(base, TASKS, "tensor"))
    ours = ours.to(dtype)
    scattered(ours)
    names, values = list(ours.coefficients.groups), ours.coefficients.raw.detach().clone()
    readout(ours(*inputs)).backward()
    found = ours.coefficients.raw.grad
    assert found.abs().max() > 0
    assert relative(found, oracle_gradient(base, taus, values, names, inputs)) < tolerance
    expected = fusion_gradient(layer_wise, copy.deepcopy(base), values, names, inputs)
    assert relative(found, expected) < tolerance


def test_every_block_gradient_equals_finite_differences():
    base = any_precision(base_encoder()).double()
    model = MergedEncoder(base, vectors(base_encoder()), coefficients_for(base, TASKS)).double()
    scattered(model)
    speech, lengths = batch()
    inputs = (speech.double(), lengths)
    readout(model(*inputs)).backward()
    raw, step = model.coefficients.raw, 1e-5
    numeric = torch.empty_like(raw)
    for place in torch.cartesian_prod(*map(torch.arange, raw.shape)).tolist():
        ends = []
        for shift in (step, -step):
            with torch.no_grad():
                raw[tuple(place)] += shift
                ends.append(readout(model(*inputs)).item())
                raw[tuple(place)] -= shift
        numeric[tuple(place)] = (ends[0] - ends[1]) / (2 * step)
    assert relative(raw.grad, numeric.detach()) < 1e-7


def test_one_global_coefficient_per_task_is_task_arithmetic(peft):
    base = base_encoder()
    states, taus = experts_of(base)
    weights = {"asr": 0.25, "ser": 1.5}
    found = MergedEncoder(base, taus, scaled(base, weights)).bake()
    for name, tensor in states["base"].items():
        rows = [taus[task].tensors[name] for task in TASKS]
        expected = tensor + peft.task_arithmetic(rows, torch.tensor(list(weights.values())))
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
