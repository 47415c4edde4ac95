r"""Rigorous bounds of a symbol's norm from finitely many frequencies.

For unit vectors u and v the function u^H F(w) v is, up to a phase, of exponential type (h - 1) / 2 in each frequency, h
the number of taps along that axis. Near a global maximum M such a function stays above M cos((h - 1) t / 2) at distance
t, and the nearest point of a grid of N frequencies is at most pi / N away. Hence

    sup_w |F(w)| <= max_grid |F| / prod_axes cos(pi (h - 1) / (2 N)),

with equality for the kernel [1, -1] and a peak half-way between two points. Every padding of a convolution is a
compression of the convolution on the infinite grid, whose norm is that supremum, so the bound holds for all of them.

Where the maximum is, the product does not say: its proof takes one axis after the other, and may end at another point.
Along a straight line the types add up, so the point of the grid that is nearest to the maximum has a value of at least
M cos(sum_axes pi (h - 1) / (2 N)). Only near points with so large a value is a finer grid needed, and of the finer grid
the same holds.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import vectors
from spectrax.spectrum.convolution.symbol import circular_frequencies, conv_symbol

CANDIDATES = (64, 32, 32)  # points around which the grid is refined, each time that its spacing is halved
_SVD_SIDE = 32  # symbols up to this shorter side are decomposed, larger ones certified
_POWER_STEPS = 24
_FIRST_SLACK = 1e-4
_SLACK_GROWTH = 4.0
_CHUNK_BYTES = 2**26  # of symbols and phases of taps at a time


def cosine_factor(taps: tuple[int, ...], sizes: tuple[int, ...]) -> float:
    """Return prod cos(pi (h - 1) / (2 N)), by which a largest value on the grid is to be divided.

    Args:
        taps: The number h of taps along each axis.
        sizes: The number N of grid points along each axis, above h - 1.

    Returns:
        A number in (0, 1].
    """
    return math.prod(math.cos(math.pi * (h - 1) / (2 * n)) for h, n in zip(taps, sizes, strict=True))


def nearest_factor(taps: tuple[int, ...], sizes: tuple[int, ...]) -> float:
    """Return cos(sum pi (h - 1) / (2 N)), the share of the maximum that the nearest point of the grid has at least.

    Args:
        taps: The number h of taps along each axis.
        sizes: The number N of grid points along each axis.

    Returns:
        A number of at most `cosine_factor`; zero or below where the grid is too coarse to say anything.
    """
    angle = sum(math.pi * (h - 1) / (2 * n) for h, n in zip(taps, sizes, strict=True))
    return math.cos(min(angle, math.pi))


def grid_bound(kernel: jax.Array, sizes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return an upper bound of the symbol's norm at all frequencies.

    The grid is refined near its largest values; where more points than `CANDIDATES` could be near the maximum, the
    finer grids count for nothing.

    Args:
        kernel: Shape (spatial..., in, out), in working precision, finite and of moderate size.
        sizes: The grid, above taps - 1 along each axis.

    Returns:
        The bound, and the frequency of shape (d,) whose norm it is a multiple of, up to what changes discretely: the
        derivative of the bound is that of this norm, times their ratio.
    """
    taps, rank = kernel.shape[:-2], kernel.ndim - 2
    frequencies, _ = circular_frequencies(sizes, (1,) * rank, real=not vectors.is_complex(kernel.dtype))
    points = jnp.asarray(frequencies, vectors.real_dtype(kernel.dtype))
    norms = _norms(kernel, points)
    best, where = jnp.max(norms), points[jnp.argmax(norms)]
    bound = _certified(kernel, points, norms, _polished(kernel, best, where)) / cosine_factor(taps, sizes)
    origin, covered = where, jnp.array(True)
    corners = np.stack(np.meshgrid(*([np.array([-0.25, 0.25])] * rank), indexing="ij"), -1).reshape(-1, rank)
    for count in CANDIDATES:
        nearest = nearest_factor(taps, sizes)
        if nearest <= 0:
            break
        order = jnp.argsort(-norms)
        near, far = order[:count], order[count:]
        if far.size:  # the maximum is not near a point whose norm is below this
            covered &= _all_below(kernel, points[far], norms[far], nearest * best)
        # the middles of the quarters of each cell that is kept, so that a grid of half the spacing covers it
        moves = jnp.asarray(corners * 2 * np.pi / np.array(sizes), points.dtype)
        points, sizes = (points[near][:, None] + moves).reshape(-1, rank), tuple(2 * size for size in sizes)
        norms = _norms(kernel, points)
        finer, own = jnp.max(norms), points[jnp.argmax(norms)]
        best, where = jnp.maximum(best, finer), jnp.where(finer > best, own, where)
        finest = _certified(kernel, points, norms, _polished(kernel, best, where)) / nearest_factor(taps, sizes)
        tighter = covered & (finest < bound)
        bound = jnp.where(tighter, finest, bound)
        origin = jnp.where(tighter, own if _small(kernel) else where, origin)
    return bound, origin


