"""Checkpoints of any known format as names, shapes, dtypes, and arrays that are read one at a time."""

from spectrax.integrations.weights.opening import open_weights
from spectrax.integrations.weights.stored import StoredArray, UnreadableError, Weights

__all__ = ["StoredArray", "UnreadableError", "Weights", "open_weights"]
