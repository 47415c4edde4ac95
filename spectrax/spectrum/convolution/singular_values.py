"""All singular values of a convolution: exact ones, and estimates that say so."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks
from spectrax.operators import conv_operator
from spectrax.operators.convolution import ConvolutionGeometry, ConvolutionOperator, per_axis
from spectrax.spectrum.convolution.structure import structured_singular_values
from spectrax.spectrum.convolution.symbol import circular_symbol, grouped

METHODS = ("exact", "circular", "quantile")
TRANSFORMS = ("auto", "symbol", "fft", "dft")


@functools.partial(jax.tree_util.register_dataclass, data_fields=("values",), meta_fields=("kind",))
@dataclasses.dataclass(frozen=True)
class ConvolutionSpectrum:
    """The singular values of a convolution, and what they are.

    Attributes:
        values: Shape (min(m, n),), descending.
        kind: "exact" (to round-off) or "estimate".
    """

    values: jax.Array
    kind: str


def conv_singular_values(
    kernel: jax.Array,
    input_shape: Sequence[int],
    /,
    *,
    padding: str | Sequence[tuple[int, int]],
    strides: int | Sequence[int] = 1,
    method: str = "exact",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    transform: str = "auto",
    num_frequencies: int | Sequence[int] | None = None,
    max_bytes: int | None = None,
    full: bool = False,
) -> jax.Array | ConvolutionSpectrum:
    r"""Return all singular values of a convolution, descending.

    A circular convolution acts on each plane wave by a small matrix, its symbol, and its singular values are those of
    the symbol at all frequencies of the grid. The spectrum of a zero-padded convolution is another one: close at the
    top, and at the bottom possibly lower by many orders of magnitude.

    Args:
        kernel: Shape (spatial..., in / groups, out), with 1, 2 or 3 spatial axes.
        input_shape: Spatial sizes of the input, with or without the channels.
        padding: As in `conv_operator`.
        strides: The step for each spatial axis.
        method: "exact", or one of two estimates for zero-padded convolutions, which are right in distribution as the
            input grows, with errors that a smallest value does not survive. "circular": the spectrum of the circular
            convolution. "quantile": the sorted values of the symbol on a grid, at (i + 1/2) / M, read at
            (i + 1) / (min(m, n) + 1) by linear interpolation.
        input_dilation: The spacing of input entries, for transposed convolutions.
        kernel_dilation: The spacing of kernel taps.
        feature_group_count: Number of groups; the spectrum is the union of theirs.
        transform: How the symbol is computed, see Cost: "symbol", "fft", "dft"; "auto" takes "symbol" for up to 32 taps
            and "fft" for more. The values are the same to round-off.
        num_frequencies: For "quantile", the size of the grid, one number or one for each axis; by default that of the
            output. Eight times as many halve the error for smooth kernels and change nothing for random ones.
        max_bytes: How large a dense matrix may be where one is needed, in place of the limits on shapes of `svds`.
        full: Whether to return a `ConvolutionSpectrum`, which says what the values are.

    Returns:
        Shape (min(m, n),), with m and n of the circular convolution for "circular", which has not the outputs of
        "VALID" and "FULL"; real, and of 32 bits for a 16-bit kernel. NaN where the kernel is not finite.

    Raises:
        TypeError: If the kernel has an integer dtype.
        ValueError: If shapes, paddings or the name of the method are not valid, the estimate "circular" is asked for
            where strides don't divide the sizes, an estimate for a dilated input, or a dense matrix is too large.

    Cost:
        Circular, where the strides divide the sizes: one SVD (values only) of a matrix of out x (in * product of
        strides) for each of half the frequencies, which takes nearly all of the time. The symbol before it costs
        frequencies * taps * in * out operations by "symbol", taps log(taps) fewer by "fft", and by "dft" the taps of
        one axis after the other; "symbol" and "dft" are matrix products, which compile faster on TPUs. Otherwise dense
        SVDs, of small matrices where the convolution falls apart: into groups, into the residues of a dilation, into
        windows that don't overlap (patch embeddings, kernels of one tap); else of the whole m x n matrix.

    Derivatives:
        First derivatives, right for distinct values and finite at repeated ones and at zero.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.conv_singular_values(jnp.ones((1, 1, 1)) * 2.0, (3,), padding="CIRCULAR").tolist()
        [2.0, 2.0, 2.0]
        >>> sx.conv_singular_values(jnp.ones((2, 1, 1)), (3,), padding="SAME", method="circular", full=True).kind
        'estimate'

    Source:
        Sedghi, Gupta & Long 2019 (arXiv 1805.10408) for the circular spectrum, Senderovich et al. 2022 (NeurIPS) for
        strides, van Betteray, Rottmann & Kahl 2025 (arXiv 2506.05617) for the symbol without an FFT, Yi 2020 (arXiv
        2006.07117) for the quantiles; which quantiles are read is our own choice.
    """
    checks.choice("method", method, METHODS)
    checks.choice("transform", transform, TRANSFORMS)
    if num_frequencies is not None and method != "quantile":
        raise ValueError(f"num_frequencies is for method='quantile', got method={method!r}")
    rank = jnp.ndim(kernel) - 2
    grid = None if num_frequencies is None else per_axis("num_frequencies", num_frequencies, rank)
    operator = conv_operator(
        kernel, input_shape, strides=strides, padding=padding, input_dilation=input_dilation,
        kernel_dilation=kernel_dilation, feature_group_count=feature_group_count,
    )  # fmt: skip
    assert isinstance(operator, ConvolutionOperator)
    geometry = operator.geometry
    if method != "exact" and any(step != 1 for step in geometry.input_dilation):
        raise ValueError(f"method {method!r} is not defined for a dilated input; take the adjoint, which has strides")
    if method == "circular" and not divides(geometry):
        raise ValueError(f"strides {geometry.strides} must divide the sizes {geometry.spatial_shape} for 'circular'")
    exact = method == "exact" or (geometry.padding == "CIRCULAR" and divides(geometry))
    values = _values(operator, method, transform, grid, max_bytes)
    return ConvolutionSpectrum(values, "exact" if exact else "estimate") if full else values


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _values(
    operator: ConvolutionOperator, method: str, transform: str, grid: tuple[int, ...] | None, max_bytes: int | None
) -> jax.Array:
    circular = operator.geometry.padding == "CIRCULAR" and divides(operator.geometry)
    if method == "quantile" and not circular:
        return _quantiles(operator, grid, transform)
    if circular or method == "circular":
        return circular_singular_values(operator, transform)
    return structured_singular_values(operator, max_bytes)


def divides(geometry: ConvolutionGeometry) -> bool:
    """Say whether strides divide the sizes of the input, so that a circular convolution has a symbol."""
    return all(size % step == 0 for size, step in zip(geometry.spatial_shape, geometry.strides, strict=True))


def circular_singular_values(operator: ConvolutionOperator, transform: str = "auto") -> jax.Array:
    """Return the singular values of the circular convolution with the operator's kernel, sizes and strides.

    Args:
        operator: A convolution whose strides divide the sizes.
        transform: As in `conv_singular_values`.

    Returns:
        Descending.
    """
    return jnp.sort(_on_grid(operator, operator.geometry.spatial_shape, transform))[::-1]


def _on_grid(operator: ConvolutionOperator, sizes: Sequence[int], transform: str) -> jax.Array:
    """Return the singular values of all groups at all frequencies of the grid that belongs to the sizes."""
    geometry = operator.geometry
    kernels = grouped(operator.kernel, geometry.feature_group_count)
    finite = jnp.all(jnp.isfinite(kernels))

    def group(kernel: jax.Array) -> jax.Array:
        symbol, weights = circular_symbol(kernel, sizes, geometry.strides, geometry.kernel_dilation, transform)
        values = jnp.linalg.svd(symbol, full_matrices=False, compute_uv=False)
        return jnp.repeat(values, weights, axis=0, total_repeat_length=int(weights.sum())).reshape(-1)

    return jax.vmap(group)(jnp.where(finite, kernels, 0)).reshape(-1) * jnp.where(finite, 1.0, jnp.nan)


def _quantiles(operator: ConvolutionOperator, grid: tuple[int, ...] | None, transform: str) -> jax.Array:
    geometry = operator.geometry
    grid = grid or geometry.output_shape[:-1]
    sizes = tuple(size * stride for size, stride in zip(grid, geometry.strides, strict=True))
    sorted_values = jnp.sort(_on_grid(operator, sizes, transform))
    samples, count = sorted_values.shape[0], min(operator.shape)
    places = (np.arange(samples) + 0.5) / samples, (np.arange(count) + 1) / (count + 1)
    known, wanted = (jnp.asarray(each, sorted_values.dtype) for each in places)
    return jnp.interp(wanted, known, sorted_values)[::-1]
