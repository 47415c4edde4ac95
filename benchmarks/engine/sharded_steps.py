"""A step of the engine on a mesh, with an operator that is nearly free: programs, what compilers count, and time."""

import collections
import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from spectrax.krylov import bidiagonalization, factorization, random_stack, tridiagonalization
from spectrax.layouts import Layout, sides_of

AXIS = "chips"
STEP, PAIR, REDUCE = "step", "pair", "all-reduce"
Program = Callable[..., Any]
_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)  # with the types that it returns
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


class Problem(NamedTuple):
    """Vectors on a mesh, split along their first axis: the structure, a diagonal of that shape, and a stack of one."""

    struct: Any
    diagonal: Any
    start: Any


def problem(mesh: Mesh, shapes: tuple[tuple[int, ...], ...]) -> Problem:
    """Return the structures of vectors of these leaves, without any array."""
    split, stacked = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P(None, AXIS))
    vector = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split) for shape in shapes]
    return Problem(
        vector, vector, [jax.ShapeDtypeStruct((1, *shape), jnp.float32, sharding=stacked) for shape in shapes]
    )


def filled(given: Problem) -> Problem:
    """Return the problem with arrays: entries in [1/2, 3/2), and a random vector to begin with."""
    key, places = jax.random.key(0), [leaf.sharding for leaf in given.start]
    start = jax.jit(lambda key: random_stack(key, given.struct, 1), out_shardings=places)(key)
    diagonal = jax.jit(
        lambda rows: [1 + row[0] / 2 for row in rows], out_shardings=[leaf.sharding for leaf in given.struct]
    )(start)
    return given._replace(diagonal=diagonal, start=start)


def times(diagonal: Any, stack: Any) -> Any:
    return [entries * rows for entries, rows in zip(diagonal, stack, strict=True)]


def empty(case: str, given: Problem, size: int) -> Any:
    """Return the state before the first step, where the vectors lie as the problem's."""
    left = given.struct if case == PAIR else None
    sides = sides_of(given.struct, given.struct)

    def init(start: Any) -> Any:
        return factorization.init(jax.random.key(1), start, left, size, sides=sides)

    if all(isinstance(leaf, jax.Array) for leaf in given.start):
        return jax.jit(init)(given.start)
    mesh = given.struct[0].sharding.mesh
    stacks = {(rows, *leaf.shape): NamedSharding(mesh, P(None, AXIS)) for leaf in given.struct
              for rows in (size, size + 1)}  # fmt: skip
    whole = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=stacks.get(leaf.shape, whole)),
        jax.eval_shape(init, given.start),
    )


def step(case: str, given: Problem) -> Program:
    """Return (diagonal, state) -> the state after one step, or after a pair of products."""
    sides = sides_of(given.struct, given.struct)

    def apply(diagonal: Any, state: Any) -> Any:
        def product(stack: Any) -> Any:
            return times(diagonal, stack)

        if case == PAIR:
            return bidiagonalization.step(product, product, state, sides=sides)
        return tridiagonalization.step(product, state, layout=sides.right)

    return apply


def products(case: str) -> int:
    """Return how often one step takes the operator."""
    return 2 if case == PAIR else 1


def reduction(layout: Layout) -> Program:
    """Return the mean over the chips of an array of which each has a copy: the collective by itself."""
    count = layout.mesh.size
    return jax.shard_map(
        lambda x: jax.lax.psum(x / count, AXIS), mesh=layout.mesh, in_specs=P(), out_specs=P(), check_vma=False
    )


def collective_bytes(text: str) -> list[int]:
    """Return the bytes of each collective of a program, once for loops, leaving out branches of conditionals."""
    bodies: dict[str, list[str]] = collections.defaultdict(list)
    name = ""
    for line in text.splitlines():
        opening = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{\s*$", line)
        if opening and not line.startswith(" "):
            name = opening[1]
        bodies[name].append(line)
    called = {name: set(re.findall(r"%([\w.\-]+)", " ".join(lines))) & set(bodies) for name, lines in bodies.items()}
    left = [
        branch
        for line in text.splitlines()
        if " conditional(" in line
        for group in re.findall(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))", line)
        for branch in re.findall(r"[\w.\-]+", " ".join(group))
    ]
    inside: set[str] = set()
    while left:
        branch = left.pop()
        if branch not in inside:
            inside.add(branch)
            left.extend(called.get(branch, set()) - {branch})
    sizes = []
    for name, lines in bodies.items():
        for found in map(_COLLECTIVE.search, lines if name not in inside else ()):
            if found:
                shapes = re.findall(r"(\w+)\[([\d,]*)\]", found[1])
                each = [_BYTES.get(kind, 4) * math.prod(int(d) for d in dims.split(",") if d) for kind, dims in shapes]
                sizes.append(max(each, default=0) if found[3] else sum(each))
    return sizes


def counted(program: Any) -> dict[str, float]:
    """Return what the compiler counts for one chip: bytes, FLOPs, loops, collectives. A loop counts once."""
    cost, text = program.cost_analysis() or {}, program.as_text() or ""
    sizes = collective_bytes(text)
    return {
        "bytes": float(cost.get("bytes accessed", 0.0)), "flops": float(cost.get("flops", 0.0)),
        "passes": len(re.findall(r" while\(", text)), "collectives": len(sizes), "collective_bytes": sum(sizes),
    }  # fmt: skip


