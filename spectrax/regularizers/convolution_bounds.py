"""Penalties on bounds of convolutions' norms, which need the kernel alone."""

from collections.abc import Callable

import jax

from spectrax import checks, spectrum
from spectrax.operators import LinearOperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.convolution import ConvolutionOperator
from spectrax.regularizers.maps import Maps, MatrixAxes
from spectrax.regularizers.penalty import Penalty
from spectrax.regularizers.sums import sum_penalty

METHODS = ("grid", "gram", "aol", "fantastic_four", "lip_grid", "tap_sum", "schur")


def conv_norm_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    method: str = "gram",
    mask: Callable[[str], bool] | None = None,
) -> Penalty:
    """Penalise an upper bound of the norm of each convolution, for its true padding and strides.

    Args:
        maps: As in `condition_number_penalty`; the maps must be convolutions (`conv_operator`) or matrices, which count
            as convolutions of one tap.
        method: One of the upper bounds of `spectrax.conv_norm` that need no size: "gram", "schur" and "aol" are cheap
            and smooth, "grid" is the tightest.
        mask: Which maps to act on, by name.

    Returns:
        The penalty's functions: the sum of the bounds. No singular value is measured: all measurements are NaN.

    Raises:
        ValueError: If `method` is not one of those.
        TypeError: When applied, if a map is neither a convolution nor a matrix.

    Cost:
        As `spectrax.conv_norm` says; none of them grows with the size of the input.

    Derivatives:
        First order; finite everywhere.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.conv_norm_penalty(method="schur")
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 3.0]))}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 3)
        3.0

    Source:
        Yi 2020 (arXiv 2006.07117), who takes bounds of the symbol as additive regularisers.
    """
    checks.choice("method", method, METHODS)

    def value(operator: LinearOperator, key: jax.Array | None) -> jax.Array:
        del key
        if isinstance(operator, MatrixOperator):
            return spectrum.conv_norm(operator.matrix.T[None], padding="VALID", method=method).value
        if not isinstance(operator, ConvolutionOperator):
            raise TypeError(
                "conv_norm_penalty acts on convolutions (conv_operator) and matrices, got a map of type "
                f"{type(operator).__name__}"
            )
        geometry = operator.geometry
        padding = geometry.padding if geometry.padding == "CIRCULAR" else geometry.pads
        return spectrum.conv_norm(
            operator.kernel, padding=padding, strides=geometry.strides, input_dilation=geometry.input_dilation,
            kernel_dilation=geometry.kernel_dilation, feature_group_count=geometry.feature_group_count, method=method,
        ).value  # fmt: skip

    return sum_penalty(value, maps, mask=mask, batched=False, num_samples=None)
