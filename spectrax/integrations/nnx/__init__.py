"""Flax NNX layers whose weights are functions of their parameters."""

from spectrax.integrations.nnx.layers import CayleyConv, Conv, ConvNorm, Linear
from spectrax.integrations.nnx.normalized import SpectralNormConv, SpectralNormLinear

__all__ = [
    "CayleyConv",
    "Conv",
    "ConvNorm",
    "Linear",
    "SpectralNormConv",
    "SpectralNormLinear",
]
