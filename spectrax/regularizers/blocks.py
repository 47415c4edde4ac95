"""Blocks of singular vectors at both ends of each map: found by a factorisation now and then, used at every step.

Between two renewals the singular values are the Ritz values of the map on its blocks: never above the true ones at the
top, never below them at the bottom. Their residuals, computed at every step, say how near a true one is.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import layouts, vectors
from spectrax.operators import LinearOperator
from spectrax.operators.convolution import ConvolutionOperator
from spectrax.operators.precision import in_working_precision
from spectrax.regularizers.triplets import residual_error
from spectrax.spectrum import Dense, InverseLanczos, Lanczos, conv_symbol, svds
from spectrax.spectrum.convolution.symbol import circular_frequencies
from spectrax.spectrum.methods import DENSE_OPERATOR_SIDE, can_be_dense

PyTree = Any


class Blocks(NamedTuple):
    """Singular vectors of the shorter side of one map.

    Attributes:
        top: Stack of vectors for the largest singular values, or None where they are not wanted.
        bottom: Stack for the smallest ones, `CircularBlock` for a circular estimate, or None.
        converged: Whether the renewal that found them converged, at the top and at the bottom.
    """

    top: PyTree
    bottom: PyTree
    converged: jax.Array


class CircularBlock(NamedTuple):
    """Where the symbol of a convolution has its smallest singular values, and the vectors there.

    Attributes:
        frequencies: Shape (count, d).
        left: Complex, shape (count, out).
        right: Complex, shape (count, in).
    """

    frequencies: jax.Array
    left: jax.Array
    right: jax.Array


class Ritz(NamedTuple):
    """Approximate singular values, descending, and what is known of the outermost one.

    Attributes:
        values: Shape (count,); differentiable.
        residual: A singular value of the map lies within residual / sqrt(2) of the outermost one.
        error: Estimated relative error of the outermost one, with round-off; inf where it cannot be told from zero.
    """

    values: jax.Array
    residual: jax.Array
    error: jax.Array


def needs_key(operator: LinearOperator) -> bool:
    """Say whether finding the blocks takes random numbers: not where the map is decomposed wholly."""
    return not (can_be_dense(operator.shape) and min(operator.shape) <= DENSE_OPERATOR_SIDE)


def bottom_kind(operator: LinearOperator) -> str:
    """Return what is known of the smallest value between renewals: "upper", or "estimate" for the circular one."""
    return "upper" if can_be_dense(operator.shape) or _circular(operator) is None else "estimate"


def _circular(operator: LinearOperator) -> ConvolutionOperator | None:
    """Return the convolution whose circular symbol stands in for the map, if it has one."""
    if not isinstance(operator, ConvolutionOperator):
        return None
    if operator.geometry.feature_group_count != 1 or any(step != 1 for step in operator.geometry.input_dilation):
        return None
    return None if vectors.is_complex(operator.dtype) else operator


def short_side(operator: LinearOperator) -> LinearOperator:
    """Return the operator or its adjoint, so that it has at least as many rows as columns."""
    return operator if operator.shape[0] >= operator.shape[1] else operator.H


class _Task(NamedTuple):
    """One map whose blocks are to be found by a factorisation."""

    name: str
    tall: LinearOperator
    ends: tuple[int, int]
    start: jax.Array | None
    key: jax.Array | None


def renew(
    operators: dict[str, LinearOperator],
    ends: dict[str, tuple[int, int]],
    key: jax.Array | None,
    old: dict[str, Blocks],
) -> dict[str, Blocks]:
    """Find the blocks of all maps anew.

    Maps whose shorter sides are equal share one compiled decomposition: what differs between them, the longer side, is
    taken away by a QR factorisation, and the square factors are worked on one after another.

    Args:
        operators: The maps by name, of which no derivative is taken.
        ends: How many vectors at the top and at the bottom of each.
        key: A PRNG key; may be None where `needs_key` says so for every map.
        old: The blocks so far, to start from; empty at first.

    Returns:
        The new blocks.

    Cost:
        A QR factorisation of each map that is small enough to be made dense, and some tens of triangular solves;
        for the others, iterations with their products. Memory for one dense map at a time.
    """
    operators = jax.lax.stop_gradient(operators)
    blocks: dict[str, Blocks] = {}
    groups: dict[Any, list[_Task]] = {}
    for index, (name, operator) in enumerate(operators.items()):
        own_key = None if key is None else jax.random.fold_in(key, index)
        previous = old.get(name)
        if not can_be_dense(operator.shape):
            blocks[name] = _renew_by_products(operator, ends[name], own_key, previous)
            continue
        tall = short_side(operator)
        start = None if previous is None or previous.bottom is None else vectors.as_matrix(previous.bottom)
        group = (tall.shape[1], vectors.working_dtype(tall.dtype), ends[name])
        groups.setdefault(group, []).append(_Task(name, tall, ends[name], start, own_key))
    for tasks in groups.values():
        found = _renew_group(tasks)
        for index, task in enumerate(tasks):
            struct = vectors.working_struct(task.tall.in_struct)
            top, bottom, converged = jax.tree.map(lambda rows, index=index: rows[index], found)
            blocks[task.name] = Blocks(
                top=vectors.from_matrix(top, struct),
                bottom=None if bottom is None else vectors.from_matrix(bottom, struct),
                converged=converged,
            )
    return {name: blocks[name] for name in operators}


def _square_factor(tall: LinearOperator) -> jax.Array:
    """Return a square matrix with the right singular vectors and the singular values of a tall operator."""
    dense = tall.to_dense(chunk_size=64)
    dense = dense.astype(vectors.working_dtype(dense.dtype))
    return dense if dense.shape[0] == dense.shape[1] else layouts.on_every_device(_triangle, dense)


def _triangle(dense: jax.Array) -> jax.Array:
    finite = jnp.all(jnp.isfinite(dense))
    return jnp.where(finite, jnp.linalg.qr(jnp.where(finite, dense, 0), mode="r"), jnp.nan)


def _renew_group(tasks: list[_Task]) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Return stacks of top blocks, bottom blocks and convergence flags for tasks of one shorter side."""
    top_count, bottom_count = tasks[0].ends
    whole = tasks[0].tall.shape[1] <= DENSE_OPERATOR_SIDE
    factors = [functools.partial(_square_factor, task.tall) for task in tasks]

    def one(task):
        index, start, key = task
        return layouts.on_every_device(found, jax.lax.switch(index, factors), start, key)

    def found(matrix, start, key):
        # the answer feeds a penalty: a relative residual of 1e-3 leaves relative errors of 1e-6 in the values
        tol = None if whole else 1e-3
        method = Dense() if whole else Lanczos(probe=False)
        top = svds(matrix, top_count, which="largest", method=method, tol=tol, key=key)
        if not bottom_count:
            return top.v, None, jnp.stack([jnp.all(top.converged), jnp.ones((), bool)])
        method = Dense() if whole else InverseLanczos(probe=False)
        bottom = svds(matrix, bottom_count, which="smallest", method=method, tol=tol, key=key, v0=start)
        return top.v, bottom.v, jnp.stack([jnp.all(top.converged), jnp.all(bottom.converged)])

    starts, keys = (
        None if getattr(tasks[0], name) is None else jnp.stack([getattr(task, name) for task in tasks])
        for name in ("start", "key")
    )
    return jax.lax.map(one, (jnp.arange(len(tasks)), starts, keys))


