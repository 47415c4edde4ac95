"""The vector space of pytrees: vectors keep their structure, stacks of vectors have one leading axis more.

Nothing is ravelled, so every leaf keeps its shape and its sharding. Inner products are sums over leaves, taken at the
highest matmul precision, and 16-bit vectors are worked on in 32 bits.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import layouts
from spectrax.layouts import Layout

PyTree = Any
HIGHEST = jax.lax.Precision.HIGHEST
_SLICE = 8192  # entries of a vector that a TPU's compiler multiplies with at once without much thought


def structure(tree: PyTree) -> PyTree:
    """Return the shapes and dtypes of a pytree of arrays, as a pytree of `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)


def size(struct: PyTree) -> int:
    """Return the dimension of the vector space: the number of entries over all leaves."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(struct))


def result_dtype(struct: PyTree) -> jnp.dtype:
    """Return the common dtype of the leaves."""
    return jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(struct)))


def working_dtype(dtype: Any) -> jnp.dtype:
    """Return the dtype to compute in: float32 for 16-bit dtypes, otherwise the dtype itself."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 and not is_complex(dtype) else dtype


def eps(struct: PyTree) -> float:
    """Return the unit round-off of a vector: that of its leaf of the fewest bits."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(struct))


def real_dtype(dtype: Any) -> jnp.dtype:
    """Return the dtype of the modulus of a number of `dtype`."""
    return jnp.dtype(jnp.finfo(dtype).dtype)


def complex_dtype(dtype: Any) -> jnp.dtype:
    """Return the complex dtype of the precision of a dtype of at least 32 bits."""
    return jnp.dtype(jnp.complex128 if jnp.finfo(dtype).bits == 64 else jnp.complex64)


def is_complex(dtype: Any) -> bool:
    """Say whether `dtype` is complex."""
    return bool(jnp.issubdtype(dtype, jnp.complexfloating))


def working_struct(struct: PyTree) -> PyTree:
    """Return `struct` with every dtype replaced by the one to compute in."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, working_dtype(leaf.dtype), sharding=leaf.sharding), struct
    )


def cast(tree: PyTree, struct: PyTree) -> PyTree:
    """Cast each leaf of `tree` to the dtype of the matching leaf of `struct`."""
    return jax.tree.map(lambda leaf, want: leaf.astype(want.dtype), tree, struct)


def zeros(struct: PyTree, count: int | None = None) -> PyTree:
    """Return the zero vector, or a stack of `count` of them."""
    lead = () if count is None else (count,)
    return jax.tree.map(lambda leaf: jnp.zeros(lead + leaf.shape, leaf.dtype), struct)


def normal(key: jax.Array, struct: PyTree, count: int | None = None) -> PyTree:
    """Return a standard Gaussian vector (complex where the leaf is), or a stack of `count` of them."""
    lead = () if count is None else (count,)
    leaves, treedef = jax.tree.flatten(struct)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [jax.random.normal(k, lead + leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )


def add(a: PyTree, b: PyTree) -> PyTree:
    """Return a + b."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """Return a - b."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(alpha: jax.Array | float, a: PyTree) -> PyTree:
    """Return alpha a, in the dtypes of `a`."""
    return jax.tree.map(lambda leaf: leaf * jnp.asarray(alpha).astype(leaf.dtype), a)


def divide(a: PyTree, alpha: jax.Array) -> PyTree:
    """Return a / alpha, and zero where the real number alpha is zero."""
    safe = jnp.where(alpha == 0, jnp.ones_like(alpha), alpha)
    return jax.tree.map(lambda leaf: jnp.where(alpha == 0, jnp.zeros_like(leaf), leaf / safe.astype(leaf.dtype)), a)


def conj(a: PyTree) -> PyTree:
    """Return the complex conjugate; real leaves stay as they are."""
    return jax.tree.map(lambda leaf: leaf.conj() if is_complex(leaf.dtype) else leaf, a)


def vdot(a: PyTree, b: PyTree) -> jax.Array:
    """Return the inner product sum conj(a) b over all leaves."""
    products = jax.tree.map(lambda x, y: jnp.tensordot(x.conj(), y, x.ndim, precision=HIGHEST), a, b)
    return _total(jax.tree.leaves(products))


def norm(a: PyTree) -> jax.Array:
    """Return the 2-norm over all leaves, scaled by the largest entry so that squares neither overflow nor vanish."""
    leaves = jax.tree.leaves(a)
    largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]).max()
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    squares = [jnp.sum(jnp.square(jnp.abs(leaf) / safe)) for leaf in leaves]
    return safe * jnp.sqrt(_total(squares))


def stack_norms(stack: PyTree) -> jax.Array:
    """Return the 2-norms of the vectors of a stack, shape (count,)."""
    return jax.vmap(norm)(stack)


def rows_vdot(stack: PyTree, w: PyTree) -> jax.Array:
    """Return the inner products of each vector of the stack with `w`, shape (count,)."""
    products = jax.tree.map(lambda rows, x: jnp.tensordot(rows.conj(), x, x.ndim, precision=HIGHEST), stack, w)
    return _total(jax.tree.leaves(products))


def gram(a: PyTree, b: PyTree) -> jax.Array:
    """Return the matrix of inner products <a_i, b_j> of two stacks, shape (count_a, count_b)."""

    def leaf_gram(x, y):
        axes = tuple(range(1, x.ndim))
        return jnp.tensordot(x.conj(), y, (axes, axes), precision=HIGHEST)

    products = jax.tree.leaves(jax.tree.map(leaf_gram, a, b))
    return _total(products)


def projections(basis: PyTree, block: PyTree, layout: Layout | None = None) -> tuple[jax.Array, jax.Array]:
    """Return the inner products of a basis with a block and of the block with itself, in one reduction.

    Args:
        basis: A stack of `count` vectors.
        block: A stack of `width` vectors.
        layout: How the vectors lie on devices; None to leave that to the compiler.

    Returns:
        The matrices <basis_i, block_j>, shape (count, width), and <block_i, block_j>, shape (width, width).
    """
    if layout is not None:
        both = layouts.summed(lambda a, b: jnp.concatenate(projections(a, b)), layout)(basis, block)
        return both[: count(basis)], both[count(basis) :]
    if count(block) == 1:  # as products with one vector: XLA has slow loops for a matrix of one column
        single = row(block, 0)
        return rows_vdot(basis, single)[:, None], rows_vdot(block, single)[:, None]
    return gram(basis, block), gram(block, block)


def _total(terms: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def combine(coefficients: jax.Array, stack: PyTree) -> PyTree:
    """Return the combination sum_i c_i v_i of a stack's vectors; a matrix of coefficients gives a stack.

    Args:
        coefficients: Shape (count,) for one vector, (new_count, count) for a stack.
        stack: A pytree whose leaves have a leading axis `count`.

    Returns:
        A vector, or a stack with leading axis `new_count`.
    """
    return jax.tree.map(lambda rows: jnp.tensordot(coefficients.astype(rows.dtype), rows, 1, precision=HIGHEST), stack)


def combinations(coefficients: jax.Array, stack: PyTree, layout: Layout | None = None) -> PyTree:
    """Return what `combine` does for a matrix of coefficients, in a form that is fast to compile for TPUs.

    Their compiler takes seconds for a product with one large leaf, as many for the next of another shape, and tenths of
    a second for one with a slice: large leaves are worked through slice by slice, on what each device holds.

    Args:
        coefficients: Shape (new_count, count).
        stack: A stack of `count` vectors.
        layout: How the vectors lie on devices, where that is known; where it is not, and there are several, this is
            `combine`, since slices would be gathered.

    Returns:
        A stack with leading axis `new_count`.
    """
    if all(math.prod(leaf.shape[1:]) <= _SLICE for leaf in jax.tree.leaves(stack)):
        return combine(coefficients, stack)

    def sliced(coefficients: jax.Array, stack: PyTree) -> PyTree:
        found = layouts.piecewise(
            lambda matrix, part: jax.tree.map(functools.partial(_by_slices, matrix), part), coefficients, stack, layout
        )
        return combine(coefficients, stack) if found is None else found

    return jax.lax.platform_dependent(coefficients, stack, tpu=sliced, default=combine)


def _by_slices(coefficients: jax.Array, rows: jax.Array) -> jax.Array:
    """Return the combinations of one leaf, by slices of its first axis, and of further ones where these are large."""
    if rows.ndim < 3 or math.prod(rows.shape[1:]) <= _SLICE:
        return combine(coefficients, rows)
    extent, rest = rows.shape[1], math.prod(rows.shape[2:])
    step = max(_SLICE // rest, 1)
    step = step - step % 8 if step > 8 else step  # whole tiles

    def body(index: jax.Array, out: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(rows, index * step, step, 1)
        found = _by_slices(coefficients, part[:, 0])[:, None] if step == 1 else combine(coefficients, part)
        return jax.lax.dynamic_update_slice_in_dim(out, found, index * step, 1)

    whole = extent - extent % step
    out = jnp.zeros((coefficients.shape[0], *rows.shape[1:]), rows.dtype)
    out = jax.lax.fori_loop(0, extent // step, body, out)
    return out if whole == extent else out.at[:, whole:].set(combine(coefficients, rows[:, whole:]))


def stacked(product: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
    """Return the product with each vector of a stack, given that with one vector.

    Args:
        product: A function of one vector.

    Returns:
        A function of a stack of vectors: batched, but for a stack of one, which takes the product as it is.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax import vectors
        >>> vectors.stacked(lambda v: 2 * v)(jnp.ones((3, 2))).shape
        (3, 2)
    """

    def apply(stack: PyTree) -> PyTree:
        if count(stack) == 1:
            return jax.tree.map(lambda leaf: leaf[None], product(row(stack, 0)))
        return jax.vmap(product)(stack)

    return apply


def scale_rows(factors: jax.Array, stack: PyTree) -> PyTree:
    """Return the vectors of a stack, each times its own factor; `factors` has shape (count,)."""
    return jax.tree.map(lambda leaf: leaf * factors.reshape((-1,) + (1,) * (leaf.ndim - 1)).astype(leaf.dtype), stack)


def without(rows: PyTree, stack: PyTree) -> PyTree:
    """Return a stack of vectors without their components along orthonormal rows, by one pass."""
    return subtract(stack, combine(gram(rows, stack).T, rows))


def row(stack: PyTree, index: jax.Array | int) -> PyTree:
    """Return one vector of a stack."""
    return jax.tree.map(lambda rows: jax.lax.dynamic_index_in_dim(rows, index, 0, keepdims=False), stack)


def set_row(stack: PyTree, index: jax.Array | int, w: PyTree) -> PyTree:
    """Return the stack with one vector replaced."""
    return jax.tree.map(lambda rows, x: jax.lax.dynamic_update_index_in_dim(rows, x, index, 0), stack, w)


def rows(stack: PyTree, index: jax.Array | int, count: int) -> PyTree:
    """Return `count` vectors of a stack, from `index` on, as a stack."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, count, 0), stack)


def set_rows(stack: PyTree, index: jax.Array | int, block: PyTree) -> PyTree:
    """Return the stack with the vectors from `index` on replaced by those of a block."""
    return jax.tree.map(lambda leaf, x: jax.lax.dynamic_update_slice_in_dim(leaf, x, index, 0), stack, block)


def pad(stack: PyTree, count: int) -> PyTree:
    """Return the stack with zero vectors behind its own, `count` in all."""
    return jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, count - leaf.shape[0])] + [(0, 0)] * (leaf.ndim - 1)), stack)


def count(stack: PyTree) -> int:
    """Return how many vectors a stack holds."""
    return jax.tree.leaves(stack)[0].shape[0]


def select(condition: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """Return, for each vector of two stacks, the one of `a` where the condition of shape (count,) holds."""

    def choose(x, y):
        return jnp.where(condition.reshape((-1,) + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, a, b)


def peak(a: PyTree) -> jax.Array:
    """Return the largest modulus of an entry."""
    return jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(a)]).max()


def lengths(stack: PyTree) -> jax.Array:
    """Return the 2-norms of the vectors of a stack, shape (count,), by one product for each leaf.

    Squares are taken as they are: the entries must be of the size of one. `norm` looks for the largest entry and
    scales by it, which costs several times as much.
    """

    def squares(leaf):
        if leaf.shape[0] == 1:
            axes = tuple(range(1, leaf.ndim))  # as a product of matrices: XLA sums a scalar one up by slow loops
            return jnp.tensordot(leaf.conj(), leaf, (axes, axes), precision=HIGHEST).real[0]
        return jnp.sum(jnp.square(jnp.abs(leaf)), axis=tuple(range(1, leaf.ndim)))

    return jnp.sqrt(_total([squares(leaf) for leaf in jax.tree.leaves(stack)]))


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the product of matrices in full precision."""
    return jnp.matmul(a, b, precision=HIGHEST)


def adjoint(a: jax.Array) -> jax.Array:
    """Return the conjugate transpose of matrices."""
    return jnp.swapaxes(a, -1, -2).conj()


def as_matrix(stack: PyTree) -> jax.Array:
    """Return the vectors of a stack as the rows of one matrix, shape (count, dimension).

    For dense factorisations only: this joins the leaves, which solvers on sharded vectors must not do.
    """
    leaves = jax.tree.leaves(stack)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def from_matrix(matrix: jax.Array, struct: PyTree) -> PyTree:
    """Return the rows of a matrix of shape (count, dimension) as a stack of vectors of the given structure."""
    leaves, treedef = jax.tree.flatten(struct)
    ends = [0]
    for leaf in leaves:
        ends.append(ends[-1] + math.prod(leaf.shape))
    parts = [
        matrix[:, low:high].reshape(matrix.shape[0], *leaf.shape).astype(leaf.dtype)
        for low, high, leaf in zip(ends[:-1], ends[1:], leaves, strict=True)
    ]
    return treedef.unflatten(parts)
