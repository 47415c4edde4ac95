"""What a zero-padded convolution splits into: smaller maps that share neither inputs nor outputs.

The singular values of a map that is block diagonal, up to the order of its inputs and outputs, are those of its blocks.
Groups are such blocks. With dilated taps and stride 1 the inputs of each residue modulo the dilation are. Along an axis
whose stride is at least the extent of the kernel no two windows overlap, and each position of the output is one: so
patch embeddings and kernels of one tap end in plain matrices, however large the image is.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.operators.convolution import ConvolutionGeometry, ConvolutionOperator, extents
from spectrax.spectrum.convolution.symbol import grouped
from spectrax.spectrum.functions import materializable

_CHUNK_ENTRIES = 2**22  # of dense blocks at a time


@dataclasses.dataclass(frozen=True)
class Part:
    """A kind of block, and how many there are of it.

    Attributes:
        taps: Which taps of the kernel it has, as index arrays along each axis.
        joined: The axes whose taps have become input channels.
        geometry: What is left of the convolution; None if all axes are joined, so that it is a matrix.
        copies: How many blocks are equal.
    """

    taps: tuple[tuple[int, ...], ...]
    joined: tuple[int, ...]
    geometry: ConvolutionGeometry | None
    copies: int

    def kernel(self, kernel: jax.Array) -> jax.Array:
        """Return the block's kernel; with a `geometry` of None the matrix, shape (in, out)."""
        for axis, taps in enumerate(self.taps):
            kernel = jnp.take(kernel, jnp.asarray(taps, jnp.int32), axis=axis)
        rank = kernel.ndim - 2
        kept = [axis for axis in range(rank) if axis not in self.joined]
        kernel = kernel.transpose((*kept, *self.joined, rank, rank + 1))
        return kernel.reshape(*(kernel.shape[: len(kept)]), -1, kernel.shape[-1])

    def shape(self, channels: tuple[int, int]) -> tuple[int, int]:
        """Return the dimensions of a block of a group with so many input and output channels."""
        if self.geometry is None:
            return channels[1], math.prod(len(taps) for taps in self.taps) * channels[0]
        return math.prod(self.geometry.output_shape), math.prod(self.geometry.input_shape)

    def entries(self, channels: tuple[int, int]) -> int:
        """Return the number of entries of a block."""
        return math.prod(self.shape(channels))


def parts(geometry: ConvolutionGeometry) -> list[Part]:
    """Return the kinds of blocks of a convolution of one group with zero padding.

    Args:
        geometry: Not circular, and without input dilation.

    Returns:
        The parts; a single one where there is no such structure. Blocks without inputs or outputs are left out.
    """
    every = tuple(tuple(range(size)) for size in geometry.kernel_shape[:-2])
    found: collections.Counter[Part] = collections.Counter()
    for by_residue, residues in _residues(geometry):
        for joined, copies in _windows(by_residue, every):
            found[joined] += residues * copies
    return [dataclasses.replace(part, copies=copies) for part, copies in found.items()]


