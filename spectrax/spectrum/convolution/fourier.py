"""Circular convolutions in the Fourier basis: from a kernel to its symbols, back, and the product with an input."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.operators import conv_operator
from spectrax.operators.convolution import ConvolutionOperator
from spectrax.spectrum.convolution.symbol import polyphase


@dataclasses.dataclass(frozen=True)
class CircularGrid:
    """The frequencies of a circular convolution's output; of a real kernel only the half that `rfftn` has.

    Symbols count shifts from the tap that lies on the output's own place, (size - 1) // 2 for every size, so that the
    symbols of a small kernel and of one of the input's size say the same.

    Attributes:
        sizes: The spatial sizes of the input.
        taps: The spatial sizes of the kernel, at most `sizes`.
        strides: The step for each axis, which divides the size.
        groups: Number of groups.
        real: Whether the kernel is real.
    """

    sizes: tuple[int, ...]
    taps: tuple[int, ...]
    strides: tuple[int, ...]
    groups: int
    real: bool

    @property
    def coarse(self) -> tuple[int, ...]:
        """The spatial sizes of the output."""
        return tuple(size // stride for size, stride in zip(self.sizes, self.strides, strict=True))

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes of kernels, and the axes of frequencies of symbols."""
        return tuple(range(len(self.sizes)))

    def symbols(self, kernel: jax.Array) -> jax.Array:
        """Return F(w) at each frequency, shape (frequencies..., groups, out / groups, in / groups * strides)."""
        rank = len(self.sizes)
        pads = [(0, size - taps) for size, taps in zip(self.sizes, self.taps, strict=True)]
        kernel = jnp.pad(kernel.astype(vectors.working_dtype(kernel.dtype)), (*pads, (0, 0), (0, 0)))
        kernel = jnp.roll(kernel, [-((taps - 1) // 2) for taps in self.taps], self.axes)
        waves = self._forward(polyphase(kernel, self.strides, (1,) * rank).conj(), self.axes).conj()
        return jnp.moveaxis(waves.reshape(*waves.shape[:-1], self.groups, -1), -3, -1)

    def kernel(self, symbols: jax.Array) -> jax.Array:
        """Return the kernel of the input's size that has these symbols, for circular padding."""
        rank = len(self.sizes)
        waves = jnp.moveaxis(symbols, -1, -3)
        waves = waves.reshape(*waves.shape[:-2], -1)  # (frequencies..., strides * in / groups, out)
        split = self._backward(waves.conj(), self.axes).conj()
        split = split.reshape(*self.coarse, *self.strides, -1, split.shape[-1])
        order = [axis for pair in zip(range(rank), range(rank, 2 * rank), strict=True) for axis in pair]
        kernel = split.transpose((*order, 2 * rank, 2 * rank + 1)).reshape(*self.sizes, *split.shape[-2:])
        return jnp.roll(kernel, [(size - 1) // 2 for size in self.sizes], self.axes)

    def crop(self, kernel: jax.Array) -> jax.Array:
        """Return the taps of a kernel of the input's size that a kernel of the given size has."""
        first = [(size - 1) // 2 - (taps - 1) // 2 for size, taps in zip(self.sizes, self.taps, strict=True)]
        return kernel[tuple(slice(low, low + taps) for low, taps in zip(first, self.taps, strict=True))]

    def convolve(self, symbols: jax.Array, samples: jax.Array) -> jax.Array:
        """Apply the convolution with these symbols to a batch of samples (leading axis), channels last."""
        rank = len(self.sizes)
        split = samples.reshape(
            samples.shape[0], *(size for pair in zip(self.coarse, self.strides, strict=True) for size in pair), -1
        )
        order = (0, *range(1, 2 * rank, 2), 2 * rank + 1, *range(2, 2 * rank + 1, 2))
        split = split.transpose(order)  # (batch, coarse..., in, strides...)
        split = split.reshape(samples.shape[0], *self.coarse, self.groups, -1, math.prod(self.strides))
        split = jnp.swapaxes(split, -1, -2).reshape(*split.shape[:-2], -1)
        axes = tuple(axis + 1 for axis in self.axes)
        waves = jnp.einsum("...goi,b...gi->b...go", symbols, self._forward(split, axes), precision=vectors.HIGHEST)
        images = self._backward(waves, axes)
        return images.reshape(samples.shape[0], *self.coarse, -1)

    def _forward(self, array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return (jnp.fft.rfftn if self.real else jnp.fft.fftn)(array, axes=axes)

    def _backward(self, waves: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        if self.real:
            return jnp.fft.irfftn(waves, s=self.coarse, axes=axes)  # without the sizes, odd ones come back too small
        return jnp.fft.ifftn(waves, axes=axes)


def circular_grid(
    kernel: jax.Array, input_shape: Sequence[int], strides: int | Sequence[int], feature_group_count: int
) -> CircularGrid:
    """Return the grid of a circular convolution, or say why there is none.

    Args:
        kernel: Shape (spatial..., in / groups, out).
        input_shape: Spatial sizes of the input, with or without the channels.
        strides: The step for each spatial axis, or one for all.
        feature_group_count: Number of groups.

    Returns:
        The grid.

    Raises:
        ValueError: If shapes don't fit, strides don't divide the sizes or the kernel is larger than the input.
    """
    operator = conv_operator(
        kernel, input_shape, strides=strides, padding="CIRCULAR", feature_group_count=feature_group_count
    )
    assert isinstance(operator, ConvolutionOperator)
    geometry = operator.geometry
    taps, sizes = geometry.kernel_shape[:-2], geometry.spatial_shape
    if any(tap > size for tap, size in zip(taps, sizes, strict=True)):
        raise ValueError(f"the kernel's spatial sizes {taps} must be at most the input's, {sizes}")
    if any(size % stride for size, stride in zip(sizes, geometry.strides, strict=True)):
        raise ValueError(f"strides {geometry.strides} must divide the input's sizes {sizes}")
    real = not vectors.is_complex(operator.dtype)
    return CircularGrid(sizes, taps, geometry.strides, feature_group_count, real)
