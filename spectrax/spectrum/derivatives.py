r"""Derivatives of singular triplets.

From A v = s u and A^H u = s v with |u| = |v| = 1, the Hermitian matrix H = [[0, A], [A^H, 0]] has the eigenvector
x = [u; v] / sqrt(2) to the eigenvalue s. Hence

    ds = x^H dH x = Re(u^H dA v),        (H - s) dx = -(dH - ds) x,        x^H dx = 0.

The system is solved in the complement of the joint vector [u; v]. Deflating u and v apart would be wrong for complex A,
where du may have an imaginary component along u that the one of dv along v cancels.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import krylov, vectors
from spectrax.operators import LinearOperator

PyTree = Any
Result = TypeVar("Result")
_MAX_STEPS_PER_DIMENSION = 4


def without_tangents(result: Result) -> Result:
    """Return a tangent of zeros: of dtype float0 for counts and flags, as JAX wants them."""

    def zero(leaf: jax.Array) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.zeros_like(leaf)
        return np.zeros(leaf.shape, jax.dtypes.float0)

    return jax.tree.map(zero, result)


def triplet_tangents(
    operator: LinearOperator,
    tangent: Any,
    u: PyTree,
    s: jax.Array,
    v: PyTree,
    *,
    materialize: bool,
    tol: float,
    eps: float,
) -> tuple[PyTree, jax.Array, PyTree]:
    """Return the tangents of stacks of left vectors, values and right vectors along a tangent of the operator.

    Args:
        operator: The operator A.
        tangent: A tangent of its pytree.
        u: Stack of left vectors.
        s: Values, shape (k,).
        v: Stack of right vectors.
        materialize: Whether the operator may be made dense to solve for the vectors' tangents.
        tol: Relative residual of an iterative solve; where it is not reached the tangent is NaN.
        eps: Round-off of the operator's products.

    Returns:
        (du, ds, dv) with the structures of u, s and v.

    Cost:
        Values: one derivative of a product for each triplet. Vectors: one of the adjoint product more, and a singular
        value decomposition of the dense operator, or MINRES with two products a step for each triplet.
    """
    _, forward = jax.jvp(lambda op: op.matmat(v), (operator,), (tangent,))
    _, backward = jax.jvp(lambda op: op.rmatmat(u), (operator,), (tangent,))
    s_dot = jax.vmap(vectors.vdot)(u, forward).real

    right_sides = (_minus_scaled(forward, s_dot, u), _minus_scaled(backward, s_dot, v))
    if materialize:
        solve_one = _dense_solver(operator, eps)
    else:
        solve_one = _iterative_solver(operator, tol)

    def one(u_i, s_i, v_i, f_i, b_i):
        joint = (u_i, v_i)

        def project(x):
            return vectors.subtract(x, vectors.scale(vectors.vdot(joint, x) / 2, joint))

        matvec, rmatvec = operator.products()

        def shifted(x):
            """Apply H - s on the complement of the joint vector, and the identity on its span."""
            y = project(x)
            image = (vectors.subtract(matvec(y[1]), vectors.scale(s_i, y[0])),
                     vectors.subtract(rmatvec(y[0]), vectors.scale(s_i, y[1])))  # fmt: skip
            return vectors.add(project(image), vectors.subtract(x, y))

        def solve(_, b):
            return solve_one(project, shifted, joint, s_i, b)

        def transpose_solve(_, b):
            return vectors.conj(solve(None, vectors.conj(b)))

        b = project(vectors.scale(-1.0, (f_i, b_i)))
        return jax.lax.custom_linear_solve(shifted, b, solve, transpose_solve)

    u_dot, v_dot = jax.vmap(one)(u, s, v, *right_sides)
    return u_dot, s_dot, v_dot


def eigenpair_tangents(
    operator: LinearOperator,
    tangent: Any,
    values: jax.Array,
    rows: PyTree,
    *,
    materialize: bool,
    tol: float,
    eps: float,
) -> tuple[jax.Array, PyTree]:
    """Return the tangents of eigenvalues and of a stack of eigenvectors along a tangent of a Hermitian operator.

    d lambda = Re(x^H dA x), and (A - lambda) dx = -(dA - d lambda) x in the complement of x, with x^H dx = 0.

    Args:
        operator: The operator A.
        tangent: A tangent of its pytree.
        values: Eigenvalues, shape (k,).
        rows: Stack of eigenvectors.
        materialize: Whether the operator may be made dense to solve for the vectors' tangents.
        tol: Relative residual of an iterative solve; where it is not reached the tangent is NaN.
        eps: Round-off of the operator's products.

    Returns:
        (d values, d rows) with the structures of values and rows.

    Cost:
        Values: one derivative of a product for each pair. Vectors: an eigendecomposition of the dense operator, or
        MINRES with one product a step for each pair.
    """
    _, forward = jax.jvp(lambda op: op.matmat(rows), (operator,), (tangent,))
    values_dot = jax.vmap(vectors.vdot)(rows, forward).real
    right_sides = _minus_scaled(forward, values_dot, rows)
    solve_one = _dense_hermitian_solver(operator, eps) if materialize else _iterative_solver(operator, tol)

    def one(value, x, forward_i):
        def project(y):
            return vectors.subtract(y, vectors.scale(vectors.vdot(x, y), x))

        matvec, _ = operator.products()

        def shifted(y):
            """Apply A - lambda on the complement of x, and the identity on its span."""
            inside = project(y)
            image = vectors.subtract(matvec(inside), vectors.scale(value, inside))
            return vectors.add(project(image), vectors.subtract(y, inside))

        def solve(_, b):
            return solve_one(project, shifted, x, value, b)

        def transpose_solve(_, b):
            return vectors.conj(solve(None, vectors.conj(b)))

        b = project(vectors.scale(-1.0, forward_i))
        return jax.lax.custom_linear_solve(shifted, b, solve, transpose_solve)

    return values_dot, jax.vmap(one)(values, rows, right_sides)


def _dense_hermitian_solver(operator: LinearOperator, eps: float):
    matrix = jax.lax.stop_gradient(operator.to_dense())
    values, columns = jnp.linalg.eigh((matrix + matrix.conj().T) / 2)

    def solve(project, shifted, x, value, b):
        """Expand b in the eigenvectors of A."""
        del shifted, x
        inside = project(b)
        along = jnp.matmul(
            columns.conj().T, vectors.as_matrix(jax.tree.map(lambda leaf: leaf[None], inside))[0],
            precision=vectors.HIGHEST,
        )  # fmt: skip
        gap = values - value
        own = jnp.arange(values.shape[0]) == jnp.argmin(jnp.abs(gap))
        tied = ~own & (jnp.abs(gap) <= 16 * eps * jnp.max(jnp.abs(values)))
        along = jnp.where(own, 0, along / jnp.where(own, 1, jnp.where(tied, jnp.nan, gap)).astype(along.dtype))
        y = jnp.matmul(columns, along, precision=vectors.HIGHEST)
        y = vectors.row(vectors.from_matrix(y[None], operator.in_struct), 0)
        return vectors.add(project(y), vectors.subtract(b, inside))

    return solve


def _minus_scaled(a: PyTree, s: jax.Array, rows: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x - y * s.reshape((-1,) + (1,) * (y.ndim - 1)).astype(y.dtype), a, rows)


def _iterative_solver(operator: LinearOperator, tol: float):
    limit = _MAX_STEPS_PER_DIMENSION * min(operator.shape) + 100

    def solve(project, shifted, joint, s, b):
        x, residual = krylov.minres(shifted, project(b), tol=tol, max_steps=limit)
        x = vectors.add(project(x), vectors.subtract(b, project(b)))
        trusted = residual <= 10 * tol
        return jax.tree.map(lambda leaf: jnp.where(trusted, leaf, jnp.nan), x)

    return solve


def _dense_solver(operator: LinearOperator, eps: float):
    left, values, right_h = jnp.linalg.svd(jax.lax.stop_gradient(operator.to_dense()), full_matrices=False)
    right = right_h.conj().T

    def dot(a, b):
        return jnp.matmul(a, b, precision=vectors.HIGHEST)

    def solve(project, shifted, joint, s, b):
        """Expand b in the eigenvectors [u_j; +-v_j] / sqrt(2) of H, and the rest in its null space."""
        del shifted
        inside = project(b)
        b_u, b_v = (vectors.as_matrix(jax.tree.map(lambda leaf: leaf[None], part))[0] for part in inside)
        along_u, along_v = dot(left.conj().T, b_u), dot(right.conj().T, b_v)
        plus, minus = (along_u + along_v) / 2, (along_u - along_v) / 2
        gap = values - s
        own = jnp.arange(values.shape[0]) == jnp.argmin(jnp.abs(gap))
        tied = ~own & (jnp.abs(gap) <= 16 * eps * values[0])
        plus = jnp.where(own, 0, plus / jnp.where(own, 1, jnp.where(tied, jnp.nan, gap)).astype(plus.dtype))
        minus = minus / (-values - s).astype(minus.dtype)
        x_u = dot(left, plus + minus) - (b_u - dot(left, along_u)) / s.astype(b_u.dtype)
        x_v = dot(right, plus - minus) - (b_v - dot(right, along_v)) / s.astype(b_v.dtype)
        x = (vectors.row(vectors.from_matrix(x_u[None], operator.out_struct), 0),
             vectors.row(vectors.from_matrix(x_v[None], operator.in_struct), 0))  # fmt: skip
        return vectors.add(project(x), vectors.subtract(b, inside))

    return solve
