"""The results of a program one after the other, so that they need not all be in memory at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jax_core

from spectrax.programs.equations import record, run, value

PyTree = Any


def one_by_one(
    function: Callable[[PyTree], list[PyTree]], stack: PyTree, reduce: Callable[[int, PyTree], jax.Array]
) -> list[jax.Array]:
    """Apply a linear function to a stack of vectors, and reduce each part of its result before the next one is made.

    Left to itself, XLA may compute and keep all parts before it reduces the first one, and compute what they share
    again for each. Here everything that comes after a part is multiplied by a number that depends on the part's
    reduction, and is one: singular values are not negative, but XLA cannot know that. The barrier behind it keeps
    sums from being computed again; before jaxlib 0.12 XLA forgets it on CPU, where the product alone is enough.

    Args:
        function: A linear function of one vector whose result is a list of parts.
        stack: The vectors, along a leading axis.
        reduce: A function of a part's number and its stack, to singular values.

    Returns:
        The reductions, in the order of the parts.
    """
    closed, struct = jax.make_jaxpr(jax.vmap(function), return_shape=True)(stack)
    program = closed.jaxpr
    trees = [jax.tree.structure(part) for part in struct]
    atoms = iter(program.outvars)
    parts = [[next(atoms) for _ in range(tree.num_leaves)] for tree in trees]
    made = {variable: step for step, equation in enumerate(program.eqns) for variable in equation.outvars}
    used = {
        atom: step
        for step, equation in enumerate(program.eqns)
        for atom in equation.invars
        if not isinstance(atom, jax_core.Literal)
    }
    due: dict[int, list[int]] = {}
    for index, part in enumerate(parts):
        steps = [made.get(atom, -1) for atom in part if not isinstance(atom, jax_core.Literal)]
        due.setdefault(max(steps, default=-1), []).append(index)
    known = dict(zip(program.constvars, closed.consts, strict=True))
    record(known, program.invars, jax.tree.leaves(stack))
    results: dict[int, jax.Array] = {}
    for step in range(-1, len(program.eqns)):
        if step >= 0:
            equation = program.eqns[step]
            record(known, equation.outvars, run(equation, [value(known, atom) for atom in equation.invars]))
        for index in due.get(step, ()):
            own = jax.tree.unflatten(trees[index], [value(known, atom) for atom in parts[index]])
            results[index] = reduce(index, own)
            one = jnp.where(jax.lax.stop_gradient(results[index][0]) < 0, 2, 1)
            ahead = [variable for variable in made if made[variable] <= step < used.get(variable, -1)]
            waiting = [known[variable] * one.astype(known[variable].dtype) for variable in ahead]
            record(known, ahead, jax.lax.optimization_barrier(waiting))
    return [results[index] for index in range(len(parts))]
