"""Logarithms of determinants: exact and estimated, their intervals, and their derivatives."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx

KEY = jax.random.key(3)
KEYS = jax.random.split(jax.random.key(1), 200)
LEAST = 0.95 - 3 * math.sqrt(0.95 * 0.05 / 200)
N = 80
SPECTRA = {
    "moderate": np.linspace(1, 3, N),
    "a condition number of 1e3": np.geomspace(1e-1, 1e2, N),
    "few large": np.r_[np.ones(N - 2), 50, 200],
}


def positive(values, dtype="float32", seed=5):
    q, _ = np.linalg.qr(np.asarray(jax.random.normal(jax.random.key(seed), (N, N), dtype)))
    matrix = (q * values) @ q.conj().T
    return jnp.asarray((matrix + matrix.conj().T) / 2, dtype)


@functools.partial(jax.jit, static_argnames="method")
def estimates(matrix, method):
    return jax.lax.map(lambda key: sx.logdet(matrix, key=key, method=method, full=True), KEYS)


@pytest.mark.parametrize(
    ("name", "probes", "steps", "dtype"),
    [
        ("moderate", 1, 10, "float32"),
        ("a condition number of 1e3", 4, 12, "complex64"),
        ("few large", 4, 12, "float32"),
    ],
)
def test_intervals_hold_as_often_as_they_say(name, probes, steps, dtype):
    values = SPECTRA[name]
    true = np.sum(np.log(values))
    found = estimates(positive(values, dtype), sx.StochasticLanczos(probes, steps))
    lower, value, upper = (np.asarray(leaf) for leaf in (found.lower, found.value, found.upper))
    assert found.kind == "estimate"
    assert np.mean((lower <= true) & (true <= upper)) >= LEAST
    bias = 0.05 * N if "number" in name else 0  # what half of the steps differ by
    assert 1.5 * np.std(value) <= np.mean(upper - lower) / 2 <= 2.6 * np.std(value) + bias


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64"])
def test_by_a_factorisation(dtype):
    with jax.enable_x64(dtype == "float64"):
        for name, values in SPECTRA.items():
            matrix = positive(values, dtype)
            true = np.linalg.slogdet(np.asarray(matrix, "complex128"))[1]
            found = sx.logdet(matrix, full=True)
            assert found.kind == "exact"
            assert int(found.status) == sx.Status.CONVERGED
            assert float(found.lower) <= true <= float(found.upper), name
            assert_allclose(found.value, true, rtol=2e-5 if dtype != "float64" else 1e-12)
            scaled = sx.logdet(jnp.asarray(1e-30, matrix.dtype) * matrix)  # its determinant underflows
            assert_allclose(scaled, true + N * math.log(1e-30), rtol=1e-5)
    struct = jax.ShapeDtypeStruct((N,), jnp.float32)
    assert_allclose(sx.logdet((lambda v: 2 * v, struct)), N * math.log(2), rtol=1e-5)
    assert sx.logdet(jnp.eye(3, dtype=jnp.bfloat16)).dtype == jnp.float32


def test_derivatives_by_a_factorisation(x64):
    matrix, direction = positive(SPECTRA["few large"], "float64"), positive(np.linspace(-1, 1, N), "float64", seed=9)
    inverse = np.linalg.inv(matrix)
    assert_allclose(jax.grad(sx.logdet)(matrix), inverse, rtol=1e-8, atol=1e-12)
    slope = jax.grad(lambda t: sx.logdet(matrix + t * direction))
    assert_allclose(slope(0.0), np.trace(inverse @ direction), rtol=1e-9)
    assert_allclose(jax.grad(slope)(0.0), -np.trace(inverse @ direction @ inverse @ direction), rtol=1e-8)


def test_derivatives_of_the_estimate(x64):
    matrix, direction = positive(SPECTRA["moderate"], "float64"), positive(np.linspace(-1, 2, N), "float64", seed=9)
    inverse, method = np.linalg.inv(matrix), sx.StochasticLanczos(4, 30)

    def value(t, key=KEY):
        return sx.logdet(matrix + t * direction, key=key, method=method)

    first = jax.grad(value)
    slopes = jax.jit(jax.vmap(first, (None, 0)))(0.0, KEYS)
    assert abs(np.mean(slopes) - np.trace(inverse @ direction)) <= 4 * np.std(slopes) / math.sqrt(200)
    assert 0 < np.std(slopes) < 5
    # the derivative of what is computed for dA, twice, by central differences
    assert_allclose(jax.grad(first)(0.0), (first(1e-5) - first(-1e-5)) / 2e-5, rtol=1e-6)
    assert_allclose(jax.jvp(value, (0.0,), (1.0,))[1], first(0.0), rtol=1e-9)
    # where A and dA commute with each other as multiples, it is exact
    scale = jax.grad(lambda t: sx.logdet(jnp.exp(t) * matrix, key=KEY, method=method))(0.0)
    assert_allclose(scale, N, rtol=1e-8)


def test_an_unsolved_system_gives_no_derivative():
    matrix = positive(np.geomspace(1e-3, 1, N))
    method = sx.StochasticLanczos(2, 2)
    assert np.isfinite(sx.logdet(matrix, key=KEY, method=method))
    assert np.isnan(jax.grad(lambda A: sx.logdet(A, key=KEY, method=method))(matrix)).all()


def test_what_is_not_positive_definite_is_said():
    stochastic = sx.StochasticLanczos(3, 20)
    cases = {
        "negative": (positive(np.linspace(-1, 1, N)), sx.Status.NOT_POSITIVE_DEFINITE),
        "singular": (jnp.ones((N, N)), sx.Status.NOT_POSITIVE_DEFINITE),
        "zero": (jnp.zeros((N, N)), sx.Status.NOT_POSITIVE_DEFINITE),
        "NaN": (jnp.full((N, N), jnp.nan), sx.Status.NOT_FINITE),
        "not symmetric": (jnp.eye(N) + jnp.triu(jnp.ones((N, N)), 1) / N, sx.Status.ADJOINT_MISMATCH),
    }
    for name, (matrix, status) in cases.items():
        for method in (sx.Dense(), stochastic):
            found = sx.logdet(matrix, key=KEY, method=method, full=True)
            assert int(found.status) == status, (name, method)
            for leaf in (found.value, found.lower, found.upper):
                assert np.isnan(leaf), (name, method)
        assert np.isnan(jax.grad(sx.logdet)(matrix)).all(), name
    # positive, but no more than the round-off of the others
    lost = sx.logdet(jnp.diag(jnp.ones(N).at[0].set(3e-7)), key=KEY, method=stochastic, full=True)
    assert int(lost.status) == sx.Status.NOT_POSITIVE_DEFINITE
    operator = (lambda v: v, jax.ShapeDtypeStruct((5000,), jnp.float32))
    with pytest.raises(ValueError, match="needs key"):
        sx.logdet(operator)
    with pytest.raises(ValueError, match="square"):
        sx.logdet(jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="method"):
        sx.logdet(jnp.eye(3), method=sx.Lanczos())
    with pytest.raises(ValueError, match="num_steps"):
        sx.StochasticLanczos(num_steps=0)
