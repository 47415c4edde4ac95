"""Pictures of the loss in one layer's weights: condition numbers by rho, lines with kinks, slices with regions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from spectrax.report.extras import require
from spectrax.report.panels import GRID, INK, decorate, figure_legend, log_axis, make_panels

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def layer_condition_numbers(by_rho: Mapping[str, Mapping[str, Any]], /) -> Any:
    """Draw the condition number of each layer's matrix Q, a curve for each rho.

    Args:
        by_rho: For each rho `{"layers": {name: {"condition_number", "batch_condition_number"}}}`.

    Returns:
        A `matplotlib.figure.Figure` with a panel for the median over single samples, and one for all samples together.

    Raises:
        ValueError: If there is no rho.

    Example:
        >>> layer = {"condition_number": 3.0, "batch_condition_number": 20.0}
        >>> figure = layer_condition_numbers({"1.0": {"layers": {"dense_0": layer, "dense_2": layer}}})
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['One sample (median)', 'All samples together']
    """
    if not by_rho:
        raise ValueError("by_rho must hold at least one rho; got none")
    figure, both = make_panels(2, columns=2, width=5.0, height=3.9)
    names = list(next(iter(by_rho.values()))["layers"])
    kinds = {"condition_number": "One sample (median)", "batch_condition_number": "All samples together"}
    for panel, (kind, title) in zip(both, kinds.items(), strict=True):
        decorate(panel, title, "layer, in the order of application", "condition number of Q, zeros left out")
        for colour, measured in zip(_cycle(len(by_rho)), by_rho.values(), strict=True):  # dead layers leave gaps
            values = np.array([float(measured["layers"][name][kind]) for name in names])
            shown = np.where(np.isfinite(values), values, np.nan)
            panel.plot(np.arange(len(names)), shown, "o-", color=colour, linewidth=1.8, markersize=4.5)
        panel.set_xticks(np.arange(len(names)), names, rotation=30, ha="right", fontsize=7.5)
        log_axis(panel)
    figure_legend(figure, [(c, "-", "o", None, f"rho = {r}") for c, r in zip(_cycle(len(by_rho)), by_rho, strict=True)])
    return figure


def loss_line(line: Any, /, *, title: str = "Loss along a line") -> Any:
    """Draw the loss along a line, its kinks, and the curvature of its pieces.

    Args:
        line: With `breaks`, `kinks`, `curvature`, and a call that gives the loss, as `sx.landscape.loss_along_line`
            returns it.
        title: What it is the loss of.

    Returns:
        A `matplotlib.figure.Figure` with a panel for the loss and one for the curvature.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> f = lambda params, x: jnp.abs(params["w"] @ x)
        >>> x, y, direction = jnp.ones(2), jnp.ones(2), jnp.eye(2)
        >>> line = sx.landscape.loss_along_line(f, {"w": -jnp.eye(2)}, "w", direction, x, y, stop=3.0)
        >>> len(loss_line(line).axes)
        2
    """
    figure, (loss, curvature) = make_panels(2, columns=2, width=5.0, height=3.6)
    decorate(loss, title, "place on the line", "squared error")
    places = np.unique(np.concatenate([line.breaks, np.linspace(line.breaks[0], line.breaks[-1], 401)]))
    loss.plot(places, line(places), color=_COLOURS[0], linewidth=1.8)
    marked = line.kinks if len(line.kinks) <= 400 else line.kinks[:: len(line.kinks) // 400 + 1]
    loss.plot(marked, line(marked), "|", color=_COLOURS[1], markersize=7, alpha=0.7)
    decorate(curvature, f"Curvature, {len(line.kinks)} kinks", "place on the line", "second derivative")
    curvature.step(line.breaks, np.append(line.curvature, line.curvature[-1]), where="post", color=_COLOURS[0])
    log_axis(curvature)
    return figure


def loss_slices(slices: Mapping[str, Any], /, *, title: str = "") -> Any:
    """Draw slices of the loss beside their local quadratics, with the border of the region where they agree.

    Args:
        slices: By name, each with `coordinates`, `loss`, `quadratic`, `border`, `singular_values`, as
            `sx.landscape.loss_slice` returns it.
        title: What it is the loss of.

    Returns:
        A `matplotlib.figure.Figure` with a row a slice: the loss, and the quadratic, on the same levels.

    Raises:
        ValueError: If there is no slice.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> f = lambda params, x: jnp.abs(params["w"] @ x)
        >>> plane = sx.landscape.loss_slice(f, {"w": jnp.eye(2)}, "w", jnp.ones(2), jnp.ones(2), resolution=5)
        >>> len(loss_slices({"near": plane}).axes)
        3
    """
    if not slices:
        raise ValueError("slices must hold at least one slice; got none")
    colors, patches = (require(f"matplotlib.{name}", "drawing plots") for name in ("colors", "patches"))
    figure, grid = make_panels(2 * len(slices), columns=2, width=4.6, height=3.9)
    for row, (name, plane) in enumerate(slices.items()):
        pair = grid[2 * row : 2 * row + 2]
        finite = plane.loss[np.isfinite(plane.loss)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
        if high - low <= 1e-9 * abs(high):  # constant, up to rounding
            low, high = low - 1e-3 * max(abs(low), 1e-30), high + 1e-3 * max(abs(high), 1e-30)
        levels = np.geomspace(low, high, 25) if high > 100 * low > 0 else np.linspace(low, high, 25)
        norm = colors.BoundaryNorm(levels, 256, extend="both")
        for panel, shown, what in zip(pair, (plane.loss, plane.quadratic), ("loss", "local quadratic"), strict=True):
            decorate(
                panel, f"{name}: {what}", f"along s = {plane.singular_values[0]:.3g}",
                f"along s = {plane.singular_values[1]:.3g}",
            )  # fmt: skip
            panel.grid(False)
            values = np.ma.masked_invalid(shown)
            drawn = panel.contourf(
                plane.coordinates, plane.coordinates, values.T, levels=levels, cmap="viridis", norm=norm, extend="both"
            )
            panel.contour(
                plane.coordinates, plane.coordinates, values.T, levels=levels[::3], colors=GRID, linewidths=0.4
            )
            panel.plot([0], [0], "o", color="white", markersize=4, markeredgecolor=INK)
            if len(plane.border):
                panel.add_patch(patches.Polygon(plane.border, fill=False, edgecolor="white", linewidth=1.8))
            panel.set_aspect("equal")
        figure.colorbar(drawn, ax=pair, label="squared error", shrink=0.8, format="{x:.6g}")
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, color=INK)
    return figure


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]
