"""What a configuration means: the network, the loss, the optimiser with its penalty, and one training step."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spectrax import regularizers
from spectrax.networks import layers
from spectrax.regularizers import transforms
from spectrax.training.configuration import TrainingConfig
from spectrax.training.data import Dataset

# Which stream of the seed's key feeds what.
_INIT, _PENALTY, _MEASUREMENT = 0, 1, 2


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        params: The parameters.
        batch_stats: The running statistics of batch normalisation; empty without it.
        opt_state: The state of the Optax chain, the penalty's vectors included.
        step: How many steps were made, an int32 scalar.
        failed: Whether a step had a number that is not finite. From then on parameters stay as they were before it.
    """

    params: Any
    batch_stats: Any
    opt_state: Any
    step: jax.Array
    failed: jax.Array


class StepMetrics(NamedTuple):
    """What a step reports, each a float32 scalar but for `estimates`, an array with an entry a layer.

    Attributes:
        loss: The loss on the batch, without the penalty.
        accuracy: The fraction of the batch that was classified right.
        penalty: The penalty before its weight; zero without one.
        estimates: The condition numbers that the penalty tracks.
        failed: Whether this step or one before it failed.
    """

    loss: jax.Array
    accuracy: jax.Array
    penalty: jax.Array
    estimates: jax.Array
    failed: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A configuration applied to its data, for one of its runs.

    Attributes:
        config: The configuration.
        arm: Which run: "penalty" or "baseline".
        net: The network.
        maps: Its layers as operators, a function of the parameters.
        transform: The whole Optax chain.
        names: The layers whose condition numbers the penalty tracks.
        kinds: What the penalty's tracked condition numbers are, by layer: "exact", "lower" or "estimate".
        samples: Samples in the training part.
        steps_per_epoch: Steps in an epoch; what is left of the training part is dropped.
    """

    config: TrainingConfig
    arm: str
    net: layers.Layer
    maps: layers.LinearMaps
    transform: optax.GradientTransformationExtraArgs
    names: tuple[str, ...]
    kinds: Mapping[str, str]
    samples: int
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Steps in the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def measurement_key(self) -> jax.Array:
        """The key of the measurements, the same for all runs."""
        return stream(self.config.seed, _MEASUREMENT)

    def init_variables(self) -> dict[str, Any]:
        """The variables that all runs of the configuration start from."""
        init = jax.jit(self.net.init, static_argnums=1)
        return init(stream(self.config.seed, _INIT), self.maps.input_shape)

    def init_state(self, variables: Mapping[str, Any]) -> TrainState:
        """The state before the first step."""
        return TrainState(
            variables["params"],
            variables["batch_stats"],
            self.transform.init(variables["params"]),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), bool),
        )

    def order(self, epoch: int) -> np.ndarray:
        """The samples of each step of an epoch, int32, shape (steps, batch), from the seed and the epoch alone."""
        return batch_order(
            self.config.seed, epoch, steps=self.steps_per_epoch, batch_size=self.config.batch_size,
            samples=self.samples,
        )  # fmt: skip

    def step_function(self) -> Callable[..., tuple[TrainState, StepMetrics]]:
        """The compiled step `step(state, x, y, order) -> (state, metrics)`; the given state is consumed."""
        return jax.jit(self._step, donate_argnums=0)

    def _step(self, state: TrainState, x: jax.Array, y: jax.Array, order: jax.Array) -> tuple[TrainState, StepMetrics]:
        batch = order[state.step % order.shape[0]]
        batch_x, batch_y = x[batch], y[batch]
        (loss, (accuracy, batch_stats)), grads = jax.value_and_grad(self.loss, has_aux=True)(
            state.params, state.batch_stats, batch_x, batch_y
        )
        extra = {"x": batch_x} if self._sees_batch else {}
        updates, opt_state = self.transform.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(loss)
        for leaf in jax.tree.leaves((params, batch_stats)):
            finite &= jnp.all(jnp.isfinite(leaf))
        failed = state.failed | ~finite
        # A failed step and all after it leave the last good parameters: the host may look at them some steps late.
        keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(failed, old, new))
        state = TrainState(
            keep(params, state.params), keep(batch_stats, state.batch_stats), opt_state, state.step + 1, failed
        )
        penalty, estimates = self._tracked(opt_state)
        return state, StepMetrics(loss, accuracy, penalty, estimates, failed)

    def loss(
        self, params: Any, batch_stats: Any, x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        """The loss of a batch in training mode, its accuracy, and the new running statistics."""
        variables = {"params": params, "batch_stats": batch_stats}
        apply = jax.vmap(
            lambda sample: self.net.apply(variables, sample, train=True), axis_name="batch", out_axes=(0, None)
        )
        logits, updates = apply(x)
        return sample_losses(self.config.loss, logits, y).mean(), (_accuracy(logits, y), updates["batch_stats"])

    @property
    def _sees_batch(self) -> bool:
        return self.arm == "penalty" and self.config.penalty_on == "jacobian"

    def _tracked(self, opt_state: Any) -> tuple[jax.Array, jax.Array]:
        if self.arm != "penalty":
            return jnp.zeros(()), jnp.zeros((0,))
        tracked = optax.tree.get(opt_state, "measurements").condition_number
        values = [jnp.asarray(tracked[name], jnp.float32) for name in self.names]
        return jnp.asarray(optax.tree.get(opt_state, "penalty"), jnp.float32), jnp.stack(
            values
        ) if values else jnp.zeros(0)


def make_experiment(config: TrainingConfig, data: Dataset, /, *, arm: str) -> Experiment:
    """Build the network, the penalty and the optimiser of one run.

    Args:
        config: The configuration.
        data: The data.
        arm: "penalty" or "baseline".

    Returns:
        The experiment.

    Raises:
        ValueError: If the network cannot take samples of the data's shape, or the batch is larger than the training
            part.
    """
    if config.batch_size > len(data.x_train):
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the training part, {len(data.x_train)} samples"
        )
    net = config.network(num_classes=data.num_classes)
    if len(data.input_shape) == 1 and config.model != "mlp":
        raise ValueError(
            f"model {config.model!r} takes images, but x_train has shape {data.x_train.shape}: choose model 'mlp'"
        )
    maps = layers.linear_maps(net, data.input_shape)
    steps_per_epoch = len(data.x_train) // config.batch_size
    optimizer = make_optimizer(config, total_steps=config.epochs * steps_per_epoch)
    names: tuple[str, ...] = ()
    kinds: Mapping[str, str] = {}
    if arm == "penalty":
        penalty = make_penalty(config, net, maps, steps_per_epoch=steps_per_epoch)
        key = stream(config.seed, _PENALTY)
        optimizer = optax.chain(transforms.add_spectral_penalty(penalty, config.penalty_weight, key=key), optimizer)
        variables = jax.eval_shape(lambda key: net.init(key, data.input_shape), key)
        kinds = penalty.kinds(variables["params"])
        if config.penalty == "condition_number":
            names = maps.names if config.penalty_on == "weights" else ("jacobian",)
    return Experiment(
        config,
        arm,
        net,
        maps,
        optax.with_extra_args_support(optimizer),
        names,
        kinds,
        len(data.x_train),
        steps_per_epoch,
    )


def make_optimizer(config: TrainingConfig, /, *, total_steps: int) -> optax.GradientTransformation:
    """The optimiser, with a cosine decay of its learning rate to zero.

    Muon orthogonalises the matrices: dense kernels, and convolution kernels with their last axis as output and the
    others as input. Biases and scales go to Adam. Its updates are scaled to Adam's usual size (`consistent_rms`), so
    one learning rate serves both.

    Args:
        config: The configuration.
        total_steps: The steps of the decay.

    Returns:
        An Optax gradient transformation.
    """
    schedule = optax.cosine_decay_schedule(float(config.learning_rate or 0.0), total_steps)
    if config.optimizer == "adamw":
        return _with_promotion(optax.adamw(schedule))
    if config.optimizer == "sgd":
        return _with_promotion(optax.sgd(schedule, momentum=0.9))

    def dimensions(params: Any) -> Any:
        def of_leaf(leaf: Any) -> Any:
            if leaf.ndim < 2:
                return None
            return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

        return jax.tree.map(of_leaf, params)

    return _with_promotion(optax.contrib.muon(schedule, muon_weight_dimension_numbers=dimensions, consistent_rms=0.2))


def _with_promotion(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Let Optax promote its integer counts to floats, also where the caller's program has strict dtype promotion."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def make_penalty(config: TrainingConfig, net: layers.Layer, maps: layers.LinearMaps, /, *, steps_per_epoch: int) -> Any:
    """The penalty that a configuration names.

    Args:
        config: The configuration.
        net: The network.
        maps: Its layers as operators.
        steps_per_epoch: Steps in an epoch, for the renewal interval.

    Returns:
        A penalty of `spectrax.regularizers`.
    """
    build = getattr(regularizers, f"{config.penalty}_penalty")
    given = {"block_size": config.block_size, "renew_every": config.renewal_interval(steps_per_epoch)}
    options = {name: value for name, value in given.items() if name in inspect.signature(build).parameters}
    low, high = config.band
    numbers = {"band": (low, high), "rank": (low,)}.get(config.penalty, ())
    if config.penalty_on == "weights":
        return build(*numbers, maps, **options)

    def function(params: Any, x: jax.Array) -> jax.Array:
        return net.apply({"params": params}, x)

    return build(*numbers, regularizers.jacobian_maps(function), batched=True, **options)


def sample_losses(name: str, logits: jax.Array, labels: jax.Array, /) -> jax.Array:
    """The loss of each sample of a batch.

    Args:
        name: "cross_entropy" (of the softmax), or "squared_error" from the one-hot label, summed over the classes.
        logits: The network's outputs, shape (batch, classes).
        labels: Integer labels, shape (batch,).

    Returns:
        Shape (batch,).
    """
    if name == "cross_entropy":
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum((logits - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)) ** 2, axis=-1)


@functools.partial(jax.jit, static_argnames=("net", "loss"))
def evaluate(
    net: layers.Layer, variables: Mapping[str, Any], x: jax.Array, y: jax.Array, *, loss: str
) -> tuple[jax.Array, jax.Array]:
    """The mean loss and the accuracy over a data set, in inference mode.

    Args:
        net: The network.
        variables: Its variables.
        x: The inputs, shape (N, ...).
        y: The labels, shape (N,).
        loss: The name of the loss.

    Returns:
        Two scalars: the mean loss and the accuracy.
    """
    # In parts: the activations of thousands of images at once would not fit into a small machine's caches.
    logits = jax.lax.map(functools.partial(net.apply, variables), x, batch_size=256)
    return sample_losses(loss, logits, y).mean(), _accuracy(logits, y)


def batch_order(seed: int, epoch: int, /, *, steps: int, batch_size: int, samples: int) -> np.ndarray:
    """A random order of the samples of one epoch, cut into batches.

    Args:
        seed: The run's seed.
        epoch: The epoch, from 0 on.
        steps: How many batches.
        batch_size: Samples in a batch.
        samples: How many samples there are; those that fill no batch are left out.

    Returns:
        Indices, int32, shape (steps, batch_size), none of them twice.

    Example:
        >>> batch_order(0, 0, steps=2, batch_size=3, samples=7).shape
        (2, 3)
    """
    permutation = np.random.default_rng([seed, epoch]).permutation(samples)
    return permutation[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def stream(seed: int, index: int, /) -> jax.Array:
    """One of the independent keys that belong to a seed."""
    return jax.random.fold_in(jax.random.key(seed), index)


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
