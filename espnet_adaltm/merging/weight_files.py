"""The files that hold an encoder's weights, and the hash that tells weights apart.

Without PyTorch: hashing gigabytes can begin while it is imported.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, read_json, sha256_file

_INDEX = ".index.json"
_MOST_THREADS = 8
_FOLDER_FILES = ("expert.safetensors", "model.safetensors", f"model.safetensors{_INDEX}")


def weight_files(path: Pathlike) -> list[Path]:
    """Return the safetensors files behind a file, an index of shards or an encoder's folder.

    Raises:
        UserError: There is none, or a shard is missing.
    """
    path = Path(path)
    if path.is_dir():
        found = next((path / name for name in _FOLDER_FILES if (path / name).is_file()), None)
        if found is None:
            hint = ""
            if (path / "pytorch_model.bin").exists():
                hint = "; for pytorch_model.bin, let transformers save the model again"
            raise UserError(
                f"{path} holds neither {' nor '.join(_FOLDER_FILES[:2])}: run its stage first{hint}"
            )
        path = found
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected a safetensors file or a folder with one")
    return _shards(path) if path.name.endswith(_INDEX) else [path]


def _shards(index: Path) -> list[Path]:
    table = read_json(index)
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index} has no 'weight_map': it is no index of safetensors shards")
    shards = [index.parent / str(name) for name in sorted(set(names.values()), key=str)]
    for shard in shards:
        if shard.parent != index.parent or not shard.is_file():
            raise UserError(f"{index} names the shard {shard.name}, which is not beside it")
    return shards


def identity(source: Pathlike | Mapping[str, Any]) -> str:
    """Return the SHA-256 that tells weights apart; empty for a state dictionary.

    Of shards: the SHA-256 of their hexadecimal ones, one per line.
    """
    if isinstance(source, Mapping):
        return ""
    hashes = [sha256_file(path) for path in weight_files(source)]
    lines = "".join(f"{value}\n" for value in hashes)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(lines.encode()).hexdigest()


class Identities:
    """`identity` of several paths, begun at once on other threads; a context manager.

    Call it with a path for the result, or for the error that `identity` would raise.
    """

    def __init__(self, paths: Iterable[Pathlike]) -> None:
        sources = list(paths)
        # One for each, not for each processor: what comes last would be hashed alone.
        self._pool = ThreadPoolExecutor(min(len(sources), _MOST_THREADS) or 1)
        self._begun: dict[str, Future[str]] = {
            str(path): self._pool.submit(identity, path) for path in sources
        }

    def __call__(self, source: Pathlike | Mapping[str, Any]) -> str:
        begun = None if isinstance(source, Mapping) else self._begun.get(str(source))
        return identity(source) if begun is None else begun.result()

    def __enter__(self) -> "Identities":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
