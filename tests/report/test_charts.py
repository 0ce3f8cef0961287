import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from espnet_adaltm.report import charts, svg


def _point(name, wer, score, number=0):
    ends = (wer - 0.5, wer + 0.5), (score - 1, score + 1)
    return charts.Point(name, svg.look(number), wer, score, *ends)


def _marks(picture):
    """Places of all marks with a tip: text of the tip to (x, y)."""
    root = ElementTree.fromstring(str(picture))
    found = {}
    for path in root.iter("path"):
        title = path.find("title")
        if title is not None:
            numbers = [float(n) for n in re.findall(r"-?\d+\.\d", path.get("d"))]
            found[title.text] = numbers[:2]
    return found


def test_front_is_what_nothing_else_beats():
    rng = np.random.default_rng(0)
    points = [_point(str(i), *rng.integers(0, 9, size=2).astype(float)) for i in range(40)]
    front = charts.pareto(points)

    def beaten(point):
        return any(
            (o.wer <= point.wer and o.score >= point.score)
            and (o.wer < point.wer or o.score > point.score)
            for o in points
        )

    assert {(p.wer, p.score) for p in front} == {(p.wer, p.score) for p in points if not beaten(p)}
    assert [p.wer for p in front] == sorted(p.wer for p in front)


def test_places_of_systems_follow_their_numbers():
    points = [_point("a", 5.0, 70.0), _point("b", 10.0, 80.0, 1), _point("c", 20.0, 60.0, 2)]
    picture = charts.trade_off(points, {"wer": ("asr", 4.0)}, (900, 440), "wide")
    places = _marks(picture)
    xs = [
        places[f"{n}: macro-F1 {s}.0, WER {w}.0"]
        for n, w, s in zip("abc", (5, 10, 20), (70, 80, 60))
    ]
    assert xs[0][0] < xs[1][0] < xs[2][0]
    # linear: twice as far for twice the distance (marks differ in form by a few pixels)
    assert (xs[2][0] - xs[1][0]) / (xs[1][0] - xs[0][0]) == pytest.approx(2, abs=0.1)
    assert xs[1][1] < xs[0][1] < xs[2][1]  # up is better
    assert "log scale" not in picture
    assert "asr (words only)" in picture


def test_far_apart_errors_are_drawn_on_a_logarithmic_axis():
    points = [_point("a", 5.0, 70.0), _point("b", 50.0, 80.0), _point("c", 500.0, 60.0)]
    picture = charts.trade_off(points, {}, (350, 360), "narrow")
    assert "log scale" in picture
    xs = sorted(place[0] for place in _marks(picture).values())
    assert xs[2] - xs[1] == pytest.approx(xs[1] - xs[0], abs=0.2)


def test_names_do_not_cover_each_other():
    points = [_point(f"system{i}", 50.0 + 0.2 * i, 80 - 0.1 * i, i) for i in range(5)]
    points += [_point("far", 10.0, 60.0), _point("wide", 90.0, 70.0)]
    root = ElementTree.fromstring(str(charts.trade_off(points, {}, (900, 440), "wide")))
    boxes = []
    for text in root.iter("text"):
        if text.get("class") == "label":
            x, y = float(text.get("x")), float(text.get("y"))
            boxes.append((x, y - 9, x + svg.text_width(text.text), y + 2))
            assert 0 <= x <= 900 - svg.text_width(text.text)
    assert len(boxes) == 7
    for first, second in itertools.combinations(boxes, 2):
        assert charts._overlap(first, second) < 60  # of about 500


def test_hostile_names_stay_text():
    name = '"><script>alert(1)</script>'
    picture = charts.trade_off([_point(name, 5, 70), _point("b", 6, 71)], {}, (350, 360), "n")
    assert "<script" not in picture
    root = ElementTree.fromstring(str(picture))
    assert name in [text.text for text in root.iter("text")]
    assert name in [group.get("data-s") for group in root.iter("g")]


