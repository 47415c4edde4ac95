"""Spectra and norms of convolutions: what they cost beside the FFT way and beside Gram iteration, and to compile.

    taskset -c 0 python benchmarks/convolutions.py            all; some twenty minutes
    taskset -c 0 python benchmarks/convolutions.py --resume   go on where an interrupted run ended
    taskset -c 0 python benchmarks/convolutions.py --quick    small channels and images: shows that it works
    python benchmarks/convolutions.py --table                 the tables in Markdown, made from the results

Process CPU seconds, medians of interleaved runs with 95 % bootstrap intervals of the ratios, compilation apart.

Spectra: `conv_singular_values` of circular convolutions beside the SVDs of the full FFT (NumPy, and jitted JAX) and of
half of it (NumPy). NumPy decomposes in double precision whatever it is given, so there is a case in float64 as well.

Norms, in float32: each distinct shape of ResNet-50's 53 convolutions once, counted as often as it comes; strides are
polyphase kernels for everyone. `conv_norm` beside Gram iteration at all frequencies of the circular convolution, which
certifies nothing for zero padding, with as many steps as bring it within 1 % of our bound for circular padding; and
beside Gram iteration on the kernel, for every padding, with five steps or as many as fit into the memory. The reference
is `conv_norm(method="exact")` of the zero-padded convolution, a lower bound, and for one tap the matrix's norm in
float64. Shapes that take long are run once, after compilation.

Compilation: every public routine, the second time, and lowering for TPUs by `jax.export`.
"""

import argparse
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from engine import conv_routines, convolutions
from engine.timing import compiled, environment, interleaved, interval, once

import spectrax as sx

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "convolutions.json"
QUICK_RESULTS = ROOT / "runs" / "benchmarks" / "convolutions_quick.json"
SECTIONS = ("spectra", "norms", "compilation")
SPECTRA = (
    (64, 32, "float32", 21, {"NumPy, full FFT": 0.45, "JAX, full FFT": 0.55}),
    (512, 7, "float32", 7, {}),
    (64, 32, "float64", 11, {}),
)
QUICK_SPECTRA = ((8, 8, "float32", 3, {}),)
OURS = "spectrax, symbol"  # what "auto" takes for nine taps
ARMS = ("certified", "grid", "certified, circular", "Gram, circular", "Gram, kernel")
INSTEAD = {name: "Gram, circular" if name == "Gram, kernel" else "certified" for name in ARMS}  # for one tap
TRANSFORMS = ("symbol", "fft", "dft")
MAX_FLOPS = 4e12
TIGHTNESS = 1.01
SECONDS = 20.0  # of timed runs for each shape
GRAM_STEPS = (3, 4, 5, 6, 7, 8)
LARGE = 2**18  # entries of a symbol
KERNEL_STEPS = 5
MOST_BYTES = 7e8  # of the frequencies that Gram iteration on a kernel keeps


def timings(seconds: dict[str, np.ndarray], base: str) -> dict[str, dict[str, Any]]:
    return {name: {"cpu_seconds": interval(each), f"over {base}": interval(each / seconds[base])}
            for name, each in seconds.items()}  # fmt: skip


def spectra(channels: int, size: int, dtype: str, runs: int, wanted: dict[str, float]) -> dict[str, Any]:
    jax.config.update("jax_enable_x64", dtype == "float64")
    layer = convolutions.Layer(3, (channels, channels), size, 1, 1)
    kernel = layer.kernel().astype(dtype)
    truth = convolutions.numpy_spectrum(kernel.astype(np.float64), size, half=True)
    arms: dict[str, Callable[[], Any]] = {
        "NumPy, full FFT": lambda: convolutions.numpy_spectrum(kernel, size),
        "NumPy, half": lambda: convolutions.numpy_spectrum(kernel, size, half=True),
    }
    costs, on_device = {}, jnp.asarray(kernel)
    programs: dict[str, Callable] = {"JAX, full FFT": lambda k: convolutions.jax_spectrum(k, size)}
    for transform in TRANSFORMS:
        programs[f"spectrax, {transform}"] = lambda k, t=transform: sx.conv_singular_values(
            k, (size, size), padding="CIRCULAR", transform=t
        )
    for name, function in programs.items():
        program, costs[name] = compiled(function, on_device)
        arms[name] = lambda p=program: p(on_device)
    arms[f"{OURS}, again"] = arms[OURS]
    seconds = interleaved(arms, runs, always=True)
    rows = timings(seconds, OURS)
    for name, row in rows.items():
        error = np.abs(np.asarray(arms[name](), np.float64) - truth).max() / truth[0]
        row |= {"error": float(error), **costs.get(name, {})}
    ratios = {name: interval(seconds[OURS] / seconds[name]) | ({"limit": wanted[name]} if name in wanted else {})
              for name in ("NumPy, full FFT", "JAX, full FFT", "NumPy, half")}  # fmt: skip
    return {"channels": channels, "size": size, "arms": rows, "symbol over peer": ratios}


