"""Merging: learns coefficients of frozen task vectors, the layer sum and an emotion head (AdaLTM).

``--merge_config`` is a YAML file with the attributes of `espnet_adaltm.merging.config.MergeConfig`.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from espnet2.utils.types import str_or_none

from espnet_adaltm.backbone.loading import load_encoder, read_base_info
from espnet_adaltm.decoding.systems import read_tensors
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, require, write_json
from espnet_adaltm.merging import objectives
from espnet_adaltm.merging.config import ADAPT, HELD_OUT, TRAIN, MergeConfig
from espnet_adaltm.merging.merged import MergedEncoder
from espnet_adaltm.merging.prepared import checksum, prepared
from espnet_adaltm.merging.sources import open_vector
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.merging.weights import open_weights
from espnet_adaltm.models.losses import build_loss
from espnet_adaltm.training import held_out
from espnet_adaltm.training.checkpoint import load_strict
from espnet_adaltm.training.data import PARTS, DataNeeds
from espnet_adaltm.training.export import HEAD, write_tensors
from espnet_adaltm.training.merge_grid import chosen_value, read_grid, train_grid
from espnet_adaltm.training.merge_model import HISTORY, MergeModel, Objective
from espnet_adaltm.training.merge_teachers import (
    check_teachers,
    expert_file,
    load_teachers,
    vector_file,
)
from espnet_adaltm.training.preprocess import Preprocess
from espnet_adaltm.training.ser_task import SERTask, emotion_needs
from espnet_adaltm.training.task import (
    add_emotion_arguments,
    augmentation,
    build_emotion_head,
    class_counts,
    emotion_head_options,
    require_labels,
)

_PROTOCOLS = {
    TRAIN: "learned on the training set; epochs chosen on the validation set",
    HELD_OUT: "learned on half of the validation speakers; epochs chosen on the other half",
    ADAPT: "learned on the speech of the adaptation set, without labels; epochs chosen on the "
    "validation set",
}


def merge_config(args: argparse.Namespace) -> MergeConfig:
    """The merge's options; AdaLTM's without ``--merge_config``."""
    if args.merge_config is None:
        return MergeConfig("adaltm")
    return MergeConfig.from_yaml(args.merge_config)


class MergeTask(SERTask):
    """Trains a merge; its checkpoints hold coefficients and head only."""

    needs = DataNeeds("ser_shape", {})

    @classmethod
    def add_own_arguments(cls, group: Any) -> None:
        """Add the options of a merge."""
        add_emotion_arguments(group)
        for name, what in (
            ("merge_config", "YAML; see module"),
            ("task_vectors", "Folder of <task>.safetensors"),
            ("ser_expert", "Folder, for head_init: ser_expert and supervised_distill"),
            ("asr_expert", "Folder, for supervised_ctc and supervised_distill"),
            ("adapt_dump", "Dump folder, for learn_on: adapt; its labels are not read"),
        ):
            group.add_argument(f"--{name}", type=str_or_none, default=None, help=what)

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Also check the merge configuration, put it among the options and derive the data."""
        if args.base is None:
            raise UserError("--base is missing: give the folder of the base encoder (stage `base`)")
        config = merge_config(args).with_seed(args.seed)
        args.merge_conf = config.to_dict()
        if config.coef_lr is not None:
            args.coef_lr = config.coef_lr
        args.max_epoch = max(1, round(args.max_epoch * config.epoch_factor))
        _check_places(args, config)
        _check_vectors(args)
        check_teachers(args, config)
        if config.learn_on != TRAIN:
            args.train_dump = args.valid_dump if config.learn_on == HELD_OUT else args.adapt_dump
        super().prepare(args)
        if config.learn_on == HELD_OUT:
            _hold_out(args, config)
        if config.objective == objectives.SUPERVISED_CTC:
            _add_text(args)

    @classmethod
    def data_needs(cls, args: argparse.Namespace, part: str) -> DataNeeds:
        """Labelled utterances; for entropy all of them, without labels."""
        labelled = emotion_needs(args)
        if args.merge_conf["objective"] != objectives.ENTROPY:
            return labelled
        dump = args.valid_dump
        if part == "valid" and dump is not None and (Path(dump) / labelled.shape).exists():
            return labelled  # for the metrics; the loss, which chooses epochs, uses no label
        return DataNeeds("all_shape", {})

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Which of them an objective needs is checked by `prepare`."""
        return ("emotion", "text")

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> Preprocess:
        """The tokens are the ASR expert's."""
        labels = require_labels(args)
        with_text = args.merge_conf["objective"] == objectives.SUPERVISED_CTC
        return Preprocess(tokens=args.asr_expert if with_text else None, labels=labels)

    @classmethod
    def input_files(cls, args: argparse.Namespace) -> dict[str, Path]:
        """Also the task vectors and the experts to start or learn from."""
        files = super().input_files(args)
        config = MergeConfig.from_dict(args.merge_conf)
        for task in config.tasks:
            files[f"the task vector {task}"] = vector_file(args, task)
        if "ser" in config.experts:
            files["the emotion expert"] = expert_file(args, "ser")
        if "asr" in config.experts:
            files["the recognition expert"] = expert_file(args, "asr")
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
    def main(cls, args: argparse.Namespace | None = None, cmd: Sequence[str] | None = None) -> None:
        """Train; a grid's values one after another."""
        train = super().main
        if getattr(args, "merge_conf", {}).get("grid") is None:
            train(args, cmd)
        else:
            train_grid(args, train)

    @classmethod
    def trained_folder(cls, args: argparse.Namespace) -> Path:
        """That of the chosen value of a grid."""
        folder = Path(args.output_dir)
        if args.merge_conf["grid"] is None:
            return folder
        return folder / chosen_value(folder)["folder"]

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> MergeModel:
        """Build merged encoder, head, loss and teachers."""
        labels = require_labels(args)
        base = load_encoder(args.base)
        config = MergeConfig.from_dict(args.merge_conf)
        if config.grid is not None:
            value = chosen_value(Path(args.output_dir))["init"]
            config = MergeConfig.from_dict({**args.merge_conf, "init": value, "grid": None})
        encoder = MergedEncoder(
            base,
            prepared(config, _load_vectors(args)),
            config.coefficients(base),
            encoder_dropout=config.encoder_dropout,
        )
        head = build_emotion_head(args, base, labels)
        if config.head_init == "ser_expert":
            path = Path(args.ser_expert) / HEAD
            load_strict(head, read_tensors(path), str(path))
        head.requires_grad_(config.train_head)
        if not config.train_head and not encoder.moved:
            raise UserError(
                f"nothing to learn: train_head is false, and the task vectors of "
                f"{args.task_vectors} move no weight under preprocess {config.preprocess} and "
                f"method {config.method}"
            )
        loss = None
        if config.objective != objectives.ENTROPY:
            loss = build_loss(args.loss, class_counts(args, labels), gamma=args.focal_gamma)
        objective = Objective(
            config.objective,
            config.ctc_weight,
            config.distill_weights,
            config.distill_on,
            load_teachers(args, config),
        )
        return MergeModel(encoder, head, loss, len(labels), augmentation(args), objective)

    @classmethod
    def export(
        cls, args: argparse.Namespace, model: MergeModel, selected: dict[str, Any]
    ) -> list[Path]:
        """Write ``coefficients.json``, ``head.safetensors`` and ``merge.json``."""
        folder = Path(args.output_dir)
        trained = cls.trained_folder(args)
        coefficients = model.encoder.coefficients
        history = read_json(trained / HISTORY)
        if trained != folder:
            write_json(folder / "history.json", read_json(trained / "history.json"))
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