def _residues(geometry: ConvolutionGeometry) -> Iterator[tuple[ConvolutionGeometry, int]]:
    """Yield convolutions of inputs that stand a dilation apart, each with how often it comes."""
    axes = []
    for size, image, taps, stride, dilation, (low, high) in zip(
        geometry.spatial_shape, geometry.output_shape, geometry.kernel_shape, geometry.strides,
        geometry.kernel_dilation, geometry.pads, strict=False,
    ):  # fmt: skip
        if dilation == 1 or stride != 1 or taps == 1:
            axes.append([(size, (low, high), dilation)])
            continue
        own = []
        for residue in range(dilation):
            first = (residue + low) % dilation  # the first output that sees inputs of this residue
            inputs, outputs = -(-(size - residue) // dilation), -(-(image - first) // dilation)
            before = (residue + low - first) // dilation
            if inputs > 0 and outputs > 0:
                own.append((inputs, (before, outputs - inputs - before + taps - 1), 1))
        axes.append(own)
    for choice, copies in collections.Counter(itertools.product(*axes)).items():
        sizes, pads, dilation = zip(*choice, strict=True)
        yield dataclasses.replace(
            geometry, input_shape=(*sizes, geometry.input_shape[-1]), padding="EXPLICIT", pads=pads,
            kernel_dilation=dilation,
        ), copies  # fmt: skip


def _windows(geometry: ConvolutionGeometry, every: tuple[tuple[int, ...], ...]) -> Iterator[tuple[Part, int]]:
    """Yield what is left when axes without overlapping windows are taken apart."""
    window = extents(geometry.kernel_shape, geometry.kernel_dilation)
    joined = tuple(
        axis
        for axis, (stride, extent) in enumerate(zip(geometry.strides, window, strict=True))
        if stride >= extent
    )  # fmt: skip
    patterns = []
    for axis in joined:
        inside: collections.Counter[tuple[int, ...]] = collections.Counter()
        for position in range(geometry.output_shape[axis]):
            first = position * geometry.strides[axis] - geometry.pads[axis][0]
            places = (first + geometry.kernel_dilation[axis] * tap for tap in every[axis])
            inside[tuple(t for t, place in enumerate(places) if 0 <= place < geometry.spatial_shape[axis])] += 1
        patterns.append([(taps, copies) for taps, copies in inside.items() if taps])
    kept = [axis for axis in range(len(window)) if axis not in joined]
    for choice in itertools.product(*patterns):
        taps = list(every)
        for axis, (own, _) in zip(joined, choice, strict=True):
            taps[axis] = own
        channels = math.prod(len(own) for own, _ in choice) * geometry.input_shape[-1]
        rest = None
        if kept:
            per_axis = {
                name: tuple(getattr(geometry, name)[axis] for axis in kept)
                for name in ("strides", "pads", "input_dilation", "kernel_dilation")
            }
            rest = dataclasses.replace(
                geometry,
                input_shape=(*(geometry.spatial_shape[axis] for axis in kept), channels),
                kernel_shape=(*(geometry.kernel_shape[axis] for axis in kept), channels, geometry.kernel_shape[-1]),
                padding="EXPLICIT",
                **per_axis,
            )
        yield Part(tuple(taps), joined, rest, 1), math.prod(copies for _, copies in choice)


def blocks_of(operator: ConvolutionOperator) -> tuple[list[Part], jax.Array]:
    """Return the kinds of blocks of a convolution, and the kernels of its groups that they are made from.

    Args:
        operator: Any convolution; a circular one falls apart into groups only.

    Returns:
        The parts of each group, and kernels of shape (groups, spatial..., in / groups, out / groups).
    """
    kernel, geometry = operator.kernel, operator.geometry
    one = (1,) * len(geometry.spatial_shape)
    circular = geometry.padding == "CIRCULAR"
    if not circular and geometry.input_dilation != one and geometry.strides == one:
        kernel, geometry = geometry.mirrored(kernel), geometry.adjoint
    kernels = grouped(kernel, geometry.feature_group_count)
    single = dataclasses.replace(
        geometry, kernel_shape=kernels.shape[1:], feature_group_count=1,
        input_shape=(*geometry.spatial_shape, kernels.shape[-2]),
    )  # fmt: skip
    if circular or geometry.input_dilation != one:
        every = tuple(tuple(range(size)) for size in single.kernel_shape[:-2])
        return [Part(every, (), single, 1)], kernels
    return parts(single), kernels


def structured_singular_values(operator: ConvolutionOperator, max_bytes: int | None) -> jax.Array:
    """Return all singular values of a convolution, each block decomposed once as a dense matrix.

    Args:
        operator: The convolution.
        max_bytes: How large the matrix of one block may be, or None for the limits on shapes.

    Returns:
        Shape (min(m, n),), descending.

    Raises:
        ValueError: If a block is too large.
    """
    blocks, kernels = blocks_of(operator)
    count, dtype = min(operator.shape), operator.dtype
    finite = jnp.all(jnp.isfinite(kernels))
    kernels = jnp.where(finite, kernels, 0)
    values = [jnp.zeros(count, vectors.real_dtype(vectors.working_dtype(dtype)))]
    for part in blocks:
        if part.geometry is not None:
            struct = jax.ShapeDtypeStruct(part.geometry.kernel_shape, dtype)
            materializable(jax.eval_shape(lambda k, g=part.geometry: ConvolutionOperator(k, g), struct), max_bytes)
        values.append(jnp.tile(part_values(part, kernels).reshape(-1), part.copies))
    found = jnp.sort(jnp.concatenate(values))[::-1][:count]
    return found * jnp.where(finite, 1, jnp.nan).astype(found.dtype)


def part_values(part: Part, kernels: jax.Array) -> jax.Array:
    """Return the singular values of one kind of block for each group, shape (groups, ...), with bounded memory."""

    def values(kernel: jax.Array) -> jax.Array:
        matrix = part.kernel(kernel)
        if part.geometry is not None:
            matrix = ConvolutionOperator(matrix, part.geometry).to_dense()
        matrix = matrix.astype(vectors.working_dtype(matrix.dtype))
        return jnp.linalg.svd(matrix, full_matrices=False, compute_uv=False)

    entries = part.entries((kernels.shape[-2], kernels.shape[-1]))
    return jax.lax.map(values, kernels, batch_size=max(min(_CHUNK_ENTRIES // entries, kernels.shape[0]), 1))
