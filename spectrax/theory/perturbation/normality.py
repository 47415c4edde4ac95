"""Normal and orthogonal matrices, whose shifts have singular values in closed form."""

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.theory.perturbation.bounds import Bound, bound
from spectrax.theory.perturbation.shifted import ShiftedMatrix
from spectrax.theory.perturbation.values import product, root, root_rounding, rounding

# Two numbers without any meaning but that sums of the eigenvalues' parts hardly coincide.
_MIXTURES = (0.7390851332151607, -1.2020569031595942)


def normal_bounds(shift: ShiftedMatrix, /) -> list[Bound]:
    """Return the rows A13 and A14 on the singular values of M + rho I.

    Args:
        shift: The matrix and its shift.

    Returns:
        Two equalities.
    """
    n, rho = shift.matrix.shape[0], shift.rho
    eigenvalues, distance = _normal_eigenvalues(shift.matrix)
    moved = root((eigenvalues.real + rho) ** 2 + eigenvalues.imag**2)
    moved = jnp.sort(moved)[::-1]
    # By Weyl's inequality the equality holds up to the distance of M from a matrix that is normal.
    a13 = bound(
        "A13", "singular values", "M normal: the s_i(rho) are the |lambda + rho|",
        applies=distance <= n * rounding(shift.matrix, shift.s[0]), lower=moved, upper=moved,
        actual=shift.shifted, round_off=2 * shift.error + distance, unit=shift.unit,
    )  # fmt: skip

    # A14: M(rho)^T M(rho) = M^T M + 2 rho Sym(M) + rho^2 I, where M^T M = I, which is I / unit^2 in the common unit.
    defect = jax.lax.stop_gradient(jnp.max(jnp.abs(shift.s * shift.unit - 1)))
    orthogonal = defect <= rounding(shift.matrix, jnp.ones_like(rho))
    one = jnp.where(orthogonal, 1 / shift.unit, 0)
    squares = one**2 + 2 * rho * shift.h + rho**2
    a14 = bound(
        "A14", "singular values", "M orthogonal: s_i(rho)^2 = 1 + 2 rho h_i + rho^2",
        applies=orthogonal, lower=root(squares), upper=root(squares), actual=shift.shifted,
        round_off=shift.error + root_rounding(squares, 2 * shift.square_error + 3 * defect * one**2), unit=shift.unit,
    )  # fmt: skip
    return [a13, a14]


def _normal_eigenvalues(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return eigenvalues q_i^H M q_i in a unitary basis q, and |M - Q diag Q^H|_F, which is zero for normal M.

    S = (M + M^T) / 2 and the Hermitian K = (M - M^T) / (2 j) commute where M is normal, so that the eigenvectors of
    S + t K, with a t for which eigenvalues don't coincide by accident, are those of M. This takes a Hermitian solver
    only, which every device has; the better of two t is taken. Whatever basis comes, the distance is a true one.
    """
    fixed = jax.lax.stop_gradient(matrix)
    symmetric, skew = (fixed + fixed.T) / 2, (fixed - fixed.T) / 2
    candidates = []
    for mixture in _MIXTURES:
        _, basis = jnp.linalg.eigh(jax.lax.complex(symmetric, -mixture * skew))
        diagonal = jnp.einsum("ji,jk,ki->i", basis.conj(), _complex(matrix), basis, precision=vectors.HIGHEST)
        rebuilt = product(basis * jax.lax.stop_gradient(diagonal), basis.conj().T)
        candidates.append((diagonal, jnp.linalg.norm(jnp.abs(_complex(fixed) - rebuilt))))
    (first, first_distance), (second, second_distance) = candidates
    better = first_distance <= second_distance
    return jnp.where(better, first, second), jnp.where(better, first_distance, second_distance)


def _complex(matrix: jax.Array) -> jax.Array:
    return jax.lax.complex(matrix, jnp.zeros_like(matrix))
