"""Raw parameters into outputs, by Flax's own layers: what the Linen and the NNX layers share."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.linen.linear import canonicalize_padding

from spectrax import spectrum, vectors
from spectrax.operators import LinearOperator, aslinearoperator, conv_operator
from spectrax.operators.convolution import per_axis
from spectrax.regularizers.parametrizations import Parametrization
from spectrax.spectrum.convolution.cayley import cayley_convolve
from spectrax.spectrum.convolution.fourier import circular_grid

Initializer = Callable[..., Any]


def kernel_shape(kernel_size: int | Sequence[int], channels: int, features: int, groups: int) -> tuple[int, ...]:
    """Return the shape of a kernel in Flax's layout.

    Args:
        kernel_size: Spatial sizes; an integer for one axis.
        channels: Number of input channels.
        features: Number of output channels.
        groups: Number of groups.

    Returns:
        (kernel_size..., channels / groups, features).

    Raises:
        ValueError: If the channels cannot be split into the groups.
    """
    if channels % groups:
        raise ValueError(f"{channels} input channels cannot be split into {groups} groups")
    sizes = tuple(kernel_size) if isinstance(kernel_size, Sequence | np.ndarray) else (int(kernel_size),)
    return (*sizes, channels // groups, features)


def initial(kernel_init: Initializer, parametrization: Parametrization | None) -> Initializer:
    """Return the initializer of raw parameters."""
    if parametrization is None:
        return kernel_init
    return lambda *arguments: parametrization.init(kernel_init(*arguments))


def convolve(
    inputs: jax.Array, raw: Any, bias: jax.Array | None, parametrization: Parametrization | None, /, **options: Any
) -> jax.Array:
    """Convolve with the kernel of raw parameters, by Flax's own layer.

    Args:
        inputs: Shape (batch..., spatial..., in).
        raw: The raw parameters.
        bias: Shape (out,), or None.
        parametrization: What the raw parameters are; None for the kernel itself.
        **options: Those of `flax.linen.Conv`.

    Returns:
        Shape (batch..., spatial..., out).

    Raises:
        ValueError: If the kernel is made for another size of the input or another padding, strides or groups.
    """
    kernel = raw if parametrization is None else parametrization.apply(raw)
    if parametrization is not None:
        _check_fits(parametrization, kernel.ndim - 2, inputs.shape, options)
    layer = nn.Conv(kernel.shape[-1], kernel.shape[:-2], use_bias=bias is not None, parent=None, **options)
    result: Any = layer.apply({"params": _params(kernel, bias)}, inputs)
    return result


def _check_fits(
    parametrization: Parametrization, rank: int, input_shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    def steps(name: str, value: Any) -> tuple[int, ...]:
        return per_axis(name, 1 if value is None else value, rank)

    one = (1,) * rank
    strides, dilation = (steps(name, options[name]) for name in ("strides", "kernel_dilation"))
    if parametrization.strides is not None:
        wanted = steps("strides", parametrization.strides)
        if wanted != strides:
            raise ValueError(f"the parametrization makes kernels for strides={wanted}, and the layer has {strides}")
        if strides != one and dilation != one:
            raise ValueError(f"with strides={strides} the parametrization needs kernel_dilation=1, got {dilation}")
        given = input_shape[-1 - rank : -1]
        if options["padding"] == "REFLECT":
            raise ValueError("the parametrization knows nothing of padding='REFLECT': take zero or circular padding")
        if options["padding"] == "CIRCULAR" and any(n % step for n, step in zip(given, strides, strict=True)):
            raise ValueError(f"with circular padding the strides {strides} must divide the input's sizes {given}")
    groups = parametrization.feature_group_count
    if groups is not None and groups != options["feature_group_count"]:
        raise ValueError(
            f"the parametrization makes kernels for feature_group_count={groups}, and the layer has "
            f"{options['feature_group_count']}"
        )
    sizes = parametrization.input_sizes
    if sizes is not None:
        given = input_shape[-1 - rank : -1]
        if options["padding"] != "CIRCULAR" or given != sizes:
            raise ValueError(
                f"the parametrization makes kernels for padding='CIRCULAR' and inputs of the sizes {sizes}, got "
                f"padding={options['padding']!r} and {given}"
            )
        if dilation != one or steps("input_dilation", options["input_dilation"]) != one:
            raise ValueError(
                f"the parametrization makes kernels for layers without dilation, got kernel_dilation={dilation} and "
                f"input_dilation={options['input_dilation']}"
            )


def convolve_cayley(
    inputs: jax.Array, raw: dict[str, jax.Array], bias: jax.Array | None, /, *, dtype: Any, **options: Any
) -> jax.Array:
    """Apply the Cayley transform of a convolution in the Fourier basis.

    Args:
        inputs: Shape (batch..., spatial..., in).
        raw: The raw parameters of `parametrizations.cayley_convolution`.
        bias: Shape (out,), or None.
        dtype: As in `CayleyConv`.
        **options: Strides (None for one) and feature_group_count.

    Returns:
        Shape (batch..., spatial / strides..., out).
    """

    def product(samples: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
        return cayley_convolve(samples, kernel, scale=raw["scale"], **options)

    return _in_batches(product, inputs, raw["kernel"], bias, dtype, options)


def convolve_row_normalized(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, /, *, eps: float | None, dtype: Any, **options: Any
) -> jax.Array:
    """Apply a circular convolution whose symbol has rows of unit length, in the Fourier basis.

    Args:
        inputs: Shape (batch..., spatial..., in).
        kernel: The raw kernel.
        bias: Shape (out,), or None.
        eps: As in `spectrax.conv_row_normalize`.
        dtype: As in `ConvNorm`.
        **options: Strides (None for one) and feature_group_count.

    Returns:
        Shape (batch..., spatial / strides..., out).
    """

    def product(samples: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
        kernel = kernel.astype(vectors.working_dtype(kernel.dtype))
        normalized = spectrum.conv_row_normalize(kernel, samples.shape[1:], eps=eps, **options)
        grid = circular_grid(normalized, samples.shape[1:], **options)
        return grid.convolve(grid.symbols(normalized), samples.astype(kernel.dtype)).astype(samples.dtype)

    return _in_batches(product, inputs, kernel, bias, dtype, options)


def _in_batches(
    product: Callable[..., jax.Array], inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: Any,
    options: dict[str, Any],
) -> jax.Array:  # fmt: skip
    """Apply a product of (batch, spatial..., in) to inputs with any number of batch axes, and add the bias."""
    inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=dtype)  # pyright: ignore[reportAssignmentType]
    rank = kernel.ndim - 2
    batch = inputs.shape[: -1 - rank]
    samples = inputs.reshape(-1, *inputs.shape[inputs.ndim - 1 - rank :])
    if options["strides"] is None:
        options = {**options, "strides": 1}
    images = product(samples, kernel, **options)
    if bias is not None:
        images = images + bias
    return images.reshape(*batch, *images.shape[1:])


def convolution(kernel: jax.Array, sample_shape: tuple[int, ...], /, **options: Any) -> LinearOperator:
    """Return the convolution that Flax's layer is, without its bias, as a linear map of one sample.

    Args:
        kernel: Shape (spatial..., in / groups, out).
        sample_shape: Shape (spatial..., in).
        **options: Strides, padding, input_dilation, kernel_dilation and feature_group_count of `flax.linen.Conv`.

    Returns:
        The operator, with whatever padding Flax knows.
    """
    rank = kernel.ndim - 2
    steps = {
        name: per_axis(name, 1 if options[name] is None else options[name], rank)
        for name in ("strides", "input_dilation", "kernel_dilation")
    }
    padding = canonicalize_padding(options["padding"], rank)
    wrapped = padding == "CIRCULAR" and all(step == 1 for step in steps["input_dilation"])
    if wrapped or not isinstance(padding, str) or padding in ("SAME", "VALID"):
        return conv_operator(
            kernel, sample_shape, padding=padding, feature_group_count=options["feature_group_count"], **steps
        )

    def layer(sample: jax.Array, kernel: jax.Array) -> jax.Array:  # "REFLECT", "CAUSAL" and what else Flax may learn
        return convolve(sample, kernel, None, None, dtype=None, precision="highest", **options)

    return aslinearoperator((layer, jax.ShapeDtypeStruct(sample_shape, kernel.dtype)), kernel)


def multiply(
    inputs: jax.Array, raw: Any, bias: jax.Array | None, parametrization: Parametrization | None, /, **options: Any
) -> jax.Array:
    """Multiply with the matrix of raw parameters, by Flax's own layer.

    Args:
        inputs: Shape (..., in).
        raw: The raw parameters.
        bias: Shape (out,), or None.
        parametrization: What the raw parameters are; None for the matrix itself.
        **options: Those of `flax.linen.Dense`.

    Returns:
        Shape (..., out).
    """
    kernel = raw if parametrization is None else parametrization.apply(raw)
    layer = nn.Dense(kernel.shape[-1], use_bias=bias is not None, parent=None, **options)
    result: Any = layer.apply({"params": _params(kernel, bias)}, inputs)
    return result


def _params(kernel: jax.Array, bias: jax.Array | None) -> dict[str, jax.Array]:
    return {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
