"""Ways to lead a skip around a layer, and what each guarantees for the singular values of the layer's Jacobian."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spectrax.theory.perturbation.bounds import Bound, bound
from spectrax.theory.perturbation.identity_shift import identity_shift_bounds
from spectrax.theory.perturbation.shifted import plus_identity
from spectrax.theory.perturbation.skip_slopes import skip_slope_bounds
from spectrax.theory.perturbation.values import (
    common_unit,
    condition_number,
    norm,
    product,
    ratio,
    ratio_rounding,
    real_matrix,
    real_scalar,
    real_vector,
    root,
    root_rounding,
    rounding,
    singular_values,
)


def densenet_bounds(layers: Sequence[Any], rho: Any, /) -> list[Bound]:
    """Return bounds for layers that append to what they got: z -> [rho z; phi(W z)], the DenseNet.

    With A = D W, slopes times weights, such a layer has the Jacobian J = [rho I; A], for which J^T J = rho^2 I + A^T A.
    For one layer, A of shape (g, n), with s_i(A) = 0 for i > g:

    | name | hypothesis | says |
    |---|---|---|
    | DenseNet | none | s_i(J) = sqrt(rho^2 + s_i(A)^2), i <= n; so s_n(J) >= abs(rho) |
    | DenseNet kappa | rho is not zero | kappa(J) <= sqrt(1 + (norm(A) / rho)^2) |
    | DenseNet no worse | none | kappa(J) <= kappa(A) = s_1(A) / s_n(A): never worse than the layer without skip |
    | DenseNet product | none | prod over layers: abs(rho)^p <= s_i <= prod sqrt(rho^2 + norm(A_j)^2) |

    In the loss of a layer that comes before, only those columns of the later layers' product enter that belong to its
    own new features: a selection of columns, as in row D4 of `slope_bounds`.

    Args:
        layers: The matrices A_j in the order in which they are applied: the first of shape (g_1, n), each later one
            with as many columns as came before, n + g_1 + ... + g_{j-1}.
        rho: A real scalar.

    Returns:
        Three rows on the first layer, and one on the product of all.

    Raises:
        TypeError: If a layer is not real and floating-point, or rho is not real.
        ValueError: If there is no layer, or their shapes don't follow each other.

    Cost:
        3 + p singular value decompositions, the last of shape (n + g_1 + ... + g_p, n).

    Derivatives:
        First derivatives, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> rows = perturbation.densenet_bounds([jnp.diag(jnp.array([3.0, 0.0]))], 4.0)
        >>> rows[0].lower.tolist(), float(rows[1].upper), float(rows[2].upper)
        ([5.0, 4.0], 1.25, inf)

    Source:
        Derived as said above; the comparison of architectures is that of Riedi, Balestriero & Baraniuk 2023
        (doi:10.1007/s00365-022-09601-5).
    """
    if len(layers) == 0:
        raise ValueError("layers must hold at least one matrix, got none")
    matrices = [real_matrix("each layer", layer) for layer in layers]
    for before, after in itertools.pairwise(matrices):
        if after.shape[1] != sum(before.shape):
            raise ValueError(f"a layer after one of shape {before.shape} must have {sum(before.shape)} columns, got "
                             f"shape {after.shape}")  # fmt: skip
    return _densenet_bounds(matrices, real_scalar("rho", rho, matrices[0].dtype))


@jax.jit
def _densenet_bounds(matrices, rho) -> list[Bound]:
    depth, n = len(matrices), matrices[0].shape[1]
    unit = common_unit(*matrices, rho)
    first, rho = matrices[0] / unit, rho / unit
    size = jnp.abs(rho)
    a = jnp.concatenate([singular_values(first), jnp.zeros(max(n - first.shape[0], 0), first.dtype)])
    s = singular_values(_appended(first, rho))
    error = rounding(jnp.zeros((first.shape[0] + n, 1), s.dtype), a[0] + size)
    values = root(size**2 + a**2)
    exact = bound(
        "DenseNet", "singular values", "s_i(J) = sqrt(rho^2 + s_i(A)^2)",
        lower=values, upper=values, actual=s, unit=unit,
        round_off=error + root_rounding(size**2 + a**2, 4 * (a[0] + size) * error),
    )  # fmt: skip
    kappa, kappa_error = condition_number(s, error)
    flat = bound(
        "DenseNet kappa", "condition number", "rho != 0: kappa(J) <= sqrt(1 + (norm(A) / rho)^2)",
        applies=size > 0, upper=ratio(values[0], size), actual=kappa,
        round_off=kappa_error + ratio_rounding(values[0], size, error),
    )  # fmt: skip
    # (rho^2 + s_1^2) / (rho^2 + s_n^2) <= s_1^2 / s_n^2
    without, without_error = condition_number(a, error)
    no_worse = bound(
        "DenseNet no worse", "condition number", "kappa(J) <= kappa(A)",
        upper=without, actual=kappa, round_off=kappa_error + without_error,
    )  # fmt: skip

    total = jnp.eye(n, dtype=first.dtype)
    for matrix in matrices:
        total = product(_appended(matrix / unit, rho), total)
    scales = jnp.stack([root(size**2 + norm(matrix / unit) ** 2) for matrix in matrices])
    grown = jnp.prod(scales)
    stacked = bound(
        "DenseNet product", "singular values", "|rho|^p <= s_i <= prod sqrt(rho^2 + norm(A_j)^2)",
        lower=size**depth, upper=grown, actual=singular_values(total),
        round_off=2 * (depth + 1) * rounding(total, grown), unit=unit**depth,
    )  # fmt: skip
    return [exact, flat, no_worse, stacked]


def _appended(matrix, rho) -> jax.Array:
    return jnp.concatenate([rho * jnp.eye(matrix.shape[1], dtype=matrix.dtype), matrix])


def gated_bounds(A: Any, gates: Any, /) -> list[Bound]:
    """Return bounds for a layer with CONSTANT gates, z -> g z + (1 - g) phi(W z), whose Jacobian is G + (I - G) A.

    With A = D W and G = diag(g), by Weyl's inequality abs(s_i - g_(i)) <= norm((I - G) A), where g_(i) are the sizes of
    the gates in descending order; so s_n >= min abs(g) - norm((I - G) A). A gate that depends on z, as in a highway
    network, adds a derivative of its own to the Jacobian, which is not bounded here.

    Args:
        A: Slopes times weights, a real matrix of shape (n, n).
        gates: The gates g, shape (n,).

    Returns:
        One row, "gated".

    Raises:
        TypeError: If an argument is not real and floating-point.
        ValueError: If the shapes don't fit.

    Cost:
        Two singular value decompositions.

    Derivatives:
        First derivatives, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> [row] = perturbation.gated_bounds(jnp.eye(2), jnp.array([0.75, 0.5]))
        >>> row.lower.tolist(), row.actual.tolist()
        ([0.25, 0.0], [1.0, 1.0])

    Source:
        Weyl's inequality.
    """
    matrix = real_matrix("A", A, square=True)
    return _gated_bounds(matrix, real_vector("gates", gates, matrix.shape[0], matrix.dtype))


@jax.jit
def _gated_bounds(matrix, gates) -> list[Bound]:
    branch = (1 - gates)[:, None] * matrix
    skip = jnp.sort(jnp.abs(gates))[::-1]
    return [_weyl("gated", "constant gates: |s_i - g_(i)| <= norm((I - G) A)", jnp.diag(gates), skip, branch)]


def _weyl(name, statement, skip, skip_values, branch) -> Bound:
    """Return Weyl's inequality for skip + branch."""
    unit = common_unit(skip, branch)
    skip, skip_values, branch = skip / unit, skip_values / unit, branch / unit
    reach = norm(branch)
    return bound(
        name, "singular values", statement,
        lower=skip_values - reach, upper=skip_values + reach, actual=singular_values(skip + branch),
        round_off=3 * rounding(skip, skip_values[0] + reach), unit=unit,
    )  # fmt: skip


