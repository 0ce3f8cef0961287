"""Recipes of corpora that are given under a licence, on miniatures, with tiny models."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONF = "../../mini_espeak/adaltm1/conf/ci"
# Untrained base, one epoch each: what is learned is tested elsewhere.
TINY = (
    "--base", "random", "--base_config", f"{CONF}/train_base.yaml",
    "--asr_config", f"{CONF}/train_asr.yaml", "--asr_args", "--max_epoch 1",
    "--ser_config", f"{CONF}/train_ser.yaml", "--ser_args", "--max_epoch 1",
    "--merge_config", f"{CONF}/train_merge.yaml", "--merge_args", "--max_epoch 1",
    "--token_type", "char", "--n_tokens", "0", "--merges", "static", "--seeds", "1",
    "--baselines", "", "--nj", "2",
)  # fmt: skip


def make_recipe(folder: Path, corpus: str) -> Path:
    """A copy of a recipe that shares nothing but code with the checkout."""
    target = folder / "egs" / corpus / "adaltm1"
    left_out = shutil.ignore_patterns("data", "dump", "exp", "RESULTS.md", "plots")
    shutil.copytree(ROOT / "egs" / corpus / "adaltm1", target, ignore=left_out)
    ci = folder / "egs" / "mini_espeak" / "adaltm1" / "conf"
    shutil.copytree(ROOT / "egs" / "mini_espeak" / "adaltm1" / "conf" / "ci", ci / "ci")
    (folder / "conf").symlink_to(ROOT / "conf")
    return target


def run(recipe: Path, *words: str) -> subprocess.CompletedProcess:
    """Run its run.sh with tiny models."""
    environment = {**os.environ, "ADALTM_ROOT": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["./run.sh", *TINY, *map(str, words)]
    return subprocess.run(command, cwd=recipe, env=environment, capture_output=True, text=True)


def ran(recipe: Path, *words: str) -> str:
    """The same, to its end: what it printed."""
    done = run(recipe, *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
