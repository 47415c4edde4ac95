"""Batch and layer normalisation, over the channels' axis, the last one."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from spectrax import checks
from spectrax.networks.layers.layer import Layer, Shape, Tree, float_dtype, param_dtype, parameter, sample_shape


@dataclasses.dataclass(frozen=True)
class _Normalization(Layer):
    """What both normalisations share: a scale and a bias a channel, and arithmetic in at least float32."""

    epsilon: float
    use_scale: bool
    use_bias: bool
    param_dtype: Any

    def output_shape(self, input_shape: Sequence[int], /) -> Shape:
        """The input's shape."""
        shape = sample_shape(input_shape)
        if not shape:
            raise ValueError(f"{self.kind}: the input must have a channel axis, got a scalar")
        return shape

    def create(self, key: Any, input_shape: Shape, /) -> tuple[Tree, Tree]:
        """Create a scale of ones and a bias of zeros."""
        shape, dtype = input_shape[-1:], param_dtype(self.param_dtype)
        params = {}
        if self.use_scale:
            params["scale"] = jnp.ones(shape, dtype)
        if self.use_bias:
            params["bias"] = jnp.zeros(shape, dtype)
        return params, {}

    def _array(self, tree: Mapping[str, Any], name: str, x: jax.Array, dtype: Any) -> jax.Array:
        array = parameter(self.kind, tree, name)
        if x.shape[-1:] != array.shape:
            raise ValueError(
                f"{self.kind}: the input must have {array.shape[0]} channels on its last axis, as initialised; "
                f"got shape {x.shape}"
            )
        return array.astype(dtype)

    def _normalised(
        self, params: Mapping[str, Any], x: jax.Array, mean: jax.Array, variance: jax.Array, dtype: Any
    ) -> jax.Array:
        factor = lax.rsqrt(variance + self.epsilon)
        if self.use_scale:
            factor = factor * self._array(params, "scale", x, dtype)
        y = (x.astype(dtype) - mean) * factor
        if self.use_bias:
            y = y + self._array(params, "bias", x, dtype)
        return y.astype(x.dtype)

    def _check(self, x: jax.Array) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{self.kind}: the input must have a floating-point dtype, got {x.dtype.name}")
        self.output_shape(x.shape)
        return _accumulation_dtype(x.dtype)


