"""Logarithms of determinants of positive definite operators: by a factorisation, or by stochastic quadrature."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, explicit_axes, krylov, vectors
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import in_working_precision
from spectrax.results import Quantity, Status
from spectrax.spectrum.decomposition import MISMATCH, is_usable
from spectrax.spectrum.functions import power_of_two
from spectrax.spectrum.methods import Dense, can_be_dense
from spectrax.spectrum.plans import own_eps, round_off_floor
from spectrax.spectrum.stochastic_quadrature import SpectrumPlan, check_square, density_of, probe_vectors

PyTree = Any
_TRUSTED = 1e-2  # the relative residual of a linear system up to which a derivative is given


@dataclasses.dataclass(frozen=True)
class StochasticLanczos:
    """Stochastic Lanczos quadrature, as in `spectral_density`.

    Attributes:
        num_probes: How many random vectors.
        num_steps: How many steps for each; one is one product.
        batch_size: How many probes run at a time.
    """

    num_probes: int = 16
    num_steps: int = 64
    batch_size: int = 1

    def __post_init__(self):
        checks.positive_integer("num_probes", self.num_probes)
        checks.positive_integer("num_steps", self.num_steps)
        checks.positive_integer("batch_size", self.batch_size)


def logdet(
    A: Any,
    /,
    *,
    key: jax.Array | None = None,
    method: str | Dense | StochasticLanczos = "auto",
    level: float = 0.95,
    full: bool = False,
) -> jax.Array | Quantity:
    r"""Return the logarithm of the determinant of a positive definite operator.

    Args:
        A: A Hermitian positive definite operator of shape (n, n) whose input and output have the same structure, or
            anything that `aslinearoperator` takes as one argument.
        key: A PRNG key; needed by `StochasticLanczos`.
        method: `Dense` (a Cholesky factorisation), `StochasticLanczos` (n / num_probes sum_p sum_j w_j log theta_j over
            the quadratures of random probes), or "auto": `Dense` for what can be made dense (see
            `docs/how-to-choose`) if it is an explicit matrix or n products are no more than those of
            `StochasticLanczos()`.
        level: The confidence level of the interval, in (0, 1).
        full: Whether to return the value with its interval.

    Returns:
        A real scalar; or with `full=True` a `Quantity`. By `Dense` its kind is "exact", with bounds for the round-off
        to first order. By `StochasticLanczos` it is "estimate", and the interval that of `SpectralDensity.sum`. NaN
        with the status NOT_POSITIVE_DEFINITE where a negative eigenvalue came up, or one that is zero to round-off,
        NOT_FINITE where a product was not finite, ADJOINT_MISMATCH where the operator is not Hermitian. Few steps may
        miss a negative eigenvalue, but not one that the quadrature gives any weight; and where the condition number is
        far above num_steps squared, eigenvalues near zero are seen late, and the value lies too high, beyond what the
        interval allows for.

    Raises:
        ValueError: If the operator is not square, a needed key is missing, or an argument is out of its range.
        TypeError: If `method` is none of those objects, or the key is not a PRNG key.

    Cost:
        n matvecs (none for an explicit matrix) and n^3 / 3 operations, or num_probes num_steps matvecs.

    Derivatives:
        tr(A^-1 dA), any order. By `StochasticLanczos` it is estimated by the same probes, n times the mean of
        Re((A^-1 z)^H dA z), which is the derivative of the true number in the mean and not that of the estimate. It
        takes one linear system for each probe, by MINRES in at most 4 num_steps products, and is NaN where one of them
        has a residual above 1e-2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> round(float(sx.logdet(jnp.diag(jnp.array([1.0, 2.0, 4.0])))), 4)
        2.0794
        >>> scales = jnp.linspace(1.0, 2.0, 5000)
        >>> A = sx.aslinearoperator(lambda v: scales * v, jax.ShapeDtypeStruct((5000,), jnp.float32))
        >>> found = sx.logdet(A, key=jax.random.key(0), full=True)
        >>> bool(found.lower < jnp.sum(jnp.log(scales)) < found.upper)
        True

    Source:
        Ubaru, Chen & Saad 2017 (doi:10.1137/16M1104974); for the derivative Dong et al. 2017 (arXiv:1711.03481).
    """
    given = aslinearoperator(A)
    operator = in_working_precision(given)
    check_square("logdet", operator)
    checks.level(level)
    if isinstance(method, str):
        checks.choice("method", method, ("auto",))
        method = StochasticLanczos()
        is_cheap = isinstance(operator, MatrixOperator) or operator.shape[0] <= method.num_probes * method.num_steps
        if is_cheap and can_be_dense(operator.shape):
            method = Dense()
    elif not isinstance(method, Dense | StochasticLanczos):
        raise TypeError(f"method must be 'auto', Dense() or StochasticLanczos(), got {method!r}")
    eps = own_eps(given, operator)
    if isinstance(method, Dense):
        method.check_size(operator)
        quantity = explicit_axes.replicated(functools.partial(_by_cholesky, round_off_floor(operator, eps)), operator)
        return quantity if full else quantity.value
    if key is None:
        raise ValueError(
            f"logdet needs key= (for instance jax.random.key(0)) for method {type(method).__name__} on an operator of "
            f"shape {operator.shape}: only operators that are factorised go without"
        )
    checks.key("key", key)
    plan = SpectrumPlan(
        "eigenvalues", method.num_probes, min(method.num_steps, operator.shape[0]), method.batch_size, eps
    )
    run = functools.partial(_jitted, plan, level)
    value, lower, upper, status = explicit_axes.replicated(run, operator, key)
    return Quantity(value, lower, upper, status, kind="estimate") if full else value


@functools.partial(jax.jit, static_argnums=0)
def _by_cholesky(round_off: float, operator: LinearOperator) -> Quantity:
    matrix = operator.to_dense()
    n = matrix.shape[0]
    scale = power_of_two(matrix)
    finite = is_usable(jax.lax.stop_gradient(matrix))
    scaled = matrix / scale.astype(matrix.dtype)
    poison = jnp.sum(scaled.real) * jnp.where(finite, jnp.zeros((), scale.dtype), jnp.nan)  # for the derivative as well
    scaled = jnp.where(finite, scaled, jnp.eye(n, dtype=matrix.dtype))
    skew = jnp.max(jnp.abs(scaled - scaled.conj().T)) > MISMATCH * round_off * jnp.max(jnp.abs(scaled))
    factor = jnp.linalg.cholesky(scaled)  # of the Hermitian part
    value = 2 * jnp.sum(jnp.log(jnp.diagonal(factor).real)) + n * jnp.log(scale)
    status = _status(finite, skew, jnp.isfinite(jax.lax.stop_gradient(value)))
    value = value * _one_or_nan(status, value) + poison
    fixed, fixed_factor = jax.lax.stop_gradient((value, factor))
    # d log det = tr(A^-1 dA), with an error of A of round_off |A|
    inverse = jax.scipy.linalg.solve_triangular(fixed_factor, jnp.eye(n, dtype=matrix.dtype), lower=True)
    norm = jnp.linalg.norm(jax.lax.stop_gradient(scaled))
    margin = round_off * (norm * jnp.sum(jnp.square(jnp.abs(inverse))) + jnp.abs(fixed))
    return Quantity(value, fixed - margin, fixed + margin, status, kind="exact")


def _status(finite: jax.Array, skew: jax.Array, positive: jax.Array) -> jax.Array:
    status = jnp.where(positive, int(Status.CONVERGED), int(Status.NOT_POSITIVE_DEFINITE))
    status = jnp.where(skew, int(Status.ADJOINT_MISMATCH), status)
    return jnp.where(finite, status, int(Status.NOT_FINITE)).astype(jnp.int32)


def _one_or_nan(status: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.where(status == int(Status.CONVERGED), jnp.ones((), like.dtype), jnp.nan)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _by_quadrature(
    plan: SpectrumPlan, level: float, operator: LinearOperator, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    found = density_of(plan, operator, key)
    peak = jnp.max(jnp.abs(found.nodes))
    least = 8 * plan.eps * peak
    positive = jnp.all(found.nodes > least)
    total = found.sum(lambda node: jnp.log(jnp.maximum(node, least)), level=level)
    known = found.status == int(Status.CONVERGED)
    status = jnp.where(known & ~positive, int(Status.NOT_POSITIVE_DEFINITE), found.status).astype(jnp.int32)
    factor = _one_or_nan(status, peak)
    return total.value * factor, total.lower * factor, total.upper * factor, status


@_by_quadrature.defjvp
def _by_quadrature_jvp(plan, level, primals, tangents):
    operator, key = primals
    value, lower, upper, status = _by_quadrature(plan, level, operator, key)
    slope = _slope(plan, operator, tangents[0], key) * _one_or_nan(status, value)
    zero = jnp.zeros_like(value)
    return (value, lower, upper, status), (slope, zero, zero, np.zeros(status.shape, jax.dtypes.float0))


def _slope(plan: SpectrumPlan, operator: LinearOperator, tangent: Any, key: jax.Array) -> jax.Array:
    """Return n times the mean over probes of Re((A^-1 z)^H dA z)."""
    probes = probe_vectors(plan, operator, key)
    _, along = jax.jvp(lambda operator: operator.matmat(probes), (operator,), (tangent,))
    tol = 1e-10 if jnp.finfo(operator.dtype).bits == 64 else 1e-6

    def solve(matvec: Any, b: PyTree) -> PyTree:
        x, residual = krylov.minres(matvec, b, tol=tol, max_steps=4 * plan.num_steps)
        return jax.tree.map(lambda leaf: jnp.where(residual <= _TRUSTED, leaf, jnp.nan), x)

    def transpose_solve(matvec: Any, b: PyTree) -> PyTree:
        return vectors.conj(solve(lambda v: vectors.conj(matvec(vectors.conj(v))), vectors.conj(b)))

    def one(z: PyTree, image: PyTree) -> jax.Array:
        matvec, _ = operator.products()
        x = jax.lax.custom_linear_solve(matvec, z, solve, transpose_solve)
        return vectors.vdot(x, image).real

    return operator.shape[0] * jnp.mean(jax.vmap(one)(probes, along))


_jitted = jax.jit(_by_quadrature, static_argnums=(0, 1))
