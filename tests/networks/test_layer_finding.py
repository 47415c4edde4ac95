"""Layers are found in networks of every library, with their geometry, and as often as they are applied."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import spectrax as sx


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="conv")(x))
        x = nn.max_pool(nn.BatchNorm(use_running_average=True)(x), (2, 2), (2, 2))
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


def linen():
    model = Linen()
    variables = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    return (lambda variables, x: model.apply(variables, x[None])[0]), variables, (8, 8, 1)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


def test_linen():
    f, variables, shape = linen()
    conv, head = sx.find_layers(f, variables, jnp.ones(shape))
    assert (conv.name, conv.kind, conv.weight_shape) == ("params/conv", "conv", (3, 3, 1, 4))
    assert (conv.strides, conv.padding, conv.repetition) == ((2, 2), ((0, 1), (0, 1)), 1)
    assert (head.name, head.kind, head.parameters) == ("params/head", "dense", ("params/head/kernel",))
    assert head.input_shape[-1] == 16
    rep = sx.local_linear(f, variables, jax.random.normal(jax.random.key(1), shape))
    assert rep.exact
    assert list(rep.layers) == ["params/conv", "params/head"]
    assert rep.stages == {}


def test_nnx():
    graph, state = nnx.split(Nnx(nnx.Rngs(0)))
    f = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    assert [layer.name for layer in sx.find_layers(f, state, jnp.ones(4))] == ["first", "second"]
    x = jax.random.normal(jax.random.key(0), (4,), "float32")
    rep = sx.local_linear(f, state, x)
    assert_allclose(rep.A.to_dense(), jax.jacobian(lambda x: f(state, x))(x), rtol=1e-5)
    assert rep.exact


def test_leaves_that_are_no_arrays():
    """As Equinox's modules have: their activation functions are leaves."""
    model = {"weight": jnp.ones((2, 3)), "activation": jax.nn.relu}
    f = lambda model, x: model["activation"](model["weight"] @ x)  # noqa: E731
    (layer,) = sx.find_layers(f, model, jnp.ones(3))
    assert (layer.name, layer.weight_shape) == ("weight", (2, 3))
    assert_allclose(sx.local_linear(f, model, jnp.ones(3)).output, 3)


def test_transformed_and_shared_parameters():
    params = {"v": jnp.ones((3, 4)), "g": jnp.ones((3, 1)), "tied": jnp.ones((4, 3))}

    def f(params, x):
        weight = params["g"] * params["v"] / jnp.linalg.norm(params["v"], axis=1, keepdims=True)
        y = jax.nn.relu(weight.reshape(3, 2, 2).reshape(3, 4) @ x)
        return params["tied"].T @ jax.nn.relu(params["tied"] @ y)

    found = sx.find_layers(f, params, jnp.ones(4))
    assert [layer.name for layer in found] == ["g*v", "tied", "tied"]
    assert list(sx.local_linear(f, params, jnp.ones(4)).layers) == ["g*v", "tied[0]", "tied[1]"]


def test_loops_calls_and_rules():
    params = {"stack": jnp.stack([jnp.eye(4), 2 * jnp.eye(4), 3 * jnp.eye(4)]), "same": 0.5 * jnp.eye(4)}

    @jax.custom_jvp
    def ruled(weight, x):
        return weight @ x

    ruled.defjvp(lambda primals, tangents: (ruled(*primals), ruled(primals[0], tangents[1])))

    def f(params, x):
        x, states = jax.lax.scan(lambda c, w: (jax.nn.relu(w @ c), c), x, params["stack"], reverse=True)
        x = jax.jit(jax.checkpoint(lambda p, x: p @ x))(params["same"], x) + states.sum(0)
        return ruled(params["same"], x)

    stack, first, second = sx.find_layers(f, params, jnp.ones(4))
    assert (stack.name, stack.repetition) == ("stack", 3)
    assert (first.name, second.name) == ("same", "same")
    x = jnp.arange(1.0, 5.0)
    rep = sx.local_linear(f, params, x)
    assert not rep.exact  # who knows what a rule says
    assert_allclose(rep.output, f(params, x))
    assert list(rep.layers) == ["stack[0]", "stack[1]", "stack[2]", "same[0]", "same[1]"]
    # reverse: the last weight acts first, on x itself
    assert_allclose(rep.layers["stack[0]"].output, 3 * x)
    assert_allclose(rep.layers["stack[0]"].after.to_dense(), (0.25 * 2 + 0.5 * (1 + 2)) * jnp.eye(4))


def test_structs_suffice_and_nothing_runs():
    struct = jax.ShapeDtypeStruct((3,), jnp.float32)
    params = {"kernel": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    (layer,) = sx.find_layers(lambda p, x: x @ p["kernel"], params, struct)
    assert (layer.name, layer.output_shape) == ("kernel", (2,))


def test_names():
    params = {"attn": {"value": {"kernel": jnp.eye(3)}}, "a/b": jnp.eye(3), "a": {"b": 2 * jnp.eye(3)}}

    def f(params, x):
        return params["attn"]["value"]["kernel"] @ (params["a/b"] @ (params["a"]["b"] @ x))

    assert list(sx.local_linear(f, params, jnp.ones(3)).layers) == ["a/b[0]", "a/b[1]", "attn/value"]
    found = [layer.name for layer in sx.find_layers(f, params, jnp.ones(3))]
    assert found == ["a/b", "a/b", "attn/value"]


def test_no_layers():
    assert sx.find_layers(lambda params, x: x + params, jnp.ones(3), jnp.ones(3)) == ()
    with pytest.raises(TypeError, match="net must be a layer or a function"):
        sx.find_layers("net", {}, jnp.ones(3))
