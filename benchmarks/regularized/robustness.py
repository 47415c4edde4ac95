"""Noise and adversarial robustness of a small CNN, with penalties on its Jacobian and its layers and with weight decay.

Two convolutions of stride 2 and two dense layers on MNIST at 14 x 14, pixels in [0, 1]. All arms are trained by SGD
with momentum 0.9 and a cosine schedule, so that each penalty is a term of the loss and nothing rescales it: half the
squared Frobenius norm of the input-output Jacobian at 16 samples of the batch, by one random direction each (Hoffman,
Roberts & Yaida), half its squared spectral norm there, the sum of half the squared spectral norms of the layers, or
half the sum of all squared parameters. "noise" adds Gaussian noise to the batches, clipped to [0, 1], and its value is
sigma; the last arm has noise of a fixed sigma and the Frobenius norm as well.
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

SHAPE = (14, 14, 1)
EPOCHS, LEARNING_RATE, NUM_SAMPLES = 20, 0.05, 16
WEIGHTS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
GRID = {
    "none": (0.0,),
    "weight decay": WEIGHTS,
    "Jacobian, Frobenius": WEIGHTS,
    "Jacobian, spectral": WEIGHTS,
    "layers, spectral": WEIGHTS,
    "noise": (0.05, 0.1, 0.2, 0.3, 0.4),
    "noise and Frobenius": WEIGHTS,
}
FIXED_SIGMA = 0.2  # of the last arm
TOLERANCE = 0.01  # of the median clean validation accuracy, below that without a penalty
SIGMAS = (0.1, 0.2, 0.3, 0.4)
RADII = {"linf": (0.02, 0.05, 0.1, 0.2), "l2": (0.25, 0.5, 1.0, 2.0)}
ATTACK_STEPS, RESTARTS, ATTACKED = 20, 2, 500


class Programs(NamedTuple):
    """The compiled functions of an arm; weights are arguments."""

    start: Any
    step: Any


def network() -> sx.layers.Layer:
    layers = sx.layers
    relu = layers.activation("relu")
    convolutions = [layers.convolution(channels, (3, 3), strides=2, padding="SAME") for channels in (8, 16)]
    first, second = convolutions
    return layers.chain(first, relu, second, relu, layers.flatten(), layers.dense(32), relu, layers.dense(10))


def apply(params: Any, x: jax.Array) -> jax.Array:
    """The logits of one sample."""
    return network().apply({"params": params}, x)


logits = jax.jit(jax.vmap(apply, (None, 0)))


@functools.cache
def programs(arm: str, steps: int) -> Programs:
    """Return the start and one step of a training of so many steps."""
    jacobian = sx.regularizers.jacobian_maps(apply)
    options: dict[str, Any] = {"batched": True, "num_samples": NUM_SAMPLES}

    def frobenius() -> Any:
        return sx.regularizers.frobenius_norm_penalty(jacobian, num_probes=1, **options)

    penalties = {
        "Jacobian, Frobenius": frobenius,
        "noise and Frobenius": frobenius,
        "Jacobian, spectral": lambda: sx.regularizers.spectral_norm_penalty(jacobian, block_size=1, **options),
        "layers, spectral": lambda: sx.regularizers.spectral_norm_penalty(sx.layers.linear_maps(network(), SHAPE)),
    }

    def optimizer(weight: Any, key: jax.Array) -> Any:
        sgd = optax.sgd(optax.cosine_decay_schedule(LEARNING_RATE, steps), momentum=0.9)
        if arm == "weight decay":
            return optax.chain(optax.add_decayed_weights(weight), sgd)
        if arm in penalties:
            return optax.chain(sx.transforms.add_spectral_penalty(penalties[arm](), weight, key=key), sgd)
        return optax.with_extra_args_support(sgd)

    @jax.jit
    def start(weight, key):
        own, others = jax.random.split(key)
        params = network().init(own, SHAPE)["params"]
        return params, optimizer(weight, others).init(params)

    @jax.jit
    def step(weight, key, params, state, x, y, number):
        others = jax.random.split(key)[1]
        if arm.startswith("noise"):
            sigma = weight if arm == "noise" else FIXED_SIGMA
            x = jnp.clip(x + sigma * jax.random.normal(jax.random.fold_in(others, number), x.shape, x.dtype), 0, 1)
        loss, grads = jax.value_and_grad(lambda p: seeds.cross_entropy(jax.vmap(apply, (None, 0))(p, x), y))(params)
        updates, state = optimizer(weight, others).update(grads, state, params, x=x)
        return optax.apply_updates(params, updates), state, loss

    return Programs(start, step)


def train(*, arm: str, value: float, seed: int, epochs: int = EPOCHS, data: seeds.Data | None = None,
          attacked: int = ATTACKED) -> dict[str, Any]:  # fmt: skip
    """Train once; return clean accuracies, those under noise and under attack, and median norms of the Jacobian."""
    data = data or seeds.load("mnist5k", seed)
    key = jax.random.key(seed)
    began = time.process_time()
    run = programs(arm, epochs * (len(data.train.y) // seeds.BATCH))
    params, state = run.start(value, key)
    number, curve = 0, []
    for epoch in range(epochs):
        losses = []
        for chosen in seeds.batches(len(data.train.y), seed, epoch):
            batch = data.train.x[chosen], data.train.y[chosen]
            params, state, loss = run.step(value, key, params, state, *batch, number)
            losses.append(loss)
            number += 1
        curve.append(float(np.mean(losses)))
    trained = time.process_time() - began
    order = np.random.default_rng(seed).permutation(len(data.test.y))[:attacked]
    x, y = data.test.x[order], data.test.y[order]
    noise_key, attack_key = jax.random.split(jax.random.fold_in(key, 1))
    singular = jacobian_singular_values(params, x[:64])
    return {
        "train_loss": curve,
        "validation_accuracy": float(seeds.accuracy(logits(params, data.validation.x), data.validation.y)),
        "test_accuracy": float(seeds.accuracy(logits(params, data.test.x), data.test.y)),
        "noise": {str(sigma): noisy_accuracy(params, data.test, sigma, noise_key) for sigma in SIGMAS},
        "attacks": {
            norm: {str(radius): attacked_accuracy(params, x, y, radius, norm, attack_key) for radius in radii}
            for norm, radii in RADII.items()
        },
        "jacobian_norm": float(jnp.median(singular[:, 0])),
        "cpu_seconds": trained,
    }


@jax.jit
def jacobian_singular_values(params: Any, x: jax.Array) -> jax.Array:
    jacobians = jax.vmap(jax.jacrev(apply, argnums=1), (None, 0))(params, x)
    return jnp.linalg.svd(jacobians.reshape(*jacobians.shape[:2], -1), compute_uv=False)


def noisy_accuracy(params: Any, part: seeds.Part, sigma: float, key: jax.Array) -> float:
    noisy = jnp.clip(part.x + sigma * jax.random.normal(key, part.x.shape, part.x.dtype), 0, 1)
    return float(seeds.accuracy(logits(params, noisy), part.y))


@jax.jit
def margins(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return by how much the best wrong class exceeds the right one, and its gradient in x.

    The cross-entropy's gradient underflows where a network is very sure, and would make an attack look weak.
    """

    def excess(x):
        found = jax.vmap(apply, (None, 0))(params, x)
        is_right = jax.nn.one_hot(y, found.shape[-1], dtype=bool)
        wrong = jnp.max(jnp.where(is_right, -jnp.inf, found), axis=-1)
        right = jnp.max(jnp.where(is_right, found, -jnp.inf), axis=-1)
        return jnp.sum(wrong - right), wrong - right

    (_, found), gradient = jax.value_and_grad(excess, has_aux=True)(x)
    return found, gradient


