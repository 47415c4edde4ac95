"""Adding a fraction of the identity: what is known of the singular values of M + rho I."""

from typing import Any

import jax
import jax.numpy as jnp

from spectrax.theory.perturbation.bounds import Bound, bound
from spectrax.theory.perturbation.conditioning import condition_number_bounds, symmetric_part_sandwich
from spectrax.theory.perturbation.normality import normal_bounds
from spectrax.theory.perturbation.shifted import ShiftedMatrix, plus_identity, shifted_matrix
from spectrax.theory.perturbation.values import (
    real_matrix,
    real_scalar,
    root,
    root_rounding,
    singular_values,
    symmetric_part_eigenvalues,
    triplets,
)


def identity_shift_bounds(M: Any, rho: Any, /) -> list[Bound]:
    """Return what is known of the singular values s_i(rho) of M + rho I, from those of M and of its symmetric part.

    With s_i = s_i(0), h_i the eigenvalues of Sym(M) = (M + M^T) / 2, h_max = h_1 and h_min = h_n:

    | name | of M | says |
    |---|---|---|
    | A1 | any | s_i - abs(rho) <= s_i(rho) <= s_i + abs(rho) |
    | A4 | any | s_i^2 + 2 rho h_min + rho^2 <= s_i(rho)^2 <= s_i^2 + 2 rho h_max + rho^2 |
    | A5 | any | s_i(rho) >= rho + h_i and s_i(rho) >= -(rho + h_{n+1-i}) |
    | A6 | s_1 < rho | kappa(rho) <= (rho + s_1) / (rho - s_1) |
    | A7 | s_1 < rho, s_n <= s_1 (rho - s_1) / (rho + s_1) | kappa(rho) <= kappa(0) |
    | A7' | rho + 2 h_min > 0, kappa(0)^2 >= (rho + 2 h_max) / (rho + 2 h_min) | kappa(rho) <= kappa(0) |
    | A8 | rho + h_min > 0 | rho + h_i <= s_i(rho) <= sqrt((rho + h_i)^2 + delta), delta = norm(M^T M - Sym(M)^2) |
    | A8 kappa | rho + h_min > 0 | the quotients of these |
    | A11 | any | sum_i s_i(rho)^2 = norm_F(M)^2 + 2 rho tr M + n rho^2 |
    | A12 | rho >= c = max(0, -h_min) | s_i(rho) >= s_i(c): from c on, all s_i(rho) are nondecreasing |
    | A12' | h_min >= 0 | s_i(rho)^2 >= s_i^2 + rho^2 |
    | A13 | normal | s_i(rho) are the abs(lambda + rho), sorted |
    | A14 | orthogonal | s_i(rho)^2 = 1 + 2 rho h_i + rho^2 |
    | A15 | any | K(rho) = s_1(rho) + ... + s_k(rho) is convex: above a tangent at 0, below the chord over [0, 2 rho] |

    A negative rho is a positive one added to -M: the table is read for -M and abs(rho) then.

    Args:
        M: A real matrix of shape (n, n), in units of its own.
        rho: A real scalar, in the same units.

    Returns:
        The rows in the order of the table.

    Raises:
        TypeError: If M is not real and floating-point, or rho is not real.
        ValueError: If M is not square, or rho is not a scalar.

    Cost:
        Five singular value decompositions (one with vectors), three eigenvalue decompositions and two complex ones with
        vectors, all of size n.

    Derivatives:
        First derivatives of bounds and actual values, forward and reverse; where singular values are repeated, one of
        several. A13 and A15 keep the vectors fixed, which gives the derivative wherever there is one.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> skip = perturbation.identity_shift_bounds(jnp.array([[0.0, 0.5], [-0.5, 0.0]]), 1.0)
        >>> [row.name for row in skip if row.applies]
        ['A1', 'A4', 'A5', 'A6', 'A8', 'A8 kappa', 'A11', 'A12', "A12'", 'A13', 'A15']
        >>> all(bool(row.holds.all()) for row in skip)
        True

    Source:
        The subject is that of Riedi, Balestriero & Baraniuk 2023 (doi:10.1007/s00365-022-09601-5). A1 is Weyl's
        inequality, A5 that of Fan and Hoffman, A15 follows from Ky Fan's maximum principle; the others are derived
        where they are computed.
    """
    matrix = real_matrix("M", M, square=True)
    return _identity_shift_bounds(matrix, real_scalar("rho", rho, matrix.dtype))


@jax.jit
def _identity_shift_bounds(matrix: jax.Array, rho: jax.Array) -> list[Bound]:
    shift = shifted_matrix(matrix, rho)
    a6, a7, a7_prime, a8_kappa = condition_number_bounds(shift)
    return [
        *_general_bounds(shift),
        a6,
        a7,
        a7_prime,
        _symmetric_part_bound(shift),
        a8_kappa,
        _frobenius_identity(shift),
        *_monotone_bounds(shift),
        *normal_bounds(shift),
        _convexity_bound(shift),
    ]


