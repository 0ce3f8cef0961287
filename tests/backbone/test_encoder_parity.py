"""Our forward pass against Hugging Face's, values and gradients."""

import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from espnet_adaltm.backbone.encoder import SpeechEncoder
from tests.backbone.backbone_common import FAMILIES, clips, difference, small_body, small_config

LENGTHS = (1500, 900, 1499)


def normalise(speech, lengths):
    """As Hugging Face's feature extractor does with NumPy."""
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    waves = [row[:length].numpy() for row, length in zip(speech, lengths)]
    return extractor(waves, sampling_rate=16000, padding=True, return_tensors="pt").input_values


def hugging_face(body, speech, lengths):
    """Hidden states of Hugging Face's own forward on the same normalised waveforms."""
    body.config.tie_last_hidden_states = True  # last hidden state after the final norm
    mask = (torch.arange(speech.shape[1]) < lengths[:, None]).long()
    return body(normalise(speech, lengths), attention_mask=mask, output_hidden_states=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("large", [True, False])
def test_hidden_states_equal_hugging_face(family, large):
    body = small_body(small_config(family, large=large))
    # Hugging Face's group norm averages padding in: equal lengths there
    speech, lengths = clips(*(LENGTHS if large else (1500, 1500)))
    theirs = small_body(small_config(family, large=large))
    with torch.no_grad():
        expected = hugging_face(theirs, speech, lengths)
        hidden, frames = SpeechEncoder(body)(speech, lengths)
    assert len(hidden) == len(expected.hidden_states) == 4
    for ours, theirs in zip(hidden, expected.hidden_states):
        for row, length in enumerate(frames):
            assert difference(ours[row, :length], theirs[row, :length]) < 1e-5
    last = expected.last_hidden_state
    assert difference(hidden[-1][0, : frames[0]], last[0, : frames[0]]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("large", [True, False])
def test_gradients_equal_hugging_face(family, large):
    body = small_body(small_config(family, large=large))
    theirs = small_body(small_config(family, large=large))
    speech, lengths = clips(*(LENGTHS if large else (1500, 1500)))
    encoder = SpeechEncoder(body).eval()
    hidden, frames = encoder(speech, lengths)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(hidden[0].shape, generator=generator)
    weight *= (torch.arange(weight.shape[1]) < frames[:, None]).unsqueeze(-1)
    sum((state * weight).sum() for state in hidden).backward()
    states = hugging_face(theirs, speech, lengths).hidden_states
    sum((state * weight).sum() for state in states).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    compared = 0
    for name, parameter in encoder.named_encoder_parameters():
        if name in expected and parameter.requires_grad:
            scale = max(1.0, float(expected[name].abs().max()))
            if name.endswith("k_proj.bias"):  # 0 but for rounding: softmax ignores it
                scale = max(scale, float(expected[name.replace("k_proj", "v_proj")].abs().max()))
            assert difference(parameter.grad, expected[name]) < 2e-5 * scale, name
            compared += 1
    assert compared == len(expected) - 3  # mask embedding, and weight norm's two factors


def test_long_clip_reaches_the_far_buckets():
    config = small_config("wavlm", large=True)
    speech, lengths = clips(40 * 120)  # 119 frames, far beyond max_bucket_distance 30
    with torch.no_grad():
        expected = hugging_face(small_body(config), speech, lengths).hidden_states
        hidden = SpeechEncoder(small_body(config))(speech, lengths).hidden
    assert difference(hidden[-1], expected[-1]) < 1e-5
