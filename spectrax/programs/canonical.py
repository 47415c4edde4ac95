"""A linear function in the form that a compiled loop runs fastest."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jax_core

from spectrax.programs.equations import CALLS, equations, is_jaxpr, record, run, value
from spectrax.programs.padding import padded_apart, padded_before

PyTree = Any


def canonical(function: Callable[[PyTree], PyTree], struct: PyTree) -> Callable[[PyTree], PyTree]:
    """Return a linear function in the form that a compiled loop runs fastest.

    Three things are changed, none of which changes a value:

    - Every convolution gets the channels-last layout of its dimensions. In the body of a loop, XLA compiles any other
      to naive code on CPU (JAX issue 12868, up to 17 times slower), and the transpose of a convolution always has
      another. Elsewhere XLA chooses the layout itself. Small pictures are padded apart, see `padded_apart`.
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
            record(known, equation.outvars, run(equation, [value(known, atom) for atom in equation.invars]))

    def apply(v: PyTree) -> PyTree:
        values = dict(known)
        record(values, program.invars, jax.tree.leaves(v))
        for equation in remaining:
            record(values, equation.outvars, run(equation, [value(values, atom) for atom in equation.invars]))
        return out_tree.unflatten([value(values, atom) for atom in program.outvars])

    return apply


def _rewrite(jaxpr: Any, consts: Any, operands: Any) -> list[Any]:
    """Run a jaxpr with calls inlined and convolutions in their canonical layout."""
    values: dict[Any, Any] = {}
    record(values, jaxpr.constvars, consts)
    record(values, jaxpr.invars, operands)
    for equation in jaxpr.eqns:
        record(values, equation.outvars, _rewrite_one(equation, [value(values, a) for a in equation.invars]))
    return [value(values, atom) for atom in jaxpr.outvars]


def _rewrite_one(equation: Any, operands: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if equation.effects:
        return run(equation, operands)
    if name in CALLS and all(
        type(sharding).__name__ == "UnspecifiedValue"
        for side in ("in_shardings", "out_shardings")
        for sharding in params.get(side, ())
    ):
        inner = params[CALLS[name]]
        return _rewrite(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands)
    if name == "conv_general_dilated":
        return [_channels_last(*operands, **params)]
    if name in _BODIES:
        bodies = {key: jax.tree.map(_rewrite_body, params[key], is_leaf=is_jaxpr) for key in _BODIES[name]}
        equation = equation.replace(params={**params, **bodies})
    return run(equation, operands)


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
    padding, dilation = params["padding"], params["lhs_dilation"]
    if params["feature_group_count"] == params["batch_group_count"] == 1:
        lhs, padding, dilation = padded_apart(lhs, padding, dilation, rhs.shape[:-2])
    lhs, padding, dilation = padded_before(lhs, padding, dilation)
    params = {**params, "padding": tuple(padding), "lhs_dilation": tuple(dilation)}
    out = jax.lax.conv_general_dilated_p.bind(lhs, rhs, dimension_numbers=target, **params)
    return moved(out, target.out_spec, dimension_numbers.out_spec)


_BODIES = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}
