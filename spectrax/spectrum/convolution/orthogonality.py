"""How far a convolution is from orthogonal, from its kernel alone."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from spectrax import checks
from spectrax.operators.convolution import checked_kernel, per_axis
from spectrax.spectrum.convolution.gram import gram_kernel, grouped_polyphase


def conv_orthogonality(
    kernel: jax.Array,
    /,
    *,
    strides: int | Sequence[int] = 1,
    side: str = "auto",
    feature_group_count: int = 1,
) -> jax.Array:
    r"""Return the squared distance of a convolution from one with orthonormal rows or columns, for each output pixel.

    For rows it is \|Conv(K, K) - I\|_F^2, the sum of squares of the kernel of A A^H - I, by Parseval's identity the
    mean over all frequencies w of \|F(w) F(w)^H - I\|_F^2; for columns that of \|F(w)^H F(w) - I\|_F^2, with the
    polyphase symbol where there are strides. For circular padding of a size of at least 2 k - 1 it is \|A A^H - I\|_F^2
    divided by the number of output pixels. Zero-padded convolutions are compressions of it: zero then says that their
    norm is at most one, but their smallest singular value may be small, at the border.

    Args:
        kernel: Shape (spatial..., in / groups, out).
        strides: The step S for each spatial axis, or one for all.
        side: "rows", "columns", or "auto": columns where out > S^d in, since rows cannot be orthonormal there, and rows
            otherwise. "auto" is zero exactly for orthogonal convolutions.
        feature_group_count: Number of groups, over which the value is summed.

    Returns:
        A real scalar, of 32 bits for a 16-bit kernel; exact. The two sides differ by out - S^d in. It grows as the
        fourth power of the kernel: from entries of about 1e9 on it is inf in 32 bits.

    Raises:
        ValueError: If shapes, strides and groups don't fit together, or `side` is not one of the three.
        TypeError: If the kernel has an integer dtype.

    Cost:
        One convolution of the kernel with itself.

    Derivatives:
        Any order.

    Notes:
        For kernels of k^d taps: where out <= S^d in, orthonormal rows exist if and only if out <= in k^d; where out >=
        S^d in, orthonormal columns exist if and only if S <= k.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> float(sx.conv_orthogonality(jnp.array([0.6, 0.8]).reshape(2, 1, 1), strides=2))
        0.0
        >>> float(sx.conv_orthogonality(jnp.array([0.5, 0.5]).reshape(2, 1, 1)))
        0.375

    Source:
        Wang et al. 2020 (arXiv 1911.12207), whose code pads by one whatever the kernel; Achour, Malgouyres & Mamalet
        2022 (arXiv 2108.05623), L_orth, Theorem 4.1 for the existence.
    """
    kernel = checked_kernel(kernel)
    checks.choice("side", side, ("auto", "rows", "columns"))
    taps = math.prod(per_axis("strides", strides, kernel.ndim - 2))
    groups = grouped_polyphase(kernel, strides, feature_group_count)
    if side == "auto":
        side = "columns" if groups.shape[-1] > taps * kernel.shape[-2] else "rows"
    if side == "rows":
        groups = jnp.swapaxes(groups, -1, -2)
    grams = jax.vmap(gram_kernel)(groups)
    middle = tuple(size // 2 for size in grams.shape[1:-2])
    grams = grams.at[(slice(None), *middle)].add(-jnp.eye(grams.shape[-1], dtype=grams.dtype))
    return jnp.sum(grams.real**2 + grams.imag**2)
