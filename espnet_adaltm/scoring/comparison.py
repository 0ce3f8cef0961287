"""Two results side by side: what differs in the scores, and what in the configuration.

A result is the folder of one system, or a folder with the ``results.json`` of a whole report, or
such a file. Where the predictions of both are at hand, differences are paired on one set of
resamples. Otherwise only the recorded numbers are compared, with an interval as if the two were
independent, which is too wide for results on the same utterances.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from espnet_adaltm.config import load_yaml
from espnet_adaltm.data.labels import Labels, check_same_labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, taken_apart
from espnet_adaltm.scoring.paired import COMPARED, PairedTest, paired_tests
from espnet_adaltm.scoring.pools import parts_of
from espnet_adaltm.scoring.readers import read_reference
from espnet_adaltm.scoring.results import Bootstrap
from espnet_adaltm.scoring.seeds import Seeds
from espnet_adaltm.scoring.set_scores import ALL, System, score_set
from espnet_adaltm.scoring.statistics import holm

RESULTS = "results.json"
FIRST, SECOND = "first", "second"
_ROUNDING = 1e-9
_SHOWN = (*COMPARED, "cer", "ece", "jsd", "spk_acc")
# What says how a run was made, most telling first; the first that both have is compared.
_CONFIGURATIONS = ("identity.json", "config.yaml")
_DESCRIPTIONS = ("merge.json", "expert.json", "baseline.json")
_PLACES = frozenset({"output_dir", "log_dir", "base", "task_vectors", "config"})


@dataclass(frozen=True)
class Side:
    """One of the two results.

    Attributes:
        path: Its ``results.json``.
        labels: The ordered label list.
        bootstrap: Options of its intervals.
        scores: (system, set, metric) to ``seeds``, ``mean``, ``low`` and ``high``.
        folders: System to seed to the folder of its predictions, as far as known.
        dumps: Test set to its folder, as far as known.
    """

    path: Path
    labels: tuple[str, ...]
    bootstrap: Mapping[str, Any]
    scores: Mapping[tuple[str, str, str], Mapping[str, Any]]
    folders: Mapping[str, Mapping[int | None, Path]]
    dumps: Mapping[str, Path]

    @property
    def systems(self) -> list[str]:
        """Names of its systems, in order."""
        return list(dict.fromkeys(system for system, _, _ in self.scores))

    @property
    def sets(self) -> list[str]:
        """Names of its test sets, in order."""
        return list(dict.fromkeys(part for _, part, _ in self.scores))


@dataclass(frozen=True)
class Difference:
    """First minus second, of one metric on one test set.

    Attributes:
        first: System of the first result.
        second: System of the second.
        part: Test set.
        metric: Name.
        values: Means over seeds of both.
        difference: Of these.
        low: Lower end of its 95 % interval.
        high: Upper end.
        test: The paired test behind it, or None where the predictions were not at hand.
    """

    first: str
    second: str
    part: str
    metric: str
    values: tuple[float, float]
    difference: float
    low: float
    high: float
    test: PairedTest | None = None


@dataclass(frozen=True)
class Compared:
    """Everything that was found.

    Attributes:
        differences: Of the scores.
        options: System pair to option to both values.
        only_first: Systems and test sets that only the first has.
        only_second: The same of the second.
        remarks: Why something could not be compared better.
    """

    differences: list[Difference]
    options: dict[str, dict[str, tuple[Any, Any]]]
    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain objects."""
        return asdict(self)


# ------------------------------------------------------------------------------------- reading
def read_side(source: Path, dumps: Sequence[Path] = ()) -> Side:
    """Read a folder with ``results.json``, or such a file.

    Args:
        source: What was given.
        dumps: Folders of test sets, where the result does not say or they have moved.

    Raises:
        UserError: There is no such file, or it is something else.
    """
    path = source / RESULTS if source.is_dir() else source
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: give the folder of a scored system, or of a report (with "
            f"{RESULTS}); run stage `score` first"
        )
    result = read_json(path)
    known = isinstance(result, dict) and isinstance(result.get("labels"), list)
    if not known or not ({"systems", "sets"} & result.keys()):
        raise UserError(f"{path} holds no results of bin/score or bin/report: give another file")
    reader = _read_report if "systems" in result else _read_system
    with taken_apart(path, "bin/score or bin/report"):
        scores, folders, recorded = reader(path, result)
    places = recorded | {dump.name: dump for dump in map(Path.absolute, dumps)}
    return Side(path, tuple(result["labels"]), result.get("bootstrap", {}), scores, folders, places)


