"""Which of the compared systems are variants of one published system, and what each of them is.

What a training left in ``baseline.json`` says it; names of systems say it only to those who know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json
from espnet_adaltm.scoring.set_scores import System

DESCRIPTION = "baseline.json"
PSEUDO = "pseudo-dialogues"
MEMORY, WAP = "memory", "wap_adapter"
_HISTORIES = {
    "dialog": "memory",
    "none": "none (the host alone)",
    "frozen": "never updated",
    "reset_each_turn": "reset at every turn",
    "shuffled": "shuffled turns",
    "other_dialog": "another dialogue's history",
}
_CONSTANT = "trained without ever being updated"


@dataclass(frozen=True)
class Variant:
    """One row of an ablation.

    Attributes:
        system: Its name.
        label: What it is, in a few words.
        means: The same in a sentence; may be empty.
    """

    system: str
    label: str
    means: str = ""


@dataclass(frozen=True)
class Family:
    """Variants of one system.

    Attributes:
        kind: `MEMORY` or `WAP`.
        title: Of their table.
        variants: At least two, the system itself first.
        references: Names of those that all others are compared with, at most two.
        dialogs: For memories, where their dialogues come from: ``kind`` and ``pseudo_turns``.
    """

    kind: str
    title: str
    variants: tuple[Variant, ...]
    references: tuple[str, ...]
    dialogs: Mapping[str, Any] | None = None


def described(system: System) -> dict[str, Any]:
    """``baseline.json`` of a system, of its first seed; empty if it has none.

    Raises:
        UserError: Its seeds are of different kinds.
    """
    paths = [folder / DESCRIPTION for folder in system.folders.values()]
    infos = [read_json(path) for path in paths if path.exists()]
    for key in ("kind", "history", "pseudo_dialogs"):
        if len({str(info.get(key)) for info in infos}) > 1:
            raise UserError(f"{system.name}: the {key} of its seeds differ in their {DESCRIPTION}")
    return infos[0] if infos else {}


def labelled(
    systems: Sequence[System], pairs: Sequence[tuple[str, str]]
) -> tuple[list[System], list[tuple[str, str]]]:
    """Systems, and pairs of their names, with names that tell what a table must not hide.

    A memory of pseudo-dialogues says so; an adapter trained on other speech says which.

    Raises:
        UserError: Two systems would have one name.
    """
    names = {system.name: _full_name(system) for system in systems}
    if len(set(names.values())) < len(names):
        raise UserError(f"two of the systems would be called alike: {', '.join(names.values())}")
    renamed = [replace(system, name=names[system.name]) for system in systems]
    return renamed, [(names[first], names[second]) for first, second in pairs]


def _full_name(system: System) -> str:
    info = described(system)
    words = [system.name]
    if info.get("pseudo_dialogs"):
        words.append(PSEUDO)
    speech = _training(info).get("speech") if info.get("kind") == WAP else None
    if speech:
        words.append("".join(c if c.isalnum() or c in "+-." else "-" for c in speech))
    return "_".join(words)


def families(systems: Sequence[System]) -> list[Family]:
    """The ablations among the systems: every memory with its variants, and the adapters."""
    infos = {system.name: described(system) for system in systems}
    memories = {name: info for name, info in infos.items() if info.get("kind") == MEMORY}
    adapters = {name: info for name, info in infos.items() if info.get("kind") == WAP}
    found = [*_memories(memories), _adapters(adapters)]
    return [family for family in found if family is not None and len(family.variants) > 1]


def _memories(infos: Mapping[str, Mapping[str, Any]]) -> list[Family]:
    """A family for every set of weights that is used with its history."""
    found = []
    for name, info in infos.items():
        if info["history"] != "dialog" or not info["learn"]:
            continue
        order = list(_HISTORIES)
        same = {
            other: theirs
            for other, theirs in infos.items()
            if theirs["memory_sha256"] == info["memory_sha256"]
        }
        rows = sorted(same, key=lambda other: order.index(same[other]["history"]))
        variants = [
            Variant(other, _HISTORIES[same[other]["history"]], same[other]["history_means"])
            for other in rows
        ]
        variants += [
            Variant(other, _CONSTANT, "as many weights, and no memory")
            for other, theirs in infos.items()
            if not theirs["learn"] and theirs.get("host_sha256") == info.get("host_sha256")
        ]
        alone = [other for other in rows if same[other]["history"] == "none"]
        title = f"{name}: what the history is worth"
        if info.get("pseudo_dialogs"):
            title += f" ({PSEUDO}: utterances of one speaker, no conversation)"
        references = tuple(dict.fromkeys((*alone, name)))
        found.append(Family(MEMORY, title, tuple(variants), references, info["dialogs"]))
    return found


def _adapters(infos: Mapping[str, Mapping[str, Any]]) -> Family | None:
    if not infos:
        return None
    first = min(infos, key=len)
    rows = [first, *(name for name in infos if name != first)]
    variants = tuple(Variant(name, _adapter_label(infos[name], name == first)) for name in rows)
    untrained = [name for name in rows if not _training(infos[name])]
    references = tuple(dict.fromkeys((*untrained[:1], first)))
    title = "Adapter with local attributes: what its parts are worth"
    return Family(WAP, title, variants, references)


def _training(info: Mapping[str, Any]) -> Mapping[str, Any]:
    return info["options"].get("adapter_training") or {}


def _adapter_label(info: Mapping[str, Any], is_first: bool) -> str:
    training = _training(info)
    if not training:
        return "no adapter training"
    attributes = f"{training['attributes']} local attributes"
    parts = [attributes if training["attribute_weight"] else "without local attributes"]
    if not training["distill_weight"]:
        parts.append("without self-distillation")
    if training.get("speech"):
        parts.append(f"adapter trained on {training['speech']}")
    whole = is_first and parts == [attributes]
    return f"all of it ({attributes})" if whole else ", ".join(parts)
