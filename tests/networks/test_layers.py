"""Each layer against its formula, against Flax with the same weights, and against what it refuses."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.networks import layers

EMPTY = {"params": {}}


def sample(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def randomised(variables, seed=1):
    """Give every parameter, biases and scales too, random values."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), variables)


# ------------------------------------------------------------------------------------------------ shapes


SHAPES = {
    "dense": (layers.dense(3), (5,), (3,)),
    "dense on an image": (layers.dense(3), (4, 5, 2), (4, 5, 3)),
    "conv 1-D same, stride does not divide": (layers.convolution(3, (4,), strides=3, padding="SAME"), (8, 2), (3, 3)),
    "conv 1-D valid": (layers.convolution(3, (4,), strides=3, padding="VALID"), (9, 2), (2, 3)),
    "conv 1-D full": (layers.convolution(3, (4,), padding="FULL", kernel_dilation=2), (9, 2), (15, 3)),
    "conv 2-D same": (layers.convolution(4, (3, 2), strides=2, padding="SAME"), (7, 4, 3), (4, 2, 4)),
    "conv 2-D circular": (layers.convolution(4, (3, 4), strides=(2, 3), padding="CIRCULAR"), (7, 5, 3), (4, 2, 4)),
    "conv 2-D explicit": (layers.convolution(4, (3, 3), padding=[(0, 1), (2, 3)]), (7, 5, 3), (6, 8, 4)),
    "conv 2-D groups": (layers.convolution(4, (3, 3), padding="SAME", feature_group_count=2), (7, 5, 6), (7, 5, 4)),
    "conv 3-D": (layers.convolution(2, (3, 3, 3), padding="VALID"), (4, 5, 3, 2), (2, 3, 1, 2)),
    "activation": (layers.activation("relu"), (4, 3), (4, 3)),
    "average pool": (layers.average_pool(2), (5, 7, 3), (2, 3, 3)),
    "average pool same": (layers.average_pool(2, padding="SAME"), (5, 7, 3), (3, 4, 3)),
    "average pool overlapping": (layers.average_pool((3, 2), strides=1), (5, 7, 3), (3, 6, 3)),
    "max pool": (layers.max_pool(3, strides=2, padding=[(1, 0), (1, 1)]), (6, 7, 3), (3, 4, 3)),
    "global pool": (layers.global_average_pool(), (6, 7, 3), (3,)),
    "flatten": (layers.flatten(), (6, 7, 3), (126,)),
    "flatten a scalar": (layers.flatten(), (), (1,)),
    "batch norm": (layers.batch_norm(), (6, 3), (6, 3)),
    "layer norm": (layers.layer_norm(), (6, 3), (6, 3)),
    "skip": (layers.skip(layers.dense(5), rho=0.5), (5,), (5,)),
    "skip with projection": (layers.skip(layers.dense(4), projection=layers.dense(4)), (5,), (4,)),
    "concatenating skip": (layers.concatenating_skip(layers.dense(4)), (3, 5), (3, 9)),
    "empty chain": (layers.chain(), (3, 5), (3, 5)),
}


@pytest.mark.parametrize("case", SHAPES)
def test_output_shape_is_the_shape_of_the_output(case, key):
    net, input_shape, expected = SHAPES[case]
    assert net.output_shape(input_shape) == expected
    variables = net.init(key, input_shape)
    assert set(variables) == {"params", "batch_stats"}
    y = net.apply(variables, sample(input_shape))
    assert y.shape == expected
    assert y.dtype == jnp.float32
    assert bool(jnp.isfinite(y).all())


@pytest.mark.parametrize("case", SHAPES)
def test_layers_are_values(case, key):
    """Equal fields make equal layers with equal hashes; nothing can be changed."""
    net, _, _ = SHAPES[case]
    twin = dataclasses.replace(net)
    assert net == twin
    assert hash(net) == hash(twin)
    for field in dataclasses.fields(net):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(net, field.name, None)


# ------------------------------------------------------------------------------------------------ Flax


