"""Linen layers with parametrizations, against Flax's own and against dense matrices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import parametrizations
from spectrax.integrations.linen import CayleyConv, Conv, ConvNorm, Dense, applied_params, raw_params

OPTIONS = {
    "same": ((3, 3), {}),
    "an integer": (3, {"use_bias": False}),
    "circular, strides": ((3, 2), {"padding": "CIRCULAR", "strides": 2}),
    "reflect": ((3, 3), {"padding": "REFLECT"}),
    "pairs, dilation": ((3, 2), {"padding": ((1, 0), 2), "kernel_dilation": 2, "input_dilation": (1, 2)}),
    "groups": ((2, 2), {"feature_group_count": 2, "strides": (1, 2)}),
    "3-D": ((2, 1, 2), {"padding": "VALID", "precision": "highest"}),
    "16 bits": ((3, 3), {"dtype": jnp.bfloat16}),
    "16-bit parameters": ((3, 3), {"param_dtype": jnp.float16, "dtype": jnp.bfloat16}),
}


def inputs_of(kernel_size, channels=2, batch=(2,)):
    rank = 1 if isinstance(kernel_size, int) else len(kernel_size)
    shape = (*batch, *(6, 5, 4)[:rank], channels)
    return jax.random.normal(jax.random.key(1), shape)


@pytest.mark.parametrize("name", OPTIONS)
def test_without_parametrization_it_is_flaxs_layer(name):
    kernel_size, options = OPTIONS[name]
    x, key = inputs_of(kernel_size), jax.random.key(0)
    ours, theirs = Conv(4, kernel_size, **options), nn.Conv(4, kernel_size, **options)
    variables = theirs.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(key, x), variables)
    made, expected = ours.apply(variables, x), theirs.apply(variables, x)
    assert made.dtype == expected.dtype
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_batches(batch):
    x, key = inputs_of((3, 3), batch=batch), jax.random.key(0)
    np.testing.assert_array_equal(
        Conv(4, (3, 3)).apply(Conv(4, (3, 3)).init(key, x), x),
        nn.Conv(4, (3, 3)).apply(nn.Conv(4, (3, 3)).init(key, x), x),
    )
    layer = CayleyConv(2, (3, 3))
    variables = jax.jit(layer.init)(key, x)
    flat = x.reshape(-1, *x.shape[-3:])
    expected = jnp.stack([jax.jit(layer.apply)(variables, one) for one in flat]).reshape(x.shape)
    assert_allclose(layer.apply(variables, x), expected, atol=1e-6)


def test_dense_without_parametrization_is_flaxs_layer():
    x, key = jnp.linspace(-1, 1, 6).reshape(2, 3), jax.random.key(0)
    for options in ({}, {"use_bias": False}, {"dtype": jnp.bfloat16}):
        ours, theirs = Dense(4, **options), nn.Dense(4, **options)
        variables = theirs.init(key, x)
        jax.tree.map(np.testing.assert_array_equal, ours.init(key, x), variables)
        np.testing.assert_array_equal(ours.apply(variables, x), theirs.apply(variables, x))


def spectrum(layer, variables, shape):
    """The singular values of the layer as a linear map of one sample."""
    matrix = jax.jit(jax.jacobian(lambda x: layer.apply(variables, x)))(jnp.zeros(shape))
    return np.linalg.svd(matrix.reshape(-1, np.prod(shape)), compute_uv=False)


FORMS = {
    "aol": (parametrizations.aol(), "SAME", lambda s: s[0] <= 1 + 1e-12),
    "rows": (parametrizations.row_normalized((5, 3)), "CIRCULAR", lambda s: 1 <= s[0] <= 3**0.5),
    "cayley": (parametrizations.cayley_convolution((5, 3)), "CIRCULAR", lambda s: np.ptp([*s, 1.0]) < 1e-12),
    "clipped": (parametrizations.clipped(0.5, (5, 3), rounds=30), "CIRCULAR", lambda s: 0.499 < s[0] < 0.51),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_spectrum_of_a_layer_before_and_after_training(name, x64):
    """Steps of an optimizer change the raw parameters alone; what is guaranteed holds after each."""
    form, padding, holds = FORMS[name]
    layer = Conv(3, (3, 3), padding=padding, param_dtype=jnp.float64, parametrization=form)
    x = jax.random.normal(jax.random.key(1), (4, 5, 3, 2))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    assert holds(spectrum(layer, variables, (5, 3, 2)))
    before = jax.tree.map(np.array, variables)
    optimizer = optax.sgd(0.5, momentum=0.5)

    @jax.jit
    def step(variables, state):
        value = lambda variables: jnp.mean((layer.apply(variables, x) - 0.5) ** 2)  # noqa: E731
        loss, gradient = jax.value_and_grad(value)(variables)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(variables, updates), state, loss

    trained, state, losses = variables, optimizer.init(variables), []
    for _ in range(5):
        trained, state, loss = step(trained, state)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert holds(spectrum(layer, trained, (5, 3, 2)))


def test_applying_writes_nothing():
    layer, x = Conv(3, (3, 3), parametrization=parametrizations.aol()), inputs_of((3, 3))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    _, changed = layer.apply(variables, x, mutable=True)
    assert changed.keys() == {"params"}
    jax.tree.map(np.testing.assert_array_equal, changed, variables)


@pytest.mark.parametrize(
    ("sizes", "channels", "features", "options"),
    [
        ((7, 5), 2, 3, {}),
        ((6, 4), 2, 3, {"strides": 2}),
        ((6, 9), 2, 6, {"strides": (2, 3), "feature_group_count": 2}),
        ((5,), 4, 2, {"use_bias": False}),
    ],
)
def test_cayley_conv_is_the_convolution_with_the_transform(sizes, channels, features, options, x64):
    """Odd sizes too: isometries, whose published form has singular values from 0.76 to 1.08 there."""
    kernel_size = (3,) * len(sizes)
    layer = CayleyConv(features, kernel_size, param_dtype=jnp.float64, bias_init=nn.initializers.ones_init(), **options)
    x = jax.random.normal(jax.random.key(1), (2, *sizes, channels))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    made = jax.jit(layer.apply)(variables, x)
    own = {name: value for name, value in options.items() if name != "use_bias"}
    form = parametrizations.cayley_convolution(sizes, **own)
    whole = Conv(features, kernel_size, padding="CIRCULAR", param_dtype=jnp.float64, parametrization=form, **options)
    assert_allclose(made, jax.jit(whole.apply)(variables, x), atol=1e-13)
    assert_allclose(spectrum(layer, variables, (*sizes, channels)), 1, atol=1e-12)
    gradient = jax.jit(jax.grad(lambda variables: jnp.sum(jnp.sin(layer.apply(variables, x)))))
    assert all(np.any(leaf != 0) & np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(variables)))
    zero = jax.tree.map(jnp.zeros_like, variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(zero)))


@pytest.mark.parametrize(
    ("sizes", "channels", "features", "options"),
    [
        ((7, 5), 2, 3, {}),
        ((6, 9), 2, 6, {"strides": (2, 3), "feature_group_count": 2, "eps": 0.9}),
        ((5,), 4, 1, {"use_bias": False}),
    ],
)
def test_conv_norm_is_the_convolution_with_rows_of_unit_length(sizes, channels, features, options, x64):
    kernel_size = (3,) * len(sizes)
    layer = ConvNorm(features, kernel_size, param_dtype=jnp.float64, bias_init=nn.initializers.ones_init(), **options)
    x = jax.random.normal(jax.random.key(1), (2, *sizes, channels))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    plain = nn.Conv(
        features, kernel_size, padding="CIRCULAR", param_dtype=jnp.float64, bias_init=nn.initializers.ones_init(),
        **{name: value for name, value in options.items() if name != "eps"},
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, variables, jax.jit(plain.init)(jax.random.key(0), x))
    made = jax.jit(layer.apply)(variables, x)
    own = {name: value for name, value in options.items() if name != "use_bias"}
    form = parametrizations.row_normalized(sizes, **own)
    own = {name: value for name, value in options.items() if name != "eps"}
    whole = Conv(features, kernel_size, padding="CIRCULAR", param_dtype=jnp.float64, parametrization=form, **own)
    assert_allclose(made, jax.jit(whole.apply)(variables, x), atol=1e-13)
    s = spectrum(layer, variables, (*sizes, channels))
    if "eps" not in options:  # each output channel is an isometry
        assert 1 - 1e-12 <= s[0] <= features**0.5 + 1e-12
        assert features > 1 or np.ptp([*s[: sizes[0]], 1.0]) < 1e-12
    value = jax.jit(lambda variables: (layer.apply(variables, x), jax.grad(
        lambda variables: jnp.sum(jnp.sin(layer.apply(variables, x))))(variables)))  # fmt: skip
    for each in (variables, jax.tree.map(jnp.zeros_like, variables)):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(value(each)))
    half = ConvNorm(features, kernel_size, dtype=jnp.bfloat16, **options)
    rounded = half.apply(variables, x)
    assert rounded.dtype == jnp.bfloat16
    assert_allclose(rounded.astype(jnp.float32), made, atol=0.1)


def flax_network(conv, dense, conv_form, dense_form):
    """Layers of Flax, or ours of the same names with parametrizations."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = conv(3, (2, 2), strides=2, param_dtype=jnp.float64, name="first", **conv_form)(x)
            return dense(2, param_dtype=jnp.float64, name="last", **dense_form)(x.reshape(x.shape[0], -1))

    return Network()


