import csv
import io
import re

import pytest

from espnet_adaltm.scoring import exports

SCORES = {
    "seeds": [0.79, 0.81], "mean": 0.8, "std": 0.0141, "low": 0.78, "high": 0.82,
    "intervals": {"utterance": {"percentile": [0.78, 0.82], "bca": [0.77, 0.81]}},
}  # fmt: skip
PLAIN = {"seeds": [0.6], "mean": 0.6, "std": None, "low": 0.55, "high": 0.65}


@pytest.fixture
def result():
    """One good system of two seeds, and one of a single run, as an earlier version left it."""
    test = {
        "first": "my_best", "second": "100%", "view": "all", "metric": "wa", "difference": 0.2,
        "low": 0.1, "high": 0.3, "p": 0.0004, "p_holm": 0.0008, "p_seeds": 0.5,
    }  # fmt: skip
    return {
        "labels": ["a", "b"],
        "bootstrap": {"level": 0.95, "resamples": 10, "unit": "utterance"},
        "systems": {
            "my_best": {
                "seeds": [1, 2],
                "sets": {"test": {"all": {"wa": SCORES}, "word": {"1": {}}}},
            },
            "100%": {
                "seeds": [None],
                "sets": {"test": {"all": {"wa": PLAIN}, "voice": {"wa": PLAIN}}},
            },
        },
        "comparisons": {"test": [test, {**test, "view": "voice"}]},
        "reference": "my_best",
        "stars": {"test": {"wa": {"100%": "*"}}},
        "best": {"test": {"wa": "my_best"}},
    }  # fmt: skip


def test_spreadsheet_has_a_row_per_score(result):
    rows = list(csv.DictReader(io.StringIO(exports.csv_text(result))))
    assert [(row["system"], row["view"], row["metric"]) for row in rows] == [
        ("my_best", "all", "wa"),
        ("100%", "all", "wa"),
        ("100%", "voice", "wa"),
    ]
    first, second, third = rows
    assert float(first["mean"]) == 0.8
    assert float(first["low_utterance_bca"]) == 0.77
    assert (first["seeds"], first["best"], first["stars"]) == ("2", "1", "")
    assert (second["std"], second["low_utterance_bca"], second["best"]) == ("", "", "0")
    assert second["stars"] == "*"
    assert (third["best"], third["stars"]) == ("", "")


def test_tables_for_a_paper(result):
    text = exports.latex_text(result, "my_corpus")
    assert r"my\_best & 2 & \textbf{80.0}$_{\pm 1.4}$ {\scriptsize[78.0, 82.0]} \\" in text
    assert r"100\% & 1 & 60.0$^{*}$ {\scriptsize[55.0, 65.0]} \\" in text
    assert r"my\_best $-$ 100\% & WA & \textbf{+20.0}$^{***}$ & [+10.0, +30.0] &" in text
    assert text.count("+20.0") == 1  # tests of channels stay out
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert text.count("{") == text.count("}")
    for begun in ("table", "tabular"):
        assert text.count(rf"\begin{{{begun}}}") == text.count(rf"\end{{{begun}}}") == 2
    for table in re.findall(r"\\begin{tabular}{(\w+)}\n(.*?)\\end{tabular}", text, re.DOTALL):
        rows = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert rows
        assert {row.count(" & ") + 1 for row in rows} == {len(table[0])}
    assert r"\label{tab:my_corpus-test}" in text


def test_special_characters_are_escaped():
    assert exports.latex_escape(r"a_b%&#{}$~^\c") == (
        r"a\_b\%\&\#\{\}\$\textasciitilde{}\textasciicircum{}\textbackslash{}c"
    )


def test_an_earlier_result_has_no_more_columns(result):
    for key in ("reference", "stars", "best"):
        del result[key]
    scores = {key: value for key, value in SCORES.items() if key != "intervals"}
    result["systems"]["my_best"]["sets"]["test"]["all"]["wa"] = scores
    header = exports.csv_text(result).splitlines()[0]
    assert header == "set,view,system,metric,seeds,mean,std,low,high,stars,best"
    assert "differs from" not in exports.latex_text(result, "x")
