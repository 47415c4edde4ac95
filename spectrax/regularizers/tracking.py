"""Singular vectors of explicit matrices followed from step to step, for all matrices of one shape at once.

At each step the values are those of the matrix on the vectors of the step before (Rayleigh-Ritz), with an estimate of
their errors. Where it exceeds the tolerance the vectors are improved within the same step (`improvement`), and so they
are where the matrix changed much more than usual, or so much in all that values outside the vectors may have moved by
more than the tolerance. A matrix that moves too fast is reported, as far as residuals show it, and not waited for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import layouts, vectors
from spectrax.regularizers.improvement import Factor, improve, lower_factor
from spectrax.regularizers.triplets import (
    Followed,
    Triplets,
    exceeds,
    lengths,
    on_span,
    residual_error,
    unless_at_round_off,
)
from spectrax.spectrum.methods import DENSE_OPERATOR_SIDE

FACTOR_SIDE = 1024  # shorter side up to which a factor is kept from step to step
_LOOK_EVERY = 8  # steps, at most, between two looks outside the vectors
_JUMP = 4.0  # a change that is this many times the usual one asks for a new factor
_SKETCH = 2  # vectors by which changes are measured
_UNROLLED = 16  # so many matrices of one shape are multiplied with one by one

_Parts = tuple[jax.Array, jax.Array, jax.Array]


class Track(NamedTuple):
    """What is kept of matrices of one shape beside their vectors; every array has them along its first axis.

    Attributes:
        factor: Their last factorisations.
        sketch: Products with some fixed random vectors, shape (count, 2, m): the Frobenius norm of their change is
            near that of the matrix.
        change: The usual change in a step; inf where none was seen yet.
        unseen: Change since the last look outside the vectors, as a share of the Frobenius norm.
    """

    factor: Factor
    sketch: jax.Array
    change: jax.Array
    unseen: jax.Array


class Seen(NamedTuple):
    """What a step shows of a matrix, or of many, before anything is improved.

    Attributes:
        followed: The triplets on the vectors of the step before.
        basis: The right vectors at the top for the next step, the last one after a step of power iteration: by it a
            direction that grows from outside the block to the largest one is found.
        sketch: The products with two fixed random vectors, shape (2, m).
    """

    followed: Followed
    basis: jax.Array
    sketch: jax.Array


def start(matrices: jax.Array, *, keep_factor: bool) -> Track:
    """Return what is known of matrices whose vectors were just found.

    Args:
        matrices: Shape (count, m, n), m >= n.
        keep_factor: Whether the bottom is followed, with a factor if it is not too large.

    Returns:
        The track, with a factor of these matrices.
    """
    count, _, n = matrices.shape
    lower = None
    if keep_factor and DENSE_OPERATOR_SIDE < n <= FACTOR_SIDE:
        finite = jnp.all(jnp.isfinite(matrices), axis=(-2, -1), keepdims=True)
        lower = lower_factor(jnp.where(finite, matrices, 0))
    real = vectors.real_dtype(matrices.dtype)
    age, misses = (jnp.zeros((count,), jnp.int32) for _ in range(2))  # no array twice: a state may be donated
    change, quotient = (jnp.full((count,), jnp.inf, real) for _ in range(2))
    return Track(Factor(lower, age, misses, quotient), _sketch(matrices), change, jnp.zeros((count,), real))


def followed(matrices: list[jax.Array], top: jax.Array, bottom: jax.Array | None) -> Seen:
    """Return the values of matrices on given vectors.

    Args:
        matrices: Of shape (m, n), m >= n; not differentiated.
        top: Orthonormal right vectors as rows, shape (count, k, n).
        bottom: The same for the smallest values, or None.

    Returns:
        What is seen of them; the values are NaN for a matrix that is not finite.

    Cost:
        Products with all vectors and two more, and with two or three left ones.
    """
    count = len(matrices)
    probes = jnp.broadcast_to(_probes(matrices[0]), (count, _SKETCH, matrices[0].shape[1]))
    basis = jnp.concatenate([part for part in (top, bottom, probes) if part is not None], 1)
    images = _each(lambda rows, matrix: vectors.matmul(rows, matrix.T), basis, matrices)
    found, chosen = layouts.on_every_device(_on_blocks, images, top, bottom)
    rows = _each(lambda rows, matrix: vectors.matmul(rows.conj(), matrix).conj(), chosen[0], matrices)
    return layouts.on_every_device(_judged, found, chosen, rows, images[:, -_SKETCH:])


def _each(product: Callable[[jax.Array, jax.Array], jax.Array], rows: jax.Array, matrices: list[jax.Array]):
    """Return the product of each of the stacks of rows with its own matrix."""
    if len(matrices) > _UNROLLED:
        return jax.vmap(product)(rows, jnp.stack(matrices))
    # one by one no matrix has to be copied, as a stack of transposed parameters would be
    return jnp.stack([product(own, matrix) for own, matrix in zip(rows, matrices, strict=True)])


def improved(
    matrices: Callable[[], jax.Array],
    seen: Seen,
    track: Track,
    *,
    due: jax.Array,
    key: Callable[[], jax.Array] | None,
    tolerance: float,
    renew_every: int,
) -> tuple[Followed, jax.Array, Track]:
    """Improve the triplets of those matrices whose values are not within a tolerance.

    Args:
        matrices: Returns them, shape (count, m, n), m >= n; not differentiated. What goes into a conditional must lie
            in memory, and where they are transposed parameters that is a copy at every step, unless made within.
        seen: What this step shows of them.
        track: What else is kept.
        due: Whether all of them are to be factorised now.
        key: Returns a PRNG key; None where n <= 128, and they are decomposed.
        tolerance: Estimated relative error of the outermost values that is good enough.
        renew_every: Steps after which a factor is too old.

    Returns:
        The triplets, which of them were improved and thus have vectors of another span, and the new track.

    Cost:
        That of `improvement.improve` for those matrices.
    """
    found = seen.followed
    count = seen.sketch.shape[0]
    track, jumped = _observed(seen.sketch, track, tolerance * found.top.s[:, 0], tolerance / _LOOK_EVERY)
    renewed = jnp.broadcast_to(due, (count,)) | jumped | (track.factor.age >= renew_every)
    looking = renewed | ~(track.unseen < 0.99 * tolerance)
    needing = looking | exceeds(found.top.error, tolerance)
    if found.bottom is not None:
        needing = needing | exceeds(found.bottom.error, tolerance)

    def better(task: Any) -> tuple[Followed, Factor]:
        matrix, triplets, factor, own_key, _, renew, look = task
        return improve(matrix, triplets, factor, own_key, renew=renew, look=look, goal=tolerance)

    def one(task: Any) -> tuple[Followed, Factor]:
        _, triplets, factor, _, needed, _, _ = task
        return jax.lax.cond(needed, lambda: better(task), lambda: (triplets, factor))

    def all_of_them() -> tuple[Followed, Factor]:
        keys = None if key is None else jax.random.split(key(), count)
        tasks = (matrices(), found, track.factor, keys, needing, renewed, looking)
        if count > 1:
            return jax.lax.map(one, tasks)
        alone = better(jax.tree.map(lambda leaf: leaf[0], tasks))
        return jax.tree.map(lambda leaf: leaf[None], alone)

    found, factor = jax.lax.cond(jnp.any(needing), all_of_them, lambda: (found, track.factor))
    looked = looking & jnp.isfinite(seen.followed.top.s[:, 0])
    return found, needing, track._replace(factor=factor, unseen=jnp.where(looked, 0, track.unseen))


def _probes(like: jax.Array) -> jax.Array:
    """Return the vectors by which changes are measured; signs would be blind to differences of two columns."""
    n = like.shape[-1]
    return jnp.asarray(np.random.default_rng(n).standard_normal((_SKETCH, n)), like.dtype)


def _sketch(matrices: jax.Array) -> jax.Array:
    return jnp.einsum("kn,cmn->ckm", _probes(matrices), matrices, precision=vectors.HIGHEST)


def _observed(sketch: jax.Array, track: Track, least: jax.Array, share: float) -> tuple[Track, jax.Array]:
    """Return the track one step older, and which matrices changed much more than usual.

    Old vectors with small residuals say nothing of a new singular value far from them, as a small one that appears when
    two columns become equal, or a large one in the first step of training. While no usual change is known, one of the
    size `least` counts as such. At least a `share` of the norm is taken to have changed.
    """
    scale = jnp.max(jnp.abs(sketch), axis=(1, 2))
    factor = 1 / jnp.where(scale > 0, scale, 1)[:, None, None]

    def norm(rows: jax.Array) -> jax.Array:  # an estimate of the Frobenius norm
        return scale * jnp.sqrt(jnp.mean(jnp.sum(jnp.square(jnp.abs(rows * factor)), 2), 1))

    change, whole = norm(sketch - track.sketch), norm(sketch)
    moved = change > 4 * jnp.finfo(scale.dtype).eps * scale  # steps that change nothing are no measure
    known = jnp.isfinite(track.change)
    jumped = ~(change <= jnp.where(known, _JUMP * track.change, least))
    usual = jnp.where(known & ~jumped, 0.8 * track.change + 0.2 * change, change)
    usual = jnp.where(moved, usual, track.change)
    sketch = jnp.where(jnp.isfinite(change)[:, None, None], sketch, track.sketch)  # NaN is nothing to compare with
    unseen = track.unseen + jnp.maximum(change / jnp.where(whole > 0, whole, 1), share)
    older = track.factor._replace(age=track.factor.age + 1)
    return Track(older, sketch, usual, unseen), jumped & moved


@jax.vmap
def _on_blocks(images: jax.Array, top: jax.Array, bottom: jax.Array | None) -> tuple[list[_Parts], _Parts]:
    """Return the triplets of a matrix on both blocks, and those of which it is asked how far they are off.

    These are the outermost ones, and the innermost one at the top.

    Args:
        images: Of the blocks' vectors and of two more, as rows.
        top: Right vectors as rows.
        bottom: The same for the smallest values, or None.
    """
    blocks = [top] if bottom is None else [top, bottom]
    *parts, sketch = jnp.split(images, np.cumsum([block.shape[0] for block in blocks]))
    finite = jnp.all(jnp.isfinite(sketch))
    found = []
    for image, block in zip(parts, blocks, strict=True):
        u, s, v = on_span(jnp.where(finite, image, 0), block)
        found.append((u, jnp.where(finite, s, jnp.nan), v))
    u, s, v = found[0]
    chosen = [tuple(part[-end] for part in parts) for end, parts in enumerate(found)] + [(u[-1], s[-1], v[-1])]
    left, values, right = (jnp.stack(parts) for parts in zip(*chosen, strict=True))
    return found, (left, values, right)


@jax.vmap
def _judged(found: list[_Parts], chosen: _Parts, rows: jax.Array, sketch: jax.Array) -> Seen:
    """Return the triplets with their errors, and what else is seen of a matrix.

    Args:
        found: The triplets on the blocks.
        chosen: Some of them.
        rows: A^H u for the left vectors of these.
        sketch: The products with two fixed random vectors.
    """
    u, s, v = found[0]
    _, values, right = chosen
    rows = rows - values[:, None].astype(v.dtype) * right
    residuals = lengths(rows, s[0])
    onward = rows[-1] + s[-1].astype(v.dtype) * v[-1]  # A^H u: a step of power iteration
    length = lengths(onward[None], s[0])[0]
    usable = jnp.isfinite(length) & (length > 0)
    onward = jnp.where(usable, onward / jnp.where(usable, length, 1).astype(v.dtype), v[-1])
    triplets = [
        Triplets(u, s, v, residuals[end], residual_error(residuals[end], s, bottom=end == 1))
        for end, (u, s, v) in enumerate(found)
    ]
    at_bottom = None
    if len(found) > 1:
        error = unless_at_round_off(triplets[1].error, triplets[1].s, s[0], (u.shape[-1], v.shape[-1]))
        at_bottom = triplets[1]._replace(error=error)
    return Seen(Followed(triplets[0], at_bottom), jnp.concatenate([v[:-1], onward[None]]), sketch)
