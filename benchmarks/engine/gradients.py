"""The sections "gradients", "loop" and "compile": the derivative of sigma_max, a pair in a loop, and compile time."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import spectrax as sx

from . import cases, peers
from .sections import TOLERANCES, Row, Settings, pairs_alone
from .timing import compiled, interleaved, interval, limit, once

STEPS = 30  # of the recurrence that matfree is differentiated through


def section(settings: Settings) -> Iterator[Row]:
    yield "CNN 192 -> 1024 float32", lambda: gradient("float32", settings)


def gradient(dtype: str, settings: Settings) -> dict[str, Any]:
    x, kernels = cases.rounded(cases.network_data(8, 16), dtype, dtype)
    key = jax.random.key(3)

    def value(kernels: Any, method: Any) -> Any:
        return sx.svds(sx.jacobian_operator(cases.network, x, kernels), method=method, key=key).s[0]

    plain = sx.Lanczos(probe=False)
    triplet = jax.jit(lambda kernels: sx.svds(sx.jacobian_operator(cases.network, x, kernels), method=plain, key=key))
    result = triplet(kernels)
    u, v = result.u[0], result.v[0]

    def form(kernels: Any) -> Any:
        return jnp.vdot(u, jax.jvp(lambda x: cases.network(x, kernels), (x,), (v,))[1])

    def dense(kernels: Any, jacobian: Any) -> Any:
        matrix = jacobian(lambda x: cases.network(x, kernels))(x).reshape(-1, x.size)
        return jnp.linalg.svd(matrix, full_matrices=False)[1][0]

    def unrolled(kernels: Any) -> Any:
        from matfree import decomp, eig

        product = jax.linearize(lambda x: cases.network(x, kernels), x)[1]
        start = jax.random.normal(key, x.shape, x.dtype)
        return eig.svd_partial(decomp.bidiag(STEPS))(product, start)[1][0]

    functions = {
        "gradient": jax.grad(lambda kernels: value(kernels, plain)),
        "gradient again": jax.grad(lambda kernels: value(kernels, plain)),
        "value": lambda kernels: value(kernels, plain),
        "gradient of u^T J v": jax.grad(form),
        "gradient, with probe": jax.grad(lambda kernels: value(kernels, sx.Lanczos())),
        "dense, jacfwd": jax.grad(lambda kernels: dense(kernels, jax.jacfwd)),
        "dense, jacrev": jax.grad(lambda kernels: dense(kernels, jax.jacrev)),
    }
    if settings.quick:
        del functions["dense, jacrev"], functions["gradient, with probe"]
    if "matfree" not in peers.missing():
        functions["matfree"] = jax.grad(unrolled)
    programs = {name: compiled(function, kernels) for name, function in functions.items()}
    costs = {name: dict(cost) for name, (_, cost) in programs.items()}
    arms = {name: (lambda program=program: program(kernels)) for name, (program, _) in programs.items()}
    seconds = interleaved(arms, settings.pairs, always=True)
    base = seconds["gradient"]
    exact = programs["dense, jacfwd"][0](kernels)
    scale = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in exact))
    for name, (program, _) in programs.items():
        costs[name]["cpu_ms"] = 1e3 * float(np.nanmedian(seconds[name]))
        if (name.startswith("gradient") and "u^T" not in name) or name in {"matfree", "dense, jacrev"}:
            pairs = zip(program(kernels), exact, strict=True)
            costs[name]["difference"] = np.sqrt(sum(float(jnp.sum((a - b) ** 2)) for a, b in pairs)) / scale
    allowed = seconds["value"] + 1.5 * seconds["gradient of u^T J v"]
    limits = [limit("time / (value + 1.5 gradients of u^T J v)", interval(base / allowed), 1.0)]
    for name in ("matfree", "dense, jacfwd", "dense, jacrev"):
        if name in seconds:
            reading = interval(seconds[name] / base)
            limits.append(limit(f"time of {name} / ours", reading, 35.0, at_least=True))
            memory = costs[name]["temporary_mib"] / costs["gradient"]["temporary_mib"]
            limits.append(limit(f"temporary memory of {name} / ours", memory, 40.0, at_least=True))
    itself = interval(seconds["gradient again"] / base)
    for entry in limits:
        if "low" in entry:
            entry["itself"] = itself
    matvecs = int(result.num_matvecs)
    return {"case": "CNN 192 -> 1024", "dtype": dtype, "matvecs": matvecs, "answers": costs, "limits": limits}


def loop_section(settings: Settings) -> Iterator[Row]:
    """A pair of products in a compiled loop against one outside: what the rewriting of linear programs is for."""
    makers = {
        "CNN Jacobian float32": lambda: cases.jacobian("float32", side=8 if settings.quick else 16),
        "convolution float32": lambda: cases.convolution("float32", quick=settings.quick),
    }
    for name, make in makers.items():
        yield name, lambda make=make: loop_pair(make(), settings)


def loop_pair(problem: cases.Problem, settings: Settings, count: int = 30) -> dict[str, Any]:
    start = problem.structured(problem.start)[0]
    inside = pairs_alone(problem, float(problem.truth[0][0]))

    def pair(operator: Any, v: Any) -> Any:
        matvec, rmatvec = operator.products()
        return rmatvec(matvec(v))

    outside, _ = compiled(pair, problem.operator, start)

    def chain() -> Any:
        v = start
        for _ in range(count):
            v = outside(problem.operator, v)
        return v

    arms = {"inside": lambda: inside(count), "inside again": lambda: inside(count), "outside": chain}
    seconds = interleaved(arms, settings.pairs)
    ratio = limit("a pair inside a loop / outside", interval(seconds["inside"] / seconds["outside"]), 1.05)
    itself = interval(seconds["inside again"] / seconds["inside"])
    cpu = {name: 1e3 * float(np.nanmedian(times)) / count for name, times in seconds.items()}
    dtype = problem.dtype.name
    return {"case": problem.name, "dtype": dtype, "cpu_ms": cpu, "limits": [ratio | {"itself": itself}]}


def compile_section(settings: Settings) -> Iterator[Row]:
    """Compile time of a top-5 solve, on two cores, each in a process of its own."""
    for dtype in ("float32",) if settings.quick else ("float32", "float64"):
        for case in ("matrix",) if settings.quick else ("matrix", "jacobian"):
            yield f"{case} {dtype}, k=5", lambda case=case, dtype=dtype: in_a_new_process(case, dtype, settings)


def in_a_new_process(case: str, dtype: str, settings: Settings, runs: int = 3) -> dict[str, Any]:
    script = Path(__file__).parents[1] / "svds.py"
    command = [sys.executable, str(script), "--compile-once", case, dtype]
    command += ["--quick"] if settings.quick else []
    readings = []
    for _ in range(1 if settings.quick else runs):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        readings.append(json.loads(done.stdout.splitlines()[-1]))
    wall = float(np.median([reading["wall"] for reading in readings]))
    limits = [limit("compile time, seconds", wall, 3.0)]
    return {"case": case, "dtype": dtype, "cores": readings[0]["cores"], "readings": readings, "limits": limits}


def compile_once(case: str, dtype: str, *, quick: bool) -> dict[str, Any]:
    """Compile one solve in this process and return its wall time and process CPU time."""
    import time

    problem = cases.jacobian(dtype) if case == "jacobian" else cases.matrix("Gaussian", dtype, quick=quick)
    tol = TOLERANCES[dtype]
    with jax.enable_x64(problem.x64):
        once(lambda: jax.jit(jnp.sin)(jnp.ones(3)))  # what the first compilation of a process costs besides
        began, cpu = time.perf_counter(), time.process_time()
        solve = jax.jit(lambda A, key: sx.svds(A, 5, method=sx.Lanczos(), tol=tol, key=key))
        solve.lower(problem.operator, jax.random.key(0)).compile()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "cores": len(os.sched_getaffinity(0))}
