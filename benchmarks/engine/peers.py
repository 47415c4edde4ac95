"""The peers: what each is called with, in order from the cheapest setting to the dearest.

Every peer gets the same operator and, where its interface has one, the same start vector. The tolerances of the peers
mean different things, so each gets a ladder of them, from the loosest that may do; the first setting whose verified
residual reaches the target is the one that counts. A user cannot know that setting, nor matfree's number of steps: this
favours the peers.
"""

import dataclasses
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg

from . import verification
from .cases import Problem
from .timing import compiled
from .verification import Answer

PATIENCE = 30.0  # seconds of process CPU time after which no further setting of a peer is tried


class BudgetExceededError(RuntimeError):
    """A solver on the host took more products than it was given."""


class Counter:
    """The operator of a problem for solvers on the host, and how many vectors it was applied to."""

    def __init__(self, problem: Problem, budget: int):
        self.count, self.budget = 0, budget
        matvec, rmatvec = (self._counted(product) for product in problem.host_products)
        self.operator = scipy.sparse.linalg.LinearOperator(
            problem.shape,
            matvec=matvec,
            rmatvec=rmatvec,
            matmat=lambda block: np.stack([matvec(v) for v in block.T], axis=1),
            rmatmat=lambda block: np.stack([rmatvec(u) for u in block.T], axis=1),
            dtype=problem.dtype,
        )

    def _counted(self, product: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        def counted(vector: np.ndarray) -> np.ndarray:
            self.count += 1
            if self.count > self.budget:
                raise BudgetExceededError(f"more than {self.budget} products")
            return product(vector.reshape(-1))

        return counted


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to call a peer: `run` is what is timed, `answer` gives its result."""

    label: str
    run: Callable[[], Any]
    answer: Callable[[], Answer]
    cost: dict[str, float] = dataclasses.field(default_factory=dict)


def missing() -> list[str]:
    """Return the peers that are not installed here."""
    names = {"PRIMME": "primme", "matfree": "matfree"}
    return [name for name, package in names.items() if importlib.util.find_spec(package) is None]


def budget(problem: Problem) -> int:
    return 20 * min(problem.shape) if min(problem.shape) <= 5000 else 6000


def host_settings(name: str, problem: Problem, k: int, tol: float, *, smallest: bool) -> Iterator[Setting]:
    """Solvers that call back to the host for each product."""
    which, start = ("SM" if smallest else "LM"), problem.start
    most = budget(problem)

    def scipy_run(solver: str, given: float, **options: Any) -> Any:
        counter = Counter(problem, most)
        rng = np.random.default_rng(0)
        options |= {"v0": start} if solver == "arpack" or k == 1 else {}
        found = scipy.sparse.linalg.svds(counter.operator, k, tol=given, which=which, solver=solver, rng=rng, **options)
        return *found, counter.count

    def propack_run(given: float) -> Any:
        counter = Counter(problem, sys.maxsize if smallest else most)
        # the recurrence starts on the left side: from A v0 it is the one that starts with v0 on the right
        options: dict[str, Any] = {"v0": problem.host_products[0](start).astype(problem.dtype)}
        # at the top the size of its basis, which its default of 10 k makes too small; at the bottom that of a restart
        options["maxiter"] = 10 * k if smallest else min(*problem.shape, max(10 * k, 600))
        options["rng"] = np.random.default_rng(0)
        found = scipy.sparse.linalg.svds(counter.operator, k, tol=given, which=which, solver="propack", **options)
        return *found, counter.count

    def primme_run(given: float) -> Any:
        import primme

        counter = Counter(problem, most)
        right = (start / np.linalg.norm(start)).reshape(-1, 1)
        left = counter.operator.matvec(right)  # given one side alone, it fails to compute the other
        starts = {"v0": right, "u0": left / np.linalg.norm(left)}
        found = primme.svds(counter.operator, k, tol=given, which=which, maxiter=most, **starts)
        return *found, counter.count

    square = np.sqrt(tol)  # SciPy hands tol^2 to an eigensolver of A^T A, whose residual is then tol^2 s^2
    if name == "ARPACK":
        limits = {"maxiter": max(1, most // 2 // max(k + 1, 10))}
        ladder = [(f, lambda f=f: scipy_run("arpack", f, **limits)) for f in (square, square / 2, square / 10, tol)]
    elif name == "PROPACK" and smallest:
        # its restarts take no budget and cannot be interrupted: one setting, for one value
        ladder = [(square, lambda: propack_run(square))] if k == 1 else []
    elif name == "PROPACK":
        ladder = [(f, lambda f=f: propack_run(f)) for f in (square, square / 3, square / 10, square / 100, tol)]
    elif name == "LOBPCG":
        ladder = [(tol, lambda m=m: scipy_run("lobpcg", tol, maxiter=m)) for m in (100, 400)]
    else:
        spread = 1.0 if smallest else float(problem.truth[0][k - 1] / problem.truth[0][0])
        ladder = [(f, lambda f=f: primme_run(f)) for f in (tol * spread, 0.3 * tol * spread, 0.1 * tol * spread)]
    for given, run in ladder:

        def quiet(run: Callable = run) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return run()

        def answer(quiet: Callable = quiet) -> Answer:
            u, s, vt, count = quiet()
            if len(s) < k:
                raise RuntimeError(f"{len(s)} of {k} values, after {count} products")
            return Answer(u.T, s, vt, count)

        yield Setting(f"tol={given:.1e}", quiet, answer)


def matfree_settings(problem: Problem, k: int, *, smallest: bool) -> Iterator[Setting]:
    """Golub-Kahan with a fixed number of steps, and an SVD behind it."""
    from matfree import decomp, eig

    side = min(problem.shape)
    counts = [c for c in (20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960) if 2 * k <= c < side]
    if min(problem.shape) > 5000:
        counts = [c for c in counts if c <= 320]
    for steps in counts if not smallest else [*counts[-2:], *([side] if side <= 1000 else [])]:

        def solve(operator: Any, v0: Any, steps: int = steps) -> Any:
            product = operator.products()[0]
            u, s, v = eig.svd_partial(decomp.bidiag(steps))(lambda v: product(v), v0)
            chosen = slice(steps - k, steps) if smallest else slice(0, k)
            return u[chosen], s[chosen], v[chosen]

        yield on_device(problem, f"{steps} steps", solve, problem.structured(problem.start)[0], count=2 * steps)


def jax_lobpcg_settings(problem: Problem, k: int, tol: float) -> Iterator[Setting]:
    """JAX's LOBPCG on A^T A; it counts its iterations, each with products of three blocks."""
    from jax.experimental.sparse.linalg import lobpcg_standard

    n = problem.shape[1]
    if 5 * k >= n:
        return
    block = np.random.default_rng(1).normal(size=(n, k)).astype(problem.dtype)
    block[:, 0] = problem.start
    struct = problem.operator.in_struct.shape
    for most in (100, 400):

        def solve(operator: Any, block: Any, most: int = most) -> Any:
            matvec, rmatvec = operator.loop_products()

            def gram(x: Any) -> Any:
                rows = x.T.reshape(-1, *struct)
                return jax.vmap(lambda v: rmatvec(matvec(v)))(rows).reshape(x.shape[1], -1).T

            # its own criterion multiplies the tolerance by 10 n (|theta| + |A^T A v|)
            _, vectors, _ = lobpcg_standard(gram, block, m=most, tol=tol / (20 * n))
            rows = vectors.T.reshape(-1, *struct)
            images = jax.vmap(matvec)(rows).reshape(k, -1)
            s = jnp.linalg.norm(images, axis=1)
            order = jnp.argsort(-s)
            return (images / s[:, None])[order], s[order], rows[order]

        yield on_device(problem, f"at most {most} iterations", solve, jnp.asarray(block))


def dense_settings(problem: Problem, k: int, *, smallest: bool) -> Iterator[Setting]:
    """The whole decomposition, behind materialising where the operator is no matrix."""

    def solve(operator: Any, _: Any) -> Any:
        u, s, vh = jnp.linalg.svd(operator.to_dense(chunk_size=256), full_matrices=False)
        chosen = slice(s.shape[0] - k, s.shape[0]) if smallest else slice(0, k)
        return u.T[chosen], s[chosen], vh[chosen]

    if min(problem.shape) <= 4096:
        count = None if problem.matrix is not None else min(problem.shape)
        yield on_device(problem, "", solve, jnp.zeros(()), count=count)


def on_device(problem: Problem, label: str, solve: Callable, argument: Any, count: int | None = None) -> Setting:
    program, cost = compiled(solve, problem.operator, argument)

    def answer() -> Answer:
        u, s, v = (np.asarray(part) for part in program(problem.operator, argument))
        return Answer(u.reshape(len(s), -1), s, v.reshape(len(s), -1), count)

    return Setting(label, lambda: program(problem.operator, argument), answer, cost)


NAMES = ("ARPACK", "PROPACK", "PRIMME", "matfree", "LOBPCG", "JAX LOBPCG", "jnp.linalg.svd")


def settings(name: str, problem: Problem, k: int, tol: float, *, smallest: bool) -> Iterator[Setting]:
    if name == "matfree":
        return matfree_settings(problem, k, smallest=smallest)
    if name == "JAX LOBPCG":
        return iter(()) if smallest else jax_lobpcg_settings(problem, k, tol)
    if name == "jnp.linalg.svd":
        return dense_settings(problem, k, smallest=smallest)
    return host_settings(name, problem, k, tol, smallest=smallest)


def best(
    name: str, problem: Problem, k: int, tol: float, target: float, *, smallest: bool = False
) -> tuple[Setting | None, dict[str, Any]]:
    """Climb a peer's ladder; return the first setting that reaches the target, or the last one, and its judgement."""
    found: tuple[Setting | None, dict[str, Any]] = (None, {"reached": False, "note": "not applicable here"})
    began = time.process_time()
    for setting in settings(name, problem, k, tol, smallest=smallest):
        try:
            judged = verification.judge(problem, setting.answer(), smallest=smallest)
        except Exception as error:  # a peer may fail in any way: what it said is the result
            said = str(error).splitlines() or [""]
            found = (None, {"reached": False, "note": f"{type(error).__name__}: {said[0][:100]}"})
            if isinstance(error, BudgetExceededError):  # a tighter tolerance costs more
                break
        else:
            judged |= {"setting": setting.label, "reached": verification.reaches(judged, target), **setting.cost}
            found = (setting, judged)
            if judged["reached"]:
                break
        if time.process_time() - began > PATIENCE:
            found[1]["note"] += "; no further settings tried for lack of time"
            break
    return found