def _check_places(args: argparse.Namespace, config: MergeConfig) -> None:
    """Refuse missing folders, and data options that contradict ``learn_on``."""
    if config.tasks and args.task_vectors is None:
        raise UserError("--task_vectors is missing: give the folder of stage `task_vectors`")
    for task, reader in (("ser", "emotion"), ("asr", "recognition")):
        if task in config.experts and getattr(args, f"{task}_expert") is None:
            why = "head_init: ser_expert" if config.head_init == "ser_expert" else ""
            why = f"objective: {config.objective}" if task in config.teachers else why
            raise UserError(f"{why} needs --{task}_expert, the folder of the {reader} expert")
    if config.learn_on == TRAIN:
        return
    option = "valid_dump" if config.learn_on == HELD_OUT else "adapt_dump"
    if getattr(args, option) is None:
        raise UserError(f"learn_on {config.learn_on} needs --{option}")
    for given in ("train_data_path_and_name_and_type", "train_shape_file"):
        if getattr(args, given):
            raise UserError(f"learn_on {config.learn_on} reads --{option}: leave out --{given}")


def _hold_out(args: argparse.Namespace, config: MergeConfig) -> None:
    """Divide the validation speakers, in place."""
    shapes = held_out.split_shapes(
        Path(args.valid_dump),
        Path(args.train_shape_file[0]),
        Path(args.valid_shape_file[0]),
        config.held_out_seed,
        Path(args.output_dir) / held_out.FOLDER,
    )
    for part in PARTS:
        setattr(args, f"{part}_shape_file", [str(shapes[part])])
    if config.objective == objectives.ENTROPY:
        return
    labels = require_labels(args)
    counts = [class_counts(args, labels, part) for part in PARTS]
    for label, learn, choose in zip(labels.labels, *counts, strict=True):
        if (learn == 0) != (choose == 0):
            raise UserError(
                f"learn_on held_out: {label!r} has {learn} utterances of the speakers to learn on "
                f"and {choose} of those to choose epochs on: give another held_out_seed, a larger "
                "validation set, or learn_on: train"
            )


