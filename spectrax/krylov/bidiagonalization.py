"""Golub-Kahan-Lanczos bidiagonalisation with full orthogonalisation, on pytrees, one block at a time."""

import jax.numpy as jnp

from spectrax import layouts, vectors
from spectrax.krylov.factorization import Factorization, Product
from spectrax.krylov.orthogonalization import orthonormalize
from spectrax.layouts import Sides

_ANYWHERE = Sides()
_LOSS = 32  # in units of round-off: how far from orthogonal left rows may become before they are orthogonalised


def step(
    matmat: Product,
    rmatmat: Product,
    state: Factorization,
    *,
    one_sided: bool = False,
    sides: Sides = _ANYWHERE,
) -> Factorization:
    """Extend both bases by one block, at the cost of one product with A and one with A^H for each of its vectors.

    The coefficients of B are those that the orthogonalisation measured, so that the same step serves after a restart,
    after a breakdown, and with a random block put in by hand. What is known beforehand is taken away first: the
    coupling to the block before, by which single passes of Gram-Schmidt suffice, as a rule. On the way back everything
    is known, and what is measured besides says by how much rmatmat is not the adjoint of matmat.

    With right rows orthogonal, u_i^H A v_(j+1) is the adjoint's round-off for i < j, so that the recurrence gives
    |u_i^H u_(j+1)| alpha <= beta |u_i^H u_j| + round-off (Simon & Zha 2000, doi:10.1137/S1064827597327309; Larsen 1998,
    PROPACK). While this bound stays small, left rows, which are the longer ones, may go without orthogonalisation.

    Args:
        matmat: A stack of right vectors -> A v for each of them.
        rmatmat: A stack of left vectors -> A^H u for each of them.
        state: A factorisation with room for one block more.
        one_sided: Whether single left rows go without where that bound is small.
        sides: How the vectors of both sides lie on devices, where that is known.

    Returns:
        The factorisation with one block more.
    """
    index, width = state.size, state.coupling.shape[0]
    block = vectors.rows(state.right, index, width)
    before = jnp.maximum(index - width, 0)
    known = state.coupling.conj().T
    image = layouts.constrain(matmat(block), sides.left, stacked=True)
    image = vectors.subtract(image, vectors.combine(known.T, vectors.rows(state.left, before, width)))
    unit, loss, enough = vectors.eps(block), state.loss, None
    if one_sided and width == 1:
        inherited = jnp.abs(state.coupling[0, 0]) * loss + 2 * jnp.maximum(unit, state.mismatch) * state.scale
        enough = jnp.where((loss < 1) & (inherited > 0), inherited / (_LOSS * unit), jnp.inf)  # not for zero matrices
    left = orthonormalize(
        state.left, image, state.left_seed, state.draws, state.scale, enough=enough, layout=sides.left
    )
    if enough is not None:
        length = jnp.abs(left.factor[0, 0])
        kept = inherited / jnp.where(length > 0, length, 1)
        loss = jnp.where(jnp.isinf(loss), jnp.inf, jnp.where(length >= enough, kept, 2 * unit)).astype(loss.dtype)
    columns = vectors.set_rows(left.coefficients, index, left.factor)
    columns = columns + vectors.set_rows(jnp.zeros_like(columns), before, known)
    scale = jnp.maximum(state.scale, jnp.max(jnp.abs(columns)))

    image = layouts.constrain(rmatmat(left.rows), sides.right, stacked=True)
    image = vectors.subtract(image, vectors.combine(left.factor.conj(), block))
    right = orthonormalize(state.right, image, state.right_seed, state.draws, scale, layout=sides.right)
    scale = jnp.maximum(scale, jnp.max(jnp.abs(right.factor)))
    deviation = jnp.max(jnp.abs(right.coefficients)) / jnp.where(scale > 0, scale, 1)
    return state._replace(
        size=index + width,
        right=vectors.set_rows(state.right, index + width, right.rows),
        left=vectors.set_rows(state.left, index, left.rows),
        projected=vectors.set_rows(state.projected.T, index, columns.T).T,
        coupling=right.factor,
        scale=scale,
        mismatch=jnp.maximum(state.mismatch, deviation),
        loss=loss,
        draws=state.draws + width,
        breakdowns=state.breakdowns + jnp.sum(left.replaced | right.replaced, dtype=jnp.int32),
        finite=state.finite & jnp.all(jnp.isfinite(left.factor)) & jnp.all(jnp.isfinite(right.factor)),
    )
