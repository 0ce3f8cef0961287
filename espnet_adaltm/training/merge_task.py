"""Merging: learns coefficients of frozen task vectors, the layer sum and an emotion head (AdaLTM).

``--merge_config`` is a YAML file with the attributes of `espnet_adaltm.merging.config.MergeConfig`.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from espnet2.utils.types import str_or_none
from safetensors import SafetensorError
from safetensors.torch import load_file

from espnet_adaltm.backbone.loading import load_encoder, read_base_info
from espnet_adaltm.data.labels import check_same_labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, require, write_json
from espnet_adaltm.merging.config import MergeConfig
from espnet_adaltm.merging.merged import MergedEncoder
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.models.losses import build_loss
from espnet_adaltm.training.checkpoint import load_strict
from espnet_adaltm.training.espnet_models import HISTORY, MergeModel
from espnet_adaltm.training.export import HEAD, write_tensors
from espnet_adaltm.training.ser_task import SERTask
from espnet_adaltm.training.task import (
    add_emotion_arguments,
    augmentation,
    build_emotion_head,
    class_counts,
    emotion_head_options,
    require_labels,
)


def merge_config(args: argparse.Namespace) -> MergeConfig:
    """The merge's options; AdaLTM's without ``--merge_config``."""
    if args.merge_config is None:
        return MergeConfig("adaltm")
    return MergeConfig.from_yaml(args.merge_config)


class MergeTask(SERTask):
    """Trains a merge; its checkpoints hold coefficients and head only."""

    @classmethod
    def add_own_arguments(cls, group: Any) -> None:
        """Add the options of a merge."""
        add_emotion_arguments(group)
        group.add_argument(
            "--merge_config", type=str_or_none, default=None, help="YAML; see module"
        )
        group.add_argument(
            "--task_vectors", type=str_or_none, default=None, help="Folder of <task>.safetensors"
        )
        group.add_argument(
            "--ser_expert", type=str_or_none, default=None, help="For head_init: ser_expert"
        )

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Also check the merge configuration and put it among the options."""
        if args.base is None:
            raise UserError("--base is missing: give the folder of the base encoder (stage `base`)")
        config = merge_config(args)
        args.merge_conf = config.to_dict()
        if config.tasks and args.task_vectors is None:
            raise UserError("--task_vectors is missing: give the folder of stage `task_vectors`")
        if config.head_init == "ser_expert" and args.ser_expert is None:
            raise UserError(
                "head_init: ser_expert needs --ser_expert, the folder of the emotion expert"
            )
        super().prepare(args)

    @classmethod
    def input_files(cls, args: argparse.Namespace) -> dict[str, Path]:
        """Also the task vectors and the head to start from."""
        files = super().input_files(args)
        for task in args.merge_conf["tasks"]:
            files[f"the task vector {task}"] = _vector_file(args, task)
        if args.merge_conf["head_init"] == "ser_expert":
            files["the emotion expert"] = _expert_file(args)
        if args.merge_config is not None:
            files["the merge configuration file"] = Path(args.merge_config)
        return files

    @classmethod
    def input_hashes(cls, args: argparse.Namespace) -> dict[str, str]:
        """Not of the configuration file, whose contents are options."""
        hashes = super().input_hashes(args)
        hashes.pop("the merge configuration file", None)
        return hashes

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> MergeModel:
        """Build merged encoder, head and loss."""
        labels = require_labels(args)
        base = load_encoder(args.base)
        config = MergeConfig.from_dict(args.merge_conf)
        encoder = MergedEncoder(
            base,
            _load_vectors(args),
            config.coefficients(base),
            encoder_dropout=config.encoder_dropout,
        )
        head = build_emotion_head(args, base, labels)
        if config.head_init == "ser_expert":
            _init_head(args, head, labels.labels)
        loss = build_loss(args.loss, class_counts(args, labels), gamma=args.focal_gamma)
        return MergeModel(encoder, head, loss, len(labels), augmentation(args))

    @classmethod
    def export(
        cls, args: argparse.Namespace, model: MergeModel, selected: dict[str, Any]
    ) -> list[Path]:
        """Write ``coefficients.json``, ``head.safetensors`` and ``merge.json``."""
        folder = Path(args.output_dir)
        coefficients = model.encoder.coefficients
        history = read_json(folder / HISTORY)
        write_tensors(folder / HEAD, model.head.state_dict())
        write_json(
            folder / "coefficients.json",
            {
                "tasks": list(coefficients.tasks),
                "groups": list(coefficients.groups),
                "epochs": [history[key] for key in sorted(history, key=int)],
                "best_epoch": selected["best_epoch"],
                "final": coefficients.table(),
            },
        )
        write_json(folder / "merge.json", _description(args, selected))
        return [folder / name for name in ("coefficients.json", HEAD, "merge.json")]


def _description(args: argparse.Namespace, selected: dict[str, Any]) -> dict[str, Any]:
    folder = Path(args.output_dir)

    def relative(path: str | Path | None) -> str | None:
        return None if path is None else os.path.relpath(path, folder)

    tasks = args.merge_conf["tasks"]
    return {
        "kind": "merge",
        "name": args.merge_conf["name"],
        "options": args.merge_conf,
        "labels": list(require_labels(args).labels),
        "head": emotion_head_options(args),
        "base": relative(args.base),
        "base_sha256": read_base_info(args.base)["sha256"],
        "task_vectors": {task: relative(_vector_file(args, task)) for task in tasks},
        "expert_sha256": {
            task: vector.metadata.get("expert_sha256", "")
            for task, vector in _load_vectors(args).items()
        },
        "feats_type": args.feats_type,
        "seed": args.seed,
        "selected": selected,
    }


def _vector_file(args: argparse.Namespace, task: str) -> Path:
    return require(Path(args.task_vectors) / f"{task}.safetensors", "stage `task_vectors`")


def _expert_file(args: argparse.Namespace) -> Path:
    return require(Path(args.ser_expert) / "expert.json", "stage `ser_expert`")


def _load_vectors(args: argparse.Namespace) -> dict[str, TaskVector]:
    """Load the vectors of the merge, checked against base and kind of input."""
    base = read_base_info(args.base)["sha256"]
    vectors: dict[str, TaskVector] = {}
    for task in args.merge_conf["tasks"]:
        path = _vector_file(args, task)
        vector = TaskVector.load(path)
        theirs = vector.metadata.get("base_sha256") or base
        if theirs != base:
            raise UserError(
                f"{path} belongs to the base {theirs[:12]}, {args.base} is {base[:12]}: run stages "
                f"`asr_expert` to `task_vectors` again with this base"
            )
        moved = [
            name
            for name, tensor in vector.tensors.items()
            if name.startswith("feature_extractor.") and bool(tensor.any())
        ]
        if moved and args.feats_type == "extracted":
            raise UserError(
                f"{path} changes the CNN front end ({moved[0]!r}), which stored features bypass: "
                f"use --feats_type raw, or experts trained with --freeze_cnn true"
            )
        vectors[task] = vector
    return vectors


def _init_head(args: argparse.Namespace, head: EmotionHead, labels: tuple[str, ...]) -> None:
    described = read_json(_expert_file(args))
    check_same_labels(labels, described["labels"], f"--labels and {args.ser_expert}")
    path = require(Path(args.ser_expert) / HEAD, "stage `ser_expert`")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): train the expert again") from error
    load_strict(head, state, str(path))
