"""Convolutions: their symbols, spectra and norms, and kernels whose spectra are as one wants them."""
