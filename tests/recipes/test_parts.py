"""Recipes that are several runs of adaltm.sh: what they tell of all of it before and after."""

import os
import re
import subprocess
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[2] / "egs" / "TEMPLATE" / "adaltm1"
PARTS = r"""
set -euo pipefail
. utils/parse_options.sh
option out "" "folder"
option dry_run false ""
option status false ""
parse_options "$@"
. ../../../tools/activate_python.sh
export PYTHONPATH=../../..
. utils/parts.sh
part own_item "1/2 one" a "${out}/a" --inputs "${out}/conf" --outputs "${out}/a/x" \
    -- cp "${out}/conf" "${out}/a/x"
part own_item "2/2 two" b "${out}/b" --inputs "${out}/a/x@stage 1 (one)" --outputs "${out}/b/x" \
    -- cp "${out}/a/x" "${out}/b/x"
exit "${code}"
"""


def parts(out: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", PARTS, "parts", "--out", str(out), *words],
        cwd=TEMPLATE, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(out)},
    )  # fmt: skip


def test_a_part_follows_from_the_parts_before(tmp_path):
    (tmp_path / "conf").write_text("one")
    told = parts(tmp_path, "--dry_run")
    assert told.stdout.splitlines() == [
        f"[1/2 one] {tmp_path}/a: a: run (first time)",
        f"[2/2 two] {tmp_path}/b: b: run (first time, follows from 1 one ({tmp_path}/a: a))",
    ]
    assert (told.returncode, told.stderr) == (0, "")
    assert parts(tmp_path, "--status").returncode == 3
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]  # told, nothing done or left
    assert parts(tmp_path).returncode == 0
    assert (tmp_path / "b" / "x").read_text() == "one"
    assert parts(tmp_path, "--status").returncode == 0
    assert parts(tmp_path).stdout.count("skip, done before") == 2
    (tmp_path / "conf").write_text("two")
    assert parts(tmp_path, "--dry_run").stdout.splitlines() == [
        f"[1/2 one] {tmp_path}/a: a: run (changed: {tmp_path}/conf)",
        f"[2/2 two] {tmp_path}/b: b: run (follows from 1 one ({tmp_path}/a: a))",
    ]
    stale = parts(tmp_path, "--status")
    assert stale.returncode == 3
    assert stale.stdout.count("stale           0/1") == 2
    assert "follows from 1 one" in stale.stdout


def test_a_part_that_fails_ends_the_run(tmp_path):
    failed = parts(tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.count("error: ") == 1
    assert f"{tmp_path}/conf does not exist" in failed.stderr
    told = parts(tmp_path, "--dry_run")  # goes on to the end
    assert "cannot run" in told.stdout
    assert "[2/2 two]" in told.stdout


RECIPES = {
    "iemocap": ("--iemocap_root", "none", "--only_folds", "2 5", "--stop_stage", "score"),
    "msp_podcast": (
        "--msp_root", "none", "--msp_version", "1.12", "--ood_asr_expert", "me/words",
        "--stop_stage", "score", "--merges", "static", "--baselines", "",
    ),
}  # fmt: skip
LAST = {
    "iemocap": "exp/5: report_folds: run (first time, follows from 11 score (exp/5/fold5/report_",
    "msp_podcast": "exp/compare_ood: compare_ood: run (first time, follows from 11 score (exp/rep",
}


@pytest.mark.parametrize("corpus", RECIPES)
def test_before_the_first_run_every_part_can_run(corpus):
    """Without a corpus: what later parts need, earlier ones make."""
    folder = TEMPLATE.parents[1] / corpus / "adaltm1"
    before = set(folder.iterdir())
    words = ["./run.sh", *RECIPES[corpus], "--dry_run"]
    told = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, "")
    assert "cannot run" not in told.stdout
    assert LAST[corpus] in told.stdout.splitlines()[-1]
    assert set(folder.iterdir()) == before
    lines = [line for line in told.stdout.splitlines() if line.startswith("[")]
    if corpus == "iemocap":
        split = [line for line in lines if "follows from 2 audio (dump: folds_5)" in line]
        assert re.findall(r"data/5/(fold\d): labels", " ".join(split)) == ["fold2", "fold5"]
    else:
        assert sum(line.endswith(": as above") for line in lines) > 10
        assert "[8/12 merge] exp/merge_adaltm_ood_" in told.stdout
