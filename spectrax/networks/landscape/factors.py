"""Q of a layer that multiplies one vector, by its factors: Q = [z_g^T kron (M_g D_g)] over the samples g."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.networks.landscape.operators import LayerProblem
from spectrax.networks.local_linear import Tapped
from spectrax.operators import jacobian_operator
from spectrax.operators.precision import in_working_precision
from spectrax.programs.layers import Site, trace
from spectrax.spectrum.functions import scaled_values
from spectrax.spectrum.methods import FACTORIZED_ENTRIES, FACTORIZED_SIDE, can_be_dense

PyTree = Any


def multiplies_one_vector(site: Site) -> bool:
    """Say whether a layer is h = W z with vectors z and h, each weight used once."""
    return site.kind == "dense" and site.weight.size == site.input.size * site.output.size


def factors(problem: LayerProblem, *, bias: bool) -> tuple[jax.Array, jax.Array]:
    """Return z and M D of each sample; the layer must multiply one vector.

    Args:
        problem: The layer.
        bias: Whether z has a one behind its entries, for the bias.

    Returns:
        The vectors, shape (samples, inputs), and the matrices, shape (samples, outputs, units), with one sample where
        the problem is not batched.
    """
    network, place, arrays = problem.network, problem.place, problem.arrays

    def one(x: PyTree) -> tuple[jax.Array, jax.Array]:
        site = trace(network, arrays, x).sites[place]
        after = jacobian_operator(Tapped(network, place), jnp.zeros_like(site.output), arrays, x)
        matrix = in_working_precision(after).to_dense()
        z = site.input.ravel().astype(matrix.dtype)
        return jnp.concatenate([z, jnp.ones((int(bias),), z.dtype)]), matrix

    with jax.default_matmul_precision("highest"):
        if problem.batched:
            return jax.vmap(one)(problem.point)
        z, matrix = one(problem.point)
        return z[None], matrix[None]


def in_own_bases(inputs: jax.Array, after: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return both factors by their coordinates in orthonormal bases of their rows, where these are fewer than columns.

    Q times a matrix with orthonormal columns whose range has all rows of Q: the singular values that are not zero stay
    the same, and nothing is squared.
    """
    samples, outputs, units = after.shape
    if samples < inputs.shape[1]:
        inputs = _coordinates(inputs)
    if samples * outputs < units:
        after = _coordinates(after.reshape(-1, units)).reshape(samples, outputs, -1)
    return inputs, after


def _coordinates(rows: jax.Array) -> jax.Array:
    return jnp.linalg.qr(rows.T, mode="r").T


def stacked(inputs: jax.Array, after: jax.Array) -> jax.Array:
    """Return Q, the blocks z_g^T kron (M_g D_g) below each other; its columns belong to the entries of W^T."""
    return jnp.einsum("gi,goj->goij", inputs, after).reshape(after.shape[0] * after.shape[1], -1)


def values_of(matrix: jax.Array) -> jax.Array:
    """Return the singular values of a matrix of any scale, without vectors; NaN where it is not finite."""
    _, values, scale = scaled_values(matrix)
    return values * scale


def padded(values: jax.Array, count: int) -> jax.Array:
    """Return `count` values along the last axis: the first ones, or zeros behind them."""
    missing = max(count - values.shape[-1], 0)
    return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])[..., :count]


def check_size(layer: str, shape: tuple[int, int], dtype: Any, max_bytes: int | None, advice: str) -> None:
    """Raise `ValueError` if a matrix is larger than `max_bytes`, or than the limits on shapes."""
    needed = math.prod(shape) * jnp.dtype(vectors.working_dtype(dtype)).itemsize
    what = f"the spectrum of layer {layer!r} needs a matrix of shape {shape}, of {needed} bytes"
    if max_bytes is not None:
        checks.positive_integer("max_bytes", max_bytes)
        if needed > max_bytes:
            raise ValueError(f"{what}, above max_bytes={max_bytes}; {advice}")
    elif not can_be_dense(shape):
        raise ValueError(
            f"{what}, above the limits of {FACTORIZED_SIDE} on the shorter side and {FACTORIZED_ENTRIES} on the "
            f"entries: allow it by max_bytes={needed}; {advice}"
        )
