"""A made-up corpus that a tiny encoder learns in seconds, and runs of whole trainings."""

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import torch

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.loading import save_encoder, write_base_info
from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.data.tokens import prepare_tokens
from espnet_adaltm.kaldi import write_scp
from espnet_adaltm.merging.task_vector import TaskVector

RATE = 16_000
HOP = 320
EMOTIONS = ("angry", "happy", "sad")
LETTERS = "abcd"
PITCH = {"a": 300, "b": 700, "c": 1500, "d": 3000}
OVERTONE = {"angry": 4500, "happy": 5500, "sad": 6500}
ENCODER = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 8, 8],
    "conv_stride": [5, 8, 8],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
}
HEAD = "{hidden: 16, dropout: 0.1}"
CONF = Path(__file__).parents[2] / "conf" / "merge"


def utterance(text: str, emotion: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Samples [N] int16, a tone per letter under an emotion's overtone, and units [T]."""
    parts, units = [], []
    for letter in text:
        size = HOP * int(rng.integers(6, 10))
        time = np.arange(size) / RATE
        parts.append(
            np.sin(2 * np.pi * PITCH[letter] * time)
            + 0.7 * np.sin(2 * np.pi * OVERTONE[emotion] * time)
        )
        units += [LETTERS.index(letter)] * (size // HOP)
    wave = np.concatenate(parts) + 0.05 * rng.standard_normal(sum(map(len, parts)))
    return (wave * 6000).astype(np.int16), np.array(units, dtype=np.int32)


def make_set(root: Path, name: str, count: int, seed: int) -> None:
    """Write ``dump/<name>`` and ``units/<name>``."""
    rng = np.random.default_rng(seed)
    dump, units = root / "dump" / name, root / "units" / name
    dump.mkdir(parents=True)
    units.mkdir(parents=True)
    audio, frames, text, emotions, speakers = {}, {}, {}, {}, {}
    for index in range(count):
        utt = f"{name}-{index:03d}"
        text[utt] = "".join(rng.choice(list(LETTERS), size=int(rng.integers(2, 5))))
        emotions[utt] = EMOTIONS[index % len(EMOTIONS)]
        speakers[utt] = f"{name}-s{index // len(EMOTIONS)}"  # one utterance per emotion
        audio[utt], frames[utt] = utterance(text[utt], emotions[utt], rng)
    kaldiio.save_ark(
        str(dump / "data.ark"),
        {utt: (RATE, wave) for utt, wave in audio.items()},
        scp=str(dump / "wav.scp"),
        write_function="soundfile",
        write_kwargs={"format": "FLAC", "subtype": "PCM_16"},
    )
    kaldiio.save_ark(str(units / "units.ark"), frames, scp=str(units / "units.scp"))
    write_scp(dump / "text", text)
    write_scp(dump / "utt2emo", emotions)
    write_scp(dump / "utt2spk", speakers)
    for kind in ("all", "asr", "ser"):
        write_scp(dump / f"{kind}_shape", {utt: len(wave) for utt, wave in audio.items()})


def make_corpus(root: Path, train: int = 48, valid: int = 18) -> Path:
    """Write dumps, units, tokens, labels and a base encoder below ``root``."""
    make_set(root, "train", train, seed=1)
    make_set(root, "dev", valid, seed=2)
    prepare_tokens(root / "dump/train/text", root / "tokens", "char")
    labels = {"labels": list(EMOTIONS), "codes": {}, "counts": {}, "policy": ""}
    (root / "labels.json").write_text(json.dumps(labels))
    base = random_encoder(tiny_config(**ENCODER), seed=0)
    save_encoder(base, root / "base")
    info = write_base_info(root / "base", kind="random", source="test")
    make_vectors(root / "task_vectors", base, info["sha256"])
    return root


def make_vectors(folder: Path, base: SpeechEncoder, sha256: str) -> None:
    """Write task vectors of experts that are the base, moved at random, but for its CNN."""
    state = base.encoder_state()
    for seed, task in enumerate(("asr", "ser")):
        generator = torch.Generator().manual_seed(seed)
        moved = {
            name: tensor
            if name.startswith("feature_extractor.")
            else tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in state.items()
        }
        vector = TaskVector.from_checkpoints(
            state, moved, base_sha256=sha256, expert_sha256=f"{task} expert"
        )
        vector.save(folder / f"{task}.safetensors")


def make_experts(root: Path, out: Path) -> Path:
    """Train an expert of each kind, and subtract the base."""
    for task in ("asr", "ser"):
        changes = {"max_epoch": 12, "encoder_lr": 0.003, "head_lr": 0.01}
        train(task, options(root, out / task, task, **changes))
        base = json.loads((root / "base/base.json").read_text())["sha256"]
        weights = out / task / "expert.safetensors"
        vector = TaskVector.from_checkpoints(root / "base", weights, base_sha256=base)
        vector.save(out / "task_vectors" / f"{task}.safetensors")
    return out


def options(root: Path, out: Path, task: str, **changes: object) -> list[str]:
    """Command line of a small training; an option set to None is left out."""
    values: dict[str, object] = {
        "output_dir": out,
        "train_dump": root / "dump/train",
        "valid_dump": root / "dump/dev",
        "max_epoch": 3,
        "batch_type": "numel",
        "batch_bins": 100_000,
        "log_interval": 1000,
        "head_lr": 3e-3,
        "optim_conf": "{lr: 0.001, weight_decay: 0.01}",
        "seed": 3,
    }
    emotion = {
        "labels": root / "labels.json",
        "head_conf": HEAD,
        "best_model_criterion": ("valid", "macro_f1", "max"),
    }
    if task != "base":
        values["base"] = root / "base"
    if task in ("ser", "merge"):
        values |= emotion
    if task == "merge":
        values["task_vectors"] = root / "task_vectors"
    if task == "asr":
        values |= {"tokens": root / "tokens", "best_model_criterion": ("valid", "loss", "min")}
    if task == "base":
        values |= {
            "units_dir": root / "units",
            "num_units": len(LETTERS),
            "encoder_conf": json.dumps(ENCODER),
            "best_model_criterion": ("valid", "loss", "min"),
        }
    values |= changes
    argv: list[str] = []
    for name, value in values.items():
        if value is None:
            continue
        if name == "best_model_criterion":
            argv += [f"--{name}", ",".join(value)]
        else:
            argv += [f"--{name}", str(value)]
    return argv


def merge_options(
    corpus: Path, experts: Path, out: Path, row: str | Path, **changes: object
) -> list[str]:
    """Command line of a merge; ``row`` is a shipped name or a file."""
    values = {
        "merge_config": CONF / f"{row}.yaml" if isinstance(row, str) else row,
        "task_vectors": experts / "task_vectors",
        "asr_expert": experts / "asr",
        "ser_expert": experts / "ser",
        "best_model_criterion": ("valid", "loss", "min"),
        "coef_lr": 0.02,
        "max_epoch": 1,
    }
    return options(corpus, out, "merge", **{**values, **changes})


def yaml(folder: Path, content: str, name: str = "mine") -> Path:
    """Write a row of merging."""
    path = folder / f"{name}.yaml"
    path.write_text(content)
    return path


TASKS: Mapping[str, str] = {
    "base": "pretrain_task:PretrainTask",
    "asr": "asr_task:ASRTask",
    "ser": "ser_task:SERTask",
    "merge": "merge_task:MergeTask",
}


def train(task: str, argv: Sequence[str]) -> None:
    """Run a training in this process; errors are raised."""
    from espnet_adaltm.training.launch import load_task, run

    torch.set_num_threads(1)
    run(load_task(TASKS[task]), argv)


def start(target: object, *args: object) -> multiprocessing.process.BaseProcess:
    """Start ``target`` in a fresh process that has ESPnet imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["espnet_adaltm.training.merge_task"])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def stats(folder: Path) -> dict[int, dict[str, dict[str, float]]]:
    """Epoch to part to name to value, of a training's newest checkpoint."""
    states = torch.load(folder / "checkpoint.pth", weights_only=True)
    return states["reporter"]["stats"]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Tensors of one of a training's files."""
    return torch.load(folder / name, weights_only=True)


def read(folder: Path, name: str) -> Any:
    """Read one of a training's JSON files."""
    return json.loads((folder / name).read_text())
