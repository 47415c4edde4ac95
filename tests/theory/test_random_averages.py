"""Averages over patterns against exact enumeration, and the random layers themselves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.theory.random_matrices import (
    activation_slopes,
    expected_dropout_gram,
    expected_gram_floor,
    expected_pattern_gram,
    sample_skip_layer,
)


def gram(seed, n=5, m=6):
    M = np.random.default_rng(seed).normal(size=(m, n))
    return M.T @ M


def enumerated(A, values, probabilities):
    total = np.zeros_like(A)
    for picks in itertools.product(range(len(values)), repeat=len(A)):
        d, weight = np.array(values)[list(picks)], np.prod(np.array(probabilities)[list(picks)])
        total += weight * d[:, None] * A * d
    return total


SLOPES = {
    "abs": activation_slopes("abs"),
    "relu": activation_slopes("relu", active_fraction=0.3),
    "leaky": activation_slopes("leaky_relu", active_fraction=0.7, negative_slope=0.2),
    "three": ([1.0, -0.5, 2.0], [0.2, 0.5, 0.3]),
    "one": ([0.7], [1.0]),
}


@pytest.mark.parametrize("name", SLOPES)
def test_the_mean_over_all_patterns(name, x64):
    for seed in range(5):
        A = gram(seed, m=3 + seed)
        expected = enumerated(A, *SLOPES[name])
        found = expected_pattern_gram(A, slopes=SLOPES[name])
        assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
        floor = float(expected_gram_floor(A, slopes=SLOPES[name]))
        assert floor <= np.linalg.eigvalsh(expected)[0] + 1e-12
        values, share = (np.array(part) for part in SLOPES[name])
        mean, square = share @ values, share @ values**2
        by_hand = mean**2 * np.linalg.eigvalsh(A)[0] + (square - mean**2) * np.diag(A).min()
        assert_allclose(floor, by_hand, rtol=1e-12, atol=1e-13)
        if name == "abs":
            assert_allclose(found, np.diag(np.diag(A)), rtol=1e-14)
            assert_allclose(floor, np.diag(A).min(), rtol=1e-14)


def test_relu_with_half_of_the_units_active(x64):
    A = gram(0)
    assert_allclose(expected_pattern_gram(A, slopes="relu"), (A + np.diag(np.diag(A))) / 4, rtol=1e-14)


def test_dropout(x64):
    A, q = gram(1), 0.3
    assert_allclose(expected_dropout_gram(A, rate=q), enumerated(A, [0, 1 / (1 - q)], [q, 1 - q]), rtol=1e-12)
    assert_allclose(expected_dropout_gram(A, rate=0.0), A)
    for rate, match in ((1.0, "below 1"), (-0.1, "must lie in"), (np.nan, "finite")):
        with pytest.raises(ValueError, match=match):
            expected_dropout_gram(A, rate=rate)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
def test_dtypes_and_transforms(dtype):
    A = jnp.asarray(np.stack([gram(seed) for seed in range(3)])).astype(dtype)
    for function in (
        lambda A: expected_pattern_gram(A, slopes="relu"),
        lambda A: expected_dropout_gram(A, rate=0.25),
    ):
        found = jax.jit(function)(A)
        assert found.dtype == A.dtype
        assert_allclose(jax.vmap(function)(A).astype("complex64"), found.astype("complex64"))
    floor = jax.jit(lambda A: expected_gram_floor(A, slopes="relu"))(A)
    assert floor.shape == (3,)
    assert floor.dtype == jnp.float32
    assert_allclose(floor, [float(expected_gram_floor(a, slopes="relu")) for a in A], rtol=1e-5)


def test_gradients_of_the_mean(x64):
    G = gram(2)
    gradient = jax.grad(lambda A: jnp.sum(G * expected_dropout_gram(A, rate=0.5)))(jnp.eye(5))
    assert_allclose(gradient, G + np.diag(np.diag(G)), rtol=1e-14)


def test_matrices_that_are_none():
    with pytest.raises(ValueError, match="square"):
        expected_pattern_gram(jnp.ones((2, 3)), slopes="relu")
    with pytest.raises(ValueError, match=r"at least one entry, got shape \(0, 0\)"):
        expected_gram_floor(jnp.ones((0, 0)), slopes="relu")
    with pytest.raises(TypeError, match="floating-point"):
        expected_dropout_gram(jnp.ones((2, 2), int), rate=0.5)


# Random layers.


@pytest.mark.parametrize("entries", ["gaussian", "uniform"])
def test_entries_have_the_mean_and_the_variance(entries, x64):
    n, c = 400, 0.8
    W = np.asarray(sample_skip_layer(jax.random.key(3), n=n, c=c, rho=0.0, slopes="linear", entries=entries))
    scaled = W * np.sqrt(n) / c
    kurtosis = {"gaussian": 3.0, "uniform": 9 / 5}[entries]
    # standard errors: 1 / n of the mean, sqrt(kurtosis - 1) / n of the variance, below 10 / n of the fourth moment
    assert abs(scaled.mean()) < 5 / n
    assert abs((scaled**2).mean() - 1) < 5 * np.sqrt(kurtosis - 1) / n
    assert abs((scaled**4).mean() - kurtosis) < 50 / n
    if entries == "uniform":
        assert np.abs(scaled).max() <= 3**0.5


def test_slopes_multiply_rows_and_the_skip_is_added(x64):
    slopes = np.array([1.0, -2.0, 0.0, 0.5])
    plain = sample_skip_layer(jax.random.key(0), n=4, c=1.0, rho=0.0, slopes="linear")
    layer = sample_skip_layer(jax.random.key(0), n=4, c=2.0, rho=-0.5, slopes=slopes)
    assert_allclose(layer, 2 * slopes[:, None] * plain - 0.5 * np.eye(4), rtol=1e-14)


@pytest.mark.parametrize(("n", "active"), [(10, 5), (11, 5), (1, 0), (1000, 500)])
def test_a_distribution_is_laid_out_in_its_proportions(n, active):
    layer = np.asarray(sample_skip_layer(jax.random.key(0), n=n, c=1.0, rho=0.0, slopes="relu"))
    assert abs(np.any(layer != 0, axis=1).sum() - active) <= 1
    thirds = ([1.0, 2.0, 0.0], [1 / 3, 1 / 3, 1 / 3])
    layer = np.asarray(sample_skip_layer(jax.random.key(0), n=9, c=1.0, rho=0.0, slopes=thirds))
    assert np.any(layer != 0, axis=1).sum() == 6


def test_the_sampler_under_transforms():
    keys = jax.random.split(jax.random.key(0), 3)
    scales = jnp.array([0.1, 0.5, 1.0])
    draw = jax.jit(jax.vmap(lambda key, c: sample_skip_layer(key, n=6, c=c, rho=c, slopes="abs")))
    layers = draw(keys, scales)
    assert layers.shape == (3, 6, 6)
    assert layers.dtype == jnp.float32
    for key, c, layer in zip(keys, scales, layers, strict=True):
        assert_allclose(layer, sample_skip_layer(key, n=6, c=float(c), rho=float(c), slopes="abs"), rtol=1e-6)
    gradient = jax.grad(lambda rho: jnp.trace(sample_skip_layer(keys[0], n=6, c=1.0, rho=rho, slopes="abs")))(0.5)
    assert float(gradient) == 6
    slopes = jnp.arange(6.0)
    derivative = jax.jacfwd(lambda d: sample_skip_layer(keys[0], n=6, c=1.0, slopes=d))(slopes)
    assert derivative.shape == (6, 6, 6)
    assert sample_skip_layer(keys[0], n=2, c=1.0, slopes="abs", dtype="bfloat16").dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n": 0}, ValueError, "n must be at least 1"),
        ({"n": 2.0}, TypeError, "n must be an integer"),
        ({"entries": "cauchy"}, ValueError, "entries must be one of"),
        ({"slopes": [1.0, 0.0]}, ValueError, r"must have shape \(4,\)"),
        ({"dtype": "int32"}, TypeError, "real floating-point"),
        ({"c": jnp.ones(4)}, ValueError, r"c must be a scalar, got shape \(4,\)"),
        ({"rho": jnp.ones((4, 4))}, ValueError, r"rho must be a scalar, got shape \(4, 4\)"),
        ({"c": 1j}, TypeError, "c must be a real number"),
        ({"slopes": np.full(4, 1j)}, TypeError, "slopes must be real numbers, got dtype complex128"),
    ],
)
def test_what_is_wrong_is_said(options, error, match):
    with pytest.raises(error, match=match):
        sample_skip_layer(jax.random.key(0), **({"n": 4, "c": 1.0, "slopes": "abs"} | options))
    with pytest.raises(TypeError, match="PRNG key"):
        sample_skip_layer(0, n=4, c=1.0, slopes="abs")  # type: ignore[arg-type]
