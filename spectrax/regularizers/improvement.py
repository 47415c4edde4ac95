"""The improvement of one matrix's outermost singular triplets within a training step.

At the top by products with the matrix; at the bottom by solves with an older factor, and where that is not enough with
a new one. All loops are bounded. What lies outside the vectors leaves no residual where these are invariant, so now and
then they are sought in a Krylov space of a random vector, too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.regularizers.triplets import (
    Followed,
    Triplets,
    exceeds,
    on_span,
    orthonormal,
    residual_error,
    unless_at_round_off,
)
from spectrax.spectrum.methods import DENSE_OPERATOR_SIDE

_TOP_ROUNDS = 8  # products with the matrix and its adjoint in one step
_STALE_ROUNDS = 2  # products with the inverse of an older factor
_FRESH_ROUNDS = 6  # with that of a new one
_MISSES = 2  # in a row, after which an older factor is tried only
_RETRY = 8  # every so many steps
_LOOK_DEPTH = 12  # Lanczos steps of a look
_GRAM_LIMIT = 2.0  # condition numbers up to 1 / (2 sqrt(eps)) are left to a Cholesky factorisation of the Gram matrix
_NOISE = 0.03  # share of random directions in the start: what the old vectors lack is found only through them
_CAUTION = 3.0  # over estimates from such a start, which hold for vectors that lack nothing of those near them


class Factor(NamedTuple):
    """A factorisation of the Gram matrix of one matrix, or with a leading axis for many, and how well it serves.

    Attributes:
        lower: L with A^H A = L L^H for the matrix of `age` steps ago, without zeros on its diagonal, shape (n, n); None
            where it is not kept: nothing smallest is wanted, or n is too large or small.
        age: Steps since it was made, int32.
        misses: How many times in a row it was not good enough, int32.
        quotient: The smallest singular value over the largest at that time; inf before the first.
    """

    lower: jax.Array | None
    age: jax.Array
    misses: jax.Array
    quotient: jax.Array


class _Scaled(NamedTuple):
    """A matrix that is taken times a power of two, or as zero if it is not finite, without being written anew."""

    matrix: jax.Array
    factor: jax.Array
    finite: jax.Array

    def _of(self, product: jax.Array) -> jax.Array:
        return jnp.where(self.finite, product * self.factor.astype(product.dtype), 0)

    def on(self, rows: jax.Array) -> jax.Array:
        """Return A x for the rows x."""
        return self._of(vectors.matmul(rows, self.matrix.T))

    def adjoint_on(self, rows: jax.Array) -> jax.Array:
        """Return A^H x for the rows x."""
        return self._of(vectors.matmul(rows.conj(), self.matrix).conj())

    def residuals(self, found: Triplets) -> jax.Array:
        """Return A^H u - s v as rows."""
        return self.adjoint_on(found.u) - found.s[:, None].astype(found.v.dtype) * found.v

    def written(self) -> jax.Array:
        """Return the matrix."""
        return self._of(self.matrix)


class _Solver(NamedTuple):
    """Triangular solves with a lower factor that is taken times a power of two."""

    factor: jax.Array
    scale: jax.Array

    def _scaled(self, rows: jax.Array) -> jax.Array:
        return rows / self.scale.astype(rows.dtype)

    def lower(self, rows: jax.Array) -> jax.Array:
        """Return L^-1 x for the rows x."""
        return jax.lax.linalg.triangular_solve(self.factor.T, self._scaled(rows), left_side=False)

    def upper(self, rows: jax.Array) -> jax.Array:
        """Return L^-H x for the rows x."""
        return jax.lax.linalg.triangular_solve(
            self.factor.T, self._scaled(rows), left_side=False, transpose_a=True, conjugate_a=True
        )

    def times_upper(self, rows: jax.Array) -> jax.Array:
        """Return L^H x for the rows x."""
        return vectors.matmul(rows, self.factor.conj()) * self.scale.astype(rows.dtype)


def lower_factor(matrix: jax.Array) -> jax.Array:
    """Return L with A^H A = L L^H and without zeros on its diagonal, from a QR factorisation.

    Args:
        matrix: Shape (m, n), m >= n, or a stack of them.

    Returns:
        Shape (n, n) each.
    """
    lower = vectors.adjoint(jnp.linalg.qr(matrix, mode="r"))
    solvable = _solvable
    for _ in range(matrix.ndim - 2):
        solvable = jax.vmap(solvable)
    return solvable(lower)


def improve(
    matrix: jax.Array,
    found: Followed,
    factor: Factor,
    key: jax.Array | None,
    *,
    renew: jax.Array,
    look: jax.Array,
    goal: float,
) -> tuple[Followed, Factor]:
    """Improve the vectors of one matrix until their values have an estimated error below the goal.

    Args:
        matrix: Shape (m, n), m >= n.
        found: Its triplets on the vectors of the step before; left as they are if they are not finite.
        factor: What is kept of its last factorisation.
        key: A PRNG key; None where n <= 128, and the matrix is decomposed.
        renew: Whether to factorise it in any case.
        look: Whether to look outside the vectors.
        goal: Relative error.

    Returns:
        The triplets and the factor.

    Cost:
        At the top up to 8 products with all vectors and with their left ones, at a look 12 pairs with one vector; at
        the bottom up to 2 solves with the old factor, or a factorisation and up to 6 solves, at a look 12 pairs more.
    """
    largest = found.top.s[0]
    finite = jnp.isfinite(largest)
    _, exponent = jnp.frexp(jnp.where(finite & (largest > 0), largest, 1))
    limit = jnp.finfo(largest.dtype).maxexp - 2
    up = jnp.ldexp(jnp.ones_like(largest), -jnp.clip(exponent, -limit, limit))
    scaled = _Scaled(matrix, up, finite)

    def begun(end: Triplets) -> Triplets:
        end = end._replace(s=end.s * up, residual=end.residual * up)
        return jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), end)

    start = Followed(begun(found.top), None if found.bottom is None else begun(found.bottom))
    if matrix.shape[1] <= DENSE_OPERATOR_SIDE:
        better, factor = _decomposed(scaled, start, factor)
    else:
        assert key is not None
        better, factor = _iterated(scaled, start, factor, key, renew & finite, look & finite, goal)

    def back(old: Triplets, new: Triplets) -> Triplets:
        new = new._replace(s=new.s / up, residual=new.residual / up)
        return jax.tree.map(lambda a, b: jnp.where(finite, b, a), old, new)

    bottom = None if found.bottom is None or better.bottom is None else back(found.bottom, better.bottom)
    return Followed(back(found.top, better.top), bottom), factor


def _decomposed(matrix: _Scaled, found: Followed, factor: Factor) -> tuple[Followed, Factor]:
    """Decompose a small matrix wholly."""
    q, r = jnp.linalg.qr(matrix.written())
    left, s, right_h = jnp.linalg.svd(r)
    u, v = vectors.matmul(q, left).T, right_h.conj()
    nothing = jnp.zeros_like(s[0])

    def part(rows: slice, own: slice) -> Triplets:
        outer = Triplets(u[own], s[own], v[own], nothing, nothing)
        return Triplets(u[rows], s[rows], v[rows], vectors.lengths(matrix.residuals(outer))[0], nothing)

    top = part(slice(found.top.s.shape[0]), slice(1))
    bottom = None if found.bottom is None else part(slice(-found.bottom.s.shape[0], None), slice(-1, None))
    return Followed(top, bottom), factor._replace(age=jnp.zeros_like(factor.age))


def _iterated(
    matrix: _Scaled, found: Followed, factor: Factor, key: jax.Array, renew: jax.Array, look: jax.Array, goal: float
) -> tuple[Followed, Factor]:
    look_key, start_key = jax.random.split(key)
    n, dtype = matrix.matrix.shape[1], matrix.matrix.dtype
    random = vectors.normal(look_key, jax.ShapeDtypeStruct((1, n), dtype))
    top = _by_products(matrix, found.top, random, look, goal)
    largest = top.s[0]
    if found.bottom is None:
        return Followed(top, None), factor._replace(age=jnp.where(renew, 0, factor.age))
    bottom, tried = found.bottom, jnp.zeros((), bool)
    if factor.lower is not None:
        old = _Solver(factor.lower, matrix.factor)
        promising = (factor.misses < _MISSES) | (factor.age % _RETRY == 0)
        tried = ~renew & jnp.where(exceeds(bottom.error, goal), promising, look)
        begun = bottom
        bottom = jax.lax.cond(look & tried, lambda: _by_changes(matrix, old, begun, random, largest), lambda: begun)
        bottom = _by_solves(matrix, old, bottom, jnp.where(tried, _STALE_ROUNDS, 0), largest, goal)
    needed = renew | exceeds(bottom.error, goal)

    def harmless(smallest: jax.Array) -> jax.Array:
        return smallest > _GRAM_LIMIT * jnp.finfo(largest.dtype).eps ** 0.5 * largest

    def fresh() -> tuple[Triplets, jax.Array]:
        noise = vectors.normal(start_key, jax.ShapeDtypeStruct((n,), dtype), bottom.v.shape[0])
        rows = orthonormal(bottom.v + _NOISE / n**0.5 * noise)
        start = Triplets(*on_span(matrix.on(rows), rows), bottom.residual, jnp.full_like(bottom.error, jnp.inf))
        written = matrix.written()

        def by(lower: jax.Array) -> tuple[Triplets, jax.Array]:
            solver = _Solver(lower, jnp.ones_like(largest))
            wider = jax.lax.cond(
                look & (renew | (factor.lower is None)),
                lambda: _by_inverse(matrix, solver, start, random, largest),
                lambda: start,
            )
            done = _by_solves(matrix, solver, wider, jnp.asarray(_FRESH_ROUNDS), largest, goal / _CAUTION)
            return done._replace(error=_CAUTION * done.error), lower

        # half the time of a QR factorisation on a CPU and less elsewhere; the factor only finds directions, and if its
        # round-off hides the right ones, the fall of the value or the value itself shows it
        before = jnp.minimum(bottom.s[-1], factor.quotient * largest)
        quick, lower = jax.lax.cond(
            harmless(before), lambda: by(_gram_factor(written)), lambda: (start, jnp.zeros((n, n), dtype))
        )
        good = harmless(quick.s[-1]) & ~exceeds(quick.error, goal)
        done, lower = jax.lax.cond(good, lambda: (quick, lower), lambda: by(lower_factor(written)))
        return done, lower / matrix.factor.astype(dtype)

    if factor.lower is None:
        bottom = jax.lax.cond(needed, lambda: fresh()[0], lambda: bottom)
    else:
        kept = factor.lower
        bottom, lower = jax.lax.cond(needed, fresh, lambda: (bottom, kept))
        factor = factor._replace(lower=lower)
    factor = factor._replace(
        age=jnp.where(needed, 0, factor.age),
        misses=jnp.where(tried, jnp.where(needed, factor.misses + 1, 0), factor.misses),
        quotient=jnp.where(needed, bottom.s[-1] / jnp.where(largest > 0, largest, 1), factor.quotient),
    )
    return Followed(top, bottom), factor


def _by_products(matrix: _Scaled, found: Triplets, random: jax.Array, look: jax.Array, goal: float) -> Triplets:
    """Improve the largest values on the span of their vectors and residuals, at a look on a Krylov space, too."""
    count = found.s.shape[0]

    def within(old: Triplets, directions: jax.Array) -> Triplets:
        basis = orthonormal(old.v, directions)
        u, s, v = (part[:count] for part in on_span(matrix.on(basis), basis))
        found = Triplets(u, s, v, old.residual, old.error)
        residual = vectors.lengths(matrix.residuals(_outermost(found, slice(1))))[0]
        return found._replace(residual=residual, error=residual_error(residual, s, bottom=False))

    def body(carry: tuple[Triplets, jax.Array]) -> tuple[Triplets, jax.Array]:
        old, rounds = carry
        return within(old, matrix.residuals(old)), rounds + 1

    def going(carry: tuple[Triplets, jax.Array]) -> jax.Array:
        return exceeds(carry[0].error, goal) & (carry[1] < _TOP_ROUNDS)

    def looked() -> Triplets:
        return within(found, _krylov(lambda row: matrix.adjoint_on(matrix.on(row)), random, found.v))

    found = jax.lax.cond(look, looked, lambda: found)
    return jax.lax.while_loop(going, body, (found, jnp.zeros((), jnp.int32)))[0]


def _by_solves(
    matrix: _Scaled, solver: _Solver, found: Triplets, limit: jax.Array, largest: jax.Array, goal: float
) -> Triplets:
    r"""Improve the smallest values on the span of their vectors and of w = (L L^H)^-1 (A^H u - s v) s.

    Before a round the relative error is about r^H w / (2 s^2 (1 - s^2 / s_far^2)) with the residual r of A^H A, exactly
    so to second order if L is a factor of it; during the round the value falls. The larger one of the two is kept as
    the estimate of what is left, which is far less, as long as L is near such a factor. If it is not, the fall tells.
    """

    def body(carry: tuple[Triplets, jax.Array]) -> tuple[Triplets, jax.Array]:
        old, rounds = carry
        residuals = matrix.residuals(old)
        directions = solver.upper(solver.lower(residuals))
        quotient = old.s[-1] / jnp.where(old.s[0] > 0, old.s[0], 1)
        gap = jnp.maximum(1 - jnp.square(quotient), 1e-3)
        ahead = jnp.abs(jnp.vdot(residuals[-1], directions[-1])) / (2 * gap)
        return _smallest_within(matrix, old, directions, ahead, largest), rounds + 1

    def going(carry: tuple[Triplets, jax.Array]) -> jax.Array:
        return exceeds(carry[0].error, goal) & (carry[1] < limit)

    done, _ = jax.lax.while_loop(going, body, (found, jnp.zeros((), jnp.int32)))
    return done._replace(residual=vectors.lengths(matrix.residuals(_outermost(done, slice(-1, None))))[0])


def _by_changes(matrix: _Scaled, solver: _Solver, found: Triplets, random: jax.Array, largest: jax.Array) -> Triplets:
    """Look for smaller values in a Krylov space of L^-1 A^H A L^-H: the identity, but for what an old L lacks."""

    def changed(rows: jax.Array) -> jax.Array:
        return solver.lower(matrix.adjoint_on(matrix.on(solver.upper(rows))))

    known = orthonormal(solver.times_upper(found.v))
    directions = solver.upper(_krylov(changed, solver.lower(random), known))
    return _smallest_within(matrix, found, directions, found.error, largest)


def _by_inverse(matrix: _Scaled, solver: _Solver, found: Triplets, random: jax.Array, largest: jax.Array) -> Triplets:
    """Look for smaller values in a Krylov space of (L L^H)^-1, for a new L."""
    smallest = jnp.square(found.s[-1] / jnp.where(largest > 0, largest, 1)).astype(random.dtype)
    directions = _krylov(lambda rows: smallest * solver.upper(solver.lower(rows)), random, found.v)
    return _smallest_within(matrix, found, directions, found.error, largest)


def _smallest_within(
    matrix: _Scaled, old: Triplets, directions: jax.Array, error: jax.Array, largest: jax.Array
) -> Triplets:
    """Return the smallest values on a larger space, with the given error or the fall of the value if that is more."""
    count = old.s.shape[0]
    basis = orthonormal(old.v, directions)
    u, s, v = (part[-count:] for part in on_span(matrix.on(basis), basis))
    fall = (old.s[-1] - s[-1]) / jnp.where(s[-1] > 0, s[-1], 1)
    error = unless_at_round_off(jnp.maximum(error, fall), s, largest, matrix.matrix.shape)
    return Triplets(u, s, v, old.residual, error)


def _krylov(apply: Callable[[jax.Array], jax.Array], begun: jax.Array, without: jax.Array) -> jax.Array:
    """Return rows that span a Krylov space of a Hermitian map, outside the span of orthonormal rows at its beginning.

    By Lanczos' recurrence: at so few steps the vectors stay near orthogonal without more.
    """

    def normalised(row: jax.Array) -> jax.Array:
        row = row / jnp.where(vectors.peak(row) > 0, vectors.peak(row), 1).astype(row.dtype)
        length = vectors.norm(row)
        return row / jnp.where(length > 0, length, 1).astype(row.dtype)

    def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        before, row = carry
        image = apply(row)
        image = image - jnp.vdot(row, image) * row - jnp.vdot(before, image) * before
        return (row, normalised(image)), row[0]

    row = begun - vectors.matmul(vectors.matmul(begun, vectors.adjoint(without)), without)
    _, rows = jax.lax.scan(step, (jnp.zeros_like(row), normalised(row)), None, length=_LOOK_DEPTH)
    return rows


def _outermost(found: Triplets, own: slice) -> Triplets:
    return found._replace(u=found.u[own], s=found.s[own], v=found.v[own])


def _gram_factor(matrix: jax.Array) -> jax.Array:
    gram = vectors.matmul(vectors.adjoint(matrix), matrix)
    return _solvable(jnp.linalg.cholesky(gram, symmetrize_input=False))


def _solvable(factor: jax.Array) -> jax.Array:
    """Return a triangular factor without zeros on its diagonal."""
    diagonal = jnp.diagonal(factor)
    floor = jnp.finfo(factor.dtype).eps * jnp.max(jnp.abs(diagonal))
    floor = jnp.where(floor > 0, floor, 1).astype(factor.dtype)
    return factor + jnp.diag(jnp.where(jnp.abs(diagonal) < jnp.abs(floor), floor - diagonal, 0))
