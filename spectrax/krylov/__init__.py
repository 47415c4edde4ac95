"""Krylov methods on vectors and on functions that act on them."""

from spectrax.krylov.restart import Triplets, singular_triplets
from spectrax.krylov.solves import minres

__all__ = ["Triplets", "minres", "singular_triplets"]
