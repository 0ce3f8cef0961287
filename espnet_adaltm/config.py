"""YAML configurations with unknown keys refused."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, read_text

if TYPE_CHECKING:
    from yaml import Node

_MOST_ENTRIES = 1_000_000
_MERGE_KEY = "tag:yaml.org,2002:merge"


def load_yaml(path: Pathlike) -> dict[str, Any]:
    """Read a YAML mapping of words to plain values; nothing in it is evaluated.

    Raises:
        UserError: The file is missing, is not YAML or not a mapping, gives a key twice, or is made
            to exhaust its reader: aliases of aliases, or nested without end.
    """
    text = read_text(path)
    try:
        value = _parse(text, str(path))
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply") from None
    except UserError:
        raise
    except Exception as error:  # PyYAML's constructors raise whatever a malformed value leads to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not valid YAML: {reason}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold `key: value` lines, found {type(value).__name__}")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{path}: key {key!r} is no word: put it in quotes")
    return value


def _parse(text: str, where: str) -> Any:
    """What `yaml.safe_load` does, with a look at the parsed document before values are made."""
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        document = loader.get_single_node()
        if document is None:
            return None
        if _entries(document, where, {}) > _MOST_ENTRIES:
            raise UserError(
                f"{where}: its aliases expand to more than {_MOST_ENTRIES} entries: write out "
                "what you need"
            )
        return loader.construct_document(document)
    finally:
        loader.dispose()


def _entries(node: "Node", where: str, known: dict[int, int | None]) -> int:
    """Number of entries below a node with every alias counted again, as merge keys copy them.

    Args:
        node: Of the parsed document.
        where: What to call it in errors.
        known: Results by identity of the node; None while it is being counted.

    Raises:
        UserError: A node that holds itself, or a key given twice.
    """
    from yaml import MappingNode, SequenceNode

    if id(node) in known:
        if (count := known[id(node)]) is None:
            line = node.start_mark.line + 1
            raise UserError(f"{where}:{line}: an alias that holds itself: remove it")
        return count
    known[id(node)] = None
    below: list[Node] = []
    if isinstance(node, MappingNode):
        _check_distinct(node, where)
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, SequenceNode):
        below = node.value
    count = known[id(node)] = 1 + sum(_entries(part, where, known) for part in below)
    return count


def _check_distinct(node: "Node", where: str) -> None:
    from yaml import ScalarNode

    seen = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode) or key.tag == _MERGE_KEY:
            continue
        if (key.tag, key.value) in seen:
            raise UserError(
                f"{where}:{key.start_mark.line + 1}: key {key.value!r} is given twice: keep one"
            )
        seen.add((key.tag, key.value))


def as_numbers(value: Any) -> Any:
    """YAML reads ``1e-4`` (without a point) as text: make it the number that was meant.

    Args:
        value: Text, or lists and mappings that may hold some; what is no number stays as it is.
    """
    if isinstance(value, Mapping):
        return {key: as_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [as_numbers(entry) for entry in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def check_choice(what: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse a value that is none of ``allowed``, which the message lists."""
    if value not in allowed:
        raise UserError(f"{what} {value!r} is unknown: use {', '.join(allowed)}")


def nearest(name: object, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_keys(mapping: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    """Refuse keys of ``mapping`` that are not in ``allowed``, naming the nearest known one."""
    if not isinstance(mapping, Mapping):
        raise UserError(f"{where} must hold `key: value`, found {type(mapping).__name__}")
    allowed = list(allowed)
    for key in mapping:
        if key not in allowed:
            raise UserError(
                f"{where}: unknown key {key!r}{nearest(key, allowed)}; known: {', '.join(allowed)}"
            )
