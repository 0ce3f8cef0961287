"""Experts as teachers of a merge: frozen, read from their folders, in no checkpoint."""

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from espnet_adaltm.data.labels import check_same_labels
from espnet_adaltm.decoding.systems import (
    WEIGHTS,
    front_end_moved,
    load_system,
    read_description,
)
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import require, sha256_file
from espnet_adaltm.merging.config import MergeConfig
from espnet_adaltm.merging.objectives import SUPERVISED_CTC, SUPERVISED_DISTILL
from espnet_adaltm.merging.tensor_file import TensorFile
from espnet_adaltm.merging.weights import FORMAT
from espnet_adaltm.training.export import HEAD
from espnet_adaltm.training.merge_model import Teacher
from espnet_adaltm.training.task import require_labels

# Ours: a recogniser that has most words wrong has few to keep. Measured are only the ends: the CTC
# term helps with an expert of 3 % WER (mini_espeak), and costs 7 points with one of 99 % (nEMO).
WORDLESS_WER = 0.5


def expert_file(args: argparse.Namespace, task: str) -> Path:
    """Description of an expert."""
    return require(Path(getattr(args, f"{task}_expert")) / "expert.json", f"stage `{task}_expert`")


def check_teachers(args: argparse.Namespace, config: MergeConfig) -> None:
    """Refuse experts that the merge cannot learn from, before anything large is loaded.

    A recogniser that knows few words is warned of where its words are an objective.

    Raises:
        UserError: An expert of another kind or list of labels, one whose head is not for its own
            tokens, or another one than that whose vector is merged.
    """
    for task in config.teachers:
        folder = expert_file(args, task).parent
        info = read_description(folder)
        if info["kind"] != task:
            raise UserError(f"--{task}_expert: {folder} is of kind {info['kind']!r}, not {task}")
        if task == "ser":
            check_same_labels(require_labels(args), info["labels"], f"--labels and {folder}")
        else:
            _check_vocabulary(folder, len(info["tokens"]))
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


def _check_vocabulary(folder: Path, tokens: int) -> None:
    head = require(folder / HEAD, "stage `asr_expert`")
    with TensorFile(head) as file:
        found = {spec.shape[0] for spec in file.specs.values()}
    if found != {tokens}:
        raise UserError(
            f"{head} is for {' or '.join(map(str, sorted(found))) or 'no'} tokens, "
            f"{folder / 'expert.json'} names {tokens}: use the files of one training"
        )


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
    vector = Path(args.task_vectors) / f"{task}.safetensors"
    with safe_open(vector, framework="pt") as file:  # the header alone: a vector has gigabytes
        merged = json.loads((file.metadata() or {}).get(FORMAT, "{}")).get("expert_sha256")
    if merged and merged != sha256_file(require(folder / WEIGHTS, f"stage `{task}_expert`")):
        raise UserError(
            f"--{task}_expert: {folder / WEIGHTS} is not the expert that {vector} was made of: "
            "give that one, or make the task vectors again"
        )
