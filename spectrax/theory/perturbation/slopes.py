"""Activation slopes: what multiplying by a diagonal matrix does to singular values."""

from typing import Any

import jax
import jax.numpy as jnp

from spectrax.theory.perturbation.bounds import Bound, bound
from spectrax.theory.perturbation.values import (
    common_unit,
    condition_number,
    norm,
    ratio,
    real_matrix,
    real_vector,
    root,
    root_rounding,
    rounding,
    singular_values,
    tail,
)


def slope_bounds(M: Any, slopes: Any, /, *, output_slopes: Any = None) -> list[Bound]:
    """Return what is known of the singular values of M D with D = diag(d), the slopes of an activation.

    M is m x n, its columns are the units. A unit is active where its slope is 1; M_A are the active columns, r their
    number, M_I the others; MD_0 is M D with the slopes of the others set to zero. Leaky slopes are those of which all
    that are not 1 are one number eta with abs(eta) <= 1: ReLU has eta = 0, the absolute value eta = -1.

    | name | of the slopes | says |
    |---|---|---|
    | D1 | any | min abs(d) s_i(M) <= s_i(M D) <= max abs(d) s_i(M) |
    | D2 | none is zero | kappa(M) q <= kappa(M D) <= kappa(M) / q with q = min abs(d) / max abs(d), eta if leaky |
    | D3 | all 1 or -1 | s_i(M D) = s_i(M) |
    | D4 | all 0 or 1 | s_{i+n-r}(M) <= s_i(M D) <= s_i(M), and s_i(M D) = 0 for i > r |
    | D4b | all 0 or 1, r > 0, m >= n | kappa(M_A) <= kappa(M) |
    | D5 | leaky | abs(s_i(M D) - s_i(MD_0)) <= abs(eta) norm(M_I) |
    | D5b | leaky | eta^2 s_i(M)^2 + (1 - eta^2) lam_min <= s_i(M D)^2 <= eta^2 s_i(M)^2 + (1 - eta^2) lam_max |
    | D5c | leaky | s_i(MD_0) <= s_i(M D) <= s_i(M): each s_i is nondecreasing in abs(eta) |
    | D5d | none is zero; M square, not singular | sum_i log s_i(M D) = sum_i log s_i(M) + sum_i log abs(d_i) |
    | D2 output | given `output_slopes`, none is zero | as D2 for diag(output_slopes) M D, q the product of both |

    lam_min and lam_max are the extreme eigenvalues of M_A M_A^T. D4 says that on the active units ReLU is never worse
    (D4b), at the price of n - r dead directions; for m < n nothing of the kind holds. The rows of a matrix are selected
    in the same way: a max pooling with windows that don't overlap multiplies by a 0/1 matrix with one entry in each
    row, to which D4 applies, transposed. Overlapping windows may select one entry several times: their norm is up to
    the square root of the number of windows that an entry lies in, and D4 does not hold.

    Args:
        M: A real matrix of shape (m, n).
        slopes: The slopes d, shape (n,).
        output_slopes: Slopes by which the rows are multiplied, shape (m,), for the last row only.

    Returns:
        The rows in the order of the table.

    Raises:
        TypeError: If an argument is not real and floating-point.
        ValueError: If the shapes don't fit.

    Cost:
        Four singular value decompositions; one more with `output_slopes`.

    Derivatives:
        First derivatives, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> leaky = perturbation.slope_bounds(jnp.diag(jnp.array([2.0, 1.0])), jnp.array([1.0, 0.5]))
        >>> [row.name for row in leaky if row.applies]
        ['D1', 'D2', 'D5', 'D5b', 'D5c', 'D5d']
        >>> float(leaky[1].actual), float(leaky[1].upper)
        (4.0, 4.0)

    Source:
        The question is that of Riedi, Balestriero & Baraniuk 2023 (doi:10.1007/s00365-022-09601-5). D1 is Ostrowski's
        theorem, D4 Cauchy's interlacing; the others are derived where they are computed.
    """
    matrix = real_matrix("M", M)
    slopes = real_vector("slopes", slopes, matrix.shape[1], matrix.dtype)
    if output_slopes is not None:
        output_slopes = real_vector("output_slopes", output_slopes, matrix.shape[0], matrix.dtype)
    return _slope_bounds(matrix, slopes, output_slopes)


