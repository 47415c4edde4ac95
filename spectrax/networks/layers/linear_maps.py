"""The linear map of every layer of a network, as operators made from the parameters."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spectrax.networks.layers.layer import Layer, Shape, a_layer, sample_shape
from spectrax.operators import LinearOperator


@dataclasses.dataclass(frozen=True)
class LinearMaps:
    """The function that `linear_maps` returns: frozen, and equal for equal networks, so `jit` takes it as static."""

    net: Layer
    input_shape: Shape

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names, in the order of application."""
        return tuple(_name(self.net, path) for path, _, _ in self._places())

    def __call__(self, params: Mapping[str, Any], /) -> dict[str, LinearOperator]:
        """Make the operators.

        Args:
            params: The network's parameters, `variables["params"]`.

        Returns:
            The operators by name, in the order of application.

        Raises:
            ValueError: If the parameters of a layer are missing.
        """
        operators = {}
        for path, layer, shape in self._places():
            tree = params
            for part in path:
                if not isinstance(tree, Mapping) or part not in tree:
                    raise ValueError(
                        f"params must be those of the network, variables['params']; {'/'.join(path)} is missing"
                    )
                tree = tree[part]
            operators[_name(self.net, path)] = layer.linear_map(tree, shape)
        return operators

    def _places(self) -> Iterator[tuple[tuple[str, ...], Layer, Shape]]:
        return _walk(self.net, (), self.input_shape)


def linear_maps(net: Layer, input_shape: Sequence[int], /) -> LinearMaps:
    """The linear map of every layer of a network that has one, as a function of the parameters.

    For z = phi(W x + b) the map is x -> W x, without the bias: a dense layer is its matrix K^T (see `dense` for samples
    with more axes), a convolution is the operator on samples of the shape that it meets in this network, with its true
    padding and strides. The projection of a skip is listed too. Not listed are maps without parameters (pooling, the
    identity of a skip). The scaling of a normalisation is not folded into the layer before it.

    Names are the "/"-joined path to the layer in `params`, such as `"skip_2/body/conv_0"`; if `net` itself is a single
    layer, its kind (`"dense"`, `"conv"`).

    Args:
        net: A layer, usually a chain.
        input_shape: The shape of one sample.

    Returns:
        A frozen, hashable function `maps(params) -> {name: LinearOperator}` in the order of application, equal for
        equal arguments, with the attribute `names`. It makes no copies and does no arithmetic; call it inside `jit`.

    Raises:
        TypeError: If `net` is not a layer.
        ValueError: If the network cannot take samples of this shape.

    Derivatives:
        The operators are pytrees over the parameters: whatever is computed from them differentiates to `params`.

    Example:
        >>> import jax
        >>> import spectrax as sx
        >>> net = sx.layers.chain(
        ...     sx.layers.convolution(4, (3, 3), strides=2, padding="SAME"),
        ...     sx.layers.activation("relu"),
        ...     sx.layers.flatten(),
        ...     sx.layers.dense(10),
        ... )
        >>> variables = net.init(jax.random.key(0), (8, 8, 1))
        >>> maps = sx.layers.linear_maps(net, (8, 8, 1))
        >>> {name: operator.shape for name, operator in maps(variables["params"]).items()}
        {'conv_0': (64, 64), 'dense_3': (10, 64)}
    """
    a_layer("net", net)
    shape = sample_shape(input_shape)
    net.output_shape(shape)
    return LinearMaps(net, shape)


def _walk(layer: Layer, path: tuple[str, ...], shape: Shape) -> Iterator[tuple[tuple[str, ...], Layer, Shape]]:
    if layer.has_linear_map:
        yield path, layer, shape
    for child in layer.children(shape):
        yield from _walk(child.layer, (*path, child.name), child.input_shape)


def _name(net: Layer, path: tuple[str, ...]) -> str:
    return "/".join(path) or net.kind
