"""How fast the singular values of M + rho I move with rho, and how the values bend."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax.theory.perturbation.products import multiply, square_factors
from spectrax.theory.perturbation.shifted import plus_identity
from spectrax.theory.perturbation.values import common_unit, product, real_matrix, real_scalar, rounding, triplets


class ShiftDerivatives(NamedTuple):
    """Singular values of M + rho I with their derivatives by rho, each of shape (n,), the values descending.

    Attributes:
        values: The singular values.
        first: d s_i / d rho.
        second: The second derivatives; None where only the first were asked for.
    """

    values: jax.Array
    first: jax.Array
    second: jax.Array | None


def identity_shift_derivatives(M: Any, rho: Any, /) -> ShiftDerivatives:
    """Return the singular values of M + rho I and their first two derivatives by rho.

    With u_i, v_i the singular vectors of M + rho I::

        s_i'  = u_i^T v_i, the cosine of the angle between them, in [-1, 1],
        s_i'' = sum_{j != i} (u_j^T v_i + v_j^T u_i)^2 / (2 (s_i - s_j))
                + sum_j (u_j^T v_i - v_j^T u_i)^2 / (2 (s_i + s_j)).

    The singular values with a sign are the eigenvalues of [[0, M + rho I], [(M + rho I)^T, 0]], with eigenvectors
    (u, v) / sqrt 2 for s and (u, -v) / sqrt 2 for -s. This matrix is linear in rho, and the formulas are those of first
    and second order perturbation theory for its eigenvalues.

    A derivative is NaN where it is not defined: at a value of zero, where the ordered value has a kink in general, and
    at repeated values, unless all vectors of their space give the same (as for pairs of complex eigenvalues of a normal
    M). Equal is what is equal to 100 n eps (s_1 + abs(rho)).

    Args:
        M: A real matrix of shape (n, n).
        rho: A real scalar.

    Returns:
        Values, first and second derivatives. No derivative of these can be taken: they are constants to JAX.

    Raises:
        TypeError: If M is not real and floating-point, or rho is not real.
        ValueError: If M is not square, or rho is not a scalar.

    Cost:
        One singular value decomposition with vectors, and products of that size.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> rotation = jnp.array([[0.0, 2.0], [-2.0, 0.0]])  # both values are sqrt(4 + rho^2)
        >>> found = perturbation.identity_shift_derivatives(rotation, 0.0)
        >>> found.first.round(5).tolist(), found.second.round(5).tolist()
        ([0.0, 0.0], [0.5, 0.5])

    Source:
        Kato, Perturbation theory for linear operators, chapter II, section 6 (analytic branches); the second derivative
        is derived from it as said above.
    """
    matrix = real_matrix("M", M, square=True)
    return _identity_shift_derivatives(matrix, real_scalar("rho", rho, matrix.dtype))


@jax.jit
def _identity_shift_derivatives(matrix: jax.Array, rho: jax.Array) -> ShiftDerivatives:
    matrix, rho = jax.lax.stop_gradient((matrix, rho))
    u, s, v = triplets(plus_identity(matrix, rho))
    same = equal_within(matrix, s[0] + jnp.abs(rho))
    first, second = branch_derivatives(u, v, s, same)
    is_zero = s <= same
    return ShiftDerivatives(s, jnp.where(is_zero, jnp.nan, first), jnp.where(is_zero, jnp.nan, second))


def equal_within(matrix: jax.Array, size: jax.Array) -> jax.Array:
    """Return the distance up to which two singular values count as equal, for a matrix of norm `size`."""
    return 10 * rounding(matrix, size)


def branch_derivatives(u: jax.Array, v: jax.Array, s: jax.Array, same: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the first two derivatives by rho of singular values with a sign.

    Perturbation theory within an eigenspace asks for vectors in which the first derivative of the matrix is diagonal
    there, and, where two of these derivatives are equal, the second order as well. A derivative is given where the
    vectors at hand are such, to round-off, and is NaN elsewhere.

    Args:
        u: Left singular vectors as columns, shape (n, n).
        v: Right singular vectors as columns, with s_i = u_i^T A v_i.
        s: Values, of either sign.
        same: Within what distance values are equal.

    Returns:
        First and second derivatives, shape (n,).
    """
    n, eps = s.size, float(jnp.finfo(s.dtype).eps)
    cross = product(u.T, v)
    # Row l, column i: x_l^T H' x_i, for l over the eigenvectors (u, v) and then over (u, -v).
    coupling = jnp.concatenate([(cross + cross.T) / 2, (cross - cross.T) / 2])
    gaps = s[None, :] - jnp.concatenate([s, -s])[:, None]
    own = jnp.eye(2 * n, n, dtype=bool)
    inside = jnp.abs(gaps) <= same
    limit = 100 * n * eps
    first_order = jnp.where(inside & ~own, jnp.abs(coupling), 0).max(axis=0) <= limit

    outside = jnp.where(inside, 0, jnp.sign(gaps) / jnp.maximum(jnp.abs(gaps), same))
    second = 2 * jnp.sum(coupling**2 * outside, axis=0)
    # The second-order matrix within the space: couplings by way of the outside, from (u, v) and from (u, -v).
    mirrored = jnp.concatenate([coupling[n:], coupling[:n]])
    plain = product((coupling * outside).T, coupling)
    minus = product((coupling * outside).T, mirrored)
    mixing = jnp.where(inside & ~own, jnp.abs(jnp.concatenate([plain.T, minus.T])), 0).max(axis=0)
    slopes = jnp.diagonal(cross)
    unsplit = jnp.abs(slopes[None, :] - jnp.concatenate([slopes, -slopes])[:, None]) <= jnp.sqrt(eps)
    scale = jnp.sum(coupling**2 * jnp.abs(outside), axis=0)
    size = jnp.max(jnp.abs(s))  # second derivatives have its inverse as their unit
    second_order = ~jnp.any(inside & ~own & unsplit, axis=0) | (size * mixing <= limit * (1 + size * scale.max()))
    first = jnp.where(first_order & ~jnp.isnan(slopes), slopes, jnp.nan)
    return first, jnp.where(first_order & second_order, second, jnp.nan)


