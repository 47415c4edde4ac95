"""Flax Linen layers with a spectral norm that is followed from step to step."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from spectrax.integrations.parametrized import Initializer, convolution, convolve, kernel_shape, multiply
from spectrax.regularizers.parametrizations import LeadingVectors, TrackedParametrization, tracked_spectral_norm


class SpectralNormConv(nn.Module):
    """A convolution like `flax.linen.Conv`, divided by its own norm, with its padding, strides, dilations and groups.

    The parameters are those of Flax's layer, and nothing is written into them: the singular vectors u and v, and the
    norm as last found (sigma), are in a collection of their own. They are those of the layer on one sample of the size
    that `init` has seen; inputs of another size are divided by the same norm. A call that trains improves the vectors
    by `num_steps` steps and returns them where the collection is mutable; in evaluation they are taken as they are.

    A network of Flax's layers with the same names is converted by its parameters, which need no change: where the
    collection is missing and mutable, the vectors are searched for, as in `init`, with the PRNG key "params". The way
    back is `normalized_params`.

    Attributes:
        features: Number of output channels.
        kernel_size: Spatial sizes of the kernel; an integer for one axis.
        strides: The step for each spatial axis, or one for all.
        padding: As in Flax.
        input_dilation: As in Flax.
        kernel_dilation: As in Flax.
        feature_group_count: Number of groups.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation; default: that of inputs and parameters. The norm is found in 32 bits at least.
        param_dtype: Dtype of the parameters.
        precision: As in Flax; the norm is found in full precision.
        kernel_init: Makes the kernel, shape (kernel_size..., in / groups, features).
        bias_init: Makes the bias.
        bound: The norm of the layer.
        shrink_only: Whether layers of a smaller norm are left as they are.
        num_steps: As in `spectrax.parametrizations.tracked_spectral_norm`.
        use_running_average: Whether to take the vectors as they are (evaluation); here or in the call, as in
            `flax.linen.BatchNorm`.
        collection_name: That of the vectors.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> from spectrax.integrations.linen import SpectralNormConv
        >>> layer, x = SpectralNormConv(4, (3, 3), strides=2, use_bias=False), jnp.ones((1, 8, 8, 2))
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> y, updates = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        >>> variables = {**variables, **updates}
        >>> image = jax.ShapeDtypeStruct((8, 8, 2), "float32")
        >>> operator = sx.aslinearoperator(lambda x: layer.apply(variables, x, use_running_average=True), image)
        >>> round(float(sx.spectral_norm(operator, key=jax.random.key(1))), 2)
        1.0

    Source:
        Miyato et al. 2018, arXiv 1802.05957, with the norm of the convolution in place of that of its reshaped kernel.
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
    bound: float = 1.0
    shrink_only: bool = False
    num_steps: int = 1
    use_running_average: bool | None = None
    collection_name: str = "batch_stats"

    @nn.compact
    def __call__(self, inputs: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Convolve inputs of shape (batch..., spatial..., in)."""
        shape = kernel_shape(self.kernel_size, inputs.shape[-1], self.features, self.feature_group_count)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        made = _normalized(self, kernel, inputs.shape[1 - len(shape) :], use_running_average)
        return convolve(inputs, made, bias, None, dtype=self.dtype, precision=self.precision, **self._options())

    def normalized_params(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters with which Flax's own layer does what this one does in evaluation.

        Args:
            variables: Those of this layer.

        Returns:
            The "kernel", normalised, and the "bias" if there is one.
        """
        return _normalized_params(self, variables)

    def _options(self) -> dict[str, Any]:
        return {
            "strides": self.strides,
            "padding": self.padding,
            "input_dilation": self.input_dilation,
            "kernel_dilation": self.kernel_dilation,
            "feature_group_count": self.feature_group_count,
        }

    def _form(self, sample_shape: tuple[int, ...]) -> TrackedParametrization:
        return tracked_spectral_norm(
            lambda kernel: convolution(kernel, sample_shape, **self._options()),
            bound=self.bound, shrink_only=self.shrink_only, num_steps=self.num_steps,
        )  # fmt: skip


class SpectralNormDense(nn.Module):
    """A linear map like `flax.linen.Dense`, divided by its norm.

    What is said of `SpectralNormConv` holds here, but for the convolution. With one step and the same start the vectors
    and values are those of `flax.linen.SpectralNorm(flax.linen.Dense(...))`.

    Attributes:
        features: Number of outputs.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation; default: that of inputs and parameters. The norm is found in 32 bits at least.
        param_dtype: Dtype of the parameters.
        precision: As in Flax; the norm is found in full precision.
        kernel_init: Makes the matrix, shape (in, features).
        bias_init: Makes the bias.
        bound: The norm of the layer.
        shrink_only: Whether layers of a smaller norm are left as they are.
        num_steps: As in `spectrax.parametrizations.tracked_spectral_norm`.
        use_running_average: Whether to take the vectors as they are (evaluation); here or in the call, as in
            `flax.linen.BatchNorm`.
        collection_name: That of the vectors.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from spectrax.integrations.linen import SpectralNormDense
        >>> layer, x = SpectralNormDense(4, bound=2.0), jnp.ones(3)
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=True)
        >>> round(float(jnp.linalg.norm(layer.normalized_params(variables)["kernel"], 2)), 4)
        2.0

    Source:
        Miyato et al. 2018, arXiv 1802.05957, algorithm 1.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros_init()
    bound: float = 1.0
    shrink_only: bool = False
    num_steps: int = 1
    use_running_average: bool | None = None
    collection_name: str = "batch_stats"

    @nn.compact
    def __call__(self, inputs: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Multiply inputs of shape (..., in)."""
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        made = _normalized(self, kernel, inputs.shape[-1:], use_running_average)
        return multiply(inputs, made, bias, None, dtype=self.dtype, precision=self.precision)

    def normalized_params(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters with which Flax's own layer does what this one does in evaluation.

        Args:
            variables: Those of this layer.

        Returns:
            The "kernel", normalised, and the "bias" if there is one.
        """
        return _normalized_params(self, variables)

    def _form(self, sample_shape: tuple[int, ...]) -> TrackedParametrization:
        del sample_shape
        return tracked_spectral_norm(bound=self.bound, shrink_only=self.shrink_only, num_steps=self.num_steps)


def _normalized(module: Any, kernel: jax.Array, sample_shape: tuple[int, ...], given: bool | None) -> jax.Array:
    """Return the kernel for this call, after an update of the module's vectors if it trains."""
    average = nn.merge_param("use_running_average", module.use_running_average, given)
    collection = module.collection_name
    known = module.has_variable(collection, "v")
    form = module._form(module.get_variable(collection, "v").shape if known else sample_shape)
    found = None if known else form.init(kernel, module.make_rng("params"))
    variables = [
        module.variable(collection, name, lambda name=name: getattr(found, name)) for name in LeadingVectors._fields
    ]
    state = LeadingVectors(*(variable.value for variable in variables))
    if not average and not module.is_initializing():
        state = form.update(kernel, state)
        for variable, value in zip(variables, state, strict=True):
            variable.value = value
    return form.apply(kernel, state)


def _normalized_params(module: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    params, state = dict(variables["params"]), LeadingVectors(**variables[module.collection_name])
    form = module._form(state.v.shape)
    return {**params, "kernel": form.apply(params["kernel"], state)}
