"""The matrix that shapes the loss in one layer's weights, as an operator."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import core as jax_core

from spectrax import checks, vectors
from spectrax.networks.layer_finding import Network, network
from spectrax.operators import LinearOperator, jacobian_operator
from spectrax.programs.layers import Site, trace

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LayerProblem:
    """One layer of a network at one sample or at many: where it is, and what it is at the moment.

    Attributes:
        network: The network as a function of its arrays.
        arrays: The parameters.
        point: The sample, or the samples along a leading axis.
        batched: Whether there are many.
        name: The layer's name.
        place: Its number in the order of application.
        site: What it is applied to, and its weight; of the first sample.
        followed: Whether everything that the network decides could be looked into.
    """

    network: Network
    arrays: list[jax.Array]
    point: PyTree
    batched: bool
    name: str
    place: int
    site: Site
    followed: bool

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """The shape of a bias of the layer: one number for each of its units or channels."""
        site = self.site
        if site.kind == "conv":
            axes = {site.equation.params["dimension_numbers"].out_spec[1]}
        else:  # batch axes, then those of the first operand, then those of the second
            contracted, (batch, _) = site.equation.params["dimension_numbers"]
            own = site.weight.ndim - len(batch) - len(contracted[0])
            axes = set(range(len(batch)))
            rank = site.output.ndim
            axes |= set(range(len(batch), len(batch) + own) if site.weight_first else range(rank - own, rank))
        return tuple(size if i in axes else 1 for i, size in enumerate(site.output.shape))

    def weights(self, *, bias: bool) -> PyTree:
        """The weight; or with it a bias that is zero at the moment, whatever is added already."""
        if not bias:
            return self.site.weight
        return {"bias": jnp.zeros(self.bias_shape, self.site.output.dtype), "weight": self.site.weight}

    def function(self, *, bias: bool) -> "OutputOfWeights":
        """The network's output as a function of `weights`."""
        return OutputOfWeights(self.network, self.place, self.batched, bias)

    def operator(self, *, bias: bool) -> LinearOperator:
        """Q, as `layer_operator` returns it."""
        return jacobian_operator(self.function(bias=bias), self.weights(bias=bias), self.arrays, self.point)

    def output(self) -> PyTree:
        """The network's output at the sample, or at the samples along a leading axis."""
        return self.function(bias=False)(self.site.weight, self.arrays, self.point)


def where_finite(output: PyTree, values: jax.Array) -> jax.Array:
    """Return values where all of the output is finite, and NaN elsewhere.

    A unit that is NaN counts as one that is switched off in every derivative, which is then zero without a warning.

    Args:
        output: A network's output.
        values: What follows from its derivatives.

    Returns:
        The values, or NaN in all their places.
    """
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(output)])
    return jnp.where(jnp.all(finite), values, jnp.nan)


@dataclasses.dataclass(frozen=True)
class OutputOfWeights:
    """The network's output as a function of one layer's weight, and of what is added behind it."""

    network: Network
    place: int
    batched: bool
    bias: bool

    def __call__(self, weights: PyTree, arrays: list[jax.Array], x: PyTree) -> PyTree:
        def one(sample: PyTree) -> PyTree:
            weight = weights["weight"] if self.bias else weights
            taps = {}
            if self.bias:
                shape = jax.eval_shape(lambda: trace(self.network, arrays, sample).sites[self.place].output).shape
                taps = {self.place: jnp.broadcast_to(weights["bias"], shape)}
            return trace(self.network, arrays, sample, taps=taps, weights={self.place: weight}).output

        return jax.vmap(one)(x) if self.batched else one(x)


