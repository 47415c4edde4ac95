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

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import vectors
from spectrax.spectrum.convolution.symbol import circular_frequencies
from spectrax.spectrum.convolution.symbol_norms import Certified, Decomposed, SymbolNorms

CANDIDATES = (64, 32, 32)  # points around which the grid is refined, each time that its spacing is halved
# Symbols up to this shorter side are decomposed, larger ones certified; on CPUs decompositions were 2.6 to 3.3 times
# faster from 64 to 256 channels, on accelerators they run one after the other.
_DECOMPOSED_SIDE, _DECOMPOSED_SIDE_ON_CPU = 32, 1024


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


def grid_bound(kernel: jax.Array, sizes: tuple[int, ...], *, refined: bool = True) -> tuple[jax.Array, jax.Array]:
    """Return an upper bound of the symbol's norm at all frequencies.

    The grid is refined near its largest values; where more points than `CANDIDATES` could be near the maximum, the
    finer grids count for nothing.

    Args:
        kernel: Shape (spatial..., in, out), in working precision, finite and of moderate size.
        sizes: The grid, above taps - 1 along each axis.
        refined: Whether the grid is refined at all.

    Returns:
        The bound, and the frequency of shape (d,) whose norm it is a multiple of, up to what changes discretely: the
        derivative of the bound is that of this norm, times their ratio.
    """
    side = min(kernel.shape[-2:])
    if side <= _DECOMPOSED_SIDE:
        return _bound(Decomposed, kernel, sizes, refined)
    certified = functools.partial(_bound, Certified, sizes=sizes, refined=refined)
    if side > _DECOMPOSED_SIDE_ON_CPU:
        return certified(kernel)
    decomposed = functools.partial(_bound, Decomposed, sizes=sizes, refined=refined)
    return jax.lax.platform_dependent(kernel, cpu=decomposed, default=certified)


def _bound(
    norms_of: Callable[[jax.Array], SymbolNorms], kernel: jax.Array, sizes: tuple[int, ...], refined: bool
) -> tuple[jax.Array, jax.Array]:
    taps, rank, symbol = kernel.shape[:-2], kernel.ndim - 2, norms_of(kernel)
    frequencies, _ = circular_frequencies(sizes, (1,) * rank, real=not vectors.is_complex(kernel.dtype))
    points = jnp.asarray(frequencies, vectors.real_dtype(kernel.dtype))
    norms = symbol.at(points)
    best, where = jnp.max(norms), points[jnp.argmax(norms)]
    bound = symbol.bounded(points, norms, symbol.polished(best, where)) / cosine_factor(taps, sizes)
    origin, covered = where, jnp.array(True)
    corners = np.stack(np.meshgrid(*([np.array([-0.25, 0.25])] * rank), indexing="ij"), -1).reshape(-1, rank)
    for count in CANDIDATES if refined else ():
        nearest = nearest_factor(taps, sizes)
        if nearest <= 0:
            break
        order = jnp.argsort(-norms)
        near, far = order[:count], order[count:]
        if far.size:  # the maximum is not near a point whose norm is below this
            covered &= symbol.all_below(points[far], norms[far], nearest * best)
        # the middles of the quarters of each cell that is kept, so that a grid of half the spacing covers it
        moves = jnp.asarray(corners * 2 * np.pi / np.array(sizes), points.dtype)
        points, sizes = (points[near][:, None] + moves).reshape(-1, rank), tuple(2 * size for size in sizes)
        norms = symbol.at(points)
        finer, own = jnp.max(norms), points[jnp.argmax(norms)]
        best, where = jnp.maximum(best, finer), jnp.where(finer > best, own, where)
        finest = symbol.bounded(points, norms, symbol.polished(best, where)) / nearest_factor(taps, sizes)
        tighter = covered & (finest < bound)
        bound = jnp.where(tighter, finest, bound)
        origin = jnp.where(tighter, own if isinstance(symbol, Decomposed) else where, origin)
    return bound, origin


def grid_size(taps: tuple[int, ...], num_frequencies: int) -> tuple[int, ...]:
    """Return the sizes of a grid: `num_frequencies` along each axis of several taps, one along the others."""
    return tuple(num_frequencies if size > 1 else 1 for size in taps)
