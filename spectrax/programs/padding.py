"""Padding that XLA must not do within a convolution."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def padded_before(
    samples: jax.Array, pads: Sequence[tuple[int, int]], dilation: Sequence[int]
) -> tuple[jax.Array, Sequence[tuple[int, int]], Sequence[int]]:
    """Dilate, pad and crop samples where XLA on CPU must not do so within a convolution.

    It is wrong for some negative pads (openxla/xla issue 48713). In 64 bits, that of jaxlib 0.10 reads in front of its
    input where that is padded, which ends the process if nothing is mapped there.

    Args:
        samples: Shape (batch, spatial..., channels).
        pads: Rows before and after, for each spatial axis.
        dilation: The spacing of entries, for each spatial axis.

    Returns:
        Samples, pads and dilation that are left for the convolution.
    """
    amounts = [amount for pair in pads for amount in pair]
    wide = samples.dtype in (jnp.float64, jnp.complex128) and (any(amounts) or any(step != 1 for step in dilation))
    if not wide and min(amounts, default=0) >= 0:
        return samples, pads, dilation
    return _padded(samples, pads, dilation), ((0, 0),) * len(pads), (1,) * len(pads)


def padded_apart(
    samples: jax.Array, pads: Sequence[tuple[int, int]], dilation: Sequence[int], taps: Sequence[int]
) -> tuple[jax.Array, Sequence[tuple[int, int]], Sequence[int]]:
    """Dilate and pad small samples where XLA would rather exchange the two operands of the convolution.

    It does so where the kernel has more taps than the samples have pixels (`SwapConvOperands`), since a GPU likes the
    smaller kernel; on CPU what comes out is compiled to naive code, 7 to 30 times slower: 5 ms instead of 0.7 for 256
    samples of 2 x 2 pixels and 64 channels, in a loop and elsewhere.

    Args:
        samples: Shape (batch, spatial..., channels).
        pads: Rows before and after, for each spatial axis.
        dilation: The spacing of entries, for each spatial axis.
        taps: The spatial shape of the kernel.

    Returns:
        Samples, pads and dilation that are left for the convolution.
    """
    if not 1 < math.prod(samples.shape[1:-1]) < math.prod(taps):
        return samples, pads, dilation
    return _padded(samples, pads, dilation), ((0, 0),) * len(pads), (1,) * len(pads)


def _padded(samples: jax.Array, pads: Sequence[tuple[int, int]], dilation: Sequence[int]) -> jax.Array:
    steps = tuple((low, high, step - 1) for (low, high), step in zip(pads, dilation, strict=True))
    padded = jax.lax.pad(samples, jnp.zeros((), samples.dtype), ((0, 0, 0), *steps, (0, 0, 0)))
    return jax.lax.optimization_barrier(padded)  # without it XLA takes the padding into the convolution again
