"""Products of layers with skips: how the condition number grows with depth."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spectrax.theory.perturbation.bounds import Bound, bound
from spectrax.theory.perturbation.shifted import plus_identity
from spectrax.theory.perturbation.values import (
    common_unit,
    condition_number,
    norm,
    product,
    ratio,
    real_matrix,
    real_scalar,
    real_vector,
    rounding,
    singular_values,
)


def product_bounds(factors: Sequence[Any] | Any, rho: Any, /, *, slopes: Any = None) -> list[Bound]:
    """Return bounds on M = (A_p + rho I) ... (A_1 + rho I), the Jacobian of p layers with skips.

    With A_j = D_j W_j, slopes times weights, delta_j = norm(A_j) and delta the largest of them:

    | name | hypothesis | says |
    |---|---|---|
    | A10 values | none | prod max(abs(rho) - delta_j, 0) <= s_i(M) <= prod (abs(rho) + delta_j) |
    | A10 | every delta_j < abs(rho) | kappa(M) <= prod (abs(rho) + delta_j) / (abs(rho) - delta_j) |
    | A10 equal | delta < abs(rho) | kappa(M) <= exp(2 p artanh(delta / abs(rho))), the same with delta for each |
    | A10 deviation | none | norm(M - rho^p I) <= prod (abs(rho) + delta_j) - abs(rho)^p; at rho = 1, of M - I |
    | combined | every delta_j < abs(rho), no slope is zero | kappa(M D) <= max abs(d) / min abs(d) times A10's bound |

    The last, given with `slopes`, is for a layer before these p: the loss is quadratic in its weights, with singular
    values in proportion to those of M D. With slopes in {eta, 1} and abs(eta) <= 1 the factor is 1 / abs(eta). The
    layer's own skip does not enter, only those of the p later layers do.

    Args:
        factors: The matrices A_j in the order in which they are applied: a sequence of p arrays of shape (n, n), or one
            of shape (p, n, n).
        rho: A real scalar.
        slopes: The slopes d of the layer before, shape (n,), for the last row.

    Returns:
        The rows in the order of the table.

    Raises:
        TypeError: If a factor or the slopes are not real and floating-point, or rho is not real.
        ValueError: If the factors are not square and of one shape, or there are none.

    Cost:
        p + 2 singular value decompositions of size n, 2 p products; one more with `slopes`.

    Derivatives:
        First derivatives, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> layers = jnp.array([[[0.0, 0.5], [0.5, 0.0]]] * 2)
        >>> rows = {row.name: row for row in perturbation.product_bounds(layers, 1.0)}
        >>> float(rows["A10"].upper), round(float(rows["A10"].actual), 5)
        (9.0, 9.0)

    Source:
        The question is that of Riedi, Balestriero & Baraniuk 2023 (doi:10.1007/s00365-022-09601-5). The bounds follow
        from s_1(AB) <= s_1(A) s_1(B), s_n(AB) >= s_n(A) s_n(B) and Weyl's inequality for each factor; the deviation
        from expanding the product and bounding each term but the first.
    """
    stack = square_factors(factors)
    if slopes is not None:
        slopes = real_vector("slopes", slopes, stack.shape[1], stack.dtype)
    return _product_bounds(stack, real_scalar("rho", rho, stack.dtype), slopes)


def square_factors(factors: Sequence[Any] | Any) -> jax.Array:
    """Return the factors of a product as a stack of shape (p, n, n), if they are square, of one shape and real."""
    if len(factors) == 0:
        raise ValueError("factors must hold at least one matrix, got none")
    matrices = [real_matrix("each factor", factor, square=True) for factor in factors]
    if len({matrix.shape for matrix in matrices}) > 1:
        raise ValueError(f"factors must have one shape, got {', '.join(str(matrix.shape) for matrix in matrices)}")
    return jnp.stack(matrices)


def multiply(stack: jax.Array, rho: jax.Array) -> jax.Array:
    """Return (A_p + rho I) ... (A_1 + rho I)."""
    total = plus_identity(stack[0], rho)
    for matrix in stack[1:]:
        total = product(plus_identity(matrix, rho), total)
    return total


@jax.jit
def _product_bounds(stack: jax.Array, rho: jax.Array, slopes: jax.Array | None) -> list[Bound]:
    unit = common_unit(stack, rho)
    stack, rho = stack / unit, rho / unit
    depth, total, size = stack.shape[0], multiply(stack, rho), jnp.abs(rho)
    deltas = jax.vmap(norm)(stack)
    own_error = rounding(stack[0], size + deltas.max())
    grown = jnp.prod(size + deltas)
    error = depth * rounding(total, grown)  # of each product in turn
    below = jnp.all(deltas + own_error < size)
    s = singular_values(total)

    shrunk = jnp.prod(jnp.maximum(size - deltas, 0))
    values = bound(
        "A10 values", "singular values", "prod max(|rho| - delta_j, 0) <= s_i(M) <= prod (|rho| + delta_j)",
        lower=shrunk, upper=grown, actual=s, round_off=2 * error, unit=unit**depth,
    )  # fmt: skip

    kappa, kappa_error = condition_number(s, error)
    limit = _quotients(size, deltas, jnp.zeros_like(size))
    limit_error = _above(_quotients(size, deltas, own_error), limit)
    layered = bound(
        "A10", "condition number", "every delta_j < |rho|: kappa(M) <= prod (|rho| + delta_j) / (|rho| - delta_j)",
        applies=below, upper=limit, actual=kappa, round_off=kappa_error + limit_error,
    )  # fmt: skip
    largest = jnp.broadcast_to(deltas.max(), deltas.shape)
    equal_limit = _quotients(size, largest, jnp.zeros_like(size))
    equal = bound(
        "A10 equal", "condition number", "delta < |rho|: kappa(M) <= exp(2 p artanh(delta / |rho|))",
        applies=below, upper=equal_limit, actual=kappa,
        round_off=kappa_error + _above(_quotients(size, largest, own_error), equal_limit),
    )  # fmt: skip

    distance = norm(plus_identity(total, -(rho**depth)))
    deviation = bound(
        "A10 deviation", "distance from rho^p I", "|M - rho^p I| <= prod (|rho| + delta_j) - |rho|^p",
        upper=grown - size**depth, actual=distance, round_off=4 * error, unit=unit**depth,
    )  # fmt: skip
    rows = [values, layered, equal, deviation]
    if slopes is not None:
        least, most = jnp.min(jnp.abs(slopes)), jnp.max(jnp.abs(slopes))
        sloped, sloped_error = condition_number(singular_values(total * slopes), most * error)
        factor = ratio(most, least)
        combined = bound(
            "combined", "condition number",
            "every delta_j < |rho|, no slope is zero: kappa(M D) <= max |d| / min |d| prod (|rho| + delta_j) / "
            "(|rho| - delta_j)",
            applies=below & (least > 0), upper=factor * limit, actual=sloped,
            round_off=sloped_error + factor * limit_error,
        )  # fmt: skip
        rows.append(combined)
    return rows


def _quotients(size: jax.Array, deltas: jax.Array, error: jax.Array) -> jax.Array:
    """Return the product of (size + delta_j) / (size - delta_j) with each term moved by `error` to the worse side."""
    return jnp.prod(ratio(size + deltas + error, size - deltas - error))


def _above(moved: jax.Array, value: jax.Array) -> jax.Array:
    """Return moved - value with a margin for the product's own rounding, inf where either is."""
    finite = jnp.isfinite(moved) & jnp.isfinite(value)
    return jnp.where(finite, 2 * (jnp.where(finite, moved, 0) - jnp.where(finite, value, 0)), jnp.inf)
