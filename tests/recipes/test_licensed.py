"""The recipes of licensed corpora from end to end, on miniatures, through the run.sh of a user."""

import csv
import json

import pytest
from licensed_common import make_recipe, ran, run

from espnet_adaltm.data.corpora.miniature_iemocap import write_iemocap
from espnet_adaltm.data.corpora.miniature_msp import write_msp_podcast
from espnet_adaltm.kaldi import read_scp

pytestmark = [pytest.mark.integration, pytest.mark.slow]

POOL = "test1+test2"


def test_msp_podcast(tmp_path):
    """Release 2.0 with every fault: official sets, both tests and their pool, files to submit."""
    write_msp_podcast(tmp_path / "corpus", "2.0", 100, test3=3)
    recipe = make_recipe(tmp_path, "msp_podcast")
    words = ("--msp_root", tmp_path / "corpus", "--msp_version", "2.0", "--feats_type", "raw")
    words += ("--stop_stage", "score", "--test3", "true")
    words += ("--report_args", "--audio none --plots false")
    told = ran(recipe, *words)
    assert "Tables: ./RESULTS.md" in told
    sizes = {
        name: len(read_scp(recipe / "dump" / name / "ser_shape")) for name in ("test1", "test2")
    }
    results = json.loads((recipe / "results.json").read_text())
    assert results["labels"] == [
        "anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise",
    ]  # fmt: skip
    static = results["systems"]["static"]["sets"]
    assert list(static) == ["test1", "test2", POOL]
    right = {name: static[name]["all"]["wa"]["mean"] for name in static}
    pooled = sum(right[name] * size for name, size in sizes.items()) / sum(sizes.values())
    assert right[POOL] == pytest.approx(pooled)
    assert "wer" in static[POOL]["all"]
    document = (recipe / "RESULTS.md").read_text()
    assert f"## Set `{POOL}`" in document
    comparison = (recipe / "COMPARISON.md").read_text()
    assert "|dual, static global lambda = 0.5|static|1|38.30 ±0.61|" in comparison
    labels = json.loads((recipe / "data" / "labels.json").read_text())
    assert labels["codes"]["U"] == "surprise"
    assert "OX left out" in labels["policy"]
    assert "test3" not in labels["counts"]
    submissions = sorted(path.name for path in (recipe / "submissions" / "test3").iterdir())
    assert submissions == ["ser_expert.csv", "static_seed1.csv"]
    with open(recipe / "submissions" / "test3" / submissions[1], newline="") as handle:
        rows = list(csv.reader(handle))
    assert [row[0] for row in rows[1:]] == [f"MSP-PODCAST_test3_{n:04d}.wav" for n in (1, 2, 3)]
    assert {row[1] for row in rows[1:]} <= set("ACDFHNSU")
    audit = (recipe / "dump" / "audit.md").read_text()
    assert "train and test2 share 1 speaker(s): spk1" in audit
    page = recipe / "report.html"
    assert not page.exists() or "data:audio" not in page.read_text()
    again = ran(recipe, *words)
    assert ": done in" not in again


def test_msp_podcast_refuses_labels_of_another_release(tmp_path):
    write_msp_podcast(tmp_path / "corpus", "1.8", 60, test3=0, linked=True)
    recipe = make_recipe(tmp_path, "msp_podcast")
    labels = tmp_path / "corpus" / "Labels" / "labels_concensus.csv"
    lines = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join(lines[:40]))
    words = ("--msp_root", tmp_path / "corpus", "--msp_version", "1.11", "--stop_stage", "data")
    done = run(recipe, *words, "--test3", "false")
    assert done.returncode != 0
    assert "belongs to another release" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_iemocap(tmp_path):
    """One of the five folds: its sets, its systems, and the report over folds."""
    rows = write_iemocap(tmp_path / "corpus")
    recipe = make_recipe(tmp_path, "iemocap")
    words = ("--iemocap_root", tmp_path / "corpus", "--expect_utts", "80", "--stop_stage", "score")
    words += ("--only_folds", "3", "--merges", "")
    told = ran(recipe, *words)
    assert "mean over 1 folds" in told
    results = json.loads((recipe / "exp" / "5" / "results.json").read_text())
    assert results["folds"] == ["fold3"]
    assert 0 <= results["systems"]["ser_expert"]["wa"]["mean"] <= 1
    assert "wer" in results["systems"]["asr_expert"]
    fold = recipe / "dump" / "5" / "fold3"
    assert set(read_scp(fold / "test" / "utt2spk").values()) == {"Ses03F", "Ses03M"}
    assert set(read_scp(fold / "dev" / "utt2spk").values()) == {"Ses04F"}
    assert len(set(read_scp(fold / "train" / "utt2spk").values())) == 7
    decoded = recipe / "exp" / "5" / "fold3"
    (ser,) = decoded.glob("ser_expert_*")
    tested = {r.utt for r in rows if r.session == 3} & read_scp(fold / "test" / "utt2emo").keys()
    assert read_scp(ser / "decode" / "test" / "utt2emo").keys() == tested
    labels = json.loads((recipe / "data" / "5" / "fold3" / "labels.json").read_text())
    assert labels["labels"] == ["angry", "happy", "neutral", "sad"]
    assert sum(sum(counts.values()) for counts in labels["counts"].values()) == 80
