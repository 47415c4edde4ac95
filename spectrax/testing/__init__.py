"""Operators whose singular values are known, and checks of what a routine says about them."""

from spectrax.testing.assertions import assert_eigenvalues, assert_singular_values
from spectrax.testing.gallery import Case, gallery
from spectrax.testing.matrices import hilbert, kahan, with_singular_values
from spectrax.testing.spectra import clustered, geometric_decay, linear_decay, repeated

__all__ = [
    "Case",
    "assert_eigenvalues",
    "assert_singular_values",
    "clustered",
    "gallery",
    "geometric_decay",
    "hilbert",
    "kahan",
    "linear_decay",
    "repeated",
    "with_singular_values",
]
