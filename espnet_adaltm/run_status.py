"""How far a run is: the table of its stages, and what became of the items of those not done."""

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any

from espnet_adaltm.items import STOPPED, Task
from espnet_adaltm.jobs import code_in_log, log_end
from espnet_adaltm.live import status as progress
from espnet_adaltm.locks import Holder, is_held, read_holder, runs_at_work
from espnet_adaltm.plan import Planned, plan
from espnet_adaltm.stamps import Hashes, Kind, read

_NARROWEST, _WIDEST = 60, 120
_STATES_AT = 4  # columns before the states of items
_DETAILS_AT = 17
_MOST_ALIKE = 3  # items with the same to say that are listed
_LOG_LINES = 5


class State(Enum):
    """Of items and stages, the most urgent first."""

    RUNNING = "running"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    STALE = "stale"
    WAITING = "waiting"
    NOT_STARTED = "not started"
    DONE = "done"
    NOT_ASKED_FOR = "not asked for"


@dataclass
class Entry:
    """An item's state.

    Attributes:
        task: The item.
        state: What it is now.
        details: Lines about it.
        log: Lines of its log.
        done: When it was done, and the seconds that it took, as far as that is known.
    """

    task: Task
    state: State
    details: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    done: tuple[str, float | None] = ("", None)


def table(
    tasks: Sequence[Task], stages: Sequence[str], folder: str, before: Sequence[Task] = ()
) -> tuple[list[str], bool]:
    """The table, as wide as the terminal allows; no file is changed.

    Args:
        tasks: All items, in order.
        stages: All stages that were asked for, ``5/12 asr_expert``; some may have no item.
        folder: Where runs enter themselves, see `espnet_adaltm.locks`; may be empty.
        before: Items that come before them, and are not shown.

    Returns:
        Its lines, and whether all is done.
    """
    width = min(max(shutil.get_terminal_size((80, 24)).columns - 1, _NARROWEST), _WIDEST)
    entries = [_entry(planned) for planned in plan(tasks, Hashes(), before)]
    runs = runs_at_work(Path(folder)) if folder else []
    lines = [line for run in runs for line in _wrapped(f"At work: {run}", 0, width)]
    lines.append(f" #  {'stage':<13} {'state':<13} items  done")
    for stage in dict.fromkeys([*stages, *(task.stage for task in tasks)]):
        here = [entry for entry in entries if entry.task.stage == stage]
        lines += _stage_lines(stage, here, width)
    return lines, all(entry.state is State.DONE for entry in entries)


# --------------------------------------------------------------------------------- states
def _entry(planned: Planned) -> Entry:
    """What an item's lock, stamps and log say."""
    task, verdict = planned.task, planned.verdict
    if is_held(task.item.lock):
        return _running(task)
    if verdict is None:
        return Entry(
            task, State.WAITING, [planned.problem or f"needs what {_source(planned)} makes"]
        )
    if verdict.kind is Kind.FIRST:
        return Entry(task, State.NOT_STARTED, [_follows(planned)])
    if verdict.kind is Kind.INTERRUPTED:
        return _ended_early(task)
    if planned.run:
        return Entry(task, State.STALE, [verdict.why or _follows(planned)])
    stamp = read(task.item.stamp) or {}
    return Entry(task, State.DONE, done=(stamp.get("done", ""), stamp.get("seconds")))


def _source(planned: Planned) -> str:
    """The stage that an item follows from, or the item of its own stage; may be empty."""
    if not planned.follows:
        return ""
    source = planned.follows[-1]
    elsewhere = source.stage and source.stage != planned.task.stage
    return source.brief_stage if elsewhere else source.name


def _follows(planned: Planned) -> str:
    return f"follows from {_source(planned)}" if planned.follows else ""


def _running(task: Task) -> Entry:
    holder = read_holder(task.item.lock)
    log = _log(task.log) or ("no log yet: it may wait in a queue" if task.log else "")
    details = [progress(_end(task.log)), log]
    if holder is not None:
        since = f"since {_when(holder.since)}{_ago(holder.since)}"
        details.insert(0, f"{since}, {_where(task, holder)}")
        if holder.gone:
            details.append("that process is gone, what it started is not: it ends within seconds")
    return Entry(task, State.RUNNING, details)


def _where(task: Task, holder: Holder) -> str:
    """Machine and process, the job command, and the node that the log names if it is another."""
    head = "# Running on "
    node = next((line for line in _start(task.log).splitlines() if line.startswith(head)), "")
    node = node.removeprefix(head)
    parts = [f"process {holder.pid} on {holder.host}"]
    parts += [f"through {holder.job}"] if holder.job else []
    parts += [f"on node {node}"] if node and node != holder.host else []
    return ", ".join(parts)


