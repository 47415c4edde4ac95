"""Norms of the whole spectrum: the sum of all singular values, and the root of the sum of their p-th powers."""

import dataclasses
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.operators import LinearOperator
from spectrax.results import Quantity
from spectrax.spectrum.frobenius import exact_norm
from spectrax.spectrum.functions import materializable, relative_sums, status_of
from spectrax.spectrum.methods import Dense
from spectrax.spectrum.quantities import round_off, spectral_norm, value_or_nan


def nuclear_norm(A: Any, /, *, full: bool = False, max_bytes: int | None = None) -> jax.Array | Quantity:
    r"""Return the sum of all singular values, \|A\|_* = sum_i s_i.

    Args:
        A: An operator of shape (m, n), or anything that `aslinearoperator` takes as one argument.
        full: Whether to return the value with its bounds.
        max_bytes: How large the matrix may be, as in `spectral_function`.

    Returns:
        A real scalar, NaN where the operator is not finite; or with `full=True` a `Quantity` of kind "exact".

    Raises:
        ValueError: If the matrix is larger than the limits or than `max_bytes`.

    Cost:
        As `spectral_function`: the operator is made dense and decomposed wholly.

    Derivatives:
        Re<U V^H, dA>, forward and reverse, to the second order also at repeated values. Singular values at round-off of
        the largest are left out of U V^H, which is the subgradient of least norm; at a zero matrix it is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> float(sx.nuclear_norm(jnp.diag(jnp.array([3.0, 4.0]))))
        7.0

    Source:
        Watson 1992 (doi:10.1016/0024-3795(92)90407-2) for the subgradients.
    """
    return schatten_norm(A, 1, full=full, max_bytes=max_bytes)


def schatten_norm(A: Any, p: float, /, *, full: bool = False, max_bytes: int | None = None) -> jax.Array | Quantity:
    r"""Return the Schatten norm (sum_i s_i^p)^(1/p) of all singular values.

    p = 1 is the nuclear norm, p = 2 the Frobenius norm and p = inf the spectral norm. For 0 < p < 1 it is no norm, but
    a quasi-norm. No power overflows or vanishes, however large p or A is.

    Args:
        A: An operator of shape (m, n), or anything that `aslinearoperator` takes as one argument.
        p: A positive number, or inf.
        full: Whether to return the value with its bounds.
        max_bytes: How large the matrix may be, as in `spectral_function`.

    Returns:
        A real scalar, NaN where the operator is not finite; or with `full=True` a `Quantity` of kind "exact".

    Raises:
        ValueError: If p is not positive, or so small that the norm of as many ones overflows, or the matrix is larger
            than the limits or than `max_bytes`.
        TypeError: If p is not a real number.

    Cost:
        As `spectral_function`; for p = 2 without the decomposition.

    Derivatives:
        Re<U diag(x) V^H, dA> with x_i = (s_i / |A|_p)^(p - 1), forward and reverse, to the second order also at
        repeated values. Singular values at round-off of the largest contribute zero, as in `spectral_function`; so does
        a zero matrix. For p = inf as `spectral_norm`, which has no derivative where the largest value is repeated, but
        subgradients.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> round(float(sx.schatten_norm(jnp.diag(jnp.array([1.0, 1.0, 2.0])), 3)), 5)
        2.15443

    Source:
        Bhatia 1997 (doi:10.1007/978-1-4612-0653-8), section IV.2.
    """
    if isinstance(p, bool) or not isinstance(p, numbers.Real):
        raise TypeError(f"p must be a real number, got {p!r} of type {type(p).__name__}")
    if not float(p) > 0:
        raise ValueError(f"p must be positive, got {p}")
    operator = materializable(A, max_bytes)
    least = math.log(min(operator.shape)) / math.log(float(jnp.finfo(operator.dtype).max))
    if float(p) <= least:
        raise ValueError(
            f"p must be above {least:.1e} for {min(operator.shape)} values in {operator.dtype.name}, or the norm of as "
            f"many ones overflows; got {p}"
        )
    if math.isinf(p):
        return spectral_norm(A, full=full, method=Dense())
    quantity = exact_norm(operator) if p == 2 else _from_values(operator, p)
    return quantity if full else value_or_nan(quantity)


def _from_values(operator: LinearOperator, p: float) -> Quantity:
    power = int(p) if float(p).is_integer() else float(p)
    (total,), largest = relative_sums(_Power(power), operator)
    value = _root(total, power) * largest

    error, count = round_off(operator), min(operator.shape)
    summation = (8 + count / 2) * vectors.eps((operator.in_struct, operator.out_struct))
    if power >= 1:  # the norm of the values' errors (Mirsky), and the rounding of the sum
        margin = error * count ** (1 / power) * largest + summation * value
        lower, upper = value - margin, value + margin
    else:  # |a^p - b^p| <= |a - b|^p
        margin = error**power * count + summation * total
        lower, upper = (_root(jnp.maximum(total + sign * margin, 0), power) * largest for sign in (-1, 1))
    lower, upper = jax.lax.stop_gradient((jnp.maximum(lower, 0), upper))
    return Quantity(value, lower, upper, status_of(jnp.isfinite(value)), kind="exact")


@dataclasses.dataclass(frozen=True)
class _Power:
    """x -> x^p, as one function."""

    p: int | float

    def __call__(self, x: jax.Array) -> jax.Array:
        return (x if self.p == 1 else x**self.p)[None]


def _root(total: jax.Array, p: float) -> jax.Array:
    """Return total^(1/p), whose derivative at zero is taken to be zero."""
    positive = jnp.where(total == 0, 1, total)
    return jnp.where(total == 0, 0, positive if p == 1 else positive ** (1 / p))
