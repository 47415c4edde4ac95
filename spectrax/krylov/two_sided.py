"""The two bases of a Davidson iteration, A V = U B, and their thick restart."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.krylov.projected import projected_svd

PyTree = Any


class TwoSidedBases(NamedTuple):
    """The factorisation A V = U B, where it stands, and the residual that the next step grows it by.

    Attributes:
        count: How many rows of the bases are in use, int32.
        right: Stack of p rows: the basis V, then zeros.
        left: Stack of p rows: the basis U, then zeros.
        projected: The matrix B = U^H A V, shape (p, p), upper triangular.
        residual: A^H u - s v of the triplet that is worked on.
        ritz: Coefficients of its right vector, shape (p,).
        previous: Those of one step before.
        reference: The wanted values when they were accepted, ascending, shape (k,).
        mismatch: The largest inner product <A^H u, v> that came out otherwise as <u, A v>, over `largest`.
        accepted: How many of the wanted triplets, from the smallest on, have a small residual, int32.
        probing: Steps since a random vector was put in to challenge the answer; zero when there is none.
        queue: Stack of vectors to be put in: those of the start, then those of the challenges.
        queued: The row of the queue that the next step takes; negative when it takes the residual.
        challenges: How many challenges there were.
        right_seed: Where fresh right directions come from, after a breakdown.
        left_seed: The same for left vectors.
        largest: A lower bound of the norm.
        num_steps: How many pairs of products were taken.
        finite: False from the first product on that holds NaN or Inf.
        done: Whether the wanted triplets were accepted and stood the challenge.
    """

    count: jax.Array
    right: PyTree
    left: PyTree
    projected: jax.Array
    residual: PyTree
    ritz: jax.Array
    previous: jax.Array
    reference: jax.Array
    mismatch: jax.Array
    accepted: jax.Array
    probing: jax.Array
    queue: PyTree
    queued: jax.Array
    challenges: jax.Array
    right_seed: jax.Array
    left_seed: jax.Array
    largest: jax.Array
    num_steps: jax.Array
    finite: jax.Array
    done: jax.Array


class Ritz(NamedTuple):
    """The projected decomposition with the smallest value first: B right_i = values_i left_i, both as rows."""

    left: jax.Array
    values: jax.Array
    right: jax.Array


def decompose(state: TwoSidedBases) -> Ritz:
    """Decompose B; rows that are not in use get values above all others."""
    unused = jnp.arange(state.ritz.shape[0], dtype=jnp.int32) >= state.count
    above = jnp.where(state.largest > 0, 2 * state.largest, 1)
    projected = state.projected + jnp.diag(jnp.where(unused, above, 0)).astype(state.projected.dtype)
    left, values, right_h = projected_svd(jnp.where(state.finite, projected, jnp.zeros_like(projected)))
    return Ritz(left.T[::-1], values[::-1], right_h.conj()[::-1])


def restart(state: TwoSidedBases, *, k: int) -> TwoSidedBases:
    """Shrink the bases to the smallest Ritz vectors and the vector of the step before.

    At the beginning of a challenge the accepted triplets alone are kept, so that what comes up next is new.

    Args:
        state: The state with full bases, or at the beginning of a challenge.
        k: How many triplets are wanted.

    Returns:
        The state with bases of a third of their size, at least k + 2, or of size k.
    """
    subspace_size = state.ritz.shape[0]
    kept = _kept(k, subspace_size)
    all_ritz = decompose(state)
    # the left Ritz vectors come from the decomposition: B q / s would hold the round-off of B over s
    smallest = Ritz(all_ritz.left[:kept], all_ritz.values[:kept], all_ritz.right[:kept])
    extra = _without(smallest.right, state.previous)
    size = vectors.norm(extra)
    known = size <= 1e3 * float(jnp.finfo(size.dtype).eps)
    extra = _without(smallest.right, extra / jnp.where(known, 1, size).astype(extra.dtype))
    extra = vectors.divide(extra, vectors.norm(extra))
    image = _without(smallest.left, jnp.matmul(state.projected, extra, precision=vectors.HIGHEST))
    length = vectors.norm(image)
    new = ~known & (length > float(jnp.finfo(length.dtype).eps) * state.largest)
    right = jnp.concatenate([smallest.right, jnp.where(new, extra, all_ritz.right[kept])[None]])
    image = _without(smallest.left, image / jnp.where(new, length, 1).astype(image.dtype))
    left = jnp.where(new, vectors.divide(image, vectors.norm(image)), all_ritz.left[kept])
    left = jnp.concatenate([smallest.left, left[None]])
    diagonal = jnp.append(smallest.values, jnp.where(new, length, all_ritz.values[kept]))
    count = jnp.where(state.probing == 1, k, kept + 1).astype(jnp.int32)
    in_use = jnp.arange(kept + 1, dtype=jnp.int32) < count
    left, right = jnp.where(in_use[:, None], left, 0), jnp.where(in_use[:, None], right, 0)
    room = (0, subspace_size - (kept + 1))
    ritz = jnp.pad(jnp.matmul(right.conj(), state.ritz, precision=vectors.HIGHEST), room)
    return state._replace(
        count=count,
        right=vectors.pad(_polished(vectors.combine(right, state.right), in_use), subspace_size),
        left=vectors.pad(_polished(vectors.combine(left, state.left), in_use), subspace_size),
        projected=jnp.diag(jnp.pad(jnp.where(in_use, diagonal, 0), room)).astype(state.projected.dtype),
        ritz=ritz,
        previous=ritz,
    )


def _polished(stack: PyTree, in_use: jax.Array) -> PyTree:
    """Return nearly orthonormal rows with the square of their defect.

    A defect of the basis passes on to what is orthogonalised against it once: over many restarts it would grow.
    """
    gram = vectors.gram(stack, stack)
    defect = gram - jnp.diag(in_use.astype(gram.dtype))
    return vectors.subtract(stack, vectors.combine(defect.T / 2, stack))


def _without(rows: jax.Array, w: jax.Array) -> jax.Array:
    """Return w without its components along orthonormal rows."""
    for _ in range(2):
        w = w - jnp.matmul(jnp.matmul(rows.conj(), w, precision=vectors.HIGHEST), rows, precision=vectors.HIGHEST)
    return w


def _kept(k: int, subspace_size: int) -> int:
    return min(max(k + 1, subspace_size // 3), subspace_size - 2)


def row_structure(stack: PyTree) -> PyTree:
    """Return the structure of one vector of a stack."""
    return jax.tree.map(lambda rows: jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype), stack)
