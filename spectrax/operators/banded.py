r"""Zero-padded convolutions as block-banded matrices, and their QR factorisation row by row.

With stride 1 along the first spatial axis, row i of the output depends on rows i - low to i - low + K - 1 of the input,
K the extent of the kernel: the matrix has K block diagonals, and every block is the dense matrix of a convolution along
the remaining axes. The factor R of A = Q R has K block diagonals, too. Block column by block column, one step stacks
what was left of the rows before it on the next row of the output, and takes a QR factorisation of that (Golub & Van
Loan 2013, Matrix Computations, section 4.3; Björck 1996, Numerical Methods for Least Squares Problems, section 6.2).
The cost is that of H factorisations of a few image rows each, H the number of rows, in place of one of all of them.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.operators import householder
from spectrax.operators.convolution import ConvolutionGeometry, ConvolutionOperator
from spectrax.operators.householder import Reflectors


@dataclasses.dataclass(frozen=True)
class Band:
    """The shape of a block-banded matrix: block (i, j) is blocks[j - i + low], where there is one.

    Attributes:
        block_rows: Number of block rows.
        block_columns: Number of block columns.
        height: Rows of a block.
        width: Columns of a block.
        extent: Number of block diagonals K.
        low: Position of the main diagonal among them.
    """

    block_rows: int
    block_columns: int
    height: int
    width: int
    extent: int
    low: int

    @property
    def shape(self) -> tuple[int, int]:
        """The dimensions (m, n)."""
        return self.block_rows * self.height, self.block_columns * self.width

    @property
    def carried(self) -> int:
        """How many rows one step of the factorisation hands on to the next at most."""
        height = most = max(self.low, 0) * self.height
        for _ in range(self.block_columns):
            height = max(min(height + self.height, self.extent * self.width) - self.width, 0)
            most = max(most, height)
        return most

    @property
    def entries(self) -> int:
        """How many numbers Q and R take."""
        stacked = self.carried + self.height
        wide = self.extent * self.width
        return self.block_columns * (stacked * min(stacked, wide) + self.width * wide)

    @property
    def flops(self) -> float:
        """Roughly how many operations the factorisation takes."""
        rows, columns = self.carried + self.height, self.extent * self.width
        reflectors = min(rows, columns)
        return self.block_columns * 2.0 * reflectors * (rows * columns - reflectors * columns / 3)

    @property
    def adjoint(self) -> "Band":
        """The shape of the conjugate transpose."""
        return Band(
            self.block_columns, self.block_rows, self.width, self.height, self.extent, self.extent - 1 - self.low
        )


class BandedFactors(NamedTuple):
    """A = Q R, step by step: one step for each block column.

    Attributes:
        q: The reflectors of each step, with the steps as a leading axis.
        r: The block rows of R from the diagonal on, shape (block_columns, width, extent * width).
    """

    q: Reflectors
    r: jax.Array


def band_of(geometry: ConvolutionGeometry) -> Band | None:
    """Return the shape of a convolution as a block-banded matrix, if it can be factorised as one.

    Args:
        geometry: Of a convolution.

    Returns:
        The band of the operator or, where it is wide, of its adjoint; None if the padding is circular, for strides and
        dilated inputs, and where the matrix may be singular for every kernel: unless a single tap reaches every entry
        of the shorter side and there are enough channels on the longer one, some first columns have too few rows.
    """
    if geometry.padding == "CIRCULAR" or any(step != 1 for step in geometry.strides + geometry.input_dilation):
        return None
    m, n = math.prod(geometry.output_shape), math.prod(geometry.input_shape)
    wide = m < n
    outputs, inputs = geometry.output_shape[-1], geometry.input_shape[-1]
    if (outputs > inputs) if wide else (outputs < inputs):
        return None
    for axis, (size, (low, _)) in enumerate(zip(geometry.spatial_shape, geometry.pads, strict=True)):
        spare = geometry.output_shape[axis] - size
        shifts = [low - tap * geometry.kernel_dilation[axis] for tap in range(geometry.kernel_shape[axis])]
        if not any(min(spare, 0) <= shift <= max(spare, 0) for shift in shifts) or (spare > 0 if wide else spare < 0):
            return None
    rows, *rest = geometry.output_shape
    columns, *rest_in = geometry.input_shape
    extent = (geometry.kernel_shape[0] - 1) * geometry.kernel_dilation[0] + 1
    band = Band(rows, columns, math.prod(rest), math.prod(rest_in), extent, geometry.pads[0][0])
    return band.adjoint if band.shape[0] < band.shape[1] else band


def band_blocks(kernel: jax.Array, geometry: ConvolutionGeometry) -> jax.Array:
    """Return the blocks of `band_of(geometry)`, shape (extent, height, width): those of the adjoint if it is wide."""
    rank = len(geometry.spatial_shape)
    if rank == 1:  # one tap at a time along an axis of one entry
        kernel = kernel[:, None]
        rest = ConvolutionGeometry(
            (1, geometry.input_shape[-1]), kernel.shape[1:], (1,), "EXPLICIT", ((0, 0),), (1,), (1,),
            geometry.feature_group_count,
        )  # fmt: skip
    else:
        rest = ConvolutionGeometry(
            geometry.input_shape[1:], kernel.shape[1:], geometry.strides[1:], "EXPLICIT", geometry.pads[1:],
            geometry.input_dilation[1:], geometry.kernel_dilation[1:], geometry.feature_group_count,
        )  # fmt: skip
    taps = jnp.stack([ConvolutionOperator(tap, rest).to_dense() for tap in kernel])
    step = geometry.kernel_dilation[0]
    blocks = jnp.zeros(((len(taps) - 1) * step + 1, *taps.shape[1:]), taps.dtype).at[::step].set(taps)
    m, n = math.prod(geometry.output_shape), math.prod(geometry.input_shape)
    return jnp.swapaxes(blocks, 1, 2).conj()[::-1] if m < n else blocks


def factorize(band: Band, blocks: jax.Array, *, key: jax.Array, noise: float = 0.0) -> BandedFactors:
    """Return Q and R of a block-banded matrix with at least as many rows as columns.

    Args:
        band: The shape; no leading block columns may have fewer rows than columns.
        blocks: Shape (extent, height, width).
        key: A PRNG key for the noise.
        noise: Standard deviation of what is added to every entry inside the band.

    Returns:
        The factors.

    Cost:
        `band.flops` operations and `band.entries` numbers.
    """
    height, width, extent = band.height, band.width, band.extent
    carried, wide = band.carried, extent * width

    def block_row(i: jax.Array) -> jax.Array:
        """Row i of the blocks, in the window of columns i - low to i - low + extent - 1."""
        column = i - band.low + jnp.arange(extent, dtype=jnp.int32)
        inside = (column >= 0) & (column < band.block_columns) & (i >= 0) & (i < band.block_rows)
        row = blocks
        if noise:
            struct = jax.ShapeDtypeStruct(blocks.shape, blocks.dtype)
            row = row + noise * vectors.normal(jax.random.fold_in(key, i), struct)
        return jnp.where(inside[:, None, None], row, 0).swapaxes(0, 1).reshape(height, wide)

    def eliminate(carry: jax.Array, j: jax.Array) -> tuple[jax.Array, BandedFactors]:
        stack = jnp.concatenate([jnp.pad(carry, ((0, 0), (0, width))), block_row(j + band.low)])
        q, r = householder.factorize(stack)
        rest = r[width:, width:][:carried]
        return jnp.pad(rest, ((0, carried - rest.shape[0]), (0, 0))), BandedFactors(q, r[:width])

    first = jnp.zeros((carried, wide - width), blocks.dtype)
    for i in range(max(band.low, 0)):  # these rows reach beyond the first column
        cut = band.low - i
        row = block_row(jnp.asarray(i, jnp.int32))[:, cut * width :]
        first = first.at[i * height : (i + 1) * height, : row.shape[1]].set(row)
    _, factors = jax.lax.scan(eliminate, first, jnp.arange(band.block_columns, dtype=jnp.int32))
    return factors


def solve(band: Band, factors: BandedFactors, b: jax.Array) -> jax.Array:
    """Return R^-1 b, shape (n, k), by a scan of triangular solves from the last block row on."""
    width = band.width

    def back(known: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        row, right = step
        right = right - jnp.matmul(row[:, width:], known, precision=vectors.HIGHEST)
        x = jax.lax.linalg.triangular_solve(row[:, :width], right, left_side=True)
        return jnp.concatenate([x, known])[: known.shape[0]], x

    known = jnp.zeros(((band.extent - 1) * width, b.shape[1]), b.dtype)
    parts = b.reshape(band.block_columns, width, -1)
    _, x = jax.lax.scan(back, known, (factors.r, parts), reverse=True)
    return x.reshape(b.shape)


def adjoint_solve(band: Band, factors: BandedFactors, b: jax.Array) -> jax.Array:
    """Return R^-H b, shape (n, k), by a scan of triangular solves from the first block column on."""
    width = band.width
    later = (band.extent - 1) * width

    def forward(taken: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        row, right = step
        x = jax.lax.linalg.triangular_solve(
            row[:, :width], right - taken[:width], left_side=True, transpose_a=True, conjugate_a=True
        )
        added = jnp.matmul(row[:, width:].conj().T, x, precision=vectors.HIGHEST)
        return jnp.pad(taken[width:], ((0, width), (0, 0))) + jnp.pad(added, ((0, width), (0, 0))), x

    taken = jnp.zeros((later + width, b.shape[1]), b.dtype)
    parts = b.reshape(band.block_columns, width, -1)
    _, x = jax.lax.scan(forward, taken, (factors.r, parts))
    return x.reshape(b.shape)


def expand(band: Band, factors: BandedFactors, b: jax.Array) -> jax.Array:
    """Return Q b, shape (n, k) to (m, k)."""
    count, height, carried = b.shape[1], band.height, band.carried
    reflectors = factors.q.scales.shape[1]

    def back(later: jax.Array, step: tuple[Reflectors, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, part = step
        coefficients = jnp.concatenate([part, later])[:reflectors]
        rows = householder.apply(q, coefficients)
        return rows[:carried], rows[carried:]

    parts = b.reshape(band.block_columns, band.width, count)
    first, rows = jax.lax.scan(back, jnp.zeros((carried, count), b.dtype), (factors.q, parts), reverse=True)
    before = max(band.low, 0) * height
    joined = jnp.concatenate([first[:before], rows.reshape(-1, count)])
    if band.low < 0:
        joined = joined[-band.low * height :]
    m = band.shape[0]
    return jnp.pad(joined, ((0, max(m - joined.shape[0], 0)), (0, 0)))[:m]
