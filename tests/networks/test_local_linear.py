"""Local linear representations against NumPy's formulas, and against the network inside and outside its region."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx

SLOPES = {
    "relu": lambda h: (h > 0) * 1.0,
    "leaky_relu": lambda h: np.where(h >= 0, 1.0, 0.1),
    "abs": np.sign,
    "hard_tanh": lambda h: (np.abs(h) < 1) * 1.0,
    "linear": np.ones_like,
}
FUNCTIONS = {
    "relu": lambda h: np.maximum(h, 0),
    "leaky_relu": lambda h: np.where(h >= 0, h, 0.1 * h),
    "abs": np.abs,
    "hard_tanh": lambda h: np.clip(h, -1, 1),
    "linear": lambda h: h,
}
KINKS = {"relu": (0,), "leaky_relu": (0,), "abs": (0,), "hard_tanh": (-1, 1), "linear": ()}


class ByHand:
    """z_k = phi(W_k z_{k-1} + b_k) + rho z_{k-1} for three layers of equal width, and a readout, in NumPy."""

    def __init__(self, activation, rho, seed, width=6, outputs=4):
        rng = np.random.default_rng(seed)
        self.rho, self.activation = rho, activation
        self.W = [rng.normal(size=(width, width)) / np.sqrt(width) for _ in range(3)]
        self.b = [rng.normal(size=width) for _ in range(3)]
        self.C, self.x = rng.normal(size=(outputs, width)), rng.normal(size=width)
        self.z, self.h = [self.x], []
        for W, b in zip(self.W, self.b, strict=True):
            self.h.append(W @ self.z[-1] + b)
            self.z.append(FUNCTIONS[activation](self.h[-1]) + rho * self.z[-1])
        self.D = [np.diag(SLOPES[activation](h)) for h in self.h]
        self.J = [D @ W + rho * np.eye(width) for D, W in zip(self.D, self.W, strict=True)]
        self.M = [self.C @ self.J[2] @ self.J[1], self.C @ self.J[2], self.C]

    @property
    def network(self):
        parts = []
        for _ in self.W:
            block = sx.layers.chain(
                sx.layers.dense(len(self.x)), sx.layers.activation(self.activation, negative_slope=0.1)
            )
            parts.append(sx.layers.skip(block, rho=self.rho) if self.rho else block)
        return sx.layers.chain(*parts, sx.layers.dense(len(self.C), use_bias=False))

    @property
    def params(self):
        tree = {}
        for index, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            own = {"dense_0": {"kernel": jnp.asarray(W.T), "bias": jnp.asarray(b)}}
            tree |= {f"skip_{index}": {"body": own}} if self.rho else {f"chain_{index}": own}
        return tree | {"dense_3": {"kernel": jnp.asarray(self.C.T)}}

    def weight_radius(self, k):
        """min over units of later layers of the distance to a kink over the length of its gradient in W_k."""
        found, outputs = [], self.D[k]  # of layer j - 1, by the pre-activation of layer k
        for j in range(k, 3):
            to_later = np.eye(len(self.x)) if j == k else self.W[j] @ outputs
            outputs = outputs if j == k else self.J[j] @ outputs
            lengths = np.linalg.norm(to_later, axis=1) * np.linalg.norm(self.z[k])
            for kink in KINKS[self.activation]:
                with np.errstate(divide="ignore"):
                    found.append(np.min(np.abs(self.h[j] - kink) / lengths))
        return min(found, default=np.inf)


@functools.cache
def represented(activation, rho, seed):
    by_hand = ByHand(activation, rho, seed)
    return by_hand, sx.local_linear(by_hand.network, by_hand.params, jnp.asarray(by_hand.x))


CASES = [(a, rho, 0) for a in SLOPES for rho in (0.0, 0.3)]
CASES += [pytest.param(a, 1.0, seed, marks=pytest.mark.slow) for a in SLOPES for seed in range(1, 4)]


@pytest.mark.parametrize(("activation", "rho", "seed"), CASES)
def test_against_the_formulas(activation, rho, seed, x64):
    by_hand, rep = represented(activation, rho, seed)
    assert rep.exact
    A = by_hand.M[0] @ by_hand.J[0]
    assert_allclose(rep.A.to_dense(), A, atol=1e-13)
    assert_allclose(rep.output, by_hand.C @ by_hand.z[-1], atol=1e-13)
    assert_allclose(rep.A.matvec(jnp.asarray(by_hand.x)) + rep.B, rep.output, atol=1e-13)
    offsets = [FUNCTIONS[activation](h) - SLOPES[activation](h) * h for h in by_hand.h]
    parts = zip(by_hand.M, by_hand.D, by_hand.b, offsets, strict=True)
    assert_allclose(rep.B, sum(M @ (D @ b + c) for M, D, b, c in parts), atol=1e-12)
    layers, stages = list(rep.layers.values()), list(rep.stages.values())
    assert [layer.kind for layer in layers] == ["dense"] * 4
    for k in range(3):
        assert_allclose(layers[k].input, by_hand.z[k], atol=1e-13)
        assert_allclose(layers[k].output, by_hand.W[k] @ by_hand.z[k], atol=1e-13)
        assert_allclose(layers[k].map.to_dense(), by_hand.W[k], atol=1e-15)
        assert_allclose(layers[k].after.to_dense(), by_hand.M[k] @ by_hand.D[k], atol=1e-13)
        assert_allclose(stages[k].jacobian.to_dense(), by_hand.J[k], atol=1e-13)
        assert_allclose(stages[k].after.to_dense(), by_hand.M[k], atol=1e-13)
    if activation != "linear":
        assert len(rep.slopes) == 3
        for slopes, offset, D, c in zip(rep.slopes.values(), rep.offsets.values(), by_hand.D, offsets, strict=True):
            assert_allclose(slopes, np.diag(D))
            assert_allclose(offset, c, atol=1e-13)


@pytest.mark.parametrize(("activation", "rho", "seed"), CASES)
def test_the_radius_in_the_weights(activation, rho, seed, x64):
    by_hand, rep = represented(activation, rho, seed)
    for k, name in enumerate(list(rep.layers)[:3]):
        reach = rep.weight_reach(name, chunk_size=7)
        assert_allclose(reach.radius, by_hand.weight_radius(k), rtol=1e-12)
        if np.isfinite(reach.radius):
            assert_allclose(np.linalg.norm(reach.direction), 1, rtol=1e-12)
    assert rep.weight_reach("dense_3").radius == np.inf


def convolutional():
    return sx.layers.chain(
        sx.layers.convolution(4, (3, 3), padding="SAME"),
        sx.layers.batch_norm(),
        sx.layers.activation("relu"),
        sx.layers.max_pool(2),
        sx.layers.concatenating_skip(
            sx.layers.chain(sx.layers.convolution(3, (3, 3), padding="SAME"), sx.layers.activation("abs")), rho=0.7
        ),
        sx.layers.average_pool(2),
        sx.layers.flatten(),
        sx.layers.dense(5),
    )


NETWORKS = {
    "convolutions, pooling, normalisation": (convolutional(), (8, 8, 2)),
    "resnet": (sx.models.resnet(3, depth=2, width=3), (6, 6, 1)),
    "densenet": (sx.models.densenet(3, depth=2, width=3), (6, 6, 1)),
    "mlp with skips": (sx.models.mlp(3, width=8, activation="leaky_relu", rho=0.5), (4,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_inside_and_only_inside(name, x64):
    """The representation holds to round-off up to the nearest kink, and the kink is where it says."""
    net, shape = NETWORKS[name]
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed))
        variables, x = net.init(keys[0], shape), jax.random.normal(keys[1], shape)
        rep = sx.local_linear(net, variables, x)
        assert rep.exact
        reach = rep.input_reach()

        def error(share, rep=rep, reach=reach, x=x, variables=variables):
            y = x + share * reach.radius * reach.direction
            return float(jnp.max(jnp.abs(net.apply(variables, y) - rep.A.matvec(y) - rep.B)))

        inside, outside = max(error(0.3), error(0.999)), error(4.0)
        assert inside <= 1e-13 * float(jnp.max(jnp.abs(rep.output)) + 1)
        assert outside > 1e3 * inside + 1e-12
        assert error(-0.999) <= 1e-13 * float(jnp.max(jnp.abs(rep.output)) + 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_unit_changes_at_the_radius(name, x64):
    net, shape = NETWORKS[name]
    variables, x = net.init(jax.random.key(5), shape), jax.random.normal(jax.random.key(6), shape)
    rep = sx.local_linear(net, variables, x)
    reach = rep.input_reach()

    def decided(share):
        moved = sx.local_linear(net, variables, x + share * reach.radius * reach.direction)
        return jnp.concatenate([jnp.ravel(slopes) for slopes in moved.slopes.values()]), moved.A.to_dense()

    (before, A), (below, same), (above, other) = decided(0.0), decided(0.999), decided(1.001)
    assert_allclose(same, A, atol=1e-14)
    assert int(jnp.sum(before != below)) == 0
    flipped = int(jnp.sum(before != above))
    assert flipped <= 1
    # a maximum changes the map alone; a unit that a maximum passes over changes its slope alone
    assert flipped or float(jnp.max(jnp.abs(other - A))) > 1e-6


def test_convolution_weights_are_shared(x64):
    """The gradient of a decision counts all places that a kernel's entry is used in."""
    net, shape = NETWORKS["resnet"]
    variables, x = net.init(jax.random.key(0), shape), jax.random.normal(jax.random.key(1), shape)
    rep = sx.local_linear(net, variables, x)
    name = "skip_1/body/conv_0"
    reach = rep.weight_reach(name)
    kernel = variables["params"]["skip_1"]["body"]["conv_0"]["kernel"]

    def changed(step):
        params = jax.tree.map(lambda leaf: leaf, variables["params"])
        params["skip_1"]["body"]["conv_0"]["kernel"] = kernel + step
        return net.apply(variables | {"params": params}, x)

    for share, small in ((0.5, True), (0.999, True), (3.0, False)):
        step = share * reach.radius * reach.direction
        _, linear = jax.jvp(changed, (jnp.zeros_like(kernel),), (step,))
        error = float(jnp.max(jnp.abs(changed(step) - rep.output - linear)))
        assert (error < 1e-14) == small


