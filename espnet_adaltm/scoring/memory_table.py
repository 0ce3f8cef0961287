"""Tables of ablations of the published systems: memories and adapters, for ``RESULTS.md``.

Every variant is compared with the references of its `variants.Family`, on the resamples of the
main table. Memories are also looked at by turn: a first turn has no history, so that what a memory
gains there it does not gain by remembering.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.data.dialogs import read_dialogs
from espnet_adaltm.files import Pathlike
from espnet_adaltm.scoring import tables
from espnet_adaltm.scoring.ablation_results import difference, turned
from espnet_adaltm.scoring.aggregate import seeds_json
from espnet_adaltm.scoring.paired import PairedTest, paired_tests
from espnet_adaltm.scoring.results import Bootstrap
from espnet_adaltm.scoring.seeds import Seeds, compare
from espnet_adaltm.scoring.set_scores import ALL, SetScores, System
from espnet_adaltm.scoring.statistics import bootstrap, emotion_statistic
from espnet_adaltm.scoring.variants import Family, families

METRICS = ("macro_f1", "uar", "wa")
# Name to first and last turn, from 0.
TURNS: Mapping[str, tuple[int, int]] = {
    "turn 1": (0, 0),
    "turns 2 to 4": (1, 3),
    "later turns": (4, 10**9),
}
HEADING = "## Ablations of published systems"
LEGEND = """Percent; ± and σ as in the table of all systems. "minus" is the difference in macro-F1,
in points of percent with its interval; stars: two-sided paired bootstrap p below 0.05 (\\*), 0.01
(\\*\\*), 0.001 (\\*\\*\\*) after Holm's correction over the tests of one metric in this table."""
BY_TURN = """Macro-F1 by turn of the dialogue (utterances); the last rows with their interval and p,
uncorrected. What a memory gains in a first turn it does not gain by remembering. Turns that are
shuffled have a history in the first one, too."""

Turns = dict[str, dict[str, Seeds]]


def ablation_sections(
    systems: Sequence[System],
    scores: Sequence[SetScores],
    dumps: Sequence[Pathlike],
    options: Bootstrap,
) -> tuple[list[str], dict[str, Any]]:
    """All ablations among the systems.

    Args:
        systems: As compared.
        scores: One per test set.
        dumps: The sets' folders, in the same order.
        options: Of the intervals.

    Returns:
        Parts of a Markdown document, empty if there is no ablation, and the same as JSON: test set
        to a list with ``title``, ``kind``, ``references``, ``rows``, ``tests`` and ``turns`` of
        every family.
    """
    parts: list[str] = []
    found: dict[str, Any] = {}
    for score, dump in zip(scores, dumps, strict=True):
        for family in families(systems):
            if not all(variant.system in score.get("macro_f1") for variant in family.variants):
                continue
            tests = family_tests(score, family, options)
            turns = by_turn(score, family, dump, options)
            parts += [f"### {family.title}, on `{score.reference.name}`"]
            parts += _family_parts(score, family, tests, turns, options)
            entry = _family_json(score, family, tests, turns, options)
            found.setdefault(score.reference.name, []).append(entry)
    return ([HEADING, *parts, LEGEND] if parts else []), found


def family_tests(score: SetScores, family: Family, options: Bootstrap) -> list[PairedTest]:
    """Every variant minus every reference, a pair of references once; Holm within a metric."""
    pairs = [
        (variant.system, reference)
        for reference in family.references
        for variant in family.variants
        if variant.system != reference
    ]
    once = [pair for at, pair in enumerate(pairs) if pair[::-1] not in pairs[:at]]
    return paired_tests(score, once, [ALL], METRICS, options)


