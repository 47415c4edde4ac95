"""The vector space of pytrees against NumPy on the joined leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax import vectors


def tree(rng, count=None, dtype="complex128"):
    lead = () if count is None else (count,)

    def draw(*shape):
        values = rng.normal(size=lead + shape)
        return jnp.asarray(values + 1j * rng.normal(size=lead + shape) if dtype == "complex128" else values, dtype)

    return {"a": draw(2, 3), "b": (draw(4), draw())}


def flat(vector):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(vector)])


def rows(stack):
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(stack)], axis=1)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_algebra(dtype, x64):
    rng = np.random.default_rng(0)
    a, b, stack, other = tree(rng, None, dtype), tree(rng, None, dtype), tree(rng, 3, dtype), tree(rng, 2, dtype)
    alpha = jnp.float64(1.5)
    assert vectors.size(vectors.structure(a)) == 11
    assert vectors.result_dtype(vectors.structure(a)) == dtype
    assert_allclose(flat(vectors.add(a, b)), flat(a) + flat(b))
    assert_allclose(flat(vectors.subtract(a, b)), flat(a) - flat(b))
    assert_allclose(flat(vectors.scale(alpha, a)), 1.5 * flat(a))
    assert_allclose(flat(vectors.divide(a, alpha)), flat(a) / 1.5)
    assert_allclose(flat(vectors.conj(a)), flat(a).conj())
    assert_allclose(vectors.vdot(a, b), np.vdot(flat(a), flat(b)))
    assert_allclose(vectors.norm(a), np.linalg.norm(flat(a)))
    assert_allclose(vectors.stack_norms(stack), np.linalg.norm(rows(stack), axis=1))
    assert_allclose(vectors.rows_vdot(stack, a), rows(stack).conj() @ flat(a))
    assert_allclose(vectors.gram(stack, other), rows(stack).conj() @ rows(other).T)
    coefficients = jnp.asarray(rng.normal(size=(4, 3)))
    assert_allclose(rows(vectors.combine(coefficients, stack)), np.asarray(coefficients) @ rows(stack))
    assert_allclose(flat(vectors.combine(coefficients[0], stack)), np.asarray(coefficients[0]) @ rows(stack))
    assert_allclose(flat(vectors.row(stack, 1)), rows(stack)[1])
    replaced = rows(vectors.set_row(stack, jnp.int32(1), a))
    assert_allclose(replaced[1], flat(a))
    assert_allclose(replaced[[0, 2]], rows(stack)[[0, 2]])
    assert_allclose(vectors.as_matrix(stack), rows(stack))
    again = vectors.from_matrix(vectors.as_matrix(stack), vectors.structure(a))
    assert jax.tree.structure(again) == jax.tree.structure(stack)
    jax.tree.map(assert_allclose, again, stack)


@pytest.mark.parametrize("shape", [(100, 130), (3, 3, 100, 64), (20000,), (5, 9000), (8193, 1), (7, 8, 200)])
def test_combinations_by_slices(shape):
    """As TPUs make them: whole slices, what is left over, and slices of slices."""
    rng = np.random.default_rng(1)
    stack, coefficients = rng.normal(size=(6, *shape)), rng.normal(size=(4, 6))
    found = jax.jit(vectors._by_slices)(jnp.asarray(coefficients, "float32"), jnp.asarray(stack, "float32"))
    assert_allclose(found, np.einsum("ij,j...->i...", coefficients, stack), atol=1e-5)


def test_zero_and_division_by_zero():
    struct = {"a": jax.ShapeDtypeStruct((2,), jnp.float32)}
    assert_allclose(vectors.zeros(struct)["a"], np.zeros(2))
    assert vectors.zeros(struct, 3)["a"].shape == (3, 2)
    assert_allclose(vectors.divide({"a": jnp.ones(2)}, jnp.float32(0))["a"], np.zeros(2))
    gradient = jax.grad(lambda alpha: vectors.divide({"a": jnp.ones(2)}, alpha)["a"].sum())(jnp.float32(0))
    assert_allclose(gradient, 0.0)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_norms_neither_overflow_nor_vanish(size):
    a = (jnp.full((3,), size), jnp.full((1,), 0.0))
    assert_allclose(vectors.norm(a), np.sqrt(3) * size, rtol=1e-6)


def test_norms_of_what_is_not_finite():
    assert not np.isfinite(vectors.norm((jnp.array([1.0, jnp.inf]),)))
    assert np.isnan(vectors.norm((jnp.array([1.0, jnp.nan]),)))
    assert_allclose(vectors.norm(jnp.zeros(3)), 0.0)


def test_gaussian_vectors(key):
    struct = (jax.ShapeDtypeStruct((2000,), jnp.float32), jax.ShapeDtypeStruct((2000,), jnp.complex64))
    real, comp = vectors.normal(key, struct)
    assert real.dtype == jnp.float32
    assert comp.dtype == jnp.complex64
    # a mean square of 2000 standard Gaussians has the standard deviation sqrt(2 / 2000)
    assert abs(float(jnp.mean(real**2)) - 1) < 5 * np.sqrt(2 / 2000)
    assert abs(float(jnp.mean(jnp.abs(comp) ** 2)) - 1) < 5 * np.sqrt(2 / 2000)
    assert abs(float(jnp.mean(real * comp.real))) < 5 / np.sqrt(2000)
    assert vectors.normal(key, struct, 2)[1].shape == (2, 2000)


def test_dtypes():
    assert vectors.working_dtype(jnp.bfloat16) == jnp.float32
    assert vectors.working_dtype(jnp.float16) == jnp.float32
    assert vectors.working_dtype(jnp.float32) == jnp.float32
    assert vectors.working_dtype(jnp.complex64) == jnp.complex64
    assert vectors.real_dtype(jnp.complex64) == jnp.float32
    assert vectors.real_dtype(jnp.bfloat16) == jnp.bfloat16
    assert vectors.is_complex(jnp.complex64)
    assert not vectors.is_complex(jnp.float32)
    struct = {"a": jax.ShapeDtypeStruct((2,), jnp.bfloat16)}
    assert vectors.working_struct(struct)["a"].dtype == jnp.float32
    assert vectors.cast({"a": jnp.ones(2)}, struct)["a"].dtype == jnp.bfloat16


def test_scaling_keeps_dtypes():
    scaled = vectors.scale(jnp.float32(2), {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.complex64)})
    assert scaled["a"].dtype == jnp.bfloat16
    assert scaled["b"].dtype == jnp.complex64
