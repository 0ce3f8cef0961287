"""Units of work with stamps: done once, redone when something changed, continued when interrupted.

An `Item` is a command with its inputs and outputs. Its stamp, ``<workdir>/.stamps/<name>.json``,
holds the command without the options that do not change the result, the content hashes of the
inputs and the sizes of the outputs. Deleting an output is all it takes to redo an item. Before the
command starts, the same is written as ``<name>.started.json``: an interrupted item that is started
again unchanged goes on where it was, one that changed starts over in an empty folder.

Only the standard library is imported: a pipeline with nothing to do has to say so at once.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import require, sha256_file, write_json

FOLDER = ".stamps"
# Where and how fast something runs is not what it computes.
IRRELEVANT = frozenset(
    ["ngpu", "num_nodes", "num_workers", "nj", "num_threads", "max_jobs_run", "log_level"]
    + ["log_interval", "multiprocessing_distributed", "use_tensorboard", "use_wandb"]
    + ["wandb_project", "wandb_name", "wandb_entity", "wandb_id", "save_base"]
)
# More of these means going on, not starting over.
CONTINUED = frozenset(["max_epoch"])


@dataclass
class Item:
    """A command and what it reads and makes.

    Attributes:
        name: Of the stamp, unique in the work directory.
        workdir: Folder that the command fills; emptied when the item changed.
        command: Program and arguments.
        inputs: ``path`` or ``path@stage that makes it``; YAML counts without lines that are only a
            comment (one behind a value does count).
        outputs: Files that must exist and not be empty afterwards.
        ignored: Names of options, beside `IRRELEVANT`, that do not change the result.
        shared: Other items write into the work directory as well: when this one changed, only its
            outputs are removed.
    """

    name: str
    workdir: Path
    command: list[str]
    inputs: list[str] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    ignored: frozenset[str] = frozenset()
    shared: bool = False

    @property
    def stamp(self) -> Path:
        """Written when all went well."""
        return self.workdir / FOLDER / f"{self.name}.json"

    @property
    def started(self) -> Path:
        """Written before the command starts."""
        return self.workdir / FOLDER / f"{self.name}.started.json"


class Hashes:
    """Content hashes of files, remembered by size and modification time."""

    def __init__(self) -> None:
        """Start with nothing remembered."""
        self._known: dict[str, list[Any]] = {}

    def learn(self, stamp: dict[str, Any]) -> None:
        """Take over what a stamp knows about its inputs."""
        for path, entry in stamp.get("inputs", {}).items():
            self._known.setdefault(path, entry)

    def entry(self, path: str) -> list[Any]:
        """``[size, mtime in ns, sha256]`` of a file, hashed only if it looks changed."""
        status = os.stat(path)
        known = self._known.get(path)
        if known is None or known[:2] != [status.st_size, status.st_mtime_ns]:
            digest = _yaml_hash(path) if _is_yaml(path) else sha256_file(path)
            known = [status.st_size, status.st_mtime_ns, digest]
            self._known[path] = known
        return known


def _is_yaml(path: str) -> bool:
    return path.endswith((".yaml", ".yml"))


def _yaml_hash(path: str) -> str:
    """Hash of a configuration without comment lines, blank lines and `CONTINUED` options."""
    import hashlib

    kept = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text and not text.startswith("#") and text.partition(":")[0] not in CONTINUED:
            kept.append(line.rstrip())
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _yaml_continued(path: str) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.partition(":")[0] in CONTINUED]


def split_options(command: Sequence[str], names: frozenset[str]) -> tuple[list[str], list[str]]:
    """Separate ``--name value`` and ``--name=value`` of some options from the rest of a command.

    Returns:
        The rest, and the options that were taken out.
    """
    rest: list[str] = []
    taken: list[str] = []
    words = list(command)
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        if not (word.startswith("--") and name[2:] in names):
            rest.append(word)
            continue
        taken.append(word)
        if not equals and words and not words[0].startswith("--"):
            taken.append(words.pop(0))
    return rest, taken


def split_input(word: str) -> tuple[str, str]:
    """Separate ``path@stage``; without a stage it is empty."""
    if "@" not in word or os.path.exists(word):
        return word, ""
    path, _, stage = word.rpartition("@")
    return path, stage


def describe(item: Item, hashes: Hashes) -> dict[str, Any]:
    """What determines the result of an item, ready to be compared and written as JSON.

    Raises:
        UserError: An input is missing or empty; the message names the stage that makes it.
    """
    rest, _ = split_options(item.command, IRRELEVANT | item.ignored)
    command, continued = split_options(rest, CONTINUED)
    inputs = {}
    for word in item.inputs:
        path, stage = split_input(word)
        if not stage and not os.path.exists(path):
            raise UserError(f"{path} does not exist: check the option that names it")
        require(path, made_by=stage or "what makes it")
        inputs[path] = hashes.entry(path)
        if _is_yaml(path):
            continued += _yaml_continued(path)
    # The same program by another path is the same program.
    program = Path(command[0]).name
    command[0] = "python" if program.startswith("python") else program
    return {"command": command, "continued": continued, "inputs": inputs}


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say what differs between two descriptions, apart from `CONTINUED` options."""
    found = []
    if old["command"] != new["command"]:
        gone = [word for word in old["command"] if word not in new["command"]]
        come = [word for word in new["command"] if word not in old["command"]]
        found.append(f"command ({' '.join(gone) or 'order'} -> {' '.join(come) or 'order'})")
    for path in {**old["inputs"], **new["inputs"]}:
        entries = old["inputs"].get(path), new["inputs"].get(path)
        if entries[0] is None or entries[1] is None:
            found.append(f"{path} ({'new' if entries[0] is None else 'no longer'} an input)")
        elif entries[0][2] != entries[1][2]:
            found.append(path)
    return found


