"""The singular values of M + rho I as rho moves: branches with a sign, followed through crossings and through zero."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import checks
from spectrax.theory.perturbation.derivatives import branch_derivatives, equal_within
from spectrax.theory.perturbation.shifted import plus_identity
from spectrax.theory.perturbation.values import product, ratio, real_matrix, real_vector, singular_values, triplets

# A step is taken if each branch keeps at least this part of its squared length in one eigenspace of its new matrix.
_KEPT = 0.8
# Steps between two given points; beyond it the rest of the way is taken at once and reported.
_MAX_STEPS = 400


class SingularValuePath(NamedTuple):
    """Singular values of M + rho I along a list of k values of rho.

    Attributes:
        rhos: The values of rho, shape (k,).
        branches: Singular values with a sign, shape (k, n): branches[:, i] follows one pair of vectors, which turn
            continuously, through crossings and through zero. Not negative and descending at rhos[0].
        first: Derivatives of the branches, shape (k, n); NaN at points where branches meet, unless they don't mix.
        second: Second derivatives, likewise.
        ordered: The singular values in descending order, shape (k, n).
        followed: Whether the vectors turned little enough in every step up to this point for the branches to be known,
            shape (k,).
    """

    rhos: jax.Array
    branches: jax.Array
    first: jax.Array
    second: jax.Array
    ordered: jax.Array
    followed: jax.Array


def singular_value_path(M: Any, rhos: Any, /, *, substeps: int = 4, max_halvings: int = 12) -> SingularValuePath:
    """Follow the analytic branches of the singular values of M + rho I.

    The singular values with a sign are eigenvalues of a symmetric matrix that is linear in rho, and so are
    real-analytic in rho, if they are allowed to cross each other and zero; in order of size they have kinks there. A
    branch is followed by its vectors: from one step to the next it goes to the eigenspace that holds most of them,
    within which (where values are repeated) the nearest vectors are taken. A step in which some branch keeps less than
    0.8 of its squared length is halved; where that has been done `max_halvings` times, `followed` is false from there
    on.

    Values that come close and turn away again are told from a crossing only if a step falls between: an avoided
    crossing much narrower than `rhos` spacing / substeps may be followed as a crossing. More substeps make this rarer.

    Args:
        M: A real matrix of shape (n, n).
        rhos: The points, shape (k,), in the order in which they are visited.
        substeps: How many steps are taken at least between two points.
        max_halvings: How often the smallest step is halved at most.

    Returns:
        The path. Branches and ordered values can be differentiated once by M and rhos; their slopes are constants to
        JAX.

    Raises:
        TypeError: If M or rhos are not real and floating-point, or a count is not an integer.
        ValueError: If M is not square, rhos is not a vector of at least one entry, or a count is not positive.

    Cost:
        At least k * substeps singular value decompositions with vectors, one after the other, and more where vectors
        turn fast.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> path = perturbation.singular_value_path(jnp.diag(jnp.array([0.0, -1.0])), jnp.array([0.25, 1.0, 1.75]))
        >>> path.branches.round(5).tolist()  # 1 - rho passes through zero, rho passes by it
        [[0.75, 0.25], [0.0, 1.0], [-0.75, 1.75]]
        >>> path.ordered.round(5).tolist()
        [[0.75, 0.25], [1.0, 0.0], [1.75, 0.75]]

    Source:
        Kato, Perturbation theory for linear operators, chapter II, section 6; Bunse-Gerstner, Byers, Mehrmann & Nichols
        1991 (doi:10.1007/BF01385712) for the analytic singular value decomposition.
    """
    matrix = real_matrix("M", M, square=True)
    points = real_vector("rhos", rhos, None, matrix.dtype)
    checks.positive_integer("substeps", substeps)
    checks.positive_integer("max_halvings", max_halvings)
    return _singular_value_path(matrix, points, substeps, max_halvings)


class _Position(NamedTuple):
    """Where a walk stands: rho, the branches' vectors as columns, the next step, and how it went."""

    rho: jax.Array
    u: jax.Array
    v: jax.Array
    step: jax.Array
    count: jax.Array
    followed: jax.Array


@functools.partial(jax.jit, static_argnums=(2, 3))
def _singular_value_path(matrix, points, substeps, max_halvings) -> SingularValuePath:
    fixed, stations = jax.lax.stop_gradient((matrix, points))
    advance = functools.partial(_advance, fixed, substeps=substeps, max_halvings=max_halvings)

    # The walk begins off the first point: values may be repeated there (as for rho = 0 and M = 0), and only what comes
    # after tells the branches apart.
    start = stations[0] + 0.381966 * (stations[min(1, points.size - 1)] - stations[0])
    u, _, v = triplets(plus_identity(fixed, start))
    origin = _Position(start, u, v, jnp.zeros_like(start), jnp.zeros((), jnp.int32), jnp.ones((), bool))
    first = advance(origin, stations[0])
    u, v = _arranged(fixed, first)
    followed = first.followed & jnp.all(jnp.isfinite(u))

    def visit(position, point):
        position = advance(position, point)
        return position, (position.u, position.v, position.followed)

    begin = first._replace(u=u, v=v, followed=followed)
    _, (us, vs, followed) = jax.lax.scan(visit, begin, stations)

    def at(rho, u, v):
        shifted = plus_identity(matrix, rho)
        values = jnp.sum(u * product(shifted, v), axis=0)
        ordered = singular_values(shifted)
        same = equal_within(fixed, jax.lax.stop_gradient(ordered[0]) + jnp.abs(rho))
        slopes = branch_derivatives(u, v, jax.lax.stop_gradient(values), jax.lax.stop_gradient(same))
        return values, *slopes, ordered

    branches, slopes, bends, ordered = jax.vmap(at)(points, us, vs)
    return SingularValuePath(points, branches, slopes, bends, ordered, followed)