_Parts = tuple[
    dict[tuple[str, str, str], Mapping[str, Any]],
    dict[str, dict[int | None, Path]],
    dict[str, Path],
]


def _read_system(path: Path, result: Mapping[str, Any]) -> _Parts:
    """A ``results.json`` of one run."""
    name, seed = result["system"], result.get("seed")
    scores = {}
    for part, found in result["sets"].items():
        for kind in ("emotion", "soft", "asr", "speaker"):
            for metric, value in found.get(kind, {}).get("metrics", {}).items():
                entry = {"seeds": [value["value"]], "mean": value["value"], **value}
                scores[name, part, metric] = entry
    folder = path.parent / (result.get("folder") or ".")
    return scores, {name: {seed: folder}}, _existing(path, result.get("dumps", {}))


def _read_report(path: Path, result: Mapping[str, Any]) -> _Parts:
    """A ``results.json`` of many systems."""
    scores = {
        (system, part, metric): entry
        for system, found in result["systems"].items()
        for part, views in found["sets"].items()
        for metric, entry in views.get(ALL, {}).items()
    }
    places = result.get("folders", {})
    folders = {
        system: {
            None if seed == "None" else int(seed): path.parent / place
            for seed, place in seeds.items()
            if place is not None
        }
        for system, seeds in places.get("systems", {}).items()
    }
    return scores, folders, _existing(path, places.get("dumps", {}))


def _existing(path: Path, places: Mapping[str, str | None]) -> dict[str, Path]:
    found = {name: path.parent / place for name, place in places.items() if place is not None}
    return {name: dump for name, dump in found.items() if is_prepared(dump)}


def is_prepared(dump: Path) -> bool:
    """Whether this is the folder of a test set, or a pool of such (see `pools`)."""
    return all((part / "wav.scp").is_file() for part in parts_of(dump) or [dump])


# ----------------------------------------------------------------------------------- comparing
def compare_sides(first: Side, second: Side, options: Bootstrap | None = None) -> Compared:
    """Compare systems of the same name, or the two if each side has one.

    Raises:
        UserError: Other labels, or nothing in common.
    """
    options = options or Bootstrap()
    check_same_labels(first.labels, second.labels, f"{first.path} and {second.path}")
    pairs = _pairs(first, second)
    shared = [part for part in first.sets if part in second.sets]
    if not pairs or not shared:
        raise UserError(
            f"{first.path} has {_names(first)}, {second.path} has {_names(second)}: nothing to "
            "compare; give results of the same test sets with systems of the same names, or of one "
            "system each"
        )
    remarks: list[str] = []
    differences = []
    for part in shared:
        for pair in pairs:
            rows = _recorded(first, second, pair, part)
            rows |= _paired(first, second, pair, part, options, remarks)
            differences += [rows[metric] for metric in _SHOWN if metric in rows]
    names = {f"{a} / {b}" if a != b else a: (a, b) for a, b in pairs}
    return Compared(
        _corrected(differences),
        {title: changed(*pair_folders(first, second, pair)) for title, pair in names.items()},
        _lacking(first, second, [a for a, _ in pairs]),
        _lacking(second, first, [b for _, b in pairs]),
        list(dict.fromkeys(remarks)),
    )


def _names(side: Side) -> str:
    return f"{', '.join(side.systems)} on {', '.join(side.sets)}"


def _pairs(first: Side, second: Side) -> list[tuple[str, str]]:
    if len(first.systems) == len(second.systems) == 1:
        return [(first.systems[0], second.systems[0])]
    return [(name, name) for name in first.systems if name in second.systems]


def _lacking(one: Side, other: Side, compared: Sequence[str]) -> list[str]:
    systems = [f"system {name}" for name in one.systems if name not in compared]
    return systems + [f"set {part}" for part in one.sets if part not in other.sets]


def _recorded(first: Side, second: Side, pair: tuple[str, str], part: str) -> dict[str, Difference]:
    """Metric to the difference of recorded means, its interval as if the two were independent."""
    rows = {}
    for metric in _SHOWN:
        a, b = (side.scores.get((name, part, metric)) for side, name in zip((first, second), pair))
        if a is None or b is None:
            continue
        difference = a["mean"] - b["mean"]
        half = math.hypot(a["high"] - a["low"], b["high"] - b["low"]) / 2
        ends = difference - half, difference + half
        rows[metric] = Difference(*pair, part, metric, (a["mean"], b["mean"]), difference, *ends)
    return rows


