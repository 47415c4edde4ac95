"""Krylov methods on vectors and on functions that act on them."""

from spectrax.krylov.davidson import smallest_triplets
from spectrax.krylov.extremes import eigenpairs, singular_triplets
from spectrax.krylov.orthogonalization import random_stack
from spectrax.krylov.quadrature import Jacobi
from spectrax.krylov.solves import minres
from spectrax.krylov.task import Task, Triplets

__all__ = [
    "Jacobi",
    "Task",
    "Triplets",
    "eigenpairs",
    "minres",
    "random_stack",
    "singular_triplets",
    "smallest_triplets",
]