def test_coefficients_show_mean_and_range():
    final = [[[0.2, 0.4]], [[0.4, 0.8]]]
    picture = charts.coefficients("x", [(1, "ser")], ["block0", "block1"], final, (0.0, 1.0))
    tips = _marks(picture)
    assert "ser, block0: 0.300 (0.200 to 0.400)" in tips
    assert "ser, block1: 0.600 (0.400 to 0.800)" in tips
    root = ElementTree.fromstring(str(picture))
    (band,) = [p for p in root.iter("path") if p.get("class") == "band"]
    ys = [float(n) for n in re.findall(r"[\d.]+ ([\d.]+)", band.get("d"))]
    top, bottom = 10, 220 - 38
    wanted = [bottom - v * (bottom - top) for v in (0.2, 0.4, 0.8, 0.4)]
    assert ys == pytest.approx(wanted, abs=0.06)
    assert root.find("g").get("class") == "s1"


def test_curves_end_with_the_shortest_seed():
    line = charts.Curve("a, valid", "a", svg.look(0), [[1.0, 2.0, 3.0], [3.0, None]])
    tips = _marks(charts.curves("loss", [line], rate=False))
    assert list(tips) == ["a, valid, epoch 1: 2"]
    several = charts.Curve("a", "a", svg.look(0), [[100.0, 50.0, 1.0]])
    ys = [place[1] for place in _marks(charts.curves("loss", [several], rate=False)).values()]
    assert ys[0] - ys[1] == pytest.approx((ys[0] - ys[2]) * np.log(2) / np.log(100), abs=0.3)


def test_bars_of_calibration_are_as_high_as_the_accuracy():
    rows = [{"low": 0.5, "high": 0.75, "count": 10, "confidence": 0.6, "accuracy": 0.5}]
    root = ElementTree.fromstring(str(charts.reliability("x", rows)))
    (bar,) = root.iter("rect")
    assert float(bar.get("height")) == pytest.approx((210 - 38 - 10) / 2, abs=0.1)
    assert bar.find("title").text == "sure 60.0 %, right 50.0 %, 10 utterances"


def test_rows_have_intervals_and_medians():
    rows = [
        charts.Row("a - b", svg.look(0), [2.0], ["tip"], (1.0, 3.0), "b"),
        charts.Row("a - c", svg.look(1), [-1.0], ["other"], (-2.0, 0.5), "c"),
    ]
    root = ElementTree.fromstring(str(charts.intervals("x", rows, "difference")))
    bars = [line for line in root.iter("line") if line.get("class") == "thick"]
    zero = next(line for line in root.iter("line") if line.get("class") == "zero")
    assert float(bars[0].get("x1")) > float(zero.get("x1")) > float(bars[1].get("x1"))
    assert float(bars[1].get("x2")) > float(zero.get("x1"))
    dots = charts.Row("a", svg.look(0), [1.0, 2.0, 9.0], ["x", "y", "z"])
    picture = charts.strips("x", [dots], "WA")
    (bar,) = [
        line for line in ElementTree.fromstring(str(picture)).iter("line")
        if line.get("class") == "median"
    ]  # fmt: skip
    assert float(bar.get("x1")) == pytest.approx(_marks(picture)["y"][0] + 3.4, abs=0.1)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3.1, 3.9, [-2, 0, 2]),
        (60, 82, [60, 65, 70, 75, 80]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert svg.nice(low, high) == pytest.approx(ticks)


def test_scales():
    linear = svg.Scale(0, 10, 100, 200)
    assert [linear(v) for v in (0, 5, 10)] == [100, 150, 200]
    log = svg.Scale(1, 100, 0, 100, log=True)
    assert [log(v) for v in (1, 10, 100)] == pytest.approx([0, 50, 100])
    assert log.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert svg.Scale(1, 1e5, 0, 1, log=True).ticks() == [1, 10, 100, 1000, 1e4, 1e5]
    low, high = svg.padded([3.0, 3.0], 0.1, 1.0)
    assert high - low == pytest.approx(1)
    looks = [svg.look(index) for index in range(48)]
    assert len({(x.colour, x.mark, x.hollow) for x in looks}) == 48
