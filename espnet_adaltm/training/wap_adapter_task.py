"""Adapter with local attributes, first half: training the adapter on unlabelled speech.

Reads the stored hidden states of the frozen encoder (`bin/extract_hidden.py`); see
`models.wap_adapter` and `models.self_distillation` for what is the paper's and what is ours.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str_or_none

from espnet_adaltm.backbone.hidden import INFO, read_hidden_info
from espnet_adaltm.backbone.loading import read_base_info
from espnet_adaltm.config import check_keys
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import sha256_file, write_json
from espnet_adaltm.models.prototypes import Prototypes
from espnet_adaltm.models.self_distillation import EmaSchedule, SelfDistillation
from espnet_adaltm.models.wap_adapter import AdapterConfig, WapAdapter
from espnet_adaltm.training.data import PARTS, DataNeeds
from espnet_adaltm.training.export import write_tensors
from espnet_adaltm.training.task import AdaltmTask, augmentation
from espnet_adaltm.training.wap_models import WapModel

ADAPTER = "adapter.safetensors"
ADAPTER_INFO = "adapter.json"


def use_hidden_states(args: argparse.Namespace) -> None:
    """Make ``--feats_dir`` the root of stored hidden states, whatever ``--feats_type`` says.

    Raises:
        UserError: No base or no such folder, or states of another base, or of different layers.
    """
    if args.base is None:
        raise UserError("--base is missing: give the folder of the base encoder (stage `base`)")
    if args.noise_prob > 0:
        raise UserError(
            "--noise_prob needs waveforms, this training reads hidden states: set it to 0"
        )
    if args.feats_dir is None:
        raise UserError("--feats_dir is missing: give the root that bin/extract_hidden.py wrote to")
    args.feats_type = "extracted"
    base = read_base_info(args.base)["sha256"]
    infos = {part: read_hidden_info(folder) for part, folder in hidden_folders(args).items()}
    for part, info in infos.items():
        if info["base_sha256"] != base:
            raise UserError(
                f"{hidden_folders(args)[part]} was made with the base {info['base_sha256'][:12]}, "
                f"but {args.base} is {base[:12]}: run bin/extract_hidden.py again"
            )
    layers = {info["layer"] for info in infos.values()}
    if len(layers) > 1:
        raise UserError(
            f"{args.feats_dir} holds hidden states of different layers ({', '.join(sorted(layers))}"
            "): run bin/extract_hidden.py again"
        )


def hidden_folders(args: argparse.Namespace) -> dict[str, Path]:
    """Part (train, valid) to the folder of its hidden states."""
    folders = {}
    for part in PARTS:
        dump = getattr(args, f"{part}_dump")
        if dump is None:
            raise UserError(f"--{part}_dump is missing: give the dump folder of the {part} set")
        folders[part] = Path(args.feats_dir) / Path(dump).name
    return folders


def hidden_files(args: argparse.Namespace) -> dict[str, Path]:
    """What says what the hidden states are, by role: inputs of a training."""
    folders = hidden_folders(args)
    return {f"the {part} hidden states": folder / INFO for part, folder in folders.items()}


def hidden_info(args: argparse.Namespace) -> dict[str, Any]:
    """``layer`` and ``dim`` of the hidden states."""
    return read_hidden_info(hidden_folders(args)["train"])


def add_adapter_arguments(group: Any) -> None:
    """Add the options that both trainings have."""
    group.add_argument(
        "--wap_conf",
        action=NestedDictAction,
        default={},
        help="Adapter: layers (3), dim (256), heads (4), feed_forward (1024), dropout (0.1), "
        "kernel (31)",
    )


class WapAdapterTask(AdaltmTask):
    """Trains an adapter by masked prediction of local attributes and self-distillation."""

    needs = DataNeeds("all_shape", {})

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add all options, masks being on by default: about half of the frames."""
        super().add_task_arguments(parser)
        parser.set_defaults(mask_time_prob=0.065)

    @classmethod
    def add_own_arguments(cls, group: Any) -> None:
        """Add the options of adapter training."""
        add_adapter_arguments(group)
        group.add_argument(
            "--num_attributes", type=int, default=128, help="Clusters of the teacher's frames"
        )
        group.add_argument(
            "--attribute_weight", type=float, default=1.0, help="0: without local attributes"
        )
        group.add_argument(
            "--distill_weight", type=float, default=1.0, help="0: without self-distillation"
        )
        group.add_argument(
            "--speech_name",
            type=str_or_none,
            default=None,
            help="What tables call the speech that it is trained on, if that is another corpus'",
        )
        group.add_argument(
            "--ema_conf",
            action=NestedDictAction,
            default={},
            help="Teacher's decay: from start (0.999) to end (0.9999) over ramp (30000) updates",
        )
        group.add_argument(
            "--cluster_conf",
            action=NestedDictAction,
            default={},
            help="Clusters: decay (0.99) of their averages, dead (0.05) share of the mean use",
        )

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Also refuse settings under which nothing is learned."""
        if args.mask_time_prob <= 0:
            raise UserError("--mask_time_prob is 0: masked prediction needs masks, e.g. 0.065")
        for name in ("attribute_weight", "distill_weight"):
            if getattr(args, name) < 0:
                raise UserError(f"--{name} {getattr(args, name):g} is negative")
        if args.attribute_weight == 0 and args.distill_weight == 0:
            raise UserError("--attribute_weight and --distill_weight are both 0: nothing to learn")
        if args.attribute_weight > 0 and args.num_attributes < 2:
            raise UserError(f"--num_attributes {args.num_attributes}: give at least 2 clusters")
        AdapterConfig.from_dict(args.wap_conf, "--wap_conf")
        _ema(args)
        _clusters(args)
        use_hidden_states(args)
        super().prepare(args)

    @classmethod
    def input_files(cls, args: argparse.Namespace) -> dict[str, Path]:
        """Also what the hidden states are."""
        return {**super().input_files(args), **hidden_files(args)}

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> WapModel:
        """Build student, teacher, clusters and losses."""
        config = AdapterConfig.from_dict(args.wap_conf, "--wap_conf")
        adapter = WapAdapter(hidden_info(args)["dim"], config)
        prototypes = None
        if args.attribute_weight > 0:
            prototypes = Prototypes(args.num_attributes, config.dim, **_clusters(args))
        objective = SelfDistillation(
            adapter,
            _ema(args),
            prototypes,
            attribute_weight=args.attribute_weight,
            distill_weight=args.distill_weight,
        )
        return WapModel(adapter, objective, augmentation(args))

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: WapModel
    ) -> list[torch.optim.Optimizer]:
        """The usual optimiser; after each of its steps the teacher follows."""
        optimizers = super().build_optimizers(args, model)
        for optimizer in optimizers:
            optimizer.register_step_post_hook(lambda *_: model.update_teacher())
        return optimizers

    @classmethod
    def export(
        cls, args: argparse.Namespace, model: WapModel, selected: dict[str, Any]
    ) -> list[Path]:
        """Write ``adapter.safetensors`` (the student, as in data2vec) and ``adapter.json``."""
        folder = Path(args.output_dir)
        write_tensors(folder / ADAPTER, model.encoder.state_dict())
        info = hidden_info(args)
        with_attributes = args.attribute_weight > 0
        write_json(
            folder / ADAPTER_INFO,
            {
                "kind": "adapter",
                "base_sha256": info["base_sha256"],
                "layer": info["layer"],
                "dim": info["dim"],
                "sha256": sha256_file(folder / ADAPTER),
                "adapter": AdapterConfig.from_dict(args.wap_conf, "--wap_conf").shape(),
                "attributes": args.num_attributes if with_attributes else 0,
                "attribute_weight": args.attribute_weight,
                "distill_weight": args.distill_weight,
                "speech": args.speech_name,
                "seed": args.seed,
                "selected": selected,
            },
        )
        return [folder / ADAPTER, folder / ADAPTER_INFO]


def _ema(args: argparse.Namespace) -> EmaSchedule:
    check_keys(args.ema_conf, EmaSchedule.__dataclass_fields__, "--ema_conf")
    schedule = EmaSchedule(**args.ema_conf)
    for name in ("start", "end"):
        if not 0 <= getattr(schedule, name) < 1:
            raise UserError(f"--ema_conf: {name} {getattr(schedule, name)} is not in [0, 1)")
    return schedule


def _clusters(args: argparse.Namespace) -> dict[str, float]:
    check_keys(args.cluster_conf, ("decay", "dead"), "--cluster_conf")
    for name, value in args.cluster_conf.items():
        if not 0 <= value < 1:
            raise UserError(f"--cluster_conf: {name} {value} is not in [0, 1)")
    return dict(args.cluster_conf)