CONVOLUTIONS = {
    "1-D": ((9, 2), {"features": 3, "kernel_size": (4,), "padding": "SAME"}),
    "1-D strides": ((8, 2), {"features": 3, "kernel_size": (3,), "strides": 3, "padding": "SAME"}),
    "2-D": ((7, 6, 2), {"features": 3, "kernel_size": (3, 3), "padding": "SAME"}),
    "2-D even kernel": ((7, 6, 2), {"features": 3, "kernel_size": (2, 4), "strides": (2, 1), "padding": "SAME"}),
    "2-D valid": ((7, 6, 2), {"features": 3, "kernel_size": (3, 2), "strides": 2, "padding": "VALID"}),
    "2-D circular": ((7, 6, 2), {"features": 3, "kernel_size": (3, 4), "padding": "CIRCULAR"}),
    "2-D circular, strides and dilation": (
        (7, 6, 2),
        {"features": 3, "kernel_size": (3, 2), "strides": 2, "kernel_dilation": 2, "padding": "CIRCULAR"},
    ),
    "2-D explicit": ((5, 6, 2), {"features": 3, "kernel_size": (3, 2), "padding": ((2, 0), (1, 3))}),
    "2-D groups": ((5, 6, 4), {"features": 6, "kernel_size": (3, 3), "padding": "SAME", "feature_group_count": 2}),
    "2-D no bias": ((5, 6, 4), {"features": 6, "kernel_size": (3, 3), "padding": "SAME", "use_bias": False}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_equals_flax(case, key):
    shape, options = CONVOLUTIONS[case]
    net = layers.convolution(**options)
    variables = randomised(net.init(key, shape))
    renamed = {"input_dilation": 1, **options}
    x = sample(shape)
    assert_allclose(net.apply(variables, x), nn.Conv(**renamed).apply(variables, x[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pads", [[(-1, 1)], [(-2, -1)], [(5, 0)], [(3, -2)]])
@pytest.mark.parametrize("strides", [1, 2])
def test_negative_pads_crop_one_by_one_and_in_a_batch(pads, strides):
    net = layers.convolution(4, (3,), strides=strides, padding=pads, use_bias=False)
    (low, high), kernel, xs = pads[0], sample((3, 2, 4)), sample((6, 9, 2), 1)
    padded = np.pad(xs.astype(np.float64), ((0, 0), (max(low, 0), max(high, 0)), (0, 0)))
    padded = padded[:, max(-low, 0) : padded.shape[1] - max(-high, 0)]
    positions = range(0, padded.shape[1] - 2, strides)
    expected = np.stack([np.einsum("nti,tio->no", padded[:, p : p + 3], kernel) for p in positions], 1)
    variables = {"params": {"kernel": jnp.asarray(kernel)}}
    assert_allclose(jax.vmap(lambda x: net.apply(variables, x))(xs), expected, atol=1e-5)
    assert_allclose(net.apply(variables, xs[2]), expected[2], atol=1e-5)


def test_full_padding_is_numpy_full_convolution(key):
    net = layers.convolution(1, (3,), padding="FULL", use_bias=False)
    x, kernel = sample((6,)), sample((3,), 1)
    y = net.apply({"params": {"kernel": kernel[:, None, None]}}, x[:, None])[:, 0]
    # A convolution layer is a cross-correlation: the kernel isn't reversed.
    assert_allclose(y, np.convolve(x, kernel[::-1], "full"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_equals_flax(shape, use_bias, key):
    net = layers.dense(4, use_bias=use_bias)
    variables = randomised(net.init(key, shape))
    x = sample(shape)
    expected = nn.Dense(4, use_bias=use_bias).apply(variables, x)
    assert_allclose(net.apply(variables, x), expected, rtol=1e-6, atol=1e-6)


def test_layer_norm_equals_flax(key):
    net = layers.layer_norm(epsilon=1e-3)
    variables = randomised(net.init(key, (4, 6)))
    x = sample((4, 6))
    assert_allclose(net.apply(variables, x), nn.LayerNorm(epsilon=1e-3).apply(variables, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (1, 1))])
@pytest.mark.parametrize(("window", "strides"), [((2, 3), (2, 1)), ((3, 3), (3, 3))])
def test_pooling_equals_flax(padding, window, strides):
    x = sample((7, 6, 3))
    average = layers.average_pool(window, strides=strides, padding=padding)
    exclusive = layers.average_pool(window, strides=strides, padding=padding, count_include_pad=False)
    largest = layers.max_pool(window, strides=strides, padding=padding)
    with jax.numpy_dtype_promotion("standard"):  # Flax divides by an integer array.
        expected = nn.avg_pool(x[None], window, strides, padding)[0]
        without_padding = nn.avg_pool(x[None], window, strides, padding, count_include_pad=False)[0]
        maximum = nn.max_pool(x[None], window, strides, padding)[0]
    assert_allclose(average.apply(EMPTY, x), expected, rtol=1e-6, atol=1e-6)
    assert_allclose(exclusive.apply(EMPTY, x), without_padding, rtol=1e-6, atol=1e-6)
    assert_allclose(largest.apply(EMPTY, x), maximum)


def test_batch_norm_equals_flax_in_training_and_in_inference(key):
    net = layers.batch_norm(momentum=0.8, epsilon=1e-3)
    variables = randomised(net.init(key, (5, 3)))
    variables["batch_stats"]["var"] = jnp.abs(variables["batch_stats"]["var"]) + 0.1
    xs = sample((7, 5, 3)) * 3 + 2
    peer = nn.BatchNorm(momentum=0.8, epsilon=1e-3)
    expected, expected_updates = peer.apply(variables, xs, use_running_average=False, mutable=["batch_stats"])
    ys, updates = in_training(net, variables, xs)
    assert_allclose(ys, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-5), updates, dict(expected_updates))
    inference = jax.vmap(lambda x: net.apply(variables, x))(xs)
    assert_allclose(inference, peer.apply(variables, xs, use_running_average=True), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------ formulas


def in_training(net, variables, xs):
    """Apply to a batch; `out_axes=None` passes only if the updates are the same for every sample."""
    return jax.vmap(lambda x: net.apply(variables, x, train=True), axis_name="batch", out_axes=(0, None))(xs)


@pytest.mark.usefixtures("x64")
def test_batch_norm_in_training_equals_numpy():
    net = layers.batch_norm(momentum=0.7, epsilon=1e-2)
    variables = randomised(net.init(jax.random.key(0), (5, 4, 3)))
    xs = sample((6, 5, 4, 3), dtype=np.float64) + 1e4  # Far from zero: mean(x^2) - mean(x)^2 would lose digits.
    mean, var = xs.mean((0, 1, 2)), xs.var((0, 1, 2))
    scale, bias = (np.asarray(variables["params"][name]) for name in ("scale", "bias"))
    ys, updates = in_training(net, variables, xs)
    assert_allclose(ys, (xs - mean) / np.sqrt(var + 1e-2) * scale + bias, rtol=1e-10, atol=1e-10)
    old = variables["batch_stats"]
    assert_allclose(updates["batch_stats"]["mean"], 0.7 * np.asarray(old["mean"]) + 0.3 * mean, rtol=1e-12)
    assert_allclose(updates["batch_stats"]["var"], 0.7 * np.asarray(old["var"]) + 0.3 * var, rtol=1e-12)


def test_batch_norm_keeps_digits_far_from_zero(key):
    """In float32 a variance of 1 around 10000 is lost by mean(x^2) - mean(x)^2."""
    xs = np.array([[9999.0], [10001.0]], np.float32)
    _, updates = in_training(layers.batch_norm(momentum=0.0), layers.batch_norm().init(key, (1,)), xs)
    assert_allclose(updates["batch_stats"]["var"], [1.0], rtol=1e-6)


def test_batch_norm_takes_two_axes(key):
    net = layers.batch_norm(momentum=0.0, axis_name=("rows", "columns"))
    variables = net.init(key, (3,))
    xs = sample((2, 4, 3))
    inner = jax.vmap(lambda x: net.apply(variables, x, train=True), axis_name="columns", out_axes=(0, None))
    _, updates = jax.vmap(inner, axis_name="rows", out_axes=(0, None))(xs)
    assert_allclose(updates["batch_stats"]["mean"], xs.mean((0, 1)), rtol=1e-5, atol=1e-6)


ACTIVATIONS = {
    "linear": (lambda t: t, True),
    "identity": (lambda t: t, True),
    "relu": (lambda t: np.maximum(t, 0), True),
    "leaky_relu": (lambda t: np.where(t >= 0, t, 0.2 * t), True),
    "abs": (np.abs, True),
    "hard_tanh": (lambda t: np.clip(t, -1, 1), True),
    "tanh": (np.tanh, False),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_formulas(name):
    function, piecewise_affine = ACTIVATIONS[name]
    net = layers.activation(name, negative_slope=0.2)
    t = np.linspace(-3, 3, 13, dtype=np.float32)
    assert_allclose(net.apply(EMPTY, t), function(t), rtol=1e-6, atol=1e-7)
    assert net.piecewise_affine is piecewise_affine


def test_gelu_is_the_exact_one():
    from scipy.stats import norm

    t = np.linspace(-3, 3, 13)
    assert_allclose(layers.activation("gelu").apply(EMPTY, t.astype(np.float32)), t * norm.cdf(t), atol=1e-6)
    assert not layers.activation("gelu").piecewise_affine


@pytest.mark.parametrize("name", [*ACTIVATIONS, "gelu"])
def test_gain_keeps_the_second_moment(name):
    """Quadrature against the normal density, on a grid that has every kink among its points."""
    net = layers.activation(name, negative_slope=0.2)
    with jax.enable_x64(True):
        t = np.linspace(-10, 10, 20001)
        density = np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
        moment = np.trapezoid(np.asarray(net.apply(EMPTY, t)) ** 2 * density, t)
    assert_allclose(net.gain * moment, 1.0, rtol=1e-6)


def test_slopes_at_the_kinks():
    slopes = {
        name: float(jax.grad(lambda t, n=name: layers.activation(n).apply(EMPTY, t))(0.0)) for name in ACTIVATIONS
    }
    assert (slopes["relu"], slopes["abs"], slopes["leaky_relu"]) == (0.0, 1.0, 1.0)


def test_unread_slopes_do_not_make_layers_differ():
    assert layers.activation("relu", negative_slope=0.3) == layers.activation("relu")
    assert layers.activation("leaky_relu", negative_slope=0.3) != layers.activation("leaky_relu")
    assert layers.activation("identity") == layers.activation("linear")


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0, -2])
def test_skip_formulas(rho, key):
    body, projection = layers.dense(4), layers.dense(4, use_bias=False)
    x = sample((4,))
    net = layers.skip(body, rho=rho)
    variables = randomised(net.init(key, (4,)))
    inner = body.apply({"params": variables["params"]["body"]}, x)
    assert_allclose(net.apply(variables, x), inner + np.float32(rho) * x, rtol=1e-6, atol=1e-6)

    net = layers.skip(body, rho=rho, projection=projection)
    variables = randomised(net.init(key, (4,)))
    inner = body.apply({"params": variables["params"]["body"]}, x)
    added = np.float32(rho) * projection.apply({"params": variables["params"]["projection"]}, x)
    assert_allclose(net.apply(variables, x), inner + added, rtol=1e-6, atol=1e-6)

    net = layers.concatenating_skip(body, rho=rho)
    variables = randomised(net.init(key, (4,)))
    inner = body.apply({"params": variables["params"]["body"]}, x)
    assert_allclose(net.apply(variables, x), np.concatenate([np.float32(rho) * x, inner]), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_concatenating_skip_singular_values():
    """[rho I ; J] has the singular values sqrt(rho^2 + s_i(J)^2)."""
    net = layers.concatenating_skip(layers.chain(layers.dense(5), layers.activation("leaky_relu")), rho=0.7)
    variables = net.init(jax.random.key(3), (5,))
    x = sample((5,), dtype=np.float64)
    whole = np.linalg.svd(jax.jacfwd(lambda x: net.apply(variables, x))(x), compute_uv=False)
    body = jax.jacfwd(lambda x: net.body.apply({"params": variables["params"]["body"]}, x))(x)
    assert_allclose(whole, np.sqrt(0.49 + np.linalg.svd(body, compute_uv=False) ** 2), rtol=1e-12)


# ------------------------------------------------------------------------------------------------ chains and trees


def everything():
    """A net with every kind of layer in it, nested."""
    block = layers.chain(
        layers.convolution(4, (3, 3), padding="SAME"), layers.batch_norm(), layers.activation("leaky_relu")
    )
    return layers.chain(
        layers.convolution(4, (3, 3), strides=2, padding="CIRCULAR"),
        layers.activation("gelu"),
        layers.skip(block, rho=0.5),
        layers.skip(layers.max_pool(2), projection=layers.chain(layers.average_pool(2), layers.dense(4))),
        layers.concatenating_skip(layers.chain(layers.layer_norm(), layers.dense(3)), rho=0.5),
        layers.batch_norm(),
        layers.flatten(),
        layers.dense(5),
    )


def test_names_in_the_trees(key):
    variables = everything().init(key, (9, 9, 2))
    shapes = jax.tree.map(lambda p: p.shape, variables)
    assert shapes["params"] == {
        "conv_0": {"kernel": (3, 3, 2, 4), "bias": (4,)},
        "skip_2": {
            "body": {"conv_0": {"kernel": (3, 3, 4, 4), "bias": (4,)}, "batch_norm_1": {"scale": (4,), "bias": (4,)}}
        },
        "skip_3": {"projection": {"dense_1": {"kernel": (4, 4), "bias": (4,)}}},
        "concatenating_skip_4": {
            "body": {"layer_norm_0": {"scale": (4,), "bias": (4,)}, "dense_1": {"kernel": (4, 3), "bias": (3,)}}
        },
        "batch_norm_5": {"scale": (7,), "bias": (7,)},
        "dense_7": {"kernel": (28, 5), "bias": (5,)},
    }
    assert shapes["batch_stats"] == {
        "skip_2": {"body": {"batch_norm_1": {"mean": (4,), "var": (4,)}}},
        "batch_norm_5": {"mean": (7,), "var": (7,)},
    }


def test_training_returns_the_whole_tree_of_statistics(key):
    net = everything()
    variables = net.init(key, (9, 9, 2))
    before = jax.tree.map(np.array, variables)
    _, updates = jax.jit(lambda variables, xs: in_training(net, variables, xs))(variables, sample((3, 9, 9, 2)))
    assert set(updates) == {"batch_stats"}
    assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), updates["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(moved))
    jax.tree.map(np.testing.assert_array_equal, variables, before)

    net = layers.dense(3)
    _, updates = net.apply(net.init(key, (2,)), np.ones(2, np.float32), train=True)
    assert updates == {"batch_stats": {}}


def test_same_key_same_first_layers(key):
    """A deeper network from the same key begins with the same weights."""
    short = layers.chain(layers.dense(4), layers.dense(4)).init(key, (3,))
    long = layers.chain(layers.dense(4), layers.dense(4), layers.dense(4)).init(key, (3,))
    np.testing.assert_array_equal(short["params"]["dense_1"]["kernel"], long["params"]["dense_1"]["kernel"])
    assert (long["params"]["dense_1"]["kernel"] != long["params"]["dense_2"]["kernel"]).any()


@pytest.mark.parametrize(("scale", "mode", "fan"), [(1.0, "fan_in", 150), (2.0, "fan_in", 150), (2.0, "fan_out", 720)])
def test_variance_scaling(scale, mode, fan):
    weights = layers.variance_scaling(scale, mode=mode)(jax.random.key(5), (5, 3, 10, 48), jnp.float32)
    # 7200 draws: the relative error of the variance has a standard deviation of at most sqrt(2 / 7200) = 0.017.
    assert_allclose(float(weights.var()) * fan, scale, rtol=0.08)


# ------------------------------------------------------------------------------------------------ transformations


@pytest.mark.parametrize("train", [False, True])
def test_gradients_are_finite_and_right(train, x64):
    """Every leaf's gradient against a central difference along a random direction, in inference and in training."""
    net = everything()
    variables = net.init(jax.random.key(4), (9, 9, 2))
    xs = sample((3, 9, 9, 2), dtype=np.float64)

    @jax.jit
    def loss(params):
        filled = {"params": params, "batch_stats": variables["batch_stats"]}
        if train:
            ys, _ = in_training(net, filled, xs)
        else:
            ys = jax.vmap(lambda x: net.apply(filled, x))(xs)
        return jnp.sum(jnp.sin(ys))

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))
    direction = randomised(variables["params"], seed=8)
    slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    step = 1e-6

    def moved(sign):
        return loss(jax.tree.map(lambda p, d: p + sign * step * d, variables["params"], direction))

    assert_allclose(float(slope), float((moved(1) - moved(-1)) / (2 * step)), rtol=1e-6)
    _, tangent = jax.jit(lambda p, d: jax.jvp(loss, (p,), (d,)))(variables["params"], direction)
    assert_allclose(float(tangent), float(slope), rtol=1e-10)


def test_ten_calls_trace_once(key):
    """A layer is a static argument: another equal layer neither traces nor compiles again."""
    traces = []

    @jax.jit(static_argnums=0)
    def apply(net, variables, x):
        traces.append(net)
        return net.apply(variables, x)

    variables = everything().init(key, (9, 9, 2))
    for seed in range(10):
        apply(everything(), variables, sample((9, 9, 2), seed))
    assert len(traces) == 1


def test_vmap_of_vmap_and_scan(key):
    net = everything()
    variables = net.init(key, (9, 9, 2))
    xs = sample((2, 3, 9, 9, 2))
    apply = jax.jit(lambda x: net.apply(variables, x))
    one = np.stack([np.stack([apply(x) for x in row]) for row in xs])
    both = jax.jit(jax.vmap(jax.vmap(lambda x: net.apply(variables, x))))(xs)
    assert_allclose(both, one, rtol=2e-4, atol=1e-5)
    _, scanned = jax.lax.scan(lambda carry, x: (carry, net.apply(variables, x)), None, xs[0])
    assert_allclose(scanned, one[0], rtol=2e-4, atol=1e-5)
    shape = jax.eval_shape(lambda x: net.apply(variables, x), jax.ShapeDtypeStruct((9, 9, 2), jnp.float32))
    assert shape.shape == (5,)


def test_init_under_jit_and_eval_shape(key):
    net = everything()
    variables = net.init(key, (9, 9, 2))
    jitted = jax.jit(lambda key: net.init(key, (9, 9, 2)))(key)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-6, atol=1e-7), jitted, variables)
    assert jax.eval_shape(lambda key: net.init(key, (9, 9, 2)), key)["params"]["dense_7"]["kernel"].shape == (28, 5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_is_kept(dtype, key):
    net = layers.chain(
        layers.convolution(4, (3,), padding="SAME", param_dtype=dtype),
        layers.batch_norm(param_dtype=dtype),
        layers.activation("relu"),
        layers.skip(layers.dense(4, param_dtype=dtype), rho=0.3),
        layers.layer_norm(param_dtype=dtype),
        layers.average_pool(2, padding="SAME", count_include_pad=False),
        layers.max_pool(2),
        layers.flatten(),
    )
    variables = net.init(key, (7, 2))
    assert {p.dtype for p in jax.tree.leaves(variables["params"])} == {jnp.dtype(dtype)}
    # Statistics are at least float32: sums of many small steps would not move a 16-bit number.
    assert {p.dtype for p in jax.tree.leaves(variables["batch_stats"])} == {jnp.dtype(jnp.float32)}
    xs = jnp.asarray(sample((3, 7, 2)), dtype)
    ys, updates = in_training(net, variables, xs)
    assert ys.dtype == dtype
    assert bool(jnp.isfinite(ys).all())
    assert jax.tree.map(lambda a: a.dtype, updates["batch_stats"]) == jax.tree.map(
        lambda a: a.dtype, variables["batch_stats"]
    )


@pytest.mark.usefixtures("x64")
def test_default_dtype_follows_the_64_bit_mode():
    net = everything()
    variables = net.init(jax.random.key(0), (9, 9, 2))
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float64")}
    assert net.apply(variables, sample((9, 9, 2), dtype=np.float64)).dtype == jnp.float64


def test_mixed_dtypes_are_refused(key):
    net = layers.dense(3)
    variables = net.init(key, (2,))
    with pytest.raises(TypeError, match="parameters' dtype float32, got bfloat16"):
        net.apply(variables, jnp.ones(2, jnp.bfloat16))
    with pytest.raises(TypeError, match="floating-point dtype, got int32"):
        layers.batch_norm().apply(layers.batch_norm().init(key, (2,)), jnp.ones(2, jnp.int32))


# ------------------------------------------------------------------------------------------------ errors


def test_missing_padding():
    with pytest.raises(TypeError, match="padding"):
        layers.convolution(3, (3, 3))  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: layers.activation("swoosh"),
            ValueError,
            r"activation must be one of 'abs', 'gelu', .*'tanh'; got 'swo",
        ),
        (lambda: layers.convolution(3, (3, 3), padding="CAUSAL"), ValueError, "'SAME', 'VALID', 'FULL', 'CIRCULAR'"),
        (lambda: layers.convolution(3, (3, 3), padding=[(1, 1)]), ValueError, "1 pairs for 2 axes"),
        (lambda: layers.convolution(3, (3, 3), padding=1), ValueError, "pair of integers"),
        (lambda: layers.convolution(3, 3, padding="SAME"), TypeError, r"such as \(3, 3\); got 3"),
        (lambda: layers.convolution(3, (3, 3), strides=(1, 2, 3), padding="SAME"), ValueError, "2 entries"),
        (lambda: layers.convolution(3, (3, 0), padding="SAME"), ValueError, "at least 1, got 0"),
        (lambda: layers.convolution(3, (3,) * 4, padding="SAME"), ValueError, "1, 2 or 3 entries"),
        (
            lambda: layers.convolution(3, (3,), padding="SAME", feature_group_count=2),
            ValueError,
            "must divide features",
        ),
        (lambda: layers.dense(0), ValueError, "features must be at least 1, got 0"),
        (lambda: layers.dense(2.5), TypeError, "features must be an integer"),
        (lambda: layers.dense(2, param_dtype=jnp.int32), TypeError, "int32"),
        (lambda: layers.average_pool(2, padding="FULL"), ValueError, "'SAME', 'VALID'"),
        (lambda: layers.max_pool("2"), TypeError, "window must be an integer"),
        (lambda: layers.batch_norm(momentum=1.5), ValueError, r"momentum must lie in \[0.0, 1.0\], got 1.5"),
        (lambda: layers.layer_norm(epsilon=-1.0), ValueError, "epsilon"),
        (lambda: layers.skip(layers.dense(2), rho=float("nan")), ValueError, "rho"),
        (lambda: layers.skip(jnp.tanh), TypeError, "layer must be a layer"),
        (lambda: layers.chain(layers.dense(2), jnp.tanh), TypeError, "layer 1 of chain must be a layer"),
        (lambda: layers.variance_scaling(0.0), ValueError, "scale"),
        (lambda: layers.linear_maps(jnp.tanh, (2,)), TypeError, "net must be a layer"),
    ],
)
def test_bad_hyper_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


