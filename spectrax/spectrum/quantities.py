"""Numbers on top of the decomposition: norms and condition numbers, exact or with their bounds."""

from typing import Any

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.operators import aslinearoperator
from spectrax.operators.precision import in_working_precision
from spectrax.results import ExtremeSingularValues, Quantity, Status, SVDResult
from spectrax.spectrum.methods import Dense
from spectrax.spectrum.svds import resolve_method, svds

_SQRT_HALF = 0.5**0.5


def singular_values(A: Any, /, k: int | None = None, **options: Any) -> jax.Array:
    """Return the k largest singular values, or all of them.

    Args:
        A: An operator of shape (m, n), or anything that `aslinearoperator` takes.
        k: How many; None for all min(m, n).
        **options: As in `svds`.

    Returns:
        Shape (k,), descending; NaN where a value did not converge.

    Cost:
        As `svds`.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.singular_values(jnp.diag(jnp.array([1.0, 2.0]))).tolist()
        [2.0, 1.0]
    """
    operator = aslinearoperator(A)
    result = svds(A, min(operator.shape) if k is None else k, **options)
    return result.s * _one_or_nan(result.converged, result.s)


def spectral_norm(A: Any, /, *, full: bool = False, **options: Any) -> jax.Array | Quantity:
    r"""Return the largest singular value, \|A\|_2.

    Args:
        A: An operator, or anything that `aslinearoperator` takes.
        full: Whether to return the value with its bounds.
        **options: As in `svds`: `method`, `tol`, `max_matvecs`, `key`, `v0`, `throw`.

    Returns:
        A scalar, NaN if it did not converge; or with `full=True` a `Quantity`: of kind "exact" by the dense method, and
        otherwise "lower", with an upper bound of inf, since no residual shows that a larger value was not missed.

    Cost:
        As `svds` with k = 1.

    Derivatives:
        d|A| = Re(u^H dA v), any order, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> float(sx.spectral_norm(jnp.diag(jnp.array([3.0, 4.0]))))
        4.0
    """
    result = svds(A, 1, which="largest", **options)
    if not full:
        return _or_nan(result)
    margin = _SQRT_HALF * result.residuals[0] + round_off(A) * result.s[0]  # that of the residual itself
    exact = _is_dense(A, "largest", options)
    upper = result.s[0] + margin if exact else jnp.full_like(margin, jnp.inf)
    return Quantity(result.s[0], result.s[0] - margin, upper, result.status, kind="exact" if exact else "lower")


def smallest_singular_value(A: Any, /, *, full: bool = False, **options: Any) -> jax.Array | Quantity:
    """Return the smallest of the min(m, n) singular values.

    Args:
        A: An operator, or anything that `aslinearoperator` takes.
        full: Whether to return the value with its bounds.
        **options: As in `svds`.

    Returns:
        A scalar, NaN if it did not converge; or with `full=True` a `Quantity`: of kind "exact" by the dense method, and
        otherwise "upper", with a lower bound of zero, since no residual shows that a smaller value was not missed.

    Cost:
        As `svds` with k = 1 and which="smallest".

    Derivatives:
        As `spectral_norm`.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> float(sx.smallest_singular_value(jnp.diag(jnp.array([3.0, 4.0]))))
        3.0
    """
    result = svds(A, 1, which="smallest", **options)
    if not full:
        return _or_nan(result)
    margin = _SQRT_HALF * result.residuals[0]
    exact = _is_dense(A, "smallest", options)
    lower = jnp.maximum(result.s[0] - margin, 0) if exact else jnp.zeros_like(margin)
    return Quantity(result.s[0], lower, result.s[0] + margin, result.status, kind="exact" if exact else "upper")


def extreme_singular_values(A: Any, /, **options: Any) -> ExtremeSingularValues:
    """Return the largest and the smallest singular value with their residuals.

    Args:
        A: An operator, or anything that `aslinearoperator` takes.
        **options: As in `svds`: `method` (a method for both ends, or "auto"), `tol`, `max_matvecs`, `key`, `throw`,
            and `preconditioner`, which serves the smallest value alone. `InverseLanczos` and `Davidson`, which have no
            top end, are an error.

    Returns:
        `sigma_max`, `sigma_min`, `residual_max`, `residual_min`, `converged_max`, `converged_min`, `num_matvecs` and
        `status`, each a scalar. Values that did not converge are given as they are, with the flag that says so: the
        computed sigma_max is then a lower bound and sigma_min an upper one.

    Cost:
        As `svds` at both ends.

    Derivatives:
        As `spectral_norm`.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> ends = sx.extreme_singular_values(jnp.diag(jnp.array([3.0, 4.0])))
        >>> float(ends.sigma_max), float(ends.sigma_min)
        (4.0, 3.0)
    """
    top = svds(A, 1, which="largest", **_at_the_top(options))
    bottom = svds(A, 1, which="smallest", **options)
    return ExtremeSingularValues(
        sigma_max=top.s[0],
        sigma_min=bottom.s[0],
        residual_max=top.residuals[0],
        residual_min=bottom.residuals[0],
        converged_max=top.converged[0],
        converged_min=bottom.converged[0],
        num_matvecs=top.num_matvecs + bottom.num_matvecs,
        status=jnp.maximum(top.status, bottom.status),
    )


