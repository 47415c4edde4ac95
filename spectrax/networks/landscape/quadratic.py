"""The exact quadratic that the squared error is in one layer's weights, as long as no unit changes its piece."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.networks.landscape.operators import LayerProblem, layer_problem
from spectrax.networks.local_linear import decisions
from spectrax.programs.piecewise import Form, form_of

PyTree = Any


class LocalQuadratic(NamedTuple):
    """The squared error |f - y|^2 as a function of one layer's weights: loss(W) = |Q vec(W - W_0) + r|^2.

    Attributes:
        value: The loss at the weights as they are, |r|^2.
        gradient: Its gradient, 2 Q^T r, in the shape of the weight.
        minimizer: The weights of least distance from these at which the quadratic is smallest.
        minimum: The quadratic there, the part of |r|^2 that this layer cannot reach.
        inside: Whether the minimiser lies in the region in which the loss is this quadratic; then it is a minimum of
            the loss itself, in this layer's weights.
        residual: r = f - y.
    """

    value: jax.Array
    gradient: jax.Array
    minimizer: jax.Array
    minimum: jax.Array
    inside: jax.Array
    residual: PyTree


def local_quadratic(
    net: Any, params: PyTree, layer: str, x: PyTree, y: PyTree, /, *, batched: bool = False
) -> LocalQuadratic:
    """Return the quadratic that the squared error is in one layer's weights, with its minimiser.

    Args:
        net: As in `layer_operator`; the network must be piecewise affine.
        params: As in `layer_operator`.
        layer: As in `layer_operator`.
        x: As in `layer_operator`.
        y: The target, in the structure of the output; with `batched=True` along a leading axis.
        batched: Whether x and y hold many samples.

    Returns:
        A `LocalQuadratic`.

    Raises:
        TypeError: As `layer_operator`.
        ValueError: As `layer_operator`; or if the network is not piecewise affine, or y has not the output's shape.

    Cost:
        Q is made dense and decomposed.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> f = lambda params, x: jax.nn.relu(params["w"] @ x)
        >>> x, y = jnp.array([1.0, 2.0]), jnp.array([2.0, 2.0])
        >>> found = sx.landscape.local_quadratic(f, {"w": jnp.eye(2)}, "w", x, y)
        >>> float(found.value), round(float(found.minimum), 6), bool(found.inside)
        (1.0, 0.0, True)

    Source:
        As `layer_operator`.
    """
    problem = layer_problem(net, params, layer, x, batched=batched)
    check_quadratic("local_quadratic", problem)
    function, weight = problem.function(bias=False), problem.weights(bias=False)
    Q = problem.operator(bias=False)
    output = function(weight, problem.arrays, problem.point)
    y = check_target(problem, y)
    residual = vectors.subtract(output, y)
    flat = vectors.as_matrix(jax.tree.map(lambda leaf: leaf[None], residual))[0]
    dense = Q.to_dense()
    dense = dense.astype(vectors.working_dtype(dense.dtype))
    step = jnp.linalg.lstsq(dense, -flat.astype(dense.dtype))[0].reshape(weight.shape).astype(weight.dtype)
    left = vectors.norm(vectors.add(Q.matvec(step), residual)) ** 2

    def signs(weight: jax.Array) -> jax.Array:
        def one(point: PyTree) -> jax.Array:
            return decisions(problem.network, problem.arrays, point, weights={problem.place: weight})

        return jnp.sign(jax.vmap(one)(problem.point) if batched else one(problem.point))

    # the region is convex: the decisions are affine in it, so that its other end tells
    here, there = signs(weight), signs(weight + step)
    inside = jnp.all((here == there) | (jnp.isnan(here) & jnp.isnan(there)))
    return LocalQuadratic(
        vectors.norm(residual) ** 2, vectors.scale(2.0, Q.rmatvec(residual)), weight + step, left, inside, residual
    )


def is_quadratic(problem: LayerProblem) -> bool:
    """Say whether the squared error is a quadratic in the layer's weights, piece by piece.

    Args:
        problem: The layer.

    Returns:
        Whether the network is piecewise affine, in its input and in the weights.
    """
    sample = vectors.row(problem.point, 0) if problem.batched else problem.point
    function = problem.function(bias=False)
    forms = (
        form_of(functools.partial(problem.network, problem.arrays), vectors.structure(sample)),
        # what is stepwise in x may be anything in the weights behind it
        form_of(lambda w: function(w, problem.arrays, problem.point), vectors.structure(problem.site.weight)),
    )
    return max(forms) <= Form.AFFINE and problem.followed


def check_quadratic(what: str, problem: LayerProblem) -> None:
    """Refuse a network whose squared error is not a quadratic in the layer's weights, piece by piece.

    Args:
        what: The name of the function that asks.
        problem: The layer.

    Raises:
        ValueError: If the network is not piecewise affine, in its input or in the weights.
    """
    if not is_quadratic(problem):
        raise ValueError(
            f"{what}: the network is not piecewise affine, or decides something inside of a loop or branch that cannot "
            "be looked into, so that its loss is no quadratic"
        )


def check_target(problem: LayerProblem, y: PyTree) -> PyTree:
    """Return the target as arrays, or refuse one of another shape than the output's.

    Args:
        problem: The layer, with its sample or samples.
        y: The target.

    Returns:
        y.

    Raises:
        TypeError: If the output is not floating-point, or y is complex and the output is not.
        ValueError: If y has not the structure and shape of the output.
    """
    output = jax.eval_shape(problem.function(bias=False), problem.site.weight, problem.arrays, problem.point)
    for leaf in jax.tree.leaves(output):
        checks.inexact("the network's output", leaf.dtype)
    y = jax.tree.map(jnp.asarray, y)
    real_output = not any(vectors.is_complex(leaf.dtype) for leaf in jax.tree.leaves(output))
    if real_output and any(vectors.is_complex(leaf.dtype) for leaf in jax.tree.leaves(y)):
        raise TypeError("y must be real, as the output is, got complex numbers")
    expected = jax.tree.map(lambda leaf: leaf.shape, output)
    if jax.tree.map(jnp.shape, y) != expected:
        raise ValueError(
            f"y must have the structure and shape of the output, {expected}, got {jax.tree.map(jnp.shape, y)}"
        )
    return y


def check_real(what: str, problem: LayerProblem) -> None:
    """Refuse complex weights and outputs.

    Args:
        what: The name of the function that asks.
        problem: The layer.

    Raises:
        TypeError: If the weight or the output is complex.
    """
    output = jax.eval_shape(problem.function(bias=False), problem.site.weight, problem.arrays, problem.point)
    if any(vectors.is_complex(leaf.dtype) for leaf in [problem.site.weight, *jax.tree.leaves(output)]):
        raise TypeError(f"{what} needs a real weight and a real output, got complex numbers")
