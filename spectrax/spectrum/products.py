r"""Singular values of a product of many matrices, to high relative accuracy, without forming the product.

QR factorisations are passed through the factors, then through the adjoints of the triangular factors, and so on:
A_j B_(j-1) = B_j R_j with orthonormal B_j and triangular R_j, so that A_p ... A_1 = B_p (R_p ... R_1) B_0^H. The
triangular product is held by rows of norm one and the logarithms of their norms. One-sided Jacobi rotations of these
graded rows give its right singular vectors, and one more pass of QR from there makes the product diagonal: the values
are products of the diagonals of the R_j, summed up as logarithms. What is left off the diagonal goes into the error.

Let d_j = diag(R_j), and let X_j and Y_j be triangular with ones on their diagonals,

    X_p = I,  X_(j-1) = R_j^H X_j / conj(d_j),        Y_p = I,  Y_(j-1) = R_j^-1 Y_j d_j.

Both recurrences are stable where the values are graded, unlike products from the other end. Columns of B_j X_j and
B_(j-1) Y_(j-1) are what a change of A_j meets from both sides: the derivative of the i-th logarithm is

    d log s_i = sum_j Re(x_ij^H dA_j y_i(j-1)) / d_ij,

and since a QR is exact for factors changed by eps |A_j|, so is the error, with moduli and norms in their place.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, explicit_axes, vectors
from spectrax.results import Quantity, Status
from spectrax.spectrum.functions import power_of_two
from spectrax.spectrum.graded import distance_from_diagonal, graded_product, orthogonal_rows
from spectrax.spectrum.quantities import value_or_nan

Chain = tuple[jax.Array, ...]  # stacks (q, m, n) of factors, those applied first in front; m = n where q > 1

_dot = functools.partial(jnp.matmul, precision=vectors.HIGHEST)
_MAX_ROUNDS = 6  # 2 and rarely 3 are needed
_SAFETY = 4.0  # on the first-order error of one QR, of which four or more are passed through the factors
_RESOLVED = 0.25  # the largest relative error at which the first order is relied on


class ProductSingularValues(NamedTuple):
    """Logarithms of the singular values of a product of matrices, each with its error.

    Attributes:
        log_values: Natural logarithms of all min(m, n) singular values, descending; -inf where a value is zero or
            cannot be told from zero.
        error: What the absolute error of each logarithm is at most, estimated to the first order of round-off; inf
            where the value cannot be told from zero, 0 where it is certainly zero (a factor of zeros, or an inner width
            below min(m, n)).
        rank: How many values are told from zero, int32.
        status: A number of `Status`, int32: AT_ROUND_OFF if some value is neither resolved nor certainly zero.
    """

    log_values: jax.Array
    error: jax.Array
    rank: jax.Array
    status: jax.Array


class ProductConditionNumber(NamedTuple):
    """The logarithm of the condition number of a product of matrices, on the whole and on its nonzero part.

    Attributes:
        whole: log(s_1 / s_min(m, n)); its value is inf where the last value is zero or cannot be told from zero.
        nonzero: log(s_1 / s_rank), over the values that are told from zero; 0 for rank 0.
        rank: How many these are, int32.
    """

    whole: Quantity
    nonzero: Quantity
    rank: jax.Array


def product_log_singular_values(factors: Any, /) -> ProductSingularValues:
    """Return the logarithms of all singular values of a product A_p ... A_1 of matrices.

    The values may range over hundreds of decades: small ones are as accurate as large ones, as far as the factors
    determine them. A factor counts as known to eps times its norm: a value that such changes could make zero is not
    resolved. In particular, the small entries of a single badly scaled factor are not relied on.

    Args:
        factors: Matrices A_1, ..., A_p in the order of their application: a sequence of arrays of shapes (n_1, n_0) to
            (n_p, n_(p-1)), or an array of shape (p, n, n). All of one floating-point or complex dtype; 16-bit factors
            are worked on in 32 bits. Subnormal entries count as zeros, as XLA flushes them.

    Returns:
        A `ProductSingularValues`: `log_values`, `error`, `rank` and `status`. Everything is NaN where a factor is not
        finite.

    Raises:
        ValueError: If there is no factor, a factor is not a matrix or is empty, or shapes do not chain.
        TypeError: If a dtype is not floating-point or complex, or dtypes differ.

    Cost:
        About four QR factorisations and ten products for each factor, and two or three one-sided Jacobi decompositions
        of a square matrix of the smallest width. Equal square factors next to each other share one compiled loop; the
        compile time grows with the number of the others.

    Derivatives:
        d log s_i = Re(u_i^H dM v_i) / s_i, first order, forward and reverse, by vectors that stay accurate over the
        whole range. Where a value is repeated, one of several subgradients; zero where a value is not told from zero.
        The other fields have zero derivatives. A second derivative raises `NotImplementedError`.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> factor = jnp.diag(jnp.array([1.0, 1e-4]))
        >>> values = sx.product_log_singular_values([factor] * 20)
        >>> [round(float(value / jnp.log(10)), 3) for value in values.log_values]
        [0.0, -80.0]
        >>> int(values.rank)
        2

    Source:
        Bojanczyk, Ewerbring, Luk & Van Dooren 1991, An accurate product SVD algorithm, Signal Processing 25, and Golub,
        Solna & Van Dooren 2000 (doi:10.1137/S0895479897325578) for QR through the factors; Demmel & Veselic 1992
        (doi:10.1137/0613074) for Jacobi rotations of graded columns.
    """
    return explicit_axes.replicated(_of_factors, factors if hasattr(factors, "ndim") else list(factors))


def _of_factors(factors: Any) -> ProductSingularValues:
    chain = _chain(factors)
    log_values, error, rank, status = _jitted(chain)
    missing = min(chain[0].shape[2], chain[-1].shape[1]) - log_values.shape[0]
    log_values = jnp.pad(log_values, (0, missing), constant_values=-jnp.inf)
    finite = status != int(Status.NOT_FINITE)
    log_values, error = (jnp.where(finite, x, jnp.nan) for x in (log_values, jnp.pad(error, (0, missing))))
    return ProductSingularValues(log_values, error, rank.astype(jnp.int32), status.astype(jnp.int32))


def product_log_condition_number(factors: Any, /, *, full: bool = False) -> jax.Array | ProductConditionNumber:
    """Return the natural logarithm of the condition number of a product A_p ... A_1 of matrices.

    Args:
        factors: As in `product_log_singular_values`.
        full: Whether to return it with its bounds, and beside it that of the nonzero part, and the rank.

    Returns:
        A real scalar: inf where the smallest value is zero or cannot be told from zero, NaN where a factor is not
        finite or the values did not converge. With `full=True` a `ProductConditionNumber`: `whole` and `nonzero`, each
        a `Quantity` of kind "exact" with bounds to the first order of round-off, and `rank`.

    Raises:
        ValueError: As `product_log_singular_values`.
        TypeError: As `product_log_singular_values`.

    Cost:
        As `product_log_singular_values`.

    Derivatives:
        As `product_log_singular_values`; zero where the value is inf.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> factor = jnp.diag(jnp.array([1.0, 1e-4, 0.0]))
        >>> float(sx.product_log_condition_number([factor] * 20))
        inf
        >>> condition = sx.product_log_condition_number([factor] * 20, full=True)
        >>> round(float(condition.nonzero.value / jnp.log(10)), 3), int(condition.rank)
        (80.0, 2)
    """
    log_values, error, rank, status = product_log_singular_values(factors)
    last = jnp.maximum(rank - 1, 0)
    some = (rank > 0) | (status == int(Status.NOT_FINITE))
    value = jnp.where(some, jnp.where(some, log_values[0], 0) - jnp.where(some, log_values[last], 0), 0)
    margin = jax.lax.stop_gradient(jnp.where(some, error[0] + error[last], 0))
    least = jax.lax.stop_gradient(jnp.maximum(value - margin, 0))
    nonzero = Quantity(value, least, jax.lax.stop_gradient(value + margin), status, kind="exact")
    singular = (rank < log_values.shape[0]) & (status != int(Status.NOT_FINITE))
    # the values that are not resolved lie below those that are
    whole = Quantity(
        jnp.where(singular, jnp.inf, nonzero.value),
        least,
        jnp.where(singular, jnp.inf, nonzero.upper),
        status,
        kind="exact",
    )
    return ProductConditionNumber(whole, nonzero, rank) if full else value_or_nan(whole)


def _chain(factors: Any) -> Chain:
    """Check the factors, cast them up, and stack neighbours of one square shape."""
    if hasattr(factors, "ndim"):
        if factors.ndim != 3 or factors.shape[1] != factors.shape[2]:
            raise ValueError(f"factors given as one array must have shape (p, n, n), got {jnp.shape(factors)}")
        if 0 in factors.shape:
            raise ValueError(f"a product needs one factor or more, and none empty; got shape {jnp.shape(factors)}")
        checks.inexact("the factors", factors.dtype)
        stack = jnp.asarray(factors)
        return (stack.astype(vectors.working_dtype(stack.dtype)),)
    arrays = [jnp.asarray(factor) for factor in factors]
    if not arrays:
        raise ValueError("a product needs one factor or more, got none")
    for number, array in enumerate(arrays):
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"factor {number} must be a matrix with entries, got shape {array.shape}")
        checks.inexact(f"factor {number}", array.dtype)
    for number, (before, after) in enumerate(itertools.pairwise(arrays)):
        if after.shape[1] != before.shape[0]:
            raise ValueError(
                f"factor {number + 1} of shape {after.shape} cannot follow factor {number} of shape {before.shape}: "
                f"it must have {before.shape[0]} columns"
            )
    dtypes = sorted({array.dtype.name for array in arrays})
    if len(dtypes) > 1:
        raise TypeError(f"factors must have one dtype, got {', '.join(dtypes)}")
    dtype = vectors.working_dtype(arrays[0].dtype)
    chain = []
    for shape, group in itertools.groupby(arrays, key=lambda array: array.shape):
        if shape[0] == shape[1]:
            chain.append(jnp.stack(list(group)).astype(dtype))
        else:  # two neighbours of one shape are square, or they would not chain
            chain.extend(array[None].astype(dtype) for array in group)
    return tuple(chain)


@jax.custom_jvp
def _values(chain: Chain) -> tuple[jax.Array, ...]:
    """Return the logarithms, their errors, the rank and the status, these as real numbers, which have tangents."""
    return _decompose(chain)[0]


@_values.defjvp
def _values_jvp(primals, tangents):
    (chain,), (chain_dot,) = primals, tangents
    values, left, right = _decompose(chain)
    parts = [
        jnp.sum((x.conj() * _dot(dot, y)).real, axis=(0, 1)) for x, dot, y in zip(left, chain_dot, right, strict=True)
    ]
    return values, (functools.reduce(jnp.add, parts), *(jnp.zeros_like(value) for value in values[1:]))


_jitted = jax.jit(_values)


@jax.custom_jvp
def _decompose(chain: Chain) -> tuple[tuple[jax.Array, ...], list[jax.Array], list[jax.Array]]:
    """Return what `_values` returns, and per stack the vectors x and y / d of the module's docstring."""
    finite = functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(stack)) for stack in chain])
    is_zero = functools.reduce(jnp.logical_or, [jnp.any(jnp.all(stack == 0, axis=(1, 2))) for stack in chain])
    scales = [jax.vmap(power_of_two)(stack)[:, None, None] for stack in chain]
    scaled = [
        jnp.where(finite, stack / scale.astype(stack.dtype), 0) for stack, scale in zip(chain, scales, strict=True)
    ]
    exponents = [jnp.sum(jnp.frexp(scale)[1] - 1, dtype=jnp.int32) for scale in scales]
    triangular, bases, remainder = _diagonalized(scaled)
    d = jnp.diagonal(triangular, axis1=1, axis2=2)
    logs = _log_of_product(d, functools.reduce(jnp.add, exponents))
    left, right = _sides(scaled, bases, triangular)

    eps, count = float(jnp.finfo(d.dtype).eps), d.shape[0]
    relative = _SAFETY * eps * functools.reduce(jnp.add, [
        jnp.sum(jnp.linalg.norm(a, axis=(1, 2))[:, None] * jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(y, axis=1), 0)
        for a, x, y in zip(scaled, left, right, strict=True)
    ])  # fmt: skip
    relative = jnp.where(jnp.isfinite(relative) & jnp.isfinite(logs), relative, jnp.inf) + remainder
    order = jnp.argsort(-logs)
    logs, relative = logs[order], jax.lax.cummax(relative[order])
    resolved = relative <= _RESOLVED
    rounding = eps * (jnp.abs(logs) + count)  # of the logarithm itself
    error = jnp.where(resolved, -jnp.log1p(-jnp.where(resolved, relative, 0)) + rounding, jnp.inf)
    error = jnp.where(is_zero, 0, error)
    log_values = jnp.where(resolved & ~is_zero, logs, -jnp.inf)

    status = jnp.where(jnp.all(resolved) | is_zero, int(Status.CONVERGED), int(Status.AT_ROUND_OFF))
    status = jnp.where(remainder <= _RESOLVED, status, int(Status.NOT_CONVERGED))
    status = jnp.where(finite, status, int(Status.NOT_FINITE))
    rank = jnp.where(is_zero, 0, jnp.sum(resolved))
    kept, blank = (resolved & ~is_zero)[None, None, :], jnp.where(finite, 0, jnp.nan)
    left = [jnp.where(kept & finite, x[:, :, order], blank.astype(x.dtype)) for x in left]
    right = [jnp.where(kept, y[:, :, order] / scale.astype(y.dtype), 0) for y, scale in zip(right, scales, strict=True)]
    values = log_values, error, rank.astype(logs.dtype), status.astype(logs.dtype)
    return values, left, right


