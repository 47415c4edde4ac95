"""What a section is: rows with a name each, made one by one, so that finished ones can be skipped."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import spectrax as sx

from .cases import Problem
from .timing import compiled
from .verification import Answer, judge

TOLERANCES = {"float32": 1e-6, "float64": 1e-10}
Row = tuple[str, Callable[[], dict[str, Any]]]
Section = Callable[["Settings"], Iterator[Row]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How thorough a run is."""

    quick: bool = False
    pairs: int = 30
    seeds: int = 20
    peers: tuple[str, ...] = ()


class Solver:
    """A compiled call of `svds` on one problem."""

    def __init__(
        self, problem: Problem, k: int, *, tol: float, method: Any, which: str = "largest", start: bool = True
    ):
        self.problem, self.which = problem, which
        side = problem.start[None]
        v0 = problem.structured(side) if start and problem.shape[0] >= problem.shape[1] else None
        arguments = (problem.operator, jax.random.key(3), v0)

        def solve(operator: Any, key: Any, v0: Any) -> sx.SVDResult:
            return sx.svds(operator, k, which=which, method=method, tol=tol, key=key, v0=v0)

        program, self.cost = compiled(solve, *arguments)
        self.run = lambda: program(*arguments)

    def judged(self) -> dict[str, Any]:
        result = self.run()
        s = np.asarray(result.s)
        u, v = (np.asarray(part).reshape(len(s), -1) for part in (result.u, result.v))
        answer = Answer(u, s, v, int(result.num_matvecs))
        judged = judge(self.problem, answer, smallest=self.which == "smallest")
        claims = {"status": int(result.status), "converged": bool(np.all(result.converged))}
        return judged | claims | {"residual_given": float(np.max(np.asarray(result.residuals) / s)), **self.cost}


def pairs_alone(problem: Problem, largest: float) -> Callable[[int], Any]:
    """Return a compiled loop that does nothing but pairs of products, scaled so that they neither grow nor vanish."""

    def loop(operator: Any, v: Any, scale: Any, count: Any) -> Any:
        matvec, rmatvec = operator.loop_products()
        return jax.lax.fori_loop(0, count, lambda _, v: scale * rmatvec(matvec(v)), v)

    v = problem.structured(problem.start)[0]
    scale = np.asarray(1 / largest**2, problem.dtype)
    program, _ = compiled(loop, problem.operator, v, scale, np.int32(1))
    return lambda count: program(problem.operator, v, scale, np.int32(count))
