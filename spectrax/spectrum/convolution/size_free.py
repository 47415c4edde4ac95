r"""Bounds of a convolution's norm from its kernel alone, in closed form or by norms of small matrices.

Each takes the kernel of a convolution with stride 1 (a strided one in its polyphase form), and holds for every padding
and every size of the input.
"""

import itertools
import math

import jax
import jax.numpy as jnp

from spectrax import vectors

_TENSOR_STEPS = 64


def tap_sum(kernel: jax.Array) -> jax.Array:
    """Return the sum of the spectral norms of the taps, shape (spatial..., in, out) to a scalar."""
    taps = kernel.reshape(-1, *kernel.shape[-2:])
    return jnp.sum(jnp.linalg.svd(taps, full_matrices=False, compute_uv=False)[:, 0])


def schur(kernel: jax.Array) -> jax.Array:
    """Return sqrt(largest sum of moduli of a row * that of a column), of the infinite matrix."""
    sums = jnp.sum(jnp.abs(kernel), axis=tuple(range(kernel.ndim - 2)))
    product = jnp.max(jnp.sum(sums, axis=0)) * jnp.max(jnp.sum(sums, axis=1))
    positive = product > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, product, 1)), 0)


def fantastic_four(kernel: jax.Array) -> jax.Array:
    """Return sqrt(taps) * the smallest spectral norm of an unfolding by taps and channels (Singla & Feizi)."""
    return math.sqrt(math.prod(kernel.shape[:-2])) * jnp.min(jnp.stack([norm(each) for each in unfoldings(kernel)]))


def unfoldings(kernel: jax.Array) -> list[jax.Array]:
    """Return the matrices of (out and some spatial axes) x (in and the others), for every choice of these axes."""
    rank = kernel.ndim - 2
    found = []
    for count in range(rank + 1):
        for chosen in itertools.combinations(range(rank), count):
            others = tuple(axis for axis in range(rank) if axis not in chosen)
            rows = (rank + 1, *chosen)
            moved = kernel.transpose((*rows, rank, *others))
            found.append(moved.reshape(math.prod(kernel.shape[axis] for axis in rows), -1))
    return found


def reshaped(kernel: jax.Array) -> jax.Array:
    """Return the spectral norm of the matrix out x (taps * in): a lower bound where one window lies in the input."""
    return norm(kernel.reshape(-1, kernel.shape[-1]))


def tensor_norm(kernel: jax.Array, *, key: jax.Array, num_starts: int) -> jax.Array:
    """Return sqrt(taps) * the largest |K(x_1, ..., x_d, v, u)| over complex unit vectors, as far as it was found.

    Alternating power steps from random starts (Grishina, Gorbunov & Rakhuba 2024, arXiv 2409.11859). The maximum itself
    is an upper bound of the norm; a local one need not be.
    """
    dtype = vectors.complex_dtype(kernel.dtype)
    tensor = jax.lax.stop_gradient(kernel).astype(dtype)
    starts = [
        vectors.normal(jax.random.fold_in(key, axis), jax.ShapeDtypeStruct((num_starts, size), dtype))
        for axis, size in enumerate(kernel.shape)
    ]

    def contract(own: list[jax.Array], skipped: int | None, values: jax.Array) -> jax.Array:
        for axis in reversed(range(kernel.ndim)):
            if axis != skipped:
                values = jnp.tensordot(values, own[axis], ((axis,), (0,)), precision=vectors.HIGHEST)
        return values

    def climb(own: list[jax.Array], _: None) -> tuple[list[jax.Array], None]:
        own = list(own)
        for axis in range(kernel.ndim):
            image = contract(own, axis, tensor).conj()
            length = jnp.linalg.norm(image)
            own[axis] = image / jnp.where(length > 0, length, 1).astype(dtype)
        return own, None

    def ascend(own: list[jax.Array]) -> list[jax.Array]:
        own = [v / jnp.linalg.norm(v).astype(dtype) for v in own]
        return jax.lax.scan(climb, own, None, length=_TENSOR_STEPS)[0]

    found = jax.vmap(ascend)(starts)
    heights = jax.vmap(lambda own: jnp.abs(contract(own, None, tensor)))(found)
    best = jax.lax.stop_gradient([v[jnp.argmax(heights)] for v in found])
    # the phase is in the vectors: at the top the value is real and positive, and the vectors' own change counts nothing
    return math.sqrt(math.prod(kernel.shape[:-2])) * jnp.real(contract(best, None, kernel.astype(dtype)))


def norm(matrix: jax.Array) -> jax.Array:
    """Return the spectral norm of a matrix."""
    return jnp.linalg.svd(matrix, full_matrices=False, compute_uv=False)[0]
