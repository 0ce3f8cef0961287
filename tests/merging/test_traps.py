"""One test for each known way to merge WavLM wrongly, T1 to T9."""

import copy
import itertools

import pytest
import torch
from merging_common import base_encoder, batch, moved, readout, vectors
from transformers import WavLMModel

from espnet_adaltm.backbone.blocks import block_of, module_of
from espnet_adaltm.backbone.encoder import build_body
from espnet_adaltm.backbone.loading import save_encoder
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.arithmetic import merge_vectors, ties
from espnet_adaltm.merging.merged import MergedEncoder, coefficients_for
from espnet_adaltm.merging.sparsify import drop, trim
from espnet_adaltm.merging.static import scaled
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.merging.weights import POS_CONV, effective_state

G, V = (f"{POS_CONV}.parametrizations.weight.original{n}" for n in (0, 1))
REL_EMBED = "encoder.layers.0.attention.rel_attn_embed.weight"


def outputs(encoder):
    with torch.no_grad():
        return encoder(*batch()).hidden


def only(vector, *parts):
    """The vector without what none of ``parts`` names."""
    tensors = {
        name: tensor if any(part in name for part in parts) else torch.zeros_like(tensor)
        for name, tensor in vector.tensors.items()
    }
    return TaskVector(tensors)


def test_t1_heads_and_vocabularies_stay_out():
    """Two experts with heads of their own sizes: what is left over is exactly the known heads."""
    base = base_encoder()
    state = base.encoder_state()
    asr = {f"wavlm.{name}": tensor for name, tensor in moved(base, 11).encoder_state().items()}
    ser = dict(moved(base, 12).encoder_state())
    heads = {"lm_head.weight": torch.ones(40, 16), "lm_head.bias": torch.ones(40)}
    other = {"emotion_head.out.weight": torch.ones(8, 16), "layer_sum.weights": torch.ones(2)}
    taus = {
        "asr": TaskVector.from_checkpoints(state, {**asr, **heads}),
        "ser": TaskVector.from_checkpoints(state, {**ser, **other}),
    }
    assert all(tau.tensors.keys() == state.keys() for tau in taus.values())
    assert merge_vectors("task_arithmetic", taus).tensors.keys() == state.keys()
    with pytest.raises(UserError, match=r"'decoder\.weight' belongs neither .* known head"):
        TaskVector.from_checkpoints(state, {**ser, **heads, "decoder.weight": torch.ones(2)})
    with pytest.raises(UserError, match="is in state but not in state"):
        lacking = {name: tensor for name, tensor in ser.items() if "q_proj" not in name}
        TaskVector.from_checkpoints(state, lacking)


def weight_normed(seed):
    """A checkpoint with g and v, and the weight that its module really uses."""
    torch.manual_seed(seed)
    body = build_body(base_encoder().body.config)
    conv = body.encoder.pos_conv_embed.conv
    with torch.no_grad():
        for part in conv.parametrizations.weight.parameters():
            part.mul_(1 + 0.5 * torch.rand_like(part))
    return body.state_dict(), conv.weight.detach().clone()


def test_t2_the_positional_convolution_is_merged_in_effective_weight():
    (base, w0), (one, w1), (two, w2) = (weight_normed(seed) for seed in range(3))
    taus = {
        "asr": TaskVector.from_checkpoints(base, one),
        "ser": TaskVector.from_checkpoints(base, two),
    }
    merged = merge_vectors("task_arithmetic", taus, 0.5).tensors[f"{POS_CONV}.weight"]
    expected = w0 + 0.5 * (w1 - w0) + 0.5 * (w2 - w0)
    torch.testing.assert_close(w0 + merged, expected, rtol=0, atol=1e-6)
    mixed = {part: 0.5 * one[part] + 0.5 * two[part] for part in (G, V)}
    wrong = effective_state(mixed)[f"{POS_CONV}.weight"]
    assert (wrong - expected).abs().max() > 0.01
    old = {G: f"{POS_CONV}.weight_g", V: f"{POS_CONV}.weight_v"}
    spelled = {old.get(name, name): tensor for name, tensor in one.items()}
    again = TaskVector.from_checkpoints(base, spelled)
    assert torch.equal(
        again.tensors[f"{POS_CONV}.weight"], taus["asr"].tensors[f"{POS_CONV}.weight"]
    )


