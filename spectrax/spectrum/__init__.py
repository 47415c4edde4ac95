"""What users ask for: singular triplets, and the quantities on top of them."""

from spectrax.spectrum import preconditioners
from spectrax.spectrum.convolution.cayley import cayley, cayley_convolution
from spectrax.spectrum.convolution.clipping import clip_spectral_norm
from spectrax.spectrum.convolution.folding import fold_batch_norm
from spectrax.spectrum.convolution.norms import conv_norm
from spectrax.spectrum.convolution.orthogonality import conv_orthogonality
from spectrax.spectrum.convolution.scaling import aol_rescale, conv_row_normalize, row_isometry_error
from spectrax.spectrum.convolution.singular_values import ConvolutionSpectrum, conv_singular_values
from spectrax.spectrum.convolution.symbol import conv_symbol
from spectrax.spectrum.convolution.tracking import ConvolutionExtremes, ConvolutionTracker, conv_extremes
from spectrax.spectrum.density import SpectralDensity
from spectrax.spectrum.eigsh import eigsh
from spectrax.spectrum.frobenius import frobenius_norm
from spectrax.spectrum.functions import spectral_function
from spectrax.spectrum.jacobian_spectrum import JacobianSpectrum, jacobian_spectrum
from spectrax.spectrum.logdet import StochasticLanczos, logdet
from spectrax.spectrum.methods import Davidson, Dense, Fallback, InverseLanczos, Lanczos
from spectrax.spectrum.norm_bounds import spectral_norm_bound
from spectrax.spectrum.norms import nuclear_norm, schatten_norm
from spectrax.spectrum.products import (
    ProductConditionNumber,
    ProductSingularValues,
    product_log_condition_number,
    product_log_singular_values,
)
from spectrax.spectrum.quantities import (
    condition_number,
    extreme_singular_values,
    log_condition_number,
    singular_values,
    smallest_singular_value,
    spectral_norm,
)
from spectrax.spectrum.ranks import effective_rank, stable_rank
from spectrax.spectrum.stepwise import Stepwise, stepwise_eigsh, stepwise_svds
from spectrax.spectrum.stepwise_density import stepwise_density
from spectrax.spectrum.stochastic_quadrature import spectral_density
from spectrax.spectrum.svds import svds
from spectrax.spectrum.trace import Hutchinson, HutchPlusPlus, XTrace, trace

__all__ = [
    "ConvolutionExtremes",
    "ConvolutionSpectrum",
    "ConvolutionTracker",
    "Davidson",
    "Dense",
    "Fallback",
    "HutchPlusPlus",
    "Hutchinson",
    "InverseLanczos",
    "JacobianSpectrum",
    "Lanczos",
    "ProductConditionNumber",
    "ProductSingularValues",
    "SpectralDensity",
    "Stepwise",
    "StochasticLanczos",
    "XTrace",
    "aol_rescale",
    "cayley",
    "cayley_convolution",
    "clip_spectral_norm",
    "condition_number",
    "conv_extremes",
    "conv_norm",
    "conv_orthogonality",
    "conv_row_normalize",
    "conv_singular_values",
    "conv_symbol",
    "effective_rank",
    "eigsh",
    "extreme_singular_values",
    "fold_batch_norm",
    "frobenius_norm",
    "jacobian_spectrum",
    "log_condition_number",
    "logdet",
    "nuclear_norm",
    "preconditioners",
    "product_log_condition_number",
    "product_log_singular_values",
    "row_isometry_error",
    "schatten_norm",
    "singular_values",
    "smallest_singular_value",
    "spectral_density",
    "spectral_function",
    "spectral_norm",
    "spectral_norm_bound",
    "stable_rank",
    "stepwise_density",
    "stepwise_eigsh",
    "stepwise_svds",
    "svds",
    "trace",
]
