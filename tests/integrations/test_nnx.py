"""NNX layers with parametrizations, against Flax's own and against the Linen ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from spectrax import parametrizations
from spectrax.integrations import linen
from spectrax.integrations.nnx import CayleyConv, Conv, ConvNorm, Linear

OPTIONS = {
    "same": ((3, 3), {}),
    "an integer": (3, {"use_bias": False}),
    "circular, strides": ((3, 2), {"padding": "CIRCULAR", "strides": 2}),
    "pairs, dilation": ((3, 2), {"padding": ((1, 0), 2), "kernel_dilation": 2, "input_dilation": (1, 2)}),
    "groups": ((2, 2), {"feature_group_count": 2, "strides": (1, 2)}),
    "3-D": ((2, 1, 2), {"padding": "VALID", "precision": "highest"}),
    "16 bits": ((3, 3), {"dtype": jnp.bfloat16, "param_dtype": jnp.float16}),
}


def inputs_of(kernel_size):
    rank = 1 if isinstance(kernel_size, int) else len(kernel_size)
    return jax.random.normal(jax.random.key(1), (2, *(6, 5, 4)[:rank], 2))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(a)), nnx.to_pure_dict(nnx.state(b)))


@pytest.mark.parametrize("name", OPTIONS)
def test_without_parametrization_it_is_flaxs_layer(name):
    kernel_size, options = OPTIONS[name]
    x = inputs_of(kernel_size)
    ours = Conv(2, 4, kernel_size, rngs=nnx.Rngs(0), **options)
    theirs = nnx.Conv(2, 4, kernel_size, rngs=nnx.Rngs(0), **options)
    same(ours, theirs)
    made, expected = ours(x), theirs(x)
    assert made.dtype == expected.dtype
    assert_allclose(made.astype(jnp.float32), expected.astype(jnp.float32), atol=4 * float(jnp.finfo(made.dtype).eps))


def test_linear_without_parametrization_is_flaxs_layer():
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    for options in ({}, {"use_bias": False}, {"dtype": jnp.bfloat16}):
        ours, theirs = Linear(3, 4, rngs=nnx.Rngs(0), **options), nnx.Linear(3, 4, rngs=nnx.Rngs(0), **options)
        same(ours, theirs)
        np.testing.assert_array_equal(ours(x), theirs(x))


LAYERS = {
    "aol": (lambda rngs: Conv(2, 3, (3, 3), parametrization=parametrizations.aol(), rngs=rngs)),
    "rows": lambda rngs: Conv(
        2, 3, (3, 3), padding="CIRCULAR", parametrization=parametrizations.row_normalized((6, 5)), rngs=rngs
    ),
    "cayley": lambda rngs: Conv(
        2, 3, (3, 3), padding="CIRCULAR", parametrization=parametrizations.cayley_convolution((6, 5)), rngs=rngs
    ),
    "CayleyConv": lambda rngs: CayleyConv(2, 3, (3, 3), rngs=rngs),
    "CayleyConv, strides": lambda rngs: CayleyConv(2, 3, (3, 3), (2, 1), rngs=rngs),
    "ConvNorm": lambda rngs: ConvNorm(2, 3, (3, 3), (2, 1), eps=0.1, rngs=rngs),
    "Linear": lambda rngs: Linear(2, 3, parametrization=parametrizations.cayley(), rngs=rngs),
}
OTHERS = {
    "aol": linen.Conv(3, (3, 3), parametrization=parametrizations.aol()),
    "rows": linen.Conv(3, (3, 3), padding="CIRCULAR", parametrization=parametrizations.row_normalized((6, 5))),
    "cayley": linen.Conv(3, (3, 3), padding="CIRCULAR", parametrization=parametrizations.cayley_convolution((6, 5))),
    "CayleyConv": linen.CayleyConv(3, (3, 3)),
    "CayleyConv, strides": linen.CayleyConv(3, (3, 3), (2, 1)),
    "ConvNorm": linen.ConvNorm(3, (3, 3), (2, 1), eps=0.1),
    "Linear": linen.Dense(3, parametrization=parametrizations.cayley()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_linen_layer_on_the_same_parameters(name):
    layer, x = LAYERS[name](nnx.Rngs(0)), inputs_of((3, 3))
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    struct = jax.eval_shape(OTHERS[name].init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, struct)
    assert_allclose(nnx.jit(lambda layer, x: layer(x))(layer, x), OTHERS[name].apply({"params": params}, x), atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_training_changes_the_raw_parameters_and_keeps_the_bound(name):
    layer, x = LAYERS[name](nnx.Rngs(0)), inputs_of((3, 3))
    before = nnx.to_pure_dict(nnx.state(layer))
    optimizer = nnx.Optimizer(layer, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        loss, gradient = nnx.value_and_grad(lambda layer: jnp.mean((layer(x) - 1) ** 2))(layer)
        optimizer.update(layer, gradient)
        return loss

    losses = [float(step(layer, optimizer)) for _ in range(4)]
    assert losses[-1] < losses[0]
    after = nnx.to_pure_dict(nnx.state(layer))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    shape = x.shape[1:] if name != "Linear" else (2,)
    graph, state = nnx.split(layer)
    matrix = jax.jit(jax.jacobian(lambda x: nnx.merge(graph, state)(x)))(jnp.zeros(shape))
    values = np.linalg.svd(np.asarray(matrix).reshape(-1, np.prod(shape)), compute_uv=False)
    if name == "aol":
        assert values[0] <= 1 + 1e-6
    elif name in ("rows", "ConvNorm"):
        assert 1 - 1e-5 <= values[0] <= 3**0.5
    else:
        assert_allclose(values, 1, atol=1e-5)


def test_calling_writes_nothing():
    layer = LAYERS["cayley"](nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(layer))
    layer(inputs_of((3, 3)))
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(layer)), before)


def test_flaxs_layers_to_and_fro():
    x = inputs_of((3, 3))
    conv = nnx.Conv(2, 4, (3, 2), 2, padding=1, kernel_dilation=(1, 2), feature_group_count=2, rngs=nnx.Rngs(0))
    linear = nnx.Linear(2, 3, use_bias=False, dtype=jnp.bfloat16, precision="highest", rngs=nnx.Rngs(0))
    for theirs, ours, form in (
        (conv, Conv, None),
        (conv, Conv, parametrizations.factored()),
        (linear, Linear, None),
        (linear, Linear, parametrizations.factored()),
    ):
        made = ours.from_flax(theirs, form)
        expected = theirs(x)
        assert made(x).dtype == expected.dtype
        assert_allclose(
            made(x).astype(jnp.float32), expected.astype(jnp.float32), atol=1e-2 if ours is Linear else 1e-5
        )
        back = made.to_flax()
        same_dtypes = jax.tree.map(lambda leaf: leaf.dtype, nnx.to_pure_dict(nnx.state(back)))
        assert same_dtypes == jax.tree.map(lambda leaf: leaf.dtype, nnx.to_pure_dict(nnx.state(theirs)))
        np.testing.assert_array_equal(back(x), made(x))
        if form is None:
            back.kernel[...] = made.kernel[...] * 0
            assert np.any(made.kernel[...] != 0)  # each has its own variables
            made.kernel[...] = back.kernel[...]
            assert np.any(theirs.kernel[...] != 0)
    bounded = Conv.from_flax(nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(0)), parametrizations.aol()).to_flax()
    graph, state = nnx.split(bounded)
    matrix = jax.jit(jax.jacobian(lambda x: nnx.merge(graph, state)(x)))(x[0])
    assert np.linalg.norm(np.asarray(matrix).reshape(-1, x[0].size), 2) <= 1 + 1e-6


def test_what_is_refused():
    with pytest.raises(ValueError, match="padding='CIRCULAR'"):
        Conv(2, 3, (3, 3), parametrization=parametrizations.row_normalized((6, 5)), rngs=nnx.Rngs(0))(inputs_of((3, 3)))
    with pytest.raises(ValueError, match="groups"):
        Conv(2, 3, (3, 3), feature_group_count=3, rngs=nnx.Rngs(0))
