"""Low rank by training the factors U diag(s) V: accuracy against multiplications.

A perceptron with two hidden layers of 128 ReLUs on MNIST at 14 x 14, trained by SGD with momentum 0.9 and a cosine
schedule, then `TUNE_EPOCHS` epochs at a tenth of the learning rate. In between, the two hidden kernels are pruned, so
that each network has had the same number of steps. The arms:

- "SVD training": kernels are U diag(s) V of full rank, with the penalty on factors that are not orthonormal (weight 1)
  and one on the sparsity of s, "hoyer" or "l1", or none of these ("orthogonal alone"); pruned by energy;
- "truncated": the dense network's kernels are decomposed after training and pruned by energy;
- "given rank": factors of a small rank from the beginning, without any penalty;
- "narrow": dense networks of fewer units.

A layer costs what its factors cost, or the dense kernel where that is less (`sx.parametrizations.low_rank_flops`).
"""

import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spectrax as sx

from . import seeds

SHAPE, CLASSES = (14, 14, 1), 10
WIDTH, EPOCHS, TUNE_EPOCHS, LEARNING_RATE = 128, 20, 5, 0.05
# Both grids were widened once: at first no weight exceeded 0.1, nor did the energies fall below 0.5, which left the
# truncated networks at a third of the cost and Hoyer's penalty at the largest of its weights.
WEIGHTS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
ENERGIES = (0.99, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1)
GRID = {
    "SVD training, hoyer": WEIGHTS,
    "SVD training, l1": WEIGHTS,
    "orthogonal alone": (0.0,),
    "truncated": (0.0,),
    "given rank": (1, 2, 4, 8, 16, 32),
    "narrow": (128, 64, 32, 16, 8, 4),
}
PRUNED = ("SVD training, hoyer", "SVD training, l1", "orthogonal alone", "truncated")
BUDGETS = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
HIDDEN = ("dense_1", "dense_3")
FORM = sx.parametrizations.factored()


class Programs(NamedTuple):
    """The compiled functions of an arm and width; weights and learning rates are arguments."""

    start: Any
    epoch: Any
    logits: Any


def network(width: int = WIDTH) -> sx.layers.Layer:
    return sx.models.mlp(CLASSES, width=width, depth=2)


def kernels(params: Any) -> Any:
    """Return the parameters of the network, with each kernel that is given by factors multiplied out."""
    whole = {}
    for name, layer in params.items():
        kernel = layer["kernel"]
        whole[name] = layer | {"kernel": FORM.apply(kernel) if isinstance(kernel, dict) else kernel}
    return whole


@functools.cache
def programs(arm: str, width: int, rank: int | None) -> Programs:
    """Return the start, an epoch of training and the logits."""
    net = network(width)
    is_factored = arm not in ("dense", "narrow")
    sparsity = {"SVD training, hoyer": "hoyer", "SVD training, l1": "l1"}.get(arm)

    def optimizer(weight: Any, rate: Any) -> Any:
        penalties = []
        if sparsity or arm == "orthogonal alone":
            penalty = sx.regularizers.factor_orthogonality_penalty()
            penalties.append(sx.transforms.add_spectral_penalty(penalty, 1.0))
        if sparsity:
            penalty = sx.regularizers.factor_sparsity_penalty(form=sparsity)
            penalties.append(sx.transforms.add_spectral_penalty(penalty, weight))
        return optax.chain(*penalties, optax.sgd(rate, momentum=0.9))

    def logits(params: Any, x: jax.Array) -> jax.Array:
        whole = kernels(params)
        return jax.vmap(lambda sample: net.apply({"params": whole}, sample))(x)

    @jax.jit
    def start(weight, key):
        params = net.init(key, SHAPE)["params"]
        if is_factored:
            own = sx.parametrizations.factored(rank=rank)
            params = params | {
                name: params[name] | {"kernel": own.init(params[name]["kernel"])} for name in HIDDEN
            }  # fmt: skip
        return params, optimizer(weight, 0.1).init(params)

    @jax.jit
    def epoch(weight, rates, params, state, x, y, order):
        def step(carry, batch_and_rate):
            (params, state), (batch, rate) = carry, batch_and_rate
            loss, grads = jax.value_and_grad(lambda p: seeds.cross_entropy(logits(p, x[batch]), y[batch]))(params)
            updates, state = optimizer(weight, rate).update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        (params, state), losses = jax.lax.scan(step, (params, state), (order, rates))
        return params, state, jnp.mean(losses)

    return Programs(start, epoch, jax.jit(logits))


def fit(run: Programs, data: seeds.Data, params: Any, state: Any, weight: float, seed: int, epochs: range,
        rate: Any) -> tuple[Any, Any, list[float]]:  # fmt: skip
    """Train for some epochs; `rate` is a function of the share of them that is over."""
    curve, steps = [], len(data.train.y) // seeds.BATCH
    for number in epochs:
        order = np.stack(list(seeds.batches(len(data.train.y), seed, number)))
        done = (number - epochs.start + np.arange(steps) / steps) / len(epochs)
        rates = np.asarray(rate(done) * np.ones(steps), np.float32)
        params, state, loss = run.epoch(weight, rates, params, state, data.train.x, data.train.y, order)
        curve.append(float(loss))
    return params, state, curve


def cosine(done: np.ndarray) -> np.ndarray:
    return LEARNING_RATE * (1 + np.cos(np.pi * done)) / 2


def constant(done: np.ndarray) -> np.ndarray:
    return np.full_like(done, LEARNING_RATE / 10)


