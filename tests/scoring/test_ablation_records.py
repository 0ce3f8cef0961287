"""Points of an ablation: what is kept of them, and compared with."""

import shutil
import sys

import pytest
from ablation_common import CONFIG, FAKE, run, runs_of, runs_table

from espnet_adaltm.files import read_json, write_json


def test_a_point_keeps_the_environment_of_its_results(recipe, monkeypatch):
    runs_of(monkeypatch, date="2026-01-02", **{"git hash": "aaa"})
    run("--axes", "rate")
    assert runs_table() == [("2026-01-02", "aaa", "2", "`rate/0.01` `rate/0.1`")]
    # What a recipe skips, or ends alike, keeps its day; what has other results gets a new one.
    runs_of(monkeypatch, date="2026-01-03", **{"git hash": "bbb"})
    earlier = {"results": "of others", "environment": {"date": "2026-01-01"}}
    write_json(recipe / "exp/ablations/rate/0.1/environment.json", earlier)
    run()
    second = ("2026-01-03", "bbb", "3", "`rate/0.1` `size/small` `size/large`")
    assert runs_table() == [("2026-01-02", "aaa", "1", "`rate/0.01`"), second]
    assert "git hash: `bbb`" in (recipe / "ABLATIONS.md").read_text()  # of the document
    points = read_json(recipe / "ablations.json")["axes"]["rate"]["points"]
    assert points["0.01"]["environment"] == {
        "torch": "2", "date": "2026-01-02", "git hash": "aaa",
    }  # fmt: skip
    # Results that somebody else wrote into the folder are of unknown origin.
    path = recipe / "exp/ablations/rate/0.01/results.json"
    write_json(path, {**read_json(path), "more": 1})
    run("--report_only")
    unknown = ("not recorded", "not recorded", "1", "`rate/0.01`")
    assert runs_table()[1] == unknown
    write_json(recipe / "exp/ablations/rate/0.01/environment.json", {})
    assert run("--report_only") == 0
    assert runs_table()[1] == unknown


def test_recorded_points_stand_in_for_runs_that_are_gone(recipe, capsys, monkeypatch):
    runs_of(monkeypatch, date="2026-01-02", **{"git hash": "aaa"})
    run()
    whole = (recipe / "ablations.json").read_bytes()
    text = (recipe / "ABLATIONS.md").read_text()
    (recipe / "before.json").write_bytes(whole)
    shutil.rmtree(recipe / "exp/ablations")
    for recorded in ((), ("--recorded", "before.json")):
        assert run("--report_only", *recorded) == 0
        assert (recipe / "ablations.json").read_bytes() == whole
        assert (recipe / "ABLATIONS.md").read_text() == text
    # One run anew, from which the others differ in nothing but the day.
    runs_of(monkeypatch, date="2026-01-03", **{"git hash": "bbb"})
    assert run("--points", "rate/0.1", *recorded) == 0
    assert "4 of 4 points" in capsys.readouterr().out
    assert runs_table() == [
        ("2026-01-02", "aaa", "3", "`rate/0.01` `size/small` `size/large`"),
        ("2026-01-03", "bbb", "1", "`rate/0.1`"),
    ]
    # A run that fails takes nothing away.
    (recipe / "broken").touch()
    assert run("--points", "rate/0.1") == 1
    assert "4 of 4 points" in capsys.readouterr().out
    assert runs_table()[1][0] == "2026-01-03"
    (recipe / "broken").unlink()
    assert run("--points", "rate/0.1") == 0
    # A file of the time before days were recorded.
    found = read_json(recipe / "before.json")
    del found["axes"]["rate"]["points"]["0.01"]["environment"]
    write_json(recipe / "before.json", found)
    assert run("--report_only", *recorded) == 0
    assert runs_table()[2] == ("not recorded", "not recorded", "1", "`rate/0.01`")
    # What changed in the configuration since is not run.
    text = (recipe / "ablations.yaml").read_text()
    shutil.rmtree(recipe / "exp/ablations")
    (recipe / "ablations.yaml").write_text(text.replace("--resamples 400", "--resamples 500"))
    assert run("--report_only", *recorded) == 0
    assert "0 of 4 points" in capsys.readouterr().out


ENTROPY = "objective: entropy\nhead_init: ser_expert\ntrain_head: false\n"
CHANGED = "Not in the tables:\n\n- `0.1`: its row fast has changed since: run it again"


