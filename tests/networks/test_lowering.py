"""Representations, landscapes and bounds lower for GPU and TPU."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

import spectrax as sx

NET = sx.models.mlp(4, width=8, depth=2, rho=1.0)
CNN = sx.models.resnet(3, width=2, depth=1)

FUNCTIONS = {
    "local_linear": lambda v, x: sx.local_linear(NET, v, x[0]).A.to_dense(),
    "weight_reach": lambda v, x: sx.local_linear(NET, v, x[0]).weight_reach("dense_1"),
    "layer_spectra": lambda v, x: sx.landscape.layer_spectra(NET, v, x),
    "layer_gram": lambda v, x: sx.landscape.layer_gram(NET, v, "dense_1", x, batched=True),
    "cross_entropy_bounds": lambda v, x: sx.landscape.cross_entropy_bounds(NET, v, "dense_1", x, batched=True),
    "identity_shift_bounds": lambda _, x: sx.theory.perturbation.identity_shift_bounds(x[:, :3], 1.0),
    "product_log_condition_number": lambda _, x: sx.product_log_condition_number(x.reshape(2, 3, 3)),
}


def lowered(function, *arguments):
    flat = jax.jit(lambda *arguments: jax.tree.leaves(function(*arguments)))
    return export.export(flat, platforms=["cuda", "tpu"])(*arguments)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_networks_and_theory_lower_for_gpu_and_tpu(name):
    variables = jax.eval_shape(lambda: NET.init(jax.random.key(0), (6,)))
    assert lowered(FUNCTIONS[name], variables, jnp.ones((3, 6))).platforms == ("cuda", "tpu")


def test_convolutions_lower_for_gpu_and_tpu():
    variables = jax.eval_shape(lambda: CNN.init(jax.random.key(0), (4, 4, 1)))
    found = lowered(lambda v, x: sx.landscape.layer_spectra(CNN, v, x), variables, jnp.ones((2, 4, 4, 1)))
    assert found.platforms == ("cuda", "tpu")
