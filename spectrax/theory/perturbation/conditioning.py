"""When a skip is sure to help: bounds on the condition number of M + rho I."""

import jax
import jax.numpy as jnp

from spectrax.theory.perturbation.bounds import Bound, bound
from spectrax.theory.perturbation.shifted import ShiftedMatrix
from spectrax.theory.perturbation.values import condition_number, product, ratio, ratio_rounding, root, root_rounding


def condition_number_bounds(shift: ShiftedMatrix, /) -> list[Bound]:
    """Return the rows A6, A7, A7' and "A8 kappa" on the condition number of M + rho I.

    Args:
        shift: The matrix and its shift.

    Returns:
        Four bounds on the condition number.
    """
    s, h, rho = shift.s, shift.h, shift.rho
    actual, error = condition_number(shift.shifted, shift.error)
    start, start_error = condition_number(s, shift.error)
    quantity = "condition number"

    # A6: rho - s_1 <= s_i(M + rho I) <= rho + s_1.
    below = s[0] + shift.error < rho
    a6 = bound(
        "A6", quantity, "s_1 < |rho|: kappa(rho) <= (|rho| + s_1) / (|rho| - s_1)",
        applies=below, upper=ratio(rho + s[0], rho - s[0]), actual=actual,
        round_off=error + ratio_rounding(rho + s[0], rho - s[0], 2 * shift.error),
    )  # fmt: skip

    # A7: the hypothesis says that kappa(0) is at least the right side of A6.
    enough = s[-1] * (rho + s[0]) + shift.square_error <= s[0] * (rho - s[0])
    a7 = bound(
        "A7", quantity, "s_1 < |rho| and s_n <= s_1 (|rho| - s_1) / (|rho| + s_1): kappa(rho) <= kappa(0)",
        applies=below & (enough | (s[0] == 0)), upper=start, actual=actual,
        round_off=error + start_error,
    )  # fmt: skip

    # A7': with A4, kappa(rho)^2 <= (s_1^2 + a) / (s_n^2 + b), a = rho (rho + 2 h_max), b = rho (rho + 2 h_min) > 0, and
    # that is at most s_1^2 / s_n^2 where s_1^2 / s_n^2 >= a / b.
    top, bottom = rho + 2 * h[0], rho + 2 * h[-1]
    enough = s[0] ** 2 * bottom >= s[-1] ** 2 * top + 4 * shift.size * shift.square_error
    a7_prime = bound(
        "A7'", quantity,
        "rho > 0, rho + 2 h_min > 0 and kappa(0)^2 >= (rho + 2 h_max) / (rho + 2 h_min): kappa(rho) <= kappa(0)",
        applies=(rho > 0) & (bottom > 2 * shift.error) & enough, upper=start, actual=actual,
        round_off=error + start_error,
    )  # fmt: skip

    lower, upper = symmetric_part_sandwich(shift)
    top_error = shift.error + root_rounding(upper[0] ** 2, shift.square_error)
    bottom_error = shift.error + root_rounding(upper[-1] ** 2, shift.square_error)
    a8 = bound(
        "A8 kappa", quantity,
        "rho + h_min > 0: (rho + h_max) / sqrt((rho + h_min)^2 + delta) <= kappa(rho) <= "
        "sqrt((rho + h_max)^2 + delta) / (rho + h_min), so kappa(rho) -> 1 as rho grows",
        applies=lower[-1] > shift.error, lower=ratio(lower[0], upper[-1]), upper=ratio(upper[0], lower[-1]),
        actual=actual,
        round_off=error + ratio_rounding(upper[0], lower[-1], jnp.maximum(top_error, bottom_error)),
    )  # fmt: skip
    return [a6, a7, a7_prime, a8]


def symmetric_part_sandwich(shift: ShiftedMatrix) -> tuple[jax.Array, jax.Array]:
    """Return rho + h_i and sqrt((rho + h_i)^2 + delta), between which s_i(rho) lies where rho + h_n > 0.

    With S = Sym(M), M(rho)^T M(rho) = (S + rho I)^2 + (M^T M - S^2), and where S + rho I > 0 the eigenvalues of its
    square are (rho + h_i)^2 in the same order, so that Weyl's inequality gives s_i(rho)^2 <= (rho + h_i)^2 + delta with
    delta = |M^T M - S^2|. Hence s_i(rho) - (rho + h_i) <= delta / (2 (rho + h_i)) as well.

    Args:
        shift: The matrix and its shift.

    Returns:
        Lower and upper bounds, shape (n,).
    """
    symmetric = (shift.matrix + shift.matrix.T) / 2
    excess = product(shift.matrix.T, shift.matrix) - product(symmetric, symmetric)
    delta = jnp.max(jnp.abs(jnp.linalg.eigvalsh(excess)))
    lower = shift.rho + shift.h
    return lower, root(lower**2 + delta)
