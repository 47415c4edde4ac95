"""What observes a run: spectra against NumPy, oscillation against the closed form for a quadratic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from spectrax.regularizers.transforms import gradient_oscillation, track_spectrum


@pytest.fixture(autouse=True)
def _promotion():
    """Optax's optimisers raise Python floats to integer dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_spectra_are_measured_and_nothing_changes():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), "b": jnp.ones(3)}
    gradient = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), "b": jnp.ones(3)}
    observed, plain = optax.chain(track_spectrum(every=2), optax.adam(0.1)), optax.adam(0.1)
    step = jax.jit(observed.update)
    state, plain_state, seen, true = observed.init(params), plain.init(params), [], []
    for _ in range(5):
        true.append(np.linalg.svd(params["w"], compute_uv=False)[[0, -1]])
        updates, state = step(gradient, state, params)
        expected, plain_state = plain.update(gradient, plain_state, params)
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-6), updates, expected)
        found = optax.tree.get(state, "measurements")
        seen.append([float(found.sigma_max["w"]), float(found.sigma_min["w"])])
        params = optax.apply_updates(params, updates)
    assert step._cache_size() == 1
    assert_allclose(seen[0], true[0], rtol=1e-5)
    assert_array_equal(seen[1], seen[0])  # not measured in between
    assert abs(seen[2][0] / true[2][0] - 1) < 1e-2  # Ritz values on the vectors of the first step
    assert seen[2][0] <= true[2][0] * (1 + 1e-6)
    assert seen[2][1] >= true[2][1] * (1 - 1e-5)


# cos of successive gradients of sum lambda_i w_i^2 / 2 from w = (1, 1), as gradient descent goes
CASES = [(0.05, 0, 0.9961), (0.15, 0, -0.9643), (0.15, 10, 0.9969), (0.19, 0, -0.9821), (0.19, 39, -1.0)]


@pytest.mark.parametrize(("eta", "step", "expected"), CASES)
def test_oscillation_of_a_quadratic(eta, step, expected):
    curvatures, optimizer = jnp.array([1.0, 10.0]), optax.chain(gradient_oscillation(eta), optax.sgd(eta))
    params = {"w": jnp.ones(2), "count": jnp.arange(2)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(step + 2):
        gradient = {"w": curvatures * params["w"], "count": jnp.zeros(2, int)}
        updates, state = update(gradient, state, params)
        params = {**params, "w": params["w"] + updates["w"]}
    found = state[0]
    assert_allclose(found.cosine, expected, atol=6e-5)
    assert_allclose(found.leaf_cosines["w"], expected, atol=6e-5)
    # the curvature along the last step, which is along the gradient before
    w = np.array([1.0, 1.0]) * (1 - eta * np.array([1.0, 10.0])) ** step
    g = np.array([1.0, 10.0]) * w
    assert_allclose(found.sharpness, np.sum(np.array([1.0, 10.0]) * g**2) / np.sum(g**2), rtol=1e-3)
    assert_allclose(found.stability, eta * found.sharpness, rtol=1e-6)


def test_what_is_not_known_is_nan():
    optimizer = gradient_oscillation()
    params = {"w": jnp.ones(2)}
    state = optimizer.init(params)
    _, state = optimizer.update({"w": jnp.ones(2)}, state, params)
    assert np.isnan([state.cosine, state.sharpness, state.stability]).all()
    updates, state = optimizer.update({"w": jnp.zeros(2)}, state, params)  # nothing has moved, and no gradient
    assert np.isnan([state.cosine, state.sharpness]).all()
    assert_array_equal(updates["w"], 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gradient_oscillation(-1.0), "learning_rate must be at least 0"),
        (lambda: track_spectrum(every=0), "every must be at least 1"),
        (lambda: gradient_oscillation().update({}, gradient_oscillation().init({})), "needs the parameters"),
        (lambda: track_spectrum().update({}, None), "track_spectrum needs the parameters"),
        (lambda: track_spectrum().init({"w": jnp.ones((200, 200))}), "a PRNG key"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
