"""Memory-as-a-Layer: trains the memory of a frozen host on dialogues.

Hosts: ``ser``, a SER expert (or a merge), and ``qwen2_audio``, a Qwen2-Audio checkpoint. Only the
adapter is trained [P: the host's weights stay as they are]; ``--train_head true`` lets the SER
host's emotion head learn too [ours].
"""

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.iterators.sequence_iter_factory import SequenceIterFactory
from espnet2.tasks.abs_task import IteratorOptions
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str2bool, str_or_none
from torch import nn

from espnet_adaltm.backbone.loading import read_base_info
from espnet_adaltm.data.dialogs import (
    KINDS,
    PSEUDO_TURNS,
    SPEAKER,
    Dialogs,
    read_dialogs,
    source_file,
)
from espnet_adaltm.data.labels import Labels, check_same_labels
from espnet_adaltm.decoding import systems
from espnet_adaltm.decoding.baselines.memory import (
    HOSTS,
    MEMORY,
    QWEN,
    SER,
    host_hash,
    load_ser_host,
)
from espnet_adaltm.decoding.dialog import DIALOG, MEANS
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import require, sha256_file, write_json
from espnet_adaltm.kaldi import read_scp
from espnet_adaltm.merging.config import HELD_OUT, TRAIN
from espnet_adaltm.models.losses import LOSSES, build_loss
from espnet_adaltm.models.memory import Memory, memory_options
from espnet_adaltm.training import held_out
from espnet_adaltm.training.data import PARTS, DataNeeds
from espnet_adaltm.training.dialog_batches import (
    DialogPreprocess,
    cut,
    number_places,
    pack,
    share,
)
from espnet_adaltm.training.export import HEAD, write_tensors
from espnet_adaltm.training.memory_model import MemoryModel
from espnet_adaltm.training.task import AdaltmTask, require_labels

_HOST = "the host"
NOTES = {
    "paper": "memory written at test time and read as a residual at audio tokens; frozen host; "
    "Titans' rule",
    "ours": "gate tanh(g) from 0, read before write, one two-layer SiLU memory after a middle "
    "layer, chunked writes, state reset at every dialogue, truncated training",
}


