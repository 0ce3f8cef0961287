"""Loads what `train_mtlser` trained: emotion, transcript, speaker of an utterance in one pass."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.data.tokens import Tokenizer
from espnet_adaltm.decoding import systems
from espnet_adaltm.errors import UserError
from espnet_adaltm.models.ctc import best_paths, collapse
from espnet_adaltm.models.mtlser import MTLHead

ENCODER, HEAD = "encoder.safetensors", "head.safetensors"
_NEEDED = ("labels", "head", "base_sha256")


class MTLSystem(nn.Module):
    """Encoder and heads, always in evaluation mode.

    Args:
        encoder: With its final weights.
        head: Emotion head, with or without a CTC and a speaker head.
        labels: Outputs of the emotion head, in order.
        tokenizer: Of the CTC head.
        speakers: Outputs of the speaker head, in order.
        head_options: Keyword arguments that made ``head``, for exports.
    """

    thread_safe = True

    def __init__(
        self,
        encoder: SpeechEncoder,
        head: MTLHead,
        *,
        labels: Sequence[str] = (),
        tokenizer: Tokenizer | None = None,
        speakers: Sequence[str] = (),
        head_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.labels = tuple(labels)
        self.tokenizer = tokenizer
        self.speakers = tuple(speakers)
        self.head_options = dict(head_options or {})
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, speech: Tensor, lengths: Tensor) -> systems.Output:
        """Recognise a padded batch.

        Args:
            speech: Waveforms [B, N] or CNN features [B, T, C].
            lengths: Valid samples or frames, [B].
        """
        hidden, frames = self.encoder(speech, lengths)
        said = self.head(hidden, frames)
        texts = names = paths = None
        if self.head.ctc is not None:
            paths = best_paths(self.head.ctc(said.frames), frames)
            texts = [self.tokenizer.decode(collapse(path)) for path in paths]
        if said.speaker is not None:
            names = [self.speakers[index] for index in said.speaker.argmax(-1).tolist()]
        return systems.Output(said.emotion.double().softmax(-1).cpu(), texts, names, paths)


def load(folder: Path, info: Mapping[str, Any], *, base: Path | None = None) -> MTLSystem:
    """Load a trained MTLSER.

    Args:
        folder: With ``baseline.json``, ``encoder.safetensors``, ``head.safetensors`` and, for
            transcripts, ``tokens.model``.
        info: ``baseline.json``.
        base: Folder of the base encoder; the one it names unless given.

    Raises:
        UserError: Something is missing or damaged, or the base is another one.
    """
    lacking = [key for key in _NEEDED if key not in info]
    if lacking:
        raise UserError(
            f"{folder / systems.BASELINE} lacks {', '.join(lacking)}: run its training again"
        )
    base = systems.base_folder(folder, base)
    systems.check_base(folder, info, base)
    encoder = load_encoder(base)
    systems.load_weights(encoder, folder / ENCODER)
    tokenizer = None
    if info.get("tokens"):
        tokenizer = Tokenizer(folder / "tokens.model")
        tokenizer.check_tokens(info["tokens"], str(folder / systems.BASELINE))
    speakers = info.get("speakers") or []
    head = MTLHead(
        encoder.num_layers,
        encoder.hidden_size,
        len(info["labels"]),
        vocab=len(info.get("tokens") or []),
        speakers=len(speakers),
        **info["head"],
    )
    systems.load_module(head, folder / HEAD)
    return MTLSystem(
        encoder,
        head,
        labels=info["labels"],
        tokenizer=tokenizer,
        speakers=speakers,
        head_options=info["head"],
    )
