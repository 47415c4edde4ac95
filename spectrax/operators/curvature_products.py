"""Products of curvature matrices with vectors, by automatic differentiation of functions of one pytree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def hessian_product(loss: Callable[[PyTree], jax.Array], point: PyTree, v: PyTree) -> PyTree:
    """Return the Hessian of a loss times a vector, forward over reverse: a `custom_vjp` inside is differentiated."""
    return jax.jvp(_slope(loss), (point,), (v,))[1]


def gauss_newton_product(
    model: Callable[[PyTree], PyTree], loss: Callable[[PyTree], jax.Array], point: PyTree, v: PyTree
) -> PyTree:
    """Return J^T H J v, with J the Jacobian of the model at a point and H the Hessian of the loss in its outputs."""
    outputs, pushforward, pullback = linearized("model", model, point)
    return pullback(hessian_product(loss, outputs, pushforward(v)))


def linearized(
    name: str, function: Callable[[PyTree], PyTree], point: PyTree
) -> tuple[PyTree, Callable[[PyTree], PyTree], Callable[[PyTree], PyTree]]:
    """Return the value of a function at a point, v -> J v and u -> J^T u.

    The first product is the transpose of the second, since a `custom_vjp` has a reverse mode only.

    Args:
        name: What the function is called in a message.
        function: From a pytree of arrays to a pytree of arrays.
        point: Where.

    Returns:
        The value and the two products.

    Raises:
        TypeError: If the function returns anything but floating-point or complex arrays.
    """
    outputs, pullback = jax.vjp(function, point)
    if not all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in jax.tree.leaves(outputs)):
        raise TypeError(f"{name} must return floating-point arrays, got {described(outputs)}")
    transposed = jax.linear_transpose(lambda u: pullback(u)[0], outputs)
    return outputs, lambda v: transposed(v)[0], lambda u: pullback(u)[0]


def described(tree: PyTree) -> str:
    """Return the shapes and dtypes of a pytree's leaves, for a message."""
    leaves = [f"{jnp.result_type(leaf).name}{list(jnp.shape(leaf))}" for leaf in jax.tree.leaves(tree)]
    return f"{', '.join(leaves) or 'no array'} in a {type(tree).__name__}" if len(leaves) != 1 else leaves[0]


def _slope(loss: Callable[[PyTree], jax.Array]) -> Callable[[PyTree], PyTree]:
    def number(point: PyTree) -> jax.Array:
        value = loss(point)
        if jax.tree.structure(value) != jax.tree.structure(0):
            raise TypeError(f"loss must return one number and nothing beside it, got {described(value)}")
        if jnp.shape(value) != ():
            raise ValueError(f"loss must return one number, got shape {jnp.shape(value)}")
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(f"loss must return a real floating-point number, got {jnp.result_type(value).name}")
        return value

    return jax.grad(number)
