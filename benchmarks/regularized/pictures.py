"""The figure and the tables of what was found, made from the results alone: nothing here measures."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from spectrax.report.panels import decorate

from . import depth, low_rank, robustness, seeds

BEGIN = "<!-- made by benchmarks/regularized_training.py --table: begin -->"
END = "<!-- made by benchmarks/regularized_training.py --table: end -->"
Rows = list[dict[str, Any]]

# From the palette of Okabe and Ito; what is not a penalty of this library is orange, grey or black.
COLOURS = {
    "none": "#D55E00", "weight decay": "#6B6B6B", "orthogonality": "#CC79A7", "orthogonality first": "#CC79A7",
    "log-condition": "#56B4E9", "log-condition first": "#0072B2",
    "Jacobian, Frobenius": "#0072B2", "Jacobian, spectral": "#009E73", "layers, spectral": "#CC79A7",
    "noise": "#E69F00", "noise and Frobenius": "#56B4E9",
    "SVD training, hoyer": "#0072B2", "SVD training, l1": "#009E73", "orthogonal alone": "#56B4E9",
    "truncated": "#D55E00", "given rank": "#E69F00", "narrow": "#6B6B6B",
}  # fmt: skip
DASHED = ("orthogonality", "log-condition")
LABELS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$"}


def band(panel: Any, x: Any, values: Sequence[Sequence[float]], arm: str) -> None:
    """Draw the medians of some seeds with their range; `values` has a row for each place."""
    middle, low, high = zip(*(seeds.summary(each) for each in values), strict=True)
    style = "--" if arm in DASHED else "-"
    panel.plot(x, middle, style, color=COLOURS[arm], linewidth=1.8, label=arm)
    panel.fill_between(x, low, high, color=COLOURS[arm], alpha=0.14, linewidth=0)


def depth_panel(panel: Any, rows: Rows, activation: str, arms: Iterable[str] = tuple(depth.GRID)) -> None:
    """Draw the training loss by steps, those of a penalty alone included."""
    for arm in arms:
        found = [depth.losses_by_steps(row) for row in depth.reported(rows, activation, arm)]
        if found:
            band(panel, found[0][0], np.array([losses for _, losses in found]).T, arm)
    panel.set_yscale("log")
    decorate(panel, f"{depth.DEPTH + 1} convolutions, {activation}", "steps, with those of a penalty alone",
             "training loss")  # fmt: skip


def attack_panel(panel: Any, rows: Rows, norm: str, arms: Iterable[str] = tuple(robustness.GRID)) -> None:
    """Draw the accuracy under projected gradient ascent by the radius."""
    radii = robustness.RADII[norm]
    for arm in arms:
        found = robustness.reported(rows, arm)
        if found:
            clean = [row["test_accuracy"] for row in found]
            under = [[row["attacks"][norm][str(radius)] for row in found] for radius in radii]
            band(panel, (0, *radii), [clean, *under], arm)
    panel.set_xticks((0, *radii), [f"{radius:g}" for radius in (0, *radii)])
    decorate(panel, f"attacks, {LABELS[norm]}", f"radius, {LABELS[norm]}", "test accuracy")


def noise_panel(panel: Any, rows: Rows, arms: Iterable[str] = tuple(robustness.GRID)) -> None:
    """Draw the accuracy under Gaussian noise by its standard deviation."""
    for arm in arms:
        found = robustness.reported(rows, arm)
        if found:
            clean = [row["test_accuracy"] for row in found]
            under = [[row["noise"][str(sigma)] for row in found] for sigma in robustness.SIGMAS]
            band(panel, (0, *robustness.SIGMAS), [clean, *under], arm)
    decorate(panel, "Gaussian noise", "standard deviation", "test accuracy")


def rank_panel(panel: Any, rows: Rows, *, tuned: bool = True, arms: Iterable[str] = tuple(low_rank.GRID)) -> None:
    """Draw test accuracy against cost: for each arm what is best on validation data within each budget."""
    full = low_rank.flops(low_rank.WIDTH, None)
    for arm in arms:
        places: dict[float, dict[str, Any]] = {}
        for budget in np.geomspace(0.02, 1, 60):
            point = low_rank.best(rows, arm, float(budget), tuned=tuned)
            if point:
                places[float(np.median(point["flops"])) / full] = point
        if places:
            x = sorted(places)
            band(panel, x, [places[cost]["test"] for cost in x], arm)
            panel.plot(x, [np.median(places[cost]["test"]) for cost in x], "o", color=COLOURS[arm], markersize=3)
    panel.set_xscale("log", base=2)
    shares = [2**-power for power in range(6)]
    panel.set_xticks(shares, ["1" if share == 1 else f"1/{round(1 / share)}" for share in shares])
    decorate(panel, "low rank", "multiplications, of the dense network's", "test accuracy")


def overview(results: dict[str, Any]) -> Figure:
    """Draw one panel of each experiment."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    depth_panel(panels[0], results["depth"], "leaky")
    attack_panel(panels[1], results["robustness"], "linf")
    rank_panel(panels[2], results["low_rank"])
    panels[2].set_ylim(0.8, 0.97)
    for panel in panels:
        panel.legend(frameon=False, fontsize=8)
    return figure


