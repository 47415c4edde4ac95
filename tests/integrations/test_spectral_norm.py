"""Layers divided by their own norm, against dense Jacobians and Flax's SpectralNorm."""

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from spectrax.integrations import nnx as ours
from spectrax.integrations.linen import SpectralNormConv, SpectralNormDense
from spectrax.regularizers.parametrizations import tracked_spectral_norm

KEY = jax.random.key(0)
# Sizes of kernel and input, and options of the layer.
GEOMETRIES = {
    "same, strides": ((3, 3), (5, 4), {"strides": 2}),
    "circular": ((3, 3), (4, 5), {"padding": "CIRCULAR"}),
    "valid, dilation, groups": ((2, 2), (5, 4), {"padding": "VALID", "kernel_dilation": 2, "feature_group_count": 2}),
    "pairs, input dilation": ((3,), (5,), {"padding": ((2, 0),), "input_dilation": 2}),
    "integers": ((3, 2), (4, 4), {"padding": 1, "strides": (1, 2)}),
    "reflect": ((3, 3), (4, 4), {"padding": "REFLECT", "strides": None}),
}


def layer_norm(apply, shape):
    """The norm of a layer without its offset, from its dense Jacobian."""
    matrix = jax.jit(jax.jacobian(apply))(jnp.zeros(shape))
    return np.linalg.svd(np.asarray(matrix, np.float64).reshape(-1, np.prod(shape)), compute_uv=False)[0]


def trained(layer, variables, x, count):
    """The variables after some calls that train, with a constant kernel."""

    @jax.jit
    def step(variables, _):
        _, updates = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        return {**variables, **updates}, None

    return jax.lax.scan(step, variables, None, count)[0]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_norm_of_the_layer_is_the_bound(name, x64):
    kernel_size, sizes, options = GEOMETRIES[name]
    layer = SpectralNormConv(4, kernel_size, param_dtype=jnp.float64, bound=1.5, num_steps=3, **options)
    x = jax.random.normal(KEY, (2, *sizes, 2))
    variables = trained(layer, jax.jit(lambda x: layer.init(KEY, x, use_running_average=True))(x), x, 100)

    def evaluated(x):
        return layer.apply(variables, x, use_running_average=True)

    assert_allclose(layer_norm(evaluated, (*sizes, 2)), 1.5, rtol=1e-9)
    plain = nn.Conv(4, kernel_size, param_dtype=jnp.float64, **options)
    made = {"params": layer.normalized_params(variables)}
    assert_allclose(plain.apply(made, x), evaluated(x), atol=1e-13)
    free = layer_norm(lambda x: plain.apply({"params": variables["params"]}, x), (*sizes, 2))
    assert_allclose(variables["batch_stats"]["sigma"], free, rtol=1e-9)


def test_the_first_vectors_are_near(x64):
    """Without training, within a percent; and never above the norm."""
    layer = SpectralNormConv(6, (3, 3), param_dtype=jnp.float64)
    init = jax.jit(lambda key: layer.init(key, jnp.ones((5, 5, 4)), use_running_average=True))
    operator = jax.jit(jax.jacobian(lambda x, variables: layer.apply(variables, x, use_running_average=True)))
    for seed in range(4):
        matrix = operator(jnp.zeros((5, 5, 4)), init(jax.random.key(seed))).reshape(150, 100)
        assert 1 - 1e-12 <= np.linalg.norm(matrix, 2) < 1.01


