"""Curvature over mini-batched data: closed forms, weights, precision, memory, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(3, 4, 5)), RNG.normal(size=(3, 4))
W = np.linspace(-1.0, 1.0, 5)


def squares(w, batch):
    x, y = batch[:2]
    return (x @ w - y) ** 2 / 2


def squared_error(w, batch):
    return jnp.mean(squares(w, batch))


def masked_error(w, batch):
    """The mean over the samples that are no padding."""
    mask = batch[2]
    return jnp.sum(jnp.where(mask, squares(w, batch), 0)) / jnp.sum(mask, dtype=w.dtype)


def logistic_loss(w, batch):
    x, y = batch
    return jnp.mean(jnp.logaddexp(0.0, x @ w) - y * (x @ w))


def test_linear_regression_and_logistic_regression(x64):
    x, y, w = jnp.asarray(X), jnp.asarray(Y), jnp.asarray(W)
    rows = X.reshape(12, 5)
    expected = rows.T @ rows / 12
    assert_allclose(sx.hessian_operator(squared_error, w, batches=(x, y)).to_dense(), expected, atol=1e-13)
    for operator in (
        sx.ggn_operator(lambda w, b: b[0] @ w, lambda z, b: jnp.mean((z - b[1]) ** 2) / 2, w, batches=(x, y)),
        sx.fisher_operator(lambda w, b: b @ w, w, batches=x, likelihood="gaussian"),
    ):
        assert_allclose(operator.to_dense(), expected, atol=1e-13)
    p = 1 / (1 + np.exp(-rows @ W))
    expected = (rows * (p * (1 - p))[:, None]).T @ rows / 12
    labels = jnp.asarray(Y > 0, float)
    assert_allclose(sx.hessian_operator(logistic_loss, w, batches=(x, labels)).to_dense(), expected, atol=1e-13)
    two = lambda w, x: jnp.stack([jnp.zeros(x.shape[0]), x @ w], axis=-1)  # noqa: E731
    fisher = sx.fisher_operator(two, w, batches=x, likelihood="categorical")
    assert_allclose(fisher.to_dense(), expected, atol=1e-13)
    g = (rows @ W - Y.ravel())[:, None] * rows
    empirical = sx.empirical_fisher_operator(squares, w, batches=(x, y))
    assert_allclose(empirical.to_dense(), g.T @ g / 12, atol=1e-13)


@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_weights_make_the_mean_over_samples_of_a_padded_last_batch(dtype, x64):
    mask = np.ones((3, 4), bool)
    mask[2, 1:] = False
    batches, w = (jnp.asarray(X), jnp.asarray(Y), jnp.asarray(mask)), jnp.asarray(W)
    rows = X[mask]
    H = sx.hessian_operator(masked_error, w, batches=batches, weights=mask.sum(1).astype(dtype))
    assert_allclose(H.to_dense(), rows.T @ rows / 9, atol=1e-13)
    assert not np.allclose(sx.hessian_operator(masked_error, w, batches=batches).to_dense(), H.to_dense(), atol=1e-2)
    # where the mean is over all rows of a batch, padding that is constant is counted: a factor takes it out
    losses = lambda w, b: jnp.where(b[2], squares(w, b), 0)  # noqa: E731
    g = (rows @ W - Y[mask])[:, None] * rows
    F = 12 / 9 * sx.empirical_fisher_operator(losses, w, batches=batches)
    assert_allclose(F.to_dense(), g.T @ g / 9, atol=1e-13)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_over_many_batches_of_16_bits_are_taken_in_32(dtype):
    """In 16 bits a sum of ones stands still at 256, or 2048."""
    w, many = jnp.ones(3, dtype), jnp.zeros((3000, 1), dtype)
    half_square = lambda w, batch: jnp.sum(w * w) / 2 + 0 * jnp.sum(batch)  # noqa: E731
    for weights in (None, jnp.ones(3000, dtype)):
        image = sx.hessian_operator(half_square, w, batches=many, weights=weights).matvec(w)
        assert image.dtype == dtype
        assert_allclose(np.asarray(image, "float32"), 1, rtol=1e-2)


def test_derivatives_in_parameters_batches_and_weights(x64):
    def loss(w, batch):
        return jnp.mean(jnp.tanh(batch @ w) ** 2)

    def quadratic(w, x, weights):
        v = jnp.arange(1.0, 6.0)
        return v @ sx.hessian_operator(loss, w, batches=x, weights=weights).matvec(v)

    at = jnp.asarray(W), jnp.asarray(X), jnp.array([1.0, 2.0, 4.0])
    steps = [jnp.asarray(RNG.normal(size=leaf.shape)) for leaf in at]
    gradients = jax.grad(quadratic, argnums=(0, 1, 2))(*at)
    value = jax.jit(quadratic)
    for place, (step, gradient) in enumerate(zip(steps, gradients, strict=True)):
        moved = [[a + s * 1e-5 * step if i == place else a for i, a in enumerate(at)] for s in (1, -1)]
        assert_allclose(jnp.vdot(gradient, step), (value(*moved[0]) - value(*moved[1])) / 2e-5, rtol=1e-6)


def test_memory_is_that_of_one_batch():
    def quadratic(w, x):
        return jnp.vdot(w, sx.hessian_operator(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2), w, batches=x).matvec(w))

    for function in (quadratic, jax.grad(quadratic)):
        needed = []
        for count in (2, 64):
            structs = jax.ShapeDtypeStruct((8,), "float32"), jax.ShapeDtypeStruct((count, 512, 8), "float32")
            needed.append(jax.jit(function).lower(*structs).compile().memory_analysis().temp_size_in_bytes)
        assert needed[1] < 1.2 * needed[0], needed


def test_order_one_trace_and_stochastic_losses():
    """Batches of keys, an operator for each of two points, and equal sums of equal calls."""
    traces = []

    def loss(w, key):
        traces.append(0)
        return jnp.sum(jax.random.normal(key, w.shape) * w**2) / 2

    keys, points = jax.random.split(jax.random.key(0), 4), jnp.ones((2, 3))
    operators = jax.vmap(lambda w: sx.hessian_operator(loss, w, batches=keys))(points)
    images = jax.vmap(lambda H, v: H.matvec(v))(operators, points)
    expected = np.mean([jax.random.normal(key, (3,)) for key in keys], axis=0)
    assert_allclose(images, np.stack([expected, expected]), rtol=1e-6)
    H = sx.hessian_operator(loss, points[0], batches=keys)
    first = H.matvec(points[0])
    once = len(traces)
    for _ in range(10):
        assert (sx.hessian_operator(loss, points[0], batches=keys).matvec(points[0]) == first).all()
    assert len(traces) == once


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": (X[:0], Y[:0])}, ValueError, "at least one batch"),
        ({"batches": ()}, ValueError, "one leading batch axis"),
        ({"batches": (X, 1.0)}, ValueError, "one leading batch axis"),
        ({"weights": np.ones(3)}, ValueError, "no batches"),
        ({"batches": (X, Y), "weights": np.ones(2)}, ValueError, r"shape \(3,\)"),
        ({"batches": (X, Y), "weights": np.ones(3, bool)}, TypeError, "real numbers"),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        sx.hessian_operator(squared_error, jnp.ones(5), **options)


def test_not_a_number_in_one_batch_is_seen():
    H = sx.hessian_operator(squared_error, jnp.ones(5), batches=(jnp.asarray(X).at[1, 0, 0].set(jnp.nan), Y))
    result = sx.eigsh(H, 1, which="largest", key=jax.random.key(0))
    assert not result.converged.any()
    assert np.isnan(result.eigenvalues).all()


SHARDED = """
    import jax, jax.numpy as jnp, numpy as np
    import spectrax as sx
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

    assert len(jax.devices()) == 8
    mesh = Mesh(np.array(jax.devices()), ("data",))
    x = np.random.default_rng(0).normal(size=(8, 16, 6)).astype("float32")
    w = jnp.linspace(-1.0, 1.0, 6)
    loss = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)
    value = jax.jit(lambda w, x, k: sx.eigsh(sx.hessian_operator(loss, w, batches=x), 2, which="largest", key=k))
    alone = value(w, x, jax.random.key(0))
    for spec in (P(None, "data"), P("data")):
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        result = value(w, placed, jax.random.key(0))
        assert result.converged.all()
        assert np.allclose(result.eigenvalues, alone.eigenvalues, rtol=1e-5), (spec, result, alone)
    print("same")