def _ended_early(task: Task) -> Entry:
    """Failed or interrupted: what it noted itself counts, or else the end of its log."""
    started: dict[str, Any] = read(task.item.started) or {}
    failed = started.get("failed")
    code = code_in_log(task.log) if task.log else None
    goes_on = f"goes on with: {_resume(task)}" if _resume(task) else "goes on from there"
    if failed is None and (not code or code in STOPPED):
        begun = f"begun {_when(started['begun'])}, " if "begun" in started else ""
        return Entry(task, State.INTERRUPTED, [f"{begun}nobody is at it now; {goes_on}"])
    why = f"{_when(failed['at'])}: {failed['why']}" if failed else f"status {code}"
    lines = [line for line in _end(task.log).splitlines() if line.strip()]
    shown = [line for line in lines if not line.startswith("# Ended")][-_LOG_LINES:]
    return Entry(task, State.FAILED, [why, goes_on, _log(task.log)], shown)


def _resume(task: Task) -> str:
    """The command of the last run, from this stage on."""
    holder = read_holder(task.item.lock)
    if holder is None or not holder.command or not task.number:
        return ""
    return task.resuming(holder.command)


def _end(log: Path | None) -> str:
    try:
        return log_end(log) if log else ""
    except OSError:
        return ""


def _start(log: Path | None) -> str:
    try:
        with open(log or "", "rb") as handle:
            return handle.read(8192).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _log(log: Path | None) -> str:
    return f"log: {log}" if log and log.is_file() else ""


# --------------------------------------------------------------------------------- lines
def _stage_lines(stage: str, entries: Sequence[Entry], width: int) -> list[str]:
    number, _, name = stage.partition(" ")
    states = Counter(entry.state for entry in entries)
    state = next((state for state in State if states[state]), State.NOT_ASKED_FOR)
    count = f"{states[State.DONE]}/{len(entries)}" if entries else ""
    row = f"{number.partition('/')[0]:>2}  {name:<13} {state.value:<13} {count:>5}"
    if state is State.DONE:
        row += f"  {_stage_done(entries)}"
    if state in (State.DONE, State.NOT_ASKED_FOR):
        return [row.rstrip()]
    lines = [row.rstrip()]
    for group in State:
        lines += _group_lines([entry for entry in entries if entry.state is group], width)
    return lines


def _group_lines(entries: Sequence[Entry], width: int) -> list[str]:
    """Items of one state; where several have the same to say, it is said once."""
    lines: list[str] = []
    for details, group in groupby(entries, lambda entry: entry.details):
        alike = list(group)
        label = alike[0].state.value
        for entry in alike[:_MOST_ALIKE]:
            when = f" ({_done(*entry.done)})" if entry.done[0] else ""
            lines += _wrapped(f"{entry.task.name}{when}", _DETAILS_AT, width, label)
        if len(alike) > _MOST_ALIKE:
            more = f"... and {len(alike) - _MOST_ALIKE} more"
            lines += _wrapped(more, _DETAILS_AT, width, label)
        for detail in filter(None, details):
            lines += _wrapped(detail, _DETAILS_AT + 2, width)
        log = (line for entry in alike for line in entry.log)
        lines += [_cut(f"{'':{_DETAILS_AT + 2}}| {line}", width) for line in log]
    return lines


def _wrapped(text: str, indent: int, width: int, label: str = "") -> list[str]:
    """Lines no wider than asked for, unless a single word is; the label stands before the first."""
    first = f"{'':{_STATES_AT}}{label}" if label else ""
    return textwrap.wrap(
        text,
        width,
        initial_indent=f"{first:<{indent}}",
        subsequent_indent=" " * (indent + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _stage_done(entries: Iterable[Entry]) -> str:
    """When the last item was done, and how long all of them took, if that is known."""
    times = [entry.done for entry in entries]
    seconds = [took for _, took in times if took is not None]
    latest = max((when for when, _ in times), default="")
    return _done(latest, sum(seconds) if len(seconds) == len(times) else None) if latest else ""


def _done(when: str, seconds: float | None) -> str:
    return f"{_when(when)}{'' if seconds is None else f', {_span(seconds)}'}"


def _when(stamp: str) -> str:
    """``2026-11-21 03:54``."""
    return stamp.replace("T", " ")[:16]


def _ago(stamp: str) -> str:
    """`` (3 min)``; nothing where the clock was set back since."""
    try:
        seconds = (datetime.now().astimezone() - datetime.fromisoformat(stamp)).total_seconds()
    except (ValueError, TypeError):
        return ""
    return f" ({_span(seconds)})" if seconds >= 0 else ""


def _span(seconds: float) -> str:
    """``24 s``, ``3 min 20 s`` or ``1 h 12 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
