"""The exact affine map that a piecewise-affine network is near one input, and how far it reaches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.networks.layer_finding import Network, network
from spectrax.networks.layers.chain import Chain
from spectrax.operators import LinearOperator, aslinearoperator, jacobian_operator
from spectrax.programs.layers import Site, trace
from spectrax.programs.piecewise import Form, form_of

PyTree = Any


class Reach(NamedTuple):
    """How far something may move until the network decides differently somewhere.

    Attributes:
        radius: The length of the shortest way, in the 2-norm (for weights the Frobenius norm): inf where nothing is
            decided, zero at a kink, NaN where the input or the output is not finite.
        direction: The way, of length one; zeros where the radius is inf.
    """

    radius: jax.Array
    direction: PyTree


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("input", "output", "weight", "map", "after"),
    meta_fields=("name", "kind", "place"),
)
@dataclasses.dataclass(frozen=True)
class LocalLayer:
    """A layer h = W z of a network, near one input.

    Attributes:
        input: z, what the layer is applied to.
        output: W z, without the bias.
        weight: The weight as it is applied.
        map: The operator z -> W z.
        after: The operator from a change of W z to the change of the network's output: the slopes D of the activation
            behind it, and the later layers M, so M D. With z it makes the matrix z^T kron (M D) that shapes the loss
            in the layer's weights.
        name: As in `find_layers`; with a number where several layers share it.
        kind: "dense" or "conv".
        place: The number of the layer in the order of application.
    """

    input: jax.Array
    output: jax.Array
    weight: jax.Array
    map: LinearOperator
    after: LinearOperator
    name: str
    kind: str
    place: int


@functools.partial(jax.tree_util.register_dataclass, data_fields=("input", "slopes", "offsets"), meta_fields=("name",))
@dataclasses.dataclass(frozen=True)
class LocalActivation:
    """A function of every entry near one input, phi(h) = d h + c.

    Attributes:
        name: Its name, and its number in the order of application.
        input: h, the pre-activation.
        slopes: d, its derivatives.
        offsets: c.
    """

    name: str
    input: jax.Array
    slopes: jax.Array
    offsets: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("jacobian", "after", "input", "output"), meta_fields=("name",)
)
@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a chain, z_k = J_k z_{k-1} + offset near the input.

    Attributes:
        name: That of its first layer.
        jacobian: J_k, for phi(W z + b) + rho z the operator D W + rho I.
        after: M_k, the product of the Jacobians of the later stages, from z_k to the network's output.
        input: z_{k-1}.
        output: z_k.
    """

    name: str
    jacobian: LinearOperator
    after: LinearOperator
    input: jax.Array
    output: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("A", "B", "output", "layer_list", "stage_list", "activations", "arrays", "point"),
    meta_fields=("exact", "network"),
)
@dataclasses.dataclass(frozen=True)
class LocalLinear:
    """A network near one input: f(x) = A x + B.

    Attributes:
        A: The Jacobian in the input, an operator.
        B: The offset, in the structure of the output.
        output: f(x).
        layer_list: The layers in the order of application; `layers` has them by name.
        stage_list: Of a chain (`sx.layers.chain`): its parts, each from a layer with parameters up to the next one;
            `stages` has them by name. Empty for other networks.
        activations: The functions of every entry, in the order of application; `slopes` and `offsets` have their
            derivatives d and what is left, phi(h) = d h + c, by name and number.
        arrays: The parameters.
        point: The input.
        exact: Whether the network is piecewise affine, so that the equation holds exactly, to round-off, up to
            `input_reach`; otherwise it holds to first order.
        network: The network as a function of `arrays` and an input.
    """

    A: LinearOperator
    B: PyTree
    output: PyTree
    layer_list: tuple[LocalLayer, ...]
    stage_list: tuple[Stage, ...]
    activations: tuple["LocalActivation", ...]
    arrays: list[jax.Array]
    point: PyTree
    exact: bool
    network: Network

    @property
    def layers(self) -> dict[str, LocalLayer]:
        """The layers by name, in the order of application."""
        return {layer.name: layer for layer in self.layer_list}

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by name, in the order of application."""
        return {stage.name: stage for stage in self.stage_list}

    @property
    def slopes(self) -> dict[str, jax.Array]:
        """The derivatives of each activation at its inputs, in the order of application."""
        return {activation.name: activation.slopes for activation in self.activations}

    @property
    def offsets(self) -> dict[str, jax.Array]:
        """What is left of each activation, phi(h) - d h."""
        return {activation.name: activation.offsets for activation in self.activations}

    def input_reach(self, *, chunk_size: int = 256) -> Reach:
        """Return how far the input may move while f(x) = A x + B stays exact.

        Args:
            chunk_size: How many gradients are taken at a time, of all those of the decisions in the network.

        Returns:
            The radius of the largest ball around the input without a kink, and the way to its nearest kink. Every
            decision counts, also one that the output does not see (a unit that a later maximum passes over).

        Raises:
            ValueError: If the network is not piecewise affine.

        Cost:
            One VJP for each decision: each unit of an activation, each pair of candidates of a maximum.
        """
        self._check("input_reach", self.exact)
        return _reach(lambda x: decisions(self.network, self.arrays, x), self.point, chunk_size, self._finite)

    def weight_reach(self, name: str, *, chunk_size: int = 256) -> Reach:
        """Return how far one layer's weight may move while the loss stays exactly quadratic in it (squared error).

        Args:
            name: The layer, a key of `layers`.
            chunk_size: As in `input_reach`.

        Returns:
            The radius, in the Frobenius norm of the weight, and the way to the nearest kink.

        Raises:
            ValueError: If the network is not piecewise affine, or has no such layer.

        Cost:
            As `input_reach`.
        """
        checks.choice("name", name, tuple(self.layers))
        layer = self.layers[name]

        def output(weight: jax.Array) -> PyTree:
            return trace(self.network, self.arrays, self.point, weights={layer.place: weight}).output

        # what is stepwise in x may be anything in the weights behind it
        in_weights = form_of(output, vectors.structure(layer.weight)) <= Form.AFFINE
        self._check("weight_reach", self.exact and in_weights)

        def of_weight(weight: jax.Array) -> jax.Array:
            return decisions(self.network, self.arrays, self.point, weights={layer.place: weight})

        return _reach(of_weight, layer.weight, chunk_size, self._finite)

    @property
    def _finite(self) -> jax.Array:
        leaves = [*jax.tree.leaves(self.output), *jax.tree.leaves(self.point)]
        return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()

    def _check(self, what: str, exact: bool) -> None:
        if not exact:
            raise ValueError(
                f"{what}: the network is not piecewise affine, or decides something inside of a loop or branch that "
                "cannot be looked into; its linearisation holds to first order only, in no region"
            )


def local_linear(net: Any, params: PyTree, x: PyTree, /) -> LocalLinear:
    """Return the affine map that a network is near one input, layer by layer.

    A network of piecewise-affine layers (ReLU and its relatives, absolute value, maxima, convolutions, pooling, skips,
    normalisation in inference) is f(x) = A x + B exactly, on a region around x. For a layer h = W z + b in it and any
    change of h, everything behind the layer is the linear map M D: the slopes of its activation and the later layers.
    So, as long as no unit changes its piece,

        f = (z^T kron M D) vec(W) + what does not depend on W,

    and the squared error is a quadratic in W. The layers are found as in `find_layers`, and M D is the derivative by an
    array added to W z, for any topology. Batches: `jax.vmap` over x, or `jax.lax.map` with a `batch_size`.

    Args:
        net: A `layers.Layer`, or a function f(params, x) of one sample (see `find_layers` for other libraries).
        params: The variables, or parameters, of the network.
        x: One sample.

    Returns:
        A `LocalLinear`, a pytree of operators and arrays.

    Raises:
        TypeError: If `net` is neither a layer nor a function, or x is no floating-point array.

    Cost:
        An evaluation of the network. Each product with an operator costs about one more.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> net = sx.layers.chain(sx.layers.dense(2), sx.layers.activation("relu"), sx.layers.dense(1))
        >>> variables = net.init(jax.random.key(0), (3,))
        >>> rep = sx.local_linear(net, variables, jnp.array([1.0, 2.0, 3.0]))
        >>> rep.exact, list(rep.layers), rep.A.shape, rep.layers["dense_0"].after.shape
        (True, ['dense_0', 'dense_2'], (1, 3), (1, 2))

    Source:
        Riedi, Balestriero, Baraniuk, "Singular Value Perturbation and Deep Network Optimization", Constructive
        Approximation 57(2), 2023, doi:10.1007/s00365-022-09601-5.
    """
    function, arrays = network(net, params)
    point = jax.tree.map(jnp.asarray, x)
    for leaf in jax.tree.leaves(point):
        checks.inexact("x", leaf.dtype)
    with jax.default_matmul_precision("highest"):
        found = trace(function, arrays, point)
        form = form_of(functools.partial(function, arrays), vectors.structure(point))
    A = jacobian_operator(_OfInput(function), point, arrays)
    layers = []
    for place, (name, site) in enumerate(zip(function.names(found.sites), found.sites, strict=True)):
        after = jacobian_operator(Tapped(function, place), jnp.zeros_like(site.output), arrays, point)
        struct = jax.ShapeDtypeStruct(site.input.shape, site.input.dtype)
        bare = site._replace(weight=None, input=None, output=None)  # no arrays in what is static
        layer_map = aslinearoperator(_Applied(function, place, bare), struct, site.weight)
        layers.append(LocalLayer(site.input, site.output, site.weight, layer_map, after, name, site.kind, place))
    activations = tuple(
        LocalActivation(f"{each.name}_{index}", each.input, each.slopes, each.output - each.slopes * each.input)
        for index, each in enumerate(found.activations)
    )
    return LocalLinear(
        A=A,
        B=vectors.subtract(found.output, A.matvec(point)),
        output=found.output,
        layer_list=tuple(layers),
        stage_list=_stages(function, arrays, point),
        activations=activations,
        arrays=arrays,
        point=point,
        exact=form <= Form.AFFINE and found.followed,
        network=function,
    )


# Functions as frozen objects: equal ones share their compiled programs.


@dataclasses.dataclass(frozen=True)
class _OfInput:
    network: Network

    def __call__(self, x: PyTree, arrays: list[jax.Array]) -> PyTree:
        return self.network(arrays, x)


@dataclasses.dataclass(frozen=True)
class Tapped:
    """The network's output as a function of what is added behind one layer."""

    network: Network
    place: int

    def __call__(self, tap: jax.Array, arrays: list[jax.Array], x: PyTree) -> PyTree:
        return trace(self.network, arrays, x, taps={self.place: tap}).output


