"""What the Jacobians of a batch cost, beside the ways that JAX has for them: time, temporary memory, compilation.

    taskset -c 0 python benchmarks/batched_jacobians.py --out benchmarks/results/batched_jacobians.json     a minute
    python benchmarks/batched_jacobians.py --quick                                                          small

A multi-layer perceptron 784-512-512-10 with ReLU at 128 samples, and convolutional networks of three and of six 3x3
convolutions with tanh on 8x8x3 images, 192 inputs to 1024 outputs, at 8 samples; float32. In each `batched_jacobian` as
it is, and with bounds of its memory, beside `vmap` and `lax.map` (one by one and in batches) of `jacrev` and `jacfwd`.
Memory is what the compiled program needs besides its arguments and its result; times are process CPU milliseconds for
the whole batch, medians of interleaved runs, and their ratios to the fastest of JAX's ways with a bootstrap interval.
The last part streams statistics by `jacobian_spectrum`, beside the decompositions alone of Jacobians already there.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from engine.timing import compiled, environment, interleaved, interval

import spectrax as sx

PyTree = Any
BATCHES = (2, 4, 8, 16)
BOUNDS = (2**17, 2**18, 2**20)


def mlp(x: jax.Array, params: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    for weight, bias in params[:-1]:
        x = jax.nn.relu(weight @ x + bias)
    weight, bias = params[-1]
    return weight @ x + bias


def cnn(x: jax.Array, kernels: list[jax.Array]) -> jax.Array:
    for kernel in kernels:
        image = jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.tanh(image[0])
    return x


def cases(quick: bool) -> dict[str, tuple[Callable, PyTree, jax.Array]]:
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    sizes, samples = ((32, 16, 16, 10), 16) if quick else ((784, 512, 512, 10), 128)
    params = [(normal(m, n, scale=(2 / n) ** 0.5), jnp.zeros(m)) for n, m in itertools.pairwise(sizes)]
    found: dict[str, tuple[Callable, PyTree, jax.Array]] = {
        f"MLP {'-'.join(map(str, sizes))}, {samples} samples": (mlp, params, normal(samples, sizes[0]))
    }
    for depth in (3,) if quick else (3, 6):
        channels = [3] + [16] * depth
        kernels = [normal(3, 3, m, n, scale=(9 * m) ** -0.5) for m, n in itertools.pairwise(channels)]
        found[f"CNN of {depth} layers, 192 -> 1024, 8 samples"] = cnn, kernels, normal(8, 8, 8, 3)
    return found


def arms_of(f: Callable, samples: int) -> dict[str, Callable[[PyTree, jax.Array], PyTree]]:
    arms: dict[str, Callable[[PyTree, jax.Array], PyTree]] = {
        "batched_jacobian": lambda params, xs: sx.batched_jacobian(f, xs, params)
    }
    for bound in BOUNDS:
        arms[f"batched_jacobian, max_bytes={bound}"] = lambda params, xs, bound=bound: sx.batched_jacobian(
            f, xs, params, max_bytes=bound
        )
    for name, mode in (("jacrev", jax.jacrev), ("jacfwd", jax.jacfwd)):
        arms[f"vmap({name})"] = lambda params, xs, mode=mode: jax.vmap(lambda x: mode(f)(x, params))(xs)
        arms[f"lax.map({name})"] = lambda params, xs, mode=mode: jax.lax.map(lambda x: mode(f)(x, params), xs)
        for size in BATCHES:
            if size < samples:
                arms[f"lax.map({name}, batch_size={size})"] = lambda params, xs, mode=mode, size=size: jax.lax.map(
                    lambda x: mode(f)(x, params), xs, batch_size=size
                )
    return arms


def measure(f: Callable, params: PyTree, xs: jax.Array, runs: int) -> dict[str, Any]:
    arms, rows, programs = arms_of(f, len(xs)), {}, {}
    for name, arm in arms.items():
        programs[name], rows[name] = compiled(arm, params, xs)
    arguments = params, xs
    truth = np.asarray(programs["vmap(jacrev)"](*arguments))
    for name, program in programs.items():
        found = np.asarray(program(*arguments)).reshape(len(xs), -1)
        rows[name]["largest_difference"] = float(
            np.max(np.abs(found - truth.reshape(len(xs), -1))) / np.max(abs(truth))
        )
    calls = {name: (lambda p=program: p(*arguments)) for name, program in programs.items()}
    seconds = interleaved(calls, runs)
    peers = {name: np.nanmedian(times) for name, times in seconds.items() if not name.startswith("batched")}
    fastest = min(peers, key=lambda name: peers[name])
    for name, row in rows.items():
        row["cpu_ms"] = float(1e3 * np.nanmedian(seconds[name]))
        row["over_fastest"] = interval(seconds[name] / seconds[fastest])
    own = rows["batched_jacobian"]
    whole = {name: rows[name]["temporary_mib"] for name in ("vmap(jacrev)", "vmap(jacfwd)")}
    return {"result_mib": truth.nbytes / 2**20, "fastest_peer": fastest, "runs": runs, "arms": rows,
            "memory_over_whole": {name: own["temporary_mib"] / size for name, size in whole.items()}}  # fmt: skip


def spectra(f: Callable, params: PyTree, xs: jax.Array, runs: int) -> dict[str, Any]:
    def of(statistics: str) -> Callable:
        return lambda params, xs: sx.jacobian_spectrum(f, xs, params, statistics=statistics)

    def kept(params: PyTree, xs: jax.Array) -> jax.Array:
        matrices = jax.vmap(lambda x: jax.jacrev(f)(x, params).reshape(-1, x.size))(xs)
        return jnp.linalg.svd(matrices, full_matrices=False, compute_uv=False)

    matrices = sx.batched_jacobian(f, xs, params)
    arms = {
        "SVDs alone": lambda matrices: jnp.linalg.svd(matrices, full_matrices=False, compute_uv=False),
        "jacobian_spectrum, singular values": of("singular_values"),
        "jacobian_spectrum, Frobenius norms": of("frobenius_norm"),
        "SVDs of vmap(jacrev)": kept,
    }
    rows, calls = {}, {}
    for name, arm in arms.items():
        arguments = (matrices,) if name == "SVDs alone" else (params, xs)
        program, rows[name] = compiled(arm, *arguments)
        calls[name] = lambda p=program, a=arguments: p(*a)
    seconds = interleaved(calls, runs, always=True)
    for name, row in rows.items():
        row["cpu_ms"] = float(1e3 * np.median(seconds[name]))
    return rows


def table(name: str, found: dict[str, Any]) -> str:
    """Return the rows of one measurement in Markdown."""
    lines = [f"{name}; the result is {found['result_mib']:.2f} MiB", "",
             "| | CPU ms | / fastest of JAX's | temporary MiB | compile, s |", "|---|---|---|---|---|"]  # fmt: skip
    for arm, row in found["arms"].items():
        ratio = row["over_fastest"]
        lines.append(
            f"| {arm} | {row['cpu_ms']:.2f} | {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] | "
            f"{row['temporary_mib']:.3f} | {row['compile_cpu_seconds']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=int, default=31)
    parser.add_argument("--quick", action="store_true", help="small, and three runs")
    arguments = parser.parse_args()
    runs = 3 if arguments.quick else arguments.runs
    result: dict[str, Any] = {"environment": environment(), "cases": {}}
    for name, (f, params, xs) in cases(arguments.quick).items():
        found = measure(f, params, xs, runs)
        print(table(name, found), end="\n\n", flush=True)
        if f is mlp:
            found["spectra"] = spectra(f, params, xs, min(runs, 5))
            print(json.dumps(found["spectra"], indent=1), flush=True)
        result["cases"][name] = found
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
