"""Pictures of a training run, as matplotlib figures that a notebook can show and a program can save.

Each function takes plain records, dicts and arrays and returns a `matplotlib.figure.Figure`. None of them touches
`pyplot`, its current figure or the global settings, so they work in threads, in notebooks and without a display.

Colours tell the runs apart (blue with the penalty, orange-red without; from the palette of Okabe and Ito, which readers
with a colour vision deficiency can tell apart), line styles tell true values (solid) from estimates (dashed).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectrax.report.extras import require
from spectrax.report.panels import INK, decorate, figure_legend, log_axis, make_panels, outer_labels_only, plain_ticks

COLOURS: Mapping[str, str] = {"penalty": "#0072B2", "baseline": "#D55E00", "before": "#6B6B6B"}
LABELS: Mapping[str, str] = {"penalty": "with the penalty", "baseline": "baseline", "before": "before training"}
_SPARE = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def learning_curves(records: Iterable[Mapping[str, Any]], /) -> Any:
    """Draw the loss, the accuracies and the penalty of one or several runs.

    Args:
        records: The records of `metrics.jsonl`: those with `event` "step" give `loss` and `penalty` by `step`, those
            with `event` "epoch" give `test_loss`, `train_accuracy` and `test_accuracy`; `run` tells the runs apart.

    Returns:
        A `matplotlib.figure.Figure` with a panel for the loss (thin: each step; thick: the test part after each epoch),
        one for the accuracies, and one for the penalty where a run has one.

    Raises:
        ValueError: If there are no records.

    Example:
        >>> figure = learning_curves([
        ...     {"run": "penalty", "event": "step", "step": 1, "loss": 2.0, "penalty": None},
        ...     {"run": "penalty", "event": "epoch", "step": 1, "epoch": 1, "test_loss": 1.5, "train_accuracy": 0.5,
        ...      "test_accuracy": 0.6},
        ... ])
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['Loss', 'Accuracy']
    """
    records = list(records)
    runs = _runs(records)
    if not runs:
        raise ValueError("records must hold at least one record with a run; got none")
    steps = {run: [r for r in records if r["run"] == run and r["event"] == "step"] for run in runs}
    epochs = {run: [r for r in records if r["run"] == run and r["event"] == "epoch"] for run in runs}
    penalised = [run for run in runs if any(r.get("penalty") is not None for r in steps[run])]

    figure, panels = make_panels(3 if penalised else 2, columns=3, width=4.6, height=3.7)
    loss, accuracy = panels[:2]
    decorate(loss, "Loss", "step", "loss")
    decorate(accuracy, "Accuracy", "step", "accuracy")
    for run in runs:
        colour = _colour(run)
        x, y = _series(steps[run], "step", "loss")
        loss.plot(x, y, color=colour, linewidth=0.6, alpha=0.3)
        loss.plot(
            *_series(epochs[run], "step", "test_loss"),
            color=colour, linewidth=2, marker="o", markersize=3.5, label=f"{_label(run)}, test",
        )  # fmt: skip
        accuracy.plot(
            *_series(epochs[run], "step", "train_accuracy"),
            color=colour, linewidth=1.2, linestyle=(0, (1, 1.2)), label=f"{_label(run)}, train",
        )  # fmt: skip
        x, y = _series(epochs[run], "step", "test_accuracy")
        accuracy.plot(x, y, color=colour, linewidth=2, marker="o", markersize=3.5, label=f"{_label(run)}, test")
    log_axis(loss)
    loss.text(
        0.02, 0.02, "thin: each step's batch", transform=loss.transAxes, fontsize=8, color=INK, ha="left", va="bottom"
    )
    _zoom_accuracy(accuracy)
    loss.legend(loc="upper right", frameon=False, fontsize=8.5)
    accuracy.legend(loc="lower right", frameon=False, fontsize=8.5)
    if penalised:
        panel = panels[2]
        decorate(panel, "Penalty, before its weight", "step", "penalty")
        for run in penalised:
            panel.plot(*_series(steps[run], "step", "penalty"), color=_colour(run), linewidth=1.2, label=_label(run))
        panel.legend(loc="upper right", frameon=False, fontsize=8.5)
    return figure


def condition_numbers(records: Iterable[Mapping[str, Any]], /) -> Any:
    """Draw each layer's condition number over time, a panel a layer; true and estimated values are told apart.

    Args:
        records: The records of `metrics.jsonl`: those with `event` "epoch" give the measured values in `layers`
            (`{layer: {"condition_number": ..., "kind": ...}}`), those with `event` "step" what the penalty tracked, in
            `estimates` (`{layer: condition number}`).

    Returns:
        A `matplotlib.figure.Figure`. Solid with dots: measured and exact; hollow dots: measured, but only an estimate
        or a bound (too large, or not converged); dashed: tracked by the penalty. Infinite values stand at the upper
        edge as triangles.

    Raises:
        ValueError: If no record has layers.

    Example:
        >>> layer = {"condition_number": 30.0, "kind": "exact", "converged": True}
        >>> figure = condition_numbers([{"run": "penalty", "event": "epoch", "step": 0, "layers": {"dense_0": layer}}])
        >>> figure.axes[0].get_title(loc="left")
        'dense_0'
    """
    records = list(records)
    measured = [r for r in records if r["event"] == "epoch" and r.get("layers")]
    tracked = [r for r in records if r["event"] == "step" and r.get("estimates")]
    runs = _runs(records)
    layers = list(
        dict.fromkeys(layer for r in measured + tracked for layer in r.get("layers") or r.get("estimates") or {})
    )
    if not layers:
        raise ValueError("records must hold at least one with the condition numbers of layers; got none")

    figure, panels = make_panels(len(layers), columns=min(4, len(layers)), width=3.4, height=2.7, sharey=True)
    finite = [
        *(float(layer["condition_number"]) for r in measured for layer in r["layers"].values()),
        *(float(value) for r in tracked for value in r["estimates"].values()),
    ]
    top = 2 * max((value for value in finite if math.isfinite(value)), default=1.0)
    for layer, panel in zip(layers, panels, strict=False):
        decorate(panel, layer, "step", "condition number")
        for run in runs:
            colour = _colour(run)
            x, y = _series([r for r in tracked if r["run"] == run], "step", "estimates", layer)
            if len(x):
                panel.plot(x, y, color=_darker(colour), linewidth=1.1, linestyle=(0, (3, 1.5)), zorder=3)
            chosen = [r for r in measured if r["run"] == run and layer in r["layers"]]
            x, y = _series(chosen, "step", "layers", layer, "condition_number")
            true = np.array([_is_true(r["layers"][layer]) for r in chosen], bool)
            panel.plot(x, np.where(np.isfinite(y), y, np.nan), color=colour, linewidth=1.8, alpha=0.8, zorder=2)
            for flag, face in ((True, colour), (False, "white")):
                shown = (true == flag) & np.isfinite(y)
                panel.plot(x[shown], y[shown], "o", color=colour, markerfacecolor=face, markersize=4, zorder=4)
            beyond = np.isinf(y)
            panel.plot(x[beyond], np.full(beyond.sum(), top), "^", color=colour, markersize=5, zorder=4)
        panel.set_yscale("log")
    outer_labels_only(panels, min(4, len(layers)))
    entries: list[Any] = [(_colour(run), "-", "o", None, f"{_label(run)}, true") for run in runs]
    entries += [
        (_darker(_colour(run)), (0, (3, 1.5)), "", None, f"{_label(run)}, tracked estimate") for run in _runs(tracked)
    ]
    if any(not _is_true(layer) for r in measured for layer in r["layers"].values()):
        entries.append((INK, "", "o", "white", "measured, but an estimate or a bound"))
    if any(math.isinf(value) for value in finite):
        entries.append((INK, "", "^", None, "infinite: singular to working precision"))
    figure_legend(figure, entries)
    return figure


def singular_values(
    before: Mapping[str, Any], after: Mapping[str, Mapping[str, Any]], /, *, notes: Mapping[str, str] | None = None
) -> Any:
    """Draw each layer's singular values before and after training, a panel a layer.

    Args:
        before: For each layer its singular values, shape (r,), or None where they were not computed.
        after: For each run, the same after training.
        notes: For a layer without values, why; it is written into its panel.

    Returns:
        A `matplotlib.figure.Figure`: the values in descending order, on a logarithmic axis, against their rank from 0
        to 1.

    Raises:
        ValueError: If there is no layer.

    Example:
        >>> figure = singular_values({"dense_0": [2.0, 1.0]}, {"penalty": {"dense_0": [1.5, 1.0]}})
        >>> len(figure.axes[0].lines)
        2
    """
    if not before:
        raise ValueError("before must hold at least one layer; got none")
    columns = min(4, len(before))
    figure, panels = make_panels(len(before), columns=columns, width=3.4, height=2.7)
    for layer, panel in zip(before, panels, strict=False):
        decorate(panel, layer, "rank / number of values, both ends stretched", "singular value")
        curves = {"before": before[layer], **{run: values.get(layer) for run, values in after.items()}}
        drawn = {name: _descending(values) for name, values in curves.items() if values is not None}
        if not drawn:
            panel.text(
                0.5, 0.5, (notes or {}).get(layer, "not computed"), transform=panel.transAxes,
                ha="center", va="center", fontsize=9, color=INK, wrap=True,
            )  # fmt: skip
            panel.set(xticks=[], yticks=[], xlabel="", ylabel="")
            continue
        largest = max(values[0] for values in drawn.values())
        # A value at round-off would stretch the axis over tens of decades: it is drawn at the lower edge.
        floor = max(largest, 1e-30) * 1e-8
        for name, values in drawn.items():
            panel.plot(
                (np.arange(len(values)) + 0.5) / len(values), np.maximum(values, floor),
                color=_colour(name), linewidth=1.8, linestyle=(0, (3, 1.5)) if name == "before" else "-",
            )  # fmt: skip
        _stretch_ends(panel, max(len(values) for values in drawn.values()))
        log_axis(panel)
    outer_labels_only(panels, columns, share_y=False)
    entries = [(_colour("before"), (0, (3, 1.5)), "", None, _label("before"))]
    entries += [(_colour(run), "-", "", None, f"after, {_label(run)}") for run in after]
    figure_legend(figure, entries)
    return figure


def jacobian_condition_numbers(before: Any, after: Mapping[str, Any], /) -> Any:
    """Draw the distribution of the Jacobian's condition number over the test set, before and after training.

    Args:
        before: The condition number at each sample before training, shape (N,); infinite where the Jacobian is
            singular.
        after: For each run, the same after training.

    Returns:
        A `matplotlib.figure.Figure`: the fraction of samples whose condition number is at most x, with the medians
        marked.

    Raises:
        ValueError: If there are no samples.

    Example:
        >>> figure = jacobian_condition_numbers([10.0, 20.0, 40.0], {"penalty": [5.0, 6.0, 7.0]})
        >>> figure.axes[0].get_xscale()
        'log'
    """
    curves = {"before": np.asarray(before, float), **{run: np.asarray(values, float) for run, values in after.items()}}
    if not all(values.size for values in curves.values()):
        raise ValueError("before and after must hold at least one sample each")
    figure, (panel,) = make_panels(1, columns=1, width=6.8, height=4.4)
    decorate(panel, "The network's Jacobian at each test sample", "condition number", "fraction of samples at or below")
    for name, values in curves.items():
        finite = np.sort(values[np.isfinite(values)])
        # Singular Jacobians count in the denominator: the curve then ends below one.
        fraction = np.arange(1, len(finite) + 1) / len(values)
        label = _label(name) if name == "before" else f"after, {_label(name)}"
        median = float(np.median(values))
        singular = int(np.sum(~np.isfinite(values)))
        label += f": median {_short(median)}" + (f", {singular} of {len(values)} singular" if singular else "")
        style = (0, (3, 1.5)) if name == "before" else "-"
        panel.step(finite, fraction, where="post", color=_colour(name), linewidth=2, linestyle=style, label=label)
        if math.isfinite(median):
            panel.plot([median], [0.5], "o", color=_colour(name), markersize=6, markeredgecolor="white", zorder=5)
    panel.set_xscale("log")
    shown = np.concatenate([values[np.isfinite(values)] for values in curves.values()])
    if shown.size:
        plain_ticks(panel.xaxis, shown.min(), shown.max())
    panel.set_ylim(0, 1.02)
    panel.axhline(0.5, color=INK, linewidth=0.6, alpha=0.5)
    panel.legend(loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, fontsize=9.5, borderaxespad=0)
    return figure


def save_figure(figure: Any, path: str | Path, /) -> list[Path]:
    """Save a figure as PNG and as SVG.

    Args:
        figure: A `matplotlib.figure.Figure`.
        path: The path without the ending; its folder is made where it is missing.

    Returns:
        The paths of the two files.

    Example:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in save_figure(Figure(), folder + "/empty")]
        ['empty.png', 'empty.svg']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f"{path.name}.{ending}") for ending in ("png", "svg")]  # a dot may be in the name
    figure.savefig(files[0], dpi=160, facecolor="white")
    figure.savefig(files[1], facecolor="white", metadata={"Date": None})
    return files


