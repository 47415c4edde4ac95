"""The equations of a jaxpr: those inside of others, and those that depend on an argument."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jax_core

PyTree = Any

# primitives that call one program, and the parameter that holds it
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield every equation of a jaxpr, those of its sub-programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(parameter):
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


def lowest_precision(function: Callable, *structs: PyTree) -> int:
    """Return the fewest bits of a floating-point number that a function computes with.

    Args:
        function: A function of pytrees; it is traced, and may close over anything.
        *structs: The structures of its arguments.

    Returns:
        The bits; 64 if there are no such numbers.
    """
    program = jax.make_jaxpr(lambda *arguments: function(*arguments))(*structs).jaxpr
    avals = [variable.aval for equation in equations(program) for variable in equation.outvars]
    kinds = [aval.dtype for aval in avals if jnp.issubdtype(getattr(aval, "dtype", jnp.int32), jnp.floating)]
    return min((jnp.finfo(kind).bits for kind in kinds), default=64)


def _follow(jaxpr: Any, flags: list[bool], names: set[str]) -> list[bool]:
    """Add what is applied to the flagged arguments and return which results depend on them."""
    dependent = {variable for variable, flag in zip(jaxpr.invars, flags, strict=True) if flag}
    for equation in jaxpr.eqns:
        flags = [not isinstance(atom, jax_core.Literal) and atom in dependent for atom in equation.invars]
        if not any(flags):
            continue
        if equation.primitive.name in CALLS:
            inner = equation.params[CALLS[equation.primitive.name]]
            outs = _follow(getattr(inner, "jaxpr", inner), flags, names)
        else:
            outs = [True] * len(equation.outvars)
            names.add(equation.primitive.name)
            for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
                if is_jaxpr(parameter):
                    names.update(inner.primitive.name for inner in equations(getattr(parameter, "jaxpr", parameter)))
        dependent.update(variable for variable, flag in zip(equation.outvars, outs, strict=True) if flag)
    return [not isinstance(atom, jax_core.Literal) and atom in dependent for atom in jaxpr.outvars]


def is_jaxpr(value: Any) -> bool:
    """Say whether a parameter of an equation is a program, open or closed."""
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def scan_layout(equation: Any) -> tuple[int, int]:
    """Return how many constants and how many carried values a `scan` has, in this order among its operands.

    The rest of the operands, and of the results, are stacks: they have one axis more than the body's, in every version
    of JAX (the parameters that say it have changed).
    """
    body = equation.params["jaxpr"].jaxpr
    ranks = [(a.aval.ndim, b.aval.ndim) for a, b in zip(equation.outvars, body.outvars, strict=True)]
    carried = sum(outer == inner for outer, inner in ranks)
    ranks = [(a.aval.ndim, b.aval.ndim) for a, b in zip(equation.invars, body.invars, strict=True)]
    return sum(outer == inner for outer, inner in ranks) - carried, carried


def value(values: dict[Any, Any], atom: Any) -> Any:
    """Return what an atom stands for."""
    return atom.val if isinstance(atom, jax_core.Literal) else values[atom]


def record(values: dict[Any, Any], variables: Any, results: Any) -> None:
    """Set the variables that an equation defines."""
    values.update(zip(variables, results, strict=True))


def run(equation: Any, operands: list[Any]) -> list[Any]:
    """Carry out one equation, in the context that it was traced in."""
    with equation.ctx.manager:
        results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
    return results if equation.primitive.multiple_results else [results]
