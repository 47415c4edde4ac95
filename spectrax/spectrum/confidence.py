r"""Intervals of confidence for means over random probes.

For the mass that the spectral measure of a random unit vector has on a set, the distribution is known: with k of n
eigenvalues in the set, |P z|^2 follows Beta(k / 2, (n - k) / 2) for z uniform on the real sphere, and Beta(k, n - k) on
the complex one. The mean of several is near the Beta distribution of the same two moments, which is exact for one. So
its interval needs no estimate of the spread, holds for a single probe, and knows that a share near zero is skewed.

For the mean of a function over the spectrum: z^H f(A) z has a variance and a third cumulant that are multiples of the
second and third central moments of f over the spectrum. The function of two values with the same three moments is c + h
on a share s of the spectrum and c on the rest, and its interval is that of s, times h and moved by c.

For everything else, Student's t.
"""

import functools
import math
import statistics

import jax
import jax.numpy as jnp


@functools.cache
def student_quantile(level: float, degrees: int) -> float:
    """Return t with P(|T| <= t) = level for Student's distribution; infinite without a degree of freedom.

    By the finite sums for whole degrees of freedom (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4).

    Args:
        level: A number in (0, 1).
        degrees: A whole number.

    Returns:
        A positive number.
    """
    if degrees < 1:
        return math.inf
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        if _student_probability(middle, degrees) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _student_probability(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle))."""
    cosine, sine = math.cos(angle), math.sin(angle)
    total, term = 0.0, cosine if degrees % 2 else 1.0
    for index in range(degrees // 2):
        total += term
        first = 2 * index + (2 if degrees % 2 else 1)
        term *= cosine**2 * first / (first + 1)
    return (angle + sine * total) * 2 / math.pi if degrees % 2 else sine * total


def share_limits(
    lower: jax.Array, upper: jax.Array, *, level: float, dimension: int, count: int, is_complex: bool
) -> tuple[jax.Array, jax.Array]:
    r"""Return limits of the share k / n of eigenvalues in a set, from mean masses over probes on the unit sphere.

    With the Beta distribution's tails by the normal approximation of Paulson (1942, doi:10.1214/aoms/1177731608), of
    which the limits are the roots: a share f is rejected where the mean mass lies in one of the two tails of
    probability (1 - level) / 2 that it would have under f.

    Args:
        lower: A number that the mean of the masses is not below.
        upper: A number that it is not above.
        level: The probability that both limits hold.
        dimension: n.
        count: How many probes.
        is_complex: Whether they lie on the complex sphere.

    Returns:
        Lower and upper limit, in [0, 1].
    """
    freedom = 2.0 * ((dimension + 1) * count - 1) if is_complex else (dimension + 2.0) * count - 2.0
    quantile = statistics.NormalDist().inv_cdf((1 + level) / 2)

    def tail(share: jax.Array, mass: jax.Array) -> jax.Array:
        """The normal deviate of a mass, given the share; it falls with the share."""
        first, second = 2 / (9 * freedom * share), 2 / (9 * freedom * (1 - share))
        u, v = jnp.cbrt(mass / share), jnp.cbrt((1 - mass) / (1 - share))
        return ((1 - second) * u - (1 - first) * v) / jnp.sqrt(second * u**2 + first * v**2)

    def limit(mass: jax.Array, deviate: float) -> jax.Array:
        def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = (low + high) / 2
            is_low = tail(middle, mass) > deviate
            return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

        low, high = jax.lax.fori_loop(0, 2 * jnp.finfo(mass.dtype).nmant, halve, (mass * 0, mass * 0 + 1))
        return (low + high) / 2

    lowest = jnp.where(lower > 0, limit(lower, quantile), 0)
    highest = jnp.where(upper < 1, limit(upper, -quantile), 1)
    # nothing, or everything, in the set is certain only where the mass says so
    return jnp.minimum(lowest, lower), jnp.maximum(highest, upper)


def mean_limits(
    mean: jax.Array, deviations: jax.Array, weights: jax.Array, *, level: float, dimension: int, is_complex: bool
) -> tuple[jax.Array, jax.Array]:
    r"""Return limits of the mean of a function over the spectrum, from quadratures of probes on the unit sphere.

    Args:
        mean: The mean over all nodes of all probes, shape (...).
        deviations: The function at the nodes without its mean, shape (..., num_probes, num_steps).
        weights: Those of the nodes, shape (num_probes, num_steps), of sum one for each probe.
        level: The probability that both limits hold.
        dimension: n.
        is_complex: Whether the probes lie on the complex sphere.

    Returns:
        Lower and upper limit, shape (...).
    """
    count = weights.shape[0]
    largest = jnp.max(jnp.abs(deviations), (-1, -2))
    unit = jnp.where(largest > 0, largest, 1)
    scaled = deviations / unit[..., None, None]
    second, third = (jnp.sum(weights * scaled**power, (-1, -2)) / count for power in (2, 3))
    spread = jnp.sqrt(second)
    skewness = jnp.where(second > 0, third / jnp.where(second > 0, spread * second, 1), 0)
    # of s (1 - s) h^2 = second and s (1 - s) (1 - 2 s) h^3 = third
    share = (1 - skewness / jnp.sqrt(4 + skewness**2)) / 2
    share = jnp.clip(share, float(jnp.finfo(share.dtype).eps), 1 - float(jnp.finfo(share.dtype).eps))
    height = spread / jnp.sqrt(share * (1 - share)) * unit
    limits = share_limits(share, share, level=level, dimension=dimension, count=count, is_complex=is_complex)
    return mean + height * (limits[0] - share), mean + height * (limits[1] - share)
