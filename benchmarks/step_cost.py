"""What a step of the engine costs beside its products: the figures of docs/engine.md.

    taskset -c 0 python benchmarks/step_cost.py            some minutes on one core

For each operator and size of the subspace: a pair of products in a compiled loop, a step of the bidiagonalisation with
left vectors orthogonalised always and only where needed, and a test with its restart. Process CPU time in microseconds,
median of interleaved runs, compilation apart; the bases are filled anew as often as they are full.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from engine import cases
from engine.timing import compiled, interleaved

import spectrax as sx
from spectrax import krylov, vectors
from spectrax.krylov import bidiagonalization, factorization, search

MAKERS = {
    "Gaussian 2000x1000": lambda: cases.matrix("Gaussian", "float32", quick=False),
    "CNN Jacobian": lambda: cases.jacobian("float32"),
    "convolution, 64 channels": lambda: cases.convolution("float32", quick=False),
}


def measure(problem: cases.Problem, size: int, runs: int) -> dict[str, float]:
    operator, rounds = problem.operator, 4
    start = jax.random.normal(jax.random.key(0), (1, *operator.in_struct.shape), operator.dtype)
    top = sx.svds(operator, method=sx.Lanczos(probe=False), tol=1e-2, key=jax.random.key(2)).s[0]
    share = 1 / float(top) ** 2  # so that repeated products neither grow nor vanish

    def pairs(operator: Any, v: Any) -> Any:
        matvec, rmatvec = operator.loop_products()
        return jax.lax.fori_loop(0, rounds * size, lambda _, v: vectors.scale(share, rmatvec(matvec(v))), v)

    def steps(operator: Any, start: Any, *, one_sided: bool) -> Any:
        products = [vectors.stacked(product) for product in operator.loop_products()]
        empty = factorization.init(jax.random.key(1), start, operator.out_struct, size)

        def fill(_: Any, bases: Any) -> Any:
            bases = empty._replace(right=vectors.scale(1 + 0 * bases.scale, empty.right))  # not the same every time
            return jax.lax.fori_loop(
                0, size, lambda _, b: bidiagonalization.step(*products, b, one_sided=one_sided), bases
            )

        return jax.lax.fori_loop(0, rounds, fill, empty)

    task = krylov.Task(5, "largest", size, 10**6, 1e-30, 1e-30, probe=False)
    state = search.init(task, start, operator.out_struct, jax.random.key(1))
    bases = jax.jit(lambda operator: steps(operator, start, one_sided=False))(operator)
    state = state._replace(bases=bases, num_steps=jnp.asarray(size, jnp.int32))

    def tests(state: Any) -> Any:
        def test(_: Any, state: Any) -> Any:
            after = search.cycle(task, lambda bases: bases, state)  # the bases are full: no step is taken
            full = after.bases._replace(size=jnp.asarray(size, jnp.int32))
            return after._replace(bases=full, done=jnp.zeros((), bool))

        return jax.lax.fori_loop(0, 20, test, state)

    programs = {
        "pair": (compiled(pairs, operator, start[0])[0], (operator, start[0]), rounds * size),
        "step": (
            compiled(lambda a, v: steps(a, v, one_sided=False), operator, start)[0], (operator, start), rounds * size,
        ),
        "step, one-sided": (
            compiled(lambda a, v: steps(a, v, one_sided=True), operator, start)[0], (operator, start), rounds * size,
        ),
        "test and restart": (compiled(tests, state)[0], (state,), 20),
    }  # fmt: skip
    arms = {name: (lambda p=program, a=arguments: p(*a)) for name, (program, arguments, _) in programs.items()}
    seconds = interleaved(arms, runs, always=True)
    return {name: 1e6 * float(np.nanmedian(seconds[name])) / count for name, (_, _, count) in programs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--subspaces", default="12,24,40")
    arguments = parser.parse_args()
    for name, make in MAKERS.items():
        problem = make()
        for size in map(int, arguments.subspaces.split(",")):
            found = measure(problem, size, arguments.runs)
            ratios = ", ".join(f"{found[key] / found['pair']:.2f}" for key in ("step", "step, one-sided"))
            times = ", ".join(f"{key} {value:.0f}" for key, value in found.items())
            print(f"{name}, {size} rows: {times} us; step / pair {ratios}", flush=True)


if __name__ == "__main__":
    main()