def product_derivatives(factors: Sequence[Any] | Any, rho: Any, /) -> ShiftDerivatives:
    """Return the singular values of (A_p + rho I) ... (A_1 + rho I) and their first derivatives by rho.

    s_i' = u_i^T M' v_i with M' = sum_j (product with the j-th factor left out).

    Args:
        factors: The matrices A_j, in the order in which they are applied: a sequence of p arrays of shape (n, n), or
            one of shape (p, n, n).
        rho: A real scalar.

    Returns:
        Values and first derivatives, NaN where the value is zero or repeated (to round-off); no second derivatives.
        They are constants to JAX.

    Raises:
        TypeError: If a factor is not real and floating-point, or rho is not real.
        ValueError: If the factors are not square and of one shape, or there are none.

    Cost:
        3 p products and one singular value decomposition.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> layers = jnp.array([[[1.0, 0.0], [0.0, 0.0]]] * 2)  # values (1 + rho)^2 and rho^2
        >>> perturbation.product_derivatives(layers, 0.5).first.tolist()
        [3.0, 1.0]
    """
    stack = square_factors(factors)
    return _product_derivatives(stack, real_scalar("rho", rho, stack.dtype))


@jax.jit
def _product_derivatives(stack: jax.Array, rho: jax.Array) -> ShiftDerivatives:
    unit = common_unit(stack, rho)
    stack, rho = jax.lax.stop_gradient((stack / unit, rho / unit))
    total, slope = jax.jvp(lambda rho: multiply(stack, rho), (rho,), (jnp.ones_like(rho),))
    u, s, v = triplets(total)
    size = jnp.prod(jnp.linalg.norm(stack, axis=(1, 2)) + jnp.abs(rho))
    same = stack.shape[0] * equal_within(total, size)
    apart = jnp.abs(s[:, None] - s[None, :]) > same
    defined = (s > same) & jnp.all(apart | jnp.eye(s.size, dtype=bool), axis=0)
    first = jnp.sum(u * product(slope, v), axis=0)
    depth = stack.shape[0]
    return ShiftDerivatives(s * unit**depth, jnp.where(defined, first, jnp.nan) * unit ** (depth - 1), None)
