"""Networks: pure functional layers, the linear maps in them, what they are near an input, and the usual models."""

from spectrax.networks import landscape, layers, models
from spectrax.networks.layer_finding import FoundLayer, find_layers
from spectrax.networks.local_linear import LocalActivation, LocalLayer, LocalLinear, Reach, Stage, local_linear

__all__ = [
    "FoundLayer",
    "LocalActivation",
    "LocalLayer",
    "LocalLinear",
    "Reach",
    "Stage",
    "find_layers",
    "landscape",
    "layers",
    "local_linear",
    "models",
]
