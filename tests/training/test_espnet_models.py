"""Models as ESPnet's trainer runs them."""

import pytest
import torch
from training_common import ENCODER

from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.data.tokens import Tokenizer, train_tokens
from espnet_adaltm.errors import UserError
from espnet_adaltm.models.ctc import CTCHead
from espnet_adaltm.models.masked_prediction import MaskedPredictionHead
from espnet_adaltm.training.espnet_models import Augmentation, CTCModel, PretrainModel
from espnet_adaltm.training.preprocess import Preprocess


@pytest.fixture(scope="module")
def model():
    encoder = random_encoder(tiny_config(**ENCODER), seed=0)
    head = MaskedPredictionHead(encoder.hidden_size, 4)
    return PretrainModel(encoder, head, Augmentation(mask_prob=0.3, mask_length=2)).eval()


def step(model, counts):
    """A batch of 32 and 16 frames with so many units."""
    samples = torch.tensor([325 + 31 * 320, 325 + 15 * 320])
    torch.manual_seed(0)
    speech = torch.randn(2, int(samples.max())) * (torch.arange(samples.max()) < samples[:, None])
    units = torch.zeros(2, max(counts), dtype=torch.int64)
    with torch.no_grad():
        return model(speech, samples, units, torch.tensor(counts), utt_id=("one", "two"))


@pytest.mark.parametrize("counts", [(32, 16), (31, 17), (33, 15)])
def test_units_may_be_one_more_or_fewer_than_frames(model, counts):
    loss, _, weight = step(model, counts)
    assert loss.isfinite()
    assert weight > 0


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((64, 32), "'one' has 64 units but 32 frames"),
        ((34, 16), "'one' has 34 units but 32 frames"),
        ((32, 14), "'two' has 14 units but 16 frames"),
        ((32, 32), "'two' has 32 units but 16 frames"),
    ],
)
def test_units_of_another_frame_rate_are_refused(model, counts, message):
    with pytest.raises(UserError, match=f"{message}.*fit_units with the same --config"):
        step(model, counts)


def test_transcripts_are_validated_in_the_spelling_of_the_tokens(tmp_path, monkeypatch):
    (tmp_path / "tokens.model").write_bytes(train_tokens(["the red door"], "char", lowercase=True))
    tokenizer = Tokenizer(tmp_path)
    encoder = random_encoder(tiny_config(**ENCODER), seed=0)
    head = CTCHead(encoder.hidden_size, tokenizer.vocab_size)
    model = CTCModel(encoder, head, tokenizer.decode).eval()
    ids = Preprocess(tmp_path)("one", {"text": "The  RED door"})["text"]
    monkeypatch.setattr(head, "greedy", lambda *_: [tokenizer.encode("the red door")])
    samples = torch.tensor([16_000])
    with torch.no_grad():
        model(
            torch.randn(1, 16_000), samples, torch.from_numpy(ids)[None], torch.tensor([len(ids)])
        )
    assert model.metric.counts.tolist() == [0, 3, 0, 12]
