"""A recipe's worth of good files, and beside them every spoiled one that the table needs."""

import pickle
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import decoding_common
import numpy as np
import scoring_common
import soundfile
import torch
from bad_merging import build_merging

from espnet_adaltm.files import read_json, write_json

RATE = 16_000
OK = {
    "wav.scp": "a wav/a.wav\nb wav/b.wav\nc wav/c.wav\n",
    "utt2spk": "a s\nb s\nc t\n",
    "text": "a one two\nb three\n",
    "utt2emo": "a sad\nb happy\nc angry\n",
}
# Data directories: what differs from the good one; None removes a file.
DATA: Mapping[str, Mapping[str, str | bytes | None]] = {
    "ok": {},
    "no_wav_scp": {"wav.scp": None},
    "no_speakers": {"utt2spk": None},
    "empty": {"wav.scp": ""},
    "ghost": {"text": "a one\nghost two\n"},
    "duplicate": {"text": "a one\na two\n"},
    "unsorted": {"text": "b one\na two\n"},
    "latin1": {"text": b"a caf\xe9\n"},
    "no_words": {"text": "a\n"},
    "blank_line": {"text": "a one\n\nb two\n"},
    "bell": {"text": "a one\nb ring\x07\n"},
    "nul": {"utt2spk": b"a s\nb s\x00\nc t\n"},
    "mark": {"utt2spk": "a s\nb s\n\u202ec t\n"},
    "bom": {"utt2spk": "\ufeffa s\nb s\nc t\n"},
    "two_words": {"utt2emo": "a very sad\n"},
    "speakerless": {"utt2spk": "a s\nb s\n"},
    "soft": {"utt2soft": "a sad=0.5 happy=0.4\n"},
    "turns": {"utt2dialog": "a d 0\nb d 0\n"},
    "turn_name": {"utt2dialog": "a d \u0663\n"},
    "spk2utt": {"spk2utt": "s a\nt b c\n"},
    "spk2utt_ghost": {"spk2utt": "ghost\ns a b\nt c\n"},
    "samples": {"utt2num_samples": "a many\n"},
    "segments": {"segments": "a a 0\n"},
    "segments_backwards": {"segments": "a a 2 1\n"},
    "segments_elsewhere": {"segments": "a x 0 1\n"},
    "late": {"segments": "a a 0 0.2\nb b 7 8\nc c 0 0.2\n"},
}
# Values of wav.scp for the utterance b.
SOURCES = {
    "gone": "wav/gone.wav",
    "zero_bytes": "wav/zero.wav",
    "cut": "wav/cut.wav",
    "html": "wav/html.wav",
    "nan": "wav/nan.wav",
    "folder": "wav",
    "slow": "wav/slow.wav",
    "silent": "wav/silent.wav",
    "pipe": "touch pwned; cat wav/a.wav |",
    "leading": "| touch pwned",
    "beyond": "wav/x.ark:99999999",
    "range": "wav/x.ark:2[0:5]",
    "pickle": "wav/evil.ark:2",
    "long": "wav/" + 5000 * "x" + ".wav",
}
LABELS = {
    "cut": '{"labels": ["angry", ',
    "list": "[1, 2]",
    "none": "{}",
    "one": '{"labels": ["angry"]}',
    "twice": '{"labels": ["angry", "happy", "angry"]}',
    "number": '{"labels": ["angry", 7]}',
    "key": '{"labels": ["angry", "happy"], "label": 1}',
    "codes": '{"labels": ["angry", "happy"], "codes": 5}',
    "deep": "[" * 20_000,
    "order": '{"labels": ["happy", "angry", "sad"]}',
}
RECIPES = {
    "list": "- asr\n- ser\n",
    "scalar": "task_arithmetic\n",
    "nothing": "",
    "tabs": "method:\n\tties\n",
    "python": "method: !!python/object/apply:os.system [touch pwned]\n",
    "twice": "method: ties\nweights: 1\nmethod: dare\n",
    "bomb": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]\n" for i in range(1, 10)),
    "merge_bomb": "a0: &a0 {x: 1, y: 2}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join(10 * [f'*a{i - 1}'])}]}}\n" for i in range(1, 10)),
    "itself": "weights: &w [*w]\n",
    "deep": "weights: " + "[" * 2_000 + "\n",
    "date": "seed: 2024-13-77\n",
    "truth": "on: 1\n",
    "key": "metod: ties\n",
    "method": "method: tise\n",
    "number": "weights: {asr: many, ser: 1}\n",
    "infinite": "weights: {asr: .inf, ser: 1}\n",
    "task": "weights: {asr: 1, mood: 1}\n",
    "group": "weights: {asr: {block9: 1}, ser: 1}\n",
    "length": "weights: [1, 2]\n",
    "option": "method: ties\noptions: {densty: 0.2}\n",
    "learned": "granularity: block\ninit: 0.5\ntrainable: true\n",
    "epochs": "max_epoch: [1]\n",
    "words": "max_epoch: many\n",
    "truth3": "resume: 7\n",
    "rate": "encoder_lr: {a: 1}\n",
    "fine": "weights: {asr: 0.3, ser: 0.5}\n",
}


