r"""Sums of a function over the whole spectrum, with derivatives that are right at repeated values.

Let A = U diag(s) V^H be the thin decomposition, F(A) = sum_i f(s_i) and g = f'. Then

    dF = Re<G, dA>,        G = U diag(g(s)) V^H,

and G, unlike U and V, is a function of A at repeated values, too. In the Hermitian matrix H = [[0, A], [A^H, 0]], whose
eigenvalues are s and -s, G is the odd extension of g: g(H) = [[0, G], [G^H, 0]]. The theorem of Daleckii & Krein gives
its derivative by divided differences over pairs of eigenvalues. For pairs of one sign, of opposite signs, and with the
null space of H that a rectangular A has, and with M = U^H dA V,

    dG = U (D o (M + M^H) / 2 + S o (M - M^H) / 2) V^H + (I - U U^H) dA V R V^H + U R U^H dA (I - V V^H),
    D_ij = (g_i - g_j) / (s_i - s_j), or g'(s_i) at a tie,      S_ij = (g_i + g_j) / (s_i + s_j),      R_ii = g_i / s_i.

Where two values lie close together, D_ij is the mean of g' between them, by a quadrature that loses no digits.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, explicit_axes, vectors
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.operators.precision import in_working_precision
from spectrax.programs.hoisting import Direct, Program, hoist
from spectrax.results import Quantity, Status
from spectrax.spectrum.methods import FACTORIZED_ENTRIES, FACTORIZED_SIDE, can_be_dense

PyTree = Any
# A static function (consts, s, largest) -> (k,): k functions of one singular value and, held fixed, of the largest.
Summands = Callable[[PyTree, jax.Array, jax.Array], jax.Array]


def spectral_function(
    A: Any, f: Callable[[jax.Array], jax.Array], /, *, full: bool = False, max_bytes: int | None = None
) -> jax.Array | Quantity:
    r"""Return sum_i f(s_i) over all min(m, n) singular values.

    The operator is made dense and decomposed wholly.

    Args:
        A: An operator of shape (m, n), or anything that `aslinearoperator` takes as one argument.
        f: A JAX function of a real scalar that returns a real scalar, differentiable in forward mode; it may close over
            arrays and tracers, by which the sum can then be differentiated as well. Equal hashable functions that close
            over no array share one compiled program; any other is compiled at every call, unless the call stands inside
            `jax.jit`.
        full: Whether to return a `Quantity`. Its bounds are infinite: nothing is known of f between the values.
        max_bytes: How large the matrix may be, in place of the limits FACTORIZED_SIDE on min(m, n) and
            FACTORIZED_ENTRIES on m n (see `docs/how-to-choose`).

    Returns:
        A real scalar, of float32 for 16-bit operators; NaN where the operator is not finite. With `full=True` a
        `Quantity` of kind "exact": the sum over the computed values, of which those of a singular matrix are round-off
        and not zero, so that the logarithm of a determinant comes out finite there.

    Raises:
        ValueError: If the matrix is larger than the limits or than `max_bytes`, or f returns anything but a scalar.
        TypeError: If f is not callable or returns anything but a real floating-point number.

    Cost:
        min(m, n) matvecs (none for an explicit matrix) and a decomposition of O(m n min(m, n)), with vectors only for
        derivatives. The second derivative takes 2 min(m, n)^2 values of f'' more.

    Derivatives:
        First: Re<U f'(S) V^H, dA>, right at repeated values. Second: by divided differences, right at repeated values
        as well. Both forward and reverse. Higher ones are right for distinct values and NaN at repeated ones. Values
        of at most sqrt(max(m, n)) eps s_1 count as zero: f' is taken to vanish there, which for the nuclear norm is
        the subgradient of least norm; the second derivative has the limit f''(0) in their place if f'(0) = 0 and f''(0)
        is finite, and zero otherwise. All are finite wherever f' and f'' are finite at the other values.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> matrix = 2.0 * jnp.eye(3)
        >>> round(float(sx.spectral_function(matrix, jnp.log)), 5)
        2.07944
        >>> jax.grad(sx.spectral_function)(matrix, jnp.log).diagonal().tolist()
        [0.5, 0.5, 0.5]

    Source:
        Lewis & Sendov 2005 (doi:10.1007/s11228-004-7197-7) for the first derivative, Higham 2008
        (doi:10.1137/1.9780898717778), Theorem 3.11, for the second.
    """
    operator = materializable(A, max_bytes)
    if not callable(f):
        raise TypeError(f"f must be a JAX function of a real scalar, got {type(f).__name__}")
    hoisted = hoist(f, jax.ShapeDtypeStruct((), vectors.real_dtype(operator.dtype)))
    check_real_scalar(hoisted.out_struct)
    run = functools.partial(_jitted, _Elementwise(hoisted.program))
    totals, largest = explicit_axes.replicated(run, hoisted.consts, operator)
    if not full:
        return totals[0]
    status = status_of(jnp.isfinite(largest) & ~jnp.isnan(totals[0]))
    bound = jnp.full_like(largest, jnp.inf)
    return Quantity(totals[0], -bound, bound, status, kind="exact")


def materializable(A: Any, max_bytes: int | None) -> LinearOperator:
    """Return an operator of at least 32 bits that is small enough to be made dense, or say that it is not.

    Args:
        A: An operator, or anything that `aslinearoperator` takes.
        max_bytes: The size that is allowed, or None for the limits on shapes.

    Returns:
        The operator.

    Raises:
        ValueError: If the operator is too large, or an array lies on a mesh with explicit axes.
    """
    operator = in_working_precision(aslinearoperator(A))
    needed = math.prod(operator.shape) * jnp.dtype(operator.dtype).itemsize
    what = f"the whole spectrum of an operator of shape {operator.shape} and dtype {operator.dtype.name} needs a matrix"
    if max_bytes is not None:
        checks.positive_integer("max_bytes", max_bytes)
        if needed > max_bytes:
            raise ValueError(f"{what} of {needed} bytes, above max_bytes={max_bytes}")
    elif not can_be_dense(operator.shape):
        raise ValueError(
            f"{what} of {needed} bytes, above the limits of {FACTORIZED_SIDE} on the shorter side and "
            f"{FACTORIZED_ENTRIES} on the entries: allow it by max_bytes={needed}, or ask svds for some of the values"
        )
    return operator


def relative_sums(summands: Callable[[jax.Array], jax.Array], operator: LinearOperator) -> tuple[jax.Array, jax.Array]:
    """Return sums over x_i = s_i / s_1, and s_1, such that nothing overflows or vanishes at any scale of A.

    s_1 is held fixed by differentiation. For a function of A that is homogeneous, as s_1 sum_i x_i is, this is right:
    c^p F(A / c) is F(A) for every fixed c.

    Args:
        summands: A module-level function, or hashable object, from x to k numbers, shape (k,).
        operator: What `materializable` returned.

    Returns:
        The sums, shape (k,), all of f(0) for a zero matrix; and s_1, NaN where the operator is not finite.
    """
    return explicit_axes.replicated(functools.partial(_jitted_relative, _Relative(summands)), operator)


def power_of_two(matrix: jax.Array) -> jax.Array:
    """Return a power of two near the largest entry, by which division is exact; one for a matrix of zeros or of NaN."""
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix)))
    _, exponent = jnp.frexp(peak)
    return jnp.where(jnp.isfinite(peak) & (peak > 0), jnp.ldexp(jnp.ones_like(peak), exponent - 1), 1)


def scaled_values(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return a matrix divided by a power of two, its singular values, without vectors, and that power.

    Of a matrix that is not finite they are zeros, and NaN in place of the power.
    """
    scale = power_of_two(matrix)
    finite = jnp.all(jnp.isfinite(matrix))
    scaled = jnp.where(finite, matrix / scale.astype(matrix.dtype), 0)
    # in thin form: the other one holds room for square matrices of vectors, even if none are asked for
    values = jnp.linalg.svd(scaled, full_matrices=False, compute_uv=False)
    return scaled, values, jnp.where(finite, scale, jnp.nan)


