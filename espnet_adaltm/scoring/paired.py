"""Paired tests between systems: bootstrap by utterance and by speaker, McNemar, Holm."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from espnet_adaltm.scoring.calibration import CALIBRATION_METRICS, SOFT_METRICS
from espnet_adaltm.scoring.mcnemar import McNemar, mcnemar
from espnet_adaltm.scoring.metrics import ERROR_METRICS
from espnet_adaltm.scoring.readers import Hypothesis
from espnet_adaltm.scoring.results import Bootstrap
from espnet_adaltm.scoring.seeds import Comparison, Seeds, Span, compare
from espnet_adaltm.scoring.set_scores import ALL, SetScores, System
from espnet_adaltm.scoring.speakers import SPEAKER_METRICS
from espnet_adaltm.scoring.statistics import holm

COMPARED = ("macro_f1", "uar", "wa", "wer")
SHOWN = (*COMPARED, "cer")
LOWER_IS_BETTER = frozenset((*ERROR_METRICS, *CALIBRATION_METRICS, *SOFT_METRICS))
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class PairedTest:
    """One paired test, ready for JSON; ``p_holm`` corrects over the tests listed with it.

    Attributes:
        first: Name of a system.
        second: Name of another.
        view: ``all`` or a channel.
        metric: What is compared.
        difference: First minus second, means over seeds.
        low: Lower end of its interval, percentile unless BCa was asked for.
        high: Upper end.
        p: Two-sided bootstrap p.
        p_holm: The same after Holm's correction.
        p_seeds: With the seeds of the trainings resampled too.
        by_unit: Resampling unit to ``p`` and, in detail, ``percentile`` and ``bca``; of the view
            ``all``.
        mcnemar: In detail, one per pair of seeds, of ``wa`` in the view ``all``.
    """

    first: str
    second: str
    view: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    p_seeds: float
    by_unit: Mapping[str, Mapping[str, Any]] | None = None
    mcnemar: Sequence[Mapping[str, Any]] | None = None


def best_separated(values: Mapping[str, Seeds], metric: str) -> str | None:
    """The best system if the paired test tells it apart from every other one, else None.

    All of the tests have to reject, so no correction for their number is needed.
    """
    if len(values) < 2:
        return None
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(values, key=lambda name: sign * values[name].mean)
    others = [seeds for name, seeds in values.items() if name != best]
    return best if all(compare(values[best], other).separated for other in others) else None


def paired_tests(
    scores: SetScores,
    pairs: Sequence[tuple[str, str]],
    views: Sequence[str],
    metrics: Sequence[str] = COMPARED,
    options: Bootstrap | None = None,
    *,
    detailed: bool = True,
) -> list[PairedTest]:
    """Tests of every pair, view and metric that both systems have; Holm within each metric.

    Args:
        scores: Of the test set.
        pairs: Names, first minus second.
        views: ``all`` and channels.
        metrics: What is compared.
        options: Of the intervals.
        detailed: Also intervals by every unit, and McNemar's tests: too much for all pairs.
    """
    options = options or Bootstrap()
    found: list[PairedTest] = []
    for metric in metrics:
        rows: list[tuple[str, str, str, Comparison]] = []
        for view in views:
            values = scores.get(metric, view)
            rows += [
                (first, second, view, _compare(values, first, second, options))
                for first, second in pairs
                if first in values and second in values
            ]
        adjusted = holm([row[3].p for row in rows])
        found += [
            _test(scores, options, metric, *row, p_holm, detailed)
            for row, p_holm in zip(rows, adjusted)
        ]
    return found


def _compare(
    values: Mapping[str, Seeds], first: str, second: str, options: Bootstrap
) -> Comparison:
    return compare(values[first], values[second], level=options.level, seed=options.seed)


def _test(
    scores: SetScores,
    options: Bootstrap,
    metric: str,
    first: str,
    second: str,
    view: str,
    found: Comparison,
    p_holm: float,
    detailed: bool,
) -> PairedTest:
    by_unit = tests = None
    if view == ALL:
        units = {options.unit: found}
        for unit in scores.other_units:
            units[unit] = _compare(scores.get(metric, unit=unit), first, second, options)
        by_unit = {
            unit: _unit_json(one) if detailed else {"p": one.p} for unit, one in units.items()
        }
        if detailed and metric == "wa":
            tests = [asdict(test) for test in mcnemar_tests(scores, first, second)]
    low, high = found.interval(options.interval)
    return PairedTest(
        first, second, view, metric, found.difference, low, high, found.p, p_holm, found.p_seeds,
        by_unit, tests,
    )  # fmt: skip


def _unit_json(found: Comparison) -> dict[str, Any]:
    spans: dict[str, Span | None] = {"percentile": (found.low, found.high), "bca": found.bca}
    return {name: list(span) for name, span in spans.items() if span is not None} | {"p": found.p}


def mcnemar_tests(scores: SetScores, first: str, second: str) -> list[McNemar]:
    """McNemar of two systems: seed by seed where both have the same, else every pair of seeds."""
    truth = scores.truth
    ours, theirs = scores.runs(first), scores.runs(second)
    same = set(ours) == set(theirs)
    pairs = [(seed, seed) for seed in ours] if same else itertools.product(ours, theirs)

    def right(output: Hypothesis) -> Any:
        return output.prediction == truth

    return [mcnemar(right(ours[a]), right(theirs[b]), (a, b)) for a, b in pairs]


def all_pairs(systems: Sequence[System]) -> list[tuple[str, str]]:
    """Every unordered pair of names, in order."""
    return list(itertools.combinations([system.name for system in systems], 2))


@dataclass(frozen=True)
class SetTests:
    """All tests of one test set.

    Attributes:
        highlighted: Of the pairs asked for, on the whole set.
        by_channel: Of the same on its channels.
        every: Of all pairs, on the whole set.
        reference: The system that most of the highlighted pairs begin with, or None.
        stars: Metric to system to a star if it differs from the reference, p below 0.05 after
            Holm's correction over the systems, else nothing.
        best: Metric to the system that is better than every other, or None.
    """

    highlighted: list[PairedTest]
    by_channel: list[PairedTest]
    every: list[PairedTest]
    reference: str | None
    stars: dict[str, dict[str, str]]
    best: dict[str, str | None]


def run_tests(
    scores: SetScores,
    systems: Sequence[System],
    pairs: Sequence[tuple[str, str]],
    options: Bootstrap,
) -> SetTests:
    """Run every test that a report shows.

    Args:
        scores: Of the test set.
        systems: In the order of the tables.
        pairs: Highlighted comparisons, first minus second.
        options: Of the intervals.
    """
    channels = [view for view in scores.views if view != ALL]
    reference = reference_system(pairs)
    others = [(reference, s.name) for s in systems if s.name != reference] if reference else []
    found: dict[str, dict[str, str]] = {}
    for test in paired_tests(scores, others, [ALL], columns(scores), options, detailed=False):
        found.setdefault(test.metric, {})[test.second] = "*" * (test.p_holm < SIGNIFICANT)
    return SetTests(
        paired_tests(scores, pairs, [ALL], options=options),
        paired_tests(scores, pairs, channels, options=options),
        paired_tests(scores, all_pairs(systems), [ALL], options=options, detailed=False),
        reference,
        found,
        {metric: best_separated(scores.get(metric), metric) for metric in columns(scores)},
    )


def columns(scores: SetScores, *, terse: bool = False) -> list[str]:
    """Metrics of the table of systems: always `SHOWN`, others where any system has them."""
    extra = (*([] if terse else CALIBRATION_METRICS[:1]), *SOFT_METRICS, *SPEAKER_METRICS)
    return [*SHOWN, *[metric for metric in extra if scores.get(metric)]]


def reference_system(pairs: Sequence[tuple[str, str]]) -> str | None:
    """The system that most of the highlighted comparisons begin with; None without any."""
    counts = Counter(first for first, _ in pairs)
    return max(counts, key=counts.__getitem__) if counts else None


def stars(p: float) -> str:
    """``*`` below 0.05, ``**`` below 0.01, ``***`` below 0.001."""
    return "*" * sum(p < level for level in (SIGNIFICANT, 0.01, 0.001))
