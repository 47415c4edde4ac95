"""The linear maps of a traced network: where its parameters meet what depends on the input.

A program f(params, x) is carried out equation by equation. Values that come from parameters alone keep the names of
these parameters; where one of them meets a value that depends on x in a matrix product or a convolution, that is a
layer. An array added to its output there (a tap) gives everything downstream of the layer by differentiation, for any
topology of the network. Comparisons and maxima are collected on the way: the network is affine as long as none of them
changes its mind.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jax_core

from spectrax.programs.equations import CALLS, equations, is_jaxpr, run, scan_layout
from spectrax.programs.piecewise import CUSTOM

_LINEAR = ("dot_general", "conv_general_dilated")
_SWITCHES = frozenset({
    "abs", "argmax", "argmin", "clamp", "cummax", "cummin", "ge", "gt", "le", "lt", "max", "min", "reduce_max",
    "reduce_min", "reduce_window_max", "reduce_window_min", "sign", "sort",
})  # fmt: skip


_ENTRYWISE = frozenset({
    "abs", "add", "and", "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh", "custom_jvp_call",
    "custom_vjp_call", "div", "eq", "erf", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "jit",
    "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pjit", "pow", "round",
    "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh",
})  # fmt: skip
_LINEAR_ENTRYWISE = frozenset({"add", "convert_element_type", "copy", "div", "mul", "neg", "stop_gradient", "sub"})


class Mark(NamedTuple):
    """Where a value comes from: the parameters it was made of, and whether it depends on the input."""

    parameters: frozenset[int] = frozenset()
    dependent: bool = False


class Site(NamedTuple):
    """A layer: an equation, as often as it is carried out.

    Attributes:
        parameters: The numbers of the parameters' leaves that its weight is made of.
        equation: The equation, whose parameters hold strides, padding and the like.
        weight_first: Whether the weight is the first operand.
        weight: The weight as it stands in the equation.
        input: What it is applied to.
        output: The result, before a tap; None until the equation was carried out.
    """

    parameters: frozenset[int]
    equation: Any
    weight_first: bool
    weight: Any
    input: Any
    output: Any

    @property
    def kind(self) -> str:
        """Either "dense", for a matrix product, or "conv", for a convolution."""
        return "dense" if self.equation.primitive.name == "dot_general" else "conv"

    def apply(self, weight: jax.Array, value: jax.Array) -> jax.Array:
        """Carry out the equation on another weight or input."""
        operands = [weight, value] if self.weight_first else [value, weight]
        return run(self.equation, operands)[0]


class Activation(NamedTuple):
    """A function applied to every entry.

    Attributes:
        name: That of the function where it is a call of its own, else of the primitive.
        input: What it is applied to.
        output: Its values.
        slopes: Its derivatives.
    """

    name: str
    input: jax.Array
    output: jax.Array
    slopes: jax.Array


class Trace(NamedTuple):
    """What came up when a program was carried out.

    Attributes:
        output: The result.
        sites: The layers, in the order of application.
        activations: The functions of every entry, in the order of application.
        switches: Arrays of numbers whose signs the program decides by; each is affine in the input where the program
            is, and NaN where there is nothing to decide.
        followed: False if something was decided that could not be looked into.
    """

    output: Any
    sites: tuple[Site, ...]
    activations: tuple[Activation, ...]
    switches: tuple[jax.Array, ...]
    followed: bool


def trace(
    function: Callable, params: Any, x: Any, *, taps: Mapping[int, jax.Array] | None = None, weights: Any = None
) -> Trace:
    """Carry out f(params, x) and note its layers and what it decides.

    Args:
        function: A function of two pytrees of arrays.
        params: The parameters.
        x: The input.
        taps: Arrays to be added to the outputs of layers, by their place in the order of application.
        weights: Arrays to take the place of layers' weights, likewise.

    Returns:
        The trace.
    """
    closed, out_struct = jax.make_jaxpr(lambda p, v: function(p, v), return_shape=True)(params, x)
    leaves, inputs = jax.tree.leaves(params), jax.tree.leaves(x)
    state = _Run(taps or {}, weights or {})
    marks = [Mark(frozenset([i])) for i in range(len(leaves))] + [Mark(dependent=True)] * len(inputs)
    outs = state.program(closed.jaxpr, closed.consts, [*leaves, *inputs], marks)
    output = jax.tree.unflatten(jax.tree.structure(out_struct), [value for value, _ in outs])
    return Trace(output, tuple(state.sites), tuple(state.activations), tuple(state.switches), state.followed)


class _Run:
    """One run of a program: every value goes with its mark."""

    def __init__(self, taps: Mapping[int, jax.Array], weights: Mapping[int, jax.Array]):
        self.taps, self.weights = taps, weights
        self.sites: list[Site] = []
        self.activations: list[Activation] = []
        self.within = False  # an activation, whose own parts are none
        self.switches: list[jax.Array] = []
        self.followed = True

    def program(
        self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], marks: Sequence[Mark]
    ) -> list[tuple[Any, Mark]]:
        known: dict[Any, tuple[Any, Mark]] = {}
        known.update((variable, (value, Mark())) for variable, value in zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, zip(values, marks, strict=True), strict=True))

        def of(atom: Any) -> tuple[Any, Mark]:
            return (atom.val, Mark()) if isinstance(atom, jax_core.Literal) else known[atom]

        for equation in jaxpr.eqns:
            operands, own = zip(*map(of, equation.invars), strict=True) if equation.invars else ((), ())
            known.update(zip(equation.outvars, self.equation(equation, list(operands), own), strict=True))
        return [of(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, values: list[Any], marks: Sequence[Mark]) -> list[tuple[Any, Mark]]:
        name = equation.primitive.name
        mark = Mark(frozenset().union(*(m.parameters for m in marks)), any(m.dependent for m in marks))
        if not mark.dependent:
            return [(value, mark) for value in run(equation, values)]
        mark = Mark(dependent=True)
        key = {**CALLS, **CUSTOM}.get(name)
        if not self.within and _is_activation(equation, marks):
            self.within = True
            self.equation(equation, values, marks)  # for what it decides
            self.within = False
            return [(self.activation(equation, values, marks), mark)]
        if key is not None:
            inner = equation.params[key]
            found = self.program(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values, marks)
            if name in CALLS or any(m.parameters for m in marks):
                return found  # a layer may be inside, where a tap would be lost by a derivative rule
            return [(value, mark) for value in run(equation, values)]
        if name == "scan" and _worth_unrolling(equation):
            return self.scan(equation, values, marks)
        if name in _LINEAR and any(m.parameters and not m.dependent for m in marks):
            return [(self.site(equation, values, marks), mark)]
        if name == "sort" and (equation.params["num_keys"] > 1 or values[0].shape[equation.params["dimension"]] > 128):
            self.followed = False
        elif name in _SWITCHES:
            self.switches += switches(equation, values)
        elif any(map(is_jaxpr, jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr))):
            self.followed &= not any(e.primitive.name in _SWITCHES for e in equations_of(equation))
        return [(value, mark) for value in run(equation, values)]

    def activation(self, equation: Any, values: list[Any], marks: Sequence[Mark]) -> jax.Array:
        place = next(i for i, m in enumerate(marks) if m.dependent)

        def function(value: jax.Array) -> jax.Array:
            return run(equation, [*values[:place], value, *values[place + 1 :]])[0]

        output, pullback = jax.vjp(function, values[place])  # of every entry by itself: the slopes
        self.activations.append(
            Activation(_name_of(equation), values[place], output, pullback(jnp.ones_like(output))[0])
        )
        return output

    def site(self, equation: Any, values: list[Any], marks: Sequence[Mark]) -> jax.Array:
        place, first = len(self.sites), bool(marks[0].parameters)
        weight, value = values if first else reversed(values)
        site = Site(marks[0 if first else 1].parameters, equation, first, weight, value, None)
        output = site.apply(self.weights.get(place, weight), value)
        self.sites.append(site._replace(output=output))
        return output + self.taps[place] if place in self.taps else output

    def scan(self, equation: Any, values: list[Any], marks: Sequence[Mark]) -> list[tuple[Any, Mark]]:
        params = equation.params
        (consts, carries), length = scan_layout(equation), params["length"]
        given = list(zip(values, marks, strict=True))
        head, carry, stacks = given[:consts], given[consts : consts + carries], given[consts + carries :]
        kept: list[list[tuple[Any, Mark]]] = []
        body = params["jaxpr"]
        order = range(length - 1, -1, -1) if params["reverse"] else range(length)
        for index in order:
            operands = [*head, *carry, *((stack[index], mark) for stack, mark in stacks)]
            outs = self.program(body.jaxpr, body.consts, [v for v, _ in operands], [m for _, m in operands])
            carry = outs[:carries]
            kept.append(outs[carries:])
        if params["reverse"]:
            kept.reverse()
        columns = list(zip(*kept, strict=True)) if kept else []
        stacked = []
        for column in columns:
            own = [mark for _, mark in column]
            joined = Mark(frozenset().union(*(m.parameters for m in own)), any(m.dependent for m in own))
            stacked.append((jnp.stack([value for value, _ in column]), joined))
        return [*carry, *stacked]


def _is_activation(equation: Any, marks: Sequence[Mark]) -> bool:
    """Say whether an equation is a function of each entry of one array, and not an affine one."""
    dependent = [atom.aval for atom, m in zip(equation.invars, marks, strict=True) if m.dependent]
    outs = [variable.aval for variable in equation.outvars]
    if len(dependent) != 1 or len(outs) != 1 or dependent[0].shape != outs[0].shape:
        return False
    if not all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in (*dependent, *outs)):
        return False
    inner = equations_of(equation)
    names = {e.primitive.name for e in inner} if inner else {equation.primitive.name}
    shapes = {variable.aval.shape for e in inner for variable in e.outvars} - {(), outs[0].shape}
    return not shapes and names <= _ENTRYWISE and bool(names - _LINEAR_ENTRYWISE)


def _name_of(equation: Any) -> str:
    """Return the name of the function that is called; a derivative rule stands around a call that has it."""
    inner = equations_of(equation)
    named = [equation, *inner] if equation.primitive.name in CUSTOM else [equation]
    return next((e.params["name"] for e in named if isinstance(e.params.get("name"), str)), equation.primitive.name)


def equations_of(equation: Any) -> list[Any]:
    """Return the equations inside of one."""
    inner = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
    return [e for program in filter(is_jaxpr, inner) for e in equations(getattr(program, "jaxpr", program))]


def _worth_unrolling(equation: Any) -> bool:
    names = {inner.primitive.name for inner in equations_of(equation)}
    return equation.params["length"] > 0 and bool(names & (_SWITCHES | {*_LINEAR}))


def switches(equation: Any, values: list[Any]) -> list[jax.Array]:
    """Return the numbers whose signs an equation decides by; NaN where there is nothing to decide."""
    name, params = equation.primitive.name, equation.params
    if not jnp.issubdtype(jnp.result_type(values[0]), jnp.floating):
        return []
    if name in {"abs", "sign"}:
        return [values[0]]
    if name in {"max", "min", "ge", "gt", "le", "lt"}:
        return [jnp.subtract(*jnp.broadcast_arrays(*values))]
    if name == "clamp":
        low, value, high = jnp.broadcast_arrays(*values)
        return [value - low, value - high, low - high]
    if name in {"reduce_max", "reduce_min", "argmax", "argmin"}:
        rows = jnp.moveaxis(values[0], params["axes"], range(len(params["axes"])))
        rows = rows.reshape(math.prod(rows.shape[: len(params["axes"])]), *rows.shape[len(params["axes"]) :])
        return [_against_the_best(rows, smallest=name.endswith("min"))]
    if name in {"reduce_window_max", "reduce_window_min"}:
        return [_against_the_best(_windows(values[0], name.endswith("min"), params), smallest=name.endswith("min"))]
    if name == "sort":  # by pairs of places, so that the signs say which order it is
        rows = jnp.moveaxis(values[0], params["dimension"], 0)
        return [rows[i] - rows[i + 1 :] for i in range(len(rows) - 1)]
    axis = params["axis"]  # cummax, cummin
    rows = jnp.moveaxis(values[0], axis, 0)
    if params["reverse"]:
        rows = rows[::-1]
    return [_against_the_best(rows[: end + 1], smallest=name == "cummin") for end in range(1, len(rows))]


def _against_the_best(rows: jax.Array, *, smallest: bool) -> jax.Array:
    """Return how far each of the rows is from the first best one, entry by entry; NaN for that one and what is not."""
    signed = -rows if smallest else rows
    best = jnp.argmax(signed, axis=0)
    winner = jnp.take_along_axis(signed, best[None], axis=0)
    is_best = jnp.arange(len(rows)).reshape(-1, *[1] * best.ndim) == best
    return jnp.where(is_best | ~jnp.isfinite(signed), jnp.nan, winner - signed)


def _windows(value: jax.Array, smallest: bool, params: Mapping[str, Any]) -> jax.Array:
    """Return what each window holds, its places along a new leading axis; infinite outside."""
    out = math.inf if smallest else -math.inf
    base = params["base_dilation"]
    value = jax.lax.pad(
        value,
        jnp.asarray(out, value.dtype),
        [(low, high, step - 1) for (low, high), step in zip(params["padding"], base, strict=True)],
    )
    size, dilation, strides = params["window_dimensions"], params["window_dilation"], params["window_strides"]
    counts = [
        (length - (w - 1) * d - 1) // s + 1
        for length, w, d, s in zip(value.shape, size, dilation, strides, strict=True)
    ]
    places = []
    for place in itertools.product(*map(range, size)):
        start = [p * d for p, d in zip(place, dilation, strict=True)]
        stop = [b + (c - 1) * s + 1 for b, c, s in zip(start, counts, strides, strict=True)]
        places.append(jax.lax.slice(value, start, stop, strides))
    return jnp.stack(places)
