"""Picture of adapter trainings without labels: whether their targets collapse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_adaltm.scoring.curves import History
from espnet_adaltm.scoring.metrics import FloatArray
from espnet_adaltm.scoring.plots import new_figure, save, styles


@dataclass(frozen=True)
class AdapterTraining:
    """The trainings of one adapter.

    Attributes:
        histories: ``history.json`` of every seed.
        attributes: Number of clusters there are; 0 if it learns no attributes.
    """

    histories: Sequence[History]
    attributes: int


# Of a validation: name in the history, title, factor.
_PANELS = (
    ("perplexity", "clusters in use (perplexity)", 1),
    ("attribute_acc", "attributes recognised (%)", 100),
    ("spread", "spread of the teacher's states", 1),
)


def adapter_training(
    path: Path, title: str, trainings: Mapping[str, AdapterTraining]
) -> Path | None:
    """Perplexity of the clusters, recognised attributes and spread, by epoch, mean over seeds.

    A perplexity that falls to 1, or a spread that falls to 0, is a collapse: every frame then has
    the same target.

    Args:
        path: PNG to write.
        title: Above the picture.
        trainings: System to its trainings.

    Returns:
        None if there are none.
    """
    if not trainings:
        return None
    figure, axes = new_figure(12.0, 3.8, ncols=len(_PANELS))
    for axis, (metric, name, factor) in zip(axes, _PANELS):
        for (system, training), style in zip(trainings.items(), styles(len(trainings))):
            values = factor * _mean(training.histories, metric)
            colour, marker, filled = style
            face = colour if filled else "none"
            epochs = 1 + np.arange(len(values))
            axis.plot(epochs, values, color=colour, marker=marker, mfc=face, label=system)
        axis.set(title=name, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    for attributes in sorted({training.attributes for training in trainings.values()} - {0}):
        axes[0].axhline(attributes, color="black", linewidth=0.8, linestyle=":")
        axes[0].annotate(f"{attributes} clusters", (1, attributes), va="bottom", fontsize="small")
    axes[0].axhline(1, color="red", linewidth=0.8, linestyle=":")
    axes[0].annotate("collapse", (1, 1), va="bottom", fontsize="small", color="red")
    for axis in axes:
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.suptitle(title)
    return save(figure, path)


def _mean(histories: Sequence[History], metric: str) -> FloatArray:
    """Mean over seeds [E] of a validation's number, over the epochs that all have."""
    count = min(len(history) for history in histories)
    rows = [
        [history[str(epoch)]["valid"].get(metric, np.nan) for epoch in range(1, count + 1)]
        for history in histories
    ]
    return np.mean(np.array(rows, dtype=float), axis=0)