class MemoryTask(AdaltmTask):
    """Trains memory layers; see the module."""

    needs = DataNeeds("all_shape", {})
    not_sequence = ("emotion", "place")

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Batches are made by the task; a batch without a second turn uses no write weights."""
        super().add_task_arguments(parser)
        parser.set_defaults(iterator_type="task", unused_parameters=True)

    @classmethod
    def add_own_arguments(cls, group: Any) -> None:
        """Add the options of a memory."""
        group.add_argument("--host", default=SER, choices=HOSTS, help="What is given a memory")
        group.add_argument(
            "--ser_expert",
            type=str_or_none,
            default=None,
            help="Folder of the host ser: a SER expert, or a merge",
        )
        group.add_argument(
            "--host_conf",
            action=NestedDictAction,
            default={},
            help="For host qwen2_audio: source, prompt, words, dtype; see models/qwen2_audio_host",
        )
        group.add_argument(
            "--memory_conf",
            action=NestedDictAction,
            default={},
            help="layers (middle), size, width, chunk, truncate, max_step, bounded; see "
            "models/memory_layer",
        )
        group.add_argument("--train_head", type=str2bool, default=False, help="Host ser only")
        group.add_argument(
            "--dialogs",
            default=KINDS[0],
            choices=KINDS,
            help="utt2dialog; pseudo-dialogues of a speaker; MSP-Podcast's shows",
        )
        group.add_argument("--pseudo_turns", type=int, default=PSEUDO_TURNS)
        group.add_argument(
            "--max_turns", type=int, default=16, help="Longer dialogues are trained on in pieces"
        )
        group.add_argument(
            "--learn",
            type=str2bool,
            default=True,
            help="false: nothing is written, in training and after; a control of the same size",
        )
        group.add_argument(
            "--learn_on",
            default=TRAIN,
            choices=(TRAIN, HELD_OUT),
            help="held_out: half of the validation set's dialogues, whose speakers the host was "
            "not trained on; the other half chooses epochs",
        )
        group.add_argument("--held_out_seed", type=int, default=0, help="Which halves")
        group.add_argument("--labels", type=str_or_none, default=None, help="labels.json")
        group.add_argument("--soft_labels", type=str2bool, default=False, help="utt2soft")
        group.add_argument(
            "--emotion_shape",
            type=str_or_none,
            default=None,
            help="Shape file of the training utterances whose emotions may be used; all by default."
            " The others are still heard",
        )
        group.add_argument("--loss", default="cb_soft_ce", choices=LOSSES)
        group.add_argument("--focal_gamma", type=float, default=2.0)

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Also check the host, the labels and the dialogues."""
        labels = require_labels(args)
        _check_options(args)
        if args.learn_on == HELD_OUT:
            args.train_dump, args.emotion_shape = args.valid_dump, None
        super().prepare(args)
        if args.learn_on == HELD_OUT:
            _hold_out(args)
        if args.host == SER:
            _check_ser_host(args, labels)
        for part in PARTS:
            read_dialogs_of(args, part)
            label_counts(args, labels, part)

    @classmethod
    def input_files(cls, args: argparse.Namespace) -> dict[str, Path]:
        """Also labels, emotions, dialogues and the host."""
        files = {**super().input_files(args), "the labels": Path(args.labels)}
        for part in PARTS:
            files[f"the {part} emotions"] = emotion_file(args, part)
            source = source_file(getattr(args, f"{part}_dump"), args.dialogs)
            if source is not None:
                files[f"the {part} dialogues"] = source
        if args.emotion_shape is not None:
            files["the utterances with a usable emotion"] = Path(args.emotion_shape)
        if args.host == SER:
            files[_HOST] = description_file(Path(args.ser_expert))
        return files

    @classmethod
    def input_hashes(cls, args: argparse.Namespace) -> dict[str, str]:
        """The host by its weights."""
        hashes = {**super().input_hashes(args), "the labels": " ".join(require_labels(args).labels)}
        if args.host == SER:
            hashes[_HOST] = host_hash(Path(args.ser_expert))
        return hashes

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> DialogPreprocess:
        """Speech, place and emotion."""
        part = "train" if train else "valid"
        places = number_places(read_dialogs_of(args, part))
        return DialogPreprocess(require_labels(args), usable_emotions(args, part), places)

    @classmethod
    def build_task_iter_factory(
        cls, args: argparse.Namespace, iter_options: IteratorOptions, mode: str
    ) -> AbsIterFactory:
        """Batches of whole dialogues; in validation one that is too long goes on in the next."""
        part = "train" if iter_options.train else "valid"
        sizes = {utt: int(n.split(",")[0]) for utt, n in _shape(args, part).items()}
        dialogs = read_dialogs_of(args, part)
        if iter_options.train:
            pieces = cut(dialogs, usable_emotions(args, part), args.max_turns)
        else:
            pieces = [list(utts) for utts in dialogs.turns.values()]
        batches = pack(pieces, sizes, iter_options.batch_bins, split=not iter_options.train)
        # In validation every process hears everything: counts that are all too large by the same
        # factor give the same metrics, and dialogues that go on must stay together.
        if iter_options.distributed and iter_options.train:
            world = torch.distributed.get_world_size()
            batches = share(batches, torch.distributed.get_rank(), world)
        return SequenceIterFactory(
            dataset=cls.build_dataset(args, iter_options, {u for batch in batches for u in batch}),
            batches=batches,
            seed=args.seed,
            num_iters_per_epoch=iter_options.num_iters_per_epoch,
            shuffle=iter_options.train,
            num_workers=args.num_workers,
            collate_fn=iter_options.collate_fn,
            pin_memory=args.ngpu > 0,
        )

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> MemoryModel:
        """The frozen host with its memory."""
        labels = require_labels(args)
        host = build_host(args, labels)
        memory = Memory(host.hidden_size, **_options(args, host))
        loss = build_loss(args.loss, label_counts(args, labels), gamma=args.focal_gamma)
        head = host.head if args.train_head else None
        return MemoryModel(host, memory, loss, len(labels), learn=args.learn, trained_head=head)

    @classmethod
    def export(
        cls, args: argparse.Namespace, model: MemoryModel, selected: dict[str, Any]
    ) -> list[Path]:
        """Write ``memory.safetensors``, the head if it was trained, and ``baseline.json``."""
        folder, host = Path(args.output_dir), model.encoder.module
        written = [folder / MEMORY]
        write_tensors(written[0], model.memory.state_dict())
        if args.train_head:
            written.append(folder / HEAD)
            write_tensors(written[1], host.head.state_dict())
        info = {
            "kind": "memory",
            "labels": list(require_labels(args).labels),
            **_host_entries(args, folder),
            "options": _options(args, host),
            "weights": ".",
            "memory_sha256": sha256_file(written[0]),
            "gates": {n: layer.gate.tanh().item() for n, layer in model.memory.layers.items()},
            "dialogs": {"kind": args.dialogs, "pseudo_turns": args.pseudo_turns},
            "pseudo_dialogs": args.dialogs == SPEAKER,
            "history": DIALOG,
            "history_means": MEANS[DIALOG],
            "learn": args.learn,
            "learn_on": args.learn_on,
            "trained_head": args.train_head,
            "feats_type": args.feats_type,
            "seed": args.seed,
            "selected": dict(selected),
            "notes": NOTES,
        }
        path = folder / systems.BASELINE
        write_json(path, info)
        return [*written, path]


def _hold_out(args: argparse.Namespace) -> None:
    """Divide the validation dialogues, in place."""
    shapes = held_out.split_dialogs(
        read_dialogs_of(args, "valid").turns,
        Path(args.valid_shape_file[0]),
        args.held_out_seed,
        Path(args.output_dir) / held_out.FOLDER,
    )
    for part in PARTS:
        setattr(args, f"{part}_shape_file", [str(shapes[part])])


