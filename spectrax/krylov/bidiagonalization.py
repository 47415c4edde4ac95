"""Golub-Kahan-Lanczos bidiagonalisation with full orthogonalisation, on pytrees, one step at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.krylov.orthogonalization import orthonormalize, random_phases

PyTree = Any
MatVec = Callable[[PyTree], PyTree]


class Bidiagonalization(NamedTuple):
    """The factorisation A V = U B, A^H U = V B^H + coupling * next_v * e_p^H, where it stands.

    Attributes:
        step: Number of finished steps, int32.
        right: Stack of p + 1 rows: the basis V, the next vector, then zeros.
        left: Stack of p rows: the basis U, then zeros.
        projected: The matrix B = U^H A V, shape (p, p), upper triangular.
        coupling: The norm of what A^H u left outside of V at the last step.
        scale: The largest entry of B so far, to tell a breakdown by.
        right_phases: Random phases of right vectors, for fresh directions after a breakdown.
        left_phases: The same for left vectors.
        draws: How many fresh directions were asked for, int32.
        finite: False from the first product on that holds NaN or Inf.
    """

    step: jax.Array
    right: PyTree
    left: PyTree
    projected: jax.Array
    coupling: jax.Array
    scale: jax.Array
    right_phases: PyTree
    left_phases: PyTree
    draws: jax.Array
    finite: jax.Array


def init(key: jax.Array, start: PyTree, left_struct: PyTree, subspace_size: int) -> Bidiagonalization:
    """Return the state before the first step.

    Args:
        key: A PRNG key.
        start: The first right vector, of any length but zero.
        left_struct: The structure of the left vectors.
        subspace_size: p, how many steps the bases have room for.

    Returns:
        A factorisation of no steps.
    """
    right_struct = vectors.structure(start)
    dtype = vectors.result_dtype(right_struct)
    start = vectors.divide(start, vectors.norm(start))
    right_key, left_key = jax.random.split(key)
    real = vectors.real_dtype(dtype)
    return Bidiagonalization(
        step=jnp.zeros((), jnp.int32),
        right=vectors.set_row(vectors.zeros(right_struct, subspace_size + 1), 0, start),
        left=vectors.zeros(left_struct, subspace_size),
        projected=jnp.zeros((subspace_size, subspace_size), dtype),
        coupling=jnp.zeros((), real),
        scale=jnp.zeros((), real),
        right_phases=random_phases(right_key, right_struct),
        left_phases=random_phases(left_key, left_struct),
        draws=jnp.zeros((), jnp.int32),
        finite=jnp.ones((), bool),
    )


def step(matvec: MatVec, rmatvec: MatVec, state: Bidiagonalization) -> Bidiagonalization:
    """Extend both bases by one vector each, at the cost of one product with A and one with A^H.

    The coefficients of B are those that the orthogonalisation measured, so that the same step serves after a restart,
    after a breakdown, and with a random vector put in by hand.
    """
    index = state.step
    left = orthonormalize(
        state.left, matvec(vectors.row(state.right, index)), state.left_phases, state.draws, state.scale
    )
    column = left.coefficients.at[index].set(left.length.astype(left.coefficients.dtype))
    scale = jnp.maximum(state.scale, jnp.max(jnp.abs(column)))
    right = orthonormalize(state.right, rmatvec(left.direction), state.right_phases, state.draws, scale)
    return state._replace(
        step=index + 1,
        right=vectors.set_row(state.right, index + 1, right.direction),
        left=vectors.set_row(state.left, index, left.direction),
        projected=state.projected.at[:, index].set(column),
        coupling=right.length,
        scale=jnp.maximum(scale, right.length),
        draws=state.draws + 1,
        finite=state.finite & jnp.isfinite(left.length) & jnp.isfinite(right.length),
    )
