"""Units of work with stamps: done once, redone when something changed, continued when interrupted.

An `Item` is a command with its inputs and outputs. Its stamp, ``<workdir>/.stamps/<name>.json``,
holds the command without the options that do not change the result, the content hashes of the
inputs and the sizes of the outputs. Deleting an output is all it takes to redo an item. Before the
command starts, the same is written as ``<name>.started.json``: an interrupted item that is started
again unchanged goes on where it was, one that changed starts over in an empty folder. Both say
when that was; no decision depends on a clock.

Only the standard library is imported: a pipeline with nothing to do has to say so at once.
"""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from espnet_adaltm.changes import changes
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import require, sha256_file, write_json
from espnet_adaltm.locks import timestamp
from espnet_adaltm.text import some

FOLDER = ".stamps"
# Where and how fast something runs is not what it computes.
IRRELEVANT = frozenset(
    ["ngpu", "num_nodes", "num_workers", "nj", "num_threads", "max_jobs_run", "log_level"]
    + ["log_interval", "multiprocessing_distributed", "use_tensorboard", "use_wandb"]
    + ["wandb_project", "wandb_name", "wandb_entity", "wandb_id", "wandb_model_log_interval"]
    + ["save_base"]
)
# More of these means going on, not starting over.
CONTINUED = frozenset(["max_epoch"])
_SHOWN = 2  # reasons to run again that a line names


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
        """Written before the command starts; says whether it failed."""
        return self.workdir / FOLDER / f"{self.name}.started.json"

    @property
    def lock(self) -> Path:
        """Held while the command runs, see `espnet_adaltm.locks`."""
        return self.workdir / FOLDER / f"{self.name}.lock"


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


def check_input(path: str, stage: str) -> None:
    """Refuse an input that cannot be read yet.

    Args:
        path: The file.
        stage: That makes it; empty if it is the user's.

    Raises:
        UserError: It is missing or empty; the message says what to do.
    """
    if not stage and not os.path.exists(path):
        raise UserError(f"{path} does not exist: check the option that names it")
    require(path, made_by=stage or "what makes it")


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
        check_input(path, stage)
        inputs[path] = hashes.entry(path)
        if _is_yaml(path):
            continued += _yaml_continued(path)
    # The same program by another path is the same program.
    program = Path(command[0]).name
    command[0] = "python" if program.startswith("python") else program
    return {"command": command, "continued": continued, "inputs": inputs}


def read(path: Path) -> dict[str, Any] | None:
    """Read a stamp; None if there is none, or none that can be read."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(stamp, dict) and stamp.keys() >= {"command", "continued", "inputs"}
    return stamp if complete else None


def damaged_outputs(stamp: dict[str, Any]) -> list[str]:
    """Outputs that are missing or of another size than when they were made."""
    damaged = []
    for path, size in stamp.get("outputs", {}).items():
        try:
            if os.stat(path).st_size != size:
                damaged.append(path)
        except OSError:
            damaged.append(path)
    return damaged


class Kind(Enum):
    """What is to be done about an item."""

    DONE = "nothing"
    FIRST = "begin"
    INTERRUPTED = "go on"
    MORE = "go on, with more than was wanted before"
    CHANGED = "begin again: something that it depends on changed"
    DAMAGED = "begin again: an output is not what was made"
    FORCED = "begin again: wanted"


@dataclass
class Verdict:
    """What is to be done about an item.

    Attributes:
        kind: In short.
        why: For the user; empty for a first run.
        description: Of the item as it is now.
    """

    kind: Kind
    why: str
    description: dict[str, Any]

    @property
    def run(self) -> bool:
        """Whether its command has to run."""
        return self.kind is not Kind.DONE

    @property
    def clear(self) -> bool:
        """Whether its folder is emptied first."""
        return self.kind in (Kind.CHANGED, Kind.DAMAGED, Kind.FORCED)


def judge(item: Item, hashes: Hashes, *, force: bool = False) -> Verdict:
    """Decide whether an item has to run, and whether from the beginning; writes nothing.

    Raises:
        UserError: An input is missing or empty.
    """
    stamp, started = read(item.stamp), read(item.started)
    for known in (stamp, started):
        hashes.learn(known or {})
    now = describe(item, hashes)
    before = stamp or started
    if force:
        return Verdict(Kind.FORCED, "forced", now)
    if before is None:
        return Verdict(Kind.FIRST, "", now)
    different = changes(before, now)
    if different:
        return Verdict(Kind.CHANGED, f"changed: {some(different, _SHOWN)}", now)
    if stamp is None:
        return Verdict(Kind.INTERRUPTED, "continuing", now)
    damaged = damaged_outputs(stamp)
    if damaged:
        return Verdict(Kind.DAMAGED, f"missing or truncated: {some(damaged, _SHOWN)}", now)
    if list(stamp.get("outputs", {})) != [str(path) for path in item.outputs]:
        return Verdict(Kind.MORE, "other outputs wanted", now)
    if stamp["continued"] != now["continued"]:
        return Verdict(Kind.MORE, f"continuing with {' '.join(now['continued'])}", now)
    return Verdict(Kind.DONE, "", now)


def refresh(item: Item, verdict: Verdict) -> None:
    """Note new dates of inputs with the same contents: they need not be hashed again."""
    stamp = read(item.stamp)
    if stamp is not None and stamp["inputs"] != verdict.description["inputs"]:
        # Where that cannot be written, they are hashed again, and nothing else is lost.
        with suppress(UserError, OSError):
            write_json(item.stamp, {**stamp, "inputs": verdict.description["inputs"]})


def begin(item: Item, verdict: Verdict) -> None:
    """Prepare the folder of an item whose command is about to run."""
    if verdict.clear:
        clear(item)
    item.stamp.unlink(missing_ok=True)
    write_json(item.started, {**verdict.description, "begun": timestamp()})


def fail(item: Item, why: str) -> None:
    """Note why an item that has begun did not end well, if that can be noted."""
    with suppress(UserError, OSError):
        started = read(item.started) or {}
        write_json(item.started, {**started, "failed": {"why": why, "at": timestamp()}})


def finish(item: Item, verdict: Verdict, seconds: float) -> None:
    """Check the outputs and write the stamp.

    Args:
        item: Whose command ended well.
        verdict: With which it was begun.
        seconds: For which it ran; noted unless it went on with what an earlier run had left.

    Raises:
        UserError: An output is missing or empty.
    """
    for path in item.outputs:
        if not path.is_file() or path.stat().st_size == 0:
            state = "empty" if path.exists() else "missing"
            raise UserError(f"ended without an error, but {path} is {state}")
    sizes = {str(path): path.stat().st_size for path in item.outputs}
    partly = verdict.kind in (Kind.INTERRUPTED, Kind.MORE)
    took = {} if partly else {"seconds": round(seconds, 1)}
    write_json(item.stamp, {**verdict.description, "outputs": sizes, "done": timestamp(), **took})
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