def description_file(folder: Path) -> Path:
    """``expert.json`` or ``merge.json`` of a host."""
    found = [name for name in (systems.EXPERT, systems.MERGE) if (folder / name).exists()]
    return require(folder / (found or [systems.EXPERT])[0], "stage `ser_expert`")


def read_dialogs_of(args: argparse.Namespace, part: str) -> Dialogs:
    """The dialogues of ``train`` or ``valid``."""
    dump = getattr(args, f"{part}_dump")
    if dump is None:
        raise UserError(f"--{part}_dump is missing: dialogues are read from the dump folder")
    return read_dialogs(dump, _shape(args, part), args.dialogs, args.pseudo_turns)


def _shape(args: argparse.Namespace, part: str) -> dict[str, str]:
    return read_scp(getattr(args, f"{part}_shape_file")[0])


def emotion_file(args: argparse.Namespace, part: str) -> Path:
    """The file of the labels of ``train`` or ``valid``."""
    name = "utt2soft" if args.soft_labels else "utt2emo"
    return require(Path(getattr(args, f"{part}_dump")) / name, "stage `audio`")


def usable_emotions(args: argparse.Namespace, part: str) -> dict[str, str]:
    """Utterance to emotion or distribution, of ``train`` or ``valid``.

    Raises:
        UserError: A file is missing.
    """
    emotions = read_scp(emotion_file(args, part))
    if part != "train" or args.emotion_shape is None:
        return emotions
    chosen = read_scp(require(args.emotion_shape, "stage `tokens`"))
    return {utt: emotion for utt, emotion in emotions.items() if utt in chosen}


def label_counts(args: argparse.Namespace, labels: Labels, part: str = "train") -> list[int]:
    """Utterances of each emotion, length C.

    Raises:
        UserError: An emotion that is not among the labels, or no label at all.
    """
    path = emotion_file(args, part)
    emotions, used = usable_emotions(args, part), _shape(args, part)
    counts: Counter[int] = Counter()
    for utt in used:
        if utt in emotions:
            target = labels.target(emotions[utt], f"{path}: utterance {utt!r}")
            counts[target.index(max(target))] += 1
    if not counts:
        raise UserError(f"{path}: not one of the {len(used)} utterances has an emotion")
    return [counts[index] for index in range(len(labels))]


def build_host(args: argparse.Namespace, labels: Labels) -> nn.Module:
    """Load what is given a memory.

    Raises:
        UserError: Missing or damaged, of another base, or not usable on stored features.
    """
    if args.host == QWEN:
        from espnet_adaltm.models.qwen2_audio_host import Qwen2AudioHost

        return Qwen2AudioHost.from_pretrained(labels=labels.labels, **args.host_conf)
    host = load_ser_host(Path(args.ser_expert), Path(args.base))
    moved = None
    if args.feats_type == "extracted":
        moved = systems.front_end_moved(host.encoder, args.base)
    if moved is not None:
        raise UserError(
            f"{args.ser_expert} changed the CNN front end ({moved!r}), which stored features "
            "bypass: use --feats_type raw"
        )
    return host


def _options(args: argparse.Namespace, host: nn.Module) -> dict[str, Any]:
    return memory_options(args.memory_conf, host.num_layers, "--memory_conf")


def _host_entries(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Where the host is, relative to the results."""
    if args.host == QWEN:
        return {"host_kind": QWEN, "host_conf": dict(args.host_conf)}

    return {
        "host_kind": SER,
        "host": Path(os.path.relpath(args.ser_expert, folder)).as_posix(),
        "host_sha256": host_hash(Path(args.ser_expert)),
        "base": Path(os.path.relpath(args.base, folder)).as_posix(),
        "base_sha256": read_base_info(args.base)["sha256"],
    }


def _check_options(args: argparse.Namespace) -> None:
    if args.mask_time_prob or args.noise_prob:
        raise UserError("--mask_time_prob and --noise_prob are for encoders that learn: set both 0")
    if min(args.max_turns, args.pseudo_turns) < 1:
        raise UserError("--max_turns and --pseudo_turns must be at least 1")
    if args.host == QWEN:
        if args.train_head or args.feats_type != "raw":
            raise UserError("--host qwen2_audio takes --feats_type raw and --train_head false")
        if "source" not in args.host_conf:
            raise UserError("--host_conf lacks `source`: a Hub id or folder of Qwen2-Audio")
        return
    if args.base is None or args.ser_expert is None:
        raise UserError("--base and --ser_expert are needed: the folders of stages 4 and 6")


def _check_ser_host(args: argparse.Namespace, labels: Labels) -> None:
    folder = Path(args.ser_expert)
    description_file(folder)
    host_hash(folder)
    info = systems.read_description(folder)
    check_same_labels(labels, info["labels"], f"{args.labels} and {folder}")
    systems.check_base(folder, info, Path(args.base))