"""


def test_batches_on_eight_virtual_devices(on_eight_devices):
    assert on_eight_devices(SHARDED) == "same"


def notes_of(batches, loss=squared_error):
    with pytest.raises((TypeError, ValueError)) as found:
        sx.hessian_operator(loss, jnp.ones(5), batches=batches)
    return "".join(getattr(found.value, "__notes__", []))


def test_a_list_of_batches_is_told_what_batches_are():
    """It is a pytree as any other, whose leaves are stacked along their rows."""
    x, y = (jnp.asarray(a, jnp.float32) for a in (X, Y))
    one, short = (x[0], y[0]), (x[1, :2], y[1, :2])
    for batches in ([one, one], (one, one), [one, short]):
        assert "or give lambda: iter(batches)" in notes_of(batches)
    assert "or give lambda: iter(batches)" in notes_of([x[0], x[1]], lambda w, batch: jnp.sum(batch @ w))
    assert "stack" not in notes_of((x, y), lambda w, batch: batch[0] @ w)  # wrong for another reason
    stacked = sx.hessian_operator(squared_error, jnp.ones(5), batches=(x, y)).to_dense()
    assert_allclose(sx.hessian_operator(squared_error, jnp.ones(5), batches=[x, y]).to_dense(), stacked)


@pytest.mark.parametrize("over_iterator", [False, True])
def test_weights_that_are_no_weights(over_iterator):
    x, y = (jnp.asarray(a, jnp.float32) for a in (X, Y))
    batches = (lambda: iter(zip(x, y, strict=True))) if over_iterator else (x, y)

    def product(weights):
        return sx.hessian_operator(squared_error, jnp.ones(5), batches=batches, weights=weights).matvec(jnp.ones(5))

    for weights in ([1, -1, 3], np.array([-0.5, 1, 1]), jnp.array([1.0, 2.0, -1e-9])):
        with pytest.raises(ValueError, match="weights must not be negative, got"):
            product(jnp.asarray(weights))
    for weights in (jnp.zeros(3), jnp.zeros(3, int)):
        with pytest.raises(ValueError, match="weights must not all be zero, got"):
            product(weights)
    assert jnp.isfinite(product(jnp.array([0.0, 0.0, 1.0]))).all()
    if not over_iterator:  # traced ones are not known
        expected = 3 * product(jnp.array([0.0, 0.0, 1.0])) - 2 * product(jnp.array([1.0, 0.0, 0.0]))
        assert_allclose(jax.jit(product)(jnp.array([-2.0, 0.0, 3.0])), expected, rtol=1e-4, atol=1e-5)
