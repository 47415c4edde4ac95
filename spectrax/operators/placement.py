"""Where the vectors of an operator lie on devices, said by the user where arrays don't say it themselves."""

import copy
from typing import Any

import jax
from jax.sharding import NamedSharding

from spectrax import layouts
from spectrax.operators.conversion import aslinearoperator
from spectrax.operators.linear_operator import LinearOperator, register

PyTree = Any


def with_shardings(A: Any, in_shardings: PyTree, out_shardings: PyTree = None, /) -> LinearOperator:
    """Return the operator, with the shardings of its vectors given.

    Under `jax.jit`, arrays on a mesh with automatic axes don't say how they are sharded, and the vectors of an operator
    that is made of them are laid out by the compiler. With this, Krylov methods keep them as said, and reduce over all
    leaves at once.

    Args:
        A: An operator, or anything that `aslinearoperator` takes as one argument.
        in_shardings: A `jax.sharding.NamedSharding` for each leaf of `A.in_struct`, or None for a copy on each device;
            one alone stands for all leaves. For a Hessian those of the parameters.
        out_shardings: The same for `A.out_struct`. None for those of the input, where both sides have the same
            structure, and otherwise for what the compiler does.

    Returns:
        An equal operator, whose `in_struct` and `out_struct` carry the shardings.

    Raises:
        TypeError: If a sharding is neither a `NamedSharding` nor None.
        ValueError: If the shardings have another structure than the vectors, or an axis cannot be split so.

    Derivatives:
        Those of the operator.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> from jax.sharding import AxisType, NamedSharding, PartitionSpec
        >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))
        >>> rows = NamedSharding(mesh, PartitionSpec("model"))
        >>> @jax.jit
        ... def top(w):
        ...     H = sx.with_shardings(sx.hessian_operator(lambda w: jnp.sum(w**4), w), rows)
        ...     return sx.eigsh(H, which="largest", method=sx.Lanczos(), key=jax.random.key(0)).eigenvalues
        >>> [round(float(value), 3) for value in top(jnp.array([1.0, 2.0, 3.0]))]
        [108.0]
    """
    operator = aslinearoperator(A)
    in_struct = _placed("in_shardings", operator.in_struct, in_shardings)
    if out_shardings is not None:
        out_struct = _placed("out_shardings", operator.out_struct, out_shardings)
    elif operator.out_struct == operator.in_struct:
        out_struct = in_struct
    else:
        out_struct = operator.out_struct
    if "in_struct" not in vars(operator):
        return PlacedOperator(operator, in_struct, out_struct)
    placed = copy.copy(operator)
    placed.in_struct, placed.out_struct = in_struct, out_struct
    return placed


@register(children=("operator",), static=("in_struct", "out_struct"))
class PlacedOperator(LinearOperator):
    """An operator that is made of others, with the shardings of its vectors given; made by `with_shardings`."""

    def __init__(self, operator: LinearOperator, in_struct: PyTree, out_struct: PyTree):
        self.operator, self.in_struct, self.out_struct = operator, in_struct, out_struct

    @property
    def hermitian(self):
        return self.operator.hermitian

    def products(self):
        return self.operator.products()

    def loop_products(self):
        return self.operator.loop_products()

    def _block_products(self):
        return self.operator._block_products()


def _placed(name: str, struct: PyTree, shardings: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(struct)
    if shardings is None or isinstance(shardings, NamedSharding):
        given = [shardings] * len(leaves)
    else:
        try:
            given = treedef.flatten_up_to(shardings)
        except ValueError as error:
            raise ValueError(f"{name} must have the structure of the vectors, {treedef}: {error}") from None
    placed = []
    for leaf, sharding in zip(leaves, given, strict=True):
        if sharding is not None and not isinstance(sharding, NamedSharding):
            raise TypeError(f"{name} must hold NamedSharding or None, got {sharding!r}")
        if sharding is not None:
            sharding.shard_shape(leaf.shape)  # a ValueError that names the axis, where it cannot be split
            sharding = layouts.on_automatic_axes(sharding)
        placed.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding))
    return treedef.unflatten(placed)
