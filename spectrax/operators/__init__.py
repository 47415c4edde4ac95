"""What has a spectrum: linear operators, Jacobians, curvature, convolutions."""

from spectrax.operators.conversion import aslinearoperator
from spectrax.operators.convolution import conv_operator
from spectrax.operators.curvature import (
    empirical_fisher_operator,
    fisher_operator,
    ggn_operator,
    hessian_operator,
    ntk_operator,
)
from spectrax.operators.dense_jacobians import batched_jacobian, jacobian
from spectrax.operators.host_operator import HostOperator
from spectrax.operators.jacobian import jacobian_operator
from spectrax.operators.linear_operator import LinearOperator
from spectrax.operators.placement import with_shardings

__all__ = [
    "HostOperator",
    "LinearOperator",
    "aslinearoperator",
    "batched_jacobian",
    "conv_operator",
    "empirical_fisher_operator",
    "fisher_operator",
    "ggn_operator",
    "hessian_operator",
    "jacobian",
    "jacobian_operator",
    "ntk_operator",
    "with_shardings",
]
