"""How answers are judged, all in the same way: residuals in 64 bits, values against LAPACK, and an unrestarted run."""

import dataclasses
from typing import Any

import numpy as np
import scipy.linalg

from .cases import Problem


@dataclasses.dataclass
class Answer:
    """What a solver returned: k triplets as rows, and how many vectors A or A^T was applied to."""

    u: np.ndarray
    s: np.ndarray
    v: np.ndarray
    matvecs: int | None = None
    note: str = ""


def descending(answer: Answer) -> Answer:
    order = np.argsort(answer.s)[::-1]
    u, s, v = answer.u[order], answer.s[order], answer.v[order]
    return dataclasses.replace(answer, u=u, s=np.asarray(s, np.float64), v=v)


def judge(problem: Problem, answer: Answer, *, smallest: bool = False) -> dict[str, Any]:
    """Return the verified relative residual, the error against the true values, and how many values were missed."""
    answer = descending(answer)
    if not all(np.isfinite(part).all() for part in (answer.u, answer.s, answer.v)):
        return {"residual": None, "error": None, "missed": None, "matvecs": answer.matvecs, "note": "not finite"}
    u, v = (np.asarray(part, np.float64).reshape(len(answer.s), -1) for part in (answer.u, answer.v))
    u, v = (part / np.maximum(np.linalg.norm(part, axis=1), 1e-300)[:, None] for part in (u, v))
    s = answer.s[:, None]
    right = np.linalg.norm(problem.apply(v) - s * u, axis=1)
    left = np.linalg.norm(problem.adjoint(u) - s * v, axis=1)
    residuals = np.hypot(left, right)
    truth, whole = problem.truth
    k, uncertainty = len(answer.s), 20 * np.finfo(np.float64).eps * truth[0]
    judged = {
        "residual": float(np.max(residuals / np.maximum(answer.s, 1e-300))),
        "matvecs": answer.matvecs,
        "values": answer.s.tolist(),
        "note": answer.note,
    }
    if smallest and not whole:
        return judged | {"error": None, "missed": None}
    expected = truth[-k:] if smallest else truth[:k]
    judged["error"] = float(np.max(np.abs(answer.s - expected) / expected))
    judged["missed"] = missed(answer.s, residuals, truth, smallest=smallest, uncertainty=uncertainty)
    return judged


def missed(s: np.ndarray, residuals: np.ndarray, truth: np.ndarray, *, smallest: bool, uncertainty: float) -> int:
    """Count the true values that lie beyond the last returned one by more than its residual, and were not returned.

    Beyond the last returned value means above it at the top and below it at the bottom. Each of these must stand among
    the returned ones, as often as it occurs.
    """
    s, residuals, truth = (np.asarray(x, np.float64) for x in (s, residuals, truth))
    if smallest:
        s, residuals, truth = -s[::-1], residuals[::-1], -truth[::-1]
    beyond = truth[truth > s[-1] + residuals[-1] + uncertainty]
    found = np.zeros(len(s), bool)
    count = 0
    for value in beyond:
        near = np.flatnonzero(~found & (np.abs(s - value) <= residuals + uncertainty))
        if near.size:
            found[near[0]] = True
        else:
            count += 1
    return count


def reaches(judged: dict[str, Any], target: float) -> bool:
    """Whether an answer is right, and its verified residual at most the target."""
    return judged["residual"] is not None and judged["residual"] <= 1.001 * target and not judged["missed"]


def unrestarted_pairs(problem: Problem, k: int, tol: float, *, most: int = 1500) -> tuple[int | None, bool]:
    """Return how many pairs of products Golub-Kahan needs from the same start with the basis kept to the end.

    And whether its values are right: of a repeated value it finds one copy, until round-off brings in the others.

    Full reorthogonalisation, twice, in 64 bits; at every step the residuals beta |e_j^T p_i| <= tol s_i are tested. The
    projected problem is the tridiagonal matrix of order 2 j with a zero diagonal (Golub & Kahan 1965), in which no
    small component is lost.
    """
    most = min(most, *problem.shape)
    left, right = np.zeros((most, problem.shape[0])), np.zeros((most + 1, problem.shape[1]))
    diagonals: list[float] = []
    right[0] = problem.start / np.linalg.norm(problem.start.astype(np.float64))
    beta = 0.0
    for j in range(most):
        u = problem.apply(right[j : j + 1])[0] - (beta * left[j - 1] if j else 0.0)
        for _ in range(2):
            u -= left[:j].T @ (left[:j] @ u)
        alpha = np.linalg.norm(u)
        left[j] = u / alpha
        v = problem.adjoint(left[j : j + 1])[0] - alpha * right[j]
        for _ in range(2):
            v -= right[: j + 1].T @ (right[: j + 1] @ v)
        beta = np.linalg.norm(v)
        diagonals.append(alpha)
        if j + 1 >= k:
            size = 2 * (j + 1)
            off = np.array(diagonals)
            chosen = {"select": "i", "select_range": (size - k, size - 1)}
            values, basis = scipy.linalg.eigh_tridiagonal(np.zeros(size), off, **chosen)
            if np.all(beta * np.sqrt(2) * np.abs(basis[-1]) <= tol * values):
                bounds = tol * values[::-1] + 20 * np.finfo(np.float64).eps * values[-1]
                return j + 1, bool(np.all(np.abs(values[::-1] - problem.truth[0][:k]) <= bounds))
        if beta == 0:
            return j + 1, False
        right[j + 1] = v / beta
        diagonals.append(beta)
    return None, False
