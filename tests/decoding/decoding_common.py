"""A tiny base, two experts, a merge and a test set, as trainings leave them; weights made up."""

from pathlib import Path

import kaldiio
import numpy as np
import torch
from safetensors.torch import save_file

from espnet_adaltm.backbone.loading import load_encoder, save_encoder, write_base_info
from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.data.labels import Labels, save_labels
from espnet_adaltm.data.tokens import prepare_tokens
from espnet_adaltm.files import read_json, sha256_file, write_json
from espnet_adaltm.kaldi import write_scp
from espnet_adaltm.merging.merged import coefficients_for
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.models.ctc import CTCHead
from espnet_adaltm.models.emotion import EmotionHead

LABELS = Labels(("angry", "happy", "sad"))
HEAD = {"hidden": 16, "dropout": 0.1, "pooling": "mean_std"}
SAMPLES = (9000, 16000, 300, 4000, 12345, 16000, 7000, 2500, 640, 11111)
_SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8, 16],
    "conv_kernel": [10, 8, 8],
    "conv_stride": [5, 8, 8],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
# Off the diagonal: coefficients that differ by task and block.
COEFFICIENTS = [[0.0, 0.4, 0.9], [0.0, 0.7, -0.2]]


def make_base(folder: Path, seed: int = 0) -> Path:
    """A random encoder's folder."""
    encoder = random_encoder(tiny_config(**_SHAPE), seed)
    _shake(encoder, seed, 0.1)
    save_encoder(encoder, folder)
    write_base_info(folder, kind="random", source="test")
    return folder


def _shake(module: torch.nn.Module, seed: int, scale: float, skip: str = "!") -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if skip not in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def _emotion_head(seed: int) -> EmotionHead:
    """A head whose probabilities are not all 0 or 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = EmotionHead(2, 16, len(LABELS), **HEAD)
    _shake(head, seed, 0.3)
    with torch.no_grad():
        for parameter in head.output[-1].parameters():
            parameter.mul_(0.2)
    return head


def make_expert(folder: Path, base: Path, kind: str, tokens: Path, *, cnn: bool = False) -> Path:
    """An expert near the base; its CNN is the base's unless ``cnn``."""
    folder.mkdir(parents=True)
    encoder = load_encoder(base)
    _shake(encoder, 1 + len(kind) * ord(kind[0]), 0.05, "!" if cnn else "feature_extractor")
    info = {"kind": kind, "base_sha256": read_json(base / "base.json")["sha256"]}
    if kind == "asr":
        (folder / "tokens.model").write_bytes((tokens / "tokens.model").read_bytes())
        listed = (tokens / "tokens.txt").read_text(encoding="utf-8").splitlines()
        head, info = CTCHead(16, len(listed)), {**info, "tokens": listed}
        torch.nn.init.zeros_(head.linear.bias)
        torch.nn.init.zeros_(head.linear.weight)
        _shake(head, 7, 0.5)
    else:
        head = _emotion_head(7)
        info |= {"labels": list(LABELS.labels), "head": HEAD}
    state = {name: tensor.contiguous().clone() for name, tensor in encoder.encoder_state().items()}
    save_file(state, folder / "expert.safetensors")
    save_file(head.state_dict(), folder / "head.safetensors")
    write_json(folder / "expert.json", info)
    return folder


def make_merge(folder: Path, base: Path, experts: dict[str, Path]) -> Path:
    """Task vectors, and a merge with `COEFFICIENTS`."""
    folder.mkdir(parents=True)
    vectors = folder.parent / "task_vectors"
    base_sha256 = read_json(base / "base.json")["sha256"]
    for task, expert in experts.items():
        weights = expert / "expert.safetensors"
        vector = TaskVector.from_checkpoints(base, weights, base_sha256=base_sha256)
        vector.save(vectors / f"{task}.safetensors")
    groups = coefficients_for(load_encoder(base), experts, "block").groups
    rows = COEFFICIENTS[: len(experts)]
    write_json(
        folder / "coefficients.json",
        {"tasks": list(experts), "groups": list(groups), "epochs": [rows], "final": rows},
    )
    head = _emotion_head(11)
    save_file(head.state_dict(), folder / "head.safetensors")
    hashes = {task: sha256_file(path / "expert.safetensors") for task, path in experts.items()}
    write_json(
        folder / "merge.json",
        {
            "name": "adaltm",
            "options": {"granularity": "block"},
            "labels": list(LABELS.labels),
            "head": HEAD,
            "base": f"../{base.name}",
            "base_sha256": base_sha256,
            "task_vectors": {task: f"../task_vectors/{task}.safetensors" for task in experts},
            "expert_sha256": hashes,
        },
    )
    return folder


def make_dump(folder: Path) -> Path:
    """A set of noise of very different lengths, one shorter than the CNN's receptive field."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    audio = {
        f"u{index}": (16_000, (3000 * rng.standard_normal(size)).astype(np.int16))
        for index, size in enumerate(SAMPLES)
    }
    kaldiio.save_ark(
        str(folder / "data.ark"),
        audio,
        scp=str(folder / "wav.scp"),
        write_function="soundfile",
        write_kwargs={"format": "FLAC", "subtype": "PCM_16"},
    )
    write_scp(folder / "utt2num_samples", {utt: len(wave) for utt, (_, wave) in audio.items()})
    return folder


def make_feats(folder: Path, dump: Path, base: Path) -> Path:
    """The base's CNN output, float16, in the layout of stage `base`."""
    folder.mkdir(parents=True)
    encoder = load_encoder(base)
    feats = {}
    for utt, (_, wave) in kaldiio.load_scp(str(dump / "wav.scp")).items():
        speech = torch.from_numpy(wave.astype(np.float32) / 2**15)[None]
        with torch.no_grad():
            feats[utt] = encoder.cnn(speech, torch.tensor([len(wave)]))[0][0].half().numpy()
    target = {"scp": str(folder / "feats.scp"), "write_function": "numpy"}
    kaldiio.save_ark(str(folder / "feats.ark"), feats, **target)
    write_scp(folder / "feats_shape", {utt: len(array) for utt, array in feats.items()})
    return folder


def make_scene(root: Path) -> Path:
    """Everything below ``root``: base, asr, ser, merge, dump/test, labels.json, base/feats/test."""
    base = make_base(root / "base")
    text = {"a": "the red door", "b": "is shut now"}
    write_scp(root / "text", text)
    prepare_tokens(root / "text", root / "tokens", "char")
    asr = make_expert(root / "asr", base, "asr", root / "tokens")
    ser = make_expert(root / "ser", base, "ser", root / "tokens")
    make_merge(root / "merge", base, {"asr": asr, "ser": ser})
    dump = make_dump(root / "dump" / "test")
    make_feats(base / "feats" / "test", dump, base)
    save_labels(root / "labels.json", LABELS)
    return root
