"""Ways in and out: what other libraries hold, read and written."""

from spectrax.integrations import checkpoints

__all__ = ["checkpoints"]
