"""A circular convolution with a skip, whose singular values are known frequency by frequency."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, vectors
from spectrax.operators import conv_operator
from spectrax.spectrum import conv_symbol
from spectrax.spectrum.convolution.symbol import circular_frequencies
from spectrax.theory.perturbation.bounds import Bound, bound
from spectrax.theory.perturbation.shifted import plus_identity
from spectrax.theory.perturbation.values import real_scalar, rounding, singular_values


def circular_skip_singular_values(kernel: Any, spatial_shape: Sequence[int], rho: Any, /) -> jax.Array:
    """Return all singular values of K + rho I, for the linear part K of a circular convolution with a skip.

    They are the union over the frequencies w of the grid of those of F(w) + rho I, with F(w) the kernel's symbol taken
    about the tap that meets the pixel itself, (k - 1) // 2 along an axis of k taps, where the skip acts. (Without a
    skip it does not matter which tap that is, with one it does.) Slopes of an activation differ between pixels and
    break this structure: D K + rho I is not covered, but by the bounds on matrices.

    Args:
        kernel: A real array of shape (spatial..., c, c), stride 1, without groups; 1, 2 or 3 spatial axes.
        spatial_shape: The sizes of the input.
        rho: A real scalar.

    Returns:
        Shape (c * product of sizes,), descending; NaN where the kernel or rho is not finite.

    Raises:
        TypeError: If the kernel is not real and floating-point, or rho is not real.
        ValueError: If the kernel does not map c channels to as many, or shapes don't fit.

    Cost:
        One singular value decomposition (values only) of a c x c matrix for each of half the frequencies.

    Derivatives:
        First derivatives, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> blur = jnp.array([0.25, 0.5, 0.25]).reshape(3, 1, 1)  # its symbol is (1 + cos w) / 2
        >>> perturbation.circular_skip_singular_values(blur, (4,), 1.0).round(4).tolist()
        [2.0, 1.5, 1.5, 1.0]

    Source:
        Sedghi, Gupta & Long 2019 (arXiv 1805.10408) for the convolution; the skip adds rho I to each symbol.
    """
    kernel, spatial_shape = _checked(kernel, spatial_shape)
    return _circular_skip_singular_values(kernel, real_scalar("rho", rho, kernel.dtype), spatial_shape)


def circular_skip_bounds(
    kernel: Any, spatial_shape: Sequence[int], rho: Any, /, *, max_dense_size: int = 512
) -> list[Bound]:
    """Return the equality of the singular values of K + rho I and those of its symbols, F(w) + rho I.

    Args:
        kernel: As in `circular_skip_singular_values`.
        spatial_shape: The sizes of the input.
        rho: A real scalar.
        max_dense_size: Up to which number of rows the matrix is made, for the actual values.

    Returns:
        One row, "circular skip": the values from the symbols as lower and upper bound; `actual` from the dense matrix,
        None where that is too large.

    Raises:
        TypeError: If the kernel is not real and floating-point, or rho is not real.
        ValueError: If the kernel does not map c channels to as many, or shapes don't fit.

    Cost:
        That of `circular_skip_singular_values`, and of a dense decomposition.

    Derivatives:
        First derivatives, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> kernel = jnp.array([0.5, -0.5]).reshape(2, 1, 1)
        >>> [row] = perturbation.circular_skip_bounds(kernel, (5,), 1.0)
        >>> bool(row.holds.all())
        True

    Source:
        As `circular_skip_singular_values`.
    """
    kernel, spatial_shape = _checked(kernel, spatial_shape)
    checks.positive_integer("max_dense_size", max_dense_size)
    values = circular_skip_singular_values(kernel, spatial_shape, rho)
    rho = real_scalar("rho", rho, kernel.dtype)
    actual, name, statement = None, "circular skip", "the s_i(K + rho I) are those of the symbols F(w) + rho I"
    if values.size <= max_dense_size:
        dense = conv_operator(kernel, spatial_shape, padding="CIRCULAR").to_dense()
        actual = singular_values(plus_identity(dense, rho))
    round_off = rounding(jnp.zeros((values.size, 1), values.dtype), jnp.sum(jnp.abs(kernel)) + jnp.abs(rho))
    row = bound(
        name, "singular values", statement, lower=values, upper=values, round_off=2 * round_off,
        actual=values if actual is None else actual,
    )  # fmt: skip
    if actual is None:
        row = Bound(name, row.quantity, statement, row.applies, row.lower, row.upper, None, row.round_off)
    return [row]


def _checked(kernel: Any, spatial_shape: Sequence[int]) -> tuple[jax.Array, tuple[int, ...]]:
    kernel = jnp.asarray(kernel)
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise TypeError(f"kernel must have a real floating-point dtype, got {kernel.dtype.name}")
    if kernel.ndim not in (3, 4, 5) or kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(f"kernel must have shape (spatial..., c, c) with 1 to 3 spatial axes, got {kernel.shape}")
    if kernel.size == 0:
        raise ValueError(f"kernel must have one entry at least, got shape {kernel.shape}")
    if not isinstance(spatial_shape, Sequence):
        raise TypeError(f"spatial_shape must be a sequence of sizes, got {spatial_shape!r}")
    spatial_shape = tuple(spatial_shape)
    if len(spatial_shape) != kernel.ndim - 2:
        raise ValueError(f"spatial_shape must have {kernel.ndim - 2} entries, got {spatial_shape}")
    for size in spatial_shape:
        checks.positive_integer("each entry of spatial_shape", size)
    return kernel.astype(vectors.working_dtype(kernel.dtype)), spatial_shape


@functools.partial(jax.jit, static_argnums=2)
def _circular_skip_singular_values(kernel, rho, spatial_shape) -> jax.Array:
    rank, channels = len(spatial_shape), kernel.shape[-1]
    frequencies, weights = circular_frequencies(spatial_shape, (1,) * rank)
    origin = np.array([(taps - 1) // 2 for taps in kernel.shape[:rank]])
    symbols = conv_symbol(kernel, jnp.asarray(frequencies, kernel.dtype))
    angles = jnp.asarray(-(frequencies @ origin), kernel.dtype)  # the shift that puts the origin at tap zero
    symbols = symbols * jax.lax.complex(jnp.cos(angles), jnp.sin(angles))[:, None, None]
    skip = jax.lax.complex(rho * jnp.eye(channels, dtype=kernel.dtype), jnp.zeros((channels,) * 2, kernel.dtype))
    finite = jnp.all(jnp.isfinite(kernel)) & jnp.isfinite(rho)
    values = jnp.where(finite, jnp.linalg.svd(symbols + skip, compute_uv=False), jnp.nan)
    count = math.prod(spatial_shape)
    every = jnp.repeat(values, weights, axis=0, total_repeat_length=count)
    return jnp.sort(every.reshape(-1))[::-1]