class Evil:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return (open, ("pwned", "w"))


def build(root: Path) -> Path:
    """Write everything below ``root``; paths in it are relative to that."""
    decoding_common.make_scene(root)
    _audio(root / "wav")
    _data(root)
    _scored(root)
    _models(root)
    for name, content in LABELS.items():
        (root / f"labels_{name}.json").write_text(content)
    (root / "recipes").mkdir()
    for name, content in RECIPES.items():
        (root / "recipes" / f"{name}.yaml").write_text(content)
    build_merging(root)
    (root / "linked").mkdir()
    (root / "link").symlink_to("linked")
    (root / "file").write_text("something else")
    (root / "release").mkdir()
    return root


def _audio(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        soundfile.write(folder / f"{name}.wav", 0.1 * rng.standard_normal(RATE // 4), RATE)
    whole = (folder / "a.wav").read_bytes()
    (folder / "zero.wav").write_bytes(b"")
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "html.wav").write_text("<html>not found</html>" * 50)
    (folder / "slow.wav").write_bytes(whole[:24] + struct.pack("<I", 3) + whole[28:])
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan), RATE, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(8000), RATE)
    (folder / "x.ark").write_bytes(b"a " + whole)
    (folder / "evil.ark").write_bytes(b"a PKL" + pickle.dumps(Evil()))


