"""Skip connections: a fraction of the input is added to a layer's output, or set beside it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from spectrax.networks.layers.layer import (
    Child,
    Layer,
    Shape,
    Tree,
    a_layer,
    create_children,
    forward_child,
    real,
    sample_shape,
)


@dataclasses.dataclass(frozen=True)
class Skip(Layer):
    """The layer behind `skip`."""

    body: Layer
    rho: float
    projection: Layer | None

    kind: ClassVar[str] = "skip"

    def output_shape(self, input_shape: Sequence[int], /) -> Shape:
        """The shape of the body's output, which must be that of what is added to it."""
        shape = sample_shape(input_shape)
        added = shape if self.projection is None else self.projection.output_shape(shape)
        return self._same(self.body.output_shape(shape), added)

    def children(self, input_shape: Shape, /) -> tuple[Child, ...]:
        """The body, then the projection."""
        body = Child("body", self.body, input_shape)
        return (body,) if self.projection is None else (body, Child("projection", self.projection, input_shape))

    def create(self, key: Any, input_shape: Shape, /) -> tuple[Tree, Tree]:
        """Create the variables of the body and of the projection."""
        return create_children(self.children(input_shape), key)

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Return body(x) + rho x, or body(x) + rho projection(x)."""
        y, updates = forward_child(("body", self.body), params, batch_stats, x, train=train)
        added = x
        if self.projection is not None:
            added, new = forward_child(("projection", self.projection), params, batch_stats, x, train=train)
            updates |= new
        self._same(y.shape, added.shape)
        return y + self.rho * added, updates

    def _same(self, body: Shape, added: Shape) -> Shape:
        # Without this check a sum of different shapes could broadcast, and no error would be seen.
        if body != added:
            what = "the input" if self.projection is None else "the projection's output"
            raise ValueError(
                f"skip: the layer's output must have the shape of {what}, {added}, got {body}; "
                "where widths differ, give a projection"
            )
        return body


@dataclasses.dataclass(frozen=True)
class ConcatenatingSkip(Layer):
    """The layer behind `concatenating_skip`."""

    body: Layer
    rho: float

    kind: ClassVar[str] = "concatenating_skip"

    def output_shape(self, input_shape: Sequence[int], /) -> Shape:
        """The body's shape, with the input's channels added to its own."""
        shape = sample_shape(input_shape)
        return self._joined(shape, self.body.output_shape(shape))

    def children(self, input_shape: Shape, /) -> tuple[Child, ...]:
        """The body."""
        return (Child("body", self.body, input_shape),)

    def create(self, key: Any, input_shape: Shape, /) -> tuple[Tree, Tree]:
        """Create the variables of the body."""
        return create_children(self.children(input_shape), key)

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Return [rho x ; body(x)] along the last axis."""
        y, updates = forward_child(("body", self.body), params, batch_stats, x, train=train)
        self._joined(x.shape, y.shape)
        return jnp.concatenate([self.rho * x, y], axis=-1), updates

    @staticmethod
    def _joined(shape: Shape, body: Shape) -> Shape:
        if not shape or body[:-1] != shape[:-1] or len(body) != len(shape):
            raise ValueError(
                "concatenating_skip: the layer's output must have the input's shape but for the channels, "
                f"{(*shape[:-1], 'channels')}, got {body}"
            )
        return (*body[:-1], shape[-1] + body[-1])


def skip(layer: Layer, *, rho: float = 1.0, projection: Layer | None = None) -> Layer:
    """A skip connection: y = layer(x) + rho x, or y = layer(x) + rho projection(x).

    rho = 0 is the layer alone, rho = 1 a residual network's block, and 0 < rho < 1 a fraction of the identity. In the
    trees of variables the layer's own are called `"body"`, those of the projection `"projection"`.

    Args:
        layer: What the skip goes around; its output has the input's shape, unless there is a projection.
        rho: The fraction, any real number.
        projection: A layer that brings the input to the output's shape, such as `convolution(..., strides=2)`.

    Returns:
        A frozen, hashable layer.

    Raises:
        TypeError: If `layer` or `projection` is not a layer, or `rho` not a real number.
        ValueError: If `rho` is not finite.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> net = sx.layers.skip(sx.layers.activation("relu"), rho=0.5)
        >>> net.apply({"params": {}}, jnp.array([-2.0, 2.0]))
        Array([-1.,  3.], dtype=float32)
        >>> net = sx.layers.skip(sx.layers.dense(2), projection=sx.layers.dense(2, use_bias=False))
        >>> sorted(net.init(jax.random.key(0), (3,))["params"])
        ['body', 'projection']

    Source:
        Riedi, Balestriero, Baraniuk, "Singular Value Perturbation and Deep Network Optimization", Constructive
        Approximation 57(2), 2023, DOI 10.1007/s00365-022-09601-5 (the fraction of the identity); He, Zhang, Ren, Sun,
        "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385, eqs. 1 and 2.
    """
    a_layer("layer", layer)
    if projection is not None:
        a_layer("projection", projection)
    return Skip(layer, real("rho", rho), projection)


def concatenating_skip(layer: Layer, *, rho: float = 1.0) -> Layer:
    """A skip connection that sets the input beside the output: y = [rho x ; layer(x)] along the last axis.

    If J is the Jacobian of `layer` at x, the singular values of this one are sqrt(rho^2 + s_i(J)^2) exactly (and rho
    for the directions that J does not have), so none is below abs(rho). In the trees of variables the layer's own are
    called `"body"`.

    Args:
        layer: What the skip goes around; its output has the input's shape but for the channels, the last axis.
        rho: The fraction of the input that is passed on, any real number.

    Returns:
        A frozen, hashable layer.

    Raises:
        TypeError: If `layer` is not a layer, or `rho` not a real number.
        ValueError: If `rho` is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> net = sx.layers.concatenating_skip(sx.layers.activation("relu"), rho=0.5)
        >>> net.apply({"params": {}}, jnp.array([-2.0, 2.0]))
        Array([-1.,  1.,  0.,  2.], dtype=float32)

    Source:
        Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017, arXiv 1608.06993,
        eq. 2.
    """
    a_layer("layer", layer)
    return ConcatenatingSkip(layer, real("rho", rho))