def test_t3_layer_numbers_are_not_found_in_the_cnn():
    names = list(base_encoder().encoder_state())
    assert any("layers.1." in name for name in names if name.startswith("feature_extractor."))
    for name in names:
        if name.startswith("feature_extractor."):
            assert (block_of(name, 2), module_of(name)) == (0, "cnn")
        elif name.startswith("encoder.layers.1."):
            assert block_of(name, 2) == 2
    assert block_of("encoder.layers.11.layer_norm.bias", 24) == 12
    base = base_encoder()
    taus = {"ser": vectors(base)["ser"]}
    model = MergedEncoder(copy.deepcopy(base), taus, coefficients_for(base, ["ser"], init=0.0))
    with torch.no_grad():
        model.coefficients.raw[0, 2] = 1.0
    state = base.encoder_state()
    changed = {n for n, tensor in model.bake().items() if not torch.equal(tensor, state[n])}
    assert changed == {
        name for name in names if name.startswith(("encoder.layers.1.", "encoder.layer_norm."))
    }


def test_t4_the_shared_position_embedding_serves_all_layers():
    base = base_encoder()
    assert [name for name in base.encoder_state() if "rel_attn_embed" in name] == [REL_EMBED]
    assert (block_of(REL_EMBED, 2), module_of(REL_EMBED)) == (1, "attention")
    tau = only(vectors(base)["ser"], REL_EMBED)
    model = MergedEncoder(copy.deepcopy(base), {"ser": 20 * tau}, scaled(base, {"ser": 1.0}))
    before, after = outputs(base), outputs(model)
    assert torch.equal(before[0], after[0])
    # each layer's own step changes: its output minus its input
    for layer in (1, 2):
        steps = [hidden[layer] - hidden[layer - 1] for hidden in (before, after)]
        assert (steps[0] - steps[1]).abs().max() > 1e-3
    learned = MergedEncoder(base, {"ser": tau}, coefficients_for(base, ["ser"]))
    readout(learned(*batch())).backward()
    assert learned.coefficients.raw.grad[0].ne(0).tolist() == [False, True, False]


def test_t5_constants_are_the_bases_and_must_agree():
    base = dict(base_encoder().encoder_state())
    expert = dict(moved(base_encoder(), 12).encoder_state())
    constant = "encoder.layers.0.attention.positions"
    base[constant] = torch.arange(5)
    tau = TaskVector.from_checkpoints(base, {**expert, constant: torch.arange(5)})
    assert constant not in tau.tensors
    assert constant not in merge_vectors("ties", {"ser": tau}, density=0.5).tensors
    with pytest.raises(UserError, match="positions' is a constant .* differs"):
        TaskVector.from_checkpoints(base, {**expert, constant: torch.arange(1, 6)})


