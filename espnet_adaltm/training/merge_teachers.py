"""Experts that a merge reads: as frozen teachers, in no checkpoint, and for the first head."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espnet_adaltm.backbone.loading import read_config
from espnet_adaltm.data.labels import check_same_labels
from espnet_adaltm.decoding.systems import (
    EXPERT,
    WEIGHTS,
    check_base,
    front_end_moved,
    load_system,
    read_description,
)
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import require, sha256_file, taken_apart
from espnet_adaltm.merging.config import MergeConfig
from espnet_adaltm.merging.objectives import SUPERVISED_CTC, SUPERVISED_DISTILL
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.merging.tensor_file import TensorFile
from espnet_adaltm.models.ctc import CTCHead
from espnet_adaltm.models.emotion import build_head
from espnet_adaltm.training.checkpoint import check_fit
from espnet_adaltm.training.export import HEAD
from espnet_adaltm.training.merge_model import Teacher
from espnet_adaltm.training.task import emotion_head_options, require_labels

# Ours: a recogniser that has most words wrong has few to keep. Measured are only the ends: the CTC
# term helps with an expert of 3 % WER (mini_espeak), and costs 7 points with one of 99 % (nEMO).
WORDLESS_WER = 0.5


def expert_file(args: argparse.Namespace, task: str) -> Path:
    """Description of an expert."""
    return require(Path(getattr(args, f"{task}_expert")) / EXPERT, f"stage `{task}_expert`")


def vector_file(args: argparse.Namespace, task: str) -> Path:
    """A task vector."""
    return require(Path(args.task_vectors) / f"{task}.safetensors", "stage `task_vectors`")


def check_teachers(args: argparse.Namespace, config: MergeConfig) -> None:
    """Refuse experts that the merge cannot learn or start from, before anything large is loaded.

    That is done for the teachers of the objective and for the expert that ``head_init`` takes the
    emotion head from. A recogniser that knows few words is warned of where its words are an
    objective.

    Raises:
        UserError: An expert of another kind, base or list of labels, one whose head is missing, cut
            off, not for its own tokens or of another shape than is wanted, or another one than that
            whose vector is merged.
    """
    for task in config.experts:
        folder = expert_file(args, task).parent
        info = read_description(folder)
        if info["kind"] != task:
            raise UserError(f"--{task}_expert: {folder} is of kind {info['kind']!r}, not {task}")
        check_base(folder, info, Path(args.base))
        if task == "ser":
            _check_emotion_head(args, config, folder, info)
        else:
            _check_ctc_head(args, folder, info)
            if config.objective == SUPERVISED_CTC:
                _warn_of_wordless(folder, info)
        if task in config.tasks:
            _check_same_expert(args, folder, task)


def load_teachers(args: argparse.Namespace, config: MergeConfig) -> dict[str, Teacher]:
    """Load the experts that the objective learns from.

    Args:
        args: With the folders of the base and of the experts; checked by `check_teachers`.
        config: The merge.

    Raises:
        UserError: Missing or damaged, of another base, or not usable on stored features.
    """
    return {task: _load(args, config, task) for task in config.teachers}


def _load(args: argparse.Namespace, config: MergeConfig, task: str) -> Teacher:
    folder = expert_file(args, task).parent
    system = load_system(folder, base=args.base)
    head = system.ctc_head if task == "asr" else system.emotion_head
    if config.objective != SUPERVISED_DISTILL:
        return Teacher(head, tokenizer=system.tokenizer)
    moved = front_end_moved(system.encoder, args.base) if args.feats_type == "extracted" else None
    if moved is not None:
        raise UserError(
            f"{folder} changed the CNN front end ({moved!r}), which stored features bypass: use "
            "--feats_type raw"
        )
    return Teacher(head, system.encoder, system.tokenizer)


def _check_emotion_head(
    args: argparse.Namespace, config: MergeConfig, folder: Path, info: Mapping[str, Any]
) -> None:
    """A teacher's head is as the expert says, one to start from as the options of the merge say."""
    labels, base = require_labels(args), read_config(Path(args.base))
    size = (base.num_hidden_layers, base.hidden_size, len(labels))
    heads = []
    with taken_apart(folder / EXPERT, "stage `ser_expert`"), torch.device("meta"):
        check_same_labels(labels, info["labels"], f"--labels and {folder}")
        if "ser" in config.teachers:
            heads.append(build_head(*size, **info["head"]))
    if config.head_init == "ser_expert":
        with torch.device("meta"):
            heads.append(build_head(*size, **emotion_head_options(args, choose_kind=True)))
    for head in heads:
        _check_head(head, folder, "ser")


def _check_ctc_head(args: argparse.Namespace, folder: Path, info: Mapping[str, Any]) -> None:
    with taken_apart(folder / EXPERT, "stage `asr_expert`"):
        tokens = len(info["tokens"])
    head = require(folder / HEAD, "stage `asr_expert`")
    with TensorFile(head) as file:
        found = {size for spec in file.specs.values() for size in spec.shape[:1]}
    if found != {tokens}:
        raise UserError(
            f"{head} is for {' or '.join(map(str, sorted(found))) or 'no'} tokens, "
            f"{folder / EXPERT} names {tokens}: use the files of one training"
        )
    with torch.device("meta"):
        wanted = CTCHead(read_config(Path(args.base)).hidden_size, tokens)
    _check_head(wanted, folder, "asr")


def _check_head(wanted: nn.Module, folder: Path, task: str) -> None:
    path = require(folder / HEAD, f"stage `{task}_expert`")
    with TensorFile(path) as file:
        check_fit(wanted, file.specs, str(path))


def _warn_of_wordless(folder: Path, info: Mapping[str, Any]) -> None:
    wer = info.get("selected", {}).get("metrics", {}).get("wer")
    if wer is not None and wer >= WORDLESS_WER:
        logging.warning(
            "%s has a WER of %.0f %% on the validation set: the CTC term has few words to keep, "
            "and emotions may pay for it. Compare with a merge without the term, such as adaltm",
            folder,
            100 * wer,
        )


def _check_same_expert(args: argparse.Namespace, folder: Path, task: str) -> None:
    vector = vector_file(args, task)
    with TaskVector.open(vector) as opened:  # the header alone: a vector has gigabytes
        merged = opened.metadata.get("expert_sha256")
    if merged and merged != sha256_file(require(folder / WEIGHTS, f"stage `{task}_expert`")):
        raise UserError(
            f"--{task}_expert: {folder / WEIGHTS} is not the expert that {vector} was made of: "
            "give that one, or make the task vectors again"
        )
