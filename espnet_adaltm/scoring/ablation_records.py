"""Points of an ablation whose runs are gone, from the ``ablations.json`` that told of them.

Experiments are often kept on storage that is emptied from time to time. What the tables and
pictures of `espnet_adaltm.scoring.ablation_results` need of a run is in ``ablations.json``.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, read_json
from espnet_adaltm.scoring.ablation_results import DONE, Outcome
from espnet_adaltm.scoring.ablations import (
    EXPERTS,
    Ablations,
    Point,
    changed_row,
    row_name,
    same_command,
)
from espnet_adaltm.scoring.set_scores import ALL


def read_records(
    path: Pathlike, config: Ablations, command: Sequence[str] | None = None
) -> dict[str, Outcome]:
    """Read the points that a configuration still has, with the same rows and options.

    Where nobody recorded what the YAML of a row said, it is taken for what it says now.

    Args:
        path: An ``ablations.json``. Comparisons with experts may be missing in it.
        config: The configuration.
        command: What the points must have been made by, without places of this machine; None if
            whoever names the file answers for that.

    Returns:
        By `Point.key`, with what is needed of the run's ``results.json``.

    Raises:
        UserError: No such file, not what `ablation_results.as_json` writes, made by another
            command, or with other references.
    """
    found = read_json(Path(path))
    try:
        theirs, ours = _merges(found["references"]), _merges(map(row_name, config.references))
        if theirs != ours:
            raise UserError(f"{path} compares with {theirs}, the configuration with {ours}")
        known = {
            point.key: _outcome(found, point)
            for point in config.points
            if _is_there(found, point, config.hashes_of(point))
        }
        if known and command is not None and not same_command(found["command"], command):
            raise UserError(
                f"{path} holds {len(known)} points of `{shlex.join(found['command'])}`: keep them "
                f"with --recorded {path}, leave them out with --recorded none, or give another "
                "--out_dir"
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is no ablations.json: {type(error).__name__} {error}") from error
    return known


def _merges(references: Iterable[str]) -> list[str]:
    return [name for name in references if name not in EXPERTS]


def _is_there(found: Mapping[str, Any], point: Point, rows: Mapping[str, str]) -> bool:
    record = found["axes"].get(point.axis, {"points": {}})["points"].get(point.name)
    if record is None or changed_row(record.get("row_hashes", {}), rows) is not None:
        return False
    return (record["state"], record["rows"], record["options"]) == (
        DONE,
        list(point.row_names),
        dict(point.options),
    )


def _outcome(found: Mapping[str, Any], point: Point) -> Outcome:
    record = found["axes"][point.axis]["points"][point.name]
    made, rows = (dict(record.get(key, {})) for key in ("environment", "row_hashes"))
    return Outcome(point, "", _result(found, point), made, rows)


def _result(found: Mapping[str, Any], point: Point) -> dict[str, Any]:
    axis = found["axes"][point.axis]
    systems = {
        name: {
            "seeds": list(range(_seeds(sets))),
            "sets": {part: {ALL: scores} for part, scores in sets.items()},
        }
        for name, sets in axis["points"][point.name]["systems"].items()
    }
    pairs = {
        part: [
            {key: value for key, value in test.items() if key != "point"}
            for test in tests
            if test["point"] == point.name
        ]
        for part, tests in axis["tests"].items()
    }
    return {"bootstrap": found["bootstrap"], "systems": systems, "all_pairs": pairs}


def _seeds(sets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> int:
    return max(len(score["seeds"]) for scores in sets.values() for score in scores.values())
