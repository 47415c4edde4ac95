"""Weights that are functions of raw parameters, such that their spectra are as one wants them at every step."""

from spectrax.regularizers.parametrizations.contract import Parametrization
from spectrax.regularizers.parametrizations.convolutions import aol, cayley_convolution, clipped, row_normalized
from spectrax.regularizers.parametrizations.factored import Flops, Pruned, factored, low_rank_flops, prune_by_energy
from spectrax.regularizers.parametrizations.matrices import cayley
from spectrax.regularizers.parametrizations.normalized import bjorck, spectral_normalized

__all__ = [
    "Flops",
    "Parametrization",
    "Pruned",
    "aol",
    "bjorck",
    "cayley",
    "cayley_convolution",
    "clipped",
    "factored",
    "low_rank_flops",
    "prune_by_energy",
    "row_normalized",
    "spectral_normalized",
]