def norms(layer: convolutions.Layer, runs: int) -> dict[str, Any]:
    kernel = jnp.asarray(layer.kernel())
    coarse = jnp.asarray(convolutions.interleaved_parts(layer.kernel(), layer.stride))
    size, grid = layer.size // layer.stride, layer.taps > 1
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], jax.Array]] = {}
    first: dict[str, float] = {}

    def add(name: str, function: Callable[[jax.Array], jax.Array], operand: jax.Array, **facts: int) -> float:
        program, cost = compiled(function, operand)
        answers = []
        first[name] = once(lambda: answers.append(jax.block_until_ready(program(operand))))
        calls[name] = lambda: program(operand)
        rows[name] = {"bound": float(answers[0]), **facts, **cost}
        return rows[name]["bound"]

    def ours(padding: Any, **options: Any) -> Callable[[jax.Array], jax.Array]:
        shape = (layer.size, layer.size)
        return lambda k: sx.conv_norm(k, input_shape=shape, padding=padding, strides=layer.stride, **options).value

    bound = add("certified", ours(layer.padding, certified=True, max_flops=MAX_FLOPS), kernel)
    if grid:
        bound = add("certified, circular", ours("CIRCULAR", certified=True, max_flops=MAX_FLOPS), kernel)
        if math.prod(coarse.shape[2:]) < LARGE:  # otherwise the certified bound is from this grid
            add("grid", ours(layer.padding, method="grid"), kernel)
    for steps in GRAM_STEPS:
        gram = functools.partial(convolutions.gram_iteration_circular, size=size, num_steps=steps)
        if add("Gram, circular", gram, coarse, steps=steps) <= TIGHTNESS * bound:
            break
    if grid:
        entries = 8 * math.prod(coarse.shape[2:])
        steps = max(
            t for t in range(1, KERNEL_STEPS + 1) if entries * ((coarse.shape[0] - 1) * 2**t + 1) ** 2 <= MOST_BYTES
        )
        gram = functools.partial(convolutions.gram_iteration_padded, num_steps=steps)
        add("Gram, kernel", gram, coarse, steps=steps)
    if grid:
        reference = float(ours(layer.padding, method="exact", key=jax.random.key(0))(kernel))
    else:
        reference = float(np.linalg.norm(layer.kernel()[0, 0].astype(np.float64), 2))
    runs = min(runs, int(SECONDS / sum(first.values())))
    if runs > 1:
        seconds = interleaved(calls | {"certified, again": calls["certified"]}, runs, always=True)
        rows["certified, again"] = {"bound": rows["certified"]["bound"]}
    else:
        seconds = {name: np.array([each]) for name, each in first.items()}
    for name, row in timings(seconds, "certified").items():
        rows[name] |= row | {"bound over norm": rows[name]["bound"] / reference}
    return {"taps": layer.taps, "count": layer.count, "norm": reference, "arms": rows}


def table(results: dict[str, Any]) -> str:
    """Return the tables of all sections that were measured, in Markdown."""
    made = {"spectra": spectra_table, "norms": norms_table, "compilation": compilation_table}
    return "\n\n".join(make(results[section]) for section, make in made.items() if results[section])


def shown(reading: dict[str, float]) -> str:
    return f"{reading['median']:.3g} ({reading['low']:.3g} to {reading['high']:.3g})"


