"""Picture of ``connectivity.json``: losses and scores on straight lines between encoders."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from espnet_adaltm.scoring.plots import new_figure, save, styles

# What is measured, of which part, and what a reader calls it.
_ROWS = (
    ("emotion", "loss", "emotion loss (nats)", 1),
    ("emotion", "macro_f1", "macro-F1 (%)", 100),
    ("words", "loss", "CTC loss (nats per token)", 1),
    ("words", "wer", "WER (%)", 100),
)


def connectivity_plot(path: Path, report: Mapping[str, Any]) -> Path:
    """Losses and scores, a row each, along every line, a column each.

    Args:
        path: PNG to write.
        report: Of `decoding.connectivity.measure_lines`.
    """
    lines, x = report["lines"], report["points"]
    rows = [row for row in _ROWS if row[0] in lines[0]]
    figure, axes = new_figure(
        2.2 + 2.6 * len(lines),
        0.8 + 1.9 * len(rows),
        nrows=len(rows),
        ncols=len(lines),
        sharey="row",
        squeeze=False,
    )
    heads = list(lines[0].get("emotion", {}))
    look = dict(zip([*heads, "CTC head"], styles(len(heads) + 1)))
    for (part, metric, label, scale), shown in zip(rows, axes):
        for line, axis in zip(lines, shown):
            for name, values in _curves(line, part, metric):
                colour, marker, _ = look[name]
                axis.plot(
                    x, [scale * v for v in values], color=colour, marker=marker, ms=3, label=name
                )
            axis.grid(alpha=0.3)
            axis.set_xticks([0, 0.5, 1], ["", "", ""])
        shown[0].set_ylabel(label)
    for line, top, bottom in zip(lines, axes[0], axes[-1]):
        top.set_title(f"{line['from']} to {line['to']}")
        bottom.set_xticks([0, 0.5, 1], [line["from"], "", line["to"]])
    if heads:
        # A merge's head is on its own line only: one legend for all of the row.
        found = [axis.get_legend_handles_labels() for axis in axes[0]]
        entries = {name: handle for handles, names in found for handle, name in zip(handles, names)}
        axes[0][-1].legend(
            entries.values(),
            entries,
            title="emotion head",
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
        )
    figure.suptitle(f"On straight lines between encoders, {report['set']}")
    return save(figure, path)


def _curves(line: Mapping[str, Any], part: str, metric: str) -> Iterator[tuple[str, list[float]]]:
    """Head and values of one line; a merge's own head is shown on its own line only."""
    if part == "words":
        yield "CTC head", line[part][metric]
        return
    for position, (head, values) in enumerate(line[part].items()):
        if position == 0 or head == line["to"]:
            yield head, values[metric]
