"""Parametrizations of matrices, (in, out) or with batch axes before."""

import jax
import jax.numpy as jnp

from spectrax import checks, spectrum, vectors
from spectrax.regularizers.parametrizations.contract import Parametrization


def cayley() -> Parametrization:
    """Return matrices with orthonormal columns or, if they are wide, rows, by the Cayley transform.

    The raw parameters are a dict of the "matrix" that is transformed and of the "signs" by which the columns (rows) of
    the transform are multiplied. `init` chooses them such that no eigenvalue is near -1, which the transform cannot
    give; without them half of the real orthogonal matrices, the reflections, would be out of reach. `apply` takes
    their signs alone and gives them no gradient.

    It is for `Dense` and `Linear`: in a convolution each tap by itself would be orthonormal, which bounds nothing; take
    `cayley_convolution` there.

    Returns:
        The parametrization. `init` is exact, to round-off, for matrices with orthonormal columns (rows); for others the
        applied matrix is the nearest such one, the polar factor; of several, one of them.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> form = sx.parametrizations.cayley()
        >>> reflection = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> bool(jnp.allclose(form.apply(form.init(reflection)), reflection, atol=1e-6))
        True

    Source:
        Trockman & Kolter 2021 (arXiv 2104.07167), section 4. The signs are those of Ballard et al. 2015
        (doi:10.1016/j.jpdc.2015.06.003), algorithm 6, which makes Householder vectors of an orthonormal matrix.
    """
    return Parametrization(_init, _apply)


def _init(kernel: jax.Array) -> dict[str, jax.Array]:
    kernel = jnp.asarray(kernel)
    checks.inexact("kernel", kernel.dtype)
    if kernel.ndim < 2:
        raise ValueError(f"kernel must have at least two axes, got shape {kernel.shape}")
    m, n = kernel.shape[-2:]
    tall = kernel if m >= n else vectors.adjoint(kernel)
    u, _, vh = jnp.linalg.svd(tall.astype(vectors.working_dtype(kernel.dtype)), full_matrices=False)
    W, signs = jnp.vectorize(_inverse, signature="(m,n)->(m,n),(n)")(vectors.matmul(u, vh))
    return {
        "matrix": (W if m >= n else vectors.adjoint(W)).astype(kernel.dtype),
        "signs": signs.astype(vectors.real_dtype(kernel.dtype)),
    }


def _apply(raw: dict[str, jax.Array]) -> jax.Array:
    matrix = raw["matrix"]
    signs = jnp.where(raw["signs"] < 0, -1, 1).astype(matrix.dtype)
    transform = spectrum.cayley(matrix)
    wide = matrix.shape[-2] < matrix.shape[-1]
    return transform * (signs[..., :, None] if wide else signs[..., None, :])


@jax.jit
def _inverse(Q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return W and signs of which the transform of W with its columns multiplied by the signs is Q."""
    n = Q.shape[-1]
    signs = _signs(Q[:n])
    Q = Q * signs.astype(Q.dtype)
    identity = jnp.eye(n, dtype=Q.dtype)
    inverse = jnp.linalg.solve(identity + Q[:n], identity)  # (I + A) / 2 of the forward transform
    return jnp.concatenate([(inverse - vectors.adjoint(inverse)) / 2, -vectors.matmul(Q[n:], inverse)]), signs


def _signs(Q: jax.Array) -> jax.Array:
    """Return signs d for which Q + diag(d) has an LU decomposition with pivots of at least one in modulus."""
    index = jnp.arange(Q.shape[0])

    def eliminate(step, carry):
        rest, signs = carry
        sign = jnp.where(rest[step, step].real < 0, -1, 1).astype(signs.dtype)
        pivot = rest[step, step] + sign.astype(rest.dtype)
        column = jnp.where(index > step, rest[:, step], 0) / pivot
        return rest - jnp.outer(column, rest[step]), signs.at[step].set(sign)

    start = (Q, jnp.ones(Q.shape[0], vectors.real_dtype(Q.dtype)))
    return jax.lax.fori_loop(0, Q.shape[0], eliminate, start)[1]
