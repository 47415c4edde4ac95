"""Penalties on spectra, and the Optax transformations that apply them."""

from spectrax.regularizers import monitor, parametrizations, transforms
from spectrax.regularizers.condition_numbers import condition_number_penalty, smooth_condition_penalty
from spectrax.regularizers.convolution_bounds import conv_norm_penalty
from spectrax.regularizers.factors import factor_orthogonality_penalty, factor_sparsity_penalty
from spectrax.regularizers.maps import MatrixAxes, flax_axes, jacobian_maps, matrix_maps
from spectrax.regularizers.orthogonality import orthogonality_penalty
from spectrax.regularizers.penalty import Penalty, PenaltyState, SpectralMeasurements
from spectrax.regularizers.sharpness import sharpness_penalty
from spectrax.regularizers.spectral_norms import (
    band_penalty,
    restricted_isometry_penalty,
    spectral_norm_penalty,
    unit_norm_penalty,
)
from spectrax.regularizers.whole_spectra import (
    effective_rank_penalty,
    frobenius_norm_penalty,
    frobenius_product_penalty,
    log_determinant_penalty,
    rank_penalty,
    schatten_norm_penalty,
    stable_rank_penalty,
)

__all__ = [
    "MatrixAxes",
    "Penalty",
    "PenaltyState",
    "SpectralMeasurements",
    "band_penalty",
    "condition_number_penalty",
    "conv_norm_penalty",
    "effective_rank_penalty",
    "factor_orthogonality_penalty",
    "factor_sparsity_penalty",
    "flax_axes",
    "frobenius_norm_penalty",
    "frobenius_product_penalty",
    "jacobian_maps",
    "log_determinant_penalty",
    "matrix_maps",
    "monitor",
    "orthogonality_penalty",
    "parametrizations",
    "rank_penalty",
    "restricted_isometry_penalty",
    "schatten_norm_penalty",
    "sharpness_penalty",
    "smooth_condition_penalty",
    "spectral_norm_penalty",
    "stable_rank_penalty",
    "transforms",
    "unit_norm_penalty",
]
