"""Traces: exact ones, the estimates against small dense algebra, and how often their intervals hold."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.spectrum.trace import random_directions

KEY = jax.random.key(3)
KEYS = jax.random.split(jax.random.key(1), 200)
METHODS = (sx.XTrace(), sx.HutchPlusPlus(), sx.Hutchinson())
LEAST = 0.95 - 3 * math.sqrt(0.95 * 0.05 / 200)  # of 200 intervals at 95 %, but for one time in 700
N = 100


def matrix_of(values, *, hermitian=True, dtype="float32"):
    left, right = (
        np.linalg.qr(np.asarray(jax.random.normal(jax.random.key(seed), (N, N), dtype)))[0] for seed in (5, 6)
    )
    return jnp.asarray((left * values) @ (left if hermitian else right).conj().T, dtype)


@functools.partial(jax.jit, static_argnames=("method", "max_matvecs"))
def estimates(matrix, *, method, max_matvecs):
    """Those of 200 seeds."""
    return jax.lax.map(
        lambda key: sx.trace(matrix, key=key, method=method, max_matvecs=max_matvecs, full=True), KEYS, batch_size=50
    )


SPECTRA = {
    "flat": np.linspace(1, 3, N),
    "decaying": 1 / np.arange(1, N + 1) ** 2,
}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize(("name", "hermitian"), [("flat", False), ("decaying", True)])
def test_estimates_have_no_bias_and_intervals_hold(name, hermitian, method):
    matrix = matrix_of(SPECTRA[name], hermitian=hermitian)
    true = np.trace(np.asarray(matrix, "float64"))
    found = estimates(matrix, method=method, max_matvecs=30)
    lower, value, upper = (np.asarray(leaf, "float64") for leaf in (found.lower, found.value, found.upper))
    spread = np.std(value)
    assert abs(np.mean(value) - true) <= 4 * spread / math.sqrt(200)
    held = np.mean((lower <= true) & (true <= upper))
    assert held >= LEAST - (0.04 if isinstance(method, sx.HutchPlusPlus) else 0)  # whose estimates are few and skewed
    assert 1.5 * spread <= np.mean(upper - lower) / 2 <= 3.6 * spread
    # as large as the theory says: Hutchinson's variance in closed form, and the others are better where values decay
    entries = np.asarray(matrix, "float64")
    symmetric = (entries + entries.T) / 2
    off_diagonal = np.sum(symmetric**2) - np.sum(np.diag(symmetric) ** 2)
    hutchinson = math.sqrt(2 * off_diagonal / 30)
    if isinstance(method, sx.Hutchinson):
        assert 0.85 <= spread / hutchinson <= 1.15
    elif name == "decaying":
        assert spread < hutchinson / 10


def test_xtrace_is_that_of_its_definition(x64):
    """By one QR factorisation for each vector left out, in NumPy."""
    n, count = 14, 3
    rng = np.random.default_rng(0)
    for dtype in ("float64", "complex128"):
        matrix = rng.normal(size=(n, n)) + (1j * rng.normal(size=(n, n)) if dtype == "complex128" else 0)
        omega = np.asarray(random_directions(jax.random.split(KEY)[0], jax.ShapeDtypeStruct((n,), dtype), count))
        assert_allclose(np.linalg.norm(omega, axis=1), math.sqrt(n))
        image = matrix @ omega.T
        each = []
        for i in range(count):
            q, _ = np.linalg.qr(np.delete(image, i, 1))
            rest = omega[i] - q @ (q.conj().T @ omega[i])
            scale = (n - count + 1) / np.linalg.norm(rest) ** 2
            each.append(np.trace(q.conj().T @ matrix @ q) + scale * (rest.conj() @ matrix @ rest))
        found = sx.trace(jnp.asarray(matrix), key=KEY, method=sx.XTrace(), max_matvecs=2 * count, full=True)
        assert_allclose(found.value, np.mean(each), rtol=1e-10)
        factor = 4.302652729749464 * math.sqrt(2 / 3)  # Student's, for two degrees of freedom
        assert_allclose((found.upper - found.lower).real / 2, factor * np.std(np.real(each), ddof=1), rtol=1e-9)


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_low_rank_is_exact(method, dtype):
    for rank in (0, 1, 5):
        matrix = matrix_of(np.r_[np.arange(1.0, rank + 1), np.zeros(N - rank)], hermitian=False, dtype=dtype)
        found = sx.trace(matrix, key=KEY, method=method, max_matvecs=36, full=True)
        assert_allclose(found.value, jnp.trace(matrix), atol=2e-5)
        assert float(jnp.abs(found.upper - found.lower)) < 1e-3
        assert int(found.status) == sx.Status.CONVERGED


def test_what_is_small_or_explicit_is_exact():
    matrix = matrix_of(SPECTRA["flat"], hermitian=False)
    struct = jax.ShapeDtypeStruct((N,), jnp.float32)
    explicit = sx.trace(matrix, full=True)
    assert explicit.kind == "exact"
    assert explicit.lower <= jnp.trace(matrix) <= explicit.upper
    few = sx.trace((lambda v: matrix @ v, struct), max_matvecs=N, full=True)
    assert few.kind == "exact"
    assert_allclose(few.value, jnp.trace(matrix), rtol=1e-5)
    assert sx.trace(matrix, key=KEY, method=sx.XTrace(), full=True).kind == "estimate"
    assert_allclose(sx.trace(jnp.full((1, 1), 3.0)), 3.0)
    assert sx.trace(jnp.eye(4, dtype=jnp.bfloat16)).dtype == jnp.float32
    pytree = {"a": jax.ShapeDtypeStruct((2, 50), jnp.float32), "b": jax.ShapeDtypeStruct((30,), jnp.float32)}
    halved = sx.aslinearoperator(lambda v: jax.tree.map(lambda leaf: leaf / 2, v), pytree)
    found = sx.trace(halved, key=KEY, full=True)
    assert found.kind == "estimate"
    assert_allclose(found.value, 65.0, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_derivatives_are_the_same_estimate_of_the_tangent(method, x64):
    """Linear in the tangent, without bias, zero a second time."""
    matrix, direction = (
        matrix_of(SPECTRA["decaying"], dtype="float64"),
        matrix_of(np.linspace(1, 2, N), dtype="float64"),
    )

    def value(t, key=KEY):
        return sx.trace(matrix + t * direction, key=key, method=method, max_matvecs=30)

    slope = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(0.0, KEYS)
    assert abs(np.mean(slope) - np.trace(direction)) <= 4 * np.std(slope) / math.sqrt(200) + 1e-9
    assert np.std(slope) < 0.2 * np.trace(direction)
    assert_allclose(jax.jvp(value, (0.0,), (2.0,))[1], 2 * jax.grad(value)(0.0), rtol=1e-10)
    assert_allclose(jax.grad(jax.grad(value))(0.0), 0, atol=1e-9)
    # along the operator itself it is the estimate
    scaled = jax.grad(lambda t: sx.trace(t * matrix, key=KEY, method=method, max_matvecs=30))(1.0)
    assert_allclose(scaled, value(0.0), rtol=1e-9)


def test_what_is_wrong_is_said():
    for method in METHODS:
        found = sx.trace(jnp.full((N, N), jnp.nan), key=KEY, method=method, full=True)
        assert int(found.status) == sx.Status.NOT_FINITE
        assert np.isnan(found.value)
    operator = (lambda v: v, jax.ShapeDtypeStruct((N,), jnp.float32))
    with pytest.raises(ValueError, match="needs key"):
        sx.trace(operator)
    with pytest.raises(ValueError, match="square"):
        sx.trace(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="max_matvecs must be at least 6"):
        sx.trace(operator, key=KEY, method=sx.HutchPlusPlus(), max_matvecs=5)
    with pytest.raises(ValueError, match="method"):
        sx.trace(operator, key=KEY, method="exact")
    with pytest.raises(TypeError, match="method"):
        sx.trace(operator, key=KEY, method=sx.Lanczos())
    with pytest.raises(ValueError, match="level"):
        sx.trace(operator, key=KEY, level=0.0)


@pytest.mark.parametrize("method", [sx.XTrace(), sx.HutchPlusPlus(), sx.Hutchinson()])
def test_intervals_scale_with_the_operator(method):
    """Squares of what is as small or as large as here vanish or overflow."""
    diagonal = jnp.linspace(1.0, 2.0, 60)

    def relative(size):
        operator = sx.aslinearoperator(jnp.multiply, jax.ShapeDtypeStruct((60,), jnp.float32), size * diagonal)
        found = sx.trace(operator, max_matvecs=20, key=jax.random.key(0), method=method, full=True)
        return np.array([found.lower, found.value, found.upper], np.float64) / size

    for size in (1e-25, 1e25):
        assert_allclose(relative(size), relative(1.0), rtol=1e-3)
