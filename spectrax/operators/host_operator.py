"""Symmetric operators over data that comes from an iterator: each product is a pass over it, driven from the host."""

import copy
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.core as jax_core
import jax.numpy as jnp
import numpy as np

from spectrax import checks, layouts, vectors
from spectrax.operators.linear_operator import LinearOperator
from spectrax.programs.hoisting import Direct, Program

PyTree = Any
Batches = Callable[[], Iterable[PyTree]]


class HostOperator(LinearOperator):
    """A symmetric operator that is the mean of those of the batches of an iterator.

    Made by the curvature operators (`hessian_operator` and its peers) where `batches` is a function. A product is a
    pass over the data from the host, with one compiled call a batch; a stack of vectors takes one pass, too. Beside the
    vectors, memory is that of one batch. Such an operator cannot enter `jit`, `vmap` or `grad`: it goes through
    `stepwise_eigsh` and `stepwise_density`, and what is computed inside of a compiled program refuses it.

    A product raises `ValueError` if there are no batches, the structure of one differs from that of the first, their
    number from that of another pass or of the weights, the same iterator is given a second time, or the first batch is
    not that from which the operator was made; under a trace, `TypeError`.

    Attributes:
        in_struct: The structure of the parameters.
        out_struct: The same.
        batch_struct: The structure of one batch.

    Cost:
        `matvec`, and `matmat` of any number of vectors: one pass over the data.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> def batches():
        ...     yield jnp.array([1.0, 0.0])
        ...     yield jnp.array([0.0, 3.0])
        >>> H = sx.hessian_operator(lambda w, x: (x @ w) ** 2, jnp.zeros(2), batches=batches)
        >>> H.to_dense().tolist()
        [[1.0, 0.0], [0.0, 9.0]]
    """

    program: Program | Direct

    def __init__(
        self,
        program: Program | Direct,
        consts: tuple,
        params: PyTree,
        batches: Batches,
        weights: jax.Array | None,
        args: tuple,
        first: PyTree,
        used: Iterator[PyTree],
    ):
        """Keep what the curvature operators have checked and traced.

        Args:
            program: The product, called as program(consts, params, v, batch, *args).
            consts: What it closed over.
            params: The parameters, arrays.
            batches: Returns an iterator over the batches, the same ones at each call.
            weights: Shape (count,), or None.
            args: Further arguments.
            first: The first batch.
            used: The iterator that gave it.
        """
        self.in_struct = self.out_struct = layouts.placed(vectors.structure(params), params)
        self.program, self.consts, self.params, self.args = program, consts, params, args
        self.batches, self.weights, self.batch_struct = batches, weights, vectors.structure(first)
        self._count: int | None = None
        self._last, self._checksums = used, _checksums(first)

    @property
    def hermitian(self):
        return True

    def products(self):
        def product(v: PyTree) -> PyTree:
            return vectors.row(self._pass(jax.tree.map(lambda leaf: leaf[None], v)), 0)

        return product, product

    def loop_products(self):
        return self.products()

    def _block_products(self):
        return self._pass, self._pass

    def to_dense(self, *, chunk_size: int | None = 256) -> jax.Array:
        n = self.shape[0]
        size = n if chunk_size is None else chunk_size
        identity = jnp.eye(n, dtype=self.dtype)
        parts = [self._pass(vectors.from_matrix(identity[i : i + size], self.in_struct)) for i in range(0, n, size)]
        return jnp.concatenate([vectors.as_matrix(part) for part in parts]).astype(self.dtype).T

    def _pass(self, stack: PyTree) -> PyTree:
        """Return the operator times each vector of a stack, in one pass over the data."""
        if any(isinstance(leaf, jax_core.Tracer) for leaf in jax.tree.leaves(stack)):
            raise TypeError(
                "an operator over batches from an iterator cannot be used under a trace: take sx.stepwise_eigsh for "
                "eigenvalues, and sx.stepwise_density for the density, whose sum(f) is the trace of f(A), also for "
                "the trace and the log-determinant; or stack the batches"
            )
        total = vectors.zeros(vectors.working_struct(self.in_struct), vectors.count(stack))
        count = 0
        for batch in self._fresh():
            checks.same_structure(f"batch {count}", batch, self.batch_struct)
            if self._count is None and count == 0 and _checksums(batch) != self._checksums:
                raise ValueError(
                    "batches() begins with another batch than the call before: it must give the same ones in the same "
                    "order at each call, and not share one iterator between calls"
                )
            if self.weights is not None and count >= len(self.weights):
                raise ValueError(f"there are {len(self.weights)} weights, and more batches than that")
            weight = None if self.weights is None else self.weights[count]
            total = _added(self.program, self.consts, self.params, total, stack, batch, weight, self.args)
            count += 1
        if count == 0:
            raise ValueError(_EMPTY)
        if self.weights is not None and count != len(self.weights):
            raise ValueError(f"there are {len(self.weights)} weights, and {count} batches")
        if self._count not in (None, count):
            raise ValueError(
                f"batches() gave {count} batches, and {self._count} in the pass before: it must give the same ones in "
                "the same order at each call"
            )
        self._count = count
        share = jnp.asarray(count) if self.weights is None else self.weights
        return jax.tree.map(
            lambda leaf, want: (leaf / jnp.sum(share.astype(leaf.dtype))).astype(want.dtype), total, self.in_struct
        )

    def widened(self) -> "HostOperator":
        """Return the operator on vectors of at least 32 bits; products are taken in the dtypes of the parameters."""
        wide = copy.copy(self)
        wide.in_struct = wide.out_struct = vectors.working_struct(self.in_struct)
        return wide

    def _fresh(self) -> Iterator[PyTree]:
        iterator = iter(self.batches())
        if iterator is self._last:
            raise ValueError("batches() returned the same iterator twice, which gives no batch a second time")
        self._last = iterator
        for batch in iterator:
            yield jax.tree.map(jnp.asarray, batch)


