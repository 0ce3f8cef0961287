"""ESPnet's own classifier on our data: `espnet2.tasks.cls` and `espnet2.bin.cls_inference`.

ESPnet's: everything that is learned and how (see `espnet_stock`); filter banks, encoder and pooling
are those of the configuration. Ours: labels in the order of ``labels.json``.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet2.tasks.cls import CLSTask
from torch import Tensor, nn

from espnet_adaltm.training.data import PARTS, DataNeeds
from espnet_adaltm.training.espnet_stock import (
    UNK,
    StockTask,
    add_stock_defaults,
    check_emotions,
    fill_model,
    model_files,
    quiet,
    too_short,
    used_emotions,
)
from espnet_adaltm.training.task import require_labels
from espnet_adaltm.training.trainer import AdaltmTrainer

KIND = "espnet_cls"
ORIGIN = {
    "ESPnet's": "model, loss, optimiser, batches, choice of epochs, inference",
    "ours": "size of the model and length of the training, see the configuration",
}


class EspnetCLSTask(CLSTask, StockTask):
    """Trains ESPnet's classifier on the labelled utterances."""

    kind = KIND
    trainer = AdaltmTrainer
    needs = DataNeeds("ser_shape", {"label": ("utt2emo", "text")})

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """ESPnet's options and ours."""
        super().add_task_arguments(parser)
        cls.add_own_arguments(add_stock_defaults(parser))

    @classmethod
    def fill_targets(cls, args: argparse.Namespace) -> None:
        """Check the emotions; the list of tokens is that of the labels."""
        labels = require_labels(args)
        for part in PARTS:
            entries = getattr(args, f"{part}_data_path_and_name_and_type")
            table = Path(next(path for path, name, _ in entries if name == "label"))
            shape = Path(getattr(args, f"{part}_shape_file")[0])
            emotions = used_emotions(table, shape)
            check_emotions(emotions, labels, str(table), every=part == "train")
        args.token_list = [*labels.labels, UNK]  # ESPnet does not count the last as a class

    @classmethod
    def describe(cls, args: argparse.Namespace) -> dict[str, Any]:
        """What is whose."""
        return {"origin": ORIGIN}


class Classifier:
    """ESPnet's inference with the exported weights: one utterance at a time, as it does.

    Args:
        folder: Of a finished training.
        info: Its ``baseline.json``.

    Attributes:
        model: ESPnet's model.
    """

    def __init__(self, folder: Path, info: Mapping[str, Any]) -> None:
        from espnet2.bin.cls_inference import Classification

        config, weights = model_files(folder, info)
        with quiet():
            self._stock = Classification(str(config), None)
        self.model: nn.Module = self._stock.classification_model
        fill_model(self.model, weights)

    def __call__(self, samples: Tensor) -> Tensor:
        """Probabilities [C] of one utterance [N] of samples.

        Raises:
            UserError: It is too short for the encoder.
        """
        from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError

        self._stock.device = str(samples.device)
        try:
            with quiet():
                _, scores, _ = self._stock(samples)
        except TooShortUttError as error:
            raise too_short(len(samples), error) from error
        return scores
