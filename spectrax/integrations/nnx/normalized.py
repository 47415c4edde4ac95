"""Flax NNX layers with a spectral norm that is followed from step to step."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spectrax.integrations import parametrized
from spectrax.integrations.nnx.layers import (
    BIAS_INIT,
    KERNEL_INIT,
    arguments_of,
    flax_conv,
    flax_linear,
    parameters,
    values,
)
from spectrax.integrations.parametrized import Initializer
from spectrax.regularizers.parametrizations import LeadingVectors, TrackedParametrization, tracked_spectral_norm


class SpectralNormConv(nnx.Module):
    """A convolution like `flax.nnx.Conv`, divided by its own norm, with its padding, strides, dilations and groups.

    The variables of type `nnx.Param` are those of Flax's layer, and nothing is written into them: the singular vectors
    `u` and `v`, and the norm as last found (`sigma`), are of type `nnx.BatchStat`. They are those of the layer on one
    sample of the given sizes; inputs of another size are divided by the same norm. A call that trains improves the
    vectors by `num_steps` steps; in evaluation, after `model.eval()`, they are taken as they are.

    Args:
        in_features: Number of input channels.
        out_features: Number of output channels.
        kernel_size: Spatial sizes of the kernel; an integer for one axis.
        strides: The step for each spatial axis, or one for all.
        input_sizes: The spatial sizes of the input.
        padding: As in Flax.
        input_dilation: As in Flax.
        kernel_dilation: As in Flax.
        feature_group_count: Number of groups.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation; default: that of inputs and parameters. The norm is found in 32 bits at least.
        param_dtype: Dtype of the parameters.
        precision: As in Flax; the norm is found in full precision.
        kernel_init: Makes the kernel.
        bias_init: Makes the bias.
        bound: The norm of the layer.
        shrink_only: Whether layers of a smaller norm are left as they are.
        num_steps: As in `spectrax.parametrizations.tracked_spectral_norm`.
        use_running_average: Whether to take the vectors as they are (evaluation), if the call does not say.
        rngs: The random keys.

    Raises:
        ValueError: If the input sizes are not one for each axis of the kernel.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> from flax import nnx
        >>> from spectrax.integrations.nnx import SpectralNormConv
        >>> layer = SpectralNormConv(2, 4, (3, 3), strides=2, input_sizes=(8, 8), use_bias=False, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((1, 8, 8, 2))).shape
        (1, 4, 4, 4)
        >>> layer.eval()
        >>> graph, state = nnx.split(layer)
        >>> image = jax.ShapeDtypeStruct((8, 8, 2), "float32")
        >>> operator = sx.aslinearoperator(lambda x: nnx.merge(graph, state)(x), image)
        >>> round(float(sx.spectral_norm(operator, key=jax.random.key(1))), 2)
        1.0

    Source:
        Miyato et al. 2018, arXiv 1802.05957, with the norm of the convolution in place of that of its reshaped kernel.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        input_sizes: Sequence[int],
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
        bound: float = 1.0,
        shrink_only: bool = False,
        num_steps: int = 1,
        use_running_average: bool = False,
        rngs: nnx.Rngs,
    ):
        shape = parametrized.kernel_shape(kernel_size, in_features, out_features, feature_group_count)
        if len(input_sizes) != len(shape) - 2:
            raise ValueError(f"input_sizes must be {len(shape) - 2} spatial sizes for this kernel, got {input_sizes}")
        self.kernel = parameters(kernel_init(rngs.params(), shape, param_dtype))
        self.bias = parameters(bias_init(rngs.params(), (out_features,), param_dtype) if use_bias else None)
        self.strides, self.padding, self.feature_group_count = strides, padding, feature_group_count
        self.input_dilation, self.kernel_dilation = input_dilation, kernel_dilation
        self.dtype, self.precision, self.use_running_average = dtype, precision, use_running_average
        self.bound, self.shrink_only, self.num_steps = bound, shrink_only, num_steps
        self.sample_shape = (*(int(size) for size in input_sizes), in_features)
        self.u, self.v, self.sigma = _start(self._form(), self.kernel, rngs)

    def __call__(self, inputs: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Convolve inputs of shape (batch..., spatial..., in)."""
        kernel = _normalized(self, use_running_average)
        return parametrized.convolve(
            inputs, kernel, values(self.bias), None, dtype=self.dtype, precision=self.precision, **self._options()
        )

    @classmethod
    def from_flax(
        cls, layer: nnx.Conv, *, input_sizes: Sequence[int], rngs: nnx.Rngs, **options: Any
    ) -> "SpectralNormConv":
        """Return a normalised layer from one of Flax's.

        Args:
            layer: Flax's layer, which stays as it is.
            input_sizes: As in the class.
            rngs: As in the class.
            **options: `bound`, `shrink_only`, `num_steps` and `use_running_average`.

        Returns:
            A layer with variables of its own.

        Raises:
            ValueError: If the layer has a mask.
        """
        return cls(input_sizes=input_sizes, **{**arguments_of(layer), "rngs": rngs}, **options)

    def to_flax(self) -> nnx.Conv:
        """Return Flax's layer that does what this one does in evaluation.

        Returns:
            A layer with variables of its own.
        """
        return flax_conv(self, _normalized(self, True))

    def _options(self) -> dict[str, Any]:
        return {
            "strides": self.strides,
            "padding": self.padding,
            "input_dilation": self.input_dilation,
            "kernel_dilation": self.kernel_dilation,
            "feature_group_count": self.feature_group_count,
        }

    def _form(self) -> TrackedParametrization:
        return tracked_spectral_norm(
            lambda kernel: parametrized.convolution(kernel, self.sample_shape, **self._options()),
            bound=self.bound, shrink_only=self.shrink_only, num_steps=self.num_steps,
        )  # fmt: skip


class SpectralNormLinear(nnx.Module):
    """A linear map like `flax.nnx.Linear`, divided by its norm.

    What is said of `SpectralNormConv` holds here, but for the convolution.

    Args:
        in_features: Number of inputs.
        out_features: Number of outputs.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation; default: that of inputs and parameters. The norm is found in 32 bits at least.
        param_dtype: Dtype of the parameters.
        precision: As in Flax; the norm is found in full precision.
        kernel_init: Makes the matrix, shape (in, out).
        bias_init: Makes the bias.
        bound: The norm of the layer.
        shrink_only: Whether layers of a smaller norm are left as they are.
        num_steps: As in `spectrax.parametrizations.tracked_spectral_norm`.
        use_running_average: Whether to take the vectors as they are (evaluation), if the call does not say.
        rngs: The random keys.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from spectrax.integrations.nnx import SpectralNormLinear
        >>> layer = SpectralNormLinear(3, 5, bound=2.0, rngs=nnx.Rngs(0))
        >>> round(float(jnp.linalg.norm(layer.to_flax().kernel[...], 2)), 4)
        2.0

    Source:
        Miyato et al. 2018, arXiv 1802.05957, algorithm 1.
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
        bound: float = 1.0,
        shrink_only: bool = False,
        num_steps: int = 1,
        use_running_average: bool = False,
        rngs: nnx.Rngs,
    ):
        self.kernel = parameters(kernel_init(rngs.params(), (in_features, out_features), param_dtype))
        self.bias = parameters(bias_init(rngs.params(), (out_features,), param_dtype) if use_bias else None)
        self.dtype, self.precision, self.use_running_average = dtype, precision, use_running_average
        self.bound, self.shrink_only, self.num_steps = bound, shrink_only, num_steps
        self.u, self.v, self.sigma = _start(self._form(), self.kernel, rngs)

    def __call__(self, inputs: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Multiply inputs of shape (..., in)."""
        kernel = _normalized(self, use_running_average)
        return parametrized.multiply(
            inputs, kernel, values(self.bias), None, dtype=self.dtype, precision=self.precision
        )

    @classmethod
    def from_flax(cls, layer: nnx.Linear, *, rngs: nnx.Rngs, **options: Any) -> "SpectralNormLinear":
        """Return a normalised layer from one of Flax's.

        Args:
            layer: Flax's layer, which stays as it is.
            rngs: As in the class.
            **options: `bound`, `shrink_only`, `num_steps` and `use_running_average`.

        Returns:
            A layer with variables of its own.
        """
        return cls(**{**arguments_of(layer), "rngs": rngs}, **options)

    def to_flax(self) -> nnx.Linear:
        """Return Flax's layer that does what this one does in evaluation.

        Returns:
            A layer with variables of its own.
        """
        return flax_linear(self, _normalized(self, True))

    def _form(self) -> TrackedParametrization:
        return tracked_spectral_norm(bound=self.bound, shrink_only=self.shrink_only, num_steps=self.num_steps)


def _start(form: TrackedParametrization, kernel: Any, rngs: nnx.Rngs) -> list[nnx.BatchStat]:
    return [nnx.BatchStat(leaf) for leaf in form.init(values(kernel), rngs.params())]


def _normalized(layer: Any, given: bool | None) -> jax.Array:
    """Return the kernel for this call, after an update of the layer's vectors if it trains."""
    form, kernel = layer._form(), values(layer.kernel)
    variables = layer.u, layer.v, layer.sigma
    state = LeadingVectors(*(variable[...] for variable in variables))
    if not (layer.use_running_average if given is None else given):
        state = form.update(kernel, state)
        for variable, value in zip(variables, state, strict=True):
            variable[...] = value
    return form.apply(kernel, state)
