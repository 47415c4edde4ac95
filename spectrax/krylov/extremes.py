"""Extreme singular triplets and eigenpairs of an operator, by Krylov methods, in one compiled loop."""

from typing import Any

import jax

from spectrax.krylov import bidiagonalization, tridiagonalization
from spectrax.krylov.factorization import Factorization, Product
from spectrax.krylov.search import Search, init, search
from spectrax.krylov.task import Task, Triplets

PyTree = Any


def finalize(task: Task, state: Search) -> Triplets:
    """Return what was found.

    Args:
        task: What was searched for.
        state: A search that is over.

    Returns:
        The k most extreme triplets or pairs as they stand.
    """
    bases = state.bases

    def first(stack: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[: task.k], stack)

    return Triplets(
        left=first(bases.left),
        values=state.values,
        right=first(bases.right),
        largest=state.largest,
        num_steps=state.num_steps,
        complete=state.complete,
        mismatch=bases.mismatch,
        breakdowns=bases.breakdowns,
        finite=bases.finite,
    )


def singular_triplets(
    task: Task, matmat: Product, rmatmat: Product, start: PyTree, left_struct: PyTree, key: jax.Array
) -> Triplets:
    """Return the k largest or smallest singular triplets of an operator, in one compiled loop.

    Args:
        task: What is searched for.
        matmat: A stack of vectors -> A v for each.
        rmatmat: A stack of vectors -> A^H u for each.
        start: A stack of b right vectors; the right side must be the shorter one, or the lowest values go to zero.
        left_struct: The structure of the left vectors.
        key: A PRNG key.

    Returns:
        The triplets as they stand when all have converged or the steps are used up.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from spectrax import krylov
        >>> d = jnp.array([1.0, 2.0, 3.0])
        >>> task = krylov.Task(k=1, which="largest", subspace_size=3, max_steps=10, tol=1e-6, round_off=1e-6)
        >>> found = krylov.singular_triplets(
        ...     task, lambda v: d * v, lambda u: d * u, jnp.ones((1, 3)), jax.ShapeDtypeStruct((3,), d.dtype),
        ...     jax.random.key(0),
        ... )
        >>> round(float(found.values[0]), 4)
        3.0
    """
    task = task._replace(hermitian=False)

    def step(bases: Factorization) -> Factorization:
        return bidiagonalization.step(matmat, rmatmat, bases, one_sided=task.one_sided, sides=task.sides)

    return finalize(task, search(task, step, init(task, start, left_struct, key)))


def eigenpairs(task: Task, matmat: Product, start: PyTree, key: jax.Array) -> Triplets:
    """Return k eigenpairs at an end of the spectrum of a Hermitian operator, in one compiled loop.

    Args:
        task: What is searched for.
        matmat: A stack of vectors -> H v for each.
        start: A stack of b vectors.
        key: A PRNG key.

    Returns:
        The pairs as they stand when all have converged or the steps are used up.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from spectrax import krylov
        >>> d = jnp.array([1.0, -2.0, 3.0])
        >>> task = krylov.Task(k=1, which="smallest", subspace_size=3, max_steps=10, tol=1e-6, round_off=1e-6)
        >>> found = krylov.eigenpairs(task, lambda v: d * v, jnp.ones((1, 3)), jax.random.key(0))
        >>> round(float(found.values[0]), 4)
        -2.0
    """
    task = task._replace(hermitian=True)

    def step(bases: Factorization) -> Factorization:
        return tridiagonalization.step(matmat, bases, layout=task.sides.right)

    return finalize(task, search(task, step, init(task, start, None, key)))
