"""The picture of the results: the time of each solver of the largest values, in units of the products alone."""

from pathlib import Path
from typing import Any

from .tables import PEERS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B", "#000000")
INK, GRID = "#333333", "#E4E4E4"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw a row of dots for each solve: 1 is the time of the products that our solve takes."""
    from matplotlib.figure import Figure

    rows = [row for row in results["rows"].values() if row.get("section") == "top" and "error" not in row]
    rows.sort(key=lambda row: (row["dtype"], row["case"], -row["tol"], row["k"]), reverse=True)
    figure = Figure(figsize=(9, 1.6 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for colour, name in zip(COLOURS, ("svds", *PEERS), strict=True):
        for filled in (True, False):
            chosen = [
                (answer["cpu_ms"] / row["products_alone_ms"], place)
                for place, row in enumerate(rows)
                if "cpu_ms" in (answer := row["answers"].get(row["counted"] if name == "svds" else name, {}))
                and (name == "svds" or answer.get("reached", False)) is filled
            ]
            if chosen:
                axes.plot(
                    *zip(*chosen, strict=True), "o", color=colour, markerfacecolor=colour if filled else "white",
                    markersize=7 if name == "svds" else 5, label=name if filled else None,
                    zorder=4 if name == "svds" else 3,
                )  # fmt: skip
    labels = [f"{row['case']}, {row['dtype']} to {row['tol']:.0e}, k = {row['k']}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8, color=INK)
    axes.set_xscale("log")
    axes.axvline(1, color=INK, linewidth=1)
    axes.grid(True, axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    axes.set_xlabel("time / time of our products alone (hollow: residual not reached)", fontsize=9, color=INK)
    axes.set_title("The largest singular values, on one core", loc="left", fontsize=11, color=INK)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")
