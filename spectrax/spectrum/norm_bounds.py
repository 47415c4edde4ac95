"""Bounds of the spectral norm that no residual can give: they hold for every matrix, but for a known probability."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, explicit_axes, vectors
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import in_working_precision
from spectrax.results import Quantity
from spectrax.spectrum.functions import power_of_two, status_of
from spectrax.spectrum.plans import own_eps, round_off_floor

PyTree = Any
_LOST = 0.1  # what a second orthogonalisation may leave of a unit vector


def spectral_norm_bound(
    A: Any, /, *, key: jax.Array, num_steps: int = 32, failure_probability: float = 1e-6
) -> Quantity:
    r"""Return an upper bound of the largest singular value that holds up to a probability of failure.

    A residual shows that some singular value is near, never that no larger one was missed. A random start does: after j
    steps of an unrestarted Golub-Kahan run from a Gaussian vector, the largest Ritz value theta of A^H A, n x n and
    real on the shorter side, satisfies, whatever the spectrum,

        P(theta < (1 - e) s_1^2) <= 1.648 sqrt(n) exp(-sqrt(e) (2 j - 1)).

    With e such that the right-hand side is `failure_probability`, s_1 <= sqrt(theta / (1 - e)) but for that
    probability. It is over the draw of the start, which is why there is no starting vector to be given, and why the
    bound holds for a key that was chosen without looking at A.

    A complex matrix A^H A acts on the real and imaginary parts as a real symmetric one of dimension 2 n, with the same
    eigenvalues, each twice, and a complex Gaussian vector is a real Gaussian one there. The real Krylov space lies in
    the complex one, so that theta is at least as large: the statement holds with 2 n in place of n.

    Args:
        A: An operator of shape (m, n), or anything that `aslinearoperator` takes as one argument.
        key: A PRNG key.
        num_steps: The number j of steps. From min(m, n) steps on, the Krylov space is invariant, and e = 0.
        failure_probability: A number in (0, 1).

    Returns:
        A `Quantity` of kind "upper". `value` and `upper` are the bound, with the round-off of the products added, and
        inf where num_steps is too small for the probability, e >= 1; `lower` is sqrt(theta), a lower bound without any
        probability. NaN with the status NOT_FINITE where a product was not finite.

    Raises:
        ValueError: If `num_steps` is not positive, `failure_probability` is not in (0, 1), or an array lies on a mesh
            with explicit axes.
        TypeError: If the key is not a PRNG key.

    Cost:
        2 min(num_steps, m, n) - 1 matvecs, and the memory of that many vectors.

    Derivatives:
        None: a bound is not differentiated, and its derivative is zero. Differentiate `spectral_norm`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> bound = sx.spectral_norm_bound(jnp.diag(jnp.linspace(1.0, 3.0, 100)), key=jax.random.key(0))
        >>> bool(bound.lower <= 3.0 <= bound.value), bool(bound.value < 3.2)
        (True, True)

    Source:
        Kuczynski & Wozniakowski 1992 (doi:10.1137/0613066), Theorem 4.2.
    """
    given = aslinearoperator(A)
    operator = in_working_precision(given)
    checks.key("key", key)
    checks.positive_integer("num_steps", num_steps)
    checks.number_in("failure_probability", failure_probability, 0.0, 1.0, low_open=True)
    if failure_probability == 1:
        raise ValueError("failure_probability must lie in (0, 1), got 1")
    side = min(operator.shape)
    run = functools.partial(_largest_ritz_value, num_steps=min(num_steps, side))
    ritz, finite = explicit_axes.replicated(run, operator, key)
    share = _missing_share(side, num_steps, failure_probability, is_complex=vectors.is_complex(operator.dtype))
    round_off = round_off_floor(operator, own_eps(given, operator))
    lower = ritz * (1 - round_off)
    upper = ritz * ((1 + round_off) / (1 - share) ** 0.5) if share < 1 else jnp.full_like(ritz, jnp.inf)
    lower, upper = (jnp.where(finite, bound, jnp.nan) for bound in (lower, upper))
    return Quantity(upper, lower, upper, status_of(finite), kind="upper")


def _missing_share(side: int, num_steps: int, failure_probability: float, *, is_complex: bool) -> float:
    """Return e, the share of the largest eigenvalue by which the Ritz value may be too small."""
    if num_steps >= side:
        return 0.0  # with probability one the start has a component along the first singular vector
    dimension = 2 * side if is_complex else side
    return (math.log(1.648 * dimension**0.5 / failure_probability) / (2 * num_steps - 1)) ** 2


@functools.partial(jax.jit, static_argnames="num_steps")
def _largest_ritz_value(operator: LinearOperator, key: jax.Array, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Return the largest singular value of A on the Krylov space of A^H A and a Gaussian vector, and if it is finite.

    Both bases are orthogonalised fully. Where a vector is lost to round-off, what is left of it is noise, which is
    kept: the Ritz value can only grow by it, and may find what the start had hardly a component of.
    """
    operator = jax.lax.stop_gradient(operator)
    scale = 1.0
    if isinstance(operator, MatrixOperator):  # entries so small that products underflow would make the bound wrong
        scale = power_of_two(operator.matrix)
        operator = MatrixOperator(operator.matrix / scale.astype(operator.dtype))
    tall = operator if operator.shape[0] >= operator.shape[1] else operator.H
    matvec, rmatvec = tall.loop_products()

    def step(bases, index):
        right, left = bases
        v, beta = orthonormal(right, rmatvec(vectors.row(left, index - 1)))
        u, alpha = orthonormal(left, matvec(v))
        return (vectors.set_row(right, index, v), vectors.set_row(left, index, u)), (alpha, beta)

    right, left = vectors.zeros(tall.in_struct, num_steps), vectors.zeros(tall.out_struct, num_steps)
    v, _ = orthonormal(right, vectors.normal(key, tall.in_struct))
    u, alpha = orthonormal(left, matvec(v))
    bases = vectors.set_row(right, 0, v), vectors.set_row(left, 0, u)
    _, (alphas, betas) = jax.lax.scan(step, bases, jnp.arange(1, num_steps))
    alphas = jnp.concatenate([alpha[None], alphas])
    largest = _bidiagonal_norm(alphas, betas)
    return largest * scale, jnp.isfinite(largest)


