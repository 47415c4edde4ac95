"""What penalties cost in a training step, beside none, Flax's SpectralNorm and exact decompositions.

    taskset -c 0 python benchmarks/training_steps.py --out benchmarks/results/training_steps.json

An MLP 784-512-512-10 at batch 128, a CNN of three 3 x 3 convolutions of 32 channels on 28 x 28 at batch 64, and a
transformer block of width 512 on 8 x 128 tokens, under Adam 1e-3 on random data. The arms are trained on in turns of
four steps each in one process, with donated states; process CPU time, the median of the ratios to no penalty with its
95 % bootstrap interval, and the ratio of all time, in which the renewals are. "again" is the program without a penalty
once more. Compilation is apart.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from engine.timing import compiled, environment, interleaved, interval

import spectrax as sx

TURN = 4
SIDE, CHANNELS = 28, (1, 32, 32, 32)


class MLP(nn.Module):
    normalized: bool = False

    @nn.compact
    def __call__(self, x):
        for width in (512, 512, 10):
            layer = nn.Dense(width)
            x = nn.SpectralNorm(layer)(x, update_stats=True) if self.normalized else layer(x)
            x = nn.relu(x) if width > 10 else x
        return x


class CNN(nn.Module):
    normalized: bool = False

    @nn.compact
    def __call__(self, x):
        for index, features in enumerate(CHANNELS[1:]):
            layer = nn.Conv(features, (3, 3), name=f"conv_{index}")
            x = nn.relu(nn.SpectralNorm(layer)(x, update_stats=True) if self.normalized else layer(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Block(nn.Module):
    normalized: bool = False

    @nn.compact
    def __call__(self, x):
        def dense(features: int, name: str) -> Callable[[jax.Array], jax.Array]:
            layer = nn.Dense(features, name=name)
            return functools.partial(nn.SpectralNorm(layer), update_stats=True) if self.normalized else layer

        d, y = x.shape[-1], nn.LayerNorm()(x)
        split = (*x.shape[:-1], 8, d // 8)
        query, key, value = (dense(d, name)(y).reshape(split) for name in ("query", "key", "value"))
        x = x + dense(d, "out")(nn.dot_product_attention(query, key, value).reshape(x.shape))
        return x + dense(d, "down")(nn.gelu(dense(4 * d, "up")(nn.LayerNorm()(x))))


def cnn_maps(params: Any) -> dict[str, Any]:
    return {
        f"conv_{index}": sx.conv_operator(params[f"conv_{index}"]["kernel"], (SIDE, SIDE), padding="SAME")
        for index in range(len(CHANNELS) - 1)
    }


def exact(params: Any) -> jax.Array:
    """The log-condition numbers of all kernels, convolutions reshaped."""
    kernels = [leaf.reshape(-1, leaf.shape[-1]) for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    values = [jnp.linalg.svd(kernel, compute_uv=False, full_matrices=False) for kernel in kernels]
    return sum((jnp.log(s[0] / s[-1]) for s in values), jnp.zeros(()))


NETWORKS = {
    "mlp": (MLP, (128, 784), (128, 10), None),
    "cnn": (CNN, (64, SIDE, SIDE, 1), (64, 10), cnn_maps),
    "block": (Block, (8, 128, 512), (8, 128, 512), None),
}


class Arm:
    """A compiled training step and where its training stands."""

    def __init__(self, net: nn.Module, x: jax.Array, y: jax.Array, chain: Any):
        variables = net.init(jax.random.key(0), x)
        params, stats = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}
        self.carry = jax.tree.map(jnp.copy, (params, stats, jax.jit(chain.init)(params)))

        def loss(params: Any, stats: Any) -> tuple[jax.Array, Any]:
            out, new = net.apply({"params": params, **stats}, x, mutable=list(stats))
            return jnp.mean((out - y) ** 2), new

        def step(params: Any, stats: Any, state: Any) -> Any:
            slope, stats = jax.grad(loss, has_aux=True)(params, stats)
            updates, state = chain.update(slope, state, params)
            return optax.apply_updates(params, updates), stats, state

        _, self.cost = compiled(step, *self.carry)
        self.step = jax.jit(step, donate_argnums=(0, 1, 2))

    def run(self) -> Any:
        for _ in range(TURN):
            self.carry = self.step(*self.carry)
        return self.carry


def arms(name: str) -> dict[str, Arm]:
    net, x_shape, y_shape, maps = NETWORKS[name]
    x, y = jax.random.normal(jax.random.key(1), x_shape), jax.random.normal(jax.random.key(2), y_shape)

    def penalised(every: int | None = None, block_size: int = 4, **options: Any) -> Arm:
        penalty = sx.regularizers.condition_number_penalty(maps, block_size=block_size, **options)
        added = sx.transforms.add_spectral_penalty(penalty, 1e-3, key=jax.random.key(3), every=every)
        return Arm(net(), x, y, optax.chain(added, optax.adam(1e-3)))

    decomposed = optax.stateless(lambda updates, params: jax.tree.map(jnp.add, updates, jax.grad(exact)(params)))
    found = {
        "none": Arm(net(), x, y, optax.adam(1e-3)),
        "again": Arm(net(), x, y, optax.adam(1e-3)),
        "Flax SpectralNorm": Arm(net(normalized=True), x, y, optax.adam(1e-3)),
        "penalty at every step": penalised(renew_every=64 if maps is None else 1024),
        "penalty at every step, blocks of 1": penalised(block_size=1, renew_every=64 if maps is None else 1024),
        "penalty at every 4th step": penalised(4, renew_every=64 if maps is None else 256),
    }
    if maps is None:
        found["penalty at every 32nd step, tolerance 0.01"] = penalised(32, tolerance=0.01, renew_every=8)
    found["exact decompositions"] = Arm(net(), x, y, optax.chain(decomposed, optax.adam(1e-3)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_steps.json"))
    parser.add_argument("--turns", type=int, default=64)
    parser.add_argument("--networks", default="mlp,cnn,block")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"environment": environment()}
    for name in arguments.networks.split(","):
        made = arms(name)
        slow = made.pop("exact decompositions")
        seconds = interleaved({arm: each.run for arm, each in made.items()}, arguments.turns, always=True)
        few = interleaved({"none": made["none"].run, "exact": slow.run}, 5, always=True)
        rows = {
            arm: interval(times / seconds["none"])
            | {"of_all_time": float(times.sum() / seconds["none"].sum())} | made[arm].cost
            for arm, times in seconds.items()
        }  # fmt: skip
        rows["exact decompositions"] = interval(few["exact"] / few["none"]) | slow.cost
        result[name] = {"step_ms": 1e3 * float(np.median(seconds["none"])) / TURN, "arms": rows}
        print(f"{name}: {result[name]['step_ms']:.2f} ms a step")
        for arm, row in rows.items():
            total, compilation = row.get("of_all_time", float("nan")), row["compile_cpu_seconds"]
            spread = f"{row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            print(f"  {arm}: {spread}, of all time {total:.3f}, compiled in {compilation:.1f} s", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
