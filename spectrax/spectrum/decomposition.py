"""How a decomposition is carried out: each method from the operator to a result with its residuals."""

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from spectrax import checks, krylov, layouts, vectors
from spectrax.operators import LinearOperator, banded
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import convolution_of
from spectrax.results import EighResult, Status, SVDResult
from spectrax.spectrum import inverse, preconditioners
from spectrax.spectrum.methods import Davidson, Dense, Fallback, InverseLanczos, Lanczos, banded_shape, is_plain
from spectrax.spectrum.plans import Plan

PyTree = Any
Result = TypeVar("Result", SVDResult, EighResult)
MISMATCH = 16  # in units of round-off: by how much <u, A v> and <A^H u, v> may differ


def decompose(
    plan: Plan, operator: LinearOperator, key: Any, v0: PyTree, preconditioner: LinearOperator | None
) -> SVDResult:
    """Return the triplets that the plan asks for, by its method.

    Args:
        plan: Everything static.
        operator: The operator, in the dtype to compute in.
        key: A PRNG key, or None where the method needs none.
        v0: A stack of vectors of the shorter side to start with, or None.
        preconditioner: An operator on the shorter side, or None.

    Returns:
        The result, with residuals of the final vectors.
    """
    method = plan.method
    if isinstance(method, Fallback):
        return _fallback(plan, operator, key, v0, preconditioner)
    if isinstance(method, Davidson):
        return _davidson(plan, method, operator, key, v0, preconditioner)
    if isinstance(method, InverseLanczos):
        return _inverse(plan, method, operator, key, v0)
    if isinstance(method, Dense):
        return _with_residuals(plan, operator, *_dense(plan, operator))
    return _lanczos(plan, method, operator, key, v0)


def _fallback(plan: Plan, operator: LinearOperator, key: Any, v0: PyTree, preconditioner: LinearOperator | None):
    """Take the second method where the first did not succeed; where neither did, the one with the better values."""
    first = decompose(plan.parts[0], operator, key, v0, preconditioner)

    def second() -> SVDResult:
        then = decompose(plan.parts[1], operator, key, v0, preconditioner)
        sign = 1 if plan.which == "smallest" else -1
        worse = ~jnp.all(then.converged) & (sign * jnp.sum(first.s) < sign * jnp.sum(then.s))
        chosen = jax.tree.map(lambda a, b: jnp.where(worse, a, b), first, then)
        return chosen._replace(num_matvecs=first.num_matvecs + then.num_matvecs)

    over = jnp.all(first.converged) | (first.status == int(Status.NOT_FINITE))
    return jax.lax.cond(over, lambda: first, second)


def _davidson(plan: Plan, method: Davidson, operator: LinearOperator, key, v0, preconditioner) -> SVDResult:
    wide = operator.shape[0] < operator.shape[1]
    tall = operator.H if wide else operator
    count = jnp.zeros((), jnp.int32)
    if preconditioner is None:
        preconditioner, products = _automatic(method.preconditioner, operator, key)
        count = count + products
    matvec, rmatvec = tall.loop_products()
    precondition = None if preconditioner is None else preconditioner.loop_products()[0]
    start = starting_block(key, v0, tall.in_struct, 1 if v0 is None else vectors.count(v0))
    task = plan.task(tol=plan.tol / 2, round_off=plan.round_off / 2, probe=True)
    found = krylov.smallest_triplets(
        task._replace(sides=layouts.sides_of(tall.in_struct, tall.out_struct)),
        matvec, rmatvec, precondition, start, tall.out_struct, key,
    )  # fmt: skip
    left, right = (found.right, found.left) if wide else (found.left, found.right)
    usable = found.finite & is_usable(operator.matrix) if isinstance(operator, MatrixOperator) else found.finite
    count = count + 2 * found.num_steps
    result = _with_residuals(plan, operator, left, found.values, right, found.largest, count, usable)
    # a small residual may be that of another singular value: only what stood the challenge has converged
    result = judged(result, found.complete, found.breakdowns > 0)
    return unless_mismatch(result, found.mismatch > MISMATCH * plan.round_off)


def _automatic(choice: str, operator: LinearOperator, key: jax.Array) -> tuple[LinearOperator | None, int]:
    """Return the preconditioner that the name stands for, and how many products of the operator it took.

    Args:
        choice: "circulant", "sketch", "none", or "auto": the first of them that the operator allows.
        operator: The operator, in the dtype to compute in.
        key: A PRNG key.

    Returns:
        An operator on the shorter side, or None, and the number of products.
    """
    convolution = convolution_of(operator)
    if choice == "circulant" or (choice == "auto" and convolution is not None and is_plain(convolution[1])):
        return preconditioners.circulant(operator), 0
    if choice in ("auto", "sketch"):
        return preconditioners.sketched(operator, jax.random.fold_in(key, 7)), min(operator.shape)
    return None, 0


