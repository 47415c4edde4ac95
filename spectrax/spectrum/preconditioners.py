"""Preconditioners for the smallest singular values: operators M that approximate (A^H A)^-1 on the shorter side.

Each function returns a `LinearOperator` for `svds(A, which="smallest", preconditioner=M)`. Any other operator of that
shape serves as well: it proposes directions only, so that a poor one costs products and never makes an answer wrong,
and a positive factor makes no difference. Those returned here are multiplied by the square of about the norm of A, so
that they neither overflow nor vanish.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, explicit_axes, vectors
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.operators.convolution import ConvolutionGeometry
from spectrax.operators.linear_operator import register
from spectrax.operators.precision import convolution_of, in_working_precision
from spectrax.spectrum.convolution.symbol import conv_symbol, grouped
from spectrax.spectrum.methods import is_plain

PyTree = Any
_NONZEROS = 8  # entries of each column of the sketching matrix
_SKETCH_ROWS = 3  # rows of a sketch, in multiples of the shorter side
_SYMBOL_FLOOR = 0.125  # the smallest values of a symbol count as this share of its largest one


@register(children=("factor",), static=("in_struct",))
class TriangularInverse(LinearOperator):
    """M = (R^H R)^-1 by two triangular solves, R upper triangular."""

    def __init__(self, factor: jax.Array, struct: PyTree):
        self.factor, self.in_struct = factor, struct

    @property
    def out_struct(self):
        return self.in_struct

    def products(self):
        factor, struct = self.factor, self.in_struct

        def solve(v):
            column = vectors.as_matrix(jax.tree.map(lambda leaf: leaf[None], v)).T
            column = jax.lax.linalg.triangular_solve(factor, column, left_side=True, transpose_a=True, conjugate_a=True)
            column = jax.lax.linalg.triangular_solve(factor, column, left_side=True)
            return vectors.row(vectors.from_matrix(column.T, struct), 0)

        return solve, solve

    def loop_products(self):
        return self.products()


@register(children=("inverse",), static=("real", "in_struct"))
class CirculantInverse(LinearOperator):
    """A matrix between the channels of each group at every frequency, on samples with the channels last."""

    def __init__(self, inverse: jax.Array, real: bool, struct: jax.ShapeDtypeStruct):
        self.inverse, self.real, self.in_struct = inverse, real, struct

    @property
    def out_struct(self):
        return self.in_struct

    def products(self):
        inverse, struct, real = self.inverse, self.in_struct, self.real
        *sizes, channels = struct.shape
        axes, groups = tuple(range(len(sizes))), inverse.shape[0]

        def product(v):
            waves = jnp.fft.rfftn(v, axes=axes) if real else jnp.fft.fftn(v, axes=axes)
            split = waves.reshape(-1, groups, channels // groups)
            turned = jnp.einsum("gfab,fgb->fga", inverse, split, precision=vectors.HIGHEST).reshape(waves.shape)
            image = jnp.fft.irfftn(turned, s=sizes, axes=axes) if real else jnp.fft.ifftn(turned, axes=axes)
            return image.astype(struct.dtype)

        return product, product


def from_matrix(nearby: Any, /) -> LinearOperator:
    """Return (B^H B)^-1 for a matrix B near A, through R of its QR factorisation.

    For a matrix that has changed a little since it was factorised: weights some training steps ago, or a Jacobian at a
    neighbouring point. For m < n it is (B B^H)^-1.

    Args:
        nearby: The matrix, or anything that `aslinearoperator` takes; an operator is made dense.

    Returns:
        An operator on vectors of the shorter side, self-adjoint and positive definite: the inverse times the square of
        the largest entry of R.

    Cost:
        A QR factorisation without Q, 2 m n^2 - 2 n^3 / 3 flops for m >= n; two triangular solves for each product.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> M = sx.preconditioners.from_matrix(jnp.diag(jnp.array([1.0, 0.5])))
        >>> [round(float(x), 5) for x in M @ jnp.ones(2)]
        [1.0, 4.0]

    Source:
        Eldén & Simoncini 2002 (doi:10.1137/S0895479899358595) on inexact inverse iteration with a fixed factor.
    """
    operator = in_working_precision(aslinearoperator(nearby))
    factor = explicit_axes.replicated(lambda operator: _safe_factor(_tall(operator).to_dense()), operator)
    return TriangularInverse(factor, _tall(operator).in_struct)


def sketched(A: Any, /, key: jax.Array, *, chunk_size: int = 256) -> LinearOperator:
    """Return (S^H S)^-1 for a random sketch S = G A of about three times as many rows as the shorter side has entries.

    The sketch keeps all lengths |A v| within a factor of about 2 with high probability, so that the preconditioned
    operator has a condition number of a few units, whatever that of A. For operators that are too large to be held as a
    matrix, m much larger than n.

    Args:
        A: An operator of shape (m, n), or anything that `aslinearoperator` takes.
        key: A PRNG key.
        chunk_size: How many unit vectors one batched product takes.

    Returns:
        An operator on vectors of the shorter side, self-adjoint and positive definite.

    Raises:
        TypeError: If the key is no PRNG key, or the chunk size no integer.
        ValueError: If the chunk size is less than one.

    Cost:
        min(m, n) products of A, the memory of 3 n^2 entries and of m entries for each vector of a chunk, and a QR
        factorisation of the sketch, 16/3 n^3 flops. Two triangular solves for each product.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> A = jnp.stack([jnp.ones(50), 1e-3 * jnp.arange(50.0)], axis=1)
        >>> M = sx.preconditioners.sketched(A, jax.random.key(0)).to_dense()
        >>> exact = jnp.linalg.inv(A.T @ A)
        >>> bool(0.1 < (M[1, 1] / M[0, 0]) / (exact[1, 1] / exact[0, 0]) < 10)
        True

    Source:
        Rokhlin & Tygert 2008 (doi:10.1073/pnas.0804869105) for a sketch as a preconditioner; Cohen 2016
        (doi:10.1137/1.9781611974331.ch21) for sparse signs: here each of 8 random permutations is cut into pieces of as
        many rows as the sketch has, which are added with random signs, so that nothing is scattered.
    """
    checks.key("key", key)
    checks.positive_integer("chunk_size", chunk_size)
    operator = in_working_precision(aslinearoperator(A))
    factor = explicit_axes.replicated(
        lambda operator, key: _safe_factor(_sketch(_tall(operator), key, chunk_size)), operator, key
    )
    return TriangularInverse(factor, _tall(operator).in_struct)


def circulant(A: Any, /) -> LinearOperator:
    """Return the inverse of (A^H A) with the boundaries of a zero-padded convolution made circular, by FFTs.

    Where the condition number is moderate the circular convolution differs from the zero-padded one by what happens at
    the boundary, and takes the number of products down by a factor of 3 to 6. Small values of the symbol are floored at
    an eighth of the largest one, since the zero-padded operator doesn't share its near-singular plane waves.

    Args:
        A: What `conv_operator` returns for channels-last layouts, with stride 1 and an input that is not dilated; 1, 2
            or 3 spatial axes, any padding, kernel dilation and groups.

    Returns:
        An operator on vectors of the shorter side, self-adjoint and positive definite: the inverse times the square of
        the largest value of the symbol; for m < n it approximates (A A^H)^-1.

    Raises:
        TypeError: If A is no such convolution.
        ValueError: If it has strides or a dilated input.

    Cost:
        A small decomposition for each frequency once; an FFT, a product of c x c matrices at each frequency, and an
        inverse FFT for each product, c the channels of a group.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> A = sx.conv_operator(jnp.ones((1, 1, 1)) * 2.0, (4,), padding="SAME")
        >>> M = sx.preconditioners.circulant(A)
        >>> [round(float(x), 5) for x in (M @ jnp.ones((4, 1))).ravel()]
        [1.0, 1.0, 1.0, 1.0]

    Source:
        T. Chan 1988 (doi:10.1137/0909051) for circulant preconditioners of Toeplitz systems.
    """
    operator = aslinearoperator(A)
    convolution = convolution_of(operator)
    if convolution is None:
        raise TypeError(
            "a circulant preconditioner is for what conv_operator returns with the channels last; got "
            f"{type(operator).__name__}"
        )
    kernel, geometry = convolution
    if not is_plain(geometry):
        raise ValueError(
            "a circulant preconditioner needs stride 1 and an input that is not dilated, got strides "
            f"{geometry.strides} and input_dilation {geometry.input_dilation}"
        )
    m, n = operator.shape
    shape = geometry.input_shape if m >= n else geometry.output_shape
    real = not vectors.is_complex(kernel.dtype)

    def inverse_symbols(kernel: jax.Array) -> jax.Array:
        parts = grouped(kernel, geometry.feature_group_count)
        return _inverse_symbols(parts, shape[:-1], geometry, real, of_input=m >= n)

    inverse = explicit_axes.replicated(inverse_symbols, kernel)
    return CirculantInverse(inverse, real, jax.ShapeDtypeStruct(shape, kernel.dtype))


def _inverse_symbols(kernels, sizes, geometry: ConvolutionGeometry, real: bool, *, of_input: bool) -> jax.Array:
    """(F^H F)^-1, or (F F^H)^-1, for each group at the frequencies in the order of the FFT, with small values floored.

    In units of the largest value of all groups.
    """
    grids = [np.fft.fftfreq(size) for size in sizes]
    if real:
        grids[-1] = np.fft.rfftfreq(sizes[-1])
    frequencies = 2 * np.pi * np.stack(np.meshgrid(*grids, indexing="ij"), -1).reshape(-1, len(sizes))
    frequencies = jnp.asarray(frequencies, vectors.real_dtype(kernels.dtype))
    symbol = jax.vmap(lambda part: conv_symbol(part, frequencies, kernel_dilation=geometry.kernel_dilation))(kernels)
    left, s, right_h = jnp.linalg.svd(symbol, full_matrices=True)
    basis = jnp.swapaxes(right_h, -1, -2).conj() if of_input else left
    s = jnp.pad(s, ((0, 0), (0, 0), (0, basis.shape[-1] - s.shape[-1])))  # more channels on this side than on the other
    largest = jnp.max(s)
    floored = jnp.maximum(s / jnp.where(largest > 0, largest, 1), _SYMBOL_FLOOR)
    scaled = basis / jnp.square(floored).astype(basis.dtype)[..., None, :]
    return jnp.matmul(scaled, jnp.swapaxes(basis, -1, -2).conj(), precision=vectors.HIGHEST)


def _tall(operator: LinearOperator) -> LinearOperator:
    return operator.H if operator.shape[0] < operator.shape[1] else operator


def _safe_factor(matrix: jax.Array) -> jax.Array:
    """R of a QR factorisation, divided by its largest entry, with a diagonal that can be divided by."""
    factor = jnp.linalg.qr(matrix, mode="r")
    peak = jnp.max(jnp.abs(factor))
    factor = factor / jnp.where(peak > 0, peak, 1).astype(factor.dtype)
    diagonal = jnp.diagonal(factor)
    floor = float(jnp.finfo(factor.dtype).eps)
    size = jnp.abs(diagonal)
    phase = jnp.where(size > 0, diagonal / jnp.where(size > 0, size, 1).astype(factor.dtype), 1)
    return factor + jnp.diag(jnp.where(size < floor, phase * floor - diagonal, 0).astype(factor.dtype))


def _sketch(tall: LinearOperator, key: jax.Array, chunk_size: int) -> jax.Array:
    """Return G A, shape (3 n, n), or A itself where that is smaller."""
    m, n = tall.shape
    rows = min(_SKETCH_ROWS * n, m)
    matvec, _ = tall.loop_products()
    pieces = math.ceil(m / rows)
    sign_key, order_key = jax.random.split(key)
    signs = jax.random.rademacher(sign_key, (_NONZEROS, m), vectors.real_dtype(tall.dtype)).astype(tall.dtype)
    orders = jax.vmap(lambda k: jax.random.permutation(k, m))(jax.random.split(order_key, _NONZEROS))

    def line(unit: jax.Array) -> jax.Array:
        image = matvec(vectors.row(vectors.from_matrix(unit[None], tall.in_struct), 0))
        column = vectors.as_matrix(jax.tree.map(lambda leaf: leaf[None].astype(tall.dtype), image))[0]
        if rows == m:
            return column
        mixed = jnp.pad(column[orders] * signs, ((0, 0), (0, pieces * rows - m)))
        return mixed.reshape(_NONZEROS * pieces, rows).sum(0) / math.sqrt(_NONZEROS)

    return jax.lax.map(line, jnp.eye(n, dtype=tall.dtype), batch_size=min(chunk_size, n)).T
