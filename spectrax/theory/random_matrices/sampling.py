"""Random layers to check the theory by."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks
from spectrax.theory.perturbation.values import real_scalar
from spectrax.theory.random_matrices.slopes import Slopes, distribution

ENTRIES = ("gaussian", "uniform")


def sample_skip_layer(
    key: jax.Array,
    /,
    *,
    n: int,
    c: Any,
    rho: Any = 1.0,
    slopes: Any,
    entries: str = "gaussian",
    dtype: Any = None,
) -> jax.Array:
    """Draw the Jacobian D W + rho I of a random layer.

    The entries of W are independent with mean 0 and variance c^2 / n. The slopes are not random: a distribution is
    laid out over the units in its proportions, which changes nothing in the law of the singular values, since that of
    W is invariant under permutations.

    Args:
        key: A PRNG key; draw many by `jax.vmap` over keys.
        n: The width.
        c: The weights' scale, a number or a scalar array.
        rho: The factor of the skip, a number or a scalar array.
        slopes: An array of shape (n,) with the slope of every unit; or as in `skip_layer_limits`: a name, one slope, or
            a tuple (values, probabilities).
        entries: The law of an entry, "gaussian" or "uniform".
        dtype: A real floating-point dtype; by default float64 in 64-bit mode and float32 otherwise.

    Returns:
        Shape (n, n).

    Raises:
        TypeError: If the key, the width or the dtype is not one, or a number is not real.
        ValueError: If an option is not valid, c or rho has axes, or the slopes are not as many as units.

    Derivatives:
        By c, rho and an array of slopes, forward and reverse.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from spectrax.theory.random_matrices import sample_skip_layer, skip_layer_limits
        >>> layer = sample_skip_layer(jax.random.key(0), n=200, c=0.5, rho=1.0, slopes="relu")
        >>> s = np.linalg.svd(np.asarray(layer), compute_uv=False)
        >>> limits = skip_layer_limits(0.5, rho=1.0, slopes="relu")
        >>> bool(abs(s[0] - limits.s_max) < 0.1), bool(abs(s[-1] - limits.s_min) < 0.1)
        (True, True)

    Source:
        The model of `skip_layer_limits`.
    """
    checks.key("key", key)
    checks.positive_integer("n", n)
    checks.choice("entries", entries, ENTRIES)
    dtype = jnp.dtype(jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a real floating-point dtype, got {dtype.name}")
    diagonal = jnp.asarray(_per_unit(slopes, n)).astype(dtype)
    scale = real_scalar("c", c, dtype) / np.sqrt(n).astype(dtype)
    skip = real_scalar("rho", rho, dtype)
    if entries == "gaussian":
        weights = jax.random.normal(key, (n, n), dtype)
    else:
        weights = jax.random.uniform(key, (n, n), dtype, -(3**0.5), 3**0.5)
    return diagonal[:, None] * (scale * weights) + skip * jnp.eye(n, dtype=dtype)


def _per_unit(slopes: Slopes, n: int) -> Any:
    """Return the slope of every unit: of a distribution, its quantiles at (i + 1/2) / n."""
    if not isinstance(slopes, str | tuple) and np.ndim(slopes) > 0:
        if np.shape(slopes) != (n,):
            raise ValueError(f"slopes, as an array, must have shape ({n},), got {np.shape(slopes)}")
        array = slopes if isinstance(slopes, jax.Array) else np.asarray(slopes)
        if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
            raise TypeError(f"slopes must be real numbers, got dtype {array.dtype}")
        return array
    values, probabilities = distribution(slopes)
    places = np.searchsorted(np.cumsum(probabilities), (np.arange(n) + 0.5) / n)
    return values[np.minimum(places, len(values) - 1)]