def _lanczos(plan: Plan, method: Lanczos, operator: LinearOperator, key: Any, v0: PyTree) -> SVDResult:
    wide = operator.shape[0] < operator.shape[1]
    tall = operator.H if wide else operator
    matvec, rmatvec = tall.loop_products()
    task = plan.recurrence_task._replace(sides=layouts.sides_of(tall.in_struct, tall.out_struct))
    found = krylov.singular_triplets(
        task, vectors.stacked(matvec), vectors.stacked(rmatvec),
        starting_block(key, v0, tall.in_struct, plan.block_size), tall.out_struct, key,
    )  # fmt: skip
    return concluded(plan, operator, found)


def concluded(plan: Plan, operator: LinearOperator, found: krylov.Triplets) -> SVDResult:
    """Return the triplets of an iteration that is over, with the residuals of the final vectors.

    Args:
        plan: Everything static.
        operator: The operator, in the dtype to compute in.
        found: What the iteration found, with the right vectors on the shorter side.

    Returns:
        The result.
    """
    wide = operator.shape[0] < operator.shape[1]
    left, right = (found.right, found.left) if wide else (found.left, found.right)
    usable = found.finite & is_usable(operator.matrix) if isinstance(operator, MatrixOperator) else found.finite
    result = _with_residuals(plan, operator, left, found.values, right, found.largest, 2 * found.num_steps, usable)
    result = judged(result, found.complete, found.breakdowns > 0)
    return unless_mismatch(result, found.mismatch > MISMATCH * plan.round_off)


def judged(result: Result, complete: jax.Array, broke_down: jax.Array) -> Result:
    """Return a result with what the iteration knows, and its residuals don't.

    Args:
        result: The result with the residuals of its vectors.
        complete: Whether no value is known to have been missed.
        broke_down: Whether directions had to be drawn afresh.

    Returns:
        The result with flags and status to match.
    """
    usable = result.status != int(Status.NOT_FINITE)
    converged = result.converged & complete
    status = jnp.where(complete, result.status, jnp.maximum(result.status, int(Status.NOT_CONVERGED)))
    status = jnp.where(~jnp.all(converged) & broke_down & usable, int(Status.BREAKDOWN), status)
    return result._replace(converged=converged, status=status.astype(jnp.int32))


def unless_mismatch(result: Result, mismatch: jax.Array) -> Result:
    """Return the result, and with no claim in it where operator and adjoint don't match."""
    usable = result.status != int(Status.NOT_FINITE)
    status = jnp.where(mismatch & usable, int(Status.ADJOINT_MISMATCH), result.status)
    return result._replace(converged=result.converged & ~mismatch, status=status.astype(jnp.int32))