def spectra_table(rows: dict[str, Any]) -> str:
    lines = [
        '| all singular values | CPU s | / `transform="symbol"` | error / largest | compile, s |',
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        for arm, found in row["arms"].items():
            compiling = f"{found['compile_cpu_seconds']:.2g}" if "compile_cpu_seconds" in found else ""
            lines.append(f"| {name}: {arm} | {found['cpu_seconds']['median']:.3g} | {shown(found[f'over {OURS}'])} | "
                         f"{found['error']:.1e} | {compiling} |")  # fmt: skip
    return "\n".join(lines)


def norms_table(rows: dict[str, Any]) -> str:
    """One line for each shape of several taps, then for all of one tap, and for all; sums count as the network does."""
    head = "| convolution | " + " | ".join(f"{name}: bound / norm; CPU s" for name in ARMS) + " |"
    lines = [head, "|---" * (len(ARMS) + 1) + "|"]
    for name, row in rows.items():
        if row["taps"] > 1:
            cells = [cell(row["arms"][arm]) if arm in row["arms"] else "" for arm in ARMS]
            lines.append(f"| {row['count']} of {name} | " + " | ".join(cells) + " |")
    every = list(rows.values())
    for name, members in (("1 x 1", [row for row in every if row["taps"] == 1]), ("all", every)):
        count = sum(row["count"] for row in members)
        lines.append(f"| {count}, {name}, in sum | " + " | ".join(total(members, arm) for arm in ARMS) + " |")
    return "\n".join(lines)


def cell(found: dict[str, Any]) -> str:
    steps = f" (t = {found['steps']})" if "steps" in found else ""
    return f"{found['bound over norm']:.3f}{steps}; {found['cpu_seconds']['median']:.3g}"


def total(rows: list[dict[str, Any]], arm: str) -> str:
    """Return median and extreme of bound over norm and the sum of seconds; "certified" where an arm was left out."""
    found = [row["arms"].get(arm, row["arms"][INSTEAD[arm] if row["taps"] == 1 else "certified"]) for row in rows]
    counts = [row["count"] for row in rows]
    excess = np.repeat([each["bound over norm"] for each in found], counts)
    seconds = sum(count * each["cpu_seconds"]["median"] for count, each in zip(counts, found, strict=True))
    return f"{np.median(excess):.3f}, at most {excess.max():.3f}; {seconds:.3g}"


def compilation_table(rows: dict[str, Any]) -> str:
    lines = ["| routine | trace, s | compile, s | lowering for TPUs, s | StableHLO, kB |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        tpu = row["tpu"]
        cells = (
            tpu["error"] + " |" if "error" in tpu else f"{tpu['cpu_seconds']:.2f} | {tpu['stablehlo_bytes'] / 1e3:.0f}"
        )
        lines.append(f"| {name} | {row['trace_cpu_seconds']:.2f} | {row['compile_cpu_seconds']:.2f} | {cells} |")
    return "\n".join(lines)


def measurements(section: str, quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the names of a section's rows and what measures them."""
    if section == "spectra":
        for channels, size, dtype, runs, wanted in QUICK_SPECTRA if quick else SPECTRA:
            name = f"{channels} channels, {size} x {size}" + (", float64" if dtype == "float64" else "")
            yield name, functools.partial(spectra, channels, size, dtype, runs, wanted)
    elif section == "norms":
        for layer in convolutions.resnet50(*((96, 4) if quick else (224, 64)))[: 7 if quick else None]:
            yield layer.name, functools.partial(norms, layer, 3 if quick else 7)
    else:
        channels, size = (4, 4) if quick else (64, 8)
        kernel = jnp.asarray(convolutions.Layer(3, (channels, channels), size, 1, 1).kernel())
        for name, routine in conv_routines.routines(size).items():
            yield name, functools.partial(conv_routines.compilation, routine, kernel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="the others are kept")
    parser.add_argument("--resume", action="store_true", help="keep the finished rows of these sections and skip them")
    parser.add_argument("--quick", action="store_true", help="small channels and images: shows that everything works")
    parser.add_argument("--table", action="store_true", help="print the tables from the results, and stop")
    arguments = parser.parse_args()
    out = arguments.out or (QUICK_RESULTS if arguments.quick else RESULTS)
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {name: {} for name in SECTIONS}
    if arguments.table:
        print(table(results))
        return
    results |= {"settings": {"max_flops": MAX_FLOPS, "tightness": TIGHTNESS}}
    out.parent.mkdir(parents=True, exist_ok=True)
    for section in arguments.sections:
        jax.config.update("jax_enable_x64", False)
        results[section] = results[section] if arguments.resume else {}
        results.setdefault("environment", {})[section] = environment()
        for name, measure in measurements(section, arguments.quick):
            if name in results[section]:
                continue
            results[section][name] = measure()
            out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{section}: {name}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
