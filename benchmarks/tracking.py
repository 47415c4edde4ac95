"""How well, and at which cost, singular values are followed: drifting matrices, and layers in training.

    taskset -c 0 python benchmarks/tracking.py --out benchmarks/results/tracking.json       some ten minutes on one core

The state of `condition_number_penalty(block_size=1, tolerance=0.01)` is taken from step to step. At each step both
ends are compared with LAPACK's values in float64, and the estimated errors with the true ones. Costs are process CPU
times of `apply` without its derivative, as a share of a values-only SVD in JAX of the same matrix, medians of three.

"rotation": the singular vectors turn and the values stay, geometric between 1 and 1 / kappa; "walk": random matrices
are added. A drift of 1e-2 is a change by one per cent of the Frobenius norm at each step. The layers are those of
networks in training by Adam: an MLP on mnist5k, a CNN on it (its kernels with their padding, renewed every 16 steps),
and a transformer block that learns to reverse sequences; their optimiser's state is copied through NumPy in the middle.
"""

import argparse
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from engine.timing import environment

import spectrax as sx

SYNTHETIC = (
    ("rotation", 512, 256, 1e3, 1e-2), ("rotation", 512, 256, 1e3, 1e-3), ("rotation", 512, 256, 10.0, 1e-3),
    ("walk", 512, 256, 1e3, 1e-2), ("walk", 512, 256, 1e3, 1e-3), ("walk", 512, 512, None, 1e-2),
    ("walk", 512, 512, None, 1e-3),
)  # fmt: skip


def drifting(case: tuple[Any, ...], steps: int) -> Iterator[np.ndarray]:
    """Yield a sequence of matrices; kappa None starts with a Gaussian one."""
    kind, m, n, kappa, drift = case
    rng = np.random.default_rng(0)
    values = np.geomspace(1, 1 / kappa, n) if kappa else None
    u, v = (np.linalg.qr(rng.standard_normal((size, n)))[0] for size in (m, n))
    A = (u * values) @ v.T if kappa else rng.standard_normal((m, n)) / (m**0.5 + n**0.5)
    for _ in range(steps):
        yield A
        if kind == "walk":
            A = A + drift * np.linalg.norm(A) * rng.standard_normal((m, n)) / (m * n) ** 0.5
            continue
        left, right = (rng.standard_normal((size, size)) for size in (m, n))
        left, right = left - left.T, right - right.T
        change = left @ A / np.linalg.norm(left @ A) - A @ right / np.linalg.norm(A @ right)
        u, _, vh = np.linalg.svd(A + drift * np.linalg.norm(A) * change / 2**0.5, full_matrices=False)
        A = (u * values) @ vh


def judged(measured: Any, name: str, values: np.ndarray) -> tuple[float, ...]:
    """Return the true and the estimated relative errors at the top and at the bottom, and whether it is not lost."""
    top, bottom = (float(getattr(measured, end)[name]) for end in ("sigma_max", "sigma_min"))
    estimates = (float(getattr(measured, f"{end}_error")[name]) for end in ("sigma_max", "sigma_min"))
    return (abs(top / values[0] - 1), abs(bottom / values[-1] - 1), *estimates, bool(measured.converged[name]))


def summary(rows: list[tuple[float, ...]]) -> dict[str, float]:
    top, bottom, top_estimate, bottom_estimate, kept = np.array(rows).T
    kept = kept.astype(bool)
    return {
        "steps": len(rows),
        "top_median": float(np.median(top)), "top_worst": float(top.max()),
        "top_covered": float(np.mean(top <= top_estimate)),
        "bottom_median": float(np.median(bottom)), "bottom_99": float(np.quantile(bottom, 0.99)),
        "bottom_worst": float(bottom.max()), "bottom_covered": float(np.mean(bottom <= bottom_estimate)),
        "bottom_within_1_percent": float(np.mean(bottom <= 0.01)), "lost": float(np.mean(~kept)),
        "worst_when_not_lost": float(bottom[kept].max()) if kept.any() else float("nan"),
    }  # fmt: skip


def seconds(run: Any) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(3):
        began = time.process_time()
        jax.block_until_ready(run())
        times.append(time.process_time() - began)
    return float(np.median(times))