def _add_text(args: argparse.Namespace) -> None:
    """Add transcripts to what is read, in place; an empty one for those that lack it."""
    for part in PARTS:
        dump = getattr(args, f"{part}_dump")
        if dump is None:
            raise UserError(f"objective supervised_ctc reads transcripts: give --{part}_dump")
        completed = held_out.complete_text(
            require(Path(dump) / "text", "stage `audio`"),
            Path(getattr(args, f"{part}_shape_file")[0]),
            Path(args.output_dir) / held_out.FOLDER / f"{part}_text",
        )
        name = f"{part}_data_path_and_name_and_type"
        setattr(args, name, [*getattr(args, name), (str(completed), "text", "text")])


def _description(args: argparse.Namespace, selected: dict[str, Any]) -> dict[str, Any]:
    folder = Path(args.output_dir)

    def relative(path: str | Path | None) -> str | None:
        return None if path is None else os.path.relpath(path, folder)

    config = MergeConfig.from_dict(args.merge_conf)
    vectors = _load_vectors(args)
    described = {
        "kind": "merge",
        "name": config.name,
        "options": args.merge_conf,
        "labels": list(require_labels(args).labels),
        "head": emotion_head_options(args, choose_kind=True),
        "base": relative(args.base),
        "base_sha256": read_base_info(args.base)["sha256"],
        "task_vectors": {task: relative(vector_file(args, task)) for task in config.tasks},
        "expert_sha256": {
            task: vector.metadata.get("expert_sha256", "") for task, vector in vectors.items()
        },
        "protocol": _protocol(args, config),
        "feats_type": args.feats_type,
        "seed": args.seed,
        "selected": selected,
    }
    if config.changes_vectors:
        made = prepared(config, vectors)
        described["checksums"] = {name: checksum(vector) for name, vector in made.items()}
    if config.grid is not None:
        described["grid"] = read_grid(folder)
    return described


def _protocol(args: argparse.Namespace, config: MergeConfig) -> dict[str, Any]:
    """What was learned on and what chose the epoch."""
    protocol = {"learn_on": config.learn_on, "means": _PROTOCOLS[config.learn_on]}
    if config.objective == objectives.ENTROPY:
        protocol["labels"] = "none: entropy of the predictions, in the choice of epochs too"
    if config.learn_on == HELD_OUT:
        shapes = (Path(getattr(args, f"{part}_shape_file")[0]) for part in PARTS)
        protocol |= held_out.describe(Path(args.valid_dump), *shapes)
    return protocol


def _load_vectors(args: argparse.Namespace) -> dict[str, TaskVector]:
    return {task: TaskVector.load(vector_file(args, task)) for task in args.merge_conf["tasks"]}


def _check_vectors(args: argparse.Namespace) -> None:
    """Refuse vectors that do not fit the base or the kind of input, before anything is written.

    Reads them once, a tensor at a time.
    """
    base = read_base_info(args.base)["sha256"]
    with ExitStack() as stack:
        weights = stack.enter_context(open_weights(args.base))
        for task in args.merge_conf["tasks"]:
            path = vector_file(args, task)
            source = stack.enter_context(open_vector(weights, path))
            if source.of_base and source.of_base != base:
                raise UserError(
                    f"{path} belongs to the base {source.of_base[:12]}, {args.base} is "
                    f"{base[:12]}: run stages `asr_expert` to `task_vectors` again with this base"
                )
            deltas = ((name, source.whole(name)) for name in source.specs)  # refuses NaN
            moved = [n for n, d in deltas if n.startswith("feature_extractor.") and bool(d.any())]
            if moved and args.feats_type == "extracted":
                raise UserError(
                    f"{path} changes the CNN front end ({moved[0]!r}), which stored features "
                    "bypass: use --feats_type raw, or experts trained with --freeze_cnn true"
                )
