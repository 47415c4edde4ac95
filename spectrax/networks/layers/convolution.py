"""The convolution layer, in one, two or three spatial dimensions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from spectrax import checks
from spectrax.networks.layers import windows
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
from spectrax.operators import LinearOperator, conv_operator

PADDINGS = ("SAME", "VALID", "FULL", "CIRCULAR")
# Samples and kernels in the layouts that XLA has fast code for on every platform.
LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


@dataclasses.dataclass(frozen=True)
class Convolution(Layer):
    """The layer behind `convolution`."""

    features: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str | windows.Pairs
    kernel_dilation: tuple[int, ...]
    feature_group_count: int
    use_bias: bool
    kernel_init: Callable[..., jax.Array]
    bias_init: Callable[..., jax.Array]
    param_dtype: Any

    kind: ClassVar[str] = "conv"
    has_linear_map: ClassVar[bool] = True

    def output_shape(self, input_shape: Sequence[int], /) -> Shape:
        """The spatial sizes that the padding and the strides leave, and `features` channels."""
        shape = sample_shape(input_shape)
        self._check_rank(shape)
        if shape[-1] % self.feature_group_count:
            raise ValueError(
                f"conv: feature_group_count={self.feature_group_count} must divide the channels, got {shape[-1]}"
            )
        spatial = windows.output_sizes(
            "conv", shape[:-1], self.kernel_size, self.strides, self.kernel_dilation, self.padding
        )
        return (*spatial, self.features)

    def create(self, key: Any, input_shape: Shape, /) -> tuple[Tree, Tree]:
        """Create the kernel (spatial..., in / groups, out) and the bias (out,)."""
        dtype = param_dtype(self.param_dtype)
        shape = (*self.kernel_size, input_shape[-1] // self.feature_group_count, self.features)
        params = {"kernel": self.kernel_init(key, shape, dtype)}
        if self.use_bias:
            params["bias"] = self.bias_init(jax.random.fold_in(key, 1), (self.features,), dtype)
        return params, {}

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Return the cross-correlation of the padded sample with the kernel, plus the bias."""
        kernel = parameter("conv", params, "kernel")
        self._check_rank(x.shape)
        channels = kernel.shape[-2] * self.feature_group_count
        if x.shape[-1] != channels:
            raise ValueError(
                f"conv: the input must have {channels} channels on its last axis, which the kernel of shape "
                f"{kernel.shape} was initialised for; got shape {x.shape}"
            )
        same_dtype("conv", x, kernel)
        pads = windows.pads(x.shape[:-1], self.kernel_size, self.strides, self.kernel_dilation, self.padding)
        if self.padding == "CIRCULAR":
            x = jnp.pad(x, (*pads, (0, 0)), mode="wrap")
            pads = ((0, 0),) * len(pads)
        elif any(amount < 0 for pair in pads for amount in pair):
            # XLA's batched convolution on CPU is wrong for some negative pads: crop beforehand
            crops = [(min(low, 0), min(high, 0), 0) for low, high in pads]
            x = lax.pad(x, jnp.zeros((), x.dtype), (*crops, (0, 0, 0)))
            pads = tuple((max(low, 0), max(high, 0)) for low, high in pads)
        y = lax.conv_general_dilated(
            x[None],
            kernel,
            window_strides=self.strides,
            padding=pads,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=LAYOUTS[len(self.kernel_size)],
            feature_group_count=self.feature_group_count,
        )[0]
        return (y + parameter("conv", params, "bias") if self.use_bias else y), {}

    def linear_map(self, params: Mapping[str, Any], input_shape: Shape, /) -> LinearOperator:
        """The convolution as it acts on one sample of `input_shape`, with its true padding and strides."""
        return conv_operator(
            parameter("conv", params, "kernel"),
            input_shape,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
        )

    def _check_rank(self, shape: Shape) -> None:
        axes = len(self.kernel_size)
        if len(shape) != axes + 1:
            raise ValueError(
                f"conv: a kernel of size {self.kernel_size} needs a sample of {axes} spatial axes and a channel axis, "
                f"got shape {shape}; a batch goes through jax.vmap"
            )


