"""What is searched for, and what a search comes back with: shared by all methods that iterate."""

from typing import Any, NamedTuple

import jax

from spectrax.layouts import Sides

PyTree = Any


class Task(NamedTuple):
    """Everything static about a search.

    Attributes:
        k: How many values.
        which: "largest" or "smallest", and for Hermitian operators (algebraic order) also "largest_magnitude".
        subspace_size: How far the bases grow before a restart.
        max_steps: When to give up, in vectors that the operator is applied to.
        tol: A value has converged when its residual is at most tol times its modulus,
        round_off: or at most round_off times the largest modulus.
        probe: Whether the answer is challenged by random vectors.
        one_sided: Whether left vectors may be orthogonalised only where the recurrence does not keep them orthogonal.
        hermitian: Whether eigenpairs are wanted.
        sides: How the vectors of both sides lie on devices, where that is known.
    """

    k: int
    which: str
    subspace_size: int
    max_steps: int
    tol: float
    round_off: float
    probe: bool = True
    one_sided: bool = False
    hermitian: bool = False
    sides: Sides = Sides()


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
