"""Gram-Schmidt against a stack of rows, and fresh directions where a recurrence breaks down."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import vectors

PyTree = Any


class Orthonormalized(NamedTuple):
    """A vector after Gram-Schmidt: w = sum_i coefficients_i b_i + length * direction.

    Attributes:
        coefficients: Components along the rows of the basis, shape (count,).
        length: The norm of what was left, or zero where that was only round-off.
        direction: A unit vector orthogonal to the basis: what was left, or a fresh random direction where nothing was;
            zero where the basis fills the space.
    """

    coefficients: jax.Array
    length: jax.Array
    direction: PyTree


class _Pass(NamedTuple):
    remaining: jax.Array
    w: PyTree
    coefficients: jax.Array
    length: jax.Array
    replaced: jax.Array


def orthonormalize(
    basis: PyTree, w: PyTree, phases: PyTree, number: jax.Array, scale: jax.Array, *, passes: int = 2
) -> Orthonormalized:
    """Remove from `w` its components along the rows of an orthonormal basis and normalise what is left.

    Rows that are not in use yet must be zero: products over the full width are faster than slices whose size changes.
    Classical Gram-Schmidt, of which two passes leave a vector orthogonal to working precision (Giraud, Langou &
    Rozloznik 2005, doi:10.1016/j.camwa.2005.08.009). Where only round-off is left, the recurrence has broken down, and
    a fresh direction takes the place of `w`, with three passes, since nearly all of a random vector can lie in the span
    of a basis that almost fills the space.

    Args:
        basis: A stack of `count` orthonormal or zero vectors.
        w: A vector.
        phases: The `random_phases` that fresh directions come from.
        number: Which of the fresh directions to take; another number gives another one.
        scale: The size of the operator, to tell round-off by. Infinity asks for a fresh direction.
        passes: How often the projection is taken.

    Returns:
        The coefficients, the length and the direction.
    """
    length = vectors.norm(w)
    eps = vectors.eps(w)

    def project(state: _Pass) -> _Pass:
        removed = vectors.rows_vdot(basis, state.w)
        w = vectors.subtract(state.w, vectors.combine(removed, basis))
        length = vectors.norm(w)
        coefficients = state.coefficients + jnp.where(state.replaced, jnp.zeros_like(removed), removed)
        last = state.remaining == 1
        size = jnp.maximum(jnp.max(jnp.abs(coefficients)), jnp.maximum(scale, length))
        replace = last & ~state.replaced & (length <= 8 * eps * size)
        fresh = _fresh(phases, number, w)
        return _Pass(
            remaining=jnp.where(replace, 3, state.remaining - 1),
            w=jax.tree.map(lambda a, b: jnp.where(replace, a, b), fresh, w),
            coefficients=coefficients,
            length=length,
            replaced=state.replaced | replace,
        )

    start = _Pass(
        remaining=jnp.asarray(passes, jnp.int32),
        w=w,
        coefficients=jnp.zeros_like(vectors.rows_vdot(basis, w)),
        length=length,
        replaced=jnp.zeros((), bool),
    )
    # a loop, although it runs twice: one copy of its body halves the compile time of a step
    end = jax.lax.while_loop(lambda state: state.remaining > 0, project, start)
    nothing_left = end.replaced & (end.length <= 100 * eps * math.sqrt(vectors.size(vectors.structure(w))))
    divisor = jnp.where(nothing_left, jnp.zeros_like(end.length), end.length)
    return Orthonormalized(
        coefficients=end.coefficients,
        length=jnp.where(end.replaced, jnp.zeros_like(end.length), end.length),
        direction=vectors.divide(end.w, divisor),
    )


def random_phases(key: jax.Array, struct: PyTree) -> PyTree:
    """Return angles uniform in [0, 2 pi), one for each entry of a vector: the source of fresh directions."""
    leaves, treedef = jax.tree.flatten(struct)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [
            jax.random.uniform(k, leaf.shape, vectors.real_dtype(leaf.dtype), maxval=2 * jnp.pi)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
    )


def _fresh(phases: PyTree, number: jax.Array, like: PyTree) -> PyTree:
    """Return cos(number * theta), or exp(i number * theta), for random phases theta.

    For different numbers these are uncorrelated random vectors; drawing Gaussian ones in the loop would double its
    compile time.
    """

    def draw(angles: jax.Array, leaf: jax.Array) -> jax.Array:
        angles = angles * (number + 1).astype(angles.dtype)
        if vectors.is_complex(leaf.dtype):
            return jax.lax.complex(jnp.cos(angles), jnp.sin(angles))
        return jnp.cos(angles)

    return jax.tree.map(draw, phases, like)
