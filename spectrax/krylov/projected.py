"""The small dense decompositions that a Krylov method makes at every restart."""

import jax
import jax.numpy as jnp

from spectrax.vectors import HIGHEST


def projected_svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the singular value decomposition of a small square matrix, B = P diag(s) Q^H.

    On TPU an SVD of any shape takes tens of seconds to compile, and there the Hermitian matrix [[0, B], [B^H, 0]] is
    decomposed instead, whose eigenvalues are +s and -s. A Gram matrix would lose the small singular values.

    Args:
        matrix: Shape (p, p).

    Returns:
        P of shape (p, p), s of shape (p,) in descending order, and Q^H of shape (p, p).
    """
    return jax.lax.platform_dependent(matrix, tpu=jordan_wielandt_svd, default=_lapack_svd)


def _lapack_svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def jordan_wielandt_svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the singular value decomposition through the eigenvectors [p; q] of [[0, B], [B^H, 0]].

    For s > 0 the halves of an eigenvector are orthogonal to all others of their side; at s = 0 they mix. A QR
    factorisation of each side, in descending order of s, keeps the former and completes the latter.
    """
    count = matrix.shape[0]
    zero = jnp.zeros_like(matrix)
    _, eigenvectors = jnp.linalg.eigh(jnp.block([[zero, matrix], [matrix.conj().T, zero]]))
    top = eigenvectors[:, ::-1][:, :count]
    left, right = _orthonormal(top[:count]), _orthonormal(top[count:])
    middle = jnp.einsum("ji,jk,ki->i", left.conj(), matrix, right, precision=HIGHEST)
    values = jnp.abs(middle)
    phase = jnp.where(values > 0, middle / jnp.where(values > 0, values, 1).astype(middle.dtype), 1)
    order = jnp.argsort(-values)
    return (left * phase)[:, order], values[order], right.conj().T[order]


def _orthonormal(columns: jax.Array) -> jax.Array:
    orthonormal, _ = jnp.linalg.qr(columns)
    return orthonormal


def projected_eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the eigenvalues, ascending, and the eigenvectors, as columns, of a small Hermitian matrix."""
    values, columns = jnp.linalg.eigh(matrix)
    return values, columns
