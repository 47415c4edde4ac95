"""Spectral normalisation by followed vectors, as pure functions: transforms, dtypes, and what an update promises."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spectrax as sx
from spectrax import parametrizations

KEY = jax.random.key(0)


def array_of(shape, seed=0, dtype="float64"):
    generator = np.random.default_rng(seed)
    real = generator.normal(size=shape)
    return jnp.asarray(real + 1j * generator.normal(size=shape) if "complex" in dtype else real, dtype)


def convolution(kernel):
    return sx.conv_operator(kernel, (5, 4), padding="SAME", strides=(2, 1))


FORMS = {
    "matrix": (parametrizations.tracked_spectral_norm(num_steps=3), (6, 4), lambda kernel: kernel.T),
    "convolution": (
        parametrizations.tracked_spectral_norm(convolution, num_steps=3), (3, 2, 2, 3),
        lambda kernel: convolution(kernel).to_dense(),
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", FORMS)


@EVERY
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_vectors_become_the_leading_ones(name, dtype, x64):
    form, shape, dense = FORMS[name]
    kernel = array_of(shape, dtype=dtype)
    u, s, vh = np.linalg.svd(dense(kernel))
    update = jax.jit(form.update)
    state = jax.jit(form.init)(kernel, KEY)
    assert state.sigma.dtype == jnp.float64
    sigmas = []
    for _ in range(40):
        state = update(kernel, state)
        sigmas.append(state.sigma)
    assert (np.diff(sigmas) > -1e-14).all()  # with a constant kernel it never falls
    assert_allclose(state.sigma, s[0], rtol=1e-12)
    assert_allclose(np.abs([np.vdot(state.u, u[:, 0]), np.vdot(state.v, vh[0].conj())]), 1, rtol=1e-10)
    assert_allclose(form.apply(kernel, state), np.asarray(kernel) / s[0], rtol=1e-12)


@EVERY
def test_transforms(name, x64):
    form, shape, dense = FORMS[name]
    kernels = jnp.stack([array_of(shape, seed) for seed in range(3)])
    traces = []

    def step(state, kernel):
        traces.append(1)
        state = form.update(kernel, state)
        return state, form.apply(kernel, state)

    start = jax.jit(form.init)(kernels[0], KEY)
    last, made = jax.jit(lambda: jax.lax.scan(step, start, jnp.repeat(kernels, 20, 0)))()
    assert len(traces) == 1
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), last) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), start
    )
    for index in range(3):
        assert_allclose(np.linalg.norm(dense(made[20 * index + 19]), 2), 1, rtol=1e-4)
    states = jax.vmap(form.init)(kernels, jax.random.split(KEY, 3))
    several = jax.jit(jax.vmap(lambda kernel, state: form.apply(kernel, form.update(kernel, state))))(kernels, states)
    one = form.update(kernels[1], jax.tree.map(lambda leaf: leaf[1], states))
    assert_allclose(several[1], form.apply(kernels[1], one), atol=1e-12)

    # first derivatives in both modes, by differences with the same vectors
    direction, weights = array_of(shape, 7), array_of(shape, 8)
    function = jax.jit(lambda kernel: jnp.sum(weights * form.apply(kernel, last)))
    expected = (function(kernels[2] + 1e-6 * direction) - function(kernels[2] - 1e-6 * direction)) / 2e-6
    assert_allclose(jnp.vdot(jax.grad(function)(kernels[2]), direction), expected, rtol=1e-6)
    assert_allclose(jax.jvp(function, (kernels[2],), (direction,))[1], expected, rtol=1e-6)
    # none through the update, nor in the state
    through = jax.grad(lambda kernel: form.update(kernel, last).sigma)(kernels[2])
    assert_array_equal(through, 0 * through)


@EVERY
def test_dtypes_and_platforms(name):
    form, shape, _ = FORMS[name]
    for dtype in ("bfloat16", "float16", "float32"):
        struct = jax.ShapeDtypeStruct(shape, dtype)
        state = jax.eval_shape(form.init, struct, KEY)
        assert {leaf.dtype for leaf in state} == {jnp.dtype(jnp.float32)}
        assert jax.eval_shape(form.update, struct, state) == state
        assert jax.eval_shape(form.apply, struct, state) == struct
    step = jax.jit(lambda kernel, state: form.apply(kernel, form.update(kernel, state)))
    jax.export.export(step, platforms=["cpu", "cuda", "tpu"])(struct, state)


@EVERY
def test_tiny_huge_and_broken_kernels(name):
    form, shape, _ = FORMS[name]
    kernel = array_of(shape, dtype="float32")
    state = jax.jit(form.init)(kernel, KEY)

    @jax.jit
    def step(kernel):
        new = form.update(kernel, state)
        return new, form.apply(kernel, new), jax.grad(lambda k: jnp.sum(jnp.sin(form.apply(k, new))))(kernel)

    expected = step(kernel)[1]
    for scale in (1e-30, 1e30):
        _, made, gradient = step(scale * kernel)
        assert_allclose(made, expected, rtol=1e-4, atol=1e-6)
        assert np.isfinite(gradient).all()
    for broken in (0 * kernel, kernel.at[(0,) * kernel.ndim].set(jnp.nan)):
        new, made, _ = step(broken)
        assert_array_equal(new.u, state.u)
        assert_array_equal(new.v, state.v)
        assert np.isnan(made).any() == np.isnan(broken).any()


def test_never_above_the_norm():
    """Where the Krylov space ends early, what round-off leaves of a direction is no direction."""
    kernels = []
    for seed in range(40):
        q = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
        kernels += [np.outer(q[0], q[1]), q, 2 * np.outer(q[0], q[1]) + np.outer(q[2], q[3])]
    form = parametrizations.tracked_spectral_norm(num_steps=4)
    kernels = jnp.asarray(np.stack(kernels), jnp.float32)
    keys = jax.random.split(KEY, len(kernels))
    states = jax.jit(jax.vmap(lambda kernel, key: form.update(kernel, form.init(kernel, key))))(kernels, keys)
    assert_allclose(states.sigma, np.linalg.norm(kernels, 2, axis=(1, 2)), rtol=2e-6)


def test_what_is_refused():
    for options, message in (
        ({"bound": 0.0}, "bound must be larger than 0"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            parametrizations.tracked_spectral_norm(**options)
    form = parametrizations.tracked_spectral_norm()
    with pytest.raises(ValueError, match=r"must be a matrix \(in, out\) where no operator is given"):
        form.init(jnp.ones((3, 3, 2, 2)), KEY)
