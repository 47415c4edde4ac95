"""What routines return: values together with what is known about them."""

import dataclasses
import enum
import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.core as jax_core
import numpy as np

PyTree = Any


class Status(enum.IntEnum):
    """How a computation ended; the `status` of a result is one of these numbers, as an int32 array."""

    CONVERGED = 0
    AT_ROUND_OFF = 1
    NOT_CONVERGED = 2
    NOT_FINITE = 3
    ADJOINT_MISMATCH = 4
    BREAKDOWN = 5
    NOT_POSITIVE_DEFINITE = 6

    @property
    def text(self) -> str:
        """What the status means, and what to do about it."""
        return _TEXTS[self]


_TEXTS = {
    Status.CONVERGED: "converged: every residual is at most tol times its singular value",
    Status.AT_ROUND_OFF: (
        "converged at round-off of the dtype: some residual is above tol times its singular value, but at the level of "
        "eps times the largest one; a wider dtype is needed for more"
    ),
    Status.NOT_CONVERGED: (
        "did not converge in max_matvecs: singular values that lie close together, or a smallest one far below the "
        "largest; give more max_matvecs, a larger subspace, or a method that factorises"
    ),
    Status.NOT_FINITE: (
        "NaN or Inf came up, in the operator's output, in v0 or by overflow, or everything is so small that products "
        "underflow: no value can be given"
    ),
    Status.ADJOINT_MISMATCH: (
        "operator and adjoint don't match: <u, A v> differs from <A^H u, v> by more than round-off; the function is "
        "not linear, its derivative rules contradict each other, it computes in a lower precision than its dtype, or "
        "it is not Hermitian where it has to be"
    ),
    Status.BREAKDOWN: (
        "did not converge, and the recurrence broke down on the way, which went on with random directions: repeated or "
        "zero singular values, or products that lose their digits; give more max_matvecs, a block_size of the number "
        "of copies, or use Dense()"
    ),
    Status.NOT_POSITIVE_DEFINITE: (
        "not positive definite: an eigenvalue that is negative, or zero to round-off, came up where all have to be "
        "positive; add a multiple of the identity"
    ),
}


class SpectraxError(RuntimeError):
    """A computation did not succeed, and the caller had asked to be told by an exception."""


class SVDResult(NamedTuple):
    """Some singular triplets of an operator, A v_i = s_i u_i and A^H u_i = s_i v_i, each with its residual.

    Attributes:
        u: Left singular vectors: the structure of the operator's output with a leading axis k.
        s: Singular values, shape (k,), descending at both ends of the spectrum.
        v: Right singular vectors: the structure of the operator's input with a leading axis k; v[i] is v_i itself and
            not its conjugate.
        residuals: sqrt(|A v_i - s_i u_i|^2 + |A^H u_i - s_i v_i|^2), shape (k,). Some singular value of A lies within
            residuals[i] / sqrt(2) of s[i]; that none was missed is not implied.
        converged: residuals[i] <= max(tol * s[i], c * eps * s_max), shape (k,), boolean.
        num_matvecs: How many single vectors A or A^H was applied to, int32.
        status: A number of `Status`, int32.
    """

    u: PyTree
    s: jax.Array
    v: PyTree
    residuals: jax.Array
    converged: jax.Array
    num_matvecs: jax.Array
    status: jax.Array


class EighResult(NamedTuple):
    """Some eigenpairs of a Hermitian operator, H x_i = lambda_i x_i, each with its residual.

    Attributes:
        eigenvalues: Real, shape (k,), descending; by modulus for which="largest_magnitude".
        eigenvectors: The structure of the operator's input with a leading axis k.
        residuals: |H x_i - lambda_i x_i|, shape (k,). Some eigenvalue lies within residuals[i] of eigenvalues[i]; that
            none was missed is not implied.
        converged: residuals[i] <= max(tol * |lambda_i|, c * eps * |H|), shape (k,), boolean.
        num_matvecs: How many single vectors H was applied to, int32.
        status: A number of `Status`, int32.
    """

    eigenvalues: jax.Array
    eigenvectors: PyTree
    residuals: jax.Array
    converged: jax.Array
    num_matvecs: jax.Array
    status: jax.Array


class ExtremeSingularValues(NamedTuple):
    """Both ends of the spectrum, each with its residual; all fields are scalars.

    Attributes:
        sigma_max: The largest singular value (a lower bound where it did not converge).
        sigma_min: The smallest of the min(m, n) singular values (an upper bound where it did not converge).
        residual_max: The residual of the largest triplet, as in `SVDResult`.
        residual_min: The residual of the smallest triplet.
        converged_max: Whether the largest converged.
        converged_min: Whether the smallest converged.
        num_matvecs: How many single vectors A or A^H was applied to.
        status: The worse `Status` of the two ends.
    """

    sigma_max: jax.Array
    sigma_min: jax.Array
    residual_max: jax.Array
    residual_min: jax.Array
    converged_max: jax.Array
    converged_min: jax.Array
    num_matvecs: jax.Array
    status: jax.Array


KINDS = ("exact", "lower", "upper", "estimate")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("value", "lower", "upper", "status"), meta_fields=("kind",)
)
@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number together with what is known about it.

    Attributes:
        value: The number as it was computed.
        lower: A lower bound of the true number; for an estimate by random probes, the end of its confidence interval.
        upper: An upper bound of the true number, likewise; inf where none is known.
        status: A number of `Status`.
        kind: "exact" (to round-off), "lower" or "upper" (the side of the truth that the value is on), or "estimate". A
            value of inf says "numerically singular" for every kind.
    """

    value: jax.Array
    lower: jax.Array
    upper: jax.Array
    status: jax.Array
    kind: str


Result = TypeVar("Result", SVDResult, EighResult)


def raise_unless_successful(result: Result) -> Result:
    """Return the result as it is, or raise on the host if it did not converge.

    Args:
        result: The result of one decomposition or of a batch of them; concrete, not a tracer.

    Returns:
        The same result.

    Raises:
        ValueError: Under a trace, where no exception can be raised.
        SpectraxError: If the status says that something did not converge.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> result = sx.raise_unless_successful(sx.svds(jnp.eye(2)))
        >>> try:
        ...     sx.raise_unless_successful(sx.svds(jnp.full((2, 2), jnp.nan)))
        ... except sx.SpectraxError as error:
        ...     print(str(error)[:29])
        NaN or Inf came up, in the op
    """
    if isinstance(result.status, jax_core.Tracer):
        raise ValueError("throw=True needs concrete results and cannot be used under jit, vmap or grad")
    worst = Status(int(np.max(result.status)))
    if worst > Status.AT_ROUND_OFF:
        values = result.s if isinstance(result, SVDResult) else result.eigenvalues
        raise SpectraxError(f"{worst.text} (residuals {np.asarray(result.residuals)}, values {np.asarray(values)})")
    return result
