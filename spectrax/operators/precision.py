"""Operators in the dtype to compute in."""

import jax

from spectrax import vectors
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.convolution import ConvolutionGeometry, ConvolutionOperator
from spectrax.operators.host_operator import HostOperator
from spectrax.operators.linear_operator import LinearOperator, register


@register(children=("operator",), static=())
class WorkingOperator(LinearOperator):
    """A 16-bit operator on 32-bit vectors: products are taken in 16 bits, everything around them in 32."""

    def __init__(self, operator: LinearOperator):
        self.operator = operator

    @property
    def hermitian(self):
        return self.operator.hermitian

    @property
    def in_struct(self):
        return vectors.working_struct(self.operator.in_struct)

    @property
    def out_struct(self):
        return vectors.working_struct(self.operator.out_struct)

    def products(self):
        matvec, rmatvec = self.operator.products()
        inner_in, inner_out = self.operator.in_struct, self.operator.out_struct
        outer_in, outer_out = self.in_struct, self.out_struct
        return (
            (lambda v: vectors.cast(matvec(vectors.cast(v, inner_in)), outer_out)),
            (lambda u: vectors.cast(rmatvec(vectors.cast(u, inner_out)), outer_in)),
        )


def in_working_precision(operator: LinearOperator) -> LinearOperator:
    """Return the operator on vectors of at least 32 bits; an explicit 16-bit matrix is cast up once."""
    if vectors.working_struct((operator.in_struct, operator.out_struct)) == (operator.in_struct, operator.out_struct):
        return operator
    if isinstance(operator, MatrixOperator):
        return MatrixOperator(operator.matrix.astype(vectors.working_dtype(operator.dtype)))
    if isinstance(operator, HostOperator):
        return operator.widened()
    return WorkingOperator(operator)


def convolution_of(operator: LinearOperator) -> tuple[jax.Array, ConvolutionGeometry] | None:
    """Return the kernel, in the dtype to compute in, and the geometry of a convolution; None for other operators."""
    inner = operator.operator if isinstance(operator, WorkingOperator) else operator
    if not isinstance(inner, ConvolutionOperator):
        return None
    return inner.kernel.astype(vectors.working_dtype(inner.kernel.dtype)), inner.geometry
