"""The largest curvature against dense Hessians and Gauss-Newton matrices, its derivative against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.regularizers import sharpness_penalty

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 4)), RNG.normal(size=(12, 2))


def model(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["out"]


def error(outputs, y):
    return jnp.mean(jnp.sum((outputs - y) ** 2, -1))


def loss(params, x, y):
    return error(model(params, x), y)


def params_of(dtype="float64"):
    rng = np.random.default_rng(1)
    return {
        "hidden": jnp.asarray(rng.normal(size=(4, 3)), dtype),
        "out": jnp.asarray(rng.normal(size=(3, 2)), dtype),
        "count": jnp.arange(3),
    }


def dense(params, gauss_newton):
    weights = {name: params[name] for name in ("hidden", "out")}
    flat, back = ravel_pytree(weights)
    if not gauss_newton:
        return np.asarray(jax.hessian(lambda w: loss(back(w), X, Y))(flat))
    J = np.asarray(jax.jacobian(lambda w: model(back(w), X).ravel())(flat))
    return 2 / len(X) * J.T @ J


def settled(penalty, params, steps=40):
    """The value after enough steps at the same place for the vector to converge."""
    state, apply = penalty.init(params, jax.random.key(0)), jax.jit(penalty.apply)
    for _ in range(steps):
        value, state = apply(params, state, x=X, y=Y, unused=jnp.zeros(2))
    assert apply._cache_size() == 1
    return value, state


@pytest.mark.parametrize("gauss_newton", [False, True])
def test_the_largest_eigenvalue_and_its_derivative(gauss_newton, x64):
    penalty = sharpness_penalty(error, model=model) if gauss_newton else sharpness_penalty(loss)
    params = params_of()
    value, state = settled(penalty, params)
    assert_allclose(value, np.linalg.eigvalsh(dense(params, gauss_newton))[-1], rtol=1e-7)
    measured = state.measurements
    assert bool(measured.converged["curvature"])
    assert_allclose(measured.sigma_max["curvature"], value)
    assert penalty.kinds(params) == {"curvature": "lower"}
    gradient = jax.grad(lambda p: penalty.apply(p, state, x=X, y=Y)[0], allow_int=True)(params)
    step, direction = 1e-5, params_of()["hidden"][::-1]
    ends = [
        np.linalg.eigvalsh(dense(params | {"hidden": params["hidden"] + t * direction}, gauss_newton))[-1]
        for t in (step, -step)
    ]
    assert_allclose(np.sum(gradient["hidden"] * direction), (ends[0] - ends[1]) / (2 * step), rtol=1e-3)


def test_it_is_a_lower_bound_from_the_first_step(x64):
    penalty, params = sharpness_penalty(loss, num_steps=2), params_of()
    top = np.linalg.eigvalsh(dense(params, False))[-1]
    state, values = penalty.init(params, jax.random.key(3)), []
    for _ in range(8):
        value, state = penalty.apply(params, state, x=X, y=Y)
        values.append(float(value))
    assert all(value <= top * (1 + 1e-12) for value in values)
    assert values[-1] > values[0]


def test_in_an_optax_chain():
    params = {name: leaf for name, leaf in params_of("float32").items() if name != "count"}
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    penalty = sharpness_penalty(loss)
    optimizer = optax.chain(sx.transforms.add_spectral_penalty(penalty, 0.5, key=jax.random.key(0)), optax.sgd(0.05))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params, x=x, y=y)
        return optax.apply_updates(params, updates), state

    state, seen = optimizer.init(params), []
    for _ in range(30):
        params, state = step(params, state)
        seen.append(float(optax.tree.get(state, "penalty")))
    assert seen[-1] < 0.7 * max(seen)


def test_degenerate_losses():
    """No curvature, one parameter, and what is not finite, from which the vector recovers."""
    key = jax.random.key(0)
    for function, point, expected in (
        (lambda w: jnp.sum(w), jnp.ones(3), 0),
        (lambda w: 2.5 * jnp.sum(w**2), jnp.ones(1), 5),
        (lambda w: -jnp.sum(w**2), jnp.ones(3), -2),
    ):
        penalty = sharpness_penalty(function)
        value, state = penalty.apply(point, penalty.init(point, key))
        assert_allclose(value, expected, atol=1e-5)
        assert np.isfinite(jax.grad(lambda w, p=penalty, s=state: p.apply(w, s)[0])(point)).all()
    penalty = sharpness_penalty(lambda w: jnp.sum(w**4))
    state = penalty.init(jnp.ones(2), key)
    value, state = penalty.apply(jnp.full(2, jnp.nan), state)
    assert np.isnan(value)
    value, _ = penalty.apply(jnp.ones(2), state)
    assert_allclose(value, 12, rtol=1e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_steps must be at least 2"):
        sharpness_penalty(loss, num_steps=1)
    with pytest.raises(ValueError, match="a PRNG key"):
        sharpness_penalty(loss).init({"w": jnp.ones(2)}, None)
