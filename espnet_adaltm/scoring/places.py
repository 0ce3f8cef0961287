"""Places that a result may name: those inside of a recipe, never those of one machine."""

import os
from pathlib import Path


def relative_place(path: Path, folder: Path) -> str | None:
    """``path`` seen from ``folder``, so that a recipe can be moved with its results.

    Returns:
        None unless both were given relative to the working directory: other places are of one
        machine and nobody else's.
    """
    if path.is_absolute() or folder.is_absolute():
        return None
    return Path(os.path.relpath(path, folder)).as_posix()
