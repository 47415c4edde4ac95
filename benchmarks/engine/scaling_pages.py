"""The tables and the picture of docs/scaling.md, from the results of benchmarks/scaling.py."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from . import scaling_model as model
from .sharded_steps import PAIR, REDUCE, STEP
from .tables import table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scaling.md"
PICTURE = ROOT / "docs" / "images" / "scaling.png"
MARK = "<!-- made by benchmarks/scaling.py --table: {} {} -->"
SHOWN = 24  # rows of the bases in the tables of measurements
TOKENS = (2**14, 2**20)


def rows_of(results: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in results["rows"].values() if all(row[key] == value for key, value in wanted.items())]


def places(results: dict[str, Any]) -> list[tuple[str, int]]:
    found = {(row["place"], row["count"]) for row in results["rows"].values()}
    return sorted(found, key=lambda place: (model.PLACES.index(place[0]), place[1]))


def label(place: str, count: int) -> str:
    return f"{count} {place}" if count > 1 else f"1 {'device' if place == 'devices' else 'process'}"


def duration(seconds: float) -> str:
    """Return seconds with a unit, in three digits."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return (
        f"{1e3 * seconds:#.3g} ms".replace(". ", " ")
        if seconds >= 1e-3
        else f"{1e6 * seconds:#.3g} us".replace(". ", " ")
    )


def both(row: dict[str, Any]) -> str:
    cpu, wall = (row[f"step_{kind}"] - row[f"operator_{kind}"] for kind in ("cpu", "wall"))
    return f"{duration(cpu)}; {duration(wall)}"


def measured(results: dict[str, Any]) -> str:
    """Processor time and time of the clock for each place, by unknowns, without the operator's own share."""
    columns = [(STEP, n) for n in (2**14, 2**17, 2**20)] + [(PAIR, 2**20)]
    head = ["", *(f"{case}, 2^{int(np.log2(n))}" for case, n in columns), "all-reduce by itself"]
    lines = []
    for place, count in places(results):
        cells = [label(place, count)]
        for case, n in columns:
            found = rows_of(results, place=place, count=count, case=case, n=n, subspace_size=SHOWN)
            cells.append(both(found[0]) if found else "")
        alone = rows_of(results, place=place, count=count, case=REDUCE, n=26)
        lines.append([*cells, both(alone[0]) if alone else "-"])
    return table(head, lines)


def weak(results: dict[str, Any]) -> str:
    """The same where each device has 2^17 unknowns."""
    lines = []
    for place, count in places(results):
        found = rows_of(results, place=place, count=count, case=STEP, n=2**17 * count, subspace_size=SHOWN)
        for row in found:
            cpu = row["step_cpu"] - row["operator_cpu"]
            lines.append(
                [label(place, count), f"{row['n']:,}", duration(cpu), duration(cpu / count),
                 duration(row["step_wall"] - row["operator_wall"])]
            )  # fmt: skip
    return table(["", "unknowns", "processor", "for each device", "clock"], lines)


def fitted(results: dict[str, Any]) -> str:
    rows = list(results["rows"].values())
    found = model.fit(rows)
    lines = []
    for name, value in zip(model.TERMS, found.coefficients, strict=True):
        rate = "" if value <= 0 or name.startswith(("a pass", "a round")) else f"{1 / value / 1e9:.3g} G/s"
        lines.append([name, f"{value:.3g} s" if value else "0", rate])
    lines.append(["the caches hold", f"{found.cache / 2**20:.0f} MiB", ""])
    return table(["seconds of the processor for", "", "as a rate"], lines)


def errors(results: dict[str, Any]) -> str:
    rows = list(results["rows"].values())
    steps = [row for row in rows if row["case"] != REDUCE]
    every_row = model.fit(rows)
    inside = np.array([model.predicted(every_row, row) / model.seconds(row) for row in steps])
    lines = [["nothing", *(f"{100 * value:.0f} %" for value in model.error(inside)), ""]]
    for name, group in model.LEFT_OUT.items():
        found = model.left_out(rows, group)
        every = np.concatenate(list(found.values()))
        worst = ""
        if name != "one row":
            parts = [f"{spoken(value)} {100 * model.error(ratios)[0]:.0f} %" for value, ratios in found.items()]
            worst = ", ".join(parts)
        lines.append([name, *(f"{100 * value:.0f} %" for value in model.error(every)), worst])
    return table(["left out of the fit", "median", "largest", "median for each"], lines)


def spoken(value: Any) -> str:
    if isinstance(value, tuple):
        return label(*value)
    return f"2^{int(np.log2(value))}" if isinstance(value, int) and value >= 2**12 else str(value)


def predictions(results: dict[str, Any]) -> str:
    """Milliseconds of a step on 512 chips, by the model with published figures."""
    lines = []
    for row in results["tpu"]["rows"].values():
        if row["leaves"] > 1:
            continue
        for passes in (1, 2):
            found = model.on_v5p(row, passes=passes)
            held = (row["arguments"] + row["temporaries"]) / 2**30
            lines.append(
                [row["case"], str(row["subspace_size"]), str(passes), f"{held:.1f} GiB",
                 f"{1e3 * found['memory']:.2f}", f"{1e3 * found['arithmetic']:.2f}", f"{1e3 * found['latency']:.2f}",
                 f"{1e3 * found['middle']:.1f}", f"{1e3 * found['low']:.1f} to {1e3 * found['high']:.1f}",
                 f"{found['latency_below']:.1g}".replace("e+0", "e")]
            )  # fmt: skip
    lines.sort(key=lambda line: (line[0] == PAIR, int(line[1]), line[2]))
    head = [
        "",
        "rows",
        "passes",
        "held",
        "memory",
        "arithmetic",
        "latency",
        "in all, ms",
        "range, ms",
        "all-reduces are half below",
    ]
    return table(head, lines)


