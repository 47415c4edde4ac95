"""Sums over the whole spectrum: closed forms, and central differences of NumPy's decomposition, also at ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing
from spectrax.spectrum import functions

# Spectra of eight values, with and without ties, close ties and zeros.
FULL_RANK = {
    "distinct": np.geomspace(3, 0.5, 8),
    "twice": np.repeat([3.0, 2.0, 1.2, 0.7], 2),
    "three times": np.repeat([3.0, 2.0, 0.7], [3, 2, 3]),
    "six times": np.repeat([2.0, 1.0], [6, 2]),
    "identity": np.ones(8),
    "gaps of 0.05": 1 + 0.05 * np.arange(8),
    "gaps of 1e-3": 1 + 1e-3 * np.arange(8),
    "gaps of 1e-4": 1 + 1e-4 * np.arange(8),
    "gaps of 1e-9": 1 + 1e-9 * np.arange(8),
}
SINGULAR = {"rank 5": np.array([3, 2, 2, 1, 1, 0, 0, 0.0]), "rank 1": np.eye(1, 8)[0], "zero": np.zeros(8)}
SHAPES = {"square": (8, 8), "tall": (10, 8), "wide": (8, 10)}


def matrix_of(s, shape, dtype="float64", seed=0):
    return testing.with_singular_values(jax.random.key(seed), s, shape, dtype).to_dense()


def direction_of(shape, dtype="float64"):
    return matrix_of(np.linspace(1, 0.3, min(shape)), shape, dtype, seed=7)


# f, and f' in NumPy: smooth and even, so that the sum is smooth everywhere, and smooth for positive values only
def even(s):
    return jnp.sqrt(s**2 + 0.3) + jnp.cosh(s)


def even_slope(s):
    return s / np.sqrt(s**2 + 0.3) + np.sinh(s)


def of_positive(s):
    return jnp.log(s) + s**1.5


def of_positive_slope(s):
    return 1 / s + 1.5 * s**0.5


def slope_along(matrix, direction, slope):
    """Re<U f'(S) V^H, E> by LAPACK: what is being tested, by another hand."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return np.sum(((u * slope(s)) @ vh).conj() * direction).real


def check_derivatives(f, slope, spectra, shape, dtype):
    shape = SHAPES[shape]
    matrices = jnp.stack([matrix_of(s, shape, dtype) for s in spectra.values()])
    direction = direction_of(shape, dtype)

    def along(A):
        def line(t):
            return sx.spectral_function(A + t.astype(A.dtype) * direction, f)

        zero, one = jnp.zeros(()), jnp.ones(())
        first = jax.grad(line)
        forward = jax.jvp(line, (zero,), (one,))[1]
        return first(zero), forward, jax.grad(first)(zero), jax.jvp(first, (zero,), (one,))[1]

    found = jax.jit(jax.vmap(along))(matrices)
    for index, (name, A) in enumerate(zip(spectra, np.asarray(matrices), strict=True)):
        first = slope_along(A, direction, slope)
        step = 1e-5
        ahead, behind = (slope_along(A + sign * step * direction, direction, slope) for sign in (1, -1))
        expected = (first, first, (ahead - behind) / (2 * step), (ahead - behind) / (2 * step))
        for got, want in zip(found, expected, strict=True):
            assert_allclose(got[index], want, rtol=1e-7, atol=1e-7, err_msg=name)
        assert_allclose(found[0][index], first, rtol=1e-13, atol=1e-13, err_msg=name)


def test_first_and_second_derivatives(x64):
    """Forward and reverse, forward over reverse and reverse over reverse, batched."""
    check_derivatives(even, even_slope, FULL_RANK | SINGULAR, "tall", "complex128")
    check_derivatives(of_positive, of_positive_slope, FULL_RANK, "wide", "float64")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", SHAPES)
