r"""Traces of operators from few products, with error bars.

XTrace: let Y = A Omega for k random vectors, Y = Q R, and Q_i an orthonormal basis of Y without its column i. Then
Q_i Q_i^H = Q (I - s_i s_i^H) Q^H with s_i the normalised column i of R^(-H), and for each i

    t_i = tr(Q_i^H A Q_i) + c_i r_i^H A r_i,        r_i = (I - Q_i Q_i^H) omega_i,     c_i = (n - k + 1) / |r_i|^2,

has the trace of A as its mean, since omega_i does not depend on Q_i and r_i is uniform on a sphere of n - k + 1
dimensions. With w_i = Q^H omega_i, p_i = (I - s_i s_i^H) w_i, H = Q^H A Q and Z = A Q all of it is algebra of k x k:

    t_i = tr H - s_i^H H s_i + c_i (omega_i^H y_i - omega_i^H Z p_i - p_i^H Q^H y_i + p_i^H H p_i).

For fixed Q, s and c this is linear in A, and its derivative along dA is an estimate without bias of tr dA by the same
vectors: derivatives pass through y_i and Z alone.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import checks, explicit_axes, layouts, vectors
from spectrax.krylov.orthogonalization import direction_seed, orthonormalize
from spectrax.layouts import Layout
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import in_working_precision
from spectrax.results import Quantity
from spectrax.spectrum.confidence import student_quantile
from spectrax.spectrum.functions import status_of
from spectrax.spectrum.methods import Dense
from spectrax.spectrum.plans import own_eps, round_off_floor

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Hutchinson:
    """The mean of w^H A w over vectors of random signs (of random phases for complex operators).

    Its variance is that of the entries beside the diagonal: 2 sum |a_ij|^2 over i != j for a real symmetric matrix,
    over the number of vectors. For matrices whose spectrum does not decay it is as good as any.
    """


@dataclasses.dataclass(frozen=True)
class HutchPlusPlus:
    """The trace on the range of a sketch, and `Hutchinson` for the rest, a third of the products for each part.

    For a spectrum that decays, the error falls as the inverse of the number of products, and not as that of its root.

    Source:
        Meyer, Musco, Musco & Woodruff 2021 (doi:10.1137/1.9781611976496.16).
    """


@dataclasses.dataclass(frozen=True)
class XTrace:
    """`HutchPlusPlus` with each vector in both roles: the sketch of all others leaves each one out in turn.

    Exact where the rank is less than the number of vectors, half of that of products. Errors fall as fast as the
    singular values, and the spread of the single estimates says how large they are.

    Source:
        Epperly, Tropp & Webber 2024 (doi:10.1137/23M1548323), sections 2.2 and 2.4.
    """


TraceMethod = Dense | Hutchinson | HutchPlusPlus | XTrace
_LEAST = {Hutchinson: 2, HutchPlusPlus: 6, XTrace: 4}  # products that two single estimates take


def trace(
    A: Any,
    /,
    *,
    key: jax.Array | None = None,
    max_matvecs: int = 64,
    method: str | TraceMethod = "auto",
    level: float = 0.95,
    full: bool = False,
) -> jax.Array | Quantity:
    r"""Return the trace of a square operator, exact where that takes no more products than an estimate.

    Args:
        A: An operator of shape (n, n) whose input and output have the same structure, or anything that
            `aslinearoperator` takes as one argument. It need not be Hermitian.
        key: A PRNG key; needed unless the trace is exact.
        max_matvecs: How many products an estimate may take.
        method: "auto" (`Dense` for explicit matrices, `XTrace` otherwise), or one of `Dense` (exact, n products),
            `XTrace`, `HutchPlusPlus` and `Hutchinson` as an object. For n <= max_matvecs all are exact.
        level: The confidence level of the interval, in (0, 1).
        full: Whether to return the value with its interval.

    Returns:
        A scalar of the operator's dtype, complex for complex operators; or with `full=True` a `Quantity`: of kind
        "exact", with the round-off as its bounds, or of kind "estimate", where the true trace is between `lower` and
        `upper` with a probability of about `level`. The interval is Student's over the single estimates, which for
        `XTrace` depend on each other a little. Real and imaginary part of a complex trace have an interval each. NaN
        with the status NOT_FINITE where a product was not finite.

    Raises:
        ValueError: If the operator is not square, a needed key is missing, `max_matvecs` is too small for two
            estimates, or an argument is out of its range.
        TypeError: If `method` is none of those objects, or the key is not a PRNG key.

    Cost:
        At most max_matvecs products, in two or three batches, and the memory of as many vectors; n products for an
        exact one, none for an explicit matrix.

    Derivatives:
        tr dA, estimated by the same vectors where the trace is estimated; linear in A, so that the second is zero.
        Forward and reverse.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> float(sx.trace(jnp.diag(jnp.arange(4.0))))
        6.0
        >>> struct = jax.ShapeDtypeStruct((1000,), jnp.float32)
        >>> decaying = sx.aslinearoperator(lambda v: v / jnp.arange(1.0, 1001.0) ** 2, struct)
        >>> found = sx.trace(decaying, key=jax.random.key(0), full=True)
        >>> bool(found.lower < 1.643935 < found.upper), bool(found.upper - found.lower < 0.01)
        (True, True)

    Source:
        Hutchinson 1990 (doi:10.1080/03610919008812866), and those of `HutchPlusPlus` and `XTrace`.
    """
    given = aslinearoperator(A)
    operator = in_working_precision(given)
    if operator.shape[0] != operator.shape[1]:
        raise ValueError(f"trace needs a square operator, got shape {operator.shape}")
    checks.same_structure("the output of the operator", operator.out_struct, operator.in_struct)
    checks.positive_integer("max_matvecs", max_matvecs)
    checks.level(level)
    if isinstance(method, str):
        checks.choice("method", method, ("auto",))
        method = Dense() if isinstance(operator, MatrixOperator) else XTrace()
    elif not isinstance(method, TraceMethod):
        raise TypeError(f"method must be 'auto', Dense(), XTrace(), HutchPlusPlus() or Hutchinson(), got {method!r}")
    if isinstance(method, Dense):
        method.check_size(operator)
    elif operator.shape[0] <= max_matvecs:
        method = Dense()
    else:
        if key is None:
            raise ValueError(
                f"trace needs key= (for instance jax.random.key(0)) for method {type(method).__name__} on an operator "
                f"of shape {operator.shape}: only explicit matrices and n <= max_matvecs go without"
            )
        if max_matvecs < _LEAST[type(method)]:
            raise ValueError(
                f"max_matvecs must be at least {_LEAST[type(method)]} for {type(method).__name__}, got {max_matvecs}"
            )
    if key is not None:
        checks.key("key", key)
    plan = _TracePlan(method, max_matvecs, level, round_off_floor(operator, own_eps(given, operator)))
    quantity = explicit_axes.replicated(functools.partial(_jitted, plan), operator, key)
    return quantity if full else quantity.value


@dataclasses.dataclass(frozen=True)
class _TracePlan:
    method: TraceMethod
    max_matvecs: int
    level: float
    round_off: float


class _Estimates(NamedTuple):
    """Single estimates, shape (count,), and the size of the terms that they are sums of."""

    values: jax.Array
    size: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def _jitted(plan: _TracePlan, operator: LinearOperator, key: jax.Array | None) -> Quantity:
    if isinstance(plan.method, Dense):
        diagonal = jnp.diagonal(operator.to_dense())
        return _quantity(jnp.sum(diagonal), plan.round_off * jnp.sum(jnp.abs(diagonal)), "exact")
    assert key is not None
    if isinstance(plan.method, XTrace):
        estimates = _xtrace(operator, key, plan.max_matvecs // 2)
    elif isinstance(plan.method, HutchPlusPlus):
        estimates = _hutch_plus_plus(operator, key, plan.max_matvecs // 3)
    else:
        estimates = _hutchinson(operator, key, plan.max_matvecs)
    values, count = estimates.values, estimates.values.shape[0]
    factor = student_quantile(plan.level, count - 1) / math.sqrt(count)
    if isinstance(plan.method, XTrace):
        factor *= math.sqrt(2)
    margin = plan.round_off * jax.lax.stop_gradient(estimates.size)
    spread = factor * _deviation(values.real) + margin
    if vectors.is_complex(values.dtype):
        spread = jax.lax.complex(spread, factor * _deviation(values.imag) + margin)
    return _quantity(jnp.mean(values), spread, "estimate")


def _deviation(values: jax.Array) -> jax.Array:
    """Return the standard deviation of a sample, whose squares may neither vanish nor overflow."""
    largest = jnp.max(jnp.abs(values))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * jnp.std(values / unit, ddof=1)


def _quantity(value: jax.Array, radius: jax.Array, kind: str) -> Quantity:
    radius = jax.lax.stop_gradient(radius)
    if vectors.is_complex(value.dtype) and not vectors.is_complex(radius.dtype):
        radius = jax.lax.complex(radius, radius)
    radius = radius.astype(value.dtype)
    finite = jnp.isfinite(value)
    value = value * jnp.where(finite, 1, jnp.nan).astype(value.dtype)  # a factor: the derivative is NaN as well
    fixed = jax.lax.stop_gradient(value)
    return Quantity(value, fixed - radius, fixed + radius, status_of(finite), kind=kind)


def _hutchinson(operator: LinearOperator, key: jax.Array, count: int) -> _Estimates:
    probes = random_signs(key, operator.in_struct, count)
    values = _row_products(probes, operator.matmat(probes))
    return _Estimates(values, jnp.mean(jnp.abs(values)))


def _hutch_plus_plus(operator: LinearOperator, key: jax.Array, count: int) -> _Estimates:
    keys = jax.random.split(key, 3)
    layout = layouts.layout_of(operator.in_struct)
    laid_out = functools.partial(layouts.constrain, layout=layout, stacked=True)
    seen = jax.lax.stop_gradient(operator).matmat(laid_out(random_signs(keys[0], operator.in_struct, count)))
    basis, _ = _orthonormal(keys[1], laid_out(seen), layout)
    rest = laid_out(random_signs(keys[2], operator.in_struct, count))
    for _ in range(2):
        inner = layouts.summed(vectors.gram, layout)(basis, rest)
        rest = vectors.subtract(rest, vectors.combine(inner.T, basis))
    inside = _row_products(basis, operator.matmat(basis))
    left = _row_products(rest, operator.matmat(rest))
    return _Estimates(jnp.sum(inside) + left, jnp.sum(jnp.abs(inside)) + jnp.mean(jnp.abs(left)))


def _xtrace(operator: LinearOperator, key: jax.Array, count: int) -> _Estimates:
    n, dot = operator.shape[0], vectors.matmul
    keys = jax.random.split(key)
    layout = layouts.layout_of(operator.in_struct)
    gram, laid_out = (
        layouts.summed(vectors.gram, layout),
        functools.partial(layouts.constrain, layout=layout, stacked=True),
    )
    omega = laid_out(random_directions(keys[0], operator.in_struct, count))
    y = laid_out(operator.matmat(omega))
    basis, factor = _orthonormal(keys[1], jax.lax.stop_gradient(y), layout)
    z = laid_out(operator.matmat(basis))

    # columns of the inverse adjoint; a column of Y that depends on others has a fresh direction, and a pivot of zero
    peak = jnp.max(jnp.abs(factor))
    factor = factor / jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1).astype(factor.dtype)
    pivots = jnp.diagonal(factor)
    is_zero = pivots == 0
    least = float(jnp.finfo(factor.dtype).eps)
    factor = jnp.where(is_zero[:, None], 0, factor) + jnp.diag(jnp.where(is_zero, least, 0).astype(factor.dtype))
    s = jax.scipy.linalg.solve_triangular(factor.conj().T, jnp.eye(count, dtype=factor.dtype), lower=True)
    s = s / jnp.linalg.norm(s, axis=0).astype(s.dtype)
    w = gram(basis, omega)
    p = w - s * jnp.sum(s.conj() * w, 0)
    squares = jnp.maximum(n - jnp.sum(jnp.square(jnp.abs(p)), 0), 0)
    is_empty = squares <= n * round(math.sqrt(n)) * least
    scale = jnp.where(is_empty, 0, (n - count + 1) / jnp.where(is_empty, 1, squares)).astype(factor.dtype)

    h = gram(basis, z)
    inner = jnp.sum(p.conj() * dot(h, p), 0)
    outer = _row_products(omega, y) - jnp.sum(gram(omega, z).T * p, 0)
    outer -= jnp.sum(p.conj() * gram(basis, y), 0)
    rest = scale * (outer + inner)
    values = jnp.trace(h) - jnp.sum(s.conj() * dot(h, s), 0) + rest
    return _Estimates(values, jnp.sum(jnp.abs(jnp.diagonal(h))) + jnp.mean(jnp.abs(rest)))


def _orthonormal(key: jax.Array, stack: PyTree, layout: Layout | None) -> tuple[PyTree, jax.Array]:
    """Return an orthonormal basis Q of a stack of vectors Y, with fresh directions where they depend, and Y = Q R.

    One vector after the other: a stack of them is dependent to round-off wherever the spectrum decays fast.
    """
    width, seed = vectors.count(stack), direction_seed(key)
    lengths = vectors.stack_norms(stack)

    def append(index: jax.Array, state: tuple[PyTree, jax.Array]) -> tuple[PyTree, jax.Array]:
        basis, factor = state
        vector, size = vectors.rows(stack, index, 1), jnp.max(lengths)
        found = orthonormalize(basis, vector, seed, index, size, layout=layout)
        column = found.coefficients[:, 0].at[index].set(found.factor[0, 0])
        return vectors.set_rows(basis, index, found.rows), factor.at[:, index].set(column)

    dtype = vectors.result_dtype(vectors.structure(stack))
    start = jax.tree.map(jnp.zeros_like, stack), jnp.zeros((width, width), dtype)
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(width), append, start)


def _row_products(a: PyTree, b: PyTree) -> jax.Array:
    """Return <a_i, b_i> for the vectors of two stacks."""
    return jax.vmap(vectors.vdot)(a, b)


def random_directions(key: jax.Array, struct: PyTree, count: int) -> PyTree:
    """Return a stack of vectors uniform on the sphere of radius sqrt(n)."""
    rows = vectors.normal(key, struct, count)
    return vectors.scale_rows(math.sqrt(vectors.size(struct)) / vectors.stack_norms(rows), rows)


def random_signs(key: jax.Array, struct: PyTree, count: int) -> PyTree:
    """Return a stack of vectors whose entries are +1 or -1, or random numbers of modulus one where they are complex."""
    leaves, treedef = jax.tree.flatten(struct)
    drawn = []
    for own_key, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True):
        shape = (count, *leaf.shape)
        if vectors.is_complex(leaf.dtype):
            angle = jax.random.uniform(own_key, shape, vectors.real_dtype(leaf.dtype), 0, 2 * math.pi)
            drawn.append(jax.lax.complex(jnp.cos(angle), jnp.sin(angle)))
        else:
            drawn.append(jax.random.rademacher(own_key, shape, leaf.dtype))
    return treedef.unflatten(drawn)
