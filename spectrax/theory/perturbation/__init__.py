"""How singular values move when a multiple of the identity is added, or activation slopes multiply.

For a square M and real rho, a layer with a skip has the Jacobian M + rho I with M = D W, slopes times weights. What is
known of its singular values comes as a list of `Bound`, each with its hypotheses, bounds and actual value. The
functions take one matrix, run under `jit` and are batched by `vmap`.
"""

from spectrax.theory.perturbation.architectures import (
    densenet_bounds,
    gated_bounds,
    preactivation_bounds,
    projection_skip_bounds,
    two_layer_block_bounds,
)
from spectrax.theory.perturbation.bounds import Bound
from spectrax.theory.perturbation.circular_skips import circular_skip_bounds, circular_skip_singular_values
from spectrax.theory.perturbation.derivatives import (
    ShiftDerivatives,
    identity_shift_derivatives,
    product_derivatives,
)
from spectrax.theory.perturbation.identity_shift import critical_rho, identity_shift_bounds
from spectrax.theory.perturbation.paths import SingularValuePath, condition_numbers, singular_value_path
from spectrax.theory.perturbation.products import product_bounds
from spectrax.theory.perturbation.skip_slopes import skip_slope_bounds
from spectrax.theory.perturbation.slope_changes import slope_change_bounds
from spectrax.theory.perturbation.slopes import slope_bounds

__all__ = [
    "Bound",
    "ShiftDerivatives",
    "SingularValuePath",
    "circular_skip_bounds",
    "circular_skip_singular_values",
    "condition_numbers",
    "critical_rho",
    "densenet_bounds",
    "gated_bounds",
    "identity_shift_bounds",
    "identity_shift_derivatives",
    "preactivation_bounds",
    "product_bounds",
    "product_derivatives",
    "projection_skip_bounds",
    "singular_value_path",
    "skip_slope_bounds",
    "slope_bounds",
    "slope_change_bounds",
    "two_layer_block_bounds",
]
