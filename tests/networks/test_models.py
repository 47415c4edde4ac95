"""The four builders: shapes at every image size, the size of each layer's map, skips, initial scale, and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits

from spectrax.networks import layers, models

BUILDERS = {"mlp": models.mlp, "convnet": models.convnet, "resnet": models.resnet, "densenet": models.densenet}


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images[..., None] / 16).astype(np.float32), data.target


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (5, 9, 3), (33, 20, 3), (1, 1, 1)])
@pytest.mark.parametrize("name", BUILDERS)
def test_any_image_size(name, shape, key):
    net = BUILDERS[name](10, width=4, depth=3)
    assert net.output_shape(shape) == (10,)
    variables = jax.eval_shape(lambda: net.init(key, shape))
    assert jax.eval_shape(net.apply, variables, jax.ShapeDtypeStruct(shape, jnp.float32)).shape == (10,)
    maps = layers.linear_maps(net, shape)
    assert set(jax.eval_shape(maps, variables["params"])) == set(maps.names)


@pytest.mark.parametrize(("shape", "limit", "side"), [((28, 28, 1), 784, 7), ((8, 8, 1), 256, 4)])
@pytest.mark.parametrize("name", BUILDERS)
def test_every_map_of_the_defaults_is_small_enough_to_factorise(name, shape, limit, side, key):
    """Checked on shapes only: nothing is computed."""
    net = BUILDERS[name](10)
    params = jax.eval_shape(lambda: net.init(key, shape))["params"]
    maps = jax.eval_shape(layers.linear_maps(net, shape), params)
    assert max(min(operator.shape) for operator in maps.values()) <= limit
    if name == "resnet":
        assert maps["skip_1/body/conv_0"].in_struct.shape == (side, side, 16)


@pytest.mark.parametrize(("side", "left"), [(1, 1), (7, 7), (8, 4), (14, 7), (15, 4), (28, 7), (32, 4), (224, 7)])
def test_the_stem_halves_until_no_side_is_longer_than_seven(side, left):
    stem = models.resnet(10).layers[0]
    assert stem.output_shape((side, 1, 3)) == (left, 1, 16)
    assert stem.output_shape((1, side, 3)) == (1, left, 16)


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize(("name", "others"), [("mlp", 1), ("convnet", 2), ("resnet", 2)])
def test_depth_counts_the_layers_with_maps(name, others, depth):
    """Besides: the readout, and for the convolutional ones the stem's one convolution at 8 x 8."""
    assert len(layers.linear_maps(BUILDERS[name](10, depth=depth), (8, 8, 1)).names) == depth + others


def test_names_of_the_default_resnet():
    assert layers.linear_maps(models.resnet(10), (28, 28, 1)).names == (
        "stem_0/conv_0",
        "stem_0/conv_2",
        *(f"skip_{index}/body/conv_0" for index in range(1, 5)),
        "dense_6",
    )


def test_resnet_is_its_formula(key):
    net = models.resnet(3, width=2, depth=2, rho=0.5, activation="abs")
    variables = net.init(key, (6, 5, 1))
    params = variables["params"]

    def conv(x, p):
        layer = layers.convolution(2, (3, 3), padding="SAME")
        return layer.apply({"params": p}, x)

    x = np.random.default_rng(0).normal(size=(6, 5, 1)).astype(np.float32)
    z = jnp.abs(conv(x, params["stem_0"]["conv_0"]))
    for block in ("skip_1", "skip_2"):
        z = jnp.abs(conv(z, params[block]["body"]["conv_0"])) + 0.5 * z
    expected = z.ravel() @ params["dense_4"]["kernel"] + params["dense_4"]["bias"]
    assert_allclose(net.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


def test_resnet_without_skips_is_the_convnet():
    assert models.resnet(10, rho=0) == models.convnet(10)
    assert models.mlp(10, rho=0.0) == models.mlp(10)
    assert models.mlp(10, rho=0.5) != models.mlp(10)


def test_densenet_channels():
    """Each half adds its layers' channels; the transition goes back to `width` and halves the image."""
    net = models.densenet(10, width=3, depth=5)
    shapes, shape = [], (8, 8, 1)
    for layer in net.layers:
        shape = layer.output_shape(shape)
        shapes.append(shape)
    assert shapes == [
        (4, 4, 3),
        (4, 4, 6),
        (4, 4, 9),
        (4, 4, 12),
        (4, 4, 3),
        (4, 4, 3),
        (2, 2, 3),
        (2, 2, 6),
        (2, 2, 9),
        (36,),
        (10,),
    ]


@pytest.mark.parametrize("normalization", ["batch", "layer"])
@pytest.mark.parametrize("name", BUILDERS)
def test_normalization(name, normalization, key):
    net = BUILDERS[name](10, width=4, depth=2, normalization=normalization)
    variables = jax.eval_shape(lambda: net.init(key, (8, 8, 1)))
    train = functools.partial(net.apply, train=True)
    batched = jax.vmap(train, in_axes=(None, 0), axis_name="batch", out_axes=(0, None))
    ys, updates = jax.eval_shape(batched, variables, jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32))
    assert ys.shape == (16, 10)
    assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    assert bool(updates["batch_stats"]) == (normalization == "batch")
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(variables["params"])]
    biases = [path for path in paths if "bias" in path and ("conv" in path or "dense" in path)]
    # Batch norm takes the place of the bias everywhere but in the readout.
    assert (len(biases) == 1) == (normalization == "batch")


