"""Tables as text: Markdown for ``RESULTS.md``, aligned columns for a terminal."""

from collections.abc import Iterable, Mapping, Sequence

from espnet_adaltm.scoring.metrics import class_scores, error_table
from espnet_adaltm.scoring.paired import (
    SIGNIFICANT,
    PairedTest,
    SetTests,
    best_separated,
    columns,
    stars,
)
from espnet_adaltm.scoring.results import Bootstrap
from espnet_adaltm.scoring.seeds import INTERVALS, Seeds
from espnet_adaltm.scoring.set_scores import ALL, SetScores, System
from espnet_adaltm.text import markdown_cell

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
    "ece": "ECE",
    "brier": "Brier",
    "jsd": "JSD",
}
_ESPNET = ("Snt", "Wrd", "Corr", "Sub", "Del", "Ins", "Err", "S.Err")
Rows = list[list[str]]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, first column left, the others right aligned; cells may have emphasis."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = ("|".join(markdown_cell(cell) for cell in row) for row in [header, rule, *rows])
    return "\n".join(f"|{line}|" for line in lines)


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


def percent(seeds: Seeds, options: Bootstrap | None = None, *, deviation: bool = True) -> str:
    """``47.1 ±2.0 σ 0.8``: mean, half the pooled interval, deviation over seeds if several."""
    options = options or Bootstrap()
    low, high = seeds.interval(options.level, options.interval)
    spread = "" if seeds.std is None or not deviation else f" σ {100 * seeds.std:.1f}"
    return f"{100 * seeds.mean:.1f} ±{50 * (high - low):.1f}{spread}"


def escaped(stars: str) -> str:
    """Stars that Markdown shows as such, after a blank; empty if there are none."""
    return " " + stars.replace("*", "\\*") if stars else ""


def main_table(
    scores: SetScores,
    systems: Sequence[System],
    options: Bootstrap,
    tests: SetTests | None = None,
) -> tuple[list[str], Rows]:
    """One row per system: number of seeds, then every metric of `paired.columns`.

    Args:
        scores: Of one test set.
        systems: In the order of the rows.
        options: Of the intervals.
        tests: What is bold and starred; None for a terminal of 100 columns: nothing is, and there
            are no deviations over seeds and only the metrics that are always there.
    """
    metrics = columns(scores, terse=tests is None)
    values = {metric: scores.get(metric) for metric in metrics}
    rows = []
    for system in systems:
        cells = []
        for metric in metrics:
            text = "-"
            if system.name in values[metric]:
                text = percent(values[metric][system.name], options, deviation=tests is not None)
            if tests is not None:
                text = _bold_if(text, tests.best.get(metric) == system.name)
                text += escaped(tests.stars.get(metric, {}).get(system.name, ""))
            cells.append(text)
        rows.append([system.name, str(len(system.folders)), *cells])
    return ["system", "seeds", *[TITLES[metric] for metric in metrics]], rows


def interval_table(
    scores: SetScores, systems: Sequence[System], metric: str, options: Bootstrap
) -> tuple[list[str], Rows]:
    """One row per system: the mean, and its interval by every unit and kind, in percent."""
    by_unit = {options.unit: scores.get(metric)}
    by_unit |= {unit: scores.get(metric, unit=unit) for unit in scores.other_units}
    rows = []
    for system in systems:
        if system.name not in by_unit[options.unit]:
            continue
        seeds = [values[system.name] for values in by_unit.values()]
        ends = [s.interval(options.level, method) for s in seeds for method in INTERVALS]
        cells = [f"[{100 * low:.1f}, {100 * high:.1f}]" for low, high in ends]
        rows.append([system.name, f"{100 * seeds[0].mean:.1f}", *cells])
    kinds = [f"by {unit}, {interval_name(kind)}" for unit in by_unit for kind in INTERVALS]
    return ["system", TITLES[metric], *kinds], rows


