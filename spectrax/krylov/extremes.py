"""Extreme singular triplets and eigenpairs of an operator, by Krylov methods, in one compiled loop."""

from typing import Any, NamedTuple

import jax

from spectrax.krylov import bidiagonalization, tridiagonalization
from spectrax.krylov.factorization import Factorization, Product
from spectrax.krylov.restart import Task
from spectrax.krylov.search import Search, init, search

PyTree = Any


class Triplets(NamedTuple):
    """Approximate singular triplets or eigenpairs, the most extreme first, and how they were come by.

    Attributes:
        left: Stack of k left vectors; None for eigenpairs.
        values: Shape (k,).
        right: Stack of k right vectors.
        largest: The largest modulus of a value that was seen, a lower bound of the norm.
        num_steps: How many vectors the operator (and its adjoint) was applied to.
        finite: Whether all products were finite.
        complete: False if there is known to be a value beyond these that there were no steps left for.
        mismatch: The largest inner product <u, A v> that came out otherwise as <A^H u, v>, over `largest`.
        breakdowns: How many directions had to be drawn afresh.
    """

    left: PyTree
    values: jax.Array
    right: PyTree
    largest: jax.Array
    num_steps: jax.Array
    finite: jax.Array
    complete: jax.Array
    mismatch: jax.Array
    breakdowns: jax.Array


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
    matmat: Product,
    rmatmat: Product,
    start: PyTree,
    left_struct: PyTree,
    key: jax.Array,
    *,
    k: int,
    which: str,
    subspace_size: int,
    max_steps: int,
    tol: float,
    round_off: float,
    probe: bool,
) -> Triplets:
    """Return the k largest or smallest singular triplets of an operator, in one compiled loop.

    Args:
        matmat: A stack of vectors -> A v for each.
        rmatmat: A stack of vectors -> A^H u for each.
        start: A stack of b right vectors; the right side must be the shorter one, or the lowest values go to zero.
        left_struct: The structure of the left vectors.
        key: A PRNG key.
        k: As in `Task`, and so on.
        which: "largest" or "smallest".
        subspace_size: As in `Task`.
        max_steps: As in `Task`.
        tol: As in `Task`.
        round_off: As in `Task`.
        probe: As in `Task`.

    Returns:
        The triplets as they stand when all have converged or the steps are used up.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from spectrax import krylov
        >>> d = jnp.array([1.0, 2.0, 3.0])
        >>> found = krylov.singular_triplets(
        ...     lambda v: d * v, lambda u: d * u, jnp.ones((1, 3)), jax.ShapeDtypeStruct((3,), d.dtype),
        ...     jax.random.key(0), k=1, which="largest", subspace_size=3, max_steps=10, tol=1e-6, round_off=1e-6,
        ...     probe=True,
        ... )
        >>> round(float(found.values[0]), 4)
        3.0
    """
    task = Task(k, which, False, subspace_size, max_steps, tol, round_off, probe)

    def step(bases: Factorization) -> Factorization:
        return bidiagonalization.step(matmat, rmatmat, bases)

    return finalize(task, search(task, step, init(task, start, left_struct, key)))


def eigenpairs(
    matmat: Product,
    start: PyTree,
    key: jax.Array,
    *,
    k: int,
    which: str,
    subspace_size: int,
    max_steps: int,
    tol: float,
    round_off: float,
    probe: bool,
) -> Triplets:
    """Return k eigenpairs at an end of the spectrum of a Hermitian operator, in one compiled loop.

    Args:
        matmat: A stack of vectors -> H v for each.
        start: A stack of b vectors.
        key: A PRNG key.
        k: As in `Task`, and so on.
        which: "largest" or "smallest" in algebraic order, or "largest_magnitude".
        subspace_size: As in `Task`.
        max_steps: As in `Task`.
        tol: As in `Task`.
        round_off: As in `Task`.
        probe: As in `Task`.

    Returns:
        The pairs as they stand when all have converged or the steps are used up.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from spectrax import krylov
        >>> d = jnp.array([1.0, -2.0, 3.0])
        >>> found = krylov.eigenpairs(
        ...     lambda v: d * v, jnp.ones((1, 3)), jax.random.key(0), k=1, which="smallest", subspace_size=3,
        ...     max_steps=10, tol=1e-6, round_off=1e-6, probe=True,
        ... )
        >>> round(float(found.values[0]), 4)
        -2.0
    """
    task = Task(k, which, True, subspace_size, max_steps, tol, round_off, probe)

    def step(bases: Factorization) -> Factorization:
        return tridiagonalization.step(matmat, bases)

    return finalize(task, search(task, step, init(task, start, None, key)))
