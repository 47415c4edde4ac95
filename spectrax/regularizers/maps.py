"""What a penalty acts on: functions from parameters to named linear operators."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


@dataclasses.dataclass(frozen=True)
class MatrixMaps:
    """The parameters of a tree as matrices, by explicit axes; made by `matrix_maps`."""

    axes: MatrixAxes | None

    def __call__(self, params: PyTree) -> dict[str, LinearOperator]:
        """Return one operator for each matrix in the tree, named by its path."""
        operators: dict[str, LinearOperator] = {}
        for path, leaf in jax.tree.leaves_with_path(params):
            if jnp.ndim(leaf) < 2 or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                continue
            name = _name(path)
            if self.axes is None:
                if leaf.ndim > 2:
                    raise ValueError(
                        f"{name} has shape {leaf.shape}: which matrix it stands for is not known. Give the real linear "
                        "maps (sx.layers.linear_maps, sx.conv_operator), or ask for reshaped matrices by MatrixAxes"
                    )
                found = {name: aslinearoperator(leaf.T)}
            else:
                found = _matrices(name, leaf, self.axes)
            twice = operators.keys() & found.keys()
            if twice:
                raise ValueError(f"two parameters have the path {', '.join(sorted(twice))}: rename one of them")
            operators.update(found)
        if not operators:
            raise ValueError("no parameter has two or more axes: there is no matrix to act on")
        return operators


def matrix_maps(axes: MatrixAxes | None = None) -> MatrixMaps:
    """Return the map from parameters to their matrices.

    Args:
        axes: The axes that form the matrix, the same for every parameter that has two axes or more. None takes
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


def _name(path: Sequence[Any]) -> str:
    # Flax's nnx.Optimizer hands variables to `init` and bare arrays to `update`: a variable's attribute "value" is no
    # part of the name
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def _matrices(name: str, leaf: jax.Array, axes: MatrixAxes) -> dict[str, LinearOperator]:
    inputs, outputs = _axes(axes.reduction_axes, leaf.ndim, name), _axes(axes.output_axes, leaf.ndim, name)
    if set(inputs) & set(outputs) or not inputs or not outputs:
        raise ValueError(f"reduction_axes and output_axes must be disjoint and non-empty, got {axes}")
    batch = tuple(axis for axis in range(leaf.ndim) if axis not in inputs + outputs)
    moved = leaf.transpose(batch + outputs + inputs)
    batch_shape = moved.shape[: len(batch)]
    flat = moved.reshape(*batch_shape, math.prod(leaf.shape[axis] for axis in outputs), -1)
    if not batch:
        return {name: aslinearoperator(flat)}
    return {f"{name}[{','.join(map(str, index))}]": aslinearoperator(flat[index]) for index in np.ndindex(*batch_shape)}


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