def _general_bounds(shift: ShiftedMatrix) -> list[Bound]:
    s, h, rho = shift.s, shift.h, shift.rho
    a1 = bound(
        "A1", "singular values", "s_i - |rho| <= s_i(rho) <= s_i + |rho|",
        lower=s - rho, upper=s + rho, actual=shift.shifted, round_off=2 * shift.error, unit=shift.unit,
    )  # fmt: skip
    # A4: M(rho)^T M(rho) = M^T M + 2 rho Sym(M) + rho^2 I, and Weyl's inequality for the symmetric sum.
    least, most = (s**2 + 2 * rho * end + rho**2 for end in (h[-1], h[0]))
    errors = jnp.maximum(root_rounding(least, shift.square_error), root_rounding(most, shift.square_error))
    a4 = bound(
        "A4", "singular values", "s_i^2 + 2 rho h_min + rho^2 <= s_i(rho)^2 <= s_i^2 + 2 rho h_max + rho^2",
        lower=root(least), upper=root(most), actual=shift.shifted, round_off=shift.error + errors, unit=shift.unit,
    )  # fmt: skip
    # A5: the i-th eigenvalue of the symmetric part is at most the i-th singular value, for M(rho) and for -M(rho).
    a5 = bound(
        "A5", "singular values", "s_i(rho) >= rho + h_i and s_i(rho) >= -(rho + h_{n+1-i})",
        lower=jnp.maximum(rho + h, -(rho + h)[::-1]), actual=shift.shifted, round_off=2 * shift.error, unit=shift.unit,
    )  # fmt: skip
    return [a1, a4, a5]


def _symmetric_part_bound(shift: ShiftedMatrix) -> Bound:
    lower, upper = symmetric_part_sandwich(shift)
    return bound(
        "A8", "singular values",
        "rho + h_min > 0: rho + h_i <= s_i(rho) <= sqrt((rho + h_i)^2 + delta) <= rho + h_i + delta / (2 (rho + h_i))",
        applies=lower[-1] > shift.error, lower=lower, upper=upper, actual=shift.shifted,
        round_off=2 * shift.error + root_rounding(upper**2, shift.square_error), unit=shift.unit,
    )  # fmt: skip


def _frobenius_identity(shift: ShiftedMatrix) -> Bound:
    n = shift.matrix.shape[0]
    # |M + rho I|_F^2, expanded
    value = jnp.sum(shift.matrix**2) + 2 * shift.rho * jnp.trace(shift.matrix) + n * shift.rho**2
    return bound(
        "A11", "sum of squares", "sum_i s_i(rho)^2 = |M|_F^2 + 2 rho tr M + n rho^2",
        lower=value, upper=value, actual=jnp.sum(shift.shifted**2), round_off=n * shift.square_error,
        unit=shift.unit**2,
    )  # fmt: skip


def _monotone_bounds(shift: ShiftedMatrix) -> list[Bound]:
    # A12: in any singular triplet of M(rho), s u = M(rho) v, so that s u^T v = v^T Sym(M) v + rho >= h_min + rho: the
    # slope u^T v is not negative from -h_min on.
    threshold = jnp.maximum(-shift.h[-1], 0)
    a12 = bound(
        "A12", "singular values", "rho >= c = max(0, -h_min): s_i(rho) >= s_i(c)",
        applies=shift.rho >= threshold - shift.error, lower=singular_values(plus_identity(shift.matrix, threshold)),
        actual=shift.shifted, round_off=4 * shift.error, unit=shift.unit,
    )  # fmt: skip
    squares = shift.s**2 + shift.rho**2  # A4 with h_min >= 0
    error = 2 * shift.square_error
    a12_prime = bound(
        "A12'", "singular values", "h_min >= 0: s_i(rho)^2 >= s_i^2 + rho^2",
        applies=shift.h[-1] >= -shift.error, lower=root(squares), actual=shift.shifted,
        round_off=shift.error + root_rounding(squares, error), unit=shift.unit,
    )  # fmt: skip
    return [a12, a12_prime]


def _convexity_bound(shift: ShiftedMatrix) -> Bound:
    # The sum of u_j^T A v_j over k orthonormal pairs is at most the Ky Fan sum of A: with the pairs of M, it is the
    # tangent at 0. A supremum of linear functions is convex.
    u, _, v = triplets(shift.matrix)
    start, end = jnp.cumsum(shift.s), jnp.cumsum(singular_values(plus_identity(shift.matrix, 2 * shift.rho)))
    n = shift.matrix.shape[0]
    return bound(
        "A15", "Ky Fan sums",
        "with K_k = s_1 + ... + s_k: K_k(0) + rho sum_{j<=k} u_j^T v_j <= K_k(rho) <= (K_k(0) + K_k(2 rho)) / 2",
        lower=start + shift.rho * jnp.cumsum(jnp.sum(u * v, axis=0)), upper=(start + end) / 2,
        actual=jnp.cumsum(shift.shifted), round_off=4 * n * shift.error, unit=shift.unit,
    )  # fmt: skip


def critical_rho(M: Any, /) -> jax.Array:
    """Return max(0, -h_min), from which on no singular value of M + rho I falls as rho grows.

    h_min is the smallest eigenvalue of (M + M^T) / 2. Since s_i(rho) u_i^T v_i >= rho + h_min, every slope is
    nonnegative from -h_min on, and positive beyond. Below it some singular value may fall, and need not.

    Args:
        M: A real matrix of shape (n, n).

    Returns:
        A nonnegative scalar in the units of M; NaN where M is not finite.

    Raises:
        TypeError: If M is not real and floating-point.
        ValueError: If M is not square.

    Cost:
        The eigenvalues of one symmetric matrix.

    Derivatives:
        First derivatives where the smallest eigenvalue is simple, one of several where it is repeated.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> float(perturbation.critical_rho(jnp.diag(jnp.array([1.0, -0.75]))))
        0.75

    Source:
        Derived, from s u^T v = v^T (Sym(M) + rho I) v.
    """
    smallest = symmetric_part_eigenvalues(real_matrix("M", M, square=True))[-1]
    return jnp.maximum(-smallest, 0)