def test_more_steps_follow_better(x64):
    layers = [SpectralNormDense(30, param_dtype=jnp.float64, num_steps=count) for count in (1, 2, 4)]
    kernel = np.random.default_rng(0).normal(size=(40, 30))
    start = {"u": jnp.eye(30)[0], "v": jnp.eye(40)[0], "sigma": jnp.ones(())}
    found = []
    for layer in layers:
        variables = {"params": {"kernel": kernel, "bias": jnp.zeros(30)}, "batch_stats": start}
        found.append(float(trained(layer, variables, jnp.ones(40), 3)["batch_stats"]["sigma"]))
    assert found[0] < found[1] < found[2] <= np.linalg.norm(kernel, 2) * (1 + 1e-12)
    # one step is a step of power iteration
    u = np.eye(30)[0]
    for _ in range(3):
        v = kernel @ u / np.linalg.norm(kernel @ u)
        u = kernel.T @ v / np.linalg.norm(kernel.T @ v)
    assert_allclose(found[0], u @ kernel.T @ v, rtol=1e-12)


def test_repeated_values_and_fewer_dimensions_than_steps(x64):
    for kernel in (np.diag([2.0, 2.0, 0.0]), np.ones((3, 1)), np.full((1, 1), -2.0)):
        form = tracked_spectral_norm(num_steps=4)
        state = jax.jit(lambda kernel: form.update(kernel, form.init(kernel, KEY)))(jnp.asarray(kernel))  # noqa: B023
        assert_allclose(state.sigma, np.linalg.norm(kernel, 2), rtol=1e-12)
        assert_allclose([np.linalg.norm(state.u), np.linalg.norm(state.v)], 1, rtol=1e-12)


@pytest.mark.parametrize("average", [False, True])
def test_nothing_but_the_vectors_is_written_and_nothing_in_evaluation(average):
    layer, x = SpectralNormConv(3, (3, 3)), jax.random.normal(KEY, (2, 5, 4, 2))
    variables = layer.init(KEY, x, use_running_average=average)
    before = jax.tree.map(np.array, variables)
    y, changed = layer.apply(variables, x, use_running_average=average, mutable=True)
    jax.tree.map(assert_array_equal, changed["params"], before["params"])
    jax.tree.map(assert_array_equal, variables, before)
    assert changed.keys() == {"params", "batch_stats"}
    same = all(np.array_equal(changed["batch_stats"][name], before["batch_stats"][name]) for name in ("u", "v"))
    assert same == average
    if not average:  # what it has returned is what evaluation gives, with its vectors
        assert_array_equal(layer.apply(changed, x, use_running_average=True), y)
        with pytest.raises(flax.errors.ModifyScopeVariableError):  # the collection is not mutable
            layer.apply(variables, x, use_running_average=False)


def test_where_the_argument_comes_from():
    layer, x = SpectralNormDense(3, use_running_average=True, collection_name="spectral"), jnp.ones(4)
    variables = layer.init(KEY, x)
    assert variables.keys() == {"params", "spectral"}
    layer.apply(variables, x)
    with pytest.raises(ValueError, match="use_running_average"):
        layer.apply(variables, x, use_running_average=False)
    with pytest.raises(ValueError, match="use_running_average"):
        SpectralNormDense(3).init(KEY, x)


