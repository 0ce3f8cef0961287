"""What the points of an ablation say together: paired tests by axis, JSON and ``ABLATIONS.md``."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, sha256_file, write_json
from espnet_adaltm.scoring import tables
from espnet_adaltm.scoring.ablations import (
    Ablations,
    Axis,
    Point,
    changed_row,
    row_name,
    same_command,
)
from espnet_adaltm.scoring.document import TESTS
from espnet_adaltm.scoring.paired import PairedTest, stars
from espnet_adaltm.scoring.set_scores import ALL
from espnet_adaltm.scoring.statistics import holm

METRICS = ("macro_f1", "uar", "wer")
RECORD = "point.json"
RESULTS = "results.json"
MADE = "environment.json"
DONE, NOT_RUN = "done", "not run"

LEGEND = """Percent; ± is half of the {level:.0f} % percentile bootstrap interval
({resamples} resamples of {unit}s, each seed averaged within a resample), σ the standard deviation
over training seeds. The differences are of macro-F1, in points of percent with their interval: a
row minus a reference of its own run (trained with the same options), on the same resamples. Stars:
two-sided bootstrap p below 0.05 (\\*), 0.01 (\\*\\*), 0.001 (\\*\\*\\*) after Holm's correction
over all tests of macro-F1 in the table; before it, p is at least {least:.2g}. In italics: the
references, where a run has others than the runs above it. Every table draws its own resamples: of
one run, two tables may tell intervals that differ by 0.1."""
BY_SPEAKER = """"p (by speaker)", where a run has it, resamples speakers with all their
utterances."""
WARNING = """All points are compared on the test set: the best of many is flattered by chance. What
is picked here has to be confirmed on other speakers, or picked on the validation set."""

RUNS = """That is what the document was written with. The results of the points are of these days
and revisions; between two of them machine, code and experts may have changed: compare rows of one
point, or of points whose references agree."""
UNKNOWN = "not recorded"

GLANCE = """Macro-F1 of every row minus the references of its run, with the intervals of the tables
below. What several axes have in common is shown once, where it comes first."""


@dataclass(frozen=True)
class Outcome:
    """A point and what became of it.

    Attributes:
        point: The point.
        state: Empty if ``result`` may be used, else why not.
        result: The run's ``results.json``.
        environment: From `environment.environment`, when it was run; empty if nobody recorded it.
        row_hashes: From `Ablations.hashes_of`, when it was run; empty if nobody recorded them.
    """

    point: Point
    state: str
    result: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    row_hashes: Mapping[str, str] = field(default_factory=dict)

    def names(self, references: Sequence[str]) -> list[str]:
        """Systems of the rows, then of those references that are no rows here."""
        return list(dict.fromkeys([*self.point.row_names, *map(row_name, references)]))

    def scores(self, name: str, part: str) -> Mapping[str, Any]:
        """Metric to ``{seeds, mean, std, low, high}`` of one system on one set; may be empty."""
        sets = self.result["systems"].get(name, {}).get("sets", {})
        return sets.get(part, {}).get(ALL, {})

    def seeds(self, name: str) -> int:
        """Number of trainings of one system."""
        return len(self.result["systems"][name]["seeds"])


def read_outcome(
    point: Point, command: Sequence[str], folder: Path, rows: Mapping[str, str]
) -> Outcome:
    """Read what is known about a point.

    Args:
        point: The point.
        command: That would run it.
        folder: Of its run.
        rows: From `Ablations.hashes_of`, as the rows are now.

    Raises:
        UserError: The run ended well, but its ``results.json`` is damaged or lacks a row.
    """

    def unusable(state: str) -> Outcome:
        return Outcome(point, state, {}, row_hashes=recorded)

    record = read_json(folder / RECORD) if (folder / RECORD).exists() else {}
    recorded = record.get("row_hashes", {})
    if not record:
        return unusable(NOT_RUN)
    if not same_command(record["command"], command):
        return unusable("run with other options")
    if (row := changed_row(recorded, rows)) is not None:
        return unusable(f"its row {row} has changed since: run it again")
    if record["code"] != 0:
        return unusable(f"failed with status {record['code']}")
    result = read_json(folder / RESULTS)
    missing = [name for name in point.row_names if name not in result.get("systems", {})]
    if missing:
        raise UserError(f"{folder / RESULTS} has no system {missing[0]!r}: run {point.key} again")
    return Outcome(point, "", result, _environment(folder), recorded)


def record_environment(folder: Path, facts: Mapping[str, str]) -> None:
    """Keep what ``results.json`` was made with, unless they are those of an earlier run.

    Args:
        folder: Of a point whose run ended well.
        facts: From `environment.environment`, as the run began.
    """
    if not _environment(folder):
        made_of = sha256_file(folder / RESULTS)
        write_json(folder / MADE, {"results": made_of, "environment": dict(facts)})


def _environment(folder: Path) -> dict[str, str]:
    """What is recorded for these very results; empty if that is nothing."""
    made = read_json(folder / MADE) if (folder / MADE).exists() else {}
    same = made.get("results") == sha256_file(folder / RESULTS)
    return made.get("environment", {}) if same else {}


def check_bootstrap(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """How all points were resampled; empty if there is none.

    Raises:
        UserError: Not all alike.
    """
    used = [outcome for outcome in outcomes if not outcome.state]
    for outcome in used:
        theirs, ours = outcome.result["bootstrap"], used[0].result["bootstrap"]
        if theirs != ours:
            raise UserError(
                f"{outcome.point.key} was resampled by {theirs}, {used[0].point.key} by {ours}: "
                "run one of them again"
            )
    return dict(used[0].result["bootstrap"]) if used else {}


def axis_tests(
    outcomes: Sequence[Outcome], references: Sequence[str], part: str
) -> dict[tuple[str, str, str, str], PairedTest]:
    """Every row minus every reference of its run; ``p_holm`` within each metric of the axis.

    Args:
        outcomes: Of the points of one axis.
        references: See `Ablations`.
        part: Name of the test set.

    Returns:
        (point, row, reference, metric) to the test.
    """
    found = {
        (outcome.point.name, row, reference, metric): test
        for outcome in outcomes
        if not outcome.state
        for row in outcome.point.row_names
        for reference in map(row_name, references)
        for metric in METRICS
        if (test := find_test(outcome.result, part, row, reference, metric)) is not None
    }
    for metric in METRICS:
        keys = [key for key in found if key[3] == metric]
        for key, p in zip(keys, holm([found[key].p for key in keys])):
            found[key] = replace(found[key], p_holm=p)
    return found


def find_test(
    result: Mapping[str, Any], part: str, first: str, second: str, metric: str
) -> PairedTest | None:
    """The paired test of two systems in a ``results.json``, as ``first`` minus ``second``."""
    for entry in result.get("all_pairs", {}).get(part, []):
        test = PairedTest(**entry)
        if test.metric == metric and {test.first, test.second} == {first, second}:
            return test if test.first == first else turned(test)
    return None


def turned(test: PairedTest) -> PairedTest:
    """The same test as second minus first."""
    return replace(
        test,
        first=test.second,
        second=test.first,
        difference=0.0 - test.difference,  # not -0.0
        low=0.0 - test.high,
        high=0.0 - test.low,
        by_unit=test.by_unit and {u: _turned_unit(entry) for u, entry in test.by_unit.items()},
        mcnemar=test.mcnemar and [_turned_counts(entry) for entry in test.mcnemar],
    )


def _turned_unit(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {k: [0.0 - v[1], 0.0 - v[0]] if k != "p" else v for k, v in entry.items()}


def _turned_counts(entry: Mapping[str, Any]) -> dict[str, Any]:
    swapped = {"first": "second", "second": "first"}
    swapped |= {"only_first": "only_second", "only_second": "only_first"}
    return {swapped.get(key, key): value for key, value in entry.items()}


def set_names(outcomes: Iterable[Outcome]) -> list[str]:
    """Test sets that any point has, in order."""
    found = (
        o.result["systems"][row]["sets"] for o in outcomes for row in o.result.get("systems", {})
    )
    return list(dict.fromkeys(part for sets in found for part in sets))


def as_json(
    config: Ablations, outcomes: Mapping[str, Outcome], command: Sequence[str]
) -> dict[str, Any]:
    """Everything behind the document, as one JSON object.

    Args:
        config: The configuration.
        outcomes: By `Point.key`, of all its points.
        command: What all points share, without places of this machine.
    """
    parts = set_names(outcomes.values())
    axes = {}
    for axis in config.axes:
        mine = [outcomes[point.key] for point in axis.points]
        axes[axis.name] = {
            "title": axis.title,
            "points": {o.point.name: _point_json(o, config.references, parts) for o in mine},
            "tests": {
                part: [
                    {"point": key[0], **asdict(test)}
                    for key, test in axis_tests(mine, config.references, part).items()
                ]
                for part in parts
            },
        }
    return {
        "command": list(command),
        "references": list(map(row_name, config.references)),
        "bootstrap": check_bootstrap(outcomes.values()),
        "axes": axes,
    }


def _point_json(
    outcome: Outcome, references: Sequence[str], parts: Sequence[str]
) -> dict[str, Any]:
    described = {
        "state": outcome.state or DONE,
        "rows": list(outcome.point.row_names),
        "options": dict(outcome.point.options),
    }
    if outcome.state:
        return described
    systems = {
        name: {
            part: {metric: scores[metric] for metric in METRICS if metric in scores}
            for part in parts
            if (scores := outcome.scores(name, part))
        }
        for name in outcome.names(references)
        if name in outcome.result["systems"]
    }
    if outcome.row_hashes:
        described["row_hashes"] = dict(outcome.row_hashes)
    return {**described, "environment": dict(outcome.environment), "systems": systems}


# ------------------------------------------------------------------------------ Markdown
def document(
    config: Ablations,
    outcomes: Mapping[str, Outcome],
    recipe: str,
    commands: Sequence[str],
    environment: Mapping[str, str],
    pictures: Mapping[str, Path],
    folder: Path,
) -> str:
    """Compose ``ABLATIONS.md``.

    Args:
        config: The configuration.
        outcomes: By `Point.key`, of all its points.
        recipe: For the heading.
        commands: What was typed.
        environment: From `environment.environment`.
        pictures: Set, and ``axis/set``, to file.
        folder: Where the document will lie; pictures are linked relative to it.
    """
    options = check_bootstrap(outcomes.values())
    parts = [f"# Ablations of {recipe}", "Generated by `espnet_adaltm.bin.ablations`.", WARNING]
    parts += ["## Environment", tables.facts(environment)]
    parts += [RUNS, tables.markdown(*runs_table(outcomes.values()))] if options else []
    parts += ["## Commands", "```sh\n" + "\n".join(commands) + "\n```"]
    if options:
        legend = LEGEND.format(
            level=100 * options["level"],
            resamples=options["resamples"],
            unit=options["unit"],
            least=2 / (options["resamples"] + 1),
        )
        parts += ["## How to read the tables", legend]
        parts += [f"The tables of all tests: {TESTS} {BY_SPEAKER}"]
    sets = set_names(outcomes.values())
    glance = [
        _picture("All points", part, pictures[part], folder) for part in sets if part in pictures
    ]
    parts += ["## At a glance", GLANCE, *glance] if glance else []
    for axis in config.axes:
        mine = [outcomes[point.key] for point in axis.points]
        parts.append(f"## {axis.title}")
        parts += [axis.about] if axis.about else []
        for part in sets if any(not outcome.state for outcome in mine) else []:
            parts += _axis_sections(axis, mine, config.references, part)
            if (path := pictures.get(f"{axis.name}/{part}")) is not None:
                parts.append(_picture(axis.title, part, path, folder))
        missing = [f"- `{o.point.name}`: {o.state}" for o in mine if o.state]
        parts += ["Not in the tables:", "\n".join(missing)] if missing else []
    return "\n\n".join(parts) + "\n"


def runs_table(outcomes: Iterable[Outcome]) -> tuple[list[str], tables.Rows]:
    """Which points were run on which day by which revision, in the order of the days."""
    runs: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if not outcome.state:
            made = outcome.environment
            run = made.get("date", UNKNOWN), made.get("git hash", UNKNOWN)
            runs.setdefault(run, []).append(f"`{outcome.point.key}`")
    rows = [[*run, str(len(keys)), " ".join(keys)] for run, keys in sorted(runs.items())]
    return ["date", "git hash", "number", "points"], rows


def _picture(title: str, part: str, path: Path, folder: Path) -> str:
    return f"![{title}, {part}]({Path(os.path.relpath(path, folder)).as_posix()})"


def _axis_sections(
    axis: Axis, outcomes: Sequence[Outcome], references: Sequence[str], part: str
) -> list[str]:
    tests = axis_tests(outcomes, references, part)
    header, rows = axis_table(outcomes, references, part, tests)
    sections = [f"Set `{part}`:", tables.markdown([axis.label, *header[1:]], rows)]
    if tests:
        shown = [replace(test, view=point) for (point, *_), test in tests.items()]
        table = tables.markdown(*tables.comparison_table(shown))
        sections.append(f"<details><summary>all tests</summary>\n\n{table}\n\n</details>")
    return sections


def axis_table(
    outcomes: Sequence[Outcome],
    references: Sequence[str],
    part: str,
    tests: Mapping[tuple[str, str, str, str], PairedTest],
) -> tuple[list[str], tables.Rows]:
    """One row per point and merge, and one for references that differ from those of other points.

    Args:
        outcomes: Of the points of one axis.
        references: See `Ablations`.
        part: Name of the test set.
        tests: From `axis_tests`.
    """
    tested = {reference for _, _, reference, metric in tests if metric == "macro_f1"}
    names = [name for name in map(row_name, references) if name in tested]
    rows: tables.Rows = []
    shown: set[tuple[str, tuple[float, ...]]] = set()
    for outcome in outcomes:
        for name in [] if outcome.state else outcome.names(references):
            scores = outcome.scores(name, part)
            values = [scores[metric]["seeds"] for metric in METRICS if metric in scores]
            same = name, tuple(value for seeds in values for value in seeds)
            is_row = name in outcome.point.row_names
            if not scores or (not is_row and same in shown):
                continue
            shown.add(same)
            cells = [percent(scores[m]) if m in scores else "-" for m in METRICS]
            keys = [(outcome.point.name, name, reference, "macro_f1") for reference in names]
            cells += [difference(tests[key]) if key in tests else "-" for key in keys]
            title = name if is_row else f"*{name}*"
            rows.append([outcome.point.name, title, str(outcome.seeds(name)), *cells])
    titles = [*map(tables.TITLES.get, METRICS), *[f"minus {name}" for name in names]]
    return ["point", "merge", "seeds", *titles], rows


def percent(scores: Mapping[str, Any]) -> str:
    """``47.1 ±2.0 σ 0.8``, as `tables.percent`, of what a ``results.json`` holds."""
    spread = "" if scores["std"] is None else f" σ {100 * scores['std']:.1f}"
    return f"{100 * scores['mean']:.1f} ±{50 * (scores['high'] - scores['low']):.1f}{spread}"


def difference(test: PairedTest) -> str:
    """``+1.3 [-0.2, +2.8] *`` in points of percent, stars by the corrected p."""
    text = f"{100 * test.difference:+.1f} [{100 * test.low:+.1f}, {100 * test.high:+.1f}]"
    return text + tables.escaped(stars(test.p_holm))
