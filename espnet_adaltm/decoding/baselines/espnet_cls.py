"""ESPnet's own classifier, decoded by ESPnet's own inference; see `training.espnet_stock_cls`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet_adaltm.decoding.systems import Output


class EspnetClassifier(nn.Module):
    """Speech to emotion probabilities; utterances of a batch are heard one by one.

    Args:
        classify: Samples [N] to probabilities [C].
        model: What ``classify`` computes with, to be moved to a device.
        labels: The classes, in order.
    """

    tokenizer = None

    def __init__(
        self, classify: Callable[[Tensor], Tensor], model: nn.Module, labels: Sequence[str]
    ) -> None:
        super().__init__()
        self.classify = classify
        self.model = model
        self.labels = tuple(labels)

    @torch.inference_mode()
    def forward(self, speech: Tensor, lengths: Tensor) -> Output:
        """Recognise a padded batch of waveforms [B, N], lengths [B]."""
        rows = [self.classify(row[:n]) for row, n in zip(speech, lengths.tolist(), strict=True)]
        return Output(torch.stack(rows).double().cpu(), None)


def load(folder: Path, info: Mapping[str, Any], *, base: Path | None = None) -> EspnetClassifier:
    """Load what `train_espnet_cls` left; ``base`` does not matter, there is none.

    Raises:
        UserError: Something is missing or damaged.
    """
    # Importing ESPnet takes seconds, and only `training` may do it.
    from espnet_adaltm.training.espnet_stock_cls import Classifier

    stock = Classifier(Path(folder), info)
    return EspnetClassifier(stock, stock.model, info["labels"])
