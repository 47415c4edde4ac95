"""Norms of the symbol of a kernel at many frequencies, and what can be shown of them: two ways to the same."""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import vectors
from spectrax.spectrum.convolution import size_free
from spectrax.spectrum.convolution.symbol import conv_symbol

_POWER_STEPS = 24
_FIRST_SLACK = 1e-4
_SLACK_GROWTH = 4.0
_CHUNK_BYTES = 2**26  # of symbols and phases of taps at a time


class SymbolNorms(Protocol):
    """Norms of the symbol of a kernel at many frequencies, and what can be shown of them."""

    def at(self, points: jax.Array) -> jax.Array:
        """Return a lower bound of the norm at each point that is near it."""
        ...

    def polished(self, best: jax.Array, where: jax.Array) -> jax.Array:
        """Return the norm at one point to round-off, where it was only nearly that."""
        ...

    def bounded(self, points: jax.Array, norms: jax.Array, best: jax.Array) -> jax.Array:
        """Return a number that no norm at the points exceeds, as near `best` as can be shown."""
        ...

    def all_below(self, points: jax.Array, norms: jax.Array, bound: jax.Array) -> jax.Array:
        """Say whether all norms at the points are shown to be at most the bound."""
        ...


@dataclasses.dataclass(frozen=True)
class Decomposed:
    """By singular values."""

    kernel: jax.Array

    def at(self, points: jax.Array) -> jax.Array:
        return _per_point(size_free.norm, self.kernel, points)

    def polished(self, best: jax.Array, where: jax.Array) -> jax.Array:
        del where
        return best

    def bounded(self, points: jax.Array, norms: jax.Array, best: jax.Array) -> jax.Array:
        del points, best
        return jnp.max(norms)

    def all_below(self, points: jax.Array, norms: jax.Array, bound: jax.Array) -> jax.Array:
        del points
        return jnp.max(norms) <= bound


@dataclasses.dataclass(frozen=True)
class Certified:
    """By power iterations, and Cholesky factors of bound^2 I - F^H F that show what they have found."""

    kernel: jax.Array

    def at(self, points: jax.Array) -> jax.Array:
        return _per_point(_power_iteration, self.kernel, points)

    def polished(self, best: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.maximum(size_free.norm(conv_symbol(self.kernel, where)), best)

    def bounded(self, points: jax.Array, norms: jax.Array, best: jax.Array) -> jax.Array:
        kernel = self.kernel
        limit = jnp.sum(jnp.sqrt(jnp.sum(jnp.square(jnp.abs(kernel)), axis=(-2, -1))))  # the taps' Frobenius norms

        def shown(state: tuple[jax.Array, jax.Array]) -> jax.Array:
            return state[1]

        def tried(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            bound = best * (1 + state[0])
            open_ = ~self.all_below(points, norms, bound) & (bound < limit)
            return jnp.where(open_, state[0] * _SLACK_GROWTH, state[0]), open_

        first = max(_FIRST_SLACK, 8 * float(jnp.finfo(best.dtype).eps) * min(kernel.shape[-2:]))
        slack, _ = jax.lax.while_loop(shown, tried, (jnp.asarray(first, best.dtype), best > 0))
        return jnp.minimum(best * (1 + slack), limit)

    def all_below(self, points: jax.Array, norms: jax.Array, bound: jax.Array) -> jax.Array:
        del norms

        def below(symbol: jax.Array) -> jax.Array:
            side = symbol if symbol.shape[0] >= symbol.shape[1] else symbol.conj().T
            gram = jnp.matmul(side.conj().T, side, precision=vectors.HIGHEST)
            square = jnp.square(bound).astype(gram.dtype)
            factor = jnp.linalg.cholesky(square * jnp.eye(gram.shape[0], dtype=gram.dtype) - gram)
            return jnp.all(jnp.isfinite(factor))

        return jnp.all(_per_point(below, self.kernel, points))


def _power_iteration(symbol: jax.Array) -> jax.Array:
    index = np.arange(symbol.shape[1], dtype=np.float64)
    start = np.exp(1j * np.pi * np.sqrt(2) * index**2)  # fixed, and along no axis
    v = jnp.asarray(start / np.sqrt(len(index))).astype(symbol.dtype)

    def step(v: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        image = jnp.matmul(symbol, v, precision=vectors.HIGHEST)
        back = jnp.matmul(symbol.conj().T, image, precision=vectors.HIGHEST)
        length = jnp.linalg.norm(back)
        return back / jnp.where(length > 0, length, 1).astype(back.dtype), jnp.linalg.norm(image)

    return jax.lax.scan(step, v, None, length=_POWER_STEPS)[1][-1]


def _per_point(function: Callable[[jax.Array], jax.Array], kernel: jax.Array, points: jax.Array) -> jax.Array:
    """Map a function of the symbol over frequencies, with bounded memory."""
    numbers = math.prod(kernel.shape[-2:]) + math.prod(kernel.shape[:-2])
    point_bytes = numbers * jnp.dtype(kernel.dtype).itemsize * 2
    return jax.lax.map(
        lambda point: function(conv_symbol(kernel, point)), points,
        batch_size=max(min(_CHUNK_BYTES // point_bytes, points.shape[0]), 1),
    )  # fmt: skip
