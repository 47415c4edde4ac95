"""A function as static structure: what it closes over becomes an argument, so that equal calls compile once."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.extend import core as jax_core

from spectrax.programs.equations import equations

PyTree = Any


class FrozenTree:
    """A pytree of hashable leaves, itself hashable, so that it can be static structure of another pytree."""

    __slots__ = ("_leaves", "_treedef")

    def __init__(self, tree: PyTree):
        leaves, self._treedef = jax.tree.flatten(tree)
        self._leaves = tuple(leaves)

    @property
    def tree(self) -> PyTree:
        """The pytree as it was given."""
        return self._treedef.unflatten(self._leaves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenTree) and self._treedef == other._treedef and self._leaves == other._leaves

    def __hash__(self) -> int:
        return hash((self._treedef, self._leaves))

    def __repr__(self) -> str:
        return f"FrozenTree({self.tree!r})"


class Program:
    """A traced function, called as `program(consts, *args)`: what it closed over has become its first argument.

    Two programs are equal only when they are the same object, since a jaxpr has no other cheap identity. A program that
    is made anew at every call therefore retraces whatever `jit` it is handed to; one made inside `jit` does not.
    """

    __slots__ = ("_jaxpr", "_out_tree")

    def __init__(self, closed_jaxpr: Any, out_tree: Any):
        self._jaxpr = closed_jaxpr.jaxpr
        self._out_tree = out_tree

    def __call__(self, consts: tuple, *args: PyTree) -> PyTree:
        closed = jax_core.ClosedJaxpr(self._jaxpr, list(consts))
        outs = jax_core.jaxpr_as_fun(closed)(*jax.tree.leaves(args))
        return self._out_tree.unflatten(outs)


class Direct:
    """A function that closes over no array, called as `direct(consts, *args)`; equal if the functions are."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, consts: tuple, *args: PyTree) -> PyTree:
        del consts
        return self._function(*args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Direct) and self._function == other._function

    def __hash__(self) -> int:
        return hash(self._function)

    def __repr__(self) -> str:
        return f"Direct({self._function!r})"


class Hoisted:
    """What `hoist` found: a static program, the arrays it closed over, its result's structure, what it contains."""

    __slots__ = ("consts", "out_struct", "primitives", "program")

    def __init__(self, program: Program | Direct, consts: tuple, out_struct: PyTree, primitives: frozenset[str]):
        self.program, self.consts, self.out_struct, self.primitives = program, consts, out_struct, primitives


def hoist(function: Callable, *structs: PyTree) -> Hoisted:
    """Trace a function and turn every array that it closes over into an argument.

    `jax.closure_convert` would hoist nothing under `vmap`; `jax.make_jaxpr` lifts tracers of every kind. A hashable
    function that closes over no array stays as it is, so that equal calls share one compiled program, and is traced
    once for each set of shapes. As under `jax.jit`, whatever such a function reads that is not an array (a global
    number, an attribute) counts as frozen when it is first traced.

    Args:
        function: Any JAX function of the arguments that `structs` describes.
        *structs: Pytrees of `jax.ShapeDtypeStruct` (or arrays), one for each argument.

    Returns:
        The program, its constants, the structure of the result, and the names of all primitives inside.
    """
    frozen = FrozenTree(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), structs))
    if isinstance(function, Hashable) and _is_hashable(function):
        cached = _without_constants(function, frozen)
        if cached is not None:
            return cached
    return _trace(function, frozen)


def compiled(function: Callable, *structs: PyTree) -> Callable[..., PyTree]:
    """Return a function under `jit` that sees what it closes over as that is now.

    A plain `jit` of a function that closes over an array would go on with the array that it first saw.

    Args:
        function: Any JAX function of the arguments that `structs` describes.
        *structs: As in `hoist`.

    Returns:
        A function of such arguments. Equal functions that close over no array share their compiled programs.
    """
    hoisted = hoist(function, *structs)
    return functools.partial(_jitted, hoisted.program, hoisted.consts)


@functools.partial(jax.jit, static_argnums=0)
def _jitted(program: Program | Direct, consts: tuple, *args: PyTree) -> PyTree:
    return program(consts, *args)


def _is_hashable(function: Callable) -> bool:
    try:
        hash(function)
    except TypeError:
        return False
    return True


class _ClosesOverArrays(Exception):
    """Raised inside the cache, so that a function which closes over arrays is not kept."""


def _without_constants(function: Callable, frozen: FrozenTree) -> Hoisted | None:
    try:
        return _cached_trace(function, frozen)
    except _ClosesOverArrays:
        return None


@functools.lru_cache(maxsize=512)
def _cached_trace(function: Callable, frozen: FrozenTree) -> Hoisted:
    hoisted = _trace(function, frozen)
    if hoisted.consts:
        raise _ClosesOverArrays
    return Hoisted(Direct(function), (), hoisted.out_struct, hoisted.primitives)


def _trace(function: Callable, frozen: FrozenTree) -> Hoisted:
    # a fresh function each time: JAX remembers traces by the function's identity, and what it closes over may change
    closed, out_struct = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*frozen.tree)
    program = Program(closed, jax.tree.structure(out_struct))
    primitives = frozenset(equation.primitive.name for equation in equations(closed.jaxpr))
    return Hoisted(program, tuple(closed.consts), out_struct, primitives)