def test_what_is_only_linearised():
    for activation in ("gelu", "tanh"):
        net = sx.models.mlp(3, width=5, activation=activation)
        variables = net.init(jax.random.key(0), (4,))
        rep = sx.local_linear(net, variables, jnp.ones(4))
        assert not rep.exact
        assert_allclose(rep.A.to_dense(), jax.jacobian(functools.partial(net.apply, variables))(jnp.ones(4)), rtol=1e-5)
        with pytest.raises(ValueError, match="not piecewise affine"):
            rep.input_reach()
        with pytest.raises(ValueError, match="not piecewise affine"):
            rep.weight_reach("dense_1")
    layer_norm = sx.layers.chain(sx.layers.dense(4), sx.layers.layer_norm())
    assert not sx.local_linear(layer_norm, layer_norm.init(jax.random.key(0), (3,)), jnp.ones(3)).exact


def test_batches_and_one_trace():
    net = sx.models.mlp(3, width=5, rho=1.0)
    variables = net.init(jax.random.key(0), (4,))
    xs = jax.random.normal(jax.random.key(1), (6, 4))
    traces = []

    @jax.jit
    def jacobians(variables, xs):
        traces.append(1)
        return jax.vmap(lambda x: sx.local_linear(net, variables, x).layers["dense_1"].after.to_dense())(xs)

    found = jacobians(variables, xs)
    jacobians(variables, xs + 1)
    assert len(traces) == 1
    for x, one in zip(xs, found, strict=True):
        assert_allclose(sx.local_linear(net, variables, x).layers["dense_1"].after.to_dense(), one, atol=1e-6)
    chunked = jax.lax.map(
        lambda x: sx.local_linear(net, variables, x).layers["dense_1"].after.to_dense(), xs, batch_size=4
    )
    assert_allclose(chunked, found, atol=1e-6)


