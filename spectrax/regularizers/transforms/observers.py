"""Optax transformations that observe a training run and change nothing."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from spectrax import checks, explicit_axes, vectors
from spectrax.regularizers import meshes
from spectrax.regularizers.condition_numbers import condition_number_penalty
from spectrax.regularizers.maps import Maps, MatrixAxes
from spectrax.regularizers.penalty import PenaltyState

PyTree = Any


class TrackedSpectrumState(NamedTuple):
    """State of `track_spectrum`; read it with `optax.tree.get(opt_state, "measurements")`.

    Attributes:
        step: Number of updates, int32.
        tracked: The vectors that are followed, and in its `measurements` what they showed last.
    """

    step: jax.Array
    tracked: PenaltyState


def track_spectrum(
    maps: Maps | MatrixAxes | None = None,
    *,
    key: jax.Array | None = None,
    every: int = 1,
    block_size: int = 4,
    renew_every: int = 64,
    tolerance: float | None = None,
    mask: Callable[[str], bool] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Measure the extreme singular values of each map while a network trains, and change no update.

    The measurements are those of the parameters that come into `update`, before the step.

    Args:
        maps: As in `sx.regularizers.condition_number_penalty`.
        key: A PRNG key; needed unless every map is small enough to be decomposed wholly.
        every: How often is measured, in steps; in between the measurements stay.
        block_size: How many vectors are followed at each end.
        renew_every: After how many measurements the vectors are found anew by a factorisation.
        tolerance: As in `sx.regularizers.condition_number_penalty`.
        mask: Which maps to measure, by name.

    Returns:
        A transformation; its `update` needs `params`.

    Raises:
        ValueError: If an option is out of its range; in `init` if a key is needed; in `update` if `params` is missing.

    Cost:
        That of `condition_number_penalty` without its derivative, every `every` steps.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import spectrax as sx
        >>> optimizer = optax.chain(sx.transforms.track_spectrum(), optax.sgd(0.1))
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 10.0]))}
        >>> _, state = optimizer.update({"kernel": jnp.ones((2, 2))}, optimizer.init(params), params)
        >>> round(float(optax.tree.get(state, "measurements").condition_number["kernel"]), 4)
        10.0
    """
    checks.positive_integer("every", every)
    penalty = condition_number_penalty(
        maps, block_size=block_size, renew_every=renew_every, tolerance=tolerance, mask=mask
    )
    if key is not None:
        checks.key("key", key)

    def init(params: PyTree) -> TrackedSpectrumState:
        step = explicit_axes.with_init_specs(lambda params: jnp.zeros((), jnp.int32))(params)
        return TrackedSpectrumState(step, penalty.init(params, key))

    def update(updates: PyTree, state: TrackedSpectrumState, params: PyTree | None = None, **extra: Any):
        del extra
        if params is None:
            raise ValueError("track_spectrum needs the parameters: call update(updates, state, params)")
        due = state.step % every == 0
        tracked = jax.lax.cond(due, lambda: penalty.apply(params, state.tracked)[1], lambda: state.tracked)
        return updates, TrackedSpectrumState(jnp.asarray(optax.safe_increment(state.step)), tracked)

    return optax.GradientTransformationExtraArgs(cast(Any, init), cast(Any, meshes.updating(update)))


class OscillationState(NamedTuple):
    """State of `gradient_oscillation`.

    Attributes:
        step: Number of updates, int32.
        previous: The gradient of the step before.
        cosine: The cosine of the last two gradients, NaN before there are two.
        leaf_cosines: The same for each leaf.
        sharpness: The curvature of the loss along the last step, NaN before there was one.
        stability: `sharpness` times the learning rate; from two on the step along it grows.
        params: The parameters of the step before.
    """

    step: jax.Array
    previous: PyTree
    cosine: jax.Array
    leaf_cosines: PyTree
    sharpness: jax.Array
    stability: jax.Array
    params: PyTree


