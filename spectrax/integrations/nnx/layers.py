"""Flax NNX layers whose weights are functions of their parameters.

The variables of type `nnx.Param` are raw ones; each call applies the parametrization to them. Nothing is written back.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers

from spectrax.integrations import parametrized
from spectrax.integrations.parametrized import Initializer
from spectrax.regularizers.parametrizations import Parametrization
from spectrax.regularizers.parametrizations.convolutions import with_scale

KERNEL_INIT = initializers.lecun_normal()
BIAS_INIT = initializers.zeros_init()
_GEOMETRY = ("strides", "padding", "input_dilation", "kernel_dilation")


class Conv(nnx.Module):
    """A convolution like `flax.nnx.Conv`, with a parametrization of its kernel.

    Without one it has the same variables and values as Flax's. With one `kernel` is the pytree
    `parametrization.init(kernel)`, a `nnx.Param` for each of its arrays, for a kernel from `kernel_init`.

    Args:
        in_features: Number of input channels.
        out_features: Number of output channels.
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
        kernel_init: Makes the kernel of which the raw parameters are made.
        bias_init: Makes the bias.
        parametrization: From `spectrax.parametrizations`, with the same strides and groups as the layer; None for none.
        rngs: The random keys.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> from flax import nnx
        >>> from spectrax.integrations.nnx import Conv
        >>> layer = Conv(2, 4, (3, 3), parametrization=sx.parametrizations.aol(), rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((1, 8, 8, 2))).shape
        (1, 8, 8, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: Any = "SAME",
        input_dilation: int | Sequence[int] | None = 1,
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        kernel_init: Initializer = KERNEL_INIT,
        bias_init: Initializer = BIAS_INIT,
        parametrization: Parametrization | None = None,
        rngs: nnx.Rngs,
    ):
        shape = parametrized.kernel_shape(kernel_size, in_features, out_features, feature_group_count)
        init = parametrized.initial(kernel_init, parametrization)
        self.kernel = parameters(init(rngs.params(), shape, param_dtype))
        self.bias = parameters(bias_init(rngs.params(), (out_features,), param_dtype) if use_bias else None)
        self.parametrization = parametrization
        self.strides, self.padding = strides, padding
        self.input_dilation, self.kernel_dilation = input_dilation, kernel_dilation
        self.feature_group_count, self.dtype, self.precision = feature_group_count, dtype, precision

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolve inputs of shape (batch..., spatial..., in)."""
        return parametrized.convolve(
            inputs, values(self.kernel), values(self.bias), self.parametrization, strides=self.strides,
            padding=self.padding, input_dilation=self.input_dilation, kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count, dtype=self.dtype, precision=self.precision,
        )  # fmt: skip

    @classmethod
    def from_flax(cls, layer: nnx.Conv, parametrization: Parametrization | None = None) -> "Conv":
        """Return a layer with a parametrization from one of Flax's.

        Args:
            layer: Flax's layer, which stays as it is.
            parametrization: As in the class; how near the result comes to the layer is said by its `init`.

        Returns:
            A layer with variables of its own.

        Raises:
            ValueError: If the layer has a mask.
        """
        return cls(parametrization=parametrization, **arguments_of(layer))

    def to_flax(self) -> nnx.Conv:
        """Return Flax's layer with the kernel as it is applied.

        Returns:
            A layer that gives the same values, with variables of its own.
        """
        raw = values(self.kernel)
        kernel = raw if self.parametrization is None else self.parametrization.apply(raw)
        return flax_conv(self, kernel)


class CayleyConv(nnx.Module):
    """An orthogonal convolution with circular padding, applied in the Fourier basis.

    What `Conv` with `parametrizations.cayley_convolution` and circular padding does, with the same variables, for
    inputs of any size that the strides divide, and without making the kernel that is as large as the input. It
    preserves 2-norms if out_features >= in_features * product of strides; otherwise its adjoint does.

    Args:
        in_features: Number of input channels.
        out_features: Number of output channels.
        kernel_size: Spatial sizes of the raw kernel, at most the input's; an integer for one axis.
        strides: The step for each spatial axis, or one for all.
        feature_group_count: Number of groups.
        use_bias: Whether to add a bias.
        dtype: Dtype of the result; 16 bits are computed in 32. Default: that of inputs and parameters.
        param_dtype: Dtype of the raw parameters.
        kernel_init: Makes the raw kernel.
        bias_init: Makes the bias.
        rngs: The random keys.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from spectrax.integrations.nnx import CayleyConv
        >>> layer, x = CayleyConv(2, 4, (3, 3), rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (1, 7, 7, 2))
        >>> bool(abs(jnp.linalg.norm(layer(x)) / jnp.linalg.norm(x) - 1) < 1e-5)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        feature_group_count: int = 1,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Initializer = KERNEL_INIT,
        bias_init: Initializer = BIAS_INIT,
        rngs: nnx.Rngs,
    ):
        shape = parametrized.kernel_shape(kernel_size, in_features, out_features, feature_group_count)
        self.kernel = parameters(with_scale(kernel_init(rngs.params(), shape, param_dtype)))
        self.bias = parameters(bias_init(rngs.params(), (out_features,), param_dtype) if use_bias else None)
        self.strides, self.feature_group_count, self.dtype = strides, feature_group_count, dtype

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolve inputs of shape (batch..., spatial..., in)."""
        return parametrized.convolve_cayley(
            inputs, values(self.kernel), values(self.bias), strides=self.strides,
            feature_group_count=self.feature_group_count, dtype=self.dtype,
        )  # fmt: skip


class ConvNorm(nnx.Module):
    """A circular convolution whose output channels are normalised in the Fourier basis, each to an isometry.

    As `spectrax.integrations.linen.ConvNorm`, with the variables of `flax.nnx.Conv`.

    Args:
        in_features: Number of input channels.
        out_features: Number of output channels.
        kernel_size: Spatial sizes of the kernel, at most the input's; an integer for one axis.
        strides: The step for each spatial axis, or one for all.
        feature_group_count: Number of groups.
        use_bias: Whether to add a bias.
        dtype: Dtype of the result; 16 bits are computed in 32. Default: that of inputs and parameters.
        param_dtype: Dtype of the parameters.
        kernel_init: Makes the kernel.
        bias_init: Makes the bias.
        eps: As in `spectrax.conv_row_normalize`.
        rngs: The random keys.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from spectrax.integrations.nnx import ConvNorm
        >>> layer, x = ConvNorm(1, 1, (3, 3), rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (1, 7, 7, 1))
        >>> bool(abs(jnp.linalg.norm(layer(x)) / jnp.linalg.norm(x) - 1) < 1e-5)
        True

    Source:
        Liu et al. 2021, arXiv 2103.00673.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        feature_group_count: int = 1,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Initializer = KERNEL_INIT,
        bias_init: Initializer = BIAS_INIT,
        eps: float | None = None,
        rngs: nnx.Rngs,
    ):
        shape = parametrized.kernel_shape(kernel_size, in_features, out_features, feature_group_count)
        self.kernel = parameters(kernel_init(rngs.params(), shape, param_dtype))
        self.bias = parameters(bias_init(rngs.params(), (out_features,), param_dtype) if use_bias else None)
        self.strides, self.feature_group_count, self.dtype, self.eps = strides, feature_group_count, dtype, eps

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolve inputs of shape (batch..., spatial..., in)."""
        return parametrized.convolve_row_normalized(
            inputs, values(self.kernel), values(self.bias), eps=self.eps, strides=self.strides,
            feature_group_count=self.feature_group_count, dtype=self.dtype,
        )  # fmt: skip


class Linear(nnx.Module):
    """A linear map like `flax.nnx.Linear`, with a parametrization of its matrix.

    Args:
        in_features: Number of inputs.
        out_features: Number of outputs.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation; default: that of inputs and parameters.
        param_dtype: Dtype of the raw parameters.
        precision: As in Flax.
        kernel_init: Makes the matrix, shape (in, out), of which the raw parameters are made.
        bias_init: Makes the bias.
        parametrization: Such as `spectrax.parametrizations.cayley()`; None for none.
        rngs: The random keys.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> from flax import nnx
        >>> from spectrax.integrations.nnx import Linear
        >>> layer, x = Linear(3, 5, parametrization=sx.parametrizations.cayley(), rngs=nnx.Rngs(0)), jnp.arange(3.0)
        >>> bool(abs(jnp.linalg.norm(layer(x)) - jnp.linalg.norm(x)) < 1e-5)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        kernel_init: Initializer = KERNEL_INIT,
        bias_init: Initializer = BIAS_INIT,
        parametrization: Parametrization | None = None,
        rngs: nnx.Rngs,
    ):
        init = parametrized.initial(kernel_init, parametrization)
        self.kernel = parameters(init(rngs.params(), (in_features, out_features), param_dtype))
        self.bias = parameters(bias_init(rngs.params(), (out_features,), param_dtype) if use_bias else None)
        self.parametrization = parametrization
        self.dtype, self.precision = dtype, precision

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Multiply inputs of shape (..., in)."""
        return parametrized.multiply(
            inputs, values(self.kernel), values(self.bias), self.parametrization, dtype=self.dtype,
            precision=self.precision,
        )  # fmt: skip

    @classmethod
    def from_flax(cls, layer: nnx.Linear, parametrization: Parametrization | None = None) -> "Linear":
        """Return a layer with a parametrization from one of Flax's.

        Args:
            layer: Flax's layer, which stays as it is.
            parametrization: As in the class; how near the result comes to the layer is said by its `init`.

        Returns:
            A layer with variables of its own.
        """
        return cls(parametrization=parametrization, **arguments_of(layer))

    def to_flax(self) -> nnx.Linear:
        """Return Flax's layer with the matrix as it is applied.

        Returns:
            A layer that gives the same values, with variables of its own.
        """
        raw = values(self.kernel)
        return flax_linear(self, raw if self.parametrization is None else self.parametrization.apply(raw))


def parameters(raw: Any) -> Any:
    """Return raw parameters with a variable for each array."""
    return nnx.data(jax.tree.map(nnx.Param, raw))


def values(parameters: Any) -> Any:
    """Return the arrays of a pytree of variables."""
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf[...], parameters, is_leaf=is_variable)


def arguments_of(layer: nnx.Conv | nnx.Linear) -> dict[str, Any]:
    """Return the arguments of a layer like one of Flax's, with initializers that give its arrays."""
    if getattr(layer, "mask", None) is not None:
        raise ValueError("a layer with a mask cannot be converted")
    kernel, bias = layer.kernel[...], None if layer.bias is None else layer.bias[...]
    names = ["in_features", "out_features", "use_bias", "dtype", "param_dtype", "precision"]
    if isinstance(layer, nnx.Conv):
        names += ["kernel_size", "feature_group_count", *_GEOMETRY]
    return {
        **{name: getattr(layer, name) for name in names},
        "kernel_init": lambda *_: kernel,
        "bias_init": lambda *_: bias,
        "rngs": nnx.Rngs(0),  # of which nothing is drawn that counts
    }


def flax_conv(layer: Any, kernel: jax.Array) -> nnx.Conv:
    """Return Flax's convolution with the options and the bias of a layer, and a kernel."""
    return nnx.Conv(
        kernel.shape[-2] * layer.feature_group_count, kernel.shape[-1], kernel.shape[:-2],
        feature_group_count=layer.feature_group_count, **{name: getattr(layer, name) for name in _GEOMETRY},
        **_of_flax(layer, kernel),
    )  # fmt: skip


def flax_linear(layer: Any, kernel: jax.Array) -> nnx.Linear:
    """Return Flax's linear map with the options and the bias of a layer, and a matrix."""
    return nnx.Linear(*kernel.shape, **_of_flax(layer, kernel))


def _of_flax(layer: Any, kernel: jax.Array) -> dict[str, Any]:
    bias = values(layer.bias)
    return {
        "use_bias": bias is not None,
        "dtype": layer.dtype,
        "param_dtype": kernel.dtype,
        "precision": layer.precision,
        "kernel_init": lambda *_: kernel,
        "bias_init": lambda *_: bias,
        "rngs": nnx.Rngs(0),
    }
