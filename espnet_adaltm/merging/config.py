"""Merging options, as in ``conf/merge/*.yaml``."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_adaltm.config import as_numbers, check_choice, check_keys, load_yaml
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike
from espnet_adaltm.merging import arithmetic, preprocess
from espnet_adaltm.merging.coefficients import CONSTRAINTS, Coefficients, Init
from espnet_adaltm.merging.groups import GRANULARITIES
from espnet_adaltm.merging.merged import coefficients_for
from espnet_adaltm.merging.objectives import (
    DISTILL_ON,
    ENTROPY,
    OBJECTIVES,
    SUPERVISED,
    SUPERVISED_CTC,
    SUPERVISED_DISTILL,
)

if TYPE_CHECKING:
    from espnet_adaltm.backbone.encoder import SpeechEncoder

TASKS = ("asr", "ser")
HEAD_INITS = ("scratch", "ser_expert")
TRAIN, HELD_OUT, ADAPT = "train", "held_out", "adapt"
LEARN_ON = (TRAIN, HELD_OUT, ADAPT)
# What one vector made of all tasks' vectors is called.
MERGED = "merged"
SEPARATE = "separate"
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "granularity": GRANULARITIES,
    "constraint": CONSTRAINTS,
    "head_init": HEAD_INITS,
    "objective": OBJECTIVES,
    "distill_on": DISTILL_ON,
    "learn_on": LEARN_ON,
    "method": (SEPARATE, *arithmetic.METHODS),
}
_RATES = ("ctc_weight", "coef_lr", "epoch_factor")
_WITH_NUMBERS = (*_RATES, "init", "grid", "distill_weight", "preprocess", "method_conf")
_FLAGS = ("trainable", "encoder_dropout", "train_head")


@dataclass(frozen=True)
class MergeConfig:
    """One row of the merging tables.

    The defaults are AdaLTM's (arXiv 2603.25041); ``head_init: scratch`` is what its training of an
    emotion head at merge time amounts to.

    Attributes:
        name: What the row is called; part of its folder's name.
        tasks: Task vectors that are added, of `TASKS`; none leaves the base.
        preprocess: ``method`` of `merging.preprocess.prepare` and its options, applied to the
            vectors before anything else; each task keeps its own. Without a ``seed`` the run's own
            is used.
        method: ``separate`` (every task's vector under its own coefficients), or how all vectors
            become one: ``task_arithmetic`` (their sum), ``ties``, ``dare``, ``dare_ties`` and the
            others of `merging.arithmetic.METHODS`.
        method_conf: ``weights`` of the tasks in that (1 each), ``seed`` (the run's own unless
            given) and the method's options.
        granularity: ``global``, ``block`` (AdaLTM), ``module`` or ``tensor``.
        init: First lambda, one number or one per task; under a ``method`` the one number of the
            merged vector.
        trainable: Whether lambda is learned.
        constraint: ``none``, ``clamp``, ``sigmoid``, ``tanh`` or ``softmax``.
        grid: Fixed lambdas to try, a list of numbers, or a list per task whose combinations are
            tried: each trains a head, and validation macro-F1 picks.
        encoder_dropout: Let the frozen encoder's dropout run in training.
        head_init: Emotion head ``scratch`` or from the ``ser_expert``.
        train_head: Whether the emotion head (with its layer sum) is learned.
        coef_lr: Learning rate of lambda in place of the training configuration's.
        epoch_factor: Epochs as a multiple of the training configuration's ``max_epoch``, rounded,
            at least one: a row that goes on learning where others are done may take longer.
        objective: ``supervised`` (AdaLTM: the emotion loss); ``entropy`` of the predictions, no
            labels (AdaMerging); ``supervised_ctc`` adds the frozen ASR head's loss per token,
            ``supervised_distill`` the distance to the experts (both ours).
        ctc_weight: Weight of the CTC term.
        distill_weight: Weight of the distance to the experts, one number or one per expert.
        distill_on: ``logits`` (divergence of what the experts' frozen heads say) or ``hidden``.
        learn_on: ``train`` (the paper's); ``held_out``: everything is learned on half of the
            validation speakers and epochs are chosen on the other half; ``adapt``: on the speech of
            ``--adapt_dump``, without labels.
        held_out_seed: Which halves.
    """

    name: str
    tasks: tuple[str, ...] = TASKS
    preprocess: dict[str, Any] = field(default_factory=lambda: {"method": "none"})
    method: str = SEPARATE
    method_conf: dict[str, Any] = field(default_factory=dict)
    granularity: str = "block"
    init: Init = 0.5
    trainable: bool = True
    constraint: str = "none"
    grid: list[float] | dict[str, list[float]] | None = None
    encoder_dropout: bool = False
    head_init: str = "scratch"
    train_head: bool = True
    coef_lr: float | None = None
    epoch_factor: float = 1.0
    objective: str = SUPERVISED
    ctc_weight: float = 1.0
    distill_weight: Init = 1.0
    distill_on: str = "logits"
    learn_on: str = TRAIN
    held_out_seed: int = 0

    @classmethod
    def from_yaml(cls, path: Pathlike) -> "MergeConfig":
        """Read a YAML file; ``name`` defaults to the file's stem.

        Raises:
            UserError: An unknown key or value, or options that contradict each other; the message
                names file and key.
        """
        return cls.from_dict({"name": Path(path).stem, **load_yaml(path)}, str(path))

    @classmethod
    def from_dict(cls, options: Mapping[str, Any], where: str = "merge options") -> "MergeConfig":
        """Check plain options, for example those of ``merge.json``.

        Args:
            options: Keys are this class's attributes; ``name`` is required.
            where: What to call their place in errors.
        """
        try:
            check_keys(options, [item.name for item in fields(cls)], "options")
            if "name" not in options:
                raise UserError("name is missing")
            changes = {key: as_numbers(options[key]) for key in _WITH_NUMBERS if key in options}
            return cls(**{**options, **changes, "tasks": _tasks(options)})._checked(options)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def _checked(self, given: Mapping[str, Any]) -> "MergeConfig":
        if not isinstance(self.name, str) or not self.name:
            raise UserError("name must be a word")
        for key in _FLAGS:
            if not isinstance(getattr(self, key), bool):
                raise UserError(f"{key} must be true or false, found {getattr(self, key)!r}")
        for key, allowed in _CHOICES.items():
            check_choice(key, getattr(self, key), allowed)
        self._check_vectors()
        self._check_numbers()
        self._check_start(self.init)
        self._check_consistent(given)
        for value in self.grid_values():
            self._check_start(value)
        return self

    def _check_vectors(self) -> None:
        if not isinstance(self.preprocess, Mapping) or "method" not in self.preprocess:
            raise UserError(
                f"preprocess must be like {{method: ties, density: 0.2}}, found {self.preprocess!r}"
            )
        options = dict(self.preprocess)
        preprocess.check_preprocess(options.pop("method"), options)
        if not isinstance(self.method_conf, Mapping):
            raise UserError(f"method_conf must be like {{density: 0.2}}, found {self.method_conf}")
        options = dict(self.method_conf)
        _check_words("method_conf", options)
        if self.method == SEPARATE:
            check_keys(options, [], "method_conf without a method")
            return
        if not self.tasks:
            raise UserError(f"method {self.method} needs tasks")
        weights = arithmetic.weight_list(self.tasks, options.pop("weights", 1.0))
        arithmetic.check_seed(options.pop("seed", 0))
        arithmetic.check_method(self.method, options, "method_conf")
        thresholds = dict.fromkeys(self.tasks, 0.0)
        arithmetic.tensor_merge(self.method, self.tasks, weights, thresholds=thresholds, **options)

    def _check_numbers(self) -> None:
        for key in _RATES:
            value = getattr(self, key)
            if not (value is None and key == "coef_lr") and not _is_number(value, 0.0):
                raise UserError(f"{key} must be a number above 0, found {value!r}")
        if isinstance(self.held_out_seed, bool) or not isinstance(self.held_out_seed, int):
            raise UserError(f"held_out_seed must be a whole number, found {self.held_out_seed!r}")
        weights = self.distill_weights
        known = weights and weights.keys() <= set(TASKS)
        if not known or not all(_is_number(weight, 0.0) for weight in weights.values()):
            raise UserError(
                f"distill_weight must be a number above 0, or one for some of "
                f"{', '.join(TASKS)}, found {self.distill_weight!r}"
            )

    def _check_start(self, value: Init) -> None:
        _check_words("init", value)
        Coefficients(self.vector_names, ["all"], "global", value, self.constraint)

    def _check_consistent(self, given: Mapping[str, Any]) -> None:
        def needs(condition: bool, message: str) -> None:
            if not condition:
                raise UserError(message)

        learned = self.trainable and bool(self.tasks)
        needs(
            learned or self.train_head,
            "nothing is learned: trainable and train_head are both false",
        )
        needs(
            not (self.grid is not None and self.trainable),
            "grid tries fixed coefficients: give trainable: false",
        )
        needs(
            self.objective == SUPERVISED or learned,
            f"objective {self.objective} is about the coefficients: give tasks and trainable: true",
        )
        needs(
            self.objective != ENTROPY or (self.head_init == "ser_expert" and not self.train_head),
            "objective entropy has no labels to learn a head from (it would collapse): give "
            "head_init: ser_expert and train_head: false",
        )
        needs(
            self.learn_on != ADAPT or self.objective == ENTROPY,
            "learn_on adapt has no labels: it goes with objective: entropy",
        )
        needs(
            self.train_head or self.head_init == "ser_expert",
            "a head that is not trained must come from somewhere: give head_init: ser_expert",
        )
        owners = {
            "ctc_weight": SUPERVISED_CTC,
            "distill_weight": SUPERVISED_DISTILL,
            "distill_on": SUPERVISED_DISTILL,
        }
        defaults = {item.name: item.default for item in fields(self)}
        for key, objective in owners.items():
            idle = self.objective != objective and given.get(key, defaults[key]) != defaults[key]
            needs(not idle, f"{key} belongs to objective: {objective}, found {self.objective}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain options that `from_dict` reads back."""
        return {**asdict(self), "tasks": list(self.tasks)}

    @property
    def vector_names(self) -> tuple[str, ...]:
        """What coefficients are for: the tasks, or the one vector that a ``method`` makes."""
        return self.tasks if self.method == SEPARATE else (MERGED,)

    @property
    def distill_weights(self) -> dict[str, float]:
        """Weight of each expert as a teacher."""
        if isinstance(self.distill_weight, Mapping):
            return dict(self.distill_weight)
        return dict.fromkeys(TASKS, self.distill_weight)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Experts that the objective learns from, beside labels."""
        if self.objective == SUPERVISED_CTC:
            return ("asr",)
        return tuple(self.distill_weights) if self.objective == SUPERVISED_DISTILL else ()

    @property
    def experts(self) -> tuple[str, ...]:
        """Experts whose folders are read: teachers, and the one that the head is taken from."""
        head = ("ser",) if self.head_init == "ser_expert" else ()
        return tuple(task for task in TASKS if task in (*self.teachers, *head))

    def grid_values(self) -> list[Init]:
        """The values of ``init`` to try, in order; none without a grid.

        Raises:
            UserError: Neither a list of numbers nor one for every task.
        """
        if self.grid is None:
            return []
        lists = self.grid if isinstance(self.grid, Mapping) else {"": self.grid}
        for values in lists.values():
            if not isinstance(values, list) or not values or not all(map(_is_number, values)):
                raise UserError(
                    "grid must be a list of numbers such as [0.3, 0.5], or one list per task, "
                    f"found {self.grid!r}"
                )
        _check_words("grid", self.grid)
        if not isinstance(self.grid, Mapping):
            return list(self.grid)
        return [dict(zip(self.grid, row)) for row in itertools.product(*self.grid.values())]

    def with_seed(self, seed: int) -> "MergeConfig":
        """Fill the seeds that random methods were not given, so that they can be repeated."""
        first, second = dict(self.preprocess), dict(self.method_conf)
        if preprocess.draws(first["method"]):
            first.setdefault("seed", seed)
        if self.method != SEPARATE and arithmetic.METHODS[self.method].random:
            second.setdefault("seed", seed)
        return replace(self, preprocess=first, method_conf=second)

    @property
    def changes_vectors(self) -> bool:
        """Whether `merging.prepared` returns other vectors than the experts' own."""
        return self.preprocess["method"] != "none" or self.method != SEPARATE

    def coefficients(self, encoder: "SpeechEncoder") -> Coefficients:
        """Make this row's coefficients for ``encoder``."""
        return coefficients_for(
            encoder,
            self.vector_names,
            self.granularity,
            init=self.init,
            constraint=self.constraint,
            trainable=self.trainable,
        )


def _check_words(key: str, value: object) -> None:
    """Refuse a mapping whose keys are not all words."""
    for name in value if isinstance(value, Mapping) else ():
        if not isinstance(name, str):
            raise UserError(f"{key}: {name!r} is no name: use words")


def _is_number(value: object, above: float | None = None) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and (above is None or value > above)


def _tasks(options: Mapping[str, Any]) -> tuple[str, ...]:
    tasks = options.get("tasks", TASKS)
    if not isinstance(tasks, list | tuple):
        raise UserError(f"tasks must be a list such as [asr, ser], found {tasks!r}")
    for task in tasks:
        check_choice("tasks", task, TASKS)
    if len(set(tasks)) != len(tasks):
        raise UserError(f"tasks {tasks}: each may be named once")
    return tuple(tasks)
