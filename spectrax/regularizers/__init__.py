"""Penalties on spectra, and the Optax transformations that apply them."""

from spectrax.regularizers import transforms
from spectrax.regularizers.maps import MatrixAxes, jacobian_maps, matrix_maps
from spectrax.regularizers.penalties import (
    Penalty,
    PenaltyState,
    SpectralMeasurements,
    condition_number_penalty,
    orthogonality_penalty,
    spectral_norm_penalty,
)

__all__ = [
    "MatrixAxes",
    "Penalty",
    "PenaltyState",
    "SpectralMeasurements",
    "condition_number_penalty",
    "jacobian_maps",
    "matrix_maps",
    "orthogonality_penalty",
    "spectral_norm_penalty",
    "transforms",
]
