"""The Frobenius norm, exact and estimated: closed forms, and the statistics of the estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing
from spectrax.spectrum import frobenius

KEY = jax.random.key(4)
SHAPE = (16, 12)
GALLERY = [case for case in testing.gallery(jax.random.key(5), shape=SHAPE) if case.matrix.shape == SHAPE]


@pytest.fixture
def estimated(monkeypatch):
    """Let operators of any size count as too large to be made dense."""
    monkeypatch.setattr(frobenius, "can_be_dense", lambda shape: False)


def product(v, matrix):
    return {"y": matrix @ v["x"]}


def function_operator(matrix):
    return sx.aslinearoperator(product, {"x": jax.ShapeDtypeStruct(matrix.shape[1:], matrix.dtype)}, matrix)


def matrix_of(s, shape, dtype="float64"):
    return testing.with_singular_values(KEY, s, shape, dtype).to_dense()


@pytest.mark.parametrize("dtype", ["complex64", pytest.param("complex128", marks=pytest.mark.slow)])
def test_exact_over_the_gallery(dtype, x64):
    both = jax.jit(lambda A: [sx.frobenius_norm(operator, full=True) for operator in (A, function_operator(A))])
    for case in GALLERY:
        A = case.operator(dtype).to_dense()
        true = np.linalg.norm(np.asarray(A).astype(np.complex128))
        for found in both(A):
            assert found.kind == "exact"
            assert int(found.status) == sx.Status.CONVERGED
            assert float(found.lower) <= true * (1 + 1e-14)
            assert float(found.upper) >= true * (1 - 1e-14)
            assert_allclose(found.value, true, rtol=10 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_derivatives(dtype, x64):
    A = matrix_of(np.array([2.0, 1.0, 1.0]), (4, 3), dtype).at[:, 1].set(0)
    gradient = jax.grad(lambda A: sx.frobenius_norm(function_operator(A)))
    gradients = jax.jit(lambda A: (gradient(A), jax.grad(sx.frobenius_norm)(A)))(A)
    for found in gradients:
        assert_allclose(found, np.asarray(A).conj() / np.linalg.norm(A), atol=1e-14)
    assert_allclose(jax.grad(sx.frobenius_norm)(jnp.zeros((4, 3), dtype)), np.zeros((4, 3)))
    if dtype == "float64":
        a = np.asarray(A).ravel()
        expected = (np.eye(12) - np.outer(a, a) / (a @ a)) / np.sqrt(a @ a)
        assert_allclose(jax.jit(jax.hessian(sx.frobenius_norm))(A).reshape(12, 12), expected, atol=1e-13)


@pytest.mark.parametrize(
    ("spectrum", "worst"),
    [
        ("flat", 1.0),
        ("geometric", 1.0),
        ("power", 0.99),
        ("few", 0.97),  # what the probes see is carried by one or two values
    ],
)
def test_the_estimate_is_unbiased_and_its_interval_holds(spectrum, worst, estimated, x64):
    n, probes, seeds = 60, 8, 400
    s = {
        "flat": np.linspace(1, 0.5, n),
        "geometric": np.geomspace(1, 1e-3, n),
        "power": 1 / np.arange(1, n + 1),
        "few": np.r_[np.ones(9), np.full(n - 9, 1e-2)],
    }[spectrum]
    operator = function_operator(matrix_of(s, (n + 4, n)))
    keys = jax.random.split(jax.random.key(1), seeds)
    found = jax.jit(jax.vmap(lambda key: sx.frobenius_norm(operator, full=True, key=key, num_probes=probes)))(keys)
    assert found.kind == "estimate"
    assert (np.asarray(found.status) == sx.Status.CONVERGED).all()
    true = np.linalg.norm(s)
    squares = np.asarray(found.value) ** 2
    spread = squares.std(ddof=1)
    assert spread > 1e-6 * true**2  # there is something to be unbiased about
    assert abs(squares.mean() - true**2) <= 4 * spread / seeds**0.5
    inside = (np.asarray(found.lower) <= true) & (true <= np.asarray(found.upper))
    assert inside.mean() >= worst
    # and it is of use: as wide as its promise, 8 standard errors of 8 probes each way, and not more
    assert np.median(np.asarray(found.upper**2 - found.lower**2)) <= 25 * spread


def test_the_derivative_of_the_estimate_is_unbiased(estimated, x64):
    A = matrix_of(np.geomspace(1, 0.05, 20), (20, 24), "complex128")  # the shorter side is the left one
    keys = jax.random.split(jax.random.key(2), 600)

    def square(A, key):
        return sx.frobenius_norm(function_operator(A), key=key, num_probes=3) ** 2

    gradients = np.asarray(jax.jit(jax.vmap(jax.grad(square), (None, 0)))(A, keys))
    error = gradients.mean(0) - 2 * A.conj()
    variance = gradients.var(0, ddof=1) / 600
    assert np.sqrt(variance.max()) > 1e-4
    assert_allclose(np.sum(np.abs(error) ** 2), np.sum(variance), rtol=0.35)
    # and each is the derivative of its own estimate, but for what moves with the basis: the basis held fixed, the
    # estimate is a quadratic form, so that <gradient, A> is twice the estimate
    values = jax.vmap(lambda key: square(A, key))(keys[:5])
    assert_allclose(np.sum(gradients[:5] * np.asarray(A), (1, 2)).real, 2 * values, rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-20])
def test_low_rank_is_exact_at_any_scale(scale, estimated):
    A = matrix_of(np.array([3.0, 2.0, 1.0, 1.0]), (40, 44), "float32") * scale
    found = sx.frobenius_norm(function_operator(A), full=True, key=KEY, num_probes=6)
    true = np.linalg.norm(np.asarray(A, np.float64))
    assert_allclose(found.value, true, rtol=1e-5)
    assert float(found.lower) <= true <= float(found.upper) <= true * 1.001


def test_hopeless_input_of_the_estimate(estimated):
    @jax.jit
    def both(A):
        norm = lambda A: sx.frobenius_norm(function_operator(A), full=True, key=KEY, num_probes=4)  # noqa: E731
        return norm(A), jax.grad(lambda A: norm(A).value)(A)

    found, gradient = both(jnp.zeros((40, 40)))
    assert (float(found.lower), float(found.value), float(found.upper)) == (0, 0, 0)
    assert_allclose(gradient, np.zeros((40, 40)))
    found, gradient = both(jnp.eye(40).at[3, 4].set(jnp.nan))
    assert np.isnan([found.value, found.lower, found.upper]).all()
    assert int(found.status) == sx.Status.NOT_FINITE
    assert np.isnan(gradient).any()


@pytest.mark.parametrize(("s", "rank"), [(np.geomspace(1, 1e-6, 20), 8), (np.ones(5), 5), (np.zeros(3), 0)])
def test_the_basis_of_the_part_that_is_known_exactly(s, rank, x64):
    """Orthonormal, though the images of the sketch are dependent or nearly so."""
    operator = sx.aslinearoperator(matrix_of(s, (40, 30)))
    rows, count = frobenius._range_of_gram(operator, jax.random.normal(KEY, (8, 30)))
    in_use = np.linalg.norm(rows, axis=1) > 0.5
    assert in_use.sum() == int(count) >= rank
    assert_allclose(rows @ rows.T, np.diag(in_use).astype(float), atol=1e-13)
    assert (rank == 0) == (int(count) == 0)
    if rank < 8:  # then the range is in it
        assert_allclose(np.linalg.norm(operator.to_dense() @ rows.T), np.linalg.norm(s), atol=1e-13)


def reflected(v, s, w):
    """diag(s) (I - 2 w w^T) v: singular values s, not a diagonal matrix."""
    return s * (v - 2 * jnp.vdot(w, v) * w)


def test_what_is_too_large_to_be_made_dense():
    n = 5000
    s = 1 / jnp.arange(1.0, n + 1)
    w = jax.random.normal(jax.random.key(3), (n,))
    w = w / jnp.linalg.norm(w)
    operator = sx.aslinearoperator(reflected, jax.ShapeDtypeStruct((n,), jnp.float32), s, w)
    with pytest.raises(ValueError, match="frobenius_norm needs key="):
        sx.frobenius_norm(operator)
    found = sx.frobenius_norm(operator, full=True, key=KEY)
    assert found.kind == "estimate"
    true = np.linalg.norm(1 / np.arange(1, n + 1))
    assert float(found.lower) <= true <= float(found.upper)
    assert_allclose(found.value, true, rtol=0.02)


def test_few_columns_are_taken_exactly(estimated):
    A = matrix_of(np.array([3.0, 2.0, 1.0, 1.0]), (30, 8), "float32")
    assert sx.frobenius_norm(function_operator(A), full=True, num_probes=2).kind == "exact"
    assert sx.frobenius_norm(A, full=True, num_probes=2).kind == "exact"
    with pytest.raises(ValueError, match="frobenius_norm needs key="):
        sx.frobenius_norm(function_operator(jnp.eye(9)), num_probes=2)


def test_16_bits_and_infinite_entries():
    A = matrix_of(np.array([3.0, 2.0]), (5, 4), "bfloat16")
    value, gradient = jax.value_and_grad(sx.frobenius_norm)(A)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    assert_allclose(value, np.linalg.norm(np.asarray(A).astype(np.float64)), rtol=1e-6)
    for scale in (1e20, 1e-20):
        found = sx.frobenius_norm(jnp.full((30, 30), scale), full=True)
        assert_allclose(found.value, 30 * scale, rtol=2e-6)
        assert float(found.lower) < 30 * scale < float(found.upper)
    for bad in (jnp.nan, jnp.inf):
        value, gradient = jax.value_and_grad(sx.frobenius_norm)(jnp.full((30, 30), bad))
        assert np.isnan(value)
        assert np.isnan(gradient).all()
        found = sx.frobenius_norm(jnp.full((30, 30), bad), full=True)
        assert np.isnan([found.value, found.lower, found.upper]).all()
        assert int(found.status) == sx.Status.NOT_FINITE


def test_arguments():
    with pytest.raises(ValueError, match="num_probes must be at least 2"):
        sx.frobenius_norm(jnp.eye(2), num_probes=1)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        sx.frobenius_norm(jnp.eye(2), key=3)


def test_quantiles_of_students_t_distribution():
    """Those of the level of four standard deviations, by scipy.stats.t.isf."""
    for freedom, exact, accuracy in ((7, 8.466925, 3e-2), (15, 5.480376, 2e-3), (31, 4.621632, 2e-4)):
        assert_allclose(frobenius._student_quantile(freedom), exact, rtol=accuracy)
