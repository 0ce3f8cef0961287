"""What the baselines on ESPnet's own tasks share: see `espnet_stock_cls` and `espnet_stock_asr`.

Model, preprocessing, batches, optimiser and every step are ESPnet's, unchanged: the same options
given to ``espnet2.bin.cls_train`` or ``espnet2.bin.asr_train`` end with the same weights, bit for
bit (tested). Ours: options filled from the dump folders, labels and tokens of the other systems,
checkpoints that survive a crash, and the export.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from espnet2.utils.types import str_or_none
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump
from safetensors.torch import load_file

from espnet_adaltm.backbone.arks import Waveforms
from espnet_adaltm.data.labels import Labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import require, sha256_file, write_json, write_text
from espnet_adaltm.kaldi import read_scp
from espnet_adaltm.training.checkpoint import load_strict
from espnet_adaltm.training.data import FEATS_TYPES, PARTS, data_files, fill_data_options
from espnet_adaltm.training.export import write_tensors
from espnet_adaltm.training.identity import fingerprint
from espnet_adaltm.training.task import AdaltmTask, require_labels
from espnet_adaltm.training.trainer import AdaltmTrainer

MODEL, CONFIG, BASELINE = "model.safetensors", "model.yaml", "baseline.json"
UNK = "<unk>"
_STAGE = "stage `baselines`"
# What this package's trainer and resuming need; everything else keeps ESPnet's defaults.
_DEFAULTS = {
    "resume": True,
    "num_att_plot": 0,
    "num_workers": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "keep_nbest_models": [1],
}
# Options that make a model, beside those that ESPnet's task lists as choices of a class.
_MODEL_OPTIONS = ("token_list", "token_type", "input_size", "init", "bpemodel", "ctc_conf")


class StockTask(AdaltmTask):
    """Makes an ESPnet task runnable by `launch`; comes after that task among a class's bases.

    So what ESPnet's task defines (model, preprocessing, batches, names of data) stays as it is.
    """

    kind: ClassVar[str]
    trainer = AdaltmTrainer

    @classmethod
    def add_own_arguments(cls, group: Any) -> None:
        """Add the options that fill ESPnet's."""
        for part in PARTS:
            group.add_argument(
                f"--{part}_dump", type=str_or_none, default=None, help=f"Dump folder, {part} set"
            )
        group.add_argument(
            "--feats_type", default="raw", choices=FEATS_TYPES, help="Only raw: waveforms"
        )
        group.add_argument("--labels", type=str_or_none, default=None, help="labels.json")

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Check the options and fill ESPnet's from dump folders and labels, in place.

        Raises:
            UserError: An option or file is missing, the audio is not 16 kHz, an emotion is not
                among the labels, or one of them has no training utterance.
        """
        if args.feats_type != "raw":
            raise UserError(
                f"--feats_type {args.feats_type}: ESPnet's own tasks read waveforms, give raw"
            )
        require_labels(args)
        for part in PARTS:
            dump = getattr(args, f"{part}_dump")
            if dump is None:
                raise UserError(f"--{part}_dump is missing: give the dump folder of the {part} set")
            waveforms = Waveforms(dump)
            waveforms[next(iter(waveforms))]  # refuses what is not 16 kHz mono
        fill_data_options(args, {part: cls.data_needs(args, part) for part in PARTS})
        cls.fill_targets(args)

    @classmethod
    def fill_targets(cls, args: argparse.Namespace) -> None:
        """Check the targets and set the list of tokens, in place."""
        raise NotImplementedError

    @classmethod
    def sources(cls, args: argparse.Namespace) -> dict[str, Path]:
        """Files that what is trained on was made from, by role."""
        return {}

    @classmethod
    def input_files(cls, args: argparse.Namespace) -> dict[str, Path]:
        """Data tables, labels and their sources."""
        return {**data_files(args), "the labels": Path(args.labels), **cls.sources(args)}

    @classmethod
    def input_hashes(cls, args: argparse.Namespace) -> dict[str, str]:
        """Of the labels names and order, of the sources what is left of them in the tables."""
        hashes = {role: fingerprint(path) for role, path in data_files(args).items()}
        return {**hashes, "the labels": " ".join(require_labels(args).labels)}

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """ESPnet's, not those of the other tasks of this package."""
        return super(AdaltmTask, cls).build_optimizers(args, model)

    @classmethod
    def export(
        cls, args: argparse.Namespace, model: torch.nn.Module, selected: dict[str, Any]
    ) -> list[Path]:
        """Write weights, the options that make the model, and ``baseline.json``."""
        folder = Path(args.output_dir)
        write_tensors(folder / MODEL, model.state_dict())
        write_text(folder / CONFIG, _model_config(cls, args))
        described = {
            "kind": cls.kind,
            "labels": list(require_labels(args).labels),
            "feats_type": "raw",
            **cls.describe(args),
            "sha256": {name: sha256_file(folder / name) for name in (MODEL, CONFIG)},
            "espnet": version("espnet"),
            "seed": args.seed,
            "selected": selected,
        }
        write_json(folder / BASELINE, described)
        return [folder / name for name in (MODEL, CONFIG, BASELINE)]

    @classmethod
    def describe(cls, args: argparse.Namespace) -> dict[str, Any]:
        """Further entries of ``baseline.json``."""
        return {}