@dataclasses.dataclass(frozen=True)
class BatchNorm(_Normalization):
    """The layer behind `batch_norm`."""

    momentum: float
    axis_name: Any

    kind: ClassVar[str] = "batch_norm"

    def create(self, key: Any, input_shape: Shape, /) -> tuple[Tree, Tree]:
        """Create scale and bias, and the running mean 0 and variance 1."""
        params, _ = super().create(key, input_shape)
        shape, dtype = input_shape[-1:], _accumulation_dtype(param_dtype(self.param_dtype))
        return params, {"mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, dtype)}

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Normalise by the batch's statistics (`train`) or by the running ones."""
        dtype = self._check(x)
        running = {name: self._array(batch_stats, name, x, dtype) for name in ("mean", "var")}
        if not train:
            return self._normalised(params, x, running["mean"], running["var"], dtype), dict(batch_stats)
        mean = self._mean(x.astype(dtype))
        # The mean of squares around the mean: mean(x^2) - mean(x)^2 would cancel.
        variance = self._mean(jnp.square(x.astype(dtype) - mean))
        new = {
            name: (self.momentum * running[name] + (1 - self.momentum) * value).astype(batch_stats[name].dtype)
            for name, value in {"mean": mean, "var": variance}.items()
        }
        return self._normalised(params, x, mean, variance, dtype), new

    def _mean(self, x: jax.Array) -> jax.Array:
        try:
            return lax.pmean(jnp.mean(x, axis=tuple(range(x.ndim - 1))), self.axis_name)
        except NameError:
            raise ValueError(
                f"batch_norm in training averages over the vmapped axis {self.axis_name!r}, which is not bound here: "
                f"call apply(..., train=True) inside jax.vmap(..., axis_name={self.axis_name!r})"
            ) from None


@dataclasses.dataclass(frozen=True)
class LayerNorm(_Normalization):
    """The layer behind `layer_norm`."""

    kind: ClassVar[str] = "layer_norm"

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Normalise by the mean and the variance over the channels, at every position."""
        dtype = self._check(x)
        wide = x.astype(dtype)
        mean = jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
        return self._normalised(params, x, mean, variance, dtype), {}


def batch_norm(
    *,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    axis_name: Hashable = "batch",
    use_scale: bool = True,
    use_bias: bool = True,
    param_dtype: Any = None,
) -> Layer:
    """Batch normalisation: y = scale (x - mean) / sqrt(var + epsilon) + bias, channel by channel.

    In training, mean and var = mean((x - mean)^2) are taken over the sample's positions and, with `lax.pmean`, over
    the vmapped axis `axis_name`; the new running statistics are momentum x running + (1 - momentum) x batch. In
    inference the running ones are used, and the layer is affine. Parameters: `scale`, `bias`; statistics: `mean`,
    `var`, each of shape (channels,). Arithmetic is in at least float32. `linear_maps` does not fold the scaling into
    the layer before it.

    Args:
        momentum: How much of the running statistics is kept at a step, in [0, 1].
        epsilon: What is added to the variance, not negative.
        axis_name: The name of the vmapped axis, or a tuple of names.
        use_scale: Whether there is a scale.
        use_bias: Whether there is a bias.
        param_dtype: The parameters' dtype; None is JAX's default floating-point dtype when `init` runs.

    Returns:
        A frozen, hashable layer. Its `apply(..., train=True)` raises `ValueError` where the axis is not bound.

    Raises:
        TypeError: If a number is not real.
        ValueError: If a number lies outside its interval.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> net = sx.layers.batch_norm()
        >>> variables = net.init(jax.random.key(0), (2,))
        >>> step = jax.vmap(lambda x: net.apply(variables, x, train=True), axis_name="batch", out_axes=(0, None))
        >>> y, updates = step(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> y.round(3)
        Array([[-1.,  0.],
               [ 1.,  0.]], dtype=float32)
        >>> updates["batch_stats"]["mean"].round(3)
        Array([0.2, 0.5], dtype=float32)

    Source:
        Ioffe, Szegedy, "Batch Normalization", ICML 2015, arXiv 1502.03167, algorithms 1 and 2 (with the biased
        variance in the running statistics, as Flax has it).
    """
    checks.number_in("momentum", momentum, 0.0, 1.0)
    return BatchNorm(
        epsilon=_epsilon(epsilon),
        use_scale=bool(use_scale),
        use_bias=bool(use_bias),
        param_dtype=float_dtype(param_dtype),
        momentum=float(momentum),
        axis_name=axis_name,
    )


def layer_norm(
    *, epsilon: float = 1e-6, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = None
) -> Layer:
    """Layer normalisation: y = scale (x - mean) / sqrt(var + epsilon) + bias over the channels, at every position.

    Mean and var = mean((x - mean)^2) are taken over the last axis, as Flax does. Parameters: `scale`, `bias` of shape
    (channels,). Arithmetic is in at least float32. Training and inference are the same.

    Args:
        epsilon: What is added to the variance, not negative.
        use_scale: Whether there is a scale.
        use_bias: Whether there is a bias.
        param_dtype: The parameters' dtype; None is JAX's default floating-point dtype when `init` runs.

    Returns:
        A frozen, hashable layer.

    Raises:
        TypeError: If `epsilon` is not a real number.
        ValueError: If it is negative.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> net = sx.layers.layer_norm()
        >>> net.apply(net.init(jax.random.key(0), (2,)), jnp.array([1.0, 5.0])).round(3)
        Array([-1.,  1.], dtype=float32)

    Source:
        Ba, Kiros, Hinton, "Layer Normalization", 2016, arXiv 1607.06450, eqs. 2 and 3.
    """
    return LayerNorm(_epsilon(epsilon), bool(use_scale), bool(use_bias), float_dtype(param_dtype))


def _epsilon(value: float) -> float:
    checks.number_in("epsilon", value, 0.0, 1e30)
    return float(value)


def _accumulation_dtype(dtype: Any) -> Any:
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
