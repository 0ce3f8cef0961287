"""Where a merge may write: nowhere that it reads from, and nowhere that holds something else.

Without PyTorch: mistakes in paths are told before it is imported.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from espnet_adaltm.errors import UserError

WEIGHTS = "model.safetensors"
RECIPE = "merge_recipe.yaml"
REPORT = "merge_report.txt"
CONFIG = "config.json"
COPIED = ("preprocessor_config.json",)
_IN = "lies in"
_TASK = re.compile(r"\w[\w.-]*")


def check_task(task: object) -> None:
    """Refuse a task's name that cannot be part of a file's, or that stands for the base.

    Raises:
        UserError: The message shows it.
    """
    if not isinstance(task, str) or not _TASK.fullmatch(task) or task == "base":
        raise UserError(
            f"task {task!r}: give a name of letters, digits, '_', '-' and '.', such as asr, other "
            "than base"
        )


def check_merged(out: Path) -> None:
    """Refuse a folder to write that holds anything but an earlier merge.

    Raises:
        UserError: The message names it.
    """
    check_folder(out)
    if out.is_dir():
        names = {path.name for path in out.iterdir()}
        if names and not {WEIGHTS, RECIPE} <= names:
            raise UserError(f"{out} holds other files: give a new folder, or remove it")


def check_folder(folder: Path) -> None:
    """Refuse a file where a folder is to be written.

    Raises:
        UserError: The message names it.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file: give a folder to write")


def check_file(file: Path) -> None:
    """Refuse a folder where a file is to be written.

    Raises:
        UserError: The message names it.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder: give a file to write")


def check_new_name(file: Path) -> None:
    """Refuse the name of one of a merge's own files for another in its folder.

    Raises:
        UserError: The message names it.
    """
    if file.name in (WEIGHTS, RECIPE, REPORT, CONFIG, *COPIED):
        raise UserError(f"{file} is a file of the merge itself: give another name")


def check_apart(outputs: Mapping[str, Path], inputs: Mapping[str, Path]) -> None:
    """Refuse places to write that would cost each other or something that is read.

    Those are places that are or hold another, and outputs in one another, of which one would be
    replaced as a whole. In a folder that is read there may be new files and folders beside what is
    there (``--base . --out merged``).

    Args:
        outputs: What to call it to the folder or file that is to be written.
        inputs: The same of what is read, which may lie wherever it likes among itself.

    Raises:
        UserError: The message names both.
    """
    taken = dict(inputs)
    for what, place in outputs.items():
        for other, path in taken.items():
            relation = _relation(place, path)
            if relation == _IN and other in inputs and not place.is_file():
                continue
            if relation:
                raise UserError(
                    f"{what} {place} {relation} {other} {path}: give a place of its own"
                )
        taken[what] = place


def real(path: Path) -> Path:
    """Where a path leads, with links followed, whether or not it exists."""
    return Path(os.path.realpath(path))


def _relation(place: Path, path: Path) -> str:
    mine, theirs = real(place), real(path)
    if mine == theirs:
        return "is the same as"
    if theirs in mine.parents:
        return _IN
    return "would replace what holds" if mine in theirs.parents else ""
