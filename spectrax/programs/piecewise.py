"""Is a function piecewise affine? Read off its jaxpr, without a value of its input."""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jax_core

from spectrax.programs.equations import CALLS, equations, is_jaxpr, scan_layout

PyTree = Any


class Form(enum.IntEnum):
    """How a value depends on the argument; each form is one of the next."""

    CONSTANT = 0  # not at all
    STEPWISE = 1  # constant piece by piece: comparisons, signs, indices
    AFFINE = 2  # affine piece by piece, the pieces bounded by where affine functions vanish, finitely many of them
    CURVED = 3  # anything else


# that take affine pieces to affine pieces: linear ones, and the kinks
_AFFINE = frozenset({
    "abs", "add", "add_any", "broadcast_in_dim", "clamp", "concatenate", "copy", "cummax", "cummin", "cumsum",
    "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "imag", "max", "min", "neg",
    "optimization_barrier", "pad", "real", "reduce_max", "reduce_min", "reduce_sum",
    "reduce_window_max", "reduce_window_min", "reduce_window_sum", "reshape", "rev", "scatter", "scatter-add",
    "select_n", "sharding_constraint", "slice", "sort", "split", "squeeze", "sub", "transpose",
})  # fmt: skip
_STEPWISE = frozenset({"argmax", "argmin", "ge", "gt", "le", "lt", "sign"})
# those of them that decide, by an order, which complex numbers don't have
_ORDERED = _STEPWISE | {
    "abs", "clamp", "cummax", "cummin", "max", "min", "reduce_max", "reduce_min", "reduce_window_max",
    "reduce_window_min", "sort",
}  # fmt: skip
# functions with a rule that is their derivative, by their name and the primitives that they may consist of
_KNOWN = {"relu": {"max"}, "relu6": {"max", "min"}}
_BILINEAR = frozenset({"conv_general_dilated", "dot_general", "mul"})
# primitives with a derivative rule of their own, and the parameter that holds the function
CUSTOM = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}


def form_of(function: Callable, struct: PyTree) -> Form:
    """Return how a function depends on its argument.

    Sums and products of pieces are followed through calls, loops and branches. What is not known counts as curved, so
    that AFFINE is never claimed wrongly: roundings, whose pieces have no end; `stop_gradient` and custom derivative
    rules, but for the ReLU's, since the derivative need not be that of the function; and what is affine for another
    reason, such as exp(log(x)).

    Args:
        function: A function of one pytree; it is traced, and may close over anything.
        struct: The structure of its argument.

    Returns:
        The worst form of its results.
    """
    closed = jax.make_jaxpr(lambda v: function(v))(struct)
    return max(_forms(closed.jaxpr, [Form.AFFINE] * len(closed.jaxpr.invars)), default=Form.CONSTANT)


def _forms(jaxpr: Any, arguments: Sequence[Form]) -> list[Form]:
    known: dict[Any, Form] = dict.fromkeys(jaxpr.constvars, Form.CONSTANT)
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def of(atom: Any) -> Form:
        return Form.CONSTANT if isinstance(atom, jax_core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        known.update(zip(equation.outvars, _outputs(equation, [of(a) for a in equation.invars]), strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _outputs(equation: Any, inputs: list[Form]) -> list[Form]:
    name, params, count = equation.primitive.name, equation.params, len(equation.outvars)
    worst = max(inputs, default=Form.CONSTANT)
    if worst == Form.CONSTANT:
        return [Form.CONSTANT] * count
    if name in CUSTOM and not _is_known(params[CUSTOM[name]]):
        return [Form.CURVED] * count
    if name in CALLS or name in CUSTOM:
        inner = params[{**CALLS, **CUSTOM}[name]]
        return _forms(getattr(inner, "jaxpr", inner), inputs)
    if name == "scan":
        return _scan(equation, inputs)
    if name == "cond":
        outs = [max(forms) for forms in zip(*(_forms(b.jaxpr, inputs[1:]) for b in params["branches"]), strict=True)]
        return outs if inputs[0] <= Form.STEPWISE else [Form.CURVED] * count
    if name in _ORDERED and any(jnp.issubdtype(atom.aval.dtype, jnp.complexfloating) for atom in equation.invars):
        return [Form.CURVED] * count
    if worst == Form.STEPWISE and not any(map(is_jaxpr, params.values())):
        return [Form.STEPWISE] * count  # any function of what is constant piece by piece is that, too
    if name in _STEPWISE and worst <= Form.AFFINE:
        return [Form.STEPWISE] * count
    if name == "convert_element_type":
        new = params["new_dtype"]  # 16 bits are the network's own precision, less is a rounding
        return [worst if jnp.issubdtype(new, jnp.inexact) and jnp.finfo(new).bits >= 16 else Form.CURVED]
    if name in _BILINEAR:
        return [worst if min(inputs) <= Form.STEPWISE else Form.CURVED]
    if name == "div":
        return [worst if inputs[1] <= Form.STEPWISE else Form.CURVED]
    if name == "integer_pow" and params["y"] == 1:
        return [worst]
    if name not in _AFFINE:
        return [Form.CURVED] * count
    inexact = [jnp.issubdtype(variable.aval.dtype, jnp.inexact) for variable in equation.outvars]
    return [worst if number or worst > Form.AFFINE else Form.STEPWISE for number in inexact]  # places in an order


def _is_known(program: Any) -> bool:
    """Say whether the function of a custom rule is one whose rule is its derivative."""
    inner = list(equations(getattr(program, "jaxpr", program)))
    name = next((e.params["name"] for e in inner if isinstance(e.params.get("name"), str)), "")
    return name in _KNOWN and {e.primitive.name for e in inner} - {*CALLS} <= _KNOWN[name]


def _scan(equation: Any, inputs: list[Form]) -> list[Form]:
    """The carry of a loop has the form that it keeps; forms only rise, so that this ends."""
    consts, carry = scan_layout(equation)
    while True:
        outs = _forms(equation.params["jaxpr"].jaxpr, inputs)
        risen = [max(a, b) for a, b in zip(inputs[consts : consts + carry], outs[:carry], strict=True)]
        if risen == inputs[consts : consts + carry]:
            return risen + outs[carry:]
        inputs = inputs[:consts] + risen + inputs[consts + carry :]
