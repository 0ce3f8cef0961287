"""Adapter with local attributes, second half: fine-tuning adapter, pooling and classifier.

``--wap_adapter`` is the folder of a trained adapter, of this corpus or of another one that was
trained on the same base; without it the adapter starts at random (the paper's ablation).
"""

import argparse
import os
from pathlib import Path
from typing import Any

from espnet2.utils.types import str_or_none
from safetensors.torch import load_file

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, require, sha256_file, write_json
from espnet_adaltm.models.losses import build_loss
from espnet_adaltm.models.wap_adapter import AdapterConfig, WapAdapter, WapHead
from espnet_adaltm.training.checkpoint import load_strict
from espnet_adaltm.training.espnet_models import EmotionModel
from espnet_adaltm.training.export import HEAD, write_tensors
from espnet_adaltm.training.ser_task import SERTask
from espnet_adaltm.training.task import (
    add_emotion_arguments,
    augmentation,
    class_counts,
    emotion_head_options,
    require_labels,
)
from espnet_adaltm.training.wap_adapter_task import (
    ADAPTER,
    ADAPTER_INFO,
    add_adapter_arguments,
    hidden_files,
    hidden_info,
    use_hidden_states,
)

BASELINE = "baseline.json"
_NOTES = {
    "paper": "frozen encoder, three Transformer layers, learned layer sum, adapter training by "
    "masked prediction, self-distillation and local attributes, statistical attentive pooling",
    "ours": "everything else: hidden layer, width, masks, clusters, losses, classifier",
}


class WapHeadTask(SERTask):
    """Fine-tunes an adapter on a frozen encoder to recognise emotions."""

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add all options, the pooling being the paper's."""
        super().add_task_arguments(parser)
        parser.set_defaults(pooling="attentive")

    @classmethod
    def add_own_arguments(cls, group: Any) -> None:
        """Add the options of fine-tuning."""
        add_adapter_arguments(group)
        add_emotion_arguments(group)
        group.add_argument(
            "--wap_adapter",
            type=str_or_none,
            default=None,
            help="Folder of a trained adapter; none: it starts at random",
        )

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Also check the adapter against options, base and hidden states."""
        config = AdapterConfig.from_dict(args.wap_conf, "--wap_conf")
        emotion_head_options(args)
        use_hidden_states(args)
        if args.wap_adapter is not None:
            _check_adapter(args, config)
        super().prepare(args)

    @classmethod
    def input_files(cls, args: argparse.Namespace) -> dict[str, Path]:
        """Also what the hidden states are, and the adapter."""
        files = {**super().input_files(args), **hidden_files(args)}
        if args.wap_adapter is not None:
            # It holds the hash of the weights.
            files["the adapter"] = Path(args.wap_adapter) / ADAPTER_INFO
        return files

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> EmotionModel:
        """Build adapter, head and loss."""
        labels = require_labels(args)
        config = AdapterConfig.from_dict(args.wap_conf, "--wap_conf")
        adapter = WapAdapter(hidden_info(args)["dim"], config)
        if args.wap_adapter is not None:
            _load_adapter(adapter, Path(args.wap_adapter))
        adapter.train_mask_embedding(args.mask_time_prob > 0)
        head = WapHead(config.dim, len(labels), **emotion_head_options(args))
        loss = build_loss(args.loss, class_counts(args, labels), gamma=args.focal_gamma)
        return EmotionModel(adapter, head, loss, len(labels), augmentation(args))

    @classmethod
    def export(
        cls, args: argparse.Namespace, model: EmotionModel, selected: dict[str, Any]
    ) -> list[Path]:
        """Write ``adapter.safetensors``, ``head.safetensors`` and ``baseline.json``."""
        folder = Path(args.output_dir)
        write_tensors(folder / ADAPTER, model.encoder.state_dict())
        write_tensors(folder / HEAD, model.head.state_dict())
        info = hidden_info(args)
        write_json(
            folder / BASELINE,
            {
                "kind": "wap_adapter",
                "labels": list(require_labels(args).labels),
                "base": os.path.relpath(args.base, folder),
                "base_sha256": info["base_sha256"],
                "layer": info["layer"],
                "options": {
                    "adapter": AdapterConfig.from_dict(args.wap_conf, "--wap_conf").shape(),
                    "head": emotion_head_options(args),
                    "adapter_training": _adapter_training(args),
                },
                "notes": _NOTES,
                "seed": args.seed,
                "selected": selected,
            },
        )
        return [folder / name for name in (ADAPTER, HEAD, BASELINE)]


def _read_adapter(folder: Path) -> dict[str, Any]:
    return read_json(require(folder / ADAPTER_INFO, "bin/train_wap_adapter.py"))


def _check_adapter(args: argparse.Namespace, config: AdapterConfig) -> None:
    """Refuse an adapter of another shape, or for other hidden states."""
    folder, hidden = Path(args.wap_adapter), hidden_info(args)
    info = _read_adapter(folder)
    for name, what in (("base_sha256", "the base"), ("layer", "layer")):
        if info[name] != hidden[name]:
            raise UserError(
                f"--wap_adapter {folder} was trained on {what} {info[name][:12]}, but "
                f"{args.feats_dir} holds hidden states of {hidden[name][:12]}: train the adapter "
                "on the same ones"
            )
    for name, value in config.shape().items():
        if info["adapter"][name] != value:
            raise UserError(
                f"--wap_conf: {name} is {value}, but {folder} has {info['adapter'][name]}: use the "
                "same shape in both trainings"
            )


def _load_adapter(adapter: WapAdapter, folder: Path) -> None:
    path = require(folder / ADAPTER, "bin/train_wap_adapter.py")
    if sha256_file(path) != _read_adapter(folder)["sha256"]:
        raise UserError(
            f"{path} is damaged, or not what {ADAPTER_INFO} beside it describes: copy or train it "
            "again"
        )
    load_strict(adapter, load_file(path), str(path))


def _adapter_training(args: argparse.Namespace) -> dict[str, Any] | None:
    """How the adapter was trained; None if it was not."""
    if args.wap_adapter is None:
        return None
    info = _read_adapter(Path(args.wap_adapter))
    kept = ("attributes", "attribute_weight", "distill_weight", "speech", "seed", "sha256")
    return {name: info[name] for name in kept}