def status_of(finite: jax.Array) -> jax.Array:
    """Return the status of what is exact if it is finite."""
    return jnp.where(finite, int(Status.CONVERGED), int(Status.NOT_FINITE)).astype(jnp.int32)


def check_real_scalar(struct: Any) -> None:
    """Raise unless the result of a function of a scalar is one real floating-point number."""
    leaves = jax.tree.leaves(struct)
    if len(leaves) != 1 or leaves[0].shape != ():
        raise ValueError(f"f must return a scalar for a scalar, got {struct}")
    if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise TypeError(f"f must return a real floating-point number, got dtype {leaves[0].dtype.name}")


@dataclasses.dataclass(frozen=True)
class _Elementwise:
    """One function of a singular value."""

    program: Program | Direct

    def __call__(self, consts: PyTree, s: jax.Array, largest: jax.Array) -> jax.Array:
        del largest
        return jnp.asarray(self.program(consts, s)).astype(s.dtype)[None]


@dataclasses.dataclass(frozen=True)
class _Relative:
    """Some functions of a singular value relative to the largest."""

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, consts: PyTree, s: jax.Array, largest: jax.Array) -> jax.Array:
        del consts
        return self.function(s / jnp.where(largest == 0, 1, largest))


@functools.partial(jax.jit, static_argnums=0)
def _jitted(summands: Summands, consts: PyTree, operator: LinearOperator) -> tuple[jax.Array, jax.Array]:
    return _totals(summands, consts, operator.to_dense())


