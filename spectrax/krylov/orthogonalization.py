"""Gram-Schmidt of a block of vectors against a stack of rows, and fresh directions where a recurrence breaks down."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import layouts, vectors
from spectrax.layouts import Layout

PyTree = Any
_RELIABLE = 0.25  # a pass that takes away less than 3/4 of a squared norm leaves nothing for a second one
_PASSES, _FRESH_PASSES = 2, 3
_SPARE_PASSES = 4  # where what is left of a block is still ill-conditioned
_KNOWN = 1e2  # in units of its error: what must be left of a squared length to scale a vector up by it
_EVEN = 0.125  # sums of inner products between the vectors of a block below which one pass makes it orthonormal


class Orthonormalized(NamedTuple):
    """A block after Gram-Schmidt: w_j = sum_i coefficients_ij b_i + sum_i factor_ij rows_i, b_i those of the basis.

    Attributes:
        coefficients: Components along the rows of the basis, shape (count, block).
        factor: Upper triangular, shape (block, block), with zeros on the diagonal where only round-off was left.
        rows: A stack of `block` unit vectors, orthogonal to the basis and to each other: what was left, or a fresh
            random direction where nothing was; zero where the basis fills the space.
        replaced: Which rows are fresh directions, shape (block,), boolean.
    """

    coefficients: jax.Array
    factor: jax.Array
    rows: PyTree
    replaced: jax.Array


class _Pass(NamedTuple):
    remaining: jax.Array
    spare: jax.Array
    outside: jax.Array
    rows: PyTree
    coefficients: jax.Array
    factor: jax.Array
    shrinkage: jax.Array
    replaced: jax.Array


def orthonormalize(
    basis: PyTree,
    block: PyTree,
    seed: jax.Array,
    number: jax.Array,
    scale: jax.Array,
    *,
    enough: jax.Array | None = None,
    layout: Layout | None = None,
) -> Orthonormalized:
    """Remove from each vector of a block its components along an orthonormal basis, and orthonormalise what is left.

    Rows of the basis that are not in use yet must be zero: products over the full width are faster than slices whose
    size changes. Classical Gram-Schmidt; two passes leave vectors orthogonal to working precision (Giraud, Langou &
    Rozloznik 2005, doi:10.1016/j.camwa.2005.08.009), and the second is taken only where the first took away most of a
    vector (Daniel, Gragg, Kaufman & Stewart 1976, doi:10.2307/2005398).

    A pass makes one reduction over the entries of the vectors, and so one all-reduce where they are sharded: the inner
    products with the basis and those inside of the block are taken together, and what remains of the latter follows
    from Pythagoras (Carson, Lund, Rozloznik & Thomas 2021, doi:10.1137/21M1394424). Their Cholesky factor makes the
    block orthonormal. Departure: vectors of which less is left than such a difference can tell are freed of the others
    and not scaled up, and the next pass sees what they are (where Fukaya et al. 2020, doi:10.1137/18M1218212, shift the
    whole matrix). Of dependent vectors, which are what blocks hold at convergence, it sees round-off: the recurrence
    has broken down, and a fresh direction takes the place of each, with three passes, since nearly all of a random
    vector can lie in the span of a basis that almost fills the space.

    Args:
        basis: A stack of `count` orthonormal or zero vectors.
        block: A stack of vectors.
        seed: The `direction_seed` that fresh directions come from.
        number: Which of the fresh directions to take first; another number gives other ones.
        scale: The size of the operator, to tell round-off by; zero if it is not known yet.
        enough: A single vector of this length or more is known to be orthogonal, and only normalised.
        layout: How the vectors lie on devices, where that is known.

    Returns:
        The coefficients, the factor, the rows, and which of them are fresh.
    """
    width = vectors.count(block)
    eps = vectors.eps(block)
    struct = vectors.structure(block)
    dtype = vectors.result_dtype(struct)
    reference = jax.lax.cond(scale > 0, lambda: scale, lambda: vectors.peak(block))
    reference = jnp.where((reference > 0) & jnp.isfinite(reference), reference, jnp.ones_like(reference))
    scale = scale / reference
    error = eps * (8 + math.sqrt(vectors.size(struct) / width))

    def against_basis(rows: PyTree) -> tuple[jax.Array, jax.Array, PyTree]:
        removed, inside = vectors.projections(basis, rows, layout)
        return removed, inside, vectors.subtract(rows, vectors.combine(removed.T, basis))

    def within(rows: PyTree) -> tuple[jax.Array, jax.Array, PyTree]:
        return jnp.zeros((vectors.count(basis), width), dtype), layouts.summed(vectors.gram, layout)(rows, rows), rows

    def project(state: _Pass) -> _Pass:
        if width == 1:
            removed, inside, rows = against_basis(state.rows)
        else:
            removed, inside, rows = jax.lax.cond(state.outside, within, against_basis, state.rows)
        before = jnp.diagonal(inside).real
        coefficients = state.coefficients + vectors.matmul(removed, state.factor)
        entering = jnp.sqrt(before) * jnp.abs(jnp.diagonal(state.factor))
        size = jnp.maximum(jnp.maximum(jnp.max(jnp.abs(coefficients)), jnp.max(entering)), scale)
        noise = ~state.replaced & (entering <= 8 * eps * size)
        left = inside - vectors.matmul(vectors.adjoint(removed), removed)
        triangle, inverse, shrinkage, even = _triangular(left, before, noise, error)
        rows = vectors.scale_rows(inverse[0], rows) if width == 1 else vectors.combine(inverse.T, rows)
        factor = vectors.matmul(triangle, state.factor)
        outside = jnp.all(noise | (shrinkage >= _RELIABLE))
        reliable = outside & even
        remaining = jnp.where(reliable & ~jnp.any(state.replaced), 0, state.remaining - 1)
        rough = (remaining == 0) & ~reliable & (state.spare > 0)
        remaining = jnp.where(rough, 1, remaining)
        replace = (remaining == 0) & noise
        rows = jax.lax.cond(
            jnp.any(replace), lambda: vectors.select(replace, random_rows(seed, number, rows), rows), lambda: rows
        )
        return _Pass(
            remaining=jnp.where(jnp.any(replace), _FRESH_PASSES, remaining),
            spare=state.spare - rough.astype(jnp.int32),
            outside=outside & ~jnp.any(replace),
            rows=rows,
            coefficients=coefficients,
            factor=jnp.where(replace[:, None], jnp.zeros_like(factor), factor),
            shrinkage=shrinkage,
            replaced=state.replaced | replace,
        )

    rows = jax.tree.map(lambda leaf: leaf / reference.astype(leaf.dtype), block)
    start = _Pass(
        remaining=jnp.asarray(_PASSES, jnp.int32),
        spare=jnp.asarray(_SPARE_PASSES, jnp.int32),
        outside=jnp.zeros((), bool),
        rows=rows,
        coefficients=jnp.zeros((vectors.count(basis), width), dtype),
        factor=jnp.eye(width, dtype=dtype),
        shrinkage=jnp.zeros((width,), reference.dtype),
        replaced=jnp.zeros((width,), bool),
    )
    if enough is not None:
        length = vectors.lengths(rows)
        known = length * reference >= enough
        start = start._replace(
            remaining=jnp.where(known[0], 0, start.remaining),
            rows=vectors.scale_rows(jnp.where(known, 1 / length, 1), rows),
            factor=jnp.where(known, length, 1).astype(dtype)[None],
        )
    # a loop, although it runs once or twice: one copy of its body halves the compile time of a step
    end = jax.lax.while_loop(lambda state: state.remaining > 0, project, start)
    nothing_left = end.replaced & (end.shrinkage < _RELIABLE)
    rows = vectors.scale_rows(jnp.where(nothing_left, 0, 1), end.rows)
    unit = reference.astype(dtype)
    return Orthonormalized(end.coefficients * unit, end.factor * unit, rows, end.replaced)


def _triangular(
    gram: jax.Array, before: jax.Array, noise: jax.Array, error: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return the factor of w_j = sum_i factor_ij rows_i, from the inner products of vectors w_j, and its inverse.

    Args:
        gram: What is left of the inner products, shape (block, block).
        before: The squared lengths that the vectors had, shape (block,).
        noise: Which vectors are to become zero, since they are round-off.
        error: That of `gram`, in units of the vectors' lengths before.

    Returns:
        The factor, upper triangular, and its inverse, both with zeros for vectors that become zero; the shares of
        `before` that the vectors have outside of those before them; and whether one pass leaves the block orthonormal.
    """
    width = len(gram)
    unit = jnp.where(noise | (before == 0), 0, 1 / jnp.sqrt(jnp.where(before > 0, before, 1))).astype(gram.dtype)
    length = jnp.where(noise, 0, jnp.sqrt(before)).astype(gram.dtype)
    scaled = unit[:, None] * gram * unit
    if width == 1:
        share = scaled[0].real
        pivot = jnp.where(share < _KNOWN * error, 1, jnp.sqrt(share)).astype(gram.dtype)
        return (length * pivot)[None], (unit / pivot)[None], share, jnp.ones((), bool)

    def eliminate(index: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        rest, wrong, factor, inverse, shares = state
        share = rest[index, index].real
        known = share >= _KNOWN * wrong[index]
        pivot = jnp.where(known, jnp.sqrt(jnp.where(known, share, 1)), 1)
        later = known & (jnp.arange(width, dtype=jnp.int32) > index)
        row = jnp.where(later, rest[index] / pivot.astype(rest.dtype), 0)
        column = -vectors.matmul(inverse, factor[:, index]).at[index].add(-1)
        return (
            rest - row[:, None].conj() * row,
            wrong + 2 * error * jnp.abs(row) / pivot,
            factor.at[index].set(row.at[index].set(pivot.astype(row.dtype))),
            inverse.at[:, index].set(column / pivot.astype(column.dtype)),
            shares.at[index].set(share),
        )

    nothing = jnp.zeros_like(scaled)
    start = (scaled, jnp.full_like(before, error), nothing, nothing, jnp.zeros_like(before))
    _, _, factor, inverse, shares = jax.lax.fori_loop(0, width, eliminate, start)
    # how far the vectors were from orthogonal bounds the condition of the block, and by it the error of one pass
    even = jnp.max(jnp.sum(jnp.abs(scaled), 0) - jnp.abs(jnp.diagonal(scaled))) <= _EVEN
    return factor * length, unit[:, None] * inverse, shares, even


def direction_seed(key: jax.Array) -> jax.Array:
    """Return the number that fresh directions come from, uint32."""
    return jax.random.bits(key, (), jnp.uint32)


def random_stack(key: jax.Array, struct: PyTree, count: int) -> PyTree:
    """Return a stack of `count` random vectors of the given structure, with entries uniform in [-1, 1).

    By the hash of `random_rows`: JAX's generator and the inverse of the error function would take a sixth of the
    compile time of a whole solve.

    Args:
        key: A PRNG key.
        struct: The structure of one vector.
        count: How many vectors.

    Returns:
        A stack of them, in the dtypes of `struct`; complex entries have both parts random.

    Example:
        >>> import jax
        >>> from spectrax import krylov
        >>> krylov.random_stack(jax.random.key(0), jax.ShapeDtypeStruct((4,), "float32"), 3).shape
        (3, 4)
    """
    return random_rows(direction_seed(key), jnp.zeros((), jnp.int32), vectors.zeros(struct, count))


def random_rows(seed: jax.Array, number: jax.Array, like: PyTree) -> PyTree:
    """Return a stack of random vectors with entries uniform in [-1, 1), other ones for each number.

    Args:
        seed: From `direction_seed`.
        number: Which of the vectors comes first, int32.
        like: A stack of vectors, for structure, shapes and dtypes.

    Returns:
        A stack of as many vectors.

    Each entry is a hash of its place. Drawing with a key would take three quarters of the compile time of a step, since
    the program of JAX's generator is long and stands in it once for each leaf.
    """
    leaves, treedef = jax.tree.flatten(like)
    drawn = []
    for place, leaf in enumerate(leaves):
        parts = 2 if vectors.is_complex(leaf.dtype) else 1
        real = vectors.real_dtype(leaf.dtype)
        index = jnp.zeros(leaf.shape[1:], jnp.uint32)
        for axis, extent in enumerate(leaf.shape[1:]):
            index = index * jnp.uint32(extent) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape[1:], axis)
        rows = (number + jnp.arange(leaf.shape[0], dtype=number.dtype)).astype(jnp.uint32)
        salts = [_hash(_hash(_hash(seed) + jnp.uint32(2 * place + part)) + rows) for part in range(parts)]
        draws = [_hash(index ^ salt.reshape((-1,) + (1,) * index.ndim)) for salt in salts]
        numbers = [draw.astype(real) * jnp.asarray(2.0**-31, real) - 1 for draw in draws]
        drawn.append(jax.lax.complex(*numbers) if parts == 2 else numbers[0])
    return treedef.unflatten(drawn)


def _hash(x: jax.Array) -> jax.Array:
    """Mix the bits of 32-bit integers: the finaliser of MurmurHash3 (Appleby 2011, public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
