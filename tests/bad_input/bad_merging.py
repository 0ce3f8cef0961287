"""Bad experts, task vectors and merge recipes: the files and the rows, as `bad_rows_models`."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from bad_row import Row, programs
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from espnet_adaltm.files import read_json, write_json

MERGE, VECTORS, TRAIN, CHECK = programs("merge", "task_vectors", "train_merge", "check_merges")
State = dict[str, torch.Tensor]


# --------------------------------------------------------------------------------- files
def build_merging(root: Path) -> None:
    """Write everything below a world that has base, experts, vectors and a set."""
    for name, change in _CHANGES.items():
        shutil.copytree(root / "asr", root / f"asr_{name}")
        _rewrite(root / f"asr_{name}/expert.safetensors", change)
        shutil.copytree(root / "task_vectors", root / f"vectors_{name}")
        _rewrite(root / f"vectors_{name}/asr.safetensors", change)
    for name in ("cut", "one", "plain", "base"):
        shutil.copytree(root / "task_vectors", root / f"vectors_{name}")
    cut = root / "vectors_cut/asr.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    (root / "vectors_one/ser.safetensors").unlink()
    shutil.copy(root / "asr/expert.safetensors", root / "vectors_plain/asr.safetensors")
    _of_another_base(root / "vectors_base/asr.safetensors", read_json(root / "base/base.json"))
    shutil.copytree(root / "asr", root / "asr_vocabulary")
    _rewrite(root / "asr_vocabulary/head.safetensors", lambda s: {n: t[:5] for n, t in s.items()})
    shutil.copytree(root / "merge", root / "merge_shape")
    table = read_json(root / "merge/coefficients.json")
    write_json(root / "merge_shape/coefficients.json", table | {"final": [[0.5] * 3, [0.5] * 2]})
    for name, text in _RECIPES.items():
        (root / "recipes" / f"{name}.yaml").write_text(text)
    shutil.copytree(root / "dump/test", root / "dump/learn")
    utts = sorted(line.split()[0] for line in (root / "dump/test/wav.scp").open())
    for name, words in {
        "utt2emo": "sad",
        "text": "is shut",
        "utt2spk": "s",
        "ser_shape": "9",
    }.items():
        (root / "dump/learn" / name).write_text("".join(f"{utt} {words}\n" for utt in utts))


def _deeper(state: State) -> State:
    last = "encoder.layers.1."
    more = {n.replace(last, "encoder.layers.2."): t for n, t in state.items() if last in n}
    return state | {name: tensor.clone() for name, tensor in more.items()}


def _with(value: float) -> Callable[[State], State]:
    def change(state: State) -> State:
        state["encoder.layer_norm.bias"][3] = value
        return state

    return change


_CHANGES: dict[str, Callable[[State], State]] = {
    "deep": _deeper,
    "wide": lambda state: {name: t.repeat((2,) * t.dim()) for name, t in state.items()},
    "half": lambda state: {name: t.half() for name, t in state.items()},
    "nan": _with(math.nan),
    "infinite": _with(-math.inf),
    "nothing": lambda state: {},
}
_RECIPES = {
    "learn": "name: adaltm\ntasks: [asr, ser]\n",
    "learn_key": "name: adaltm\ntasks: [asr, ser]\ngranularty: block\n",
    "learn_shape": "name: adaltm\ntasks: [asr, ser]\ninit: [0.5, 0.5, 0.5]\n",
    "learn_task": "name: adaltm\ntasks: [asr, mood]\n",
    "learn_ctc": "name: adaltm\ntasks: [asr, ser]\nobjective: supervised_ctc\nctc_weight: 0.1\n",
    "both": "method: task_arithmetic\nweights: {asr: 0.3, ser: 0.5}\n",
}


def _rewrite(path: Path, change: Callable[[State], State]) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata)


def _of_another_base(path: Path, base: dict) -> None:
    with safe_open(path, "pt") as file:
        metadata = {n: v.replace(base["sha256"], "f" * 64) for n, v in file.metadata().items()}
    save_file(load_file(path), path, metadata)


# --------------------------------------------------------------------------------- rows
BOTH = "--config recipes/both.yaml"
PAIR = "--experts asr=asr ser=ser --out m"


def merged(expert: str, what: str, *culprits: str) -> Row:
    """Experts of which one is bad."""
    words = f"{BOTH} --base base --experts asr={expert} ser=ser --out m"
    return MERGE(what, words, *culprits)


def added(folder: str, what: str, *culprits: str) -> Row:
    """Task vectors of which one is bad."""
    files = f"asr={folder}/asr.safetensors ser={folder}/ser.safetensors"
    words = f"{BOTH} --base base --vectors {files} --out m"
    return MERGE(what, words, *culprits)


def subtracted(expert: str, what: str, *culprits: str) -> Row:
    """An expert whose difference from the base is wanted."""
    return VECTORS(what, f"--base base --asr {expert} --ser ser --out v", *culprits)


def learned(
    folder: str, what: str, *culprits: str, recipe: str = "learn", options: str = ""
) -> Row:
    """The training stage."""
    data = "--labels labels.json --train_dump dump/learn --valid_dump dump/learn"
    words = f"--output_dir t --base base {data} --task_vectors {folder}"
    return TRAIN(what, f"{words} --merge_config recipes/{recipe}.yaml {options}", *culprits)


LAYER = "'encoder.layers.2."
NAN = "'encoder.layer_norm.bias' has NaN or infinite values"
BELONGS = "belongs to another encoder"
EXPERTS = [
    (merged, "an expert"),
    (subtracted, "an expert to subtract"),
]
ROWS = [
    row(f"asr_{name}", f"{what} {which}", *culprits)
    for row, what in EXPERTS
    for name, which, culprits in (
        ("deep", "that is deeper", (LAYER, "asr_deep/expert.safetensors", "(3 and 2 layers)")),
        ("wide", "that is wider", ("shape", "asr_wide/expert.safetensors")),
        ("half", "of another dtype", ("dtype", "asr_half/expert.safetensors", "float32")),
        ("nan", "with a NaN", (NAN, "asr_nan/expert.safetensors")),
        ("infinite", "with an infinite value", (NAN, "asr_infinite/expert.safetensors")),
        ("nothing", "without weights", ("asr_nothing/expert.safetensors",)),
    )
] + [
    row(f"vectors_{name}", f"{what} {which}", *culprits)
    for row, what in ((added, "a vector"), (learned, "a vector to learn with"))
    for name, which, culprits in (
        ("deep", "that is deeper", (LAYER, "vectors_deep/asr.safetensors", BELONGS)),
        ("wide", "that is wider", ("shape", "vectors_wide/asr.safetensors", BELONGS)),
        ("nan", "with a NaN", (NAN, "vectors_nan/asr.safetensors")),
        ("infinite", "with an infinite value", (NAN, "vectors_infinite/asr.safetensors")),
        ("nothing", "of nothing", ("vectors_nothing/asr.safetensors", BELONGS)),
        ("cut", "cut short", ("vectors_cut/asr.safetensors", "may be cut off")),
        ("one", "of one side only", ("vectors_one/ser.safetensors", "task_vectors")),
        ("plain", "that is an expert", ("vectors_plain/asr.safetensors is not a task vector",)),
        ("base", "of another base", ("vectors_base/asr.safetensors", "the base ffffffffffff")),
    )
] + [
    learned("gone", "no vectors", "gone/asr.safetensors", "task_vectors"),
    learned("task_vectors", "an unknown key", "recipes/learn_key.yaml", "'granularity'",
            recipe="learn_key"),
    learned("task_vectors", "coefficients of another shape", "recipes/learn_shape.yaml", "init",
            recipe="learn_shape"),
    learned("task_vectors", "a task without vector", "mood", recipe="learn_task"),
    learned("task_vectors", "a head of another vocabulary", "asr_vocabulary/head.safetensors",
            "for 5 tokens", recipe="learn_ctc", options="--asr_expert asr_vocabulary"),
    MERGE(
        "coefficients of the wrong shape",
        f"--coefficients merge_shape/coefficients.json --base base {PAIR}",
        "merge_shape/coefficients.json", "(2, 3)",
    ),
    MERGE("one side only", f"{BOTH} --base base --experts asr=asr --out m", "ser"),
    CHECK("a row that is missing", "recipes/lern.yaml", "recipes/lern.yaml does not exist",
          "did you mean 'learn'"),
    CHECK("a row with an unknown key", "recipes/learn_key.yaml", "recipes/learn_key.yaml",
          "'granularity'"),
    CHECK("a row of another name", "recipes/learn.yaml", "recipes/learn.yaml", "'adaltm'"),
    MERGE("an empty set", f"{BOTH} --base base --out m", "given are none"),
]  # fmt: skip
