"""Kills a recipe at random moments, again and again, and looks whether anything is lost by it.

    python tests/recipes/reliability.py --kills 100 --folder /tmp/kills [--write]

A recipe is run once undisturbed. Then it is run again, from nothing, several times: in every stage
it is killed some times, each time at a random moment of the time that the unfinished part of the
stage takes, and started again as a user does. What is killed is drawn as well, see
`reliability_run.Kind`. After every kill, what lies under final names has to be whole
(`reliability_tree`), and the next run must not do again what was finished. In the end nothing
temporary may be left, and everything has to be as it was undisturbed.

The same command goes on where it was interrupted itself; with --write the table goes to
reliability.md.
"""

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from reliability_run import (  # noqa: E402
    SHARES,
    TWO,
    Attempt,
    Blow,
    Kind,
    Recipe,
    Unreliable,
    make_recipe,
    settle,
)
from reliability_tree import (  # noqa: E402
    Finished,
    Tree,
    digest,
    finished,
    seconds_of_items,
    temporary,
)

from espnet_adaltm.files import read_json, write_json, write_text  # noqa: E402

DOCUMENT = ROOT / "reliability.md"
# What a run says as long as the remains of a killed one are at work.
REFUSED = "is gone, but something that it started still runs"
RECIPE = Path("egs/mini_espeak/adaltm1")
STAGES = (
    *("data", "audio", "tokens", "base", "asr_expert", "ser_expert", "task_vectors", "merge"),
    *("baselines", "decode", "score", "export"),
)
BEGIN, END = "<!-- kills -->", "<!-- end -->"


@dataclass
class Plan:
    """The stages of an undisturbed run: each one's items with the seconds that they took."""

    stages: dict[str, dict[str, float]]

    @classmethod
    def of(cls, recipe: Recipe) -> "Plan":
        """From a finished recipe, which is asked once more: it tells all items, and does none.

        Raises:
            Unreliable: It does some.
        """
        again = recipe.run("export")
        if again.code != 0 or again.titles("..."):
            raise Unreliable(f"a finished recipe is not finished: {again.said}")
        took = seconds_of_items(recipe.folder)
        stages: dict[str, dict[str, float]] = {}
        for line in again.lines:
            if ": skip" in line:
                stage = line.partition("]")[0].split(" ")[-1]
                title = line.partition("] ")[2].rpartition(": skip")[0]
                stages.setdefault(stage, {})[title] = took[title]
        return cls(stages)

    def left(self, stage: str, done: Iterable[str]) -> float:
        """Seconds that a stage takes from here on."""
        return sum(seconds for item, seconds in self.stages[stage].items() if item not in done)


def draw_blow(plan: Plan, stage: str, done: Iterable[str], draw: random.Random) -> Blow:
    """When in a stage, and what, to kill."""
    [kind] = draw.choices(list(SHARES), weights=list(SHARES.values()))
    at_once = kind is not Kind.EVERYTHING and draw.random() < 0.5
    # From the very beginning, everything before is looked at again, which takes its time.
    first = "" if draw.random() < 0.3 else stage
    return Blow(stage, draw.uniform(0.0, plan.left(stage, done)), kind, at_once, first)


def shares(kills: int, stages: Sequence[str], draw: random.Random) -> dict[str, int]:
    """Kills for each stage: as even as can be."""
    each, more = divmod(kills, len(stages))
    extra = draw.sample(list(stages), more)
    return {stage: each + (stage in extra) for stage in stages}


