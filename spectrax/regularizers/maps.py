"""What a penalty acts on: functions from parameters to named linear operators."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import explicit_axes
from spectrax.operators import LinearOperator, aslinearoperator, jacobian_operator

PyTree = Any
Maps = Callable[..., dict[str, LinearOperator]]


@dataclasses.dataclass(frozen=True)
class MatrixAxes:
    """Which axes of a parameter form the matrix that a penalty acts on.

    The entries along `reduction_axes` are the input of the linear map and those along `output_axes` its output; every
    index along the remaining axes is a matrix of its own. A dense kernel of shape (in, out) has `MatrixAxes(0, 1)`, an
    attention projection of shape (d, heads, head_dim) `MatrixAxes(0, (1, 2))`.

    A convolution kernel has no matrix: `MatrixAxes((0, 1, 2), 3)` asks for the reshaped kernel, whose norm differs
    from that of the convolution by factors of 2 to 3. `sx.layers.linear_maps` or `sx.conv_operator` give the real one.

    Attributes:
        reduction_axes: One axis or several, negative ones counted from the end.
        output_axes: The same for the output.
    """

    reduction_axes: int | tuple[int, ...] = 0
    output_axes: int | tuple[int, ...] = 1


Axes = MatrixAxes | Callable[[str, jax.Array], MatrixAxes | None] | None
_UNKNOWN = (
    "{name} has shape {shape}: which matrix it stands for is not known. Give the real linear maps "
    "(sx.layers.linear_maps, sx.conv_operator), or ask for reshaped matrices by MatrixAxes"
)


@dataclasses.dataclass(frozen=True)
class MatrixMaps:
    """The parameters of a tree as matrices, by explicit axes; made by `matrix_maps`."""

    axes: Axes

    def __call__(self, params: PyTree) -> dict[str, LinearOperator]:
        """Return one operator for each matrix in the tree, named by its path."""
        operators: dict[str, LinearOperator] = {}
        for path, leaf in jax.tree.leaves_with_path(params):
            name = path_name(path)
            stack = matrices_of(name, leaf, self.axes)
            if stack is None:
                continue
            matrices, _ = stack
            found = {name: aslinearoperator(matrices)} if matrices.ndim == 2 else _separated(name, matrices)
            twice = operators.keys() & found.keys()
            if twice:
                raise ValueError(f"two parameters have the path {', '.join(sorted(twice))}: rename one of them")
            operators.update(found)
        if not operators:
            raise ValueError("no parameter has two or more axes: there is no matrix to act on")
        return operators

    def sides(self, params: PyTree) -> dict[str, tuple[tuple[int, Any], tuple[int, Any]]]:
        """Return the lengths of both sides of each parameter's matrices, by path, and the mesh axes that split them.

        A side that consists of several axes of the parameter is split where only the first of them is.
        """
        found = {}
        for path, leaf in jax.tree.leaves_with_path(params):
            own = _matrix_axes(path_name(path), leaf, self.axes)
            if own is not None:
                parts = (*explicit_axes.specs_of(leaf), *(None,) * leaf.ndim)
                inputs, outputs = (
                    (
                        math.prod(leaf.shape[axis] for axis in side),
                        parts[side[0]] if all(parts[axis] is None for axis in side[1:]) else None,
                    )
                    for side in own
                )
                found[path_name(path)] = (outputs, inputs)
        return found


def _separated(name: str, matrices: jax.Array) -> dict[str, LinearOperator]:
    """Return the matrices of a stack one by one.

    They are split and not indexed: the derivative of that is one concatenation, and not a sum of as many stacks.
    """
    batch = matrices.shape[:-2]
    parts = jnp.split(matrices.reshape(-1, *matrices.shape[-2:]), math.prod(batch)) if math.prod(batch) else []
    return {
        f"{name}[{','.join(map(str, index))}]": aslinearoperator(part[0])
        for index, part in zip(np.ndindex(*batch), parts, strict=True)
    }


def flax_axes(name: str, parameter: jax.Array) -> MatrixAxes | None:
    """Return which axes of a parameter form its matrix, by the shapes and names that Flax gives.

    Two axes are a matrix, which has the same singular values as (in, out) and (out, in): dense layers, embeddings,
    recurrent cells, and all of Equinox's but convolutions. Of three axes, "query", "key" and "value" of an attention
    layer are (d, heads, head_dim), and "out" is (heads, head_dim, d).

    Args:
        name: The parameter's path, with "/" between its parts.
        parameter: The parameter.

    Returns:
        The axes; None for fewer than two axes.

    Raises:
        ValueError: If the parameter has more axes and is not known; a convolution's kernel says nothing of its norm
            without padding and strides.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.regularizers.flax_axes("attention/out/kernel", jnp.ones((4, 2, 8)))
        MatrixAxes(reduction_axes=(0, 1), output_axes=2)
    """
    if parameter.ndim < 2:
        return None
    if parameter.ndim == 2:
        return MatrixAxes()
    parts = name.split("/")
    if parameter.ndim == 3 and {"query", "key", "value"} & set(parts):
        return MatrixAxes(0, (1, 2))
    if parameter.ndim == 3 and "out" in parts:
        return MatrixAxes((0, 1), 2)
    raise ValueError(_UNKNOWN.format(name=name, shape=parameter.shape))


def matrix_maps(axes: Axes = None) -> MatrixMaps:
    """Return the map from parameters to their matrices.

    Args:
        axes: The axes that form the matrix, the same for every parameter that has two axes or more; or a function of a
            parameter's path and array that gives them, or None to leave it out, such as `flax_axes`. None takes
            parameters of shape (in, out), and is an error for those with more axes.

    Returns:
        A function from a tree of parameters to operators named by the parameters' paths. It raises `ValueError` where
        no parameter is a matrix, where one has more axes than are explained, and where two have one path.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> list(sx.regularizers.matrix_maps()({"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}))
        ['dense/kernel']
    """
    return MatrixMaps(axes)


def path_name(path: Sequence[Any]) -> str:
    """Return a parameter's path, with "/" between its parts."""
    # Flax's nnx.Optimizer hands variables to `init` and bare arrays to `update`: a variable's attribute "value" is no
    # part of the name
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def matrices_of(name: str, leaf: jax.Array, axes: Axes) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]] | None:
    """Return the matrices of a parameter and the way back to its shape, or None where it has none.

    Args:
        name: Its path.
        leaf: The parameter.
        axes: Which axes form its matrix, as in `matrix_maps`.

    Returns:
        An array of shape (batch..., out, in), and a function from such an array to one of the parameter's shape.

    Raises:
        ValueError: If the axes are not known, not there or not disjoint.
    """
    own = _matrix_axes(name, leaf, axes)
    if own is None:
        return None
    inputs, outputs = own
    order = (*(axis for axis in range(leaf.ndim) if axis not in inputs + outputs), *outputs, *inputs)
    moved = leaf.transpose(order)
    batch = moved.shape[: leaf.ndim - len(inputs) - len(outputs)]
    matrices = moved.reshape(*batch, math.prod(leaf.shape[axis] for axis in outputs), -1)

    def back(stack: jax.Array) -> jax.Array:
        return stack.reshape(moved.shape).transpose([order.index(axis) for axis in range(leaf.ndim)])

    return matrices, back


def _matrix_axes(name: str, leaf: jax.Array, axes: Axes) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the axes of a parameter that are the input of its matrices, and the output's; None where it has none."""
    if jnp.ndim(leaf) < 2 or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return None
    if axes is None and leaf.ndim > 2:
        raise ValueError(_UNKNOWN.format(name=name, shape=leaf.shape))
    chosen = axes(name, leaf) if callable(axes) else axes or MatrixAxes()
    if chosen is None:
        return None
    inputs, outputs = _axes(chosen.reduction_axes, leaf.ndim, name), _axes(chosen.output_axes, leaf.ndim, name)
    if set(inputs) & set(outputs) or not inputs or not outputs:
        raise ValueError(f"reduction_axes and output_axes must be disjoint and non-empty, got {chosen}")
    return inputs, outputs


def _axes(axes: int | tuple[int, ...], ndim: int, name: str) -> tuple[int, ...]:
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"axis {axis} does not exist in {name}, which has {ndim} axes")
    axes = tuple(axis % ndim for axis in axes)
    if len(set(axes)) != len(axes):
        raise ValueError(f"the axes {axes} of {name} must differ from each other")
    return axes


