"""Every value and bound that `conv_norm` knows, by name."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.operators.convolution import ConvolutionGeometry, ConvolutionOperator
from spectrax.results import Quantity
from spectrax.spectrum.convolution import size_free
from spectrax.spectrum.convolution.gram_iteration import circular_gram_bound, padded_gram_bound
from spectrax.spectrum.convolution.grid import cosine_factor, grid_bound, grid_size
from spectrax.spectrum.convolution.norm_problem import Options, Problem
from spectrax.spectrum.convolution.singular_values import divides
from spectrax.spectrum.convolution.structure import blocks_of, part_values
from spectrax.spectrum.convolution.symbol import circular_symbol, conv_symbol, polyphase, wrapped
from spectrax.spectrum.functions import status_of
from spectrax.spectrum.methods import DENSE_OPERATOR_SIDE, can_be_dense
from spectrax.spectrum.quantities import spectral_norm


def is_small(operator: ConvolutionOperator) -> bool:
    """Say whether the blocks of a convolution are decomposed without being asked."""
    return all(can_be_dense(shape) and min(shape) <= DENSE_OPERATOR_SIDE for shape in _block_shapes(operator))


def structured_flops(operator: ConvolutionOperator) -> float:
    """Return about how many operations the decompositions of the blocks of a convolution take; inf above the limits."""
    shapes = _block_shapes(operator)
    if not all(can_be_dense(shape) for shape in shapes):
        return math.inf
    return 4.0 * operator.geometry.feature_group_count * sum(m * n * min(m, n) for m, n in shapes)


def _block_shapes(operator: ConvolutionOperator) -> list[tuple[int, int]]:
    blocks, kernels = blocks_of(operator)
    return [part.shape((kernels.shape[-2], kernels.shape[-1])) for part in blocks]


def structured_norm(problem: Problem) -> Quantity:
    """Return the norm of a convolution that is not circular, by the decompositions of its blocks."""
    blocks, kernels = blocks_of(problem.sized)
    kernels = jnp.where(problem.finite, kernels, 0).astype(problem.kernels.dtype)
    kernels = kernels / problem.scale.astype(kernels.dtype)
    norms = [jnp.max(part_values(part, kernels)) for part in blocks]
    if not norms:  # all windows lie in the padding
        norms = [jnp.zeros((), vectors.real_dtype(kernels.dtype))]
    return problem.quantity(jnp.max(jnp.stack(norms)), "exact")


def exact_norm(problem: Problem, options: Options) -> Quantity:
    """Return the norm itself: by the symbol, by small blocks or by iteration."""
    if problem.circular:
        return problem.quantity(_circular_norm(problem), "exact")
    operator = problem.sized
    if is_small(operator) or (options.key is None and structured_flops(operator) < math.inf):
        return structured_norm(problem)
    if options.key is None:
        largest = max(_block_shapes(operator), key=min)
        raise ValueError(
            f"method 'exact' needs key= (for instance jax.random.key(0)) for this convolution: its matrix of shape "
            f"{operator.shape} has blocks of up to {largest}, too large to be decomposed, so that it iterates"
        )
    kernel = jnp.where(problem.finite, problem.sized.kernel, 0)
    safe = ConvolutionOperator(kernel, problem.geometry)
    found = spectral_norm(safe, full=True, key=options.key)
    assert isinstance(found, Quantity)
    lost = jnp.where(problem.finite, 1, jnp.nan).astype(found.value.dtype)
    status = jnp.where(problem.finite, found.status, status_of(problem.finite))
    return Quantity(found.value * lost, found.lower * lost, found.upper * lost, status, found.kind)


def _circular(problem: Problem, options: Options) -> Quantity:
    del options
    if any(step != 1 for step in problem.geometry.input_dilation):
        raise ValueError("method 'circular' is not defined for a dilated input")
    if not divides(problem.geometry):
        raise ValueError(
            f"strides {problem.geometry.strides} must divide the sizes {problem.geometry.spatial_shape} for 'circular'"
        )
    return problem.quantity(_circular_norm(problem), "exact" if problem.circular else "estimate")


def _circular_norm(problem: Problem) -> jax.Array:
    return problem.largest(lambda kernel: _largest_norm(_on_own_grid(problem, kernel)))


def _on_own_grid(problem: Problem, kernel: jax.Array) -> jax.Array:
    """Return the symbol of one group at the frequencies of the output."""
    geometry = problem.geometry
    one = (1,) * len(geometry.strides)
    spacing = geometry.kernel_dilation if geometry.strides == one else one  # polyphase kernels have it inside
    return circular_symbol(kernel, coarse_sizes(geometry), one, spacing, "auto")[0]


def coarse_sizes(geometry: ConvolutionGeometry) -> tuple[int, ...]:
    """Return the sizes of the output of a circular convolution whose strides divide the sizes."""
    return tuple(size // stride for size, stride in zip(geometry.spatial_shape, geometry.strides, strict=True))


@jax.custom_jvp
def _largest_norm(symbol: jax.Array) -> jax.Array:
    """Return the largest spectral norm in a stack of matrices."""
    return jnp.max(jnp.linalg.svd(symbol, full_matrices=False, compute_uv=False))


@_largest_norm.defjvp
def _largest_norm_jvp(primals, tangents):
    # vectors where they are needed, at one frequency
    (symbol,), (tangent,) = primals, tangents
    flat = symbol.reshape(-1, *symbol.shape[-2:])
    norms = jnp.linalg.svd(flat, full_matrices=False, compute_uv=False)[:, 0]
    index = jnp.argmax(norms)
    _, change = jax.jvp(size_free.norm, (flat[index],), (tangent.reshape(flat.shape)[index],))
    return norms[index], change


def _grid(problem: Problem, options: Options) -> Quantity:
    return grid_norm(problem, options.num_frequencies or default_frequencies(problem.taps))


def default_frequencies(taps: tuple[int, ...]) -> int:
    """Return how many frequencies along each axis keep the bound within some per cent before it is refined."""
    return 8 * (max(taps) - 1) or 1


def grid_norm(problem: Problem, num_frequencies: int, *, refined: bool = True) -> Quantity:
    """Return the bound by a grid of so many frequencies along each axis of several taps."""
    sizes = _grid_sizes(problem, num_frequencies, 1)

    @jax.custom_jvp
    def bound(kernel: jax.Array) -> jax.Array:
        return grid_bound(kernel, sizes, refined=refined)[0]

    @bound.defjvp
    def bound_jvp(primals, tangents):
        upper, where = grid_bound(primals[0], sizes, refined=refined)
        own, change = jax.jvp(lambda k: size_free.norm(conv_symbol(k, where)), primals, tangents)
        return upper, jnp.where(own > 0, upper / jnp.where(own > 0, own, 1), 1) * change

    terms = math.prod(problem.taps) + max(problem.kernels.shape[-2:])
    return problem.quantity(problem.largest(bound), "upper", terms)


def _grid_sizes(problem: Problem, num_frequencies: int, share: int) -> tuple[int, ...]:
    checks.positive_integer("num_frequencies", num_frequencies)
    sizes = grid_size(problem.taps, num_frequencies)
    for size, taps in zip(sizes, problem.taps, strict=True):
        if size < share * (taps - 1) + (share == 1 and taps > 1):
            bound = f"above {taps - 1}" if share == 1 else f"at least {share * (taps - 1)}"
            raise ValueError(f"num_frequencies must be {bound} for {taps} taps along an axis, got {size}")
    return sizes


def _lip_grid(problem: Problem, options: Options) -> Quantity:
    share = 2 if len(problem.taps) < 3 else 4  # where 1 - (h - 1) / N is below the product of the cosines
    sizes = _grid_sizes(problem, options.num_frequencies or max(8 * (max(problem.taps) - 1), 32), share)
    excess = 1 - max((taps - 1) / size for taps, size in zip(problem.taps, sizes, strict=True))
    assert excess <= cosine_factor(problem.taps, sizes) * (1 + 1e-12)

    def bound(kernel: jax.Array) -> jax.Array:
        symbol, _ = circular_symbol(kernel, sizes, (1,) * len(sizes), (1,) * len(sizes), "auto")
        return _root(jnp.max(jnp.sum(jnp.square(jnp.abs(symbol)), axis=(-2, -1)))) / excess

    return problem.quantity(problem.largest(bound), "upper", terms(problem))


def _gram(problem: Problem, options: Options) -> Quantity:
    steps = options.num_steps
    if problem.circular:
        value = problem.largest(lambda kernel: jnp.max(circular_gram_bound(_on_own_grid(problem, kernel), steps)))
    else:
        value = problem.largest(lambda kernel: padded_gram_bound(kernel, steps))
    return problem.quantity(value, "upper", 2 * terms(problem))


def _aol(problem: Problem, options: Options) -> Quantity:
    del options
    return problem.quantity(problem.largest(lambda kernel: padded_gram_bound(kernel, 1)), "upper", 2 * terms(problem))


def _frobenius(problem: Problem, options: Options) -> Quantity:
    del options
    geometry = problem.geometry
    rank = len(geometry.strides)
    positions, kernel = math.prod(geometry.output_shape[:-1]), problem.kernels
    if any(step != 1 for step in geometry.input_dilation):  # the adjoint's rows
        positions = math.prod(geometry.spatial_shape)
    if geometry.padding == "CIRCULAR":  # taps that meet in one place add up
        kernel = jnp.where(problem.finite, problem.sized.kernel, 0).astype(kernel.dtype) / problem.scale.astype(
            kernel.dtype
        )
        kernel = wrapped(polyphase(kernel, (1,) * rank, geometry.kernel_dilation), geometry.spatial_shape)
    squares = jnp.sum(jnp.square(jnp.abs(kernel)))
    return problem.quantity(math.sqrt(positions) * _root(squares), "upper", terms(problem))


def _tensor_norm(problem: Problem, options: Options) -> Quantity:
    if options.key is None:
        raise ValueError("method 'tensor_norm' needs a PRNG key, for instance key=jax.random.key(0)")
    norm = functools.partial(size_free.tensor_norm, key=options.key, num_starts=options.num_starts)
    return problem.quantity(problem.largest(norm), "estimate")


def _reshaped(problem: Problem, options: Options) -> Quantity:
    del options
    return problem.quantity(problem.largest(size_free.reshaped), "lower" if problem.holds_a_window else "estimate")


def _size_free(name: str) -> Callable[[Problem, Options], Quantity]:
    def method(problem: Problem, options: Options) -> Quantity:
        del options
        return problem.quantity(problem.largest(getattr(size_free, name)), "upper", terms(problem))

    return method


def terms(problem: Problem) -> int:
    """How many numbers are summed up in the longest sum."""
    return math.prod(problem.taps) * max(problem.kernels.shape[-2:])


def _root(square: jax.Array) -> jax.Array:
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


BY_NAME: dict[str, Callable[[Problem, Options], Quantity]] = {
    "exact": exact_norm,
    "circular": _circular,
    "grid": _grid,
    "gram": _gram,
    "aol": _aol,
    "fantastic_four": _size_free("fantastic_four"),
    "tensor_norm": _tensor_norm,
    "lip_grid": _lip_grid,
    "tap_sum": _size_free("tap_sum"),
    "schur": _size_free("schur"),
    "frobenius": _frobenius,
    "reshaped": _reshaped,
}
