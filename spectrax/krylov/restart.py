"""Ritz values of a Krylov factorisation, and the thick restart that shrinks its bases to some of their vectors."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.krylov.factorization import Factorization
from spectrax.krylov.orthogonalization import orthonormalize
from spectrax.krylov.projected import projected_eigh, projected_svd
from spectrax.krylov.task import Task
from spectrax.layouts import Layout
from spectrax.vectors import HIGHEST

PyTree = Any


class Ritz(NamedTuple):
    """Ritz values, the most extreme first; those of columns that are not in use stand at the end.

    Attributes:
        left: Coefficients of the left Ritz vectors in the left basis, as rows; `right` for a Hermitian operator.
        values: Shape (p,).
        right: Coefficients of the right Ritz vectors in the right basis, as rows.
        residuals: What the operator leaves outside of the bases, shape (p,).
    """

    left: jax.Array
    values: jax.Array
    right: jax.Array
    residuals: jax.Array


def ritz_of(task: Task, bases: Factorization, fixed: jax.Array) -> Ritz:
    """Return the Ritz values of the columns in use.

    Args:
        task: What is searched for.
        bases: The factorisation.
        fixed: How many columns are left out, at the beginning: those that a challenge is deflated by.

    Returns:
        The Ritz values and vectors of the rest.
    """
    room = task.subspace_size
    width = bases.coupling.shape[0]
    place = jnp.arange(room, dtype=jnp.int32)
    used = (place >= fixed) & (place < jnp.minimum(bases.size, dimension_of(bases)))
    matrix = jnp.where(used[:, None] & used & bases.finite, _projected(task, bases), 0)
    # columns that are not in use get a value beyond all others: one equal to theirs would mix the vectors
    sizes = jnp.abs(matrix / nonzero(bases.scale).astype(matrix.dtype))
    bound = jnp.sqrt(jnp.max(jnp.sum(sizes, 0)) * jnp.max(jnp.sum(sizes, 1)))  # of the 2-norm, and rarely far above it
    matrix = matrix + jnp.diag(jnp.where(used, 0, (1.25 * bound + 0.25) * nonzero(bases.scale)).astype(matrix.dtype))
    others = room - jnp.sum(used, dtype=jnp.int32)
    if task.hermitian:
        values, columns = projected_eigh(matrix)
        left = right = columns.T
    else:
        left, values, right_h = projected_svd(matrix)
        left, right = left.T, right_h.conj()
    if task.which == "largest_magnitude":
        order = jnp.argsort(-jnp.abs(values))
    else:
        order = place if task.hermitian else place[::-1]  # ascending
        order = order if task.which == "smallest" else order[::-1]
    if task.which != "smallest":
        order = jnp.roll(order, -others)
    left, values, right = left[order], values[order], right[order]
    start = jnp.maximum(bases.size - width, 0)
    last = jax.lax.dynamic_slice_in_dim(left.T, start, width, 0)
    rest = jnp.matmul(bases.coupling / nonzero(bases.scale).astype(last.dtype), last, precision=HIGHEST)
    residuals = nonzero(bases.scale) * jnp.sqrt(jnp.sum(jnp.square(jnp.abs(rest)), 0))
    return Ritz(left, values, right, residuals)


def _projected(task: Task, bases: Factorization) -> jax.Array:
    if not task.hermitian:
        return bases.projected
    upper = jnp.triu(bases.projected, 1)
    return upper + upper.conj().T + jnp.diag(jnp.diagonal(bases.projected).real.astype(upper.dtype))


def nonzero(scale: jax.Array) -> jax.Array:
    """Return a number to divide by: the given one, or one where that is zero or not finite."""
    return jnp.where((scale > 0) & jnp.isfinite(scale), scale, jnp.ones_like(scale))


def dimension_of(bases: Factorization) -> int:
    """Return the dimension of the right vectors."""
    return vectors.size(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), bases.right))


def deflated(task: Task, width: int) -> int:
    """How many Ritz vectors the challenge is deflated by: the wanted ones, and more to widen the gap behind them."""
    return min(task.k + max((task.subspace_size - task.k) // 3, 1), task.subspace_size - width)


def _kept(task: Task, width: int) -> int:
    """How many Ritz vectors survive a restart."""
    k, room = task.k, task.subspace_size
    return min(max(k + 2, k + (room - k) // 2), max(room - width, k))


def restarted(
    task: Task, bases: Factorization, fixed: jax.Array, ritz: Ritz, begin: jax.Array, missed: jax.Array
) -> Factorization:
    """Shrink the bases to some Ritz vectors, with the block behind them that belongs to what comes next.

    While searching, or at the end, the most extreme ones are kept, with the residual block. To begin a challenge fewer
    are kept, with a fresh random block. In the course of a challenge its own Ritz vectors are kept behind those that it
    is deflated by, with the residual block. When it has found something, the wanted ones alone are kept, and what was
    found is the block behind them.

    Args:
        task: What is searched for.
        bases: The factorisation.
        fixed: How many rows the challenge is deflated by, which stay as they are; zero if there is none.
        ritz: The Ritz vectors of the rest.
        begin: Whether a challenge begins here.
        missed: Whether one has found something.

    Returns:
        The factorisation, with room for more.
    """
    k, room = task.k, task.subspace_size
    width = bases.coupling.shape[0]
    kept, most = _kept(task, width), deflated(task, width)
    own = max((room - most - width) // 2, 0)
    rows = min(max(kept, most + own, k), room)
    probing = (fixed > 0) & ~begin
    count = jnp.where(probing, jnp.where(missed, k, fixed + own), jnp.where(begin, fixed, kept))
    count = jnp.minimum(count, bases.size)
    place = jnp.arange(rows, dtype=jnp.int32)
    in_use = place < count

    def chosen(coefficients: jax.Array) -> jax.Array:
        identity = jnp.eye(rows, room, dtype=coefficients.dtype)
        behind = jnp.roll(coefficients, fixed, axis=0)[:rows]
        during = jnp.where((place < fixed)[:, None], identity, behind)
        kept_rows = jnp.where(in_use[:, None], jnp.where(probing, during, coefficients[:rows]), 0)
        # one step of Newton's iteration for the polar factor: the decomposition's rows are orthonormal to some eps only
        overlap = jnp.matmul(kept_rows, kept_rows.conj().T, precision=HIGHEST)
        return 1.5 * kept_rows - 0.5 * jnp.matmul(overlap, kept_rows, precision=HIGHEST)

    def rotated(coefficients: jax.Array, stack: PyTree, length: int, layout: Layout | None) -> PyTree:
        return vectors.pad(vectors.combinations(coefficients, stack, layout), length)

    residual = vectors.rows(bases.right, bases.size, width)
    basis = jax.tree.map(lambda leaf: leaf[:room], bases.right)
    best = vectors.combine(ritz.right[:width], basis)
    on_right = chosen(ritz.right)
    on_left = on_right if task.hermitian else chosen(ritz.left)
    right = rotated(on_right, basis, room + width, task.sides.right)
    left = None if task.hermitian else rotated(on_left, bases.left, room, task.sides.left)
    following = jax.lax.cond(
        begin | missed,
        lambda: (
            orthonormalize(
                right,
                vectors.scale(jnp.where(missed, 1, 0), best),  # zero vectors are replaced by fresh ones
                bases.right_seed,
                bases.draws,
                jnp.zeros_like(bases.scale),
                layout=task.sides.right,
            ).rows
        ),
        lambda: residual,
    )
    # not the Ritz values on a diagonal: what the decomposition is wrong by stays in the relation A V = U B this way
    projected = jnp.matmul(
        jnp.matmul(on_left.conj(), _projected(task, bases), precision=HIGHEST), on_right.T, precision=HIGHEST
    )
    return bases._replace(
        size=count.astype(jnp.int32),
        right=vectors.set_rows(right, count, following),
        left=left,
        projected=jnp.pad(projected, (0, room - rows)),
        coupling=jnp.zeros_like(bases.coupling),
        # what a challenge begins or ends with is not what A^H U leaves outside of the bases
        loss=jnp.where(begin | missed | jnp.isinf(bases.loss), jnp.inf, 1).astype(bases.loss.dtype),
        draws=bases.draws + width,
    )
