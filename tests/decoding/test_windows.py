"""Windows over long recordings: what they cover, and what their answers add up to."""

import numpy as np
import pytest
import torch

from espnet_adaltm.decoding.windows import Span, average, cut_windows, join_paths, longest, overall


def test_a_recording_of_one_window_is_not_cut():
    assert cut_windows(100, 100, 50, 10) == [Span(0, 100)]
    assert cut_windows(1, 100, 50, 10) == [Span(0, 1)]


@pytest.mark.parametrize("total", [101, 149, 150, 151, 1000, 1003, 1009])
@pytest.mark.parametrize("step", [10, 35, 50, 100])
def test_windows_cover_everything_and_none_is_short(total, step):
    hop = 10
    spans = cut_windows(total, 100, step, hop)
    assert spans[0].start == 0
    assert spans[-1].end == total
    for first, second in zip(spans, spans[1:]):
        assert second.start > first.start
        assert second.start <= first.end
        assert second.start - first.start <= step // hop * hop
    assert all(span.start % hop == 0 for span in spans)
    assert all(100 <= span.end - span.start < 100 + hop for span in spans)


def test_a_step_below_a_frame_is_a_frame():
    assert [span.start for span in cut_windows(130, 100, 1, 10)] == [0, 10, 20, 30]


def test_average_over_time_is_the_mean_of_what_overlaps():
    spans = [Span(0, 4), Span(2, 6), Span(5, 9)]
    values = [np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.5, 0.5])]
    pieces = average(spans, values)
    assert [tuple(span) for span, _ in pieces] == [(0, 2), (2, 4), (4, 5), (5, 6), (6, 9)]
    first = [float(row[0]) for _, row in pieces]
    assert first == [1.0, 0.5, 0.0, 0.25, 0.5]
    # 2 x 1 + 2 x 0.5 + 1 x 0 + 1 x 0.25 + 3 x 0.5, over 9
    np.testing.assert_allclose(overall(pieces), [4.75 / 9, 4.25 / 9])


def test_paths_of_windows_of_one_recording_join_to_its_path():
    """What every window says of a frame is the same here: so must the whole be."""
    hop, whole = 10, torch.arange(57)
    for size, step in ((100, 50), (100, 30), (120, 120), (200, 10)):
        spans = cut_windows(570, size, step, hop)
        paths = [whole[span.start // hop : span.end // hop] for span in spans]
        assert len(spans) > 1
        assert join_paths(spans, paths, hop).tolist() == whole.tolist()


def test_every_window_gives_the_part_near_its_middle():
    spans = [Span(0, 100), Span(60, 160)]
    paths = [torch.full((10,), 1), torch.full((10,), 2)]
    assert join_paths(spans, paths, 10).tolist() == [1] * 8 + [2] * 8


def test_the_name_of_most_of_the_time():
    assert longest([Span(0, 10), Span(5, 12), Span(10, 16)], ["a", "b", "b"]) == "b"
    assert longest([Span(0, 10), Span(5, 15)], ["a", "b"]) == "a"
