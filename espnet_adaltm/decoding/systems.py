"""What training left in a folder, as one module that turns speech into emotions and words.

Its description tells the kind: ``expert.json`` (``asr`` or ``ser``), ``merge.json`` or
``baseline.json`` (see `decoding.baselines`). A merged encoder is baked: base + coefficients x task
vectors becomes one set of plain weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.loading import load_encoder, read_base_info
from espnet_adaltm.data.tokens import Tokenizer
from espnet_adaltm.decoding import baselines
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, read_json, require, sha256_file, taken_apart
from espnet_adaltm.merging.coefficients import Coefficients
from espnet_adaltm.merging.config import MergeConfig
from espnet_adaltm.merging.merged import MergedEncoder
from espnet_adaltm.merging.prepared import check_rebuilt, prepared
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.models.ctc import CTCHead, best_paths, collapse
from espnet_adaltm.models.emotion import build_head

EXPERT, MERGE, BASELINE = "expert.json", "merge.json", baselines.DESCRIPTION
WEIGHTS, HEAD = "expert.safetensors", "head.safetensors"
_CNN = "feature_extractor."


@dataclass(frozen=True)
class Output:
    """What a system says about a batch.

    Attributes:
        probabilities: Emotion probabilities [B, C] on the CPU, or None.
        texts: B transcripts, or None.
        speakers: B names of speakers of the training, or None.
        paths: The most likely token of every frame, B tensors [T_b], or None: what ``texts`` are
            made of.
    """

    probabilities: Tensor | None
    texts: list[str] | None
    speakers: list[str] | None = None
    paths: list[Tensor] | None = None


class SpeechSystem(nn.Module):
    """An encoder with an emotion head, a CTC head, or both; always in evaluation mode.

    Args:
        encoder: With its final weights.
        emotion_head: Read from all layers.
        labels: Its outputs, in order.
        ctc_head: Read from the last layer.
        tokenizer: Of the CTC head.
        head_options: Keyword arguments that made ``emotion_head``, for exports.
    """

    thread_safe = True

    def __init__(
        self,
        encoder: SpeechEncoder,
        *,
        emotion_head: nn.Module | None = None,
        labels: tuple[str, ...] = (),
        ctc_head: CTCHead | None = None,
        tokenizer: Tokenizer | None = None,
        head_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.emotion_head = emotion_head
        self.labels = labels
        self.ctc_head = ctc_head
        self.tokenizer = tokenizer
        self.head_options = dict(head_options or {})
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, speech: Tensor, lengths: Tensor) -> Output:
        """Recognise a padded batch.

        Args:
            speech: Waveforms [B, N] or CNN features [B, T, C].
            lengths: Valid samples or frames, [B].
        """
        hidden, frames = self.encoder(speech, lengths)
        probabilities = texts = paths = None
        if self.emotion_head is not None:
            probabilities = self.emotion_head(hidden, frames).double().softmax(-1).cpu()
        if self.ctc_head is not None:
            paths = best_paths(self.ctc_head(hidden[-1]), frames)
            texts = [self.tokenizer.decode(collapse(path)) for path in paths]
        return Output(probabilities, texts, paths=paths)


def load_system(
    folder: Pathlike,
    *,
    base: Pathlike | None = None,
    asr_expert: Pathlike | None = None,
    tokens: Pathlike | None = None,
) -> SpeechSystem | nn.Module:
    """Load an expert, a merge or a baseline.

    Args:
        folder: With ``expert.json``, ``merge.json`` or ``baseline.json``.
        base: The base encoder's folder; a merge names its own unless given.
        asr_expert: Lends its CTC head to a merged encoder, which then also transcribes.
        tokens: Folder or model of the tokens; the ASR expert's own unless given.

    Returns:
        An expert or a merge as `SpeechSystem`; a baseline as its kind makes it.

    Raises:
        UserError: Something is missing, damaged, or belongs to another base, expert or label list.
    """
    folder = Path(folder)
    info = read_description(folder)
    if is_baseline(folder):
        return baselines.load(folder, info, base=None if base is None else Path(base))
    encoder_folder = base_folder(folder, base)
    check_base(folder, info, encoder_folder)
    encoder = load_encoder(encoder_folder)
    if info["kind"] == "merge":
        bake_merge(encoder, folder, info)
        ctc = {} if asr_expert is None else _borrow_ctc(encoder, Path(asr_expert), info, tokens)
        return SpeechSystem(encoder, **_emotion(encoder, folder, info), **ctc)
    load_weights(encoder, folder / WEIGHTS)
    if info["kind"] == "asr":
        return SpeechSystem(encoder, **_ctc(encoder, folder, info, tokens))
    return SpeechSystem(encoder, **_emotion(encoder, folder, info))


def is_baseline(folder: Path) -> bool:
    """Whether ``folder`` holds a trained baseline."""
    return (folder / BASELINE).exists()


def read_description(folder: Path) -> dict[str, Any]:
    """Read ``expert.json``, ``merge.json`` or ``baseline.json``.

    Returns:
        Its entries; ``kind`` is asr, ser, merge, or a kind of `decoding.baselines`.

    Raises:
        UserError: There is none of them or several, or it lacks an entry.
    """
    found = [name for name in (EXPERT, MERGE, BASELINE) if (folder / name).exists()]
    if len(found) != 1:
        raise UserError(
            f"{folder} must hold one of {EXPERT}, {MERGE} and {BASELINE}, found "
            f"{' and '.join(found) or 'none'}: run its training to the end"
        )
    path = folder / found[0]
    if found[0] == BASELINE:
        info = read_json(path)
        baselines.module_of(info.get("kind"), str(path))
        return info
    info = {"kind": "merge"} | read_json(path) if found[0] == MERGE else read_json(path)
    needed = {"asr": ("tokens",), "ser": ("labels", "head")}
    needed["merge"] = ("labels", "head", "options", "task_vectors")
    if info.get("kind") not in needed:
        raise UserError(f"{path}: kind {info.get('kind')!r} is none of {', '.join(needed)}")
    for key in ("base_sha256", *needed[info["kind"]]):
        if key not in info:
            raise UserError(f"{path} lacks {key!r}: run its training again")
    return info


def base_folder(folder: Path, base: Pathlike | None) -> Path:
    """The base encoder's folder, given or named by the system's description."""
    if base is not None:
        return Path(base)
    named = read_description(folder).get("base")
    if named is None:
        raise UserError(f"--base is missing: {folder} doesn't say where its base encoder is")
    return folder / named


def check_base(folder: Path, info: Mapping[str, Any], base: Path) -> None:
    """Refuse a base that the system was not made from.

    Raises:
        UserError: The SHA-256 in ``base.json`` differs from the system's.
    """
    found = read_base_info(base)["sha256"]
    if found != info["base_sha256"]:
        raise UserError(
            f"{folder} was made from the base {info['base_sha256'][:12]}, but {base} is "
            f"{found[:12]}: give its own base, or train the system again"
        )


def bake_merge(encoder: SpeechEncoder, folder: Path, info: Mapping[str, Any]) -> None:
    """Turn the base in ``encoder`` into the merged encoder, with the final coefficients.

    Raises:
        UserError: A task vector is missing, damaged, or not the one of the training.
    """
    path = require(folder / "coefficients.json", "stage `merge`")
    table = read_json(path)
    with taken_apart(path, "stage `merge`"):
        tasks, groups = tuple(table["tasks"]), tuple(table["groups"])
        final = torch.tensor(table["final"], dtype=torch.float32)
    if not tasks:
        return
    vectors = merge_vectors_of(folder, info, tasks)
    coefficients = Coefficients(tasks, groups, info["options"]["granularity"], trainable=False)
    if final.shape != coefficients.raw.shape or not bool(final.isfinite().all()):
        raise UserError(
            f"{path}: `final` must be {tuple(coefficients.raw.shape)} finite numbers "
            "(tasks x groups): train the merge again"
        )
    coefficients.raw.data.copy_(final)
    encoder.load_encoder_state(MergedEncoder(encoder, vectors, coefficients).bake())


def merge_vectors_of(
    folder: Path, info: Mapping[str, Any], names: Sequence[str]
) -> dict[str, TaskVector]:
    """The vectors that a merge's coefficients are for, made as its training made them.

    Args:
        folder: Of the merge.
        info: Its description.
        names: What the coefficients are for.

    Raises:
        UserError: A task vector is missing, damaged, or not the one of the training.
    """
    config = MergeConfig.from_dict({"name": folder.name, **info["options"]}, str(folder / MERGE))
    if not config.changes_vectors:
        return {name: _load_vector(folder, info, name) for name in names}
    vectors = prepared(config, {task: _load_vector(folder, info, task) for task in config.tasks})
    check_rebuilt(vectors, info.get("checksums", {}), str(folder))
    return vectors


def _load_vector(folder: Path, info: Mapping[str, Any], task: str) -> TaskVector:
    named = info["task_vectors"].get(task)
    if named is None:
        raise UserError(f"{folder / MERGE} names no task vector {task!r}: train the merge again")
    path = folder / named
    vector = TaskVector.load(path)
    for key, expected in (
        ("base_sha256", info["base_sha256"]),
        ("expert_sha256", info.get("expert_sha256", {}).get(task, "")),
    ):
        found = vector.metadata.get(key, "")
        if expected and found and found != expected:
            raise UserError(
                f"{path} has {key} {found[:12]}, but {folder} was trained with {expected[:12]}: "
                "train the merge again with the new task vectors"
            )
    return vector


def _emotion(encoder: SpeechEncoder, folder: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    labels = tuple(info["labels"])
    head = build_head(encoder.num_layers, encoder.hidden_size, len(labels), **info["head"])
    load_module(head, folder / HEAD)
    return {"emotion_head": head, "labels": labels, "head_options": info["head"]}


def _ctc(
    encoder: SpeechEncoder, folder: Path, info: Mapping[str, Any], tokens: Pathlike | None
) -> dict[str, Any]:
    tokenizer = Tokenizer(folder / "tokens.model" if tokens is None else tokens)
    tokenizer.check_tokens(info["tokens"], str(folder / EXPERT))
    head = CTCHead(encoder.hidden_size, tokenizer.vocab_size)
    load_module(head, folder / HEAD)
    return {"ctc_head": head, "tokenizer": tokenizer}


def _borrow_ctc(
    encoder: SpeechEncoder, expert: Path, info: Mapping[str, Any], tokens: Pathlike | None
) -> dict[str, Any]:
    lender = read_description(expert)
    if lender["kind"] != "asr":
        raise UserError(f"--asr_expert: {expert} is of kind {lender['kind']!r}, not asr")
    if lender["base_sha256"] != info["base_sha256"]:
        raise UserError(
            f"--asr_expert: {expert} was fine-tuned from the base {lender['base_sha256'][:12]}, "
            f"the merge from {info['base_sha256'][:12]}: give the expert that was merged"
        )
    merged = info.get("expert_sha256", {}).get("asr")
    if merged and sha256_file(require(expert / WEIGHTS, "stage `asr_expert`")) != merged:
        raise UserError(
            f"--asr_expert: {expert / WEIGHTS} is not the expert that was merged "
            f"({merged[:12]}): give that one, or make the task vectors and the merge again"
        )
    return _ctc(encoder, expert, lender, tokens)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: Missing, or cut short.
    """
    require(path, "the training of its folder")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or cut short ({str(error).splitlines()[0]}): copy or make it again"
        ) from error


def load_weights(encoder: SpeechEncoder, path: Path) -> None:
    """Give ``encoder`` the weights of a file, strictly.

    Raises:
        UserError: Missing or cut short, or the tensors of another encoder.
    """
    state = read_tensors(path)
    try:
        encoder.load_encoder_state(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def load_module(module: nn.Module, path: Path) -> None:
    """Give a head the weights of a file, strictly.

    Raises:
        UserError: Names or shapes differ from what the description says.
    """
    state = read_tensors(path)
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise UserError(
            f"{path} does not fit its description ({details}): train it again"
        ) from error


def front_end_moved(encoder: SpeechEncoder, base: Pathlike) -> str | None:
    """Name of a CNN tensor that differs from the base's, whose stored features don't fit then."""
    reference = load_encoder(base).encoder_state()
    for name, tensor in encoder.encoder_state().items():
        if name.startswith(_CNN) and not torch.equal(tensor, reference[name]):
            return name
    return None
