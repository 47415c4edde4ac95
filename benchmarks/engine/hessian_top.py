"""The top eigenvalue of a Hessian: the page's tables, made from the results."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from .tables import short, table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "hessian_top.json"
PAGE = ROOT / "docs" / "how-to-choose.md"
BEGIN, END = (
    "<!-- made by benchmarks/hessian_top.py --table: begin -->",
    "<!-- made by benchmarks/hessian_top.py --table: end -->",
)
PACKAGES = ("torch", "curvlinops-for-pytorch", "hessian-eigenthings")
OURS, SMALL, PROBED = "spectrax", "spectrax, subspace of 12", "spectrax, with probe"
ARPACK, LANCZOS, POWER = "curvlinops + SciPy", "hessian-eigenthings, Lanczos", "hessian-eigenthings, power iteration"
PEERS = (ARPACK, LANCZOS, POWER)


def slower(row: dict[str, Any]) -> str:
    """Return the slower one of the two packages, each with the best of its routines that reach the residual."""
    arms = row["arms"]
    best = LANCZOS if arms[LANCZOS]["cpu_ms"] <= arms[POWER]["cpu_ms"] or not arms[POWER]["reached"] else POWER
    return max((ARPACK, best), key=lambda name: arms[name]["cpu_ms"])


def markdown(result: dict[str, Any]) -> str:
    """Return both tables with a sentence on where they were measured."""
    where, rows = result["environment"], list(result["rows"].values())
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items() if number)
    lines = []
    for row in rows:
        arms = row["arms"]
        own = [cell(arms[name]) if name in arms else "" for name in (OURS, SMALL, PROBED)]
        peers = [cell(arms[name]) + times(arms[name]) for name in PEERS]
        compiling = f"{arms[OURS]['compile_cpu_seconds']:.1f} s"
        lines.append([case(row), f"{row['target']:.0e}", *own, *peers, compiling])
    head = ["Hessian of", "residual", "`eigsh`", "subspace of 12", "with probe", *PEERS, "compilation, once"]
    seen: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        seen.setdefault(case(row), []).append(row["products"])
    names = ("spectrax", "spectrax, once", "curvlinops", "hessian-eigenthings")
    costs = [[name, *(f"{median(one[part] for one in each):.1f}" for part in names)] for name, each in seen.items()]
    sizes = "; ".join(f"{name}: {facts['parameters']:,} parameters, {facts['samples']} samples"
                      for name, facts in result["networks"].items())  # fmt: skip
    loads = [row["load"] for row in rows]
    runs = min(row["runs"] for row in rows)
    note = (
        f"{where['cpu']}, one core of {where['cores']}, load {min(loads):.1f} to {max(loads):.1f}; Python "
        f"{where['python']}, {packages}. {sizes}. Medians of {runs} interleaved runs (ten times slower ones: every "
        "eighth) from three starts."
    )
    first = "CPU ms / products, and in square brackets times ours; in round ones: the residual is not reached."
    second = "One product, CPU ms: ours in a loop, and what it does once before."
    return "\n\n".join([
        first, table(head, lines), second,
        table(["Hessian of", "`eigsh`", "once", "curvlinops", "hessian-eigenthings"], costs), note,
    ])  # fmt: skip


def case(row: dict[str, Any]) -> str:
    return row["network"] + (f", {row['batches']} batches" if row["batches"] > 1 else "")


def cell(arm: dict[str, Any]) -> str:
    text = f"{arm['cpu_ms']:.0f} / {short(median(arm['products']))}"
    return text if arm["reached"] else f"({text})"


def times(arm: dict[str, Any]) -> str:
    return f" [{arm['over_ours']['median']:.1f}]"


def write_page() -> None:
    """Write the page's tables from the results."""
    PAGE.write_text(replaced(PAGE.read_text(), json.loads(RESULTS.read_text())))


def replaced(text: str, result: dict[str, Any]) -> str:
    """Return a page with the tables of these results between its marks."""
    before, rest = text.split(BEGIN + "\n")
    return f"{before}{BEGIN}\n{markdown(result)}\n{END}{rest.split(END)[1]}"
