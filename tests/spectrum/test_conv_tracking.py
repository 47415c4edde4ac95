"""Extremes of convolutions tracked over steps, against dense matrices at every step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx


def run(kernel, drift, steps, sizes, *, key=None, **options):
    """Kernels of a random walk, and what the tracker says of each; one compiled scan."""
    tracker = sx.conv_extremes(sizes, **options)
    moves = drift * np.random.default_rng(1).normal(size=(steps, *kernel.shape))
    kernels = jnp.asarray(kernel + np.cumsum(moves, axis=0), jnp.float32)

    @jax.jit
    def scan(first, kernels):
        state = tracker.init(first, key)
        return jax.lax.scan(lambda state, k: tracker.update(k, state)[::-1], state, kernels)[1]

    return kernels, scan(jnp.asarray(kernel, jnp.float32), kernels)


def kernel_near_identity(shape, seed=0, scale=0.12):
    kernel = scale * np.random.default_rng(seed).normal(size=shape)
    middle = tuple(size // 2 for size in shape[:-2])
    kernel[middle] += np.eye(*shape[-2:])
    return kernel


@pytest.mark.parametrize(
    ("shape", "sizes", "options"),
    [
        ((3, 3, 4, 5), (8, 7), {}),
        ((3, 3, 2, 6), (8, 6), {"strides": 2}),
        ((3, 1, 4), (16,), {"feature_group_count": 4}),
        ((3, 2, 3), (12,), {"kernel_dilation": 2}),
    ],
)
def test_circular_extremes_and_their_bounds(shape, sizes, options, convolution_matrix):
    names = {"strides": "strides", "feature_group_count": "groups", "kernel_dilation": "dilation"}
    kernels, found = run(kernel_near_identity(shape), 2e-3, 20, sizes, padding="CIRCULAR", **options)
    own = {names[name]: value for name, value in options.items()}
    for step, kernel in enumerate(kernels):
        truth = np.linalg.svd(convolution_matrix(np.asarray(kernel, np.float64), sizes, **own), compute_uv=False)
        top, bottom = (jax.tree.map(lambda leaf, step=step: float(leaf[step]), each) for each in found)
        assert top.lower <= truth[0] * (1 + 1e-6) <= top.upper * (1 + 2e-6)
        assert bottom.lower * (1 - 2e-6) <= truth[-1] <= bottom.upper * (1 + 1e-6)
        assert_allclose([top.value, bottom.value], truth[[0, -1]], rtol=1e-3)
    assert (top.status, found.sigma_max.kind, found.sigma_min.kind) == (sx.Status.CONVERGED, "lower", "upper")


def test_the_bound_says_when_nothing_has_moved():
    """A kernel that stands still is known exactly after some steps, and was at once."""
    kernel = jnp.asarray(kernel_near_identity((3, 3, 2, 2)), jnp.float32)
    tracker = sx.conv_extremes((6, 6), padding="CIRCULAR", num_frequencies=1)
    found, _ = tracker.update(kernel, tracker.init(kernel))
    assert_allclose(found.sigma_max.upper, found.sigma_max.value, rtol=1e-5)
    assert_allclose(found.sigma_min.lower, found.sigma_min.value, rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [((9, 8), {"padding": "SAME"}), ((9,), {"padding": "VALID"}), ((8, 8), {"padding": "SAME", "strides": 2})],
)
def test_padded_extremes(sizes, options, convolution_matrix, key):
    shape = (*(3,) * len(sizes), 3, 5)
    kernels, found = run(kernel_near_identity(shape), 2e-3, 12, sizes, key=key, **options)
    for step in (5, 11):
        truth = np.linalg.svd(
            convolution_matrix(np.asarray(kernels[step], np.float64), sizes, **options), compute_uv=False
        )
        assert_allclose(found.sigma_max.value[step], truth[0], rtol=1e-4)
        assert truth[-1] * (1 - 1e-5) <= found.sigma_min.value[step] <= truth[-1] * 1.01
        assert (int(found.sigma_max.status[step]), int(found.sigma_min.status[step])) == (0, 0)


def test_a_smallest_value_that_is_lost_is_flagged(key):
    """Bidiagonal with the smallest value 1.5 * 2^-30: no few steps find that, and the status says so."""
    kernel = jnp.array([2.0, 1.0, 0.0], jnp.float32).reshape(3, 1, 1)
    tracker = sx.conv_extremes((30,), padding="SAME", num_steps=8)
    found, _ = jax.jit(tracker.update)(kernel, tracker.init(kernel, key))
    assert float(found.sigma_min.value) > 1e-8
    assert int(found.sigma_min.status) != sx.Status.CONVERGED


@pytest.mark.parametrize("padding", ["CIRCULAR", "SAME"])
def test_derivatives(padding, convolution_matrix, key, x64):
    kernel = kernel_near_identity((3, 2, 3))
    direction = np.random.default_rng(3).normal(size=kernel.shape)
    tracker = sx.conv_extremes((7,), padding=padding)
    state = tracker.init(jnp.asarray(kernel), key)

    def ends(kernel):
        found, _ = tracker.update(kernel, state)
        return jnp.stack([found.sigma_max.value, found.sigma_min.value])

    made = jax.jit(jax.jacrev(ends))(jnp.asarray(kernel))
    u, _, vh = np.linalg.svd(convolution_matrix(kernel, (7,), padding=padding))
    change = convolution_matrix(direction, (7,), padding=padding)
    ends = ((u[:, 0], vh[0]), (u[:, vh.shape[0] - 1], vh[-1]))
    expected = [left @ change @ right for left, right in ends]
    assert_allclose(np.sum(made * direction, axis=(1, 2, 3)), expected, rtol=1e-3)


@pytest.mark.parametrize("padding", ["CIRCULAR", "SAME"])
def test_after_what_is_not_finite_it_recovers(padding, key):
    kernel = jnp.asarray(kernel_near_identity((3, 2, 2)), jnp.float32)
    tracker = sx.conv_extremes((8,), padding=padding)
    update = jax.jit(tracker.update)
    state = tracker.init(kernel, key)
    before, state = update(kernel, state)
    lost, state = update(jnp.full_like(kernel, jnp.nan), state)
    assert np.isnan(lost.sigma_max.value)
    assert int(lost.sigma_max.status) == sx.Status.NOT_FINITE
    for _ in range(4):
        found, state = update(kernel, state)
    assert_allclose(found.sigma_max.value, before.sigma_max.value, rtol=1e-4)
    assert_allclose(found.sigma_min.value, before.sigma_min.value, rtol=1e-2)


def test_16_bit_kernels_and_what_is_refused(key):
    kernel = jnp.ones((3, 2, 2), jnp.bfloat16)
    tracker = sx.conv_extremes((6,), padding="CIRCULAR")
    found, _ = tracker.update(kernel, tracker.init(kernel))
    assert found.sigma_max.value.dtype == jnp.float32
    assert_allclose(found.sigma_max.value, 6, rtol=1e-5)
    make = functools.partial(sx.conv_extremes, (7,), padding="CIRCULAR")
    for options, message in (
        ({"num_frequencies": 0}, "num_frequencies must be"),
        ({"num_steps": 0}, "num_steps must be"),
        ({"renew_every": 0}, "renew_every must be"),
        ({"tol": 0.0}, "tol must lie"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="must divide the sizes"):
        make(strides=2).init(kernel)
    with pytest.raises((TypeError, ValueError), match="key"):
        sx.conv_extremes((6,), padding="SAME").init(kernel)
