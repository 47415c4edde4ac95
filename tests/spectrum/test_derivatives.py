"""Derivatives of triplets against central differences and closed forms, to the second order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing

SHAPE = (9, 7)
METHODS = {
    "dense-largest": (sx.Dense(), "largest"),
    "dense-smallest": (sx.Dense(), "smallest"),
    "lanczos-largest": (sx.Lanczos(), "largest"),
    "lanczos-smallest": (sx.Lanczos(), "smallest"),
    "inverse-smallest": (sx.InverseLanczos(), "smallest"),
}


def matrix_of(dtype, seed=0):
    return testing.with_singular_values(jax.random.key(seed), np.geomspace(4, 1, 7), SHAPE, dtype).to_dense()


def direction_of(dtype, seed=7):
    return jnp.asarray(
        testing.with_singular_values(jax.random.key(seed), np.linspace(1, 0.2, 7), SHAPE, dtype).to_dense()
    )


def values(name):
    """A smooth function of two values."""
    method, which = METHODS[name]

    @jax.jit
    def f(matrix):
        s = sx.svds(matrix, 2, which=which, method=method, key=jax.random.key(3), tol=1e-13).s
        return jnp.sin(s[0]) + s[1] ** 2 * s[0]

    return f


def vectors(name):
    """A function of the vectors that no common phase changes: a quadratic form of the projector, and of u v^H."""
    method, which = METHODS[name]

    @jax.jit
    def f(matrix):
        result = sx.svds(matrix, 2, which=which, method=method, key=jax.random.key(3), tol=1e-13)
        u, v = result.u[1], result.v[1]
        weights = jnp.linspace(1.0, 2.0, u.size)
        other = jnp.linspace(-1.0, 1.0, v.size).astype(v.dtype)
        joint = jnp.sum(u[:3]) * jnp.vdot(v, other)
        return jnp.sum(weights * jnp.abs(u) ** 2) + jnp.abs(jnp.vdot(v, other)) ** 2 + joint.real + 2 * joint.imag

    return f


def along(f, matrix, direction):
    return lambda t: f(matrix + t.astype(matrix.dtype) * direction)


def central(f, step):
    return (f(jnp.float64(step)) - f(jnp.float64(-step))) / (2 * step)


def check(kind, name, dtype, orders):
    f, matrix, direction = kind(name), matrix_of(dtype), direction_of(dtype)
    line = along(f, matrix, direction)
    zero = jnp.float64(0)
    slope = central(line, 1e-5)
    forward = jax.jvp(f, (matrix,), (direction,))[1]
    assert_allclose(forward, slope, rtol=1e-7, atol=1e-8)
    reverse = jax.grad(f)(matrix)
    # JAX's convention for complex inputs: the derivative along D is Re sum(grad * D)
    assert_allclose(jnp.sum(reverse * direction).real, slope, rtol=1e-7, atol=1e-8)
    if orders == 2:
        curvature = central(jax.jit(jax.grad(line)), 1e-5)
        assert_allclose(jax.jit(jax.grad(jax.grad(line)))(zero), curvature, rtol=1e-6, atol=1e-6)
        assert_allclose(jax.jit(jax.jacfwd(jax.grad(line)))(zero), curvature, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [values, vectors])
def test_first_and_second_order_of_the_dense_method(kind, x64):
    check(kind, "dense-largest", "complex128", 2)
    check(kind, "dense-smallest", "float64", 2)


# A compiled iteration takes seconds, a second order of it four times as long: the rest is in the slow suite.
@pytest.mark.parametrize(
    ("kind", "name", "orders"),
    [(values, "lanczos-smallest", 1), (vectors, "lanczos-largest", 2), (vectors, "inverse-smallest", 1)],
)
def test_first_and_second_order_of_iterative_methods(kind, name, orders, x64):
    check(kind, name, "complex128", orders)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [values, vectors])
def test_first_and_second_order_everywhere(kind, name, dtype, x64):
    check(kind, name, dtype, 2)


def test_the_gradient_of_the_norm_is_the_outer_product(x64):
    for dtype in ("float64", "complex128"):
        matrix = matrix_of(dtype)
        u, _, vh = np.linalg.svd(matrix)
        gradient = jax.grad(sx.spectral_norm)(matrix)
        assert_allclose(gradient, np.outer(u[:, 0], vh[0]).conj(), atol=1e-12)


def test_the_sum_of_all_values_has_the_polar_factor_as_gradient(x64):
    """d |A|_* = Re <U V^H, dA>, also where values are repeated: the sum is smooth there."""
    for s in (np.geomspace(4, 1, 7), np.repeat([2.0, 1.0], [3, 4])):
        matrix = testing.with_singular_values(jax.random.key(0), s, SHAPE, "float64").to_dense()
        u, _, vh = np.linalg.svd(matrix, full_matrices=False)
        assert_allclose(jax.grad(lambda A: jnp.sum(sx.singular_values(A)))(matrix), u @ vh, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_finite_at_repeated_values(name, x64):
    method, which = METHODS[name]

    @jax.jit
    def gradient(matrix):
        f = lambda A: sx.svds(A, 1, which=which, method=method, key=jax.random.key(3)).s[0]  # noqa: E731
        return jax.grad(f)(matrix), jax.jvp(f, (matrix,), (matrix,))[1]

    for matrix in (jnp.eye(*SHAPE), 3 * jnp.eye(*SHAPE)):
        reverse, forward = gradient(matrix)
        assert_allclose(jnp.linalg.norm(reverse), 1.0, rtol=1e-9)  # a subgradient: the outer product of unit vectors
        assert_allclose(forward, matrix[0, 0], rtol=1e-9)  # homogeneous
    reverse, forward = gradient(jnp.zeros(SHAPE))
    assert np.isfinite(reverse).all()
    assert np.isfinite(forward)


@pytest.mark.parametrize("name", ["dense-largest", "lanczos-largest", "inverse-smallest"])
def test_vector_tangents_at_ties_are_nan_and_not_wrong(name, x64):
    """At a repeated value the vectors are not functions of the matrix."""
    method, which = METHODS[name]
    matrix = testing.with_singular_values(
        jax.random.key(0), [3.0, 3.0, 2.5, 2.2, 2.0, 1.0, 1.0], SHAPE, "float64"
    ).to_dense()

    def f(A):
        return sx.svds(A, 1, which=which, method=method, key=jax.random.key(3))

    tangent = jax.jit(lambda A, D: jax.jvp(f, (A,), (D,))[1])(matrix, direction_of("float64"))
    assert np.isnan(tangent.u).all()
    assert np.isnan(tangent.v).all()
    assert np.isfinite(tangent.s).all()


def test_vector_tangents_keep_the_norm_and_the_phase(x64):
    for dtype in ("float64", "complex128"):
        matrix, direction = matrix_of(dtype), direction_of(dtype)
        f = functools.partial(sx.svds, k=3, method=sx.Dense())
        result, tangent = jax.jvp(f, (matrix,), (direction,))
        joint = np.sum(np.conj(result.u) * tangent.u, 1) + np.sum(np.conj(result.v) * tangent.v, 1)
        assert_allclose(joint, np.zeros(3), atol=1e-12)
        # differentiated defining equations: dA v + A dv = ds u + s du
        left = result.v @ direction.T + tangent.v @ matrix.T
        s, s_dot = np.asarray(result.s)[:, None], np.asarray(tangent.s)[:, None]
        assert_allclose(left, s_dot * np.asarray(result.u) + s * np.asarray(tangent.u), atol=1e-11)


def test_nothing_flows_through_residuals_starts_and_counts(x64):
    matrix = matrix_of("float64")
    _, tangent = jax.jvp(lambda A: sx.svds(A, 1), (matrix,), (matrix,))
    assert_allclose(tangent.residuals, np.zeros(1))
    assert tangent.converged.dtype == tangent.num_matvecs.dtype == jax.dtypes.float0
    start = lambda v0: sx.svds(  # noqa: E731
        matrix, 1, method=sx.Lanczos(), key=jax.random.key(0), v0=v0
    ).s[0]
    assert_allclose(jax.grad(start)(jnp.ones((1, 7))), np.zeros((1, 7)))


@pytest.mark.parametrize("method", [sx.Dense(), sx.Lanczos()])
def test_through_pytree_operators_and_closed_over_data(method, x64):
    """The condition that a network's Jacobian is used under: parameters in args and in closures."""
    rng = np.random.default_rng(0)
    w, b = jnp.asarray(rng.normal(size=(5, 4))), jnp.asarray(rng.normal(size=5))
    x = jnp.asarray(rng.normal(size=4))

    @jax.jit
    def f(w, b):
        J = sx.jacobian_operator(lambda x, w: {"y": jnp.tanh(w @ x + b)}, x, w)
        return sx.svds(J, 1, method=method, key=jax.random.key(0), tol=1e-13).s[0]

    def dense(w, b):
        return np.linalg.svd((1 - np.tanh(w @ x + b) ** 2)[:, None] * np.asarray(w), compute_uv=False)[0]

    for argnum, point in ((0, w), (1, b)):
        direction = jnp.asarray(rng.normal(size=point.shape))
        shifted = [
            dense(*((p + sign * 1e-6 * direction) if i == argnum else p for i, p in enumerate((w, b))))
            for sign in (1, -1)
        ]
        gradient = jax.grad(f, argnum)(w, b)
        assert_allclose(jnp.sum(gradient * direction), (shifted[0] - shifted[1]) / 2e-6, rtol=1e-6)


def test_batched_derivatives_are_those_of_each(x64):
    matrices = jnp.stack([matrix_of("float64", seed) for seed in range(3)])
    f = values("dense-largest")
    assert_allclose(jax.vmap(jax.grad(f))(matrices), jnp.stack([jax.grad(f)(m) for m in matrices]), atol=1e-12)
