"""Both ends of the spectra of many maps, followed from one training step to the next.

Explicit matrices of one shape are worked on together (`tracking`); every other map has its blocks of vectors renewed by
schedule (`blocks`).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.operators import LinearOperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import in_working_precision
from spectrax.regularizers import tracking
from spectrax.regularizers.blocks import Blocks, Ritz, attached, renew, ritz
from spectrax.regularizers.tracking import Track
from spectrax.regularizers.triplets import Followed
from spectrax.spectrum.methods import can_be_dense

Tracks = dict[str, Track]
RELIABLE = 1e-2  # estimated relative error up to which values count as found, where no tolerance is given


def _grouped(
    operators: dict[str, LinearOperator], ends: dict[str, tuple[int, int]]
) -> tuple[dict[str, list[str]], dict[str, list[jax.Array]]]:
    """Return the names of the explicit matrices of one shape, and these with m >= n, by the shape in words."""
    names: dict[str, list[str]] = {}
    tall: dict[str, list[jax.Array]] = {}
    for name, operator in operators.items():
        working = in_working_precision(operator)
        if not isinstance(working, MatrixOperator) or not can_be_dense(working.shape):
            continue
        matrix = working.matrix if working.shape[0] >= working.shape[1] else vectors.adjoint(working.matrix)
        label = f"{matrix.shape[0]}x{matrix.shape[1]} {matrix.dtype}, {ends[name][0]} + {ends[name][1]}"
        names.setdefault(label, []).append(name)
        tall.setdefault(label, []).append(matrix)
    return names, tall


def begin(operators: dict[str, LinearOperator], ends: dict[str, tuple[int, int]]) -> Tracks:
    """Return what is kept of the explicit matrices beside their blocks, which were just found.

    Args:
        operators: The maps by name.
        ends: How many vectors at the top and at the bottom of each.

    Returns:
        A track for each shape; its name tells shape, dtype and ends.
    """
    names, matrices = _grouped(operators, ends)
    return {
        label: tracking.start(jax.lax.stop_gradient(jnp.stack(group)), keep_factor=ends[names[label][0]][1] > 0)
        for label, group in matrices.items()
    }


def step(
    operators: dict[str, LinearOperator],
    remade: Callable[[], dict[str, LinearOperator]],
    ends: dict[str, tuple[int, int]],
    blocks: dict[str, Blocks],
    tracks: Tracks,
    *,
    due: jax.Array,
    key: Callable[[], jax.Array] | None,
    tolerance: float | None,
    reliable: float,
    renew_every: int,
) -> tuple[dict[str, tuple[Ritz, Ritz]], dict[str, jax.Array], dict[str, Blocks], Tracks]:
    """Take the blocks of all maps one step further.

    Args:
        operators: The maps by name.
        remade: Returns them once more, from constants: what goes into a conditional must lie in memory, and where they
            are transposed parameters that is a copy at every step, unless it is made within.
        ends: How many vectors at the top and at the bottom of each.
        blocks: Their blocks.
        tracks: As `begin` or the last step returned them; empty without a tolerance.
        due: Whether the schedule asks for a renewal.
        key: Returns a PRNG key for this step; None where every map is small enough to be decomposed.
        tolerance: Relative error above which explicit matrices are worked on more, or None.
        reliable: Estimated relative error up to which values count as known.
        renew_every: Steps after which the factor of a matrix is too old.

    Returns:
        The values at both ends by name, differentiable with respect to the operators, ds = Re(u^H dA v); whether both
        are known, but for round-off; the new blocks; the new tracks.

    Raises:
        ValueError: If the blocks or the tracks are those of other maps or options.
    """
    names, matrices = _grouped(operators, ends)
    grouped = {name for group in names.values() for name in group}
    _check_state(operators, names, ends, blocks, None if tolerance is None else tracks)
    blocks, tracks = jax.lax.stop_gradient((blocks, tracks))
    by_schedule = [name for name in operators if tolerance is None or name not in grouped]
    if by_schedule:
        old = {name: blocks[name] for name in by_schedule}

        def renewed() -> dict[str, Blocks]:
            again = {name: operator for name, operator in remade().items() if name in by_schedule}
            new = renew(again, ends, None if key is None else key(), old)
            return {name: vectors.select(_finite(again[name]), new[name], old[name]) for name in new}

        blocks = blocks | jax.lax.cond(due, renewed, lambda: old)
    found = {name: ritz(operator, blocks[name]) for name, operator in operators.items() if name not in grouped}
    kept = {
        name: jnp.all(blocks[name].converged) & _within(top, reliable) & _within(bottom, reliable)
        for name, (top, bottom) in found.items()
    }
    for index, label in enumerate(names):
        group = [blocks[name] for name in names[label]]
        top = jnp.stack([block.top for block in group])
        bottom = None if group[0].bottom is None else jnp.stack([block.bottom for block in group])
        seen = tracking.followed(jax.lax.stop_gradient(matrices[label]), top, bottom)
        followed, top = seen.followed, seen.basis
        if tolerance is not None:
            draw = None if key is None else functools.partial(_another, key, index)
            followed, improved, track = tracking.improved(
                lambda label=label: jnp.stack(_grouped(remade(), ends)[1][label]), seen, tracks[label],
                due=due, key=draw, tolerance=tolerance, renew_every=renew_every,
            )  # fmt: skip
            tracks = tracks | {label: track}
            top = vectors.select(improved, followed.top.v, top)
            bottom = None if followed.bottom is None else vectors.select(improved, followed.bottom.v, bottom)
        for row, name in enumerate(names[label]):
            own = jax.tree.map(lambda leaf, row=row: leaf[row], followed)
            flags, found[name] = _of_one(operators[name], own, reliable)
            kept[name] = jnp.all(flags)
            blocks = blocks | {name: Blocks(top[row], None if bottom is None else bottom[row], flags)}
    order = list(operators)
    found, kept = {name: found[name] for name in order}, {name: kept[name] for name in order}
    return found, kept, {name: blocks[name] for name in order}, tracks


def _check_state(
    operators: dict[str, LinearOperator],
    names: dict[str, list[str]],
    ends: dict[str, tuple[int, int]],
    blocks: dict[str, Blocks],
    tracks: Tracks | None,
) -> None:
    advice = "take the state from `init` of this penalty for these parameters"
    if set(blocks) != set(operators):
        raise ValueError(f"the state must hold vectors of {', '.join(operators)}, got {', '.join(blocks)}; {advice}")
    if tracks is not None and set(tracks) != set(names):
        raise ValueError(f"the state must track {', '.join(names)}, got {', '.join(tracks) or 'nothing'}; {advice}")
    for name in (name for group in names.values() for name in group):
        expected, shape = (ends[name][0], min(operators[name].shape)), jnp.shape(blocks[name].top)
        if shape != expected:
            raise ValueError(f"the state must hold vectors of {name} of shape {expected}, got {shape}; {advice}")


def _finite(operator: LinearOperator) -> jax.Array:
    arrays = [leaf for leaf in jax.tree.leaves(operator) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in arrays])) if arrays else jnp.ones((), bool)


def _another(key: Callable[[], jax.Array], index: int) -> jax.Array:
    return jax.random.fold_in(key(), index)


def _within(end: Ritz, tolerance: float) -> jax.Array:
    """Say whether an end that was looked for is known; the error is inf where it cannot be told from zero."""
    unwanted = jnp.isnan(end.values[-1])
    return unwanted | (end.error <= tolerance) | (jnp.isinf(end.error) & jnp.isfinite(end.residual))


def _of_one(operator: LinearOperator, followed: Followed, tolerance: float) -> tuple[jax.Array, tuple[Ritz, Ritz]]:
    """Return whether each end of an explicit matrix is within the tolerance, and its values."""
    top, bottom = followed
    count, largest = top.s.shape[0], top.s[0]
    ends = [top] if bottom is None else [top, bottom]
    left, s, right = (jnp.concatenate([getattr(end, name) for end in ends]) for name in ("u", "s", "v"))
    if operator.shape[0] < operator.shape[1]:  # the vectors are those of the adjoint
        left, right = right, left
    values = attached(in_working_precision(operator), left, s, right)
    eps = jnp.finfo(largest.dtype).eps
    kept = top.error <= tolerance
    at_top = Ritz(values[:count], top.residual, top.error + 16 * eps)
    if bottom is None:
        nothing = jnp.full((1,), jnp.nan, largest.dtype)
        return jnp.stack([kept, kept]), (at_top, Ritz(nothing, nothing[0], nothing[0]))
    smallest = bottom.s[-1]
    error = bottom.error + 4 * eps * largest / jnp.where(smallest > 0, smallest, 1)
    error = jnp.where(smallest <= max(operator.shape) ** 0.5 * eps * largest, jnp.inf, error)
    at_bottom = Ritz(values[count:], bottom.residual, error)
    return jnp.stack([kept, bottom.error <= tolerance]), (at_top, at_bottom)
