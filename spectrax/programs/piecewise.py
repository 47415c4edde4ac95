"""Is a function piecewise affine? Read off its jaxpr, without a value of its input."""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jax_core

from spectrax.programs.equations import CALLS, is_jaxpr, scan_layout

PyTree = Any


class Form(enum.IntEnum):
    """How a value depends on the argument; each form is one of the next."""

    CONSTANT = 0  # not at all
    STEPWISE = 1  # constant piece by piece: comparisons, signs, indices
    AFFINE = 2  # affine piece by piece, the pieces bounded by where affine functions vanish
    CURVED = 3  # anything else


# that take affine pieces to affine pieces: linear ones, and the kinks
_AFFINE = frozenset({
    "abs", "add", "add_any", "broadcast_in_dim", "clamp", "concatenate", "copy", "cummax", "cummin", "cumsum",
    "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "imag", "max", "min", "neg",
    "optimization_barrier", "pad", "real", "reduce_max", "reduce_min", "reduce_precision", "reduce_sum",
    "reduce_window_max", "reduce_window_min", "reduce_window_sum", "reshape", "rev", "scatter", "scatter-add",
    "select_n", "sharding_constraint", "slice", "sort", "split", "squeeze", "stop_gradient", "sub", "transpose",
})  # fmt: skip
_STEPWISE = frozenset({"argmax", "argmin", "ceil", "eq", "floor", "ge", "gt", "le", "lt", "ne", "round", "sign"})
_BILINEAR = frozenset({"conv_general_dilated", "dot_general", "mul"})
# primitives with a derivative rule of their own, and the parameter that holds the function
CUSTOM = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}


def form_of(function: Callable, struct: PyTree) -> Form:
    """Return how a function depends on its argument.

    Sums and products of pieces are followed through calls, custom derivative rules (by the function, not by the rule),
    loops and branches. What is not known counts as curved, so that AFFINE is never claimed wrongly; a function that is
    affine for another reason, such as exp(log(x)), is called curved.

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
    program = CALLS.get(name) or CUSTOM.get(name)
    if worst == Form.CONSTANT:
        return [Form.CONSTANT] * count
    if program is not None:
        inner = params[program]
        return _forms(getattr(inner, "jaxpr", inner), inputs)
    if name == "scan":
        return _scan(equation, inputs)
    if name == "cond":
        outs = [max(forms) for forms in zip(*(_forms(b.jaxpr, inputs[1:]) for b in params["branches"]), strict=True)]
        return outs if inputs[0] <= Form.STEPWISE else [Form.CURVED] * count
    if worst == Form.STEPWISE and not any(map(is_jaxpr, params.values())):
        return [Form.STEPWISE] * count  # any function of what is constant piece by piece is that, too
    if name in _STEPWISE and worst <= Form.AFFINE:
        return [Form.STEPWISE] * count
    if name == "convert_element_type":
        floating = jnp.issubdtype(params["new_dtype"], jnp.inexact)
        return [worst if floating else Form.STEPWISE if worst <= Form.AFFINE else worst]
    if name in _BILINEAR:
        return [worst if min(inputs) <= Form.STEPWISE else Form.CURVED]
    if name == "div":
        return [worst if inputs[1] <= Form.STEPWISE else Form.CURVED]
    if name == "integer_pow" and params["y"] == 1:
        return [worst]
    return [worst if name in _AFFINE else Form.CURVED] * count


def _scan(equation: Any, inputs: list[Form]) -> list[Form]:
    """The carry of a loop has the form that it keeps; forms only rise, so that this ends."""
    consts, carry = scan_layout(equation)
    while True:
        outs = _forms(equation.params["jaxpr"].jaxpr, inputs)
        risen = [max(a, b) for a, b in zip(inputs[consts : consts + carry], outs[:carry], strict=True)]
        if risen == inputs[consts : consts + carry]:
            return risen + outs[carry:]
        inputs = inputs[:consts] + risen + inputs[consts + carry :]
