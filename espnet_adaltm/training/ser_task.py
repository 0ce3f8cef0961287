"""Emotion expert: encoder + emotion head, fine-tuned on the labelled utterances."""

import argparse
from pathlib import Path
from typing import Any

from espnet_adaltm.models.losses import build_loss
from espnet_adaltm.training.data import PARTS, DataNeeds
from espnet_adaltm.training.espnet_models import EmotionModel
from espnet_adaltm.training.export import write_expert
from espnet_adaltm.training.task import (
    AdaltmTask,
    add_emotion_arguments,
    add_encoder_arguments,
    augmentation,
    build_emotion_head,
    build_encoder,
    class_counts,
    emotion_head_options,
    require_labels,
)


def emotion_needs(args: argparse.Namespace) -> DataNeeds:
    """Labelled utterances, with hard or soft labels."""
    file = "utt2soft" if args.soft_labels else "utt2emo"
    return DataNeeds("ser_shape", {"emotion": (file, "text")})


class SERTask(AdaltmTask):
    """Fine-tunes a base encoder to recognise emotions."""

    needs = DataNeeds("ser_shape", {"emotion": ("utt2emo", "text")})
    not_sequence = ("emotion",)

    @classmethod
    def add_own_arguments(cls, group: Any) -> None:
        """Add the options of an emotion expert."""
        add_encoder_arguments(group, freeze_cnn=True)
        add_emotion_arguments(group)

    @classmethod
    def data_needs(cls, args: argparse.Namespace, part: str) -> DataNeeds:
        """Labelled utterances."""
        return emotion_needs(args)

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Also refuse to start without labels, or with emotions outside them."""
        labels = require_labels(args)
        super().prepare(args)
        for part in PARTS:
            if "emotion" in cls.data_needs(args, part).targets:
                class_counts(args, labels, part)

    @classmethod
    def input_files(cls, args: argparse.Namespace) -> dict[str, Path]:
        """Also the labels."""
        return {**super().input_files(args), "the labels": Path(args.labels)}

    @classmethod
    def input_hashes(cls, args: argparse.Namespace) -> dict[str, str]:
        """Of the labels only names and order: other sets' counts do not matter."""
        return {**super().input_hashes(args), "the labels": " ".join(require_labels(args).labels)}

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> EmotionModel:
        """Build encoder, head and loss."""
        labels = require_labels(args)
        encoder = build_encoder(args)
        loss = build_loss(args.loss, class_counts(args, labels), gamma=args.focal_gamma)
        head = build_emotion_head(args, encoder, labels)
        return EmotionModel(encoder, head, loss, len(labels), augmentation(args))

    @classmethod
    def export(
        cls, args: argparse.Namespace, model: EmotionModel, selected: dict[str, Any]
    ) -> list[Path]:
        """Write ``expert.safetensors``, ``head.safetensors`` and ``expert.json``."""
        labels = list(require_labels(args).labels)
        head = emotion_head_options(args, choose_kind=True)
        return write_expert(args, model, kind="ser", selected=selected, labels=labels, head=head)