def _renew_by_products(operator, ends, key, old) -> Blocks:
    """Find the blocks of a map that is too large to be made dense.

    The top converges by iteration. The bottom of a convolution is estimated from the circular symbol; of any other map
    the Ritz vectors after a fixed number of restarts are taken, whose values are upper bounds.
    """
    tall, circular = short_side(operator), _circular(operator)
    top = svds(
        tall, ends[0], which="largest", method=Lanczos(probe=False), tol=1e-3, key=key,
        v0=None if old is None else old.top,
    )  # fmt: skip
    top_converged = jnp.all(top.converged)
    if not ends[1]:
        return Blocks(top.v, None, jnp.stack([top_converged, jnp.ones((), bool)]))
    if circular is not None:
        return Blocks(top.v, _circular_bottom(circular, ends[1]), jnp.stack([top_converged, jnp.zeros((), bool)]))
    bottom = svds(
        tall, ends[1], which="smallest", method=Lanczos(probe=False, max_restarts=10), tol=1e-3, key=key,
        v0=None if old is None else old.bottom,
    )  # fmt: skip
    return Blocks(top.v, bottom.v, jnp.stack([top_converged, jnp.all(bottom.converged)]))


def ritz(operator: LinearOperator, blocks: Blocks) -> tuple[Ritz, Ritz]:
    """Return the Ritz values of a map on its blocks at both ends, by Rayleigh-Ritz.

    The values are differentiable with respect to the operator, ds_i = Re(u_i^H dA v_i), at the price of one product
    with both blocks; the vectors themselves carry no gradient.

    Args:
        operator: The map.
        blocks: Its blocks.

    Returns:
        The values at the top and at the bottom, with the residuals of the largest and of the smallest one. Without a
        bottom block, one value of NaN.
    """
    working = in_working_precision(operator)
    blocks, fixed = jax.lax.stop_gradient((blocks, working))
    circular = blocks.bottom if isinstance(blocks.bottom, CircularBlock) else None
    stacks = [blocks.top] if blocks.bottom is None or circular is not None else [blocks.top, blocks.bottom]
    tall = short_side(fixed)
    counts = [jax.tree.leaves(stack)[0].shape[0] for stack in stacks]
    image = vectors.as_matrix(tall.matmat(jax.tree.map(lambda *rows: jnp.concatenate(rows), *stacks)))
    parts = [_resolved(part) for part in jnp.split(image, np.cumsum(counts)[:-1])]
    left = vectors.from_matrix(jnp.concatenate([part[0] for part in parts]), tall.out_struct)
    s = jnp.concatenate([part[1] for part in parts])
    turned = [vectors.combine(part[2], stack) for part, stack in zip(parts, stacks, strict=True)]
    right = jax.tree.map(lambda *rows: jnp.concatenate(rows), *turned)
    outer = np.array([0] if len(counts) == 1 else [0, sum(counts) - 1])
    images = tall.rmatmat(jax.tree.map(lambda rows: rows[outer], left))
    residuals = _residuals(images, jax.tree.map(lambda rows: rows[outer], right), s[outer])
    # the product with A is differentiated, whichever product found the values: the derivative of a transposed
    # convolution in its kernel is slow
    wide = working.shape[0] < working.shape[1]
    values = attached(working, right if wide else left, s, left if wide else right)
    eps = vectors.eps((fixed.in_struct, fixed.out_struct))
    largest, smallest = s[0], s[-1]
    error = residual_error(residuals[0], s[: counts[0]], bottom=False)
    top = Ritz(values[: counts[0]], residuals[0], error + 16 * eps)
    if circular is not None:
        return top, _circular_ritz(operator, circular)
    if blocks.bottom is None:
        nothing = jnp.full((1,), jnp.nan, values.dtype)
        return top, Ritz(nothing, nothing[0], nothing[0])
    error = residual_error(residuals[1], s[counts[0] :], bottom=True)
    error = error + 4 * eps * largest / jnp.where(smallest > 0, smallest, 1)
    error = jnp.where(smallest <= max(tall.shape) ** 0.5 * eps * largest, jnp.inf, error)
    return top, Ritz(values[counts[0] :], residuals[1], error)


