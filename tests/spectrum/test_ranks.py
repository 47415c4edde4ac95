"""Continuous ranks: closed forms, what they say of singular matrices, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing
from spectrax.spectrum import frobenius

KEY = jax.random.key(6)
SHAPE = (16, 12)
GALLERY = [case for case in testing.gallery(jax.random.key(5), shape=SHAPE) if case.matrix.shape == SHAPE]
RANKS = {"effective": sx.effective_rank, "stable": sx.stable_rank}


def matrix_of(s, shape, dtype="float64"):
    return testing.with_singular_values(KEY, s, shape, dtype).to_dense()


def product(v, matrix):
    return matrix @ v


def function_operator(matrix):
    return sx.aslinearoperator(product, jax.ShapeDtypeStruct(matrix.shape[1:], matrix.dtype), matrix)


def truth(name, s):
    s = np.asarray(s, np.float64)
    if s[0] == 0:
        return 0.0
    if name == "stable":
        return np.sum(s**2) / s[0] ** 2
    p = s[s > 0] / np.sum(s)
    return np.exp(-np.sum(p * np.log(p)))


@pytest.mark.parametrize("dtype", ["complex64", pytest.param("complex128", marks=pytest.mark.slow)])
def test_values_lie_within_their_bounds_over_the_gallery(dtype, x64):
    both = jax.jit(lambda A: {name: rank(A, full=True) for name, rank in RANKS.items()})
    for case in GALLERY:
        A = case.operator(dtype).to_dense()
        s = np.linalg.svd(np.asarray(A).astype(np.complex128), compute_uv=False)
        for name, found in both(A).items():
            true = truth(name, s)
            assert found.kind == "exact"
            assert int(found.status) <= sx.Status.AT_ROUND_OFF
            assert float(found.lower) <= true * (1 + 1e-12)
            assert float(found.upper) >= true * (1 - 1e-12), case.name
            assert float(found.upper - found.lower) <= 1e4 * float(jnp.finfo(dtype).eps) * true
            assert_allclose(found.value, true, rtol=300 * float(jnp.finfo(dtype).eps))
            assert 0 <= float(found.lower) <= float(found.upper) <= min(SHAPE)


def test_closed_forms(x64):
    """Equal values count; a half and two quarters have one and a half bits."""
    both = jax.jit(lambda A: (sx.effective_rank(A), sx.stable_rank(A)))
    for count in (1, 3, 5):
        assert_allclose(both(matrix_of(np.full(count, 0.3), (6, 5))), [count, count], rtol=1e-12)
    assert_allclose(both(matrix_of([2.0, 1.0, 1.0], (6, 5))), [2**1.5, 1.5], rtol=1e-12)


@pytest.mark.parametrize("name", RANKS)
def test_derivatives_against_central_differences(name, x64):
    direction = np.random.default_rng(1).normal(size=(6, 5))
    line = lambda t, A: RANKS[name](A + t * direction)  # noqa: E731
    derivatives = jax.jit(lambda A: (jax.grad(line)(0.0, A), jax.grad(jax.grad(line))(0.0, A)))

    def reference(t, A):
        return truth(name, np.linalg.svd(A + t * direction, compute_uv=False))

    # the largest is simple, as the stable rank needs it; ties below it
    for s in ([3, 2, 1, 0.7, 0.5], [3, 1.5, 1.5, 0.5, 0.5], [3, 1, 1, 1, 1]):
        A = np.asarray(matrix_of(np.array(s, float), (6, 5)))
        first, second = derivatives(A)
        ahead, here, behind = (np.array([reference(t * h, A) for h in (1e-6, 1e-4)]) for t in (1, 0, -1))
        assert_allclose(first, (ahead - behind)[0] / 2e-6, rtol=1e-7)
        assert_allclose(second, (ahead - 2 * here + behind)[1] / 1e-8, rtol=1e-5)


def test_gradients_of_the_effective_rank_at_ties(x64):
    """d erank = -erank / sum(s) sum_i (log p_i + H) ds_i, which is zero where all values are equal."""
    gradient = jax.jit(jax.grad(sx.effective_rank))
    for s in (np.repeat([2.0, 1.0], [6, 2]), np.repeat([2.0, 1.0], [2, 6]), np.ones(8)):
        A = matrix_of(s, (9, 8))
        u, _, vh = np.linalg.svd(A, full_matrices=False)
        p, rank = s / np.sum(s), truth("effective", s)
        expected = (u * (-rank / np.sum(s) * (np.log(p) + np.log(rank)))) @ vh
        assert_allclose(gradient(A), expected, atol=1e-13)


@pytest.mark.parametrize("name", RANKS)
def test_zero_and_singular_matrices_have_finite_gradients(name, x64):
    both = jax.jit(jax.value_and_grad(RANKS[name]))
    for A in (jnp.zeros((4, 3)), jnp.ones((4, 3)), jnp.eye(4, 3).at[0, 0].set(0)):
        value, gradient = both(A)
        assert_allclose(value, truth(name, np.linalg.svd(A, compute_uv=False).round(9)), rtol=1e-12)
        assert np.isfinite(gradient).all()
        assert_allclose(jnp.sum(gradient * A), 0, atol=1e-12)  # the rank of c A is that of A
        assert A.any() or not gradient.any()
    zero = jax.jit(lambda A: RANKS[name](A, full=True))(jnp.zeros((4, 3)))
    assert (float(zero.lower), float(zero.value), float(zero.upper), int(zero.status)) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", RANKS)
def test_scale_and_precision(name):
    s = np.array([3.0, 2.0, 2.0, 1.0])
    both = jax.jit(jax.value_and_grad(RANKS[name]))
    A = matrix_of(s, (5, 4), "float32")
    value, expected = both(A)
    assert_allclose(value, truth(name, s), rtol=1e-5)
    for scale in (1e20, 1e-20):
        value, gradient = both(A * scale)
        assert_allclose(value, truth(name, s), rtol=1e-5)
        assert_allclose(gradient * scale, expected, rtol=1e-3, atol=1e-6)
    rounded = A.astype(jnp.bfloat16)
    value, gradient = both(rounded)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    assert_allclose(value, truth(name, np.linalg.svd(np.asarray(rounded).astype(np.float64))[1]), rtol=1e-5)


@pytest.mark.parametrize("name", RANKS)
def test_what_is_not_finite_is_nan(name):
    @jax.jit
    def both(A):
        return *jax.value_and_grad(RANKS[name])(A), RANKS[name](A, full=True).status

    for bad in (jnp.nan, jnp.inf):
        value, gradient, status = both(jnp.eye(3).at[0, 1].set(bad))
        assert np.isnan(value)
        assert np.isnan(gradient).all()
        assert int(status) == sx.Status.NOT_FINITE


def test_kinds_of_the_stable_rank(monkeypatch, x64):
    s = np.geomspace(1, 0.1, 40)
    A, true = matrix_of(s, (48, 40)), truth("stable", s)
    dense = sx.stable_rank(function_operator(A), full=True, method=sx.Dense())
    assert dense.kind == "exact"
    assert_allclose([dense.lower, dense.upper], true, rtol=1e-12)
    iterative = sx.stable_rank(function_operator(A), full=True, method=sx.Lanczos(), key=KEY)
    assert iterative.kind == "upper"
    assert_allclose(iterative.value, true, rtol=1e-9)
    assert float(iterative.lower) == 1
    assert true <= float(iterative.upper) * (1 + 1e-12)
    monkeypatch.setattr(frobenius, "can_be_dense", lambda shape: False)
    estimate = sx.stable_rank(function_operator(A), full=True, method=sx.Dense(), key=KEY, num_probes=8)
    assert estimate.kind == "estimate"
    assert float(estimate.lower) < true < float(estimate.upper)
    assert_allclose(estimate.value, true, rtol=0.1)
    assert sx.stable_rank(A, full=True, method=sx.Lanczos(), key=KEY).kind == "upper"
    with pytest.raises(ValueError, match="frobenius_norm needs key="):
        sx.stable_rank(function_operator(A), method=sx.Dense(), num_probes=8)


def test_the_stable_rank_that_did_not_converge_is_nan_unless_bounds_are_asked_for(x64):
    s = np.linspace(1, 0.99, 60)
    A = matrix_of(s, (60, 60))
    options = {"method": sx.Lanczos(subspace_size=5), "key": KEY, "max_matvecs": 10}
    assert np.isnan(sx.stable_rank(A, **options))
    found = sx.stable_rank(A, full=True, **options)
    assert int(found.status) == sx.Status.NOT_CONVERGED
    assert float(found.lower) <= truth("stable", s) <= float(found.upper)


def test_limits():
    large = (jnp.cumsum, jax.ShapeDtypeStruct((5000,), jnp.float32))
    with pytest.raises(ValueError, match="above the limits"):
        sx.effective_rank(large)
    with pytest.raises(ValueError, match="needs key="):
        sx.stable_rank(large)
    with pytest.raises(ValueError, match="above max_bytes=3"):
        sx.effective_rank(jnp.eye(3), max_bytes=3)


def test_an_effective_rank_is_never_above_the_rank():
    for seed in range(5):
        matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(30, 24)))[0].astype(np.float32)
        found = sx.effective_rank(matrix, full=True)
        assert float(found.lower) <= float(found.value) <= float(found.upper) <= 24.0