@dataclass
class Pass:
    """A recipe that is killed from its beginning to its end.

    Attributes:
        recipe: It.
        plan: Of an undisturbed run, and where that lies.
        reference: The undisturbed recipe's folder.
        draw: Chance.
        records: Of every kill, oldest first; those of an earlier call are there already.
        seconds: By stage: that runs took from their beginning, or the stage before, on.
    """

    recipe: Recipe
    plan: Plan
    reference: Path
    draw: random.Random
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.tree = Tree(self.recipe.folder, self.reference)
        self.before: Finished | None = None

    def stage(self, stage: str, kills: int) -> None:
        """Run up to the end of a stage, with so many kills (fewer where it ends before one).

        Raises:
            Unreliable: See the module.
        """
        while kills > 0 and self.plan.left(stage, self._look().items):
            blow = draw_blow(self.plan, stage, self.before.items, self.draw)
            attempt = self._run(stage, blow)
            if attempt.killed is None:
                break
            kills -= 1
            self._record(blow, attempt)
        else:
            self._run(stage, None)
        self._look()

    def _run(self, stage: str, blow: Blow | None) -> Attempt:
        attempt = self.recipe.run(stage, blow, self.draw)
        self.seconds[stage] += attempt.seconds
        if attempt.killed is None and attempt.code != 0:
            if not (REFUSED in attempt.said and self.records and self.records[-1]["at_once"]):
                raise Unreliable(f"status {attempt.code} without a kill: {attempt.said}")
            self.records[-1]["refused"] = True
            settle(self.recipe.mark)
            return self._run(stage, blow)
        self._check_begun(attempt)
        return attempt

    def _check_begun(self, attempt: Attempt) -> None:
        """What was done before is not done again; what was under way is."""
        begun = attempt.titles("...")
        again = [title for title in begun if self.before and title in self.before.items]
        if again:
            raise Unreliable(f"done again: {again}; {attempt.said}")
        if self.records and "again" not in self.records[-1]:
            lines = [line for line in attempt.lines if line.endswith("...")]
            was = self.records[-1]["at_work"]
            self.records[-1]["again"] = {
                title: any(f"] {title} (continuing" in line for line in lines)
                for title in was
                if title in begun
            }

    def _record(self, blow: Blow, attempt: Attempt) -> None:
        waited = 0.0 if blow.at_once else settle(self.recipe.mark)
        self.records.append(
            {
                "stage": blow.stage,
                "after": round(blow.after, 2),
                "kind": attempt.killed.name,
                "drawn": blow.kind.name,
                "at_once": blow.at_once,
                "two": blow.stage in self.recipe.two,
                "at_work": attempt.at_work,
                "worked": round(attempt.worked, 1),
                "code": attempt.code,
                "settled": round(waited, 2),
                "left": temporary(self.recipe.folder),
            }
        )

    def _look(self) -> Finished:
        """Check files and what was finished; returns what is now."""
        problems = self.tree.problems()
        now = finished(self.recipe.folder)
        if self.before is not None:
            problems += self.before.lost(now)
        self.before = now
        if problems:
            raise Unreliable(f"after {self.records[-1:]}: {problems}")
        return now

    def end(self) -> dict[str, Any]:
        """Look whether all is as in the undisturbed run; what there is to tell about it.

        Raises:
            Unreliable: It is not.
        """
        settle(self.recipe.mark)
        Plan.of(self.recipe)
        self._look()
        problems = [f"{name} is left" for name in temporary(self.recipe.folder)]
        problems += self.tree.missing()
        found, wanted = digest(self.recipe.folder), digest(self.reference)
        problems += [f"{name} differs" for name in wanted if found.get(name) != wanted[name]]
        if problems:
            raise Unreliable(f"at the end: {problems}")
        return {"compared": len(wanted), "scratch": len(list(self.recipe.scratch.iterdir()))}


