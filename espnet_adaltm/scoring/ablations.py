"""Ablations: which runs of a recipe vary what.

A configuration (``conf/ablations.yaml`` of a recipe) lists axes, and on each axis points. A point
is one run of the recipe: options of its ``run.sh``, the merges it is about (``rows``), and the
``references``, merges that every run has too. Each row is compared with the references of its own
run, on the same resamples: the paired tests are those of the run's ``results.json``, made by
`espnet_adaltm.scoring.aggregate`; only Holm's correction is done anew, over an axis
(`espnet_adaltm.scoring.ablation_results`).

    references: [ser_only, static, adaltm]
    options: {score_args: --resamples 10000}    # of every run
    axes:
      learning_rate:
        title: Learning rate of lambda
        label: learning rate                    # of the horizontal axis
        scale: log                              # names (as they are), linear or log
        points:
          0.01: {}                              # rows: [adaltm] unless point or axis say more
          0.1: {rows: [conf/ablations/rows/adaltm_lr0.1.yaml]}

A row is the name of a merge or the path of its YAML, which is named by its stem. A reference may be
an expert as well, which every run has without being asked. Points that differ in rows only share
every expert; the stages of the recipe skip what is done.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_adaltm.config import check_keys, load_yaml, nearest
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike
from espnet_adaltm.stamps import IRRELEVANT, split_options

SCALES = ("names", "linear", "log")
# References that are no merges.
EXPERTS = ("asr_expert", "ser_expert")
# What a point cannot say, because it is made from the configuration or would change its folder.
_RESERVED = frozenset(["merges", "compare", "results_dir", "stage", "stop_stage", "export_merges"])
# Beside `stamps.IRRELEVANT`: where, how fast and from which stage on a recipe runs.
_UNIMPORTANT = frozenset(["merge_jobs", "python", "force", "dry_run", "stage", "note"])
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def row_name(row: str) -> str:
    """What a row's system is called: a merge's name, or the stem of a YAML's path."""
    return Path(row).stem if row.endswith(".yaml") else row


@dataclass(frozen=True)
class Point:
    """One run of the recipe.

    Attributes:
        axis: Name of its axis.
        name: Its own, unique on the axis.
        rows: The merges that it is about, names or paths.
        options: Of the recipe's ``run.sh``, without dashes, those of all points included.
    """

    axis: str
    name: str
    rows: tuple[str, ...]
    options: Mapping[str, str]

    @property
    def key(self) -> str:
        """``axis/name``: how it is selected, and its folder."""
        return f"{self.axis}/{self.name}"

    @property
    def row_names(self) -> tuple[str, ...]:
        """Names of the systems of ``rows``."""
        return tuple(map(row_name, self.rows))


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        name: A word.
        title: Heading of its table.
        about: Text under the heading.
        label: Of the plot's horizontal axis.
        scale: One of `SCALES`.
        points: In the order of the table.
    """

    name: str
    title: str
    about: str
    label: str
    scale: str
    points: tuple[Point, ...]

    def place(self, point: Point) -> float:
        """Where a point stands on the horizontal axis."""
        return float(self.points.index(point) if self.scale == "names" else point.name)


@dataclass(frozen=True)
class Ablations:
    """A whole configuration.

    Attributes:
        references: Merges and experts that every run has.
        axes: In the order of the document.
        row_hashes: Name to what its YAML says, as a hash, of rows that are given by path.
    """

    references: tuple[str, ...]
    axes: tuple[Axis, ...]
    row_hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def points(self) -> list[Point]:
        """All of them, axis by axis."""
        return [point for axis in self.axes for point in axis.points]

    def hashes_of(self, point: Point) -> dict[str, str]:
        """Those of `row_hashes` that a point's run has, references included."""
        names = map(row_name, [*self.references, *point.rows])
        return {name: self.row_hashes[name] for name in names if name in self.row_hashes}

    def select(self, axes: Sequence[str], points: Sequence[str]) -> list[Point]:
        """The points of ``axes`` and those called ``axis/name``; all of them if none is named.

        Raises:
            UserError: An unknown one, with the nearest known.
        """
        known = ("--axes", axes, [axis.name for axis in self.axes])
        for option, chosen, names in (known, ("--points", points, [p.key for p in self.points])):
            for name in chosen:
                if name not in names:
                    raise UserError(
                        f"{option}: there is no {name!r}{nearest(name, names)}; there are "
                        f"{', '.join(names)}"
                    )
        return [
            point
            for point in self.points
            if not (axes or points) or point.axis in axes or point.key in points
        ]


def load_ablations(path: Pathlike) -> Ablations:
    """Read a configuration and the rows that it gives by path, relative to the current folder.

    Rows that are names belong to the recipe, which looks for them when it runs.

    Raises:
        UserError: An unknown key or value, here or in the YAML of a row, a row's YAML that is
            missing, or two rows of one name; the message names the file, and what of it.
    """
    try:
        return _parse(load_yaml(path))
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _parse(content: Mapping[str, Any]) -> Ablations:
    check_keys(content, ["references", "options", "axes"], "ablations")
    axes = _mapping(content.get("axes"), "axes")
    options = _options(content.get("options"), "options")
    found = tuple(_axis(name, _mapping(given, name), options) for name, given in axes.items())
    references = _words(content.get("references", []), "references")
    rows = [*references, *[row for axis in found for point in axis.points for row in point.rows]]
    _check_rows(rows)
    return Ablations(references, found, _row_hashes(rows))


