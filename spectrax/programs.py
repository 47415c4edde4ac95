"""Everything that looks at a jaxpr: what a function closes over, what a program contains, and its fast form."""

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core as jax_core

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


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield every equation of a jaxpr, those of its sub-programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(parameter):
                yield from equations(getattr(parameter, "jaxpr", parameter))


def primitives_on(function: Callable, struct: PyTree) -> frozenset[str]:
    """Return the names of the primitives that are applied to something that depends on a function's argument.

    Args:
        function: A function of one pytree; it is traced, and may close over anything.
        struct: The structure of its argument.

    Returns:
        The names. Inside of loops and branches everything counts.
    """
    closed = jax.make_jaxpr(lambda v: function(v))(struct)
    names: set[str] = set()
    _follow(closed.jaxpr, [True] * len(closed.jaxpr.invars), names)
    return frozenset(names)


def canonical(function: Callable[[PyTree], PyTree], struct: PyTree) -> Callable[[PyTree], PyTree]:
    """Return a linear function in the form that a compiled loop runs fastest.

    Three things are changed, none of which changes a value:

    - Every convolution gets the channels-last layout of its dimensions. In the body of a loop, XLA compiles any other
      to naive code on CPU (JAX issue 12868, up to 17 times slower), and the transpose of a convolution always has
      another. Elsewhere XLA chooses the layout itself.
    - Calls are inlined, `jax.checkpoint` among them, unless they carry shardings.
    - What does not depend on the argument is computed at once, and not at every call of the result.

    Equations with effects and programs inside of unknown primitives stay as they are. Custom derivative rules are kept,
    but they stand in the program that is given: what a rule says of its own derivative is resolved only after
    `jax.linearize` or `jax.linear_transpose`.

    Args:
        function: A function of one pytree, which may close over arrays and tracers.
        struct: The structure of its argument.

    Returns:
        The function; to be used where it was made, since it closes over what was computed.
    """
    closed, out_struct = jax.make_jaxpr(lambda v: function(v), return_shape=True)(struct)
    rewritten = jax.make_jaxpr(lambda *leaves: _rewrite(closed.jaxpr, closed.consts, leaves))(*jax.tree.leaves(struct))
    program, out_tree = rewritten.jaxpr, jax.tree.structure(out_struct)
    known = dict(zip(program.constvars, rewritten.consts, strict=True))
    remaining = []
    for equation in program.eqns:
        if equation.effects or not all(isinstance(a, jax_core.Literal) or a in known for a in equation.invars):
            remaining.append(equation)
        else:
            _record(known, equation.outvars, _run(equation, [_value(known, atom) for atom in equation.invars]))

    def apply(v: PyTree) -> PyTree:
        values = dict(known)
        _record(values, program.invars, jax.tree.leaves(v))
        for equation in remaining:
            _record(values, equation.outvars, _run(equation, [_value(values, atom) for atom in equation.invars]))
        return out_tree.unflatten([_value(values, atom) for atom in program.outvars])

    return apply


def _value(values: dict[Any, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, jax_core.Literal) else values[atom]


def _record(values: dict[Any, Any], variables: Any, results: Any) -> None:
    values.update(zip(variables, results, strict=True))


def _run(equation: Any, operands: list[Any]) -> list[Any]:
    with equation.ctx.manager:
        results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
    return results if equation.primitive.multiple_results else [results]


def _rewrite(jaxpr: Any, consts: Any, operands: Any) -> list[Any]:
    """Run a jaxpr with calls inlined and convolutions in their canonical layout."""
    values: dict[Any, Any] = {}
    _record(values, jaxpr.constvars, consts)
    _record(values, jaxpr.invars, operands)
    for equation in jaxpr.eqns:
        _record(values, equation.outvars, _rewrite_one(equation, [_value(values, a) for a in equation.invars]))
    return [_value(values, atom) for atom in jaxpr.outvars]


def _rewrite_one(equation: Any, operands: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if equation.effects:
        return _run(equation, operands)
    if name in _CALLS and all(
        type(sharding).__name__ == "UnspecifiedValue"
        for side in ("in_shardings", "out_shardings")
        for sharding in params.get(side, ())
    ):
        inner = params[_CALLS[name]]
        return _rewrite(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands)
    if name == "conv_general_dilated":
        return [_channels_last(*operands, **params)]
    if name in _BODIES:
        bodies = {key: jax.tree.map(_rewrite_body, params[key], is_leaf=_is_jaxpr) for key in _BODIES[name]}
        equation = equation.replace(params={**params, **bodies})
    return _run(equation, operands)


def _rewrite_body(body: Any) -> Any:
    """Rewrite the program of a loop or a branch, where there is a convolution in it."""
    names = {equation.primitive.name for equation in equations(body.jaxpr)}
    if body.effects or "conv_general_dilated" not in names:
        return body
    made = jax.make_jaxpr(lambda *operands: _rewrite(body.jaxpr, body.consts, operands))(*body.in_avals)
    return body if made.consts else made


def _channels_last(lhs: jax.Array, rhs: jax.Array, *, dimension_numbers: Any, **params: Any) -> jax.Array:
    rank = lhs.ndim
    image = (0, rank - 1, *range(1, rank - 1))
    target = jax.lax.ConvDimensionNumbers(image, (rank - 1, rank - 2, *range(rank - 2)), image)

    def moved(x: jax.Array, source: Sequence[int], destination: Sequence[int]) -> jax.Array:
        order = [0] * rank
        for axis, place in zip(source, destination, strict=True):
            order[place] = axis
        return x if order == list(range(rank)) else jax.lax.transpose(x, order)

    lhs = moved(lhs, dimension_numbers.lhs_spec, target.lhs_spec)
    rhs = moved(rhs, dimension_numbers.rhs_spec, target.rhs_spec)
    out = jax.lax.conv_general_dilated_p.bind(lhs, rhs, dimension_numbers=target, **params)
    return moved(out, target.out_spec, dimension_numbers.out_spec)


_BODIES = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}


def _follow(jaxpr: Any, flags: list[bool], names: set[str]) -> list[bool]:
    """Add what is applied to the flagged arguments and return which results depend on them."""
    dependent = {variable for variable, flag in zip(jaxpr.invars, flags, strict=True) if flag}
    for equation in jaxpr.eqns:
        flags = [not isinstance(atom, jax_core.Literal) and atom in dependent for atom in equation.invars]
        if not any(flags):
            continue
        if equation.primitive.name in _CALLS:
            inner = equation.params[_CALLS[equation.primitive.name]]
            outs = _follow(getattr(inner, "jaxpr", inner), flags, names)
        else:
            outs = [True] * len(equation.outvars)
            names.add(equation.primitive.name)
            for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(parameter):
                    names.update(inner.primitive.name for inner in equations(getattr(parameter, "jaxpr", parameter)))
        dependent.update(variable for variable, flag in zip(equation.outvars, outs, strict=True) if flag)
    return [not isinstance(atom, jax_core.Literal) and atom in dependent for atom in jaxpr.outvars]


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
