"""Weights that are functions of raw parameters, such that their spectra are as one wants them at every step."""

from spectrax.regularizers.parametrizations.contract import Parametrization
from spectrax.regularizers.parametrizations.convolutions import aol, cayley_convolution, clipped, row_normalized
from spectrax.regularizers.parametrizations.matrices import cayley

__all__ = ["Parametrization", "aol", "cayley", "cayley_convolution", "clipped", "row_normalized"]