def _runs(records: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(r["run"] for r in records))


def _colour(run: str) -> str:
    return COLOURS.get(run) or _SPARE[sum(map(ord, run)) % len(_SPARE)]


def _label(run: str) -> str:
    return LABELS.get(run, run)


def _darker(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"#{red * 6 // 10:02x}{green * 6 // 10:02x}{blue * 6 // 10:02x}"


def _is_true(layer: Mapping[str, Any]) -> bool:
    return layer.get("kind", "exact") == "exact" and bool(layer.get("converged", True))


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) and value < 1e5 else f"{value:.1e}"


def _series(records: Sequence[Mapping[str, Any]], x: str, *path: str) -> tuple[np.ndarray, np.ndarray]:
    """Collect x and the value at a path of keys, without the records that lack it."""
    xs, ys = [], []
    for record in records:
        value: Any = record
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            xs.append(record[x])
            ys.append(float(value))
    return np.array(xs, float), np.array(ys, float)


def _descending(values: Any) -> np.ndarray:
    return np.sort(np.asarray(values, float))[::-1]


def _stretch_ends(panel: Any, count: int) -> None:
    """Give the few largest and smallest values room: they make the condition number."""
    ticker = require("matplotlib.ticker", "drawing plots")
    panel.set_xscale("logit")
    edge = 0.4 / max(count, 2)
    panel.set_xlim(edge, 1 - edge)
    ticks = [tick for tick in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999) if edge <= tick <= 1 - edge]
    panel.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(ticker.NullLocator())


def _zoom_accuracy(panel: Any) -> None:
    values = [value for line in panel.lines for value in np.asarray(line.get_ydata(), float) if math.isfinite(value)]
    if values:
        # The last epochs are what is compared: an untrained network's accuracy must not flatten them.
        low = float(np.quantile(values, 0.15))
        panel.set_ylim(max(0.0, low - 0.6 * (1.0 - low)), 1.0 + 0.02 * (1.0 - low))
