"""YAML configurations with unknown keys refused."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike


def load_yaml(path: Pathlike) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: The file is missing, is not YAML or is not a mapping.
    """
    import yaml

    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold `key: value` lines, found {type(value).__name__}")
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_keys(mapping: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    """Refuse keys of ``mapping`` that are not in ``allowed``, naming the nearest known one."""
    allowed = list(allowed)
    for key in mapping:
        if key not in allowed:
            raise UserError(
                f"{where}: unknown key {key!r}{nearest(key, allowed)}; known: {', '.join(allowed)}"
            )