def grid_size(taps: tuple[int, ...], num_frequencies: int) -> tuple[int, ...]:
    """Return the sizes of a grid: `num_frequencies` along each axis of several taps, one along the others."""
    return tuple(num_frequencies if size > 1 else 1 for size in taps)


def _small(kernel: jax.Array) -> bool:
    return min(kernel.shape[-2:]) <= _SVD_SIDE


def _per_point(function: Callable[[jax.Array], jax.Array], kernel: jax.Array, points: jax.Array) -> jax.Array:
    """Map a function of the symbol over frequencies, with bounded memory."""
    numbers = math.prod(kernel.shape[-2:]) + math.prod(kernel.shape[:-2])
    point_bytes = numbers * jnp.dtype(kernel.dtype).itemsize * 2
    return jax.lax.map(
        lambda point: function(conv_symbol(kernel, point)), points,
        batch_size=max(min(_CHUNK_BYTES // point_bytes, points.shape[0]), 1),
    )  # fmt: skip


def _norms(kernel: jax.Array, points: jax.Array) -> jax.Array:
    """Return the norm of the symbol at each point; for larger symbols a lower bound that is near it."""
    if _small(kernel):
        return _per_point(lambda f: jnp.linalg.svd(f, full_matrices=False, compute_uv=False)[0], kernel, points)
    return _per_point(_power_iteration, kernel, points)


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


def _polished(kernel: jax.Array, best: jax.Array, where: jax.Array) -> jax.Array:
    """Return the norm at one point to round-off, where it was only nearly that."""
    if _small(kernel):
        return best
    return jnp.maximum(jnp.linalg.svd(conv_symbol(kernel, where), full_matrices=False, compute_uv=False)[0], best)


def _certified(kernel: jax.Array, points: jax.Array, norms: jax.Array, best: jax.Array) -> jax.Array:
    """Return a number that no norm at the points exceeds, as near `best` as can be shown."""
    if _small(kernel):
        return jnp.max(norms)
    limit = jnp.sum(jnp.sqrt(jnp.sum(jnp.square(jnp.abs(kernel)), axis=(-2, -1))))  # of the taps' Frobenius norms

    def shown(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return state[1]

    def tried(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        bound = best * (1 + state[0])
        open_ = ~_all_below(kernel, points, norms, bound) & (bound < limit)
        return jnp.where(open_, state[0] * _SLACK_GROWTH, state[0]), open_

    first = jnp.asarray(max(_FIRST_SLACK, 8 * float(jnp.finfo(best.dtype).eps) * min(kernel.shape[-2:])), best.dtype)
    start = first, best > 0
    slack, _ = jax.lax.while_loop(shown, tried, start)
    return jnp.minimum(best * (1 + slack), limit)


def _all_below(kernel: jax.Array, points: jax.Array, norms: jax.Array, bound: jax.Array) -> jax.Array:
    """Say whether all norms are shown to be at most the bound: bound^2 I - F^H F has a Cholesky factor."""
    if _small(kernel):
        return jnp.max(norms) <= bound

    def below(symbol: jax.Array) -> jax.Array:
        side = symbol if symbol.shape[0] >= symbol.shape[1] else symbol.conj().T
        gram = jnp.matmul(side.conj().T, side, precision=vectors.HIGHEST)
        square = jnp.square(bound).astype(gram.dtype)
        factor = jnp.linalg.cholesky(square * jnp.eye(gram.shape[0], dtype=gram.dtype) - gram)
        return jnp.all(jnp.isfinite(factor))

    return jnp.all(_per_point(below, kernel, points))