def test_the_gradient(x64):
    """That of W / s, with the derivative of the norm; central differences of the normalised kernel's own norm."""
    sizes, layer = (4, 3), SpectralNormConv(3, (3, 2), strides=2, param_dtype=jnp.float64, num_steps=4)
    x = jax.random.normal(KEY, (2, *sizes, 2))
    variables = trained(layer, jax.jit(lambda x: layer.init(KEY, x, use_running_average=True))(x), x, 100)
    plain = nn.Conv(3, (3, 2), strides=2, param_dtype=jnp.float64)

    def loss(y):
        return jnp.sum(jnp.sin(y))

    def value(params, average):
        options = {"use_running_average": average, "mutable": ["batch_stats"]}
        return loss(layer.apply({**variables, "params": params}, x, **options)[0])

    params = variables["params"]
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(1.0, leaf.size + 1)).reshape(leaf.shape), params)
    matrix = jax.jit(jax.jacobian(lambda x, params: plain.apply({"params": params}, x)))

    def along(t):
        moved = jax.tree.map(lambda a, b: a + t * b, params, direction)
        norm = np.linalg.norm(matrix(jnp.zeros((*sizes, 2)), moved).reshape(-1, np.prod(sizes) * 2), 2)
        return loss(plain.apply({"params": {**moved, "kernel": moved["kernel"] / norm}}, x))

    expected = (along(1e-5) - along(-1e-5)) / 2e-5
    for average in (True, False):
        gradient = jax.jit(jax.grad(value), static_argnums=1)(params, average)
        found = sum(jnp.vdot(gradient[name], direction[name]) for name in gradient)
        assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_kernel_of_zeros(dtype, num_steps):
    layer, x = SpectralNormConv(3, (3, 3), param_dtype=dtype, num_steps=num_steps), jnp.ones((1, 4, 4, 2), dtype)
    zero = {"params": {"kernel": jnp.zeros((3, 3, 2, 3), dtype), "bias": jnp.zeros(3, dtype)}}

    @jax.jit
    def step(variables):
        def loss(params):
            y, updates = layer.apply(
                {**variables, "params": params}, x, use_running_average=False, mutable=["batch_stats"],
                rngs={"params": KEY},
            )  # fmt: skip
            return jnp.sum((y - 1) ** 2), updates

        (value, updates), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return value, {**variables, **updates}, gradient

    value, variables, gradient = step(zero)
    assert value == 48
    assert all(np.isfinite(leaf.astype("float32")).all() for leaf in jax.tree.leaves((variables, gradient)))
    assert np.any(gradient["kernel"] != 0)
    assert variables["batch_stats"]["sigma"] == 0
    # the vectors are kept, and it goes on from there
    params = jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], gradient)
    value, variables, gradient = step({**variables, "params": params})
    assert value < 48
    assert variables["batch_stats"]["sigma"] > 0
    assert np.isfinite(gradient["kernel"].astype("float32")).all()


def test_16_bits():
    """The norm is found in 32 bits, and the layer's own dtype is that of Flax's."""
    x = jax.random.normal(KEY, (2, 6, 6, 4))
    wide = SpectralNormConv(8, (3, 3))
    variables = wide.init(KEY, x, use_running_average=True)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])
    for layer, params in (
        (SpectralNormConv(8, (3, 3), dtype=jnp.bfloat16), variables["params"]),
        (SpectralNormConv(8, (3, 3), param_dtype=jnp.bfloat16, dtype=jnp.bfloat16), half),
    ):
        y, updates = layer.apply({**variables, "params": params}, x, use_running_average=False, mutable=["batch_stats"])
        assert y.dtype == jnp.bfloat16
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updates))
        exact = {"params": jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)}
        free = layer_norm(lambda x: nn.Conv(8, (3, 3)).apply(exact, x), (6, 6, 4))  # noqa: B023
        assert_allclose(updates["batch_stats"]["sigma"], free, rtol=2e-3)
        assert updates["batch_stats"]["sigma"] <= free * (1 + 1e-5)
        kernel = layer.normalized_params({"params": params, **updates})["kernel"]
        assert kernel.dtype == params["kernel"].dtype


def test_bounds():
    kernel = jnp.diag(jnp.array([4.0, 1.0]))
    variables = {"params": {"kernel": kernel, "bias": jnp.ones(2)}}
    x = jnp.eye(2)

    def made(**options):
        layer = SpectralNormDense(2, use_bias=True, **options)
        y, _ = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"], rngs={"params": KEY})
        return y - 1

    assert_allclose(made(), kernel / 4, atol=1e-6)
    assert_allclose(made(bound=8.0), kernel * 2, atol=1e-6)
    assert_array_equal(made(bound=8.0, shrink_only=True), kernel)
    assert_allclose(made(bound=2.0, shrink_only=True), kernel / 2, atol=1e-6)
    with pytest.raises(ValueError, match="bound must be larger than 0"):
        made(bound=0.0)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        made(num_steps=0)


