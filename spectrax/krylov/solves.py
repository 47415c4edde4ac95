"""Iterative solution of Hermitian linear systems on pytrees."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import vectors

PyTree = Any


class _State(NamedTuple):
    count: jax.Array
    x: PyTree
    lanczos: PyTree
    lanczos_old: PyTree
    beta: jax.Array
    direction: PyTree
    direction_old: PyTree
    cosine: jax.Array
    sine: jax.Array
    delta: jax.Array
    epsilon: jax.Array
    residual: jax.Array


def minres(matvec: Callable[[PyTree], PyTree], b: PyTree, *, tol: float, max_steps: int) -> tuple[PyTree, jax.Array]:
    """Solve H x = b for a Hermitian operator that may be indefinite, by MINRES.

    Paige & Saunders 1975, doi:10.1137/0712047. In a singular but consistent system the iterates stay in the range of H
    and lead to the solution of least norm.

    Args:
        matvec: v -> H v.
        b: The right-hand side.
        tol: Relative residual to stop at.
        max_steps: When to give up.

    Returns:
        The solution, and its true relative residual |b - H x| / |b| (zero for b = 0).

    Cost:
        One product for each step, and one for the final residual.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax import krylov
        >>> x, residual = krylov.minres(lambda v: jnp.array([2.0, -1.0]) * v, jnp.ones(2), tol=1e-6, max_steps=9)
        >>> [round(float(entry), 4) for entry in x]
        [0.5, -1.0]
    """
    length = vectors.norm(b)
    real = length.dtype
    zero = jax.tree.map(jnp.zeros_like, b)
    one, nought = jnp.ones((), real), jnp.zeros((), real)
    start = _State(
        count=jnp.zeros((), jnp.int32),
        x=zero,
        lanczos=vectors.divide(b, length),
        lanczos_old=zero,
        beta=nought,
        direction=zero,
        direction_old=zero,
        cosine=-one,
        sine=nought,
        delta=nought,
        epsilon=nought,
        residual=length,
    )

    def unfinished(s: _State) -> jax.Array:
        return (s.residual > tol * length) & (s.count < max_steps)

    def advance(s: _State) -> _State:
        w = vectors.subtract(matvec(s.lanczos), vectors.scale(s.beta, s.lanczos_old))
        alpha = vectors.vdot(s.lanczos, w).real
        w = vectors.subtract(w, vectors.scale(alpha, s.lanczos))
        beta = vectors.norm(w)
        # the last two rotations act on the new column (epsilon, delta, gamma) of the tridiagonal matrix
        delta = s.cosine * s.delta + s.sine * alpha
        gamma_bar = s.sine * s.delta - s.cosine * alpha
        epsilon_next, delta_next = s.sine * beta, -s.cosine * beta
        gamma = jnp.hypot(gamma_bar, beta)
        safe = jnp.where(gamma > 0, gamma, one)
        cosine, sine = gamma_bar / safe, beta / safe
        direction = vectors.subtract(s.lanczos, vectors.scale(s.epsilon, s.direction_old))
        direction = vectors.divide(vectors.subtract(direction, vectors.scale(delta, s.direction)), gamma)
        return _State(
            count=s.count + 1,
            x=vectors.add(s.x, vectors.scale(s.residual * cosine, direction)),
            lanczos=vectors.divide(w, beta),
            lanczos_old=s.lanczos,
            beta=beta,
            direction=direction,
            direction_old=s.direction,
            cosine=cosine,
            sine=sine,
            delta=delta_next,
            epsilon=epsilon_next,
            residual=s.residual * sine,
        )

    x = jax.lax.while_loop(unfinished, advance, start).x
    remaining = vectors.norm(vectors.subtract(b, matvec(x)))
    return x, jnp.where(length > 0, remaining / jnp.where(length > 0, length, one), nought)
