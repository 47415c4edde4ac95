"""What a result may claim: a check against a full decomposition in 64 bits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, vectors
from spectrax.operators import aslinearoperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.results import Status, SVDResult

PyTree = Any


def assert_singular_values(result: SVDResult, A: Any, /, *, which: str = "largest") -> None:
    """Raise `AssertionError` if a result claims about an operator what is not true of it.

    The matrix is made and decomposed by NumPy in 64 bits. What is checked:

    - the vectors are orthonormal, and the residuals are those of the vectors;
    - each value lies within its residual / sqrt(2) of a true singular value, converged or not;
    - when all values have converged, they are the extreme ones, in order, none of them missed, with every copy of a
      repeated value; a value that did not converge may be a wrong one, since the result says so;
    - the status says what the flags say; an operator that is not finite has NaN values and the status NOT_FINITE.

    All within round-off of the operator's dtype.

    Args:
        result: A concrete `SVDResult` of one operator.
        A: The operator, or anything that `aslinearoperator` takes.
        which: The end that was asked for, "largest" or "smallest".

    Raises:
        AssertionError: If the result is wrong; the message says what was claimed and what is true.
        ValueError: If `which` is neither of the two.

    Cost:
        A dense decomposition on the host.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> A = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> sx.testing.assert_singular_values(sx.svds(A, 2), A)
    """
    checks.choice("which", which, ("largest", "smallest"))
    operator = aslinearoperator(A)
    # an explicit 16-bit matrix is cast up before anything is done with it; other operators have products in 16 bits
    explicit = isinstance(operator, MatrixOperator)
    working = float(jnp.finfo(vectors.working_dtype(operator.dtype)).eps)
    eps = working if explicit else float(jnp.finfo(operator.dtype).eps)
    wide = np.complex128 if jnp.issubdtype(operator.dtype, jnp.complexfloating) else np.float64
    matrix = np.asarray(operator.to_dense()).astype(wide)
    s, residuals = np.asarray(result.s, np.float64), np.asarray(result.residuals, np.float64)
    converged, k = np.asarray(result.converged), len(np.asarray(result.s))
    if not np.isfinite(matrix).all():
        _holds(np.isnan(s).all() and not converged.any(), f"values {s} of an operator that is not finite")
        _holds(
            int(result.status) == Status.NOT_FINITE, f"status {int(result.status)} of an operator that is not finite"
        )
        return
    true = np.linalg.svd(matrix, compute_uv=False)
    margin = ((10 + 2 * max(matrix.shape) ** 0.5) * working + (10 * eps if eps > working else 0)) * true[0]
    u, v = _rows(result.u).astype(wide), _rows(result.v).astype(wide)
    own_eps = float(np.finfo(np.asarray(result.s).dtype).eps)
    for name, rows in (("u", u), ("v", v)):
        defect = np.abs(rows.conj() @ rows.T - np.eye(k)).max()
        _holds(defect <= 100 * rows.shape[1] ** 0.5 * own_eps, f"{name} is not orthonormal: it misses by {defect:.1e}")
    forward, backward = v @ matrix.T - s[:, None] * u, u @ matrix.conj() - s[:, None] * v
    actual = np.hypot(np.linalg.norm(forward, axis=1), np.linalg.norm(backward, axis=1))
    _holds((np.abs(actual - residuals) <= margin).all(), f"residuals {residuals}, where they are {actual}")
    _holds((np.diff(s) <= 0).all(), f"values {s} are not in descending order")
    nearest = np.abs(s[:, None] - true).min(axis=1)
    _holds(
        (nearest <= residuals * 0.5**0.5 + margin).all(),
        f"values {s} with residuals {residuals}: the nearest true ones are {nearest} away",
    )
    wanted = true[:k] if which == "largest" else true[-k:]
    if converged.all():
        _holds(
            (np.abs(s - wanted) <= residuals * 0.5**0.5 + 2 * margin).all(),
            f"values {s}, all converged, where the {which} ones are {wanted}",
        )
    success = int(result.status) in (Status.CONVERGED, Status.AT_ROUND_OFF)
    _holds(success == converged.all(), f"status {int(result.status)} with the flags {converged}")


def _holds(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _rows(stack: PyTree) -> np.ndarray:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(stack)]
    return np.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)
