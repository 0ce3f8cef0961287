"""MTLSER: emotion, words and speaker learned together (Chen et al. 2025, see `models.mtlser`).

The paper's: the three heads, the joint loss with alpha and beta, wav2vec 2.0 base. Its published
code's: alpha 0.1, beta 0.15 (from a plot script), AdamW 5e-5, batches of 8, 100 epochs, the CNN
trained, characters as tokens; see ``conf/wav2vec2_base``. Ours: everything about unknown targets,
the held-out utterances, speakers that talk, and other encoders. Trained on WavLM-Large with all but
the CNN it is the joint multi-task row of AdaLTM's table.
"""

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from espnet2.utils.types import str_or_none

from espnet_adaltm.backbone.loading import read_base_info
from espnet_adaltm.config import check_keys
from espnet_adaltm.data.tokens import MODEL_FILE, Tokenizer
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import atomic_open, require, write_json, write_text
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.models.losses import build_loss
from espnet_adaltm.models.mtlser import CTC_UNITS, EMOTION_HEADS, MTLHead, TaskWeights
from espnet_adaltm.training import mtlser_data
from espnet_adaltm.training.data import PARTS, DataNeeds
from espnet_adaltm.training.export import write_tensors
from espnet_adaltm.training.gradient_conflict import GradientConflict
from espnet_adaltm.training.mtlser_model import MTLSERModel
from espnet_adaltm.training.task import (
    AdaltmTask,
    add_emotion_arguments,
    add_encoder_arguments,
    augmentation,
    build_encoder,
    require_labels,
)

KIND = "mtlser"
DATA, HELD_OUT, SPEAKERS = "data", "held_out", "speakers.txt"
ORIGIN = {
    "paper": "heads, joint loss and the meaning of alpha and beta (Chen et al. 2025)",
    "published code": "alpha 0.1, beta 0.15",
    "ours": "masked pooling, real speakers, unknown targets left out of the loss, CTC per token, "
    "speakers scored on held-out utterances of the training speakers",
}


class MTLSERTask(AdaltmTask):
    """Trains encoder and three heads; what an utterance lacks is left out of the loss."""

    needs = DataNeeds("ser_shape", {})
    not_sequence = ("emotion", "speaker")

    @classmethod
    def add_own_arguments(cls, group: Any) -> None:
        """Add the options of MTLSER."""
        add_encoder_arguments(group, freeze_cnn=True)
        add_emotion_arguments(group)
        group.add_argument("--tokens", type=str_or_none, default=None, help="Folder of the tokens")
        weights = TaskWeights()
        group.add_argument(
            "--alpha", type=float, default=weights.alpha, help="Weight of CTC; 0: no transcripts"
        )
        group.add_argument(
            "--beta",
            type=float,
            default=weights.beta,
            help="Weight of the speaker loss; 0: no speakers",
        )
        group.add_argument(
            "--emotion_head",
            default="linear",
            choices=EMOTION_HEADS,
            help="linear: MTLSER's; layers: that of the SER expert, with --head_conf",
        )
        group.add_argument("--mtl_dropout", type=float, default=0.1, help="Before linear heads")
        group.add_argument(
            "--ctc_unit",
            default="token",
            choices=CTC_UNITS,
            help="The CTC loss is counted per token of the transcript or per utterance",
        )
        group.add_argument(
            "--train_on",
            default="all",
            choices=("all", "labelled"),
            help="all: utterances without an emotion too, for their words and speakers",
        )
        group.add_argument(
            "--emotion_shape",
            type=str_or_none,
            default=None,
            help="Shape file of the training utterances whose emotions may be used; all by default",
        )
        group.add_argument(
            "--speaker_holdout",
            type=float,
            default=0.03,
            help="Share of each speaker's training utterances to put aside and score speakers on, "
            "where the validation set has none of these speakers",
        )
        group.add_argument(
            "--conflict_interval",
            type=int,
            default=0,
            help="Steps between measurements of gradient conflict; 0: never. A backward pass per "
            "task each",
        )

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Also complete the tables, and choose what is put aside."""
        labels = require_labels(args)
        _check(args)
        for part in PARTS:
            if getattr(args, f"{part}_dump") is None:
                raise UserError(
                    f"--{part}_dump is missing: MTLSER reads emotions, transcripts and speakers of "
                    "a dump folder"
                )
        if args.emotion_shape is not None and args.train_on == "labelled":
            args.train_shape_file = [args.emotion_shape]
        super().prepare(args)
        if args.beta:
            _choose_speakers(args)
        for part in PARTS:
            _add_targets(args, part)
            mtlser_data.emotion_counts(_table(args, part, "emotion"), labels)

    @classmethod
    def data_needs(cls, args: argparse.Namespace, part: str) -> DataNeeds:
        """The speech; `prepare` adds the targets, which may be incomplete."""
        return DataNeeds("all_shape" if args.train_on == "all" else "ser_shape", {})

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Text and speaker are there if alpha and beta are not 0."""
        return ("emotion", "text", "speaker")

    @classmethod
    def build_preprocess_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> mtlser_data.MTLPreprocess:
        """Targets may be empty; the speaker becomes an index."""
        tokens = args.tokens if args.alpha else None
        return mtlser_data.MTLPreprocess(tokens, require_labels(args), _speakers(args))

    @classmethod
    def input_files(cls, args: argparse.Namespace) -> dict[str, Path]:
        """Also labels, tokens, and the list of speakers."""
        files = {**super().input_files(args), "the labels": Path(args.labels)}
        if args.alpha:
            files["the token model"] = _token_model(args)
        if args.beta:
            files["the list of speakers"] = _data(args) / SPEAKERS
        return {**files, **_sources(args)}

    @classmethod
    def input_hashes(cls, args: argparse.Namespace) -> dict[str, str]:
        """Of the labels names and order, of the dump folders what is left of them in the tables."""
        hashes = super().input_hashes(args)
        kept = {role: value for role, value in hashes.items() if role not in _sources(args)}
        return {**kept, "the labels": " ".join(require_labels(args).labels)}

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> MTLSERModel:
        """Build encoder, heads and losses."""
        labels = require_labels(args)
        encoder = build_encoder(args)
        tokenizer = Tokenizer(args.tokens) if args.alpha else None
        head = MTLHead(
            encoder.num_layers,
            encoder.hidden_size,
            len(labels),
            vocab=0 if tokenizer is None else len(tokenizer.tokens),
            speakers=len(_speakers(args)),
            **_head_options(args),
        )
        counts = mtlser_data.emotion_counts(_table(args, "train", "emotion"), labels)
        return MTLSERModel(
            encoder,
            head,
            build_loss(args.loss, counts, gamma=args.focal_gamma),
            len(labels),
            TaskWeights(args.alpha, args.beta),
            decode=None if tokenizer is None else tokenizer.decode,
            ctc_unit=args.ctc_unit,
            augmentation=augmentation(args),
            conflict=GradientConflict(encoder, args.conflict_interval)
            if args.conflict_interval
            else None,
        )

    @classmethod
    def export(
        cls, args: argparse.Namespace, model: MTLSERModel, selected: dict[str, Any]
    ) -> list[Path]:
        """Write weights and ``baseline.json``; recognise the speakers of what was put aside."""
        from espnet_adaltm.decoding.baselines.mtlser import ENCODER, HEAD

        folder = Path(args.output_dir)
        written = [folder / ENCODER, folder / HEAD]
        write_tensors(written[0], model.encoder.encoder_state())
        write_tensors(written[1], model.head.state_dict())
        if args.alpha:
            written.append(folder / MODEL_FILE)
            with _token_model(args).open("rb") as source, atomic_open(written[-1], "wb") as target:
                shutil.copyfileobj(source, target)
        described = _description(args, selected)
        if (folder / HELD_OUT / "utt2spk").exists():
            written.append(folder / HELD_OUT / "utt2spk_hyp")
            described["held_out"] = _recognise_held_out(args, model, written[-1])
        write_json(folder / "baseline.json", described)
        return [*written, folder / "baseline.json"]