@functools.partial(jax.jit, static_argnums=0)
def _jitted_relative(summands: Summands, operator: LinearOperator) -> tuple[jax.Array, jax.Array]:
    matrix = operator.to_dense()
    scale = power_of_two(matrix)
    totals, largest = _totals(summands, None, matrix / scale.astype(matrix.dtype))
    return totals, largest * scale


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _totals(summands: Summands, consts: PyTree, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the k sums and the largest singular value, whose derivative is zero."""
    s = _decompose(matrix, compute_uv=False)
    return _sum(summands, consts, s), s[0]


@_totals.defjvp
def _totals_jvp(summands, primals, tangents):
    (consts, matrix), (consts_dot, matrix_dot) = primals, tangents
    totals, largest, slopes = _totals_and_slopes(summands, consts, matrix)
    totals_dot = _real_vdot(slopes, matrix_dot)
    if jax.tree.leaves(consts):
        # JAX's own derivative of the values alone is the one that the gradient by A needs to be right at ties
        s = _decompose(matrix, compute_uv=False)
        totals_dot += jax.jvp(lambda c: _sum(summands, c, s), (consts,), (consts_dot,))[1]
    return (totals, largest), (totals_dot, jnp.zeros_like(largest))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _totals_and_slopes(summands: Summands, consts: PyTree, matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the k sums, the largest singular value, and the k matrices G = U diag(g) V^H, shape (k, m, n)."""
    return _assemble(summands, consts, *_decompose(matrix))


@_totals_and_slopes.defjvp
def _totals_and_slopes_jvp(summands, primals, tangents):
    (consts, matrix), (consts_dot, matrix_dot) = primals, tangents
    u, s, vh = _decompose(matrix)
    totals, largest, slopes = _assemble(summands, consts, u, s, vh)
    totals_dot, slopes_dot = _real_vdot(slopes, matrix_dot), _slopes_tangent(summands, consts, u, s, vh, matrix_dot)
    if jax.tree.leaves(consts):
        along = jax.jvp(lambda c: _assemble(summands, c, u, s, vh), (consts,), (consts_dot,))[1]
        totals_dot, slopes_dot = totals_dot + along[0], slopes_dot + along[2]
    return (totals, largest, slopes), (totals_dot, jnp.zeros_like(largest), slopes_dot)


def _decompose(matrix: jax.Array, *, compute_uv: bool = True) -> Any:
    """Return the thin decomposition of a matrix of any scale; values are NaN where the matrix is not finite."""
    scale = power_of_two(matrix)
    finite = jnp.isfinite(jax.lax.stop_gradient(jnp.max(jnp.abs(matrix))))
    scaled = jnp.where(finite, matrix / scale.astype(matrix.dtype), 0)
    factor = jnp.where(finite, scale, jnp.nan)
    if not compute_uv:
        return jnp.linalg.svd(scaled, compute_uv=False) * factor
    u, s, vh = jnp.linalg.svd(scaled, full_matrices=False)
    return u, s * factor, vh


def _sum(summands: Summands, consts: PyTree, s: jax.Array) -> jax.Array:
    largest = jax.lax.stop_gradient(s[0])
    totals = jnp.sum(jax.vmap(lambda x: summands(consts, x, largest))(s), axis=0)
    return totals * _one_or_nan(largest)


def _one_or_nan(largest: jax.Array) -> jax.Array:
    """A factor for what f, or its derivative, is a constant of."""
    return jnp.where(jnp.isnan(largest), jnp.nan, jnp.ones_like(largest))


def _assemble(summands, consts, u, s, vh) -> tuple[jax.Array, jax.Array, jax.Array]:
    slopes = _slopes(summands, consts, s, *_at_round_off(s, u.shape[0], vh.shape[1]))
    slopes = jnp.einsum("mi,ik,in->kmn", u, slopes.astype(u.dtype), vh, precision=vectors.HIGHEST)
    return _sum(summands, consts, s), jax.lax.stop_gradient(s[0]), slopes


def _at_round_off(s: jax.Array, m: int, n: int) -> tuple[jax.Array, jax.Array]:
    """Return which values count as zero, and a number at which any function can be evaluated in their place."""
    cutoff = max(m, n) ** 0.5 * float(jnp.finfo(s.dtype).eps) * s[0]
    return s <= cutoff, jnp.where(s[0] == 0, 1, s[0])


def _derivative(summands: Summands, consts: PyTree, largest: jax.Array, order: int) -> Callable[[jax.Array], jax.Array]:
    function = functools.partial(summands, consts)

    def differentiate(inner):
        return lambda x: jax.jvp(inner, (x,), (jnp.ones_like(x),))[1]

    derivative = lambda x: function(x, largest)  # noqa: E731
    for _ in range(order):
        derivative = differentiate(derivative)
    return derivative


def _slopes(summands, consts, s, is_zero, regular) -> jax.Array:
    """Return g at each value and zero at those that count as zero, where it may be infinite, shape (min(m, n), k)."""
    slope = _derivative(summands, consts, jax.lax.stop_gradient(s[0]), 1)
    slopes = jnp.where(is_zero[:, None], 0, jax.vmap(slope)(jnp.where(is_zero, regular, s)))
    return slopes * _one_or_nan(s[0])


def _slopes_tangent(summands, consts, u, s, vh, matrix_dot) -> jax.Array:
    """Return dG along dA for each function, shape (k, m, n)."""
    (m, n), dot = matrix_dot.shape, functools.partial(jnp.matmul, precision=vectors.HIGHEST)
    differences, sums, ratios = (
        jnp.moveaxis(factor.astype(u.dtype), -1, 0) for factor in _divided_differences(summands, consts, s, m, n)
    )
    uh, v = u.conj().T, vh.conj().T
    on_left, on_right = dot(uh, matrix_dot), dot(matrix_dot, v)
    middle = dot(uh, on_right)
    adjoint = middle.conj().T
    inner = differences * (middle + adjoint) / 2 + sums * (middle - adjoint) / 2
    tangent = dot(dot(u, inner), vh)
    if m > n:
        tangent += dot((on_right - dot(u, middle)) * ratios[:, None, :], vh)
    if m < n:
        tangent += dot(u, ratios[:, :, None] * (on_left - dot(middle, vh)))
    return tangent


def _divided_differences(summands, consts, s, m, n) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return D and S, shape (min(m, n), min(m, n), k), and the diagonal of R, shape (min(m, n), k)."""
    is_zero, regular = _at_round_off(s, m, n)
    slopes = _slopes(summands, consts, s, is_zero, regular)
    slope, curvature = (_derivative(summands, consts, jax.lax.stop_gradient(s[0]), order) for order in (1, 2))
    eps = float(jnp.finfo(s.dtype).eps)
    at_zero, limit = slope(jnp.zeros_like(regular)), curvature(jnp.zeros_like(regular))
    is_odd = jnp.abs(at_zero) <= 8 * eps * jnp.max(jnp.abs(slopes), axis=0)
    limit = jnp.where(is_odd & jnp.isfinite(limit), limit, 0)

    left, right = s[:, None], s[None, :]
    both_zero = (is_zero[:, None] & is_zero[None, :])[..., None]
    gap = left - right
    # Rounding errors of the quotient grow as eps s / gap, those of the rule with two nodes as (gap / s)^4.
    is_near = jnp.abs(gap) <= eps**0.25 * jnp.maximum(left, right)
    middle, half = (left + right) / 2, gap / 12**0.5
    nodes = [jnp.where(is_near & ~both_zero[..., 0], node, regular) for node in (middle - half, middle + half)]
    mean = sum(jax.vmap(jax.vmap(curvature))(node) for node in nodes) / 2
    quotient = (slopes[:, None] - slopes[None, :]) / jnp.where(is_near, 1, gap)[..., None]
    differences = jnp.where(both_zero, limit, jnp.where(is_near[..., None], mean, quotient))
    total = jnp.where(both_zero, 1, (left + right)[..., None])
    sums = jnp.where(both_zero, limit, (slopes[:, None] + slopes[None, :]) / total)
    ratios = jnp.where(is_zero[:, None], limit, slopes / jnp.where(is_zero, 1, s)[:, None])
    return differences, sums, ratios


def _real_vdot(slopes: jax.Array, matrix_dot: jax.Array) -> jax.Array:
    """Return Re<G, dA> for each G."""
    return jnp.tensordot(slopes.conj(), matrix_dot, 2, precision=vectors.HIGHEST).real
