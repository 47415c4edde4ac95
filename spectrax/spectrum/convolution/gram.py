"""The convolution that a convolution and its adjoint make together, as a kernel."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.operators.convolution import checked_kernel, per_axis
from spectrax.spectrum.convolution.symbol import polyphase


def grouped_polyphase(kernel: jax.Array, strides: int | Sequence[int], feature_group_count: int) -> jax.Array:
    """Return the kernels of stride 1 that each group is on the interleaved parts of its input as channels.

    Args:
        kernel: Shape (spatial..., in / groups, out).
        strides: The step for each spatial axis, or one for all.
        feature_group_count: Number of groups.

    Returns:
        Shape (groups, ceil(sizes / strides)..., product of strides * in / groups, out / groups), of at least 32 bits.

    Raises:
        ValueError: If shapes, strides and groups don't fit together.
        TypeError: If the kernel has an integer dtype.
    """
    kernel = checked_kernel(kernel)
    checks.positive_integer("feature_group_count", feature_group_count)
    if kernel.shape[-1] % feature_group_count:
        raise ValueError(f"{kernel.shape[-1]} output channels cannot be split into {feature_group_count} groups")
    rank = kernel.ndim - 2
    coarse = polyphase(
        kernel.astype(vectors.working_dtype(kernel.dtype)), per_axis("strides", strides, rank), (1,) * rank
    )
    return jnp.moveaxis(coarse.reshape(*coarse.shape[:-1], feature_group_count, -1), -2, 0)


def gram_kernel(kernel: jax.Array) -> jax.Array:
    """Return the kernel of A^H A for the convolution A with a kernel, of stride 1 and without groups.

    Args:
        kernel: Shape (spatial..., in, out).

    Returns:
        Shape (2 spatial - 1..., in, in), its middle the tap of shift zero. That of A A^H, but for a transposition and
        a mirroring, is the Gram kernel of the kernel with its channels exchanged.
    """
    axes = "DHW"[3 - (kernel.ndim - 2) :]
    # padded beforehand, see `programs.padding`
    pads = [(size - 1, size - 1) for size in kernel.shape[:-2]]
    return jax.lax.conv_general_dilated(
        jnp.pad(kernel, (*pads, (0, 0), (0, 0))),
        kernel.conj(),
        (1,) * len(pads),
        "VALID",
        dimension_numbers=(f"{axes}NC", f"{axes}OI", f"{axes}NC"),
        precision=vectors.HIGHEST,
    )
