"""What the TPU compiler makes of sharded programs, on a machine without a TPU: time, memory, work and collectives.

    pip install -e '.[aot]'
    python benchmarks/aot.py                                  every case on every topology, some minutes
    python benchmarks/aot.py --only 'svds;eigsh' --topologies v5e-8

libtpu compiles ahead of time for a described slice (`jax.experimental.topologies`). Each case is compiled in a process
of its own, with a time limit; the results are written to benchmarks/results/aot.json after each, where those of the
cases that are not run again stay. A compilation counts as slow above 60 seconds, of the clock and of the processor,
which is less on a machine that does other things.

Memory is that of one chip: arguments, results and temporaries. FLOPs are XLA's count for one chip, in which a loop
counts once however often it runs. Collectives are counted in the compiled text, by kind, with the bytes of their
results on one chip; those inside of loops (bodies, and what they call) are listed apart.
"""

import argparse
import collections
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from engine.timing import environment, installed
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import spectrax as sx

RESULTS = Path(__file__).parent / "results" / "aot.json"
LIMIT = 60.0  # seconds of compilation
# by name: what libtpu calls it, and the shape of the mesh (data, model)
TOPOLOGIES = {"v5e-8": ("v5e:2x4", (4, 2)), "v5p-512": ("v5p:8x8x8", (128, 4)), "v6e-256": ("v6e:16x16", (64, 4))}
# so that libtpu asks no metadata server and takes no lock, and JAX itself stays on the CPU
VARIABLES = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
KEY = jax.random.key(0)
WIDTH, CLASSES, SAMPLES = 1024, 256, 64
SLIM = 512  # of the transformer

Case = tuple[Callable, tuple]


def placed(mesh: Mesh, shape: tuple[int, ...], *spec: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))


