"""Curvature operators against dense matrices from jax.hessian, Jacobians and per-sample gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.programs.equations import equations

CLASSES, COUNT = 3, 4


def logits_of(params, x, y=None):
    del y
    return jnp.tanh(x @ params["a"] + params["b"]) @ params["c"]


def batch_loss(params, x, y):
    return loss_of(logits_of(params, x), x, y)


def loss_of(logits, x, y):
    del x
    return jnp.mean(-jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1))


def sample_losses(params, x, y):
    logits = logits_of(params, x)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1)[:, 0]


def setting(seed=0, batches=None):
    rng = np.random.default_rng(seed)
    lead = () if batches is None else (batches,)
    params = {"a": rng.normal(size=(5, 4)), "b": rng.normal(size=4), "c": rng.normal(size=(4, CLASSES))}
    x, y = rng.normal(size=(*lead, COUNT, 5)), rng.integers(0, CLASSES, (*lead, COUNT))
    return jax.tree.map(jnp.asarray, params), jnp.asarray(x), jnp.asarray(y)


def dense_hessian(params, x, y):
    flat, back = ravel_pytree(params)
    return jax.hessian(lambda point: batch_loss(back(point), x, y))(flat)


def dense_jacobian(function, params):
    flat, back = ravel_pytree(params)
    return jax.jacfwd(lambda point: function(back(point)))(flat)


def empirical(params, x, y):
    g = dense_jacobian(lambda p: sample_losses(p, x, y), params)
    return g.T @ g / COUNT


def test_hessian(x64):
    params, x, y = setting()
    H = sx.hessian_operator(batch_loss, params, x, y)
    assert_allclose(H.to_dense(), dense_hessian(params, x, y), atol=1e-12)
    v = jax.tree.map(jnp.ones_like, params)
    assert_allclose(ravel_pytree(H.rmatvec(v))[0], ravel_pytree(H.matvec(v))[0])


def test_products_for_a_loop_are_linearised_once(x64):
    params, x, y = setting()
    H = sx.hessian_operator(batch_loss, params, x, y)
    v = jax.tree.map(jnp.cos, params)
    expected = dense_hessian(params, x, y) @ ravel_pytree(v)[0]
    for product in H.loop_products():
        assert_allclose(ravel_pytree(product(v))[0], expected, atol=1e-12)
        names = {e.primitive.name for e in equations(jax.make_jaxpr(product)(v).jaxpr)}
        assert "dot_general" in names
        assert not names & {"tanh", "exp", "log", "reduce_max"}


def test_gauss_newton_and_fisher(x64):
    params, x, y = setting()
    J = dense_jacobian(lambda p: logits_of(p, x), params).reshape(COUNT * CLASSES, -1)
    probabilities = np.asarray(jax.nn.softmax(logits_of(params, x)))
    blocks = np.zeros((COUNT, CLASSES, COUNT, CLASSES))
    for i, p in enumerate(probabilities):
        blocks[i, :, i] = (np.diag(p) - np.outer(p, p)) / COUNT
    expected = J.T @ blocks.reshape(COUNT * CLASSES, -1) @ J
    assert_allclose(sx.ggn_operator(logits_of, loss_of, params, x, y).to_dense(), expected, atol=1e-12)
    assert_allclose(sx.fisher_operator(logits_of, params, x, likelihood="categorical").to_dense(), expected, atol=1e-12)
    gaussian = sx.fisher_operator(logits_of, params, x, likelihood="gaussian").to_dense()
    assert_allclose(gaussian, J.T @ J / COUNT, atol=1e-12)


def test_fisher_is_the_expectation_over_the_models_labels(x64):
    params, x, _ = setting()
    probabilities = np.asarray(jax.nn.softmax(logits_of(params, x)))
    expected = 0
    for label in range(CLASSES):
        g = np.asarray(dense_jacobian(lambda p, label=label: sample_losses(p, x, jnp.full(COUNT, label)), params))
        expected += np.einsum("i,ij,ik->jk", probabilities[:, label], g, g) / COUNT
    assert_allclose(sx.fisher_operator(logits_of, params, x, likelihood="categorical").to_dense(), expected, atol=1e-12)


def test_empirical_fisher(x64):
    params, x, y = setting()
    assert_allclose(
        sx.empirical_fisher_operator(sample_losses, params, x, y).to_dense(), empirical(params, x, y), atol=1e-12
    )


def test_neural_tangent_kernel(x64):
    params, x, _ = setting()
    J = dense_jacobian(lambda p: logits_of(p, x), params).reshape(COUNT * CLASSES, -1)
    assert_allclose(sx.ntk_operator(logits_of, params, x).to_dense(), J @ J.T, atol=1e-12)


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher", "empirical"])
def test_mean_over_batches(kind, x64):
    params, x, y = setting(batches=3)
    make = {
        "hessian": lambda *data, **o: sx.hessian_operator(lambda p, b: batch_loss(p, *b), params, *data, **o),
        "ggn": lambda *data, **o: sx.ggn_operator(
            lambda p, b: logits_of(p, b[0]), lambda z, b: loss_of(z, *b), params, *data, **o
        ),
        "fisher": lambda *data, **o: sx.fisher_operator(
            lambda p, b: logits_of(p, b[0]), params, *data, likelihood="categorical", **o
        ),
        "empirical": lambda *data, **o: sx.empirical_fisher_operator(
            lambda p, b: sample_losses(p, *b), params, *data, **o
        ),
    }[kind]
    expected = sum(make((x[i], y[i])).to_dense() for i in range(3)) / 3
    assert_allclose(make(batches=(x, y)).to_dense(), expected, atol=1e-12)


def test_top_and_bottom_eigenvalues_of_batched_data():
    params, x, y = setting(batches=3)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    traces = []

    def loss(point, batch):
        traces.append(0)
        return batch_loss(point, *batch)

    @jax.jit
    def ends(params, batches):
        H = sx.hessian_operator(loss, params, batches=batches)
        key = jax.random.key(0)
        return [sx.eigsh(H, 2, which=which, key=key).eigenvalues for which in ("largest", "smallest")]

    values = np.linalg.eigvalsh(np.mean([dense_hessian(params, x[i], y[i]) for i in range(3)], axis=0))
    largest, smallest = ends(params, (x.astype(jnp.float32), y))
    assert_allclose(largest, values[::-1][:2], rtol=1e-4)
    assert_allclose(np.sort(smallest), values[:2], rtol=1e-4)
    once = len(traces)
    ends(jax.tree.map(lambda leaf: 2 * leaf, params), (x.astype(jnp.float32), y))
    assert len(traces) == once


def test_derivatives_go_through(x64):
    params, x, y = setting()
    v = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(1).normal(size=leaf.shape)), params)

    def quadratic(scale):
        H = sx.hessian_operator(batch_loss, jax.tree.map(lambda leaf: scale * leaf, params), x, y)
        return jnp.vdot(ravel_pytree(v)[0], ravel_pytree(H.matvec(v))[0])

    slope = (quadratic(1 + 1e-5) - quadratic(1 - 1e-5)) / 2e-5
    assert_allclose(jax.grad(quadratic)(1.0), slope, rtol=1e-7)


@jax.custom_vjp
def ruled(x):
    return jnp.tanh(x)


ruled.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, slope: ((1 - y**2) * slope,))


def test_a_custom_rule_of_the_reverse_mode(x64):
    """It has no forward mode: J v is the transpose of the rule, the Hessian its derivative."""
    params, x, y = setting()
    ours = lambda p, x, y=None: ruled(x @ p["a"] + p["b"]) @ p["c"]  # noqa: E731
    losses = lambda p, x, y: -jax.nn.log_softmax(ours(p, x))[jnp.arange(COUNT), y]  # noqa: E731
    pairs = [
        (sx.hessian_operator(lambda p: loss_of(ours(p, x), x, y), params), dense_hessian(params, x, y)),
        (sx.ggn_operator(ours, loss_of, params, x, y), sx.ggn_operator(logits_of, loss_of, params, x, y).to_dense()),
        (sx.empirical_fisher_operator(losses, params, x, y), empirical(params, x, y)),
    ]
    for operator, expected in pairs:
        assert_allclose(operator.to_dense(), expected, atol=1e-12)


def test_outputs_that_are_complex(x64):
    """J maps real vectors to complex ones, and the matrix is the real part of J^H H J."""
    rng = np.random.default_rng(5)
    x, w = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=3))
    model = lambda w: jnp.exp(jax.lax.complex(x[:, 0] * w[0], x @ w))  # noqa: E731
    got = sx.ggn_operator(model, lambda z: jnp.sum(jnp.abs(z - 1) ** 2) / 2, w).to_dense()
    J = np.asarray(model(w))[:, None] * (1j * np.asarray(x) + np.outer(x[:, 0], [1, 0, 0]))
    assert_allclose(got, (J.conj().T @ J).real, rtol=1e-12)


def test_loops_and_rematerialisation_inside_of_a_model(x64):
    rng = np.random.default_rng(6)
    x, w = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=(3, 3)))

    def looped(w):
        return jax.lax.scan(jax.checkpoint(lambda c, _: (jnp.tanh(c @ w), None)), x, None, length=2)[0]

    plain = lambda w: jnp.tanh(jnp.tanh(x @ w) @ w)  # noqa: E731
    expected = jax.hessian(lambda flat: jnp.sum(plain(flat.reshape(3, 3)) ** 3))(w.ravel())
    assert_allclose(sx.hessian_operator(lambda w: jnp.sum(looped(w) ** 3), w).to_dense(), expected, atol=1e-12)
    J = jax.jacobian(plain)(w).reshape(12, 9)
    assert_allclose(sx.fisher_operator(looped, w, likelihood="gaussian").to_dense(), J.T @ J / 4, atol=1e-12)


def test_parameters_and_outputs_of_several_dtypes():
    """Numbers and 16-bit leaves among the parameters; each leaf of a product has its own dtype."""
    params = {"scale": 2.0, "w": jnp.array([1.0, -2.0], "bfloat16"), "b": np.array([0.5, 0.25], "float32")}

    def model(p):
        wide = p["scale"] * p["w"].astype("float32") + p["b"]
        return {"wide": wide[None], "narrow": wide[None].astype("bfloat16")}

    def loss(p):
        return sum(jnp.sum(leaf.astype("float32") ** 2) for leaf in jax.tree.leaves(model(p))) / 2

    v = {"scale": jnp.ones(()), "w": jnp.ones(2, "bfloat16"), "b": jnp.ones(2)}
    J = np.array([[1.0, 0.0, 1.0, 2.0, 0.0], [0.0, 1.0, -2.0, 0.0, 2.0]])  # leaves in order: b, scale, w
    along = 2 * J.T @ (J @ np.ones(5))
    got = sx.fisher_operator(model, params, likelihood="gaussian").matvec(v)
    assert {name: leaf.dtype.name for name, leaf in got.items()} == {
        "b": "float32",
        "scale": "float32",
        "w": "bfloat16",
    }
    flat = np.concatenate([np.ravel(np.asarray(leaf, "float32")) for leaf in jax.tree.leaves(got)])
    assert_allclose(flat, along, rtol=2e-2)
    second = np.zeros(5)
    residual = np.array([2.5, -3.75])
    second[2], second[3:] = 2 * residual.sum(), 2 * residual
    flat = [np.ravel(np.asarray(a, "float32")) for a in jax.tree.leaves(sx.hessian_operator(loss, params).matvec(v))]
    assert_allclose(np.concatenate(flat), along + second, rtol=2e-2)


def test_probabilities_of_16_bit_logits_are_worked_on_in_32():
    """So that a product is rounded once, to half a unit in the last place."""
    logits = jnp.asarray(np.random.default_rng(7).normal(size=(1, 32)), "bfloat16")
    v = jnp.asarray(np.random.default_rng(8).normal(size=(1, 32)), "bfloat16")
    p, w = jax.nn.softmax(np.asarray(logits[0], "float32")), np.asarray(v[0], "float32")
    got = sx.fisher_operator(lambda logits: logits, logits, likelihood="categorical").matvec(v)
    assert_allclose(np.asarray(got[0], "float32"), p * w - p * (p @ w), rtol=2**-8)


def test_flax_models(x64):
    from flax import linen, nnx

    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2, param_dtype=jnp.float64)(jnp.tanh(linen.Dense(3, param_dtype=jnp.float64)(x)))

    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)))
    variables = Linen().init(jax.random.key(0), x)
    net = nnx.Linear(5, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graph, state = nnx.split(net)
    for model, params in ((Linen().apply, variables), (lambda state, x: nnx.merge(graph, state)(x), state)):
        F = sx.fisher_operator(model, params, x, likelihood="gaussian")
        J = dense_jacobian(lambda p, model=model: model(p, x), params).reshape(8, -1)
        assert_allclose(F.to_dense(), J.T @ J / 4, atol=1e-12)


def test_what_is_known_to_be_symmetric():
    """And spares the products of the test for it: n for the matrix, and one for each vector instead of two."""
    H = sx.hessian_operator(lambda w: jnp.sum(w**4), jnp.arange(1.0, 4.0))
    other = sx.aslinearoperator(lambda v: v, H.in_struct)
    for known in (H, 2.0 * H, -H, H + H, H - H, H.H, H.T):
        assert known.hermitian
        assert int(sx.eigsh(known, 2, which="largest", method=sx.Dense()).num_matvecs) == 3 + 2
    for unknown in (other, H + other, other + H, H @ H):
        assert not unknown.hermitian
    assert int(sx.eigsh(H + other, 2, which="largest", method=sx.Dense()).num_matvecs) == 3 + 2 * 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p, x, y: sx.hessian_operator(lambda p: p["a"], p), ValueError, "one number, got shape"),
        (lambda p, x, y: sx.hessian_operator(batch_loss, {"n": 1}, x, y), TypeError, "floating-point"),
        (lambda p, x, y: sx.hessian_operator(batch_loss, {"n": 1j}, x, y), TypeError, "must be real"),
        (lambda p, x, y: sx.hessian_operator(batch_loss, p, batches=(x, y[:2])), ValueError, "batches must have one"),
        (lambda p, x, y: sx.empirical_fisher_operator(batch_loss, p, x, y), ValueError, "for each sample"),
        (lambda p, x, y: sx.fisher_operator(logits_of, p, x, likelihood="poisson"), ValueError, "likelihood"),
        (lambda p, x, y: sx.fisher_operator(logits_of, p, x[:0], likelihood="categorical"), ValueError, "logits"),
        (lambda p, x, y: sx.fisher_operator(logits_of, p, x[:0], likelihood="gaussian"), ValueError, "leading axis"),
        (lambda p, x, y: sx.empirical_fisher_operator(sample_losses, p, x[:0], y[:0]), ValueError, "for each sample"),
        (lambda p, x, y: sx.hessian_operator(lambda p: 0.0, {}), ValueError, "at least one number"),
        (lambda p, x, y: sx.hessian_operator(jnp.sum, jnp.zeros((0, 2))), ValueError, "at least one number"),
        (lambda p, x, y: sx.hessian_operator(lambda p: (p.sum(), p), x), TypeError, "nothing beside it"),
        (lambda p, x, y: sx.hessian_operator(lambda p: p.sum(keepdims=True), x), ValueError, r"shape \(1, 1\)"),
        (lambda p, x, y: sx.hessian_operator(lambda p: p.sum().astype(int), x), TypeError, "real floating-point"),
        (lambda p, x, y: sx.ggn_operator(lambda p: p.astype(int), jnp.sum, x), TypeError, "floating-point arrays"),
        (lambda p, x, y: sx.hessian_operator(lambda p, mode: p.sum(), x, "mean"), TypeError, "functools.partial"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(*setting())
