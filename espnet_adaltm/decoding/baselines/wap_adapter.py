"""Adapter with local attributes: frozen encoder, fine-tuned adapter, pooling, classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.hidden import choose
from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.decoding.systems import HEAD, Output, check_base, load_module
from espnet_adaltm.files import Pathlike
from espnet_adaltm.models.wap_adapter import AdapterConfig, WapAdapter, WapHead

ADAPTER = "adapter.safetensors"


class WapSystem(nn.Module):
    """Speech to emotion probabilities; always in evaluation mode.

    Args:
        encoder: The frozen encoder.
        layer: Which of its hidden states the adapter reads; see `backbone.hidden.choose`.
        adapter: Fine-tuned.
        head: Its read-out.
        labels: Outputs of the head, in order.
    """

    tokenizer = None

    def __init__(
        self,
        encoder: SpeechEncoder,
        layer: str,
        adapter: WapAdapter,
        head: WapHead,
        labels: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.layer = layer
        self.adapter = adapter
        self.head = head
        self.labels = labels
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, speech: Tensor, lengths: Tensor) -> Output:
        """Recognise a padded batch of waveforms [B, N] or CNN features [B, T, C], lengths [B]."""
        encoded = self.encoder(speech, lengths)
        frames = choose(encoded, self.layer)
        output = self.adapter(frames, encoded.lengths)
        logits = self.head(output.hidden, output.lengths)
        return Output(probabilities=logits.double().softmax(-1).cpu(), texts=None)


def load(folder: Pathlike, info: Mapping[str, Any], *, base: Pathlike | None = None) -> WapSystem:
    """Load what fine-tuning left.

    Args:
        folder: With ``adapter.safetensors`` and ``head.safetensors``.
        info: Its ``baseline.json``.
        base: The base encoder's folder; the one that ``info`` names by default.

    Raises:
        UserError: Something is missing or damaged, or the base is another one.
    """
    folder = Path(folder)
    base = folder / info["base"] if base is None else Path(base)
    check_base(folder, info, base)
    encoder = load_encoder(base)
    options = info["options"]
    config = AdapterConfig.from_dict(options["adapter"], str(folder / "baseline.json"))
    adapter = WapAdapter(encoder.hidden_size, config)
    load_module(adapter, folder / ADAPTER)
    head = WapHead(config.dim, len(info["labels"]), **options["head"])
    load_module(head, folder / HEAD)
    return WapSystem(encoder, info["layer"], adapter, head, tuple(info["labels"]))