# Without children, so that operators made from one can be looked through; it counts as static structure.
jax.tree_util.register_pytree_node(HostOperator, lambda operator: ((), operator), lambda operator, _: operator)

_EMPTY = "batches() must return an iterator over at least one batch, got an empty one"


def is_source(batches: Any) -> bool:
    """Say whether `batches` is a function that returns an iterator, and not a pytree of stacked arrays.

    Args:
        batches: As the user gave it.

    Returns:
        True for a function.

    Raises:
        TypeError: If it is an iterator, which gives its batches only once.
    """
    if hasattr(batches, "__next__"):
        raise TypeError(
            "batches must be a function that returns a fresh iterator at each call, since every product is a pass over "
            f"the data; got {type(batches).__name__}, which gives its batches once"
        )
    return callable(batches) and jax.tree_util.treedef_is_leaf(jax.tree.structure(batches))


def first_batch(batches: Batches) -> tuple[PyTree, Iterator[PyTree]]:
    """Return the first batch, and the iterator that gave it.

    Args:
        batches: A function that returns an iterator.

    Returns:
        A pytree of arrays, and an iterator that is no longer fresh.

    Raises:
        ValueError: If there is no batch.
    """
    iterator = iter(batches())
    for batch in iterator:
        return jax.tree.map(jnp.asarray, batch), iterator
    raise ValueError(_EMPTY)


def _checksums(batch: PyTree) -> list[int]:
    """Return a number for each array of a batch by which it is known again, where this process has all of it."""

    def checksum(leaf: jax.Array) -> int:
        if not leaf.is_fully_addressable or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            return 0
        return zlib.crc32(np.ascontiguousarray(leaf).tobytes())

    return [checksum(leaf) for leaf in jax.tree.leaves(batch)]


@functools.partial(jax.jit, static_argnums=0)
def _added(program, consts, params, total, stack, batch, weight, args):
    """Return the sum so far with one batch's term, in 32 bits at least."""
    stack = jax.tree.map(lambda leaf, param: leaf.astype(param.dtype), stack, params)

    def product(v: PyTree) -> PyTree:
        with jax.default_matmul_precision("highest"):
            return program(consts, params, v, batch, *args)

    if vectors.count(stack) == 1:
        image = jax.tree.map(lambda leaf: leaf[None], product(vectors.row(stack, 0)))
    else:
        image = jax.vmap(product)(stack)
    image = vectors.cast(image, total)
    return vectors.add(total, image if weight is None else vectors.scale(weight, image))