def orthonormal(rows: PyTree, w: PyTree) -> tuple[PyTree, jax.Array]:
    """Return w, orthogonalised twice against orthonormal rows and normalised, and the length that it had before.

    Both are zero where nothing is left that can be made orthogonal: of a multiple of a row, only its own round-off.

    Args:
        rows: A stack of orthonormal vectors, some of which may be zero.
        w: A vector.

    Returns:
        A vector of length 1 or 0, and a real scalar.
    """
    w, first = _normalized(_without(rows, w))
    w, second = _normalized(_without(rows, w))
    is_lost = second < _LOST  # not for NaN, which has to be seen; else w is orthogonal to the rows up to eps / _LOST
    w = jax.tree.map(lambda leaf: jnp.where(is_lost, 0, leaf), w)
    return w, jnp.where(is_lost, 0, first * second)


def _without(rows: PyTree, w: PyTree) -> PyTree:
    return vectors.subtract(w, vectors.combine(vectors.rows_vdot(rows, w), rows))


def _normalized(w: PyTree) -> tuple[PyTree, jax.Array]:
    length = vectors.norm(w)
    return vectors.divide(w, length), length


def _bidiagonal_norm(alphas: jax.Array, betas: jax.Array) -> jax.Array:
    """Return the largest singular value of the matrix with alphas on the diagonal and betas above it.

    From the largest eigenvalue of B^H B, to which squares do no harm once the entries are scaled.
    """
    peak = jnp.maximum(jnp.max(alphas), jnp.max(betas, initial=0.0))
    scale = jnp.where(peak == 0, 1, peak)
    diagonal, above = alphas / scale, betas / scale
    squares = diagonal**2 + jnp.pad(above**2, (1, 0))
    product = diagonal[:-1] * above
    gram = jnp.diag(squares) + jnp.diag(product, 1) + jnp.diag(product, -1)
    return scale * jnp.sqrt(jnp.linalg.eigvalsh(gram)[-1])
