"""Random weights: the limits of their singular values, bounds with probabilities, and what follows for a design."""

from spectrax.theory.random_matrices.averages import (
    expected_dropout_gram,
    expected_gram_floor,
    expected_pattern_gram,
)
from spectrax.theory.random_matrices.bounds import (
    ExtremeBounds,
    entrywise_condition_number_bound,
    expected_log_condition_number,
    gaussian_condition_number_cdf,
    gaussian_matrix_bounds,
    norm_concentration,
    norm_condition_number_bound,
    pattern_free_bounds,
    skip_layer_bounds,
    smallest_singular_value_tail,
)
from spectrax.theory.random_matrices.depth import (
    branch_norm_for_depth,
    convnet_depth_slope,
    largest_step_size,
    negative_slope_factor,
    skip_for_depth,
)
from spectrax.theory.random_matrices.design import (
    Initialization,
    ScaleThresholds,
    initializations,
    largest_depth,
    largest_negative_slope,
    largest_scale,
    scale_thresholds,
    smallest_skip,
)
from spectrax.theory.random_matrices.limits import SkipLayerLimits, active_condition_number, skip_layer_limits
from spectrax.theory.random_matrices.sampling import sample_skip_layer
from spectrax.theory.random_matrices.slopes import SlopeDistribution, activation_slopes

__all__ = [
    "ExtremeBounds",
    "Initialization",
    "ScaleThresholds",
    "SkipLayerLimits",
    "SlopeDistribution",
    "activation_slopes",
    "active_condition_number",
    "branch_norm_for_depth",
    "convnet_depth_slope",
    "entrywise_condition_number_bound",
    "expected_dropout_gram",
    "expected_gram_floor",
    "expected_log_condition_number",
    "expected_pattern_gram",
    "gaussian_condition_number_cdf",
    "gaussian_matrix_bounds",
    "initializations",
    "largest_depth",
    "largest_negative_slope",
    "largest_scale",
    "largest_step_size",
    "negative_slope_factor",
    "norm_concentration",
    "norm_condition_number_bound",
    "pattern_free_bounds",
    "sample_skip_layer",
    "scale_thresholds",
    "skip_for_depth",
    "skip_layer_bounds",
    "skip_layer_limits",
    "smallest_singular_value_tail",
    "smallest_skip",
]
