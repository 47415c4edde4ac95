"""Krylov methods on vectors and on functions that act on them."""

from spectrax.krylov.davidson import smallest_triplets
from spectrax.krylov.extremes import Triplets, eigenpairs, singular_triplets
from spectrax.krylov.factorization import stacked
from spectrax.krylov.solves import minres

__all__ = ["Triplets", "eigenpairs", "minres", "singular_triplets", "smallest_triplets", "stacked"]
