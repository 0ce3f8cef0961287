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
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from espnet_adaltm.errors import UserError

Pathlike = str | os.PathLike[str]
_WIDTH = 100  # of the lines of a JSON file
# A thread that hashes waits up to 5 ms for the interpreter's lock after each part, while another
# one imports: that has to be little beside the time that a part takes.
_PART = 2 << 20
# What a user can do something about, beside a full disk.
_REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


def _explain(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left on the disk of {path.parent}: free some and run again")
    if error.errno in _REFUSED:
        return UserError(f"{path} cannot be written ({error.strerror}): give another place")
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


def is_running(process: int) -> bool:
    """Whether a process of this machine, by its number, has not ended; if in doubt, yes.

    One that has ended but that nobody has asked about, a zombie, has ended: in a container whose
    first program does not ask, it stays one for ever.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or no process number at all
        return True
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"


def _prefix(path: Path) -> str:
    """Begin of the temporary names of ``path``; removes those that dead processes left."""
    left = re.compile(rf"\.{re.escape(path.name)}\.{_host()}\.([1-9]\d*)\.\w+\.tmp")
    with os.scandir(path.parent) as entries:
        stale = [e for e in entries if (m := left.fullmatch(e.name)) and not is_running(int(m[1]))]
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
def _beside(path: Path) -> Iterator[str]:
    """Where ``path`` can be written: its folder exists, and the begin of a temporary name.

    Folders that are made for it go again when writing fails. What the file system refuses becomes
    a `UserError`; errors about files elsewhere are not for here to explain.
    """
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            _check_link(path)
        yield _prefix(path)
    except BaseException as error:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and _is_about(error, path.parent):
            raise _explain(error, path) from error
        raise


def _is_about(error: OSError, folder: Path) -> bool:
    """Whether an error names a file in ``folder``, or a folder above; or none, as full disks do."""
    if error.filename is None or isinstance(error.filename, int):
        return True
    named = Path(os.fsdecode(error.filename))
    return named.is_relative_to(folder) or folder.is_relative_to(named)


def _check_link(path: Path) -> None:
    """Refuse to replace a folder that is only linked to: what it stands for may be elsewhere."""
    if path.is_dir():
        raise UserError(
            f"{path} is a symbolic link to a folder, which would be replaced: remove the link, or "
            "give the folder itself"
        )


@contextmanager
def atomic_open(path: Pathlike, mode: str = "w", *, sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that takes its name only when all went well.

    Args:
        path: Final name; parent folders are made. A symbolic link is replaced, never followed.
        mode: ``"w"`` (UTF-8 text, ``\\n`` line ends) or ``"wb"``.
        sync: Wait for the disk, so that a power failure leaves the old or the new file. For
            thousands of small files, `os.sync` after the last one is faster.

    Raises:
        UserError: The disk is full or refuses the file. The old one, if any, is untouched.
    """
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with _beside(path) as prefix:
        descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, mode, **text) as handle:
                yield handle
                handle.flush()
                if sync:
                    os.fsync(handle.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
            if sync:
                _fsync_directory(path.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


@contextmanager
def atomic_dir(path: Pathlike) -> Iterator[Path]:
    """Fill a temporary folder that replaces ``path`` only when all went well.

    Raises:
        UserError: The disk is full or refuses the folder, or ``path`` is a link to a folder. An
            old folder is untouched.
    """
    path = Path(path)
    with _beside(path) as prefix:
        temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            os.chmod(temporary, 0o777 & ~_umask())
            if path.exists():
                _exchange(temporary, path, prefix)
            else:
                os.replace(temporary, path)
                _fsync_directory(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _exchange(new: Path, path: Path, prefix: str) -> None:
    """Let a folder take the place of the one at ``path``, which stays where that fails.

    A folder can take the name of an empty one only. So the old one gives up its name before the new
    one has it: killed in between, a process leaves nothing at ``path``, and both beside it under
    temporary names.
    """
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    old = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=path.parent))
    try:
        os.replace(path, old)
        os.replace(new, path)
        _fsync_directory(path.parent)
    except BaseException:
        if not path.exists():
            os.replace(old, path)
        shutil.rmtree(old, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_path(path: Pathlike) -> Iterator[Path]:
    """As `atomic_open`, for libraries that open a file by name: yield the name to write to."""
    path = Path(path)
    with _beside(path) as prefix:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=path.parent))
        try:
            temporary = folder / path.name
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            _fsync_directory(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Pathlike, text: str) -> None:
    """Write ``text`` atomically."""
    with atomic_open(path) as handle:
        handle.write(text)


def write_json(path: Pathlike, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; keys keep their order.

    What fits on a line has one: results are read by people too, and half of a deeply nested file
    would be indentation.
    """
    # As the JSON that it is, with the types that JSON has.
    plain = json.loads(json.dumps(value, ensure_ascii=False))
    write_text(path, _json_text(plain) + "\n")


def _json_text(value: Any, depth: int = 0) -> str:
    """``value``, which stands at a line's ``depth``-th column, in lines of `_WIDTH` if possible."""
    flat = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, dict | list) or depth + len(flat) <= _WIDTH:
        return flat
    inside, outside = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict):
        items = [
            f"{json.dumps(key, ensure_ascii=False)}: {_json_text(item, depth + 1)}"
            for key, item in value.items()
        ]
        return "{" + inside + f",{inside}".join(items) + outside + "}"
    if any(isinstance(item, dict | list | str) for item in value):
        items = [_json_text(item, depth + 1) for item in value]
        return "[" + inside + f",{inside}".join(items) + outside + "]"
    numbers = textwrap.wrap(flat[1:-1], _WIDTH - depth - 1, break_on_hyphens=False)
    return "[" + inside + inside.join(numbers) + outside + "]"


def read_bytes(path: Pathlike) -> bytes:
    """Everything in a file.

    Raises:
        UserError: It is missing, no file, or must not be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path} cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def read_text(path: Pathlike) -> str:
    """A file of UTF-8, with ``\\n`` between its lines.

    Raises:
        UserError: As `read_bytes`, or another encoding.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}): convert it") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Pathlike) -> dict[str, Any]:
    """Read a JSON object, which is what this package writes.

    Raises:
        UserError: The file is missing, is not JSON, or holds something else than an object.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except RecursionError:
        raise UserError(f"{path} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:  # also for numbers of 5,000 digits
        raise UserError(
            f"{path} is not valid JSON ({error}): delete it and run its stage"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path} must hold a JSON object, found {type(value).__name__}: make it again"
        )
    return value


@contextmanager
def taken_apart(path: Pathlike, made_by: str) -> Iterator[None]:
    """Around code that takes what a JSON file holds apart: what it lacks is told with its name.

    Raises:
        UserError: An entry is missing, or is of another type than is expected.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        what = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path} does not hold what {made_by} writes ({what}): make it again"
        ) from error


def sha256_file(path: Pathlike) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    found = hashlib.sha256()
    part = memoryview(bytearray(_PART))
    with open(path, "rb", buffering=0) as handle:
        while size := handle.readinto(part):
            found.update(part[:size])
    return found.hexdigest()


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
