"""Matrices and circular convolutions with orthonormal columns or rows, by the Cayley transform."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.operators.convolution import checked_kernel
from spectrax.spectrum.convolution.fourier import CircularGrid, circular_grid


def cayley(W: jax.Array, /) -> jax.Array:
    """Return the Cayley transform of a matrix: of the same shape, with orthonormal columns or, if it is wide, rows.

    With U the first n rows of W and V the others, and A = U - U^H + V^H V,

        Q = [(I + A)^-1 (I - A); -2 V (I + A)^-1].

    I + A is never singular, since the Hermitian part of A is V^H V. Of square matrices Q is every unitary one without
    the eigenvalue -1; of real ones, every rotation without it and no reflection.

    Args:
        W: Shape (..., m, n), real or complex; it is not scaled.

    Returns:
        Shape (..., m, n); the transform of W^H, transposed back, where m < n.

    Raises:
        ValueError: If W has fewer than two axes.
        TypeError: If W has an integer dtype.

    Cost:
        One solve with a matrix of the shorter side, for each matrix.

    Derivatives:
        Any order.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> Q = sx.cayley(jnp.arange(6.0).reshape(3, 2) / 5)
        >>> bool(jnp.allclose(Q.T @ Q, jnp.eye(2), atol=1e-6))
        True

    Source:
        Trockman & Kolter 2021 (arXiv 2104.07167), section 4; the block form is theirs for matrices that are not square.
    """
    W = jnp.asarray(W)
    checks.inexact("W", W.dtype)
    if W.ndim < 2:
        raise ValueError(f"W must have at least two axes, got shape {W.shape}")
    m, n = W.shape[-2:]
    if m < n:
        return vectors.adjoint(cayley(vectors.adjoint(W)))
    tall = W.astype(vectors.working_dtype(W.dtype))
    top, bottom = tall[..., :n, :], tall[..., n:, :]
    identity = jnp.eye(n, dtype=tall.dtype)
    square = top - vectors.adjoint(top) + vectors.matmul(vectors.adjoint(bottom), bottom)
    inverse = jnp.linalg.solve(identity + square, jnp.broadcast_to(identity, square.shape))
    return jnp.concatenate([2 * inverse - identity, -2 * vectors.matmul(bottom, inverse)], axis=-2).astype(W.dtype)


def cayley_convolution(
    kernel: jax.Array,
    input_shape: Sequence[int],
    /,
    *,
    scale: float | jax.Array | None = None,
    strides: int | Sequence[int] = 1,
    feature_group_count: int = 1,
) -> jax.Array:
    r"""Return the kernel of a circular convolution whose symbol is the Cayley transform of another at each frequency.

    All its singular values are one: it preserves lengths if it has at least as many outputs as inputs, and its adjoint
    does otherwise. It is global, as large as the input, with most of its weight near the middle.

    Args:
        kernel: Shape (spatial..., in / groups, out); its middle tap, (size - 1) // 2 along each axis, is the one that
            the transform takes for no shift.
        input_shape: Spatial sizes of the input, at least the kernel's, with or without the channels.
        scale: The 2-norm to which the kernel is brought before the transform (which depends on it); default: its own.
        strides: The step for each spatial axis, which divides the size: the transform of the convolution of stride 1
            that does the same on the interleaved parts of the input as channels.
        feature_group_count: Number of groups.

    Returns:
        A kernel of shape (sizes..., in / groups, out), for circular padding of that size. For a kernel of zeros and
        stride 1 it is the identity between the first channels.

    Raises:
        ValueError: If shapes don't fit, or the kernel is larger than the input.
        TypeError: If the kernel has an integer dtype.

    Cost:
        Two FFTs and a solve with a matrix of the shorter side of (out / groups, in / groups * strides), for each
        frequency (half of them for a real kernel).

    Derivatives:
        Any order.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> kernel = sx.cayley_convolution(jax.random.normal(jax.random.key(0), (3, 2, 2)), (5,))
        >>> kernel.shape, sx.conv_singular_values(kernel, (5,), padding="CIRCULAR").round(4).tolist()
        ((5, 2, 2), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])

    Source:
        Trockman & Kolter 2021 (arXiv 2104.07167), section 4; their layer is not orthogonal for odd sizes, this is.
    """
    kernel = checked_kernel(kernel)
    grid = circular_grid(kernel, input_shape, strides, feature_group_count)
    return grid.kernel(_symbols(kernel, grid, scale)).astype(kernel.dtype)


def cayley_convolve(
    samples: jax.Array,
    kernel: jax.Array,
    /,
    *,
    scale: float | jax.Array | None = None,
    strides: int | Sequence[int] = 1,
    feature_group_count: int = 1,
) -> jax.Array:
    """Apply the convolution of `cayley_convolution` in the Fourier basis, without making its kernel.

    Args:
        samples: Shape (batch, sizes..., in).
        kernel: Shape (spatial..., in / groups, out), of the dtype of the samples.
        scale: As in `cayley_convolution`.
        strides: The step for each spatial axis, which divides the size.
        feature_group_count: Number of groups.

    Returns:
        Shape (batch, sizes / strides..., out).

    Raises:
        ValueError: If shapes don't fit.
    """
    kernel = checked_kernel(kernel)
    grid = circular_grid(kernel, samples.shape[1:], strides, feature_group_count)
    working = vectors.working_dtype(kernel.dtype)
    return grid.convolve(_symbols(kernel, grid, scale), samples.astype(working)).astype(samples.dtype)


def _symbols(kernel: jax.Array, grid: CircularGrid, scale: float | jax.Array | None) -> jax.Array:
    kernel = kernel.astype(vectors.working_dtype(kernel.dtype))
    if scale is not None:
        real = vectors.real_dtype(kernel.dtype)
        peak = jax.lax.stop_gradient(jnp.max(jnp.abs(kernel)))  # the scale does not matter
        kernel = kernel / jnp.where(peak > 0, peak, 1).astype(kernel.dtype)
        square = jnp.sum(kernel.real**2 + kernel.imag**2)
        kernel = kernel * (jnp.asarray(scale, real) * jax.lax.rsqrt(jnp.where(peak > 0, square, 1))).astype(
            kernel.dtype
        )
    return cayley(grid.symbols(kernel))