def spoiled(folder: Path, files: Mapping[str, str | bytes | None]) -> None:
    """Write files into a folder, or remove them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            raw = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(raw)


def _data(root: Path) -> None:
    for name, changes in DATA.items():
        spoiled(root / "data" / name, OK | changes)
    for name, source in SOURCES.items():
        table = OK["wav.scp"].replace("wav/b.wav", source)
        spoiled(root / "data" / name, OK | {"wav.scp": table})


def copied(root: Path, name: str, source: str, changes: Mapping[str, str | bytes | None]) -> None:
    """A folder like another one, spoiled."""
    shutil.copytree(root / source, root / name, symlinks=True)
    spoiled(root / name, changes)


def _scored(root: Path) -> None:
    dump = scoring_common.make_dump(root / "dump" / "scored", size=12)
    scoring_common.make_system(root / "sys", dump)
    probabilities = (root / "sys/decode/scored/utt2prob").read_text().splitlines(keepends=True)
    head, rest = probabilities[0], "".join(probabilities[1:])
    row = head.split()[0]
    for name, first in {
        "lost": "",
        "extra": head + f"{row}x 1 0 0\n",
        "short": f"{row} 0.5 0.5\n",
        "sum": f"{row} 0.5 0.3 0.3\n",
        "nan": f"{row} nan 0.5 0.5\n",
        "words": f"{row} a b c\n",
    }.items():
        copied(root, f"sys_{name}", "sys", {"decode/scored/utt2prob": first + rest})
    said = (root / "sys/decode/scored/utt2emo").read_text()
    for name, word in {"other": "happy", "unknown": "hapy"}.items():
        changed = said.replace("angry", word, 1)
        copied(root, f"sys_{name}", "sys", {"decode/scored/utt2emo": changed})
    copied(root, "sys_labels", "sys", {"merge.json": '{"labels": ["sad", "angry", "happy"]}'})
    copied(root, "dump/unknown", "dump/scored", {"utt2emo": f"{row} bored\n"})
    copied(root, "dump/unscored", "dump/scored", {"utt2emo": None, "text": None})
    copied(root, "dump/no_stats", "data/ok", {})
    copied(root, "dump/bad_stats", "data/ok", {"audio_stats.tsv": "utt\twrong\n"})
    spoiled(root / "results", {"results.json": '{"labels": ["a", "b"], "systems": {"x": {}}}'})
    eight = ", ".join(f'"{name}"' for name in "abcdefgh")
    spoiled(root / "eight", {"results.json": f'{{"labels": [{eight}], "systems": {{"x": {{}}}}}}'})
    spoiled(root / "half", {"results.json": '{"labels": ["a", "b"]}'})


def _models(root: Path) -> None:
    weights = (root / "asr/expert.safetensors").read_bytes()
    copied(root, "asr_cut", "asr", {"expert.safetensors": weights[: len(weights) // 2]})
    copied(
        root, "asr_head", "asr", {"head.safetensors": (root / "ser/head.safetensors").read_bytes()}
    )
    copied(root, "asr_tokens", "asr", {"tokens.model": "no model at all"})
    copied(root, "asr_base", "asr", {})
    write_json(
        root / "asr_base/expert.json",
        read_json(root / "asr/expert.json") | {"base_sha256": "0" * 64},
    )
    copied(root, "asr_kind", "asr", {"expert.json": '{"kind": "mood"}'})
    copied(root, "merge_list", "merge", {"merge.json": "[]"})
    table = read_json(root / "merge/coefficients.json")
    copied(root, "merge_nan", "merge", {})
    write_json(root / "merge_nan/coefficients.json", table | {"final": [[float("nan")] * 3] * 2})
    copied(root, "merge_groups", "merge", {})
    write_json(root / "merge_groups/coefficients.json", table | {"groups": ["a", "b", "c", "d"]})
    copied(root, "merge_lacks", "merge", {"coefficients.json": '{"tasks": ["asr", "ser"]}'})
    copied(root, "base_cut", "base", {"model.safetensors": b"\xff" * 100})
    copied(root, "base_type", "base", {"config.json": '{"model_type": "bert"}'})
    copied(root, "base_lacks", "base", {"base.json": None})
    decoding_common.make_base(root / "base_other", seed=9)
    config = read_json(root / "base/config.json") | {"hidden_size": 32}
    copied(root, "base_shape", "base", {})
    write_json(root / "base_shape/config.json", config)
    spoiled(root / "export_lacks", {"recognizer.json": '{"format": 2}'})
    copied(root, "export_head", "base", {})
    described = {"format": 2, "kind": "recognizer", "labels": ["a", "b"], "head": {"hiden": 3}}
    write_json(root / "export_head/recognizer.json", described)
    torch.save({"cfg": Evil(), "model": {}}, root / "evil.pt")
    torch.save({"model": {}}, root / "other.pt")
    copied(root, "evil_bin", "base", {"model.safetensors": None})
    torch.save({"x": Evil()}, root / "evil_bin/pytorch_model.bin")
    spoiled(root / "foreign", {})
    torch.save({"a.b": torch.zeros(1)}, root / "foreign/pytorch_model.bin")
    shutil.copytree(root / "foreign", root / "foreign_ctc")
    torch.save(
        {"lm_head.weight": torch.zeros(3, 4), "lm_head.bias": torch.zeros(3)},
        root / "foreign_ctc/pytorch_model.bin",
    )
    spoiled(root / "foreign_ctc", {"config.json": '{"model_type": "wavlm"}'})
    spoiled(root / "memory", {"baseline.json": '{"kind": "mtlser"}'})
    for name, entry in {"pipe": "touch pwned |", "pickle": "wav/evil.ark:2"}.items():
        tables = {"wav.scp": f"a {entry}\n", "utt2num_samples": "a 9000\n", "utt2spk": "a s\n"}
        spoiled(root / "dump" / f"evil_{name}", tables)
