"""What the ESPnet tasks of this package share."""

import argparse
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TextIO

import torch
from espnet2.tasks.abs_task import AbsTask, IteratorOptions, optim_classes
from espnet2.train.dataset import AbsDataset
from espnet2.utils.config_argparse import ArgumentParser
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import float_or_none, int_or_none, str2bool, str_or_none

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.loading import load_encoder, read_base_info
from espnet_adaltm.config import check_keys, load_yaml, nearest
from espnet_adaltm.data.labels import Labels, load_labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp
from espnet_adaltm.models.emotion import KINDS, build_head
from espnet_adaltm.models.losses import LOSSES
from espnet_adaltm.models.pooling import POOLINGS
from espnet_adaltm.training.data import (
    FEATS_TYPES,
    PARTS,
    DataNeeds,
    SpeechReader,
    data_files,
    fill_data_options,
)
from espnet_adaltm.training.espnet_models import AdaltmModel, Augmentation
from espnet_adaltm.training.identity import fingerprint
from espnet_adaltm.training.optimizers import build_optimizer
from espnet_adaltm.training.preprocess import Collate, Preprocess
from espnet_adaltm.training.trainer import AdaltmTrainer

_BASE = "the base encoder"
# Types of options that have to be what they say in a configuration file too.
_CHECKED = {
    int: "a whole number",
    int_or_none: "a whole number",
    float: "a number",
    float_or_none: "a number",
    str2bool: "true or false",
}
# ESPnet's defaults that do not suit: the rest of its options keep theirs.
_DEFAULTS = {
    "resume": True,
    "optim": "adamw",
    "batch_type": "numel",
    "num_att_plot": 0,
    "num_workers": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "keep_nbest_models": [1],
}