@pytest.mark.parametrize(("rho", "low", "high"), [(0.0, 0.7, 1.4), (0.5, 0.7, 1.4), (1.0, 2.0, 3.3)])
def test_initial_weights_keep_the_second_moment(rho, low, high, key):
    """Linear blocks on a torus, 16 draws: times 1 below rho = 1, and (1 + 1/8)^8 = 2.57 at rho = 1.

    Each block's factor has a relative standard deviation of about sqrt(2 / 256), so the mean of 16 products of 8 has
    one of at most 0.07; the bounds are more than three of them away.
    """
    net = models.resnet(10, width=16, depth=8, rho=rho, activation="linear", padding="CIRCULAR")
    blocks = layers.chain(*net.layers[1:-2])

    def ratio(key):
        weights_key, sample_key = jax.random.split(key)
        z = jax.random.normal(sample_key, (4, 4, 16))
        return jnp.mean(blocks.apply(blocks.init(weights_key, z.shape), z) ** 2) / jnp.mean(z**2)

    assert low < float(jnp.mean(jax.jit(jax.vmap(ratio))(jax.random.split(key, 16)))) < high


@pytest.mark.slow
def test_resnet_without_normalisation_learns_the_digits(digits):
    images, labels = digits
    net = models.resnet(10, width=8, depth=8)
    params = net.init(jax.random.key(0), (8, 8, 1))["params"]
    tx = optax.adam(3e-3)

    def logits(params, xs):
        return jax.vmap(lambda x: net.apply({"params": params}, x))(xs)

    def loss(params, xs, ys):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, xs), ys).mean()

    @jax.jit
    def epoch(carry, batches):
        def step(carry, batch):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, *batch)
            with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer count.
                updates, state = tx.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, carry, batches)

    carry = (params, tx.init(params))
    batches = images[:1408].reshape(44, 32, 8, 8, 1), labels[:1408].reshape(44, 32)
    for _ in range(6):
        carry, losses = epoch(carry, batches)
    assert float(losses.mean()) < 0.3
    accuracy = float((logits(carry[0], images[1408:]).argmax(-1) == labels[1408:]).mean())
    assert accuracy > 0.85


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: models.convnet(10, rho=0.5), ValueError, "convnet has no skips, so rho must be 0, got 0.5"),
        (lambda: models.resnet(10, activation="swish"), ValueError, "activation must be one of 'abs'"),
        (lambda: models.resnet(10, activation=jnp.tanh), TypeError, "activation must be a name or a layer"),
        (
            lambda: models.resnet(10, normalization="group"),
            ValueError,
            "normalization must be one of None, 'batch', 'lay",
        ),
        (lambda: models.resnet(10, padding="VALID"), ValueError, "padding must be one of 'SAME', 'CIRCULAR'"),
        (lambda: models.densenet(10, depth=0), ValueError, "depth must be at least 1, got 0"),
        (lambda: models.mlp(10, width=1.5), TypeError, "width must be an integer"),
        (lambda: models.mlp(0), ValueError, "num_classes must be at least 1"),
        (lambda: models.resnet(10).output_shape((28, 28)), ValueError, r"stem_0: .*\(H, W, C\), got shape \(28, 28\)"),
    ],
)
def test_bad_hyper_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_leaky_activation_with_its_own_slope():
    net = models.resnet(10, activation=layers.activation("leaky_relu", negative_slope=0.2), padding="CIRCULAR")
    assert net.layers[1].body.layers[0].padding == "CIRCULAR"
    assert net.layers[1].body.layers[1].negative_slope == 0.2
