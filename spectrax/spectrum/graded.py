"""Graded matrices: rows of norm one with the logarithms of their norms, and Jacobi rotations of them.

Demmel & Veselic 1992 (doi:10.1137/0613074): the singular values of rows that are well conditioned but for their norms
come out with high relative accuracy by one-sided Jacobi rotations, however far the norms lie apart.
"""

import jax
import jax.numpy as jnp

from spectrax import vectors

LOG_OF_ZERO = -1e30  # in place of -inf, so that differences remain numbers
_MAX_SWEEPS = 30


def distance_from_diagonal(rows: jax.Array) -> jax.Array:
    """Return how far a triangle is from its diagonal D, as the norm of D^-1 R - I, which bounds |log s_i - log D_ii|.

    Rows of zeros count as zero, and the bound holds to the first order.
    """
    diagonal = jnp.diagonal(rows)[:, None]
    relative = jnp.where(diagonal != 0, rows / jnp.where(diagonal != 0, diagonal, 1), 0)
    return jnp.linalg.norm(jnp.triu(relative, 1))


def graded_product(factors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the product of square factors as rows of norm one, or zero, and the logarithms of their norms."""
    size, dtype = factors.shape[1], factors.dtype

    def step(carry, factor):
        logs, rows = carry
        modulus = jnp.abs(factor)
        heights = jnp.where(modulus > 0, jnp.log(jnp.where(modulus > 0, modulus, 1)) + logs, LOG_OF_ZERO)
        top = jnp.maximum(jnp.max(heights, axis=1), LOG_OF_ZERO)[:, None]
        phases = jnp.where(modulus > 0, factor / jnp.where(modulus > 0, modulus, 1).astype(dtype), 0)
        weights = jnp.where(heights > LOG_OF_ZERO, jnp.exp(heights - top), 0)
        return _normalized(top[:, 0], jnp.matmul(phases * weights.astype(dtype), rows, precision=vectors.HIGHEST)), None

    start = jnp.zeros(size, vectors.real_dtype(dtype)), jnp.eye(size, dtype=dtype)
    return jax.lax.scan(step, start, factors)[0]


def _normalized(logs: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    norms = jnp.linalg.norm(rows, axis=1)
    positive = norms > 0
    safe = jnp.where(positive, norms, 1)
    return jnp.where(positive, logs + jnp.log(safe), LOG_OF_ZERO), rows / safe[:, None].astype(rows.dtype)


def orthogonal_rows(logs: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotate rows exp(logs_i) rows_i, by pairs as in a round of matches, until they are orthogonal to each other.

    For rows exp(a) x and exp(b) y with b <= a, g = exp(b - a) and the tangent t = g h, the new ones are, up to the
    cosine, exp(a) (x + g^2 h y) and exp(b) (y - h x): only g and h are needed, however far a and b lie apart.
    """
    count = logs.shape[0]
    half = (count + 1) // 2
    tol = 4 * float(jnp.finfo(rows.dtype).eps) * count**0.5

    def rotate(_, carry):
        logs, rows, order, worst = carry
        first, second = order[:half], order[::-1][:half]
        present = (first < count) & (second < count)  # an odd number has a pair without a partner
        a, b = jnp.minimum(first, count - 1), jnp.minimum(second, count - 1)
        a, b = jnp.where(logs[a] < logs[b], b, a), jnp.where(logs[a] < logs[b], a, b)
        x, y, gap = rows[a], rows[b], jnp.exp(logs[b] - logs[a])
        inner = jnp.sum(y.conj() * x, axis=1)
        size = jnp.abs(inner)
        active = present & (size > tol)
        phase = jnp.where(active, inner / jnp.where(active, size, 1).astype(inner.dtype), 1)
        difference = 1 - gap**2
        below = difference + jnp.sqrt(difference**2 + (2 * gap * size) ** 2)
        slope = jnp.where(active, 2 * size / jnp.where(active, below, 1), 0)
        cosine = (1 / jnp.sqrt(1 + (gap * slope) ** 2)).astype(rows.dtype)
        x, y = (
            cosine[:, None] * (x + (phase * (gap**2 * slope).astype(rows.dtype))[:, None] * y),
            cosine[:, None] * (y - (phase.conj() * slope.astype(rows.dtype))[:, None] * x),
        )
        (log_x, x), (log_y, y) = _normalized(logs[a], x), _normalized(logs[b], y)
        a, b = jnp.where(active, a, count), jnp.where(active, b, count)  # out of range: nothing is written
        rows = rows.at[a].set(x, mode="drop").at[b].set(y, mode="drop")
        logs = logs.at[a].set(log_x, mode="drop").at[b].set(log_y, mode="drop")
        order = jnp.concatenate([order[:1], jnp.roll(order[1:], 1)])
        return logs, rows, order, jnp.maximum(worst, jnp.max(jnp.where(present, size, 0)))

    def sweep(carry):
        logs, rows, _, number = carry
        start = logs, rows, jnp.arange(2 * half), jnp.zeros((), logs.dtype)
        logs, rows, _, worst = jax.lax.fori_loop(0, 2 * half - 1, rotate, start)
        return logs, rows, worst, number + 1

    unfinished = lambda carry: (carry[2] > tol) & (carry[3] < _MAX_SWEEPS)  # noqa: E731
    return jax.lax.while_loop(unfinished, sweep, (logs, rows, jnp.ones((), logs.dtype), 0))[:2]
