import itertools

import numpy as np
import pytest

from espnet_adaltm.errors import UserError
from espnet_adaltm.scoring import ablation_plot, ablation_results
from espnet_adaltm.scoring import ablations as abl
from espnet_adaltm.scoring.plots import new_figure


def scores(mean, wer=None, std=0.02):
    """One system's part of a ``results.json``: three seeds, intervals of 0.03 and 0.05."""
    metrics = {}
    for name, value, half in (("macro_f1", mean, 0.03), ("uar", mean, 0.03), ("wer", wer, 0.05)):
        if value is not None:
            seeds = [value - 0.02, value, value + 0.02]
            ends = {"low": value - half, "high": value + half}
            metrics[name] = {"seeds": seeds, "mean": value, "std": std, **ends}
    return {"seeds": [1, 2, 3], "sets": {"test": {"all": metrics}}}


def results(systems, p_values):
    """A ``results.json``; ``p_values`` by pair, difference of the means -+ 0.01 as interval."""
    tests = []
    for (first, second), metric in itertools.product(
        itertools.combinations(systems, 2), ("macro_f1", "uar", "wa", "wer")
    ):
        both = [systems[name]["sets"]["test"]["all"].get(metric) for name in (first, second)]
        if None not in both:
            d = both[0]["mean"] - both[1]["mean"]
            p = p_values[first, second]
            test = {"first": first, "second": second, "view": "all", "metric": metric}
            ends = {"difference": d, "low": d - 0.01, "high": d + 0.03}
            tests.append({**test, **ends, "p": p, "p_holm": 1.0, "p_seeds": 0.5})
    bootstrap = {"resamples": 1000, "level": 0.95, "seed": 0, "unit": "utterance"}
    return {"bootstrap": bootstrap, "systems": systems, "all_pairs": {"test": tests}}


def scene():
    """An axis of two done points and one that failed; references ser_only and adaltm."""
    rows = {"0.01": "adaltm", "0.1": "rows/fast.yaml", "1": "rows/wild.yaml"}
    points = [abl.Point("rate", name, (row,), {}) for name, row in rows.items()]
    axis = abl.Axis("rate", "Learning rate", "Of lambda.", "rate", "log", tuple(points))
    refs = {"ser_only": scores(0.50), "adaltm": scores(0.52, 0.30)}
    first = results(refs, {("ser_only", "adaltm"): 0.03})
    second = results(
        {**refs, "fast": scores(0.60, 0.20)},
        {("ser_only", "adaltm"): 0.03, ("ser_only", "fast"): 0.0004, ("adaltm", "fast"): 0.02},
    )
    outcomes = [
        ablation_results.Outcome(points[0], "", first),
        ablation_results.Outcome(points[1], "", second),
        ablation_results.Outcome(points[2], "failed with status 1", {}),
    ]
    return axis, outcomes, ("ser_only", "adaltm")


def test_rows_are_compared_with_the_references_of_their_run_and_corrected_within_the_axis():
    axis, outcomes, references = scene()
    tests = ablation_results.axis_tests(outcomes, references, "test")
    f1 = {key[:3]: test for key, test in tests.items() if key[3] == "macro_f1"}
    assert f1.keys() == {
        ("0.01", "adaltm", "ser_only"),
        ("0.1", "fast", "ser_only"),
        ("0.1", "fast", "adaltm"),
    }
    # The run has ser_only minus fast, -0.1 in [-0.11, -0.07]: turned around.
    best = f1["0.1", "fast", "ser_only"]
    assert (best.first, best.second) == ("fast", "ser_only")
    assert [best.difference, best.low, best.high] == pytest.approx([0.10, 0.07, 0.11])
    # p of 0.0004, 0.02 and 0.03: Holm's factors are 3, 2 and 1
    assert best.p_holm == pytest.approx(3 * 0.0004)
    assert f1["0.1", "fast", "adaltm"].p_holm == pytest.approx(2 * 0.02)
    assert f1["0.01", "adaltm", "ser_only"].p_holm == pytest.approx(0.04)  # not below the last
    # ser_only writes no words: its WER is in no test, and the only one left needs no correction.
    wer = {key[:3]: test for key, test in tests.items() if key[3] == "wer"}
    assert wer.keys() == {("0.1", "fast", "adaltm")}
    assert wer["0.1", "fast", "adaltm"].p_holm == pytest.approx(0.02)
    assert wer["0.1", "fast", "adaltm"].difference == pytest.approx(-0.10)


