"""Norms and condition numbers: the number, its bounds, and what they say where there is no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing

GALLERY = {case.name: case for case in testing.gallery(jax.random.key(5))}
KEY = jax.random.key(1)


@pytest.mark.parametrize("name", GALLERY)
def test_exact_values_lie_within_their_bounds(name, x64):
    case = GALLERY[name]
    A = case.operator("complex128")
    truth = np.linalg.svd(np.asarray(A.to_dense()), compute_uv=False)
    off = 1e-13 * max(truth[0], 1e-300)
    for function, true in ((sx.spectral_norm, truth[0]), (sx.smallest_singular_value, truth[-1])):
        quantity = function(A, full=True)
        assert quantity.kind == "exact"
        assert float(quantity.lower) - off <= true <= float(quantity.upper) + off
        assert_allclose(quantity.value, true, atol=off)
        assert_allclose(function(A), true, atol=off)
    assert_allclose(sx.singular_values(A), truth, atol=off)
    assert_allclose(sx.singular_values(A, 1), truth[:1], atol=off)
    condition = sx.condition_number(A, full=True)
    logarithm = sx.log_condition_number(A, full=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        true = truth[0] / truth[-1] if truth[0] else np.inf
    singular = case.singular_values[-1] <= 1e-15 * case.singular_values[0]
    assert condition.kind == logarithm.kind == "exact"
    assert float(condition.lower) >= 1
    if singular:
        assert np.isinf(condition.value)
        assert np.isinf(logarithm.value)
        assert np.isinf(sx.condition_number(A))
        assert np.isinf(condition.upper)
        assert np.isfinite(condition.lower) or truth[0] == 0
        assert truth[0] == 0 or float(condition.lower) > 1e13
    else:
        tolerance = 1e-13 * true
        assert_allclose(condition.value, true, rtol=max(tolerance, 1e-12))
        assert_allclose(logarithm.value, np.log(true), atol=max(tolerance, 1e-12))
        assert_allclose(sx.log_condition_number(A), np.log(true), atol=max(tolerance, 1e-12))
        assert float(condition.lower) * (1 - max(tolerance, 1e-12)) <= true
        assert true <= float(condition.upper) * (1 + max(tolerance, 1e-12))


def test_kinds_of_iterative_methods(x64):
    A = testing.with_singular_values(KEY, np.geomspace(1, 0.1, 40), (48, 40), "float64")
    norm = sx.spectral_norm(A, full=True, method=sx.Lanczos(), key=KEY)
    assert norm.kind == "lower"
    assert np.isinf(norm.upper)
    assert float(norm.lower) <= 1 + 1e-13
    assert_allclose(norm.value, 1.0, rtol=1e-9)
    for method in (sx.Lanczos(), sx.InverseLanczos()):
        smallest = sx.smallest_singular_value(A, full=True, method=method, key=KEY)
        assert smallest.kind == "upper"
        assert float(smallest.lower) == 0
        assert float(smallest.upper) >= 0.1 * (1 - 1e-12)
        assert_allclose(smallest.value, 0.1, rtol=1e-9)
    condition = sx.condition_number(A, full=True, method=sx.Lanczos(), key=KEY)
    assert condition.kind == "lower"
    assert float(condition.lower) <= 10 * (1 + 1e-12)
    assert np.isinf(condition.upper)
    assert_allclose(condition.value, 10.0, rtol=1e-8)


def test_both_ends(x64):
    A = testing.with_singular_values(KEY, np.geomspace(2, 0.1, 40), (48, 40), "float64")
    dense = sx.extreme_singular_values(A)
    iterative = sx.extreme_singular_values(A, method=sx.Lanczos(), key=KEY)
    for ends in (dense, iterative):
        assert_allclose([ends.sigma_max, ends.sigma_min], [2, 0.1], rtol=1e-9)
        assert bool(ends.converged_max)
        assert bool(ends.converged_min)
        assert 0 <= float(ends.residual_max) <= 1e-9
        assert 0 <= float(ends.residual_min) <= 1e-10
        assert all(field.shape == () for field in ends)
    assert int(dense.num_matvecs) == 4
    assert int(iterative.num_matvecs) > 80


def test_what_did_not_converge_is_nan_unless_bounds_are_asked_for(x64):
    A = testing.with_singular_values(KEY, np.geomspace(1, 1e-4, 40), (48, 40), "float64")
    options = {"method": sx.Lanczos(), "key": KEY, "max_matvecs": 40}
    assert np.isnan(sx.smallest_singular_value(A, **options))
    assert np.isnan(sx.condition_number(A, **options))
    assert np.isnan(sx.log_condition_number(A, **options))
    smallest = sx.smallest_singular_value(A, full=True, **options)
    assert int(smallest.status) == sx.Status.NOT_CONVERGED
    assert float(smallest.lower) <= 1e-4 <= float(smallest.upper)
    condition = sx.condition_number(A, full=True, **options)
    assert int(condition.status) == sx.Status.NOT_CONVERGED
    assert 1 <= float(condition.lower) <= 1e4 <= float(condition.upper)
    values = sx.singular_values(A, 3, **options)
    assert np.isnan(values).any() or np.abs(values - A_top(A, 3)).max() < 1e-9
    ends = sx.extreme_singular_values(A, **options)
    assert not bool(ends.converged_min)
    assert float(ends.sigma_min) >= 1e-4
    for function in (sx.smallest_singular_value, sx.condition_number, sx.extreme_singular_values):
        with pytest.raises(sx.SpectraxError, match="did not converge"):
            function(A, throw=True, **options)


def A_top(A, k):
    return np.linalg.svd(A.to_dense(), compute_uv=False)[:k]


def test_what_is_not_finite_is_nan():
    matrix = jnp.eye(4).at[1, 2].set(jnp.inf)
    for function in (sx.spectral_norm, sx.smallest_singular_value, sx.condition_number, sx.log_condition_number):
        assert np.isnan(function(matrix))
        assert int(function(matrix, full=True).status) == sx.Status.NOT_FINITE
    assert np.isnan(sx.singular_values(matrix)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_singular_at_round_off_of_the_dtype(dtype):
    A = testing.with_singular_values(KEY, np.geomspace(1, 1e-12, 12), (16, 12), jnp.float32)
    assert np.isinf(sx.condition_number(A))
    lower = float(sx.condition_number(A, full=True).lower)
    assert 1e4 < lower <= 1e12
    # of a rounded matrix the truth is another: it is exact for what is given
    B = testing.with_singular_values(KEY, np.geomspace(1, 1e-2, 12), (16, 12), dtype)
    truth = np.linalg.svd(np.asarray(B.to_dense()).astype(np.float64), compute_uv=False)
    found = sx.condition_number(B)
    assert found.dtype == jnp.float32
    assert_allclose(found, truth[0] / truth[-1], rtol=100 * 30 * np.finfo(np.float32).eps)


def test_a_condition_number_beyond_the_dtype_has_a_finite_lower_bound():
    found = sx.condition_number(jnp.diag(jnp.array([1e30, 1.0, 1e-30])), full=True)
    assert np.isinf(found.value)
    assert 1e37 < found.lower < np.inf


def test_gradients(x64):
    matrix = testing.with_singular_values(KEY, np.geomspace(3, 0.5, 7), (9, 7), "float64").to_dense()
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    top, bottom = np.outer(u[:, 0], vh[0]), np.outer(u[:, -1], vh[-1])
    assert_allclose(jax.grad(sx.spectral_norm)(matrix), top, atol=1e-12)
    assert_allclose(jax.grad(sx.smallest_singular_value)(matrix), bottom, atol=1e-12)
    assert_allclose(jax.grad(sx.log_condition_number)(matrix), top / s[0] - bottom / s[-1], atol=1e-12)
    expected = top / s[-1] - bottom * s[0] / s[-1] ** 2
    assert_allclose(jax.grad(sx.condition_number)(matrix), expected, atol=1e-11)
    assert_allclose(jax.grad(lambda A: sx.condition_number(A, full=True).value)(matrix), expected, atol=1e-11)
    # a bound is not differentiated
    assert_allclose(jax.grad(lambda A: sx.condition_number(A, full=True).lower)(matrix), np.zeros((9, 7)))


@pytest.mark.parametrize("function", [sx.condition_number, sx.log_condition_number])
def test_gradients_at_singular_matrices_are_zero(function):
    for matrix in (jnp.zeros((4, 3)), jnp.ones((4, 3)), jnp.diag(jnp.array([1.0, 1.0, 0.0]))):
        value, gradient = jax.value_and_grad(function)(matrix)
        assert np.isinf(value)
        assert_allclose(gradient, np.zeros(matrix.shape))


def test_keys_are_needed_as_for_svds():
    with pytest.raises(ValueError, match="svds needs key="):
        sx.condition_number(sx.aslinearoperator(jnp.cumsum, jnp.ones(3)))
    with pytest.raises(TypeError):
        sx.condition_number(jnp.eye(3), True)
    with pytest.raises(ValueError, match="use which='smallest'"):
        sx.extreme_singular_values(jnp.eye(3), method=sx.InverseLanczos(), key=KEY)


def test_gradient_of_what_has_no_value_is_nan_and_not_zero():
    assert np.isnan(jax.grad(sx.spectral_norm)(jnp.full((2, 2), jnp.nan))).all()
    assert np.isnan(jax.grad(sx.condition_number)(jnp.full((2, 2), jnp.nan))).all()


def test_16_bit_functions_that_are_well_conditioned_are_not_called_singular():
    matrix = testing.with_singular_values(jax.random.key(0), np.geomspace(1, 0.1, 300), (300, 300), jnp.float32)
    rounded = matrix.to_dense().astype(jnp.bfloat16)
    struct = jax.ShapeDtypeStruct((300,), jnp.bfloat16)
    found = sx.condition_number((lambda v: rounded @ v, struct), full=True, method=sx.Dense())
    true = np.linalg.cond(np.asarray(rounded).astype(np.float64))
    assert float(found.lower) <= true <= float(found.upper)
    assert_allclose(found.value, true, rtol=0.05)


def test_the_upper_bound_of_the_norm_holds_where_the_residual_is_zero():
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(300, 12, 12)).astype(np.float32)
    found = jax.jit(jax.vmap(lambda A: sx.spectral_norm(A, full=True)))(matrices)
    true = np.linalg.norm(matrices.astype(np.float64), 2, axis=(1, 2))
    assert (np.asarray(found.lower, np.float64) <= true).all()
    assert (true <= np.asarray(found.upper, np.float64)).all()
    assert_allclose(found.upper, true, rtol=1e-5)
