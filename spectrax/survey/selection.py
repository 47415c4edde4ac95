"""Which matrices a checkpoint has, and what of it is left out and why."""

import dataclasses
import fnmatch
import math
from collections import Counter

import jax.numpy as jnp
import numpy as np

from spectrax.integrations.weights import StoredArray, Weights
from spectrax.survey.configuration import SpectrumConfig

MATRIX, STACKED, RESHAPED = "matrix", "matrix of a stack", "reshaped kernel, not the convolution"
_MORE_AXES = (
    "more than two axes: name it in --stacked if leading axes count matrices, or say --kernels for convolutions"
)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One matrix of a checkpoint.

    Attributes:
        name: The array's name, with the place in a stack in brackets.
        array: The array that it is in.
        kind: "matrix", "matrix of a stack", or "reshaped kernel, not the convolution".
        shape: (m, n).
        index: The place in the stack; empty for a matrix alone.
        twins: How many of the matrices to be measured have this shape, or its transpose.
    """

    name: str
    array: StoredArray
    kind: str
    shape: tuple[int, int]
    index: tuple[int, ...] = ()
    twins: int = 1

    def of(self, values: np.ndarray) -> np.ndarray:
        """Take the matrix out of the array's values."""
        return values[self.index].reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """An array that is not measured, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str


def select(weights: Weights, config: SpectrumConfig, /) -> tuple[list[Matrix], list[LeftOut]]:
    """Choose the matrices of a checkpoint.

    Args:
        weights: The checkpoint.
        config: Which to choose.

    Returns:
        The matrices in the checkpoint's order; and the arrays of two axes and more that the names allow and that are
        left out all the same.

    Raises:
        ValueError: If a pattern of `config.include` matches no name.
    """
    for pattern in config.include:
        if weights.arrays and not any(fnmatch.fnmatchcase(array.name, pattern) for array in weights.arrays):
            names = ", ".join(repr(array.name) for array in weights.arrays[:4])
            more = f" and {len(weights.arrays) - 4} more" if len(weights.arrays) > 4 else ""
            raise ValueError(f"include must match names of {weights.path}, got {pattern!r}; there are {names}{more}")
    matrices: list[Matrix] = []
    left_out = []
    for array in weights.arrays:
        if not is_named(array.name, config):
            continue
        found, reason = _matrices(array, config)
        if reason and len(array.shape) >= 2:
            left_out.append(LeftOut(array.name, array.shape, array.dtype, reason))
        matrices += found
    counts = Counter(_unordered(matrix.shape) for matrix in matrices)
    return [dataclasses.replace(matrix, twins=counts[_unordered(matrix.shape)]) for matrix in matrices], left_out


def is_named(name: str, config: SpectrumConfig) -> bool:
    """Whether the patterns of names allow an array."""
    included, excluded = (
        any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) for patterns in (config.include, config.exclude)
    )
    return included and not excluded


def _matrices(array: StoredArray, config: SpectrumConfig) -> tuple[list[Matrix], str]:
    """Return the matrices of an array, or why there are none."""
    if not array.quantized:
        try:
            inexact = jnp.issubdtype(jnp.dtype(array.dtype), jnp.inexact)
        except TypeError:
            return [], f"the dtype {array.dtype} is not known"
        if not inexact:
            return [], f"the dtype {array.dtype} holds no floating-point numbers"
    if len(array.shape) < 2:
        return [], "fewer than two axes"
    stacked = any(fnmatch.fnmatchcase(array.name, pattern) for pattern in config.stacked)
    if len(array.shape) == 2:
        kind, shape = MATRIX, array.shape
    elif stacked:
        kind, shape = STACKED, array.shape[-2:]
    elif config.kernels == "flax":
        kind, shape = RESHAPED, (math.prod(array.shape[:-1]), array.shape[-1])
    elif config.kernels == "torch":
        kind, shape = RESHAPED, (array.shape[0], math.prod(array.shape[1:]))
    else:
        return [], _MORE_AXES
    if min(shape) < config.min_side:
        return [], f"a side shorter than {config.min_side}"
    m, n = shape
    if kind != STACKED:
        return [Matrix(array.name, array, kind, (m, n))], ""
    places = np.ndindex(*array.shape[:-2])
    return [Matrix(f"{array.name}[{','.join(map(str, i))}]", array, kind, (m, n), i) for i in places], ""


def _unordered(shape: tuple[int, int]) -> tuple[int, int]:
    return max(shape), min(shape)