def calibration_table(
    scores: SetScores, systems: Sequence[System], options: Bootstrap
) -> tuple[list[str], Rows]:
    """Calibration error, Brier score, and how sure and how right systems are on average."""
    rows = []
    for system in systems:
        if (bins := scores.reliabilities.get(system.name)) is None:
            continue
        error, brier = (scores.get(metric)[system.name] for metric in ("ece", "brier"))
        low, high = error.interval(options.level, "bca")
        total = bins.counts.sum()
        rows.append(
            [
                system.name,
                percent(error, options),
                f"[{100 * low:.1f}, {100 * high:.1f}]",
                f"{brier.mean:.3f}",
                f"{100 * bins.confidence.sum() / total:.1f}",
                f"{100 * bins.right.sum() / total:.1f}",
            ]
        )
    return ["system", "ECE", "ECE, BCa interval", "Brier", "confidence", "right"], rows


def mcnemar_table(tests: Sequence[PairedTest]) -> tuple[list[str], Rows]:
    """Utterances that one system alone has right, for every pair of seeds; p of both kinds."""
    header = ["first - second", "seeds", "only first", "only second", "p (exact)", "p (corrected)"]
    rows = [
        [
            f"{test.first} - {test.second}",
            _seed_names(found["first"], found["second"]),
            str(found["only_first"]),
            str(found["only_second"]),
            p_text(found["p_exact"]),
            p_text(found["p_corrected"]),
        ]
        for test in tests
        for found in test.mcnemar or ()
    ]
    return header, rows


def interval_name(kind: str) -> str:
    """One of `seeds.INTERVALS` as it is written."""
    return "BCa" if kind == "bca" else kind


def _seed_names(first: int | None, second: int | None) -> str:
    names = ["-" if seed is None else str(seed) for seed in (first, second)]
    return names[0] if names[0] == names[1] else f"{names[0]}, {names[1]}"


def p_text(p: float) -> str:
    """``0.023``; very small ones as ``1.2e-05``."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def channel_table(
    scores: SetScores, systems: Sequence[System], metric: str, options: Bootstrap
) -> tuple[list[str], Rows]:
    """One row per system, one column per channel, best in bold where separated."""
    channels = [view for view in scores.views if view != ALL]
    found = {channel: scores.get(metric, channel) for channel in channels}
    best = {channel: best_separated(values, metric) for channel, values in found.items()}
    rows = []
    for system in systems:
        if not any(system.name in values for values in found.values()):
            continue
        cells = [percent(found[channel][system.name], options) for channel in channels]
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
    units = list(dict.fromkeys(u for test in tests for u in test.by_unit or ()))[1:]
    header = ["first - second", "on", "metric", "difference", "95 % interval"]
    header += ["p", "p (Holm)", "p (seeds too)", *[f"p (by {unit})" for unit in units]]
    rows = []
    for test in tests:
        text = _bold_if(f"{100 * test.difference:+.1f}", test.p_holm < SIGNIFICANT)
        others = [(test.by_unit or {}).get(unit) for unit in units]
        rows.append(
            [
                f"{test.first} - {test.second}",
                test.view,
                TITLES[test.metric],
                text + escaped(stars(test.p_holm)),
                f"[{100 * test.low:+.1f}, {100 * test.high:+.1f}]",
                *[p_text(value) for value in (test.p, test.p_holm, test.p_seeds)],
                *["-" if other is None else p_text(other["p"]) for other in others],
            ]
        )
    return header, rows


def _bold_if(text: str, condition: bool) -> str:
    return f"**{text}**" if condition else text


def pair_matrix(tests: Sequence[PairedTest], metric: str) -> tuple[list[str], Rows]:
    """Row minus column in points of percent, starred, for every pair that was tested."""
    cells: dict[tuple[str, str], str] = {}
    names: dict[str, None] = {}
    for test in tests:
        if test.metric != metric:
            continue
        names |= {test.first: None, test.second: None}
        for key, sign in (((test.first, test.second), 1), ((test.second, test.first), -1)):
            text = f"{sign * 100 * test.difference:+.1f}"
            cells[key] = _bold_if(text, test.p_holm < SIGNIFICANT) + escaped(stars(test.p_holm))
    rows = [[row, *[cells.get((row, column), "") for column in names]] for row in names]
    return ["row - column", *names], rows


def facts(values: Mapping[str, str]) -> str:
    """A Markdown list of ``- name: `value```."""
    return "\n".join(f"- {name}: `{value}`" for name, value in values.items())
