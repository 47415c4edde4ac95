"""What a program costs, from its jaxpr alone: the memory of what lies between, and its operations."""

import math
from typing import Any

import jax
from jax.extend import core as jax_core

from spectrax.programs.equations import is_jaxpr

# a scatter on CPU is a loop over single entries: so many operations for each of them
SCATTERED = 16
_SCATTERS = ("scatter", "select_and_scatter", "sort", "cum")
_NOT_ENTRYWISE = (*_SCATTERS, "dot", "conv_", "transpose", "rev", "gather", "reduce_window", "fft", "custom")


def array_bytes(aval: Any) -> int:
    """Return the size of an array in bytes, zero for what is none."""
    return math.prod(getattr(aval, "shape", ())) * getattr(getattr(aval, "dtype", None), "itemsize", 0)


def peak_bytes(jaxpr: Any) -> int:
    """Return the memory of what a program holds at a time, besides its constants, as if nothing were fused.

    Each result is held from the equation that makes it to the last one that reads it, the arguments from the beginning
    and the results of the whole to the end; an entrywise operation writes over an operand that nothing reads later. A
    sub-program adds its own peak. XLA fuses operations, so that this is mostly too much; it may copy an operand into
    another layout, which is not in it.

    Args:
        jaxpr: A jaxpr, open.

    Returns:
        The bytes.
    """
    last = {atom: len(jaxpr.eqns) for atom in jaxpr.outvars if not isinstance(atom, jax_core.Literal)}
    for step, equation in reversed(list(enumerate(jaxpr.eqns))):
        for atom in equation.invars:
            if not isinstance(atom, jax_core.Literal):
                last.setdefault(atom, step)
    held = sum(array_bytes(variable.aval) for variable in jaxpr.invars)
    ends: dict[int, int] = {}
    for variable in jaxpr.invars:
        ends[last.get(variable, -1)] = ends.get(last.get(variable, -1), 0) + array_bytes(variable.aval)
    peak = held
    for step, equation in enumerate(jaxpr.eqns):
        for variable in equation.outvars:
            size = array_bytes(variable.aval)
            held += size
            end = last.get(variable, step)
            ends[end] = ends.get(end, 0) + size
        inner = max((peak_bytes(program) for program in _programs(equation)), default=0)
        freed = ends.pop(step, 0)
        in_place = min(freed, sum(array_bytes(v.aval) for v in equation.outvars)) if _is_entrywise(equation) else 0
        peak = max(peak, held + inner - in_place)
        held -= freed
    return peak


def _is_entrywise(equation: Any) -> bool:
    if equation.primitive.name in ("reshape", "squeeze", "expand_dims"):
        return True
    if _programs(equation) or equation.primitive.name.startswith(_NOT_ENTRYWISE) or len(equation.outvars) != 1:
        return False
    shape = equation.outvars[0].aval.shape
    return all(atom.aval.shape in ((), shape) for atom in equation.invars)


def operations(jaxpr: Any) -> float:
    """Return about how many floating-point operations a program takes: for comparing programs with each other.

    Products and convolutions count their multiplications and additions (zeros between dilated entries too, as CPUs
    multiply by them), scatters and cumulative sums `SCATTERED` for each entry, everything else one for each entry. The
    body of a `while` counts once, of the branches of a `cond` the longest.

    Args:
        jaxpr: A jaxpr, open.

    Returns:
        The number.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        sizes = [math.prod(getattr(atom.aval, "shape", ())) for atom in (*equation.invars, *equation.outvars)]
        out = math.prod(getattr(equation.outvars[0].aval, "shape", ())) if equation.outvars else 0
        programs = _programs(equation)
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2.0 * out * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            total += 2.0 * out * math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
        elif name.startswith(_SCATTERS):
            total += SCATTERED * max(sizes, default=0)
        elif name.startswith("reduce"):
            total += max(sizes, default=0)
        elif programs:
            each = [operations(program) for program in programs]
            total += max(each) if name == "cond" else sum(each) * params.get("length", 1)
        else:
            total += out
    return total


def _programs(equation: Any) -> list[Any]:
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
    return [getattr(leaf, "jaxpr", leaf) for leaf in leaves if is_jaxpr(leaf)]