def projection_skip_bounds(A: Any, V: Any, rho: Any, /) -> list[Bound]:
    """Return bounds for a skip by a matrix, z -> phi(W z) + rho V z, whose Jacobian is A + rho V with A = D W.

    By Weyl's inequality abs(s_i - abs(rho) s_i(V)) <= norm(A).

    Args:
        A: Slopes times weights, a real matrix of shape (m, n).
        V: The projection, of the same shape.
        rho: A real scalar.

    Returns:
        One row, "projection skip".

    Raises:
        TypeError: If a matrix is not real and floating-point, or rho is not real.
        ValueError: If the shapes don't fit.

    Cost:
        Three singular value decompositions.

    Derivatives:
        First derivatives, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> [row] = perturbation.projection_skip_bounds(jnp.array([[0.5, 0.0]]), jnp.array([[0.0, 1.0]]), 2.0)
        >>> row.lower.tolist(), row.upper.tolist()
        ([1.5], [2.5])

    Source:
        Weyl's inequality.
    """
    matrix, skip = real_matrix("A", A), real_matrix("V", V)
    if matrix.shape != skip.shape or matrix.dtype != skip.dtype:
        raise ValueError(
            f"V must have A's shape {matrix.shape} and dtype {matrix.dtype.name}, got {skip.shape} and "
            f"{skip.dtype.name}"
        )
    return _projection_skip_bounds(matrix, skip, real_scalar("rho", rho, matrix.dtype))


@jax.jit
def _projection_skip_bounds(matrix, skip, rho) -> list[Bound]:
    skip = rho * skip
    return [_weyl("projection skip", "|s_i - |rho| s_i(V)| <= norm(A)", skip, singular_values(skip), matrix)]