def test_order_and_names_survive_jit():
    net = sx.models.resnet(10, depth=2)
    variables = net.init(jax.random.key(0), (8, 8, 1))
    rep = jax.jit(functools.partial(sx.local_linear, net))(variables, jnp.ones((8, 8, 1)))
    assert tuple(rep.layers) == sx.layers.linear_maps(net, (8, 8, 1)).names
    assert list(rep.stages) == ["stem_0", "skip_1", "skip_2", "dense_4"]
    assert list(rep.slopes) == ["relu_0", "relu_1", "relu_2"]
    only = sx.local_linear(net, variables["params"], jnp.ones((8, 8, 1)))  # parameters alone
    assert_allclose(only.output, rep.output, rtol=1e-5)


def test_bad_input():
    net = sx.models.mlp(3)
    variables = net.init(jax.random.key(0), (4,))
    with pytest.raises(TypeError, match="net must be a layer or a function"):
        sx.local_linear(3, variables, jnp.ones(4))
    with pytest.raises(TypeError, match="int"):
        sx.local_linear(net, variables, jnp.ones(4, int))
    with pytest.raises(ValueError, match="dense_9"):
        sx.local_linear(net, variables, jnp.ones(4)).weight_reach("dense_9")


def test_what_is_not_finite_has_no_reach():
    for x in ([np.nan, 1.0], [np.nan, np.nan], [np.inf, 1.0]):
        rep = sx.local_linear(lambda params, x: jax.nn.relu(params @ x), jnp.eye(2), jnp.array(x))
        assert np.isnan(rep.input_reach().radius)


def test_stepwise_inputs_are_not_affine_in_the_weights():
    f = lambda params, x: jnp.exp(params["w"] @ jnp.sign(x))  # noqa: E731
    rep = sx.local_linear(f, {"w": jnp.eye(2)}, jnp.array([1.0, 2.0]))
    assert rep.exact  # constant near this input
    with pytest.raises(ValueError, match="not piecewise affine"):
        rep.weight_reach("w")


def test_equal_leaves_of_different_types():
    f = lambda params, x: (params["w"] @ x) * (2.0 if isinstance(params["n"], float) else 1.0)  # noqa: E731
    found = [
        float(sx.local_linear(f, {"w": jnp.eye(1), "n": n}, jnp.ones(1)).A.to_dense()[0, 0]) for n in (1, 1.0, True)
    ]
    assert found == [1.0, 2.0, 1.0]


def test_a_kink_has_no_region(x64):
    rep = sx.local_linear(lambda params, x: jnp.abs(params @ x), jnp.eye(2), jnp.array([0.0, 3.0]))
    assert float(rep.input_reach().radius) == 0
    clamped = sx.local_linear(lambda params, x: jax.lax.clamp(x[0], x[1], x[2]), (), jnp.array([1.0, -1.0, 1.1]))
    assert_allclose(clamped.input_reach().radius, 0.1 / np.sqrt(2))  # where the bounds meet
    none = sx.local_linear(lambda params, x: params @ x, jnp.eye(2), jnp.array([0.0, 3.0])).input_reach()
    assert float(none.radius) == np.inf
    assert_allclose(none.direction, 0)