def _check(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is read."""
    TaskWeights(args.alpha, args.beta)
    if args.alpha:
        _token_model(args)
    if not 0 <= args.speaker_holdout <= 0.5:
        raise UserError(f"--speaker_holdout {args.speaker_holdout} is no share from 0 to 0.5")
    if args.conflict_interval < 0:
        raise UserError(f"--conflict_interval {args.conflict_interval} is negative")
    _head_options(args)


def _head_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `MTLHead` but for the sizes, checked."""
    check_keys(args.head_conf, ("hidden", "dropout"), "--head_conf")
    if args.emotion_head != "layers" and args.head_conf:
        raise UserError(f"--head_conf {args.head_conf} is for --emotion_head layers: leave it out")
    options = {"dropout": args.mtl_dropout, "pooling": args.pooling, "emotion": args.emotion_head}
    if args.emotion_head == "layers":
        options["emotion_options"] = {"hidden": 256, "dropout": 0.1, **args.head_conf}
    return options


def _token_model(args: argparse.Namespace) -> Path:
    if args.tokens is None:
        raise UserError(
            "--tokens is missing: give the folder of the token model (stage `tokens`), or --alpha 0"
        )
    return require(Path(args.tokens) / MODEL_FILE, "stage `tokens`")


def _data(args: argparse.Namespace) -> Path:
    """Where completed tables are written."""
    return Path(args.output_dir) / DATA


def _table(args: argparse.Namespace, part: str, name: str) -> Path:
    return _data(args) / f"{part}_{name}"


def _sources(args: argparse.Namespace) -> dict[str, Path]:
    """The files that the completed tables are made from, by role."""
    found = {
        f"{name} of the {part} set": Path(getattr(args, f"{part}_dump")) / name
        for part in PARTS
        for name in (_emotion_file(args), "text", "utt2spk")
    }
    if args.emotion_shape is not None:
        found["the utterances with a usable emotion"] = Path(args.emotion_shape)
    return {role: path for role, path in found.items() if path.exists()}


def _speakers(args: argparse.Namespace) -> list[str]:
    return mtlser_data.read_speakers(_data(args) / SPEAKERS) if args.beta else []


def _choose_speakers(args: argparse.Namespace) -> None:
    """List the training speakers, and put some of their utterances aside, in place."""
    shapes = {part: read_scp(getattr(args, f"{part}_shape_file")[0]) for part in PARTS}
    path = require(Path(args.train_dump) / "utt2spk", "stage `audio`")
    known = read_scp(path)
    used = {utt: known[utt] for utt in shapes["train"] if utt in known}
    lost = [utt for utt in shapes["train"] if utt not in known]
    if lost:
        raise UserError(f"{path} has no utterance {lost[0]!r}: run stage `audio` again")
    speakers = mtlser_data.training_speakers(used, str(path))
    write_text(_data(args) / SPEAKERS, "".join(f"{speaker}\n" for speaker in speakers))
    aside = Path(args.output_dir) / HELD_OUT / "utt2spk"
    others = Path(args.valid_dump) / "utt2spk"
    seen = set(read_scp(others).values()) & set(speakers) if others.exists() else set()
    chosen = []
    if args.speaker_holdout and not seen:
        emotions = Path(args.train_dump) / _emotion_file(args)
        labelled = read_scp(emotions).keys() if emotions.exists() else ()
        chosen = mtlser_data.put_aside(used, args.speaker_holdout, frozenset(labelled))
    if not chosen:
        aside.unlink(missing_ok=True)
        return
    write_scp(aside, {utt: used[utt] for utt in chosen})
    kept = {utt: size for utt, size in shapes["train"].items() if utt not in set(chosen)}
    write_scp(_data(args) / "train_shape", kept)
    args.train_shape_file = [str(_data(args) / "train_shape")]


def _emotion_file(args: argparse.Namespace) -> str:
    return "utt2soft" if args.soft_labels else "utt2emo"


def _add_targets(args: argparse.Namespace, part: str) -> None:
    """Add completed targets to what is read of a part, in place."""
    dump = Path(getattr(args, f"{part}_dump"))
    shape = getattr(args, f"{part}_shape_file")[0]
    files = {"emotion": _emotion_file(args)}
    if args.alpha:
        files["text"] = "text"
    if args.beta:
        files["speaker"] = "utt2spk"
    entries = []
    for name, file in files.items():
        out = _table(args, part, name)
        among = None
        if (name, part) == ("emotion", "train") and args.emotion_shape is not None:
            among = read_scp(args.emotion_shape).keys()
        found = mtlser_data.complete(dump / file, read_scp(shape), out, among)
        if name == "text" and part == "train" and not found:
            raise UserError(
                f"no utterance of {shape} has a transcript in {dump / file}: give transcripts, or "
                "--alpha 0"
            )
        entries.append((str(out), name, "text"))
    name = f"{part}_data_path_and_name_and_type"
    setattr(args, name, [*getattr(args, name), *entries])


def _description(args: argparse.Namespace, selected: dict[str, Any]) -> dict[str, Any]:
    """``baseline.json``."""
    options = ("alpha", "beta", "ctc_unit", "train_on", "freeze_cnn", "loss", "speaker_holdout")
    described: dict[str, Any] = {
        "kind": KIND,
        "labels": list(require_labels(args).labels),
        "tokens": list(Tokenizer(args.tokens).tokens) if args.alpha else None,
        "speakers": _speakers(args) or None,
        "base": os.path.relpath(args.base, args.output_dir),
        "base_sha256": read_base_info(args.base)["sha256"],
        "head": _head_options(args),
        "options": {name: getattr(args, name) for name in options},
        "origin": ORIGIN,
        "seed": args.seed,
        "selected": selected,
    }
    if not args.freeze_cnn:
        described["feats_type"] = "raw"  # stored features are those of the base's CNN
    return described


def _recognise_held_out(
    args: argparse.Namespace, model: MTLSERModel, path: Path
) -> dict[str, float]:
    """Write the speaker of every utterance that was put aside, and tell how many were right."""
    from espnet_adaltm.decoding import batch
    from espnet_adaltm.decoding.baselines.mtlser import MTLSystem

    truth = read_scp(path.with_name("utt2spk"))
    if args.feats_type == "raw":
        inputs = batch.raw_inputs(args.train_dump)
    else:
        root = Path(args.feats_dir or Path(args.base) / "feats")
        hop = model.encoder.geometry.hop
        inputs = batch.feature_inputs(args.train_dump, root / Path(args.train_dump).name, hop)
    tokenizer = Tokenizer(args.tokens) if args.alpha else None
    system = MTLSystem(model.encoder, model.head, tokenizer=tokenizer, speakers=_speakers(args))
    device = "cuda" if args.ngpu else "cpu"
    said = batch.decode(system, inputs.only(truth, str(path)), device=device).speakers
    write_scp(path, said)
    right = sum(said[utt] == speaker for utt, speaker in truth.items())
    return {
        "utterances": len(truth),
        "speakers": len(set(truth.values())),
        "spk_acc": right / len(truth),
    }
