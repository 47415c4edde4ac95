"""The section "blocks": what blocks of vectors cost and save, without starting vectors and without a challenge."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import spectrax as sx

from . import cases
from .sections import TOLERANCES, Row, Settings, Solver
from .timing import interleaved, interval


def section(settings: Settings) -> Iterator[Row]:
    makers = {
        "Gaussian": lambda: cases.matrix("Gaussian", "float32", quick=settings.quick),
        "geometric": lambda: cases.matrix("geometric", "float32", quick=settings.quick),
        "jacobian": lambda: cases.jacobian("float32", side=8 if settings.quick else 16),
    }
    for name in ("Gaussian",) if settings.quick else makers:
        for k in (5,) if settings.quick else (1, 5, 20):

            def row(make: Any = makers[name], k: int = k) -> dict[str, Any]:
                problem = make()
                with jax.enable_x64(problem.x64):
                    return measure(problem, k, settings)

            yield f"{name} float32, k={k}", row


def measure(problem: cases.Problem, k: int, settings: Settings) -> dict[str, Any]:
    tol = TOLERANCES[problem.dtype.name]
    solvers = {
        f"block of {size}": Solver(problem, k, tol=tol, method=sx.Lanczos(block_size=size, probe=False))
        for size in (1, 2, 4, 8)
    }
    seconds = interleaved({name: solver.run for name, solver in solvers.items()}, settings.pairs)
    judged = {name: solver.judged() for name, solver in solvers.items()}
    single = seconds["block of 1"]
    found = []
    for name in list(solvers)[1:]:
        judged[name]["cpu_ms"] = 1e3 * float(np.nanmedian(seconds[name]))
        found.append({"name": f"time / single vector's, {name}"} | interval(seconds[name] / single))
        found.append({
            "name": f"matvecs / single vector's, {name}",
            "median": judged[name]["matvecs"] / judged["block of 1"]["matvecs"],
        })  # fmt: skip
    return {"case": problem.name, "dtype": problem.dtype.name, "k": k, "tol": tol, "answers": judged, "limits": found}
