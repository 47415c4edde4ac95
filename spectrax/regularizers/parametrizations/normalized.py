"""Parametrizations that divide by a norm, or iterate towards the nearest orthonormal matrix."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.regularizers.parametrizations.contract import Parametrization


def spectral_normalized(
    bound: float = 1.0,
    *,
    norm: Callable[[jax.Array], jax.Array] | None = None,
    shrink_only: bool = False,
) -> Parametrization:
    r"""Return kernels of a given spectral norm, W bound / \|W\|.

    The raw parameters are a kernel, and nothing else: no vectors are kept beside it, nothing is written into the
    parameters, and training and evaluation give the same.

    Args:
        bound: The wanted norm.
        norm: A function of the kernel that gives its norm, or an upper bound of it; default: the largest singular value
            of a matrix (in, out), or of each of a stack. For a convolution, whose reshaped kernel has another norm,
            `lambda kernel: sx.conv_norm(kernel, padding="SAME", method="gram").value` bounds it for every size of the
            input.
        shrink_only: Whether kernels of a smaller norm are left as they are.

    Returns:
        The parametrization. `init` is exact for kernels of that norm (with `shrink_only`, of at most that norm). A
        kernel of zeros stays zero.

    Raises:
        ValueError: If `bound` is not positive.
        TypeError: If `bound` is not a number.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> form = sx.parametrizations.spectral_normalized(2.0)
        >>> form.apply(form.init(jnp.diag(jnp.array([4.0, 1.0])))).tolist()
        [[2.0, 0.0], [0.0, 0.5]]

    Source:
        Miyato et al. 2018, arXiv 1802.05957, with the norm itself in place of one step of power iteration.
    """
    checks.number_in("bound", bound, 0, math.inf, low_open=True)

    def apply(raw: jax.Array) -> jax.Array:
        kernel = raw.astype(vectors.working_dtype(raw.dtype))
        if norm is None:
            if kernel.ndim < 2:
                raise ValueError(f"kernel must have at least two axes, got shape {kernel.shape}")
            size = jnp.linalg.svd(kernel, compute_uv=False, full_matrices=False)[..., :1, None]
        else:
            size = norm(kernel)
        return scaled(kernel, size, bound, shrink_only).astype(raw.dtype)

    return Parametrization(jnp.asarray, apply)


def scaled(kernel: jax.Array, size: jax.Array, bound: float, shrink_only: bool) -> jax.Array:
    """Return the kernel times bound / size, or as it is where its size is zero or, for `shrink_only`, in the bound."""
    keep = (size <= bound) if shrink_only else (size == 0)
    safe = jnp.where(keep, 1, size)
    unit = jax.lax.stop_gradient(safe)  # taken out as a constant: no square of a size is in the derivative
    return kernel / unit.astype(kernel.dtype) * jnp.where(keep, 1, bound / (safe / unit)).astype(kernel.dtype)


def bjorck(*, num_steps: int = 12) -> Parametrization:
    r"""Return matrices near the orthonormal one that is nearest to the raw parameters, by Bjorck's iteration.

    With W scaled by sqrt(\|W\|_1 \|W\|_inf), which bounds its norm, each step takes W (3 I - W^H W) / 2, of the shorter
    side. Every singular value s below sqrt(3) goes to one: a small one grows by half at a step, and near one the error
    is squared. Matrix products only, and no decomposition.

    Args:
        num_steps: How many steps. Values that begin below 1.5^-num_steps do not arrive: they come out too small, and
            the norm is at most one in any case.

    Returns:
        The parametrization, of matrices (in, out) or stacks of them. `init` is exact for matrices with orthonormal
        columns (rows), up to what the scale makes of them: the steps bring them back.

    Raises:
        ValueError: If `num_steps` is not positive.
        TypeError: If `num_steps` is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> form = sx.parametrizations.bjorck()
        >>> Q = form.apply(form.init(jnp.array([[3.0, 1.0], [0.0, 2.0], [1.0, 1.0]])))
        >>> bool(jnp.allclose(Q.T @ Q, jnp.eye(2), atol=1e-5))
        True

    Source:
        Bjorck & Bowie 1971 (doi:10.1137/0708036); Anil, Lucas & Grosse 2019, arXiv 1811.05381.
    """
    checks.positive_integer("num_steps", num_steps)

    def apply(raw: jax.Array) -> jax.Array:
        if raw.ndim < 2:
            raise ValueError(f"kernel must have at least two axes, got shape {raw.shape}")
        wide = raw.shape[-2] < raw.shape[-1]
        kernel = raw.astype(vectors.working_dtype(raw.dtype))
        kernel = vectors.adjoint(kernel) if wide else kernel
        peak = jax.lax.stop_gradient(jnp.max(jnp.abs(kernel), axis=(-2, -1), keepdims=True))  # no product overflows
        kernel = kernel / jnp.where(peak > 0, peak, 1).astype(kernel.dtype)
        sums = jnp.abs(kernel)
        largest = jnp.max(jnp.sum(sums, -1), -1) * jnp.max(jnp.sum(sums, -2), -1)
        scale = jax.lax.rsqrt(jnp.where(largest > 0, largest, 1))[..., None, None]

        def step(_: int, W: jax.Array) -> jax.Array:
            return 1.5 * W - 0.5 * vectors.matmul(W, vectors.matmul(vectors.adjoint(W), W))

        # a loop of fixed length can be differentiated backwards
        kernel = jax.lax.fori_loop(0, int(num_steps), step, kernel * scale.astype(kernel.dtype))
        return (vectors.adjoint(kernel) if wide else kernel).astype(raw.dtype)

    return Parametrization(jnp.asarray, apply)
