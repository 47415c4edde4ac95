"""Approximate singular triplets at the ends of a matrix's spectrum, and what is known of their errors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spectrax import vectors


class Triplets(NamedTuple):
    """Approximate singular triplets at one end, for one matrix or with a leading axis for many.

    Attributes:
        u: Left vectors as rows, shape (count, m).
        s: Values, shape (count,), descending.
        v: Right vectors as rows, shape (count, n).
        residual: |A^H u - s v| of the outermost one; A v = s u holds by construction.
        error: Estimated relative error of its value, without round-off.
    """

    u: jax.Array
    s: jax.Array
    v: jax.Array
    residual: jax.Array
    error: jax.Array


class Followed(NamedTuple):
    """The triplets at both ends.

    Attributes:
        top: Those of the largest values.
        bottom: Those of the smallest ones; None where they are not wanted.
    """

    top: Triplets
    bottom: Triplets | None


def on_span(image: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the triplets of a matrix on the span of orthonormal rows, from their images: A v = s u.

    An SVD of the triangular factor of the image loses nothing; a Gram matrix would.

    Args:
        image: A x for the rows x of the basis, shape (k, m).
        basis: Shape (k, n).

    Returns:
        Left vectors, values, descending, and right vectors.
    """
    q, r = jnp.linalg.qr(image.T)
    left, s, right_h = jnp.linalg.svd(r)
    return vectors.matmul(q, left).T, s, vectors.matmul(right_h.conj(), basis)


def orthonormal(*stacks: jax.Array) -> jax.Array:
    """Return orthonormal rows whose first ones span what the first given ones do; zero rows become any."""
    rows = jnp.concatenate(stacks)
    lengths = vectors.lengths(rows)
    rows = rows / jnp.where(lengths > 0, lengths, 1)[:, None].astype(rows.dtype)
    q, _ = jnp.linalg.qr(rows.T)
    return q.T


def lengths(rows: jax.Array, scale: jax.Array) -> jax.Array:
    """Return the 2-norms of rows whose entries are at most about the scale: no square over- or underflows."""
    scale = jnp.where(scale > 0, scale, 1)
    return scale * vectors.lengths(rows / scale.astype(rows.dtype))


def exceeds(error: jax.Array, tolerance: float) -> jax.Array:
    """Say whether an error is above a tolerance, or NaN."""
    return ~(error <= tolerance)


def residual_error(residual: jax.Array, s: jax.Array, *, bottom: bool) -> jax.Array:
    r"""Estimate the relative error of an outermost value from its residual.

    min(rho / s, 3 rho^2 / (2 |s_far^2 - s^2|)), with rho = |A^H u - s v| and s_far the value farthest inside the block.
    Without the factor 3 the second one is the bound of Kato and Temple, if s_far stands for the nearest value outside
    the block: mixtures within it are resolved.

    Args:
        residual: rho of the outermost triplet.
        s: Values of the block, descending.
        bottom: Which one is the outermost.

    Returns:
        The estimate; zero where the residual is.
    """
    value, far = (s[-1], s[0]) if bottom else (s[0], s[-1])
    ratio = residual / jnp.where(value > 0, value, 1)
    quotient = far / jnp.where(value > 0, value, 1)
    gap = jnp.abs(jnp.square(quotient) - 1)
    squared = 1.5 * jnp.square(ratio) / jnp.where(gap > 0, gap, 1)
    error = jnp.where(gap > 0, jnp.minimum(ratio, squared), ratio)
    return jnp.where(value == 0, jnp.where(residual == 0, 0, jnp.inf), error)


def unless_at_round_off(error: jax.Array, s: jax.Array, largest: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return no error for a smallest value that cannot be told from zero: there is nothing to improve."""
    floor = max(shape) ** 0.5 * jnp.finfo(s.dtype).eps * largest
    return jnp.where(s[-1] <= floor, 0, error)
