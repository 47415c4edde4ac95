"""A convolution whose norm is asked for, brought into the form that the bounds take."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.operators import conv_operator
from spectrax.operators.convolution import ConvolutionGeometry, ConvolutionOperator, extents
from spectrax.results import Quantity
from spectrax.spectrum.convolution.singular_values import divides
from spectrax.spectrum.convolution.symbol import grouped, polyphase
from spectrax.spectrum.functions import power_of_two, status_of

_CHUNK_ENTRIES = 2**12  # of symbols at one frequency, or of phases of taps, in groups that are worked on together


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A convolution but for its kernel, as the caller gave it."""

    input_shape: tuple[int, ...] | None
    padding: Any
    strides: tuple[int, ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int


@dataclasses.dataclass(frozen=True)
class Options:
    """What single methods of `conv_norm` take."""

    num_frequencies: int | None
    num_steps: int
    num_starts: int
    key: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """A convolution whose norm is asked for.

    Attributes:
        operator: The convolution; None without a size.
        kernels: For each group the kernel of stride 1 whose symbol bounds the norm, shape (groups, spatial..., in,
            out); finite, in working precision and divided by `scale`.
        scale: A power of two.
        finite: Whether the kernel was.
        circular: Whether the padding is circular, the size known, and the symbol on its grid is all there is.
        holds_a_window: Whether the reshaped kernel is a part of the matrix (of a large input, if the size is unknown).
    """

    operator: ConvolutionOperator | None
    kernels: jax.Array
    scale: jax.Array
    finite: jax.Array
    circular: bool
    holds_a_window: bool

    @property
    def sized(self) -> ConvolutionOperator:
        if self.operator is None:
            raise ValueError("this method needs input_shape, the size of the input")
        return self.operator

    @property
    def geometry(self) -> ConvolutionGeometry:
        return self.sized.geometry

    @property
    def taps(self) -> tuple[int, ...]:
        return self.kernels.shape[1:-2]

    @property
    def eps(self) -> float:
        return float(jnp.finfo(self.kernels.dtype).eps)

    @property
    def cube(self) -> float:
        """Operations of a product of the symbol with its adjoint."""
        *_, inputs, outputs = self.kernels.shape
        return 8.0 * inputs * outputs * min(inputs, outputs)

    def quantity(self, value: jax.Array, kind: str, terms: int = 0) -> Quantity:
        """Undo the scale, round upper bounds up by `terms` errors of round-off, and mark what is not finite."""
        if kind == "upper":
            value = value * (1 + 2 * terms * self.eps)
        value = value * self.scale * jnp.where(self.finite, 1, jnp.nan).astype(value.dtype)
        nothing, everything = jnp.zeros_like(value), jnp.full_like(value, jnp.inf)
        return Quantity(
            value,
            value if kind in {"exact", "lower"} else nothing,
            value if kind in {"exact", "upper"} else everything,
            status_of(self.finite & jnp.isfinite(value)),
            kind,
        )

    def largest(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Return the largest of a bound over groups, with bounded memory."""
        groups, *_, inputs, outputs = self.kernels.shape
        together = max(min(_CHUNK_ENTRIES // max(inputs * outputs, math.prod(self.taps)), groups), 1)
        return jnp.max(jax.lax.map(function, self.kernels, batch_size=together))


def problem_of(kernel: jax.Array, what: Geometry) -> Problem:
    """Check a convolution, and bring it into the form that the bounds take.

    Args:
        kernel: The kernel.
        what: The rest.

    Returns:
        The problem.

    Raises:
        ValueError: If something doesn't fit.
    """
    rank = kernel.ndim - 2
    input_shape, steps, spread, spacing = what.input_shape, what.strides, what.input_dilation, what.kernel_dilation
    # without a size one that fits, to check all the other arguments
    fitting = tuple(4 * (max(extent, stride) + _widest(what.padding)) for extent, stride in zip(
        extents(kernel.shape, spacing), steps, strict=False))  # fmt: skip
    operator: Any = conv_operator(
        kernel, fitting if input_shape is None else input_shape, strides=steps, padding=what.padding,
        input_dilation=spread, kernel_dilation=spacing, feature_group_count=what.groups,
    )  # fmt: skip
    geometry = operator.geometry
    circular = geometry.padding == "CIRCULAR"
    one = (1,) * rank
    if steps == one and spread != one and not circular:  # a transposed convolution has the norm of its adjoint
        kernel, geometry, steps = geometry.mirrored(kernel), geometry.adjoint, spread
    elif circular and (input_shape is None or not divides(geometry)):
        steps = one  # windows overlap otherwise where the input closes: what is left is a part of the whole
    kernel = kernel.astype(vectors.working_dtype(kernel.dtype))
    finite = jnp.all(jnp.isfinite(kernel))
    kernel = jnp.where(finite, kernel, 0)
    scale = power_of_two(kernel)
    # a dilation moves the frequencies only
    kernels = grouped(kernel / scale.astype(kernel.dtype), what.groups)
    if steps != one:
        kernels = jax.vmap(lambda part: polyphase(part, steps, spacing))(kernels)
    whole = None if input_shape is None else operator
    by_symbol = circular and whole is not None and divides(geometry)
    return Problem(whole, kernels, scale, finite, by_symbol, _holds_a_window(operator.geometry))


def _widest(padding: Any) -> int:
    if isinstance(padding, str):
        return 0
    entries = (entry for pair in padding if isinstance(pair, Sequence) for entry in pair)
    return max((abs(int(entry)) for entry in entries if isinstance(entry, numbers.Integral)), default=0)


def _holds_a_window(geometry: ConvolutionGeometry) -> bool:
    """Say whether some output sees every tap, or some input is seen by every tap, at different places."""
    one = (1,) * len(geometry.strides)
    if geometry.input_dilation != one:
        if geometry.strides != one:
            return False  # outputs miss the taps that lie between the entries, and inputs those that strides skip
        geometry = geometry.adjoint
    window = extents(geometry.kernel_shape, geometry.kernel_dilation)
    if geometry.padding == "CIRCULAR":
        return all(size >= extent for size, extent in zip(geometry.spatial_shape, window, strict=False))
    for size, image, extent, stride, (low, _) in zip(
        geometry.spatial_shape, geometry.output_shape, window, geometry.strides, geometry.pads, strict=False
    ):
        if not any(0 <= place * stride - low <= size - extent for place in range(image)):
            return False
    return True
