"""Raw parameters into outputs, by Flax's own layers: what the Linen and the NNX layers share."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.linen.dtypes import promote_dtype

from spectrax.regularizers.parametrizations import Parametrization
from spectrax.spectrum.convolution.cayley import cayley_convolve

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
    sizes = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
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
        ValueError: If the kernel is made for another size of the input or another padding.
    """
    kernel = raw if parametrization is None else parametrization.apply(raw)
    sizes = None if parametrization is None else parametrization.input_sizes
    if sizes is not None:
        given = inputs.shape[-1 - len(sizes) : -1]
        if options["padding"] != "CIRCULAR" or given != sizes:
            raise ValueError(
                f"the parametrization makes kernels for padding='CIRCULAR' and inputs of the sizes {sizes}, got "
                f"padding={options['padding']!r} and {given}"
            )
    layer = nn.Conv(kernel.shape[-1], kernel.shape[:-2], use_bias=bias is not None, parent=None, **options)
    result: Any = layer.apply({"params": _params(kernel, bias)}, inputs)
    return result


def convolve_cayley(
    inputs: jax.Array, raw: dict[str, jax.Array], bias: jax.Array | None, /, *, dtype: Any, **options: Any
) -> jax.Array:
    """Apply the Cayley transform of a convolution in the Fourier basis.

    Args:
        inputs: Shape (batch..., spatial..., in).
        raw: The raw parameters of `parametrizations.cayley_convolution`.
        bias: Shape (out,), or None.
        dtype: As in `CayleyConv`.
        **options: Strides and feature_group_count.

    Returns:
        Shape (batch..., spatial / strides..., out).
    """
    inputs, kernel, bias = promote_dtype(inputs, raw["kernel"], bias, dtype=dtype)
    assert inputs is not None
    assert kernel is not None
    rank = kernel.ndim - 2
    batch = inputs.shape[: -1 - rank]
    samples = inputs.reshape(-1, *inputs.shape[inputs.ndim - 1 - rank :])
    images = cayley_convolve(samples, kernel, scale=raw["scale"], **options)
    if bias is not None:
        images = images + bias
    return images.reshape(*batch, *images.shape[1:])


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
