"""Singular vectors of explicit matrices followed from step to step, for all matrices of one shape at once.

At each step the values are those of the matrix on the vectors of the step before (Rayleigh-Ritz), with an estimate of
their errors. Where it exceeds the tolerance the vectors are improved within the same step: at the top by products with
the matrix; at the bottom by solves with an older factor, and where that is not enough with a new one. All loops are
bounded, so a matrix that moves too fast is reported, as far as residuals show it, and not waited for.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import vectors
from spectrax.spectrum.methods import DENSE_OPERATOR_SIDE

FACTOR_SIDE = 1024  # shorter side up to which a factor is kept from step to step
_TOP_ROUNDS = 8  # products with the matrix and its adjoint in one step
_STALE_ROUNDS = 2  # products with the inverse of an older factor
_FRESH_ROUNDS = 6  # with that of a new one
_MISSES = 2  # in a row, after which an older factor is tried only
_RETRY = 8  # every so many steps
_JUMP = 4.0  # a change that is this many times the usual one asks for a new factor
_SKETCH = 2  # vectors by which changes are measured
_GRAM_LIMIT = 2.0  # condition numbers up to 1 / (2 sqrt(eps)) are left to a Cholesky factorisation of the Gram matrix
_UNROLLED = 16  # so many matrices of one shape are looked at one by one
_NOISE = 0.03  # share of random directions in the start: what the old vectors lack is found only through them


class Track(NamedTuple):
    """What is kept of matrices of one shape beside their vectors; every array has them along its first axis.

    Attributes:
        factor: The triangular factors of a QR factorisation `age` steps ago, shape (count, n, n); None where n is too
            large to keep them.
        age: Steps since the last factorisation, int32.
        misses: How many times in a row an older factor was not good enough, int32.
        sketch: Products with some fixed vectors of signs, shape (count, 2, m): the Frobenius norm of their change is
            near that of the matrix.
        change: The usual change in a step; inf where none was seen yet.
        quotient: The smallest value over the largest at the last factorisation; inf before.
    """

    factor: jax.Array | None
    age: jax.Array
    misses: jax.Array
    sketch: jax.Array
    change: jax.Array
    quotient: jax.Array


class Triplets(NamedTuple):
    """Approximate singular triplets at one end, for one matrix or with a leading axis for many.

    Attributes:
        u: Left vectors as rows, shape (count, m).
        s: Values, shape (count,), descending.
        v: Right vectors as rows, shape (count, n).
        residual: |A^H u - s v| of the outermost one; A v = s u holds by construction.
        error: Estimated relative error of its value, without round-off.
    """

    u: jax.Array
    s: jax.Array
    v: jax.Array
    residual: jax.Array
    error: jax.Array


class Followed(NamedTuple):
    """The triplets at both ends.

    Attributes:
        top: Those of the largest values.
        bottom: Those of the smallest ones; None where they are not wanted.
    """

    top: Triplets
    bottom: Triplets | None


class Seen(NamedTuple):
    """What a step shows of a matrix, or of many, before anything is improved.

    Attributes:
        followed: The triplets on the vectors of the step before.
        basis: The right vectors at the top for the next step, the last one after a step of power iteration: by it a
            direction that grows from outside the block to the largest one is found.
        sketch: The products with two vectors of signs, shape (2, m).
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
    factor = None
    if keep_factor and DENSE_OPERATOR_SIDE < n <= FACTOR_SIDE:
        factor = jnp.linalg.qr(_finite_or_zero(matrices), mode="r")
    age, misses = (jnp.zeros((count,), jnp.int32) for _ in range(2))  # no array twice: a state may be donated
    change, quotient = (jnp.full((count,), jnp.inf, vectors.real_dtype(matrices.dtype)) for _ in range(2))
    return Track(factor, age, misses, _sketch(matrices), change, quotient)


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
    if len(matrices) > _UNROLLED:
        in_axes = (0, 0, None if bottom is None else 0)
        return jax.vmap(_ritz_both, in_axes=in_axes)(jnp.stack(matrices), top, bottom)
    # one by one no matrix has to be copied, as a stack of transposed parameters would be
    each = [_ritz_both(matrix, *jax.tree.map(lambda rows, i=i: rows[i], (top, bottom)))
            for i, matrix in enumerate(matrices)]  # fmt: skip
    return jax.tree.map(lambda *parts: jnp.stack(parts), *each)


