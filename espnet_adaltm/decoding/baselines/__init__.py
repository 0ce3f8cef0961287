"""Published systems that the merges are compared with, decoded by the same programs.

A training leaves ``baseline.json`` in its folder, with a ``kind``. The module of that name in this
package loads it:

    load(folder: Path, info: dict, *, base: Path | None = None) -> nn.Module

``info`` is ``baseline.json``, ``base`` the folder given for the one that it names. The module's
``forward(speech, lengths)`` returns a `decoding.systems.Output`. It may have an ``encoder`` (a
`SpeechEncoder`: then stored features are accepted, unless ``baseline.json`` has
``"feats_type": "raw"``) and a ``tokenizer`` (of its transcripts). A kind whose utterances depend on
each other (dialogues), or that is called in another way, brings its own loop:

    decode(system, inputs: Inputs, *, dump: Path, batch_seconds: float, device) -> Decoded
"""

import importlib
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from espnet_adaltm.errors import UserError

DESCRIPTION = "baseline.json"
_KIND = re.compile(r"[a-z][a-z0-9_]*")


def kinds() -> list[str]:
    """The kinds of baselines that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def module_of(kind: object, where: str) -> ModuleType:
    """The module that loads a kind.

    Args:
        kind: The entry of ``baseline.json``.
        where: The file, for the error.

    Raises:
        UserError: There is no such kind.
    """
    if not isinstance(kind, str) or not _KIND.fullmatch(kind) or kind not in kinds():
        raise UserError(f"{where}: kind {kind!r} is none of {', '.join(kinds())}")
    return importlib.import_module(f"{__name__}.{kind}")


def load(folder: Path, info: Mapping[str, Any], *, base: Path | None = None) -> Any:
    """Load a trained baseline.

    Args:
        folder: With ``baseline.json``.
        info: What is in it.
        base: Folder of the base encoder; the one it names unless given.

    Raises:
        UserError: Something is missing, damaged, or belongs to another base.
    """
    return module_of(info.get("kind"), str(folder / DESCRIPTION)).load(folder, info, base=base)