def _paired(
    first: Side,
    second: Side,
    pair: tuple[str, str],
    part: str,
    options: Bootstrap,
    remarks: list[str],
) -> dict[str, Difference]:
    """Metric to the paired difference of predictions; empty, with a remark, without them."""
    dump = second.dumps.get(part, first.dumps.get(part))
    where = f"{pair[0]} and {pair[1]} on {part}" if pair[0] != pair[1] else f"{pair[0]} on {part}"
    if dump is None:
        remarks.append(f"{where}: not paired, the test set is not at hand: name it with --dumps")
        return {}
    systems = []
    for side, name, title in zip((first, second), pair, (FIRST, SECOND)):
        folders = side.folders.get(name, {})
        wanted = [f / "decode" / p.name for f in folders.values() for p in parts_of(dump) or [dump]]
        missing = [folder for folder in wanted if not folder.is_dir()]
        if not folders or missing:
            place = missing[0] if missing else f"the folders of {name}"
            remarks.append(f"{where}: not paired, {place} of {side.path} is not at hand")
            return {}
        systems.append(System(title, dict(folders)))
    labels = Labels(first.labels)
    scores = score_set(systems, read_reference(dump, labels), labels, options)
    for side, name, title in zip((first, second), pair, (FIRST, SECOND)):
        remarks += _moved(side, name, part, {m: scores.get(m).get(title) for m in _SHOWN}, where)
    rows = {}
    for test in paired_tests(scores, [(FIRST, SECOND)], [ALL], _SHOWN, options):
        found = scores.get(test.metric)
        rows[test.metric] = Difference(
            *pair, part, test.metric, (found[FIRST].mean, found[SECOND].mean),
            test.difference, test.low, test.high, test,
        )  # fmt: skip
    return rows


def _moved(
    side: Side, name: str, part: str, found: Mapping[str, Seeds | None], where: str
) -> Iterator[str]:
    """Remarks where predictions no longer give the numbers that were recorded."""
    for metric, seeds in found.items():
        entry = side.scores.get((name, part, metric))
        if entry and seeds is not None and abs(entry["mean"] - seeds.mean) > _ROUNDING:
            yield (
                f"{where}: {metric} of the predictions is {seeds.mean:.4f}, {side.path} says "
                f"{entry['mean']:.4f}: decoded again since, or another test set"
            )


def _corrected(rows: Sequence[Difference]) -> list[Difference]:
    """Holm's correction over all tests of one metric."""
    rows = list(rows)
    for metric in dict.fromkeys(row.metric for row in rows):
        places = [i for i, row in enumerate(rows) if row.metric == metric and row.test is not None]
        for place, p in zip(places, holm([rows[i].test.p for i in places])):
            rows[place] = replace(rows[place], test=replace(rows[place].test, p_holm=p))
    return rows


# ------------------------------------------------------------------------------- configuration
def pair_folders(
    first: Side, second: Side, pair: tuple[str, str]
) -> tuple[Path | None, Path | None]:
    """A folder of each, of a seed that both have if there is one."""
    ours, theirs = first.folders.get(pair[0], {}), second.folders.get(pair[1], {})
    for seed in ours:
        if seed in theirs:
            return ours[seed], theirs[seed]
    return next(iter(ours.values()), None), next(iter(theirs.values()), None)


def changed(first: Path | None, second: Path | None) -> dict[str, tuple[Any, Any]]:
    """Options that differ between two trained systems, nested ones with dots; None if unset.

    Places are left out: what lies there is compared by its hashes.
    """
    if first is None or second is None:
        return {}
    ours, theirs = dict(_options(first, second)), dict(_options(second, first))
    names = [*ours, *[name for name in theirs if name not in ours]]
    return {
        name: (ours.get(name), theirs.get(name))
        for name in names
        if ours.get(name) != theirs.get(name)
    }


def _options(folder: Path, other: Path) -> Iterator[tuple[str, Any]]:
    for name in _CONFIGURATIONS:
        if (folder / name).is_file() and (other / name).is_file():
            loaded = read_json(folder / name) if name.endswith("json") else load_yaml(folder / name)
            yield from _flat(loaded.get("options", loaded))
            break
    else:
        logging.info("%s and %s have no configuration in common", folder, other)
    for name in _DESCRIPTIONS:
        if (folder / name).is_file():
            described = read_json(folder / name)
            kept = ("kind", "base_sha256", "expert_sha256", "expert_seed")
            yield from _flat({key: described[key] for key in kept if key in described})


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if not prefix and key in _PLACES:
            continue
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
