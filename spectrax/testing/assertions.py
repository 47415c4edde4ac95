"""What a result may claim: a check against a full decomposition in 64 bits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, vectors
from spectrax.operators import aslinearoperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.results import EighResult, Status, SVDResult

PyTree = Any


def assert_singular_values(result: SVDResult, A: Any, /, *, which: str = "largest", tol: float | None = None) -> None:
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
        tol: The relative residual that was asked for: a value that is flagged converged must have it, or be at
            round-off. None for no such check.

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
    matrix, margin, finite = _matrix_of(A, result.s, result.converged, result.status)
    if not finite:
        return
    s, residuals = np.asarray(result.s, np.float64), np.asarray(result.residuals, np.float64)
    true = np.linalg.svd(matrix, compute_uv=False)
    margin = margin * true[0]
    u, v = _rows(result.u).astype(matrix.dtype), _rows(result.v).astype(matrix.dtype)
    own_eps = float(np.finfo(np.asarray(result.s).dtype).eps)
    for name, rows in (("u", u), ("v", v)):
        _orthonormal(name, rows, own_eps)
    forward, backward = v @ matrix.T - s[:, None] * u, u @ matrix.conj() - s[:, None] * v
    actual = np.hypot(np.linalg.norm(forward, axis=1), np.linalg.norm(backward, axis=1))
    _holds((np.abs(actual - residuals) <= margin).all(), f"residuals {residuals}, where they are {actual}")
    _holds((np.diff(s) <= 0).all(), f"values {s} are not in descending order")
    wanted = true[: len(s)] if which == "largest" else true[-len(s) :]
    nearest = np.abs(s[:, None] - true).min(axis=1)
    _values(s, residuals, nearest, wanted, margin, which, tol, result.converged, result.status, share=0.5**0.5)


def assert_eigenvalues(result: EighResult, A: Any, /, *, which: str, tol: float | None = None) -> None:
    """Raise `AssertionError` if a result claims about a Hermitian operator what is not true of it.

    As `assert_singular_values`, with NumPy's eigenvalues; each value lies within its residual of a true one. With
    "largest_magnitude" the moduli descend, and where two are equal the order of the signs is open.

    Args:
        result: A concrete `EighResult` of one operator.
        A: The operator, or anything that `aslinearoperator` takes; its Hermitian part is what counts.
        which: The end that was asked for, "largest", "smallest" or "largest_magnitude".
        tol: As in `assert_singular_values`.

    Raises:
        AssertionError: If the result is wrong; the message says what was claimed and what is true.
        ValueError: If `which` is none of the three.

    Cost:
        A dense decomposition on the host.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> A = jnp.diag(jnp.array([3.0, -4.0, 1.0]))
        >>> sx.testing.assert_eigenvalues(sx.eigsh(A, 2, which="smallest"), A, which="smallest")
    """
    checks.choice("which", which, ("largest", "smallest", "largest_magnitude"))
    matrix, margin, finite = _matrix_of(A, result.eigenvalues, result.converged, result.status)
    if not finite:
        return
    values, residuals = np.asarray(result.eigenvalues, np.float64), np.asarray(result.residuals, np.float64)
    true = np.linalg.eigvalsh((matrix + matrix.conj().T) / 2)
    margin = margin * np.abs(true).max()
    x = _rows(result.eigenvectors).astype(matrix.dtype)
    _orthonormal("eigenvectors", x, float(np.finfo(np.asarray(result.eigenvalues).dtype).eps))
    actual = np.linalg.norm(x @ matrix.T - values[:, None] * x, axis=1)
    _holds((np.abs(actual - residuals) <= margin).all(), f"residuals {residuals}, where they are {actual}")
    nearest = np.abs(values[:, None] - true).min(axis=1)
    key = {"largest": -true, "smallest": true, "largest_magnitude": -np.abs(true)}[which]
    wanted = true[np.argsort(key, kind="stable")][: len(values)]
    if which == "largest_magnitude":
        descending = np.diff(np.abs(values)) <= margin
        values, wanted = np.abs(values), np.abs(wanted)
    else:
        descending, wanted = np.diff(values) <= 0, np.sort(wanted)[::-1]
    _holds(descending.all(), f"values {values} are not in descending order")
    _values(values, residuals, nearest, wanted, margin, which, tol, result.converged, result.status)


def _matrix_of(A: Any, values: Any, converged: Any, status: Any) -> tuple[np.ndarray, float, bool]:
    """Return the matrix in 64 bits, the size of round-off relative to its norm, and whether it is finite at all."""
    operator = aslinearoperator(A)
    # an explicit 16-bit matrix is cast up before anything is done with it; other operators have products in 16 bits
    explicit = isinstance(operator, MatrixOperator)
    working = float(jnp.finfo(vectors.working_dtype(operator.dtype)).eps)
    eps = working if explicit else float(jnp.finfo(operator.dtype).eps)
    wide = np.complex128 if jnp.issubdtype(operator.dtype, jnp.complexfloating) else np.float64
    matrix = np.asarray(operator.to_dense()).astype(wide)
    finite = bool(np.isfinite(matrix).all())
    limits = jnp.finfo(vectors.working_dtype(operator.dtype))
    if finite and np.isnan(np.asarray(values)).all() and np.abs(matrix).max() < 2 * float(limits.tiny / limits.eps):
        finite = False  # so small that products underflow: nothing is claimed
    if not finite:
        nothing = np.isnan(np.asarray(values)).all() and not np.asarray(converged).any()
        _holds(nothing, f"values {values} of an operator that is not finite")
        _holds(int(status) == Status.NOT_FINITE, f"status {int(status)} of an operator that is not finite")
    margin = (10 + 2 * max(matrix.shape) ** 0.5) * working + (10 * eps if eps > working else 0)
    return matrix, margin, finite


def _orthonormal(name: str, rows: np.ndarray, eps: float) -> None:
    defect = np.abs(rows.conj() @ rows.T - np.eye(len(rows))).max()
    _holds(defect <= 100 * rows.shape[1] ** 0.5 * eps, f"{name} is not orthonormal: it misses by {defect:.1e}")


def _values(values, residuals, nearest, wanted, margin, which, tol, converged, status, share=1.0) -> None:
    """Each value has a true one near it; those that all converged are the wanted ones; flags and status are right."""
    converged, errors = np.asarray(converged), share * residuals
    if tol is not None:
        round_off = 6 * margin  # what LAPACK's own decompositions leave in 64 bits is five times this margin
        _holds(
            (residuals <= np.maximum(tol * np.abs(values), round_off))[converged].all(),
            f"values {values} with residuals {residuals} flagged {converged}, where tol is {tol}",
        )
    _holds(
        (nearest <= errors + margin).all(),
        f"values {values} with error bounds {errors}: the nearest true ones are {nearest} away",
    )
    if converged.all():
        _holds(
            (np.abs(values - wanted) <= errors + 2 * margin).all(),
            f"values {values}, all converged, where the {which} ones are {wanted}",
        )
    success = int(status) in (Status.CONVERGED, Status.AT_ROUND_OFF)
    _holds(success == converged.all(), f"status {int(status)} with the flags {converged}")


def _holds(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _rows(stack: PyTree) -> np.ndarray:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(stack)]
    return np.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)