def grid_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def depth_table(rows: Rows) -> str:
    """Return the last training losses of each arm, for each activation, and for the deeper network."""

    def cell(activation: str, arm: str, deeper: int | None) -> str:
        found = depth.reported(rows, activation, arm, deeper)
        return seeds.written((float(row["train_loss"][-1]) for row in found), ".3g") if found else "-"

    columns = [(activation, None) for activation in depth.ACTIVATIONS] + [("leaky", depth.DEEPER)]
    names = [f"{activation}, {deeper or depth.DEPTH} layers" for activation, deeper in columns]
    lines = [[arm, *(cell(activation, arm, deeper) for activation, deeper in columns)] for arm in depth.GRID]
    return grid_table(["training loss", *names], lines)


def robustness_table(rows: Rows) -> str:
    """Return clean accuracies and those under noise and attacks, at the chosen values."""
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "clean": lambda row: row["test_accuracy"],
        "noise 0.3": lambda row: row["noise"]["0.3"],
        "linf 0.05": lambda row: row["attacks"]["linf"]["0.05"],
        "linf 0.1": lambda row: row["attacks"]["linf"]["0.1"],
        "l2 0.5": lambda row: row["attacks"]["l2"]["0.5"],
        "l2 1": lambda row: row["attacks"]["l2"]["1.0"],
    }
    lines = []
    for arm in robustness.GRID:
        found = robustness.reported(rows, arm)
        value = robustness.chosen(rows, arm)
        if not found:
            continue
        name = arm if arm == "none" else f"{arm}, {value:g}"
        cells = [seeds.written(column(row) for row in found) for column in columns.values()]
        lines.append([name, *cells])
    return grid_table(["test accuracy", *columns], lines)


def low_rank_table(rows: Rows, *, tuned: bool = True) -> str:
    """Return the test accuracy of each arm within each budget."""

    def cell(arm: str, budget: float) -> str:
        point = low_rank.best(rows, arm, budget, tuned=tuned)
        return seeds.written(point["test"]) if point else "-"

    shares = ["all", *(f"1/{round(1 / budget)}" for budget in low_rank.BUDGETS)]
    return grid_table(
        ["test accuracy within a share of the multiplications", *shares],
        [[arm, *(cell(arm, budget) for budget in (1.0, *low_rank.BUDGETS))] for arm in low_rank.GRID],
    )


def table(results: dict[str, Any]) -> str:
    made = {"depth": depth_table, "robustness": robustness_table, "low_rank": low_rank_table}
    return "\n\n".join(make(results[name]) for name, make in made.items())


def replaced(text: str, results: dict[str, Any]) -> str:
    """Return a page with the tables between its markers made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table(results) + "\n" + END + rest.split(END)[1]


def standing(text: str) -> str:
    """Return what stands between the markers."""
    return text.split(BEGIN)[1].split(END)[0].strip("\n")
