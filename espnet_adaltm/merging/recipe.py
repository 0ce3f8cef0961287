"""Recipes of merges that need no training: a YAML file, or learned coefficients.

    method: task_arithmetic       # ties, dare, dare_ties, della, breadcrumbs, slerp, model_stock
    options: {}                   # the method's own, e.g. {density: 0.2} for ties
    granularity: block            # what weights may be given for: global, block, module, tensor
    weights:                      # lambda: one number, one per task, or by task and group
      asr: 0.3
      ser: {"*": 0.5, block0: 0, "block1?": 0.8}   # later entries win; the rest stays the base
    scale: 1.0                    # of the merged difference; a number, or by group as above

A row of the merging tables (``conf/merge/*.yaml``) is a recipe too: as it is where its coefficients
are fixed, together with its ``coefficients.json`` where they were learned.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from espnet_adaltm.backbone.blocks import MODULES, BlockMap
from espnet_adaltm.config import check_keys, load_yaml, nearest
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, read_json
from espnet_adaltm.merging.arithmetic import check_method, check_seed
from espnet_adaltm.merging.groups import GRANULARITIES, map_groups
from espnet_adaltm.merging.places import check_task
from espnet_adaltm.merging.preprocess import check_preprocess, draws
from espnet_adaltm.merging.table import Table, by_group, check_complete, check_numbers, is_finite

if TYPE_CHECKING:
    from espnet_adaltm.merging.config import MergeConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BLOCK = re.compile(r"block\d+")
_MODULE = re.compile(rf"block\d+\.({'|'.join(MODULES)})")


@dataclass(frozen=True)
class Recipe:
    """How task vectors become one model: ``W = W_base + scale * method(weights, tau_1 .. tau_K)``.

    Attributes:
        name: What the merge is called.
        tasks: Task vectors, in order; None for all that are given. Empty leaves the base.
        method: A key of `merging.arithmetic.METHODS`.
        options: The method's own.
        granularity: ``global``, ``block``, ``module`` or ``tensor``: what the groups below are.
        weights: Lambda: a number or a list for all tasks, or task to `table.ByGroup`.
        scale: Of the merged difference, `table.ByGroup`.
        preprocess: ``method`` of `merging.preprocess.prepare` and its options; others than ``none``
            hold the vectors in memory.
        seed: For methods that draw, and for a preprocessing that draws and has none of its own.
        dtype: What is stored: ``float32``, ``bfloat16`` or ``float16``. Always computed in float32.
        any_names: Merge any network: tensors under their own names, none of them a known head.
        block_pattern: With ``any_names``: where the layer's number is (`BlockMap.by_pattern`).
        made_from: What an earlier merge was made from; ``base_sha256`` must be the base's again.
        learned: No key of the YAML: file of the learned coefficients that weights or scale are;
            they have to name every group.
    """

    name: str = "merge"
    tasks: tuple[str, ...] | None = None
    method: str = "task_arithmetic"
    options: dict[str, Any] = field(default_factory=dict)
    granularity: str = "block"
    weights: Any = 1.0
    scale: Any = 1.0
    preprocess: dict[str, Any] = field(default_factory=lambda: {"method": "none"})
    seed: int = 0
    dtype: str = "float32"
    any_names: bool = False
    block_pattern: str | None = None
    made_from: dict[str, Any] = field(default_factory=dict)
    learned: str = ""

    @classmethod
    def keys(cls) -> list[str]:
        """What a recipe's YAML may hold."""
        return [item.name for item in fields(cls) if item.name != "learned"]

    @classmethod
    def from_dict(cls, options: Mapping[str, Any], where: str = "recipe") -> "Recipe":
        """Check plain options; keys are this class's attributes.

        Raises:
            UserError: An unknown key or value; the message begins with ``where``.
        """
        check_keys(options, cls.keys(), where)
        try:
            return cls(**{**options, "tasks": _tasks(options.get("tasks"))})._checked()
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def _checked(self) -> "Recipe":
        self._check_kinds()
        _choose("granularity", self.granularity, GRANULARITIES)
        _choose("dtype", self.dtype, DTYPES)
        check_method(self.method, self.options, "options")
        check_preprocess(**_spread(self.preprocess))
        check_seed(self.seed)
        if self.block_pattern is not None:
            if not self.any_names:
                raise UserError("block_pattern goes with any_names: true")
            if self.granularity not in ("block", "module"):
                raise UserError(
                    f"block_pattern goes with granularity block or module, found {self.granularity}"
                )
        self._check_weights()
        return self

    def _check_kinds(self) -> None:
        for key, kind in (("name", str), ("any_names", bool), ("made_from", Mapping)):
            if not isinstance(getattr(self, key), kind):
                raise UserError(f"{key} {getattr(self, key)!r} is no {kind.__name__.lower()}")
        base = self.made_from.get("base_sha256")
        texts = {"block_pattern": self.block_pattern, "made_from: base_sha256": base}
        for key, value in texts.items():
            if value is not None and not isinstance(value, str):
                raise UserError(f"{key} {value!r} is no text: put it in quotes")
        if not isinstance(self.options, Mapping):
            raise UserError(f"options must be like {{density: 0.2}}, found {self.options!r}")
        if not isinstance(self.preprocess, Mapping) or "method" not in self.preprocess:
            raise UserError(f"preprocess must be like {{method: none}}, found {self.preprocess!r}")

    def _check_weights(self) -> None:
        per_task = isinstance(self.weights, Mapping)
        for task in (*(self.tasks or ()), *(self.weights if per_task else ())):
            check_task(task)
        for key, value in self.weights.items() if per_task else [("weights", self.weights)]:
            check_numbers(f"weights of {key}" if per_task else "weights", value)
        if per_task and self.tasks is not None and set(self.weights) != set(self.tasks):
            raise UserError(
                f"weights name the tasks {sorted(map(str, self.weights))}, tasks are "
                f"{sorted(self.tasks)}: give one for each"
            )
        check_numbers("scale", self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain options that `from_dict` reads back; what is empty is left out."""
        values = asdict(replace(self, preprocess=self.seeded_preprocess))
        values["tasks"] = None if self.tasks is None else list(self.tasks)
        values.pop("learned")
        empty = (None, {}, False)
        return {
            k: v
            for k, v in values.items()
            if k in ("weights", "scale") or not any(v is e or v == e == {} for e in empty)
        }

    @property
    def seeded_preprocess(self) -> dict[str, Any]:
        """``preprocess`` with the seed that it draws with, if it does."""
        options = dict(self.preprocess)
        if draws(options["method"]):
            # A recipe that a merge wrote without this seed was made with 0.
            options.setdefault("seed", 0 if "espnet_adaltm" in self.made_from else self.seed)
        return options

    @property
    def named_tasks(self) -> tuple[str, ...] | None:
        """Tasks that the recipe names, by itself or by their weights; None takes what there is."""
        if self.tasks is None and isinstance(self.weights, Mapping):
            return tuple(self.weights)
        return self.tasks

    def for_tasks(self, given: Sequence[str]) -> "Recipe":
        """Settle which tasks are merged.

        Args:
            given: Tasks whose vectors or experts there are.

        Raises:
            UserError: None, others than the recipe names, or a name that no task can have.
        """
        named = tuple(given) if self.named_tasks is None else self.named_tasks
        for task in named:
            check_task(task)
        if not named and self.tasks is None:
            raise UserError("there are no task vectors to merge: give experts or vectors")
        lacking = [task for task in named if task not in given]
        extra = [task for task in given if task not in named]
        if lacking or extra:
            what = "has no vector" if lacking else "is not in the recipe"
            raise UserError(
                f"task {(lacking or extra)[0]} {what}: the recipe merges "
                f"{', '.join(named) or 'none'}, given are {', '.join(given) or 'none'}"
            )
        return replace(self, tasks=named)

    def block_map(self, names: Sequence[str], *, norm_first: bool) -> BlockMap:
        """Where each tensor is; those in no block have no weight and stay the base's."""
        if self.granularity in ("global", "tensor") and self.any_names:
            return BlockMap(dict.fromkeys(names, (0, "all")))
        if self.block_pattern is not None:
            return BlockMap.by_pattern(names, self.block_pattern)
        return BlockMap.of(names, norm_first=norm_first)

    def table(self, blocks: BlockMap) -> "Table":
        """Spread weights and scale over the groups of a model; `for_tasks` comes first.

        Raises:
            UserError: A list of another length than there are groups, a name that matches none, or
                learned coefficients that are not for all groups.
        """
        groups = map_groups(blocks, self.granularity)
        tasks = self.tasks or ()
        per_task = self.weights if isinstance(self.weights, Mapping) else None
        values = {
            f"weights of {task}": self.weights if per_task is None else per_task[task]
            for task in tasks
        }
        values["scale"] = self.scale
        for what, value in values.items() if self.learned else ():
            if isinstance(value, Mapping):
                check_complete(f"{self.learned}: {what} by {self.granularity}", value, groups)
        *weights, scale = (by_group(what, value, groups) for what, value in values.items())
        return Table(tasks, tuple(groups), weights, scale)


def load_recipe(config: Pathlike | None, coefficients: Pathlike | None = None) -> Recipe:
    """Read a recipe, a row of the merging tables, or learned coefficients.

    Args:
        config: YAML; may be left out with coefficients, whose ``merge.json`` is then used.
        coefficients: ``coefficients.json`` of a trained merge.

    Raises:
        UserError: A file is missing or wrong, a key is unknown (the nearest is named), or
            coefficients are to be learned and not given.
    """
    if config is None and coefficients is None:
        raise UserError("nothing says how to merge: give --config, --coefficients or both")
    if config is None:
        return _learned(Path(coefficients), _trained_row(Path(coefficients)))
    from espnet_adaltm.merging.config import SEPARATE, MergeConfig

    values = {"name": Path(config).stem, **load_yaml(config)}
    ours, theirs = Recipe.keys(), [item.name for item in fields(MergeConfig)]
    check_keys(values, dict.fromkeys([*ours, *theirs]), str(config))
    if not set(values) <= set(ours) or values.get("method") == SEPARATE:
        row = MergeConfig.from_dict(values, str(config))
        return _learned(Path(coefficients), row) if coefficients else _fixed(row, str(config))
    recipe = Recipe.from_dict(values, str(config))
    if coefficients is None:
        # `method` without anything of a row's is a recipe: slerp needs no more.
        if recipe.tasks != () and values.keys() <= {*theirs} - {"method"}:
            raise UserError(
                f"{config}: as a row of the merging tables its coefficients are learned: give its "
                "coefficients.json (--coefficients); as a recipe it needs weights, such as "
                "`weights: 0.5`"
            )
        return recipe
    if "weights" in values or "scale" in values:
        raise UserError(f"{config} has weights of its own: leave them out, or --coefficients")
    return _with_coefficients(recipe, Path(coefficients), values.get("granularity"))


def _fixed(row: "MergeConfig", where: str) -> Recipe:
    if row.tasks and (row.trainable or row.grid is not None):
        how = "picked on validation" if row.grid is not None else "learned"
        raise UserError(
            f"{where}: its coefficients are {how}: train it and give its coefficients.json "
            "(--coefficients), or fix them with trainable: false"
        )
    recipe, separate = _of_row(row)
    return replace(recipe, **{"weights" if separate else "scale": row.init if row.tasks else 1.0})


def _of_row(row: "MergeConfig") -> tuple[Recipe, bool]:
    """A row's recipe without coefficients, and whether each task has its own."""
    from espnet_adaltm.merging.config import SEPARATE

    separate = row.method == SEPARATE
    row = row.with_seed(0)
    options = dict(row.method_conf)
    seed, weights = options.pop("seed", 0), options.pop("weights", 1.0)
    recipe = Recipe(
        name=row.name,
        tasks=row.tasks,
        method="task_arithmetic" if separate else row.method,
        options=options,
        granularity=row.granularity,
        weights=weights,
        preprocess=dict(row.preprocess),
        seed=seed,
    )
    return recipe, separate


def _trained_row(coefficients: Path) -> "MergeConfig | None":
    from espnet_adaltm.merging.config import MergeConfig

    path = coefficients.parent / "merge.json"
    if not path.exists():
        return None
    options = read_json(path).get("options")
    if not isinstance(options, dict):
        raise UserError(f"{path} has no 'options': train the merge again, or give --config")
    return MergeConfig.from_dict({"name": coefficients.parent.name, **options}, str(path))


def _learned(path: Path, row: "MergeConfig | None") -> Recipe:
    if row is None:
        return _with_coefficients(Recipe(name=path.parent.name), path)
    recipe, separate = _of_row(row)
    return _with_coefficients(recipe, path, row.granularity, separate=separate)


def _with_coefficients(
    recipe: Recipe, path: Path, granularity: str | None = None, *, separate: bool = True
) -> Recipe:
    """Put in the last epoch's coefficients; one merged vector's become the scale.

    Args:
        recipe: The rest.
        path: Of ``coefficients.json``.
        granularity: Of its groups; None tells it from their names.
        separate: Whether each task has its own coefficients.
    """
    values = read_json(path)
    try:
        tasks, groups, final = (list(values[key]) for key in ("tasks", "groups", "final"))
        if not all(isinstance(name, str) for name in (*tasks, *groups)):
            raise TypeError("tasks and groups must be names")
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no coefficients.json with tasks, groups, final: {error}"
        ) from None
    if not tasks and recipe.tasks != ():
        raise UserError(f"{path} has coefficients of no task: train the merge again")
    expected = list(tasks if recipe.tasks is None else recipe.tasks) if separate else ["merged"]
    if tasks != expected:
        raise UserError(f"{path} has coefficients of {tasks}, the recipe merges {expected}")
    for names in (tasks, groups):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{path} names {twice[0]!r} twice: train the merge again")
    shape = (len(tasks), len(groups))
    if len(final) != shape[0] or any(
        not isinstance(row, list) or len(row) != shape[1] or not all(map(is_finite, row))
        for row in final
    ):
        raise UserError(f"{path}: `final` must be {shape} finite numbers (tasks x groups)")
    rows = {task: dict(zip(groups, row)) for task, row in zip(tasks, final)}
    base = path.parent / "merge.json"
    made_from = {}
    if base.exists() and read_json(base).get("base_sha256"):
        made_from["base_sha256"] = read_json(base)["base_sha256"]
    changes = {"tasks": tuple(tasks), "weights": rows} if separate else {"scale": rows["merged"]}
    level = granularity or _granularity(groups)
    try:
        return replace(
            recipe, **changes, granularity=level, made_from=made_from, learned=str(path)
        )._checked()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _granularity(groups: Sequence[str]) -> str:
    """What the names of groups look like; tensors of any network may be called as blocks are."""
    if list(groups) == ["all"]:
        return "global"
    if all(_BLOCK.fullmatch(group) for group in groups):
        return "block"
    return "module" if all(_MODULE.fullmatch(group) for group in groups) else "tensor"


def _choose(what: str, value: Any, allowed: Any) -> None:
    if value not in list(allowed):
        raise UserError(
            f"{what} {value!r} is unknown{nearest(str(value), allowed)}; known: "
            f"{', '.join(allowed)}"
        )


def _tasks(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    words = isinstance(value, list | tuple) and all(isinstance(task, str) for task in value)
    if not words or len(set(value)) != len(value):
        raise UserError(f"tasks must be a list such as [asr, ser], each once, found {value!r}")
    return tuple(value)


def _spread(conf: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": conf["method"],
        "options": {key: value for key, value in conf.items() if key != "method"},
    }
