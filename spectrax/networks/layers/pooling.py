"""Pooling and flattening: layers without parameters that make a sample smaller or change its shape."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spectrax import checks
from spectrax.networks.layers import windows
from spectrax.networks.layers.layer import Layer, Shape, Tree, sample_shape

PADDINGS = ("SAME", "VALID")


@dataclasses.dataclass(frozen=True)
class Pool(Layer):
    """The layer behind `average_pool` and `max_pool`."""

    operation: str
    window: int | tuple[int, ...]
    strides: int | tuple[int, ...]
    padding: str | windows.Pairs
    count_include_pad: bool

    kind: ClassVar[str] = "pool"

    def output_shape(self, input_shape: Sequence[int], /) -> Shape:
        """The number of windows along each spatial axis, and the input's channels."""
        shape = sample_shape(input_shape)
        window, strides, padding = self._geometry(shape)
        ones = (1,) * len(window)
        return (*windows.output_sizes("pool", shape[:-1], window, strides, ones, padding), shape[-1])

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Return the average or the maximum of each window."""
        self.output_shape(x.shape)
        checks.inexact("pool: the input", x.dtype)
        if self.operation == "max":
            return self._reduce(x, -math.inf, lax.max), {}
        # One product after the sum: the layer stays a fixed linear map, with no division by a traced number.
        total = self._reduce(x, 0.0, lax.add)
        if self.count_include_pad:
            return total / math.prod(self._geometry(x.shape)[0]), {}
        return total / self._reduce(jnp.ones_like(x), 0.0, lax.add), {}

    def _reduce(self, x: jax.Array, start: float, operation: Any) -> jax.Array:
        window, strides, padding = self._geometry(x.shape)
        pads = windows.pads(x.shape[:-1], window, strides, (1,) * len(window), padding)
        # A NumPy scalar: a JAX array would be traced under jit, and lax would then see neither a maximum nor a sum, the
        # only reductions that it can differentiate.
        return lax.reduce_window(
            x, np.asarray(start, x.dtype)[()], operation, (*window, 1), (*strides, 1), (*pads, (0, 0))
        )

    def _geometry(self, shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...], str | windows.Pairs]:
        axes = len(shape) - 1
        if axes < 1:
            raise ValueError(f"pool: the input must have spatial axes and a channel axis, got shape {shape}")
        padding = windows.normalised(self.padding, PADDINGS, axes)
        return windows.per_axis("window", self.window, axes), windows.per_axis("strides", self.strides, axes), padding


@dataclasses.dataclass(frozen=True)
class GlobalAveragePool(Layer):
    """The layer behind `global_average_pool`."""

    kind: ClassVar[str] = "pool"

    def output_shape(self, input_shape: Sequence[int], /) -> Shape:
        """The channels alone."""
        shape = sample_shape(input_shape)
        if len(shape) < 2:
            raise ValueError(
                f"global_average_pool: the input must have spatial axes and a channel axis, got shape {shape}"
            )
        return shape[-1:]

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Return the mean over all axes but the last."""
        self.output_shape(x.shape)
        return jnp.mean(x, axis=tuple(range(x.ndim - 1))), {}


@dataclasses.dataclass(frozen=True)
class Flatten(Layer):
    """The layer behind `flatten`."""

    kind: ClassVar[str] = "flatten"

    def output_shape(self, input_shape: Sequence[int], /) -> Shape:
        """One axis with all entries."""
        return (math.prod(sample_shape(input_shape)),)

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Return the entries in row-major order."""
        return x.reshape(-1), {}


def average_pool(
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    count_include_pad: bool = True,
) -> Layer:
    """The average over each window, channel by channel.

    A fixed linear map without parameters: `linear_maps` does not list it.

    Args:
        window: The window's size, one for all spatial axes or one each.
        strides: The steps of the window; None takes the window's size, so that windows do not overlap (Flax's
            `avg_pool` takes 1 there).
        padding: `"VALID"`, `"SAME"` (zeros), or a pair of integers for each spatial axis.
        count_include_pad: Whether padded zeros count in the average's denominator, as they do in Flax by default.

    Returns:
        A frozen, hashable layer.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is less than one, or the padding is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.layers.average_pool(2).apply({"params": {}}, jnp.arange(5.0)[:, None])[:, 0]
        Array([0.5, 2.5], dtype=float32)
    """
    return _pool("average", window, strides, padding, count_include_pad)


def max_pool(
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Layer:
    """The maximum over each window, channel by channel.

    Where no window overlaps another, its local linear map selects rows, so every singular value is 1 or 0; overlapping
    windows may select one entry several times.

    Args:
        window: The window's size, one for all spatial axes or one each.
        strides: The steps of the window; None takes the window's size, so that windows do not overlap (Flax's
            `max_pool` takes 1 there).
        padding: `"VALID"`, `"SAME"`, or a pair of integers for each spatial axis; padded entries count as -inf.

    Returns:
        A frozen, hashable layer.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is less than one, or the padding is unknown.

    Derivatives:
        Of first order in both modes. Of several equal maxima in a window one is chosen.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.layers.max_pool(2).apply({"params": {}}, jnp.arange(5.0)[:, None])[:, 0]
        Array([1., 3.], dtype=float32)
    """
    return _pool("max", window, strides, padding, True)


def global_average_pool() -> Layer:
    """The average over all axes but the channels, the last axis.

    Returns:
        A frozen, hashable layer.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.layers.global_average_pool().apply({"params": {}}, jnp.arange(8.0).reshape(2, 2, 2))
        Array([3., 4.], dtype=float32)
    """
    return GlobalAveragePool()


def flatten() -> Layer:
    """All entries of a sample on one axis, in row-major order.

    Returns:
        A frozen, hashable layer.

    Example:
        >>> import spectrax as sx
        >>> sx.layers.flatten().output_shape((7, 7, 16))
        (784,)
    """
    return Flatten()


def _pool(operation: str, window: Any, strides: Any, padding: Any, count_include_pad: bool) -> Pool:
    window = _sizes("window", window)
    strides = window if strides is None else _sizes("strides", strides)
    return Pool(operation, window, strides, windows.normalised(padding, PADDINGS), bool(count_include_pad))


def _sizes(name: str, value: Any) -> int | tuple[int, ...]:
    # How many spatial axes there are is known only with the sample; a single integer is kept until then.
    if isinstance(value, Sequence) and not isinstance(value, str):
        return windows.per_axis(name, value, len(value))
    return windows.per_axis(name, value, 1)[0]
