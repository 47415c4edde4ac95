"""The section "top": the largest singular values, against the products alone, the peers and an unrestarted run."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import spectrax as sx
from spectrax.spectrum.svds import resolve_method

from . import cases, peers
from .sections import TOLERANCES, Row, Settings, Solver, pairs_alone
from .timing import interleaved, interval, limit
from .verification import unrestarted_pairs


def problems(settings: Settings) -> Iterator[tuple[str, Any, float]]:
    """Yield the name of each problem, how it is made, and the tolerance to be reached."""
    for dtype in ("float32", "float64"):
        tol = TOLERANCES[dtype]
        for name in ("Gaussian", "repeated") if settings.quick else cases.MATRICES:
            yield f"{name} {dtype}", lambda n=name, d=dtype: cases.matrix(n, d, quick=settings.quick), tol
        if settings.quick and dtype == "float64":
            continue
        side = 8 if settings.quick else 16
        yield f"jacobian {dtype}", lambda d=dtype, s=side: cases.jacobian(d, side=s), tol
    for tol in (1e-3,) if settings.quick else (1e-3, 1e-6):
        name = f"convolution float32 to {tol:.0e}"
        yield name, lambda: cases.convolution("float32", quick=settings.quick), tol


def section(settings: Settings) -> Iterator[Row]:
    made: dict[str, cases.Problem] = {}
    for name, make, tol in problems(settings):
        for k in (5,) if settings.quick else (1, 5, 20):

            def row(name: str = name, make: Any = make, tol: float = tol, k: int = k) -> dict[str, Any]:
                problem = name.split(" to ")[0]
                if problem not in made:
                    made.clear()  # one problem at a time: each holds its matrix and its programs
                    made[problem] = make()
                with jax.enable_x64(made[problem].x64):
                    return measure(made[problem], k, tol, settings)

            yield f"{name}, k={k}", row


def measure(problem: cases.Problem, k: int, tol: float, settings: Settings) -> dict[str, Any]:
    with_probe = Solver(problem, k, tol=tol, method=sx.Lanczos())
    plain = Solver(problem, k, tol=tol, method=sx.Lanczos(probe=False))
    judged = {"svds": plain.judged(), "svds, with probe": with_probe.judged()}
    # where the search from one vector missed a copy, the answer that counts is the one that the probe mended
    clean = not judged["svds"]["missed"] and not judged["svds, with probe"]["missed"]
    counted = "svds" if not judged["svds"]["missed"] else "svds, with probe"
    ours, own = (plain if counted == "svds" else with_probe), judged[counted]
    target = max(tol, own["residual"])
    count = own["matvecs"] // 2
    loop = pairs_alone(problem, float(problem.truth[0][0]))
    arms: dict[str, Any] = {
        "svds": ours.run,
        "svds again": ours.run,
        "products alone": lambda: loop(count),
        "svds, with probe": with_probe.run,
        "svds, without probe": plain.run,
    }
    auto = resolve_method(problem.operator, k, which="largest", method="auto")
    if isinstance(auto, sx.Lanczos) and auto != sx.Lanczos():
        blocks = Solver(problem, k, tol=tol, method=dataclasses.replace(auto, probe=False), start=False)
        judged["svds, blocks"], arms["svds, blocks"] = blocks.judged(), blocks.run
    for name in settings.peers:
        setting, judged[name] = peers.best(name, problem, k, tol, target)
        if setting is not None:
            arms[name] = setting.run
    seconds = interleaved(arms, settings.pairs, always="Jacobian" in problem.name)
    for name, values in seconds.items():
        answer = {"svds": "", "svds, without probe": "svds"}.get(name, name)
        if answer in judged:
            judged[answer]["cpu_ms"] = 1e3 * float(np.nanmedian(values))
    floor, right = unrestarted_pairs(problem, k, target, most=1500 if min(problem.shape) <= 5000 else 400)
    literal = arpack_as_given(problem, k, tol)
    return {
        "case": problem.name, "dtype": problem.dtype.name, "k": k, "tol": tol, "target": target, "counted": counted,
        "answers": judged, "products_alone_ms": 1e3 * float(np.nanmedian(seconds["products alone"])),
        "unrestarted": {"pairs": floor, "right": right}, "arpack_as_given": literal,
        "limits": limits(seconds, judged, own, k, tol, problem, clean, (floor, right), literal),
    }  # fmt: skip


def arpack_as_given(problem: cases.Problem, k: int, tol: float) -> dict[str, Any]:
    """What ARPACK takes where a user hands it the same number as a tolerance: the last setting of the ladder."""
    *_, last = peers.settings("ARPACK", problem, k, tol, smallest=False)
    try:
        return {"matvecs": last.answer().matvecs}
    except Exception as error:  # its message is the result
        return {"matvecs": None, "note": str(error)[:100]}


def limits(
    seconds: dict[str, np.ndarray],
    judged: dict[str, Any],
    own: dict[str, Any],
    k: int,
    tol: float,
    problem: cases.Problem,
    clean: bool,
    unrestarted: tuple[int | None, bool],
    literal: dict[str, Any],
) -> list[dict[str, Any]]:
    """Put every ratio beside its limit."""
    base = seconds["svds"]
    itself = interval(seconds["svds again"] / base)
    found = [limit("time / products alone", interval(base / seconds["products alone"]), 1.10 if k <= 5 else 1.15)]
    if literal["matvecs"]:
        found.append(limit("matvecs / ARPACK's, same tol", own["matvecs"] / literal["matvecs"], 0.75))
    cheapest = judged["ARPACK"]
    if cheapest.get("reached"):
        beside = {"name": "matvecs / ARPACK's, cheapest setting", "median": own["matvecs"] / cheapest["matvecs"]}
        found.append(beside)
    pairs, right = unrestarted
    if pairs and right:
        # both compute the residuals with the last vectors: our count holds those 2 k products
        found.append(limit("matvecs / unrestarted run's", own["matvecs"] / (2 * pairs + 2 * k), 1.10))
    rivals = {
        name: np.nanmedian(seconds[name]) for name in peers.NAMES if name in seconds and judged[name].get("reached")
    }
    if rivals:
        fastest = min(rivals, key=rivals.get)
        found.append({"rival": fastest} | limit("time / fastest peer's", interval(base / seconds[fastest]), 1.0))
        if "svds, blocks" in seconds:
            reading = interval(seconds["svds, blocks"] / seconds[fastest])
            found.append({"rival": fastest} | limit("time of blocks, as auto has them / fastest peer's", reading, 1.0))
    if "Jacobian" in problem.name and "matfree" in rivals:
        reading = interval(seconds["matfree"] / base)
        found.append(limit("matfree's time / ours", reading, 15.0 if k <= 5 else 30.0, at_least=True))
    if clean:
        first, whole = judged["svds"]["matvecs"], judged["svds, with probe"]["matvecs"]
        found.append(limit("probe's matvecs / first solve's", (whole - first) / first, 0.3))
    found.append(limit("verified residual / tol", own["residual"] / tol, 1.0))
    found.append(limit("missed with the probe, unflagged", silent(judged["svds, with probe"]), 0))
    for entry in found:
        if "low" in entry:
            entry["itself"] = itself
    return found


def silent(answer: dict[str, Any]) -> int:
    """How many copies were missed without a word."""
    return (answer["missed"] or 0) if answer["converged"] else 0