def matrix(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """A matrix of 2048 rows on each chip, all of them sharded."""
    return placed(mesh, (2048 * mesh.size, 4096), ("data", "model"), None)


def weights(mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Four layers, fully sharded: columns by the model's axis, rows by the data's."""
    wide = {f"dense_{i}": placed(mesh, (WIDTH, WIDTH), "data", "model") for i in range(3)}
    return {**wide, "last": placed(mesh, (WIDTH, CLASSES), "data", "model")}


def batch(mesh: Mesh) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    count = SAMPLES * mesh.shape["data"]
    return placed(mesh, (count, WIDTH), "data", None), placed(mesh, (count, CLASSES), "data", None)


def logits(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    for i in range(3):
        x = x + jnp.tanh(x @ params[f"dense_{i}"])
    return x @ params["last"]


def cross_entropy(z: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(z) * y, axis=-1))


def svds(mesh: Mesh) -> Case:
    """Eight singular values of a matrix sharded by rows."""
    A = matrix(mesh)
    rows = NamedSharding(mesh, P(A.sharding.spec[0]))

    def top(A: jax.Array) -> Any:
        return sx.svds(sx.with_shardings(A, None, rows), 8, method=sx.Lanczos(), key=KEY)

    return top, (A,)


def transformer_weights(mesh: Mesh) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Four blocks of eight leaves, fully sharded but for the scales of the norms."""
    square = {name: placed(mesh, (SLIM, SLIM), "data", "model") for name in ("query", "key", "value", "out")}
    feed = {
        "up": placed(mesh, (SLIM, 4 * SLIM), "data", "model"),
        "down": placed(mesh, (4 * SLIM, SLIM), "model", "data"),
    }
    norms = {name: placed(mesh, (SLIM,)) for name in ("norm_1", "norm_2")}
    return [square | feed | norms] * 4


def transformer(blocks: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Blocks with one head of attention each, shape (count, positions, width) to (count, width)."""

    def normalised(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)

    for block in blocks:
        h = normalised(x) * block["norm_1"]
        scores = jnp.einsum("bid,bjd->bij", h @ block["query"], h @ block["key"]) / math.sqrt(SLIM)
        x = x + jnp.einsum("bij,bjd->bid", jax.nn.softmax(scores), h @ block["value"]) @ block["out"]
        h = normalised(x) * block["norm_2"]
        x = x + jax.nn.silu(h @ block["up"]) @ block["down"]
    return jnp.mean(x, 1)


def gauss_newton(network: Callable, shardings: Any, params: Any, x: jax.Array, y: jax.Array) -> sx.LinearOperator:
    """The Gauss-Newton matrix, with the shardings of its vectors, which are those of the parameters."""
    matrix = sx.ggn_operator(lambda p, x, y: network(p, x), lambda z, x, y: cross_entropy(z, y), params, x, y)
    return sx.with_shardings(matrix, shardings)


def shardings_of(structs: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, structs)


def eigsh(mesh: Mesh) -> Case:
    """Four eigenvalues of the Gauss-Newton matrix of a network, parameters and batch sharded."""
    return _eigsh(logits, weights(mesh), *batch(mesh))


def eigsh_of_many(mesh: Mesh) -> Case:
    """The same of a transformer with parameters in 32 leaves."""
    count = 8 * mesh.shape["data"]
    x, y = placed(mesh, (count, 64, SLIM), "data", None, None), placed(mesh, (count, SLIM), "data", None)
    return _eigsh(transformer, transformer_weights(mesh), x, y)


def product(precision: str | None) -> Callable:
    """One product with that matrix: spectrax's own, or at a precision, as `jax.jvp` and `jax.vjp` write it."""

    def made(mesh: Mesh) -> Case:
        def own(params: Any, x: jax.Array, y: jax.Array) -> Any:
            return gauss_newton(transformer, shardings, params, x, y).matvec(params)

        def plain(params: Any, x: jax.Array, y: jax.Array) -> Any:
            with jax.default_matmul_precision(precision):
                z, tangent = jax.jvp(lambda p: transformer(p, x), (params,), (params,))
                image = jax.jvp(jax.grad(lambda z: cross_entropy(z, y)), (z,), (tangent,))[1]
                return jax.vjp(lambda p: transformer(p, x), params)[1](image)[0]

        params, x, y = eigsh_of_many(mesh)[1]
        shardings = shardings_of(params)
        return own if precision is None else plain, (params, x, y)

    return made


def _eigsh(network: Callable, params: Any, x: Any, y: Any) -> Case:
    shardings = shardings_of(params)

    def top(params: Any, x: jax.Array, y: jax.Array) -> Any:
        matrix = gauss_newton(network, shardings, params, x, y)
        return sx.eigsh(matrix, 4, which="largest", method=sx.Lanczos(), key=KEY)

    return top, (params, x, y)


def density(mesh: Mesh) -> Case:
    """The density of the same matrix's eigenvalues, of the first network."""
    params = weights(mesh)
    shardings = shardings_of(params)

    def found(params: Any, x: jax.Array, y: jax.Array) -> Any:
        return jax.tree.leaves(sx.spectral_density(gauss_newton(logits, shardings, params, x, y), key=KEY))

    return found, (params, *batch(mesh))


def training(penalty: Callable[..., sx.regularizers.Penalty] | None, *, gathered: bool = False) -> Callable:
    """A step of Adam, with a penalty or without one; on the sharded layers, or on copies on every chip."""

    def made(mesh: Mesh) -> Case:
        whole = NamedSharding(mesh, P())

        def copies(params: Any) -> Any:
            return sx.regularizers.matrix_maps()(jax.lax.with_sharding_constraint(params, whole))

        added = []
        if penalty is not None:
            made = penalty(copies) if gathered else penalty()
            added = [sx.transforms.add_spectral_penalty(made, 0.1, key=KEY)]
        optimizer = optax.chain(*added, optax.adam(1e-3))

        def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
            value, gradient = jax.value_and_grad(lambda p: cross_entropy(logits(p, x), y))(params)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        params = weights(mesh)
        shapes = jax.eval_shape(optimizer.init, params)
        by_shape = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(params)}
        state = jax.tree.map(  # moments as their parameters, the rest on every chip
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=by_shape.get(leaf.shape, whole)), shapes
        )
        return step, (params, state, *batch(mesh))

    return made


CASES: dict[str, Callable[[Mesh], Case]] = {
    "svds": svds,
    "eigsh": eigsh,
    "eigsh, 32 leaves": eigsh_of_many,
    "product, 32 leaves": product(None),
    "product, 32 leaves, by jvp and vjp": product("highest"),
    "product, 32 leaves, by jvp and vjp in default precision": product("default"),
    "density": density,
    "training, no penalty": training(None),
    "training, spectral norm": training(sx.regularizers.spectral_norm_penalty),
    "training, condition number": training(sx.regularizers.condition_number_penalty),
    "training, condition number of copies": training(sx.regularizers.condition_number_penalty, gathered=True),
}


def compiled(case: str, topology: str) -> dict[str, Any]:
    """Compile one case here and read what the compiler says."""
    from jax.experimental import topologies

    name, shape = TOPOLOGIES[topology]
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    assert len(devices) == math.prod(shape), (len(devices), shape)
    mesh = Mesh(np.array(devices).reshape(shape), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    function, structs = CASES[case](mesh)
    began = time.perf_counter()
    lowered = jax.jit(function).lower(*structs)
    found: dict[str, Any] = {"lower_seconds": round(time.perf_counter() - began, 2)}
    began, processor = time.perf_counter(), time.process_time()
    program = lowered.compile()
    found["compile_seconds"] = round(time.perf_counter() - began, 2)
    found["compile_cpu_seconds"] = round(time.process_time() - processor, 2)
    memory = program.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes, "results": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes, "code": memory.generated_code_size_in_bytes,
    }  # fmt: skip
    found["mib_per_chip"] = {kind: round(size / 2**20, 2) for kind, size in sizes.items()}
    cost = program.cost_analysis() or {}
    found["gflops_per_chip"] = round(cost.get("flops", 0.0) / 1e9, 3)
    found["collectives"] = collectives(program.as_text() or "")
    return found


_NAMES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}


