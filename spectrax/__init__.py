"""spectrax: a differentiable spectral toolkit for JAX."""

from spectrax import installation, networks, regularizers, testing
from spectrax.networks import layers, models
from spectrax.operators import (
    LinearOperator,
    aslinearoperator,
    batched_jacobian,
    conv_operator,
    jacobian,
    jacobian_operator,
)
from spectrax.regularizers import transforms
from spectrax.results import (
    ExtremeSingularValues,
    Quantity,
    SpectraxError,
    Status,
    SVDResult,
    raise_unless_successful,
)
from spectrax.spectrum import (
    Dense,
    InverseLanczos,
    Lanczos,
    condition_number,
    conv_singular_values,
    conv_symbol,
    extreme_singular_values,
    log_condition_number,
    singular_values,
    smallest_singular_value,
    spectral_norm,
    svds,
)

__version__ = "0.1.0"

installation.warn_if_shadowed()

__all__ = [
    "Dense",
    "ExtremeSingularValues",
    "InverseLanczos",
    "Lanczos",
    "LinearOperator",
    "Quantity",
    "SVDResult",
    "SpectraxError",
    "Status",
    "aslinearoperator",
    "batched_jacobian",
    "condition_number",
    "conv_operator",
    "conv_singular_values",
    "conv_symbol",
    "extreme_singular_values",
    "jacobian",
    "jacobian_operator",
    "layers",
    "log_condition_number",
    "models",
    "networks",
    "raise_unless_successful",
    "regularizers",
    "singular_values",
    "smallest_singular_value",
    "spectral_norm",
    "svds",
    "testing",
    "transforms",
]