CONV = layers.convolution(3, (3, 3), padding="VALID")


@pytest.mark.parametrize(
    ("net", "input_shape", "message"),
    [
        (layers.dense(3), (), "got a scalar"),
        (CONV, (5, 5), "needs a sample of 2 spatial axes and a channel axis"),
        (CONV, (2, 5, 1), "does not fit"),
        (layers.convolution(4, (3,), padding="SAME", feature_group_count=2), (5, 3), "must divide the channels, got 3"),
        (layers.skip(layers.dense(3)), (2,), r"the input, \(2,\), got \(3,\); where widths differ, give a projection"),
        (layers.skip(layers.dense(1)), (2,), r"the input, \(2,\), got \(1,\)"),
        (
            layers.skip(layers.dense(3), projection=layers.dense(2)),
            (4,),
            r"the projection's output, \(2,\), got \(3,\)",
        ),
        (layers.concatenating_skip(layers.flatten()), (2, 2), r"\(2, 'channels'\), got \(4,\)"),
        (layers.average_pool((2, 2)), (4, 3), "window must be an integer or have 1 entries"),
        (layers.max_pool(5), (4, 3), "does not fit"),
        (layers.global_average_pool(), (4,), "spatial axes"),
        (layers.chain(layers.flatten(), CONV), (5, 5, 1), "^conv_1: conv: "),
        (layers.dense(3), (0,), "at least 1, got 0"),
    ],
)
def test_bad_input_shapes_are_refused_by_init(net, input_shape, message, key):
    with pytest.raises(ValueError, match=message):
        net.init(key, input_shape)
    with pytest.raises(ValueError, match=message):
        net.output_shape(input_shape)


