"""How time is taken: process CPU time, interleaved runs, medians of ratios with their intervals; the environment."""

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "primme", "matfree", "jax-spectrax")
SLOW = 10.0  # an arm that takes this many times the first one's time is run in every eighth round only


def interval(ratios: np.ndarray) -> dict[str, float]:
    """Return the median of ratios and the 95 % bootstrap interval of it."""
    ratios = ratios[np.isfinite(ratios)]
    draws = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high), "runs": len(ratios)}


def once(run: Callable[[], Any]) -> float:
    began = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - began


def interleaved(arms: dict[str, Callable[[], Any]], pairs: int, *, always: bool = False) -> dict[str, np.ndarray]:
    """Time all arms in turns, after one run each as a warm-up; NaN where a slow arm sat out, unless `always`."""
    warm = {name: min(once(run), once(run)) if i == 0 else once(run) for i, (name, run) in enumerate(arms.items())}
    first = next(iter(warm.values()))
    seconds = {name: np.full(pairs, np.nan) for name in arms}
    for turn in range(pairs):
        for name, run in arms.items():
            if always or turn % 8 == 0 or warm[name] <= SLOW * first:
                seconds[name][turn] = once(run)
    return seconds


def compiled(function: Callable, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """Compile a function and return it, with the time that tracing and compiling took and its temporary memory."""
    began = time.process_time()
    program = jax.jit(function).lower(*arguments).compile()
    cost = {"compile_cpu_seconds": time.process_time() - began}
    memory = program.memory_analysis()
    if memory is not None:
        cost["temporary_mib"] = memory.temp_size_in_bytes / 2**20
    return program, cost


def limit(name: str, reading: dict[str, float] | float, bound: float, *, at_least: bool = False) -> dict[str, Any]:
    """Put a reading beside its limit, which is met where the interval (or the count) reaches it."""
    found = dict(reading) if isinstance(reading, dict) else {"median": float(reading)}
    edge = found.get("high" if at_least else "low", found["median"])
    return {"name": name, **found, "limit": bound, "at_least": at_least,
            "met": bool(edge >= bound if at_least else edge <= bound)}  # fmt: skip


def environment() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "pinned_to": sorted(os.sched_getaffinity(0)),
        "load": list(os.getloadavg()),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