# --------------------------------------------------------------------------------- all of it
@dataclass
class Campaign:
    """As many kills as are wanted, in a folder where it goes on when it was interrupted itself."""

    folder: Path
    kills: int
    seed: int
    passes: int = 2

    @property
    def state(self) -> Path:
        """Where everything is noted."""
        return self.folder / "reliability.json"

    def run(self) -> dict[str, Any]:
        """Make what is still missing; returns what is in the file.

        Raises:
            Unreliable: See `Pass`.
        """
        noted = read_json(self.state) if self.state.exists() else {"passes": [], "failures": []}
        reference, plan = self._reference(noted)
        passes = noted["passes"]
        while (left := self.kills - sum(len(p["records"]) for p in passes if "end" in p)) > 0:
            if not passes or "end" in passes[-1]:
                number = len(passes) + 1
                draw = random.Random(f"{self.seed}/{number}")
                quota = shares(
                    -(-left // max(1, self.passes + 1 - number)), list(plan.stages), draw
                )
                passes.append({"quota": quota, "records": [], "seconds": {}})
            self._pass(noted, plan, reference)
        noted["summary"] = summary(noted, self.seed)
        write_json(self.state, noted)
        return noted

    def _reference(self, noted: dict[str, Any]) -> tuple[Path, Plan]:
        """The undisturbed recipe, stage by stage as the others, and its plan."""
        folder = self.folder / "undisturbed"
        if "plan" not in noted:
            took = noted.setdefault("undisturbed", {})
            if not took:
                shutil.rmtree(folder, ignore_errors=True)
                make_recipe(folder)
            recipe = Recipe(folder / RECIPE, two=TWO)
            for stage in STAGES[len(took) :]:
                attempt = recipe.run(stage)
                if attempt.code != 0:
                    raise Unreliable(f"does not even run undisturbed: {attempt.said}")
                say(f"undisturbed: {stage}, {attempt.seconds:.0f} s")
                took[stage] = round(attempt.seconds, 1)
                write_json(self.state, noted)
            noted["plan"] = Plan.of(recipe).stages
            write_json(self.state, noted)
        return folder / RECIPE, Plan(noted["plan"])

    def _pass(self, noted: dict[str, Any], plan: Plan, reference: Path) -> None:
        number, this = len(noted["passes"]), noted["passes"][-1]
        folder = self.folder / f"pass{number}"
        path = folder / RECIPE
        if not path.exists():
            make_recipe(folder)
        draw = random.Random(f"{self.seed}/{number}/{len(this['records'])}")
        recipe = Recipe(path, two=TWO)
        records, seconds = this["records"], Counter(this["seconds"])
        current = Pass(recipe, plan, reference, draw, records, seconds)
        try:
            for stage, kills in this["quota"].items():
                made = sum(record["stage"] == stage for record in records)
                current.stage(stage, kills - made)
                this["seconds"] = dict(seconds)
                write_json(self.state, noted)
                say(f"pass {number}: {stage}, {len(records)} kills, {seconds[stage]:.0f} s")
            this["end"] = current.end()
        except Unreliable as error:
            noted["failures"].append(str(error))
            raise
        finally:
            write_json(self.state, noted)
        say(f"pass {number}: as undisturbed, {this['end']['compared']} files compared")


def say(text: str) -> None:
    """How far it is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def summary(noted: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Counts by stage, by what was killed and by what followed."""
    records = [record for entry in noted["passes"] for record in entry["records"]]
    ended = [entry["end"] for entry in noted["passes"] if "end" in entry]
    by_stage = {}
    for stage, alone in noted["undisturbed"].items():
        here = [record for record in records if record["stage"] == stage]
        by_stage[stage] = {
            "kills": len(here),
            **{kind.name: sum(r["kind"] == kind.name for r in here) for kind in Kind},
            "went_on": sum(any(r.get("again", {}).values()) for r in here),
            "undisturbed": alone,
            "worked": [record["worked"] for record in here if "worked" in record],
        }
    return {
        "seed": seed,
        "kills": len(records),
        "passes": len(noted["passes"]),
        "compared": [end["compared"] for end in ended],
        "undisturbed": sum(noted["undisturbed"].values()),
        "scratch": sum(end["scratch"] for end in ended),
        "two_processes": sum(record["two"] for record in records),
        "at_once": sum(record["at_once"] for record in records),
        "refused": sum("refused" in record for record in records),
        "ended_after": max((record["settled"] for record in records), default=0.0),
        "left_behind": sum(bool(record["left"]) for record in records),
        "by_stage": by_stage,
        "failures": noted["failures"],
    }


def table(found: Mapping[str, Any]) -> str:
    """The lines of `reliability.md` that are numbers."""
    heads = [kind.value for kind in Kind]
    rows = [["stage", "kills", *heads, "undisturbed, s", "at work before a kill, s: mean, most"]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for stage, row in found["by_stage"].items():
        kinds = [row[kind.name] for kind in Kind]
        worked = row["worked"]
        lost = f"{sum(worked) / len(worked):.0f}, {max(worked):.0f}" if worked else ""
        rows.append([stage, row["kills"], *kinds, f"{row['undisturbed']:.0f}", lost])
    total = [sum(row[kind.name] for row in found["by_stage"].values()) for kind in Kind]
    rows.append(["all", found["kills"], *total, f"{found['undisturbed']:.0f}", ""])
    lines = [f"|{'|'.join(map(str, row))}|" for row in rows]
    same = " and ".join(map(str, found["compared"]))
    end = f"Compared there: {same} results, all the same bytes. " if same else ""
    return "\n".join(
        [
            f"{found['kills']} kills (seed {found['seed']}) in {found['passes']} passes, of which "
            f"{len(found['compared'])} came to the end of the last stage; {found['two_processes']} "
            "kills were in stages that train with two processes. "
            f"After {found['at_once']} kills of some of the processes the recipe was started again "
            f"without waiting for the others to end, which {found['refused']} times told to wait; "
            f"where it was waited for, that took {found['ended_after']:.0f} s at most. "
            f"{found['left_behind']} kills left temporary files, which later runs removed. "
            f"{end}Failures: {len(found['failures'])}.",
            "",
            *lines,
        ]
    )


def write(found: Mapping[str, Any]) -> None:
    """Put the table into `reliability.md`."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(DOCUMENT, f"{before}{BEGIN}\n{table(found)}\n{END}{after}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--passes", type=int, default=2, help="from data to export")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True, help="for everything that is made")
    parser.add_argument("--write", action="store_true", help="put the table into reliability.md")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    noted = Campaign(args.folder.absolute(), args.kills, args.seed, args.passes).run()
    print(json.dumps(noted["summary"], indent=2))
    if args.write:
        write(noted["summary"])


if __name__ == "__main__":
    main()
