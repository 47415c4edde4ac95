"""The Optax transformation that feeds a penalty's gradient into training."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.core as jax_core
import jax.numpy as jnp
import numpy as np
import optax

from spectrax import checks, explicit_axes
from spectrax.regularizers import meshes
from spectrax.regularizers.penalty import Penalty, PenaltyState

PyTree = Any


class SpectralPenaltyState(NamedTuple):
    """State of `add_spectral_penalty`; read it with `optax.tree.get(opt_state, "penalty")` and the like.

    Attributes:
        step: Number of updates, int32; the schedule's argument.
        penalty: The value of the last step, before the weight; NaN before the first.
        weight: The weight of the last step; NaN before the first.
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
    every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Add the gradient of a penalty to the updates.

    Three places in a chain are right:

    - before the optimiser (`chain(add_spectral_penalty(...), adam(...))`): coupled, the penalty is part of the loss;
    - between `scale_by_adam` and `scale_by_learning_rate`: decoupled, as weight decay is in AdamW;
    - after a complete optimiser, whose updates are already negative steps: with `decoupled=True` and a
      `learning_rate` of its own, which is subtracted. Without it the penalty would climb.

    Args:
        penalty: A penalty from `sx.regularizers`.
        weight: A non-negative factor, or a schedule of the step count; where a schedule is negative the updates are
            NaN, since the penalty would climb.
        mask: Which leaves of the parameters are changed: a pytree of booleans (or a prefix of one), or a function from
            the parameters to it. Leaves of integers are never changed.
        key: A PRNG key for the penalty; needed unless every map is small enough to be decomposed wholly.
        decoupled: Whether the updates that come in are complete steps already.
        learning_rate: The penalty's own learning rate or schedule, with `decoupled` only.
        every: How often the penalty is computed and its gradient added, in steps; at each by default. In between the
            updates pass as they are, and the state keeps the last value.

    Returns:
        A transformation; its `update` needs `params` and passes extra keyword arguments (for instance the batch `x`) on
        to the penalty.

    Raises:
        ValueError: If the weight or the learning rate is negative or not finite, or `decoupled` and `learning_rate` are
            not given together; in `init` if a key is needed; in `update` if `params` is missing.
        TypeError: If the weight or the learning rate is neither a number nor a function.

    Cost:
        One value and gradient of the penalty at every update, or at one of `every`.

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
    _check_factor("weight", weight)
    if learning_rate is not None:
        _check_factor("learning_rate", learning_rate)
    if decoupled != (learning_rate is not None):
        raise ValueError(
            "decoupled=True needs a learning_rate of its own, and a learning_rate is for decoupled=True only; got "
            f"decoupled={decoupled}, learning_rate={learning_rate}"
        )
    if key is not None:
        checks.key("key", key)
    if every is not None:
        checks.positive_integer("every", every)

    def numbers(params: PyTree) -> tuple[jax.Array, jax.Array, jax.Array]:
        del params
        value, factor = (jnp.full((), jnp.nan, jnp.float32) for _ in range(2))  # no array twice: it may be donated
        return jnp.zeros((), jnp.int32), value, factor

    def init(params: PyTree) -> SpectralPenaltyState:
        step, value, factor = explicit_axes.with_init_specs(numbers)(params)
        return SpectralPenaltyState(step, value, factor, penalty.init(params, key))

    def update(updates: PyTree, state: SpectralPenaltyState, params: PyTree | None = None, **extra: Any):
        if params is None:
            raise ValueError("add_spectral_penalty needs the parameters: call update(updates, state, params)")
        leaves, treedef = jax.tree.flatten(params)
        real = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]

        def value_of(chosen: list[jax.Array]):
            remaining = iter(chosen)
            merged = [next(remaining) if own else leaf for own, leaf in zip(real, leaves, strict=True)]
            return penalty.apply(treedef.unflatten(merged), state.tracked, **extra)

        chosen = [leaf for own, leaf in zip(real, leaves, strict=True) if own]

        factor = _at(weight, state.step)
        scale = factor if learning_rate is None else -factor * _at(learning_rate, state.step)

        def penalised() -> Any:
            (value, tracked), slopes = jax.value_and_grad(value_of, has_aux=True)(chosen)
            remaining = iter(slopes)
            gradient = treedef.unflatten([next(remaining) if own else None for own in real])
            keep = mask(params) if callable(mask) else mask
            if keep is not None:
                gradient = _masked(keep, gradient)

            def added(slope: jax.Array | None, update: jax.Array) -> jax.Array:
                return update if slope is None else update + (scale.astype(slope.dtype) * slope).astype(update.dtype)

            total = jax.tree.map(added, gradient, updates, is_leaf=lambda leaf: leaf is None)
            return total, value.astype(jnp.float32), tracked

        if every is None or every == 1:
            updates, value, tracked = penalised()
        else:
            kept = (updates, state.penalty, state.tracked)
            updates, value, tracked = jax.lax.cond(state.step % every == 0, penalised, lambda: kept)
        return updates, SpectralPenaltyState(jnp.asarray(optax.safe_increment(state.step)), value, factor, tracked)

    return optax.GradientTransformationExtraArgs(cast(Any, init), cast(Any, meshes.updating(update)))


def _check_factor(name: str, value: Any) -> None:
    if callable(value) or isinstance(value, jax_core.Tracer):
        return
    if not isinstance(value, numbers.Real) and not (isinstance(value, np.ndarray | jax.Array) and value.ndim == 0):
        raise TypeError(f"{name} must be a number or a function of the step count, got {value!r}")
    if not 0 <= float(value) < float("inf"):
        raise ValueError(f"{name} must be finite and not negative, where the penalty would climb; got {value}")


def _at(value: Any, step: jax.Array) -> jax.Array:
    """Return a factor or what a schedule gives for it; NaN where that is negative."""
    factor = jnp.asarray(value(step) if callable(value) else value, jnp.float32)
    return jnp.where(factor >= 0, factor, jnp.nan)


def _masked(mask: PyTree, gradient: PyTree) -> PyTree:
    """Zero the gradient where the mask is False; the mask may be a prefix of the parameters' tree."""

    def kept(keep: Any, part: PyTree) -> PyTree:  # a choice and no product: what is left out may be NaN
        return jax.tree.map(lambda slope: jnp.where(jnp.asarray(keep, bool), slope, jnp.zeros_like(slope)), part)

    return jax.tree.map(kept, mask, gradient)
