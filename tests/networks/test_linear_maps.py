"""Every listed linear map is the Jacobian of its layer, in the order and under the names that are promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.networks import layers

LAYERS = {
    "dense": (layers.dense(4), (6,)),
    "conv 1-D same": (layers.convolution(3, (3,), padding="SAME"), (7, 2)),
    "conv 1-D strides": (layers.convolution(3, (4,), strides=3, padding="SAME"), (8, 2)),
    "conv 1-D full": (layers.convolution(3, (4,), strides=2, padding="FULL"), (5, 2)),
    "conv 1-D circular": (layers.convolution(3, (4,), strides=2, padding="CIRCULAR"), (7, 2)),
    "conv 2-D same": (layers.convolution(3, (3, 3), padding="SAME"), (5, 4, 2)),
    "conv 2-D same, strides": (layers.convolution(3, (3, 2), strides=2, padding="SAME"), (5, 4, 2)),
    "conv 2-D valid": (layers.convolution(3, (3, 2), strides=(1, 2), padding="VALID"), (5, 4, 2)),
    "conv 2-D full": (layers.convolution(2, (3, 2), padding="FULL"), (4, 3, 2)),
    "conv 2-D circular": (layers.convolution(2, (3, 2), padding="CIRCULAR"), (5, 4, 2)),
    "conv 2-D circular, strides": (layers.convolution(2, (3, 3), strides=2, padding="CIRCULAR"), (6, 5, 2)),
    "conv 2-D explicit": (layers.convolution(2, (3, 2), padding=((2, 0), (0, 3))), (4, 3, 2)),
    "conv 2-D groups": (layers.convolution(4, (3, 3), padding="SAME", feature_group_count=2), (4, 3, 6)),
    "conv 2-D depthwise": (layers.convolution(6, (3, 3), padding="VALID", feature_group_count=3), (4, 3, 3)),
    "conv 2-D dilation": (layers.convolution(2, (3, 2), padding="SAME", kernel_dilation=2), (5, 6, 2)),
    "conv 2-D dilation, circular": (layers.convolution(2, (3, 2), padding="CIRCULAR", kernel_dilation=2), (5, 6, 2)),
    "conv 3-D": (layers.convolution(2, (2, 2, 2), padding="SAME"), (3, 2, 3, 2)),
}


def jacobian(f, shape, dtype=jnp.float64):
    matrix = jax.jacfwd(f)(jnp.asarray(np.random.default_rng(2).normal(size=shape), dtype))
    return np.asarray(matrix).reshape(-1, int(np.prod(shape)))


@pytest.mark.parametrize("case", LAYERS)
def test_each_map_is_the_jacobian(case, x64):
    net, shape = LAYERS[case]
    rng = np.random.default_rng(2)

    @jax.jit
    def matrices(x, u):
        variables = net.init(jax.random.key(1), shape)
        ((name, operator),) = layers.linear_maps(net, shape)(variables["params"]).items()
        assert name == net.kind
        return operator.to_dense(), operator.rmatvec(u), jax.jacfwd(lambda x: net.apply(variables, x))(x)

    u = rng.normal(size=net.output_shape(shape))
    dense, adjoint, expected = matrices(rng.normal(size=shape), u)
    expected = np.asarray(expected).reshape(u.size, -1)
    assert dense.shape == expected.shape
    assert_allclose(dense, expected, atol=1e-13)
    assert_allclose(np.ravel(adjoint), expected.T @ u.ravel(), atol=1e-12)


def test_dense_on_an_image_is_its_matrix_once(x64):
    """At p positions the Jacobian is the matrix p times: the same singular values, each p times."""
    net, shape = layers.dense(3), (2, 4, 5)
    variables = net.init(jax.random.key(1), shape)
    operator = layers.linear_maps(net, shape)(variables["params"])["dense"]
    whole = np.linalg.svd(jacobian(lambda x: net.apply(variables, x), shape), compute_uv=False)
    once = np.linalg.svd(operator.to_dense(), compute_uv=False)
    assert_allclose(whole[:24], np.repeat(once, 8), rtol=1e-12)


def whole_net():
    body = layers.chain(layers.convolution(3, (3, 3), padding="SAME"), layers.batch_norm(), layers.activation("relu"))
    return layers.chain(
        layers.convolution(3, (3, 3), strides=2, padding="SAME"),
        layers.skip(body, rho=0.5),
        layers.skip(
            layers.convolution(2, (3, 3), strides=2, padding="SAME"),
            projection=layers.convolution(2, (1, 1), strides=2, padding="VALID"),
        ),
        layers.concatenating_skip(layers.dense(2)),
        layers.flatten(),
        layers.dense(4),
    )


NAMES = ("conv_0", "skip_1/body/conv_0", "skip_2/body", "skip_2/projection", "concatenating_skip_3/body", "dense_5")


def test_names_shapes_and_order(key):
    net = whole_net()
    params = jax.eval_shape(lambda: net.init(key, (7, 6, 1)))["params"]
    maps = layers.linear_maps(net, (7, 6, 1))
    operators = {}
    jax.eval_shape(
        lambda params: operators.update(maps(params)), params
    )  # A dict that leaves a trace comes back sorted.
    assert maps.names == tuple(operators) == NAMES
    assert {name: operator.shape for name, operator in operators.items()} == {
        "conv_0": (4 * 3 * 3, 7 * 6),
        "skip_1/body/conv_0": (36, 36),
        "skip_2/body": (2 * 2 * 2, 36),
        "skip_2/projection": (8, 36),
        "concatenating_skip_3/body": (2, 2),
        "dense_5": (4, 2 * 2 * 4),
    }


def test_names_are_paths_in_params(key):
    variables = whole_net().init(key, (7, 6, 1))
    for name in NAMES:
        tree = variables["params"]
        for part in name.split("/"):
            tree = tree[part]
        assert "kernel" in tree


def test_product_of_the_maps_is_the_jacobian_of_a_linear_net(x64):
    net = layers.chain(
        layers.convolution(3, (3, 3), strides=2, padding="SAME"),
        layers.convolution(2, (2, 2), padding="CIRCULAR"),
        layers.flatten(),
        layers.dense(4),
    )
    variables = net.init(jax.random.key(1), (5, 4, 2))
    product = np.eye(40)
    for operator in layers.linear_maps(net, (5, 4, 2))(variables["params"]).values():
        product = np.asarray(operator.to_dense()) @ product
    assert_allclose(product, jacobian(lambda x: net.apply(variables, x), (5, 4, 2)), atol=1e-13)


def test_equal_nets_share_one_trace(key):
    traces = []

    @jax.jit(static_argnums=0)
    def norms(maps, params):
        traces.append(maps)
        return {name: jnp.sum(operator.matvec(_ones(operator)) ** 2) for name, operator in maps(params).items()}

    variables = whole_net().init(key, (7, 6, 1))
    for _ in range(10):
        norms(layers.linear_maps(whole_net(), [7, 6, 1]), variables["params"])
    assert len(traces) == 1


def _ones(operator):
    return jnp.ones(operator.in_struct.shape, operator.in_struct.dtype)


def test_gradients_reach_every_kernel_and_nothing_else(key):
    net = whole_net()
    params = net.init(key, (7, 6, 1))["params"]
    maps = layers.linear_maps(net, (7, 6, 1))

    def size(params):
        return sum(jnp.sum(operator.matvec(_ones(operator)) ** 2) for operator in maps(params).values())

    for path, leaf in jax.tree.leaves_with_path(jax.jit(jax.grad(size))(params)):
        assert bool(jnp.isfinite(leaf).all())
        assert bool((leaf != 0).any()) == ("kernel" in jax.tree_util.keystr(path)), path


def test_maps_of_a_batch_of_parameters(key):
    """An ensemble: vmap over the parameters."""
    net = whole_net()
    many = jax.vmap(lambda key: net.init(key, (7, 6, 1))["params"])(jax.random.split(key, 3))
    maps = layers.linear_maps(net, (7, 6, 1))

    def size(params):
        return {name: jnp.sum(operator.matvec(_ones(operator)) ** 2) for name, operator in maps(params).items()}

    size = jax.jit(size)
    together = jax.jit(jax.vmap(size))(many)
    for index in range(3):
        one = size(jax.tree.map(lambda p, i=index: p[i], many))
        jax.tree.map(lambda a, b, i=index: assert_allclose(a[i], b, rtol=1e-5), together, one)


def test_a_net_without_linear_maps(key):
    assert layers.linear_maps(layers.activation("relu"), (3,))({}) == {}


def test_wrong_parameters(key):
    net = whole_net()
    variables = net.init(key, (7, 6, 1))
    maps = layers.linear_maps(net, (7, 6, 1))
    with pytest.raises(ValueError, match="conv_0 is missing"):
        maps(variables)
    with pytest.raises(ValueError, match="skip_1/body/conv_0 is missing"):
        maps({"conv_0": variables["params"]["conv_0"]})
    with pytest.raises(ValueError, match=r"conv_0: conv: .*spatial axes"):
        layers.linear_maps(net, (7,))
