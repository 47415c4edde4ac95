"""The Frobenius norm: exact from a matrix or from one product for each column, otherwise estimated from random ones."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import checks, explicit_axes, vectors
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import in_working_precision
from spectrax.results import Quantity
from spectrax.spectrum.functions import power_of_two, status_of
from spectrax.spectrum.methods import can_be_dense
from spectrax.spectrum.norm_bounds import orthonormal
from spectrax.spectrum.quantities import round_off, value_or_nan

PyTree = Any
_PRODUCTS_PER_PROBE = 4  # A and A^H on the sketch, A on its basis, A on the probe
_DEVIATIONS = 4.0  # of a normal distribution: a two-sided level of 99.99 %


def frobenius_norm(
    A: Any, /, *, full: bool = False, key: jax.Array | None = None, num_probes: int = 16
) -> jax.Array | Quantity:
    r"""Return the root of the sum of all squared singular values, \|A\|_F.

    It is exact for an explicit matrix of any size, for an operator that may be made dense (FACTORIZED_SIDE on min(m, n)
    and FACTORIZED_ENTRIES on m n, see `docs/how-to-choose`), and for one with min(m, n) <= 4 `num_probes`. Otherwise
    its square tr(A^H A) is estimated by Hutch++ on the shorter side: exactly on the span of A^H A times `num_probes`
    random vectors, and from as many random vectors on the complement.

    Args:
        A: An operator of shape (m, n), or anything that `aslinearoperator` takes as one argument.
        full: Whether to return the value with its bounds.
        key: A PRNG key; required where the norm is estimated, and not used elsewhere.
        num_probes: How many random vectors there are in each of the two sets, at least 2.

    Returns:
        A real scalar, of float32 for 16-bit operators; NaN where the operator is not finite. With `full=True` a
        `Quantity` of kind "exact", or of kind "estimate": the square is then unbiased, and `lower` and `upper` are
        estimates as well, the interval of Student's t distribution at a level of 99.99 % for the spread of the probes,
        with `lower` not below the part that is known exactly. The probes are not normal: for 16 of them, and a spectrum
        whose tail is carried by few values, the norm lies outside up to 1 % of the time.

    Raises:
        ValueError: If a needed key is missing, `num_probes` is less than 2, or an array lies on a mesh with explicit
            axes.
        TypeError: If A is not an operator, has an integer dtype, or the key is no PRNG key.

    Cost:
        None for an explicit matrix; min(m, n) matvecs where it is exact; 4 `num_probes` matvecs where it is estimated.
        The relative error of an estimated square is of the order of 1 / `num_probes` for the worst spectrum, and far
        smaller for one that decays fast, or hardly at all.

    Derivatives:
        Re<A, dA> / |A|_F, through the operator, any order, forward and reverse; zero for a zero matrix. That of an
        estimated square is unbiased as well.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> float(sx.frobenius_norm(jnp.diag(jnp.array([3.0, 4.0]))))
        5.0

    Source:
        Meyer, Musco, Musco & Woodruff 2021 (arXiv:2010.09649), Algorithm 1, with probes of fixed length in the
        complement, as Epperly, Tropp & Webber 2024 (doi:10.1137/23M1548323) have them.
    """
    given = aslinearoperator(A)
    operator = in_working_precision(given)
    checks.positive_integer("num_probes", num_probes)
    if num_probes < 2:
        raise ValueError(f"num_probes must be at least 2, for a spread of the probes; got {num_probes}")
    if key is not None:
        checks.key("key", key)
    explicit, few = isinstance(operator, MatrixOperator), min(operator.shape) <= _PRODUCTS_PER_PROBE * num_probes
    if explicit or few or can_be_dense(operator.shape):
        quantity = exact_norm(operator)
    elif key is None:
        raise ValueError(
            f"frobenius_norm needs key= (for instance jax.random.key(0)) for an operator of shape {operator.shape}, "
            "which is too large to be made dense: its norm is estimated from random vectors"
        )
    else:
        run = functools.partial(_estimated, num_probes=num_probes)
        value, lower, upper = explicit_axes.replicated(run, operator, key)
        lower, upper = lower * (1 - round_off(operator)), upper * (1 + round_off(operator))
        quantity = Quantity(value, lower, upper, status_of(jnp.isfinite(value)), kind="estimate")
    return quantity if full else value_or_nan(quantity)


def exact_norm(operator: LinearOperator) -> Quantity:
    """Return the Frobenius norm of an operator of at least 32 bits that is made dense, of kind "exact"."""
    value = explicit_axes.replicated(_exact, operator)
    # the error of sums over rows and then over columns, term by term
    error = (4 + sum(operator.shape) / 4) * vectors.eps((operator.in_struct, operator.out_struct))
    margin = jax.lax.stop_gradient(error * value)
    return Quantity(value, value - margin, value + margin, status_of(jnp.isfinite(value)), kind="exact")


@jax.jit
def _exact(operator: LinearOperator) -> jax.Array:
    matrix = operator.to_dense()
    scale = power_of_two(matrix)
    scaled = matrix / scale.astype(matrix.dtype)
    parts = (scaled.real, scaled.imag) if vectors.is_complex(matrix.dtype) else (scaled,)
    squares = functools.reduce(jnp.add, [part**2 for part in parts])
    # by a product, since XLA would make one long sum of two, of m n terms
    rows = jnp.matmul(squares, jnp.ones(matrix.shape[1], squares.dtype), precision=vectors.HIGHEST)
    return _root(jnp.sum(rows)) * scale


class _Basis(NamedTuple):
    """Orthonormal vectors as a stack, some of which may be zero, and how many are not."""

    rows: PyTree
    count: jax.Array


@functools.partial(jax.jit, static_argnames="num_probes")
def _estimated(operator: LinearOperator, key: jax.Array, num_probes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    m, n = operator.shape
    tall = operator if m >= n else operator.H
    sketch_key, probe_key = jax.random.split(key)
    # For any fixed basis the estimate is unbiased, and so is its derivative with the basis held fixed.
    basis = _range_of_gram(jax.lax.stop_gradient(tall), vectors.normal(sketch_key, tall.in_struct, num_probes))
    probes = vectors.normal(probe_key, tall.in_struct, num_probes)
    for _ in range(2):
        probes = vectors.without(basis.rows, probes)
    # In the complement, a space of dimension d, the probes have the length sqrt(d): for a Gaussian vector z the length
    # is independent of the direction, and only adds its own variance to that of |A z|^2.
    dimension = (min(m, n) - basis.count).astype(vectors.stack_norms(probes).dtype)
    probes = vectors.scale_rows(jnp.sqrt(dimension) / vectors.stack_norms(probes), probes)

    images = (tall.matmat(basis.rows), tall.matmat(probes))
    peak = jax.lax.stop_gradient(jnp.maximum(*(jnp.max(vectors.stack_norms(stack)) for stack in images)))
    scale = jnp.where(peak == 0, 1, peak)
    known, each = (_squares(vectors.scale(1 / scale, stack)) for stack in images)
    known = jnp.sum(known)
    square = known + jnp.mean(each)
    value, (known, each, square) = _root(square) * scale, jax.lax.stop_gradient((known, each, square))
    error = _student_quantile(num_probes - 1) * jnp.std(each, ddof=1) / num_probes**0.5
    lower, upper = jnp.sqrt(jnp.maximum(known, square - error)), jnp.sqrt(square + error)
    return value, lower * scale, upper * scale


def _student_quantile(freedom: int) -> float:
    """Return the quantile of Student's t distribution, from that of the normal one (Abramowitz & Stegun, 26.7.5)."""
    z = _DEVIATIONS
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**order for order, term in enumerate(terms))


