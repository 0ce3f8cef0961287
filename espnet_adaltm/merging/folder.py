"""A merged encoder as a folder that `transformers` loads, with its recipe beside it."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from espnet_adaltm import __version__
from espnet_adaltm.backbone.encoder import MODELS
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_dir, read_json, write_json, write_text
from espnet_adaltm.merging.offline import output_specs
from espnet_adaltm.merging.places import CONFIG, COPIED, RECIPE, check_folder
from espnet_adaltm.merging.plan import MergePlan
from espnet_adaltm.merging.task_vector import is_task_vector

_ROOM = 1.05  # for what else is written


def read_base_config(base: Pathlike, *, any_names: bool = False) -> dict[str, Any]:
    """Read ``config.json`` of the base's folder; empty without one if any network will do.

    Raises:
        UserError: No folder, no configuration, or none of an encoder that is supported.
    """
    path = Path(base) / "config.json"
    if any_names and not path.is_file():
        return {}
    if not path.is_file():
        raise UserError(f"{path} does not exist: --base must be a folder with a configuration")
    config = read_json(path)
    if not any_names and config.get("model_type") not in [*MODELS]:
        raise UserError(
            f"{path}: model_type {config.get('model_type')!r} is not supported: use one of "
            f"{', '.join(MODELS)}, or any_names: true in the recipe"
        )
    return config


def check_config(plan: MergePlan, config: Mapping[str, Any], base: Pathlike) -> None:
    """Refuse a configuration that tells of another number of layers than the weights have.

    Raises:
        UserError: The message has both numbers.
    """
    told, found = config.get("num_hidden_layers"), plan.num_layers
    if not plan.recipe.any_names and told != found:
        raise UserError(
            f"{base}: config.json tells of {told} layers, {plan.base.source} has {found}: they do "
            "not belong together"
        )


def is_norm_first(config: Mapping[str, Any]) -> bool:
    """Whether the encoder norms before its layers (WavLM-Large) instead of after (WavLM-Base)."""
    return bool(config.get("do_stable_layer_norm", False))


def check_output(plan: MergePlan, out: Path, vectors: Path | None = None) -> None:
    """Refuse a place that holds something else or is too small, before anything is written.

    `places` has the checks that need no plan.

    Raises:
        UserError: The message says which.
    """
    needed = {out: sum(spec.nbytes for spec in output_specs(plan).values())}
    if vectors is not None:
        _check_vectors(vectors, plan)
        sizes = [plan.base.specs[name].size for name in plan.floats]
        needed[vectors] = 4 * sum(sizes) * len(plan.sources)
    for source in (plan.base, *plan.sources):
        where = Path(source.source if source is plan.base else source.where)
        # `places` looks at what was named; the files behind it may be links.
        if any(folder.resolve() in where.resolve().parents for folder in needed):
            raise UserError(f"{where} lies in the folder to write: give another one")
    place = next(parent for parent in out.absolute().parents if parent.exists())
    free, total = shutil.disk_usage(place).free, int(sum(needed.values()) * _ROOM)
    if free < total:
        raise UserError(
            f"{place} has {free / 1e9:.1f} GB left, the merge needs {total / 1e9:.1f} GB: free some"
        )


def _check_vectors(folder: Path, plan: MergePlan) -> None:
    """Refuse a folder that holds anything but these tasks' vectors."""
    check_folder(folder)
    names = {f"{task}.safetensors" for task in plan.recipe.tasks}
    found = list(folder.iterdir()) if folder.is_dir() else []
    if not all(path.name in names and is_task_vector(path) for path in found):
        raise UserError(f"{folder} holds other files: give a new folder, or remove it")


@contextmanager
def merged_folder(
    out: Pathlike, plan: MergePlan, base: Pathlike, config: Mapping[str, Any]
) -> Iterator[Path]:
    """Make a folder that appears when all went well; the caller fills in `places.WEIGHTS`.

    Args:
        out: Folder to write; an earlier merge in it is replaced.
        plan: What is merged.
        base: Folder whose configuration is taken over.
        config: Its ``config.json``.
    """
    with atomic_dir(out) as folder:
        if config:
            write_json(folder / CONFIG, _described(config, plan))
        for name in COPIED:
            if (Path(base) / name).is_file():
                # Not copied: behind a link there could be anything, and this folder may be shown.
                write_json(folder / name, read_json(Path(base) / name))
        yield folder


def _described(config: Mapping[str, Any], plan: MergePlan) -> dict[str, Any]:
    described = dict(config)
    if not plan.recipe.any_names:
        # transformers 5 would return the last hidden state before the final norm
        described |= {
            "architectures": [MODELS[config["model_type"]]],
            "tie_last_hidden_states": True,
        }
    for key in ("dtype", "torch_dtype"):  # transformers loads as what is written here
        if key in described:
            described[key] = plan.recipe.dtype
    return described


def write_recipe(folder: Path, plan: MergePlan, base: Pathlike, hashes: Mapping[str, str]) -> None:
    """Write a recipe that makes the same weights again, with what they were made from."""
    import yaml

    made_from: dict[str, Any] = {"base": str(base), "base_sha256": hashes["base"], "tasks": {}}
    for task, source in zip(plan.recipe.tasks, plan.sources, strict=True):
        made_from["tasks"][task] = {"from": source.where, "expert_sha256": hashes.get(task, "")}
    made_from["espnet_adaltm"] = __version__
    values = {**plan.recipe.to_dict(), "made_from": made_from}
    write_text(folder / RECIPE, yaml.safe_dump(values, sort_keys=False, width=100))
