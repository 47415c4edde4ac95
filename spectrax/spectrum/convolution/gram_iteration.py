r"""Bounds by Gram iteration: G <- G^H G, which needs products of matrices only.

After t steps |F|_2 = |G_t|_2^(2^-t) is at most |G_t|_F^(2^-t), with an excess of at most r^(2^-(t+1)) for rank r. At
the frequencies of a circular convolution this bounds its norm (Delattre et al. 2023, arXiv 2305.16173). For zero
padding the iteration runs on kernels, as K^T * K, and the largest sum of moduli of one channel bounds the norm of
what every padding makes of it (Delattre et al. 2024, arXiv 2402.00240); its first step is the bound of almost-
orthogonal layers (Prach & Lampert 2022, arXiv 2208.03160). Scales are taken out at every step and their logarithms
kept.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from spectrax import vectors


def circular_gram_bound(symbol: jax.Array, num_steps: int) -> jax.Array:
    """Return an upper bound of the norm of each of a stack of matrices.

    Args:
        symbol: Shape (..., m, n).
        num_steps: The number t of steps.

    Returns:
        Shape (...,); zero for a zero matrix.
    """
    tall = symbol if symbol.shape[-2] >= symbol.shape[-1] else jnp.swapaxes(symbol, -1, -2).conj()
    gram, log_scale = _iterate(tall, num_steps, lambda g: jnp.sum(jnp.square(jnp.abs(g)), axis=(-2, -1)))
    return _root(jnp.sum(jnp.square(jnp.abs(gram)), axis=(-2, -1)), 2, num_steps, log_scale)


def padded_gram_bound(kernel: jax.Array, num_steps: int) -> jax.Array:
    """Return an upper bound of the norm of a convolution with stride 1, whatever its padding is.

    Args:
        kernel: Shape (spatial..., in, out).
        num_steps: The number t of steps; the kernel of the last has (size - 1) * 2^t + 1 taps along each axis.

    Returns:
        A scalar.
    """
    rank = kernel.ndim - 2
    axes = tuple(range(rank))
    sizes = tuple((size - 1) * 2**num_steps + 1 for size in kernel.shape[:rank])
    complex_ = vectors.is_complex(kernel.dtype)
    forward, backward = (jnp.fft.fftn, jnp.fft.ifftn) if complex_ else (jnp.fft.rfftn, jnp.fft.irfftn)
    waves = forward(kernel, s=sizes, axes=axes)  # (frequencies..., in, out), the transpose of the symbol
    tall = waves if waves.shape[-2] >= waves.shape[-1] else jnp.swapaxes(waves, -1, -2).conj()
    gram, log_scale = _iterate(tall, num_steps, lambda g: jnp.max(jnp.sum(jnp.square(jnp.abs(g)), axis=(-2, -1))))
    taps = backward(gram, s=sizes, axes=axes)
    sums = jnp.sum(jnp.abs(taps), axis=(*axes, -2))
    return _root(jnp.max(sums), 1, num_steps, log_scale)


def _iterate(
    tall: jax.Array, num_steps: int, squared_norm: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Return G_t, scaled, and the logarithm of what it was divided by, as part of |F|_2."""
    gram, log_scale = tall, jnp.zeros((), vectors.real_dtype(tall.dtype))
    for step in range(num_steps):
        squared = squared_norm(gram)
        positive = squared > 0
        length = jnp.sqrt(jnp.where(positive, squared, 1))
        log_scale = log_scale + jnp.log(length) / 2**step
        scaled = gram / length[..., None, None].astype(gram.dtype)
        gram = jnp.matmul(jnp.swapaxes(scaled, -1, -2).conj(), scaled, precision=vectors.HIGHEST)
    return gram, log_scale


def _root(power: jax.Array, exponent: int, num_steps: int, log_scale: jax.Array) -> jax.Array:
    positive = power > 0
    log_norm = jnp.log(jnp.where(positive, power, 1)) / (exponent * 2**num_steps) + log_scale
    return jnp.where(positive, jnp.exp(jnp.where(positive, log_norm, 0)), 0)