def by_turn(score: SetScores, family: Family, dump: Pathlike, options: Bootstrap) -> Turns:
    """Macro-F1 of every variant at some turns, resampled together; of memories only.

    Returns:
        Key of `TURNS` to system to its seeds. Turns that no utterance has are left out.
    """
    if family.dialogs is None:
        return {}
    reference = score.reference
    dialogs = read_dialogs(
        Path(dump), reference.utterances, family.dialogs["kind"], family.dialogs["pseudo_turns"]
    )
    utterances = list(reference.emotions)
    turn = np.array([dialogs.places[utt][1] for utt in utterances])
    statistics = {
        (variant.system, seed): emotion_statistic(
            score.truth, output.prediction, len(score.confusions[variant.system])
        )
        for variant in family.variants
        for seed, output in score.runs(variant.system).items()
    }
    found: Turns = {}
    for name, (first, last) in TURNS.items():
        mask = (first <= turn) & (turn <= last)
        if not mask.any():
            continue
        chosen = {run: statistic.subset(mask) for run, statistic in statistics.items()}
        kept = [utt for utt, inside in zip(utterances, mask) if inside]
        values = bootstrap(
            chosen,
            resamples=options.resamples,
            seed=options.seed,
            clusters=options.clusters(reference, kept),
        )
        title = f"{name} ({len(kept)})"
        for system, runs in itertools.groupby(chosen, key=lambda run: run[0]):
            members = list(runs)
            found.setdefault(title, {})[system] = Seeds(
                np.array([chosen[run].point()["macro_f1"] for run in members]),
                np.stack([values[run]["macro_f1"] for run in members]),
                tuple(seed for _, seed in members),
            )
    return found


def _family_parts(
    score: SetScores,
    family: Family,
    tests: Sequence[PairedTest],
    turns: Turns,
    options: Bootstrap,
) -> list[str]:
    header = ["variant", "system", "seeds", *map(tables.TITLES.get, METRICS)]
    labels = {variant.system: variant.label for variant in family.variants}
    header += [f"minus {labels[reference]}" for reference in family.references]
    rows = []
    for variant in family.variants:
        name = variant.system
        values = [score.get(metric)[name] for metric in METRICS]
        cells = [str(len(values[0].points)), *(tables.percent(seeds, options) for seeds in values)]
        for reference in family.references:
            test = find(tests, name, reference)
            cells.append("-" if test is None else difference(test))
        rows.append([variant.label, f"`{name}`", *cells])
    parts = [tables.markdown(header, rows)]
    means = [f"- {v.label}: {v.means}" for v in family.variants if v.means]
    parts += ["\n".join(means)] if means else []
    if turns:
        parts += [_turn_table(family, turns, options), BY_TURN]
    table = tables.markdown(*tables.comparison_table(tests))
    return [*parts, f"<details><summary>all tests</summary>\n\n{table}\n\n</details>"]


def find(tests: Sequence[PairedTest], first: str, second: str) -> PairedTest | None:
    """The test of macro-F1 of two systems, as ``first`` minus ``second``."""
    for test in tests:
        if test.metric == "macro_f1" and {test.first, test.second} == {first, second}:
            return test if test.first == first else turned(test)
    return None


def _turn_table(family: Family, turns: Turns, options: Bootstrap) -> str:
    """A row per variant, and one per difference of the memory to another reference."""
    rows = [
        [
            variant.label,
            *(tables.percent(seeds[variant.system], options) for seeds in turns.values()),
        ]
        for variant in family.variants
    ]
    own = family.variants[0]
    for variant in family.variants[1:]:
        if variant.system in family.references:
            cells = [
                _gain(seeds[own.system], seeds[variant.system], options) for seeds in turns.values()
            ]
            rows.append([f"{own.label} minus {variant.label}", *cells])
    return tables.markdown(["variant", *turns], rows)


def _gain(first: Seeds, second: Seeds, options: Bootstrap) -> str:
    """``+1.3 [-0.2, +2.8], p 0.021``, uncorrected."""
    found = compare(first, second, level=options.level, seed=options.seed)
    span = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.difference:+.1f} {span}, p {tables.p_text(found.p)}"


def _family_json(
    score: SetScores,
    family: Family,
    tests: Sequence[PairedTest],
    turns: Turns,
    options: Bootstrap,
) -> dict[str, Any]:
    return {
        "kind": family.kind,
        "title": family.title,
        "references": list(family.references),
        "rows": [
            {
                **asdict(variant),
                **{m: seeds_json(score.get(m)[variant.system], options) for m in METRICS},
            }
            for variant in family.variants
        ],
        "tests": [asdict(test) for test in tests],
        "turns": {
            title: {name: seeds_json(seeds, options) for name, seeds in found.items()}
            for title, found in turns.items()
        },
    }
