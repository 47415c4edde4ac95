"""What a layer is: a frozen, hashable description that creates its variables and is applied to one sample.

A layer holds hyper-parameters only; arrays live in the variables that `init` returns. So a layer is a static argument
of `jit`, equal layers share one compilation, and parameters are plain nested dicts that Optax and Orbax take as they
are.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp

from spectrax import checks
from spectrax.operators import LinearOperator

Shape = tuple[int, ...]
Tree = dict[str, Any]


class Child(NamedTuple):
    """A layer inside another one: its name in the parent's trees, the layer, and the shape of its input."""

    name: str
    layer: "Layer"
    input_shape: Shape


@dataclasses.dataclass(frozen=True)
class Layer(abc.ABC):
    """The protocol of every layer, and the base to subclass for an own one.

    Users call `init`, `apply` and `output_shape`. A new layer is a frozen dataclass of hashable fields that implements
    `create`, `forward` and `output_shape`. One that has a linear map sets `has_linear_map` and implements `linear_map`;
    one that is made of other layers lists them in `children`.

    Example:
        >>> import dataclasses
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> @dataclasses.dataclass(frozen=True)
        ... class Square(sx.layers.Layer):
        ...     kind = "square"
        ...
        ...     def forward(self, params, batch_stats, x, *, train):
        ...         return x**2, {}
        >>> sx.layers.chain(Square(), Square()).apply({"params": {}}, jnp.array([2.0, 3.0]))
        Array([16., 81.], dtype=float32)
    """

    kind: ClassVar[str] = "layer"
    has_linear_map: ClassVar[bool] = False

    def init(self, key: Any, input_shape: Sequence[int], /) -> dict[str, Tree]:
        """Create the variables for samples of one shape.

        Args:
            key: A PRNG key, such as `jax.random.key(0)`.
            input_shape: The shape of one sample, without a batch axis: `(features,)`, `(H, W, C)`, ...

        Returns:
            `{"params": ..., "batch_stats": ...}`, two plain nested dicts of arrays; `{}` where there are none.

        Raises:
            TypeError: If `key` is not one PRNG key, or `input_shape` holds something other than integers.
            ValueError: If the layer cannot take samples of this shape.
        """  # noqa: DOC502  (raised by the checks that are called)
        checks.key("key", key)
        shape = sample_shape(input_shape)
        self.output_shape(shape)
        params, batch_stats = self.create(key, shape)
        return {"params": params, "batch_stats": batch_stats}

    @overload
    def apply(self, variables: Mapping[str, Any], x: Any, /, *, train: Literal[False] = False) -> jax.Array: ...

    @overload
    def apply(
        self, variables: Mapping[str, Any], x: Any, /, *, train: Literal[True]
    ) -> tuple[jax.Array, dict[str, Tree]]: ...

    @overload
    def apply(self, variables: Mapping[str, Any], x: Any, /, *, train: bool) -> Any: ...

    def apply(self, variables: Mapping[str, Any], x: Any, /, *, train: bool = False) -> Any:
        """Apply the layer to one sample; a batch goes through `jax.vmap`.

        Args:
            variables: What `init` returned: a mapping with `"params"` and, if the layer has statistics, with
                `"batch_stats"`.
            x: One sample, of the shape that `init` was given and of the parameters' dtype.
            train: False is inference (running statistics). True is training: batch statistics are averaged over the
                vmapped axis that the normalisation names.

        Returns:
            `y`, or with `train=True` the pair `(y, updates)`, where `updates` is `{"batch_stats": tree}` with the whole
            new tree, `{}` inside when the layer has no statistics. Under `jax.vmap` the updates are the same for every
            sample: `out_axes=(0, None)` returns them once.

        Raises:
            ValueError: If `variables` has no `"params"`, or `x` does not have the shape that they were created for.
            TypeError: If the dtype of `x` is not that of the parameters.
        """
        if not isinstance(variables, Mapping) or "params" not in variables:
            got = sorted(map(str, variables)) if isinstance(variables, Mapping) else type(variables).__name__
            raise ValueError(
                f"variables must be a mapping with 'params' (and 'batch_stats'), as init returns; got {got}"
            )
        y, batch_stats = self.forward(
            variables["params"], variables.get("batch_stats", {}), jnp.asarray(x), train=bool(train)
        )
        return (y, {"batch_stats": batch_stats}) if train else y

    def output_shape(self, input_shape: Sequence[int], /) -> Shape:
        """The shape of the output for one sample of `input_shape`; here, the same shape."""
        return sample_shape(input_shape)

    def create(self, key: Any, input_shape: Shape, /) -> tuple[Tree, Tree]:
        """Create `(params, batch_stats)`; here, none."""
        del key, input_shape
        return {}, {}

    @abc.abstractmethod
    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Return the output for one sample, and the new `batch_stats` (unchanged or ignored where `train` is False)."""

    def children(self, input_shape: Shape, /) -> tuple[Child, ...]:
        """The layers inside this one, in the order of application; here, none."""
        del input_shape
        return ()

    def linear_map(self, params: Mapping[str, Any], input_shape: Shape, /) -> LinearOperator:
        """The layer's linear map, without bias, for samples of `input_shape`; only if `has_linear_map`."""
        raise NotImplementedError(f"a layer of kind {self.kind!r} has no linear map")


