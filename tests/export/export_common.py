"""Small recognisers with random weights, of every kind that can be exported."""

from pathlib import Path

import torch
from backbone_common import small_encoder
from torch import nn

from espnet_adaltm.data.tokens import Tokenizer, train_tokens
from espnet_adaltm.decoding.baselines.mtlser import MTLSystem
from espnet_adaltm.decoding.systems import SpeechSystem
from espnet_adaltm.models.ctc import CTCHead
from espnet_adaltm.models.emotion import build_head
from espnet_adaltm.models.mtlser import MTLHead

LABELS = ("angry", "happy", "sad")
SPEAKERS = ("ann", "bob")
TEXTS = ["the red door is shut", "a door is a door", "red is the thing", "shut the thing"]
HEADS = {
    "projector": {"kind": "projector", "hidden": 24, "dropout": 0.1, "pooling": "mean"},
    "convolutions": {"hidden": 16, "dropout": 0.1, "pooling": "mean_std"},
}


def tokenizer(folder: Path, kind: str = "unigram", size: int | None = 24) -> Tokenizer:
    """Of `TEXTS`."""
    (folder / "tokens.model").write_bytes(train_tokens(TEXTS, kind, size, soft_vocab=True))
    return Tokenizer(folder / "tokens.model")


def make_system(
    folder: Path,
    family: str = "wavlm",
    *,
    large: bool = True,
    head: str = "projector",
    words: bool = True,
) -> SpeechSystem:
    """A SER expert or merge, with a CTC head or not."""
    encoder = small_encoder(family, large=large)
    tokens = tokenizer(folder) if words else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        emotion = build_head(encoder.num_layers, encoder.hidden_size, len(LABELS), **HEADS[head])
        ctc = CTCHead(encoder.hidden_size, tokens.vocab_size) if words else None
        _shake(emotion, ctc)
    return SpeechSystem(
        encoder,
        emotion_head=emotion,
        labels=LABELS,
        ctc_head=ctc,
        tokenizer=tokens,
        head_options=HEADS[head],
    )


def make_mtlser(folder: Path) -> MTLSystem:
    """With all three heads."""
    encoder = small_encoder()
    tokens = tokenizer(folder)
    options = {"dropout": 0.1, "pooling": "attentive", "emotion": "linear"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        sizes = {"vocab": tokens.vocab_size, "speakers": len(SPEAKERS)}
        dims = (encoder.num_layers, encoder.hidden_size, len(LABELS))
        head = MTLHead(*dims, **sizes, **options)
        _shake(head)
    return MTLSystem(
        encoder,
        head,
        labels=LABELS,
        tokenizer=tokens,
        speakers=SPEAKERS,
        head_options=options,
    )


def _shake(*modules: nn.Module | None) -> None:
    """Away from initial values, so that the answers differ between clips."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters() if module is not None else ():
                parameter.add_(0.2 * torch.randn_like(parameter))