def _axis(name: str, given: Mapping[str, Any], options: Mapping[str, str]) -> Axis:
    _check_name(name, "axis")
    known = ["title", "about", "label", "scale", "rows", "options", "points"]
    check_keys(given, known, name)
    common = {**options, **_options(given.get("options"), name)}
    rows = given.get("rows", ["adaltm"])
    points = tuple(
        _point(name, str(key), rows, common, value or {})
        for key, value in _mapping(given.get("points"), f"{name}: points").items()
    )
    scale = given.get("scale", "names")
    if scale not in SCALES:
        raise UserError(f"{name}: scale {scale!r} is unknown: use {', '.join(SCALES)}")
    for point in points:
        if len(point.rows) != len(points[0].rows):
            raise UserError(f"{point.key} has {len(point.rows)} rows, its axis {points[0].rows}")
        if scale != "names" and not _is_on(scale, point.name):
            raise UserError(f"{point.key} is no number for the scale {scale}")
    texts = {key: _text(given.get(key), f"{name}: {key}") for key in ("title", "about", "label")}
    title = texts["title"] or name.replace("_", " ")
    about = " ".join(texts["about"].split())
    return Axis(name, title, about, texts["label"] or title, scale, points)


def _is_on(scale: str, text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and (scale == "linear" or value > 0)


def _point(
    axis: str, name: str, rows: Any, common: Mapping[str, str], given: Mapping[str, Any]
) -> Point:
    where = f"{axis}/{name}"
    _check_name(name, f"{axis}: point")
    check_keys(given, ["rows", "options"], where)
    chosen = _words(given.get("rows", rows), where)
    if not chosen:
        raise UserError(f"{where} has no rows: name the merges that it is about")
    return Point(axis, name, chosen, {**common, **_options(given.get("options"), where)})


def _check_name(name: Any, what: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"{what} {name!r} is no name for a folder: use letters, digits and . _ + -")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{where} must hold `name: ...` lines, found {value!r}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str | None):
        raise UserError(f"{where} must be text, found {value!r}")
    return value or ""


def _words(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word for word in value):
        raise UserError(f"{where}: rows must be a list such as [adaltm], found {value!r}")
    return tuple(value)


def _options(value: Any, where: str) -> dict[str, str]:
    given = {} if value is None else _mapping(value, f"{where}: options")
    found = {}
    for name, content in given.items():
        if name in _RESERVED:
            raise UserError(f"{where}: the option {name} is given by the program: leave it out")
        if isinstance(content, list | dict):
            raise UserError(f"{where}: the option {name} takes text, found {content!r}")
        text = "" if content is None else str(content)
        found[str(name)] = text.lower() if isinstance(content, bool) else text
    return found


def _check_rows(rows: Iterable[str]) -> None:
    """Two rows of one name would share a folder, and train each other's anew for ever."""
    known: dict[str, str] = {}
    for row in rows:
        if row.endswith(".yaml") and not Path(row).is_file():
            raise UserError(f"the row {row} does not exist (paths are relative to {Path.cwd()})")
        if known.setdefault(row_name(row), row) != row:
            raise UserError(f"the rows {known[row_name(row)]} and {row} have one name: rename one")


def _row_hashes(rows: Iterable[str]) -> dict[str, str]:
    paths = dict.fromkeys(row for row in rows if row.endswith(".yaml"))
    if not paths:
        return {}
    from espnet_adaltm.merging.rows import read_row, row_hash  # imports torch: seconds

    return {row_name(path): row_hash(read_row(path)) for path in paths}


def changed_row(recorded: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The first row that said something else when it was recorded; of others nothing is known."""
    return next((name for name in now if recorded.get(name, now[name]) != now[name]), None)


def point_command(
    base: Sequence[str], references: Sequence[str], point: Point, folder: Path
) -> list[str]:
    """The command that makes a point: later options of a ``run.sh`` override earlier ones.

    Args:
        base: What all points share, e.g. ``./run.sh --size full``.
        references: See `Ablations`.
        point: The point.
        folder: Where its ``results.json`` goes.
    """
    references = [reference for reference in references if reference not in EXPERTS]
    merges = list(dict.fromkeys([*references, *point.rows]))
    pairs = [
        f"{row}:{row_name(reference)}"
        for row in point.row_names
        for reference in references
        if row != row_name(reference)
    ]
    made = {
        **point.options,
        "merges": " ".join(merges),
        "compare": " ".join(pairs),
        "results_dir": str(folder),
        "stop_stage": "score",
    }
    return [*base, *[word for name, value in made.items() for word in (f"--{name}", value)]]


def same_command(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two commands compute the same, wherever the corpus lies, and however fast."""
    words = [word.partition("=")[0] for word in (*first, *second)]
    roots = {word[2:] for word in words if word.startswith("--") and word.endswith("_root")}
    ignored = IRRELEVANT | _UNIMPORTANT | roots
    return split_options(first, ignored)[0] == split_options(second, ignored)[0]
