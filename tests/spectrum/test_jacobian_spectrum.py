"""Statistics of many Jacobians against NumPy's decompositions of those that JAX makes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx

KEY = jax.random.key(0)


def network(x, weights):
    return weights["b"] @ jnp.tanh(weights["a"] @ x)


def data(rng, count=7, sizes=(6, 8, 4)):
    d, h, m = sizes
    weights = {"a": jnp.asarray(rng.normal(size=(h, d))), "b": jnp.asarray(rng.normal(size=(m, h)))}
    return jnp.asarray(rng.normal(size=(count, d))), weights


def truth(xs, weights, argnum=0, leaf=None):
    made = jax.vmap(lambda x: jax.jacrev(network, argnum)(x, weights))(xs)
    leaves = jax.tree.leaves(made) if leaf is None else [made[leaf]]
    matrices = np.concatenate([np.asarray(block).reshape(*block.shape[:2], -1) for block in leaves], axis=2)
    return np.linalg.svd(matrices, compute_uv=False)


def check(found, values, rtol):
    assert_allclose(found.singular_values, values, rtol=rtol)
    assert_allclose(found.condition_number, values[:, 0] / values[:, -1], rtol=10 * rtol)
    assert_allclose(found.frobenius_norm, np.linalg.norm(values, axis=1), rtol=rtol)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 3, "max_bytes": 20_000}, {"mode": "forward", "chunk_size": 2}])
def test_all_statistics(options, x64):
    xs, weights = data(np.random.default_rng(0))
    found = sx.jacobian_spectrum(network, xs, weights, **options)
    check(found, truth(xs, weights), 1e-10)
    assert found.rank.tolist() == [4] * 7
    assert found.residuals is None


@pytest.mark.parametrize(("argnum", "select"), [(1, None), (1, "b")])
def test_parameters_and_layers(argnum, select, x64):
    xs, weights = data(np.random.default_rng(1))
    found = sx.jacobian_spectrum(network, xs, weights, argnum=argnum, select=select)
    check(found, truth(xs, weights, argnum, select), 1e-10)


@pytest.mark.parametrize(
    ("mode", "max_bytes"), [("forward", 9_600), ("reverse", 9_600), ("forward", 11_000), ("reverse", None)]
)
def test_frobenius_norms_from_chunks(mode, max_bytes, x64):
    """Chunks that overlap count what they share once; numbers whose squares overflow are no harm."""

    def scaled(x, weights, size):
        return size * network(x, weights)

    xs, weights = data(np.random.default_rng(2), sizes=(11, 9, 7))
    expected = np.linalg.norm(truth(xs, weights), axis=1)
    measure = functools.partial(sx.jacobian_spectrum, statistics="frobenius_norm", mode=mode, max_bytes=max_bytes)
    for size in (1, 1e200, 1e-200, 0):
        found = measure(scaled, xs, weights, jnp.float64(size))
        assert found._replace(frobenius_norm=None) == sx.JacobianSpectrum()
        assert_allclose(found.frobenius_norm, size * expected, rtol=1e-13)


def test_samples_that_are_singular_zero_or_not_finite():
    xs = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [jnp.nan, 1.0], [jnp.inf, 1.0]])
    found = sx.jacobian_spectrum(jax.nn.relu, xs)
    assert_allclose(found.singular_values, [[1, 1], [1, 0], [0, 0], [np.nan] * 2, [np.nan] * 2])
    assert_allclose(found.condition_number, [1, np.inf, np.inf, np.nan, np.nan])
    assert found.rank.tolist() == [2, 1, 0, -1, -1]
    assert_allclose(found.frobenius_norm, [2**0.5, 1, 0, np.nan, np.nan], rtol=1e-6)
    alone = sx.jacobian_spectrum(jax.nn.relu, xs, statistics=["frobenius_norm"])
    assert_allclose(alone.frobenius_norm, found.frobenius_norm, rtol=1e-6)


def test_frobenius_norms_of_chunks_of_other_sizes():
    """A chunk of zeros does not drown one of small numbers; slopes that are infinite have no norm."""
    measure = functools.partial(sx.jacobian_spectrum, statistics="frobenius_norm", mode="forward", max_bytes=9_000)
    scales = jnp.array([3e-30, 4e-30, *[0.0] * 14])
    assert_allclose(measure(lambda x: scales * x, jnp.ones((2, 16))).frobenius_norm, 5e-30, rtol=1e-6)
    one = measure(jnp.sqrt, jnp.array([[0.0], [4.0]]))
    assert_allclose(one.frobenius_norm, [np.nan, 0.25])


@pytest.mark.parametrize("statistics", ["frobenius_norm", "condition_number"])
def test_derivatives_at_zero_are_finite(statistics):
    def value(scale):
        found = sx.jacobian_spectrum(lambda x: scale * x, jnp.ones((2, 2)), statistics=statistics)
        return jnp.sum(getattr(found, statistics))

    assert_allclose(jax.grad(value)(jnp.zeros(2)), np.zeros(2))


def test_no_samples():
    found = sx.jacobian_spectrum(network, *data(np.random.default_rng(0), count=0))
    assert [leaf.shape for leaf in found[:4]] == [(0, 4), (0,), (0,), (0,)]
    iterated = sx.jacobian_spectrum(jnp.tanh, jnp.zeros((0, 3)), k=2, key=KEY)
    assert iterated.converged.shape == (0, 2)
    assert [name for name, value in iterated._asdict().items() if value is None] == ["rank"]


def test_half_precision_and_complex_functions(x64):
    half = sx.jacobian_spectrum(lambda x: x**2, jnp.array([[1.0, 2.0]], jnp.bfloat16))
    assert half.singular_values.dtype == half.condition_number.dtype == jnp.float32
    assert_allclose(half.singular_values, [[4, 2]])
    xs = jnp.array([[1 + 1j, 0.5], [2j, 1.0]])
    found = sx.jacobian_spectrum(jnp.sin, xs)
    assert_allclose(found.singular_values, -np.sort(-np.abs(np.cos(np.asarray(xs)))), rtol=1e-12)
    norms = sx.jacobian_spectrum(jnp.sin, xs, statistics="frobenius_norm").frobenius_norm
    assert_allclose(norms, found.frobenius_norm, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_iterations_in_half_precision(dtype):
    """Converged at the round-off of the products, as `svds` is of the operator of one sample."""
    W = jnp.asarray(np.random.default_rng(0).normal(size=(40, 30)), dtype)
    exact = np.linalg.svd(np.asarray(W, np.float64), compute_uv=False)
    found = sx.jacobian_spectrum(lambda x: W @ x, jnp.ones((1, 30), dtype), k=2, key=KEY)
    assert found.converged.all()
    assert found.singular_values.dtype == jnp.float32
    assert_allclose(found.singular_values[0], exact[:2], rtol=1e-3)
    assert_allclose(found.condition_number, exact[0] / exact[-1], rtol=1e-2)


@pytest.mark.parametrize("statistics", ["condition_number", "frobenius_norm"])
def test_derivatives(statistics, x64):
    xs, weights = data(np.random.default_rng(3), count=3)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape)), weights)

    @jax.jit
    def value(weights):
        found = sx.jacobian_spectrum(network, xs, weights, statistics=statistics, chunk_size=2)
        return jnp.sum(jnp.log(getattr(found, statistics)))

    def moved(step):
        return value(jax.tree.map(lambda w, d: w + step * d, weights, direction))

    gradient = jax.grad(value)(weights)
    slope = sum(jnp.sum(gradient[name] * direction[name]) for name in weights)
    assert_allclose(slope, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-6)


def test_iterations(x64):
    xs, weights = data(np.random.default_rng(4), count=3, sizes=(9, 12, 8))
    values, others = truth(xs, weights), np.array([0, 2])
    xs = xs.at[1].set(jnp.nan)
    measure = functools.partial(sx.jacobian_spectrum, network, xs, weights, k=2, key=KEY)
    found = measure(method=sx.Lanczos(), statistics="singular_values")
    assert_allclose(found.singular_values[others], values[others, :2], rtol=1e-9)
    assert np.all(np.isnan(found.singular_values[1]))
    assert found.converged.tolist() == [[True, True], [False, False], [True, True]]
    assert found.residuals.shape == (3, 2)
    stopped = measure(method=sx.Lanczos(), statistics="singular_values", max_matvecs=6)
    assert np.array_equal(np.isnan(stopped.singular_values), ~np.asarray(stopped.converged))
    assert not np.all(stopped.converged[others])
    rest = measure(statistics=("condition_number", "frobenius_norm"))
    assert_allclose(rest.condition_number[others], (values[:, 0] / values[:, -1])[others], rtol=1e-8)
    assert_allclose(rest.frobenius_norm[others], np.linalg.norm(values, axis=1)[others], rtol=1e-12)
    assert np.isnan(rest.condition_number[1])
    assert np.isnan(rest.frobenius_norm[1])


@pytest.mark.parametrize("statistics", ["singular_values", "frobenius_norm"])
def test_matrices_are_not_kept(statistics):
    """The memory of the program does not grow with the number of samples, and stays within the bound."""
    xs, weights = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), data(np.random.default_rng(5), count=64, sizes=(40, 30, 20))
    )
    bound = 100_000
    assert 2 * bound < 64 * 40 * 20 * 4
    f = functools.partial(sx.jacobian_spectrum, network, statistics=statistics, max_bytes=bound)
    program = jax.jit(lambda xs, weights: f(xs, weights)).lower(xs, weights).compile()
    assert program.memory_analysis().temp_size_in_bytes <= bound


def test_what_is_refused():
    xs = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"statistics must be one of .* got 'norm'"):
        sx.jacobian_spectrum(jnp.sin, xs, statistics="norm")
    with pytest.raises(ValueError, match="statistics must name one at least"):
        sx.jacobian_spectrum(jnp.sin, xs, statistics=())
    with pytest.raises(ValueError, match="tol, max_matvecs is for svds"):
        sx.jacobian_spectrum(jnp.sin, xs, tol=0.1, max_matvecs=3)
    with pytest.raises(ValueError, match="needs key="):
        sx.jacobian_spectrum(jnp.sin, xs, k=1)
    for options in ({"max_bytes": 10}, {"statistics": "rank"}):
        with pytest.raises(ValueError, match="no max_bytes and no rank"):
            sx.jacobian_spectrum(jnp.sin, xs, k=1, key=KEY, **options)
    with pytest.raises(ValueError, match="max_bytes=1 is too small"):
        sx.jacobian_spectrum(jnp.sin, xs, max_bytes=1)
    large = jax.ShapeDtypeStruct((2, 5000), jnp.float32)
    with pytest.raises(ValueError, match=r"a Jacobian of shape \(5000, 5000\) is above the limits"):
        jax.eval_shape(lambda xs: sx.jacobian_spectrum(jnp.sin, xs), large)
    jax.eval_shape(lambda xs: sx.jacobian_spectrum(jnp.sin, xs, statistics="frobenius_norm"), large)
