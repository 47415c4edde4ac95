"""Padding that XLA must not do within a convolution."""

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
    steps = tuple((low, high, step - 1) for (low, high), step in zip(pads, dilation, strict=True))
    samples = jax.lax.pad(samples, jnp.zeros((), samples.dtype), ((0, 0, 0), *steps, (0, 0, 0)))
    return samples, ((0, 0),) * len(steps), (1,) * len(steps)