def condition_number(A: Any, /, *, full: bool = False, **options: Any) -> jax.Array | Quantity:
    """Return the condition number sigma_max / sigma_min.

    Where sigma_min is at round-off, at most sqrt(max(m, n)) eps sigma_max or at most its own residual, the operator is
    numerically singular: the value is inf, whatever the kind, and the lower bound with `full=True` says how large the
    condition number is at least.

    Args:
        A: An operator, or anything that `aslinearoperator` takes.
        full: Whether to return the value with its bounds.
        **options: As in `extreme_singular_values`.

    Returns:
        A scalar: inf for a numerically singular operator, NaN if one end did not converge; or with `full=True` a
        `Quantity`: of kind "exact" by the dense method, otherwise "lower".

    Cost:
        As `svds` at both ends.

    Derivatives:
        Through both singular values; zero where the value is inf.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> float(sx.condition_number(jnp.diag(jnp.array([1.0, 4.0]))))
        4.0
    """
    quantity = _condition(A, options)
    return quantity if full else value_or_nan(quantity)


def log_condition_number(A: Any, /, *, full: bool = False, **options: Any) -> jax.Array | Quantity:
    """Return the natural logarithm of the condition number, log sigma_max - log sigma_min.

    Args:
        A: An operator, or anything that `aslinearoperator` takes.
        full: Whether to return the value with its bounds.
        **options: As in `extreme_singular_values`.

    Returns:
        A scalar: inf for a numerically singular operator, NaN if one end did not converge; or with `full=True` a
        `Quantity`.

    Cost:
        As `svds` at both ends.

    Derivatives:
        d log kappa = Re(u_1^H dA v_1) / sigma_max - Re(u_n^H dA v_n) / sigma_min; zero where the value is inf.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> float(sx.log_condition_number(jnp.eye(2)))
        0.0
    """
    quantity = _condition(A, options)
    logarithm = Quantity(
        jnp.log(quantity.value), jnp.log(quantity.lower), jnp.log(quantity.upper), quantity.status, kind=quantity.kind
    )
    return logarithm if full else value_or_nan(logarithm)


def _condition(A: Any, options: dict) -> Quantity:
    top = spectral_norm(A, full=True, **_at_the_top(options))
    bottom = smallest_singular_value(A, full=True, **options)
    assert isinstance(top, Quantity)
    assert isinstance(bottom, Quantity)
    status = jnp.maximum(top.status, bottom.status)
    floor = round_off(A) * top.value
    residual = bottom.upper - bottom.value
    singular = (bottom.value <= jnp.maximum(floor, residual)) & (status <= int(Status.AT_ROUND_OFF))
    safe = jnp.where(singular, 1, bottom.value)  # both branches of a where must have finite derivatives
    value = jnp.where(singular, jnp.inf, jnp.where(singular, 0, top.value) / safe)
    most = float(jnp.finfo(value.dtype).max)  # a quotient that overflows is known to be that large, and no more
    at_least = jnp.minimum(top.lower / jnp.where(bottom.upper > 0, bottom.upper, 1), most)
    at_least = jnp.where(bottom.upper > 0, at_least, jnp.inf)
    lower = jax.lax.stop_gradient(jnp.where(top.value > 0, jnp.maximum(at_least, 1), 1))
    upper = jax.lax.stop_gradient(
        jnp.where(bottom.lower > floor, top.upper / jnp.where(bottom.lower > floor, bottom.lower, 1), jnp.inf)
    )
    return Quantity(value, lower, upper, status, kind="exact" if top.kind == bottom.kind == "exact" else "lower")


def _is_dense(A: Any, which: str, options: dict) -> bool:
    preconditioned = options.get("preconditioner") is not None
    method = resolve_method(A, 1, which=which, method=options.get("method", "auto"), preconditioned=preconditioned)
    return isinstance(method, Dense)


def _at_the_top(options: dict) -> dict:
    """The options of both ends as those of the largest value, which no preconditioner is for."""
    return {name: value for name, value in options.items() if name != "preconditioner"}


def round_off(A: Any) -> float:
    """Return the round-off of a decomposition relative to the largest value: c eps with c = sqrt(max(m, n))."""
    operator = in_working_precision(aslinearoperator(A))
    return vectors.eps((operator.in_struct, operator.out_struct)) * max(operator.shape) ** 0.5


def _or_nan(result: SVDResult) -> jax.Array:
    return result.s[0] * _one_or_nan(result.converged[0], result.s)


def value_or_nan(quantity: Quantity) -> jax.Array:
    """Return the value alone, which is NaN, and its derivative as well, unless it converged."""
    return quantity.value * _one_or_nan(quantity.status <= int(Status.AT_ROUND_OFF), quantity.value)


def _one_or_nan(good: jax.Array, like: jax.Array) -> jax.Array:
    """A factor and not a `where`, so that the derivative of what did not converge is NaN as well, and not zero."""
    return jnp.where(good, jnp.ones((), like.dtype), jnp.nan)