def convolution(
    features: int,
    kernel_size: Sequence[int],
    *,
    padding: str | Sequence[tuple[int, int]],
    strides: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    use_bias: bool = True,
    kernel_init: Callable[..., jax.Array] = LECUN_NORMAL,
    bias_init: Callable[..., jax.Array] = jax.nn.initializers.zeros,
    param_dtype: Any = None,
) -> Layer:
    """A convolution (cross-correlation): y[p, o] = sum_{q, i} K[q, i, o] x[stride p + dilation q - low, i] + b[o].

    Parameters: `kernel` of shape (spatial..., in / groups, out), as Flax lays it out, and `bias` of shape (out,). The
    sample is (spatial..., in). `padding` has no default, since the spectrum of a zero-padded convolution is not that of
    the circular one. An already initialised layer may be applied to samples of other spatial sizes; its linear map is
    another one then.

    Args:
        features: The number of output channels.
        kernel_size: The window's size along each spatial axis, such as `(3, 3)`; its length, 1 to 3, is the number of
            spatial axes.
        padding: `"SAME"` or `"VALID"` as in `lax.conv_general_dilated`, `"FULL"` (every overlap of kernel and sample),
            `"CIRCULAR"` (wraps around; ceil(n / stride) outputs, as SAME), or a pair of integers for each axis.
        strides: The steps of the window, one for all axes or one each.
        kernel_dilation: The spacing of the kernel's taps, likewise.
        feature_group_count: Into how many groups the channels are divided; must divide both numbers of channels.
        use_bias: Whether to add b.
        kernel_init: `(key, shape, dtype) -> array`; a hashable object that is equal for equal settings, such as
            `variance_scaling(2.0)`. The default is LeCun's normal, as in Flax.
        bias_init: The same for the bias; zeros.
        param_dtype: The parameters' dtype; None is JAX's default floating-point dtype when `init` runs.

    Returns:
        A frozen, hashable layer.

    Raises:
        TypeError: If a number is not an integer, or `kernel_size` not a tuple.
        ValueError: If a number is less than one, `padding` is unknown, or the groups do not divide `features`.

    Cost:
        outputs x window x in / groups multiplications.

    Example:
        >>> import jax
        >>> import spectrax as sx
        >>> net = sx.layers.convolution(4, (3, 3), strides=2, padding="SAME")
        >>> variables = net.init(jax.random.key(0), (7, 7, 2))
        >>> variables["params"]["kernel"].shape
        (3, 3, 2, 4)
        >>> net.apply(variables, jax.numpy.ones((7, 7, 2))).shape
        (4, 4, 4)
    """
    checks.positive_integer("features", features)
    if isinstance(kernel_size, str) or not isinstance(kernel_size, Sequence):
        raise TypeError(
            f"kernel_size must be a tuple with a size for each spatial axis, such as (3, 3); got {kernel_size!r}"
        )
    axes = len(kernel_size)
    if axes not in LAYOUTS:
        raise ValueError(f"kernel_size must have 1, 2 or 3 entries, got {tuple(kernel_size)}")
    checks.positive_integer("feature_group_count", feature_group_count)
    if features % feature_group_count:
        raise ValueError(f"feature_group_count={feature_group_count} must divide features, got {features}")
    return Convolution(
        int(features),
        windows.per_axis("kernel_size", kernel_size, axes),
        windows.per_axis("strides", strides, axes),
        windows.normalised(padding, PADDINGS, axes),
        windows.per_axis("kernel_dilation", kernel_dilation, axes),
        int(feature_group_count),
        bool(use_bias),
        kernel_init,
        bias_init,
        float_dtype(param_dtype),
    )