def test_inputs_of_another_size_have_the_same_kernel():
    layer, x = SpectralNormConv(3, (3,)), jax.random.normal(KEY, (2, 6, 2))
    variables = layer.init(KEY, x, use_running_average=True)
    whole = layer.apply(variables, x, use_running_average=True)
    part, updates = layer.apply(variables, x[:, :4], use_running_average=False, mutable=["batch_stats"])
    assert updates["batch_stats"]["v"].shape == (6, 2)
    again = layer.apply({**variables, **updates}, x, use_running_average=True)
    assert_allclose(part[:, :3], again[:, :3], atol=1e-6)
    assert_allclose(whole, again, rtol=2e-2, atol=2e-2)


class Network(nn.Module):
    """A network that can be made of Flax's layers or of ours, with the same names."""

    normalized: bool

    @nn.compact
    def __call__(self, x, train):
        conv, dense = (SpectralNormConv, SpectralNormDense) if self.normalized else (nn.Conv, nn.Dense)
        options = {"use_running_average": not train} if self.normalized else {}
        x = nn.relu(conv(4, (3, 3), strides=2, name="conv")(x, **options))
        return dense(2, name="dense")(x.reshape(x.shape[0], -1), **options)


def test_a_network_to_and_fro():
    x = jax.random.normal(KEY, (3, 4, 4, 2))
    plain, normalized = Network(False), Network(True)
    params = plain.init(KEY, x, True)["params"]
    assert jax.tree.map(jnp.shape, normalized.init(KEY, x, True)["params"]) == jax.tree.map(jnp.shape, params)
    y, stats = normalized.apply({"params": params}, x, False, mutable=["batch_stats"], rngs={"params": KEY})
    variables = {"params": params, **stats}
    layers = {"conv": SpectralNormConv(4, (3, 3), strides=2), "dense": SpectralNormDense(2)}
    back = {
        name: layer.normalized_params({"params": params[name], "batch_stats": stats["batch_stats"][name]})
        for name, layer in layers.items()
    }
    assert_allclose(plain.apply({"params": back}, x, False), y, atol=1e-6)
    # normalised layers come back to themselves, up to the lag of the vectors
    again, _ = normalized.apply({"params": back}, x, False, mutable=["batch_stats"], rngs={"params": KEY})
    assert_allclose(again, normalized.apply(variables, x, False), rtol=1e-2, atol=1e-3)


# Flax's SpectralNorm.


def flaxs(features, x, n_steps=1):
    """Flax's layer and its variables; the names of its own are ("Dense_0/kernel/u", ...)."""
    layer = nn.SpectralNorm(nn.Dense(features), n_steps=n_steps)
    return layer, layer.init(KEY, x, update_stats=False)


def test_flaxs_spectral_norm_step_by_step():
    """The same vectors, values, outputs and gradients from the same start."""
    x = jax.random.normal(KEY, (5, 7))
    with jax.numpy_dtype_promotion("standard"):
        theirs, variables = flaxs(4, x)
    (scope,) = variables["params"]
    stats = variables["batch_stats"]
    own = SpectralNormDense(4)
    kernel = variables["params"][scope]["kernel"]
    u = stats[f"{scope}/kernel/u"][0]
    state = {
        "params": dict(variables["params"][scope]),
        "batch_stats": {"u": u, "v": jnp.zeros(7), "sigma": jnp.zeros(())},
    }

    @jax.jit
    def their_step(params, stats):
        def loss(params):
            y, updates = theirs.apply(
                {"params": params, "batch_stats": stats}, x, update_stats=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(y)), (y, updates["batch_stats"])

        return jax.grad(loss, has_aux=True)(params)

    @jax.jit
    def own_step(params, stats):
        def loss(params):
            y, updates = own.apply(
                {"params": params, "batch_stats": stats}, x, use_running_average=False, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(y)), (y, updates["batch_stats"])

        return jax.grad(loss, has_aux=True)(params)

    mine = state["batch_stats"]
    for count in range(40):
        with jax.numpy_dtype_promotion("standard"):
            their_gradient, (their_y, stats) = their_step(variables["params"], stats)
        gradient, (y, mine) = own_step(state["params"], mine)
        assert_allclose(mine["u"], stats[f"{scope}/kernel/u"][0], atol=1e-5)
        assert_allclose(mine["sigma"], stats[f"{scope}/kernel/sigma"], rtol=1e-5)
        assert_allclose(y, their_y, atol=1e-5)
        jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-4), gradient, dict(their_gradient[scope]))
        if count == 0:
            assert mine["sigma"] < 0.97 * np.linalg.norm(kernel, 2)
    assert_allclose(mine["sigma"], np.linalg.norm(kernel, 2), rtol=1e-5)  # and both have converged