def test_first_and_second_derivatives_everywhere(shape, dtype, x64):
    check_derivatives(even, even_slope, FULL_RANK | SINGULAR, shape, dtype)
    check_derivatives(of_positive, of_positive_slope, FULL_RANK, shape, dtype)


@pytest.mark.parametrize(("shape", "dtype"), [((5, 4), "float64"), ((4, 5), "complex128"), ((4, 4), "float64")])
def test_the_sum_of_squares_has_the_gradient_2_a_and_the_hessian_2_i(shape, dtype, x64):
    spectra = np.array([[3, 2, 1, 0.5], [2, 2, 2, 1], [1, 1, 1, 1], [2, 1, 0, 0], [0, 0, 0, 0]])
    matrices, direction = jnp.stack([matrix_of(s, shape, dtype) for s in spectra]), direction_of(shape, dtype)
    gradient = jax.grad(lambda A: sx.spectral_function(A, jnp.square))
    values = jax.vmap(lambda A: sx.spectral_function(A, jnp.square))(matrices)
    gradients, along = jax.jit(jax.vmap(lambda A: jax.jvp(gradient, (A,), (direction,))))(matrices)
    assert_allclose(values, np.sum(spectra**2, 1), rtol=1e-14)
    # JAX's convention for complex input: the derivative along E is Re sum(gradient * E)
    assert_allclose(gradients, 2 * matrices.conj(), atol=1e-13)
    assert_allclose(along, np.broadcast_to(2 * direction.conj(), along.shape), atol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("complex128", marks=pytest.mark.slow)])
def test_the_logarithm_of_the_determinant(dtype, x64):
    """log |det A| has the gradient A^-T, whose derivative along E is -(A^-1 E A^-1)^T."""
    direction = direction_of((8, 8), dtype)
    gradient = jax.jit(jax.grad(lambda A: sx.spectral_function(A, jnp.log)))
    curvature = jax.jit(lambda A: jax.jvp(gradient, (A,), (direction,))[1])
    for name, s in FULL_RANK.items():
        A = matrix_of(s, (8, 8), dtype)
        inverse = np.linalg.inv(A)
        assert_allclose(sx.spectral_function(A, jnp.log), np.linalg.slogdet(A)[1], atol=1e-12, err_msg=name)
        assert_allclose(gradient(A), inverse.T, atol=1e-12, err_msg=name)
        assert_allclose(curvature(A), -(inverse @ direction @ inverse).T, rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("f", "slopes"), [(lambda s: s, [1, 1]), (jnp.sqrt, 0.5 / np.sqrt([3, 2])), (jnp.log, 1 / np.array([3.0, 2.0]))]
)
def test_zero_values_count_as_zero_slope_where_the_function_is_not_smooth(f, slopes, x64):
    """For f = s the subgradient of least norm, U_r V_r^H; and what is infinite at zero does not get in."""
    A = matrix_of(np.array([3.0, 2.0]), (4, 5))
    u, _, vh = np.linalg.svd(A)
    gradient = jax.grad(lambda A: sx.spectral_function(A, f))
    direction = direction_of((4, 5))
    along = jax.jit(jax.vmap(lambda A: jax.jvp(gradient, (A,), (direction,))))
    gradients, curvatures = along(jnp.stack([A, jnp.zeros((4, 5))]))
    assert_allclose(gradients[0], (u[:, :2] * slopes) @ vh[:2], atol=1e-12)
    assert_allclose(gradients[1], np.zeros((4, 5)))
    assert np.isfinite(curvatures).all()
    assert_allclose(curvatures[1], np.zeros((4, 5)))


def test_values_over_the_gallery(x64):
    for case in testing.gallery(jax.random.key(5), shape=(16, 12)):
        found = sx.spectral_function(case.operator("complex128"), jnp.arctan)
        assert_allclose(found, np.sum(np.arctan(case.singular_values)), rtol=1e-12, atol=1e-12, err_msg=case.name)