def collectives(text: str) -> dict[str, Any]:
    """Count the collectives of a compiled program, in and outside of its loops, and add up the bytes of their results.

    Synchronous and asynchronous ones count once each, the latter where they start. An asynchronous one returns its
    operand beside its result, of which the larger one is taken.
    """
    bodies, name = {}, ""
    for line in text.splitlines():
        opening = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{\s*$", line)
        if opening and not line.startswith(" "):
            name = opening[1]
        bodies.setdefault(name, []).append(line)
    called = {name: set(re.findall(r"%([\w.\-]+)", " ".join(lines))) & set(bodies) for name, lines in bodies.items()}
    left = [body for lines in bodies.values() for body in re.findall(r"body=%?([\w.\-]+)", " ".join(lines))]
    looped: set[str] = set()
    while left:
        body = left.pop()
        if body not in looped:
            looped.add(body)
            left.extend(called.get(body, ()))
    counts = {"in_loops": collections.Counter(), "outside": collections.Counter()}
    moved = {"in_loops": 0, "outside": 0}
    for name, lines in bodies.items():
        place = "in_loops" if name in looped else "outside"
        for line in lines:
            found = re.search(rf"= (.*?) ({_NAMES})(-start)?\(", line)
            if found:
                shapes = re.findall(r"(\w+)\[([\d,]*)\]", found[1])
                sizes = [_BYTES.get(t, 4) * math.prod(int(d) for d in dims.split(",") if d) for t, dims in shapes]
                counts[place][found[2]] += 1
                moved[place] += max(sizes, default=0) if found[3] else sum(sizes)
    return {
        place: {"count": dict(sorted(counts[place].items())), "mib": round(moved[place] / 2**20, 3)} for place in counts
    }


def in_a_process(case: str, topology: str, limit: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", case, topology]
    began = time.perf_counter()
    try:
        run = subprocess.run(
            command, env={**os.environ, **VARIABLES}, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {limit:g} seconds", "seconds": round(time.perf_counter() - began, 1)}
    if run.returncode:
        return {"failed": run.stderr.strip().splitlines()[-1][:400] if run.stderr.strip() else f"exit {run.returncode}"}
    return json.loads(run.stdout.splitlines()[-1])


def is_slow(found: dict[str, Any]) -> bool:
    return min(found["compile_seconds"], found["compile_cpu_seconds"]) > LIMIT


def line(case: str, topology: str, found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"{topology:8} {case:36} FAILED: {found['failed']}"
    memory, inside = sum(found["mib_per_chip"].values()), found["collectives"]["in_loops"]["count"]
    slow = "  SLOW" if is_slow(found) else ""
    return (
        f"{topology:8} {case:36} lower {found['lower_seconds']:6.1f} s  compile {found['compile_seconds']:6.1f} s "
        f"({found['compile_cpu_seconds']:.1f} CPU)  "
        f"{memory:8.1f} MiB  {found['gflops_per_chip']:9.3f} GFLOP  in loops {inside}  "
        f"outside {found['collectives']['outside']['count']}{slow}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=";".join(CASES), help="cases, separated by ';'")
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES), help="separated by commas")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one case, tracing included")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, metavar=("CASE", "TOPOLOGY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(compiled(*arguments.child)))
        return 0
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    bad = 0
    for topology in arguments.topologies.split(","):
        for case in arguments.only.split(";"):
            found = in_a_process(case, topology, arguments.limit)
            bad += "failed" in found or is_slow(found)
            print(line(case, topology, found), flush=True)
            results.setdefault("rows", {}).setdefault(topology, {})[case] = found
            results["environment"] = {**environment(), "libtpu": installed("libtpu")}
            results["limit_seconds"] = LIMIT
            arguments.out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
