"""Pre-training of a base encoder: masked prediction of units, HuBERT's objective."""

import argparse
from pathlib import Path
from typing import Any

from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import int_or_none, str_or_none

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.loading import save_encoder, write_base_info
from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.errors import UserError
from espnet_adaltm.models.masked_prediction import MaskedPredictionHead
from espnet_adaltm.training.data import DataNeeds
from espnet_adaltm.training.espnet_models import PretrainModel
from espnet_adaltm.training.export import HEAD, write_tensors
from espnet_adaltm.training.task import (
    AdaltmTask,
    add_encoder_arguments,
    augmentation,
    build_encoder,
    prepare_encoder,
)


class PretrainTask(AdaltmTask):
    """Trains an encoder from a small configuration, or goes on with ``--base``."""

    needs = DataNeeds("all_shape", {"units": ("units.scp", "kaldi_ark")})

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add all options, masks being on by default."""
        super().add_task_arguments(parser)
        parser.set_defaults(mask_time_prob=0.065)

    @classmethod
    def add_own_arguments(cls, group: Any) -> None:
        """Add the options of pre-training."""
        add_encoder_arguments(group, freeze_cnn=False)
        group.add_argument(
            "--units_dir",
            type=str_or_none,
            default=None,
            help="Root of the units, <root>/<set>/units.scp",
        )
        group.add_argument(
            "--num_units", type=int_or_none, default=None, help="Size of the units' codebook"
        )
        group.add_argument(
            "--encoder_conf",
            action=NestedDictAction,
            default={},
            help="New encoder: overrides of backbone.tiny.tiny_config (without --base)",
        )
        group.add_argument(
            "--save_base",
            type=str_or_none,
            default=None,
            help="Folder to write the encoder to; OUTPUT_DIR/base by default",
        )

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Also refuse to start without masks or without the number of units."""
        if args.mask_time_prob <= 0:
            raise UserError("--mask_time_prob is 0: masked prediction needs masks, e.g. 0.065")
        if args.num_units is None:
            raise UserError("--num_units is missing: give the size of the units' codebook")
        if args.base is not None and args.encoder_conf:
            raise UserError("--encoder_conf describes a new encoder and --base names one: drop one")
        super().prepare(args)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> PretrainModel:
        """Build encoder and head."""
        encoder = _encoder(args)
        head = MaskedPredictionHead(encoder.hidden_size, args.num_units)
        return PretrainModel(encoder, head, augmentation(args))

    @classmethod
    def export(
        cls, args: argparse.Namespace, model: PretrainModel, selected: dict[str, Any]
    ) -> list[Path]:
        """Write the encoder's folder (`save_encoder`) with ``base.json``, and the head."""
        folder = Path(args.save_base or Path(args.output_dir) / "base")
        head = Path(args.output_dir) / HEAD
        write_tensors(head, model.head.state_dict())
        save_encoder(model.encoder, folder)
        write_base_info(
            folder,
            kind="pretrained",
            source=args.base or "random initialisation",
            unit_accuracy=selected["metrics"].get("acc"),
            seed=args.seed,
            selected=selected,
        )
        return [head, folder / "model.safetensors", folder / "config.json", folder / "base.json"]


def _encoder(args: argparse.Namespace) -> SpeechEncoder:
    if args.base is not None:
        return build_encoder(args)
    encoder = random_encoder(tiny_config(**args.encoder_conf), args.seed)
    prepare_encoder(args, encoder)
    return encoder