def sample_shape(shape: Sequence[int]) -> Shape:
    """Return a sample's shape as a tuple of positive integers, or raise."""
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(f"input_shape must be a tuple of integers such as (28, 28, 1), got {shape!r}")
    for size in shape:
        checks.positive_integer("each size of input_shape", size)
    return tuple(int(size) for size in shape)


def a_layer(name: str, value: Any) -> None:
    """Raise `TypeError` unless `value` is a layer."""
    if not isinstance(value, Layer):
        raise TypeError(
            f"{name} must be a layer such as layers.dense(10), got {value!r} of type {type(value).__name__}"
        )


def real(name: str, value: Any) -> float:
    """Return a finite real number as a Python float, so that equal layers hash alike, or raise."""
    largest = float(jnp.finfo(jnp.float64).max)
    checks.number_in(name, value, -largest, largest)
    return float(value)


def param_dtype(value: Any) -> Any:
    """The dtype to create parameters in: the one asked for, or JAX's default floating-point dtype of the moment."""
    return jnp.result_type(float) if value is None else value


def float_dtype(value: Any) -> Any:
    """Return `value` as a hashable NumPy dtype (None stays None), or raise where it is no inexact one."""
    if value is None:
        return None
    checks.inexact("param_dtype", value)
    return jnp.dtype(value)


def same_dtype(kind: str, x: jax.Array, array: Any) -> None:
    """Raise `TypeError` unless the input has the parameters' dtype: nothing is promoted silently."""
    if x.dtype != jnp.result_type(array):
        raise TypeError(
            f"{kind}: the input must have the parameters' dtype {jnp.result_type(array).name}, got {x.dtype.name}; "
            "cast one of them"
        )


def create_children(children: Sequence[Child], key: Any) -> tuple[Tree, Tree]:
    """Create the trees of a layer made of others: one entry a child, none for a child without arrays of that sort."""
    params, batch_stats = {}, {}
    for index, child in enumerate(children):
        # fold_in, not split: a deeper network from the same key starts with the same first layers.
        child_params, child_stats = child.layer.create(jax.random.fold_in(key, index), child.input_shape)
        if child_params:
            params[child.name] = child_params
        if child_stats:
            batch_stats[child.name] = child_stats
    return params, batch_stats


def forward_child(
    child: tuple[str, Layer], params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, *, train: bool
) -> tuple[jax.Array, Tree]:
    """Apply a child by name; its new statistics come back as `{name: tree}`, or `{}`."""
    name, layer = child
    y, new = layer.forward(params.get(name, {}), batch_stats.get(name, {}), x, train=train)
    return y, ({name: new} if new else {})


def parameter(kind: str, tree: Mapping[str, Any], name: str) -> Any:
    """Return an array from a layer's own tree, or say which one is missing."""
    if name not in tree:
        raise ValueError(
            f"{kind}: the variables must hold {name!r}, as init returns them; got {sorted(map(str, tree))}"
        )
    return tree[name]