def verdict(
    plan: Plan, values: jax.Array, residuals: jax.Array, largest: jax.Array, finite: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Say of each value whether it has converged, and of all how it ended.

    Args:
        plan: Everything static.
        values: Shape (k,).
        residuals: Those of the final vectors, shape (k,).
        largest: The largest modulus of a value that was seen; where it is tiny, products have lost their digits.
        finite: False if something was NaN or Inf on the way.

    Returns:
        The values and the residuals, NaN where not finite, `converged` and `status`.
    """
    largest = jnp.maximum(largest, jnp.max(jnp.abs(values)))
    floor = plan.round_off * largest
    limits = jnp.finfo(values.dtype)
    finite = finite & ((largest == 0) | (largest >= float(limits.tiny) / float(limits.eps)))
    finite = finite & jnp.all(jnp.isfinite(residuals)) & jnp.isfinite(floor)
    by_tol = residuals <= plan.tol * jnp.abs(values)
    converged = finite & (by_tol | (residuals <= floor))
    status = jnp.where(jnp.all(by_tol), int(Status.CONVERGED), int(Status.AT_ROUND_OFF))
    status = jnp.where(jnp.all(converged), status, int(Status.NOT_CONVERGED))
    status = jnp.where(finite, status, int(Status.NOT_FINITE)).astype(jnp.int32)
    nan = jnp.asarray(jnp.nan, values.dtype)
    return jnp.where(finite, values, nan), jnp.where(finite, residuals, nan), converged, status


def stack_of(v0: PyTree, struct: PyTree) -> PyTree:
    """Return starting vectors as arrays, after a check that they are a stack of vectors of the given structure."""
    v0 = jax.tree.map(jnp.asarray, v0)
    leaves = jax.tree.leaves(v0)
    lead = leaves[0].shape[:1] if leaves else ()
    want = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(lead + leaf.shape, leaf.dtype), struct)
    checks.same_structure("v0", v0, want)
    if lead and lead[0] > vectors.size(struct):
        raise ValueError(
            f"v0 must hold at most {vectors.size(struct)} vectors, the dimension of the shorter side, got {lead[0]}"
        )
    return v0


def is_usable(matrix: jax.Array) -> jax.Array:
    """Whether all entries are finite, and not so small that products lose digits by underflow, unless all are zero."""
    peak = jnp.max(jnp.abs(matrix))
    limits = jnp.finfo(matrix.dtype)
    return jnp.isfinite(peak) & ((peak == 0) | (peak >= float(limits.tiny) / float(limits.eps)))


def starting_block(key: Any, v0: PyTree, struct: PyTree, count: int) -> PyTree:
    """Return a stack of random vectors, or those of v0 with 3 % of noise: a start orthogonal to an answer misses it.

    Args:
        key: A PRNG key.
        v0: A stack of starting vectors, or None.
        struct: The structure of one vector.
        count: How many vectors are needed; for one, the starting vectors are summed up.

    Returns:
        A stack of `count` vectors, random ones behind those that were given.
    """
    noise = krylov.random_stack(jax.random.fold_in(key, 1), struct, count)
    noise = layouts.constrain(noise, layouts.layout_of(struct), stacked=True)
    if v0 is None:
        return noise
    if vectors.count(v0) > count:
        v0 = jax.tree.map(lambda leaf: leaf.sum(0, keepdims=True), v0)
    lengths = vectors.stack_norms(v0)
    share = 0.03 * jnp.where(lengths > 0, lengths, 1) / math.sqrt(vectors.size(struct) / 3)  # their variance is 1/3
    share = jnp.concatenate([share, jnp.ones(count - vectors.count(v0), share.dtype)])
    return vectors.add(vectors.pad(v0, count), vectors.scale_rows(share, noise))


def _dense(plan: Plan, operator: LinearOperator):
    matrix = operator.to_dense()
    finite = is_usable(matrix)
    left, s, right_h = jnp.linalg.svd(jnp.where(finite, matrix, jnp.zeros_like(matrix)), full_matrices=False)
    chosen = slice(s.shape[0] - plan.k, s.shape[0]) if plan.which == "smallest" else slice(0, plan.k)
    u = vectors.from_matrix(left.T[chosen], operator.out_struct)
    v = vectors.from_matrix(right_h.conj()[chosen], operator.in_struct)
    count = 0 if isinstance(operator, MatrixOperator) else min(operator.shape)
    return u, s[chosen], v, s[0], jnp.asarray(count, jnp.int32), finite


def _inverse(plan: Plan, method: InverseLanczos, operator: LinearOperator, key: Any, v0: PyTree):
    """Find the smallest triplets by a factorisation: as a block-banded matrix, or as a dense one."""
    wide = operator.shape[0] < operator.shape[1]
    convolution, band = convolution_of(operator), banded_shape(operator)
    if convolution is not None and band is not None:
        finite = is_usable(convolution[0])
        blocks = banded.band_blocks(jnp.where(finite, convolution[0], jnp.ones_like(convolution[0])), convolution[1])
        tall = operator.H if wide else operator
        factors = inverse.banded_factors(band, blocks, tall, key, finite=finite)
        count = jnp.asarray(4 + plan.k, jnp.int32)
    else:
        matrix = operator.to_dense()
        finite = is_usable(matrix)
        matrix = jnp.where(finite, matrix, jnp.ones_like(matrix))
        factors = inverse.dense_factors(matrix.conj().T if wide else matrix, key)
        count = jnp.asarray(0 if isinstance(operator, MatrixOperator) else min(operator.shape), jnp.int32)
    start = None
    if v0 is not None:  # the start lives on the right of A, hence on the left of R^-1
        start = factors.adjoint_solve(vectors.as_matrix(v0).sum(0)[:, None]).T
    found = inverse.smallest_triplets(
        plan.task(tol=plan.tol, round_off=plan.round_off, probe=method.probe),
        factors, starting_block(key, start, factors.struct, 1)[0], key,
    )  # fmt: skip
    u, v = (found.short, found.long) if wide else (found.long, found.short)
    u = vectors.from_matrix(u, operator.out_struct)
    v = vectors.from_matrix(v, operator.in_struct)
    result = _with_residuals(plan, operator, u, found.values, v, found.largest, count, finite & found.finite)
    # R^-1 of a singular matrix is too rough for its iteration to converge, but nothing lies below round-off
    nothing_below = jnp.max(found.values) <= plan.round_off * found.largest
    return judged(result, found.complete | nothing_below, found.breakdowns > 0)


def _with_residuals(plan, operator, u, s, v, largest, count, finite) -> SVDResult:
    """Sort, compute the true residuals, and say how it ended."""
    order = jnp.argsort(-s)
    u, v, s = jax.tree.map(lambda rows: rows[order], (u, v, s))
    u = layouts.constrain(u, layouts.layout_of(operator.out_struct), stacked=True)
    v = layouts.constrain(v, layouts.layout_of(operator.in_struct), stacked=True)
    matmat, rmatmat = operator.fixed_block_products()
    forward, backward = matmat(v), rmatmat(u)
    mismatch = jnp.max(jnp.abs(jax.vmap(vectors.vdot)(u, forward) - jax.vmap(vectors.vdot)(backward, v)))
    forward = vectors.subtract(forward, vectors.scale_rows(s, u))
    backward = vectors.subtract(backward, vectors.scale_rows(s, v))
    residuals = jnp.hypot(vectors.stack_norms(forward), vectors.stack_norms(backward))
    s, residuals, converged, status = verdict(plan, s, residuals, largest, finite)
    result = SVDResult(u, s, v, residuals, converged, (count + 2 * plan.k).astype(jnp.int32), status)
    return unless_mismatch(result, mismatch > MISMATCH * plan.round_off * jnp.maximum(largest, s[0]))
