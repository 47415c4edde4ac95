"""The largest singular values once more on the host: residuals from products in 64 bits, and refinement.

Products in 32 bits leave residuals of some eps times the root of the longer side. Where that is above the tolerance, a
few vectors of the Krylov space of A^H A, with Rayleigh-Ritz, take away what that noise has added to the vectors.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from spectrax.results import Status, SVDResult

_ROUNDS = 8  # of refinement: by how many blocks the Krylov space grows
_WIDE_ENTRIES = 2**17  # of a matrix that is cast up to 64 bits at a time
Product = Callable[[np.ndarray], np.ndarray]


def verified(result: SVDResult, k: int, tall: np.ndarray, tol: float) -> dict[str, Any]:
    """Compute the residuals of the k largest triplets anew, and refine those above the tolerance.

    Args:
        result: The triplets as they were found, as NumPy arrays.
        k: How many.
        tall: The matrix, shape (m, n), m >= n.
        tol: The relative residual to reach.

    Returns:
        `values` and `residuals`, shape (k,), `converged`, likewise, `status`, and `refined`.
    """
    s, residuals = np.asarray(result.s[:k], float), np.asarray(result.residuals[:k], float)
    found = {"values": s, "residuals": residuals, "converged": result.converged[:k], "refined": False}
    if np.all(np.isfinite(s)) and s[0] > 0:
        product, adjoint = _wide_products(tall)
        left, right = (_unit_columns(stack[:k]) for stack in (result.u, result.v))
        image, back = product(right), adjoint(left)
        s = np.abs(np.sum(left.conj() * image, axis=0))
        found |= {"values": s, "residuals": _residuals(image - left * s, back - right * s)}
        if np.all(found["converged"]) and np.any(found["residuals"] > tol * s):
            found |= _refined(product, adjoint, right, image, back, found["residuals"], tol)
    return found | {"status": status_of(result, slice(k), tol, found)}


def _refined(product, adjoint, right, image, back, residuals, tol) -> dict[str, Any]:
    """Return what Rayleigh-Ritz finds in a growing Krylov space, or nothing if that is no better.

    Args:
        product: x -> A x.
        adjoint: y -> A^H y.
        right: Right vectors as columns, shape (n, k).
        image: A times them.
        back: A^H times their left vectors, which extends the space.
        residuals: Those of the triplets, shape (k,).
        tol: The relative residual to reach.

    Returns:
        `values`, `residuals` and `refined`, or nothing.
    """
    k, found = right.shape[1], {}
    basis, triangle = np.linalg.qr(right)
    images = np.linalg.solve(triangle.T, image.T).T
    for _ in range(_ROUNDS):
        new = np.linalg.qr(np.hstack([basis, back]))[0][:, basis.shape[1] :]
        basis, images = np.hstack([basis, new]), np.hstack([images, product(new)])
        left, values, coefficients = np.linalg.svd(images, full_matrices=False)
        left, values, weights = left[:, :k], values[:k], coefficients.conj().T[:, :k]
        back = adjoint(left)
        errors = _residuals(images @ weights - left * values, back - (basis @ weights) * values)
        if np.all(errors <= residuals):
            residuals, found = errors, {"values": values, "residuals": errors, "refined": True}
        if np.all(errors <= tol * values) or 2 * basis.shape[1] > basis.shape[0]:
            break
    return found


def _residuals(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    return np.hypot(np.linalg.norm(forward, axis=0), np.linalg.norm(backward, axis=0))


def _unit_columns(stack: Any) -> np.ndarray:
    """Return a stack of vectors as columns of length one, in 64 bits."""
    columns = np.asarray(stack).T
    columns = columns.astype(np.complex128 if columns.dtype.kind == "c" else np.float64)
    return columns / np.linalg.norm(columns, axis=0)


def _wide_products(tall: np.ndarray) -> tuple[Product, Product]:
    """Return the products with A and A^H in 64 bits; a large matrix is cast up in parts of its rows."""
    wide = np.complex128 if tall.dtype.kind == "c" else np.float64
    if tall.size <= _WIDE_ENTRIES:
        matrix = tall.astype(wide, copy=False)
        return lambda x: matrix @ x, lambda y: matrix.conj().T @ y
    rows = max(1, _WIDE_ENTRIES // tall.shape[1])
    parts = [slice(start, start + rows) for start in range(0, tall.shape[0], rows)]

    def product(x: np.ndarray) -> np.ndarray:
        return np.concatenate([tall[part].astype(wide) @ x for part in parts])

    def adjoint(y: np.ndarray) -> np.ndarray:
        return functools.reduce(np.add, [tall[part].astype(wide).conj().T @ y[part] for part in parts])

    return product, adjoint


def status_of(result: SVDResult, chosen: slice, tol: float, known: dict[str, Any] | None = None) -> Status:
    """Return how some triplets ended, of a result that may hold others.

    Args:
        result: The result.
        chosen: Which of its triplets.
        tol: The relative residual to reach.
        known: Their `values` and `residuals`, where these are not the result's.

    Returns:
        The status.
    """
    if known is None:
        known = {"values": result.s[chosen], "residuals": result.residuals[chosen]}
    if not np.all(np.asarray(result.converged[chosen])):
        return max(Status(int(result.status)), Status.NOT_CONVERGED)
    reached = np.asarray(known["residuals"], float) <= tol * np.asarray(known["values"], float)
    return Status.CONVERGED if np.all(reached) else Status.AT_ROUND_OFF
