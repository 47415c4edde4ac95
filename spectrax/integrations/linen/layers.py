"""Flax Linen layers whose weights are functions of their parameters.

The parameters in the variables are raw ones; each call applies the parametrization to them and hands the result to
Flax's own layer. Nothing is written back.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from spectrax.integrations.parametrized import (
    Initializer,
    convolve,
    convolve_cayley,
    convolve_row_normalized,
    initial,
    kernel_shape,
    multiply,
)
from spectrax.regularizers.parametrizations import Parametrization
from spectrax.regularizers.parametrizations.convolutions import with_scale


class Conv(nn.Module):
    """A convolution like `flax.linen.Conv`, with a parametrization of its kernel.

    Without one it has the same parameters and values as Flax's. With one the parameter "kernel" is the pytree
    `parametrization.init(kernel)` for a kernel from `kernel_init`.

    Attributes:
        features: Number of output channels.
        kernel_size: Spatial sizes of the raw kernel; an integer for one axis.
        strides: The step for each spatial axis, or one for all.
        padding: As in Flax; "CIRCULAR" where the parametrization makes kernels as large as the input.
        input_dilation: As in Flax.
        kernel_dilation: As in Flax.
        feature_group_count: Number of groups.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation; default: that of inputs and parameters.
        param_dtype: Dtype of the raw parameters.
        precision: As in Flax.
        kernel_init: Makes the kernel, shape (kernel_size..., in / groups, features), for the raw parameters.
        bias_init: Makes the bias.
        parametrization: From `spectrax.parametrizations`, with the same strides and groups as the layer; None for none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> from spectrax.integrations.linen import Conv
        >>> layer = Conv(4, (3, 3), use_bias=False, parametrization=sx.parametrizations.aol())
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 8, 8, 2)))
        >>> image = jax.ShapeDtypeStruct((8, 8, 2), "float32")
        >>> operator = sx.aslinearoperator(lambda x: layer.apply(variables, x), image)
        >>> bool(sx.spectral_norm(operator, key=jax.random.key(1)) <= 1)
        True
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    padding: Any = "SAME"
    input_dilation: int | Sequence[int] | None = 1
    kernel_dilation: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros_init()
    parametrization: Parametrization | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolve inputs of shape (batch..., spatial..., in)."""
        shape = kernel_shape(self.kernel_size, inputs.shape[-1], self.features, self.feature_group_count)
        raw = self.param("kernel", initial(self.kernel_init, self.parametrization), shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        return convolve(
            inputs, raw, bias, self.parametrization, strides=self.strides, padding=self.padding,
            input_dilation=self.input_dilation, kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count, dtype=self.dtype, precision=self.precision,
        )  # fmt: skip


class CayleyConv(nn.Module):
    """An orthogonal convolution with circular padding, applied in the Fourier basis.

    What `Conv` with `parametrizations.cayley_convolution` and circular padding does, with the same parameters, for
    inputs of any size that the strides divide, and without making the kernel that is as large as the input. It
    preserves 2-norms if features >= in * product of strides; otherwise its adjoint does.

    Attributes:
        features: Number of output channels.
        kernel_size: Spatial sizes of the raw kernel, at most the input's; an integer for one axis.
        strides: The step for each spatial axis, or one for all.
        feature_group_count: Number of groups.
        use_bias: Whether to add a bias.
        dtype: Dtype of the result; 16 bits are computed in 32. Default: that of inputs and parameters.
        param_dtype: Dtype of the raw parameters.
        kernel_init: Makes the raw kernel, shape (kernel_size..., in / groups, features).
        bias_init: Makes the bias.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from spectrax.integrations.linen import CayleyConv
        >>> layer, x = CayleyConv(4, (3, 3)), jax.random.normal(jax.random.key(1), (1, 7, 7, 2))
        >>> y = layer.apply(layer.init(jax.random.key(0), x), x)
        >>> y.shape, bool(abs(jnp.linalg.norm(y) / jnp.linalg.norm(x) - 1) < 1e-5)
        ((1, 7, 7, 4), True)
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros_init()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolve inputs of shape (batch..., spatial..., in)."""
        shape = kernel_shape(self.kernel_size, inputs.shape[-1], self.features, self.feature_group_count)
        raw = self.param("kernel", lambda *arguments: with_scale(self.kernel_init(*arguments)), shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        return convolve_cayley(
            inputs, raw, bias, strides=self.strides, feature_group_count=self.feature_group_count, dtype=self.dtype
        )


class ConvNorm(nn.Module):
    """A circular convolution whose output channels are normalised in the Fourier basis, each to an isometry.

    What `Conv` with `parametrizations.row_normalized` and circular padding does, with the same parameters, which are
    those of `flax.linen.Conv`, for inputs of any size that the strides divide, and without a kernel that is as large as
    the input. Its norm lies in [1, sqrt(features / feature_group_count)].

    The published layer normalises what comes out of a zero-padded convolution and takes the scales as constants, with
    a running average for evaluation. Here the wrapped convolution itself is normalised, by its own symbol at the size
    of the input, with derivatives, and training and evaluation give the same. Its learned depthwise convolution and
    batch normalisation are layers to put behind this one.

    Attributes:
        features: Number of output channels.
        kernel_size: Spatial sizes of the kernel, at most the input's; an integer for one axis.
        strides: The step for each spatial axis, or one for all.
        feature_group_count: Number of groups.
        use_bias: Whether to add a bias.
        dtype: Dtype of the result; 16 bits are computed in 32. Default: that of inputs and parameters.
        param_dtype: Dtype of the parameters.
        kernel_init: Makes the kernel, shape (kernel_size..., in / groups, features).
        bias_init: Makes the bias.
        eps: As in `spectrax.conv_row_normalize`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from spectrax.integrations.linen import ConvNorm
        >>> layer, x = ConvNorm(1, (3, 3)), jax.random.normal(jax.random.key(1), (1, 7, 7, 1))
        >>> y = layer.apply(layer.init(jax.random.key(0), x), x)
        >>> y.shape, bool(abs(jnp.linalg.norm(y) / jnp.linalg.norm(x) - 1) < 1e-5)
        ((1, 7, 7, 1), True)

    Source:
        Liu et al. 2021, arXiv 2103.00673.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros_init()
    eps: float | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolve inputs of shape (batch..., spatial..., in)."""
        shape = kernel_shape(self.kernel_size, inputs.shape[-1], self.features, self.feature_group_count)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        return convolve_row_normalized(
            inputs, kernel, bias, eps=self.eps, strides=self.strides, feature_group_count=self.feature_group_count,
            dtype=self.dtype,
        )  # fmt: skip


class Dense(nn.Module):
    """A linear map like `flax.linen.Dense`, with a parametrization of its matrix.

    Attributes:
        features: Number of outputs.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation; default: that of inputs and parameters.
        param_dtype: Dtype of the raw parameters.
        precision: As in Flax.
        kernel_init: Makes the matrix, shape (in, features), of which the raw parameters are made.
        bias_init: Makes the bias.
        parametrization: Such as `spectrax.parametrizations.cayley()`; None for none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> from spectrax.integrations.linen import Dense
        >>> layer, x = Dense(5, parametrization=sx.parametrizations.cayley()), jnp.arange(3.0)
        >>> y = layer.apply(layer.init(jax.random.key(0), x), x)
        >>> bool(abs(jnp.linalg.norm(y) - jnp.linalg.norm(x)) < 1e-5)
        True
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros_init()
    parametrization: Parametrization | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Multiply inputs of shape (..., in)."""
        shape = (inputs.shape[-1], self.features)
        raw = self.param("kernel", initial(self.kernel_init, self.parametrization), shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        return multiply(inputs, raw, bias, self.parametrization, dtype=self.dtype, precision=self.precision)
