import json
from pathlib import Path

import pytest
from scoring_common import make_dump, make_system

from espnet_adaltm.bin import compare, report, score
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.scoring.comparison import changed
from espnet_adaltm.scoring.places import relative_place


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A folder with a test set, two systems of two seeds each, and their scores."""
    monkeypatch.chdir(tmp_path)
    dump = make_dump(Path("dump/test"), size=120)
    for name, wrong in (("good", 12), ("bad", 48)):
        for seed in (1, 2):
            system = make_system(
                Path(f"exp/{name}{seed}"), dump, set(range(wrong * seed)), set(range(wrong // 6))
            )
            options = {"lr": 0.1 if name == "good" else 0.2, "conf": {"depth": 3, "name": name}}
            write_json(system / "identity.json", {"options": {**options, "base": f"/x/{name}"}})
            arguments = f"--system {system} --name {name} --seed {seed} --dumps {dump} --labels"
            arguments += f" dump/labels.json --out {system}/results.json --resamples 200"
            score.main(arguments.split())
    return tmp_path


def _compare(capsys, *words):
    capsys.readouterr()
    compare.main([*words, "--resamples", "400"])
    return capsys.readouterr().out


def test_two_runs_are_paired_where_their_predictions_are(recipe, capsys, monkeypatch):
    monkeypatch.chdir("/")  # the results say where things are, seen from themselves
    out = _compare(capsys, f"{recipe}/exp/good1", f"{recipe}/exp/bad1", "--format", "json")
    found = json.loads(out)
    rows = {row["metric"]: row for row in found["differences"]}
    assert rows["wa"]["values"] == pytest.approx([0.9, 0.6])
    assert rows["wa"]["difference"] == pytest.approx(0.3)
    assert 0.2 < rows["wa"]["low"] < 0.3 < rows["wa"]["high"] < 0.4
    assert rows["wa"]["test"]["p"] == pytest.approx(2 / 401)
    assert rows["wa"]["test"]["p_holm"] == rows["wa"]["test"]["p"]
    assert rows["wa"]["test"]["mcnemar"][0]["only_first"] == 36
    assert {"macro_f1", "uar", "wer", "cer", "ece"} <= set(rows)
    assert found["options"] == {
        "good / bad": {"lr": [0.1, 0.2], "conf.name": ["good", "bad"]}  # and no places
    }
    assert found["remarks"] == []


def test_the_table_says_what_differs(recipe, capsys):
    out = _compare(capsys, "exp/good1/results.json", "exp/bad1")
    line = next(line for line in out.splitlines() if " WA " in line)
    assert line.split()[:8] == ["good", "-", "bad", "test", "WA", "90.0", "60.0", "+30.0"]
    assert line.endswith("**")
    assert "conf.name  good  bad" in " ".join(out.split()).replace(" ", "  ")
    assert "not paired" not in out


def test_without_predictions_recorded_numbers_are_compared(recipe, capsys):
    (recipe / "exp/bad1/decode/test").rename(recipe / "exp/bad1/decode/other")
    out = _compare(capsys, "exp/good1", "exp/bad1", "--format", "json", "--json", "found.json")
    found = json.loads(out)
    assert read_json("found.json") == found
    row = next(row for row in found["differences"] if row["metric"] == "wa")
    assert row["test"] is None
    assert row["low"] < row["difference"] < row["high"]
    assert "exp/bad1/decode/test of exp/bad1/results.json is not at hand" in found["remarks"][0]
    shown = _compare(capsys, "exp/good1", "exp/bad1")
    assert "~[" in shown
    assert "note: good and bad on test: not paired" in shown


def test_a_moved_test_set_is_named_by_the_user(recipe, capsys):
    (recipe / "dump").rename(recipe / "data2")
    out = _compare(capsys, "exp/good1", "exp/bad1")
    assert "not paired, the test set is not at hand: name it with --dumps" in out
    out = _compare(capsys, "exp/good1", "exp/bad1", "--dumps", "data2/test")
    assert "not paired" not in out


def test_a_pool_of_sets_is_compared_as_one(recipe, capsys):
    other = make_dump(Path("dump/more"), size=30)
    for name in ("wav.scp", "utt2emo", "utt2spk", "utt2channel", "text"):
        (other / name).write_text((other / name).read_text().replace("u0", "v0"))
    for name, wrong in (("good", 3), ("bad", 12)):
        system = make_system(Path(f"exp/{name}1"), other, set(range(wrong)), set())
        arguments = f"--system {system} --name {name} --seed 1 --dumps dump/test+more --labels"
        arguments += f" dump/labels.json --out {system}/results.json --resamples 200"
        score.main(arguments.split())
    found = json.loads(_compare(capsys, "exp/good1", "exp/bad1", "--format", "json"))
    row = next(row for row in found["differences"] if row["metric"] == "wa")
    assert (row["part"], row["difference"]) == ("test+more", pytest.approx((36 + 9) / 150))
    assert row["test"]["p"] == pytest.approx(2 / 401)
    assert found["remarks"] == []


def test_predictions_that_changed_are_told(recipe, capsys):
    recorded = read_json("exp/good1/results.json")
    recorded["sets"]["test"]["emotion"]["metrics"]["wa"]["value"] = 0.95
    write_json("exp/good1/results.json", recorded)
    out = _compare(capsys, "exp/good1", "exp/bad1")
    assert "wa of the predictions is 0.9000, exp/good1/results.json says 0.9500" in out


def _report(folder, *names):
    systems = " ".join(f"{name}:{seed}=exp/{name}{seed}" for name in names for seed in (1, 2))
    report.main(
        ["--systems", systems, "--dumps", "dump/test", "--labels", "dump/labels.json",
         "--out_dir", folder, "--plots", "false", "--html", "false", "--resamples", "200"]
    )  # fmt: skip


def test_two_reports_are_compared_system_by_system(recipe, capsys):
    _report("first", "good", "bad")
    make_system(Path("exp/bad2"), Path("dump/test"), set(range(12)), set())
    _report("second", "bad")
    out = _compare(capsys, "first", "second", "--format", "json")
    found = json.loads(out)
    rows = {row["metric"]: row for row in found["differences"]}
    # The files of the first are those of the second by now, and no longer give what it says.
    assert {row["first"] for row in rows.values()} == {"bad"}
    assert rows["wa"]["difference"] == 0
    assert any("wa of the predictions is 0.7500, first/results" in r for r in found["remarks"])
    assert found["only_first"] == ["system good"]


def test_what_cannot_be_compared_is_refused(recipe, capsys):
    _report("all", "good", "bad")
    write_json("other.json", {"labels": ["x"], "systems": {}})
    labels = read_json("exp/bad1/results.json")
    write_json("labels.json", {**labels, "labels": ["happy", "angry", "sad"]})
    make_dump(Path("dump/dev"), size=30)
    moved = {**labels, "sets": {"dev": labels["sets"]["test"]}}
    write_json("moved.json", moved)
    write_json("renamed.json", {**labels, "system": "strange"})
    for second, message in (
        ("exp/nothing", "exp/nothing does not exist: give the folder"),
        ("dump/labels.json", "holds no results of bin/score or bin/report"),
        ("labels.json", "label lists differ in their order"),
        ("moved.json", "nothing to compare; give results of the same test sets"),
        ("renamed.json", "nothing to compare"),
    ):
        first = "all" if second == "renamed.json" else "exp/good1"
        with pytest.raises(SystemExit) as stopped:
            compare.main([first, second])
        assert stopped.value.code == 1
        assert message in capsys.readouterr().err, second
    with pytest.raises(SystemExit):
        compare.main(["exp/good1", "exp/bad1", "--dumps", "exp"])
    assert "exp is no prepared test set" in capsys.readouterr().err


def test_options_fall_back_to_what_espnet_writes(tmp_path):
    for name, rate in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"lr: {rate}\nseed: 1\noutput_dir: {name}\n")
        write_json(tmp_path / name / "expert.json", {"kind": "ser", "base_sha256": name})
    assert changed(tmp_path / "a", tmp_path / "b") == {"lr": (1, 2), "base_sha256": ("a", "b")}
    assert changed(tmp_path / "a", None) == {}


def test_places_of_a_machine_are_not_recorded(recipe, tmp_path):
    assert relative_place(Path("exp/a"), Path("exp")) == "a"
    assert relative_place(Path("dump/test"), Path("exp/a")) == "../../dump/test"
    assert relative_place(tmp_path, Path("exp")) is None
    assert relative_place(Path("exp"), tmp_path) is None
    assert str(tmp_path) not in Path("exp/good1/results.json").read_text()
