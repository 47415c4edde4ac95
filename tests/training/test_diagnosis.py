"""The layer whose numbers went first is found, wherever it stands."""

import jax
import jax.numpy as jnp
import pytest

from spectrax.networks import layers, models
from spectrax.training.diagnosis import explain, first_non_finite_layer, first_non_finite_leaf


def broken(variables, path, value=jnp.nan):
    def spoil(where, leaf):
        return leaf * value if jax.tree_util.keystr(where, simple=True, separator="/") == path else leaf

    return variables | {"params": jax.tree_util.tree_map_with_path(spoil, variables["params"])}


@pytest.mark.parametrize("model", ["resnet", "densenet", "convnet", "mlp"])
@pytest.mark.parametrize("normalization", [None, "batch"])
def test_each_layer_of_each_model(key, model, normalization):
    net = getattr(models, model)(3, width=2, depth=2, normalization=normalization)
    maps = layers.linear_maps(net, (8, 8, 1))
    variables = net.init(key, (8, 8, 1))
    x = jax.random.normal(key, (4, 8, 8, 1))
    assert first_non_finite_layer(net, variables, x) is None
    for name in maps.names:
        assert first_non_finite_layer(net, broken(variables, f"{name}/kernel"), x) == name


def test_a_projection_and_the_sum_of_a_skip(key):
    net = layers.chain(layers.skip(layers.dense(2), projection=layers.dense(2)))
    variables = net.init(key, (3,))
    x = jnp.ones((4, 3))
    assert first_non_finite_layer(net, broken(variables, "skip_0/projection/kernel"), x) == "skip_0/projection"
    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e38) if leaf.ndim == 2 else leaf, variables)
    assert first_non_finite_layer(net, huge, jnp.full((4, 3), 0.9)) == "skip_0"  # finite parts, infinite sum


def test_the_input_itself(key):
    net = layers.chain(layers.dense(2))
    assert first_non_finite_layer(net, net.init(key, (3,)), jnp.full((4, 3), jnp.inf)) == "the input"


def test_leaves_are_named_by_their_path():
    assert first_non_finite_leaf({"a": {"b": [jnp.zeros(2), jnp.array(jnp.nan)]}}) == "a/b/1"
    assert first_non_finite_leaf({"a": jnp.zeros(2)}) is None


def test_explanations(key):
    net = layers.chain(layers.dense(2), layers.dense(2))
    variables = net.init(key, (3,))
    x, y = jnp.ones((4, 3)), jnp.zeros(4, jnp.int32)

    def loss_of(function):
        def loss(params, batch_stats, x, y):
            z = jax.vmap(lambda sample: net.apply({"params": params}, sample))(x)
            return function(z), (jnp.zeros(()), batch_stats)

        return loss

    def because(function, penalty=0.0, variables=variables, x=x):
        return explain(net, loss_of(function), variables, x, y, penalty=penalty)

    assert because(jnp.sum, x=x * jnp.nan) == "the batch itself holds numbers that are not finite"
    assert "layer dense_1 was the first" in because(jnp.sum, variables=broken(variables, "dense_1/kernel"))
    assert "the loss of the outputs of layer dense_1 was inf" in because(lambda z: jnp.sum(z**2) * jnp.inf)
    assert "its gradient by dense_0/bias was not" in because(lambda z: jnp.sum(jnp.sqrt(0 * z)))
    assert "but the penalty was nan" in because(jnp.sum, penalty=float("nan"))
    assert "the optimiser's update was not" in because(jnp.sum)