def read(path: Path) -> dict[str, Any] | None:
    """Read a stamp; None if there is none, or none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def damaged_outputs(stamp: dict[str, Any]) -> list[str]:
    """Outputs that are missing or of another size than when they were made."""
    damaged = []
    for path, size in stamp["outputs"].items():
        try:
            if os.stat(path).st_size != size:
                damaged.append(path)
        except OSError:
            damaged.append(path)
    return damaged


@dataclass
class Verdict:
    """What is to be done about an item.

    Attributes:
        run: Whether its command has to run.
        clear: Whether its folder is emptied first.
        why: For the user; empty for a first run.
        description: Of the item as it is now.
    """

    run: bool
    clear: bool
    why: str
    description: dict[str, Any]


def judge(item: Item, hashes: Hashes, *, force: bool = False) -> Verdict:
    """Decide whether an item has to run, and whether from the beginning.

    Raises:
        UserError: An input is missing or empty.
    """
    stamp, started = read(item.stamp), read(item.started)
    for known in (stamp, started):
        hashes.learn(known or {})
    now = describe(item, hashes)
    before = stamp or started
    if force:
        return Verdict(True, True, "forced", now)
    if before is None:
        return Verdict(True, False, "", now)
    different = changes(before, now)
    if different:
        return Verdict(True, True, f"changed: {', '.join(different)}", now)
    if stamp is None:
        return Verdict(True, False, "continuing", now)
    damaged = damaged_outputs(stamp)
    if damaged or list(stamp["outputs"]) != [str(path) for path in item.outputs]:
        why = f"missing or truncated: {', '.join(damaged)}" if damaged else "other outputs wanted"
        return Verdict(True, bool(damaged), why, now)
    if stamp["continued"] != now["continued"]:
        return Verdict(True, False, f"continuing with {' '.join(now['continued'])}", now)
    if stamp["inputs"] != now["inputs"]:
        # Same contents, new dates: do not hash them again next time.
        write_json(item.stamp, {**stamp, "inputs": now["inputs"]})
    return Verdict(False, False, "", now)


def begin(item: Item, verdict: Verdict) -> None:
    """Prepare the folder of an item whose command is about to run."""
    if verdict.clear:
        clear(item)
    item.stamp.unlink(missing_ok=True)
    write_json(item.started, verdict.description)


def finish(item: Item, verdict: Verdict) -> None:
    """Check the outputs and write the stamp.

    Raises:
        UserError: An output is missing or empty.
    """
    for path in item.outputs:
        if not path.is_file() or path.stat().st_size == 0:
            state = "empty" if path.exists() else "missing"
            raise UserError(f"{item.name} ended without an error, but {path} is {state}")
    sizes = {str(path): path.stat().st_size for path in item.outputs}
    write_json(item.stamp, {**verdict.description, "outputs": sizes})
    item.started.unlink(missing_ok=True)


def clear(item: Item) -> None:
    """Remove what an earlier run of a changed item left.

    Raises:
        UserError: The work directory is one that nothing made here should lie directly in.
    """
    for path in item.outputs:
        path.unlink(missing_ok=True)
    if item.shared:
        return
    folder = item.workdir.resolve()
    if folder in (Path.cwd(), *Path.cwd().parents, Path.home()) or (folder / ".git").exists():
        raise UserError(f"{folder} would be emptied for {item.name}: choose another folder")
    for path in folder.iterdir():
        if path.name == FOLDER:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked(item: Item) -> Iterator[None]:
    """Keep a second run of the same item out.

    Raises:
        UserError: One is under way.
    """
    path = item.stamp.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{item.name} in {item.workdir} is in the making by another run: wait or stop it"
            ) from error
        yield