def train(*, arm: str, value: float, seed: int, epochs: int = EPOCHS, tune_epochs: int = TUNE_EPOCHS,
          energies: tuple[float, ...] = ENERGIES, data: seeds.Data | None = None) -> dict[str, Any]:  # fmt: skip
    """Train once, prune at each energy and train on; return accuracies, ranks and the multiplications they cost."""
    data = data or seeds.load("mnist5k", seed)
    began = time.process_time()
    width, rank = (int(value) if arm == "narrow" else WIDTH), (int(value) if arm == "given rank" else None)
    run = programs("dense" if arm == "truncated" else arm, width, rank)
    params, state = run.start(value, jax.random.key(seed))
    params, state, curve = fit(run, data, params, state, value, seed, range(epochs), cosine)
    row: dict[str, Any] = {"train_loss": curve, "before": measured(run, params, data)}
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(params)):
        return row | {"diverged": True, "cpu_seconds": time.process_time() - began}
    if arm in PRUNED:
        tuning = programs(
            "given rank", width, WIDTH
        )  # factors without a penalty: what is pruned is trained on as it is
        row["pruned"] = []
        for energy in energies:
            smaller = pruned(params, energy)
            whole, ranks = padded(smaller)
            found: dict[str, Any] = {"energy": energy, "ranks": ranks, "flops": flops(width, ranks)}
            found["before"] = measured(tuning, whole, data)
            tuned, _, _ = fit(tuning, data, whole, tuning.start(0.0, jax.random.key(0))[1], 0.0, seed,
                              range(epochs, epochs + tune_epochs), constant)  # fmt: skip
            row["pruned"].append(found | {"after": measured(tuning, tuned, data)})
    else:
        fresh = run.start(value, jax.random.key(seed))[1]
        tuned, _, _ = fit(run, data, params, fresh, value, seed, range(epochs, epochs + tune_epochs), constant)
        row |= {"flops": flops(width, [rank] * 2 if rank else None), "after": measured(run, tuned, data)}
    return row | {"cpu_seconds": time.process_time() - began}


def pruned(params: Any, energy: float) -> Any:
    """Prune the hidden kernels by `sx.parametrizations.prune_by_energy`; dense ones are decomposed first."""
    smaller = dict(params)
    for name in HIDDEN:
        kernel = params[name]["kernel"]
        raw = kernel if isinstance(kernel, dict) else FORM.init(kernel)
        raw = {part: np.asarray(leaf) for part, leaf in raw.items()}  # JAX would compile for every rank
        smaller[name] = params[name] | {"kernel": sx.parametrizations.prune_by_energy(raw, energy).raw}
    return smaller


def padded(params: Any) -> tuple[Any, list[int]]:
    """Pad the factors with zeros, so that one program trains all ranks, and return the ranks.

    Columns of U and rows of V that are zero with their s stay so under gradients: each is a product with another.
    """
    whole, ranks = dict(params), []
    for name in HIDDEN:
        raw = params[name]["kernel"]
        rank = raw["s"].shape[0]
        missing = min(raw["u"].shape[0], raw["v"].shape[1]) - rank
        ends = {"u": ((0, 0), (0, missing)), "s": ((0, missing),), "v": ((0, missing), (0, 0))}
        whole[name] = params[name] | {"kernel": {part: np.pad(leaf, ends[part]) for part, leaf in raw.items()}}
        ranks.append(rank)
    return whole, ranks


def flops(width: int, ranks: list[int] | None) -> int:
    """Return twice the number of multiplications for one sample."""
    inputs = int(np.prod(SHAPE))
    total = 2 * width * CLASSES
    for shape, rank in zip(((inputs, width), (width, width)), ranks or (None, None), strict=True):
        cost = sx.parametrizations.low_rank_flops(shape, rank or 1)
        total += min(cost) if rank else cost.full
    return total


def measured(run: Programs, params: Any, data: seeds.Data) -> dict[str, float]:
    return {
        part: float(seeds.accuracy(run.logits(params, getattr(data, part).x), getattr(data, part).y))
        for part in ("validation", "test")
    }


def grid() -> Iterator[dict[str, Any]]:
    """The options of all trainings."""
    for arm, values in GRID.items():
        for value in values:
            for seed in seeds.SEEDS:
                yield {"arm": arm, "value": value, "seed": seed}


def points(rows: list[dict[str, Any]], arm: str, *, tuned: bool = True) -> list[dict[str, Any]]:
    """Return what an arm offers: for each value and energy the five seeds' multiplications and accuracies."""
    when = "after" if tuned else "before"
    found = []
    for value in GRID[arm]:
        own = seeds.of(rows, arm=arm, value=value)
        if not own or any("diverged" in row for row in own):
            continue
        if arm in PRUNED:
            for index, one in enumerate(own[0]["pruned"]):
                each = [row["pruned"][index] for row in own]
                found.append({"value": value, "energy": one["energy"], "ranks": [e["ranks"] for e in each],
                              "flops": [e["flops"] for e in each], **columns(e[when] for e in each)})  # fmt: skip
        else:
            found.append({"value": value, "flops": [row["flops"] for row in own], **columns(row[when] for row in own)})
    return found


def columns(rows: Any) -> dict[str, list[float]]:
    rows = list(rows)
    return {part: [row[part] for row in rows] for part in ("validation", "test")}


def best(rows: list[dict[str, Any]], arm: str, budget: float, *, tuned: bool = True) -> dict[str, Any] | None:
    """Return the point of the highest median validation accuracy within a share of the dense network's cost."""
    within = [
        point for point in points(rows, arm, tuned=tuned) if np.median(point["flops"]) <= budget * flops(WIDTH, None)
    ]
    return max(within, key=lambda point: np.median(point["validation"]), default=None)
