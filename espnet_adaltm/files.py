"""Atomic writes, and reads that explain themselves.

What is being written has a temporary name, ``.<name>.<host>.<process>.<random>.tmp``, beside the
final one. A process that is killed leaves it behind; the next writer of the same name on the same
machine removes it.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from espnet_adaltm.errors import UserError

Pathlike = str | os.PathLike[str]


def _explain(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left on the disk of {path.parent}: free some and run again")
    return error


@cache
def _host() -> str:
    """This machine as part of a file name; a container that counts its own processes is another."""
    name = re.sub(r"[^A-Za-z0-9-]", "-", os.uname().nodename)
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return name
    return f"{name}-{space}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or no process number at all
        return True
    return True


def _prefix(path: Path) -> str:
    """Begin of the temporary names of ``path``; removes those that dead processes left."""
    left = re.compile(rf"\.{re.escape(path.name)}\.{_host()}\.([1-9]\d*)\.\w+\.tmp")
    with os.scandir(path.parent) as entries:
        stale = [e for e in entries if (m := left.fullmatch(e.name)) and not _alive(int(m[1]))]
    for entry in stale:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)
    return f".{path.name}.{_host()}.{os.getpid()}."


def _fsync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_open(path: Pathlike, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that takes its name only when all went well.

    Args:
        path: Final name; parent folders are made.
        mode: ``"w"`` (UTF-8 text, ``\\n`` line ends) or ``"wb"``.

    Raises:
        UserError: The disk is full. The old file, if any, is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    descriptor, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, mode, **text) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        _fsync_directory(path.parent)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _explain(error, path) from error
        raise


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


@contextmanager
def atomic_dir(path: Pathlike) -> Iterator[Path]:
    """Fill a temporary folder that replaces ``path`` only when all went well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _fsync_directory(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _explain(error, path) from error
        raise


@contextmanager
def atomic_path(path: Pathlike) -> Iterator[Path]:
    """As `atomic_open`, for libraries that open a file by name: yield the name to write to."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent))
    try:
        temporary = folder / path.name
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _fsync_directory(path.parent)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Pathlike, text: str) -> None:
    """Write ``text`` atomically."""
    with atomic_open(path) as handle:
        handle.write(text)


def write_json(path: Pathlike, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Pathlike) -> Any:
    """Read JSON.

    Raises:
        UserError: The file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}): delete it and run its stage"
        ) from error


def sha256_file(path: Pathlike) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require(path: Pathlike, made_by: str) -> Path:
    """Return ``path`` if it exists and is not empty.

    Args:
        path: A file or folder that is about to be read.
        made_by: The stage or command that makes it, for the error.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} is missing: run {made_by} first")
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path} is empty: run {made_by} again")
    return path