@functools.partial(jax.jit, static_argnames="norm")
def stepped(x: jax.Array, origin: jax.Array, direction: jax.Array, length: Any, radius: Any, norm: str) -> jax.Array:
    """Go so far in a direction, as the norm measures it, and return to the ball around the origin and to [0, 1]."""
    if norm == "linf":
        x = jnp.clip(x + length * jnp.sign(direction), origin - radius, origin + radius)
    else:
        x = x + length * direction / jnp.maximum(euclidean(direction), 1e-20)
        x = origin + (x - origin) * jnp.minimum(1, radius / jnp.maximum(euclidean(x - origin), 1e-20))
    return jnp.clip(x, 0, 1)


def euclidean(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(x**2, axis=(1, 2, 3), keepdims=True))


def attacked_accuracy(params: Any, x: jax.Array, y: jax.Array, radius: float, norm: str, key: jax.Array) -> float:
    """Return the share of samples that no point on the way of projected gradient ascent turns.

    `RESTARTS` starts are drawn in the ball, uniform in each pixel or of uniform length in a random direction, and the
    clean sample counts as well; then `ATTACK_STEPS` steps of 2.5 radius / steps follow.
    """
    turned = np.asarray(margins(params, x, y)[0]) >= 0
    for start_key in jax.random.split(key, RESTARTS):
        direction, share = jax.random.normal(start_key, x.shape), jax.random.uniform(start_key, (len(x), 1, 1, 1))
        if norm == "linf":
            start = jnp.clip(x + radius * (2 * jax.random.uniform(start_key, x.shape) - 1), 0, 1)
        else:
            start = stepped(x, x, direction, radius * share, radius, norm)
        moved = start
        for _ in range(ATTACK_STEPS):
            _, gradient = margins(params, moved, y)
            moved = stepped(moved, x, gradient, 2.5 * radius / ATTACK_STEPS, radius, norm)
            turned |= np.asarray(margins(params, moved, y)[0]) >= 0
    return float(np.mean(~turned))


def grid() -> Iterator[dict[str, Any]]:
    """The options of all trainings."""
    for arm, values in GRID.items():
        for value in values:
            for seed in seeds.SEEDS:
                yield {"arm": arm, "value": value, "seed": seed}


def chosen(rows: list[dict[str, Any]], arm: str, tolerance: float = TOLERANCE) -> float | None:
    """Return the largest value whose median clean validation accuracy is within the tolerance of that without."""

    def clean(name: str, value: float) -> float:
        return seeds.summary(row["validation_accuracy"] for row in seeds.of(rows, arm=name, value=value))[0]

    least = clean("none", 0.0) - tolerance
    within = [value for value in GRID[arm] if clean(arm, value) >= least - 1e-12]
    return max(within) if within else None


def reported(rows: list[dict[str, Any]], arm: str) -> list[dict[str, Any]]:
    """Return the five rows of the value that was chosen."""
    value = chosen(rows, arm)
    return [] if value is None else seeds.of(rows, arm=arm, value=value)
