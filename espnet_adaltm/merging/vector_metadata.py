"""What a task vector remembers of where it comes from, in memory and in its file's header."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from espnet_adaltm.backbone.blocks import BlockMap
from espnet_adaltm.files import Pathlike, read_json, taken_apart
from espnet_adaltm.merging.tensor_file import Spec
from espnet_adaltm.merging.weight_files import identity
from espnet_adaltm.merging.weights import FORMAT, Source

# What holds for every vector of one base, whatever was done with its differences.
_OF_BASE = ("norm_first", "blocks")


def vector_metadata(base: Source, base_sha256: str | None, expert_sha256: str) -> dict[str, Any]:
    """What a vector remembers of the two that it is the difference of."""
    described: dict[str, Any] = {
        "base_sha256": base_sha256 or identity(base),
        "expert_sha256": expert_sha256,
    }
    config = None if isinstance(base, Mapping) else Path(base) / "config.json"
    if config is not None and config.is_file():
        described["norm_first"] = bool(read_json(config).get("do_stable_layer_norm", False))
    return described


def file_metadata(metadata: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, str]:
    """The header's entry of a task vector file: hashes, dtype, block and module of every tensor.

    One entry, as safetensors writes several in a random order.
    """
    blocks = block_map(metadata, sorted(specs))
    dtype = next((spec.dtype for spec in specs.values()), torch.float32)
    described = {
        **metadata,
        "dtype": str(dtype).removeprefix("torch."),
        "blocks": described_map(BlockMap({n: p for n, p in blocks.items() if n in specs})),
    }
    return {FORMAT: json.dumps(described, sort_keys=True)}


def read_metadata(path: Pathlike, entry: str) -> dict[str, Any]:
    """Read that entry.

    Raises:
        UserError: It is not what `file_metadata` writes; the message names the file.
    """
    with taken_apart(path, "stage task_vectors"):
        metadata = dict(json.loads(entry))
        block_map(metadata, ())
    return metadata


def without_expert(*all_metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What stays true of differences made from those of several vectors of one base."""
    base = next((m["base_sha256"] for m in all_metadata if m.get("base_sha256")), "")
    kept = {
        key: next(m[key] for m in all_metadata if key in m)
        for key in _OF_BASE
        if any(key in m for m in all_metadata)
    }
    return {"base_sha256": base, "expert_sha256": "", **kept}


def described_map(blocks: BlockMap) -> dict[str, str]:
    """A map as JSON has it: name to ``block.module``."""
    return {name: f"{place.block}.{place.module}" for name, place in blocks.items()}


def block_map(metadata: Mapping[str, Any], names: Iterable[str]) -> BlockMap:
    """The map that the metadata holds; else what an encoder's names and ``norm_first`` tell."""
    if not metadata.get("blocks"):
        return BlockMap.of(names, norm_first=metadata.get("norm_first", True))
    places = {}
    for name, place in metadata["blocks"].items():
        block, _, module = place.partition(".")
        places[name] = (int(block), module)
    return BlockMap(places)
