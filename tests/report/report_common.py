"""A small recipe with everything that a page can show."""

import json
from pathlib import Path

import numpy as np
import soundfile
from scoring_common import make_dump, make_system

from espnet_adaltm.bin import report
from espnet_adaltm.files import write_json
from espnet_adaltm.kaldi import read_scp, write_scp

HOSTILE = '</script><img src=x onerror="alert(1)"> & "quotes"'
RATE = 8000
AUDIT = """# Audit of all sets

|  | train | test |
|---|---:|---:|
| utterances | 6000 | 240 |

| emotion | train | test |
|---|---:|---:|
| angry | 746 (24.9%) | 80 (33.3%) |

## Findings

- warning: identical audio: 1: u000 = u001
- info: train: utterances without emotion: 3000
"""


def make_scene(folder: Path) -> list[str]:
    """Systems, a test set with audio, an audit; returns arguments of ``bin/report``."""
    dump = make_dump(folder / "dump" / "test", size=240)
    (folder / "dump" / "audit.md").write_text(AUDIT)
    texts = read_scp(dump / "text")
    texts["u000"] = HOSTILE
    write_scp(dump / "text", texts)
    sources = dict.fromkeys(texts, f"touch {folder}/ran |")  # never to be run by a page
    time = np.arange(RATE // 2) / RATE
    for utterance in ("u000", "u001"):
        path = folder / f"{utterance}.wav"
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * time), RATE)
        sources[utterance] = str(path)
    write_scp(dump / "wav.scp", sources)
    words = []
    for name, wrong, deleted in (("good1", 24, 3), ("good2", 36, 2), ("bad", 120, 60)):
        make_system(folder / name, dump, set(range(wrong)), set(range(deleted)))
        label = {"good1": "good:1", "good2": "good:2"}.get(name, name)
        words.append(f"{label}={folder}/{name}")
    make_system(folder / "asr", dump, emotion=False)
    make_system(folder / "ser", dump, {5, 6}, text=False)
    for seed in (1, 2):
        final = [[0.1 * seed, 0.2, 0.3], [0.9, 1.0, 1.1 * seed]]
        blocks = {"tasks": ["asr", "ser"], "groups": ["block0", "block1", "block2"]}
        write_json(
            folder / f"good{seed}" / "coefficients.json",
            {**blocks, "epochs": [[[0.5] * 3] * 2, final], "final": final},
        )
        history = {
            str(e): {
                "train": {"loss": 1 / e + seed, "acc": 0.5},
                "valid": {"loss": 2 / e, "macro_f1": 0.1 * e},
            }
            for e in range(1, 3 + seed)
        }
        write_json(folder / f"good{seed}" / "history.json", history)
    write_json(folder / "ser" / "history.json", history)
    write_json(folder / "ser" / "expert.json", {"kind": "ser"})
    return [
        *("--systems", f"asr={folder}/asr ser={folder}/ser {' '.join(words)}"),
        *("--dumps", str(dump), "--labels", str(dump.parent / "labels.json")),
        *("--compare", "good:bad", "--out_dir", str(folder / "out"), "--recipe", "my <corpus>"),
        *("--plots", "false", "--resamples", "200", "--note", "A toy & no more."),
        *("--command", "./run.sh --size 'a b'", "--confused", "4"),
    ]


def make_page(folder: Path, *more: str) -> Path:
    """Run ``bin/report`` on the scene; returns ``report.html``."""
    report.main([*make_scene(folder), *more])
    return folder / "out" / "report.html"


def without(path: Path, *keys: str) -> None:
    """Remove keys from a JSON object, as an earlier version would have left it."""
    value = json.loads(path.read_text())
    write_json(path, {key: found for key, found in value.items() if key not in keys})
