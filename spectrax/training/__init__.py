"""The run behind `spectrax train`: data, configuration, training loop, checkpoints, and what they add up to."""

from spectrax.training.configuration import TrainingConfig
from spectrax.training.data import Dataset, load_data
from spectrax.training.interruption import NonFiniteError, TrainingInterrupted
from spectrax.training.measurement import jacobian_condition_numbers, layer_singular_values, measure_layers
from spectrax.training.runs import resume, train

__all__ = [
    "Dataset",
    "NonFiniteError",
    "TrainingConfig",
    "TrainingInterrupted",
    "jacobian_condition_numbers",
    "layer_singular_values",
    "load_data",
    "measure_layers",
    "resume",
    "train",
]
