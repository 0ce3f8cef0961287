"""The harness that kills recipes, on toys that deserve it, and on the real one."""

import json
import os
import random
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from reliability import Campaign, Pass, Plan, shares, summary, table
from reliability_run import Attempt, Blow, Kind, Recipe, Unreliable
from reliability_tree import Finished, Tree, finished, problem_of, temporary
from safetensors.torch import save_file

pytestmark = pytest.mark.integration


@pytest.mark.slow
@pytest.mark.reliability
def test_a_hundred_kills(tmp_path):
    """Of the real recipe; how many, with which seed and in which folder may be chosen."""
    kills = int(os.environ.get("ADALTM_KILLS", "100"))
    folder = Path(os.environ.get("ADALTM_KILLS_FOLDER", tmp_path)).absolute()
    seed = int(os.environ.get("ADALTM_KILLS_SEED", "1"))
    folder.mkdir(parents=True, exist_ok=True)
    found = Campaign(folder, kills, seed).run()["summary"]
    assert found["kills"] >= kills
    assert len(found["by_stage"]) == 12
    if kills >= 24:
        assert all(row["kills"] > 0 for row in found["by_stage"].values())
        assert found["two_processes"] > 0
    assert found["failures"] == []


# --------------------------------------------------------------------------------- whole files
def _scp(path: Path) -> None:
    clip = (16000, np.arange(4000, dtype=np.int16))
    kaldiio.save_ark(str(path.with_name("x.ark")), {"a": clip, "b": clip}, scp=None)
    path.write_text("a exp/x.ark:2\n")


