"""Matrices whose singular values are prescribed, or known to be troublesome."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from spectrax import checks, vectors
from spectrax.operators import LinearOperator, aslinearoperator


def with_singular_values(
    key: jax.Array, singular_values: Any, shape: tuple[int, int], /, dtype: Any = jnp.float32
) -> LinearOperator:
    """Return a random matrix A = U diag(s) V^H with prescribed singular values.

    U and V are the orthonormal factors of Gaussian matrices. The product is made on the host in 64 bits, whatever mode
    JAX is in, and rounded once to `dtype`: each singular value is the prescribed one up to eps |A|.

    Args:
        key: A concrete PRNG key.
        singular_values: At most min(m, n) non-negative numbers in any order; the missing ones are zero.
        shape: (m, n).
        dtype: A floating-point or complex dtype; complex ones give complex U and V.

    Returns:
        An operator that holds the matrix.

    Raises:
        TypeError: If the dtype is an integer one, or the key is not a concrete PRNG key.
        ValueError: If there are too many values, a negative or non-finite one, or the shape is no matrix's.

    Cost:
        Two QR factorisations and a product on the host.

    Derivatives:
        None: the matrix is a constant.

    Example:
        >>> import jax
        >>> import spectrax as sx
        >>> A = sx.testing.with_singular_values(jax.random.key(0), [3.0, 2.0], (5, 4))
        >>> [round(float(s), 5) for s in sx.singular_values(A, 2)]
        [3.0, 2.0]
    """
    checks.inexact("dtype", dtype)
    return _operator(random_matrix(key, singular_values, shape, is_complex=vectors.is_complex(dtype)), dtype)


def random_matrix(key: jax.Array, singular_values: Any, shape: tuple[int, int], *, is_complex: bool) -> np.ndarray:
    """Return U diag(s) V^H as a float64 or complex128 NumPy array."""
    checks.key("key", key)
    if isinstance(key, Tracer):
        raise TypeError("key must be concrete: the matrix is made on the host, which cannot happen under a trace")
    _check_shape(shape)
    m, n = shape
    s = np.asarray(singular_values, np.float64)
    if s.ndim != 1 or s.shape[0] > min(m, n):
        raise ValueError(f"singular_values must be a list of at most min(m, n) = {min(m, n)} numbers, got {s.shape}")
    if not (np.isfinite(s) & (s >= 0)).all():
        raise ValueError(f"singular_values must be finite and not negative, got {s}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())

    def orthonormal(rows: int) -> np.ndarray:
        gaussian = rng.normal(size=(rows, s.shape[0]))
        if is_complex:
            gaussian = gaussian + 1j * rng.normal(size=gaussian.shape)
        return np.linalg.qr(gaussian)[0]

    return (orthonormal(m) * s) @ orthonormal(n).conj().T


def hilbert(shape: tuple[int, int], /, *, dtype: Any = jnp.float32) -> LinearOperator:
    """Return the Hilbert matrix, H[i, j] = 1 / (i + j + 1).

    Its singular values decay geometrically, and from some ten columns on the smallest lie below the round-off of any
    dtype: whoever publishes them with confidence is wrong.

    Args:
        shape: (m, n).
        dtype: A floating-point or complex dtype.

    Returns:
        An operator that holds the matrix.

    Raises:
        TypeError: If the dtype is an integer one.
        ValueError: If the shape is no matrix's.

    Example:
        >>> import spectrax as sx
        >>> sx.testing.hilbert((2, 2)).to_dense().tolist()[0]
        [1.0, 0.5]
    """
    return _operator(hilbert_matrix(shape), dtype)


def hilbert_matrix(shape: tuple[int, int]) -> np.ndarray:
    """Return the Hilbert matrix as a float64 NumPy array."""
    _check_shape(shape)
    return 1.0 / (np.arange(shape[0])[:, None] + np.arange(shape[1]) + 1.0)


def kahan(shape: tuple[int, int], /, *, angle: float = 1.2, dtype: Any = jnp.float32) -> LinearOperator:
    """Return Kahan's matrix, upper triangular with R[i, i] = sin(angle)^i and R[i, j] = -cos(angle) sin(angle)^i.

    Nothing on its diagonal is as small as its smallest singular value, which pivoted QR factorisations miss.

    Args:
        shape: (m, n).
        angle: In radians, in (0, pi / 2].
        dtype: A floating-point or complex dtype.

    Returns:
        An operator that holds the matrix.

    Raises:
        TypeError: If the dtype is an integer one.
        ValueError: If the shape is no matrix's, or the angle out of its range.

    Example:
        >>> import spectrax as sx
        >>> [round(x, 3) for x in sx.testing.kahan((2, 2)).to_dense().tolist()[0]]
        [1.0, -0.362]

    Source:
        Kahan 1966, Canadian Mathematical Bulletin 9 (doi:10.4153/CMB-1966-083-2).
    """
    return _operator(kahan_matrix(shape, angle), dtype)


def kahan_matrix(shape: tuple[int, int], angle: float) -> np.ndarray:
    """Return Kahan's matrix as a float64 NumPy array."""
    _check_shape(shape)
    checks.number_in("angle", angle, 0.0, math.pi / 2, low_open=True)
    powers = math.sin(angle) ** np.arange(shape[0])[:, None]
    return powers * (np.eye(*shape) - math.cos(angle) * np.triu(np.ones(shape), 1))


def _check_shape(shape: tuple[int, int]) -> None:
    if len(shape) != 2:
        raise ValueError(f"shape must be a pair (m, n), got {shape}")
    for size in shape:
        checks.positive_integer("each size of shape", size)


def _operator(matrix: np.ndarray, dtype: Any) -> LinearOperator:
    return aslinearoperator(jnp.asarray(matrix, dtype))
