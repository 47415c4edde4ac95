"""Optax transformations that feed a penalty's gradient into training."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.core as jax_core
import jax.numpy as jnp
import optax

from spectrax import checks
from spectrax.regularizers.penalties import Penalty, PenaltyState, SpectralMeasurements

PyTree = Any


class SpectralPenaltyState(NamedTuple):
    """State of `add_spectral_penalty`; read it with `optax.tree.get(opt_state, "penalty")` and the like.

    Attributes:
        step: Number of updates, int32; the schedule's argument.
        penalty: The value of the last step, before the weight.
        weight: The weight of the last step.
        tracked: The penalty's own state, with its blocks of vectors; its `measurements` are those of the last step.
    """

    step: jax.Array
    penalty: jax.Array
    weight: jax.Array
    tracked: PenaltyState


def add_spectral_penalty(
    penalty: Penalty,
    weight: float | jax.Array | Callable[[jax.Array], jax.Array],
    *,
    mask: Any = None,
    key: jax.Array | None = None,
    decoupled: bool = False,
    learning_rate: float | jax.Array | Callable[[jax.Array], jax.Array] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Add the gradient of a penalty to the updates.

    Three places in a chain are right:

    - before the optimiser (`chain(add_spectral_penalty(...), adam(...))`): coupled, the penalty is part of the loss;
    - between `scale_by_adam` and `scale_by_learning_rate`: decoupled, as weight decay is in AdamW;
    - after a complete optimiser, whose updates are already negative steps: with `decoupled=True` and a
      `learning_rate` of its own, which is subtracted. Without it the penalty would climb.

    Args:
        penalty: A penalty from `sx.regularizers`.
        weight: A non-negative factor, or a schedule of the step count.
        mask: Which leaves of the parameters are changed: a pytree of booleans (or a prefix of one), or a function from
            the parameters to it.
        key: A PRNG key for the penalty; needed unless every map is small enough to be decomposed wholly.
        decoupled: Whether the updates that come in are complete steps already.
        learning_rate: The penalty's own learning rate or schedule, with `decoupled` only.

    Returns:
        A transformation; its `update` needs `params` and passes extra keyword arguments (for instance the batch `x`) on
        to the penalty.

    Raises:
        ValueError: If the weight is negative, or `decoupled` and `learning_rate` are not given together; in `init` if a
            key is needed; in `update` if `params` is missing.

    Cost:
        One value and gradient of the penalty at every update.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.condition_number_penalty()
        >>> optimizer = optax.chain(sx.transforms.add_spectral_penalty(penalty, 0.01), optax.sgd(1e-3))
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 10.0]))}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"kernel": jnp.zeros((2, 2))}, state, params)
        >>> round(float(optax.tree.get(state, "penalty")), 4)
        2.3026
    """
    if not callable(weight) and not isinstance(weight, jax_core.Tracer) and float(weight) < 0:
        raise ValueError(f"weight must not be negative, got {weight}: the penalty would climb")
    if decoupled != (learning_rate is not None):
        raise ValueError(
            "decoupled=True needs a learning_rate of its own, and a learning_rate is for decoupled=True only; got "
            f"decoupled={decoupled}, learning_rate={learning_rate}"
        )
    if key is not None:
        checks.key("key", key)

    def init(params: PyTree) -> SpectralPenaltyState:
        zero = jnp.zeros((), jnp.float32)
        return SpectralPenaltyState(jnp.zeros((), jnp.int32), zero, zero, penalty.init(params, key))

    def update(updates: PyTree, state: SpectralPenaltyState, params: PyTree | None = None, **extra: Any):
        if params is None:
            raise ValueError("add_spectral_penalty needs the parameters: call update(updates, state, params)")
        (value, tracked), gradient = jax.value_and_grad(penalty.apply, has_aux=True)(params, state.tracked, **extra)
        factor = jnp.asarray(_at(weight, state.step), jnp.float32)
        scale = factor if learning_rate is None else -factor * jnp.asarray(_at(learning_rate, state.step), jnp.float32)
        chosen = mask(params) if callable(mask) else mask
        if chosen is not None:
            gradient = _masked(chosen, gradient)
        updates = jax.tree.map(lambda u, g: u + (scale.astype(g.dtype) * g).astype(u.dtype), updates, gradient)
        return updates, SpectralPenaltyState(
            jnp.asarray(optax.safe_increment(state.step)), value.astype(jnp.float32), factor, tracked
        )

    return optax.GradientTransformationExtraArgs(cast(Any, init), cast(Any, update))


def _at(value: Any, step: jax.Array) -> Any:
    return value(step) if callable(value) else value


def _masked(mask: PyTree, gradient: PyTree) -> PyTree:
    """Zero the gradient where the mask is False; the mask may be a prefix of the parameters' tree."""
    return jax.tree.map(lambda keep, part: jax.tree.map(lambda g: g * jnp.asarray(keep, g.dtype), part), mask, gradient)


__all__ = ["SpectralMeasurements", "SpectralPenaltyState", "add_spectral_penalty"]
