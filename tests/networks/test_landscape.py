"""The loss in one layer's weights: Q, its singular values and the quadratic, against NumPy, JAX's Hessian, the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx


def mlp(activation="relu", rho=0.5, seed=0, width=6):
    net = sx.models.mlp(4, width=width, depth=3, activation=activation, rho=rho)
    variables = net.init(jax.random.key(seed), (5,))
    xs = jax.random.normal(jax.random.key(seed + 100), (7, 5))
    return net, variables, xs


def with_weight(variables, path, kernel):
    params = jax.tree.map(lambda leaf: leaf, variables["params"])
    tree = params
    for part in path:
        tree = tree[part]
    tree["kernel"] = kernel
    return variables | {"params": params}


NAME, PATH = "skip_3/body/dense_0", ("skip_3", "body", "dense_0")


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs", "hard_tanh"])
def test_one_dense_layer_is_a_kronecker_product(activation, x64):
    """s_i(Q) = |z| s_i(M D), with a bias sqrt(|z|^2 + 1) s_i(M D), and the rest of the weights are flat directions."""
    net, variables, xs = mlp(activation)
    x = xs[0]
    layer = sx.local_linear(net, variables, x).layers[NAME]
    z, after = np.asarray(layer.input), np.asarray(layer.after.to_dense())
    Q = sx.landscape.layer_operator(net, variables, NAME, x)
    assert_allclose(Q.to_dense(), np.kron(z[None], after).reshape(4, 6, 6).reshape(4, 36), atol=1e-13)
    expected = np.linalg.svd(after, compute_uv=False)
    found = sx.landscape.layer_spectrum(net, variables, NAME, x)
    assert_allclose(found.values, np.linalg.norm(z) * expected, atol=1e-13)
    with_bias = sx.landscape.layer_spectrum(net, variables, NAME, x, bias=True)
    assert_allclose(with_bias.values, np.sqrt(z @ z + 1) * expected, atol=1e-13)
    dense = sx.landscape.layer_operator(net, variables, NAME, x, bias=True).to_dense()
    assert_allclose(with_bias.values, np.linalg.svd(dense, compute_uv=False), atol=1e-13)
    rank = np.linalg.matrix_rank(after)
    assert int(found.rank) == rank
    assert int(found.flat_directions) == 36 - rank
    assert_allclose(found.condition_number, expected[0] / expected[rank - 1], rtol=1e-9)


@pytest.mark.parametrize("activation", ["relu", "abs"])
def test_a_batch_stacks_the_samples(activation, x64):
    net, variables, xs = mlp(activation)
    Q = sx.landscape.layer_operator(net, variables, NAME, xs, batched=True).to_dense()
    rows = [sx.landscape.layer_operator(net, variables, NAME, x).to_dense() for x in xs]
    assert_allclose(Q, np.concatenate(rows), atol=1e-13)
    found = sx.landscape.layer_spectrum(net, variables, NAME, xs, batched=True)
    assert_allclose(found.values, np.linalg.svd(Q, compute_uv=False), atol=1e-12)
    assert found.num_samples == 7
    # one sample more never lowers a singular value
    fewer = sx.landscape.layer_spectrum(net, variables, NAME, xs[:5], batched=True)
    assert np.all(found.values[: len(fewer.values)] >= np.asarray(fewer.values) - 1e-12)


def test_a_convolution_counts_shared_weights(x64):
    net = sx.models.resnet(3, depth=1, width=2)
    variables = net.init(jax.random.key(0), (5, 5, 1))
    x = jax.random.normal(jax.random.key(1), (5, 5, 1))
    path, name = ("skip_1", "body", "conv_0"), "skip_1/body/conv_0"
    kernel = variables["params"]["skip_1"]["body"]["conv_0"]["kernel"]
    jacobian = jax.jacobian(lambda k: net.apply(with_weight(variables, path, k), x))(kernel).reshape(3, -1)
    found = sx.landscape.layer_spectrum(net, variables, name, x)
    assert_allclose(found.values, np.linalg.svd(jacobian, compute_uv=False), rtol=1e-9)
    bias = sx.landscape.layer_operator(net, variables, name, x, bias=True)
    assert bias.in_struct["bias"].shape == (1, 1, 1, 2)
    own = variables["params"]["skip_1"]["body"]["conv_0"]

    def of_bias(b):
        params = jax.tree.map(lambda leaf: leaf, variables["params"])
        params["skip_1"]["body"]["conv_0"] = {**own, "bias": b}
        return net.apply(variables | {"params": params}, x)

    assert_allclose(bias.to_dense()[:, :2], jax.jacobian(of_bias)(own["bias"]), atol=1e-13)


def test_the_hessian_of_the_loss(x64):
    net, variables, xs = mlp("leaky_relu")
    targets = jax.random.normal(jax.random.key(9), (7, 4))
    kernel = variables["params"]["skip_3"]["body"]["dense_0"]["kernel"]

    def loss(kernel):
        return jnp.sum(
            (jax.vmap(functools.partial(net.apply, with_weight(variables, PATH, kernel)))(xs) - targets) ** 2
        )

    Q = sx.landscape.layer_operator(net, variables, NAME, xs, batched=True).to_dense()
    assert_allclose(jax.hessian(loss)(kernel).reshape(36, 36), 2 * Q.T @ Q, atol=1e-11)
    found = sx.landscape.local_quadratic(net, variables, NAME, xs, targets, batched=True)
    assert_allclose(found.value, loss(kernel), rtol=1e-13)
    assert_allclose(found.gradient, jax.grad(loss)(kernel), atol=1e-12)
    step = np.linalg.lstsq(Q, np.asarray(-found.residual).reshape(-1), rcond=None)[0]
    assert_allclose(found.minimizer - kernel, step.reshape(6, 6), atol=1e-9)
    left = np.asarray(found.residual).reshape(-1) + Q @ step
    assert_allclose(found.minimum, left @ left, atol=1e-12 * float(found.value))


def test_the_quadratic_holds_inside_and_only_inside(x64):
    net, variables, xs = mlp("relu")
    target = net.apply(variables, xs[0]) + 1e-4
    kernel = variables["params"]["skip_3"]["body"]["dense_0"]["kernel"]
    near = sx.landscape.local_quadratic(net, variables, NAME, xs[0], target)
    loss = lambda k, y: float(jnp.sum((net.apply(with_weight(variables, PATH, k), xs[0]) - y) ** 2))  # noqa: E731
    assert bool(near.inside)
    assert_allclose(loss(near.minimizer, target), near.minimum, atol=1e-20)
    far = sx.landscape.local_quadratic(net, variables, NAME, xs[0], target + 50)
    assert not bool(far.inside)
    assert abs(loss(far.minimizer, target + 50) - float(far.minimum)) > 1e-3
    reach = sx.local_linear(net, variables, xs[0]).weight_reach(NAME)
    Q = sx.landscape.layer_operator(net, variables, NAME, xs[0])
    for share, small in ((0.99, True), (3.0, False)):
        step = share * reach.radius * reach.direction
        predicted = float(jnp.sum((Q.matvec(step) + near.residual) ** 2))
        assert (abs(loss(kernel + step, target) - predicted) < 1e-13) == small


def test_what_follows_from_the_values(x64):
    net, variables, xs = mlp("abs")
    found = sx.landscape.layer_spectrum(net, variables, NAME, xs, batched=True)
    s = np.asarray(found.values)
    kappa = s[0] / s[s > max(28, 36) * np.finfo(float).eps * s[0]][-1]
    assert_allclose(found.eccentricity, np.sqrt(1 - kappa**-2))
    assert_allclose(found.basin_widths(0.25)[:3], 0.5 / s[:3])
    assert_allclose(found.convergence_rate, (kappa**2 - 1) / (kappa**2 + 1))
    # descent on the quadratic contracts coordinate i by 1 - 2 lr s_i^2, and is stable up to 1 / s_1^2
    for share, stable in ((0.99, True), (1.01, False)):
        factor = np.abs(1 - 2 * share * float(found.largest_step) * s**2).max()
        assert (factor < 1) == stable


def test_zero_and_dead_layers():
    f = lambda params, x: jax.nn.relu(params["w"] @ x)  # noqa: E731
    dead = sx.landscape.layer_spectrum(f, {"w": -jnp.eye(3)}, "w", jnp.ones(3))
    assert_allclose(dead.values, 0)
    assert int(dead.rank) == 0
    assert int(dead.flat_directions) == 9
    assert np.all(np.isinf(dead.basin_widths(1.0)))
    none = sx.landscape.layer_spectrum(lambda params, x: params["w"] @ x, {"w": jnp.eye(2)}, "w", jnp.zeros(2))
    assert_allclose(none.values, 0)


def test_zero_and_not_finite():
    f = lambda params, x: jax.nn.relu(params["w"] @ x)  # noqa: E731
    zero = sx.landscape.layer_spectrum(f, {"w": -jnp.eye(2)}, "w", jnp.ones(2))
    assert np.isnan(zero.condition_number)
    assert np.isnan(zero.convergence_rate)
    broken = sx.landscape.layer_spectrum(f, {"w": jnp.eye(2)}, "w", jnp.array([np.nan, 1.0]))
    assert int(broken.rank) == int(broken.flat_directions) == -1
    assert np.all(np.isnan(broken.basin_widths(1.0)))


def test_biases_of_layers_with_several_axes(x64):
    rng = np.random.default_rng(0)
    params = {"q": jnp.asarray(rng.normal(size=(3, 2, 5))), "o": jnp.asarray(rng.normal(size=(2, 5, 4)))}

    def f(params, x):
        heads = jnp.einsum("i,ihd->hd", x, params["q"]) + params.get("bias", 0.0)
        return jnp.einsum("hd,hdo->o", heads, params["o"])

    x = jnp.asarray(rng.normal(size=3))
    Q = sx.landscape.layer_operator(f, params, "q", x, bias=True)
    assert Q.in_struct["bias"].shape == (2, 5)
    found = sx.landscape.layer_spectrum(f, params, "q", x, bias=True)
    assert_allclose(found.values, np.linalg.svd(np.asarray(Q.to_dense()), compute_uv=False), rtol=1e-12)
    assert_allclose(
        Q.to_dense()[:, :10], jax.jacobian(lambda b: f({**params, "bias": b}, x))(jnp.zeros((2, 5))).reshape(4, 10)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits(dtype):
    f = lambda params, x: params["b"] @ jax.nn.relu(params["a"] @ x)  # noqa: E731
    params = {"a": jnp.eye(3, dtype=dtype), "b": jnp.asarray([[1, 2, 0], [0, 1, 3]], dtype)}
    x = jnp.ones(3, dtype)
    found = sx.landscape.layer_spectrum(f, params, "a", x)
    expected = np.sqrt(3) * np.linalg.svd(np.asarray(params["b"], float), compute_uv=False)
    assert_allclose(np.asarray(found.values, float), expected, rtol=0.02)
    quadratic = sx.landscape.local_quadratic(f, params, "a", x, jnp.zeros(2, dtype))
    assert_allclose(float(quadratic.value), 25.0, rtol=0.02)


def _by_argsort(params, x):
    h = params["w"] @ x
    return h[jnp.argsort(h)]


def test_an_order_that_changes_is_outside(x64):
    """Sorted outputs are affine pieces, whose border is where two of them meet."""
    for f, y in (
        (lambda p, x: jnp.sort(p["w"] @ x), [5.0, 0.0]),
        (_by_argsort, [5.0, 0.0]),
        (lambda p, x: jnp.sort(p["w"] @ x)[1:2], [7.0]),
    ):
        w = jnp.array([[1.0], [2.0]]) if len(y) == 2 else jnp.array([[1.0], [2.0], [3.0]])
        found = sx.landscape.local_quadratic(f, {"w": w}, "w", jnp.ones(1), jnp.array(y))
        assert not bool(found.inside)


def test_stepwise_inputs_give_no_quadratic():
    f = lambda params, x: (params["w"] @ jnp.sign(x)) ** 2  # noqa: E731
    with pytest.raises(ValueError, match="not piecewise affine"):
        sx.landscape.local_quadratic(f, {"w": jnp.eye(2)}, "w", jnp.array([1.0, 2.0]), jnp.array([9.0, 4.0]))


def test_bad_input():
    net, variables, xs = mlp("relu")
    with pytest.raises(ValueError, match="skip_3/body/dense_0"):
        sx.landscape.layer_operator(net, variables, "skip_3", xs[0])
    with pytest.raises(ValueError, match="leading axis"):
        sx.landscape.layer_operator(lambda p, x: p["w"] * x, {"w": jnp.ones(())}, "w", jnp.ones(()), batched=True)
    with pytest.raises(ValueError, match="shape of the output"):
        sx.landscape.local_quadratic(net, variables, NAME, xs[0], jnp.ones(5))
    smooth = sx.models.mlp(4, width=6, activation="tanh")
    variables = smooth.init(jax.random.key(0), (5,))
    with pytest.raises(ValueError, match="not piecewise affine"):
        sx.landscape.local_quadratic(smooth, variables, "dense_1", xs[0], jnp.ones(4))
    with pytest.raises(ValueError, match="max_bytes"):
        sx.landscape.layer_spectrum(smooth, variables, "dense_1", xs, batched=True, max_bytes=10)


def test_under_jit(x64):
    net, variables, xs = mlp("relu")
    eager = sx.landscape.layer_spectrum(net, variables, NAME, xs, batched=True)
    jitted = jax.jit(lambda v, xs: sx.landscape.layer_spectrum(net, v, NAME, xs, batched=True))(variables, xs)
    assert_allclose(jitted.values, eager.values, atol=1e-13)
    gradient = jax.grad(lambda v: sx.landscape.layer_spectrum(net, v, NAME, xs, batched=True).values[0])(variables)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