@dataclasses.dataclass(frozen=True)
class _Applied:
    """One layer's linear map, of any input and weight; the layer's place in the network says what it is."""

    network: Network
    place: int
    site: Site = dataclasses.field(compare=False)

    def __call__(self, value: jax.Array, weight: jax.Array) -> jax.Array:
        return self.site.apply(weight, value)


def _stages(function: Network, arrays: list[jax.Array], x: PyTree) -> tuple[Stage, ...]:
    """Split a chain before each of its layers that has parameters."""
    net = function.net
    if not isinstance(net, Chain):
        return ()
    children = net.children(jnp.shape(x))
    own = {path.split("/")[0] for path in function.paths}
    starts = [index for index, child in enumerate(children) if child.name in own and _acts_linearly(child)]
    if not starts:
        return ()
    starts[0] = 0  # what comes before the first layer belongs to it
    ends = [*starts[1:], len(children)]
    names = tuple(child.name for child in children)
    stages, z = [], x
    for start, end in zip(starts, ends, strict=True):
        part = _Part(function, names[start:end])
        out = part(z, arrays)
        first = next(child.name for child in children[start:end] if child.name in own and _acts_linearly(child))
        after = jacobian_operator(_Part(function, names[end:]), out, arrays)
        stages.append(Stage(first, jacobian_operator(part, z, arrays), after, z, out))
        z = out
    return tuple(stages)


