"""The nuclear norm and Schatten norms against NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing

KEY = jax.random.key(2)
EXPONENTS = (0.5, 1, 1.5, 2, 3, 400.0, np.inf)
FINITE = (0.5, 1, 1.5, 2, 3, 400.0)
SHAPE = (16, 12)
GALLERY = [case for case in testing.gallery(jax.random.key(5), shape=SHAPE) if case.matrix.shape == SHAPE]


def matrix_of(s, shape, dtype="float64"):
    return testing.with_singular_values(KEY, s, shape, dtype).to_dense()


def schatten(s, p):
    s = np.asarray(s, np.float64)
    if s[0] == 0 or np.isinf(p):
        return s[0]
    return s[0] * np.sum((s / s[0]) ** p) ** (1 / p)


@pytest.mark.parametrize("dtype", ["complex64", pytest.param("complex128", marks=pytest.mark.slow)])
def test_values_lie_within_their_bounds_over_the_gallery(dtype, x64):
    eps = float(jnp.finfo(dtype).eps)
    norms = jax.jit(lambda A: ([sx.schatten_norm(A, p, full=True) for p in EXPONENTS], sx.nuclear_norm(A)))
    for case in GALLERY:
        A = case.operator(dtype).to_dense()
        s = np.linalg.svd(np.asarray(A).astype(np.complex128), compute_uv=False)
        quantities, nuclear = norms(A)
        assert float(nuclear) == float(quantities[EXPONENTS.index(1)].value)
        for p, found in zip(EXPONENTS, quantities, strict=True):
            true = schatten(s, p)
            off = 1e-12 * true  # of the truth itself, in 64 bits
            if p == 0.5:
                off += 12 * np.sqrt(1e-15 * s[0] * true)  # roots of round-off
            assert found.kind == "exact"
            assert int(found.status) <= sx.Status.AT_ROUND_OFF
            assert float(found.lower) - off <= true <= float(found.upper) + off, (case.name, p)
            assert float(found.lower) <= float(found.value) <= float(found.upper)
            if p >= 1:
                assert float(found.upper - found.lower) <= 200 * eps * true


@pytest.mark.parametrize(("shape", "dtype"), [((10, 8), "complex128"), ((8, 10), "float64")])
def test_the_gradient_of_the_nuclear_norm_is_the_polar_factor(shape, dtype, x64):
    """U V^H, also where values are repeated: multiplicities 2, 3, 6, all."""
    gradient = jax.jit(jax.grad(sx.nuclear_norm))
    for s in (np.geomspace(3, 1, 8), np.repeat([3, 2, 1.0], [2, 3, 3]), np.repeat([2.0, 1], [6, 2]), np.ones(8)):
        A = matrix_of(s, shape, dtype)
        u, _, vh = np.linalg.svd(A, full_matrices=False)
        assert_allclose(gradient(A), (u @ vh).conj(), atol=1e-12)


def test_the_second_derivative_of_the_nuclear_norm_at_the_identity(x64):
    """|I + t E|_* = n + t tr E + t^2 / 2 |(E - E^T) / 2|_F^2 + O(t^3): only the skew part bends it."""
    E = np.random.default_rng(0).normal(size=(6, 6))
    curvature = jax.jit(jax.grad(jax.grad(lambda t: sx.nuclear_norm(jnp.eye(6) + t * E))))
    assert_allclose(curvature(0.0), np.sum(((E - E.T) / 2) ** 2), rtol=1e-12)


def test_gradients_of_schatten_norms(x64):
    s = np.array([2.0, 2.0, 1.9, 1.0, 1.0])
    A = matrix_of(s, (6, 5))
    u, _, vh = np.linalg.svd(A, full_matrices=False)
    gradients = jax.jit(lambda A: [jax.grad(sx.schatten_norm)(A, p) for p in FINITE])(A)
    for p, found in zip(FINITE, gradients, strict=True):
        expected = (u * (s / schatten(s, p)) ** (p - 1)) @ vh
        assert_allclose(found, expected, rtol=1e-11, atol=1e-13, err_msg=f"p = {p}")


def test_zero_and_singular_matrices_have_finite_derivatives(x64):
    matrices = jnp.stack([jnp.zeros((4, 3)), jnp.ones((4, 3)), jnp.eye(4, 3).at[0, 0].set(0)])
    direction = matrix_of(np.array([1.0, 0.5, 0.2]), (4, 3))

    def derivatives(A, p):
        gradient, curvature = jax.jvp(lambda A: jax.grad(sx.schatten_norm)(A, p), (A,), (direction,))
        return sx.schatten_norm(A, p), gradient, curvature

    exponents = (0.5, 1, 2, 3)
    found = jax.jit(jax.vmap(lambda A: [derivatives(A, p) for p in exponents]))(matrices)
    for p, (values, gradients, curvatures) in zip(exponents, found, strict=True):
        for A, value, gradient in zip(matrices, values, gradients, strict=True):
            assert_allclose(value, schatten(np.linalg.svd(A, compute_uv=False).round(9), p), rtol=1e-6)
            assert_allclose(jnp.sum(gradient * A), value, rtol=1e-6)  # homogeneous
        assert_allclose(gradients[0], np.zeros((4, 3)))
        assert np.isfinite(gradients).all()
        assert np.isfinite(curvatures).all()


def test_scales_near_the_ends_of_the_dtype():
    s = np.array([3.0, 2.0, 2.0, 1.0])
    exponents = (0.5, 1, 2, 400.0)
    norms = jax.jit(
        lambda A: [(*jax.value_and_grad(sx.schatten_norm)(A, p), sx.schatten_norm(A, p, full=True)) for p in exponents]
    )
    for scale in (1e20, 1e-20):
        A = matrix_of(s, (5, 4), "float32") * scale
        for p, (value, gradient, bounds) in zip(exponents, norms(A), strict=True):
            assert_allclose(value / scale, schatten(s, p), rtol=1e-5)
            assert_allclose(jnp.sum(gradient * (A / scale)), schatten(s, p), rtol=1e-5)
            assert 0 < float(bounds.lower) <= float(value) <= float(bounds.upper) < np.inf


def test_what_is_not_finite_is_nan():
    A = jnp.eye(3).at[0, 1].set(jnp.nan)
    norms = jax.jit(
        lambda A: [
            (*jax.value_and_grad(sx.schatten_norm)(A, p), sx.schatten_norm(A, p, full=True).status)
            for p in (1, 2, np.inf)
        ]
    )
    for value, gradient, status in norms(A):
        assert np.isnan(value)
        assert np.isnan(gradient).all()
        assert int(status) == sx.Status.NOT_FINITE


def test_16_bits():
    A = matrix_of(np.array([3.0, 2.0, 2.0, 1.0]), (5, 4), "bfloat16")
    s = np.linalg.svd(np.asarray(A).astype(np.float64), compute_uv=False)
    products = (lambda v: A @ v, jax.ShapeDtypeStruct((4,), jnp.bfloat16))
    exponents = (1, 2, np.inf)
    gradients = jax.jit(lambda A: [jax.value_and_grad(sx.schatten_norm)(A, p) for p in exponents])(A)
    others = jax.jit(lambda: [sx.schatten_norm(products, p) for p in exponents])()
    for p, (value, gradient), other in zip(exponents, gradients, others, strict=True):
        assert value.dtype == jnp.float32
        assert gradient.dtype == jnp.bfloat16
        assert_allclose([value, other], schatten(s, p), rtol=1e-5)


def test_arguments():
    for p in (0, -1, np.nan):
        with pytest.raises(ValueError, match="p must be positive"):
            sx.schatten_norm(jnp.eye(2), p)
    for p in ("nuc", True, None):
        with pytest.raises(TypeError, match="p must be a real number"):
            sx.schatten_norm(jnp.eye(2), p)
    for p in EXPONENTS:
        with pytest.raises(ValueError, match="above max_bytes=15"):
            sx.schatten_norm(jnp.eye(2), p, max_bytes=15)
    with pytest.raises(ValueError, match="above the limits"):
        sx.nuclear_norm((jnp.cumsum, jax.ShapeDtypeStruct((5000,), jnp.float32)))


def test_powers_whose_norm_overflows_are_refused():
    with pytest.raises(ValueError, match="p must be above"):
        sx.schatten_norm(jnp.eye(3), 1e-3)
    assert np.isfinite(sx.schatten_norm(jnp.eye(3), 0.02))