@pytest.mark.parametrize("dtype", ["complex64", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_dtypes(dtype):
    A = matrix_of(np.array([3.0, 2.0, 2.0, 1.0]), (5, 4), dtype)
    value, gradient = jax.value_and_grad(sx.spectral_function)(A, jnp.square)
    assert value.dtype == jnp.float32
    assert gradient.dtype == A.dtype
    wide = np.asarray(A.astype(jnp.complex64 if dtype == "complex64" else jnp.float32))
    assert_allclose(value, np.sum(np.abs(wide) ** 2), rtol=1e-6)
    # of the 16-bit ones, exact to the rounding of the result
    eps = max(float(jnp.finfo(dtype).eps), 1e-6)
    assert_allclose(gradient.astype(wide.dtype), 2 * wide.conj(), rtol=2 * eps, atol=2e-6)


def test_functions_that_close_over_data(x64):
    """By what f closes over, too, and by both at once; at a tie, and under jit and vmap."""
    A = matrix_of(np.array([2.0, 2.0, 1.0, 1.0]), (5, 4))
    s = np.array([2.0, 2.0, 1.0, 1.0])
    weights, direction = jnp.array([0.5, 2.0, -1.0]), direction_of((5, 4))

    def total(w, A):
        return sx.spectral_function(A, lambda x: jnp.sum(jnp.sin(w * x)) * w[0])

    def slope(w, A):
        return jax.jvp(lambda A: total(w, A), (A,), (direction,))[1]

    @jax.jit
    def derivatives(w, A):
        other = jax.jvp(lambda A: jax.grad(total)(w, A), (A,), (direction,))[1]
        return total(w, A), jax.grad(total)(w, A), jax.grad(slope)(w, A), other

    w = np.asarray(weights)
    value, gradient, mixed, other = derivatives(weights, A)
    assert_allclose(value, np.sum(np.sin(np.outer(s, w))) * w[0], rtol=1e-13)
    by_weights = np.sum(np.cos(np.outer(s, w)) * s[:, None], 0) * w[0]
    by_weights[0] += np.sum(np.sin(np.outer(s, w)))
    assert_allclose(gradient, by_weights, rtol=1e-12)
    # d/dw_1 of the slope along E: <U diag(g) V^T, E> with g = d/dw_1 sum_k w_k w_0 cos(w_k s)
    u, _, vh = np.linalg.svd(A, full_matrices=False)
    slopes = w[0] * (np.cos(w[1] * s) - w[1] * s * np.sin(w[1] * s))
    expected = np.sum(((u * slopes) @ vh) * direction)
    assert_allclose([mixed[1], other[1]], expected, rtol=1e-11)
    several = jax.vmap(lambda c: sx.spectral_function(A, lambda x: c * x**2))(weights)
    assert_allclose(several, w * np.sum(s**2), rtol=1e-13)


def linear(v, weight):
    return {"y": jnp.tanh(weight) @ v}


def test_operators_that_are_made_dense(x64):
    weight = matrix_of(np.array([1.0, 0.8, 0.5]), (4, 3))

    def total(weight):
        operator = sx.aslinearoperator(linear, jax.ShapeDtypeStruct((3,), weight.dtype), weight)
        return sx.spectral_function(operator, jnp.square)

    assert_allclose(total(weight), np.sum(np.tanh(weight) ** 2), rtol=1e-13)
    expected = 2 * np.tanh(weight) * (1 - np.tanh(weight) ** 2)
    assert_allclose(jax.grad(total)(weight), expected, atol=1e-13)


@pytest.mark.slow
def test_third_derivatives_of_distinct_values(x64):
    """sum s^4 is a polynomial in the entries: tr (A^T A)^2."""
    A, E = matrix_of(np.array([2.0, 1.0]), (3, 2)), direction_of((3, 2))
    line = lambda t: sx.spectral_function(A + t * E, lambda s: s**4)  # noqa: E731
    third = jax.jit(jax.grad(jax.grad(jax.grad(line))))(0.0)
    # the coefficient of t^3 in |(A + t E)^T (A + t E)|_F^2, times 3!
    mixed = A.T @ E + E.T @ A
    assert_allclose(third, 6 * 2 * np.sum(mixed * (E.T @ E)), rtol=1e-10)


def test_a_hashable_function_is_compiled_once():
    cache = functions._jitted
    struct = jax.ShapeDtypeStruct((3,), jnp.float32)
    for number in range(5):
        matrix = jnp.full((4, 3), number + 1.0)
        sx.spectral_function(matrix, jnp.arctan)
        sx.spectral_function(sx.aslinearoperator(linear, struct, matrix), jnp.arctan)
        if number == 0:
            before = cache._cache_size()
    assert cache._cache_size() == before


def test_what_is_not_finite_is_nan():
    matrix = jnp.eye(4).at[1, 2].set(jnp.nan)
    for f in (jnp.square, lambda s: s, lambda s: 1.0):
        value, gradient = jax.value_and_grad(sx.spectral_function)(matrix, f)
        assert np.isnan(value)
        assert np.isnan(gradient).all()
    assert int(sx.spectral_function(matrix, jnp.square, full=True).status) == sx.Status.NOT_FINITE
    assert np.isnan(sx.spectral_function(jnp.full((4, 4), jnp.inf), jnp.square))


def test_what_is_known_of_the_sum():
    quantity = sx.spectral_function(jnp.diag(jnp.array([1.0, 2.0])), jnp.square, full=True)
    assert (float(quantity.value), quantity.kind, int(quantity.status)) == (5.0, "exact", sx.Status.CONVERGED)
    assert (float(quantity.lower), float(quantity.upper)) == (-np.inf, np.inf)
    # minus infinity is the right sum of logarithms, and a value of the function that is none is none of the sum
    assert float(sx.spectral_function(jnp.diag(jnp.array([1.0, 0.0])), jnp.log)) == -np.inf
    assert int(sx.spectral_function(jnp.eye(2), lambda s: jnp.log(-s), full=True).status) == sx.Status.NOT_FINITE


def test_scales_near_the_ends_of_the_dtype():
    A = matrix_of(np.array([3.0, 2.0, 2.0, 1.0]), (5, 4), "float32")
    for scale in (1e20, 1e-20):
        value, gradient = jax.value_and_grad(sx.spectral_function)(A * scale, lambda s: s)
        assert_allclose(value, 8 * scale, rtol=1e-6)
        assert_allclose(np.linalg.norm(gradient), 2.0, rtol=1e-6)


def test_limits(monkeypatch):
    struct = jax.ShapeDtypeStruct((5000,), jnp.float32)
    with pytest.raises(ValueError, match=r"of shape \(5000, 5000\) and dtype float32 .* 100000000 bytes, above the"):
        sx.spectral_function((jnp.cumsum, struct), jnp.log)
    with pytest.raises(ValueError, match="matrix of 64 bytes, above max_bytes=63"):
        sx.spectral_function(jnp.eye(4), jnp.log, max_bytes=63)
    monkeypatch.setattr(functions, "can_be_dense", lambda shape: min(shape) <= 3)
    with pytest.raises(ValueError, match="allow it by max_bytes=64, or ask svds"):
        sx.spectral_function(jnp.eye(4), jnp.log)
    assert float(sx.spectral_function(jnp.eye(4), jnp.log, max_bytes=64)) == 0


def test_functions_that_are_none():
    with pytest.raises(TypeError, match="f must be a JAX function of a real scalar, got str"):
        sx.spectral_function(jnp.eye(2), "log")
    with pytest.raises(ValueError, match="f must return a scalar"):
        sx.spectral_function(jnp.eye(2), lambda s: jnp.stack([s, s]))
    with pytest.raises(TypeError, match="real floating-point number, got dtype bool"):
        sx.spectral_function(jnp.eye(2), lambda s: s > 0)
