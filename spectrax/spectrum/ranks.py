"""Ranks that are continuous: how many directions a matrix uses, by the spread of its singular values."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.operators import aslinearoperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.results import Quantity
from spectrax.spectrum.frobenius import frobenius_norm
from spectrax.spectrum.functions import materializable, power_of_two, relative_sums, status_of
from spectrax.spectrum.quantities import round_off, spectral_norm, value_or_nan


def effective_rank(A: Any, /, *, full: bool = False, max_bytes: int | None = None) -> jax.Array | Quantity:
    """Return the effective rank exp(-sum_i p_i log p_i) with p_i = s_i / sum_j s_j.

    It is the number of equal singular values that would have the same entropy: 1 for a matrix of rank 1, min(m, n) for
    orthonormal rows or columns, never above the rank. For a zero matrix, which the definition leaves out, it is 0.

    Args:
        A: An operator of shape (m, n), or anything that `aslinearoperator` takes as one argument.
        full: Whether to return the value with its bounds.
        max_bytes: How large the matrix may be, as in `spectral_function`.

    Returns:
        A real scalar, NaN where the operator is not finite; or with `full=True` a `Quantity` of kind "exact", whose
        bounds follow from the round-off of the singular values by the continuity of the entropy.

    Raises:
        ValueError: If the matrix is larger than the limits or than `max_bytes`.

    Cost:
        As `spectral_function`: the operator is made dense and decomposed wholly.

    Derivatives:
        Forward and reverse, to the second order also at repeated values. The slope by a singular value is infinite at
        zero; those at round-off of the largest contribute zero instead. Zero for a zero matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> round(float(sx.effective_rank(jnp.diag(jnp.array([2.0, 2.0, 0.0])))), 5)
        2.0

    Source:
        Roy & Vetterli 2007, The effective rank: a measure of effective dimensionality, EUSIPCO, definition 1. The
        bounds: Audenaert 2007 (arXiv:quant-ph/0610146), Theorem 1.
    """
    operator = materializable(A, max_bytes)
    (total, weighted), largest = relative_sums(_entropy_terms, operator)
    is_zero = total == 0
    safe = jnp.where(is_zero, 1, total)
    entropy = jnp.log(safe) - weighted / safe
    value = jnp.where(is_zero, 0, jnp.exp(entropy))
    value = value - jax.lax.stop_gradient(jnp.maximum(value - min(operator.shape), 0))  # round-off above the rank
    lower, upper = jax.lax.stop_gradient(_entropy_bounds(entropy, safe, min(operator.shape), round_off(operator)))
    lower, upper = (jnp.where(is_zero, 0, bound) for bound in (lower, upper))
    quantity = Quantity(value, lower, upper, status_of(jnp.isfinite(largest)), kind="exact")
    return quantity if full else value_or_nan(quantity)


def _entropy_terms(x: jax.Array) -> jax.Array:
    """Return x and x log x, which is 0 at 0."""
    return jnp.stack([x, jnp.where(x == 0, 0, x * jnp.log(jnp.where(x == 0, 1, x)))])


def _entropy_bounds(entropy, total, count, error) -> tuple[jax.Array, jax.Array]:
    """Bound exp(H) where each s_i / s_1 has an error of at most `error`, and their sum is `total`."""
    distance = jnp.minimum(count * error / total, 1 - 1 / count)  # at most, in total variation
    inside = jnp.where(distance > 0, distance, 0.5)
    binary = -inside * jnp.log(inside) - (1 - inside) * jnp.log1p(-inside)
    change = distance * math.log(max(count - 1, 1)) + jnp.where(distance > 0, binary, 0)
    # the rounding of the entropy itself: of its sums, relative to their largest terms
    change = change + (1 + math.log(count)) * (error + count * float(jnp.finfo(total.dtype).eps))
    lower, upper = jnp.exp(entropy - change), jnp.exp(entropy + change)
    return jnp.maximum(lower, 1), jnp.minimum(upper, count)


def stable_rank(A: Any, /, *, full: bool = False, num_probes: int = 16, **options: Any) -> jax.Array | Quantity:
    r"""Return the stable rank \|A\|_F^2 / \|A\|_2^2 = sum_i s_i^2 / s_1^2.

    It lies between 1 and the rank, and takes one singular value and a Frobenius norm: no decomposition. For a zero
    matrix, whose quotient is not defined, it is 0.

    Args:
        A: An operator of shape (m, n), or anything that `aslinearoperator` takes as one argument.
        full: Whether to return the value with its bounds.
        num_probes: As in `frobenius_norm`, where that is estimated.
        **options: As in `svds`, for the largest value: `method`, `tol`, `max_matvecs`, `key`, `v0`, `throw`. The
            Frobenius norm of an operator that is too large to be made dense needs `key` as well.

    Returns:
        A real scalar, NaN if the largest value did not converge; or with `full=True` a `Quantity`. It is of kind
        "exact" where both norms are; "upper" where the largest value comes from an iteration, which may have missed a
        larger one; "estimate" where the Frobenius norm is estimated, which leaves the value unbiased. Of an "estimate",
        `upper` is an estimate as well.

    Raises:
        ValueError: If an option is not valid, or a needed key is missing.

    Cost:
        As `svds` with k = 1, and as `frobenius_norm`.

    Derivatives:
        2 Re<A, dA> / s_1^2 - 2 |A|_F^2 Re(u_1^H dA v_1) / s_1^3, any order, forward and reverse. Where s_1 is repeated,
        one of several subgradients, and no second derivative (NaN). The first derivative is zero for a zero matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> float(sx.stable_rank(jnp.diag(jnp.array([2.0, 2.0, 1.0]))))
        2.25

    Source:
        Rudelson & Vershynin 2007 (doi:10.1145/1255443.1255449), section 1, who call it the numerical rank.
    """
    operator = aslinearoperator(A)
    if isinstance(operator, MatrixOperator):  # the quotient does not depend on the scale
        matrix = operator.matrix.astype(vectors.working_dtype(operator.dtype))
        operator = MatrixOperator(matrix / power_of_two(matrix).astype(matrix.dtype))
    key = options.get("key")
    key = None if key is None else jax.random.fold_in(key, 1)
    top = spectral_norm(operator, full=True, **options)
    frobenius = frobenius_norm(operator, full=True, key=key, num_probes=num_probes)
    assert isinstance(top, Quantity)
    assert isinstance(frobenius, Quantity)

    is_zero = top.value == 0
    value = jnp.where(is_zero, 0, (frobenius.value / jnp.where(is_zero, 1, top.value)) ** 2)
    least = (frobenius.lower / jnp.where(is_zero, 1, top.upper)) ** 2
    below = jnp.where(top.lower > 0, top.lower, 1)
    most = jnp.where(top.lower > 0, (frobenius.upper / below) ** 2, jnp.inf)
    bounds = jnp.maximum(least, 1), jnp.minimum(most, min(operator.shape))
    lower, upper = jax.lax.stop_gradient(tuple(jnp.where(is_zero, 0, bound) for bound in bounds))
    status = jnp.maximum(top.status, frobenius.status)
    kind = frobenius.kind if frobenius.kind != "exact" or top.kind == "exact" else "upper"
    quantity = Quantity(value, lower, upper, status, kind=kind)
    return quantity if full else value_or_nan(quantity)
