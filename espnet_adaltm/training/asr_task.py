"""Speech-recognition expert: encoder + CTC head, fine-tuned on the transcribed utterances."""

import argparse
import shutil
from pathlib import Path
from typing import Any

from espnet2.utils.types import str_or_none

from espnet_adaltm.data.tokens import Tokenizer
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import atomic_open, require
from espnet_adaltm.models.ctc import CTCHead
from espnet_adaltm.training.data import DataNeeds
from espnet_adaltm.training.espnet_models import CTCModel
from espnet_adaltm.training.export import write_expert
from espnet_adaltm.training.task import (
    AdaltmTask,
    add_encoder_arguments,
    augmentation,
    build_encoder,
)


class ASRTask(AdaltmTask):
    """Fine-tunes a base encoder to transcribe."""

    needs = DataNeeds("asr_shape", {"text": ("text", "text")})

    @classmethod
    def add_own_arguments(cls, group: Any) -> None:
        """Add the options of a recognition expert."""
        add_encoder_arguments(group, freeze_cnn=True)
        group.add_argument("--tokens", type=str_or_none, default=None, help="Folder of the tokens")
        group.add_argument("--ctc_dropout", type=float, default=0.0, help="Before the CTC layer")

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Also refuse to start without tokens."""
        _token_model(args)
        super().prepare(args)

    @classmethod
    def input_files(cls, args: argparse.Namespace) -> dict[str, Path]:
        """Also the token model."""
        return {**super().input_files(args), "the token model": _token_model(args)}

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> CTCModel:
        """Build encoder and head."""
        tokenizer = Tokenizer(args.tokens)
        encoder = build_encoder(args)
        head = CTCHead(encoder.hidden_size, len(tokenizer.tokens), args.ctc_dropout)
        return CTCModel(encoder, head, tokenizer.decode, augmentation(args))

    @classmethod
    def export(
        cls, args: argparse.Namespace, model: CTCModel, selected: dict[str, Any]
    ) -> list[Path]:
        """Write ``expert.safetensors``, ``head.safetensors``, ``expert.json``, ``tokens.model``."""
        copy = Path(args.output_dir) / "tokens.model"
        with _token_model(args).open("rb") as source, atomic_open(copy, "wb") as target:
            shutil.copyfileobj(source, target)
        tokens = list(Tokenizer(args.tokens).tokens)
        return [copy, *write_expert(args, model, kind="asr", selected=selected, tokens=tokens)]


def _token_model(args: argparse.Namespace) -> Path:
    if args.tokens is None:
        raise UserError("--tokens is missing: give the folder of the token model (stage `tokens`)")
    return require(Path(args.tokens) / "tokens.model", "stage `tokens`")