def test_parameters_to_and_fro(x64):
    """Those of a network of Flax's own layers, by path; exact where `init` is."""
    forms = {"first": parametrizations.factored(), "last": parametrizations.cayley()}
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
    theirs = flax_network(nn.Conv, nn.Dense, {}, {})
    params = theirs.init(jax.random.key(0), x)["params"]
    params["last"]["kernel"] = jnp.linalg.qr(params["last"]["kernel"])[0]
    own = flax_network(Conv, Dense, *({"parametrization": forms[name]} for name in ("first", "last")))
    raw = raw_params(params, forms.get)
    struct = jax.eval_shape(own.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, raw) == jax.tree.map(lambda leaf: leaf.shape, struct)
    expected = theirs.apply({"params": params}, x)
    assert_allclose(own.apply({"params": raw}, x), expected, atol=1e-12)
    back = applied_params(raw, forms.get)
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-13), back, params)
    # one layer by itself, and layers without a parametrization
    alone = raw_params(params["first"], forms["first"])
    jax.tree.map(np.testing.assert_array_equal, alone, raw["first"])
    jax.tree.map(np.testing.assert_array_equal, raw_params(params, {}.get), params)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, raw)  # trained: the applied kernels give the same in Flax's layers
    made = own.apply({"params": moved}, x)
    assert_allclose(theirs.apply({"params": applied_params(moved, forms.get)}, x), made, atol=1e-12)
    with pytest.raises(TypeError, match="params must be nested mappings, got list"):
        raw_params([params], forms.get)


