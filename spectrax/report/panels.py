"""Figures of several panels in one style: titles, axes, legends."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from spectrax.report.extras import require

INK, GRID = "#333333", "#E4E4E4"
_LEAST, _MOST = -323.3, 308.25  # the powers of ten between which there are 64-bit numbers


def make_panels(
    count: int, *, columns: int, width: float, height: float, sharey: bool = False
) -> tuple[Any, list[Any]]:
    """Make a figure with a number of axes in a grid.

    Args:
        count: How many.
        columns: How many beside each other at most.
        width: Of one, in inches.
        height: Likewise.
        sharey: Whether they share the vertical axis.

    Returns:
        The figure and the axes.
    """
    matplotlib_figure = require("matplotlib.figure", "drawing plots")
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = matplotlib_figure.Figure(figsize=(width * columns, height * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    panels = list(grid.flat)
    for panel in panels[count:]:
        panel.remove()
    return figure, panels[:count]


def decorate(panel: Any, title: str, x: str, y: str) -> None:
    """Give axes their title and labels, and a light grid."""
    panel.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    panel.set_xlabel(x, fontsize=9.5, color=INK)
    panel.set_ylabel(y, fontsize=9.5, color=INK)
    panel.grid(True, color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8.5, colors=INK, length=0)
    for side in ("top", "right", "left", "bottom"):
        panel.spines[side].set_visible(side == "bottom")
        panel.spines[side].set_color("#AAAAAA")


def log_axis(panel: Any) -> None:
    """Make the y axis logarithmic, where there is something positive to show."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in panel.lines])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return
    low, high = (math.log10(value) for value in (values.min(), values.max()))
    room = max(high - low, 2)
    if low - room > _LEAST and high + room < _MOST:
        panel.set_yscale("log")
        plain_ticks(panel.yaxis, values.min(), values.max())
    else:
        _extreme_log_axis(panel, low, high)


def _extreme_log_axis(panel: Any, low: float, high: float) -> None:
    """Set limits and ticks near the ends of the floating-point range, beyond which matplotlib looks for them."""
    ticker = require("matplotlib.ticker", "drawing plots")
    margin = max(0.05 * (high - low), 0.2)
    panel.set_autoscaley_on(False)
    panel.set_yscale("log")
    panel.set_ylim(10.0 ** max(low - margin, _LEAST), 10.0 ** min(high + margin, _MOST))
    powers = np.arange(math.ceil(low), math.floor(high) + 1, max(1, math.ceil((high - low) / 8)))
    if len(powers) > 1:
        labels = [rf"$\mathdefault{{10^{{{power}}}}}$" for power in powers]
    else:
        powers = np.unique([low, high])
        labels = [f"{10.0**power:.3g}" for power in powers]
    panel.yaxis.set_major_locator(ticker.FixedLocator(10.0**powers))
    panel.yaxis.set_major_formatter(ticker.FixedFormatter(labels))
    panel.yaxis.set_minor_locator(ticker.NullLocator())


def plain_ticks(axis: Any, low: float, high: float) -> None:
    """Label a logarithmic axis that spans less than two decades with plain numbers; powers of ten would be too few."""
    ticker = require("matplotlib.ticker", "drawing plots")
    if high < 100 * low:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)) if high > 5 * low else ticker.MaxNLocator(5))
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def outer_labels_only(panels: Sequence[Any], columns: int, *, share_y: bool = True) -> None:
    """Keep the axes' labels at the left and the lower edge of a grid."""
    for index, panel in enumerate(panels):
        if index % columns:
            panel.set_ylabel("")
            if share_y:
                panel.tick_params(labelleft=False)
        if index + columns < len(panels):
            panel.set_xlabel("")


def figure_legend(figure: Any, entries: Sequence[tuple[str, Any, str, str | None, str]]) -> None:
    """Add one legend below all axes; entries are (colour, line style, marker, marker's face, label)."""
    lines = require("matplotlib.lines", "drawing plots")
    handles = [
        lines.Line2D(
            [], [], color=colour, linestyle=style, marker=marker, markerfacecolor=face or colour, linewidth=1.8,
            markersize=5, label=label,
        )
        for colour, style, marker, face, label in entries
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", ncols=min(3, len(handles)), frameon=False, fontsize=9)