def seen_by_linear_modules(model, inputs, monkeypatch):
    """Run a model and list the linear layers whose own `forward` is called."""
    called = set()
    original = torch.nn.Linear.forward

    def forward(self, x):
        called.add(self)
        return original(self, x)

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(torch.nn.Linear, "forward", forward)
        model(inputs)
    return {name for name, module in model.named_modules() if module in called}


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj", "out_proj"])
def test_t6_attention_runs_on_merged_weights(part, tmp_path, monkeypatch):
    """Hugging Face's attention takes its weights past `nn.Linear.forward`; parameters do arrive."""
    base = base_encoder()
    tau = only(vectors(base)["ser"], f"{part}.weight")
    model = MergedEncoder(copy.deepcopy(base), {"ser": tau}, coefficients_for(base, ["ser"]))
    plain = copy.deepcopy(base)
    plain.load_encoder_state(model.bake())
    save_encoder(plain, tmp_path)
    reference = WavLMModel.from_pretrained(tmp_path).eval()
    speech, lengths = (tensor[:1] for tensor in batch())
    wave = base.normalize_waveform(speech, lengths)
    seen = seen_by_linear_modules(reference, wave, monkeypatch)
    assert "encoder.layers.0.feed_forward.output_dense" in seen
    assert not any(part in name for name in seen)
    with torch.no_grad():
        found, expected = model(speech, lengths).hidden[-1], reference(wave).last_hidden_state
        unmerged = base(speech, lengths).hidden[-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (unmerged - expected).abs().max() > 1e-3
    readout(model(*batch())).backward()
    assert model.coefficients.raw.grad[0].ne(0).tolist() == [False, True, True]


def test_t7_clamped_coefficients_have_no_gradient_outside():
    base = base_encoder()
    model = MergedEncoder(
        base, vectors(base), coefficients_for(base, ["asr", "ser"], constraint="clamp")
    )
    with torch.no_grad():
        model.coefficients.raw.copy_(torch.tensor([[-0.2, 0.5, 1.3], [0.3, 1.1, 0.9]]))
    readout(model(*batch())).backward()
    inside = [[False, True, False], [True, False, True]]
    assert model.coefficients.raw.grad.ne(0).tolist() == inside
    assert model.coefficients().tolist()[0] == [0.0, 0.5, 1.0]
    free = MergedEncoder(base, vectors(base), coefficients_for(base, ["asr", "ser"], init=1.3))
    readout(free(*batch())).backward()
    assert free.coefficients.raw.grad.ne(0).all()


@pytest.mark.parametrize(
    ("size", "density"), list(itertools.product([1, 2, 3, 5], [0.0, 0.1, 0.34, 0.99, 1.0]))
)
def test_t8_tiny_tensors_and_densities(size, density):
    """`int(d n)` may be 0 or n: nothing divides by zero, nothing is NaN, counts are exact."""
    values = torch.arange(1.0, size + 1)
    kept = size if density >= 1 else int(density * size)
    assert int(trim(values, density).count_nonzero()) == kept
    assert int(trim(values, density, minimum=1).count_nonzero()) == max(kept, 1)
    for merged in (
        ties([values, -values], [1.0, 1.0], density),
        ties([values, -values], [0.0, 0.0], density, normalize="weights"),
        drop(values, density, generator=torch.Generator().manual_seed(0)),
    ):
        assert torch.isfinite(merged).all()
        assert kept or not merged.any() or density > 0


def test_t9_no_step_leaves_stale_weights_behind():
    base = base_encoder()
    model = MergedEncoder(
        copy.deepcopy(base), vectors(base), coefficients_for(base, ["asr", "ser"])
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def expected():
        encoder, state = copy.deepcopy(base), base.encoder_state()
        columns = {group: n for n, group in enumerate(model.coefficients.groups)}
        values = model.coefficients.raw.detach()
        taus = vectors(base)
        new = {}
        for name, tensor in state.items():
            column = columns[f"block{block_of(name, 2)}"]
            new[name] = tensor + sum(
                values[k, column] * tau.tensors[name] for k, tau in enumerate(taus.values())
            )
        encoder.load_encoder_state(new)
        return outputs(encoder)[-1]

    def changes(change):
        before = outputs(model)[-1].clone()
        change()
        after = outputs(model)[-1]
        torch.testing.assert_close(after, expected(), rtol=0, atol=1e-5)
        assert (after - before).abs().max() > 1e-3

    def step():
        optimizer.zero_grad()
        readout(model(*batch())).backward()
        optimizer.step()

    raw = model.coefficients.raw
    for change in (
        step,
        step,
        lambda: raw.data.mul_(0.5),
        lambda: model.load_state_dict({"coefficients.raw": torch.full_like(raw, 0.2)}),
        lambda: model.train() and step(),
        lambda: model.eval() and raw.data.add_(0.3),
    ):
        changes(change)
