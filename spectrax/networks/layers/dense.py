"""The dense layer: a matrix on the last axis."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from spectrax import checks
from spectrax.networks.layers.initializers import LECUN_NORMAL
from spectrax.networks.layers.layer import (
    Layer,
    Shape,
    Tree,
    float_dtype,
    param_dtype,
    parameter,
    same_dtype,
    sample_shape,
)
from spectrax.operators import LinearOperator, aslinearoperator


@dataclasses.dataclass(frozen=True)
class Dense(Layer):
    """The layer behind `dense`."""

    features: int
    use_bias: bool
    kernel_init: Callable[..., jax.Array]
    bias_init: Callable[..., jax.Array]
    param_dtype: Any

    kind: ClassVar[str] = "dense"
    has_linear_map: ClassVar[bool] = True

    def output_shape(self, input_shape: Sequence[int], /) -> Shape:
        """The input's shape with `features` as its last size."""
        shape = sample_shape(input_shape)
        if not shape:
            raise ValueError("dense: the input must have at least one axis, got a scalar")
        return (*shape[:-1], self.features)

    def create(self, key: Any, input_shape: Shape, /) -> tuple[Tree, Tree]:
        """Create the kernel (in, out) and the bias (out,)."""
        dtype = param_dtype(self.param_dtype)
        params = {"kernel": self.kernel_init(key, (input_shape[-1], self.features), dtype)}
        if self.use_bias:
            params["bias"] = self.bias_init(jax.random.fold_in(key, 1), (self.features,), dtype)
        return params, {}

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Return x kernel + bias."""
        kernel = parameter("dense", params, "kernel")
        if x.ndim < 1 or x.shape[-1] != kernel.shape[0]:
            raise ValueError(
                f"dense: the input must have shape (..., {kernel.shape[0]}), as the kernel of shape {kernel.shape} was "
                f"initialised for; got {x.shape}"
            )
        same_dtype("dense", x, kernel)
        y = jnp.dot(x, kernel)
        return (y + parameter("dense", params, "bias") if self.use_bias else y), {}

    def linear_map(self, params: Mapping[str, Any], input_shape: Shape, /) -> LinearOperator:
        """The matrix kernel^T, from the `in` features to the `out` features."""
        return aslinearoperator(parameter("dense", params, "kernel").T)


def dense(
    features: int,
    *,
    use_bias: bool = True,
    kernel_init: Callable[..., jax.Array] = LECUN_NORMAL,
    bias_init: Callable[..., jax.Array] = jax.nn.initializers.zeros,
    param_dtype: Any = None,
) -> Layer:
    """A dense layer: y = x K + b on the last axis.

    Parameters: `kernel` of shape (in, out), as Flax lays it out, and `bias` of shape (out,). On a sample with more
    axes, such as an image (H, W, C), the same matrix acts on the last axis at every position. In `linear_maps` the
    layer is the matrix K^T from in to out features, once, whatever the leading axes: acting at p positions repeats
    each singular value p times and changes neither extreme.

    Args:
        features: The number of outputs.
        use_bias: Whether to add b.
        kernel_init: `(key, shape, dtype) -> array`; a hashable object that is equal for equal settings, such as
            `variance_scaling(2.0)`. The default is LeCun's normal, as in Flax.
        bias_init: The same for the bias; zeros.
        param_dtype: The parameters' dtype; None is JAX's default floating-point dtype when `init` runs.

    Returns:
        A frozen, hashable layer.

    Raises:
        TypeError: If `features` is not an integer, or `param_dtype` not a floating-point or complex dtype.
        ValueError: If `features` is less than one.

    Cost:
        in x out multiplications for each position.

    Example:
        >>> import jax
        >>> import spectrax as sx
        >>> net = sx.layers.dense(3)
        >>> variables = net.init(jax.random.key(0), (5,))
        >>> jax.tree.map(lambda p: p.shape, variables)
        {'batch_stats': {}, 'params': {'bias': (3,), 'kernel': (5, 3)}}
        >>> net.apply(variables, jax.numpy.ones(5)).shape
        (3,)
    """
    checks.positive_integer("features", features)
    return Dense(int(features), bool(use_bias), kernel_init, bias_init, float_dtype(param_dtype))
