"""The bottom of a spectrum as the top of an inverse: A = Q R once, then Lanczos on R^-1, deflated where it must be."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import krylov, vectors
from spectrax.operators import LinearOperator, banded, householder

PyTree = Any
Columns = Callable[[jax.Array], jax.Array]
# how large the round-off of the largest value of R^-1 may be, relative to another value, for that one to be kept
_RESOLVED = 1e-3
_MAX_ROUNDS = 6


class Factorization(NamedTuple):
    """A = Q R of an operator of shape (m, n), m >= n, as functions on the columns of matrices.

    Attributes:
        solve: b -> |A| R^-1 b, shape (n, k) to (n, k). R is divided by the norm, or an estimate of it, so that neither
            R nor its inverse comes near the ends of the dtype.
        adjoint_solve: b -> |A| R^-H b.
        product: v -> A v, shape (n, k) to (m, k).
        expand: b -> Q b, shape (n, k) to (m, k).
        struct: One vector of the short side, shape (n,).
        largest: A lower bound of the norm of A.
    """

    solve: Columns
    adjoint_solve: Columns
    product: Columns
    expand: Columns
    struct: jax.ShapeDtypeStruct
    largest: jax.Array


class SmallestTriplets(NamedTuple):
    """Triplets of the factorised operator, in no particular order.

    Attributes:
        long: Left vectors as rows, shape (k, m).
        values: Shape (k,).
        short: Right vectors as rows, shape (k, n).
        largest: A lower bound of the norm.
        finite: Whether the iteration met finite numbers only.
        complete: False if there is known to be a smaller value that there were no steps left for.
        breakdowns: How many directions had to be drawn afresh.
    """

    long: jax.Array
    values: jax.Array
    short: jax.Array
    largest: jax.Array
    finite: jax.Array
    complete: jax.Array
    breakdowns: jax.Array


class _Attempt(NamedTuple):
    """A factorisation that may have to be taken once more."""

    count: jax.Array
    done: jax.Array
    q: householder.Reflectors
    r: jax.Array
    largest: jax.Array


class _Deflation(NamedTuple):
    """Singular vectors of R that were found already, the smallest values first; rows that are not in use are zero."""

    left: jax.Array
    right: jax.Array
    count: jax.Array
    rounds: jax.Array
    finite: jax.Array
    complete: jax.Array
    breakdowns: jax.Array


def smallest_triplets(task: krylov.Task, factors: Factorization, start: jax.Array, key: jax.Array) -> SmallestTriplets:
    """Return the k smallest singular triplets from A = Q R: the largest ones of R^-1, with the sides exchanged.

    Args:
        task: What is searched for; `max_steps` and `probe` are those of each of the searches.
        factors: The factorisation.
        start: The first vector, on the left of R^-1, shape (n,).
        key: A PRNG key.

    Returns:
        The triplets.
    """
    k, round_off = task.k, task.round_off
    solve, adjoint_solve = factors.solve, factors.adjoint_solve
    struct = factors.struct

    def search(state: _Deflation) -> _Deflation:
        """Find the largest triplets of (I - V V^H) R^-1 (I - U U^H), U and V the vectors kept so far.

        Rounding errors in R^-1 b are relative to the largest value, 1 / sigma_n. Where sigma_n lies far below the other
        wanted values, as it does for a matrix with a column of zeros, theirs would drown in them.
        """
        found = krylov.singular_triplets(
            task._replace(which="largest", tol=task.tol / 4, round_off=task.round_off / 2),
            lambda rows: vectors.without(state.right, solve(vectors.without(state.left, rows).T).T),
            lambda rows: vectors.without(state.left, adjoint_solve(vectors.without(state.right, rows).T).T),
            vectors.without(state.left, start[None]), struct, jax.random.fold_in(key, state.rounds),
        )  # fmt: skip
        # what is on the left of R^-1 is on the right of R
        place = slots - state.count
        left, right = (
            jnp.where((place >= 0)[:, None], new[jnp.maximum(place, 0)], old)
            for new, old in ((found.right, state.left), (found.left, state.right))
        )
        resolved = round_off * found.values[0] <= _RESOLVED * found.values
        count = jnp.where(found.finite, state.count + jnp.maximum(jnp.sum(resolved, dtype=jnp.int32), 1), k)
        kept = (slots < count)[:, None]
        rounds = state.rounds + 1
        last = (count >= k) | (rounds >= _MAX_ROUNDS)
        return _Deflation(
            left=jnp.where(kept | last, left, 0),
            right=jnp.where(kept | last, right, 0),
            count=jnp.where(last, k, count),
            rounds=rounds,
            finite=state.finite & found.finite,
            complete=state.complete & found.complete,
            breakdowns=state.breakdowns + found.breakdowns,
        )

    slots = jnp.arange(k, dtype=jnp.int32)
    zeros = jnp.zeros((k, *struct.shape), struct.dtype)
    none, true = jnp.zeros((), jnp.int32), jnp.ones((), bool)
    nothing = _Deflation(zeros, zeros, none, none, finite=true, complete=true, breakdowns=none)
    found = jax.lax.while_loop(lambda state: state.count < k, search, nothing)
    # R^-1 a = sigma b means R b = a / sigma: b is a right vector of R, and a a left one. What an error of b holds of
    # the largest singular vectors is small for R^-1, but not for R; one step of inverse iteration takes it away.
    left_small, _ = jnp.linalg.qr(adjoint_solve(found.right.T))
    right, factor = jnp.linalg.qr(solve(left_small))
    inverse = jax.lax.linalg.triangular_solve(factor, jnp.eye(k, dtype=factor.dtype), left_side=True)
    on_left, _, on_right_h = jnp.linalg.svd(inverse)
    right = jnp.matmul(right, on_right_h.conj().T, precision=vectors.HIGHEST)
    left_small = jnp.matmul(left_small, on_left, precision=vectors.HIGHEST)
    s = vectors.stack_norms(factors.product(right).T)
    largest = jnp.maximum(factors.largest, s[0])
    return SmallestTriplets(
        factors.expand(left_small).T, s, right.T, largest, found.finite, found.complete, found.breakdowns
    )  # fmt: skip


def dense_factors(tall: jax.Array, key: jax.Array) -> Factorization:
    """Return the factorisation of a tall matrix, such that solves with R don't overflow.

    Where R is singular to working precision, as a solve with a random vector tells, solves can grow without bound: to
    2^n for the n x n matrix with ones on the diagonal and -1 above it. Then Q and R are those of A + E, with a random E
    of norm at most eps |A|, which is the backward error of the factorisation itself. The smallest singular value of
    such a sum is hardly ever far below eps |A| / m (Sankar, Spielman & Teng 2006, doi:10.1137/S0895479803436202,
    Theorem 3.3).

    Args:
        tall: Shape (m, n), m >= n, finite.
        key: A PRNG key.

    Returns:
        The factorisation, with a lower bound of the norm from three steps of power iteration.

    Cost:
        A QR factorisation, 2 m n^2 - 2 n^3 / 3 flops, and m n + n^2 entries; twice that where R is singular.
    """
    m, n = tall.shape
    eps = jnp.finfo(tall.dtype).eps
    probe = krylov.random_stack(jax.random.fold_in(key, 2), jax.ShapeDtypeStruct((1,), tall.dtype), n)

    def perturbed(largest: jax.Array) -> jax.Array:
        size = eps / (2 * math.sqrt(m)) * jnp.where(largest > 0, largest, 1)
        noise = vectors.normal(jax.random.fold_in(key, 3), jax.ShapeDtypeStruct((m, n), tall.dtype))
        return tall + size.astype(tall.dtype) * noise

    def factorized(state: _Attempt) -> _Attempt:
        again = state.count > 0
        q, r = householder.factorize(jax.lax.cond(again, perturbed, lambda _: tall, state.largest))
        solution = jax.lax.linalg.triangular_solve(r, probe, left_side=True)
        vector = probe
        for factor in (r, r.conj().T, r):  # power iteration
            vector = jnp.matmul(factor, vectors.divide(vector, vectors.norm(vector)), precision=vectors.HIGHEST)
        largest = jnp.maximum(vectors.norm(vector), vectors.norm(r) / math.sqrt(n))
        largest = jnp.where(again, state.largest, largest)
        regular = vectors.norm(solution) * (eps * largest) < 1  # false for NaN, too
        return _Attempt(state.count + 1, again | regular, q, r, largest)

    q, r = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(householder.factorize, tall))
    largest = jnp.zeros((), vectors.real_dtype(tall.dtype))
    begun = _Attempt(jnp.zeros((), jnp.int32), jnp.zeros((), bool), q, r, largest)
    # a loop, although it runs once as a rule: one copy of a factorisation halves the time that a TPU's compiler takes
    _, _, q, r, largest = jax.lax.while_loop(lambda state: ~state.done, factorized, begun)
    r = r / jnp.where(largest > 0, largest, 1).astype(r.dtype)

    def solve(b: jax.Array) -> jax.Array:
        return jax.lax.linalg.triangular_solve(r, b, left_side=True)

    def adjoint_solve(b: jax.Array) -> jax.Array:
        return jax.lax.linalg.triangular_solve(r, b, left_side=True, transpose_a=True, conjugate_a=True)

    def product(v: jax.Array) -> jax.Array:
        return jnp.matmul(tall, v, precision=vectors.HIGHEST)

    def expand(b: jax.Array) -> jax.Array:
        return householder.apply(q, b)

    struct = jax.ShapeDtypeStruct((n,), tall.dtype)
    return Factorization(solve, adjoint_solve, product, expand, struct, largest)


def banded_factors(
    band: banded.Band, blocks: jax.Array, tall: LinearOperator, key: jax.Array, *, finite: jax.Array
) -> Factorization:
    """Return the factorisation of a zero-padded convolution as a block-banded matrix, as `dense_factors` does.

    Where R is singular to working precision, the random E is confined to the band.

    Args:
        band: The shape.
        blocks: The blocks, shape (extent, height, width), finite.
        tall: The operator of shape (m, n), m >= n: the convolution or its adjoint.
        key: A PRNG key.
        finite: Whether the blocks are those of the operator, and not a stand-in for what is not finite.

    Returns:
        The factorisation, with a lower bound of the norm from four steps of power iteration.

    Cost:
        `band.flops` operations, twice that where R is singular, and `band.entries` numbers; four products.
    """
    m, n = band.shape
    eps = float(jnp.finfo(blocks.dtype).eps)
    matvec, rmatvec = tall.loop_products()
    vector = vectors.row(krylov.random_stack(jax.random.fold_in(key, 2), tall.in_struct, 1), 0)
    for apply in (matvec, rmatvec, matvec, rmatvec):  # power iteration
        vector = apply(vectors.divide(vector, vectors.norm(vector)))
    largest = jnp.where(finite, vectors.norm(vector), 1)
    blocks = blocks / jnp.where(largest > 0, largest, 1).astype(blocks.dtype)
    factors = banded.factorize(band, blocks, key=key)
    probe = krylov.random_stack(jax.random.fold_in(key, 2), jax.ShapeDtypeStruct((1,), blocks.dtype), n)
    regular = vectors.norm(banded.solve(band, factors, probe)) * eps < 1  # false for NaN, too
    noise = eps / (2 * math.sqrt(m))
    factors = jax.lax.cond(
        regular,
        lambda: factors,
        lambda: banded.factorize(band, blocks, key=jax.random.fold_in(key, 3), noise=noise),
    )

    def product(v: jax.Array) -> jax.Array:
        return vectors.as_matrix(tall.matmat(vectors.from_matrix(v.T, tall.in_struct))).T

    return Factorization(
        solve=lambda b: banded.solve(band, factors, b),
        adjoint_solve=lambda b: banded.adjoint_solve(band, factors, b),
        product=product,
        expand=lambda b: banded.expand(band, factors, b),
        struct=jax.ShapeDtypeStruct((n,), blocks.dtype),
        largest=largest,
    )
