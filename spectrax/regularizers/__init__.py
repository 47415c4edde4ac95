"""Penalties on spectra, and the Optax transformations that apply them."""

from spectrax.regularizers import parametrizations, transforms
from spectrax.regularizers.extremes import condition_number_penalty, spectral_norm_penalty
from spectrax.regularizers.maps import MatrixAxes, jacobian_maps, matrix_maps
from spectrax.regularizers.orthogonality import orthogonality_penalty
from spectrax.regularizers.penalty import Penalty, PenaltyState, SpectralMeasurements

__all__ = [
    "MatrixAxes",
    "Penalty",
    "PenaltyState",
    "SpectralMeasurements",
    "condition_number_penalty",
    "jacobian_maps",
    "matrix_maps",
    "orthogonality_penalty",
    "parametrizations",
    "spectral_norm_penalty",
    "transforms",
]
