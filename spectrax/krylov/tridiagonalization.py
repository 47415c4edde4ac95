"""Lanczos tridiagonalisation of a Hermitian operator with full orthogonalisation, on pytrees, one block at a time."""

import jax.numpy as jnp

from spectrax import layouts, vectors
from spectrax.krylov.factorization import Factorization, Product
from spectrax.krylov.orthogonalization import orthonormalize
from spectrax.layouts import Layout


def step(matmat: Product, state: Factorization, *, layout: Layout | None = None) -> Factorization:
    """Extend the basis by one block, at the cost of one product for each of its vectors.

    As in bidiagonalisation the coefficients are those that were measured, and what is known beforehand is taken away
    first: the coupling to the block before, and the block's own. By how much these come out otherwise says how far the
    operator is from being Hermitian; what it holds of older vectors does not, since restarts couple those.

    Args:
        matmat: A stack of vectors -> H v for each of them.
        state: A factorisation with room for one block more.
        layout: How the vectors lie on devices, where that is known.

    Returns:
        The factorisation with one block more.
    """
    index, width = state.size, state.coupling.shape[0]
    block = vectors.rows(state.right, index, width)
    before = jnp.maximum(index - width, 0)
    known = state.coupling.conj().T
    image = layouts.constrain(matmat(block), layout, stacked=True)
    image = vectors.subtract(image, vectors.combine(known.T, vectors.rows(state.right, before, width)))
    own = layouts.summed(vectors.gram, layout)(block, image)
    image = vectors.subtract(image, vectors.combine(own.T, block))
    found = orthonormalize(state.right, image, state.right_seed, state.draws, state.scale, layout=layout)
    measured = found.coefficients[: state.projected.shape[0]]
    surplus = jnp.where(jnp.any(known != 0), vectors.rows(measured, before, width), 0)  # not known after a restart
    columns = measured + vectors.set_rows(jnp.zeros_like(measured), before, known)
    diagonal = vectors.rows(columns, index, width) + own
    columns = vectors.set_rows(columns, index, (diagonal + diagonal.conj().T) / 2)
    scale = jnp.maximum(state.scale, jnp.maximum(jnp.max(jnp.abs(columns)), jnp.max(jnp.abs(found.factor))))
    skew = jnp.maximum(jnp.max(jnp.abs(diagonal - diagonal.conj().T)), jnp.max(jnp.abs(surplus)))
    return state._replace(
        size=index + width,
        right=vectors.set_rows(state.right, index + width, found.rows),
        projected=vectors.set_rows(state.projected.T, index, columns.T).T,
        coupling=found.factor,
        scale=scale,
        mismatch=jnp.maximum(state.mismatch, skew / jnp.where(scale > 0, scale, 1)),
        draws=state.draws + width,
        breakdowns=state.breakdowns + jnp.sum(found.replaced, dtype=jnp.int32),
        finite=state.finite & jnp.all(jnp.isfinite(found.factor)),
    )
