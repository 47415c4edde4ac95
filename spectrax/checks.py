"""Checks of arguments, made while tracing: each names what was expected and what came."""

import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


def choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def positive_integer(name: str, value: Any) -> None:
    """Raise unless `value` is an integer of at least one."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def number_in(name: str, value: Any, low: float, high: float, *, low_open: bool = False) -> None:
    """Raise unless `value` is a real number in [low, high] (or (low, high], when `low_open`)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r} of type {type(value).__name__}")
    inside = (low < float(value) if low_open else low <= float(value)) and float(value) <= high
    if not inside:
        if high == float("inf"):
            raise ValueError(f"{name} must be {'larger than' if low_open else 'at least'} {low:g}, got {value}")
        raise ValueError(f"{name} must lie in {'(' if low_open else '['}{low}, {high}], got {value}")


def level(value: Any) -> None:
    """Raise unless a level of confidence is a real number in (0, 1)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"level must be a real number, got {value!r} of type {type(value).__name__}")
    if not 0 < float(value) < (1 + float(value)) / 2 < 1:  # the tail must be known in floating point
        raise ValueError(f"level must lie in (0, 1), got {value}")


def inexact(name: str, dtype: Any) -> None:
    """Raise `TypeError` unless `dtype` is a floating-point or complex dtype."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"{name} must have a floating-point or complex dtype, got {jnp.dtype(dtype).name}")


def array_arguments(args: tuple) -> None:
    """Raise `TypeError` unless all leaves of the further arguments of a function are arrays or numbers."""
    for leaf in jax.tree.leaves(args):
        if isinstance(leaf, str | type) or not (
            hasattr(leaf, "dtype") or hasattr(leaf, "__jax_array__") or isinstance(leaf, bool | int | float | complex)
        ):
            raise TypeError(f"args must be arrays, got {leaf!r}: bind it to the function with functools.partial")


def leading_axis(name: str, tree: Any) -> int:
    """Return the length of the leading axis of all leaves; `ValueError` unless there is one."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if not shapes or any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"{name} must have one leading batch axis of the same length on every leaf, got shapes {shapes}"
        )
    return shapes[0][0]


def key(name: str, value: Any) -> None:
    """Raise `TypeError` unless `value` is one PRNG key (typed, or two raw `uint32`)."""
    aval = getattr(value, "dtype", None)
    if aval is None:
        raise TypeError(f"{name} must be a PRNG key such as jax.random.key(0), got {type(value).__name__}")
    typed = jnp.issubdtype(aval, jax.dtypes.prng_key)
    if (typed and value.ndim != 0) or (not typed and (aval != jnp.uint32 or value.ndim != 1)):
        raise TypeError(
            f"{name} must be one PRNG key such as jax.random.key(0), got an array of shape {value.shape} and dtype "
            f"{aval}"
        )


def automatic_axes(name: str, tree: Any) -> None:
    """Raise `ValueError` if an array lies on a mesh with explicit axes, of which no argument told."""
    for leaf in jax.tree.leaves(tree):
        mesh = getattr(getattr(jax.typeof(leaf), "sharding", None), "mesh", None)
        axes = getattr(mesh, "explicit_axes", ())
        if axes:
            raise ValueError(
                f"{name} holds an array on a mesh with the explicit axes {', '.join(map(str, axes))} that is none of "
                "the arguments: give it as one, or make the mesh with axis_types=(jax.sharding.AxisType.Auto,) * "
                "number of axes"
            )


def same_structure(name: str, tree: Any, struct: Any) -> None:
    """Raise `ValueError` unless the arrays of `tree` have the structure, shapes and dtypes of `struct`.

    Args:
        name: What the tree is called in the message.
        tree: A pytree of arrays.
        struct: A pytree of `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: If the structure or a shape differs.
        TypeError: If a dtype differs.
    """
    expected, actual = jax.tree.structure(struct), jax.tree.structure(tree)
    if expected != actual:
        raise ValueError(f"{name} must be a pytree of structure {expected}, got {actual}")
    for (path, want), got in zip(jax.tree.leaves_with_path(struct), jax.tree.leaves(tree), strict=True):
        where = f"{name}{jax.tree_util.keystr(path)}"
        if jnp.shape(got) != want.shape:
            raise ValueError(f"{where} must have shape {want.shape}, got {jnp.shape(got)}")
        if jnp.result_type(got) != want.dtype:
            raise TypeError(f"{where} must have dtype {want.dtype}, got {jnp.result_type(got)}")