WRITERS = {
    "x.json": lambda path: path.write_text('{"a": [1, 2, 3]}\n'),
    "x.yaml": lambda path: path.write_text("a: [1, 2, 3]\n"),
    "x.safetensors": lambda path: save_file({"a": torch.ones(9)}, path),
    "1epoch.pth": lambda path: torch.save({"a": torch.ones(9)}, path),
    "x.wav": lambda path: soundfile.write(path, np.zeros(100), 16000),
    "x.png": lambda path: Image.new("RGB", (40, 40), "red").save(path),
    "x.html": lambda path: path.write_text("<html>text</html>\n"),
    "wav.scp": lambda path: path.write_text("a exp/x.wav\n"),
    "text": lambda path: path.write_text("a some words\nb more words\n"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_half_of_a_file_is_found(tmp_path, name):
    folder = tmp_path / "exp"
    folder.mkdir()
    WRITERS["x.wav"](folder / "x.wav")
    path = folder / name
    WRITERS[name](path)
    assert problem_of(path, tmp_path) == ""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    assert f"exp/{name} is no whole file" in problem_of(path, tmp_path)


def test_an_ark_that_ends_too_early_is_found(tmp_path):
    folder = tmp_path / "exp"
    folder.mkdir()
    kaldiio.save_ark(
        f"{folder}/x.ark", {name: np.ones((50, 4)) for name in "ab"}, f"{folder}/x.scp"
    )
    scp = folder / "x.scp"
    scp.write_text(scp.read_text().replace(f"{folder}", "exp"))
    assert problem_of(scp, tmp_path) == ""
    data = (folder / "x.ark").read_bytes()
    (folder / "x.ark").write_bytes(data[:-100])
    assert "exp/x.scp is no whole file" in problem_of(scp, tmp_path)


def _tree(folder: Path, text: str) -> Path:
    (folder / "data" / "train").mkdir(parents=True)
    (folder / "exp" / "log").mkdir(parents=True)
    (folder / "data" / "train" / "text").write_text(text)
    (folder / "exp" / "log" / "train.log").write_text(f"half of a line of {text}"[:9])
    return folder


def test_other_bytes_than_undisturbed_are_found(tmp_path):
    wanted, other = _tree(tmp_path / "a", "a one\n"), _tree(tmp_path / "b", "a two\n")
    assert Tree(wanted, wanted).problems() == []
    assert Tree(other, wanted).problems() == [
        "data/train/text has other bytes than in an undisturbed run"
    ]
    (wanted / "data" / "train" / "utt2spk").write_text("a s\n")
    assert Tree(other, wanted).missing() == ["data/train/utt2spk"]


def test_temporary_names_are_found(tmp_path):
    folder = _tree(tmp_path, "a one\n") / "exp"
    left = [".x.json.host-1.77.abc.tmp", ".latest.pth.tmp", ".checkpoint.pth.new", ".t.init_0a-1b"]
    for name in left:
        (folder / name).write_text("half")
    assert temporary(tmp_path) == sorted(f"exp/{name}" for name in left)
    assert Tree(tmp_path).problems() == []


# --------------------------------------------------------------------------------- finished work
def test_what_is_lost_or_done_again_is_told():
    before = Finished({"exp: a": {"exp/a": (1, 5)}}, {"exp": 2}, {"exp/2epoch.pth": (3, 7)})
    assert before.lost(before) == []
    assert before.lost(Finished({}, {"exp": 3}, {})) == ["exp: a is not finished any more"]
    now = Finished({"exp: a": {"exp/a": (2, 6)}}, {"exp": 1}, {"exp/2epoch.pth": (4, 8)})
    assert before.lost(now) == [
        "exp: a: exp/a was written again",
        "exp: 2 epochs were saved, 1 are left",
        "exp/2epoch.pth: that epoch was trained again",
    ]


def test_finished_reads_stamps_and_checkpoints(tmp_path):
    (tmp_path / "exp" / ".stamps").mkdir(parents=True)
    (tmp_path / "exp" / "a").write_text("x\n")
    (tmp_path / "exp" / ".stamps" / "t.json").write_text('{"outputs": {"exp/a": 2}}')
    (tmp_path / "exp" / ".stamps" / "u.started.json").write_text("{}")
    for name, epoch in (("checkpoint.pth", 2), ("checkpoint.prev.pth", 1)):
        torch.save({"reporter": {"epoch": epoch}}, tmp_path / "exp" / name)
    for epoch in (1, 2, 3):
        (tmp_path / "exp" / f"{epoch}epoch.pth").write_text("x")
    found = finished(tmp_path)
    assert list(found.items) == ["exp: t"]
    assert found.epochs == {"exp": 2}
    assert sorted(found.weights) == ["exp/1epoch.pth", "exp/2epoch.pth"]  # not what was not saved
    (tmp_path / "exp" / "checkpoint.pth").unlink()
    assert finished(tmp_path).epochs == {"exp": 1}


# --------------------------------------------------------------------------------- toys
# A recipe of one item, which takes a while, in a shell of its own as the real one.
TOY = """#!/usr/bin/env bash
set -eu
if [ -e exp/.stamps/a.json ]; then
    {again}
    echo "[1/1 export] exp: a: skip, done before"
    exit
fi
mkdir -p exp/.stamps
echo "[1/1 export] exp: a ..."
{work}
echo '{{"outputs": {{"exp/a.json": 9}}, "seconds": 2}}' >exp/.stamps/.a.json.tmp
mv exp/.stamps/.a.json.tmp exp/.stamps/a.json
echo "[1/1 export] exp: a: done in 2 s"
"""
BAD = "printf '[1,' >exp/a.json; sleep 1; echo ' 2]' >>exp/a.json"
GOOD = BAD.replace("a.json", ".a.json.tmp") + "; mv exp/.a.json.tmp exp/a.json"


def toy(folder: Path, work: str, again: str = ":") -> Recipe:
    """A recipe whose ``run.sh`` is `TOY`."""
    folder.mkdir()
    script = folder / "run.sh"
    script.write_text(TOY.format(work=work, again=again))
    script.chmod(0o755)
    return Recipe(folder, ["./run.sh"])


def killed(folder: Path, work: str, again: str = ":") -> dict:
    """A toy that is killed twice, half a second after it began."""
    reference = toy(folder / "reference", GOOD)
    assert reference.run("export").code == 0
    plan = Plan.of(reference)
    assert plan.stages == {"export": {"exp: a": 2.0}}
    found = Pass(toy(folder / "killed", work, again), plan, reference.folder, random.Random(1))
    for _ in range(2):
        attempt = found.recipe.run("export", Blow("export", 0.5, Kind.EVERYTHING, False))
        assert attempt.killed is Kind.EVERYTHING
        assert attempt.at_work == ["exp: a"]
        found._look()
    found.stage("export", 0)
    return found.end()


def test_a_toy_that_writes_atomically_passes(tmp_path):
    assert killed(tmp_path, GOOD) == {"compared": 0, "scratch": 0}


def test_a_toy_that_writes_in_place_is_caught(tmp_path):
    with pytest.raises(Unreliable, match=r"exp/a\.json is no whole file"):
        killed(tmp_path, BAD)


def test_a_toy_that_leaves_temporary_files_is_caught(tmp_path):
    with pytest.raises(Unreliable, match=r"exp/\.b\.\d+\.tmp is left"):
        killed(tmp_path, f"touch exp/.b.$$.tmp; {GOOD}")


def test_a_toy_that_does_it_again_is_caught(tmp_path):
    with pytest.raises(Unreliable, match="exp: a: exp/a.json was written again"):
        killed(tmp_path, GOOD, again="cp exp/a.json exp/.b; mv exp/.b exp/a.json")


def test_a_toy_that_fails_without_a_kill_is_caught(tmp_path):
    with pytest.raises(Unreliable, match="status 3 without a kill"):
        killed(tmp_path, f"echo >>exp/.runs; [ $(wc -l <exp/.runs) -lt 3 ] || exit 3; {GOOD}")


# --------------------------------------------------------------------------------- counting
def test_lines_tell_items():
    lines = [
        "[1/12 data] data/ci: data: skip, done before",
        "[4/12 base] exp/b/units: units ...",
        "[4/12 base] exp/b/units: units: done in 4.0 s",
        "[4/12 base] exp/b/pre: pretrain (continuing) ...",
        "error: something",
    ]
    attempt = Attempt(lines)
    assert attempt.titles("skip") == ["data/ci: data"]
    assert attempt.titles("...") == ["exp/b/units: units", "exp/b/pre: pretrain"]
    assert attempt.under_way() == ["exp/b/pre: pretrain"]


def test_kills_are_shared_evenly():
    stages = [f"stage{number}" for number in range(12)]
    found = shares(50, stages, random.Random(0))
    assert sum(found.values()) == 50
    assert set(found.values()) == {4, 5}
    assert list(found) == stages


def test_the_table_adds_up():
    record = {
        "at_once": False,
        "two": True,
        "settled": 3.0,
        "left": ["x"],
        "again": {"exp: a": True},
    }
    records = [
        {**record, "stage": "data", "kind": "EVERYTHING", "worked": 6.0},
        {
            **record,
            "stage": "merge",
            "kind": "RUNNER",
            "at_once": True,
            "refused": True,
            "worked": 8.0,
        },
        {**record, "stage": "merge", "kind": "PROGRAM", "left": [], "worked": 2.0},
    ]
    noted = {
        "undisturbed": {"data": 10.0, "merge": 20.0},
        "passes": [
            {
                "records": records,
                "seconds": {"data": 16.0, "merge": 30.0},
                "end": {"compared": 15, "scratch": 1},
            }
        ],
        "failures": [],
    }
    found = json.loads(json.dumps(summary(noted, seed=7)))
    assert found["by_stage"]["merge"]["went_on"] == 2
    lines = table(found).splitlines()
    assert lines[0].startswith("3 kills (seed 7) in 1 passes")
    assert lines[-3:] == [
        "|data|1|1|0|0|0|0|0|10|6, 6|",
        "|merge|2|0|0|0|1|0|1|20|5, 8|",
        "|all|3|1|0|0|1|0|1|30||",
    ]
