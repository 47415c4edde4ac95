"""The convolution that a convolution followed by batch normalisation is, in inference."""

import jax
import jax.numpy as jnp

from spectrax import checks, vectors


def fold_batch_norm(
    kernel: jax.Array,
    /,
    *,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mean: jax.Array,
    var: jax.Array,
    epsilon: float,
    conv_bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Fold the batch normalisation behind a convolution into its kernel and bias.

    With the running statistics, scale (K * x + conv_bias - mean) / sqrt(var + epsilon) + bias is a convolution again,
    with the kernel g K and the bias g (conv_bias - mean) + bias, where g = scale / sqrt(var + epsilon) for each output
    channel. Its spectrum is that of the map that the network applies; that of K alone can be far from it. It is the
    same for any padding, strides, dilation and groups.

    Args:
        kernel: Shape (spatial..., in / groups, out), or (in, out) of a dense layer.
        scale: Shape (out,); None where the normalisation has none.
        bias: Shape (out,); None where the normalisation has none.
        mean: The running mean, shape (out,).
        var: The running variance, shape (out,), not negative.
        epsilon: What the normalisation adds to the variance. Where it is positive, a variance of zero gives a finite
            kernel.
        conv_bias: The convolution's own bias, shape (out,); None where it has none.

    Returns:
        Kernel and bias, of the kernel's dtype; the arithmetic is in 32 bits at least.

    Raises:
        TypeError: If the kernel has an integer dtype.
        ValueError: If a vector has another shape than (out,), or epsilon is negative.

    Derivatives:
        In all arrays, of any order, where var + epsilon is positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> kernel, bias = sx.fold_batch_norm(
        ...     jnp.ones((3, 1, 2)), scale=jnp.array([1.0, 6.0]), bias=None, mean=jnp.array([2.0, 1.0]),
        ...     var=jnp.array([4.0, 9.0]), epsilon=0.0,
        ... )
        >>> kernel[0, 0].tolist(), bias.tolist()
        ([0.5, 2.0], [-1.0, -2.0])

    Source:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        CVPR 2018, arXiv 1712.05877, eq. 14.
    """
    kernel = jnp.asarray(kernel)
    checks.inexact("kernel", kernel.dtype)
    checks.number_in("epsilon", epsilon, 0.0, 1e30)
    if kernel.ndim < 2:
        raise ValueError(f"kernel must have axes for input and output channels, got shape {kernel.shape}")
    dtype = vectors.working_dtype(kernel.dtype)

    def vector(name: str, value: jax.Array) -> jax.Array:
        value = jnp.asarray(value)
        if value.shape != kernel.shape[-1:]:
            raise ValueError(
                f"{name} must have the shape {kernel.shape[-1:]} of the output channels, got {value.shape}"
            )
        return value.astype(dtype)

    gain = jax.lax.rsqrt(vector("var", var) + epsilon)
    if scale is not None:
        gain = gain * vector("scale", scale)
    shift = -vector("mean", mean)
    if conv_bias is not None:
        shift = shift + vector("conv_bias", conv_bias)
    shift = gain * shift
    if bias is not None:
        shift = shift + vector("bias", bias)
    return (kernel.astype(dtype) * gain).astype(kernel.dtype), shift.astype(kernel.dtype)
