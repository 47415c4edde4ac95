"""Layers one after another."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax

from spectrax.networks.layers.layer import (
    Child,
    Layer,
    Shape,
    Tree,
    a_layer,
    create_children,
    forward_child,
    sample_shape,
)


@dataclasses.dataclass(frozen=True)
class Chain(Layer):
    """The layer behind `chain`."""

    layers: tuple[Layer, ...]

    kind: ClassVar[str] = "chain"

    def output_shape(self, input_shape: Sequence[int], /) -> Shape:
        """The shape after the last layer."""
        shape = sample_shape(input_shape)
        for name, layer in self.named():
            try:
                shape = layer.output_shape(shape)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return shape

    def children(self, input_shape: Shape, /) -> tuple[Child, ...]:
        """The layers, named `<kind>_<position>`."""
        children = []
        for name, layer in self.named():
            children.append(Child(name, layer, input_shape))
            input_shape = layer.output_shape(input_shape)
        return tuple(children)

    def create(self, key: Any, input_shape: Shape, /) -> tuple[Tree, Tree]:
        """Create the variables of each layer."""
        return create_children(self.children(input_shape), key)

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Apply the layers in order."""
        updates: Tree = {}
        for name, layer in self.named():
            try:
                x, new = forward_child((name, layer), params, batch_stats, x, train=train)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            updates |= new
        return x, updates

    def named(self) -> list[tuple[str, Layer]]:
        """The layers by name."""
        return [(f"{layer.kind}_{index}", layer) for index, layer in enumerate(self.layers)]


def chain(*layers: Layer) -> Layer:
    """Layers one after another: y = f_n(... f_1(f_0(x))).

    In the trees of variables the layer at position i is called `<kind>_<i>`, such as `"conv_0"` or `"dense_3"`; a layer
    without parameters has no entry in `params`, one without statistics none in `batch_stats`. The position counts every
    layer, those without variables too. An empty chain is the identity.

    Args:
        *layers: The layers, the first one first.

    Returns:
        A frozen, hashable layer.

    Raises:
        TypeError: If something is not a layer.

    Example:
        >>> import jax
        >>> import spectrax as sx
        >>> net = sx.layers.chain(sx.layers.dense(8), sx.layers.activation("relu"), sx.layers.dense(3, use_bias=False))
        >>> jax.tree.map(lambda p: p.shape, net.init(jax.random.key(0), (5,))["params"])
        {'dense_0': {'bias': (8,), 'kernel': (5, 8)}, 'dense_2': {'kernel': (8, 3)}}
    """
    for index, layer in enumerate(layers):
        a_layer(f"layer {index} of chain", layer)
    return Chain(tuple(layers))