def test_points_of_rows_that_say_something_else_by_now_are_left_out(recipe, capsys):
    run("--axes", "rate")
    row, record = recipe / "rows/fast.yaml", recipe / "exp/ablations/rate/0.1/point.json"
    # What is said otherwise is said still.
    row.write_text("# Ours.\nname: fast\ntrainable: true\ncoef_lr: 0.1\n")
    assert run("--report_only") == 0
    assert "2 of 4 points" in capsys.readouterr().out
    # Neither the run nor its record, whether that tells what the row was or not, is of this row.
    told = read_json(recipe / "ablations.json")
    silent = read_json(recipe / "ablations.json")
    del silent["axes"]["rate"]["points"]["0.1"]["row_hashes"]
    row.write_text(ENTROPY)
    for found in (told, silent):
        write_json(recipe / "ablations.json", found)
        assert run("--axes", "size") == 0
        assert "3 of 4 points" in capsys.readouterr().out
        assert CHANGED in (recipe / "ABLATIONS.md").read_text()
    assert run("--points", "rate/0.1") == 0
    assert "4 of 4 points" in capsys.readouterr().out
    # The same holds where only the record is left; one that does not tell counts as it is.
    shutil.move(recipe / "exp", recipe / "gone")
    row.write_text("coef_lr: 0.1\n")
    write_json(recipe / "before.json", silent)
    for count, recorded in ((3, "ablations.json"), (2, "before.json")):
        assert run("--report_only", "--recorded", recorded) == 0
        assert f"{count} of 4 points" in capsys.readouterr().out
    # A record of the row as it is replaces a run of another one.
    shutil.move(recipe / "gone", recipe / "exp")
    write_json(recipe / "before.json", told)
    assert run("--report_only", "--recorded", "before.json") == 0
    assert "4 of 4 points" in capsys.readouterr().out
    # Runs of the time before rows were recorded.
    write_json(record, {"command": read_json(record)["command"], "code": 0})
    assert run("--report_only", "--recorded", "none") == 0
    assert "4 of 4 points" in capsys.readouterr().out
    assert "row_hashes" not in read_json(recipe / "ablations.json")["axes"]["rate"]["points"]["0.1"]


def test_references_of_a_run_are_rows_too(recipe):
    (recipe / "rows/even.yaml").write_text("init: 0.5\n")
    (recipe / "ablations.yaml").write_text(CONFIG.replace("static]", "rows/even.yaml]"))
    run("--axes", "rate")
    (recipe / "rows/even.yaml").write_text("init: 0.3\n")
    assert run("--report_only") == 0
    text = (recipe / "ABLATIONS.md").read_text()
    assert "- `0.01`: its row even has changed since" in text
    assert "- `0.1`: its row even has changed since" in text


def test_points_of_another_command_are_neither_mixed_in_nor_lost(recipe, capsys):
    run()
    whole = (recipe / "ablations.json").read_bytes()
    other = (sys.executable, "run.py", "--size", "full")
    capsys.readouterr()
    assert run("--axes", "rate", command=other) == 1
    captured = capsys.readouterr()
    assert "ablations.json holds 4 points of `/path/to/python" in captured.err
    assert "run.py --size ci`: keep them with --recorded ablations.json" in captured.err
    assert captured.out == ""  # told before anything runs
    assert (recipe / "ablations.json").read_bytes() == whole
    shutil.rmtree(recipe / "exp")
    for recorded, count in (("ablations.json", 4), ("none", 2)):
        assert run("--axes", "rate", "--recorded", recorded, command=other) == 0
        assert f"{count} of 4 points" in capsys.readouterr().out


def test_experts_are_references_without_being_asked_for(recipe):
    text = CONFIG.replace("static]", "static, ser_expert]")
    (recipe / "ablations.yaml").write_text(text)
    every = '["ser_expert", *(os.path.basename'
    (recipe / "run.py").write_text(
        FAKE.replace("[os.path.basename", every).replace("split()]", "split())]")
    )
    assert run() == 0
    log = (recipe / "exp/ablations/rate/0.1/run.log").read_text().splitlines()
    assert "--merges 'ser_only static rows/fast.yaml'" in log[0]
    assert "--compare 'fast:ser_only fast:static'" in log[0]
    text = (recipe / "ABLATIONS.md").read_text()
    assert "|minus static|minus ser_expert|" in text
    row = next(line for line in text.splitlines() if line.startswith("|0.1|fast|"))
    assert row.split("|")[-2].startswith("-6.0 ")  # 4 letters minus 10
    assert "|0.01|*ser_expert*|2|10.0 " in text
    # Records without the expert: nothing to compare with, and nothing lost.
    found = read_json(recipe / "ablations.json")
    found["references"].remove("ser_expert")
    for axis in found["axes"].values():
        kept = axis["tests"]["test"]
        axis["tests"]["test"] = [test for test in kept if test["second"] != "ser_expert"]
        for point in axis["points"].values():
            del point["systems"]["ser_expert"]
    write_json(recipe / "ablations.json", found)
    shutil.rmtree(recipe / "exp")
    assert run("--points", "rate/0.1") == 0
    text = (recipe / "ABLATIONS.md").read_text()
    rows = [
        line.split("|")[-2] for line in text.splitlines() if "|fast|" in line or "|adaltm|" in line
    ]
    assert rows[0] == "-"
    assert rows[1].startswith("-6.0 ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "before.json"),
        ("{}", "before.json is no ablations.json: KeyError 'references'"),
        ("[]", "before.json"),
        ('{"references": ["ser_only", "static"], "axes": 3}', "before.json is no ablations.json"),
        ('{"references": ["static"]}', r"compares with ['static'], the configuration with"),
    ],
)
def test_other_files_are_no_record(recipe, capsys, content, message):
    if content is not None:
        (recipe / "before.json").write_text(content)
    assert run("--recorded", "before.json") == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "rate" not in captured.out  # told before anything runs
    assert not (recipe / "ABLATIONS.md").exists()