def layer_problem(net: Any, params: PyTree, layer: str, x: PyTree, *, batched: bool) -> LayerProblem:
    """Find a layer of a network by name.

    Args:
        net: A `layers.Layer`, or a function f(params, x) of one sample.
        params: Its parameters.
        layer: The name, as in `find_layers`, with a number where several layers share it.
        x: One sample, or with `batched` many along a leading axis.
        batched: Which of the two.

    Returns:
        The layer and what belongs to it.

    Raises:
        TypeError: If `net` is neither a layer nor a function, or x is no floating-point array.
        ValueError: If there is no such layer; the message lists those that there are.
    """
    function, arrays = network(net, params)
    point = jax.tree.map(jnp.asarray, x)
    for leaf in jax.tree.leaves(point):
        checks.inexact("x", leaf.dtype)
        if batched and (leaf.ndim == 0 or leaf.shape[0] == 0):
            raise ValueError(f"x must have a leading axis of at least one sample with batched=True, got {leaf.shape}")
    first = vectors.row(point, 0) if batched else point
    with jax.default_matmul_precision("highest"):
        found = trace(function, arrays, first)
    names = function.names(found.sites)
    checks.choice("layer", layer, tuple(names))
    place = names.index(layer)
    return LayerProblem(function, arrays, point, batched, layer, place, found.sites[place], found.followed)


def weight_direction(name: str, direction: Any, problem: LayerProblem) -> jax.Array:
    """Return a direction in the space of a layer's weights as an array.

    Args:
        name: What the argument is called.
        direction: The direction.
        problem: The layer.

    Returns:
        The direction, in the dtype of the weight.

    Raises:
        TypeError: If it is complex and the weight is not.
        ValueError: If it has not the shape of the weight, or is not finite.
    """
    weight = problem.site.weight
    direction = jnp.asarray(direction)
    if direction.shape != weight.shape:
        raise ValueError(f"{name} must have the shape of the weight, {weight.shape}, got {direction.shape}")
    if vectors.is_complex(direction.dtype) and not vectors.is_complex(weight.dtype):
        raise TypeError(f"{name} must be real, as the weight is, got {direction.dtype.name}")
    direction = direction.astype(weight.dtype)
    if not isinstance(direction, jax_core.Tracer) and not bool(jnp.all(jnp.isfinite(direction))):
        raise ValueError(f"{name} must be finite")
    return direction


def layer_operator(
    net: Any, params: PyTree, layer: str, x: PyTree, /, *, batched: bool = False, bias: bool = False
) -> LinearOperator:
    """Return the matrix Q by which one layer's weights act on a network's output.

    On the region where the network is affine (see `local_linear`), f = Q vec(W) + what does not depend on W. With the
    squared error the loss in W is the quadratic |Q vec(W) - target|^2: its Hessian is 2 Q^T Q, its level sets have the
    semi-axes 1 / s_i(Q), and the singular values that are zero are its flat directions. For a dense layer and one
    sample Q = z^T kron (M D), so that s_i(Q) = |z| s_i(M D), with z the layer's input; for a convolution it counts that
    a kernel's entry is used in many places; for many samples their rows stand below each other.

    Args:
        net: A `layers.Layer`, or a function f(params, x) of one sample (see `find_layers`).
        params: Its parameters.
        layer: The layer's name, as in `find_layers`.
        x: One sample, or with `batched=True` many, along a leading axis.
        batched: Whether there are many.
        bias: Whether to count a bias of the layer as well: the operator's input is then {"bias", "weight"}.

    Returns:
        An operator from the layer's weight, in its own shape, to the output, or the outputs along a leading axis. Where
        the network is not piecewise affine it is the derivative at this weight.

    Raises:
        TypeError: If `net` is neither a layer nor a function, or x is no floating-point array.
        ValueError: If there is no such layer; the message lists those that there are.

    Cost:
        Each product takes about one evaluation of the network for each sample.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> net = sx.models.mlp(10, width=32, depth=2)
        >>> variables = net.init(jax.random.key(0), (8,))
        >>> Q = sx.landscape.layer_operator(net, variables, "dense_1", jnp.ones((5, 8)), batched=True)
        >>> Q.shape, Q.in_struct.shape
        ((50, 256), (8, 32))

    Source:
        Riedi, Balestriero, Baraniuk, "Singular Value Perturbation and Deep Network Optimization", Constructive
        Approximation 57(2), 2023, doi:10.1007/s00365-022-09601-5.
    """
    return layer_problem(net, params, layer, x, batched=batched).operator(bias=bias)
