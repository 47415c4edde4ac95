"""What the three experiments share: the data of a seed, its batches, and what five seeds say together."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spectrax.training import load_data
from spectrax.training.data import stratified_split

SEEDS = (0, 1, 2, 3, 4)
BATCH = 64


class Part(NamedTuple):
    """Inputs and labels."""

    x: np.ndarray
    y: np.ndarray


class Data(NamedTuple):
    """Three parts that never mix: hyper-parameters are chosen on the second, and the third is reported."""

    train: Part
    validation: Part
    test: Part


def load(name: str, seed: int) -> Data:
    """Return a seed's own split, 64 % to 16 % to 20 %; MNIST as 14 x 14 means of four pixels, in [0, 1]."""
    whole = load_data(name, seed=seed)
    kept, held = stratified_split(whole.y_train, test_fraction=0.2, seed=seed)
    parts = [
        (whole.x_train[kept], whole.y_train[kept]),
        (whole.x_train[held], whole.y_train[held]),
        (whole.x_test, whole.y_test),
    ]
    if name == "mnist5k":
        black, white = whole.x_train.min(), whole.x_train.max()
        pixels = [((x - black) / (white - black)).reshape(-1, 14, 2, 14, 2, 1).mean((2, 4)) for x, _ in parts]
        parts = [(x, y) for x, (_, y) in zip(pixels, parts, strict=True)]
    return Data(*(Part(x.astype(np.float32), y) for x, y in parts))


def batches(samples: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Return the samples of each step of an epoch, from the seed and the epoch alone."""
    order = np.random.default_rng((seed, epoch)).permutation(samples)
    yield from order[: samples // BATCH * BATCH].reshape(-1, BATCH)


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def accuracy(logits: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, axis=-1) == y)


def summary(numbers: Iterable[float]) -> tuple[float, float, float]:
    """Return the median and the range of the seeds.

    The range of five independent draws holds the median of their law with a probability of 1 - 2 / 2^5 = 0.94.
    """
    values = np.asarray(list(numbers), float)
    return float(np.median(values)), float(values.min()), float(values.max())


def written(numbers: Iterable[float], form: str = ".3f") -> str:
    """Return the median with the range in brackets."""
    middle, low, high = summary(numbers)
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def of(rows: Sequence[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """Return the rows that have these options, in the order of their seeds."""
    chosen = [row for row in rows if all(row["options"].get(name) == value for name, value in options.items())]
    return sorted(chosen, key=lambda row: row["options"].get("seed", 0))
