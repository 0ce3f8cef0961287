"""Names and words that others wrote, shown as they are: in the page, in tables, in LaTeX."""

import html.parser
import re
from pathlib import Path

import numpy as np
import pytest
import scoring_common
import soundfile

from espnet_adaltm.bin import report
from espnet_adaltm.data.datadir import write_data_dir
from espnet_adaltm.data.dump import format_data_dir
from espnet_adaltm.data.labels import Labels, save_labels
from espnet_adaltm.files import write_text
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.report.audit import parse_audit
from espnet_adaltm.scoring.exports import latex_text
from espnet_adaltm.scoring.tables import markdown

BAD = ("<script>alert(1)</script>", "a|b", "'\"><img/src/onerror>")
SAID = "</script><script>alert(2)</script> & <b>bold</b>"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Elements(html.parser.HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.handlers = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_reports_show_names_and_words_as_they_are(monkeypatch):
    labels = Labels(BAD)
    monkeypatch.setattr(scoring_common, "LABELS", labels)
    dump = scoring_common.make_dump(Path("dump/test"), size=24)
    save_labels("labels.json", labels)
    write_scp(dump / "text", dict.fromkeys(read_scp(dump / "text"), SAID))
    write_scp(dump / "utt2spk", {u: f"<i>{s}" for u, s in read_scp(dump / "utt2spk").items()})
    write_text("dump/audit.md", audit_of(BAD))
    scoring_common.make_system(Path("sys"), dump, wrong={0, 1, 2, 7}, deleted={1})
    monkeypatch.setattr("espnet_adaltm.bin.report.draw_all", lambda *_: {})
    report.main(
        ["--systems", "sys=sys", "--dumps", "dump/test", "--labels", "labels.json",
         "--out_dir", "out", "--recipe", "<em>x", "--note", "n", "--audio", "none",
         "--resamples", "20", "--plots", "false"]
    )  # fmt: skip
    page = Path("out/report.html").read_text()
    found = Elements(page)
    assert found.tags.count("script") == 1
    assert found.handlers == []
    assert {"img", "i", "u", "em"}.isdisjoint(found.tags)
    assert "alert(1)" in page
    assert "alert(2)" in page
    rows = [line for line in Path("out/RESULTS.md").read_text().splitlines() if line[:1] == "|"]
    assert not [row for row in rows if "<script" in row or "<img" in row or "<u>" in row]
    classes = next(row for row in rows if "alert(1)" in row)
    assert len(re.findall(r"(?<!\\)\|", classes)) == len(BAD) + 2


def audit_of(emotions):
    """``audit.md`` of a set with an utterance of each emotion."""
    soundfile.write("a.wav", 0.1 * np.random.default_rng(0).standard_normal(4000), 16_000)
    said = {f"<b>{index}": emotion for index, emotion in enumerate(emotions)}
    write_data_dir("data/x", dict.fromkeys(said, "a.wav"), dict.fromkeys(said, "s"), utt2emo=said)
    format_data_dir("data/x", "formatted/x")
    return Path("formatted/x/audit.md").read_text()


def test_audits_survive_the_way_into_the_page():
    text = audit_of(BAD)
    assert "<script" not in text
    assert "<b>" not in text
    sizes, emotions = parse_audit(text).tables
    assert sorted(row[0] for row in emotions[1:]) == sorted(BAD)
    assert {len(row) for row in [*sizes, *emotions]} == {2}
    findings = parse_audit(text).findings
    assert ("warning", "identical audio: 1: <b>0 = <b>1 = <b>2") in findings
    rare = ", ".join(f"{emotion} (1)" for emotion in sorted(BAD))
    assert ("warning", f"fewer than 5 utterances of an emotion: 3: {rare}") in findings


def test_cells_stay_cells():
    assert markdown(["a|b", "c"], [["<b>", "**1** ±2 \\*"], ["x\ny", "&"]]) == (
        "|a\\|b|c|\n|---|---:|\n|&lt;b&gt;|**1** ±2 \\*|\n|x y|&amp;|"
    )


def test_latex_is_text():
    entry = {"mean": 0.5, "std": None, "low": 0.4, "high": 0.6, "seeds": [0.5]}
    name = r"\input{/etc/passwd}%$&#_^~"
    result = {
        "systems": {name: {"seeds": [1], "sets": {"test}\\input{x": {"all": {"wa": entry}}}}},
        "bootstrap": {"level": 0.95},
    }
    text = latex_text(result, "re}cipe")
    assert r"\input" not in text.replace(r"% Generated", "").split("booktabs}.")[1]
    assert r"\textbackslash{}input\{/etc/passwd\}\%\$\&\#\_" in text
    assert r"\label{tab:re-cipe-test--input-x}" in text