def test_flaxs_norm_of_a_convolution_is_that_of_its_reshaped_kernel():
    """So that the layer that it calls normalised is none; ours is."""
    x = jax.random.normal(KEY, (1, 6, 6, 3))
    theirs = nn.SpectralNorm(nn.Conv(8, (3, 3)), n_steps=30)
    variables = jax.jit(lambda x: theirs.init(KEY, x, update_stats=False))(x)
    assert layer_norm(lambda x: theirs.apply(variables, x, update_stats=False), (6, 6, 3)) > 1.3
    (scope,) = variables["params"]
    own = SpectralNormConv(8, (3, 3), num_steps=3)
    start = {"params": dict(variables["params"][scope])}
    _, found = own.apply(start, x, use_running_average=False, mutable=["batch_stats"], rngs={"params": KEY})
    mine = trained(own, {**start, **found}, x, 30)
    assert_allclose(layer_norm(lambda x: own.apply(mine, x, use_running_average=True), (6, 6, 3)), 1, rtol=1e-4)


def test_flaxs_nnx_layer_overwrites_its_weights_and_ours_does_not():
    """In evaluation too: there a second call sees another kernel, and training would start from it."""
    x = jax.random.normal(KEY, (5, 7))
    inner = nnx.Linear(7, 4, rngs=nnx.Rngs(0))
    kernel = np.array(inner.kernel[...])
    with jax.numpy_dtype_promotion("standard"):
        theirs = nnx.SpectralNorm(inner, rngs=nnx.Rngs(1))
        theirs.eval()
        theirs(x)
    assert np.abs(inner.kernel[...] - kernel).max() > 1e-2
    own = ours.SpectralNormLinear.from_flax(nnx.Linear(7, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    for mode in (own.train, own.eval):
        mode()
        own(x)
        assert_array_equal(own.kernel[...], kernel)


# NNX.

PAIRS = {
    "conv": (
        SpectralNormConv(3, (3, 3), strides=2, padding="CIRCULAR", num_steps=2, bound=0.5),
        lambda rngs, **options: ours.SpectralNormConv(
            2, 3, (3, 3), 2, padding="CIRCULAR", input_sizes=(4, 6), num_steps=2, bound=0.5, rngs=rngs, **options
        ),
        (2, 4, 6, 2),
    ),
    "dense": (
        SpectralNormDense(30, shrink_only=True, bound=0.25),
        lambda rngs, **options: ours.SpectralNormLinear(40, 30, shrink_only=True, bound=0.25, rngs=rngs, **options),
        (5, 40),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_nnx_layer_is_the_linen_layer(name):
    twin, make, shape = PAIRS[name]
    layer, x = make(nnx.Rngs(0)), jax.random.normal(KEY, shape)
    pure = nnx.to_pure_dict(nnx.state(layer))
    params = {key: pure[key] for key in ("kernel", "bias")}
    variables = {"params": params, "batch_stats": {key: pure[key] for key in ("u", "v", "sigma")}}
    assert set(nnx.to_pure_dict(nnx.state(layer, nnx.Param))) == set(params)
    call = nnx.jit(lambda layer, x: layer(x))
    for _ in range(2):
        y, updates = twin.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        variables = {**variables, **updates}
        assert_allclose(call(layer, x), y, atol=1e-6)
        after = nnx.to_pure_dict(nnx.state(layer))
        for key, value in updates["batch_stats"].items():
            assert_allclose(after[key], value, atol=1e-5)
    layer.eval()
    before = nnx.to_pure_dict(nnx.state(layer))
    assert_allclose(layer(x), twin.apply(variables, x, use_running_average=True), atol=1e-6)
    assert_allclose(layer.to_flax()(x), layer(x), atol=1e-6)
    jax.tree.map(assert_array_equal, nnx.to_pure_dict(nnx.state(layer)), before)
    layer(x, use_running_average=False)
    assert any(np.any(a != b) for a, b in zip(
        jax.tree.leaves(nnx.to_pure_dict(nnx.state(layer))), jax.tree.leaves(before), strict=True
    ))  # fmt: skip
    assert make(nnx.Rngs(0), use_running_average=True).use_running_average


@pytest.mark.parametrize("name", PAIRS)
def test_training_an_nnx_layer(name):
    _, make, shape = PAIRS[name]
    layer, x = make(nnx.Rngs(0)), jax.random.normal(KEY, shape)
    optimizer = nnx.Optimizer(layer, optax.sgd(0.5), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        loss, gradient = nnx.value_and_grad(lambda layer: jnp.mean((layer(x) - 1) ** 2))(layer)
        optimizer.update(layer, gradient)
        return loss

    losses = [float(step(layer, optimizer)) for _ in range(20)]
    assert losses[-1] < losses[0]
    wanted, found = 0.5 if name == "conv" else 0.25, []
    follow = nnx.jit(lambda layer: layer(x))
    for count in (0, 40):
        for _ in range(count):
            follow(layer)
        layer.eval()
        graph, state = nnx.split(layer)
        found.append(layer_norm(jax.jit(lambda x: nnx.merge(graph, state)(x)), shape[1:]))  # noqa: B023
        layer.train()
    assert wanted * (1 - 1e-5) <= found[0] < 1.1 * wanted  # the vectors lag behind the steps
    assert_allclose(found[1], wanted, rtol=1e-3)


def test_nnx_layers_to_and_fro():
    x = jax.random.normal(KEY, (2, 6, 5, 4))
    conv = nnx.Conv(4, 6, (3, 2), 2, padding="VALID", feature_group_count=2, use_bias=False, rngs=nnx.Rngs(0))
    made = ours.SpectralNormConv.from_flax(conv, input_sizes=(6, 5), rngs=nnx.Rngs(1), bound=100.0, shrink_only=True)
    assert_array_equal(made.kernel[...], conv.kernel[...])
    assert_allclose(made(x), conv(x), atol=1e-6)
    assert_allclose(made.to_flax()(x), conv(x), atol=1e-6)
    tight = ours.SpectralNormConv.from_flax(conv, input_sizes=(6, 5), rngs=nnx.Rngs(1))
    assert_allclose(tight(x) * tight.sigma[...], conv(x), atol=1e-5)
    linear = nnx.Linear(4, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    dense = ours.SpectralNormLinear.from_flax(linear, rngs=nnx.Rngs(1), use_running_average=True)
    assert dense(x).dtype == jnp.bfloat16
    assert_allclose(np.linalg.norm(dense.to_flax().kernel[...], 2), 1, rtol=1e-4)
    assert np.array(dense.to_flax()(x) == dense(x)).all()
    masked = nnx.Conv(4, 6, (3,), mask=jnp.ones((3, 4, 6)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="mask"):
        ours.SpectralNormConv.from_flax(masked, input_sizes=(6,), rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match=r"input_sizes must be 2 spatial sizes for this kernel, got \(6,\)"):
        ours.SpectralNormConv(2, 3, (3, 3), input_sizes=(6,), rngs=nnx.Rngs(0))
