"""What has a spectrum: linear operators, Jacobians, convolutions."""

from spectrax.operators.conversion import aslinearoperator
from spectrax.operators.convolution import conv_operator
from spectrax.operators.jacobian import batched_jacobian, jacobian, jacobian_operator
from spectrax.operators.linear_operator import LinearOperator

__all__ = [
    "LinearOperator",
    "aslinearoperator",
    "batched_jacobian",
    "conv_operator",
    "jacobian",
    "jacobian_operator",
]
