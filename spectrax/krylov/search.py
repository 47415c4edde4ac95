"""The search for the extremes of a spectrum in a subspace of fixed size, and the challenge of what it found.

Baglama & Reichel 2005, doi:10.1137/04060593X; Hernandez, Roman & Tomas 2008, ETNA 31; Wu & Simon 2000,
doi:10.1137/S0895479898334605. Departures: the projected matrix is the one that the orthogonalisation measured; whether
the wanted values have converged is asked where their residuals are expected to be small enough, and not at restarts
only; and the answer is challenged. A Krylov space holds one copy of each repeated value, and nothing of what its start
was orthogonal to. Once the wanted values have converged, a fresh random block is run on the operator deflated by all
that was found: a copy that was missed comes up there and is taken in.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.krylov import factorization
from spectrax.krylov.factorization import Factorization
from spectrax.krylov.restart import Ritz, deflated, dimension_of, nonzero, restarted, ritz_of
from spectrax.krylov.task import Task
from spectrax.vectors import HIGHEST

PyTree = Any

# The challenge ends when a value beyond the wanted ones would have shown but for this probability, or after a share of
# the steps that went before it. It is deflated by vectors that hold no more than this overlap of a missed one.
_FAILURE = 1e-4
_PROBE_SHARE = {False: 2.0, True: 1.0}  # of several values, and of one, of which no copy can lie beyond
_OVERLAP = 1e-2
_PROBE_STEPS = 4  # between two tests of the challenge
_USUAL_TOLERANCE = 1e-6
_ENDS = {"largest": 1, "smallest": 1, "largest_magnitude": 2}


class Search(NamedTuple):
    """A search where it stands: everything that a run needs to go on, in arrays.

    Attributes:
        bases: The factorisation.
        num_steps: How many vectors the operator was applied to.
        test_at: The size of the bases at which convergence is asked for next.
        last_steps: `num_steps` at the test before.
        last_excess: Logarithm of residual over what is allowed, at the test before.
        fixed: How many rows the challenge is deflated by; zero while there is none.
        probe_steps: Steps of the challenge so far.
        doubt: What the challenge's restarts leave of the probability that it missed a value, for each end.
        origin: The row in which the challenge, or what it was restarted from, began.
        budget: How many steps the challenge may take.
        values: The k values as they stood at the last test, shape (k,).
        last_residual: The residual of the k-th of them.
        largest: The largest modulus of a value seen so far.
        complete: False if the challenge found something that there were no steps left to take in.
        done: Whether the search is over.
    """

    bases: Factorization
    num_steps: jax.Array
    test_at: jax.Array
    last_steps: jax.Array
    last_excess: jax.Array
    fixed: jax.Array
    probe_steps: jax.Array
    doubt: jax.Array
    origin: jax.Array
    budget: jax.Array
    values: jax.Array
    last_residual: jax.Array
    largest: jax.Array
    complete: jax.Array
    done: jax.Array


def init(task: Task, start: PyTree, left_struct: PyTree | None, key: jax.Array) -> Search:
    """Return the search before its first step.

    Args:
        task: What is searched for.
        start: A stack of b vectors, which decides the size of a block.
        left_struct: The structure of the left vectors; None for a Hermitian operator.
        key: A PRNG key.

    Returns:
        The state.
    """
    bases = factorization.init(key, start, left_struct, task.subspace_size, sides=task.sides)
    real = bases.scale.dtype
    first = min(max(task.k + 4, task.subspace_size // 2), task.subspace_size)
    if task.hermitian:
        # a loose tolerance is asked for early: products with curvature are dear, and a test is not
        looser = min(1.0, math.log(max(task.tol, 1e-300)) / math.log(_USUAL_TOLERANCE))
        first = min(max(task.k + 4, math.ceil(looser * first)), task.subspace_size)
    count = jnp.zeros((), jnp.int32)
    return Search(
        bases=bases,
        num_steps=count,
        test_at=jnp.asarray(first, jnp.int32),
        last_steps=count,
        last_excess=jnp.asarray(jnp.inf, real),
        fixed=count,
        probe_steps=count,
        doubt=jnp.ones((_ENDS[task.which],), real),
        origin=count,
        budget=count,
        values=jnp.zeros((task.k,), real),
        last_residual=jnp.zeros((), real),
        largest=jnp.zeros((), real),
        complete=jnp.ones((), bool),
        done=jnp.zeros((), bool),
    )


def search(
    task: Task,
    step: Callable[[Factorization], Factorization],
    state: Search,
    *,
    while_loop: Callable = jax.lax.while_loop,
) -> Search:
    """Run a search to its end.

    Args:
        task: What is searched for.
        step: Extends a factorisation by one block.
        state: Where to begin: from `init`, or from a run that was cut off.
        while_loop: `jax.lax.while_loop`, or a function of the same arguments that loops on the host, where products
            may come from anything, and the state can be looked at, saved and taken up again.

    Returns:
        The state at the end.
    """
    return while_loop(lambda s: ~s.done, lambda s: cycle(task, step, s, while_loop=while_loop), state)


def cycle(
    task: Task,
    step: Callable[[Factorization], Factorization],
    state: Search,
    *,
    while_loop: Callable = jax.lax.while_loop,
) -> Search:
    """Extend the bases up to the next test, take the test, and restart where there is no room left.

    Args:
        task: What is searched for.
        step: Extends a factorisation by one block.
        state: The state before.
        while_loop: As in `search`.

    Returns:
        The state after.
    """
    bases = while_loop(lambda bases: wants_more(task, grown(state, bases)), step, state.bases)
    return judge(task, grown(state, bases))


def wants_more(task: Task, state: Search) -> jax.Array:
    """Return whether another block is added before the next test.

    Args:
        task: What is searched for.
        state: Where the search stands.

    Returns:
        A boolean scalar.
    """
    bases = state.bases
    width, room = bases.coupling.shape[0], task.subspace_size
    at_least = jnp.minimum(state.fixed + task.k, room - width + 1)
    # a challenge has a budget of its own: it is not cut off in the middle
    within = (state.num_steps < task.max_steps) | (bases.size < at_least) | (state.fixed > 0)
    return (bases.size + width <= room) & (bases.size < state.test_at) & bases.finite & within


def grown(state: Search, bases: Factorization) -> Search:
    """Return the search with bases that have grown by some blocks.

    Args:
        state: The state before.
        bases: The bases after.

    Returns:
        The state after, before its test.
    """
    taken = bases.size - state.bases.size
    probe_steps = jnp.where(state.fixed > 0, state.probe_steps + taken, 0)
    return state._replace(bases=bases, num_steps=state.num_steps + taken, probe_steps=probe_steps)


def judge(task: Task, state: Search) -> Search:
    """Take the test: is the search over, has the challenge an outcome, is there room for another block?

    Args:
        task: What is searched for.
        state: The state before.

    Returns:
        The state after, with bases that are restarted where they have to be.
    """
    bases, k, room = state.bases, task.k, task.subspace_size
    width, dimension = bases.coupling.shape[0], dimension_of(bases)
    ritz = ritz_of(task, bases, state.fixed)
    probing = state.fixed > 0
    in_use = jnp.arange(room, dtype=jnp.int32) < jnp.minimum(bases.size, dimension) - state.fixed
    largest = jnp.maximum(state.largest, jnp.max(jnp.where(in_use, jnp.abs(ritz.values), 0)))
    allowed = jnp.maximum(task.tol * jnp.abs(ritz.values), task.round_off * largest)
    excess = jnp.max(jnp.where(in_use, ritz.residuals / nonzero(allowed), jnp.inf)[:k])
    whole = bases.size >= dimension
    converged = ~probing & ((excess <= 1) | (whole & bases.finite))
    full = bases.size + width > room
    spent = state.num_steps >= task.max_steps

    # the challenge: does anything lie beyond the last wanted value?
    target = state.values[k - 1]
    margin = jnp.maximum(state.last_residual, task.round_off * largest)
    sign = -1.0 if task.which == "smallest" else 1.0
    best = jnp.abs(ritz.values[0]) if task.which == "largest_magnitude" else ritz.values[0]
    gap = sign * ((jnp.abs(target) if task.which == "largest_magnitude" else target) - best)
    missed = probing & (gap < -margin)
    doubt = state.doubt * jnp.stack(
        [
            _share_of_start(task, bases, ritz, state.origin, jnp.where(probing, t, 0))
            for t in _beyond(task, target, margin)
        ]
    )
    unlikely = jnp.max(doubt) <= _negligible(bases, dimension)
    if task.which == "smallest" and not task.hermitian:
        unlikely = unlikely | (target <= margin)  # nothing lies below zero
    settled = probing & ~missed & (unlikely | whole | (state.probe_steps >= state.budget))

    begin = converged & ~whole & jnp.asarray(task.probe)
    lost = (missed & spent) | (spent & ~probing & ~converged & jnp.asarray(task.probe))  # or was never challenged
    done = ~bases.finite | settled | (converged & ~begin) | (spent & ~probing & ~begin) | lost
    restart = ~settled & (converged | missed | full | done) & bases.finite

    # the residuals of the last two tests tell where they will be small enough
    excess_log = jnp.log(jnp.maximum(excess, 1e-30))
    rate = (state.last_excess - excess_log) / jnp.maximum(state.num_steps - state.last_steps, 1).astype(
        excess_log.dtype
    )
    steps = jnp.where(rate > 0, excess_log / jnp.where(rate > 0, rate, 1), room)
    steps = jnp.clip(jnp.where(jnp.isfinite(steps), jnp.ceil(steps), room), 2, room).astype(jnp.int32)
    budget = jnp.where(
        begin,
        jnp.ceil(_PROBE_SHARE[k == 1] * state.num_steps.astype(excess_log.dtype)).astype(jnp.int32),
        state.budget,
    )
    left = jnp.where(begin, budget, budget - state.probe_steps)
    steps = jnp.where((probing & ~missed) | begin, jnp.clip(left, 1, _PROBE_STEPS * width), steps)
    steps = jnp.where(missed, 2 * _PROBE_STEPS * width, steps)

    # beside the wanted vectors, those that cannot hold much of a missed one, whose value is beyond the wanted ones
    last = ritz.values[k - 1]
    weights = [jnp.abs(_weights(task, ritz.values, t)) for t in _beyond(task, last, jnp.zeros_like(last))]
    away = jnp.max(jnp.stack(weights), 0) * ritz.residuals / nonzero(jnp.abs(last))
    known_well = (away <= _OVERLAP) & in_use
    count = k + jnp.sum(jnp.cumprod(known_well[k : deflated(task, width)].astype(jnp.int32)), dtype=jnp.int32)
    fixed = jnp.where(begin, jnp.minimum(count, bases.size), state.fixed).astype(jnp.int32)
    bases = jax.lax.cond(restart, lambda: restarted(task, bases, fixed, ritz, begin, missed), lambda: bases)
    return state._replace(
        bases=bases,
        test_at=(bases.size + steps).astype(jnp.int32),
        last_steps=state.num_steps,
        last_excess=jnp.where(probing, jnp.inf, excess_log).astype(state.last_excess.dtype),
        fixed=jnp.where(missed, 0, fixed),
        probe_steps=jnp.where(begin, 0, state.probe_steps),
        doubt=jnp.where(begin | ~probing, 1, jnp.where(restart, doubt, state.doubt)),
        origin=jnp.where(restart, bases.size, state.origin),
        budget=budget,
        values=jnp.where(probing, state.values, ritz.values[:k]),
        last_residual=jnp.where(probing, state.last_residual, ritz.residuals[k - 1]),
        largest=largest,
        complete=state.complete & ~lost,
        done=done,
    )


def _beyond(task: Task, target: jax.Array, margin: jax.Array) -> list[jax.Array]:
    """Return the values from which on, outwards, another one would have been missed: one for each end."""
    if task.which == "largest_magnitude":
        return [jnp.abs(target) + margin, -jnp.abs(target) - margin]
    return [target + margin if task.which == "largest" else target - margin]


def _negligible(bases: Factorization, dimension: int) -> float:
    """Return what a random block has of any given vector but with the probability `_FAILURE`.

    The squared length of the component is a share of f degrees of freedom in N: as many as the block's vectors in as
    many as the space's dimension, twice both for complex numbers. It is below d^2 with a probability of at most
    (d sqrt(N / 2))^f / Gamma(f / 2 + 1): the volume of a ball under the largest density.
    """
    width, per_number = bases.coupling.shape[0], 2 if vectors.is_complex(bases.coupling.dtype) else 1
    freedom = width * per_number
    return (_FAILURE * math.gamma(freedom / 2 + 1)) ** (1 / freedom) / math.sqrt(dimension * per_number / 2)


def _share_of_start(task: Task, bases: Factorization, ritz: Ritz, origin: jax.Array, target: jax.Array) -> jax.Array:
    """Return how much of the vector at `origin` can belong to a singular vector x of the value `target`, at most.

    From A v_i = s_i u_i and A^H u_i = s_i v_i + r_i w for the Ritz vectors, with w the block behind the bases,
    (t^2 - s_i^2) x^H v_i = s_i r_i x^H w, where |x^H w| <= 1. The vector at `origin` is a sum of Ritz vectors with
    coefficients c_i; hence its component along x is at most |sum_i c_i s_i r_i / (t^2 - s_i^2)|. Where the bases are
    restarted, w is the origin of what follows, and the bounds multiply.
    """
    width = bases.coupling.shape[0]
    weights = _weights(task, ritz.values, target)
    last = jax.lax.dynamic_slice_in_dim(ritz.left, jnp.maximum(bases.size - width, 0), width, 1)
    first = jax.lax.dynamic_slice_in_dim(ritz.right, origin, width, 1)
    rest = jnp.matmul(last, (bases.coupling / nonzero(jnp.abs(target)).astype(last.dtype)).T, precision=HIGHEST)
    component = jnp.matmul(first.conj().T * weights.astype(first.dtype), rest, precision=HIGHEST)
    return jnp.minimum(jnp.sqrt(jnp.sum(jnp.square(jnp.abs(component)))), 1)


def _weights(task: Task, values: jax.Array, target: jax.Array) -> jax.Array:
    """Return s / (t^2 - s^2), for a Hermitian operator 1 / (t - s), times |t|."""
    relative = values / nonzero(jnp.abs(target))
    if task.hermitian:
        return 1 / _apart(jnp.sign(target) - relative)
    return relative / _apart(1 - jnp.square(relative))


def _apart(difference: jax.Array) -> jax.Array:
    return jnp.where(difference == 0, jnp.finfo(difference.dtype).eps, difference)