def lowered(case: str, given: Problem, size: int, *, passes: int | None = None) -> Any:
    """Return the compiled step, whose state is given away; with its loop over passes written out so many times."""
    one = jax.jit(step(case, given), donate_argnums=1)
    state = empty(case, given, size)
    if passes is None:
        return one.lower(given.diagonal, state).compile()

    def written_out(_: Any, body: Callable, state: Any) -> Any:
        for _ in range(passes):
            state = body(state)
        return state

    with mock.patch.object(jax.lax, "while_loop", written_out):
        return one.lower(given.diagonal, state).compile()


def timed(arms: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, float]]:
    """Run the arms in turns; return the least of the processor's seconds of this process and of the clock's.

    The least, since what else runs on the machine can only add to them; the median of the processor's stands beside it.
    """
    cpu, wall = collections.defaultdict(list), collections.defaultdict(list)
    for turn in range(runs + 1):
        for name, run in arms.items():
            began, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            if turn:
                cpu[name].append(time.process_time() - processor)
                wall[name].append(time.perf_counter() - began)
    return {
        name: {"cpu": min(cpu[name]), "cpu_median": statistics.median(cpu[name]), "wall": min(wall[name])}
        for name in arms
    }


def measured(mesh: Mesh, case: str, n: int, size: int) -> dict[str, Any]:
    """Return the seconds of a step of this process's devices, the operator's own ones, and what the compiler counts."""
    if case == REDUCE:
        return reduced(mesh, n)
    given = filled(problem(mesh, ((n,),)))
    state, one = empty(case, given, size), step(case, given)
    # some hundredths of a second each; processes wait for each other's messages much longer than they work
    rounds = max(1, 2 ** (20 if jax.process_count() > 1 else 24) // (n * size))
    runs = 5 if n * size > 2**24 else 8
    signs = jax.jit(lambda diagonal: [jnp.sign(entries - 1) for entries in diagonal])(given.diagonal)

    @jax.jit
    def steps(diagonal: Any, state: Any) -> Any:
        def fill(_: Any, bases: Any) -> Any:
            first = jax.tree.map(lambda rows: rows + 0 * bases.scale, state.right)  # not the same every time
            return jax.lax.fori_loop(0, size, lambda _, s: one(diagonal, s), state._replace(right=first))

        return jax.lax.fori_loop(0, rounds, fill, state)

    @jax.jit
    def alone(diagonal: Any, stack: Any) -> Any:
        turns = rounds * size * products(case)
        return jax.lax.fori_loop(0, turns, lambda _, stack: times(diagonal, stack), stack)

    arms = {"step": lambda: steps(given.diagonal, state), "operator": lambda: alone(signs, given.start)}
    seconds = timed(arms, runs)
    return {
        **{f"{name}_{kind}": value / (rounds * size) for name, both in seconds.items() for kind, value in both.items()},
        "runs": runs,
        "counted": counted(lowered(case, given, size)),
        "operator": own_share(case, given),
    }


def own_share(case: str, given: Problem) -> dict[str, float]:
    """Return what the compiler counts for the operator's products in one step."""
    found = counted(jax.jit(times).lower(given.diagonal, given.start).compile())
    return {kind: products(case) * value for kind, value in found.items()}


def reduced(mesh: Mesh, numbers: int) -> dict[str, Any]:
    """Return the same for an all-reduce by itself."""
    once = reduction(Layout(mesh, (P(),)))
    array = jax.device_put(np.ones(numbers, np.float32), NamedSharding(mesh, P()))
    turns, runs = max(8, min(200, 2**23 // numbers)), 8

    @jax.jit
    def loop(array: Any) -> Any:
        return jax.lax.fori_loop(0, turns, lambda _, x: once(x), array)

    seconds = timed({"step": lambda: loop(array)}, runs)["step"]
    return {
        **{f"step_{kind}": value / turns for kind, value in seconds.items()},
        **{f"operator_{kind}": 0.0 for kind in seconds},
        "runs": runs,
        "counted": counted(jax.jit(once).lower(array).compile()),
        "operator": {},
    }


def serve(rows: list[tuple[str, int, int]], port: int | None, count: int, process: int) -> Iterator[str]:
    """Measure rows on all devices, as one of `count` processes where there is a port; yield a line of JSON for each."""
    if port is not None:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, process)
    devices = jax.devices()
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    if len(devices) != count:
        raise RuntimeError(f"expected {count} devices, got {len(devices)}")
    for case, n, size in rows:
        found = measured(mesh, case, n, size)
        yield json.dumps({**found, "load": os.getloadavg()[0]})


def on_v5p(case: str, size: int, shapes: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """Return what libtpu makes of a step on 512 chips, and of one whose loop over passes stands there twice."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:8x8x8").devices
    given = problem(Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,)), shapes)
    program = lowered(case, given, size)
    memory = program.memory_analysis()
    once, twice = (counted(lowered(case, given, size, passes=passes)) for passes in (1, 2))
    return {
        "counted": counted(program),
        "second_pass": {kind: twice[kind] - once[kind] for kind in ("bytes", "flops", "collectives")},
        "operator": own_share(case, given),
        "compiler_cycles": cycles(program.as_text()),
        "compiler_seconds": float(program.cost_analysis().get("optimal_seconds", math.nan)),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "unknowns": sum(math.prod(shape) for shape in shapes),
        "chips": len(devices),
    }


def cycles(text: str) -> int:
    """Return the sum of the cycles that libtpu writes beside the operations of a program, loops once."""
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
