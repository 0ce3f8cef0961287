"""Merging options, as in ``conf/*/merge/*.yaml``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_adaltm.config import check_keys, load_yaml
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike
from espnet_adaltm.merging.coefficients import CONSTRAINTS, Coefficients
from espnet_adaltm.merging.groups import GRANULARITIES
from espnet_adaltm.merging.merged import coefficients_for

if TYPE_CHECKING:
    from espnet_adaltm.backbone.encoder import SpeechEncoder

TASKS = ("asr", "ser")
HEAD_INITS = ("scratch", "ser_expert")


@dataclass(frozen=True)
class MergeConfig:
    """One row of the merging tables.

    Attributes:
        name: What the row is called; part of its folder's name.
        tasks: Task vectors that are added, of `TASKS`; none leaves the base.
        granularity: ``global``, ``block`` (AdaLTM), ``module`` or ``tensor``.
        init: First lambda, one number or one per task.
        trainable: Whether lambda is learned.
        constraint: ``none``, ``clamp``, ``sigmoid``, ``tanh`` or ``softmax``.
        encoder_dropout: Let the frozen encoder's dropout run in training.
        head_init: Emotion head ``scratch`` or from the ``ser_expert``.
    """

    name: str
    tasks: tuple[str, ...] = TASKS
    granularity: str = "block"
    init: float | dict[str, float] = 0.5
    trainable: bool = True
    constraint: str = "none"
    encoder_dropout: bool = False
    head_init: str = "scratch"

    @classmethod
    def from_yaml(cls, path: Pathlike) -> "MergeConfig":
        """Read a YAML file; ``name`` defaults to the file's stem.

        Raises:
            UserError: An unknown key or value; the message names file and key.
        """
        return cls.from_dict({"name": Path(path).stem, **load_yaml(path)}, str(path))

    @classmethod
    def from_dict(cls, options: Mapping[str, Any], where: str = "merge options") -> "MergeConfig":
        """Check plain options, for example those of ``merge.json``.

        Args:
            options: Keys are this class's attributes; ``name`` is required.
            where: What to call their place in errors.
        """
        check_keys(options, [item.name for item in fields(cls)], where)
        if not isinstance(options.get("name"), str) or not options["name"]:
            raise UserError(f"{where}: name must be a word")
        for key in ("trainable", "encoder_dropout"):
            if not isinstance(options.get(key, True), bool):
                raise UserError(f"{where}: {key} must be true or false, found {options[key]!r}")
        tasks = options.get("tasks", TASKS)
        if not isinstance(tasks, list | tuple):
            raise UserError(f"{where}: tasks must be a list such as [asr, ser], found {tasks!r}")
        _check_values(where, "tasks", tasks, TASKS)
        config = cls(**{**options, "tasks": tuple(tasks)})
        _check_values(where, "granularity", [config.granularity], GRANULARITIES)
        _check_values(where, "constraint", [config.constraint], CONSTRAINTS)
        _check_values(where, "head_init", [config.head_init], HEAD_INITS)
        config._check_start(where)
        return config

    def _check_start(self, where: str) -> None:
        try:
            Coefficients(self.tasks, ["all"], "global", self.init, self.constraint)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain options that `from_dict` reads back."""
        return {**asdict(self), "tasks": list(self.tasks)}

    def coefficients(self, encoder: "SpeechEncoder") -> Coefficients:
        """Make this row's coefficients for ``encoder``."""
        return coefficients_for(
            encoder,
            self.tasks,
            self.granularity,
            init=self.init,
            constraint=self.constraint,
            trainable=self.trainable,
        )


def _check_values(where: str, key: str, values: Any, allowed: tuple[str, ...]) -> None:
    for value in values:
        if value not in allowed:
            raise UserError(f"{where}: {key} {value!r} is unknown: use {', '.join(allowed)}")