@dataclasses.dataclass(frozen=True)
class JacobianMaps:
    """The Jacobian of a model's output in its input, at one sample; made by `jacobian_maps`."""

    function: Callable[[PyTree, PyTree], PyTree]

    def __call__(self, params: PyTree, x: PyTree) -> dict[str, LinearOperator]:
        """Return the Jacobian at one sample, under the name "jacobian"."""
        return {"jacobian": jacobian_operator(_Swapped(self.function), x, params)}


@dataclasses.dataclass(frozen=True)
class _Swapped:
    function: Callable[[PyTree, PyTree], PyTree]

    def __call__(self, x: PyTree, params: PyTree) -> PyTree:
        return self.function(params, x)


def jacobian_maps(function: Callable[[PyTree, PyTree], PyTree], /) -> JacobianMaps:
    """Return the map from parameters and one sample to the input-output Jacobian of a model.

    Hand it to a penalty with `batched=True`, and the samples as the extra argument `x` of `apply` or of the Optax
    update.

    Args:
        function: The model f(params, x) of one sample, in inference mode: batch statistics couple the samples.

    Returns:
        A function from (params, x) to one operator named "jacobian".

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> maps = sx.regularizers.jacobian_maps(lambda params, x: jnp.tanh(params @ x))
        >>> maps(jnp.ones((2, 3)), jnp.zeros(3))["jacobian"].shape
        (2, 3)
    """
    return JacobianMaps(function)
