"""Optax transformations: penalties in the updates, projections of the weights, and what only observes."""

from spectrax.regularizers.penalty import SpectralMeasurements
from spectrax.regularizers.transforms.observers import (
    OscillationState,
    TrackedSpectrumState,
    gradient_oscillation,
    track_spectrum,
)
from spectrax.regularizers.transforms.penalized import SpectralPenaltyState, add_spectral_penalty
from spectrax.regularizers.transforms.projections import (
    ProjectionState,
    clip_singular_values,
    project_spectral_norm,
)

__all__ = [
    "OscillationState",
    "ProjectionState",
    "SpectralMeasurements",
    "SpectralPenaltyState",
    "TrackedSpectrumState",
    "add_spectral_penalty",
    "clip_singular_values",
    "gradient_oscillation",
    "project_spectral_norm",
    "track_spectrum",
]