class AdaltmTask(AbsTask):
    """Base of the tasks; see ESPnet's `AbsTask` for what the class methods are for."""

    num_optimizers = 1
    trainer = AdaltmTrainer
    needs: ClassVar[DataNeeds]
    # Batch entries without a time axis: no `<name>_lengths` is made for them.
    not_sequence: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options of this package."""
        parser.set_defaults(**_DEFAULTS)
        group = parser.add_argument_group("AdaLTM related")
        group.add_argument(
            "--base", type=str_or_none, default=None, help="Folder of the base encoder"
        )
        for part in ("train", "valid"):
            group.add_argument(
                f"--{part}_dump", type=str_or_none, default=None, help=f"Dump folder, {part} set"
            )
        group.add_argument(
            "--feats_type",
            default="raw",
            choices=FEATS_TYPES,
            help="Waveforms, or stored outputs of the (frozen) CNN front end",
        )
        group.add_argument(
            "--feats_dir",
            type=str_or_none,
            default=None,
            help="Root of the stored features, <root>/<set>/feats.scp; BASE/feats by default",
        )
        for kind, what in (("encoder", "the encoder"), ("head", "heads"), ("coef", "coefficients")):
            group.add_argument(
                f"--{kind}_lr",
                type=float_or_none,
                default=None,
                help=f"Learning rate of {what}; optim_conf's lr by default",
            )
        group.add_argument("--mask_time_prob", type=float, default=0.0, help="Per frame")
        group.add_argument("--mask_time_length", type=int, default=10, help="Frames per span")
        group.add_argument("--noise_prob", type=float, default=0.0, help="Per utterance, raw only")
        group.add_argument("--noise_snr", type=float, nargs=2, default=[10.0, 30.0], help="dB")
        cls.add_own_arguments(group)

    @classmethod
    @abstractmethod
    def add_own_arguments(cls, group: Any) -> None:
        """Add the options of one task."""

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Check the options and fill what ESPnet needs, in place; before ESPnet's ``main``.

        Raises:
            UserError: An option or a file is missing or contradicts another.
        """
        if args.feats_type == "extracted" and args.noise_prob > 0:
            raise UserError("--noise_prob needs waveforms: use --feats_type raw, or set it to 0")
        fill_data_options(args, {part: cls.data_needs(args, part) for part in PARTS})

    @classmethod
    def data_needs(cls, args: argparse.Namespace, part: str) -> DataNeeds:
        """What is read from the dump folder of ``part`` (train, valid) under these options."""
        return cls.needs

    @classmethod
    def input_files(cls, args: argparse.Namespace) -> dict[str, Path]:
        """Everything small that is read and decides the result, by role; after `prepare`."""
        files = data_files(args)
        if args.base is not None:
            files[_BASE] = Path(args.base) / "base.json"
        return files

    @classmethod
    def input_hashes(cls, args: argparse.Namespace) -> dict[str, str]:
        """What must not change between two runs of one training, by role; see `identity`."""
        hashes = {role: fingerprint(path) for role, path in cls.input_files(args).items()}
        if args.base is not None:
            hashes[_BASE] = read_base_info(args.base)["sha256"]
        return hashes

    @classmethod
    def trained_folder(cls, args: argparse.Namespace) -> Path:
        """Where the checkpoints of a finished training lie."""
        return Path(args.output_dir)

    @classmethod
    @abstractmethod
    def export(
        cls, args: argparse.Namespace, model: AdaltmModel, selected: dict[str, Any]
    ) -> list[Path]:
        """Write the results of a finished training from the selected weights.

        Returns:
            What was written.
        """

    @classmethod
    def get_parser(cls) -> ArgumentParser:
        """ESPnet's parser, refusing abbreviated and unknown options in one line."""
        parser = super().get_parser()
        parser.allow_abbrev = False
        parser.error = partial(_refuse, parser)
        return parser

    @classmethod
    def print_config(cls, file: TextIO | None = None) -> None:
        """Print all options as YAML (ESPnet would print to what stdout was at import)."""
        super().print_config(sys.stdout if file is None else file)

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool) -> Collate:
        """The making of a batch from utterances."""
        return Collate(cls.not_sequence)

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> Preprocess:
        """The conversion of one utterance."""
        labels = getattr(args, "labels", None)
        return Preprocess(
            tokens=getattr(args, "tokens", None),
            labels=None if labels is None else load_labels(labels),
        )

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Names that a batch must have."""
        return ("speech",) if inference else ("speech", *cls.needs.targets)

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Names that a batch may have."""
        return ()

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """One optimiser with a parameter group per learning rate."""
        return [build_optimizer(args, model, optim_classes[args.optim])]

    @classmethod
    def build_dataset(
        cls,
        args: argparse.Namespace,
        iter_options: IteratorOptions,
        keys_to_load: Collection[str] | None = None,
    ) -> AbsDataset:
        """ESPnet's dataset, with the sampling rate of every utterance checked."""
        dataset = super().build_dataset(args, iter_options, keys_to_load)
        reader = dataset.loader_dict["speech"]
        path = dataset.debug_info["speech"][0]
        dataset.loader_dict["speech"] = SpeechReader(reader.loader, path)
        return dataset


def _refuse(parser: ArgumentParser, message: str) -> NoReturn:
    """Raise instead of printing hundreds of lines of usage; name the nearest known options."""
    prefix = "unrecognized arguments:"
    words = message.removeprefix(prefix).split() if message.startswith(prefix) else []
    known = {option for action in parser._actions for option in action.option_strings}
    known |= {action.dest for action in parser._actions}
    hints = "".join(nearest(word.partition("=")[0], known) for word in words[:1])
    raise UserError(f"{message}{hints}; --help lists all options")


def check_config(parser: ArgumentParser, path: str) -> None:
    """Refuse a configuration that ESPnet's parser would take without a look at its values.

    Raises:
        UserError: No YAML mapping, or something else where a number or a truth is expected.
    """
    values = load_yaml(path)
    for action in parser._actions:
        value = values.get(action.dest)
        if value is None or action.nargs is not None or action.type not in _CHECKED:
            continue
        try:
            if isinstance(value, bool) != (action.type is str2bool) and not isinstance(value, str):
                raise ValueError
            action.type(str(value))
        except ValueError:
            what = _CHECKED[action.type]
            raise UserError(f"{path}: {action.dest} must be {what}, found {value!r}") from None


def augmentation(args: argparse.Namespace) -> Augmentation:
    """The input changes that the options ask for."""
    return Augmentation(
        args.mask_time_prob, args.mask_time_length, args.noise_prob, tuple(args.noise_snr)
    )


def build_encoder(args: argparse.Namespace) -> SpeechEncoder:
    """Load the base encoder and freeze what the options freeze, in training mode.

    Raises:
        UserError: No ``--base``, or a trainable CNN that stored features would bypass.
    """
    if args.base is None:
        raise UserError("--base is missing: give the folder of the base encoder (stage `base`)")
    encoder = load_encoder(args.base)
    prepare_encoder(args, encoder)
    return encoder


