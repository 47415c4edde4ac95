"""The section "bottom": the smallest singular values; accuracy, time against a whole decomposition, and the peers."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import spectrax as sx

from . import cases, peers
from .sections import TOLERANCES, Row, Settings, Solver
from .timing import compiled, interleaved, interval, limit
from .verification import judge

# dtype, condition number up to which values must be right, relative error allowed, up to which right or flagged
ACCURACY = {"float64": (1e6, 1e-6, 1e10), "float32": (1e3, 1e-5, 1e6)}
CONDITIONS = {"float64": (1e2, 1e4, 1e6, 1e8, 1e10), "float32": (1e1, 1e3, 1e4, 1e6)}


def section(settings: Settings) -> Iterator[Row]:
    yield from accuracy_rows(settings)
    yield from time_rows(settings)
    yield from matrix_free_rows(settings)
    yield from peer_rows(settings)


def in_mode(make: Callable[[], cases.Problem], measure: Callable[[cases.Problem], dict[str, Any]]) -> Any:
    def row() -> dict[str, Any]:
        problem = make()
        with jax.enable_x64(problem.x64):
            return {"case": problem.name, "dtype": problem.dtype.name} | measure(problem)

    return row


def accuracy_rows(settings: Settings) -> Iterator[Row]:
    for n in (200,) if settings.quick else (250, 1000, 4000):
        for dtype, conditions in CONDITIONS.items():
            for condition_number in conditions if not settings.quick else conditions[-2:]:
                for m in (2 * n, n) if n < 4000 else (n,):
                    for k in (1,) if settings.quick or n == 4000 else (1, 5):
                        yield (
                            f"accuracy {m}x{n} {dtype}, condition number {condition_number:.0e}, k={k}",
                            in_mode(
                                lambda m=m, n=n, c=condition_number, d=dtype: cases.conditioned(m, n, c, d),
                                lambda problem, k=k, c=condition_number: accuracy(problem, k, c),
                            ),
                        )


def accuracy(problem: cases.Problem, k: int, condition_number: float) -> dict[str, Any]:
    solver = Solver(problem, k, tol=TOLERANCES[problem.dtype.name], method="auto", which="smallest")
    judged = solver.judged()
    must, allowed, or_flagged = ACCURACY[problem.dtype.name]
    error = np.inf if judged["error"] is None else judged["error"]
    # the true values are LAPACK's, in 64 bits: their own error is some eps times the largest value
    allowed = max(allowed, 4 * np.finfo(np.float64).eps * condition_number)
    flagged = not judged["converged"] or judged["status"] != 0
    limits = []
    if condition_number <= must:
        limits.append(limit("error / allowed", error / allowed, 1.0))
    elif condition_number <= or_flagged:
        limits.append(limit("wrong without a flag", float(error > allowed and not flagged), 0))
    return {"k": k, "answers": {"svds": judged | {"flagged": flagged}}, "limits": limits}


def time_rows(settings: Settings) -> Iterator[Row]:
    for n in (200,) if settings.quick else (250, 500, 1000):
        for dtype, bound in (("float64", 0.6), ("float32", 1.1)):
            for m in (2 * n, n):
                for k in (1,) if settings.quick else (1, 5):
                    yield (
                        f"time {m}x{n} {dtype}, k={k}",
                        in_mode(
                            lambda m=m, n=n, d=dtype: cases.conditioned(m, n, 1e3, d),
                            lambda problem, k=k, b=bound: time_against_svd(problem, k, b, settings),
                        ),
                    )


def time_against_svd(problem: cases.Problem, k: int, bound: float, settings: Settings) -> dict[str, Any]:
    solver = Solver(problem, k, tol=TOLERANCES[problem.dtype.name], method="auto", which="smallest")
    matrix = jnp.asarray(problem.matrix)
    whole, _ = compiled(lambda a: jnp.linalg.svd(a, full_matrices=False), matrix)
    values, _ = compiled(lambda a: jnp.linalg.svd(a, compute_uv=False), matrix)
    factorized = Solver(
        problem, k, tol=TOLERANCES[problem.dtype.name], method=sx.InverseLanczos(), which="smallest", start=False
    )
    arms = {
        "svds": solver.run,
        "svds again": solver.run,
        "InverseLanczos": factorized.run,
        "jnp.linalg.svd": lambda: whole(matrix),
        "values only": lambda: values(matrix),
    }
    seconds = interleaved(arms, settings.pairs)
    itself = interval(seconds["svds again"] / seconds["svds"])
    ratio = interval(seconds["svds"] / seconds["jnp.linalg.svd"])
    beside = [
        {"name": "time / jnp.linalg.svd's, values only"} | interval(seconds["svds"] / seconds["values only"]),
        {"name": "InverseLanczos's time / jnp.linalg.svd's"}
        | interval(seconds["InverseLanczos"] / seconds["jnp.linalg.svd"]),
    ]
    return {
        "k": k,
        "answers": {"svds": solver.judged(), "InverseLanczos": factorized.judged()},
        "cpu_ms": {name: 1e3 * float(np.nanmedian(times)) for name, times in seconds.items()},
        "limits": [limit("time / jnp.linalg.svd's", ratio, bound) | {"itself": itself}, *beside],
    }


def matrix_free_rows(settings: Settings) -> Iterator[Row]:
    makers = {
        "CNN Jacobian": lambda d: cases.jacobian(d, side=8 if settings.quick else 16),
        "linear function": lambda d: cases.linear_function(d, size=256 if settings.quick else 1024),
    }
    for name, make in makers.items():
        for dtype in ("float32",) if settings.quick else ("float32", "float64"):
            for k in (1,) if settings.quick else (1, 5):
                yield (
                    f"matrix-free {name} {dtype}, k={k}",
                    in_mode(
                        lambda d=dtype, make=make: make(d),
                        lambda problem, k=k: matrix_free(problem, k, settings),
                    ),
                )


def matrix_free(problem: cases.Problem, k: int, settings: Settings) -> dict[str, Any]:
    tol = TOLERANCES[problem.dtype.name]
    solvers = {"auto": Solver(problem, k, tol=tol, method="auto", which="smallest")}
    solvers["Lanczos"] = Solver(problem, k, tol=tol, method=sx.Lanczos(), which="smallest")
    setting, whole = peers.best("jnp.linalg.svd", problem, k, tol, tol, smallest=True)
    arms = {"svds": solvers["auto"].run, "svds again": solvers["auto"].run, "Lanczos": solvers["Lanczos"].run}
    arms["whole"] = setting.run
    seconds = interleaved(arms, settings.pairs)
    itself = interval(seconds["svds again"] / seconds["svds"])
    ratio = interval(seconds["svds"] / seconds["whole"])
    truth = problem.truth[0]
    well_conditioned = truth[0] <= 25.01 * truth[-1]  # what the limit is for
    named = {"name": "time / materialising and decomposing, condition number above 25"} | ratio
    found = limit("time / materialising and decomposing", ratio, 0.35) if well_conditioned else named
    found |= {"itself": itself}
    beside = {"name": "Lanczos's time / materialising and decomposing"} | interval(
        seconds["Lanczos"] / seconds["whole"]
    )
    return {
        "k": k,
        "condition_number": float(truth[0] / truth[-1]),
        "answers": {name: solver.judged() for name, solver in solvers.items()} | {"materialised": whole},
        "cpu_ms": {name: 1e3 * float(np.nanmedian(times)) for name, times in seconds.items()},
        "limits": [found, beside],
    }


def peer_rows(settings: Settings) -> Iterator[Row]:
    for dtype in ("float64",) if settings.quick else ("float32", "float64"):
        for name in ("Gaussian",) if settings.quick else cases.MATRICES:
            for k in (1,) if settings.quick else (1, 5, 20):
                yield (
                    f"peers {name} {dtype}, k={k}",
                    in_mode(
                        lambda n=name, d=dtype: cases.matrix(n, d, quick=settings.quick),
                        lambda problem, k=k: against_peers(problem, k, settings),
                    ),
                )
    if not settings.quick:  # too large to be made: right or flagged
        yield "convolution float32, k=1", in_mode(lambda: cases.convolution("float32"), unverifiable)


def against_peers(problem: cases.Problem, k: int, settings: Settings) -> dict[str, Any]:
    tol = TOLERANCES[problem.dtype.name]
    solver = Solver(problem, k, tol=tol, method="auto", which="smallest")
    judged = {"svds": solver.judged()}
    target = max(tol, judged["svds"]["residual"])
    arms: dict[str, Any] = {"svds": solver.run, "svds again": solver.run}
    for name in settings.peers:
        if name == "JAX LOBPCG":  # finds the largest only
            continue
        setting, judged[name] = peers.best(name, problem, k, tol, target, smallest=True)
        if setting is not None and judged[name]["reached"]:
            arms[name] = setting.run
    seconds = interleaved(arms, settings.pairs)
    for name, times in seconds.items():
        if name in judged:
            judged[name]["cpu_ms"] = 1e3 * float(np.nanmedian(times))
    rivals = {name: np.nanmedian(times) for name, times in seconds.items() if name in peers.NAMES}
    limits = []
    if rivals:
        fastest = min(rivals, key=rivals.get)
        found = limit("time / fastest peer's", interval(seconds["svds"] / seconds[fastest]), 1.0)
        itself = interval(seconds["svds again"] / seconds["svds"])
        limits.append({"rival": fastest} | found | {"itself": itself})
    silent = (judged["svds"]["missed"] or 0) if judged["svds"]["converged"] else 0
    limits.append(limit("missed, unflagged", silent, 0))
    return {"k": k, "tol": tol, "answers": judged, "limits": limits}


def unverifiable(problem: cases.Problem) -> dict[str, Any]:
    """The bottom of an operator that is too large for LAPACK: what it claims, and its verified residual."""
    program, cost = compiled(
        lambda operator, key: sx.svds(operator, which="smallest", key=key, max_matvecs=2000, tol=1e-3),
        problem.operator,
        jax.random.key(3),
    )
    result = program(problem.operator, jax.random.key(3))
    s = np.asarray(result.s)
    u, v = (np.asarray(part).reshape(len(s), -1) for part in (result.u, result.v))
    judged = judge(problem, peers.Answer(u, s, v, int(result.num_matvecs)), smallest=True)
    claims = {"status": int(result.status), "converged": bool(np.all(result.converged))}
    return {"k": 1, "tol": 1e-3, "answers": {"svds": judged | claims | cost}, "limits": []}