def _range_of_gram(operator: LinearOperator, sketch: PyTree) -> _Basis:
    """Return an orthonormal basis of A^H A times a stack of vectors."""
    images = operator.matmat(sketch)
    length = jnp.max(vectors.stack_norms(images))
    stack = operator.rmatmat(vectors.divide(images, length))  # squares of large or small numbers are avoided

    def extend(index, basis):
        vector, length = orthonormal(basis.rows, vectors.row(stack, index))
        return _Basis(vectors.set_row(basis.rows, index, vector), basis.count + (length > 0).astype(jnp.int32))

    empty = _Basis(jax.tree.map(jnp.zeros_like, sketch), jnp.zeros((), jnp.int32))
    return jax.lax.fori_loop(0, jax.tree.leaves(sketch)[0].shape[0], extend, empty)


def _squares(stack: PyTree) -> jax.Array:
    """Return the squared norms of the vectors of a stack, differentiable at zero as well."""

    def leaf_squares(leaf):
        parts = (leaf.real, leaf.imag) if vectors.is_complex(leaf.dtype) else (leaf,)
        squares = [jnp.sum(part**2, axis=tuple(range(1, leaf.ndim))) for part in parts]
        return functools.reduce(jnp.add, squares)

    return functools.reduce(jnp.add, [leaf_squares(leaf) for leaf in jax.tree.leaves(stack)])


def _root(square: jax.Array) -> jax.Array:
    """Return the square root, whose derivative at zero is taken to be zero; NaN for what is not finite."""
    root = jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
    return root * jnp.where(jnp.isfinite(square), jnp.ones_like(root), jnp.nan)
