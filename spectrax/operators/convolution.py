"""Convolutions as linear operators on one sample, with their true padding and strides."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, vectors
from spectrax.operators.linear_operator import LinearOperator, register
from spectrax.programs.padding import padded_before

PADDINGS = ("SAME", "VALID", "FULL", "CIRCULAR")


@dataclasses.dataclass(frozen=True)
class ConvolutionGeometry:
    """Everything about a convolution but its kernel: hashable, hence static.

    Attributes:
        input_shape: One sample, spatial sizes and then channels.
        kernel_shape: Spatial sizes, input channels of one group, output channels.
        strides: One step for each spatial axis.
        padding: The name it was given by, or "EXPLICIT".
        pads: Rows added before and after, for each spatial axis.
        input_dilation: Spacing between entries of the input, for each spatial axis.
        kernel_dilation: Spacing between taps, for each spatial axis.
        feature_group_count: Number of groups.
    """

    input_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str
    pads: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    feature_group_count: int

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """The sizes of the spatial axes of the input."""
        return self.input_shape[:-1]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one output sample."""
        padded = [
            (size - 1) * dilation + 1 + low + high
            for size, dilation, (low, high) in zip(self.spatial_shape, self.input_dilation, self.pads, strict=True)
        ]
        window = extents(self.kernel_shape[:-2], self.kernel_dilation)
        spatial = [
            (size - extent) // stride + 1 for size, extent, stride in zip(padded, window, self.strides, strict=True)
        ]
        return (*spatial, self.kernel_shape[-1])

    def apply(self, samples: jax.Array, kernel: jax.Array) -> jax.Array:
        """Convolve a batch of samples (leading axis), channels last."""
        pads = self.pads
        if self.padding == "CIRCULAR":
            samples, pads = self._wrap(samples), ((0, 0),) * len(self.pads)
        return self._convolve(samples, kernel, self.strides, pads, self.input_dilation)

    def apply_adjoint(self, samples: jax.Array, kernel: jax.Array) -> jax.Array:
        """Apply the adjoint to a batch of output samples: a convolution with the mirrored kernel, in the same layout.

        The transpose that JAX derives has the layout of the kernel exchanged, which runs many times slower on CPU
        inside a compiled loop.
        """
        if self.padding != "CIRCULAR":
            return self.adjoint.apply(samples, self.mirrored(kernel))
        sizes = (size + sum(pair) for size, pair in zip(self.spatial_shape, self.pads, strict=True))
        wrapped = dataclasses.replace(
            self, input_shape=(*sizes, self.input_shape[-1]), padding="VALID", pads=((0, 0),) * len(self.pads)
        )
        image = wrapped.apply_adjoint(samples, kernel)
        struct = jax.ShapeDtypeStruct((samples.shape[0], *self.input_shape), samples.dtype)
        return jax.linear_transpose(self._wrap, struct)(image)[0]

    @property
    def adjoint(self) -> "ConvolutionGeometry":
        """The geometry of the adjoint, a convolution with the `mirrored` kernel; where the padding is not circular."""
        pads = []
        for size, dilation, extent, image, stride, (low, _) in zip(
            self.spatial_shape, self.input_dilation, extents(self.kernel_shape, self.kernel_dilation),
            self.output_shape, self.strides, self.pads, strict=False,
        ):  # fmt: skip
            first = extent - low - 1
            pads.append((first, (size - 1) * dilation + extent - ((image - 1) * stride + 1) - first))
        groups, inputs = self.feature_group_count, self.input_shape[-1]
        kernel_shape = (*self.kernel_shape[:-2], self.kernel_shape[-1] // groups, inputs)
        return ConvolutionGeometry(
            self.output_shape, kernel_shape, self.input_dilation, "EXPLICIT", tuple(pads), self.strides,
            self.kernel_dilation, groups,
        )  # fmt: skip

    def mirrored(self, kernel: jax.Array) -> jax.Array:
        """Return the kernel of the adjoint: conjugate, turned around, inputs and outputs exchanged in each group."""
        groups, rank = self.feature_group_count, len(self.spatial_shape)
        *taps, per_group, out = kernel.shape
        split = kernel.conj().reshape(*taps, per_group, groups, out // groups)
        mirrored = jnp.flip(jnp.moveaxis(split, -1, rank), tuple(range(rank)))  # (taps, out / g, in / g, g)
        return jnp.swapaxes(mirrored, -1, -2).reshape(*taps, out // groups, groups * per_group)

    def _wrap(self, samples: jax.Array) -> jax.Array:
        return jnp.pad(samples, ((0, 0), *self.pads, (0, 0)), mode="wrap")

    def _convolve(self, samples, kernel, strides, pads, input_dilation):
        axes = "DHW"[3 - len(self.spatial_shape) :]
        samples, pads, input_dilation = padded_before(samples, pads, input_dilation)
        return jax.lax.conv_general_dilated(
            samples,
            kernel,
            strides,
            pads,
            lhs_dilation=input_dilation,
            rhs_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            precision=vectors.HIGHEST,
        )


@register(children=("kernel",), static=("geometry", "in_struct", "out_struct"))
class ConvolutionOperator(LinearOperator):
    """A convolution with a fixed geometry; made by `conv_operator`. Its kernel is in the canonical layout."""

    geometry: ConvolutionGeometry

    def __init__(self, kernel: jax.Array, geometry: ConvolutionGeometry):
        self.kernel, self.geometry = kernel, geometry
        self.in_struct = jax.ShapeDtypeStruct(geometry.input_shape, kernel.dtype)
        self.out_struct = jax.ShapeDtypeStruct(geometry.output_shape, kernel.dtype)

    def products(self):
        matmat, rmatmat = self._block_products()
        return (lambda v: matmat(v[None])[0]), (lambda u: rmatmat(u[None])[0])

    def _block_products(self):
        kernel, geometry = self.kernel, self.geometry
        return (lambda rows: geometry.apply(rows, kernel)), (lambda rows: geometry.apply_adjoint(rows, kernel))


def conv_operator(
    kernel: jax.Array,
    input_shape: Sequence[int],
    /,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]],
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    dimension_numbers: Any = None,
) -> LinearOperator:
    """Return a convolution of one sample as a linear operator, with its true padding and strides.

    The convention is that of `jax.lax.conv_general_dilated` (a cross-correlation); the kernel may have 1, 2 or 3
    spatial axes. There is no default for the padding, since the spectrum depends on it: the smallest singular value of
    a zero-padded convolution can be many orders of magnitude below that of the circular one.

    Args:
        kernel: The kernel, laid out as Flax has it, (spatial..., in / groups, out), unless `dimension_numbers` says
            otherwise.
        input_shape: One sample without a batch axis: the spatial sizes and the channels in the layout of the input, or
            the spatial sizes alone.
        strides: The step for each spatial axis, or one for all.
        padding: "SAME", "VALID", "FULL" (all shifts in which kernel and input overlap), "CIRCULAR" (the input repeats;
            the output has the size that "SAME" gives), or a pair (before, after) for each spatial axis.
        input_dilation: The spacing of input entries, for transposed convolutions.
        kernel_dilation: The spacing of kernel taps.
        feature_group_count: The number of groups.
        dimension_numbers: Layouts of input, kernel and output as `jax.lax.conv_dimension_numbers` takes them; vectors
            of the operator have the input's layout without its batch axis. Default: channels last.

    Returns:
        An operator from one input sample to one output sample.

    Raises:
        ValueError: If shapes, strides, paddings or groups don't fit together.
        TypeError: If the kernel has an integer dtype.

    Cost:
        One convolution for each product.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> A = sx.conv_operator(jnp.array([1.0, -1.0]).reshape(2, 1, 1), (4,), padding="VALID")
        >>> A.shape
        (3, 4)
    """
    kernel = checked_kernel(kernel)
    if dimension_numbers is not None:
        return _in_layout(
            kernel, shape_of(input_shape), dimension_numbers, strides=strides, padding=padding,
            input_dilation=input_dilation, kernel_dilation=kernel_dilation, feature_group_count=feature_group_count,
        )  # fmt: skip
    geometry = _geometry(
        kernel.shape, shape_of(input_shape), strides, padding, input_dilation, kernel_dilation, feature_group_count
    )
    return ConvolutionOperator(kernel, geometry)


def _geometry(kernel_shape, input_shape, strides, padding, input_dilation, kernel_dilation, groups):
    rank = len(kernel_shape) - 2
    checks.positive_integer("feature_group_count", groups)
    channels = kernel_shape[-2] * groups
    if kernel_shape[-1] % groups:
        raise ValueError(f"{kernel_shape[-1]} output channels cannot be split into {groups} groups")
    if len(input_shape) == rank:
        input_shape = (*input_shape, channels)
    if len(input_shape) != rank + 1:
        raise ValueError(
            f"input_shape must have {rank} spatial sizes, with or without the channels behind them, for a kernel of "
            f"shape {tuple(kernel_shape)}; got {input_shape}"
        )
    for size in input_shape:
        checks.positive_integer("each size of input_shape", size)
    if input_shape[-1] != channels:
        raise ValueError(
            f"input_shape {input_shape} has {input_shape[-1]} channels, but a kernel of shape {tuple(kernel_shape)} "
            f"with {groups} groups takes {channels}"
        )
    strides = per_axis("strides", strides, rank)
    input_dilation = per_axis("input_dilation", input_dilation, rank)
    kernel_dilation = per_axis("kernel_dilation", kernel_dilation, rank)
    sizes = [(size - 1) * dilation + 1 for size, dilation in zip(input_shape[:-1], input_dilation, strict=True)]
    window = extents(kernel_shape[:-2], kernel_dilation)
    name, pads = _pads(padding, sizes, window, strides)
    if name == "CIRCULAR" and any(dilation != 1 for dilation in input_dilation):
        raise ValueError("padding 'CIRCULAR' is not defined for a dilated input")
    geometry = ConvolutionGeometry(
        input_shape, tuple(kernel_shape), strides, name, pads, input_dilation, kernel_dilation, groups
    )
    if any(size < 1 for size in geometry.output_shape):
        raise ValueError(
            f"a kernel with extent {window} does not fit into an input of spatial size {tuple(sizes)} with padding "
            f"{padding!r}: the output would have shape {geometry.output_shape}"
        )
    return geometry


def checked_kernel(kernel: jax.Array) -> jax.Array:
    """Return a kernel as an array, or raise if it has not 1, 2 or 3 spatial axes and entries."""
    kernel = jnp.asarray(kernel)
    checks.inexact("kernel", kernel.dtype)
    if kernel.ndim not in (3, 4, 5):
        raise ValueError(f"kernel must have 1, 2 or 3 spatial axes and two of channels, got shape {kernel.shape}")
    if 0 in kernel.shape:
        raise ValueError(f"kernel must have at least one entry along every axis, got shape {kernel.shape}")
    return kernel


def shape_of(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an input as a tuple, or raise if it is a number."""
    if isinstance(input_shape, numbers.Number):
        raise ValueError(
            f"input_shape must be a sequence of spatial sizes, with or without the channels, got {input_shape!r}"
        )
    return tuple(input_shape)


def extents(sizes: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Return how many entries a kernel reaches over along each spatial axis."""
    return tuple((size - 1) * step + 1 for size, step in zip(sizes, dilation, strict=False))


def per_axis(name: str, value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """Return one positive number for each spatial axis, from one for all or one for each."""
    values = tuple(value) if isinstance(value, Sequence | np.ndarray) else (value,) * rank
    if len(values) != rank:
        raise ValueError(f"{name} must have one entry for each of {rank} spatial axes, got {value}")
    for entry in values:
        checks.positive_integer(name, entry)
    return tuple(int(entry) for entry in values)


def _pads(padding, sizes, window, strides) -> tuple[str, tuple[tuple[int, int], ...]]:
    if not isinstance(padding, str | Sequence):
        raise ValueError(
            f"padding must be one of {', '.join(PADDINGS)} or one pair (before, after) for each spatial axis, got "
            f"{padding!r}"
        )
    if not isinstance(padding, str):
        pads = tuple(tuple(pair) if isinstance(pair, Sequence) else pair for pair in padding)
        valid = len(pads) == len(sizes) and all(
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(entry, numbers.Integral) for entry in pair)
            for pair in pads
        )
        if not valid:
            raise ValueError(
                f"padding must be one of {', '.join(PADDINGS)} or one pair (before, after) of integers for each of "
                f"{len(sizes)} spatial axes, got {padding!r}"
            )
        return "EXPLICIT", tuple((int(before), int(after)) for before, after in pads)
    name = padding.upper()
    if name not in PADDINGS:
        raise ValueError(
            f"padding must be one of {', '.join(PADDINGS)} or one pair (before, after) for each spatial axis, got "
            f"{padding!r}"
        )
    if name == "VALID":
        return name, ((0, 0),) * len(sizes)
    if name == "FULL":
        return name, tuple((extent - 1, extent - 1) for extent in window)
    if name == "CIRCULAR":  # Flax's pads, whatever the stride; those of "SAME" shrink with it.
        return name, tuple(((extent - 1) // 2, extent // 2) for extent in window)
    pads = []
    for size, extent, stride in zip(sizes, window, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        pads.append((total // 2, total - total // 2))
    return name, tuple(pads)


@register(children=("operator",), static=("to_input", "from_output", "in_struct", "out_struct"))
class _LayoutOperator(LinearOperator):
    """A convolution between vectors in another layout than channels last."""

    def __init__(self, operator: ConvolutionOperator, to_input: tuple[int, ...], from_output: tuple[int, ...]):
        self.operator, self.to_input, self.from_output = operator, to_input, from_output
        shape = operator.in_struct.shape
        self.in_struct = jax.ShapeDtypeStruct(tuple(shape[i] for i in _inverse(to_input)), operator.dtype)
        shape = operator.out_struct.shape
        self.out_struct = jax.ShapeDtypeStruct(tuple(shape[i] for i in from_output), operator.dtype)

    def products(self):
        matvec, rmatvec = self.operator.products()
        return (
            (lambda v: matvec(v.transpose(self.to_input)).transpose(self.from_output)),
            (lambda u: rmatvec(u.transpose(_inverse(self.from_output))).transpose(_inverse(self.to_input))),
        )


def _inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(permutation)), key=lambda i: permutation[i]))


def _in_layout(kernel, input_shape, dimension_numbers, **options) -> LinearOperator:
    """Bring kernel and sample into the canonical layout, and the operator's vectors back into theirs."""
    rank = kernel.ndim - 2
    spatial_only = len(input_shape) == rank
    lhs_shape = (1, *input_shape, 1) if spatial_only else (1, *input_shape)
    if len(lhs_shape) != rank + 2:
        raise ValueError(f"input_shape must have {rank} spatial sizes and the channels, got {input_shape}")
    numbers = jax.lax.conv_dimension_numbers(lhs_shape, kernel.shape, dimension_numbers)
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    if lhs[0] != 0 or out[0] != 0:
        raise ValueError(f"the batch axis must come first in dimension_numbers, got {dimension_numbers}")
    # a spec lists the positions of (batch, feature, spatial...) and, for kernels, of (out, in, spatial...)
    canonical_kernel = kernel.transpose((*rhs[2:], rhs[1], rhs[0]))
    if spatial_only:
        canonical_shape = input_shape
    else:
        canonical_shape = tuple(input_shape[i - 1] for i in (*lhs[2:], lhs[1]))
    geometry = _geometry(canonical_kernel.shape, canonical_shape, *(options[name] for name in (
        "strides", "padding", "input_dilation", "kernel_dilation", "feature_group_count")))  # fmt: skip
    to_input = tuple(i - 1 for i in (*lhs[2:], lhs[1]))
    to_output = tuple(i - 1 for i in (*out[2:], out[1]))
    return _LayoutOperator(ConvolutionOperator(canonical_kernel, geometry), to_input, _inverse(to_output))
