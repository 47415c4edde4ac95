"""Stochastic Lanczos quadrature: the whole spectrum of what cannot be decomposed, from random probes."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, explicit_axes, krylov, layouts, vectors
from spectrax.krylov import quadrature
from spectrax.krylov.factorization import Factorization
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import in_working_precision
from spectrax.results import Status
from spectrax.spectrum.decomposition import MISMATCH, is_usable
from spectrax.spectrum.density import SpectralDensity, measure
from spectrax.spectrum.plans import own_eps, round_off_floor

PyTree = Any
SPECTRA = ("eigenvalues", "singular_values")


def spectral_density(
    A: Any,
    /,
    *,
    key: jax.Array,
    num_probes: int = 16,
    num_steps: int = 64,
    spectrum: str = "eigenvalues",
    batch_size: int = 1,
) -> SpectralDensity:
    r"""Return the density of eigenvalues or singular values by stochastic Lanczos quadrature, with error bars.

    For z uniform on the unit sphere, E sum_i f(lambda_i) |x_i^H z|^2 = (1/n) sum_i f(lambda_i). Lanczos (Golub-Kahan
    on the shorter side for singular values) from z gives the Gauss quadrature of this measure, which is exact for
    polynomials of degree 2 num_steps - 1. The probes are on the sphere, and not of random signs, since their masses
    then have a distribution that is known for every basis of eigenvectors: the interval of a count is exact in
    the number of probes.

    Args:
        A: An operator of shape (m, n), or anything that `aslinearoperator` takes as one argument. For eigenvalues it is
            Hermitian, with an input and output of the same structure.
        key: A PRNG key.
        num_probes: How many random vectors.
        num_steps: How many steps for each, at most the dimension.
        spectrum: "eigenvalues" or "singular_values", of which there are min(m, n).
        batch_size: How many probes run at a time. On a CPU more than one gains nothing.

    Returns:
        A `SpectralDensity` with nodes and weights, `density`, `cumulative`, `count` and `sum`. 16-bit operators give
        32-bit results. NaN with the status NOT_FINITE where a product was not finite, and ADJOINT_MISMATCH where the
        operator is not Hermitian, or where adjoint and operator don't match.

    Raises:
        ValueError: If an argument is out of its range, an operator for eigenvalues is not square, or an array lies on
            a mesh with explicit axes.
        TypeError: If the key is not a PRNG key.

    Cost:
        num_probes num_steps matvecs, or twice as many for singular values, and the memory of num_steps + 1 vectors for
        each probe of a batch (of as many left ones besides).

    Derivatives:
        None: NaN where one is asked for. Differentiate `logdet`, `trace` or `spectral_function`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> A = jnp.diag(jnp.linspace(-1.0, 3.0, 200))
        >>> found = sx.spectral_density(A, key=jax.random.key(0), num_probes=8, num_steps=32)
        >>> negative = found.count(upper=0.0)
        >>> bool(negative.lower <= 50 <= negative.upper)
        True

    Source:
        Lin, Saad & Yang 2016 (doi:10.1137/130934283), section 3.2; Ubaru, Chen & Saad 2017 (doi:10.1137/16M1104974);
        Chen, Trogdon & Ubaru 2021 (arXiv:2105.06595) for distributions.
    """
    checks.choice("spectrum", spectrum, SPECTRA)
    given = aslinearoperator(A)
    operator = in_working_precision(given)
    if spectrum == "eigenvalues":
        check_square('spectral_density without spectrum="singular_values"', operator)
    checks.key("key", key)
    checks.positive_integer("num_probes", num_probes)
    checks.positive_integer("num_steps", num_steps)
    checks.positive_integer("batch_size", batch_size)
    plan = SpectrumPlan(spectrum, num_probes, min(num_steps, *operator.shape), batch_size, own_eps(given, operator))
    return explicit_axes.replicated(functools.partial(_jitted, plan), operator, key)


@dataclasses.dataclass(frozen=True)
class SpectrumPlan:
    """Everything static about a quadrature: see `spectral_density`; `eps` is the round-off of the products."""

    spectrum: str
    num_probes: int
    num_steps: int
    batch_size: int
    eps: float


def check_square(what: str, operator: LinearOperator) -> None:
    """Raise unless the input and the output of an operator have the same structure."""
    if operator.shape[0] != operator.shape[1]:
        raise ValueError(f"{what} needs a square operator, got shape {operator.shape}")
    checks.same_structure("the output of the operator", operator.out_struct, operator.in_struct)


def probe_vectors(plan: SpectrumPlan, operator: LinearOperator, key: jax.Array) -> PyTree:
    """Return the random vectors of unit length that the probes start from, as a stack."""
    struct = operator.in_struct if operator.shape[0] >= operator.shape[1] else operator.out_struct
    keys = jax.random.split(jax.random.fold_in(key, 0), plan.num_probes)

    def draw(key: jax.Array) -> PyTree:
        vector = vectors.normal(key, struct)
        return vectors.divide(vector, vectors.norm(vector))

    return layouts.constrain(jax.vmap(draw)(keys), layouts.layout_of(struct), stacked=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def density_of(plan: SpectrumPlan, operator: LinearOperator, key: jax.Array) -> SpectralDensity:
    """Return the density that a plan stands for; its derivative is NaN."""
    operator = jax.lax.stop_gradient(operator)
    tall = operator if operator.shape[0] >= operator.shape[1] else operator.H
    is_folded = plan.spectrum == "singular_values"
    matvec, rmatvec = (vectors.stacked(product) for product in tall.loop_products())
    products = (matvec, rmatvec) if is_folded else (matvec, None)
    starts = probe_vectors(plan, operator, key)
    sides = layouts.sides_of(tall.in_struct, tall.out_struct)

    def probe(operands: tuple[jax.Array, PyTree]) -> Any:
        own_key, start = operands
        left_struct = tall.out_struct if is_folded else None
        state = quadrature.init(own_key, start, left_struct, plan.num_steps, sides=sides)
        state = quadrature.run(*products, state, sides=sides)
        return finished(state)

    keys = jax.random.split(jax.random.fold_in(key, 1), plan.num_probes)
    batch = None if plan.batch_size == 1 else plan.batch_size
    return collected(plan, operator, jax.lax.map(probe, (keys, starts), batch_size=batch))


class Finished(NamedTuple):
    """What is kept of a probe, or with a leading axis of several.

    Attributes:
        jacobi: The Jacobi matrix.
        size: How many steps were made.
        finite: Whether all products were finite.
        mismatch: As in `Factorization`.
    """

    jacobi: krylov.Jacobi
    size: jax.Array
    finite: jax.Array
    mismatch: jax.Array


def finished(state: Factorization) -> Finished:
    """Return what is kept of a factorisation that is finished."""
    return Finished(quadrature.finalize(state), state.size, state.finite, state.mismatch)


@functools.partial(jax.jit, static_argnums=0)
def collected(plan: SpectrumPlan, operator: LinearOperator, probes: Finished) -> SpectralDensity:
    """Return the density from what is kept of some probes, stacked."""
    finite = jnp.all(probes.finite)
    if isinstance(operator, MatrixOperator):
        finite &= is_usable(operator.matrix)
    jacobi = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), probes.jacobi)
    nodes, weights = jax.vmap(lambda one: measure(one, plan.spectrum))(jacobi)
    peak = jnp.max(jnp.abs(nodes))
    round_off = round_off_floor(operator, plan.eps)
    mismatch = jnp.max(probes.mismatch) > MISMATCH * round_off
    status = jnp.where(mismatch, int(Status.ADJOINT_MISMATCH), int(Status.CONVERGED))
    status = jnp.where(finite, status, int(Status.NOT_FINITE)).astype(jnp.int32)
    known = status == int(Status.CONVERGED)
    return SpectralDensity(
        nodes=jnp.where(known, nodes, jnp.nan),
        weights=jnp.where(known, weights, jnp.nan),
        jacobi=jacobi,
        resolution=round_off * peak,
        num_matvecs=jnp.sum(probes.size) * (1 if plan.spectrum == "eigenvalues" else 2),
        status=status,
        spectrum=plan.spectrum,
        dimension=min(operator.shape),
        is_complex=vectors.is_complex(operator.dtype),
    )


@density_of.defjvp
def _density_jvp(plan, primals, tangents):
    """No derivative, and NaN for it: a density of zero derivative would train nothing without a word."""
    result = density_of(plan, *primals)
    dtype = result.nodes.dtype
    parts = [leaf for leaf in jax.tree.leaves(tangents[0]) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    along = sum((jnp.sum(jnp.real(leaf)).astype(dtype) for leaf in parts), jnp.zeros((), dtype))

    def tangent(leaf: jax.Array) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.full_like(leaf, jnp.nan) * along
        return np.zeros(leaf.shape, jax.dtypes.float0)

    return result, jax.tree.map(tangent, result)


_jitted = jax.jit(density_of, static_argnums=0)
