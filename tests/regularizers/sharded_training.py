"""What `test_sharding` runs on eight host devices, in a process of its own; prints its findings as JSON.

Parameters lie on a mesh with explicit axes: their shardings are part of their types, and so are those of results.
"""

import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import spectrax as sx

PLACES = {
    "fully": {"first": ("data", "model"), "bias": ("model",), "second": ("model", "data")},
    "tensor": {"first": (None, "model"), "bias": ("model",), "second": ("model",)},
    "data": {"first": (), "bias": (), "second": ()},
}


@functools.cache
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)


STEPS = 3


def placed(array, *spec):
    return jax.device_put(array, NamedSharding(mesh(), PartitionSpec(*spec)))


def arrays():
    rng = np.random.default_rng(0)
    shapes = {"first": (16, 8), "bias": (8,), "second": (8, 16)}
    params = {name: np.float32(rng.normal(size=shape) / 3) for name, shape in shapes.items()}
    return params, np.float32(rng.normal(size=(32, 16)))


def loss(params, x):
    spread = bool(jax.typeof(x).sharding.mesh.axis_names)
    wide, narrow = (PartitionSpec("data", "model"), PartitionSpec("data")) if spread else (None, None)
    bias = jax.sharding.reshard(params["bias"], PartitionSpec("model")) if spread else params["bias"]
    hidden = jnp.tanh(jnp.matmul(x, params["first"], out_sharding=wide) + bias)
    return jnp.mean(jnp.square(jnp.matmul(hidden, params["second"], out_sharding=narrow)))


def types(tree):
    """The specs of all arrays of more than one entry, by path."""
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }
    return {path: str(jax.typeof(leaf).sharding.spec) for path, leaf in found.items() if leaf.size > 1}


def far(a, b):
    """The largest difference of two trees over the largest entry of each array, where both are finite."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            continue
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert (np.isfinite(x) == np.isfinite(y)).all()
        x, y = np.where(np.isfinite(x), x, 0), np.where(np.isfinite(y), y, 0)
        worst = max(worst, float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-3)))
    return worst


def trained(optimizer, params, x):
    """Parameters, state, values and the number of traces after some steps, and the types of the first state."""
    traces = 0

    @jax.jit
    def step(params, state, x):
        nonlocal traces
        traces += 1
        value, gradient = jax.value_and_grad(loss)(params, x)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    first = types(state)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(STEPS):
            params, state, value = step(params, state, x)
            values.append(value)
    return params, state, values, traces, first


def chain(*others):
    """A chain where the penalty and the projection take turns."""
    penalty = sx.regularizers.spectral_norm_penalty(block_size=2, tolerance=0.01)
    transforms = sx.transforms
    return optax.chain(
        transforms.gradient_oscillation(0.1),
        transforms.add_spectral_penalty(penalty, 0.1, every=2, mask={"first": True, "bias": False, "second": True}),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(0.1),
        transforms.project_spectral_norm(1.5, every=2),
        *others,
    )


def training():
    params, x = arrays()
    penalty = sx.regularizers.frobenius_norm_penalty()
    short = optax.chain(sx.transforms.add_spectral_penalty(penalty, 0.1), optax.adam(0.1))
    found = {}
    for name, optimizer in (("fully", chain()), ("tensor", short), ("data", short)):
        alone = trained(optimizer, jax.tree.map(jnp.asarray, params), jnp.asarray(x))
        spread = {leaf: placed(params[leaf], *PLACES[name][leaf]) for leaf in params}
        with jax.set_mesh(mesh()):
            inside = trained(optimizer, spread, placed(x, "data"))
        found[name] = {
            "difference": far((inside[0], inside[2]), (alone[0], alone[2])),
            "traces": inside[3],
            "params": types(inside[0]),
            "state": types(inside[1]),
            "kept": types(inside[1]) == inside[4],
        }
    return found


def typed():
    """What is traced but not compiled: specs of all penalties' gradients and states, and of transformations."""
    params, _ = arrays()
    spread = {leaf: placed(params[leaf], *PLACES["fully"][leaf]) for leaf in params}

    def penalised(penalty, params):
        state = penalty.init(params, None)
        (value, after), gradient = jax.value_and_grad(penalty.apply, has_aux=True)(params, state)
        return value, gradient, (state, after)

    def optimised(optimizer, params):
        state = optimizer.init(params)
        updates, after = optimizer.update(params, state, params)
        return 0.0, updates, (state, after)

    found = {}
    import test_every_penalty  # beside this file, which is on the path where it is run as a program

    members: dict[str, Any] = {name: (penalised, penalty) for name, (penalty, _) in test_every_penalty.EVERY.items()}
    members["transformations"] = (
        optimised,
        chain(sx.transforms.track_spectrum(every=2), sx.transforms.clip_singular_values(0.1, 2.0)),
    )
    with jax.set_mesh(mesh()):
        for name, (function, member) in members.items():
            value, gradient, states = jax.eval_shape(functools.partial(function, member), spread)
            found[name] = {
                "value": types([value]),
                "gradient": types(gradient),
                "kept": types(states[0]) == types(states[1]),
            }
    return found


def eager():
    """A gradient outside of `jit` in the context of the mesh, an update without it, and the first state of a vector."""
    params, _ = arrays()
    expected = params | {"bias": 0 * params["bias"]}
    spread = {leaf: placed(params[leaf], *PLACES["fully"][leaf]) for leaf in params}
    penalty = sx.regularizers.frobenius_norm_penalty()
    state = penalty.init(spread, None)
    with jax.set_mesh(mesh()):
        gradient = jax.grad(lambda params: penalty.apply(params, state)[0])(spread)
        closed = jax.jit(lambda: penalty.apply(spread, state)[0])()
        alone = penalty.apply(params, penalty.init(params, None))[0]  # NumPy arrays, in the context of the mesh
    optimizer = sx.transforms.add_spectral_penalty(penalty, 1.0)
    update, _ = optimizer.update(spread, optimizer.init(spread), spread)
    sharpness = sx.regularizers.sharpness_penalty(lambda params: jnp.sum(jnp.square(params["first"])))
    vector = sharpness.init(spread, jax.random.key(0)).blocks["curvature"].top
    mixed = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit, AxisType.Auto))
    matrix = jax.device_put(params["first"], NamedSharding(mixed, PartitionSpec("data", "model")))
    values = sx.svds(matrix, 2, key=jax.random.key(0)).s
    exact = sum(np.sum(np.float64(params[name]) ** 2) / 2 for name in ("first", "second"))
    return {
        "gradient": types(gradient),
        "update": types(update),
        "difference": max(far(gradient, expected), far(update, jax.tree.map(jnp.add, params, expected))),
        "curvature": types(vector),
        "values": max(far(closed, exact), far(alone, exact)),
        "mixed": far(values, np.linalg.svd(params["first"])[1][:2]),
    }


if __name__ == "__main__":
    said = {"devices": jax.device_count(), "training": training(), "typed": typed(), "eager": eager()}
    json.dump(said, sys.stdout)
