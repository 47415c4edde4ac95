"""Networks: pure functional layers, the linear maps in them, and builders for the usual models."""

from spectrax.networks import layers, models

__all__ = ["layers", "models"]
