"""Curvature operators against dense matrices from jax.hessian, Jacobians and per-sample gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose

import spectrax as sx

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


def test_hessian(x64):
    params, x, y = setting()
    H = sx.hessian_operator(batch_loss, params, x, y)
    assert_allclose(H.to_dense(), dense_hessian(params, x, y), atol=1e-12)
    v = jax.tree.map(jnp.ones_like, params)
    assert_allclose(ravel_pytree(H.rmatvec(v))[0], ravel_pytree(H.matvec(v))[0])


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
    g = dense_jacobian(lambda p: sample_losses(p, x, y), params)
    assert_allclose(sx.empirical_fisher_operator(sample_losses, params, x, y).to_dense(), g.T @ g / COUNT, atol=1e-12)


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


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p, x, y: sx.hessian_operator(lambda p: p["a"], p), ValueError, "one number, got shapes"),
        (lambda p, x, y: sx.hessian_operator(batch_loss, {"n": 1}, x, y), TypeError, "floating-point"),
        (lambda p, x, y: sx.hessian_operator(batch_loss, {"n": 1j}, x, y), TypeError, "must be real"),
        (lambda p, x, y: sx.hessian_operator(batch_loss, p, batches=(x, y[:2])), ValueError, "batches must have one"),
        (lambda p, x, y: sx.empirical_fisher_operator(batch_loss, p, x, y), ValueError, "for each sample"),
        (lambda p, x, y: sx.fisher_operator(logits_of, p, x, likelihood="poisson"), ValueError, "likelihood"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(*setting())
