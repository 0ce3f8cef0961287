import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_common import AUDIT, HOSTILE, make_page, make_scene, without

from espnet_adaltm.bin import report
from espnet_adaltm.report.audit import parse_audit, read_audit
from espnet_adaltm.report.utterances import audio_uri

VOID = {"meta", "link", "br", "img", "input", "hr"}
NEW = ("sets", "stars", "best", "reference", "confusions", "reliability", "speakers",
       "coefficients", "training", "folders")  # fmt: skip


class _Page(HTMLParser):
    """Tags that do not match, addresses, ids, and the text of elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return make_page(tmp_path_factory.mktemp("page"))


def test_page_is_sound_and_needs_nothing_else(page):
    text = page.read_text()
    found = _Page(text)
    assert (found.wrong, found.open) == ([], [])
    assert len(set(found.ids)) == len(found.ids)
    outside = [a for a in found.addresses if not a.startswith(("#", "data:audio/"))]
    assert outside == []
    assert {a[1:] for a in found.addresses if a.startswith("#")} <= set(found.ids)
    assert not re.search(r"url\(|@import|https?://", text)
    assert str(page.parent.parent) not in text


def test_only_its_own_script_may_run(page):
    text = page.read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert "img" not in _Page(text).tags
    assert HOSTILE not in text
    assert "&lt;img src=x onerror=" in text
    assert "<h1>Results of my &lt;corpus&gt;</h1>" in text


def test_page_shows_everything_there_is(page):
    text = page.read_text()
    sections = re.findall(r'<section id="([^"]+)"', text)
    assert sections == [
        "test-table", "test-tests", "test-words", "test-emotions", "test-speakers",
        "test-calibration", "test-examples", "coefficients", "training", "audit", "about",
    ]  # fmt: skip
    for expected in (
        "A toy &amp; no more.",
        "./run.sh --size &#39;a b&#39;",
        "espnet version",
        "87.5",  # good: the mean of 0.9 and 0.85
        '<span class="ends" data-kind="speaker-bca" hidden>',
        "On the Pareto front (dashed line), where nothing is better in both: good.",
        "angry taken for happy: 20 of 160",  # good: 8 + 12 of 80 and 80
        "identical audio: 1: u000 = u001",
        "McNemar",
        "block0: 0.150 (0.100 to 0.200)",
        "One dot per speaker (6)",
        "2 seeds together",
    ):
        assert expected in text, expected


def test_audio_of_files_only(page):
    """The first two utterances have sound; the others are commands, which nobody runs."""
    text = page.read_text()
    assert (
        len(re.findall(r'<audio controls preload="none" src="data:audio/mpeg;base64,', text)) == 2
    )
    assert not (page.parent.parent / "ran").exists()
    assert audio_uri("cat x.wav |") is None
    assert audio_uri("/nowhere/x.wav") is None


def test_sound_and_utterances_can_be_left_out(tmp_path, capsys):
    arguments = make_scene(tmp_path)
    report.main(arguments)
    assert "2 utterances of the corpus can be heard in it" in capsys.readouterr().out
    report.main([*arguments, "--audio", "none"])
    assert "can be heard" not in capsys.readouterr().out
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<audio" not in text
    assert "Most confused utterances" in text
    report.main([*arguments, "--confused", "0"])
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Most confused utterances" not in text
    assert "&lt;img" not in text
    with pytest.raises(SystemExit):
        report.main([*arguments, "--confused", "21"])
    (tmp_path / "out" / "report.html").unlink()
    report.main([*arguments, "--html", "false"])
    assert not (tmp_path / "out" / "report.html").exists()


def test_page_from_the_results_of_an_earlier_run(tmp_path, page):
    results = tmp_path / "results.json"
    shutil.copy(page.parent / "results.json", results)
    arguments = ["--results", str(results), "--out_dir", str(tmp_path), "--recipe", "x"]
    report.main(arguments)
    text = (tmp_path / "report.html").read_text()
    for section in ("test-table", "test-emotions", "coefficients", "training", "about"):
        assert f'<section id="{section}"' in text
    for section in ("test-examples", "audit"):
        assert f'<section id="{section}"' not in text
    without(results, *NEW)
    value = json.loads(results.read_text())
    for system in value["systems"].values():
        for views in system["sets"].values():
            for entry in views["all"].values():
                entry.pop("intervals", None)
    results.write_text(json.dumps(value))
    report.main(arguments)
    text = (tmp_path / "report.html").read_text()
    assert re.findall(r'<section id="([^"]+)"', text) == [
        "test-table", "test-tests", "test-words", "about",
    ]  # fmt: skip
    assert "<select" not in text
    found = _Page(text)
    assert (found.wrong, found.open) == ([], [])


def test_results_and_systems_exclude_each_other(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main(["--results", "x", "--systems", "a=b"])
    with pytest.raises(SystemExit):
        report.main([])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        report.main(["--systems", "a=b"])
    assert stopped.value.code == 1
    assert "needs --dumps and --labels" in capsys.readouterr().err


def test_the_same_page_twice(tmp_path):
    first = make_page(tmp_path).read_bytes()
    assert make_page(tmp_path).read_bytes() == first


def test_several_sets_have_sections_each(tmp_path, page):
    results = tmp_path / "results.json"
    value = json.loads((page.parent / "results.json").read_text())
    for system in value["systems"].values():
        system["sets"]["test2"] = system["sets"]["test"]
    for key in ("comparisons", "all_pairs", "confusions", "speakers", "reliability", "sets"):
        value[key]["test2"] = value[key]["test"]
    results.write_text(json.dumps(value))
    report.main(["--results", str(results), "--out_dir", str(tmp_path)])
    text = (tmp_path / "report.html").read_text()
    found = _Page(text)
    assert len(set(found.ids)) == len(found.ids)
    assert '<a href="#test2-emotions">test2: Emotions</a>' in text


def test_audit_in_pieces(tmp_path):
    found = parse_audit(AUDIT)
    assert found.tables == [
        [["", "train", "test"], ["utterances", "6000", "240"]],
        [["emotion", "train", "test"], ["angry", "746 (24.9%)", "80 (33.3%)"]],
    ]
    assert found.findings == [
        ("warning", "identical audio: 1: u000 = u001"),
        ("info", "train: utterances without emotion: 3000"),
    ]
    assert parse_audit("Nothing to remark.").findings == []
    (tmp_path / "test").mkdir()
    assert read_audit(tmp_path / "test") is None
    (tmp_path / "test" / "audit.md").write_text("own")
    assert read_audit(tmp_path / "test") == "own"
    (tmp_path / "audit.md").write_text("all")
    assert read_audit(tmp_path / "test") == "all"


def test_what_the_pipeline_writes_as_audit_is_understood(tmp_path):
    from espnet_adaltm.data.audit import Finding, render

    text = render("Audit", [], [Finding("info", "a: b"), Finding("error", "c")])
    assert parse_audit(text).findings == [("error", "c"), ("info", "a: b")]
    recorded = Path(report.__file__).parents[2] / "egs/mini_espeak/adaltm1/results.json"
    if recorded.is_file():  # whatever version wrote it
        report.main(["--results", str(recorded), "--out_dir", str(tmp_path)])
        assert _Page((tmp_path / "report.html").read_text()).wrong == []