def test_strides_of_none_and_sizes_of_numpy():
    """As in Flax, where None stands for one."""
    x, key = inputs_of((3,)), jax.random.key(0)
    for made in (Conv, CayleyConv, ConvNorm):
        some, same = made(3, np.int64(3), strides=None), made(3, (3,), strides=1)
        variables = same.init(key, x)
        jax.tree.map(np.testing.assert_array_equal, some.init(key, x), variables)
        np.testing.assert_array_equal(some.apply(variables, x), same.apply(variables, x))
    bounded = Conv(3, (3,), strides=None, parametrization=parametrizations.aol())
    bounded.apply(bounded.init(key, x), x)


def test_16_bits_are_computed_in_32():
    x = inputs_of((3, 3))
    layer = CayleyConv(3, (3, 3), dtype=jnp.bfloat16)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    made = layer.apply(variables, x)
    assert made.dtype == jnp.bfloat16
    exact = CayleyConv(3, (3, 3)).apply(variables, x)
    assert_allclose(made.astype(jnp.float32), exact, atol=0.05)


def test_orthonormal_dense(x64):
    for features in (5, 3, 2):
        layer = Dense(features, param_dtype=jnp.float64, parametrization=parametrizations.cayley())
        variables = jax.jit(layer.init)(jax.random.key(0), jnp.ones(3))
        assert_allclose(spectrum(layer, variables, (3,)), 1, atol=1e-13)


def test_what_is_refused():
    x, key = inputs_of((3, 3)), jax.random.key(0)
    form = parametrizations.row_normalized((6, 5))
    with pytest.raises(ValueError, match=r"padding='CIRCULAR'.*got padding='SAME'"):
        Conv(3, (3, 3), parametrization=form).init(key, x)
    with pytest.raises(ValueError, match=r"inputs of the sizes \(6, 5\).*\(6, 4\)"):
        Conv(3, (3, 3), padding="CIRCULAR", parametrization=form).init(key, x[:, :, :4])
    with pytest.raises(ValueError, match="without dilation, got kernel_dilation=\\(1, 1\\) and input_dilation=2"):
        Conv(3, (3, 3), padding="CIRCULAR", input_dilation=2, parametrization=form).init(key, x)
    with pytest.raises(ValueError, match="groups"):
        Conv(3, (3, 3), feature_group_count=3).init(key, x)
    for own, layers, message in (
        ({"strides": 2}, {}, r"for strides=\(2, 2\), and the layer has \(1, 1\)"),
        ({}, {"strides": (1, 2)}, r"for strides=\(1, 1\), and the layer has \(1, 2\)"),
        ({"strides": 2}, {"strides": 2, "kernel_dilation": 2}, "needs kernel_dilation=1"),
        ({"feature_group_count": 2}, {}, "for feature_group_count=2, and the layer has 1"),
        ({}, {"padding": "REFLECT"}, "knows nothing of padding='REFLECT'"),
        ({"strides": 4}, {"strides": 4, "padding": "CIRCULAR"}, r"strides \(4, 4\) must divide .* \(6, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Conv(4, (3, 3), parametrization=parametrizations.aol(**own), **layers).init(key, x)
    with pytest.raises(ValueError, match="at most the input's"):
        CayleyConv(3, (7, 3)).init(key, x)


def test_the_top_of_the_spectrum_by_the_library(key):
    layer = Conv(4, (3, 3), use_bias=False, parametrization=parametrizations.aol())
    variables = jax.jit(layer.init)(key, jnp.zeros((8, 8, 2)))
    operator = sx.jacobian_operator(lambda x: layer.apply(variables, x), jnp.zeros((8, 8, 2)))
    assert 0.3 < float(sx.spectral_norm(operator, key=key)) <= 1
