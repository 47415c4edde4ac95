"""The symbol of a convolution, and the spectra that follow from it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, vectors
from spectrax.operators import conv_operator
from spectrax.operators.convolution import ConvolutionOperator


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
    kernel = jnp.asarray(kernel)
    checks.inexact("kernel", kernel.dtype)
    rank = kernel.ndim - 2
    if rank not in (1, 2, 3):
        raise ValueError(f"kernel must have 1, 2 or 3 spatial axes and two of channels, got shape {kernel.shape}")
    frequencies = jnp.asarray(frequencies)
    if frequencies.ndim < 1 or frequencies.shape[-1] != rank:
        raise ValueError(f"frequencies must have a last axis of {rank} entries, got shape {frequencies.shape}")
    strides, dilation = _per_axis(strides, rank), _per_axis(kernel_dilation, rank)
    shifts = np.stack(np.meshgrid(*(np.arange(size) for size in kernel.shape[:rank]), indexing="ij"), -1)
    shifts = shifts.reshape(-1, rank) * np.array(dilation)
    coarse, phase = shifts // np.array(strides), shifts % np.array(strides)
    branch = np.asarray(np.ravel_multi_index(tuple(phase.T), strides))
    real = vectors.real_dtype(vectors.working_dtype(kernel.dtype))
    angles = jnp.einsum("...d,td->...t", frequencies.astype(real), coarse.astype(real), precision=vectors.HIGHEST)
    waves = jax.lax.complex(jnp.cos(angles), jnp.sin(angles))
    taps = kernel.reshape(-1, *kernel.shape[-2:]).astype(waves.dtype)
    select = np.zeros((len(branch), math.prod(strides)), np.float32)
    select[np.arange(len(branch)), branch] = 1
    symbol = jnp.einsum("...t,tb,tio->...obi", waves, select.astype(waves.dtype), taps, precision=vectors.HIGHEST)
    return symbol.reshape(*symbol.shape[:-2], -1)


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


def conv_singular_values(
    kernel: jax.Array,
    input_shape: Sequence[int],
    /,
    *,
    padding: str | Sequence[tuple[int, int]],
    strides: int | Sequence[int] = 1,
    method: str = "exact",
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
) -> jax.Array:
    """Return all singular values of a convolution, descending.

    Args:
        kernel: Shape (spatial..., in / groups, out).
        input_shape: Spatial sizes of the input, with or without the channels.
        padding: As in `conv_operator`.
        strides: The step for each spatial axis.
        method: "exact": for circular padding, where the strides divide the sizes, from the symbol at every frequency;
            otherwise from the dense matrix. "circular": an estimate, the spectrum of the circular convolution in place
            of the padded one; close at the top, and of no use at the bottom.
        kernel_dilation: The spacing of kernel taps.
        feature_group_count: Number of groups; the spectrum is the union of theirs.

    Returns:
        Shape (min(m, n),); real, and of 32 bits for a 16-bit kernel.

    Raises:
        ValueError: If shapes, paddings or the name of the method are not valid, or the estimate is asked for where
            strides don't divide the sizes.

    Cost:
        Circular: one SVD (values only) of an out x in matrix for each of half the frequencies. Otherwise a dense SVD.

    Derivatives:
        First derivatives, finite at repeated values.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.conv_singular_values(jnp.ones((1, 1, 1)) * 2.0, (3,), padding="CIRCULAR").tolist()
        [2.0, 2.0, 2.0]
    """
    checks.choice("method", method, ("exact", "circular"))
    operator = conv_operator(
        kernel, input_shape, strides=strides, padding=padding, kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )  # fmt: skip
    assert isinstance(operator, ConvolutionOperator)
    geometry = operator.geometry
    divides = all(size % step == 0 for size, step in zip(geometry.spatial_shape, geometry.strides, strict=True))
    if method == "circular" and not divides:
        raise ValueError(f"strides {geometry.strides} must divide the sizes {geometry.spatial_shape} for 'circular'")
    if method == "exact" and not (geometry.padding == "CIRCULAR" and divides):
        dense = operator.to_dense()
        return jnp.linalg.svd(dense.astype(vectors.working_dtype(dense.dtype)), compute_uv=False)
    return circular_singular_values(operator)


def circular_singular_values(operator: ConvolutionOperator) -> jax.Array:
    """Return the singular values of the circular convolution with the operator's kernel, sizes and strides."""
    geometry, groups = operator.geometry, operator.geometry.feature_group_count
    frequencies, weights = circular_frequencies(
        geometry.spatial_shape, geometry.strides, real=not vectors.is_complex(operator.dtype)
    )
    values = []
    for part in jnp.split(operator.kernel, groups, axis=-1):
        symbol = conv_symbol(
            part, jnp.asarray(frequencies), strides=geometry.strides, kernel_dilation=geometry.kernel_dilation
        )
        values.append(jnp.linalg.svd(symbol, compute_uv=False))
    stacked = jnp.stack(values, 1).reshape(len(weights), -1)
    every = jnp.repeat(stacked, weights, axis=0, total_repeat_length=int(weights.sum()))
    return jnp.sort(every.reshape(-1))[::-1]


def _per_axis(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    values: Any = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(values) != rank:
        raise ValueError(f"expected one entry for each of {rank} spatial axes, got {value}")
    for entry in values:
        checks.positive_integer("strides and kernel_dilation", entry)
    return values