def test_the_table_has_means_intervals_differences_and_stars():
    axis, outcomes, references = scene()
    tests = ablation_results.axis_tests(outcomes, references, "test")
    header, rows = ablation_results.axis_table(outcomes, references, "test", tests)
    minus = ["minus ser_only", "minus adaltm"]
    assert header == ["point", "merge", "seeds", "macro-F1", "UAR", "WER", *minus]
    assert rows == [
        ["0.01", "adaltm", "3", *["52.0 ±3.0 σ 2.0"] * 2, "30.0 ±5.0 σ 2.0",
         "+2.0 [-1.0, +3.0] \\*", "-"],
        ["0.01", "*ser_only*", "3", *["50.0 ±3.0 σ 2.0"] * 2, "-", "-", "-"],
        ["0.1", "fast", "3", *["60.0 ±3.0 σ 2.0"] * 2, "20.0 ±5.0 σ 2.0",
         "+10.0 [+7.0, +11.0] \\*\\*", "+8.0 [+5.0, +9.0] \\*"],
    ]  # fmt: skip
    # The references are listed again only where a run has others.
    outcomes[1].result["systems"]["ser_only"] = scores(0.40)
    _, rows = ablation_results.axis_table(outcomes, references, "test", tests)
    assert [row[:2] for row in rows[2:]] == [["0.1", "fast"], ["0.1", "*ser_only*"]]


