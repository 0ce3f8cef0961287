"""What a run would do, told before it does it: for dry runs, status tables and other runs."""

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from espnet_adaltm.errors import UserError
from espnet_adaltm.items import Task, feeds
from espnet_adaltm.locks import is_held, read_holder
from espnet_adaltm.stamps import Hashes, Kind, Verdict, check_input, judge, split_input


@dataclass
class Planned:
    """What would become of an item.

    Attributes:
        task: The item.
        verdict: On the files as they are now; None where an input is missing.
        follows: Earlier items that would run, or are running, and may change what it reads.
        problem: Why it cannot run, not even when all before it have run.
        given: Whether that is about a file which no stage makes: a configuration, as a rule.
    """

    task: Task
    verdict: Verdict | None
    follows: list[Task] = field(default_factory=list)
    problem: str = ""
    given: bool = False

    @property
    def run(self) -> bool:
        """Whether it would run; what follows from others does if they bring something new."""
        return self.verdict is None or self.verdict.run or bool(self.follows)

    @property
    def why(self) -> str:
        """Its own reason, and an item that it follows from."""
        own = "" if self.verdict is None else self.verdict.why
        return ", ".join(filter(None, (own, self.source and f"follows from {self.source}")))

    @property
    def source(self) -> str:
        """The last item that it follows from, ``4 base (exp/base: pretrain)``; may be empty."""
        if not self.follows:
            return ""
        last = self.follows[-1]
        return f"{last.brief_stage} ({last.name})" if last.stage else last.name


def plan(tasks: Sequence[Task], hashes: Hashes, before: Sequence[Task] = ()) -> list[Planned]:
    """Foresee what becomes of each task when they are run in order; writes nothing.

    Args:
        tasks: In order.
        hashes: Of files, as far as they are known.
        before: Tasks that are run before; nothing is returned for them.
    """
    every = [*before, *tasks]
    found: list[Planned] = []
    for task, fed in zip(every, feeds(every)):
        live = {path: [i for i in sorted(by) if found[i].run] for path, by in fed.items()}
        follows = [every[i] for i in sorted({i for by in live.values() for i in by})]
        planned = Planned(task, None, follows)
        try:
            planned.verdict = judge(task.item, hashes, force=task.force)
        except UserError:
            planned.problem, planned.given = _missing_for_good(task, live)
        found.append(planned)
    return found[len(before) :]


def _missing_for_good(task: Task, live: dict[str, list[int]]) -> tuple[str, bool]:
    """What is wrong with an input that no task before would make, and whether none ever would."""
    for word in task.item.inputs:
        path, stage = split_input(word)
        if not live.get(path):
            try:
                check_input(path, stage)
            except UserError as error:
                return str(error), not stage
    return "", False


def check(planned: Sequence[Planned]) -> None:
    """Run the `Task.check` of what would run, each once.

    Raises:
        UserError: One fails; the message is what it said.
    """
    for words in dict.fromkeys(tuple(entry.task.check) for entry in planned if entry.run):
        if not words:
            continue
        done = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            said = re.split("^error: ", done.stderr, maxsplit=1, flags=re.MULTILINE)[-1].strip()
            raise UserError(said or f"{shlex.join(words)}: status {done.returncode}")


def dry_run(
    planned: Sequence[Planned], stages: Sequence[str], before: Sequence[Task] = ()
) -> list[str]:
    """Lines that say what would run, and why.

    Args:
        planned: Of `plan`.
        stages: All stages that were asked for, ``5/12 asr_expert``; some may have no task.
        before: Tasks that were told of already, and come before.
    """
    told = {task.item.stamp for task in before}
    order = list(dict.fromkeys([*stages, *(entry.task.stage for entry in planned)]))
    lines = []
    for stage in order:
        here = [entry for entry in planned if entry.task.stage == stage]
        lines += [
            f"{entry.task.title}: "
            f"{'as above' if entry.task.item.stamp in told else _foreseen(entry)}"
            for entry in here
        ]
        if not here:
            lines.append(f"[{stage}] none asked for")
    return lines


def _foreseen(entry: Planned) -> str:
    if not entry.run:
        return "skip, done before"
    if entry.problem:
        return f"cannot run: {entry.problem}"
    first = "first time" if entry.verdict is None or entry.verdict.kind is Kind.FIRST else ""
    holder = read_holder(entry.task.item.lock) if is_held(entry.task.item.lock) else None
    held = f"in the making by {holder}" if holder else ""
    return f"run ({', '.join(part for part in (first, entry.why, held) if part)})"
