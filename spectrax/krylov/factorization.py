"""The state that all Krylov factorisations share: bases, the projected matrix, and what both leave behind."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import layouts, vectors
from spectrax.krylov.orthogonalization import direction_seed, orthonormalize, random_rows
from spectrax.layouts import Sides

PyTree = Any
_ANYWHERE = Sides()
Product = Callable[[PyTree], PyTree]


class Factorization(NamedTuple):
    """A Krylov factorisation of p columns, where it stands, grown by a block of b vectors at a time.

    For singular values A V = U B and A^H U = V B^H + W K E^H; for a Hermitian operator U is V and B is Hermitian. E
    holds the last b columns of the identity and W, K the next block of rows and its factor.

    Attributes:
        size: Number of finished columns, int32.
        right: Stack of p + b rows: the basis V, the next block W, then zeros.
        left: Stack of p rows: the basis U, then zeros; None for a Hermitian operator.
        projected: The matrix B = U^H A V, shape (p, p); of V^H A V the upper triangle.
        coupling: K, shape (b, b): what the operator left outside of the bases at the last step.
        scale: The largest entry of B and K so far, to tell a breakdown by.
        mismatch: The largest inner product <u, A v> that came out otherwise as <A^H u, v>, over `scale`.
        loss: By how much the last left row may miss being orthogonal to those before it; one where that is not known
            for the next, inf where it cannot be known for any to come.
        right_seed: Where fresh right directions come from, after a breakdown.
        left_seed: The same for left vectors.
        draws: How many fresh directions were asked for, int32.
        breakdowns: How many of them were needed because a recurrence broke down, int32.
        finite: False from the first product on that holds NaN or Inf.
    """

    size: jax.Array
    right: PyTree
    left: PyTree
    projected: jax.Array
    coupling: jax.Array
    scale: jax.Array
    mismatch: jax.Array
    loss: jax.Array
    right_seed: jax.Array
    left_seed: jax.Array
    draws: jax.Array
    breakdowns: jax.Array
    finite: jax.Array


def init(
    key: jax.Array,
    start: PyTree,
    left_struct: PyTree | None,
    subspace_size: int,
    *,
    sides: Sides = _ANYWHERE,
) -> Factorization:
    """Return the state before the first step.

    Args:
        key: A PRNG key.
        start: A stack of b right vectors; those that are zero or depend on others are replaced by random ones.
        left_struct: The structure of the left vectors, or None for a Hermitian operator.
        subspace_size: p, how many columns the bases have room for.
        sides: How the vectors of both sides lie on devices, where that is known.

    Returns:
        A factorisation of no columns.
    """
    right_struct = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), start)
    dtype, width = vectors.result_dtype(right_struct), vectors.count(start)
    real = vectors.real_dtype(dtype)
    right_key, left_key = jax.random.split(key)
    right = layouts.constrain(vectors.zeros(right_struct, subspace_size + width), sides.right, stacked=True)
    left = None if left_struct is None else vectors.zeros(left_struct, subspace_size)
    right_seed = direction_seed(right_key)
    nought = jnp.zeros((), real)
    if width == 1:  # the second copy of a program that would be needed for more
        length = vectors.norm(start)
        fresh = random_rows(right_seed, jnp.zeros((), jnp.int32), start)
        fresh = vectors.divide(fresh, vectors.norm(fresh))
        rows = vectors.select((length == 0)[None], fresh, vectors.divide(start, length))
    else:
        rows = orthonormalize(right, start, right_seed, jnp.zeros((), jnp.int32), nought, layout=sides.right).rows
    return Factorization(
        size=jnp.zeros((), jnp.int32),
        right=vectors.set_rows(right, 0, rows),
        left=left if left is None else layouts.constrain(left, sides.left, stacked=True),
        projected=jnp.zeros((subspace_size, subspace_size), dtype),
        coupling=jnp.zeros((width, width), dtype),
        scale=nought,
        mismatch=nought,
        loss=jnp.ones((), real),
        right_seed=right_seed,
        left_seed=direction_seed(left_key),
        draws=jnp.asarray(width, jnp.int32),
        breakdowns=jnp.zeros((), jnp.int32),
        finite=jnp.ones((), bool),
    )
