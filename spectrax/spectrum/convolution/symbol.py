"""The symbol of a convolution: the matrices by which it acts on plane waves."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import vectors
from spectrax.operators.convolution import checked_kernel, extents, per_axis

_TAPS_DIRECTLY = 32  # kernels of up to so many taps go into the symbol tap by tap


def conv_symbol(
    kernel: jax.Array,
    frequencies: jax.Array,
    /,
    *,
    strides: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
) -> jax.Array:
    r"""Return the symbol of a convolution: at each frequency the matrix by which it acts on a plane wave.

    F(w)[o, i] = sum_p K[p, i, o] exp(j p.w), for the cross-correlation that neural networks call a convolution. With
    strides s the polyphase form is returned, of shape (out, s^d in), at frequencies of the coarse grid.

    Args:
        kernel: Shape (spatial..., in, out), without groups.
        frequencies: Shape (..., d), in radians for each spatial axis.
        strides: The step for each spatial axis, or one for all.
        kernel_dilation: The spacing of kernel taps.

    Returns:
        Complex array of shape (..., out, in * product of strides).

    Raises:
        ValueError: If the shapes don't fit.

    Cost:
        One product of the frequencies' phases with the taps.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> difference = jnp.array([1.0, -1.0]).reshape(2, 1, 1)
        >>> [round(float(abs(value)), 5) for value in sx.conv_symbol(difference, jnp.array([[0.0], [jnp.pi]])).ravel()]
        [0.0, 2.0]

    Source:
        Sedghi, Gupta & Long 2019 (arXiv 1805.10408) for stride 1, Senderovich et al. 2022 for strides.
    """
    kernel = checked_kernel(kernel)
    rank = kernel.ndim - 2
    frequencies = jnp.asarray(frequencies)
    if frequencies.ndim < 1 or frequencies.shape[-1] != rank:
        raise ValueError(f"frequencies must have a last axis of {rank} entries, got shape {frequencies.shape}")
    strides, dilation = per_axis("strides", strides, rank), per_axis("kernel_dilation", kernel_dilation, rank)
    if strides != (1,) * rank:
        kernel, dilation = polyphase(kernel, strides, dilation), (1,) * rank
    *taps, channels, out = kernel.shape
    shifts = np.stack(np.meshgrid(*(np.arange(size) for size in taps), indexing="ij"), -1).reshape(-1, rank)
    real = vectors.real_dtype(vectors.working_dtype(kernel.dtype))
    positions = (shifts * np.array(dilation)).astype(real)
    angles = jnp.einsum("...d,td->...t", frequencies.astype(real), positions, precision=vectors.HIGHEST)
    waves = jax.lax.complex(jnp.cos(angles), jnp.sin(angles))
    rows = jnp.swapaxes(kernel, -1, -2).reshape(len(shifts), out * channels).astype(waves.dtype)
    symbol = jnp.matmul(waves, rows, precision=vectors.HIGHEST)
    return symbol.reshape(*symbol.shape[:-1], out, channels)


def grouped(kernel: jax.Array, groups: int) -> jax.Array:
    """Return the kernels of all groups, (spatial..., in / g, out) to (g, spatial..., in / g, out / g)."""
    return jnp.moveaxis(kernel.reshape(*kernel.shape[:-1], groups, -1), -2, 0)


def polyphase(kernel: jax.Array, strides: Sequence[int], dilation: Sequence[int]) -> jax.Array:
    """Return the kernel of stride 1 that does the same on the s^d interleaved parts of the input as channels.

    Args:
        kernel: Shape (spatial..., in, out).
        strides: The step for each axis.
        dilation: The spacing of taps for each axis.

    Returns:
        Shape (ceil(extents / strides)..., product of strides * in, out), the channels of a part next to each other.
    """
    rank = kernel.ndim - 2
    reach = extents(kernel.shape, dilation)
    coarse = [-(-extent // stride) for extent, stride in zip(reach, strides, strict=True)]
    pads = [
        (0, count * stride - extent, step - 1)
        for count, stride, extent, step in zip(coarse, strides, reach, dilation, strict=True)
    ]
    kernel = jax.lax.pad(kernel, jnp.zeros((), kernel.dtype), (*pads, (0, 0, 0), (0, 0, 0)))
    split = kernel.reshape(*(size for pair in zip(coarse, strides, strict=True) for size in pair), *kernel.shape[-2:])
    order = (*range(0, 2 * rank, 2), *range(1, 2 * rank, 2), 2 * rank, 2 * rank + 1)
    return split.transpose(order).reshape(*coarse, -1, kernel.shape[-1])


def circular_frequencies(
    spatial_shape: Sequence[int], strides: Sequence[int], *, real: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the frequencies of a circular convolution's output grid and how often each counts.

    A real kernel has conjugate symbols at w and -w, so only one of each pair is listed, with weight two.

    Args:
        spatial_shape: The sizes of the input, which the strides divide.
        strides: The step for each axis.
        real: Whether the kernel is real.

    Returns:
        Frequencies of shape (count, d) in radians, and integer weights of shape (count,).
    """
    sizes = [-(-size // stride) for size, stride in zip(spatial_shape, strides, strict=True)]
    index = np.stack(np.meshgrid(*(np.arange(size) for size in sizes), indexing="ij"), -1).reshape(-1, len(sizes))
    mirrored = np.ravel_multi_index(tuple((-index % np.array(sizes)).T), sizes)
    own = np.arange(len(index))
    if not real:
        mirrored = own
    keep = own <= mirrored
    weights = np.where(own == mirrored, 1, 2)[keep]
    return 2 * np.pi * index[keep] / np.array(sizes), weights


def circular_symbol(
    kernel: jax.Array, spatial_shape: Sequence[int], strides: Sequence[int], dilation: Sequence[int], transform: str
) -> tuple[jax.Array, np.ndarray]:
    """Return the symbol of a circular convolution at all frequencies that count, and how often each does.

    Args:
        kernel: Shape (spatial..., in, out), without groups.
        spatial_shape: The sizes of the input, which the strides divide.
        strides: The step for each axis.
        dilation: The spacing of taps for each axis.
        transform: "symbol" (every tap's phase at every frequency), "fft", "dft" (a product with a matrix of phases for
            each axis) or "auto": "symbol" for small kernels, "fft" otherwise.

    Returns:
        The symbol of shape (count, out, in * product of strides), and integer weights of shape (count,); the order of
        the frequencies is that of `circular_frequencies`.
    """
    real = not vectors.is_complex(kernel.dtype)
    frequencies, weights = circular_frequencies(spatial_shape, strides, real=real)
    if transform == "auto":
        transform = "symbol" if math.prod(kernel.shape[:-2]) <= _TAPS_DIRECTLY else "fft"
    if transform == "symbol":
        return conv_symbol(kernel, jnp.asarray(frequencies), strides=strides, kernel_dilation=dilation), weights
    sizes = tuple(-(-size // stride) for size, stride in zip(spatial_shape, strides, strict=True))
    coarse = polyphase(kernel, strides, dilation).astype(vectors.working_dtype(kernel.dtype))
    coarse = wrapped(coarse, sizes)
    axes = tuple(range(len(sizes)))
    half = sizes[0] // 2 + 1 if real else sizes[0]  # the frequencies that are kept lie there
    if transform == "fft":  # with the sign of the symbol
        fft = jnp.fft.rfftn if real else jnp.fft.fftn
        waves = fft(coarse.conj(), s=sizes[::-1], axes=axes[::-1]).conj()
    else:
        waves = coarse.astype(vectors.complex_dtype(coarse.dtype))
        for axis, size in enumerate(sizes):
            turns = np.outer(np.arange(size if axis else half), np.arange(coarse.shape[axis])) % size
            phases = jnp.asarray(np.exp(2j * np.pi / size * turns)).astype(waves.dtype)
            product = jnp.tensordot(phases, waves, ((1,), (axis,)), precision=vectors.HIGHEST)
            waves = jnp.moveaxis(product, 0, axis)
    index = np.rint(frequencies * np.array(sizes) / (2 * np.pi)).astype(int)
    return jnp.swapaxes(waves[tuple(index.T)], -1, -2), weights


def wrapped(kernel: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Add up the taps that stand a whole input apart, shape (spatial..., in, out)."""
    for axis, size in enumerate(sizes):
        if kernel.shape[axis] > size:
            turns = -(-kernel.shape[axis] // size)
            pads = [(0, turns * size - kernel.shape[axis]) if i == axis else (0, 0) for i in range(kernel.ndim)]
            shape = (*kernel.shape[:axis], turns, size, *kernel.shape[axis + 1 :])
            kernel = jnp.pad(kernel, pads).reshape(shape).sum(axis)
    return kernel