def two_layer_block_bounds(
    W1: Any, W2: Any, rho: Any, /, *, inner_slopes: Any = None, outer_slopes: Any = None
) -> list[Bound]:
    """Return bounds for a skip around two layers, z -> rho z + phi(W2 phi(W1 z)), with J = rho I + D2 W2 D1 W1.

    | name | hypothesis | says |
    |---|---|---|
    | block | none | abs(s_i(J) - abs(rho)) <= norm(D2 W2 D1 W1) |
    | block weights | all slopes at most 1 in size | abs(s_i(J) - abs(rho)) <= norm(W2) norm(W1) |

    The second holds for every pattern of slopes at once. The loss in the inner weights W1 is quadratic with the factor
    D2 W2 D1, which stands inside the block: the skip does not protect it.

    Args:
        W1: The inner weights, of shape (m, n).
        W2: The outer weights, of shape (n, m).
        rho: A real scalar.
        inner_slopes: Slopes d1 after W1, shape (m,); all 1 if None.
        outer_slopes: Slopes d2 after W2, shape (n,); all 1 if None.

    Returns:
        The rows in the order of the table.

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
        >>> rows = perturbation.two_layer_block_bounds(0.5 * jnp.eye(2), 0.5 * jnp.eye(2), 1.0)
        >>> rows[1].lower.tolist(), rows[1].upper.tolist(), rows[1].actual.tolist()
        ([0.75, 0.75], [1.25, 1.25], [1.25, 1.25])

    Source:
        Weyl's inequality.
    """
    inner, outer = real_matrix("W1", W1), real_matrix("W2", W2)
    if outer.shape != inner.shape[::-1] or outer.dtype != inner.dtype:
        raise ValueError(
            f"W2 must have shape {inner.shape[::-1]} and dtype {inner.dtype.name}, got {outer.shape} and "
            f"{outer.dtype.name}"
        )
    m, n = inner.shape
    d1 = jnp.ones(m, inner.dtype) if inner_slopes is None else real_vector("inner_slopes", inner_slopes, m, inner.dtype)
    d2 = jnp.ones(n, inner.dtype) if outer_slopes is None else real_vector("outer_slopes", outer_slopes, n, inner.dtype)
    return _two_layer_block_bounds(inner, outer, d1, d2, real_scalar("rho", rho, inner.dtype))


@jax.jit
def _two_layer_block_bounds(inner, outer, d1, d2, rho) -> list[Bound]:
    n = outer.shape[0]
    branch = product(d2[:, None] * outer, d1[:, None] * inner)
    skip, sizes = rho * jnp.eye(n, dtype=inner.dtype), jnp.full(n, jnp.abs(rho))
    tight = _weyl("block", "|s_i(J) - |rho|| <= norm(D2 W2 D1 W1)", skip, sizes, branch)
    reach = norm(outer) * norm(inner)
    # the rounding of the branch is relative to the product of the norms
    round_off = 3 * rounding(jnp.zeros((max(inner.shape), 1), inner.dtype), jnp.abs(rho) + reach)
    small = (jnp.max(jnp.abs(d1)) <= 1) & (jnp.max(jnp.abs(d2)) <= 1)
    loose = bound(
        "block weights", "singular values", "all |d| <= 1: |s_i(J) - |rho|| <= norm(W2) norm(W1)",
        applies=small, lower=sizes - reach, upper=sizes + reach, actual=singular_values(plus_identity(branch, rho)),
        round_off=round_off,
    )  # fmt: skip
    return [tight, loose]


def preactivation_bounds(W: Any, slopes: Any, rho: Any, /) -> list[Bound]:
    """Return bounds for a layer whose activation comes first, z -> rho z + W phi(z), whose Jacobian is rho I + W D.

    They are those of the shift of M = W D, and those of a layer with slopes and a skip for the transpose,
    (rho I + W D)^T = D W^T + rho I, which has the same singular values; there, W_A are the active columns of W.

    Args:
        W: The weights, a real matrix of shape (n, n).
        slopes: The slopes d of the activation at z, shape (n,).
        rho: A real scalar.

    Returns:
        The rows of `identity_shift_bounds` for W D, then those of `skip_slope_bounds` for the transpose.

    Raises:
        TypeError: If an array is not real and floating-point, or rho is not real.
        ValueError: If the shapes don't fit.

    Cost:
        That of the two functions.

    Derivatives:
        First derivatives, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> rows = perturbation.preactivation_bounds(jnp.full((2, 2), 0.25), jnp.array([1.0, 0.0]), 1.0)
        >>> len(rows), all(bool(row.holds.all()) for row in rows)
        (20, True)

    Source:
        Derived as said above.
    """
    matrix = real_matrix("W", W, square=True)
    slopes = real_vector("slopes", slopes, matrix.shape[0], matrix.dtype)
    return [*identity_shift_bounds(matrix * slopes, rho), *skip_slope_bounds(matrix.T, slopes, rho)]
