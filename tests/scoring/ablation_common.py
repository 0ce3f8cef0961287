"""A recipe that takes no time, for the tests of ablations."""

import re
import sys
from pathlib import Path

from espnet_adaltm.bin import ablations as program

CONFIG = """
references: [ser_only, static]
options: {score_args: --resamples 400, note: ""}
axes:
  rate:
    title: Learning rate
    about: Of lambda.
    label: rate
    scale: log
    points:
      0.01: {}
      0.1: {rows: [rows/fast.yaml]}
  size:
    rows: [adaltm, global]
    options: {n_tokens: 60}
    points:
      small: {options: {ser_args: --lr 1 --x 2, force: false}}
      large: {}
"""
# As a recipe: every score is the length of its system's name; `fast` fails while `broken` exists.
FAKE = """
import itertools, json, os, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
names = [os.path.basename(w).removesuffix(".yaml") for w in words["--merges"].split()]
print("running", *names)
if os.path.exists("broken") and "fast" in names:
    sys.exit("the disk is full")
scores = {name: {"seeds": [len(name) / 100] * 2, "mean": len(name) / 100, "std": 0.0,
                 "low": len(name) / 100 - 0.01, "high": len(name) / 100 + 0.01} for name in names}
tests = [{"first": a, "second": b, "view": "all", "metric": "macro_f1", "p": 0.004, "p_holm": 1.0,
          "difference": (len(a) - len(b)) / 100, "low": -0.5, "high": 0.25, "p_seeds": 0.5}
         for a, b in itertools.combinations(names, 2)]
os.makedirs(words["--results_dir"], exist_ok=True)
with open(words["--results_dir"] + "/results.json", "w") as handle:
    json.dump({
        "bootstrap": {"resamples": 400, "level": 0.95, "seed": 0, "unit": "utterance"},
        "systems": {name: {"seeds": [1, 2], "sets": {"test": {"all": {"macro_f1": scores[name]}}}}
                    for name in names},
        "all_pairs": {"test": tests},
    }, handle)
"""


def run(*words, command=(sys.executable, "run.py", "--size", "ci")):
    """Call the program; returns its exit status."""
    try:
        program.main(["--config", "ablations.yaml", *words, "--", *command])
    except SystemExit as end:
        return end.code
    return 0


def runs_of(monkeypatch, **facts):
    """Let what follows run in an environment of the given date and hash."""
    monkeypatch.setattr(program, "environment", lambda: {"torch": "2", **facts})


def runs_table():
    """Rows of the table that tells when the points were run."""
    text = Path("ABLATIONS.md").read_text()
    return re.findall(r"^\|([\d-]+|not recorded)\|(.*?)\|(\d)\|(.*)\|$", text, re.M)
