"""A memory and its ablations on the smallest corpus, through `run.sh`, from speech to tables."""

import json
import re
from pathlib import Path

import pytest
import test_pipeline

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BASELINES = ("memory", "memory_none", "memory_frozen")
# A base that is not pre-trained, and no merge: nothing here depends on them.
WORDS = (
    *("--base", "random", "--feats_type", "raw", "--merges", "", "--seeds", "1"),
    *("--asr_args", "--max_epoch 1", "--ser_args", "--max_epoch 1", "--merge_jobs", "2"),
    *("--baselines", " ".join(BASELINES), "--baseline_args", "memory: --max_epoch 1"),
    *("--score_args", "--resamples 100", "--stop_stage", "score"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A recipe run to its tables, and what it printed."""
    recipe = test_pipeline.make_recipe(tmp_path_factory.mktemp("memory"))
    return recipe / "exp/ci", test_pipeline.run(recipe, *WORDS)


def test_ablations_wait_for_the_memory_whose_weights_they_share(finished):
    exp, lines = finished
    told = [line for line in lines if "[9/12 baselines]" in line]
    ended = next(i for i, line in enumerate(told) if "/memory_random" in line and "done" in line)
    begun = [i for i, line in enumerate(told) if "history ..." in line]
    assert len(begun) == 2
    assert min(begun) > ended
    # One hash of what differs from the configurations (the tokens), one of the expert.
    folders = {path.name for path in exp.glob("memory*")}
    (end,) = {re.search(r"_random_\w{6}_raw_\w{6}_seed1$", name)[0] for name in folders}
    assert folders == {f"{name}{end}" for name in BASELINES}


def test_the_tables_have_the_memory_beside_its_ablations(finished):
    exp, _ = finished
    results = json.loads((exp / "results.json").read_text())
    (family,) = results["ablations"]["test"]
    assert [row["system"] for row in family["rows"]] == list(BASELINES)
    assert family["references"] == ["memory_none", "memory"]
    scores = {
        name: results["systems"][name]["sets"]["test"]["all"]["macro_f1"]["seeds"]
        for name in (*BASELINES, "ser_expert")
    }
    assert scores["memory_none"] == scores["ser_expert"]  # the host alone
    text = (exp / "RESULTS.md").read_text()
    assert "### memory: what the history is worth, on `test`" in text
    assert "|never updated|`memory_frozen`|1|" in text
    assert re.search(r"\|variant\|turn 1 \(\d+\)\|", text)
    assert "pseudo" not in text  # mini_espeak has dialogues


def test_a_second_run_skips_everything(finished):
    exp, _ = finished
    skipped, ran = test_pipeline.items(test_pipeline.run(exp.parents[1], *WORDS))
    assert ran == []
    assert len(skipped) > 15
