"""What happens to a layer's singular values when units change their slope, from one region to the next."""

from typing import Any

import jax
import jax.numpy as jnp

from spectrax.theory.perturbation.bounds import Bound, bound
from spectrax.theory.perturbation.shifted import plus_identity
from spectrax.theory.perturbation.values import (
    common_unit,
    norm,
    ratio,
    ratio_rounding,
    real_matrix,
    real_scalar,
    real_vector,
    rounding,
    singular_values,
    tail,
)


def slope_change_bounds(W: Any, slopes: Any, new_slopes: Any, rho: Any = 0.0, /) -> list[Bound]:
    """Return bounds on the singular values s_i' of D' W + rho I by those, s_i, of D W + rho I.

    D = diag(slopes) and D' = diag(new_slopes) multiply the rows of the weights; for a matrix whose columns are
    multiplied, give its transpose and rho = 0. With W_F the rows whose slope changes and k their number:

    | name | hypothesis | says |
    |---|---|---|
    | D8 | rho = 0 | s_i min abs(d'/d) <= s_i' <= s_i max abs(d'/d), up to 1 / eta for leaky slopes |
    | D8b | any | abs(s_i' - s_i) <= max abs(d' - d) norm(W_F), for leaky slopes (1 - eta) norm(W_F) |
    | D8b relative | norm(D W) < abs(rho) | abs(s_i' - s_i) / s_i <= D8b's bound / (abs(rho) - norm(D W)) |
    | D8c | any | s_{i+k} <= s_i' <= s_{i-k} |

    D8's quotients are over the rows in which not both slopes are zero; a row that comes to life (d = 0, d' != 0) makes
    the upper one inf, as ReLU does. For slopes of 1 and -1 nothing changes at rho = 0.

    Args:
        W: The weights, a real matrix of shape (m, n).
        slopes: The slopes d, shape (m,).
        new_slopes: The slopes d', shape (m,).
        rho: A real scalar. W must be square, unless this is the number 0.

    Returns:
        The rows in the order of the table; actual values are s_i', and in "D8b relative" the relative change.

    Raises:
        TypeError: If an array is not real and floating-point, or rho is not real.
        ValueError: If the shapes don't fit.

    Cost:
        Four singular value decompositions.

    Derivatives:
        First derivatives, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> change = perturbation.slope_change_bounds(jnp.eye(2), jnp.array([1.0, 0.5]), jnp.array([1.0, 1.0]))
        >>> [(row.name, row.upper.tolist()) for row in change if row.applies]
        [('D8', [2.0, 1.0]), ('D8b', [1.5, 1.0]), ('D8c', [inf, 1.0])]

    Source:
        D8 is Ostrowski's theorem and D8b and D8c are Weyl's inequalities, for a small change and for one of rank k; the
        question is that of Riedi, Balestriero & Baraniuk 2023 (doi:10.1007/s00365-022-09601-5).
    """
    no_skip = isinstance(rho, (int, float)) and not isinstance(rho, bool) and rho == 0
    matrix = real_matrix("W", W, square=not no_skip)
    slopes = real_vector("slopes", slopes, matrix.shape[0], matrix.dtype)
    new_slopes = real_vector("new_slopes", new_slopes, matrix.shape[0], matrix.dtype)
    return _slope_change_bounds(matrix, slopes, new_slopes, None if no_skip else real_scalar("rho", rho, matrix.dtype))


@jax.jit
def _slope_change_bounds(matrix, old, new, rho) -> list[Bound]:
    rho = jnp.zeros((), matrix.dtype) if rho is None else rho
    unit = common_unit(matrix, rho)
    matrix, rho = matrix / unit, rho / unit
    size = jnp.abs(rho)

    def values(slopes):
        sloped = slopes[:, None] * matrix
        return singular_values(plus_identity(sloped, rho) if matrix.shape[0] == matrix.shape[1] else sloped)

    s, changed = values(old), values(new)
    largest = jnp.maximum(jnp.max(jnp.abs(old)), jnp.max(jnp.abs(new)))
    error = rounding(matrix, size + norm(matrix) * jnp.maximum(largest, 1))

    # D8: D'^2 <= q^2 D^2 as diagonal matrices, so W^T D'^2 W <= q^2 W^T D^2 W; rows of zeros in both don't count.
    counts = (old != 0) | (new != 0)
    quotients = jax.vmap(ratio)(jnp.abs(new), jnp.abs(old))
    least = jnp.min(jnp.where(counts, quotients, jnp.inf))
    most = jnp.max(jnp.where(counts, quotients, 0))
    least = jnp.where(jnp.isfinite(least), least, 0)  # every row that counts comes to life: nothing is known below
    finite = jnp.isfinite(most)
    upper = jnp.where(finite, jnp.where(finite, most, 0) * s, jnp.inf)
    d8 = bound(
        "D8", "singular values", "rho = 0: s_i min |d'/d| <= s_i' <= s_i max |d'/d|",
        applies=rho == 0, lower=least * s, upper=upper, actual=changed,
        round_off=error * (2 + least + jnp.where(finite, most, 0)), unit=unit,
    )  # fmt: skip

    # D8b: D' W - D W = (D' - D) W, which has no other rows than W_F.
    flipped = old != new
    reach = jnp.max(jnp.abs(new - old)) * norm(jnp.where(flipped[:, None], matrix, 0))
    d8b = bound(
        "D8b", "singular values", "|s_i' - s_i| <= max |d' - d| norm(W_F)",
        lower=s - reach, upper=s + reach, actual=changed, round_off=4 * error, unit=unit,
    )  # fmt: skip
    room = size - norm(old[:, None] * matrix)
    safe = jnp.where(s <= 0, 1, s)
    relative = bound(
        "D8b relative", "relative change",
        "norm(D W) < |rho|: |s_i' - s_i| / s_i <= max |d' - d| norm(W_F) / (|rho| - norm(D W))",
        applies=room > error, upper=ratio(reach, room), actual=jnp.where(s <= 0, jnp.inf, jnp.abs(changed - s) / safe),
        round_off=jnp.where(s > 0, (4 + 2 * reach / safe) * error / safe, jnp.inf)
        + ratio_rounding(reach, room, 2 * error),
    )  # fmt: skip

    # D8c: the change has rank at most k.
    k = jnp.sum(flipped)
    d8c = bound(
        "D8c", "singular values", "k rows flip: s_{i+k} <= s_i' <= s_{i-k}",
        lower=tail(s, k, 0), upper=tail(s, -k, jnp.inf), actual=changed, round_off=2 * error, unit=unit,
    )  # fmt: skip
    return [d8, d8b, relative, d8c]
