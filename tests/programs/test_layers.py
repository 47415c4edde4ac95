"""What a program decides by: the region where its decisions stay the same is the one where it is affine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.programs.layers import trace


def pool(x, size=(2, 2), strides=(1, 2), padding="SAME"):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, strides, padding)


DECIDING = {
    "abs": jnp.abs,
    "relu": jax.nn.relu,
    "leaky relu": jax.nn.leaky_relu,
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "maximum": lambda x: jnp.maximum(x, x.T),
    "minimum": lambda x: jnp.minimum(x, 0.3),
    "by hand": lambda x: jnp.where(x > 0.2, x, 3 * x),
    "sign": lambda x: jnp.sign(x) * x[0],
    "max of rows": lambda x: jnp.max(x, axis=1),
    "min of all": jnp.min,
    "row of the largest": lambda x: x[jnp.argmax(x[:, 0])],
    "in the order of a sort": lambda x: x[jnp.argsort(x[:, 0])],
    "sorted": lambda x: jnp.sort(x, axis=0) * jnp.arange(4.0)[:, None],
    "pool": pool,
    "pool with holes": lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (2, 2), (1, 1), "VALID", window_dilation=(2, 1)
    ),
    "lowest of windows": lambda x: jax.lax.reduce_window(
        x, jnp.inf, jax.lax.min, (3, 2), (2, 1), ((1, 1), (0, 1)), base_dilation=(1, 2)
    ),
    "running maximum": lambda x: jax.lax.cummax(x, axis=0),
    "running minimum from behind": lambda x: jax.lax.cummin(x, axis=1, reverse=True),
    "two layers": lambda x: jnp.abs(jax.nn.relu(x) @ x0().T - 0.4),
    "loop": lambda x: jax.lax.fori_loop(0, 3, lambda _, c: jax.nn.relu(x0() @ c) - 0.1, x),
}


def x0():
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))


@pytest.mark.parametrize("name", DECIDING)
def test_affine_until_a_decision_changes(name, x64):
    """Along random lines, the first zero of a switch is where the function stops to be affine, and not before."""
    f, x = DECIDING[name], x0()
    linear = jax.jacfwd(f)(x)
    found = trace(lambda _, x: f(x), (), x)
    assert found.followed
    assert_allclose(found.output, f(x))
    collect = jax.jit(lambda x: jnp.concatenate([jnp.ravel(s) for s in trace(lambda _, x: f(x), (), x).switches]))

    @jax.jit
    def error(y):
        return jnp.max(jnp.abs(f(y) - f(x) - jnp.tensordot(linear, y - x, 2)))

    rng, seen = np.random.default_rng(1), 0
    for _ in range(6):
        way = jnp.asarray(rng.normal(size=x.shape))
        values, slopes = jax.jvp(collect, (x,), (way,))
        values, slopes = np.asarray(values), np.asarray(slopes)
        with np.errstate(all="ignore"):
            steps = np.where(slopes != 0, -values / slopes, np.inf)
        first = np.min(steps[np.isfinite(steps) & (steps > 1e-12)], initial=np.inf)
        if not np.isfinite(first):
            assert error(x + 10 * way) < 1e-12
            continue
        assert error(x + 0.999 * first * way) < 1e-12
        seen += bool(error(x + 1.05 * first * way) > 1e-9)
    assert seen >= 3  # some decisions hide behind others


def test_what_cannot_be_looked_into():
    branch = lambda _, x: jax.lax.cond(x[0, 0] > 0, jax.nn.relu, jnp.abs, x)  # noqa: E731
    assert not trace(branch, (), x0()).followed
    endless = lambda _, x: jax.lax.while_loop(lambda c: c[0, 0] < 3, lambda c: jnp.abs(c) + 1, x)  # noqa: E731
    assert not trace(endless, (), x0()).followed


def test_keys_of_several_arrays_are_not_followed():
    both = lambda _, x: jax.lax.sort((x[0], x[1]), num_keys=2)  # noqa: E731
    assert not trace(both, (), x0()).followed


def test_weights_made_in_a_loop_are_weights():
    def f(params, x):
        _, weights = jax.lax.scan(lambda c, w: (jnp.maximum(c, x[0]), 2 * w), 0.0, params)
        return weights @ x

    (site,) = trace(f, jnp.ones((3, 4)), jnp.ones(4)).sites
    assert site.weight.shape == (3, 4)


def test_taps_and_weights(x64):
    params = {"a": x0(), "b": 2 * x0()}
    f = lambda p, x: p["b"] @ jax.nn.relu(p["a"] @ x)  # noqa: E731
    x = jnp.arange(1.0, 5.0)
    found = trace(f, params, x)
    assert [sorted(site.parameters) for site in found.sites] == [[0], [1]]
    assert_allclose(found.sites[1].input, jax.nn.relu(params["a"] @ x))
    tap = jnp.full(4, 0.3)
    assert_allclose(trace(f, params, x, taps={0: tap}).output, params["b"] @ jax.nn.relu(params["a"] @ x + tap))
    other = jnp.ones((4, 4))
    assert_allclose(trace(f, params, x, weights={1: other}).output, other @ jax.nn.relu(params["a"] @ x))


def test_activations_are_seen(x64):
    def f(params, x):
        y = jax.nn.silu(params @ x)
        y = jnp.tanh(y + 1)
        return jnp.clip(jax.nn.relu(y) * 3, -1, 1).sum()

    found = trace(f, x0(), jnp.ones(4)).activations
    assert [each.name for each in found] == ["silu", "tanh", "relu", "clip"]
    for each, function in zip(found, (jax.nn.silu, jnp.tanh, jax.nn.relu, lambda h: jnp.clip(h, -1, 1)), strict=True):
        assert_allclose(each.output, function(each.input))
        assert_allclose(each.slopes, jax.vmap(jax.grad(function))(each.input))