def _arranged(matrix: jax.Array, position: _Position) -> tuple[jax.Array, jax.Array]:
    """Return the vectors with values that are not negative, in descending order."""
    values = jnp.sum(position.u * product(plus_identity(matrix, position.rho), position.v), axis=0)
    signs = jnp.where(values < 0, -1, 1).astype(values.dtype)
    order = jnp.argsort(-jnp.abs(values))
    return position.u[:, order], (position.v * signs)[:, order]


def _advance(matrix, position: _Position, target, *, substeps: int, max_halvings: int) -> _Position:
    """Walk to the target by steps that are halved while vectors turn too far, and doubled again afterwards."""
    largest = (target - position.rho) / substeps
    smallest = largest / 2**max_halvings

    def unfinished(state):
        return (state.rho != target) & (state.count <= _MAX_STEPS)  # NaN never arrives

    def step(state):
        last = state.count >= _MAX_STEPS
        arrives = last | (jnp.abs(state.step) >= jnp.abs(target - state.rho) * 0.999)
        rho = jnp.where(arrives, target, state.rho + state.step)
        u, v, kept = _continued(matrix, rho, state.u, state.v)
        good = kept >= _KEPT
        taken = good | last | (jnp.abs(state.step) <= jnp.abs(smallest))
        longer = jnp.where(jnp.abs(2 * state.step) <= jnp.abs(largest), 2 * state.step, largest)
        return _Position(
            rho=jnp.where(taken, rho, state.rho),
            u=jnp.where(taken, u, state.u),
            v=jnp.where(taken, v, state.v),
            step=jnp.where(taken, longer, state.step / 2),
            count=state.count + 1,
            followed=state.followed & (good | ~taken),
        )

    begin = position._replace(step=largest, count=jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, step, begin)


def _continued(matrix, rho, u, v) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the vectors at `rho` that continue u and v, and the least squared part that a branch keeps."""
    new_u, s, new_v = triplets(plus_identity(matrix, rho))
    same = equal_within(matrix, s[0] + jnp.abs(rho))
    values = jnp.concatenate([s, -s])
    together = (jnp.abs(values[:, None] - values[None, :]) <= same).astype(u.dtype)

    # Coefficients of (u, v) / sqrt 2 on (new_u, new_v) / sqrt 2, of value s, and on (new_u, -new_v) / sqrt 2, of -s.
    on_u, on_v = product(new_u.T, u), product(new_v.T, v)
    coefficients = jnp.concatenate([on_u + on_v, on_u - on_v]) / 2
    kept = product(together, coefficients**2)
    home = jnp.argmax(kept, axis=0)
    coefficients = coefficients * together[home].T
    plus, minus = jnp.split(coefficients, 2)
    next_u, u_rank = _nearest_orthogonal(product(new_u, plus + minus))
    next_v, v_rank = _nearest_orthogonal(product(new_v, plus - minus))
    # Two branches in one place: what they keep is then not independent, which the smallest singular value shows.
    return next_u, next_v, jnp.minimum(kept.max(axis=0).min(), jnp.minimum(u_rank, v_rank) ** 2)


def _nearest_orthogonal(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the orthogonal factor of the polar decomposition, and the smallest singular value."""
    left, s, right = triplets(matrix)
    return product(left, right.T), s[-1]


def condition_numbers(M: Any, rhos: Any, /) -> jax.Array:
    """Return the condition number of M + rho I for each rho.

    Args:
        M: A real matrix of shape (n, n).
        rhos: Shape (k,).

    Returns:
        s_1 / s_n, shape (k,); inf where s_n is zero, NaN where M or rho is not finite.

    Raises:
        TypeError: If M or rhos are not real and floating-point.
        ValueError: If M is not square, or rhos is not a vector of at least one entry.

    Cost:
        k singular value decompositions without vectors.

    Derivatives:
        First derivatives, forward and reverse.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory import perturbation
        >>> perturbation.condition_numbers(jnp.diag(jnp.array([1.0, -0.5])), jnp.array([0.0, 0.5, 1.0, 2.0])).tolist()
        [2.0, inf, 4.0, 2.0]
    """
    matrix = real_matrix("M", M, square=True)
    points = real_vector("rhos", rhos, None, matrix.dtype)
    return _condition_numbers(matrix, points)


@jax.jit
def _condition_numbers(matrix, points) -> jax.Array:
    def at(rho):
        s = singular_values(plus_identity(matrix, rho))
        return ratio(s[0], s[-1])

    return jax.vmap(at)(points)
