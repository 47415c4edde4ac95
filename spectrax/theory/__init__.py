"""The theory of singular values under skips and activation slopes, and of random weights."""

from spectrax.theory import perturbation, random_matrices, topology

__all__ = ["perturbation", "random_matrices", "topology"]
