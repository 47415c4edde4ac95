"""Weights that are functions of raw parameters, such that their spectra are as one wants them at every step."""

from spectrax.regularizers.parametrizations.contract import Parametrization, TrackedParametrization
from spectrax.regularizers.parametrizations.convolutions import aol, cayley_convolution, clipped, row_normalized
from spectrax.regularizers.parametrizations.factored import Flops, Pruned, factored, low_rank_flops, prune_by_energy
from spectrax.regularizers.parametrizations.matrices import cayley
from spectrax.regularizers.parametrizations.normalized import bjorck, spectral_normalized
from spectrax.regularizers.parametrizations.tracked import LeadingVectors, tracked_spectral_norm

__all__ = [
    "Flops",
    "LeadingVectors",
    "Parametrization",
    "Pruned",
    "TrackedParametrization",
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
    "tracked_spectral_norm",
]
