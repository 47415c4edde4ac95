"""What users ask for: singular triplets, and the quantities on top of them."""

from spectrax.spectrum.convolution import conv_singular_values, conv_symbol
from spectrax.spectrum.methods import Dense, InverseLanczos, Lanczos
from spectrax.spectrum.quantities import (
    condition_number,
    extreme_singular_values,
    log_condition_number,
    singular_values,
    smallest_singular_value,
    spectral_norm,
)
from spectrax.spectrum.svds import svds

__all__ = [
    "Dense",
    "InverseLanczos",
    "Lanczos",
    "condition_number",
    "conv_singular_values",
    "conv_symbol",
    "extreme_singular_values",
    "log_condition_number",
    "singular_values",
    "smallest_singular_value",
    "spectral_norm",
    "svds",
]