@jax.jit
def _slope_bounds(matrix, slopes, output_slopes) -> list[Bound]:
    unit = common_unit(matrix)
    matrix = matrix / unit
    s, sloped = singular_values(matrix), singular_values(matrix * slopes)
    largest = jnp.max(jnp.abs(slopes))
    error = rounding(matrix, s[0] * jnp.maximum(largest, 1))
    rows = [
        *_any_slopes(matrix, slopes, s, sloped, error, unit),
        *_selection_bounds(matrix, slopes, s, sloped, error, unit),
        *_leaky_bounds(matrix, slopes, s, sloped, error, unit),
        _determinant_identity(matrix, slopes, s, sloped, error, unit),
    ]
    if output_slopes is not None:
        both = singular_values(output_slopes[:, None] * matrix * slopes)
        q = _flatness(slopes) * _flatness(output_slopes)
        error = rounding(matrix, s[0] * largest * jnp.max(jnp.abs(output_slopes)))
        statement = (
            "no slope is zero: kappa(M) q <= kappa(D' M D) <= kappa(M) / q, q = min |d| min |d'| / max |d| max |d'|"
        )
        rows.append(_quotient_bound("D2 output", statement, q, s, both, error, rounding(matrix, s[0])))
    return rows


def _flatness(slopes) -> jax.Array:
    """Return min abs(d) / max abs(d), and 0 where all are zero."""
    top = jnp.max(jnp.abs(slopes))
    return jnp.where(top == 0, 0, jnp.min(jnp.abs(slopes)) / jnp.where(top == 0, 1, top))


def _quotient_bound(name, statement, q, s, changed, error, s_error) -> Bound:
    (kappa, kappa_error), (actual, actual_error) = condition_number(s, s_error), condition_number(changed, error)
    return bound(
        name, "condition number", statement,
        applies=q > 0, lower=jnp.where(jnp.isinf(kappa), jnp.inf, kappa * q), upper=ratio(kappa, q),
        actual=actual, round_off=actual_error + ratio(kappa_error, q),
    )  # fmt: skip


def _any_slopes(matrix, slopes, s, sloped, error, unit) -> list[Bound]:
    sizes = jnp.abs(slopes)
    d1 = bound(
        "D1", "singular values", "min |d| s_i(M) <= s_i(M D) <= max |d| s_i(M)",
        lower=sizes.min() * s, upper=sizes.max() * s, actual=sloped, round_off=2 * error, unit=unit,
    )  # fmt: skip
    # D2: the quotient of D1 for i = 1 and the last, and the same for M = (M D) D^-1.
    d2 = _quotient_bound(
        "D2", "no slope is zero: kappa(M) q <= kappa(M D) <= kappa(M) / q with q = min |d| / max |d|",
        _flatness(slopes), s, sloped, error, rounding(matrix, s[0]),
    )  # fmt: skip
    # D3: D is orthogonal.
    d3 = bound(
        "D3", "singular values", "all slopes 1 or -1: s_i(M D) = s_i(M)",
        applies=jnp.all(sizes == 1), lower=s, upper=s, actual=sloped, round_off=2 * error, unit=unit,
    )  # fmt: skip
    return [d1, d2, d3]


def _selection_bounds(matrix, slopes, s, sloped, error, unit) -> list[Bound]:
    m, n = matrix.shape
    r = jnp.sum(slopes == 1)
    is_relu = jnp.all((slopes == 0) | (slopes == 1))
    # D4: M_A M_A^T and M M^T differ by n - r columns' squares; the values of M beyond min(m, n) are zero.
    alive = jnp.arange(s.size) < r
    d4 = bound(
        "D4", "singular values",
        "all slopes 0 or 1: s_{i+n-r}(M) <= s_i(M D) <= s_i(M), and s_i(M D) = 0 for i > r",
        applies=is_relu, lower=tail(s, n - r, 0), upper=jnp.where(alive, s, 0), actual=sloped,
        round_off=2 * error, unit=unit,
    )  # fmt: skip
    ends = jnp.stack([sloped[0], sloped[jnp.clip(r - 1, 0, s.size - 1)]])  # of M_A
    selected, selected_error = condition_number(ends, error)
    kappa, kappa_error = condition_number(s, error)
    d4b = bound(
        "D4b", "condition number", "all slopes 0 or 1, r > 0, M has as many rows as columns or more: "
        "kappa(M_A) <= kappa(M)",
        applies=is_relu & (r > 0) & (m >= n), upper=kappa, actual=selected,
        round_off=selected_error + kappa_error,
    )  # fmt: skip
    return [d4, d4b]


