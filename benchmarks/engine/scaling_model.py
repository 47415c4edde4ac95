"""Seconds of a step of one chip from what its compiler counts: a fit to measured steps, and a prediction for v5p.

    seconds = passes c_0 + bytes / rate + bytes from memory / bandwidth + FLOPs / peak
              + collectives log2(devices) latency + their bytes / interconnect

A pass is one of Gram-Schmidt; c_0 is what it takes to start its operations. From memory comes what the caches do not
hold: the share 1 - cache / bases of a step's bytes, where all bases together are larger. The counts are those of a step
less those of the operator's own products.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from .sharded_steps import PAIR, REDUCE

PLACES = ("devices", "processes")
TERMS = (
    "a pass", "a byte", "a byte from memory, more", "a FLOP",
    "a round of an all-reduce, devices", "a round of an all-reduce, processes",
    "a byte of it, devices", "a byte of it, processes",
)  # fmt: skip
CACHES = tuple(2.0**power for power in range(20, 26))  # bytes, among which the fit chooses
# TPU v5p: memory's bandwidth and size, https://cloud.google.com/tpu/docs/v5p; the vector units of both cores, which
# take these products (https://jax-ml.github.io/scaling-book/roofline/: 7e12 for each), and their clock: 4 operations in
# each of 8 x 128 lanes; the matrix units in bfloat16, of which products of float32 at the highest precision take six.
V5P = {"bandwidth": 2765e9, "memory": 95 * 2**30, "vector": 14e12, "matrix": 459e12, "clock": 7e12 / 4096}
# an all-reduce over the torus of 8 x 8 x 8: 12 hops of 1e-6 s to the farthest chip, there and back; and the 8/3 that a
# small gather took in place of three hops (https://jax-ml.github.io/scaling-book/sharding/)
LATENCY = {"low": 12e-6, "middle": 24e-6, "high": 64e-6}
USED = 0.4  # the share of the matrix units' peak that training reaches
FLOPS_A_TOKEN = (12.0, 18.0)  # of a Hessian's product, for each parameter: twice a gradient's 6, and with recomputation


class Fit(NamedTuple):
    """The coefficients of `TERMS`, and the bytes that the caches of the machine hold."""

    coefficients: np.ndarray
    cache: float


def features(row: dict[str, Any], cache: float) -> np.ndarray:
    """Return what each term is multiplied by for one row; an all-reduce costs nothing on a single device."""
    counts, own = row["counted"], row["operator"]
    rounds, reduces, outside = math.log2(row["count"]), counts["collectives"], 0.0
    if row["case"] != REDUCE:
        reduces += 1 / row["subspace_size"]  # for the size of the first image
        bases = 4 * row["n"] * (row["subspace_size"] + 1) * (2 if row["case"] == PAIR else 1)
        outside = max(0.0, 1 - cache / bases)
    collective = [reduces * rounds * (row["place"] == place) for place in PLACES]
    moved = [counts["collective_bytes"] * (rounds > 0) * (row["place"] == place) for place in PLACES]
    traffic, flops = (counts[kind] - own.get(kind, 0) for kind in ("bytes", "flops"))
    return np.array([counts["passes"], traffic, outside * traffic, flops, *collective, *moved], float)


def seconds(row: dict[str, Any]) -> float:
    """Return the processor's seconds of a step for each device, without the operator's own."""
    return (row["step_cpu"] - row["operator_cpu"]) / row["count"]


def fit(rows: list[dict[str, Any]]) -> Fit:
    """Return the coefficients that are not negative and the cache with the least squares of relative errors."""
    found = []
    for cache in CACHES:
        matrix = np.stack([features(row, cache) / seconds(row) for row in rows])
        scale = np.maximum(np.abs(matrix).max(0), 1e-300)
        coefficients, residual = nnls(matrix / scale, np.ones(len(rows)))
        found.append((residual, Fit(coefficients / scale, cache)))
    return min(found, key=lambda pair: pair[0])[1]


def predicted(fitted: Fit, row: dict[str, Any]) -> float:
    return float(features(row, fitted.cache) @ fitted.coefficients)


LEFT_OUT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "one row": lambda row: (row["place"], row["count"], row["case"], row["n"], row["subspace_size"]),
    "a number of devices or processes": lambda row: (row["place"], row["count"]),
    "a number of unknowns": lambda row: row["n"],
    "a size of the subspace": lambda row: row["subspace_size"],
    "a kind of step": lambda row: row["case"],
}


def left_out(rows: list[dict[str, Any]], group: Callable[[dict[str, Any]], Any]) -> dict[Any, np.ndarray]:
    """Return the ratios of prediction to measurement of each group's steps, by the fit to all others."""
    found = {}
    for value in dict.fromkeys(map(group, rows)):
        inside = [row for row in rows if group(row) == value and row["case"] != REDUCE]
        others = [row for row in rows if group(row) != value]
        if inside:
            fitted = fit(others)
            found[value] = np.array([predicted(fitted, row) / seconds(row) for row in inside])
    return found


def error(ratios: np.ndarray) -> tuple[float, float]:
    """Return the median and the largest of the factors by which predictions miss, in either direction, less one."""
    factors = np.maximum(ratios, 1 / np.maximum(ratios, 1e-12)) - 1
    return float(np.median(factors)), float(factors.max())


def on_v5p(row: dict[str, Any], *, passes: int = 1) -> dict[str, float]:
    """Return the predicted seconds of a step on 512 chips of v5p, with what they are made of.

    `low` takes the published figures, with the arithmetic hidden behind the memory; `middle` adds the two up; `high`
    takes the cycles that the compiler itself expects. Each with its latency. A second pass adds what it counts.
    """
    more = passes - 1
    counts = {kind: row["counted"][kind] - row["operator"][kind] for kind in ("bytes", "flops")}
    total = {kind: counts[kind] + more * row["second_pass"][kind] for kind in counts}
    reduces = row["counted"]["collectives"] + more * row["second_pass"]["collectives"]
    memory, arithmetic = total["bytes"] / V5P["bandwidth"], total["flops"] / V5P["vector"]
    longer = total["bytes"] / row["counted"]["bytes"]
    cycles = row["compiler_cycles"] * longer / V5P["clock"]
    latency = {name: reduces * each for name, each in LATENCY.items()}
    middle = memory + arithmetic
    return {
        "memory": memory, "arithmetic": arithmetic, "latency": latency["middle"], "all_reduces": reduces,
        "low": max(memory, arithmetic) + latency["low"], "middle": middle + latency["middle"],
        "high": cycles + latency["high"],
        # as many unknowns as make the work as long as the latency
        "latency_below": row["unknowns"] * latency["middle"] / middle,
        "latency_below_low": row["unknowns"] * latency["low"] / middle,
        "latency_below_high": row["unknowns"] * latency["high"] / middle,
    }  # fmt: skip


def hessian_seconds(parameters: float, tokens: float, chips: int, *, flops: float = FLOPS_A_TOKEN[0]) -> float:
    """Return the seconds of a Hessian's product with a vector, of a network of matrix products on so many tokens."""
    return flops * parameters * tokens / (chips * USED * V5P["matrix"])