def improved(
    matrices: Callable[[], jax.Array],
    seen: Seen,
    track: Track,
    *,
    due: jax.Array,
    keys: jax.Array | None,
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
        keys: A PRNG key for each matrix; None where n <= 128, which are decomposed.
        tolerance: Estimated relative error of the outermost values that is good enough.
        renew_every: Steps after which a factor is too old.

    Returns:
        The triplets, which of them were improved and thus have vectors of another span, and the new track.

    Cost:
        Where the tolerance is exceeded up to 8 products with all at the top, and at the
        bottom up to 2 solves with an old factor, or a factorisation and up to 6 solves.
    """
    found = seen.followed
    count = seen.sketch.shape[0]
    track, jumped = _observed(seen.sketch, track, tolerance * found.top.s[:, 0])
    renewed = jnp.broadcast_to(due, (count,)) | jumped | (track.age >= renew_every)
    needing = renewed | _exceeds(found.top.error, tolerance)
    if found.bottom is not None:
        needing = needing | _exceeds(found.bottom.error, tolerance)

    def one(task: Any) -> tuple[Followed, Track]:
        matrix, triplets, kept, key, needed, renew = task
        improve = functools.partial(_improve, matrix, triplets, kept, key, renew, goal=tolerance)
        return jax.lax.cond(needed, improve, lambda: (triplets, kept))

    def all_of_them() -> tuple[Followed, Track]:
        tasks = (matrices(), found, track, keys, needing, renewed)
        if count > 1:
            return jax.lax.map(one, tasks)
        matrix, triplets, kept, key, _, renew = jax.tree.map(lambda leaf: leaf[0], tasks)
        alone = _improve(matrix, triplets, kept, key, renew, goal=tolerance)
        return jax.tree.map(lambda leaf: leaf[None], alone)

    found, track = jax.lax.cond(jnp.any(needing), all_of_them, lambda: (found, track))
    return found, needing, track


def _finite_or_zero(matrices: jax.Array) -> jax.Array:
    finite = jnp.all(jnp.isfinite(matrices), axis=(-2, -1), keepdims=True)
    return jnp.where(finite, matrices, 0)


def _signs(like: jax.Array) -> jax.Array:
    n = like.shape[-1]
    return jnp.asarray(np.random.default_rng(n).choice(np.array([-1, 1], np.int8), (_SKETCH, n))).astype(like.dtype)


def _sketch(matrices: jax.Array) -> jax.Array:
    return jnp.einsum("kn,cmn->ckm", _signs(matrices), matrices, precision=vectors.HIGHEST)


def _observed(sketch: jax.Array, track: Track, least: jax.Array) -> tuple[Track, jax.Array]:
    """Return the track one step older, and which matrices changed much more than usual.

    Old vectors with small residuals say nothing of a new singular value far from them, as a small one that appears when
    two columns become equal, or a large one in the first step of training. While no usual change is known, one of the
    size `least` counts as such.
    """
    scale = jnp.max(jnp.abs(sketch), axis=(1, 2))
    factor = 1 / jnp.where(scale > 0, scale, 1)[:, None, None]
    change = scale * jnp.sqrt(jnp.mean(jnp.sum(jnp.square(jnp.abs((sketch - track.sketch) * factor)), 2), 1))
    moved = change > 4 * jnp.finfo(scale.dtype).eps * scale  # steps that change nothing are no measure
    known = jnp.isfinite(track.change)
    jumped = ~(change <= jnp.where(known, _JUMP * track.change, least))
    usual = jnp.where(known & ~jumped, 0.8 * track.change + 0.2 * change, change)
    usual = jnp.where(moved, usual, track.change)
    sketch = jnp.where(jnp.isfinite(change)[:, None, None], sketch, track.sketch)  # NaN is nothing to compare with
    return track._replace(age=track.age + 1, sketch=sketch, change=usual), jumped & moved


def _exceeds(error: jax.Array, tolerance: float) -> jax.Array:
    return ~(error <= tolerance)  # NaN exceeds


def _ritz(image: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the triplets of a matrix on the span of orthonormal rows, from their images: A v = s u.

    An SVD of the triangular factor of the image loses nothing; a Gram matrix would.
    """
    q, r = jnp.linalg.qr(image.T)
    left, s, right_h = jnp.linalg.svd(r)
    return vectors.matmul(q, left).T, s, vectors.matmul(right_h.conj(), basis)


def _adjoint_residuals(matrix: jax.Array, u: jax.Array, s: jax.Array, v: jax.Array) -> jax.Array:
    """Return A^H u - s v as rows."""
    return vectors.matmul(u.conj(), matrix).conj() - s[:, None].astype(v.dtype) * v


def _lengths(rows: jax.Array, scale: jax.Array) -> jax.Array:
    """Return the 2-norms of rows whose entries are at most about the scale: no square over- or underflows."""
    scale = jnp.where(scale > 0, scale, 1)
    return scale * vectors.lengths(rows / scale.astype(rows.dtype))


def residual_error(residual: jax.Array, s: jax.Array, *, bottom: bool) -> jax.Array:
    r"""Estimate the relative error of an outermost value from its residual.

    min(rho / s, 3 rho^2 / (2 |s_far^2 - s^2|)), with rho = |A^H u - s v| and s_far the value farthest inside the block.
    Without the factor 3 the second one is the bound of Kato and Temple, if s_far stands for the nearest value outside
    the block: mixtures within it are resolved.

    Args:
        residual: rho of the outermost triplet.
        s: Values of the block, descending.
        bottom: Which one is the outermost.

    Returns:
        The estimate; zero where the residual is.
    """
    value, far = (s[-1], s[0]) if bottom else (s[0], s[-1])
    ratio = residual / jnp.where(value > 0, value, 1)
    quotient = far / jnp.where(value > 0, value, 1)
    gap = jnp.abs(jnp.square(quotient) - 1)
    squared = 1.5 * jnp.square(ratio) / jnp.where(gap > 0, gap, 1)
    error = jnp.where(gap > 0, jnp.minimum(ratio, squared), ratio)
    return jnp.where(value == 0, jnp.where(residual == 0, 0, jnp.inf), error)


def _ritz_both(matrix: jax.Array, top: jax.Array, bottom: jax.Array | None) -> Seen:
    """Return the triplets on both blocks, and what else is seen of a matrix."""
    blocks = [top] if bottom is None else [top, bottom]
    ends = np.cumsum([block.shape[0] for block in blocks])
    *images, sketch = jnp.split(vectors.matmul(jnp.concatenate([*blocks, _signs(matrix)]), matrix.T), ends)
    finite = jnp.all(jnp.isfinite(sketch))
    found = []
    for image, block in zip(images, blocks, strict=True):
        u, s, v = _ritz(jnp.where(finite, image, 0), block)
        found.append((u, jnp.where(finite, s, jnp.nan), v))
    u, s, v = found[0]
    # the outermost triplets, and the innermost one at the top
    chosen = [tuple(part[-end] for part in parts) for end, parts in enumerate(found)] + [(u[-1], s[-1], v[-1])]
    rows = _adjoint_residuals(matrix, *(jnp.stack(parts) for parts in zip(*chosen, strict=True)))
    residuals = _lengths(rows, s[0])
    onward = rows[-1] + s[-1].astype(v.dtype) * v[-1]  # A^H u: a step of power iteration
    length = _lengths(onward[None], s[0])[0]
    usable = jnp.isfinite(length) & (length > 0)
    onward = jnp.where(usable, onward / jnp.where(usable, length, 1).astype(v.dtype), v[-1])
    triplets = [
        Triplets(u, s, v, residuals[end], residual_error(residuals[end], s, bottom=end == 1))
        for end, (u, s, v) in enumerate(found)
    ]
    at_bottom = None
    if bottom is not None:
        error = _at_round_off(triplets[1].error, triplets[1].s, s[0], matrix)
        at_bottom = triplets[1]._replace(error=error)
    return Seen(Followed(triplets[0], at_bottom), jnp.concatenate([v[:-1], onward[None]]), sketch)


def _at_round_off(error: jax.Array, s: jax.Array, largest: jax.Array, matrix: jax.Array) -> jax.Array:
    """Return no error for a smallest value that cannot be told from zero: there is nothing to improve."""
    floor = max(matrix.shape) ** 0.5 * jnp.finfo(s.dtype).eps * largest
    return jnp.where(s[-1] <= floor, 0, error)


def _orthonormal(*stacks: jax.Array) -> jax.Array:
    rows = jnp.concatenate(stacks)
    lengths = vectors.lengths(rows)
    rows = rows / jnp.where(lengths > 0, lengths, 1)[:, None].astype(rows.dtype)
    q, _ = jnp.linalg.qr(rows.T)
    q, _ = jnp.linalg.qr(q)  # rows that are nearly dependent leave the first pass with errors
    return q.T


def _improve(
    matrix: jax.Array, found: Followed, track: Track, key: jax.Array | None, renew: jax.Array, *, goal: float
) -> tuple[Followed, Track]:
    """Improve the vectors of one matrix until their values have an estimated error below the goal."""
    largest = found.top.s[0]
    sane = jnp.isfinite(largest)
    _, exponent = jnp.frexp(jnp.where(sane & (largest > 0), largest, 1))
    limit = jnp.finfo(largest.dtype).maxexp - 2
    up = jnp.ldexp(jnp.ones_like(largest), -jnp.clip(exponent, -limit, limit))
    scaled = jnp.where(sane, matrix * up.astype(matrix.dtype), 0)

    def begun(end: Triplets) -> Triplets:
        end = end._replace(s=end.s * up, residual=end.residual * up)
        return jax.tree.map(lambda leaf: jnp.where(sane, leaf, 0), end)

    start_from = Followed(begun(found.top), None if found.bottom is None else begun(found.bottom))
    if matrix.shape[1] <= DENSE_OPERATOR_SIDE:
        better, track = _decomposed(scaled, start_from, track)
    else:
        better, track = _iterated(scaled, start_from, track, key, renew, up, goal)

    def back(old: Triplets, new: Triplets) -> Triplets:
        new = new._replace(s=new.s / up, residual=new.residual / up)
        return jax.tree.map(lambda a, b: jnp.where(sane, b, a), old, new)

    bottom = None if found.bottom is None or better.bottom is None else back(found.bottom, better.bottom)
    return Followed(back(found.top, better.top), bottom), track


def _decomposed(matrix: jax.Array, found: Followed, track: Track) -> tuple[Followed, Track]:
    """Decompose a small matrix wholly."""
    q, r = jnp.linalg.qr(matrix)
    left, s, right_h = jnp.linalg.svd(r)
    u, v = vectors.matmul(q, left).T, right_h.conj()
    nothing = jnp.zeros_like(s[0])

    def part(rows: slice, own: slice) -> Triplets:
        outer = (u[own], s[own], v[own])
        return Triplets(u[rows], s[rows], v[rows], vectors.lengths(_adjoint_residuals(matrix, *outer))[0], nothing)

    top = part(slice(found.top.s.shape[0]), slice(1))
    bottom = None if found.bottom is None else part(slice(-found.bottom.s.shape[0], None), slice(-1, None))
    return Followed(top, bottom), track._replace(age=jnp.zeros_like(track.age))


def _iterated(
    matrix: jax.Array,
    found: Followed,
    track: Track,
    key: jax.Array | None,
    renew: jax.Array,
    scale: jax.Array,
    goal: float,
) -> tuple[Followed, Track]:
    top = _by_products(matrix, found.top, renew, goal)
    largest, empty = top.s[0], jnp.zeros((matrix.shape[1],) * 2, matrix.dtype)
    if found.bottom is None:
        return Followed(top, None), track._replace(age=jnp.where(renew, 0, track.age))
    bottom, tried = found.bottom, jnp.zeros((), bool)
    if track.factor is not None:
        tried = ~renew & ((track.misses < _MISSES) | (track.age % _RETRY == 0)) & _exceeds(bottom.error, goal)
        old = track.factor * scale.astype(track.factor.dtype)
        rounds = jnp.where(tried, _STALE_ROUNDS, 0)
        bottom = _by_solves(matrix, _solvable(old), bottom, rounds, largest, goal)
    needed = renew | _exceeds(bottom.error, goal)

    def harmless(smallest: jax.Array) -> jax.Array:
        return smallest >= _GRAM_LIMIT * jnp.finfo(largest.dtype).eps ** 0.5 * largest

    def fresh() -> tuple[Triplets, jax.Array]:
        assert key is not None
        noise = vectors.normal(key, jax.ShapeDtypeStruct(bottom.v.shape[1:], bottom.v.dtype), bottom.v.shape[0])
        rows = _orthonormal(bottom.v + _NOISE / matrix.shape[1] ** 0.5 * noise)
        unknown = jnp.full_like(bottom.error, jnp.inf)
        begun = Triplets(*_ritz(vectors.matmul(rows, matrix.T), rows), bottom.residual, unknown)

        def by(factor: jax.Array) -> tuple[Triplets, jax.Array]:
            rounds = jnp.asarray(_FRESH_ROUNDS)
            return _by_solves(matrix, _solvable(factor), begun, rounds, largest, goal), factor

        # half the time of a QR factorisation on a CPU and less elsewhere; the factor only finds directions, and if its
        # round-off hides the right ones, the fall of the value or the value itself shows it
        before = jnp.minimum(bottom.s[-1], track.quotient * largest)
        quick, factor = jax.lax.cond(harmless(before), lambda: by(_gram_factor(matrix)), lambda: (begun, empty))
        good = harmless(quick.s[-1]) & ~_exceeds(quick.error, goal)
        return jax.lax.cond(good, lambda: (quick, factor), lambda: by(jnp.linalg.qr(matrix, mode="r")))

    if track.factor is None:
        bottom = jax.lax.cond(needed, lambda: fresh()[0], lambda: bottom)
    else:
        kept = track.factor

        def renewed() -> tuple[Triplets, jax.Array]:
            done, factor = fresh()
            return done, factor / scale.astype(factor.dtype)

        bottom, factor = jax.lax.cond(needed, renewed, lambda: (bottom, kept))
        track = track._replace(factor=factor)
    track = track._replace(
        age=jnp.where(needed, 0, track.age),
        misses=jnp.where(tried, jnp.where(needed, track.misses + 1, 0), track.misses),
        quotient=jnp.where(needed, bottom.s[-1] / jnp.where(largest > 0, largest, 1), track.quotient),
    )
    return Followed(top, bottom), track


def _by_products(matrix: jax.Array, found: Triplets, renew: jax.Array, goal: float) -> Triplets:
    """Improve the largest values on the span of their vectors and residuals, at a renewal of random directions too."""
    count = found.s.shape[0]
    random = vectors.matmul(vectors.matmul(_signs(matrix), matrix.T).conj(), matrix).conj()

    def body(carry: tuple[Triplets, jax.Array]) -> tuple[Triplets, jax.Array]:
        old, rounds = carry
        directions = _adjoint_residuals(matrix, old.u, old.s, old.v)
        basis = _orthonormal(old.v, directions, random)
        u, s, v = (part[:count] for part in _ritz(vectors.matmul(basis, matrix.T), basis))
        residual = vectors.lengths(_adjoint_residuals(matrix, u[:1], s[:1], v[:1]))[0]
        return Triplets(u, s, v, residual, residual_error(residual, s, bottom=False)), rounds + 1

    def going(carry: tuple[Triplets, jax.Array]) -> jax.Array:
        triplets, rounds = carry
        return (_exceeds(triplets.error, goal) | (renew & (rounds == 0))) & (rounds < _TOP_ROUNDS)

    return jax.lax.while_loop(going, body, (found, jnp.zeros((), jnp.int32)))[0]


def _gram_factor(matrix: jax.Array) -> jax.Array:
    return jnp.linalg.cholesky(vectors.matmul(vectors.adjoint(matrix), matrix), upper=True)


def _solvable(factor: jax.Array) -> jax.Array:
    """Return a triangular factor without zeros on its diagonal."""
    diagonal = jnp.diagonal(factor)
    floor = jnp.finfo(factor.dtype).eps * jnp.max(jnp.abs(diagonal))
    floor = jnp.where(floor > 0, floor, 1).astype(factor.dtype)
    return factor + jnp.diag(jnp.where(jnp.abs(diagonal) < jnp.abs(floor), floor - diagonal, 0))


def _by_solves(
    matrix: jax.Array, factor: jax.Array, found: Triplets, limit: jax.Array, largest: jax.Array, goal: float
) -> Triplets:
    r"""Improve the smallest values on the span of their vectors and of w = (R^H R)^-1 (A^H u - s v) s.

    Before a round the relative error is about r^H w / (2 s^2 (1 - s^2 / s_far^2)) with the residual r of A^H A, exactly
    so to second order if R is a factor of A; during the round the value falls. The larger one of the two is kept as the
    estimate of what is left, which is far less, as long as R is near A. If it is not, the fall tells.
    """
    count = found.s.shape[0]
    transposed, conjugate = factor.T, factor.conj()

    def body(carry: tuple[Triplets, jax.Array]) -> tuple[Triplets, jax.Array]:
        old, rounds = carry
        residuals = _adjoint_residuals(matrix, old.u, old.s, old.v)
        half = jax.lax.linalg.triangular_solve(conjugate, residuals, left_side=False)
        directions = jax.lax.linalg.triangular_solve(transposed, half, left_side=False, lower=True)
        quotient = old.s[-1] / jnp.where(old.s[0] > 0, old.s[0], 1)
        gap = jnp.maximum(1 - jnp.square(quotient), 1e-3)
        ahead = jnp.abs(jnp.vdot(residuals[-1], directions[-1])) / (2 * gap)
        basis = _orthonormal(old.v, directions)
        u, s, v = (part[-count:] for part in _ritz(vectors.matmul(basis, matrix.T), basis))
        fall = (old.s[-1] - s[-1]) / jnp.where(s[-1] > 0, s[-1], 1)
        error = _at_round_off(jnp.maximum(ahead, fall), s, largest, matrix)
        return Triplets(u, s, v, vectors.norm(residuals[-1]), error), rounds + 1

    def going(carry: tuple[Triplets, jax.Array]) -> jax.Array:
        return _exceeds(carry[0].error, goal) & (carry[1] < limit)

    done, _ = jax.lax.while_loop(going, body, (found, jnp.zeros((), jnp.int32)))
    outer = (part[-1:] for part in (done.u, done.s, done.v))
    return done._replace(residual=vectors.lengths(_adjoint_residuals(matrix, *outer))[0])
