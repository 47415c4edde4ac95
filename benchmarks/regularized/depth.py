"""A deep plain ConvNet without normalisation, with and without the penalty on the logarithm of the condition numbers.

The network is `sx.models.convnet`: a 3 x 3 convolution of stride 2 and `DEPTH` of stride 1, eight channels on 4 x 4
images, zero-padded, with He's initial weights for each activation. All arms are trained by Adam on scikit-learn's
digits. A penalty either is part of the loss for the whole training, or acts first and alone: some steps on the initial
weights without any data, after which each kernel is scaled back to the Frobenius norm that it was drawn with.
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

DEPTH, DEEPER, WIDTH, EPOCHS = 32, 64, 8, 20
SHAPE = (8, 8, 1)
ACTIVATIONS = ("tanh", "leaky", "relu")
LEARNING_RATES = (1e-3, 3e-3)  # 3e-4 was slower for every activation, with the penalty and without
WEIGHTS, STEPS = (1e-3, 1e-2, 1e-1), (50, 100, 200)
GRID = {  # three values for every arm that has something to choose
    "none": (0.0,),
    "weight decay": WEIGHTS,
    "orthogonality": WEIGHTS,
    "log-condition": WEIGHTS,
    "orthogonality first": STEPS,
    "log-condition first": STEPS,
}
DEEPER_ARMS = ("none", "log-condition", "orthogonality first", "log-condition first")
TUNING_SEEDS = (100, 101)
FIRST_LEARNING_RATE = 1e-2
RENEW_EVERY, RENEW_FIRST = 44, 20


class Programs(NamedTuple):
    """The compiled functions of one activation and arm; weights and learning rates are arguments."""

    start: Any
    first: Any
    step: Any
    logits: Any
    spectra: Any


def network(activation: str, depth: int = DEPTH) -> sx.layers.Layer:
    options = {"negative_slope": 0.1} if activation == "leaky" else {}
    name = "leaky_relu" if activation == "leaky" else activation
    return sx.models.convnet(10, width=WIDTH, depth=depth, activation=sx.layers.activation(name, **options))


@functools.cache
def programs(activation: str, arm: str, depth: int = DEPTH) -> Programs:
    """Return the programs of an arm: start, one step of the penalty alone, one of training, and two measurements."""
    net = network(activation, depth)
    maps = sx.layers.linear_maps(net, SHAPE)

    def penalty(renew_every: int) -> Any:
        if arm.startswith("orthogonality"):
            return sx.regularizers.orthogonality_penalty(maps, mask=is_convolution)
        return sx.regularizers.condition_number_penalty(maps, mask=is_convolution, renew_every=renew_every)

    def alone(key: jax.Array) -> Any:
        added = sx.transforms.add_spectral_penalty(penalty(RENEW_FIRST), 1.0, key=key)
        return optax.chain(added, optax.adam(FIRST_LEARNING_RATE))

    def optimizer(weight: Any, rate: Any, key: jax.Array) -> Any:
        if arm == "weight decay":
            return optax.chain(optax.add_decayed_weights(weight), optax.adam(rate))
        if arm in ("none", "orthogonality first", "log-condition first"):
            return optax.adam(rate)
        added = sx.transforms.add_spectral_penalty(penalty(RENEW_EVERY), weight, key=key)
        return optax.chain(added, optax.adam(rate))

    def logits(params: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda sample: net.apply({"params": params}, sample))(x)

    @jax.jit
    def start(weight, rate, key):
        own, others = jax.random.split(key)
        params = net.init(own, SHAPE)["params"]
        before = alone(others).init(params) if arm.endswith("first") else None
        return params, before, optimizer(weight, rate, others).init(params)

    @jax.jit
    def first(params, before, key):
        updates, before = alone(key).update(jax.tree.map(jnp.zeros_like, params), before, params)
        return optax.apply_updates(params, updates), before

    @jax.jit
    def step(weight, rate, key, params, state, x, y):
        loss, grads = jax.value_and_grad(lambda p: seeds.cross_entropy(logits(p, x), y))(params)
        updates, state = optimizer(weight, rate, key).update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    @jax.jit
    def spectra(params):
        square = [op.to_dense() for name, op in maps(params).items() if is_convolution(name) and "stem" not in name]
        return jnp.linalg.svd(jnp.stack(square), compute_uv=False)

    return Programs(start, first, step, jax.jit(logits), spectra)


def is_convolution(name: str) -> bool:
    return "conv" in name


def rescaled(params: Any, norms: Any) -> Any:
    """Scale each leaf to its old Frobenius norm; leaves that were zero, the biases, stay as they are."""

    def scaled(leaf: jax.Array, norm: jax.Array) -> jax.Array:
        return jnp.where(norm > 0, leaf * norm / jnp.maximum(jnp.linalg.norm(leaf), 1e-12), leaf)

    return jax.tree.map(scaled, params, norms)


def train(*, activation: str, arm: str, value: float, rate: float, seed: int, epochs: int = EPOCHS, depth: int = DEPTH,
          data: seeds.Data | None = None) -> dict[str, Any]:  # fmt: skip
    """Train once; return the mean training loss of each epoch, accuracies, and median condition numbers."""
    data = data or seeds.load("digits", seed)
    run = programs(activation, arm, depth)
    key = jax.random.key(seed)
    others = jax.random.split(key)[1]
    began = time.process_time()
    params, before, state = run.start(value, rate, key)
    condition = [median_condition(run.spectra(params))]
    steps_before = int(value) if arm.endswith("first") else 0
    if steps_before:
        norms = jax.tree.map(jnp.linalg.norm, params)
        for _ in range(steps_before):
            params, before = run.first(params, before, others)
        params = rescaled(params, norms)
        condition.append(median_condition(run.spectra(params)))
    curve = []
    for epoch in range(epochs):
        losses = []
        for chosen in seeds.batches(len(data.train.y), seed, epoch):
            batch = data.train.x[chosen], data.train.y[chosen]
            params, state, loss = run.step(value, rate, others, params, state, *batch)
            losses.append(loss)
        curve.append(float(np.mean(losses)))
    condition.append(median_condition(run.spectra(params)))
    return {
        "train_loss": curve,
        "steps_before": steps_before,
        "steps_per_epoch": len(losses),
        "validation_accuracy": float(seeds.accuracy(run.logits(params, data.validation.x), data.validation.y)),
        "test_accuracy": float(seeds.accuracy(run.logits(params, data.test.x), data.test.y)),
        "condition_numbers": condition,
        "cpu_seconds": time.process_time() - began,
    }


def median_condition(spectra: jax.Array) -> float:
    values = np.asarray(spectra, float)
    return float(np.median(values[:, 0] / values[:, -1]))


def grid(activations: tuple[str, ...] = ACTIVATIONS) -> Iterator[dict[str, Any]]:
    """The options of the trainings by which an arm's value and learning rate are chosen."""
    for activation in activations:
        for arm, values in GRID.items():
            for value in values:
                for rate in LEARNING_RATES:
                    for seed in TUNING_SEEDS:
                        yield {"activation": activation, "arm": arm, "value": value, "rate": rate, "seed": seed}


