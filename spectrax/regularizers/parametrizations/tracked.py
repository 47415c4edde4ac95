"""Spectral normalisation with singular vectors that are followed from step to step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from spectrax import checks, explicit_axes, vectors
from spectrax.krylov.projected import projected_svd
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.regularizers.parametrizations.contract import TrackedParametrization
from spectrax.regularizers.parametrizations.normalized import scaled

PyTree = Any
_FIRST_ROUNDS, _FIRST_STEPS = 8, 4  # of a kernel of which nothing is known


class LeadingVectors(NamedTuple):
    """Approximate singular vectors of the largest singular value, of unit length and at least 32 bits.

    Attributes:
        u: In the space of the operator's outputs.
        v: In the space of its inputs.
        sigma: Re(u^H A v) when they were found, a lower bound of the norm.
    """

    u: PyTree
    v: PyTree
    sigma: jax.Array


def tracked_spectral_norm(
    operator: Callable[[jax.Array], LinearOperator] | None = None,
    *,
    bound: float = 1.0,
    shrink_only: bool = False,
    num_steps: int = 1,
) -> TrackedParametrization:
    r"""Return kernels of a given spectral norm, W bound / s, where s follows the norm of a layer.

    An update takes `num_steps` vectors of the Krylov space of A^H A that begins with A^H u, and of their span the one
    of the largest \|A v\|; one step is one step of power iteration. Then s = Re(u^H A v) with u = A v / \|A v\|, and
    its derivative is Re(u^H dA v). It is never above the norm of A, so that the norm of the result is the bound once
    the vectors have converged, and somewhat more where they lag behind.

    Args:
        operator: A function of the kernel that gives the layer as a linear map, such as
            `lambda kernel: sx.conv_operator(kernel, (32, 32), padding="SAME")`; default: a matrix (in, out).
        bound: The wanted norm.
        shrink_only: Whether kernels of a smaller norm are left as they are.
        num_steps: How many vectors an update takes.

    Returns:
        Functions of the kernel and of `LeadingVectors`. `init` searches from a random start, with 32 pairs of products.
        `update` keeps the vectors where the new ones are zero or not finite. A kernel of zeros stays zero.

    Raises:
        ValueError: If `bound` or `num_steps` is not positive; for a kernel that is no matrix if no operator is given.
        TypeError: If `bound` is not a number or `num_steps` no integer.

    Cost:
        An update: `num_steps` products with A^H and with A, on one sample each. `apply`: one with A, which is the last
        of the update where both are compiled together.

    Derivatives:
        Of `apply` in the kernel, any order, with u and v as constants.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> form = sx.parametrizations.tracked_spectral_norm()
        >>> kernel = jnp.diag(jnp.array([4.0, 1.0]))
        >>> state = form.init(kernel, jax.random.key(0))
        >>> state = form.update(2 * kernel, state)
        >>> form.apply(2 * kernel, state).round(4).tolist()
        [[1.0, 0.0], [0.0, 0.25]]

    Source:
        Miyato et al. 2018, arXiv 1802.05957, algorithm 1, which writes nothing but the vectors; more than one step by
        Rayleigh-Ritz on the vectors of Golub & Kahan 1965 (doi:10.1137/0702016).
    """
    checks.number_in("bound", bound, 0, math.inf, low_open=True)
    checks.positive_integer("num_steps", num_steps)
    make = _transposed_matrix if operator is None else operator

    def operator_of(kernel: jax.Array) -> LinearOperator:
        return make(kernel.astype(vectors.working_dtype(kernel.dtype)))

    def init(kernel: jax.Array, key: jax.Array) -> LeadingVectors:
        A = jax.lax.stop_gradient(operator_of(jnp.asarray(kernel)))
        u_key, v_key = jax.random.split(key)
        start = LeadingVectors(
            _unit(vectors.normal(u_key, A.out_struct)), _unit(vectors.normal(v_key, A.in_struct)),
            jnp.zeros((), vectors.real_dtype(A.dtype)),
        )  # fmt: skip
        return jax.lax.fori_loop(0, _FIRST_ROUNDS, lambda _, state: follow(A, state, _FIRST_STEPS), start)

    def update(kernel: jax.Array, state: LeadingVectors) -> LeadingVectors:
        kernel, state = jax.lax.stop_gradient((kernel, state))
        return follow(operator_of(kernel), state, int(num_steps))

    def apply(kernel: jax.Array, state: LeadingVectors) -> jax.Array:
        sigma, _ = norm_along(operator_of(kernel), state.v)
        wide = kernel.astype(vectors.working_dtype(kernel.dtype))
        return scaled(wide, sigma, bound, shrink_only).astype(kernel.dtype)

    def first(kernel: jax.Array, state: LeadingVectors) -> LeadingVectors:
        specs = explicit_axes.replicated_specs(state)
        if operator is not None:
            return specs
        inputs, outputs = (*explicit_axes.specs_of(kernel), None, None)[:2]
        return specs._replace(u=PartitionSpec(outputs), v=PartitionSpec(inputs))

    return TrackedParametrization(
        explicit_axes.with_init_specs(init, first),
        explicit_axes.with_specs(update, lambda kernel, state: explicit_axes.specs_of(state)),
        explicit_axes.with_specs(apply, lambda kernel, state: explicit_axes.specs_of(kernel)),
    )


def norm_along(operator: LinearOperator, v: PyTree) -> tuple[jax.Array, PyTree]:
    r"""Return s = Re(u^H A v) for u = A v / \|A v\|, with u and v as constants, and u.

    Args:
        operator: A, in the dtype to compute in.
        v: Of unit length.

    Returns:
        The value, which is \|A v\|, and u; both zero where A v is.
    """
    v = jax.lax.stop_gradient(v)
    image = operator.matvec(v)
    fixed = jax.lax.stop_gradient(image)
    u = vectors.divide(fixed, vectors.norm(fixed))
    return vectors.vdot(u, image).real, u


def follow(operator: LinearOperator, state: LeadingVectors, num_steps: int) -> LeadingVectors:
    """Return the leading vectors of an operator near one whose vectors are known.

    Args:
        operator: A, in the dtype to compute in.
        state: The vectors so far.
        num_steps: How many vectors of the Krylov space of A^H A are taken.

    Returns:
        The new vectors, or the old ones with the new sigma where the new ones are zero or not finite.
    """
    v = _unit(operator.rmatvec(state.u))
    if num_steps > 1:
        v = _best(operator, v, min(num_steps, *operator.shape))
    sigma, u = norm_along(operator, v)
    good = jnp.isfinite(sigma) & (sigma > 0)
    u, v = (
        jax.tree.map(lambda new, old: jnp.where(good, new, old), new, old)
        for new, old in ((u, state.u), (v, state.v))
    )  # fmt: skip
    return LeadingVectors(u, v, sigma)


def _best(operator: LinearOperator, v: PyTree, count: int) -> PyTree:
    """Return the vector of the largest image among the combinations of `count` Krylov vectors that begin with v."""
    rows = jax.tree.map(lambda leaf: leaf[None], v)
    images = jax.tree.map(lambda leaf: leaf[None], operator.matvec(v))
    for _ in range(1, count):
        image = operator.rmatvec(vectors.row(images, -1))
        size = vectors.norm(image)
        new = jax.tree.map(lambda leaf: leaf[None], image)
        for _ in range(2):
            new = vectors.without(rows, new)
        # what round-off left over is no direction: it would not be orthogonal to the others
        length = vectors.norm(new)
        new = vectors.divide(new, jnp.where(length > 16 * vectors.eps(image) * size, length, 0))
        rows, images = (
            jax.tree.map(lambda a, b: jnp.concatenate([a, b]), stack, block)
            for stack, block in ((rows, new), (images, operator.matmat(new)))
        )
    factor = jnp.linalg.qr(vectors.as_matrix(images).T, mode="r")
    _, _, right = projected_svd(factor)
    return _unit(vectors.combine(right[0].conj(), rows))


def _unit(v: PyTree) -> PyTree:
    return vectors.divide(v, vectors.norm(v))


def _transposed_matrix(kernel: jax.Array) -> LinearOperator:
    if kernel.ndim != 2:
        raise ValueError(f"kernel must be a matrix (in, out) where no operator is given, got shape {kernel.shape}")
    return aslinearoperator(kernel.T)