@pytest.mark.parametrize(
    ("net", "initialised", "given", "message"),
    [
        (layers.dense(3), (4,), (5,), r"shape \(..., 4\).*got \(5,\)"),
        (CONV, (5, 5, 2), (5, 5, 3), r"must have 2 channels.*got shape \(5, 5, 3\)"),
        (CONV, (5, 5, 2), (8, 5, 5, 2), r"got shape \(8, 5, 5, 2\); a batch goes through jax.vmap"),
        (layers.batch_norm(), (4,), (5,), r"must have 4 channels.*got shape \(5,\)"),
        (layers.layer_norm(), (4,), (1,), r"must have 4 channels.*got shape \(1,\)"),
        (layers.chain(layers.flatten(), layers.dense(2)), (2, 2), (2, 3), r"dense_1: .*\(..., 4\).*got \(6,\)"),
    ],
)
def test_another_shape_than_the_initialised_one(net, initialised, given, message, key):
    variables = net.init(key, initialised)
    with pytest.raises(ValueError, match=message):
        net.apply(variables, np.ones(given, np.float32))


def test_batch_norm_outside_of_its_axis(key):
    net = layers.chain(layers.batch_norm())
    variables = net.init(key, (3,))
    x = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"batch_norm_0: .*'batch', which is not bound here"):
        net.apply(variables, x, train=True)
    with pytest.raises(ValueError, match="axis_name='batch'"):
        jax.vmap(lambda x: net.apply(variables, x, train=True))(x[None])


def test_bad_variables_and_keys(key):
    net = layers.dense(3)
    with pytest.raises(ValueError, match=r"mapping with 'params'.*got \['kernel'\]"):
        net.apply({"kernel": np.ones((2, 3))}, np.ones(2, np.float32))
    with pytest.raises(ValueError, match="must hold 'kernel'"):
        net.apply({"params": {}}, np.ones(2, np.float32))
    with pytest.raises(ValueError, match="must hold 'mean'"):
        layers.batch_norm().apply({"params": {}}, np.ones(2, np.float32))
    with pytest.raises(TypeError, match="key must be one PRNG key"):
        net.init(jax.random.split(key), (2,))
    with pytest.raises(TypeError, match="input_shape must be a tuple"):
        net.init(key, 2)
