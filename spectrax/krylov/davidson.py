r"""Two-sided Davidson iteration for the smallest singular triplets, with a preconditioner.

Bases V and U with A V = U B are kept, B as the orthogonalisation measured it, so that the values of B are accurate to
eps times the largest one: no Gram matrix is formed. The basis grows by t = M r, where r = A^H u - s v is the residual
of the first wanted triplet that has not converged, and M an approximation of (A^H A)^-1. After a thick restart the
vector of the step before is kept as well, which makes the iteration locally optimal (GD+k).

Wu & Stathopoulos 2015 (doi:10.1137/140979381), section 3; Stathopoulos 2007 (doi:10.1137/050631574) for the restarts.
Departures: one basis for each side with their own orthogonalisation instead of the normal equations; random vectors
among the first, and a random vector, preconditioned, that challenges the answer before it is given.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import layouts, vectors
from spectrax.krylov.orthogonalization import direction_seed, orthonormalize, random_stack
from spectrax.krylov.task import Task, Triplets
from spectrax.krylov.two_sided import TwoSidedBases, decompose, restart, row_structure

PyTree = Any
MatVec = Callable[[PyTree], PyTree]
_NORM_STEPS = 4  # of power iteration, to know the size of round-off by
_PROBES = 2
_PROBE_STEPS = 16  # at most, and at least:
_SHORTEST_PROBE = 6
# how well, relative to its distance from the wanted values, the next one must be known before a probe may end
_RIVAL_SHARE = 0.25


def smallest_triplets(
    task: Task,
    matvec: MatVec,
    rmatvec: MatVec,
    precondition: MatVec | None,
    start: PyTree,
    left_struct: PyTree,
    key: jax.Array,
) -> Triplets:
    """Return the k smallest singular triplets of an operator, with the help of a preconditioner.

    A preconditioner that is poor, indefinite or not finite makes the iteration slower, and never its answer wrong: it
    only proposes directions. A residual shows that a singular value is near, and not that it is the smallest; that none
    was missed rests on the random vectors of the start and of the final challenge.

    Args:
        task: What is searched for; the subspace is of k + 4 vectors at least, or of all of the shorter side.
        matvec: v -> A v.
        rmatvec: u -> A^H u.
        precondition: r -> M r on the right side, M an approximation of (A^H A)^-1; None for the identity.
        start: A stack of right vectors to begin with, to which random ones are added; the right side must be the
            shorter one.
        left_struct: The structure of the left vectors.
        key: A PRNG key.

    Returns:
        The triplets, in descending order; `complete` says that they converged and stood the challenge.

    Cost:
        A pair of products, one of the preconditioner, 8 p (m + n) flops of orthogonalisation and a decomposition of the
        projected matrix for each step, p = `subspace_size`; four pairs more for the norm.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from spectrax import krylov
        >>> d = jnp.array([1.0, 0.5, 1e-3])
        >>> task = krylov.Task(k=1, which="smallest", subspace_size=3, max_steps=10, tol=1e-6, round_off=1e-6)
        >>> found = krylov.smallest_triplets(
        ...     task, lambda v: d * v, lambda u: d * u, lambda r: r / d**2, jnp.ones((1, 3)),
        ...     jax.ShapeDtypeStruct((3,), d.dtype), jax.random.key(0),
        ... )
        >>> round(float(found.values[0]), 6)
        0.001
    """
    state = init(task, matvec, rmatvec, precondition, start, left_struct, key)

    def unfinished(state: TwoSidedBases) -> jax.Array:
        # without k vectors there are no k bounds
        within = (state.num_steps < task.max_steps) | (state.count < min(task.k, vectors.size(row_structure(start))))
        return ~state.done & state.finite & within

    def advance(state: TwoSidedBases) -> TwoSidedBases:
        return step(task, matvec, rmatvec, precondition, state)

    def has_room(state: TwoSidedBases) -> jax.Array:
        return (state.count < task.subspace_size) & ((state.probing != 1) | (state.count <= task.k))

    def cycle(state: TwoSidedBases) -> TwoSidedBases:
        state = jax.lax.while_loop(lambda s: unfinished(s) & has_room(s), advance, state)
        shrunk = restart(state, k=task.k)
        return jax.tree.map(lambda old, new: jnp.where(unfinished(state), new, old), state, shrunk)

    if task.subspace_size >= vectors.size(row_structure(start)):
        state = jax.lax.while_loop(unfinished, advance, state)
    else:
        state = jax.lax.while_loop(unfinished, cycle, state)
    return finalize(task, state)


def init(
    task: Task,
    matvec: MatVec,
    rmatvec: MatVec,
    precondition: MatVec | None,
    start: PyTree,
    left_struct: PyTree,
    key: jax.Array,
) -> TwoSidedBases:
    """Return the state before the first step.

    Args:
        task: What is searched for.
        matvec: v -> A v.
        rmatvec: u -> A^H u.
        precondition: r -> M r, or None.
        start: A stack of right vectors; a zero row is replaced by a random one.
        left_struct: The structure of the left vectors.
        key: A PRNG key.

    Returns:
        Empty bases, and a queue of the start's vectors and of random ones.
    """
    k, subspace_size = task.k, task.subspace_size
    struct = row_structure(start)
    given = vectors.count(start)
    right_key, left_key, random_key, norm_key = jax.random.split(key, 4)
    dtype = vectors.result_dtype(struct)
    real = vectors.real_dtype(dtype)

    def enlarge(_, carry):
        vector, size = carry
        image = matvec(vectors.divide(vector, vectors.norm(vector)))
        size = jnp.maximum(size, vectors.norm(image))
        return rmatvec(vectors.divide(image, vectors.norm(image))), size

    vector, largest = jax.lax.fori_loop(
        0, _NORM_STEPS, enlarge, (vectors.row(random_stack(norm_key, struct, 1), 0), jnp.zeros((), real))
    )
    largest = jnp.maximum(largest, vectors.norm(vector))
    random = random_stack(random_key, struct, max(k + 1 - given, 1) + _PROBES)
    if precondition is not None:
        random = jax.lax.map(lambda vector: _mixed(vector, _usable_or(precondition(vector), vector)), random)
    queue = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), start, random)
    zero = jnp.zeros((), jnp.int32)
    return TwoSidedBases(
        count=zero,
        right=layouts.constrain(vectors.zeros(struct, subspace_size), task.sides.right, stacked=True),
        left=layouts.constrain(vectors.zeros(left_struct, subspace_size), task.sides.left, stacked=True),
        projected=jnp.zeros((subspace_size, subspace_size), dtype),
        residual=vectors.zeros(struct),
        ritz=jnp.zeros((subspace_size,), dtype),
        previous=jnp.zeros((subspace_size,), dtype),
        reference=jnp.zeros((k,), real),
        mismatch=jnp.zeros((), real),
        accepted=zero,
        probing=zero,
        queue=queue,
        queued=zero,
        challenges=zero,
        right_seed=direction_seed(right_key),
        left_seed=direction_seed(left_key),
        largest=largest,
        num_steps=jnp.asarray(_NORM_STEPS, jnp.int32),
        finite=jnp.isfinite(largest),
        done=jnp.zeros((), bool),
    )


def step(
    task: Task, matvec: MatVec, rmatvec: MatVec, precondition: MatVec | None, state: TwoSidedBases
) -> TwoSidedBases:
    """Grow both bases by one vector, decompose B, and take the residual of the next triplet to work on.

    Args:
        task: What is searched for.
        matvec: v -> A v.
        rmatvec: u -> A^H u.
        precondition: r -> M r, or None.
        state: The state, with room for one more row.

    Returns:
        The state after one pair of products.
    """
    proposal = state.residual
    if precondition is not None:
        # every other step of a challenge goes without the preconditioner, which may be what hid a value
        plain = (state.probing > 0) & (state.probing % 2 == 0)
        preconditioned = _usable_or(precondition(state.residual), state.residual)
        proposal = _select(plain, state.residual, preconditioned)
    from_queue = vectors.row(state.queue, jnp.maximum(state.queued, 0))
    direction = _select(state.queued >= 0, from_queue, proposal)
    direction = vectors.divide(direction, vectors.norm(direction))
    index = state.count
    nought = jnp.zeros((), state.largest.dtype)
    direction = layouts.constrain(_stacked(direction), task.sides.right, stacked=True)
    right = orthonormalize(state.right, direction, state.right_seed, state.num_steps, nought, layout=task.sides.right)
    image = layouts.constrain(_stacked(matvec(vectors.row(right.rows, 0))), task.sides.left, stacked=True)
    left = orthonormalize(state.left, image, state.left_seed, state.num_steps, state.largest, layout=task.sides.left)
    column = left.coefficients[:, 0].at[index].set(left.factor[0, 0])
    state = state._replace(
        count=index + 1,
        right=vectors.set_rows(state.right, index, right.rows),
        left=vectors.set_rows(state.left, index, left.rows),
        projected=state.projected.at[:, index].set(column),
        largest=jnp.maximum(state.largest, vectors.norm(column)),
        num_steps=state.num_steps + 1,
        finite=state.finite & jnp.isfinite(vectors.norm(image)),
    )
    return _examine(task, rmatvec, state)


def _examine(task: Task, rmatvec: MatVec, state: TwoSidedBases) -> TwoSidedBases:
    """Accept the triplet that was worked on if its residual is small, and choose what the next step works on."""
    k, size = task.k, vectors.size(row_structure(state.right))
    ritz = decompose(state)
    target = jnp.minimum(jnp.minimum(state.accepted, min(k, size - 1)), state.count - 1)
    value = ritz.values[target]
    image = layouts.constrain(rmatvec(vectors.combine(ritz.left[target], state.left)), task.sides.right)
    residual = vectors.subtract(image, vectors.scale(value, vectors.combine(ritz.right[target], state.right)))
    length = vectors.norm(residual)
    # U^H A V = B by construction: what V^H A^H U is otherwise is the adjoint's doing
    within = jnp.max(jnp.abs(layouts.summed(vectors.gram, task.sides.right)(state.right, _stacked(residual))))
    allowed = jnp.maximum(task.tol * ritz.values, task.round_off * state.largest)
    last = vectors.count(state.queue) - _PROBES - 1  # of the start's vectors
    started = (state.queued < 0) | (state.queued >= last)
    accept = started & (target == state.accepted) & (target < k) & (length <= allowed[target])
    slots = jnp.arange(k, dtype=jnp.int32)
    wanted = ritz.values[:k]
    fallen = jnp.any((slots < state.accepted) & (wanted < state.reference - 2 * allowed[:k]))
    reference = jnp.where(accept & (slots == target), wanted, state.reference)
    accepted = jnp.where(fallen, 0, state.accepted + accept.astype(jnp.int32))

    complete = accepted >= k
    begin = complete & (state.accepted < k)
    probing = jnp.where(begin, 1, jnp.where(complete, state.probing + 1, 0)).astype(jnp.int32)
    if task.probe and k < size:
        gap = ritz.values[k] - ritz.values[k - 1]
        near = length <= jnp.maximum(_RIVAL_SHARE * gap, allowed[k])
        limit = min(
            _PROBE_STEPS, vectors.count(state.right) - k
        )  # without a restart: the accepted rows stay as they are
        stood = complete & (((probing > _SHORTEST_PROBE) & near) | (probing > limit))
    else:
        stood = complete
    following = jnp.where(started, -1, state.queued + 1)
    following = jnp.where(begin, last + 1 + state.challenges % _PROBES, following)
    return state._replace(
        residual=residual,
        ritz=ritz.right[target],
        previous=state.ritz,
        reference=reference,
        mismatch=jnp.maximum(state.mismatch, within / jnp.where(state.largest > 0, state.largest, 1)),
        accepted=accepted,
        probing=probing,
        queued=following.astype(jnp.int32),
        challenges=state.challenges + begin.astype(jnp.int32),
        finite=state.finite & jnp.isfinite(length),
        done=(state.count >= size) | (stood & (vectors.count(state.right) < size)),
    )


def finalize(task: Task, state: TwoSidedBases) -> Triplets:
    """Return the k smallest triplets of the state, in descending order."""
    k = task.k
    # accepted triplets are the first rows; those of the challenge behind them would only bring round-off into them
    alone = (state.probing > 1) & state.done & (state.count < vectors.size(row_structure(state.right)))
    in_use = jnp.arange(state.ritz.shape[0], dtype=jnp.int32) < jnp.where(alone, k, state.count)
    state = state._replace(
        count=jnp.where(alone, k, state.count).astype(jnp.int32),
        projected=jnp.where(in_use & in_use[:, None], state.projected, 0),
    )
    ritz = decompose(state)
    return Triplets(
        left=vectors.combine(ritz.left[:k][::-1], state.left),
        values=ritz.values[:k][::-1],
        right=vectors.combine(ritz.right[:k][::-1], state.right),
        largest=state.largest,
        num_steps=state.num_steps,
        finite=state.finite,
        complete=state.done,
        mismatch=state.mismatch,
        breakdowns=jnp.zeros((), jnp.int32),
    )


def _stacked(vector: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None], vector)


def _mixed(a: PyTree, b: PyTree) -> PyTree:
    """The sum of two directions: what one of them is blind to, the other one sees."""
    return vectors.add(vectors.divide(a, vectors.norm(a)), vectors.divide(b, vectors.norm(b)))


def _usable_or(vector: PyTree, otherwise: PyTree) -> PyTree:
    length = vectors.norm(vector)
    return _select(jnp.isfinite(length) & (length > 0), vector, otherwise)


def _select(condition: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
