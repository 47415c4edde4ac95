"""The loss of a network as a function of one layer's weights: piecewise quadratic, shaped by singular values."""

from spectrax.networks.landscape.operators import layer_operator
from spectrax.networks.landscape.quadratic import LocalQuadratic, local_quadratic
from spectrax.networks.landscape.spectra import LayerSpectrum, layer_spectrum

__all__ = ["LayerSpectrum", "LocalQuadratic", "layer_operator", "layer_spectrum", "local_quadratic"]
