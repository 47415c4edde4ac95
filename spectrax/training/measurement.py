"""What the layers' spectra and the network's Jacobians really are, measured apart from whatever a penalty tracks.

The same functions measure the run with the penalty and the baseline, so that their numbers can be compared. They use
another algorithm than the penalty does: a dense decomposition by LAPACK instead of tracked vectors.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import spectrum
from spectrax.networks import layers
from spectrax.operators import LinearOperator, batched_jacobian

DENSE_LIMIT = 2048


def measure_layers(
    maps: layers.LinearMaps, params: Any, /, *, key: jax.Array, limit: int = DENSE_LIMIT
) -> dict[str, dict[str, Any]]:
    """Measure both ends of the spectrum of every layer.

    Args:
        maps: The layers as operators, from `layers.linear_maps`.
        params: The network's parameters.
        key: A PRNG key, for the layers that are too large for the dense way.
        limit: The largest min(m, n) for which a layer is made dense and all its singular values are computed.

    Returns:
        For each layer `sigma_max`, `sigma_min`, `condition_number`, `residual`, `converged` and `kind`. By the dense
        way `kind` is "exact" and `residual` the round-off of a dense decomposition, sqrt(max(m, n)) eps sigma_max /
        sigma_min. Beyond it `extreme_singular_values` iterates, `kind` is "lower", since sigma_max may be too small and
        sigma_min too large, and `residual` is that of the smallest triplet relative to its value. The condition number
        is infinite where sigma_min is at round-off.

    Cost:
        A dense singular value decomposition without vectors for each layer up to `limit`.

    Example:
        >>> import jax
        >>> net = layers.chain(layers.dense(3))
        >>> maps = layers.linear_maps(net, (4,))
        >>> params = net.init(jax.random.key(0), (4,))["params"]
        >>> measure_layers(maps, params, key=jax.random.key(1))["dense_0"]["kind"]
        'exact'
    """
    found = {}
    for index, (name, operator) in enumerate(maps(params).items()):
        round_off = math.sqrt(max(operator.shape)) * float(jnp.finfo(operator.dtype).eps)
        if min(operator.shape) <= limit:
            values = _dense_singular_values(operator)
            largest, smallest = float(values[0]), float(values[-1])
            residual, converged, kind = round_off * largest / smallest if smallest else math.inf, True, "exact"
        else:
            ends = jax.device_get(_extremes(operator, jax.random.fold_in(key, index)))
            largest, smallest = float(ends.sigma_max), float(ends.sigma_min)
            residual = float(ends.residual_min) / smallest if smallest else math.inf
            converged, kind = bool(ends.converged_max and ends.converged_min), "lower"
        found[name] = {
            "sigma_max": largest,
            "sigma_min": smallest,
            "condition_number": largest / smallest if smallest > round_off * largest else math.inf,
            "residual": residual,
            "converged": converged,
            "kind": kind,
        }
    return found


def layer_singular_values(
    maps: layers.LinearMaps, params: Any, /, *, limit: int = DENSE_LIMIT
) -> tuple[dict[str, np.ndarray | None], dict[str, str]]:
    """Compute all singular values of every layer that is small enough.

    Args:
        maps: The layers as operators.
        params: The network's parameters.
        limit: The largest min(m, n) for which a layer is made dense.

    Returns:
        For each layer its singular values, descending, or None; and for those without, a note that says why.

    Cost:
        A dense singular value decomposition without vectors for each layer.

    Example:
        >>> import jax
        >>> net = layers.chain(layers.dense(3))
        >>> params = net.init(jax.random.key(0), (4,))["params"]
        >>> values, notes = layer_singular_values(layers.linear_maps(net, (4,)), params)
        >>> len(values["dense_0"]), notes
        (3, {})
    """
    values: dict[str, np.ndarray | None] = {}
    notes: dict[str, str] = {}
    for name, operator in maps(params).items():
        size = min(operator.shape)
        if size > limit:
            values[name] = None
            notes[name] = f"{size:,} singular values:\nnot computed above {limit:,}"
        else:
            values[name] = _dense_singular_values(operator)
    return values, notes


def jacobian_condition_numbers(net: layers.Layer, variables: Mapping[str, Any], x: Any, /) -> np.ndarray:
    """Measure the condition number of the network's input-output Jacobian at every sample.

    Args:
        net: The network, in inference mode.
        variables: Its variables.
        x: The samples, shape (N, ...).

    Returns:
        Shape (N,): sigma_1 / sigma_r with r = min(m, n) for m outputs and n inputs; infinite where sigma_r is at
        round-off, sqrt(max(m, n)) eps sigma_1.

    Cost:
        For each sample as many vector-Jacobian products as there are outputs (Jacobian-vector products as there are
        inputs, where those are fewer), and a singular value decomposition without vectors.

    Example:
        >>> import jax
        >>> net = layers.chain(layers.dense(2))
        >>> variables = {"params": {"dense_0": {"kernel": jnp.diag(jnp.array([4.0, 1.0])), "bias": jnp.zeros(2)}}}
        >>> jacobian_condition_numbers(net, variables, jnp.ones((3, 2))).tolist()
        [4.0, 4.0, 4.0]
    """
    values = np.asarray(_jacobian_extremes(net, variables, x))
    largest, smallest = values[:, 0], values[:, 1]
    size = max(math.prod(x.shape[1:]), math.prod(net.output_shape(x.shape[1:])))
    singular = smallest <= math.sqrt(size) * np.finfo(values.dtype).eps * largest
    return np.where(singular, np.inf, largest / np.where(singular, 1, smallest))


def _dense_singular_values(operator: LinearOperator) -> np.ndarray:
    if jax.default_backend() == "cpu":
        return np.asarray(_cpu_singular_values(operator))
    # On the host: compiled for TPUs a decomposition of this size would take half a minute for each shape.
    return np.linalg.svd(np.asarray(_to_dense(operator)), compute_uv=False)


@jax.jit
def _cpu_singular_values(operator: LinearOperator) -> jax.Array:
    # The LAPACK that JAX calls takes half of NumPy's time here, and does not stall when other programs use the cores.
    return jnp.linalg.svd(operator.to_dense(), compute_uv=False)


@jax.jit
def _to_dense(operator: LinearOperator) -> jax.Array:
    return operator.to_dense()


@jax.jit
def _extremes(operator: LinearOperator, key: jax.Array) -> Any:
    return spectrum.extreme_singular_values(operator, key=key)


@functools.partial(jax.jit, static_argnums=0)
def _jacobian_extremes(net: layers.Layer, variables: Mapping[str, Any], x: jax.Array) -> jax.Array:
    jacobians = batched_jacobian(functools.partial(net.apply, variables), x, chunk_size=64)
    values = jnp.linalg.svd(jacobians, compute_uv=False)
    return jnp.stack([values[:, 0], values[:, -1]], axis=-1)