@jax.custom_jvp
def attached(operator: LinearOperator, u: PyTree, s: jax.Array, v: PyTree) -> jax.Array:
    """Return values as functions of the operator, ds = Re(u^H dA v), without another product.

    Args:
        operator: The map, in working precision.
        u: Stack of left vectors, constants.
        s: Values, shape (count,), constants.
        v: Stack of right vectors, constants.

    Returns:
        s.
    """
    del operator, u, v
    return s


@attached.defjvp
def _attached_jvp(primals, tangents):
    operator, u, s, v = primals
    _, images = jax.jvp(lambda op: op.matmat(v), (operator,), tangents[:1])
    return s, jax.vmap(vectors.vdot)(u, images).real.astype(s.dtype)


def _resolved(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return left Ritz vectors as rows, the values, and the coefficients of the right vectors, from a block's image.

    An SVD of the triangular factor of the image loses nothing; a Gram matrix would. NaN where the image is not finite.
    """
    finite = jnp.all(jnp.isfinite(image))
    q, r = jnp.linalg.qr(jnp.where(finite, image, 0).T)
    left, s, right_h = jnp.linalg.svd(r)
    return vectors.matmul(q, left).T, jnp.where(finite, s, jnp.nan), right_h.conj()


def _residuals(images: PyTree, v: PyTree, values: jax.Array) -> jax.Array:
    """Return |A^H u - s v| for some Ritz triplets, from the images A^H u; A v = s u holds by construction."""
    scaled = jax.tree.map(lambda rows: rows * values.reshape((-1,) + (1,) * (rows.ndim - 1)).astype(rows.dtype), v)
    return vectors.stack_norms(vectors.subtract(images, scaled))


def _circular_bottom(operator: ConvolutionOperator, count: int) -> CircularBlock:
    geometry = operator.geometry
    grid, _ = circular_frequencies(geometry.spatial_shape, geometry.strides)
    grid = jnp.asarray(grid, vectors.working_dtype(operator.dtype))
    options = {"strides": geometry.strides, "kernel_dilation": geometry.kernel_dilation}
    smallest = jnp.linalg.svd(conv_symbol(operator.kernel, grid, **options), compute_uv=False)[:, -1]
    chosen = grid[jnp.argsort(smallest)[: min(count, grid.shape[0])]]
    left, _, right_h = jnp.linalg.svd(conv_symbol(operator.kernel, chosen, **options), full_matrices=False)
    return CircularBlock(chosen, left[:, :, -1], right_h.conj()[:, -1, :])


def _circular_ritz(operator: LinearOperator, block: CircularBlock) -> Ritz:
    assert isinstance(operator, ConvolutionOperator)
    geometry = operator.geometry
    symbol = conv_symbol(
        operator.kernel, block.frequencies, strides=geometry.strides, kernel_dilation=geometry.kernel_dilation
    )
    # |S v|, or |S^H u| for the shorter side, is never below the smallest value of the symbol there
    if symbol.shape[1] < symbol.shape[2]:
        symbol, fixed = symbol.conj().swapaxes(1, 2), block.left
    else:
        fixed = block.right
    images = jnp.einsum("foi,fi->fo", symbol, fixed, precision=vectors.HIGHEST)
    directions = jax.lax.stop_gradient(images)
    directions = jax.vmap(lambda image: vectors.divide(image, vectors.norm(image)))(directions)
    values = jnp.sum(directions.conj() * images, axis=1).real
    values = values[jnp.argsort(-jax.lax.stop_gradient(values))]
    unknown = jnp.asarray(jnp.nan, values.dtype)
    return Ritz(values, unknown, unknown)
