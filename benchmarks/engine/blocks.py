"""The section "blocks": what blocks of vectors cost and save, by themselves, and as `auto` has them.

By themselves: without a challenge, in the default subspace. As `auto` has them: blocks of 4 in subspaces of 2 k + 40,
challenge included, without starting vectors, against single vectors; for singular values and for eigenvalues.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import spectrax as sx

from . import cases
from .sections import TOLERANCES, Row, Settings, Solver
from .timing import compiled, interleaved, interval


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

    matrices = ("Gaussian", "geometric", "clustered", "repeated")
    rows = [(as_auto, name, k) for name in matrices for k in (1, 5, 8, 12, 20)]
    rows += [(eigenvalues, name, k) for name in matrices[:2] for k in (8, 20)]
    for task, name, k in [rows[2], rows[-2]] if settings.quick else rows:

        def whole(task: Any = task, name: str = name, k: int = k) -> dict[str, Any]:
            return task(cases.matrix(name, "float32", quick=settings.quick), k, settings)

        yield f"{task.__name__.replace('_', ' ')}, {name} float32, k={k}", whole


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


def as_auto(problem: cases.Problem, k: int, settings: Settings) -> dict[str, Any]:
    methods = {"single": sx.Lanczos(), "blocks": sx.Lanczos(block_size=4, subspace_size=2 * k + 40)}
    tol = TOLERANCES[problem.dtype.name]
    solvers = {name: Solver(problem, k, tol=tol, method=method, start=False) for name, method in methods.items()}
    judged = {name: solver.judged() for name, solver in solvers.items()}
    return compared({name: solver.run for name, solver in solvers.items()}, judged, k, settings)


def eigenvalues(problem: cases.Problem, k: int, settings: Settings) -> dict[str, Any]:
    """The largest eigenvalues of A^T A, and how far they are from LAPACK's."""
    matrix = jnp.asarray(problem.matrix)
    gram = sx.aslinearoperator(matrix.T @ matrix)
    exact = np.linalg.eigvalsh(np.asarray(gram.to_dense(), np.float64))[::-1][:k]
    methods = {"single": sx.Lanczos(), "blocks": sx.Lanczos(block_size=4, subspace_size=2 * k + 40)}
    runs, judged = {}, {}
    for name, method in methods.items():
        solve = functools.partial(sx.eigsh, k=k, which="largest", method=method, tol=TOLERANCES[problem.dtype.name])
        program, cost = compiled(lambda A, key, solve=solve: solve(A, key=key), gram, jax.random.key(3))
        runs[name] = functools.partial(program, gram, jax.random.key(3))
        found = runs[name]()
        judged[name] = {
            "matvecs": int(found.num_matvecs), "converged": bool(np.all(found.converged)),
            "error": float(np.max(np.abs(np.asarray(found.eigenvalues, np.float64) - exact)) / exact[0]), **cost,
        }  # fmt: skip
    return compared(runs, judged, k, settings)


def compared(runs: dict[str, Any], judged: dict[str, Any], k: int, settings: Settings) -> dict[str, Any]:
    seconds = interleaved(runs, settings.pairs)
    for name in runs:
        judged[name]["cpu_ms"] = 1e3 * float(np.nanmedian(seconds[name]))
    ratio = {"name": "time of blocks / single vectors'"} | interval(seconds["blocks"] / seconds["single"])
    return {"k": k, "answers": judged, "limits": [ratio]}
