"""What makes two trainings the same: refusing to resume another one, and ending only once.

ESPnet resumes under changed options without a word (and rewrites ``config.yaml`` as if they had
been in use). Here ``identity.json`` in the experiment directory holds every option that changes
the result, and the hashes of the inputs; once there is something to resume from, a difference is
refused by name.
"""

import argparse
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, sha256_file, write_json

CHECKPOINTS = ("checkpoint.pth", "checkpoint.prev.pth")  # newest first
IDENTITY = "identity.json"
FINISHED = "finished.json"
GRID = "grid"  # trainings of a merge's fixed coefficients, one folder each
_ABSENT = object()

# Options that do not change what is computed. Everything else does, unknown ones included.
_IRRELEVANT = """
    config required print_config version output_dir log_level log_interval dry_run resume max_epoch
    ngpu num_workers distributed local_rank multiprocessing_distributed dist_backend
    dist_init_method dist_world_size dist_rank dist_master_addr dist_master_port dist_launcher
    gradient_as_bucket_view unused_parameters cudnn_enabled cudnn_benchmark cudnn_deterministic
    use_matplotlib use_tensorboard create_graph_in_tensorboard num_att_plot use_wandb wandb_project
    wandb_id wandb_entity wandb_name wandb_model_log_interval detect_anomaly max_cache_size
    max_cache_fd valid_max_cache_size collect_stats write_collected_feats pretrain_path
    nbest_averaging_interval save_base gradient_checkpointing
"""
# Where inputs lie is not what they hold: these are compared through the hashes of `inputs`.
_PLACES = """
    base train_dump valid_dump feats_dir units_dir tokens labels merge_config task_vectors
    asr_expert ser_expert wap_adapter adapt_dump train_data_path_and_name_and_type
    valid_data_path_and_name_and_type train_shape_file valid_shape_file emotion_shape
"""
IRRELEVANT, PLACES = frozenset(_IRRELEVANT.split()), frozenset(_PLACES.split())


def make_identity(args: argparse.Namespace, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Collect what determines the result of a training.

    Args:
        args: All options of the job.
        inputs: What the training reads (as it is to appear in an error) to the hash of its
            contents.

    Returns:
        ``{"options": {name: value}, "inputs": {role: sha256}}``, ready for JSON.
    """
    options = {
        name: value
        for name, value in sorted(vars(args).items())
        if name not in IRRELEVANT and name not in PLACES
    }
    # Through JSON and back: tuples become lists, as they are when read from the file.
    return json.loads(json.dumps({"options": options, "inputs": dict(inputs)}, default=str))


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with the training in ``folder`` if it is another one.

    One that failed before it left anything to go on with is no obstacle to its own correction.

    Raises:
        UserError: An option or input differs; the message says which, and the two values.
    """
    path = folder / IDENTITY
    if not path.exists():
        if any((folder / name).exists() for name in CHECKPOINTS):
            raise UserError(
                f"{folder} has a checkpoint but no {IDENTITY}, so nothing says which options it "
                f"was trained with: use another --output_dir, or delete the checkpoint"
            )
        return
    if not _has_begun(folder):
        return
    changes = list(_changes(read_json(path), identity))
    if changes:
        raise UserError(
            f"{folder} holds a training with other options: {'; '.join(changes)}. Resuming would "
            f"mix the two: use another --output_dir, restore the old value, or give --resume false "
            f"to train afresh"
        )


def _has_begun(folder: Path) -> bool:
    """Whether there is something that other options would be mixed with, or taken for."""
    return any((folder / name).exists() for name in (*CHECKPOINTS, GRID, FINISHED))


def _changes(saved: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for part, label in (("options", "--"), ("inputs", "the contents of ")):
        # Names that count no longer, or not yet when the training began.
        skipped = IRRELEVANT | PLACES if part == "options" else frozenset()
        old_part, new_part = (
            {name: value for name, value in each.items() if name not in skipped}
            for each in (saved.get(part, {}), new[part])
        )
        for name, old, now in _different(old_part, new_part):
            if part == "inputs" and _ABSENT not in (old, now):
                yield f"{label}{name} changed"
                continue
            shown = ["not given" if value is _ABSENT else f"{value!r}" for value in (old, now)]
            yield f"{label}{name} was {shown[0]} and is now {shown[1]}"


def _different(
    old: Mapping[str, Any], new: Mapping[str, Any], outer: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Entries with two values, by name; those of inner mappings as ``outer: inner``."""
    for name in sorted({*old, *new}):
        values = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if all(isinstance(value, Mapping) for value in values):
            yield from _different(*values, f"{outer}{name}: ")
        elif values[0] != values[1]:
            yield f"{outer}{name}", *values


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write ``identity.json``; a training that has begun keeps its own."""
    if not (folder / IDENTITY).exists() or not _has_begun(folder):
        write_json(folder / IDENTITY, identity)


def fingerprint(path: Path) -> str:
    """SHA-256 of a file; of a safetensors file only of its header.

    The headers of task vectors hold the hashes of the weights that they were made from.
    """
    if path.suffix != ".safetensors":
        return sha256_file(path)
    with path.open("rb") as handle:
        header = handle.read(int.from_bytes(handle.read(8), "little"))
    return hashlib.sha256(header).hexdigest()


def call_hash(argv: Sequence[str]) -> str:
    """Hash of a command line and of the files named by its ``--config``."""
    digest = hashlib.sha256()
    for position, word in enumerate(argv):
        digest.update(word.encode() + b"\0")
        name = argv[position - 1] if position else ""
        config = Path(word if name == "--config" else word.removeprefix("--config="))
        if (name == "--config" or word.startswith("--config=")) and config.is_file():
            digest.update(config.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Finished:
    """The training ended and its results are all written.

    Attributes:
        epoch: The last epoch.
        reason: ``"max_epoch"`` or ``"patience"``.
        outputs: Files that the export wrote.
        call: `call_hash` of the last command line that asked for just this.
        inputs: File to its `fingerprint`.
    """

    epoch: int
    reason: str
    outputs: list[str]
    call: str
    inputs: dict[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether nobody removed an output since."""
        return all(Path(path).exists() for path in self.outputs)

    def same_job(self, argv: Sequence[str]) -> bool:
        """Whether ``argv`` asks for just this again, with unchanged inputs."""
        return self.call == call_hash(argv) and all(
            Path(path).is_file() and fingerprint(Path(path)) == known
            for path, known in self.inputs.items()
        )

    def ends_at(self, max_epoch: int) -> bool:
        """Whether it is finished under this ``max_epoch`` too."""
        return self.reason == "patience" or self.epoch >= max_epoch


def write_finished(folder: Path, finished: Finished) -> None:
    """Write ``finished.json``."""
    write_json(folder / FINISHED, asdict(finished))


def read_finished(folder: Path) -> Finished | None:
    """Read ``finished.json``; None when the training has not ended."""
    path = folder / FINISHED
    return Finished(**read_json(path)) if path.exists() else None


def forget(folder: Path) -> None:
    """Remove what a training resumes from (for ``--resume false``)."""
    names = [IDENTITY, FINISHED, *CHECKPOINTS, "coefficient_history.json"]
    paths = [folder / name for name in names] + sorted(folder.glob("*.pth"))
    for path in paths:
        if path.is_symlink() or path.exists():
            logging.info("--resume false: removing %s", path)
            path.unlink()
    shutil.rmtree(folder / GRID, ignore_errors=True)
