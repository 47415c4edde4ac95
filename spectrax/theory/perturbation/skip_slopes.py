"""Activation slopes and a skip together: singular values of D W + rho I."""

from typing import Any

import jax
import jax.numpy as jnp

from spectrax.theory.perturbation.bounds import Bound, bound
from spectrax.theory.perturbation.shifted import plus_identity
from spectrax.theory.perturbation.values import (
    common_unit,
    norm,
    real_matrix,
    real_scalar,
    real_vector,
    rounding,
    singular_values,
)


def skip_slope_bounds(W: Any, slopes: Any, rho: Any, /) -> list[Bound]:
    """Return what is known of the singular values of D W + rho I with D = diag(d), a layer with a skip.

    A unit is active where its slope is not zero; W_AA are the rows and columns of W of the r active
    units, W_A the rows.

    | name | hypothesis | says |
    |---|---|---|
    | D6 | rho is not zero | det(D W + rho I) = rho^(n-r) det((D W)_AA + rho I), as logarithms of absolute values |
    | D6 rank | any | s_i >= abs(rho) for i <= n - r, s_i <= abs(rho) for i > r; rho = 0: rank at most r |
    | D6b | all abs(d) <= 1 | s_n >= abs(rho) - norm(W_A) |
    | D6b' | all abs(d) <= 1 | s_n >= abs(rho) - norm(W), for every pattern of such slopes at once |
    | D7 | all slopes 1 or -1 | s_i(D W + rho I) = s_i(W + rho D); not s_i(W + rho I) in general |
    | D7' | all slopes 1 or -1 | s_i(W) - abs(rho) <= s_i(D W + rho I) <= s_i(W) + abs(rho) |

    With ReLU and a skip a layer is of full rank unless -rho is an eigenvalue of W_AA (D6); without, its rank is at most
    r. The actual value of D6 is -inf where D W + rho I is singular as far as the dtype sees; then it is not applied.

    Args:
        W: The weights, a real matrix of shape (n, n).
        slopes: The slopes d of its rows, shape (n,).
        rho: A real scalar.

    Returns:
        The rows in the order of the table.

    Raises:
        TypeError: If W or the slopes are not real and floating-point, or rho is not real.
        ValueError: If the shapes don't fit.

    Cost:
        Six singular value decompositions of size n.

    Derivatives:
        First derivatives, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> relu = perturbation.skip_slope_bounds(jnp.full((2, 2), 0.25), jnp.array([1.0, 0.0]), 1.0)
        >>> [row.name for row in relu if row.applies]
        ['D6', 'D6 rank', 'D6b', "D6b'"]
        >>> float(jnp.exp(relu[0].actual).round(4)), all(bool(row.holds.all()) for row in relu)
        (1.25, True)

    Source:
        Derived where it is computed; the question is that of Riedi, Balestriero & Baraniuk 2023
        (doi:10.1007/s00365-022-09601-5).
    """
    matrix = real_matrix("W", W, square=True)
    slopes = real_vector("slopes", slopes, matrix.shape[0], matrix.dtype)
    return _skip_slope_bounds(matrix, slopes, real_scalar("rho", rho, matrix.dtype))