def synthetic(case: tuple[Any, ...], steps: int, tolerance: float) -> dict[str, Any]:
    penalty = sx.regularizers.condition_number_penalty(block_size=1, tolerance=tolerance)
    apply = jax.jit(penalty.apply)
    svd = jax.jit(functools.partial(jnp.linalg.svd, compute_uv=False))
    state, rows, ours, theirs, factorised = None, [], [], [], []
    for A in drifting(case, steps):
        params = {"w": jnp.asarray(A.T, jnp.float32)}
        if state is None:
            state = jax.jit(penalty.init)(params, jax.random.key(0))
            continue
        before = state
        ours.append(seconds(lambda params=params, before=before: apply(params, before)))
        theirs.append(seconds(lambda params=params: svd(params["w"])))
        _, state = apply(params, before)
        rows.append(judged(state.measurements, "w", np.linalg.svd(A, compute_uv=False)))
        factorised.append(int(next(iter(state.tracks.values())).factor.age[0]) == 0)
    return {
        "case": list(case), **summary(rows), "cost": float(np.mean(ours) / np.median(theirs)),
        "factorised": float(np.mean(factorised)),
    }  # fmt: skip


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        for width in (512, 512):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class Block(nn.Module):
    """A pre-norm transformer block, with attention kernels of two axes."""

    heads: int = 4

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        y = nn.LayerNorm()(x)
        split = (*x.shape[:-1], self.heads, d // self.heads)
        query, key, value = (nn.Dense(d, name=name)(y).reshape(split) for name in ("query", "key", "value"))
        x = x + nn.Dense(d, name="out")(nn.dot_product_attention(query, key, value).reshape(x.shape))
        return x + nn.Dense(d, name="down")(nn.gelu(nn.Dense(4 * d, name="up")(nn.LayerNorm()(x))))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        for index, features in enumerate((8, 16, 16)):
            x = nn.relu(nn.Conv(features, (3, 3), strides=2 if index else 1, padding="SAME", name=f"conv_{index}")(x))
        return nn.Dense(10, name="dense")(x.reshape(x.shape[0], -1))


def cnn_maps(params: Any) -> dict[str, Any]:
    sizes = {"conv_0": (14, 14, 1), "conv_1": (14, 14, 2), "conv_2": (7, 7, 2)}
    return {
        name: sx.conv_operator(params[name]["kernel"], (*size,), strides=strides, padding="SAME")
        for name, (*size, strides) in sizes.items()
    } | {"dense": sx.aslinearoperator(params["dense"]["kernel"].T)}


def recorded(network: str, rate: float, steps: int, tolerance: float) -> dict[str, Any]:
    """Train a network and follow its layers; the state goes through bytes in the middle."""
    key = jax.random.key(0)
    options: dict[str, Any] = {"block_size": 1, "tolerance": tolerance}
    if network == "block":
        net: nn.Module = Block()
        x = jax.random.normal(key, (64, 16, 256))
        batches = [(x, x[:, ::-1])]
        loss_of = lambda out, y: jnp.mean((out - y) ** 2)  # noqa: E731
    else:
        from spectrax.training import load_data

        data = load_data("mnist5k", seed=0)
        net = MLP() if network == "mlp" else CNN()
        images = data.x_train if network == "mlp" else data.x_train[:, ::2, ::2]
        batches = [(images[i : i + 128], data.y_train[i : i + 128]) for i in range(0, len(images) - 128, 128)]
        loss_of = lambda out, y: optax.softmax_cross_entropy_with_integer_labels(out, y).mean()  # noqa: E731
    if network == "cnn":
        options |= {"maps": cnn_maps, "renew_every": 16}
    params = net.init(key, jnp.asarray(batches[0][0]))["params"]
    chain = optax.chain(sx.transforms.track_spectrum(key=jax.random.key(1), **options), optax.adam(rate))

    @jax.jit
    def step(params, state, x, y):
        slope = jax.grad(lambda p: loss_of(net.apply({"params": p}, x), y))(params)
        updates, state = chain.update(slope, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(chain.init)(params)
    maps = jax.jit(
        lambda p: {
            name: op.to_dense() for name, op in (options.get("maps") or sx.regularizers.matrix_maps())(p).items()
        }
    )
    rows: dict[str, list[tuple[float, ...]]] = {}
    for index in range(steps):
        dense = {name: np.asarray(matrix, np.float64) for name, matrix in maps(params).items()}
        x, y = batches[index % len(batches)]
        params, state = step(params, state, jnp.asarray(x), jnp.asarray(y))
        if index == steps // 2:
            leaves, treedef = jax.tree.flatten(state)
            leaves = [leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.asarray(np.asarray(leaf).copy())
                      for leaf in leaves]  # fmt: skip
            state = treedef.unflatten(leaves)
        if network == "cnn" and index % 8:
            continue  # dense decompositions of its convolutions take seconds
        measured = optax.tree.get(state, "measurements")
        for name, matrix in dense.items():
            rows.setdefault(name, []).append(judged(measured, name, np.linalg.svd(matrix, compute_uv=False)))
    return {"network": network, "rate": rate, "layers": {name: summary(found) for name, found in rows.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tracking.json"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--sections", default="synthetic,recorded")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(), "tolerance": arguments.tolerance}
    if arguments.out.exists():
        result = json.loads(arguments.out.read_text()) | result
    if "synthetic" in arguments.sections:
        result["synthetic"] = []
        for case in SYNTHETIC:
            row = synthetic(case, arguments.steps, arguments.tolerance)
            result["synthetic"].append(row)
            print(json.dumps(row), flush=True)
    if "recorded" in arguments.sections:
        result["recorded"] = []
        for network in ("mlp", "block", "cnn"):
            for rate in (1e-4, 1e-3, 1e-2):
                row = recorded(network, rate, arguments.steps, arguments.tolerance)
                result["recorded"].append(row)
                print(json.dumps(row), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
