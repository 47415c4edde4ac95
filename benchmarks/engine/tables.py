"""The README's tables, made from the results: nothing here measures, and no figure stands in the code."""

import math
import re
from collections.abc import Iterable
from typing import Any

SHOWN_K = 5  # the table has the solves for so many values; the results have the others, and the limits count them
BEGIN, END = "<!-- made by benchmarks/svds.py --table: begin -->", "<!-- made by benchmarks/svds.py --table: end -->"
PEERS = ("ARPACK", "PROPACK", "PRIMME", "matfree", "LOBPCG", "JAX LOBPCG", "jnp.linalg.svd")


def replaced(text: str, results: dict[str, Any]) -> str:
    """Return a page with what stands between the markers made anew."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected one line '{BEGIN}' and one '{END}' in the page")
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + rendered(results) + "\n" + END + rest.split(END)[1]


def standing(text: str) -> str:
    """Return what stands between the markers."""
    return text.split(BEGIN)[1].split(END)[0].strip("\n")


def rendered(results: dict[str, Any]) -> str:
    """Return the environment, the table of times and products, and that of the limits."""
    rows = [row for row in results["rows"].values() if "error" not in row]
    top = [row for row in rows if row["section"] == "top" and row["k"] == SHOWN_K]
    parts = [environment(results)]
    if top:
        parts.append(times(top))
    parts.append(limits(rows))
    return "\n\n".join(parts)


def environment(results: dict[str, Any]) -> str:
    found, settings = results["environment"], results["settings"]
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items() if number)
    left_out = results.get("peers_left_out") or []
    missing = f"; not installed, so left out: {', '.join(left_out)}" if left_out else ""
    loads = [row["load"] for row in results["rows"].values() if "load" in row]
    busy = f", load {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    runs = [row["pairs"] for row in results["rows"].values() if "pairs" in row] or [settings["pairs"]]
    return (
        f"{found['cpu']}, one core of {found['cores']}{busy}; Python {found['python']}, {packages}{missing}. Medians "
        f"of {min(runs)} interleaved runs or more (programs ten times slower: every eighth), process CPU time."
    )


def times(rows: list[dict[str, Any]]) -> str:
    """One line for each solve of the largest values: pairs of products and milliseconds, ours and the peers'."""
    names = [name for name in PEERS if any(name in row["answers"] for row in rows)]
    head = [f"the {SHOWN_K} largest of", "`svds`", "with probe", "/ products alone", "unrestarted", *names]
    lines = []
    for row in sorted(rows, key=lambda row: (row["dtype"], row["case"], -row["tol"], row["k"])):
        answers = row["answers"]
        alone = next((entry for entry in row["limits"] if entry["name"] == "time / products alone"), None)
        lines.append([
            f"{row['case']}, {row['dtype']}, {row['tol']:.0e}",
            cell(answers["svds"], ours=True), cell(answers["svds, with probe"], ours=True),
            spread(alone) if alone else "", unrestarted(row["unrestarted"]),
            *(cell(answers.get(name, {})) for name in names),
        ])  # fmt: skip
    note = (
        "Pairs of products / milliseconds. In brackets: the verified residual is not reached, or a value was missed. "
        "The peers have the cheapest setting that reaches it, which a user would have to guess."
    )
    return table(head, lines) + "\n\n" + note


def unrestarted(floor: dict[str, Any]) -> str:
    if not floor["pairs"]:
        return "-"
    return str(floor["pairs"]) if floor["right"] else f"({floor['pairs']})"


def cell(answer: dict[str, Any], *, ours: bool = False) -> str:
    """Pairs and milliseconds; in brackets what is loose or wrong, and a dash for what gave nothing."""
    if "cpu_ms" not in answer and answer.get("matvecs") is None:
        return "-"
    pairs = f"{answer['matvecs'] // 2}" if answer.get("matvecs") else ""
    text = " / ".join(part for part in (pairs, short(answer["cpu_ms"]) if "cpu_ms" in answer else "") if part)
    wrong = bool(answer.get("missed")) if ours else not answer.get("reached", True)
    return f"({text})" if wrong else text


def limits(rows: Iterable[dict[str, Any]]) -> str:
    """One line for each limit: how many rows meet it, their median and the worst."""
    groups: dict[tuple[str, str, float, bool], list[dict[str, Any]]] = {}
    for row in rows:
        for entry in row["limits"]:
            if "limit" in entry:
                key = (row["section"], entry["name"], entry["limit"], entry["at_least"])
                groups.setdefault(key, []).append(entry)
    lines = []
    for (section, name, bound, at_least), entries in groups.items():
        worst = (min if at_least else max)(entries, key=lambda entry: entry["median"])
        middle = sorted(entry["median"] for entry in entries)[len(entries) // 2]
        itself = [entry["itself"]["median"] for entry in entries if "itself" in entry]
        beside = f"{min(itself):.2f} to {max(itself):.2f}" if itself else ""
        met = sum(entry["met"] for entry in entries)
        sign = "at least" if at_least else "at most"
        lines.append(
            [section, name, f"{sign} {bound:g}", f"{met} of {len(entries)}", short(middle), spread(worst), beside]
        )
    return table(["", "ratio or count", "limit", "rows that meet it", "median", "worst", "against itself"], lines)


def spread(entry: dict[str, Any]) -> str:
    text = short(entry["median"])
    return f"{text} [{short(entry['low'])}, {short(entry['high'])}]" if "low" in entry else text


def short(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e5:
        return str(int(value))
    if abs(value) >= 100:
        return f"{value:.0f}" if abs(value) < 1e5 else f"{value:.1e}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(re.sub(r"\|", "\\|", part) for part in row) + " |" for row in rows)
