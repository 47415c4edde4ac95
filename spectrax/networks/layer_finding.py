"""The layers of anybody's network: where its parameters act linearly on what depends on the input."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from spectrax.networks.layers.layer import Layer
from spectrax.programs.layers import Site, trace

PyTree = Any

# the last parts of a parameter's path that say "the weight of the layer before", in the usual libraries
_WEIGHTS = ("kernel", "weight", "w", "embedding")


@dataclasses.dataclass(frozen=True)
class FoundLayer:
    """A linear map in a network, as it meets the samples there.

    Attributes:
        name: The path of its parameter, without a last "kernel" or "weight".
        kind: "dense" (a matrix product) or "conv".
        parameters: The paths of all parameters that its weight is made of.
        weight_shape: The shape of the weight where it is applied, which may be reshaped from the parameter's.
        input_shape: What it is applied to.
        output_shape: What comes out.
        repetition: How often it is applied at this place of the program: the length of a loop, or how often a function
            is called. A weight that stands at several places has several entries.
        strides: Of a convolution, for each spatial dimension.
        padding: Likewise, pairs (low, high).
        input_dilation: Likewise.
        kernel_dilation: Likewise.
        feature_group_count: Of a convolution.
    """

    name: str
    kind: str
    parameters: tuple[str, ...]
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    repetition: int
    strides: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    input_dilation: tuple[int, ...] = ()
    kernel_dilation: tuple[int, ...] = ()
    feature_group_count: int = 1


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as a function of its arrays and one sample, whichever library it was written in; hashable if it is.

    Attributes:
        net: A `layers.Layer`, or a function f(params, x).
        treedef: The structure of the parameters.
        static: Leaves that are no arrays, with their places and types.
    """

    net: Layer | Callable
    treedef: Any
    static: tuple[tuple[int, type, Any], ...]

    def __call__(self, arrays: Sequence[jax.Array], x: PyTree) -> PyTree:
        """Apply the network to one sample."""
        params = self.variables(arrays)
        if isinstance(self.net, Layer):
            return self.net.apply(params, x)
        return self.net(params, x)

    def variables(self, arrays: Sequence[jax.Array]) -> PyTree:
        """Return the parameters as they were given."""
        leaves = list(arrays)
        for place, _, leaf in self.static:
            leaves.insert(place, leaf)
        return jax.tree.unflatten(self.treedef, leaves)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the arrays."""
        count = self.treedef.num_leaves
        found = jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(self.treedef, range(count)))[0]
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]
        if isinstance(self.net, Layer):
            names = [name.removeprefix("params/") for name in names]
        taken = {place for place, _, _ in self.static}
        return tuple(name for place, name in enumerate(names) if place not in taken)

    def names(self, sites: Sequence[Site]) -> list[str]:
        """Name each layer by its parameter; by their number, too, where several have the same."""
        paths = self.paths
        plain = ["*".join(_layer_of(paths[i]) for i in sorted(site.parameters)) for site in sites]
        names, seen = [], dict.fromkeys(plain, 0)
        for name in plain:
            own = name if plain.count(name) == 1 else f"{name}[{seen[name]}]"
            seen[name] += 1
            while own in names:  # paths of different trees may read alike
                own += "'"
            names.append(own)
        return names


def network(net: Any, params: PyTree) -> tuple[Network, list[jax.Array]]:
    """Split a network and its parameters into a function and arrays.

    Args:
        net: A `layers.Layer`, or a function f(params, x) of one sample.
        params: The variables of the layer, or its parameters alone; or the function's first argument, whose leaves
            that are no arrays (Equinox has such) are taken as constants.

    Returns:
        The network, and the arrays that it is called with.

    Raises:
        TypeError: If `net` is neither a layer nor a function.
    """
    if isinstance(net, Layer):
        params = params if isinstance(params, dict) and "params" in params else {"params": params}
    elif not callable(net):
        raise TypeError(f"net must be a layer or a function f(params, x), got {type(net).__name__}")
    leaves, treedef = jax.tree.flatten(params)
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]  # structs, too
    static = tuple((i, type(leaf), leaf) for i, leaf in enumerate(leaves) if not is_array[i])  # 1, 1.0, True are equal
    return Network(net, treedef, static), [leaf for leaf, ok in zip(leaves, is_array, strict=True) if ok]


def find_layers(net: Any, params: PyTree, x: PyTree, /) -> tuple[FoundLayer, ...]:
    """List the linear maps of a network: where a parameter meets what depends on the input.

    The network is traced, and each parameter is followed through reshapes, transposes, casts, sums with other
    parameters and the like, into calls, loops (`scan`, which are unrolled) and derivative rules, up to the matrix
    products and convolutions that it takes part in. So it works alike for `sx.layers`, Flax linen, Flax nnx, Equinox
    and plain functions. Nothing is computed. Scalings of single entries (as in a normalisation), lookups in tables,
    and what stands in `while_loop`, `cond`, `pmap` or `shard_map` are not listed.

    Args:
        net: A `layers.Layer`, or a function f(params, x) of one sample: for Flax linen
            `lambda params, x: model.apply({"params": params}, x[None])[0]`, for nnx with `nnx.split` and `nnx.merge`,
            for Equinox `lambda model, x: model(x)`.
        params: Its parameters. Leaves that are no arrays count as constants.
        x: One sample, or its structure.

    Returns:
        One entry for each map, in the order of application.

    Raises:
        TypeError: If `net` is neither a layer nor a function.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> params = {"first": {"kernel": jnp.ones((3, 4))}, "last": {"kernel": jnp.ones((4, 2))}}
        >>> f = lambda p, x: jax.nn.relu(x @ p["first"]["kernel"]) @ p["last"]["kernel"]
        >>> [(layer.name, layer.kind, layer.input_shape) for layer in sx.find_layers(f, params, jnp.ones(3))]
        [('first', 'dense', (3,)), ('last', 'dense', (4,))]
    """
    function, arrays = network(net, params)
    sites: list[Site] = []

    def record(arrays: Any, x: Any) -> None:
        sites.extend(trace(function, arrays, x).sites)

    jax.eval_shape(record, arrays, x)
    groups: dict[Any, list[Site]] = {}
    for site in sites:
        groups.setdefault((id(site.equation), site.parameters), []).append(site)
    paths = function.paths
    found = []
    for (_, indices), same in groups.items():
        site = same[0]
        parameters = tuple(paths[i] for i in sorted(indices))
        name = "*".join(map(_layer_of, parameters))
        shapes = {"weight_shape": site.weight.shape, "input_shape": site.input.shape, "output_shape": site.output.shape}
        found.append(FoundLayer(name, site.kind, parameters, **shapes, repetition=len(same), **_geometry(site)))
    return tuple(found)


def _geometry(site: Site) -> dict[str, Any]:
    if site.kind == "dense":
        return {}
    params = site.equation.params
    return {
        "strides": tuple(params["window_strides"]),
        "padding": tuple(map(tuple, params["padding"])),
        "input_dilation": tuple(params["lhs_dilation"]),
        "kernel_dilation": tuple(params["rhs_dilation"]),
        "feature_group_count": params["feature_group_count"],
    }


def _layer_of(path: str) -> str:
    parts = path.split("/")
    if len(parts) > 1 and parts[-1] == "value" and parts[-2] in _WEIGHTS:  # as Flax nnx has them
        parts.pop()
    return "/".join(parts[:-1] if len(parts) > 1 and parts[-1] in _WEIGHTS else parts)
