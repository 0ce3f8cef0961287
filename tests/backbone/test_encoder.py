import copy
import logging

import pytest
import torch

from espnet_adaltm.backbone.encoder import SpeechEncoder, build_body, span_mask
from espnet_adaltm.errors import UserError
from tests.backbone.backbone_common import (
    FAMILIES,
    RECEPTIVE_FIELD,
    clips,
    difference,
    small_body,
    small_config,
    small_encoder,
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("large", [True, False])
def test_padding_and_batch_size_change_nothing(family, large):
    encoder = small_encoder(family, large=large)
    speech, lengths = clips(1500, 811, 50, 17, 1)
    with torch.no_grad():
        hidden, frames = encoder(speech, lengths)
        wider, _ = encoder(torch.nn.functional.pad(speech, (0, 700), value=3.0), lengths)
        for row, length in enumerate(lengths.tolist()):
            alone, (count,) = encoder(speech[row : row + 1, :length], lengths[row : row + 1])
            assert count == frames[row]
            for one, together, padded in zip(alone, hidden, wider):
                assert difference(one[0, :count], together[row, :count]) < 1e-5
                assert difference(one[0, :count], padded[row, :count]) < 1e-5


def test_frame_lengths_follow_the_cnn():
    encoder = small_encoder()
    assert encoder.geometry.receptive_field == RECEPTIVE_FIELD == 40
    assert encoder.geometry.hop == 40
    samples = torch.tensor([1, 39, 40, 79, 80, 1500])
    assert encoder.frame_lengths(samples).tolist() == [1, 1, 1, 1, 2, 37]
    speech, lengths = clips(1500, 80)
    features, frames = encoder.cnn(speech, lengths)
    assert features.shape == (2, 37, encoder.feature_size)
    assert frames.tolist() == [37, 2]


def test_waveforms_are_normalised_over_valid_samples():
    encoder = small_encoder()
    speech, lengths = clips(1000, 300)
    speech[1, 300:] = 99.0
    out = encoder.normalize_waveform(speech, lengths)
    for row, length in zip(out, (1000, 300)):
        assert abs(float(row[:length].mean())) < 1e-6
        assert abs(float(row[:length].var(correction=0)) - 1) < 1e-4
    assert not out[1, 300:].any()
    scaled = encoder.normalize_waveform(speech * 30 - 5, lengths)
    assert difference(scaled, out) < 1e-3  # the 1e-7 under the root


def test_normalisation_can_be_off():
    encoder = SpeechEncoder(small_body(small_config("wavlm", large=False)), do_normalize=False)
    speech, lengths = clips(1000, 300)
    assert torch.equal(encoder.normalize_waveform(speech + 0, lengths), speech)


def test_silence_is_finite():
    encoder = small_encoder()
    speech, lengths = torch.zeros(2, 500), torch.tensor([500, 60])
    hidden, _ = encoder(speech, lengths)
    assert all(torch.isfinite(state).all() for state in hidden)
    hidden[-1].sum().backward()
    assert all(
        torch.isfinite(parameter.grad).all()
        for parameter in encoder.parameters()
        if parameter.grad is not None
    )


def test_cnn_features_as_input_equal_waveforms():
    encoder = small_encoder()
    speech, lengths = clips(1500, 811)
    with torch.no_grad():
        expected = encoder(speech, lengths)
        features, frames = encoder.cnn(speech, lengths)
        found = encoder(features, frames)
    assert torch.equal(found.lengths, expected.lengths)
    assert all(torch.equal(a, b) for a, b in zip(found.hidden, expected.hidden))


def test_dropout_is_off_until_train_is_called():
    encoder = SpeechEncoder(small_body(small_config("wavlm", large=True)))
    assert not encoder.training  # the mode of the body, as from_pretrained leaves it
    speech, lengths = clips(1500)
    with torch.no_grad():
        first, again = (encoder(speech, lengths).hidden[-1] for _ in range(2))
        encoder.train()
        torch.manual_seed(0)
        dropped, other = (encoder(speech, lengths).hidden[-1] for _ in range(2))
        torch.manual_seed(0)
        repeated = encoder(speech, lengths).hidden[-1]
    assert torch.equal(first, again)
    assert difference(dropped, first) > 0.1
    assert difference(dropped, other) > 0.1
    assert torch.equal(repeated, dropped)


def test_layer_drop_is_refused_with_a_warning(caplog):
    body = small_body(small_config("wavlm", large=True, layerdrop=0.5))
    with caplog.at_level(logging.WARNING):
        encoder = SpeechEncoder(body)
    assert encoder.body.config.layerdrop == 0.0
    assert "layerdrop 0.5" in caplog.text


def test_masked_frames_take_the_mask_embedding():
    encoder = small_encoder()
    encoder.train_mask_embedding()
    speech, lengths = clips(1500, 811)
    features, frames = encoder.cnn(speech, lengths)
    mask = span_mask(frames, 0.1, 4, torch.Generator().manual_seed(0))
    changed = torch.where(mask.unsqueeze(-1), torch.randn_like(features), features)
    hidden, _ = encoder(features, frames, mask_time=mask)
    other, _ = encoder(changed, frames, mask_time=mask)
    unmasked, _ = encoder(features, frames)
    assert all(torch.equal(a, b) for a, b in zip(hidden, other))
    assert difference(hidden[-1], unmasked[-1]) > 0.1
    hidden[-1].sum().backward()
    assert float(encoder.body.masked_spec_embed.grad.abs().sum()) > 0


def test_mask_embedding_is_frozen_unless_asked_for():
    encoder = small_encoder()
    trainable = {name for name, p in encoder.named_encoder_parameters() if p.requires_grad}
    every = {name for name, _ in encoder.named_encoder_parameters()}
    assert every - trainable == {"masked_spec_embed"}
    hidden, _ = encoder(*clips(1500))
    sum(state.sum() for state in hidden).backward()
    unused = [
        n for n, p in encoder.named_encoder_parameters() if p.requires_grad and p.grad is None
    ]
    assert unused == []
    encoder.train_mask_embedding()
    assert encoder.body.masked_spec_embed.requires_grad


def test_masking_without_an_embedding_is_explained():
    encoder = SpeechEncoder(small_body(small_config("wavlm", large=True, mask_time_prob=0.0)))
    speech, lengths = clips(1500)
    with pytest.raises(UserError, match="no mask embedding"):
        encoder(speech, lengths, mask_time=torch.ones(1, 37, dtype=torch.bool))


def test_span_mask_covers_what_hubert_covers():
    lengths = torch.tensor([500] * 40 + [100] * 10)
    mask = span_mask(lengths, 0.065, 10, torch.Generator().manual_seed(0))
    assert mask.shape == (50, 500)
    assert not mask[40:, 100:].any()
    # 1 - (1 - 0.065)^10 = 0.49 of the frames away from the start
    assert abs(float(mask[:40, 10:].float().mean()) - 0.489) < 0.02
    starts = torch.nn.functional.pad(mask[:40].int(), (1, 0)).diff(dim=1) == 1
    assert bool(starts.any())


def test_span_mask_masks_every_clip_however_short():
    lengths = torch.tensor([1, 2, 9, 10, 30])
    mask = span_mask(lengths, 0.0, 10, torch.Generator().manual_seed(1))
    counts = mask.sum(1).tolist()
    assert counts[0] == 1
    assert counts[3:] == [10, 10]
    assert all(1 <= count <= length for count, length in zip(counts, lengths.tolist()))


def test_frozen_cnn_gets_no_gradient():
    encoder = small_encoder()
    encoder.freeze_cnn()
    encoder(*clips(1500)).hidden[-1].sum().backward()
    for name, parameter in encoder.named_encoder_parameters():
        if name.startswith("feature_extractor."):
            assert parameter.grad is None
        elif name != "masked_spec_embed":
            assert parameter.grad is not None, name


def test_state_round_trip_and_names():
    encoder, other = small_encoder(seed=0), small_encoder(seed=1)
    state = encoder.encoder_state()
    assert "encoder.pos_conv_embed.conv.weight" in state
    assert not any("original" in name or "weight_g" in name for name in state)
    assert state.keys() == {name for name, _ in encoder.named_encoder_parameters()}
    other.load_encoder_state(state)
    speech, lengths = clips(900)
    assert torch.equal(other(speech, lengths).hidden[-1], encoder(speech, lengths).hidden[-1])


def test_wrong_states_are_named():
    encoder = small_encoder()
    state = dict(encoder.encoder_state())
    state["encoder.layers.0.layer_norm.weight"] = torch.ones(7)
    state["head.weight"] = torch.ones(1)
    del state["encoder.layer_norm.bias"]
    with pytest.raises(UserError) as error:
        encoder.load_encoder_state(state)
    message = str(error.value)
    assert "missing: encoder.layer_norm.bias" in message
    assert "unexpected: head.weight" in message
    assert "encoder.layers.0.layer_norm.weight (expected (32,), found (7,))" in message


def test_unsupported_variants_are_refused():
    with pytest.raises(UserError, match="add_adapter"):
        build_body(small_config("wav2vec2", large=True, add_adapter=True))
    with pytest.raises(UserError, match="conv_pos_batch_norm"):
        build_body(small_config("hubert", large=True, conv_pos_batch_norm=True))


def test_functional_call_sees_other_weights():
    """Merged weights are put in place of the parameters: nothing may be cached between calls."""
    encoder, other = small_encoder(seed=0), small_encoder(seed=1)
    speech, lengths = clips(900)
    replaced = {f"body.{name}": tensor for name, tensor in other.encoder_state().items()}
    found = torch.func.functional_call(encoder, replaced, (speech, lengths)).hidden[-1]
    assert torch.equal(found, other(speech, lengths).hidden[-1])


def test_float64_agrees_with_float32():
    encoder = small_encoder()
    speech, lengths = clips(1500, 811)
    single = encoder(speech, lengths).hidden[-1]
    double = encoder.double()(speech, lengths).hidden[-1]
    assert double.dtype == torch.float64
    assert difference(double.float()[:, :20], single[:, :20]) < 1e-4


@pytest.mark.parametrize("train", [True, False])
def test_autocast_runs_and_stays_close(train):
    encoder = small_encoder()
    speech, lengths = clips(1500, 811)
    expected = encoder(speech, lengths).hidden[-1][:, :20]
    with torch.set_grad_enabled(train), torch.autocast("cpu", torch.bfloat16):
        found = encoder(speech, lengths).hidden[-1][:, :20]
    assert float((found.float() - expected).norm() / expected.norm()) < 0.05


def test_copies_are_independent():
    encoder = small_encoder()
    twin = copy.deepcopy(encoder)
    speech, lengths = clips(900)
    expected = encoder(speech, lengths).hidden[-1]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert torch.equal(twin(speech, lengths).hidden[-1], expected)


def test_gradient_checkpointing_changes_memory_only():
    speech, lengths = clips(1500, 900)
    grads, kept = [], []
    for checkpointing in (False, True):
        encoder = small_encoder()
        if checkpointing:
            encoder.body.gradient_checkpointing_enable()
        encoder.train()
        for module in (encoder.body.encoder.layers[0], encoder.body.encoder.layers[1]):
            assert module.dropout.p > 0  # the same draws have to be made again
        torch.manual_seed(0)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = encoder(speech, lengths).hidden
        kept.append(sum(sizes))
        sum(state.square().sum() for state in hidden).backward()
        grads.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert kept[1] < kept[0] / 2
    assert len(grads[0]) == len(grads[1]) > 10
    for plain, again in zip(*grads):
        torch.testing.assert_close(plain, again)