@jax.jit
def _skip_slope_bounds(matrix, slopes, rho) -> list[Bound]:
    unit = common_unit(matrix, rho)
    matrix, rho = matrix / unit, rho / unit
    n, size = matrix.shape[0], jnp.abs(rho)
    active = slopes != 0
    s = singular_values(plus_identity(slopes[:, None] * matrix, rho))
    whole = singular_values(matrix)
    error = rounding(matrix, size + whole[0] * jnp.maximum(jnp.max(jnp.abs(slopes)), 1))
    kept = norm(jnp.where(active[:, None], matrix, 0))

    bounded, signs = jnp.all(jnp.abs(slopes) <= 1), jnp.all(jnp.abs(slopes) == 1)
    # D6 rank: D W has rank at most r, and a change of rank r moves a value by at most r places (Weyl); all of rho I are
    # abs(rho).
    r, place = jnp.sum(active), jnp.arange(n)
    rank = bound(
        "D6 rank", "singular values", "r active units: s_i >= |rho| for i <= n - r, s_i <= |rho| for i > r",
        lower=jnp.where(place < n - r, size, 0), upper=jnp.where(place >= r, size, jnp.inf), actual=s,
        round_off=2 * error, unit=unit,
    )  # fmt: skip
    # D6b: Weyl's inequality, with norm(D W) <= norm(W_A).
    floor = bound(
        "D6b", "smallest singular value", "all |d| <= 1: s_n(D W + rho I) >= |rho| - norm(W_A)",
        applies=bounded, lower=size - kept, actual=s[-1], round_off=3 * error, unit=unit,
    )  # fmt: skip
    uniform = bound(
        "D6b'", "smallest singular value", "all |d| <= 1: s_n(D W + rho I) >= |rho| - norm(W)",
        applies=bounded, lower=size - whole[0], actual=s[-1], round_off=3 * error, unit=unit,
    )  # fmt: skip
    # D7: D D = I, so that D W + rho I = D (W + rho D), and D is orthogonal.
    turned = singular_values(matrix + rho * jnp.diag(slopes))
    equal = bound(
        "D7", "singular values", "all slopes 1 or -1: s_i(D W + rho I) = s_i(W + rho D)",
        applies=signs, lower=turned, upper=turned, actual=s, round_off=3 * error, unit=unit,
    )  # fmt: skip
    near = bound(
        "D7'", "singular values", "all slopes 1 or -1: |s_i(D W + rho I) - s_i(W)| <= |rho|",
        applies=signs, lower=whole - size, upper=whole + size, actual=s, round_off=3 * error, unit=unit,
    )  # fmt: skip
    return [_determinant_identity(matrix, slopes, rho, s, error, unit), rank, floor, uniform, equal, near]


def _determinant_identity(matrix, slopes, rho, s, error, unit) -> Bound:
    # Rows of inactive units are rho e_i^T: expand by them. With ones in place of rho there, and nothing else in these
    # rows and columns, the determinant of a matrix of fixed size is that of (D W)_AA + rho I.
    n, active = matrix.shape[0], slopes != 0
    inside = jnp.where(active[:, None] & active[None, :], slopes[:, None] * matrix, 0)
    block = inside + jnp.diag(jnp.where(active, rho, 1))
    block_values = singular_values(block)
    block_error = rounding(matrix, block_values[0])
    regular = (s[-1] > error) & (block_values[-1] > block_error) & (rho != 0)
    _, log_block = jnp.linalg.slogdet(jnp.where(regular, block, jnp.eye(n, dtype=matrix.dtype)))
    log_rho = jnp.log(jnp.where(rho == 0, 1, jnp.abs(rho)))
    dead = jnp.sum(~active).astype(matrix.dtype)
    value = dead * log_rho + log_block
    actual = jnp.sum(jnp.log(jnp.where(regular, s, 1)))
    scale = n * jnp.log(unit)
    safe, safe_block = jnp.where(regular, s, 1), jnp.where(regular, block_values, 1)
    terms = jnp.sum(error / safe) + jnp.sum(block_error / safe_block)
    eps = float(jnp.finfo(matrix.dtype).eps)
    magnitude = jnp.sum(jnp.abs(jnp.log(safe))) + jnp.sum(jnp.abs(jnp.log(safe_block))) + n * jnp.abs(log_rho)
    actual = jnp.where(regular, actual + scale, jnp.where(jnp.isfinite(s[0]), -jnp.inf, jnp.nan))
    return bound(
        "D6", "log |determinant|", "rho != 0: det(D W + rho I) = rho^(n-r) det((D W)_AA + rho I)",
        applies=regular, lower=value + scale, upper=value + scale, actual=actual,
        round_off=jnp.where(regular, 4 * terms + 10 * n * eps * (magnitude + jnp.abs(scale)), jnp.inf),
    )  # fmt: skip
