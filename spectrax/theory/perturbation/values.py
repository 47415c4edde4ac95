"""What the bounds are made of: checked matrices, their singular values, and how far rounding moves each number."""

from typing import Any

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.spectrum.functions import power_of_two


def real_matrix(name: str, value: Any, *, square: bool = False) -> jax.Array:
    """Return a real matrix in the dtype to compute in, float32 for 16 bits.

    Args:
        name: What the matrix is called in the message.
        value: An array of shape (m, n).
        square: Whether m must be n.

    Returns:
        The matrix.

    Raises:
        TypeError: If it is not real and floating-point.
        ValueError: If it is not a matrix of at least one entry, or not square.
    """
    matrix = jnp.asarray(value)
    _real(name, matrix.dtype)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name} must be a matrix of at least one entry, got shape {matrix.shape}")
    if square and matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be square, got shape {matrix.shape}")
    return matrix.astype(vectors.working_dtype(matrix.dtype))


def real_vector(name: str, value: Any, length: int | None, dtype: Any) -> jax.Array:
    """Return a real vector of a given length in a given dtype.

    Args:
        name: What the vector is called in the message.
        value: An array of shape (length,).
        length: How many entries it must have; None for any number but zero.
        dtype: The dtype of the result.

    Returns:
        The vector.

    Raises:
        TypeError: If it is not real and floating-point.
        ValueError: If its shape is another.
    """
    vector = jnp.asarray(value)
    _real(name, vector.dtype)
    if vector.ndim != 1 or vector.size == 0 or (length is not None and vector.size != length):
        wanted = "(k,) with k at least 1" if length is None else f"({length},)"
        raise ValueError(f"{name} must have shape {wanted}, got {vector.shape}")
    return vector.astype(dtype)


def real_scalar(name: str, value: Any, dtype: Any) -> jax.Array:
    """Return a real number as an array in a given dtype; integers are taken too.

    Args:
        name: What the number is called in the message.
        value: A number or an array without axes.
        dtype: The dtype of the result.

    Returns:
        The number.

    Raises:
        TypeError: If it is complex, boolean or no number.
        ValueError: If it has axes.
    """
    if not hasattr(value, "dtype"):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a real number, got {value!r} of type {type(value).__name__}")
        value = float(value)  # integers beyond the range of JAX's are taken too
    scalar = jnp.asarray(value)
    if not (jnp.issubdtype(scalar.dtype, jnp.floating) or jnp.issubdtype(scalar.dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real number, got dtype {scalar.dtype.name}")
    if scalar.ndim:
        raise ValueError(f"{name} must be a scalar, got shape {scalar.shape}")
    return scalar.astype(dtype)


def _real(name: str, dtype: Any) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must have a real floating-point dtype, got {jnp.dtype(dtype).name}")


def product(*matrices: jax.Array) -> jax.Array:
    """Return the product of matrices, in full precision on every device."""
    result = matrices[0]
    for matrix in matrices[1:]:
        result = jnp.matmul(result, matrix, precision=vectors.HIGHEST)
    return result


def common_unit(*arrays: jax.Array) -> jax.Array:
    """Return a power of two near the largest entry of all, so that squares neither overflow nor vanish."""
    entries = jnp.concatenate([array.ravel() for array in arrays])
    info = jnp.finfo(entries.dtype)
    # half of the smallest normal number would be zero, and XLA may move a factor of one half into the unit
    return jnp.maximum(power_of_two(entries), float(info.tiny) / float(info.eps))


def singular_values(matrix: jax.Array) -> jax.Array:
    """Return all singular values, descending; NaN where an entry is not finite."""
    return jnp.where(jnp.all(jnp.isfinite(matrix)), jnp.linalg.svd(matrix, compute_uv=False), jnp.nan)


def norm(matrix: jax.Array) -> jax.Array:
    """Return the spectral norm."""
    return singular_values(matrix)[0]


def triplets(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return u, s and v with the vectors as columns, without derivatives; NaN where an entry is not finite."""
    finite = jnp.all(jnp.isfinite(matrix))
    u, s, vt = jnp.linalg.svd(jax.lax.stop_gradient(matrix), full_matrices=False)
    return jnp.where(finite, u, jnp.nan), jnp.where(finite, s, jnp.nan), jnp.where(finite, vt.T, jnp.nan)


def symmetric_part_eigenvalues(matrix: jax.Array) -> jax.Array:
    """Return the eigenvalues of (A + A^T) / 2, descending; NaN where an entry is not finite."""
    finite = jnp.all(jnp.isfinite(matrix))
    return jnp.where(finite, jnp.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1], jnp.nan)


def rounding(matrix: jax.Array, size: jax.Array) -> jax.Array:
    """Return what rounding may do to a singular value of a matrix made of terms of norm `size`."""
    return 10 * max(matrix.shape) * float(jnp.finfo(matrix.dtype).eps) * jax.lax.stop_gradient(size)


# A mask and what it masks may be computed apart by XLA, each with other rounding, and then disagree within the last
# digit. So a guarded argument is one that the unguarded branch can bear, not one far from it such as 1.
def root(x: jax.Array) -> jax.Array:
    """Return sqrt(max(x, 0)), whose derivative at and below zero is zero."""
    least = float(jnp.finfo(x.dtype).tiny)
    return jnp.where(x <= least, 0, jnp.sqrt(jnp.maximum(x, least)))


def root_rounding(x: jax.Array, error: jax.Array) -> jax.Array:
    """Return how far sqrt(max(x, 0)) moves when x moves by at most `error`."""
    room = jnp.maximum(jnp.maximum(x, error), 0)
    return jnp.where(room > 0, error / jnp.sqrt(jnp.where(room > 0, room, 1)), 0)


def ratio(top: jax.Array, bottom: jax.Array) -> jax.Array:
    """Return top / bottom, inf where the bottom is below eps^2 top: condition numbers of singular matrices."""
    unit = power_of_two(top)  # exact, and keeps squares in the derivative from overflowing
    top, bottom = top / unit, bottom / unit
    least = float(jnp.finfo(top.dtype).eps) ** 2
    return jnp.where(bottom <= least, jnp.inf, top / jnp.maximum(bottom, least))


def ratio_rounding(top: jax.Array, bottom: jax.Array, error: jax.Array) -> jax.Array:
    """Return how far a quotient moves when both terms move by at most `error`; inf where that reaches zero."""
    moved = ratio(top + error, bottom - error)
    return jnp.where(jnp.isfinite(moved), moved - ratio(top, bottom), jnp.inf)


def condition_number(s: jax.Array, error: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return s_1 / s_n, and how far it moves when both move by at most `error`."""
    return ratio(s[0], s[-1]), ratio_rounding(s[0], s[-1], error)


def tail(values: jax.Array, shift: jax.Array, fill: Any) -> jax.Array:
    """Return values[i + shift] for a shift that may be traced, and `fill` where that lies outside."""
    index = jnp.arange(values.size) + shift
    inside = (index >= 0) & (index < values.size)
    return jnp.where(inside, values[jnp.clip(index, 0, values.size - 1)], fill)
