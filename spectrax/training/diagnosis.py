"""Why a step gave a number that is not finite: which layer's numbers went first."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax.networks import layers
from spectrax.networks.layers.skip import ConcatenatingSkip, Skip


def first_non_finite_layer(net: layers.Layer, variables: Mapping[str, Any], x: jax.Array, /) -> str | None:
    """Find the layer whose output on a batch is the first one that is not finite.

    The network is applied layer by layer, in training mode, and the search goes down into chains and skips.

    Args:
        net: The network.
        variables: Its variables.
        x: A batch of samples, shape (batch, ...).

    Returns:
        The "/"-joined path of the layer, as in `layers.linear_maps`; "the input" where the batch itself is not finite;
        None where every output is finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> net = layers.chain(layers.dense(2), layers.activation("relu"), layers.dense(3))
        >>> variables = net.init(jax.random.key(0), (4,))
        >>> variables["params"]["dense_2"]["kernel"] *= jnp.inf
        >>> first_non_finite_layer(net, variables, jnp.ones((5, 4)))
        'dense_2'
    """
    if not _finite(x):
        return "the input"
    path = _search(net, variables["params"], variables.get("batch_stats", {}), x, ())
    return None if path is None else "/".join(path) or net.kind


def first_non_finite_leaf(tree: Any, /) -> str | None:
    """Find the first array of a tree that has an entry that is not finite.

    Args:
        tree: A pytree of arrays.

    Returns:
        The "/"-joined path of the array, or None.

    Example:
        >>> first_non_finite_leaf({"dense_0": {"kernel": np.ones(2), "bias": np.array([np.nan])}})
        'dense_0/bias'
    """
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not _finite(leaf):
            return "/".join(str(getattr(part, "key", getattr(part, "idx", part))) for part in path)
    return None


def explain(
    net: layers.Layer, loss: Any, variables: Mapping[str, Any], x: jax.Array, y: jax.Array, /, *, penalty: float
) -> str:
    """Say in one clause what went wrong in a step, from the last good variables and the batch.

    Args:
        net: The network.
        loss: The loss function `loss(params, batch_stats, x, y) -> (loss, aux)`.
        variables: The variables before the step.
        x: The batch's samples.
        y: The batch's labels.
        penalty: The value of the penalty at that step, zero without one.

    Returns:
        A clause that names the layer or the parameter.
    """
    layer = first_non_finite_layer(net, variables, x)
    if layer == "the input":
        return "the batch itself holds numbers that are not finite"
    if layer is not None:
        return f"the output of layer {layer} was the first that was not finite"
    params, batch_stats = variables["params"], variables["batch_stats"]
    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params, batch_stats, x, y)
    if not _finite(value):
        last = _last(net, x.shape[1:])
        return f"all layers' outputs were finite, but the loss of the outputs of layer {last} was {value}"
    leaf = first_non_finite_leaf(grads)
    if leaf is not None:
        return f"the loss was finite, but its gradient by {leaf} was not"
    if not np.isfinite(penalty):
        return f"the loss and its gradient were finite, but the penalty was {penalty}"
    return (
        "the loss and its gradient were finite, but the optimiser's update was not (a learning rate that is too large?)"
    )


def _search(
    layer: layers.Layer, params: Any, batch_stats: Any, x: jax.Array, path: tuple[str, ...]
) -> tuple[str, ...] | None:
    if _finite(_apply(layer, params, batch_stats, x)):
        return None
    side_by_side = isinstance(layer, Skip | ConcatenatingSkip)
    for name, child, _ in layer.children(x.shape[1:]):
        own = params.get(name, {}), batch_stats.get(name, {})
        found = _search(child, *own, x, (*path, name))
        if found is not None:
            return found
        if not side_by_side:  # a chain hands its output on; the parts of a skip all see the skip's input
            x = _apply(child, *own, x)
    return path


def _apply(layer: layers.Layer, params: Any, batch_stats: Any, x: jax.Array) -> jax.Array:
    def forward(sample: jax.Array) -> jax.Array:
        return layer.forward(params, batch_stats, sample, train=True)[0]

    return jax.vmap(forward, axis_name="batch")(x)


def _last(net: layers.Layer, input_shape: tuple[int, ...]) -> str:
    children = net.children(input_shape)
    return children[-1].name if children else net.kind


def _finite(array: Any) -> bool:
    return bool(jnp.all(jnp.isfinite(array)))
