"""Flax Linen layers whose weights are functions of their parameters."""

from spectrax.integrations.linen.conversion import applied_params, raw_params
from spectrax.integrations.linen.layers import CayleyConv, Conv, ConvNorm, Dense
from spectrax.integrations.linen.normalized import SpectralNormConv, SpectralNormDense

__all__ = [
    "CayleyConv",
    "Conv",
    "ConvNorm",
    "Dense",
    "SpectralNormConv",
    "SpectralNormDense",
    "applied_params",
    "raw_params",
]
