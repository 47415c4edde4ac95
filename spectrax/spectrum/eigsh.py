"""Extreme eigenpairs of a Hermitian operator, with residuals and derivatives."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from spectrax import checks, explicit_axes, krylov, layouts, vectors
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import in_working_precision
from spectrax.results import EighResult, raise_unless_successful
from spectrax.spectrum.decomposition import (
    MISMATCH,
    is_usable,
    judged,
    stack_of,
    starting_block,
    unless_mismatch,
    verdict,
)
from spectrax.spectrum.derivatives import eigenpair_tangents, without_tangents
from spectrax.spectrum.methods import Dense, InverseLanczos, Lanczos, Method, choose
from spectrax.spectrum.plans import Plan, own_eps, plan_of

PyTree = Any
_ENDS = ("largest", "smallest", "largest_magnitude")


def eigsh(
    A: Any,
    /,
    k: int = 1,
    *,
    which: str,
    method: str | Method = "auto",
    tol: float | None = None,
    max_matvecs: int | None = None,
    key: jax.Array | None = None,
    v0: PyTree | None = None,
    throw: bool = False,
) -> EighResult:
    r"""Return k eigenpairs at an end of the spectrum of a Hermitian operator, A x_i = lambda_i x_i.

    Every pair comes with its residual r_i = \|A x_i - lambda_i x_i\|, computed from the final vector. Some eigenvalue
    lies within r_i of lambda_i; that no other value was missed rests on the probe of the iterative method. That the
    operator is Hermitian is tested on the way: inner products <x, A y> and <A x, y> that differ by more than round-off
    give the status ADJOINT_MISMATCH.

    Args:
        A: An operator of shape (n, n) whose input and output have the same structure, or anything that
            `aslinearoperator` takes as one argument.
        k: How many values, 1 <= k <= n.
        which: "largest" or "smallest" in algebraic order, or "largest_magnitude".
        method: "auto" (`Dense` for small operators and where a large part of the spectrum is wanted, `Lanczos`
            otherwise), or one of these two as an object.
        tol: Relative residual to reach; default 1e-10 in 64 bits and 1e-6 in 32.
        max_matvecs: How many products an iterative method may take, checked at restarts; default max(2000, 20 n).
        key: A PRNG key; required by `Lanczos`, and under "auto" for anything but an explicit matrix that is small
            enough to be decomposed wholly.
        v0: Replaces the random start: a stack of vectors, as in `svds`.
        throw: Raise on the host if the result did not converge.

    Returns:
        An `EighResult` with `eigenvalues` (descending; by modulus for "largest_magnitude"), `eigenvectors`,
        `residuals`, `converged`, `num_matvecs` and `status`. 16-bit operators give 32-bit results.

    Raises:
        ValueError: If an argument is out of its range, a needed key is missing, the operator is not square, or `throw`
            is used under a trace.
        TypeError: If A is not an operator or has an integer dtype.
        SpectraxError: With `throw=True`, if the result did not converge.

    Cost:
        `Lanczos`: one matvec and 4 p n flops of orthogonalisation a step, subspace p. `Dense`: n matvecs (none for an
        explicit matrix) and O(n^3). The results need k matvecs more, and k for the test of
        symmetry unless the operator is symmetric by construction, as curvature is.

    Derivatives:
        d lambda_i = Re(x_i^H dA x_i); vectors through the linear system that they satisfy, with the phase held fixed,
        NaN where that has no unique solution (repeated values) or was not solved. Forward, reverse, any order.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> result = sx.eigsh(jnp.diag(jnp.array([1.0, -3.0, 2.0])), which="largest_magnitude")
        >>> round(float(result.eigenvalues[0]), 5), bool(result.converged[0])
        (-3.0, True)

    Source:
        Lanczos 1950; Wu & Simon 2000 (doi:10.1137/S0895479898334605) for the restarts.
    """
    given, operator = square_operator(A, k, which)
    explicit = isinstance(operator, MatrixOperator)
    if isinstance(method, str):
        checks.choice("method", method, ("auto",))
        blocks = explicit and v0 is None and which != "largest_magnitude"
        chosen = choose(operator.shape, k, smallest=False, explicit=explicit, blocks=blocks)
        assert isinstance(chosen, Dense | Lanczos)
    elif not isinstance(method, Dense | Lanczos) or isinstance(method, InverseLanczos):
        raise TypeError(f"method must be 'auto', Dense() or Lanczos() for eigsh, got {method!r}")
    else:
        chosen = method
    if key is not None:
        checks.key("key", key)
    elif isinstance(chosen, Lanczos) or not (explicit or isinstance(method, Dense)):
        raise ValueError(
            f"eigsh needs key= (for instance jax.random.key(0)) for method {type(chosen).__name__} on an operator of "
            f"shape {operator.shape}: only explicit matrices up to the limit of the dense method go without"
        )
    if v0 is not None:
        v0 = stack_of(v0, operator.in_struct)
    plan = plan_of(
        operator, k, which=which, method=chosen, eps=own_eps(given, operator), tol=tol, max_matvecs=max_matvecs,
        start_count=0 if v0 is None else vectors.count(v0), products_per_step=1,
    )  # fmt: skip
    one: Any = PartitionSpec()
    x = layouts.stack_specs(operator.in_struct)
    specs = EighResult(one, eigenvectors=x, residuals=one, converged=one, num_matvecs=one, status=one)
    result = explicit_axes.with_automatic_axes(functools.partial(_jitted, plan), specs, operator, key, v0)
    return raise_unless_successful(result) if throw else result


def square_operator(A: Any, k: int, which: str) -> tuple[LinearOperator, LinearOperator]:
    """Return the operator as it was given and in the dtype to compute in, after a check that `eigsh` takes it.

    Args:
        A: As for `eigsh`.
        k: How many values are wanted.
        which: The end of the spectrum.

    Returns:
        The two operators.

    Raises:
        ValueError: If the operator is not square, its two sides differ, or k or `which` is out of range.
    """
    given = aslinearoperator(A)
    operator = in_working_precision(given)
    m, n = operator.shape
    if m != n:
        raise ValueError(f"eigsh needs a square operator, got shape {operator.shape}")
    checks.same_structure("the output of the operator", operator.out_struct, operator.in_struct)
    checks.choice("which", which, _ENDS)
    checks.positive_integer("k", k)
    if k > n:
        raise ValueError(f"k must be at most n = {n} for an operator of shape {operator.shape}, got {k}")
    return given, operator


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _decompose(plan: Plan, operator: LinearOperator, key: Any, v0: PyTree) -> EighResult:
    operator = jax.lax.stop_gradient(operator)
    if isinstance(plan.method, Dense):
        return _dense(plan, operator)
    matvec, _ = operator.loop_products()
    task = plan.recurrence_task._replace(sides=layouts.sides_of(operator.in_struct, operator.out_struct))
    found = krylov.eigenpairs(
        task, vectors.stacked(matvec),
        starting_block(key, v0, operator.in_struct, plan.block_size), key,
    )  # fmt: skip
    return concluded(plan, operator, found)


def concluded(plan: Plan, operator: LinearOperator, found: krylov.Triplets) -> EighResult:
    """Return the pairs of an iteration that is over, with the residuals of the final vectors.

    Args:
        plan: Everything static.
        operator: The operator, in the dtype to compute in.
        found: What the iteration found.

    Returns:
        The result.
    """
    usable = found.finite & is_usable(operator.matrix) if isinstance(operator, MatrixOperator) else found.finite
    result = _with_residuals(plan, operator, found.values, found.right, found.largest, found.num_steps, usable)
    result = judged(result, found.complete, found.breakdowns > 0)
    return unless_mismatch(result, found.mismatch > MISMATCH * plan.round_off)


def _dense(plan: Plan, operator: LinearOperator) -> EighResult:
    matrix = operator.to_dense()
    finite = is_usable(matrix)
    matrix = jnp.where(finite, matrix, jnp.zeros_like(matrix))
    adjoint = matrix.conj().T
    values, columns = jnp.linalg.eigh((matrix + adjoint) / 2)
    largest = jnp.max(jnp.abs(values))
    magnitude = jnp.argsort(-jnp.abs(values))
    order = {"largest": slice(None, None, -1), "smallest": slice(None), "largest_magnitude": magnitude}[plan.which]
    values, rows = values[order][: plan.k], columns.T[order][: plan.k]
    count = jnp.asarray(0 if isinstance(operator, MatrixOperator) else operator.shape[0], jnp.int32)
    result = _with_residuals(
        plan, operator, values, vectors.from_matrix(rows, operator.in_struct), largest, count, finite
    )
    skew = jnp.max(jnp.abs(matrix - adjoint)) > MISMATCH * plan.round_off * jnp.max(jnp.abs(matrix))
    return unless_mismatch(result, skew)


def _with_residuals(plan: Plan, operator, values, rows, largest, count, finite) -> EighResult:
    """Sort, compute the true residuals, and say how it ended."""
    order = jnp.argsort(-jnp.abs(values) if plan.which == "largest_magnitude" else -values)
    values, rows = jax.tree.map(lambda leaf: leaf[order], (values, rows))
    rows = layouts.constrain(rows, layouts.layout_of(operator.in_struct), stacked=True)
    matmat, rmatmat = operator.fixed_block_products()
    image = matmat(rows)
    adjoint_image = image if operator.hermitian else rmatmat(rows)
    difference = vectors.stack_norms(vectors.subtract(image, adjoint_image))
    residuals = vectors.stack_norms(vectors.subtract(image, vectors.scale_rows(values, rows)))
    products = 1 if operator.hermitian else 2
    mismatch = jnp.max(difference) > MISMATCH * plan.round_off * jnp.maximum(largest, jnp.max(jnp.abs(values)))
    values, residuals, converged, status = verdict(plan, values, residuals, largest, finite)
    result = EighResult(values, rows, residuals, converged, (count + products * plan.k).astype(jnp.int32), status)
    return unless_mismatch(result, mismatch)


@_decompose.defjvp
def _decompose_jvp(plan, primals, tangents):
    operator = primals[0]
    result = _decompose(plan, *primals)
    values_dot, rows_dot = eigenpair_tangents(
        operator, tangents[0], result.eigenvalues, result.eigenvectors,
        materialize=isinstance(plan.method, Dense), tol=plan.tol, eps=plan.eps,
    )  # fmt: skip
    return result, without_tangents(result)._replace(eigenvalues=values_dot, eigenvectors=rows_dot)


_jitted = jax.jit(_decompose, static_argnums=0)