def prepare_encoder(args: argparse.Namespace, encoder: SpeechEncoder) -> None:
    """Apply `add_encoder_arguments`; DDP fails on parameters that no loss depends on."""
    if args.freeze_cnn:
        encoder.freeze_cnn()
    elif args.feats_type == "extracted":
        raise UserError(
            "--freeze_cnn false needs waveforms: stored features bypass the CNN; use --feats_type "
            "raw or --freeze_cnn true"
        )
    encoder.train_mask_embedding(args.mask_time_prob > 0)
    if args.gradient_checkpointing:
        encoder.body.gradient_checkpointing_enable()


def add_encoder_arguments(group: Any, freeze_cnn: bool) -> None:
    """Add the options of an encoder that learns; ``freeze_cnn`` is that option's default."""
    group.add_argument(
        "--freeze_cnn", type=str2bool, default=freeze_cnn, help="Keep the CNN of the base"
    )
    group.add_argument(
        "--gradient_checkpointing",
        type=str2bool,
        default=False,
        help="Keep the layers' inputs only, and compute each layer again for the backward pass: "
        "the same numbers in less memory, for a second forward pass through the layers",
    )


def add_emotion_arguments(group: Any) -> None:
    """Add the options of an emotion head and its loss."""
    group.add_argument("--labels", type=str_or_none, default=None, help="labels.json")
    group.add_argument(
        "--soft_labels",
        type=str2bool,
        default=False,
        help="Train on annotator distributions (utt2soft) instead of utt2emo",
    )
    group.add_argument("--loss", default="cb_soft_ce", choices=LOSSES)
    group.add_argument("--focal_gamma", type=float, default=2.0)
    group.add_argument("--pooling", default="mean", choices=POOLINGS)
    group.add_argument(
        "--head_conf",
        action=NestedDictAction,
        default={},
        help="Emotion head: hidden (256), dropout (0.1), kind (convolutions; or projector: that "
        "of transformers, whose pipelines then load an export)",
    )


def require_labels(args: argparse.Namespace) -> Labels:
    """Read ``--labels``."""
    if args.labels is None:
        raise UserError("--labels is missing: give labels.json (stage `tokens`)")
    return load_labels(args.labels)


def build_emotion_head(
    args: argparse.Namespace, encoder: SpeechEncoder, labels: Labels
) -> torch.nn.Module:
    """Make the emotion head that the options describe."""
    options = emotion_head_options(args, choose_kind=True)
    return build_head(encoder.num_layers, encoder.hidden_size, len(labels), **options)


def emotion_head_options(args: argparse.Namespace, choose_kind: bool = False) -> dict[str, Any]:
    """Keyword arguments of `models.emotion.build_head`, checked.

    Args:
        args: Options of the training.
        choose_kind: Whether ``--head_conf`` may name a kind of head.
    """
    kinds = ("kind",) if choose_kind else ()
    check_keys(args.head_conf, ("hidden", "dropout", *kinds), "--head_conf")
    kind = args.head_conf.get("kind")
    if kind is not None and kind not in KINDS:
        raise UserError(f"--head_conf kind={kind}: choose one of {', '.join(KINDS)}")
    if kind == "projector" and args.pooling != "mean":
        raise UserError(f"--head_conf kind=projector takes --pooling mean, not {args.pooling}")
    return {"hidden": 256, "dropout": 0.1, **args.head_conf, "pooling": args.pooling}


def class_counts(args: argparse.Namespace, labels: Labels, part: str = "train") -> list[int]:
    """Utterances of each emotion (the most likely one of a distribution) in a set, length C.

    Raises:
        UserError: An emotion that is not among the labels.
    """
    entries = getattr(args, f"{part}_data_path_and_name_and_type")
    path = next(path for path, name, _ in entries if name == "emotion")
    emotions = read_scp(path)
    counts: Counter[int] = Counter()
    for utt in read_scp(getattr(args, f"{part}_shape_file")[0]):
        target = labels.target(emotions[utt], f"{path}: utterance {utt!r}")
        counts[target.index(max(target))] += 1
    return [counts[index] for index in range(len(labels))]
