"""Pure functional layers: `init(key, input_shape) -> variables`, `apply(variables, x)` on one sample."""

from spectrax.networks.layers.activation import activation
from spectrax.networks.layers.chain import chain
from spectrax.networks.layers.convolution import convolution
from spectrax.networks.layers.dense import dense
from spectrax.networks.layers.initializers import variance_scaling
from spectrax.networks.layers.layer import Child, Layer
from spectrax.networks.layers.linear_maps import LinearMaps, linear_maps
from spectrax.networks.layers.normalization import batch_norm, layer_norm
from spectrax.networks.layers.pooling import average_pool, flatten, global_average_pool, max_pool
from spectrax.networks.layers.skip import concatenating_skip, skip

__all__ = [
    "Child",
    "Layer",
    "LinearMaps",
    "activation",
    "average_pool",
    "batch_norm",
    "chain",
    "concatenating_skip",
    "convolution",
    "dense",
    "flatten",
    "global_average_pool",
    "layer_norm",
    "linear_maps",
    "max_pool",
    "skip",
    "variance_scaling",
]
