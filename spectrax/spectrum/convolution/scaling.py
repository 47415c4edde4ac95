"""Convolution kernels rescaled by channel: to rows of unit length at every frequency, or to a norm of at most one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, vectors
from spectrax.operators.convolution import checked_kernel, per_axis
from spectrax.spectrum.convolution.fourier import circular_grid
from spectrax.spectrum.convolution.gram import gram_kernel, grouped_polyphase
from spectrax.spectrum.functions import power_of_two


def conv_row_normalize(
    kernel: jax.Array,
    input_shape: Sequence[int],
    /,
    *,
    eps: float | None = None,
    strides: int | Sequence[int] = 1,
    feature_group_count: int = 1,
) -> jax.Array:
    r"""Scale every row of the symbol to unit length at every frequency, \|F_o(w)\|_2 = 1 for each output channel o.

    Each output channel alone is then an isometry, but the channels stay correlated: the largest singular value lies in
    [1, sqrt(out / groups)], and may be larger than before; the smallest may be zero. With one output channel all
    singular values are one.

    Args:
        kernel: Shape (spatial..., in / groups, out).
        input_shape: Spatial sizes of the input, at least the kernel's, with or without the channels.
        eps: Rows shorter than this times the channel's longest one are divided by that instead of by their length, so
            that zeros of the symbol stay (near) zero; default: the square root of the dtype's eps.
        strides: The step for each spatial axis, which divides the size.
        feature_group_count: Number of groups.

    Returns:
        A kernel of shape (sizes..., in / groups, out), as large as the input, for circular padding of that size; its
        middle tap lies where the given kernel's does. A channel of zeros stays zero.

    Raises:
        ValueError: If shapes don't fit, the kernel is larger than the input or `eps` is outside [0, 1].
        TypeError: If the kernel has an integer dtype.

    Cost:
        Two FFTs.

    Derivatives:
        Any order; finite at zeros of the symbol, where they are as large as 1 / (eps times the longest row).

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> kernel = sx.conv_row_normalize(jnp.array([1.0, 3.0, 0.5]).reshape(3, 1, 1), (5,))
        >>> kernel.shape, sx.conv_singular_values(kernel, (5,), padding="CIRCULAR").round(4).tolist()
        ((5, 1, 1), [1.0, 1.0, 1.0, 1.0, 1.0])

    Source:
        Liu et al. 2021 (arXiv 2103.00673), ConvNorm, without its learned convolution behind; there is no guard there.
    """
    kernel = checked_kernel(kernel)
    grid = circular_grid(kernel, input_shape, strides, feature_group_count)
    working = vectors.working_dtype(kernel.dtype)
    relative = float(jnp.finfo(working).eps) ** 0.5 if eps is None else eps
    checks.number_in("eps", relative, 0, 1)
    # the scale of a channel does not matter, so it is taken out as a constant: nothing overflows
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(kernel.astype(working)), axis=range(kernel.ndim - 1)))
    symbols = grid.symbols(kernel.astype(working) / jnp.where(peak > 0, peak, 1).astype(working))
    square = jnp.sum(symbols.real**2 + symbols.imag**2, axis=-1, keepdims=True)
    floor = relative**2 * jnp.max(square, axis=grid.axes)
    divisor = jnp.maximum(square, floor)
    scale = jax.lax.rsqrt(jnp.where(divisor > 0, divisor, 1))
    return grid.kernel(symbols * scale.astype(symbols.dtype)).astype(kernel.dtype)


def row_isometry_error(
    kernel: jax.Array,
    input_shape: Sequence[int],
    /,
    *,
    strides: int | Sequence[int] = 1,
    feature_group_count: int = 1,
) -> jax.Array:
    r"""Return how far the rows of a circular convolution's symbol are from unit length, max \| \|F_o(w)\|_2 - 1 \|.

    Args:
        kernel: Shape (spatial..., in / groups, out).
        input_shape: Spatial sizes of the input, at least the kernel's, with or without the channels.
        strides: The step for each spatial axis, which divides the size.
        feature_group_count: Number of groups.

    Returns:
        A real scalar, of 32 bits for a 16-bit kernel; exact.

    Raises:
        ValueError: If shapes don't fit or the kernel is larger than the input.
        TypeError: If the kernel has an integer dtype.

    Cost:
        One FFT.

    Derivatives:
        First derivatives, finite for a symbol of zeros.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> float(sx.row_isometry_error(jnp.ones((1, 1, 2)) * 3.0, (4,)))
        2.0

    Source:
        Liu et al. 2021 (arXiv 2103.00673).
    """
    kernel = checked_kernel(kernel)
    kernel = kernel.astype(vectors.working_dtype(kernel.dtype))
    scale = power_of_two(kernel)  # no square overflows
    grid = circular_grid(kernel, input_shape, strides, feature_group_count)
    symbols = grid.symbols(kernel / scale.astype(kernel.dtype))
    square = jnp.sum(symbols.real**2 + symbols.imag**2, axis=-1)
    lengths = scale * jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return jnp.max(jnp.abs(lengths - 1))


def aol_rescale(kernel: jax.Array, /, *, strides: int | Sequence[int] = 1, feature_group_count: int = 1) -> jax.Array:
    r"""Rescale the input channels of a kernel such that its convolution has a norm of at most one.

    Channel i is multiplied by (sum_{j, shift} \|G[shift, i, j]\|)^(-1/2), where G is the kernel of A^H A. The bound
    holds for zero padding of any kind (SAME, VALID, FULL), for circular padding where the strides divide the sizes, and
    for every input size. It is attained by kernels with orthogonal columns, which are only brought to length one;
    random kernels end well below it (He kernels of 8 x 8 channels and 3 x 3 taps on 12 x 12 at 0.56 to 0.63, ten seeds;
    0.62 to 0.67 with stride 2). With strides each of the interleaved parts of a channel has a scale of its own.
    A dilation moves taps from part to part, so the bound does not hold for strides and dilated kernels together.

    Args:
        kernel: Shape (spatial..., in / groups, out).
        strides: The step for each spatial axis, or one for all.
        feature_group_count: Number of groups.

    Returns:
        A kernel of the same shape and dtype; it does not depend on the kernel's scale. A channel of zeros stays zero.

    Raises:
        ValueError: If shapes, strides and groups don't fit together.
        TypeError: If the kernel has an integer dtype.

    Cost:
        One convolution of the kernel with itself.

    Derivatives:
        First derivatives where no entry of G vanishes, and finite ones everywhere.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> kernel = sx.aol_rescale(jnp.array([3.0, -3.0]).reshape(2, 1, 1))
        >>> kernel.ravel().tolist()
        [0.5, -0.5]

    Source:
        Prach & Lampert 2022 (arXiv 2208.03160), equation 9; there for stride 1.
    """
    kernel = checked_kernel(kernel)
    rank = kernel.ndim - 2
    working = vectors.working_dtype(kernel.dtype)
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(kernel.astype(working))))  # the scale does not matter
    scaled = kernel.astype(working) / jnp.where(peak > 0, peak, 1).astype(working)
    grams = jax.vmap(gram_kernel)(grouped_polyphase(scaled, strides, feature_group_count))
    sums = jnp.sum(jnp.abs(grams), axis=(*range(1, rank + 1), rank + 1))  # (groups, strides * in)
    factors = jnp.where(sums > 0, jax.lax.rsqrt(jnp.where(sums > 0, sums, 1)), 0)
    steps = per_axis("strides", strides, rank)
    factors = factors.reshape(feature_group_count, *steps, -1)
    phases = np.ix_(*(np.arange(size) % step for size, step in zip(kernel.shape, steps, strict=False)))
    factors = jnp.moveaxis(factors[(slice(None), *phases)], 0, -1)  # (spatial..., in, groups)
    factors = jnp.repeat(factors, kernel.shape[-1] // feature_group_count, axis=-1)
    return (scaled * factors.astype(working)).astype(kernel.dtype)
