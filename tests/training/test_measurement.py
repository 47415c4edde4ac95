"""The measurements are the true spectra."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectrax.networks import layers, models
from spectrax.training import jacobian_condition_numbers, layer_singular_values, measure_layers


@pytest.fixture
def net():
    return layers.chain(layers.convolution(2, (3, 3), padding="SAME"), layers.flatten(), layers.dense(3))


@pytest.fixture
def params(net, key):
    return net.init(key, (5, 4, 2))["params"]


def matrices(net, params):
    """Each layer's matrix by applying it to unit vectors through the layers' own forward pass, without biases."""
    conv = net.layers[0]
    zero = jnp.zeros((5, 4, 2))

    def apply(x):
        return conv.apply({"params": params["conv_0"]}, x) - conv.apply({"params": params["conv_0"]}, zero)

    units = jnp.eye(40).reshape(40, 5, 4, 2)
    return {
        "conv_0": np.asarray(jax.vmap(apply)(units)).reshape(40, 40).T,
        "dense_2": np.asarray(params["dense_2"]["kernel"]),
    }


@pytest.mark.parametrize("limit", [2048, 2])
def test_both_ways_find_the_ends_of_the_true_spectrum(net, params, key, limit):
    maps = layers.linear_maps(net, (5, 4, 2))
    found = measure_layers(maps, params, key=key, limit=limit)
    assert list(found) == ["conv_0", "dense_2"]
    for name, matrix in matrices(net, params).items():
        values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        layer = found[name]
        assert layer["kind"] == ("exact" if limit == 2048 else "lower")
        assert layer["converged"] is True
        assert layer["sigma_max"] == pytest.approx(values[0], rel=1e-5)
        assert layer["sigma_min"] == pytest.approx(values[-1], abs=1e-5 * values[0])
        assert layer["condition_number"] == layer["sigma_max"] / layer["sigma_min"]
        assert 0 < layer["residual"] < 1e-2


def test_a_singular_layer_has_an_infinite_condition_number(net, params, key):
    maps = layers.linear_maps(net, (5, 4, 2))
    params["dense_2"]["kernel"] = params["dense_2"]["kernel"].at[:, 2].set(0)
    params["conv_0"]["kernel"] *= 0
    found = measure_layers(maps, params, key=key)
    assert found["dense_2"]["condition_number"] == found["conv_0"]["condition_number"] == math.inf


def test_all_singular_values_and_why_some_are_missing(net, params):
    maps = layers.linear_maps(net, (5, 4, 2))
    values, notes = layer_singular_values(maps, params, limit=3)
    assert values["conv_0"] is None
    assert "40 singular values" in notes["conv_0"]
    np.testing.assert_allclose(
        values["dense_2"], np.linalg.svd(params["dense_2"]["kernel"], compute_uv=False), rtol=1e-5
    )
    assert layer_singular_values(maps, params)[1] == {}


def test_jacobians_against_central_differences(key, x64):
    net = models.mlp(3, width=6, depth=1, activation="gelu")
    variables = net.init(key, (4,))
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
    x = jax.random.normal(key, (5, 4), jnp.float64)
    step = 1e-6
    found = jacobian_condition_numbers(net, variables, x)
    for sample, value in zip(x, found, strict=True):
        columns = [
            (net.apply(variables, sample + step * unit) - net.apply(variables, sample - step * unit)) / (2 * step)
            for unit in np.eye(4)
        ]
        assert value == pytest.approx(np.linalg.cond(np.stack(columns, axis=-1)), rel=1e-5)


def test_singular_jacobians_are_infinite(key):
    net = layers.chain(layers.dense(3), layers.activation("relu"))
    variables = net.init(key, (3,))
    variables["params"]["dense_0"]["bias"] -= 100  # all units are off
    assert np.isinf(jacobian_condition_numbers(net, variables, jnp.ones((2, 3)))).all()
