"""Tables as text: Markdown for ``RESULTS.md``, aligned columns for a terminal."""

from collections.abc import Iterable, Mapping, Sequence

from espnet_adaltm.scoring.aggregate import (
    ALL,
    SHOWN,
    PairedTest,
    SetScores,
    System,
    best_separated,
)
from espnet_adaltm.scoring.metrics import class_scores, error_table
from espnet_adaltm.scoring.speakers import SPEAKER_METRICS
from espnet_adaltm.scoring.statistics import Seeds, interval

TITLES = {
    "macro_f1": "macro-F1",
    "uar": "UAR",
    "wa": "WA",
    "weighted_f1": "weighted F1",
    "macro_precision": "macro precision",
    "wer": "WER",
    "cer": "CER",
    "sentence_error_rate": "S.Err",
    "spk_acc": "speaker acc.",
}
_ESPNET = ("Snt", "Wrd", "Corr", "Sub", "Del", "Ins", "Err", "S.Err")
Rows = list[list[str]]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, first column left, the others right aligned."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("|" + "|".join(row) + "|" for row in [header, rule, *rows])


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with blanks, for a terminal."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def percent(seeds: Seeds, level: float = 0.95, *, deviation: bool = True) -> str:
    """``47.1 ±2.0 σ 0.8``: mean, half the pooled interval, deviation over seeds if several."""
    low, high = interval(seeds.pooled(), level)
    spread = "" if seeds.std is None or not deviation else f" σ {100 * seeds.std:.1f}"
    return f"{100 * seeds.mean:.1f} ±{50 * (high - low):.1f}{spread}"


def main_table(
    scores: SetScores, systems: Sequence[System], *, terse: bool = False, level: float = 0.95
) -> tuple[list[str], Rows]:
    """One row per system: number of seeds, then every metric of `SHOWN`, and of speakers if any.

    Args:
        scores: Of one test set.
        systems: In the order of the rows.
        terse: For a terminal of 100 columns: no bold, no deviation over seeds.
        level: Of the intervals.
    """
    columns = {metric: scores.get(metric) for metric in (*SHOWN, *SPEAKER_METRICS)}
    columns = {name: values for name, values in columns.items() if values or name in SHOWN}
    best = {metric: best_separated(values, metric) for metric, values in columns.items()}
    rows = []
    for system in systems:
        cells = []
        for metric, values in columns.items():
            text = "-"
            if system.name in values:
                text = percent(values[system.name], level, deviation=not terse)
            cells.append(_bold_if(text, not terse and best[metric] == system.name))
        rows.append([system.name, str(len(system.folders)), *cells])
    return ["system", "seeds", *[TITLES[metric] for metric in columns]], rows


def channel_table(
    scores: SetScores, systems: Sequence[System], metric: str, level: float = 0.95
) -> tuple[list[str], Rows]:
    """One row per system, one column per channel, best in bold where separated."""
    channels = [view for view in scores.views if view != ALL]
    columns = {channel: scores.get(metric, channel) for channel in channels}
    best = {channel: best_separated(values, metric) for channel, values in columns.items()}
    rows = []
    for system in systems:
        if not any(system.name in values for values in columns.values()):
            continue
        cells = [percent(columns[channel][system.name], level) for channel in channels]
        rows.append(
            [
                system.name,
                *[
                    f"**{cell}**" if best[channel] == system.name else cell
                    for channel, cell in zip(channels, cells)
                ],
            ]
        )
    titles = [f"{channel} ({scores.views[channel]})" for channel in channels]
    return ["system", *titles], rows


def espnet_table(scores: SetScores, unit: str) -> tuple[list[str], Rows]:
    """ESPnet's table of ``word`` or ``char`` errors, a row per system and seed; in percent."""
    rows = []
    for system, seeds in scores.errors[unit].items():
        for seed, counts in seeds.items():
            name = system if seed is None else f"{system}_seed{seed}"
            values = error_table(counts)
            cells = [str(int(values[column])) for column in _ESPNET[:2]]
            cells += [f"{values[column]:.1f}" for column in _ESPNET[2:]]
            rows.append([f"{name}/{scores.reference.name}", *cells])
    return ["dataset", *_ESPNET], rows


def class_table(scores: SetScores, labels: Sequence[str]) -> tuple[list[str], Rows]:
    """F1 by class and system, in percent, from the confusion counts of all seeds together."""
    rows = [
        [system, *[f"{100 * value:.1f}" for value in class_scores(confusion)[2]]]
        for system, confusion in scores.confusions.items()
    ]
    return ["system", *labels], rows


def comparison_table(tests: Sequence[PairedTest]) -> tuple[list[str], Rows]:
    """Highlighted paired tests; differences in points of percent, first minus second."""
    header = ["first - second", "on", "metric", "difference", "95 % interval"]
    header += ["p", "p (Holm)", "p (seeds too)"]
    rows = [
        [
            f"{test.first} - {test.second}",
            test.view,
            TITLES[test.metric],
            _bold_if(f"{100 * test.difference:+.1f}", test.p < 0.05),
            f"[{100 * test.low:+.1f}, {100 * test.high:+.1f}]",
            *[f"{value:.3f}" for value in (test.p, test.p_holm, test.p_seeds)],
        ]
        for test in tests
    ]
    return header, rows


def _bold_if(text: str, condition: bool) -> str:
    return f"**{text}**" if condition else text


def pair_matrix(tests: Sequence[PairedTest], metric: str) -> tuple[list[str], Rows]:
    """Row minus column in points of percent with its p, for every pair that was tested."""
    cells: dict[tuple[str, str], str] = {}
    names: dict[str, None] = {}
    for test in tests:
        if test.metric != metric:
            continue
        names |= {test.first: None, test.second: None}
        for key, sign in (((test.first, test.second), 1), ((test.second, test.first), -1)):
            text = f"{sign * 100 * test.difference:+.1f} ({test.p:.3f})"
            cells[key] = _bold_if(text, test.p < 0.05)
    rows = [[row, *[cells.get((row, column), "") for column in names]] for row in names]
    return ["row - column", *names], rows


def facts(values: Mapping[str, str]) -> str:
    """A Markdown list of ``- name: `value```."""
    return "\n".join(f"- {name}: `{value}`" for name, value in values.items())