@_decompose.defjvp
def _decompose_jvp(primals, tangents):
    raise NotImplementedError("the singular values of a product have first derivatives only, no second ones")


def _walk(step: Callable, carry: Any, groups: Sequence[Any], *, reverse: bool = False) -> tuple[Any, list[Any]]:
    """Scan over stacks one after the other: within one the carry keeps its shape, between two it may change."""
    outputs = []
    for stack in reversed(groups) if reverse else groups:
        if jax.tree.leaves(stack)[0].shape[0] == 1:
            carry, out = step(carry, jax.tree.map(lambda x: x[0], stack))
            out = jax.tree.map(lambda x: x[None], out)
        else:
            carry, out = jax.lax.scan(step, carry, stack, reverse=reverse)
        outputs.append(out)
    return carry, outputs[::-1] if reverse else outputs


def _adjoint(matrix: jax.Array) -> jax.Array:
    return jnp.swapaxes(matrix, -1, -2).conj()


def _forward(basis, factor):
    q, r = jnp.linalg.qr(_dot(factor, basis))
    return q, (q, r)


def _backward(basis, factor):
    q, r = jnp.linalg.qr(_dot(_adjoint(factor), basis))
    return q, (q, _adjoint(r))


def _diagonalized(chain: list[jax.Array]) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]], jax.Array]:
    """Return R_j with a diagonal product, shape (p, r, r), per stack the bases B_(j-1) and B_j, and the remainder."""
    dtype = chain[0].dtype
    real, eps = vectors.real_dtype(dtype), float(jnp.finfo(dtype).eps)
    start = jnp.eye(chain[0].shape[2], dtype=dtype)
    end, pairs = _walk(_forward, start, chain)
    outer, upper = [q for q, _ in pairs], [r for _, r in pairs]
    narrow = jnp.eye(end.shape[1], dtype=dtype)  # the smallest width, to which the way back cuts all factors
    _, pairs = _walk(_backward, narrow, upper, reverse=True)
    inner, factors = [z for z, _ in pairs], jnp.concatenate([r for _, r in pairs])
    count, size = factors.shape[:2]

    def advance(carry):
        factors, turns, basis, _, number = carry
        _, (q, factors) = jax.lax.scan(_forward, basis, factors)
        turns = _dot(turns, jnp.concatenate([basis[None], q]))
        logs, rows = graded_product(factors)
        remainder = distance_from_diagonal(rows)
        logs, rows = orthogonal_rows(logs, rows)
        basis = jnp.linalg.qr(_adjoint(rows[jnp.argsort(-logs)]))[0]  # completes it where rows are zero
        return factors, turns, basis, remainder, number + 1

    # the first round makes the triangle graded by rows, the second starts from its singular vectors
    turns = jnp.broadcast_to(jnp.eye(size, dtype=dtype), (count + 1, size, size))
    carry = (factors, turns, jnp.eye(size, dtype=dtype), jnp.full((), jnp.inf, real), 0)
    tol = 100 * eps * size
    unfinished = lambda carry: (carry[3] > tol) & (carry[4] < _MAX_ROUNDS)  # noqa: E731
    factors, turns, _, remainder, _ = jax.lax.while_loop(unfinished, advance, carry)

    bases, first, before = [], 0, start
    for index, (q, z) in enumerate(zip(outer, inner, strict=True)):
        behind = inner[index + 1][:1] if index + 1 < len(inner) else narrow[None]
        low, high = first, first + q.shape[0]
        # q[:-1] of a single factor is empty, and not of the shape of what stands in front of it
        q_before = before[None] if q.shape[0] == 1 else jnp.concatenate([before[None], q[:-1]])
        z_behind = behind if z.shape[0] == 1 else jnp.concatenate([z[1:], behind])
        into = _dot(_dot(q_before, z), turns[low:high])
        out = _dot(_dot(q, z_behind), turns[low + 1 : high + 1])
        bases.append((into, out))
        first, before = high, q[-1]
    return factors, bases, remainder


