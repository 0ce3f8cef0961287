import logging
import re
import sys

import pytest

from espnet_adaltm.progress import progress


@pytest.fixture
def no_terminal(monkeypatch, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO)
    return caplog


def test_every_item_passes_in_order(no_terminal):
    assert list(progress(iter("abc"), "x")) == ["a", "b", "c"]


@pytest.mark.parametrize(("items", "lines"), [(1, 1), (7, 7), (10, 10), (100, 10), (1005, 11)])
def test_about_ten_lines_and_the_last_says_all(no_terminal, items, lines):
    assert sum(1 for _ in progress(range(items), "decode")) == items
    assert len(no_terminal.messages) == lines
    assert no_terminal.messages[-1].startswith(f"decode: {items}/{items} utt")


def test_time_left(no_terminal, monkeypatch):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr("espnet_adaltm.progress.time.monotonic", lambda: next(clock))
    list(progress(range(4), "x", unit="file"))
    assert no_terminal.messages[0] == "x: 1/4 file, 3 s, 9 s left"
    assert no_terminal.messages[-1] == "x: 4/4 file, 12 s, 0 s left"


def test_unknown_total(no_terminal):
    list(progress(iter(range(1000)), "x"))
    assert [re.match(r"x: (\d+)/\? utt, \d+ s$", m)[1] for m in no_terminal.messages] == ["1000"]


def test_empty(no_terminal):
    assert list(progress([], "x")) == []
    assert no_terminal.messages == []


def test_a_bar_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress(iter("abc"), "words", total=3)) == ["a", "b", "c"]
    assert "words: 100%" in capsys.readouterr().err
