"""Items as the shell declares them: what is run, for which stage, and what follows from what."""

import os
import re
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.stamps import Item, split_input
from espnet_adaltm.stopping import CONTINUE

LISTS = ("inputs", "outputs")
SINGLE = ("name", "stage", "workdir", "ignore_options", "shared", "force", "job", "log", "check")
# A word as bash's `printf %q` writes it.
_WORD = re.compile(r"(?:\$'(?:\\.|[^'\\])*'|\\.|[^\s\\])+", re.DOTALL)
# Exit statuses of commands that were asked to stop: no failures.
STOPPED = {CONTINUE, *(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))}


@dataclass
class Task:
    """An item and how to run it: for a stage, with a job command, into a log.

    ``check`` is a command that fails where ``item`` would, for a reason known before anything runs.
    """

    item: Item
    stage: str
    job: list[str] = field(default_factory=list)
    log: Path | None = None
    force: bool = False
    check: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What progress lines begin with."""
        return f"[{self.stage}] {self.name}" if self.stage else self.name

    @property
    def name(self) -> str:
        """Folder and name."""
        return f"{self.item.workdir}: {self.item.name}"

    @property
    def number(self) -> str:
        """Of the stage; may be empty."""
        return self.stage.partition("/")[0]

    @property
    def brief_stage(self) -> str:
        """Number and name of the stage, ``5 asr_expert``; may be empty."""
        return f"{self.number} {self.stage.partition(' ')[2]}".strip()

    def resuming(self, typed: str) -> str:
        """The command ``typed`` (as ``ADALTM_RESUME`` holds it), from the stage of this task on."""
        return f"{_without_stage(typed)} --stage {self.number}" if self.number else typed

    def words(self) -> list[str]:
        """The whole command line."""
        if self.job and self.log:
            log = str(self.log)
            job = [log if word == "{log}" else word for word in self.job]
            return [*job, *([] if "{log}" in self.job else [log]), *self.item.command]
        return self.item.command


def _without_stage(typed: str) -> str:
    kept, rest = [], _WORD.findall(typed)
    while rest:
        word = rest.pop(0)
        if word == "--stage":
            del rest[:1]
        elif not word.startswith("--stage="):
            kept.append(word)
    return " ".join(kept)


def parse_item(words: Sequence[str]) -> Task:
    """Read the options of one item, see `bin/run_item.py`.

    Raises:
        UserError: An unknown option, a missing value or command.
    """
    options, single = _read_options(words)
    for name in ("name", "workdir"):
        if not single.get(name):
            raise UserError(f"an item needs --{name}")
    item = Item(
        name=single["name"],
        workdir=Path(single["workdir"]),
        command=options["command"],
        inputs=options["inputs"],
        outputs=[Path(path) for path in options["outputs"]],
        ignored=frozenset(single.get("ignore_options", "").split(",")),
        shared=_true(single, "shared"),
    )
    return Task(
        item,
        stage=single.get("stage", ""),
        job=shlex.split(single.get("job", "")),
        log=Path(single["log"]) if single.get("log") else None,
        force=_true(single, "force"),
        check=shlex.split(single.get("check", "")),
    )


def _read_options(words: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    lists: dict[str, list[str]] = {name: [] for name in (*LISTS, "command")}
    single: dict[str, str] = {}
    rest = list(words)
    current = ""
    while rest:
        word = rest.pop(0)
        if word == "--":
            lists["command"] = rest
            break
        name = word.removeprefix("--")
        if word.startswith("--") and name in LISTS:
            current = name
        elif word.startswith("--") and name in SINGLE and rest:
            single[name], current = rest.pop(0), ""
        elif current and not word.startswith("--"):
            lists[current].append(word)
        else:
            raise UserError(f"unknown or incomplete option of an item: {word!r}")
    if not lists["command"]:
        raise UserError(f"no command after -- for item {single.get('name', '')!r}")
    return lists, single


def _true(options: dict[str, str], name: str) -> bool:
    value = options.get(name, "false")
    if value not in ("true", "false"):
        raise UserError(f"--{name} is true or false, not {value!r}")
    return value == "true"


def read_batch(path: str) -> list[Task]:
    """Read items from NUL-separated fields: the number of words, then the words."""
    fields = Path(path).read_text(encoding="utf-8").split("\0")[:-1]
    tasks = []
    while fields:
        count = int(fields.pop(0))
        tasks.append(parse_item(fields[:count]))
        fields = fields[count:]
    return tasks


def makers(tasks: Sequence[Task]) -> list[set[int]]:
    """For every task, the places of the tasks before it that make one of its inputs."""
    made: dict[Path, int] = {}
    found = []
    for place, task in enumerate(tasks):
        inputs = (Path(split_input(word)[0]) for word in task.item.inputs)
        found.append({made[path] for path in inputs if path in made})
        made |= dict.fromkeys(task.item.outputs, place)
    return found


def feeds(tasks: Sequence[Task]) -> list[dict[str, set[int]]]:
    """For every task, its inputs to the places of the tasks before it that may write them.

    That is more than `makers` knows, which are declared to make an input: a task of the stage that
    an input names counts if it has an output in the same folder, and for an input that is missing
    every task of that stage. An input that no task before writes is not in the dictionary.
    """
    made: dict[Path, int] = {}
    beside: dict[tuple[str, Path], set[int]] = {}
    of_stage: dict[str, set[int]] = {}
    found = []
    for place, task in enumerate(tasks):
        fed: dict[str, set[int]] = {}
        for word in task.item.inputs:
            path, stage = split_input(word)
            number = stage.removeprefix("stage ").partition(" ")[0]
            if Path(path) in made:
                fed[path] = {made[Path(path)]}
            elif (number, Path(path).parent) in beside:
                fed[path] = set(beside[number, Path(path).parent])
            elif number in of_stage and not os.path.exists(path):
                fed[path] = set(of_stage[number])
        found.append(fed)
        made |= dict.fromkeys(task.item.outputs, place)
        of_stage.setdefault(task.number, set()).add(place)
        for output in task.item.outputs:
            beside.setdefault((task.number, output.parent), set()).add(place)
    return found