def _log_of_product(d: jax.Array, exponent: jax.Array) -> jax.Array:
    """Return log(2^exponent prod_j |d_j|) with the exponents summed as integers, so that rounding does not add up."""

    def step(carry, modulus):
        mantissa, exponents = carry
        mantissa, more = jnp.frexp(mantissa * modulus)
        return (mantissa, exponents + more), None

    modulus, least = jnp.abs(d), jnp.finfo(d.dtype).tiny
    start = jnp.ones(d.shape[1], modulus.dtype), jnp.broadcast_to(exponent, d.shape[1:])
    (mantissa, exponents), _ = jax.lax.scan(step, start, jnp.where(modulus < least, 0, modulus))
    zero = mantissa == 0
    logs = jnp.log(jnp.where(zero, 1, mantissa)) + exponents.astype(modulus.dtype) * np.log(2).astype(modulus.dtype)
    return jnp.where(zero, -jnp.inf, logs)


def _sides(chain, bases, triangular) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return per stack the vectors x_j, shape (q, m, r), and y_(j-1) / d_j, shape (q, n, r)."""
    size, dtype = triangular.shape[1], triangular.dtype
    d = jnp.diagonal(triangular, axis1=1, axis2=2)
    safe = jnp.where(d == 0, 1, d)
    solvable = triangular + jax.vmap(jnp.diag)(safe - d)

    def step(carry, item):
        x, y = carry
        factor, regular, d = item
        x_before = _dot(_adjoint(factor), x) / d.conj()
        y_before = jax.lax.linalg.triangular_solve(regular, y, left_side=True) * d
        return (x_before, y_before), (x_before, x, y_before, y)

    eye = jnp.eye(size, dtype=dtype)
    _, coordinates = jax.lax.scan(step, (eye, eye), (triangular, solvable, safe), reverse=True)
    items, first = [], 0
    for a, (into, out) in zip(chain, bases, strict=True):
        x_before, x, y_before, y, slopes = (part[first : first + a.shape[0]] for part in (*coordinates, safe))
        items.append((a, into, out, _dot(into, x_before), _dot(out, x), _dot(into, y_before), _dot(out, y), slopes))
        first += a.shape[0]
    if all(a.shape[1:] == (size, size) for a in chain):
        return [item[4] for item in items], [item[5] / item[7][:, None, :] for item in items]

    # the bases span less than the whole spaces: a part outside of them goes on by itself, and comes into no base
    def backward(x, item):
        a, into, _, inside, *_, slopes = item
        return inside + _outside(into, _dot(_adjoint(a), x) / slopes.conj()), x

    def forward(y, item):
        a, _, out, *_, inside, slopes = item
        return inside + _outside(out, _dot(a, y) / slopes), y / slopes

    _, left = _walk(backward, bases[-1][1][-1], items, reverse=True)
    _, right = _walk(forward, items[0][5][0], items)
    return left, right


def _outside(basis: jax.Array, x: jax.Array) -> jax.Array:
    if basis.shape[0] == basis.shape[1]:
        return jnp.zeros_like(x)
    return x - _dot(basis, _dot(_adjoint(basis), x))