def _acts_linearly(child: Any) -> bool:
    layer, shape = child.layer, child.input_shape
    return layer.has_linear_map or any(_acts_linearly(inner) for inner in layer.children(shape))


@dataclasses.dataclass(frozen=True)
class _Part:
    """The layers of a chain from one to another."""

    network: Network
    names: tuple[str, ...]

    def __call__(self, x: jax.Array, arrays: list[jax.Array]) -> jax.Array:
        net = self.network.net
        assert isinstance(net, Chain)
        variables = self.network.variables(arrays)
        for name, layer in net.named():
            if name in self.names:
                own = {kind: tree[name] for kind, tree in variables.items() if name in tree}
                x = layer.apply({"params": {}, **own}, x)
        return x


def decisions(function: Network, arrays: list[jax.Array], x: PyTree, **options: Any) -> jax.Array:
    """Return all numbers whose signs the network decides by, as one vector."""
    with jax.default_matmul_precision("highest"):
        found = trace(function, arrays, x, **options).switches
    return jnp.concatenate([jnp.ravel(s) for s in found]) if found else jnp.zeros((0,))


def _reach(function: Callable[[PyTree], jax.Array], point: PyTree, chunk_size: int, finite: jax.Array) -> Reach:
    """Return the smallest |g| over the length of g's gradient, over all decisions g that are affine near the point."""
    checks.positive_integer("chunk_size", chunk_size)
    values, pullback = jax.vjp(function, point)
    count = values.shape[0]
    if count == 0:
        nothing = jnp.where(finite, jnp.asarray(jnp.inf, values.dtype), jnp.nan)
        return Reach(nothing, jax.tree.map(jnp.zeros_like, point))

    def length(index: jax.Array) -> jax.Array:
        unit = jnp.zeros_like(values).at[index].set(1)
        return vectors.norm(pullback(unit)[0])

    lengths = jax.lax.map(length, jnp.arange(count), batch_size=min(chunk_size, count))
    moved = (lengths > 0) & ~jnp.isnan(values)
    distances = jnp.where(moved, jnp.abs(values) / jnp.where(moved, lengths, 1), jnp.inf)
    nearest = jnp.argmin(distances)
    radius = jnp.where(finite, distances[nearest], jnp.nan)
    gradient = pullback(jnp.zeros_like(values).at[nearest].set(1))[0]
    towards = jnp.where(values[nearest] > 0, -1, 1) / jnp.where(lengths[nearest] > 0, lengths[nearest], 1)
    found = jnp.isfinite(radius)
    return Reach(radius, jax.tree.map(lambda leaf: jnp.where(found, leaf * towards.astype(leaf.dtype), 0), gradient))
