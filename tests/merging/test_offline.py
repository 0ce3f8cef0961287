"""File to file gives the bits of the plain merge in memory, and next to no memory is used."""

import subprocess
import sys

import pytest
import torch
from merging_common import LAYERS, base_encoder, moved, vectors
from safetensors.torch import load_file, save_file

from espnet_adaltm.backbone.loading import save_encoder
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import sha256_file
from espnet_adaltm.merging import stream
from espnet_adaltm.merging.arithmetic import merge_vectors, task_arithmetic
from espnet_adaltm.merging.groups import group_of
from espnet_adaltm.merging.merged import MergedEncoder, coefficients_for
from espnet_adaltm.merging.offline import merge_state, write_merged
from espnet_adaltm.merging.plan import MergePlan
from espnet_adaltm.merging.recipe import Recipe
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.merging.weights import NORM_SPELLINGS, POS_WEIGHT, open_weights

NAME = "encoder.layers.1.attention.k_proj.weight"
TASKS = ("asr", "ser")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a base and two experts, and files of their vectors."""
    root = tmp_path_factory.mktemp("offline")
    base = base_encoder()
    save_encoder(base, root / "base")
    for seed, task in enumerate(TASKS, 11):
        save_encoder(moved(base, seed), root / task)
        vector = TaskVector.from_checkpoints(root / "base", root / task)
        vector.save(root / f"{task}.safetensors")
    return root


def experts(folders):
    return {task: folders / task for task in TASKS}


def files(folders):
    return {task: folders / f"{task}.safetensors" for task in TASKS}


def loaded(source):
    with open_weights(source) as weights:
        return dict(weights.items())


def in_memory(folders, recipe):
    found = {task: TaskVector.load(file) for task, file in files(folders).items()}
    return merge_state(loaded(folders / "base"), found, recipe)


def to_file(folders, out, recipe, threads=2, **given):
    with MergePlan(folders / "base", recipe, **given) as plan:
        write_merged(plan, out, threads=threads)
    return loaded(out)


RECIPES = {
    "default": {},
    "blocks": {"weights": {"asr": 0.3, "ser": [0.1, 0.0, -0.7]}, "scale": 0.9},
    "module": {"granularity": "module", "weights": {"asr": {"*.attention": 0.5}, "ser": 0.2}},
    "tensor": {"granularity": "tensor", "weights": {"asr": {NAME: 0.5}, "ser": {"*bias": 1}}},
    "ties": {"method": "ties", "options": {"density": 0.3}, "weights": {"asr": 0.3, "ser": 1}},
    "ties_model": {"method": "ties", "options": {"density": 0.3, "scope": "model"}, "scale": 0.5},
    "dare": {"method": "dare", "options": {"density": 0.3}, "seed": 3},
    "della": {"method": "della", "options": {"density": 0.5}},
    "breadcrumbs": {"method": "breadcrumbs", "options": {"density": 0.5}},
    "slerp": {"method": "slerp"},
    "model_stock": {"method": "model_stock"},
    "low_rank": {"preprocess": {"method": "low_rank", "rank": 2}, "weights": 0.5},
    "shuffled": {"preprocess": {"method": "shuffled_blocks", "seed": 1}},
}


@pytest.mark.parametrize("name", RECIPES)
def test_files_give_the_bits_of_memory(folders, tmp_path, name, monkeypatch):
    monkeypatch.setattr(stream, "PIECE", 50)
    recipe = Recipe.from_dict(RECIPES[name])
    expected = in_memory(folders, recipe)
    for given in ({"experts": experts(folders)}, {"vectors": files(folders)}):
        found = to_file(folders, tmp_path / "out", recipe, **given)
        assert found.keys() == expected.keys()
        different = [n for n in expected if not torch.equal(found[n], expected[n])]
        assert different == []
    moved_by_it = [n for n, t in loaded(folders / "base").items() if not torch.equal(t, found[n])]
    assert moved_by_it


def test_one_of_each_and_any_number_of_threads_make_no_difference(folders, tmp_path):
    recipe = Recipe.from_dict(RECIPES["dare"])
    mixed = {"experts": {"asr": folders / "asr"}, "vectors": {"ser": folders / "ser.safetensors"}}
    recipe = Recipe.from_dict({**RECIPES["dare"], "tasks": list(TASKS)})
    hashes = set()
    for threads in (1, 3):
        to_file(folders, tmp_path / "out", recipe, threads, **mixed)
        hashes.add(sha256_file(tmp_path / "out"))
    to_file(folders, tmp_path / "out", recipe, experts=experts(folders))
    assert hashes == {sha256_file(tmp_path / "out")}


def test_five_tasks_are_added_in_the_order_of_memory(folders, tmp_path):
    base = base_encoder()
    found = {f"t{seed}": moved(base, seed) for seed in range(5)}
    for task, encoder in found.items():
        save_encoder(encoder, tmp_path / task)
    recipe = Recipe.from_dict({"weights": 0.2})
    streamed = to_file(folders, tmp_path / "out", recipe, experts={t: tmp_path / t for t in found})
    state = loaded(folders / "base")
    taus = {t: TaskVector.from_checkpoints(folders / "base", tmp_path / t) for t in found}
    expected = state[NAME] + task_arithmetic(
        [tau.tensors[NAME] for tau in taus.values()], [0.2] * 5
    )
    assert torch.equal(streamed[NAME], expected)


def test_the_formula_is_written_out():
    base = {"layers.0.w": torch.tensor([1.0, 2.0]), "head.w": torch.tensor([5.0])}
    asr = TaskVector({"layers.0.w": torch.tensor([0.5, -1.0]), "head.w": torch.tensor([1.0])})
    ser = TaskVector({"layers.0.w": torch.tensor([2.0, 4.0]), "head.w": torch.tensor([1.0])})
    options = {"any_names": True, "block_pattern": r"^layers\.(?P<block>\d+)\.", "scale": 0.5}
    recipe = Recipe.from_dict({**options, "weights": {"asr": 1.0, "ser": 0.25}})
    merged = merge_state(base, {"asr": asr, "ser": ser}, recipe)
    assert merged["layers.0.w"].tolist() == [1.5, 2.0]
    assert merged["head.w"].tolist() == [5.0]


def test_it_is_the_merge_of_methods_by_name(folders):
    found = {task: TaskVector.load(file) for task, file in files(folders).items()}
    state = loaded(folders / "base")
    for method, options in (("ties", {"density": 0.3}), ("dare", {"density": 0.3, "seed": 3})):
        tau = merge_vectors(method, found, 1.0, **options)
        rest = {key: value for key, value in options.items() if key != "seed"}
        recipe = Recipe.from_dict({"method": method, "options": rest, "seed": 3})
        merged = merge_state(state, found, recipe)
        assert all(torch.equal(merged[n], state[n] + tau.tensors[n]) for n in state)


def test_it_agrees_with_the_encoder_that_learns(folders):
    base = base_encoder()
    table = [[0.1, 0.4, 0.9], [0.7, -0.2, 0.3]]
    coefficients = coefficients_for(base, list(TASKS), "block", trainable=False)
    coefficients.raw.data.copy_(torch.tensor(table))
    taus = vectors(base)
    baked = MergedEncoder(base_encoder(), taus, coefficients).bake()
    recipe = Recipe.from_dict({"weights": dict(zip(TASKS, table))})
    for name, tensor in merge_state(base.encoder_state(), taus, recipe).items():
        torch.testing.assert_close(tensor, baked[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"weights": 0}, {"scale": 0}, {"tasks": []}])
def test_zero_is_the_base_bit_for_bit_with_its_own_factors(folders, tmp_path, options):
    recipe = Recipe.from_dict(options)
    given = {} if options == {"tasks": []} else experts(folders)
    to_file(folders, tmp_path / "out", recipe, experts=given)
    expected = load_file(folders / "base" / "model.safetensors")
    found = load_file(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_one_is_the_expert_within_rounding(folders, tmp_path):
    recipe = Recipe.from_dict({"weights": {"asr": 0, "ser": 1}})
    found = to_file(folders, tmp_path / "out", recipe, experts=experts(folders))
    for name, tensor in loaded(folders / "ser").items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_groups_without_weight_stay_the_base_and_the_others_do_not(folders, tmp_path):
    recipe = Recipe.from_dict({"weights": {"asr": {"block1": 0.5}, "ser": {"block1": 0.1}}})
    found = to_file(folders, tmp_path / "out", recipe, experts=experts(folders))
    for name, tensor in loaded(folders / "base").items():
        same = torch.equal(found[name], tensor)
        assert same == (group_of(name, LAYERS, "block") != "block1"), name
    g, v = (load_file(tmp_path / "out")[key] for key in NORM_SPELLINGS[0])
    own = load_file(folders / "base" / "model.safetensors")
    assert torch.equal(g, own[NORM_SPELLINGS[0][0]])
    assert torch.equal(v, own[NORM_SPELLINGS[0][1]])


def test_the_effective_weight_of_the_convolution_is_merged(folders, tmp_path):
    found = to_file(folders, tmp_path / "out", Recipe(), experts=experts(folders))
    states = [loaded(folders / name)[POS_WEIGHT] for name in ("base", *TASKS)]
    taus = [state - states[0] for state in states[1:]]
    assert torch.equal(found[POS_WEIGHT], states[0] + (taus[0] + taus[1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32_and_rounded_once(folders, tmp_path, dtype):
    word = str(dtype).removeprefix("torch.")
    full = to_file(folders, tmp_path / "a", Recipe(), experts=experts(folders))
    low = to_file(folders, tmp_path / "b", Recipe(dtype=word), experts=experts(folders))
    assert torch.equal(low[NAME], full[NAME].to(dtype))
    inputs = {}
    for name in ("base", *TASKS):
        (tmp_path / name).mkdir()
        inputs[name] = {k: v.to(dtype).contiguous() for k, v in loaded(folders / name).items()}
        save_file(inputs[name], tmp_path / name / "model.safetensors")
    found = to_file(tmp_path, tmp_path / "c", Recipe(), experts=experts(tmp_path))
    base, asr, ser = (inputs[name][NAME].float() for name in ("base", *TASKS))
    assert found[NAME].dtype == torch.float32
    assert torch.equal(found[NAME], base + ((asr - base) + (ser - base)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_files_differ_from_memory_in_the_convolution_alone(folders, tmp_path, dtype):
    recipe = Recipe(dtype=str(dtype).removeprefix("torch."))
    expected = in_memory(folders, recipe)
    found = to_file(folders, tmp_path / "out", recipe, experts=experts(folders))
    assert [n for n in expected if not torch.equal(found[n], expected[n])] == [POS_WEIGHT]
    bits = [t[POS_WEIGHT].view(torch.int16).int() for t in (expected, found)]
    assert (bits[0] - bits[1]).abs().max() == 1


def test_constants_are_the_bases_and_vectors_are_kept_on_the_way(folders, tmp_path):
    table = "encoder.layers.0.attention.table"
    for name in ("base", *TASKS):
        state = load_file(folders / name / "model.safetensors")
        (tmp_path / name).mkdir()
        save_file({**state, table: torch.arange(4)}, tmp_path / name / "model.safetensors")
    recipe = Recipe.from_dict({"weights": {"asr": 0, "ser": {"block1": 1}}})
    kept = {task: tmp_path / f"{task}_kept" for task in TASKS}
    with MergePlan(tmp_path / "base", recipe, experts=experts(tmp_path)) as plan:
        hashes = plan.hashes()
        sizes = write_merged(plan, tmp_path / "out", vectors=kept, hashes=hashes)
        assert plan.kept[table] == "constant"
    assert load_file(tmp_path / "out")[table].tolist() == [0, 1, 2, 3]
    for task in TASKS:
        tau = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / task)
        back = TaskVector.load(kept[task])
        assert back.tensors.keys() == tau.tensors.keys()
        assert all(torch.equal(back.tensors[n], tau.tensors[n]) for n in tau.tensors)
        assert all(back.metadata[key] == value for key, value in tau.metadata.items())
        square = sum(float(t.double().square().sum()) for t in tau.tensors.values())
        assert sum(sizes.tasks[task].values()) == pytest.approx(square, rel=1e-4)


def broken(folders, tmp_path, task, change):
    """Expert folders, one of them changed."""
    state = load_file(folders / task / "model.safetensors")
    state = change(state) or state
    (tmp_path / task).mkdir()
    save_file(state, tmp_path / task / "model.safetensors")
    return {**experts(folders), task: tmp_path / task}


def wide(state):
    return {**state, NAME: torch.zeros(32, 32)}


def half(state):
    return {key: tensor.half() for key, tensor in state.items()}


def shallow(state):
    return {key: tensor for key, tensor in state.items() if "layers.1." not in key}


def foreign(state):
    return {**state, "decoder.weight": torch.ones(1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wide, rf"'{NAME}': shape \(16, 16\) in .*base.*, \(32, 32\) in .*ser"),
        (half, r"dtype torch.float32 in .*base.*, torch.float16 in .*ser"),
        (shallow, r"is in .*base.* but not in .*ser.*\(2 and 1 layers\)"),
        (foreign, r"ser.*: tensor 'decoder.weight' belongs neither to a WavLM"),
    ],
)
def test_experts_that_do_not_fit_are_told_before_anything_is_read(
    folders, tmp_path, change, message, monkeypatch
):
    given = broken(folders, tmp_path, "ser", change)
    monkeypatch.setattr(stream.Weights, "items", None)
    with pytest.raises(UserError, match=message):
        MergePlan(folders / "base", Recipe(), experts=given)


def test_vocabularies_may_differ_as_heads_are_left_out(folders, tmp_path):
    given = broken(
        folders, tmp_path, "ser", lambda state: {**state, "lm_head.weight": torch.ones(7, 16)}
    )
    with MergePlan(folders / "base", Recipe(), experts=given) as plan:
        assert plan.sources[1].left_out == ("lm_head.weight",)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", ["blocks", "ties"])
def test_values_that_are_not_finite_are_named(folders, tmp_path, value, method):
    def spoil(state):
        state[NAME][3, 4] = value

    recipe = Recipe.from_dict(RECIPES[method])
    given = broken(folders, tmp_path, "ser", spoil)
    with pytest.raises(UserError, match=f"'{NAME}' has NaN or infinite values"):
        to_file(folders, tmp_path / "out", recipe, experts=given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16", "scale": 1e7}, "too large for float16: choose dtype float32"),
        ({"scale": 1e39}, "too large for float32: give smaller weights"),
    ],
)
def test_a_sum_too_large_for_the_stored_dtype_is_told(folders, tmp_path, options, message):
    message = f"NaN or infinite values in the merged model: they are {message}"
    with pytest.raises(UserError, match=message):
        to_file(folders, tmp_path / "out", Recipe(**options), experts=experts(folders))
    with pytest.raises(UserError, match=message):
        in_memory(folders, Recipe(**options))


@pytest.mark.parametrize("name", ["encoder.layers.0.layer_norm.bias", NAME, POS_WEIGHT])
@pytest.mark.parametrize("given", ["experts", "vectors"])
def test_a_base_that_is_not_finite_is_named_not_the_experts(folders, tmp_path, name, given):
    state = loaded(folders / "base")
    state[name].view(-1)[1] = torch.nan
    save_file(state, tmp_path / "base.safetensors")
    recipe = Recipe.from_dict({"weights": {"asr": {"block2": 1}, "ser": {"block2": 1}}})
    sources = {given: (experts if given == "experts" else files)(folders)}
    message = f"'{name}' has NaN or infinite values in the base .*: give an intact one"
    with (
        pytest.raises(UserError, match=message),
        MergePlan(tmp_path / "base.safetensors", recipe, **sources) as plan,
    ):
        write_merged(plan, tmp_path / "out")
    with pytest.raises(UserError, match=message):
        taus = {task: TaskVector.load(file) for task, file in files(folders).items()}
        merge_state(state, taus, recipe)


def test_vectors_of_other_encoders_or_bases_are_refused(folders, tmp_path):
    tau = TaskVector.load(folders / "ser.safetensors")
    tensors = dict(tau.tensors)
    other = TaskVector(tensors, {**tau.metadata, "base_sha256": "f" * 64})
    refused = pytest.raises(UserError, match="was made from the base ffffffffffff, but")
    with MergePlan(folders / "base", Recipe(), vectors={"ser": other}) as plan, refused:
        plan.hashes()
    fewer = TaskVector({name: t for name, t in tensors.items() if name != NAME}, tau.metadata)
    with pytest.raises(UserError, match=f"'{NAME}' is in .* but not in the task vector"):
        MergePlan(folders / "base", Recipe(), vectors={"ser": fewer})
    wider = TaskVector({**tensors, NAME: torch.zeros(4, 4)}, tau.metadata)
    with pytest.raises(UserError, match=rf"'{NAME}': shape \(4, 4\) in the task vector"):
        MergePlan(folders / "base", Recipe(), vectors={"ser": wider})
    with pytest.raises(UserError, match="task ser has both an expert and a vector"):
        MergePlan(
            folders / "base", Recipe(), vectors={"ser": tau}, experts={"ser": folders / "ser"}
        )


def test_methods_look_at_number_and_weights_before_anything_is_read(folders):
    one = {"asr": folders / "asr"}
    with pytest.raises(UserError, match="slerp goes between two task vectors, found 1"):
        MergePlan(folders / "base", Recipe(method="slerp"), experts=one)
    with pytest.raises(UserError, match="model_stock finds its own weights"):
        recipe = Recipe(method="model_stock", weights=0.5)
        MergePlan(folders / "base", recipe, experts=experts(folders))
    recipe = Recipe(method="ties", options={"density": -1, "scope": "model"})
    with pytest.raises(UserError, match="density -1"):
        MergePlan(folders / "base", recipe, experts=experts(folders))


_MEMORY = """
import sys, torch
from espnet_adaltm.merging.extract import extract_vectors
from espnet_adaltm.merging.offline import write_merged
from espnet_adaltm.merging.plan import MergePlan
from espnet_adaltm.merging.recipe import Recipe
from espnet_adaltm.merging.tensor_file import Spec, TensorWriter

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