def add_stock_defaults(parser: argparse.ArgumentParser) -> Any:
    """Set what differs from ESPnet's defaults, and return the group for our options."""
    parser.set_defaults(**_DEFAULTS)
    return parser.add_argument_group("AdaLTM related")


def check_emotions(
    emotions: Mapping[str, str], labels: Labels, where: str, *, every: bool = False
) -> None:
    """Refuse emotions outside the labels and, if asked, labels without an utterance.

    Args:
        emotions: Utterance to emotion, of those that are used.
        labels: The ordered list.
        where: The file, for the error.
        every: Each label has to occur, as in a training set.

    Raises:
        UserError: See above.
    """
    for utt, name in emotions.items():
        labels.index(name, f"{where}: utterance {utt!r}")
    counts = Counter(emotions.values())
    unseen = [name for name in labels.labels if not counts[name]]
    if every and unseen:
        raise UserError(
            f"{where}: no training utterance is {unseen[0]!r}, which labels.json lists: a class "
            "that is never heard cannot be recognised; add data, or make labels.json again "
            "without it"
        )


def used_emotions(table: Path, shape: Path, among: Collection[str] | None = None) -> dict[str, str]:
    """Emotions of the utterances of a shape file, as far as they have one.

    Args:
        table: ``utt2emo``; may be missing.
        shape: Shape file; its keys are the utterances.
        among: Utterances whose emotions may be used, all of them unless given.
    """
    known = read_scp(table) if table.exists() else {}
    kept = read_scp(shape).keys() & known.keys()
    if among is not None:
        kept &= set(among)
    return {utt: emotion for utt, emotion in known.items() if utt in kept}


def _model_config(task: type[StockTask], args: argparse.Namespace) -> str:
    """ESPnet's ``config.yaml`` without what is of this machine, or does not make the model."""
    names = [choices.name for choices in task.class_choices_list]
    wanted = {*_MODEL_OPTIONS, *names, *(f"{name}_conf" for name in names)}
    options = {name: value for name, value in vars(args).items() if name in wanted}
    return yaml_no_alias_safe_dump(options, indent=4, sort_keys=False)


def model_files(folder: Path, info: Mapping[str, Any]) -> tuple[Path, Path]:
    """Options and weights of an exported model, checked against ``baseline.json``.

    Raises:
        UserError: One of them is missing, damaged or of another training.
    """
    for name in (CONFIG, MODEL):
        path = require(folder / name, _STAGE)
        if sha256_file(path) != info.get("sha256", {}).get(name):
            raise UserError(f"{path} is not what {BASELINE} describes: run {_STAGE} again")
    return folder / CONFIG, folder / MODEL


def fill_model(model: torch.nn.Module, weights: Path) -> None:
    """Give a model its exported weights, strictly (ESPnet's own loading skips what differs)."""
    load_strict(model, load_file(weights), str(weights))
    model.requires_grad_(False).eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the lines that ESPnet's inference logs for every utterance."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def too_short(samples: int, error: Exception) -> UserError:
    """For an utterance that the encoder's subsampling leaves nothing of."""
    return UserError(
        f"an utterance of {samples} samples is too short for the encoder ({error}): drop it with "
        "--min_seconds, or train with less subsampling"
    )
