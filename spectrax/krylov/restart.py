"""Thick restarts: extreme singular triplets in a subspace of fixed size, and a challenge of what was found.

Baglama & Reichel 2005, doi:10.1137/04060593X; Hernandez, Roman & Tomas 2008, ETNA 31. Departures: the projected matrix
is the one that the orthogonalisation measured, and once the wanted triplets have converged a fresh random vector,
orthogonal to them, takes the place of the residual. A Krylov space holds one copy of each repeated singular value; the
fresh vector holds another, so a copy that was missed comes up.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import vectors
from spectrax.krylov import bidiagonalization
from spectrax.krylov.bidiagonalization import Bidiagonalization
from spectrax.krylov.orthogonalization import orthonormalize
from spectrax.krylov.projected import projected_svd

PyTree = Any
MatVec = Callable[[PyTree], PyTree]
_PROBE_CYCLES = 4
# how well, relative to its distance from the wanted values, the next one must be known before a probe may end: with the
# whole distance, 1 % of small subspaces miss a copy; a tenth costs 3 % more products
_RIVAL_SHARE = 0.1


class Triplets(NamedTuple):
    """Approximate singular triplets, in descending order, and how they were come by.

    Attributes:
        left: Stack of k left vectors.
        values: Shape (k,).
        right: Stack of k right vectors.
        largest: The largest singular value that was seen, a lower bound of the norm.
        num_steps: How many pairs of products (with A and with A^H) were taken.
        finite: Whether all products were finite.
    """

    left: PyTree
    values: jax.Array
    right: PyTree
    largest: jax.Array
    num_steps: jax.Array
    finite: jax.Array


class _Loop(NamedTuple):
    bases: Bidiagonalization
    num_steps: jax.Array
    reference: jax.Array  # the values when they last converged, to see whether a probe changed them
    probing: jax.Array  # cycles since the fresh vector was put in; zero when there is none
    done: jax.Array


def singular_triplets(
    matvec: MatVec,
    rmatvec: MatVec,
    start: PyTree,
    left_struct: PyTree,
    key: jax.Array,
    *,
    k: int,
    smallest: bool,
    subspace_size: int,
    max_steps: int,
    tol: float,
    round_off: float,
    probe: bool,
) -> Triplets:
    """Return the k largest or smallest singular triplets of an operator by restarted bidiagonalisation.

    Args:
        matvec: v -> A v.
        rmatvec: u -> A^H u.
        start: The first right vector; the right side must be the shorter one, or the lowest Ritz values go to zero.
        left_struct: The structure of the left vectors.
        key: A PRNG key.
        k: How many triplets.
        smallest: Which end.
        subspace_size: How far the bases grow before a restart: larger than k, at most the shorter side.
        max_steps: When to give up; one cycle is finished in any case.
        tol: A triplet has converged when its residual is at most tol times its value,
        round_off: or at most round_off times the largest value.
        probe: Whether to challenge the answer with a fresh random vector.

    Returns:
        The triplets as they stand when all have converged or the steps are used up.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from spectrax import krylov
        >>> d = jnp.array([1.0, 2.0, 3.0])
        >>> found = krylov.singular_triplets(
        ...     lambda v: d * v, lambda u: d * u, jnp.ones(3), jax.ShapeDtypeStruct((3,), d.dtype), jax.random.key(0),
        ...     k=1, smallest=False, subspace_size=3, max_steps=10, tol=1e-6, round_off=1e-6, probe=True,
        ... )
        >>> round(float(found.values[0]), 4)
        3.0
    """
    right_struct = vectors.structure(start)
    full = subspace_size >= vectors.size(right_struct)
    kept = min(max(k + 2, k + (subspace_size - k) // 2), subspace_size - 1)
    order = np.arange(subspace_size)[::-1] if smallest else np.arange(subspace_size)
    chosen, rival = order[:k], order[min(k, subspace_size - 1)]

    def cycle(loop: _Loop) -> _Loop:
        bases = jax.lax.while_loop(
            lambda state: (state.step < subspace_size) & state.finite,
            lambda state: bidiagonalization.step(matvec, rmatvec, state),
            loop.bases,
        )
        num_steps = loop.num_steps + bases.step - loop.bases.step
        left, values, right_h = projected_svd(jnp.where(bases.finite, bases.projected, jnp.zeros_like(bases.projected)))
        residuals = bases.coupling * jnp.abs(left[-1])
        floor = round_off * values[0]
        allowed = jnp.maximum(tol * values, floor)
        converged = jnp.all((residuals <= allowed)[chosen])
        if full:
            return loop._replace(bases=bases, num_steps=num_steps, done=jnp.ones((), bool))
        gap = jnp.abs(values[chosen[-1]] - values[rival])
        near = residuals[rival] <= jnp.maximum(_RIVAL_SHARE * gap, allowed[rival])
        settled = near | (loop.probing >= _PROBE_CYCLES)
        same = jnp.all(jnp.abs(values[chosen] - loop.reference) <= (residuals + allowed)[chosen])
        passed = (loop.probing > 0) & same & settled
        done = (converged & (passed | (not probe))) | ~bases.finite
        begin = converged & ~((loop.probing > 0) & same)
        probing = jnp.where(begin, 1, jnp.where(converged & (loop.probing > 0), loop.probing + 1, 0))
        restarted = _restart(bases, left, values, right_h, order[:kept], k, begin)
        finished = done | (num_steps >= max_steps)
        bases = jax.tree.map(lambda old, new: jnp.where(finished, old, new), bases, restarted)
        return _Loop(
            bases=bases,
            num_steps=num_steps,
            reference=jnp.where(begin, values[chosen], loop.reference),
            probing=probing.astype(jnp.int32),
            done=finished,
        )

    bases = bidiagonalization.init(key, start, left_struct, subspace_size)
    loop = _Loop(
        bases=bases,
        num_steps=jnp.zeros((), jnp.int32),
        reference=jnp.zeros((k,), bases.coupling.dtype),
        probing=jnp.zeros((), jnp.int32),
        done=jnp.zeros((), bool),
    )
    loop = jax.lax.while_loop(lambda loop: ~loop.done, cycle, loop)
    bases = loop.bases
    left, values, right_h = projected_svd(jnp.where(bases.finite, bases.projected, jnp.zeros_like(bases.projected)))
    basis = jax.tree.map(lambda rows: rows[:subspace_size], bases.right)
    chosen = np.sort(chosen)
    return Triplets(
        left=vectors.combine(left.T[chosen], bases.left),
        values=values[chosen],
        right=vectors.combine(right_h.conj()[chosen], basis),
        largest=values[0],
        num_steps=loop.num_steps,
        finite=bases.finite,
    )


def _restart(bases: Bidiagonalization, left, values, right_h, retained, wanted: int, challenge) -> Bidiagonalization:
    """Shrink both bases to the retained Ritz vectors, with the residual behind them.

    To challenge the wanted triplets they alone are kept, with a fresh vector behind them: the other Ritz vectors are
    coupled to the residual that is dropped.
    """
    subspace_size, kept = values.shape[0], len(retained)
    count = jnp.where(challenge, wanted, kept)
    in_use = jnp.arange(kept) < count

    def shrunk(coefficients, stack, length):
        rotated = vectors.combine(jnp.where(in_use[:, None], coefficients, 0), stack)
        return jax.tree.map(lambda rows: jnp.pad(rows, [(0, length - kept)] + [(0, 0)] * (rows.ndim - 1)), rotated)

    basis = jax.tree.map(lambda rows: rows[:subspace_size], bases.right)
    right = shrunk(right_h.conj()[retained], basis, subspace_size + 1)
    residual = vectors.row(bases.right, subspace_size)
    fresh = orthonormalize(
        right, residual, bases.right_phases, bases.draws, jnp.where(challenge, jnp.inf, 0.0).astype(values.dtype)
    )
    following = jax.tree.map(lambda a, b: jnp.where(challenge, a, b), fresh.direction, residual)
    diagonal = jnp.where(in_use, values[retained], 0).astype(bases.projected.dtype)
    return bases._replace(
        step=count.astype(jnp.int32),
        right=vectors.set_row(right, count, following),
        left=shrunk(left.T[retained], bases.left, subspace_size),
        projected=jnp.zeros_like(bases.projected).at[np.arange(kept), np.arange(kept)].set(diagonal),
        draws=bases.draws + 1,
    )
