"""The loss of a network as a function of one layer's weights: piecewise quadratic, shaped by singular values."""

from spectrax.networks.landscape.cross_entropy import cross_entropy_bounds
from spectrax.networks.landscape.gram import layer_gram
from spectrax.networks.landscape.lines import LossAlongLine, loss_along_line
from spectrax.networks.landscape.operators import layer_operator
from spectrax.networks.landscape.quadratic import LocalQuadratic, local_quadratic
from spectrax.networks.landscape.samples import layer_spectra
from spectrax.networks.landscape.slices import LossSlice, loss_slice
from spectrax.networks.landscape.spectra import LayerSpectrum, layer_spectrum

__all__ = [
    "LayerSpectrum",
    "LocalQuadratic",
    "LossAlongLine",
    "LossSlice",
    "cross_entropy_bounds",
    "layer_gram",
    "layer_operator",
    "layer_spectra",
    "layer_spectrum",
    "local_quadratic",
    "loss_along_line",
    "loss_slice",
]