def gradient_oscillation(
    learning_rate: float | Callable[[jax.Array], jax.Array] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Measure by how much successive gradients point against each other, and change no update.

    It stands first in the chain, where the gradients are. The cosine of two successive gradients is near -1 where most
    of the gradient lies along directions whose curvature times the learning rate is above one, which gradient descent
    overshoots at every step. Beside it stands the curvature along the last step,

        (g_t - g_(t-1))^T (w_t - w_(t-1)) / \|w_t - w_(t-1)\|^2,

    a mean of the Hessian along it, between its extreme eigenvalues, with the noise of mini-batches in it.

    Args:
        learning_rate: That of the optimiser, or its schedule, by which the curvature is multiplied; None leaves
            `stability` at NaN.

    Returns:
        A transformation; its `update` needs `params`. Its state holds the gradients and the parameters of one step.

    Raises:
        ValueError: In `update` if `params` is missing.
        TypeError: If `learning_rate` is neither a number nor a function.

    Cost:
        Some inner products, and memory of twice the parameters.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import spectrax as sx
        >>> optimizer = optax.chain(sx.transforms.gradient_oscillation(0.15), optax.sgd(0.15))
        >>> params, curvatures = jnp.ones(2), jnp.array([1.0, 10.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(curvatures * params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> round(float(optax.tree.get(state, "cosine")), 4)
        -0.9643

    Source:
        Morchdi et al. 2023, Exploring gradient oscillation in deep neural network training (Allerton).
    """
    if learning_rate is not None and not callable(learning_rate):
        checks.number_in("learning_rate", learning_rate, 0, float("inf"))

    def init(params: PyTree) -> OscillationState:
        def unknown() -> jax.Array:
            return jnp.full((), jnp.nan, jnp.float32)

        def zeros() -> PyTree:
            return jax.tree.map(jnp.zeros_like, params)

        cosines = jax.tree.map(lambda _: unknown(), params)  # no array twice: a state may be donated
        return OscillationState(jnp.zeros((), jnp.int32), zeros(), unknown(), cosines, unknown(), unknown(), zeros())

    def update(updates: PyTree, state: OscillationState, params: PyTree | None = None, **extra: Any):
        del extra
        if params is None:
            raise ValueError("gradient_oscillation needs the parameters: call update(updates, state, params)")
        known = state.step > 0
        leaf_cosines = jax.tree.map(
            lambda a, b: jnp.where(known, _cosine(_wide(a), _wide(b)), jnp.nan), updates, state.previous
        )
        now, before, w, w_before = map(_wide, (updates, state.previous, params, state.params))
        cosine = jnp.where(known, _cosine(now, before), jnp.nan)
        moved, changed = vectors.subtract(w, w_before), vectors.subtract(now, before)
        length = vectors.norm(moved)
        safe = jnp.where(length > 0, length, 1)
        unit = vectors.divide(moved, safe)
        sharpness = jnp.where(known & (length > 0), vectors.vdot(unit, changed).real / safe, jnp.nan)
        sharpness = sharpness.astype(jnp.float32)
        if learning_rate is None:
            stability = jnp.full((), jnp.nan, jnp.float32)
        else:
            rate = learning_rate(state.step - 1) if callable(learning_rate) else learning_rate
            stability = sharpness * jnp.asarray(rate, jnp.float32)
        step = jnp.asarray(optax.safe_increment(state.step))
        return updates, OscillationState(step, updates, cosine, leaf_cosines, sharpness, stability, params)

    return optax.GradientTransformationExtraArgs(
        cast(Any, explicit_axes.with_init_specs(init, _specs)), cast(Any, meshes.updating(update))
    )


def _specs(params: PyTree, state: OscillationState) -> OscillationState:
    own = explicit_axes.specs_of(params)
    return explicit_axes.replicated_specs(state)._replace(previous=own, params=own)


def _wide(tree: PyTree) -> list[jax.Array]:
    """Return the leaves that are not integers, in 32 bits at least."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    return [leaf.astype(vectors.working_dtype(leaf.dtype)) for leaf in leaves]


def _cosine(a: PyTree, b: PyTree) -> jax.Array:
    if not a:  # a leaf of integers
        return jnp.full((), jnp.nan, jnp.float32)
    lengths = vectors.norm(a), vectors.norm(b)
    nonzero = (lengths[0] > 0) & (lengths[1] > 0)
    units = (vectors.divide(tree, jnp.where(nonzero, length, 1)) for tree, length in zip((a, b), lengths, strict=True))
    return jnp.where(nonzero, vectors.vdot(*units).real, jnp.nan).astype(jnp.float32)
