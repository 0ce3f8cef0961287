"""Rows of merging as a recipe takes them, by the file that holds each."""

import hashlib
import json
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, read_bytes
from espnet_adaltm.merging.config import MergeConfig

# What `merge_needs` of egs/TEMPLATE/adaltm1/utils/names.sh looks for in the text of a row.
_LOOKED_FOR = ("objective", "learn_on")


def read_row(path: Pathlike) -> MergeConfig:
    """Read a row that is called after its file and that the shell can read as well.

    Raises:
        UserError: As `MergeConfig.from_yaml`; another ``name``; or a spelling that the shell, which
            looks for lines, would take for the default.
    """
    path = Path(path)
    config = MergeConfig.from_yaml(path)
    if config.name != path.stem:
        raise UserError(
            f"{path}: name is {config.name!r}, but a row is called after its file, {path.stem!r}: "
            "rename the file, or leave name out"
        )
    text = b"\n" + read_bytes(path)
    for key in _LOOKED_FOR:
        value = getattr(config, key)
        line = f"{key}: {value}"
        if value != getattr(MergeConfig, key) and f"\n{line}".encode() not in text:
            raise UserError(
                f"{path}: write '{line}' on a line of its own, without quotes, brackets or more "
                "spaces: adaltm.sh looks for that line"
            )
    return config


def row_hash(config: MergeConfig) -> str:
    """SHA-256 of what a row says beyond the defaults: an option that is new changes no old hash."""
    plain = MergeConfig(config.name).to_dict()
    said = {key: value for key, value in config.to_dict().items() if value != plain[key]}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