folder, layers = sys.argv[1], int(sys.argv[2])
spec = Spec(torch.float32, (512, 1024))
names = [f"encoder.layers.{layer}.layer_norm.weight" for layer in range(layers)]
for file in ("base", "asr", "ser"):
    with TensorWriter(f"{folder}/{file}", dict.fromkeys(names, spec)) as writer:
        for name in names:
            writer.write(name, torch.randn(spec.shape))
recipe = Recipe.from_dict({"weights": {"asr": 0.3, "ser": {"*": 0.7}}})
experts = {task: f"{folder}/{task}" for task in ("asr", "ser")}
before = status("VmRSS")
extract_vectors(f"{folder}/base", experts, {t: f"{folder}/{t}.tau" for t in experts}, threads=2)
with MergePlan(f"{folder}/base", recipe, experts=experts) as plan:
    plan.hashes()
    write_merged(plan, f"{folder}/out", threads=2)
print(status("VmHWM") - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Two models, 20 and 60 MB a file: both take the buffers of two threads and no more."""
    grown = []
    for layers in (10, 30):
        command = [sys.executable, "-c", _MEMORY, str(tmp_path), str(layers)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown.append(float(done.stdout))
    # measured: 15 to 17 MB, of which 12 are buffers; whole files would be 60 and 180
    assert max(grown) < 30