def test_no_difference_has_no_sign_turned_around():
    test = ablation_results.PairedTest("a", "b", "all", "uar", 0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    assert ablation_results.difference(ablation_results.turned(test)) == "+0.0 [+0.0, +0.0]"


def test_one_seed_has_no_deviation():
    score = scores(0.5, std=None)["sets"]["test"]["all"]["macro_f1"]
    assert ablation_results.percent(score) == "50.0 ±3.0"


def test_points_resampled_differently_are_not_put_into_one_table():
    _, outcomes, _ = scene()
    assert ablation_results.check_bootstrap(outcomes)["resamples"] == 1000
    outcomes[1].result["bootstrap"]["unit"] = "speaker"
    with pytest.raises(UserError, match="rate/0.1 was resampled by .*speaker.*, rate/0.01 by"):
        ablation_results.check_bootstrap(outcomes)
    assert ablation_results.check_bootstrap(outcomes[2:]) == {}


def test_lines_of_the_plot():
    axis, outcomes, references = scene()
    varied, ser = ablation_plot.axis_lines(axis, outcomes, references[:1], "test", "macro_f1")
    assert (varied.name, varied.is_reference) == (ablation_plot.VARIED, False)
    assert varied.places.tolist() == [0.01, 0.1]
    np.testing.assert_allclose(varied.values, [[0.52, 0.49, 0.55], [0.60, 0.57, 0.63]])
    assert (ser.name, ser.is_reference) == ("ser_only", True)
    np.testing.assert_allclose(ser.values[:, 0], [0.5, 0.5])
    (words,) = ablation_plot.axis_lines(axis, outcomes, references[:1], "test", "wer")
    np.testing.assert_allclose(words.values[:, 0], [0.3, 0.2])
    # A reference that is a row everywhere is one line.
    names = [line.name for line in ablation_plot.axis_lines(
        axis, outcomes[:1], references, "test", "macro_f1")]  # fmt: skip
    assert names == ["adaltm", "ser_only"]


@pytest.mark.parametrize(("places", "bars"), [([5.0], 1), ([5.0, 10.0], 0)])
def test_a_reference_known_at_one_point_is_drawn_as_a_point(places, bars):
    figure, panel = new_figure(4, 3)
    values = np.array([[0.5, 0.4, 0.6]] * len(places))
    line = ablation_plot.Line("ser_only", True, np.array(places), values)
    ablation_plot._draw(panel, line, ("C0", "o", True), ordered=True)
    assert len(panel.containers) == bars  # error bars; otherwise a line and a band
    assert len(panel.lines) == 1


def test_references_are_steps_where_points_are_names():
    figure, panel = new_figure(4, 3)
    values = np.array([[0.5, 0.4, 0.6], [0.7, 0.65, 0.75]])
    line = ablation_plot.Line("ser_only", True, np.array([0.0, 1.0]), values)
    ablation_plot._draw(panel, line, ("C0", "o", True), ordered=False)
    drawn = [(list(part.get_xdata()), list(part.get_ydata())) for part in panel.lines]
    assert drawn == [([-0.4, 0.4], [50.0, 50.0]), ([0.6, 1.4], [70.0, 70.0])]
    assert panel.get_legend_handles_labels()[1] == ["ser_only"]


def test_a_reference_looks_the_same_on_all_axes():
    references = ("ser_only", "rows/static.yaml")
    usual = ablation_plot.line_looks([ablation_plot.VARIED, "ser_only", "static"], references)
    several = ablation_plot.line_looks(["static", "plus", "more", "ser_only"], references)
    alone = ablation_plot.line_looks(["static", "ser_only"], references)
    for looks in (several, alone):
        assert [looks[name] for name in ("ser_only", "static")] == [
            usual[name] for name in ("ser_only", "static")
        ]
    assert len({look[0] for look in several.values()}) == 4


def test_an_axis_with_one_point_done_has_no_picture(tmp_path):
    axis, outcomes, references = scene()
    one = [outcomes[0], outcomes[2], outcomes[2]]
    path = tmp_path / "a.png"
    assert ablation_plot.axis_plot(path, axis, one, references, "test") is None
    assert ablation_plot.axis_plot(path, axis, outcomes, references, "test") == path


def test_an_interval_beyond_the_panel_ends_in_an_arrow():
    figure, panel = new_figure(4, 3)
    panel.set_xlim(-5, 5)
    test = ablation_results.PairedTest("a", "b", "all", "uar", -0.04, -0.06, -0.02, 1.0, 1.0, 1.0)
    ablation_plot._draw_difference(panel, 2, test)
    marks = [(part.get_marker(), list(part.get_xdata())) for part in panel.lines]
    assert ("<", [-5]) in marks
    assert all(marker != ">" for marker, _ in marks)


def test_the_overview_has_every_row_once_under_its_axis():
    axis, outcomes, references = scene()
    point = abl.Point("grain", "block", ("adaltm",), {})
    grain = abl.Axis("grain", "Granularity", "", "grain", "names", (point,))
    again = ablation_results.Outcome(point, "", outcomes[0].result)
    by_key = {outcome.point.key: outcome for outcome in [*outcomes, again]}
    config = abl.Ablations(references, (axis, grain))
    entries = ablation_plot.overview_entries(config, by_key, "test")
    # The same trainings on another axis are not repeated, and neither is its title.
    assert [entry.label for entry in entries] == ["Learning rate", "0.01", "0.1"]
    title, slow, fast = (entry.tests for entry in entries)
    assert title is None
    assert slow.keys() == {"ser_only"}
    assert {name: test.difference for name, test in fast.items()} == pytest.approx(
        {"ser_only": 0.10, "adaltm": 0.08}
    )
    assert fast["adaltm"].p_holm == pytest.approx(2 * 0.02)  # corrected within the axis
    # Other trainings of the same name are shown.
    other = results({"ser_only": scores(0.5), "adaltm": scores(0.6)}, {("ser_only", "adaltm"): 0.5})
    by_key["grain/block"] = ablation_results.Outcome(point, "", other)
    entries = ablation_plot.overview_entries(config, by_key, "test")
    assert [entry.label for entry in entries[3:]] == ["Granularity", "block"]
    # And so is the same row beside another reference.
    low = results({"ser_only": scores(0.4), "adaltm": scores(0.52)}, {("ser_only", "adaltm"): 0.5})
    by_key["grain/block"] = ablation_results.Outcome(point, "", low)
    entries = ablation_plot.overview_entries(config, by_key, "test")
    assert [entry.label for entry in entries[3:]] == ["Granularity", "block"]
    assert ablation_plot.overview_entries(config, by_key, "other") == []


@pytest.mark.parametrize(("far", "wide"), [(0.61, True), (0.59, False)])
def test_words_far_apart_are_drawn_on_a_logarithmic_axis(far, wide):
    lines = [
        ablation_plot.Line("a", False, np.array([1.0]), np.array([[0.03, 0.02, 0.04]])),
        ablation_plot.Line("b", True, np.array([1.0]), np.array([[far, far, far]])),
    ]
    assert ablation_plot.is_wide(lines) is wide


def test_no_overview_of_nothing(tmp_path):
    axis, outcomes, references = scene()
    config = abl.Ablations(references, (abl.Axis(*["x"] * 4, "names", axis.points[2:]),))
    by_key = {outcomes[2].point.key: outcomes[2]}
    assert ablation_plot.overview_plot(tmp_path / "a.png", config, by_key, "test") is None
    assert not list(tmp_path.iterdir())


def test_limits_of_the_overview_leave_out_what_is_far_off():
    def test_of(value):
        ends = value - 0.01, value + 0.01
        return ablation_results.PairedTest("a", "b", "all", "uar", value, *ends, 1.0, 1.0, 1.0)

    near = [test_of(value) for value in (-0.02, -0.01, 0.0, 0.02)]
    # all of it, -3 to 3 points, and a twentieth of air
    assert ablation_plot.difference_limits(near) == pytest.approx((-3.3, 3.3))
    low, high = ablation_plot.difference_limits([*near, test_of(-0.5)])
    assert (low, high) == pytest.approx((-3.3, 3.3))
    # Up to 1.5 times 3 times the third quartile (of 1 2 3 3 13, here) there is room.
    low, high = ablation_plot.difference_limits([*near, test_of(-0.12)])
    assert (low, high) == pytest.approx((-13.8, 3.8))
    assert ablation_plot.difference_limits([*near, test_of(-0.126)])[0] == pytest.approx(-3.3)
    # Zero is shown where all are on one side of it.
    assert ablation_plot.difference_limits([test_of(0.03)])[0] == pytest.approx(-0.2)
