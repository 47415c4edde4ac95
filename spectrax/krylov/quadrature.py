r"""Gauss quadrature by Krylov factorisations: the spectral measure of a vector, and what is certain of its masses.

A unit vector z and a Hermitian H with eigenpairs (lambda_i, x_i) define the measure mu = sum_i |x_i^H z|^2 at lambda_i.
The Jacobi matrix T of m Lanczos steps from z gives the Gauss quadrature of mu: nodes are the eigenvalues of T, weights
the squared first components of its eigenvectors, and polynomials up to degree 2 m - 1 are integrated exactly (Golub &
Welsch 1969, doi:10.1090/S0025-5718-69-99647-1; Golub & Meurant 2010, doi:10.1515/9781400833887, chapter 6).

For singular values the factorisation is that of Golub & Kahan. Its coefficients are those of Lanczos on the matrix
[[0, A], [A^H, 0]] from [0; z], whose Jacobi matrix has a zero diagonal, twice the steps, and eigenvalues +s and -s: no
Gram matrix, and an eigendecomposition instead of an SVD, which TPUs take long to compile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax.krylov import bidiagonalization, tridiagonalization
from spectrax.krylov.factorization import Factorization, Product
from spectrax.krylov.factorization import init as factorization_init
from spectrax.krylov.projected import projected_eigh
from spectrax.layouts import Sides

PyTree = Any
Loop = Callable[..., Any]
_ANYWHERE = Sides()
_FAR = -0.25  # the power of eps, times the spectrum, up to which a Radau matrix may have an entry: with its round-off


class Jacobi(NamedTuple):
    """A tridiagonal matrix with what couples it to the rest of the space.

    Attributes:
        diagonal: Shape (q,); q is the number of steps, twice that for singular values.
        off_diagonal: Shape (q,), not negative: entry j couples rows j and j + 1, the last one in use couples the matrix
            to what it leaves out, and is zero where the Krylov space is invariant.
        size: How many rows are in use, int32; the space was exhausted where that is less than q.
    """

    diagonal: jax.Array
    off_diagonal: jax.Array
    size: jax.Array


def init(
    key: jax.Array, start: PyTree, left_struct: PyTree | None, num_steps: int, *, sides: Sides = _ANYWHERE
) -> Factorization:
    """Return the state before the first step.

    Args:
        key: A PRNG key, for directions that are needed after a breakdown and have no weight.
        start: The vector z, of any length but zero.
        left_struct: The structure of A z for singular values, or None for a Hermitian operator.
        num_steps: How many steps there is room for, at most the dimension of z.
        sides: How the vectors of both sides lie on devices, where that is known.

    Returns:
        A factorisation of no columns.
    """
    return factorization_init(key, jax.tree.map(lambda leaf: leaf[None], start), left_struct, num_steps, sides=sides)


def is_finished(state: Factorization) -> jax.Array:
    """Return whether all steps were made, the space is exhausted, or a product was not finite."""
    last = jnp.maximum(state.size - 1, 0)
    exhausted = state.coupling[0, 0] == 0
    if state.left is not None:
        exhausted |= state.projected[last, last] == 0
    return (state.size >= state.projected.shape[0]) | ((state.size > 0) & exhausted) | ~state.finite


def step(matmat: Product, rmatmat: Product | None, state: Factorization, *, sides: Sides = _ANYWHERE) -> Factorization:
    """Extend a factorisation that is not finished by one column, for one product, or one with A and one with A^H.

    Args:
        matmat: A stack of vectors -> A v for each of them.
        rmatmat: A stack of left vectors -> A^H u for each of them; None for a Hermitian operator.
        state: The state.
        sides: How the vectors of both sides lie on devices, where that is known.

    Returns:
        The next state.
    """
    if rmatmat is None:
        return tridiagonalization.step(matmat, state, layout=sides.right)
    return bidiagonalization.step(matmat, rmatmat, state, sides=sides)


def run(
    matmat: Product,
    rmatmat: Product | None,
    state: Factorization,
    *,
    sides: Sides = _ANYWHERE,
    while_loop: Loop = jax.lax.while_loop,
) -> Factorization:
    """Make steps until the factorisation is finished.

    Args:
        matmat: A stack of vectors -> A v for each of them.
        rmatmat: A stack of left vectors -> A^H u for each of them; None for a Hermitian operator.
        state: The state.
        sides: How the vectors of both sides lie on devices, where that is known.
        while_loop: Called as (condition, body, state): a compiled loop, or one on the host, where products may come
            from anywhere and states may be kept.

    Returns:
        The last state.
    """
    return while_loop(lambda state: ~is_finished(state), lambda state: step(matmat, rmatmat, state, sides=sides), state)


def finalize(state: Factorization) -> Jacobi:
    """Return the Jacobi matrix of a factorisation, up to where the space was exhausted."""
    steps, last = state.projected.shape[0], jnp.maximum(state.size - 1, 0)
    diagonal = jnp.diagonal(state.projected)
    above = jnp.pad(jnp.abs(jnp.diagonal(state.projected, 1)), (0, 1)).at[last].set(jnp.abs(state.coupling[0, 0]))
    if state.left is None:
        diagonal, off_diagonal, size = diagonal.real, above, state.size
    else:
        off_diagonal = jnp.stack([jnp.abs(diagonal), above], axis=1).reshape(2 * steps)
        diagonal, size = jnp.zeros_like(off_diagonal), 2 * state.size
    connected = jnp.sum(jnp.cumprod((off_diagonal > 0).astype(jnp.int32)), dtype=jnp.int32)
    size = jnp.minimum(size, connected + 1)
    rows = jnp.arange(diagonal.shape[0], dtype=jnp.int32)
    used = rows < size
    return Jacobi(jnp.where(used, diagonal, 0), jnp.where(used, off_diagonal, 0), size)


def leading(matrix: Jacobi, count: int) -> Jacobi:
    """Return the Jacobi matrix of the first rows: that of a run with fewer steps."""
    return Jacobi(matrix.diagonal[:count], matrix.off_diagonal[:count], jnp.minimum(matrix.size, count))


def gauss(matrix: Jacobi) -> tuple[jax.Array, jax.Array]:
    """Return the Gauss quadrature of a Jacobi matrix.

    Args:
        matrix: A Jacobi matrix of q rows.

    Returns:
        Nodes, ascending, and weights, whose sum is one, each of shape (q,). Where fewer rows are in use, the nodes
        behind them repeat the last one, with weights of zero.
    """
    values, columns = projected_eigh(_dense(matrix, matrix.size))
    used = jnp.arange(values.shape[0], dtype=jnp.int32) < matrix.size
    weights = jnp.where(used, jnp.square(jnp.abs(columns[0])), 0)
    return jnp.where(used, values, values[jnp.maximum(matrix.size - 1, 0)]), weights / jnp.sum(weights)


def folded(nodes: jax.Array, weights: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the quadrature over singular values of one over +s and -s.

    Args:
        nodes: From `gauss`, shape (2 m,).
        weights: Shape (2 m,).
        size: How many of them are in use.

    Returns:
        Nodes, ascending and not negative, and weights, shape (m,); those without weight come last.
    """
    steps = nodes.shape[0] // 2
    count = (size + 1) // 2
    pairs = jnp.arange(steps, dtype=jnp.int32)
    upper = jnp.clip(size // 2 + pairs, 0, jnp.maximum(size - 1, 0))
    lower = size - 1 - upper
    both = weights[upper] + jnp.where(lower == upper, 0, weights[lower])
    used = pairs < count
    return (nodes[upper] - nodes[lower]) / 2, jnp.where(used, both, 0)


def masses(
    matrix: Jacobi, rule: tuple[jax.Array, jax.Array], point: jax.Array, resolution: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Return between which numbers the mass below a point lies, for every measure with this Jacobi matrix.

    The Gauss-Radau quadrature with one node put at the point t is exact up to degree 2 m. The inequalities of
    Chebyshev, Markov and Stieltjes (Szego 1939, section 3.41) say of its weights w_j at nodes xi_j that

        sum_{xi_j < t} w_j <= mu((-inf, t)) <= mu((-inf, t]) <= sum_{xi_j <= t} w_j,

    and no better bounds follow from the first 2 m + 1 moments. The last diagonal entry a of its matrix makes the last
    pivot of T~ - t I zero (Golub 1973, doi:10.1137/1015032). It goes to infinity where t is a node of the Gauss
    quadrature; from a limit on, the bounds are those of Gauss nodes theta_j, one weight further on either side:
    sum w_j over theta_(j+1) <= t, and sum w_j over theta_(j-1) <= t. Where the space is exhausted, the node at t is
    coupled to nothing, and both bounds are the mass itself.

    Args:
        matrix: A Jacobi matrix of q rows.
        rule: Its Gauss quadrature.
        point: A real number t, which may be infinite. For NaN the bounds are NaN.
        resolution: Nodes within this distance may lie on either side.

    Returns:
        Lower and upper bound, scalars in [0, 1].

    Cost:
        An eigendecomposition of order q + 1.
    """
    t = jnp.where(jnp.isfinite(point), point, jnp.zeros_like(point))
    peak = _peak(matrix)
    eps = float(jnp.finfo(peak.dtype).eps)
    furthest = jnp.where(peak > 0, peak, 1) / eps  # from where on the bounds stay what they are, but would overflow
    t = jnp.clip(t, -furthest, furthest)
    peak = jnp.maximum(peak, jnp.abs(t))
    smallest = eps**2 * jnp.where(peak > 0, peak, 1)

    def eliminate(pivot: jax.Array, row: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        diagonal, before, used = row
        following = diagonal - t - before * (before / pivot)
        following = jnp.where(jnp.abs(following) < smallest, smallest, following)
        return jnp.where(used, following, pivot), None

    before = jnp.pad(matrix.off_diagonal[:-1], (1, 0))
    used = jnp.arange(before.shape[0], dtype=jnp.int32) < matrix.size
    pivot, _ = jax.lax.scan(eliminate, jnp.ones_like(peak), (matrix.diagonal, before, used))
    coupling = matrix.off_diagonal[jnp.maximum(matrix.size - 1, 0)]
    distance = coupling * (coupling / pivot)
    is_far = ~(jnp.abs(distance) <= eps**_FAR * peak)
    last = t + jnp.where(is_far, 0, distance)
    extended = Jacobi(
        jnp.pad(matrix.diagonal, (0, 1)).at[matrix.size].set(last),
        jnp.pad(matrix.off_diagonal, (0, 1)),
        matrix.size + 1,
    )
    nodes, weights = gauss(extended)
    resolution = jnp.maximum(resolution, 4 * eps * jnp.maximum(peak, jnp.abs(last)))  # of the node at t, for one
    below = jnp.sum(jnp.where(nodes < t - resolution, weights, 0))
    up_to = jnp.sum(jnp.where(nodes <= t + resolution, weights, 0))

    nodes, weights = rule
    nodes = jnp.where(jnp.arange(nodes.shape[0], dtype=jnp.int32) < matrix.size, nodes, jnp.inf)
    following = jnp.pad(nodes[1:], (0, 1), constant_values=jnp.inf)
    preceding = jnp.pad(nodes[:-1], (1, 0), constant_values=-jnp.inf)
    below = jnp.where(is_far, jnp.sum(jnp.where(following <= t - resolution, weights, 0)), below)
    up_to = jnp.where(is_far, jnp.sum(jnp.where(preceding <= t + resolution, weights, 0)), up_to)
    certain = jnp.where(jnp.isnan(point), jnp.nan, jnp.where(point > 0, 1, 0)).astype(t.dtype)
    below, up_to = jnp.minimum(below, 1), jnp.minimum(up_to, 1)
    is_finite = jnp.isfinite(point)
    return jnp.where(is_finite, below, certain), jnp.where(is_finite, up_to, certain)


def _peak(matrix: Jacobi) -> jax.Array:
    return jnp.maximum(jnp.max(jnp.abs(matrix.diagonal)), jnp.max(matrix.off_diagonal))


def _dense(matrix: Jacobi, size: jax.Array) -> jax.Array:
    """Return the matrix with rows that are not in use beyond all others, where they mix with none of them."""
    peak = _peak(matrix)
    rows = jnp.arange(matrix.diagonal.shape[0], dtype=jnp.int32)
    beyond = jnp.where(peak > 0, 4 * peak, 1)
    inside = jnp.where(rows[1:] < size, matrix.off_diagonal[:-1], 0)
    diagonal = jnp.where(rows < size, matrix.diagonal, beyond)
    return jnp.diag(diagonal) + jnp.diag(inside, 1) + jnp.diag(inside, -1)