def _leaky_bounds(matrix, slopes, s, sloped, error, unit) -> list[Bound]:
    m, n = matrix.shape
    active = slopes == 1
    low = jnp.min(jnp.where(active, jnp.inf, slopes))
    high = jnp.max(jnp.where(active, -jnp.inf, slopes))
    one_value = jnp.all(active) | (low == high)
    eta = jnp.where(jnp.all(active), 1, low)
    is_leaky = one_value & (jnp.abs(eta) <= 1)
    eta = jnp.where(is_leaky, eta, 0)
    selected = singular_values(jnp.where(active, matrix, 0))

    # D5: M D - MD_0 = eta M_I.
    reach = jnp.abs(eta) * norm(jnp.where(active, 0, matrix))
    d5 = bound(
        "D5", "singular values", "leaky: |s_i(M D) - s_i(MD_0)| <= |eta| norm(M_I)",
        applies=is_leaky, lower=selected - reach, upper=selected + reach, actual=sloped, round_off=3 * error, unit=unit,
    )  # fmt: skip
    # D5b: (M D)(M D)^T = eta^2 M M^T + (1 - eta^2) M_A M_A^T, and Weyl's inequality; m x m, so that more rows than
    # columns leave lam_min = 0.
    lam_min = selected[-1] ** 2 if m <= n else jnp.zeros_like(s[0])
    least, most = (eta**2 * s**2 + (1 - eta**2) * end for end in (lam_min, selected[0] ** 2))
    square_error = 4 * s[0] * error
    d5b = bound(
        "D5b", "singular values",
        "leaky: eta^2 s_i(M)^2 + (1 - eta^2) lam_min <= s_i(M D)^2 <= eta^2 s_i(M)^2 + (1 - eta^2) lam_max, the "
        "extreme eigenvalues of M_A M_A^T",
        applies=is_leaky, lower=root(least), upper=root(most), actual=sloped,
        round_off=error + jnp.maximum(root_rounding(least, square_error), root_rounding(most, square_error)), unit=unit,
    )  # fmt: skip
    # D5c: the same sum grows with eta^2, since M M^T - M_A M_A^T = M_I M_I^T >= 0.
    d5c = bound(
        "D5c", "singular values", "leaky: s_i(MD_0) <= s_i(M D) <= s_i(M)",
        applies=is_leaky, lower=selected, upper=s, actual=sloped, round_off=2 * error, unit=unit,
    )  # fmt: skip
    return [d5, d5b, d5c]


def _determinant_identity(matrix, slopes, s, sloped, error, unit) -> Bound:
    m, n = matrix.shape
    name, quantity = "D5d", "log |determinant|"
    statement = "no slope is zero, M square and not singular: sum_i log s_i(M D) = sum_i log s_i(M) + sum_i log |d_i|"
    regular = (jnp.min(jnp.abs(slopes)) > 0) & (s[-1] > error) & (sloped[-1] > error) & (m == n)
    scale = n * jnp.log(unit)
    value = _log_sum(s, regular) + _log_sum(jnp.abs(slopes), regular) + scale
    actual = _log_sum(sloped, regular) + scale
    # d log s = ds / s, and the rounding of the sums
    eps = float(jnp.finfo(s.dtype).eps)
    terms = jnp.sum(jnp.where(regular, error / jnp.where(regular, s, 1) + error / jnp.where(regular, sloped, 1), 0))
    magnitude = sum(jnp.sum(jnp.abs(jnp.log(jnp.where(regular & (x > 0), x, 1)))) for x in (s, sloped, jnp.abs(slopes)))
    actual = jnp.where(jnp.all(jnp.isfinite(sloped)), actual, jnp.nan)
    return bound(
        name, quantity, statement, applies=regular, lower=value, upper=value, actual=actual,
        round_off=jnp.where(regular, 2 * terms + 10 * n * eps * (magnitude + jnp.abs(scale)), jnp.inf),
    )  # fmt: skip


def _log_sum(values, defined) -> jax.Array:
    """Return the sum of logarithms, -inf where it is not defined (a determinant of zero, as far as the dtype sees)."""
    return jnp.where(defined, jnp.sum(jnp.log(jnp.where(defined & (values > 0), values, 1))), -jnp.inf)
