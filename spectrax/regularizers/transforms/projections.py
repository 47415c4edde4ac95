"""Optax transformations that keep weights in a set of wanted spectra; last in a chain."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.core as jax_core
import jax.numpy as jnp
import numpy as np
import optax

from spectrax import checks, explicit_axes, vectors
from spectrax.regularizers import meshes
from spectrax.regularizers.maps import Axes, matrices_of, path_name

PyTree = Any


class ProjectionState(NamedTuple):
    """State of a projection.

    Attributes:
        step: Number of updates, int32.
    """

    step: jax.Array


def project_spectral_norm(
    bound: float | jax.Array,
    *,
    axes: Axes = None,
    norm: Callable[[str, jax.Array], jax.Array | None] | None = None,
    every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each weight after the step such that its spectral norm is at most a bound, W min(1, bound / s_1).

    It goes last in the chain, behind the learning rate: what comes in is the whole step, and what goes out leads to the
    scaled weight. Scaling keeps the ratios of the singular values, `clip_singular_values` is the nearest matrix.

    Args:
        bound: Not negative.
        axes: Which axes of a parameter form its matrix, as in `sx.regularizers.matrix_maps`; `flax_axes` knows Flax's
            attention. Every matrix of a stack (leading axes of scanned layers) is scaled by itself.
        norm: A function of a parameter's path and value that gives its norm, or an upper bound of it, in place of
            `axes`; None leaves the parameter as it is. For a convolution
            `lambda name, kernel: sx.conv_norm(kernel, padding="SAME", certified=True).value`.
        every: How often the weights are scaled, in steps; at each by default.

    Returns:
        A transformation; its `update` needs `params`. With `optax.masked` it acts on some of them.

    Raises:
        ValueError: If an option is out of its range, or `axes` and `norm` are both given; in `update` if `params` is
            missing or a parameter's matrix is not known.
        TypeError: If `bound` is not a number.

    Cost:
        The singular values of each matrix, or what `norm` takes, every `every` steps.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import spectrax as sx
        >>> optimizer = optax.chain(optax.sgd(1.0), sx.transforms.project_spectral_norm(1.0))
        >>> params = {"kernel": jnp.eye(2)}
        >>> updates, _ = optimizer.update({"kernel": -jnp.eye(2)}, optimizer.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Source:
        Gouk et al. 2021, arXiv 1804.04368, algorithm 1.
    """
    if not isinstance(bound, jax_core.Tracer):
        checks.number_in("bound", bound.item() if isinstance(bound, jax.Array | np.ndarray) else bound, 0, math.inf)
    if norm is not None and axes is not None:
        raise ValueError("axes and norm exclude each other: norm says itself what a parameter's norm is")

    def project(name: str, leaf: jax.Array) -> jax.Array:
        wide = leaf.astype(vectors.working_dtype(leaf.dtype))
        if norm is not None:
            size = norm(name, wide)
            return leaf if size is None else (wide * _shrink(size, bound).astype(wide.dtype)).astype(leaf.dtype)
        found = matrices_of(name, wide, axes)
        if found is None:
            return leaf
        matrices, back = found
        largest = jnp.linalg.svd(matrices, compute_uv=False, full_matrices=False)[..., 0]
        return back(matrices * _shrink(largest, bound)[..., None, None].astype(wide.dtype)).astype(leaf.dtype)

    return _projection("project_spectral_norm", project, every)


def clip_singular_values(
    low: float, high: float, /, *, axes: Axes = None, every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Clip the singular values of each weight after the step, to the nearest matrix with all of them in [low, high].

    It goes last in the chain, as `project_spectral_norm` does. `clip_singular_values(1.0, 1.0)` takes the polar factor.

    Args:
        low: At least zero. Where it is positive, a weight whose rank is lower gets one of the nearest matrices.
        high: At least `low`; inf for none.
        axes: As in `project_spectral_norm`. A convolution's reshaped kernel is not the convolution:
            `sx.clip_spectral_norm` clips that, and `sx.parametrizations.clipped` trains it so.
        every: How often the weights are clipped, in steps; at each by default.

    Returns:
        A transformation; its `update` needs `params`.

    Raises:
        ValueError: If an option is out of its range; in `update` if `params` is missing or a parameter's matrix is not
            known.
        TypeError: If an end is not a number.

    Cost:
        A singular value decomposition of each matrix every `every` steps.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import spectrax as sx
        >>> optimizer = optax.chain(optax.sgd(1.0), sx.transforms.clip_singular_values(0.5, 2.0))
        >>> params = {"kernel": jnp.diag(jnp.array([3.0, 0.0]))}
        >>> updates, _ = optimizer.update({"kernel": jnp.zeros((2, 2))}, optimizer.init(params), params)
        >>> jnp.abs(optax.apply_updates(params, updates)["kernel"]).round(5).tolist()
        [[2.0, 0.0], [0.0, 0.5]]
    """
    checks.number_in("low", low, 0, math.inf)
    checks.number_in("high", high, low, math.inf)

    def project(name: str, leaf: jax.Array) -> jax.Array:
        found = matrices_of(name, leaf.astype(vectors.working_dtype(leaf.dtype)), axes)
        if found is None:
            return leaf
        matrices, back = found
        u, s, vh = jnp.linalg.svd(matrices, full_matrices=False)
        change = (jnp.clip(s, low, high) - s).astype(u.dtype)  # what lies in between comes back as it was
        return back(matrices + vectors.matmul(u * change[..., None, :], vh)).astype(leaf.dtype)

    return _projection("clip_singular_values", project, every)


def _shrink(norm: jax.Array, bound: float | jax.Array) -> jax.Array:
    """Return min(1, bound / norm), NaN where the norm is NaN."""
    inside = norm <= bound
    return jnp.where(inside, jnp.ones_like(norm), bound / jnp.where(inside, 1, norm))


def _projection(
    called: str, project: Callable[[str, jax.Array], jax.Array], every: int | None
) -> optax.GradientTransformationExtraArgs:
    if every is not None:
        checks.positive_integer("every", every)

    def init(params: PyTree) -> ProjectionState:
        del params
        return ProjectionState(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: ProjectionState, params: PyTree | None = None, **extra: Any):
        del extra
        if params is None:
            raise ValueError(f"{called} needs the parameters: call update(updates, state, params)")

        def moved() -> PyTree:
            def one(path: Any, update: jax.Array, leaf: jax.Array) -> jax.Array:
                if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                    return update
                target = (leaf + update).astype(leaf.dtype)  # as optax.apply_updates has it
                projected = project(path_name(path), target)
                return jnp.where(projected == target, update, (projected - leaf).astype(update.dtype))

            return jax.tree_util.tree_map_with_path(one, updates, params)

        step = jnp.asarray(optax.safe_increment(state.step))
        if every is None or every == 1:
            return moved(), ProjectionState(step)
        return jax.lax.cond(step % every == 0, moved, lambda: updates), ProjectionState(step)

    return optax.GradientTransformationExtraArgs(
        cast(Any, explicit_axes.with_init_specs(init)), cast(Any, meshes.updating(update))
    )
