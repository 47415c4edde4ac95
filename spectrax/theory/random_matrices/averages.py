"""What remains of a curvature matrix on average over activation patterns, and under dropout."""

from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks
from spectrax.theory.random_matrices.arguments import real
from spectrax.theory.random_matrices.slopes import Slopes, distribution


def expected_pattern_gram(A: Any, /, *, slopes: Slopes) -> jax.Array:
    """Return E[D A D] for slopes that are independent over the units: mu^2 A + v diag(A).

    mu is the mean and v the variance of a slope: off the diagonal E[d_i d_j] = mu^2, on it E[d_i^2] = mu^2 + v. With
    A = M^T M, where M is the map after the layer, this is the curvature by the layer's weights averaged over varied
    patterns, as a large batch has them. The second term acts like a ridge: with half of the units active the absolute
    value leaves diag(A) alone, and ReLU (A + diag(A)) / 4.

    Args:
        A: A square matrix, or a stack of them on leading axes.
        slopes: As in `skip_layer_limits`.

    Returns:
        The mean, in the shape and dtype of A.

    Raises:
        TypeError: If the dtype is not inexact, or the slopes are not numbers.
        ValueError: If A is not square, or the slopes are not a distribution.

    Derivatives:
        Linear in A.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory.random_matrices import expected_pattern_gram
        >>> expected_pattern_gram(jnp.ones((2, 2)), slopes="relu").tolist()
        [[0.5, 0.25], [0.25, 0.5]]

    Source:
        Derived above. The same computation for dropout: Wager, Wang & Liang 2013 (arXiv 1307.1493).
    """
    A, slope = _square(A), distribution(slopes)
    return _with_ridge(A, slope.mean**2, slope.variance)


def expected_gram_floor(A: Any, /, *, slopes: Slopes) -> jax.Array:
    """Return mu^2 lambda_min(A) + v min_i A_ii, a lower bound of the smallest eigenvalue of E[D A D].

    Args:
        A: A Hermitian matrix, or a stack of them on leading axes.
        slopes: As in `expected_pattern_gram`.

    Returns:
        A real scalar for each matrix; of float32 for 16-bit matrices.

    Raises:
        TypeError: If the dtype is not inexact, or the slopes are not numbers.
        ValueError: If A is not square, or the slopes are not a distribution.

    Cost:
        One decomposition of A.

    Derivatives:
        Those of an eigenvalue and of a minimum: where these are simple.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory.random_matrices import expected_gram_floor
        >>> round(float(expected_gram_floor(jnp.ones((2, 2)), slopes="relu")), 5)
        0.25

    Source:
        Weyl's inequality, for the sum in `expected_pattern_gram`.
    """
    A, slope = _square(A), distribution(slopes)
    A = A.astype(jnp.float32) if A.dtype.itemsize < 4 else A  # eigenvalues are not computed in 16 bits
    diagonal = jnp.real(jnp.diagonal(A, axis1=-2, axis2=-1))
    return slope.mean**2 * jnp.linalg.eigvalsh(A)[..., 0] + slope.variance * jnp.min(diagonal, -1)


def expected_dropout_gram(A: Any, /, *, rate: Any) -> jax.Array:
    """Return E[D A D] for inverted dropout: A + q / (1 - q) diag(A).

    A unit is dropped with probability q and otherwise multiplied by 1 / (1 - q), so that the mean of its factor is 1
    and the variance q / (1 - q).

    Args:
        A: A square matrix, or a stack of them on leading axes.
        rate: The probability q of being dropped, in [0, 1).

    Returns:
        The mean, in the shape and dtype of A.

    Raises:
        TypeError: If the dtype is not inexact, or the rate is not a number.
        ValueError: If A is not square, or the rate lies outside of [0, 1).

    Derivatives:
        Linear in A.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory.random_matrices import expected_dropout_gram
        >>> expected_dropout_gram(jnp.ones((2, 2)), rate=0.5).tolist()
        [[2.0, 1.0], [1.0, 2.0]]

    Source:
        Wager, Wang & Liang 2013 (arXiv 1307.1493), section 2.
    """
    q = real("rate", rate, low=0, high=1)
    if q == 1:
        raise ValueError("rate must be below 1, got 1: nothing would be left to scale up")
    return _with_ridge(_square(A), 1.0, q / (1 - q))


def _square(A: Any) -> jax.Array:
    A = jnp.asarray(A)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2] or A.shape[-1] == 0:
        raise ValueError(f"A must be a square matrix of at least one entry, got shape {A.shape}")
    checks.inexact("A", A.dtype)
    return A


def _with_ridge(A: jax.Array, factor: float, ridge: float) -> jax.Array:
    return factor * A + ridge * jnp.where(jnp.eye(A.shape[-1], dtype=bool), A, 0)
