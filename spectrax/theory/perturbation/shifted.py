"""A matrix and its shift by a multiple of the identity, in a common unit, for all the bounds that compare the two."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spectrax.theory.perturbation.values import (
    common_unit,
    rounding,
    singular_values,
    symmetric_part_eigenvalues,
)


class ShiftedMatrix(NamedTuple):
    """M and M + rho I, with rho made nonnegative and both divided by a power of two.

    Since s_i(M + rho I) = s_i(-M - rho I), a negative rho is a positive one added to -M: every statement is used in
    that form, so no hypothesis rho >= 0 is left.

    Attributes:
        matrix: sign(rho) M / unit.
        rho: abs(rho) / unit.
        unit: The power of two.
        s: Singular values of `matrix`, descending.
        h: Eigenvalues of its symmetric part, descending.
        shifted: Singular values of `matrix` + `rho` I, descending.
        size: s_1 + rho, which bounds every norm that occurs.
        error: What rounding may do to a singular value.
        square_error: What rounding may do to the square of one.
    """

    matrix: jax.Array
    rho: jax.Array
    unit: jax.Array
    s: jax.Array
    h: jax.Array
    shifted: jax.Array
    size: jax.Array
    error: jax.Array
    square_error: jax.Array


def plus_identity(matrix: jax.Array, rho: jax.Array) -> jax.Array:
    """Return the matrix plus rho times the identity."""
    return matrix + rho * jnp.eye(matrix.shape[0], dtype=matrix.dtype)


def shifted_matrix(matrix: jax.Array, rho: jax.Array) -> ShiftedMatrix:
    """Decompose a square matrix and its shift.

    Args:
        matrix: Shape (n, n).
        rho: A real scalar of the same dtype.

    Returns:
        What the bounds need.
    """
    unit = common_unit(matrix, rho)
    matrix = jnp.where(rho < 0, -matrix, matrix) / unit
    rho = jnp.abs(rho) / unit
    s = singular_values(matrix)
    size = s[0] + rho
    error = rounding(matrix, size)
    return ShiftedMatrix(
        matrix=matrix,
        rho=rho,
        unit=unit,
        s=s,
        h=symmetric_part_eigenvalues(matrix),
        shifted=singular_values(plus_identity(matrix, rho)),
        size=size,
        error=error,
        square_error=4 * jax.lax.stop_gradient(size) * error,
    )
