"""Gram-Schmidt of a block of vectors against a stack of rows, and fresh directions where a recurrence breaks down."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import vectors

PyTree = Any
_RELIABLE = 0.25  # a pass that takes away less than 3/4 of a squared norm leaves nothing for a second one
_FRESH_PASSES = 3


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
    rows: PyTree
    coefficients: jax.Array
    factor: jax.Array
    lengths: jax.Array
    shrinkage: jax.Array
    replaced: jax.Array


def orthonormalize(
    basis: PyTree,
    block: PyTree,
    seed: jax.Array,
    number: jax.Array,
    scale: jax.Array,
    *,
    passes: int = 2,
    enough: jax.Array | None = None,
) -> Orthonormalized:
    """Remove from each vector of a block its components along an orthonormal basis, and orthonormalise what is left.

    Rows of the basis that are not in use yet must be zero: products over the full width are faster than slices whose
    size changes. Classical Gram-Schmidt; two passes leave vectors orthogonal to working precision (Giraud, Langou &
    Rozloznik 2005, doi:10.1016/j.camwa.2005.08.009), and the second is taken only where the first took away most of a
    vector (Daniel, Gragg, Kaufman & Stewart 1976, doi:10.2307/2005398). Inside of the block it is two passes always.
    Where only round-off is left, the recurrence has broken down, and a fresh direction takes the place of the vector,
    with three passes, since nearly all of a random vector can lie in the span of a basis that almost fills the space.

    Args:
        basis: A stack of `count` orthonormal or zero vectors.
        block: A stack of vectors.
        seed: The `direction_seed` that fresh directions come from.
        number: Which of the fresh directions to take first; another number gives other ones.
        scale: The size of the operator, to tell round-off by; zero if it is not known yet.
        passes: How often the projection is taken at most.
        enough: A single vector of this length or more is known to be orthogonal, and only normalised.

    Returns:
        The coefficients, the factor, the rows, and which of them are fresh.
    """
    width = vectors.count(block)
    eps = vectors.eps(block)
    dtype = vectors.result_dtype(vectors.structure(block))
    reference = jax.lax.cond(scale > 0, lambda: scale, lambda: vectors.peak(block))
    reference = jnp.where((reference > 0) & jnp.isfinite(reference), reference, jnp.ones_like(reference))
    scale = scale / reference

    def project(state: _Pass) -> _Pass:
        if width == 1:
            removed = vectors.rows_vdot(basis, vectors.row(state.rows, 0))[:, None]
        else:
            removed = vectors.gram(basis, state.rows)
        rows = vectors.subtract(state.rows, vectors.combine(removed.T, basis))
        # a single vector is normalised at the end only, which saves a pass over it
        rows, factor = (rows, vectors.lengths(rows).astype(dtype)[None]) if width == 1 else _triangular(rows, removed)
        coefficients = state.coefficients + jnp.matmul(removed, state.factor, precision=vectors.HIGHEST)
        before = jnp.sum(jnp.square(jnp.abs(removed)), 0) + jnp.sum(jnp.square(jnp.abs(factor)), 0)
        shrinkage = jnp.square(jnp.abs(jnp.diagonal(factor))) / jnp.where(before > 0, before, 1)
        total = state.factor if width == 1 else jnp.matmul(factor, state.factor, precision=vectors.HIGHEST)
        left = jnp.abs(jnp.diagonal(factor if width == 1 else total))
        reliable = jnp.all(shrinkage >= _RELIABLE) & ~jnp.any(state.replaced)
        remaining = jnp.where(reliable, 0, state.remaining - 1)
        size = jnp.maximum(jnp.maximum(jnp.max(jnp.abs(coefficients)), jnp.max(left)), scale)
        replace = (remaining == 0) & ~state.replaced & (left <= 8 * eps * size)
        rows = jax.lax.cond(
            jnp.any(replace), lambda: vectors.select(replace, random_rows(seed, number, rows), rows), lambda: rows
        )
        return _Pass(
            remaining=jnp.where(jnp.any(replace), _FRESH_PASSES, remaining),
            rows=rows,
            coefficients=coefficients,
            factor=jnp.where(replace[:, None], jnp.zeros_like(total), total),
            lengths=left,
            shrinkage=shrinkage,
            replaced=state.replaced | replace,
        )

    rows = jax.tree.map(lambda leaf: leaf / reference.astype(leaf.dtype), block)
    lengths = jnp.zeros((width,), reference.dtype)
    remaining = jnp.asarray(passes, jnp.int32)
    if enough is not None:
        lengths = vectors.lengths(rows)
        remaining = jnp.where(lengths[0] * reference >= enough, 0, remaining)
    start = _Pass(
        remaining=remaining,
        rows=rows,
        coefficients=jnp.zeros((vectors.count(basis), width), dtype),
        factor=jnp.eye(width, dtype=dtype),
        lengths=lengths,
        shrinkage=jnp.zeros((width,), reference.dtype),
        replaced=jnp.zeros((width,), bool),
    )
    # a loop, although it runs once or twice: one copy of its body halves the compile time of a step
    end = jax.lax.while_loop(lambda state: state.remaining > 0, project, start)
    nothing_left = end.replaced & (end.shrinkage < _RELIABLE)
    inverse = jnp.where(nothing_left | (end.lengths == 0), 0, 1 / jnp.where(end.lengths == 0, 1, end.lengths))
    factor = end.factor * end.lengths.astype(dtype) if width == 1 else end.factor
    keep = inverse if width == 1 else jnp.where(nothing_left, 0, 1)
    rows = vectors.scale_rows(keep, end.rows)
    unit = reference.astype(dtype)
    return Orthonormalized(end.coefficients * unit, factor * unit, rows, end.replaced)


def _triangular(block: PyTree, removed: jax.Array) -> tuple[PyTree, jax.Array]:
    """Return the rows and the upper triangular factor of w_j = sum_i factor_ij rows_i.

    A row of which nothing but round-off is left, beside what was removed from it before, is zero: the rows after it
    must not be freed of a direction that is going to be replaced.
    """
    width, eps = vectors.count(block), vectors.eps(block)
    dtype = vectors.result_dtype(vectors.structure(block))
    sizes = jnp.maximum(vectors.lengths(block), jnp.max(jnp.abs(removed), 0))

    def reduce(index: jax.Array, done: tuple[PyTree, jax.Array]) -> tuple[PyTree, jax.Array]:
        rows, factor = done
        w = vectors.rows(block, index, 1)
        column = jnp.zeros((width,), dtype)
        for _ in range(2):
            part = vectors.gram(rows, w)
            w = vectors.subtract(w, vectors.combine(part.T, rows))
            column = column + part[:, 0]
        length = vectors.lengths(w)[0]
        length = jnp.where(length <= 8 * eps * sizes[index], jnp.zeros_like(length), length)
        factor = factor.at[:, index].set(column.at[index].set(length.astype(dtype)))
        return vectors.set_rows(rows, index, vectors.divide(w, length)), factor

    nothing = jax.tree.map(jnp.zeros_like, block)
    return jax.lax.fori_loop(0, width, reduce, (nothing, jnp.zeros((width, width), dtype)))


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