def chosen(rows: list[dict[str, Any]], activation: str, arm: str) -> dict[str, float]:
    """Return the value and learning rate with the lowest last training loss, the mean over the tuning seeds."""

    def last(value: float, rate: float) -> float:
        own = seeds.of(rows, activation=activation, arm=arm, value=value, rate=rate, depth=None)
        found = [float(row["train_loss"][-1]) for row in own if row["options"]["seed"] in TUNING_SEEDS]
        return float(np.mean(found)) if len(found) == len(TUNING_SEEDS) and np.all(np.isfinite(found)) else np.inf

    value, rate = min(((v, r) for v in GRID[arm] for r in LEARNING_RATES), key=lambda pair: last(*pair))
    return {"value": value, "rate": rate}


def reported(rows: list[dict[str, Any]], activation: str, arm: str, depth: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of the five seeds that did not choose; the depth is DEPTH, or DEEPER if that is given."""
    found = seeds.of(rows, activation=activation, arm=arm, depth=depth, **chosen(rows, activation, arm))
    return [row for row in found if row["options"]["seed"] in seeds.SEEDS]


def losses_by_steps(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps at the end of each epoch, those of the penalty alone included, and the mean losses."""
    per_epoch = row["steps_per_epoch"]
    losses = np.array(row["train_loss"], float)
    return row["steps_before"] + per_epoch * np.arange(1, len(losses) + 1), losses


def reports(rows: list[dict[str, Any]], activations: tuple[str, ...] = ACTIVATIONS) -> Iterator[dict[str, Any]]:
    """The options of the trainings that are reported: at last of a deeper network, with what was chosen before."""
    for activation in activations:
        for arm in GRID:
            for seed in seeds.SEEDS:
                yield {"activation": activation, "arm": arm, **chosen(rows, activation, arm), "seed": seed}
    for arm in DEEPER_ARMS:
        for seed in seeds.SEEDS:
            yield {"activation": "leaky", "arm": arm, **chosen(rows, "leaky", arm), "seed": seed, "depth": DEEPER}