def counts(results: dict[str, Any]) -> str:
    """Bytes and FLOPs of a step, in units of one row of the basis, by compiler."""
    lines = []
    tpu = {(row["case"], row["subspace_size"], row["leaves"]): row for row in results["tpu"]["rows"].values()}
    for case in (STEP, PAIR):
        for size in (16, 32, 64):
            row = tpu[case, size, 1]
            lines.append([f"v5p-512, {case}", str(size), *in_rows(row, row["unknowns"] / row["chips"])])
        for size in (12, 24, 48):
            (row,) = rows_of(results, place="devices", count=8, case=case, n=2**20, subspace_size=size)
            lines.append([f"8 host devices, {case}", str(size), *in_rows(row, row["n"] / 8)])
    head = ["", "rows", "bytes", "of a second pass", "the basis twice", "FLOPs for each byte", "all-reduces"]
    return table(head, lines)


def in_rows(row: dict[str, Any], local: float) -> list[str]:
    bases = 2 * (row["subspace_size"] + 1) + (2 * row["subspace_size"] if row["case"] == PAIR else 0)
    second = f"{row['second_pass']['bytes'] / 4 / local:.0f}" if "second_pass" in row else "-"
    return [
        f"{row['counted']['bytes'] / 4 / local:.0f}", second, str(bases),
        f"{row['counted']['flops'] / row['counted']['bytes']:.2f}", str(row["counted"]["collectives"]),
    ]  # fmt: skip


def hessians(results: dict[str, Any]) -> str:
    """Seconds of a Hessian's product on the same chips, and the share of a step beside it."""
    (row,) = (
        row for row in results["tpu"]["rows"].values()
        if (row["case"], row["subspace_size"], row["leaves"]) == (STEP, 32, 1)
    )  # fmt: skip
    step = model.on_v5p(row)
    lines = []
    for tokens in TOKENS:
        low, high = (
            model.hessian_seconds(row["unknowns"], tokens, row["chips"], flops=each) for each in model.FLOPS_A_TOKEN
        )
        share = [100 * step["low"] / (step["low"] + high), 100 * step["high"] / (step["high"] + low)]
        lines.append([f"{tokens:,}", f"{duration(low)} to {duration(high)}", f"{share[0]:.2g} to {share[1]:.2g} %"])
    one = model.hessian_seconds(row["unknowns"], 1, row["chips"])
    lines.append([f"{step['middle'] / one:,.0f}", duration(step["middle"]), "half, by the middle figures"])
    return table(["tokens", "a product with the Hessian", "the step's share of both, 32 rows"], lines)


TABLES = {
    "counts": counts, "measured": measured, "weak": weak, "fit": fitted, "errors": errors,
    "prediction": predictions, "hessian": hessians,
}  # fmt: skip


def replaced(text: str, results: dict[str, Any]) -> str:
    """Return the page with the tables of these results between their marks."""
    for name, make in TABLES.items():
        begin, end = MARK.format("begin", name), MARK.format("end", name)
        pattern = re.compile(re.escape(begin) + r"\n.*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"expected the marks of the table {name!r} once")
        text = pattern.sub(f"{begin}\n{make(results)}\n{end}".replace("\\", r"\\"), text)
    return text


def write_tables(results: dict[str, Any]) -> None:
    PAGE.write_text(replaced(PAGE.read_text(), results))


def write_figure(results: dict[str, Any], path: Path = PICTURE) -> None:
    """Draw what steps cost beside what the model says of them, and processor time over the number of devices."""
    from matplotlib.figure import Figure

    from .figure import COLOURS, GRID, INK

    rows = list(results["rows"].values())
    found = model.left_out(rows, model.LEFT_OUT["one row"])
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (place, count) in zip(COLOURS, places(results), strict=False):
        inside = [row for row in rows_of(results, place=place, count=count) if row["case"] != REDUCE]
        points = [(model.seconds(row), found[model.LEFT_OUT["one row"](row)][0] * model.seconds(row)) for row in inside]
        left.plot(*np.array(points).T, "o", markersize=4, color=colour, label=label(place, count))
    ends = np.array([min(map(model.seconds, rows)), max(map(model.seconds, rows))])
    left.plot(ends, ends, color=INK, linewidth=0.8)
    left.set(
        xscale="log", yscale="log", xlabel="measured, s of processor for each device", ylabel="predicted, left out"
    )
    left.legend(frameon=False, fontsize=8)
    for colour, n in zip(COLOURS, (2**14, 2**17, 2**20), strict=False):
        for place, style in zip(model.PLACES, ("o-", "s--"), strict=True):
            line = sorted(rows_of(results, place=place, case=STEP, n=n, subspace_size=SHOWN), key=lambda r: r["count"])
            cpu = [row["step_cpu"] - row["operator_cpu"] for row in line]
            name = f"2^{int(np.log2(n))}, {place}"
            right.plot([row["count"] for row in line], cpu, style, color=colour, markersize=4, label=name)
    right.set(
        xscale="log", yscale="log", xlabel="devices or processes on two cores", ylabel="s of processor, all together"
    )
    right.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    right.minorticks_off()
    figure.legend(*right.get_legend_handles_labels(), loc="outside right lower", frameon=False, fontsize=8)
    for axes, title in ((left, "The model, each step left out of its fit"), (right, f"A step with {SHOWN} rows")):
        axes.grid(True, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.tick_params(colors=INK, labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")
