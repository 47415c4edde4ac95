"""What the spectra of all layers of a network cost, beside dense Jacobians and beside the decompositions alone.

    taskset -c 0 python benchmarks/local_linear.py --out benchmarks/results/local_linear.json     some ten minutes
    python benchmarks/local_linear.py --quick                                                     a minute, small

A network of 16 layers relu(W z + b) + rho z of width 512 at 64 samples, once with its 512 features as the output and
once with a readout of 10, in float32. In each: `local_linear` with A made dense, `layer_spectra` in chunks of its own
choice and of 1, 4 and 16 samples, `jax.vmap(jax.jacrev(f))` in the input, and values-only SVDs of the same matrices
alone. Memory is what the compiled program for all samples needs besides arguments and results, in units of one dense
outputs x width matrix; times are process CPU seconds for each sample, medians of interleaved runs of fewer samples
where a sample takes long (the work of a sample does not depend on their number). The dense Jacobian in the parameters,
512 x 4.2 million and 8.6 GB for one sample at full size, is taken at a smaller width, with the SVDs of its layers'
blocks.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from engine.timing import compiled, environment, interleaved

import spectrax as sx

PyTree = Any
CHUNKS = (1, 4, 16)


def make(width: int, depth: int, outputs: int, rho: float) -> tuple[Callable, PyTree]:
    """Return the network and its parameters; a readout only where the outputs are not the features."""
    rng = np.random.default_rng(0)
    scale = np.sqrt(2 / width) if rho == 0 else 0.5 / np.sqrt(depth * width)
    params = {
        f"layer_{i:02d}": {
            "kernel": jnp.asarray(scale * rng.normal(size=(width, width)), jnp.float32),
            "bias": jnp.asarray(0.1 * rng.normal(size=width), jnp.float32),
        }
        for i in range(depth)
    }
    if outputs != width:
        kernel = rng.normal(size=(outputs, width)) / np.sqrt(width)
        params["readout"] = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(outputs)}

    def network(params: PyTree, x: jax.Array) -> jax.Array:
        for i in range(depth):
            own = params[f"layer_{i:02d}"]
            out = jax.nn.relu(own["kernel"] @ x + own["bias"])
            x = out + rho * x if rho else out
        return params["readout"]["kernel"] @ x + params["readout"]["bias"] if "readout" in params else x

    return network, params


def representation(network: Callable, params: PyTree, x: jax.Array) -> PyTree:
    found = sx.local_linear(network, params, x)
    inputs = {name: layer.input for name, layer in found.layers.items()}
    return found.A.to_dense(), found.B, inputs, found.slopes, found.offsets


def values_alone(matrices: jax.Array) -> jax.Array:
    return jax.lax.map(lambda m: jnp.linalg.svd(m, full_matrices=False, compute_uv=False), matrices)


def arms_of(network: Callable, chunks: tuple[int, ...]) -> dict[str, Callable[[PyTree, jax.Array], PyTree]]:
    def spectra(chunk: int | None) -> Callable:
        return lambda params, xs: {
            name: found.values
            for name, found in sx.landscape.layer_spectra(network, params, xs, chunk_size=chunk).items()
        }

    return {
        "jax.vmap(jax.jacrev(f))": lambda params, xs: jax.vmap(jax.jacrev(network, 1), (None, 0))(params, xs),
        "local_linear, vmap": lambda params, xs: jax.vmap(lambda x: representation(network, params, x))(xs),
        "local_linear, one by one": lambda params, xs: jax.lax.map(lambda x: representation(network, params, x), xs),
        "layer_spectra": spectra(None),
        **{f"layer_spectra, chunks of {chunk}": spectra(chunk) for chunk in chunks},
    }


def measure(width: int, depth: int, outputs: int, rho: float, batch: int, timed: int, runs: int) -> dict[str, Any]:
    network, params = make(width, depth, outputs, rho)
    xs = jax.random.normal(jax.random.key(1), (batch, width))
    arms = arms_of(network, tuple(chunk for chunk in CHUNKS if chunk <= timed))
    unit, rows = 4 * outputs * width, {}
    for name, arm in arms.items():
        _, cost = compiled(arm, params, xs)
        rows[name] = {"compile_cpu_seconds": cost["compile_cpu_seconds"],
                      "temporary_jacobians": cost["temporary_mib"] * 2**20 / unit}  # fmt: skip
    programs = {name: compiled(arm, params, xs[:timed])[0] for name, arm in arms.items()}
    calls = {name: (lambda p=program: p(params, xs[:timed])) for name, program in programs.items()}
    after = jax.jit(lambda x: [layer.after.to_dense() for layer in sx.local_linear(network, params, x).layer_list])
    stacks: dict[tuple[int, ...], list[jax.Array]] = {}
    for matrix in after(xs[0]):
        stacks.setdefault(matrix.shape, []).append(matrix)
    matrices = [jnp.stack(stack) for stack in stacks.values()]
    alone, _ = compiled(lambda stacks: [values_alone(stack) for stack in stacks], matrices)
    calls["SVDs alone"] = lambda: [alone(matrices) for _ in range(timed)]
    rows["SVDs alone"] = {}
    seconds = interleaved(calls, runs, always=True)
    base = np.median(seconds["SVDs alone"])
    for name, row in rows.items():
        row |= {"cpu_seconds_per_sample": float(np.median(seconds[name]) / timed),
                "lowest": float(np.min(seconds[name]) / timed), "highest": float(np.max(seconds[name]) / timed),
                "over_svds_alone": float(np.median(seconds[name]) / base)}  # fmt: skip
    return {"width": width, "depth": depth, "outputs": outputs, "rho": rho, "samples": batch, "timed_samples": timed,
            "runs": runs, "one_jacobian_bytes": unit, "arms": rows}  # fmt: skip


def parameter_jacobian(width: int, depth: int, samples: int, runs: int) -> dict[str, Any]:
    """The way without a theory: each layer's Q as a block of the Jacobian in all parameters, decomposed as it is."""
    network, params = make(width, depth, width, 0.0)
    xs = jax.random.normal(jax.random.key(1), (samples, width))

    def dense(params: PyTree, xs: jax.Array) -> PyTree:
        def one(x: jax.Array) -> PyTree:
            jacobian = jax.jacrev(network)(params, x)
            blocks = {name: own["kernel"].reshape(width, -1) for name, own in jacobian.items()}
            return {name: jnp.linalg.svd(Q, full_matrices=False, compute_uv=False) for name, Q in blocks.items()}

        return jax.lax.map(one, xs)

    def ours(params: PyTree, xs: jax.Array) -> PyTree:
        return {name: s.values for name, s in sx.landscape.layer_spectra(network, params, xs).items()}

    rows, calls, answers = {}, {}, {}
    for name, arm in (("layer_spectra", ours), ("Jacobian in the parameters", dense)):
        program, cost = compiled(arm, params, xs)
        calls[name] = lambda p=program: p(params, xs)
        answers[name] = program(params, xs)
        rows[name] = {"temporary_mib": cost["temporary_mib"], "compile_cpu_seconds": cost["compile_cpu_seconds"]}
    first, second = answers.values()
    error = max(float(jnp.max(jnp.abs(first[name] - second[name]) / second[name][:, :1])) for name in first)
    seconds = interleaved(calls, runs, always=True)
    for name, row in rows.items():
        row["cpu_seconds_per_sample"] = float(np.median(seconds[name]) / samples)
    return {"width": width, "depth": depth, "samples": samples, "largest_difference": error, "arms": rows,
            "full_size_bytes_per_sample": 4 * 512 * 16 * 512 * (512 + 1)}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Return the rows of one measurement in Markdown."""
    head = (f"{found['depth']} layers of width {found['width']}, {found['outputs']} outputs, rho {found['rho']:g}; "
            f"memory for {found['samples']} samples, times from {found['timed_samples']}")  # fmt: skip
    lines = [head, "", "| | temporaries, in Jacobians of one sample | CPU ms a sample | / SVDs alone | compile, s |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, row in found["arms"].items():
        memory, compiling = row.get("temporary_jacobians"), row.get("compile_cpu_seconds")
        lines.append(
            f"| {name} | {'' if memory is None else f'{memory:.1f}'} | {1e3 * row['cpu_seconds_per_sample']:.3g} | "
            f"{row['over_svds_alone']:.2f} | {'' if compiling is None else f'{compiling:.1f}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small network")
    arguments = parser.parse_args()
    width, depth, batch, timed, small = (64, 4, 8, 4, 16) if arguments.quick else (512, 16, 64, 16, 64)
    result: dict[str, Any] = {"environment": environment(), "cases": []}
    for outputs in (width, 10):
        for rho in (0.0, 1.0):
            share = timed if outputs == width else batch
            result["cases"].append(measure(width, depth, outputs, rho, batch, share, arguments.runs))
            print(table(result["cases"][-1]), end="\n\n", flush=True)
    result["parameter_jacobian"] = parameter_jacobian(small, depth, 4, arguments.runs)
    print(json.dumps(result["parameter_jacobian"], indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
