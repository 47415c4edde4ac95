"""The bound that holds but for a probability: its closed form, and how often it fails."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing

KEYS = jax.random.split(jax.random.key(8), 200)


@functools.partial(jax.jit, static_argnames=("num_steps", "failure_probability"))
def bounds(matrix, num_steps=32, failure_probability=1e-6):
    """Those of 200 starts."""
    options = {"num_steps": num_steps, "failure_probability": failure_probability}
    return jax.vmap(lambda key: sx.spectral_norm_bound(matrix, key=key, **options))(KEYS)


def gapless(name, n):
    """Squared singular values without a gap at the top."""
    return {
        "linear": np.linspace(1, 1e-3, n),
        "crowded": np.cos(np.linspace(0, np.pi / 2, n)) ** 2,
        "root": 1 - np.linspace(0, 1, n) ** 0.5,
    }[name]


@pytest.mark.parametrize(
    ("name", "dtype"), [("linear", "float64"), ("crowded", "complex128"), ("crowded", "float64"), ("root", "float64")]
)
def test_it_is_never_below_the_truth_where_there_is_no_gap(name, dtype, x64):
    n, steps = 80, 14
    matrix = testing.with_singular_values(jax.random.key(0), gapless(name, n) ** 0.5, (n + 3, n), dtype).to_dense()
    found = bounds(matrix, num_steps=steps)
    assert found.kind == "upper"
    assert (np.asarray(found.value) >= 1).all()
    assert (np.asarray(found.lower) < 1).all()  # nothing has converged: it is the probability that speaks
    assert (np.asarray(found.value) == np.asarray(found.upper)).all()
    assert (np.asarray(found.status) == sx.Status.CONVERGED).all()


@pytest.mark.parametrize(("n", "steps", "share"), [(60, 6, 0.1), pytest.param(200, 8, 0.1, marks=pytest.mark.slow)])
def test_failures_are_as_rare_as_promised_for_the_hardest_spectrum(n, steps, share, x64):
    """One value at the top, and the others where the Chebyshev polynomial of the proof is largest."""
    squares = np.r_[1, (1 - share) * np.cos(np.linspace(0, np.pi / 2, n - 1)) ** 2]
    probability = 1.648 * math.sqrt(n) * math.exp(-math.sqrt(share) * (2 * steps - 1))
    found = bounds(jnp.diag(jnp.asarray(squares**0.5)), num_steps=steps, failure_probability=probability)
    # the round-off that the bound carries is far below what a start without luck misses
    failures = np.sum(np.asarray(found.value) < 1)
    assert 0 < failures <= probability * 200


def test_closed_form(x64):
    matrix = testing.with_singular_values(jax.random.key(0), np.geomspace(1, 0.1, 50), (60, 50), "float64").to_dense()
    cases = [(matrix, 50, 12, 1e-3), (matrix, 50, 12, 0.3), (matrix.astype(complex), 100, 14, 1e-4)]
    for operator, dimension, steps, probability in cases:
        found = sx.spectral_norm_bound(operator, key=KEYS[0], num_steps=steps, failure_probability=probability)
        share = (math.log(1.648 * math.sqrt(dimension) / probability) / (2 * steps - 1)) ** 2
        assert_allclose(found.value / found.lower, (1 - share) ** -0.5, rtol=1e-12)
    # log(1.648 sqrt(50) / probability) = 2 * 12 - 1 is where it begins to say anything
    edge = 1.648 * math.sqrt(50) * math.exp(-23)
    for probability, finite in ((edge * 0.999, False), (edge * 1.001, True)):
        found = sx.spectral_norm_bound(matrix, key=KEYS[0], num_steps=12, failure_probability=probability)
        assert np.isfinite(found.value) == finite
        assert 0.5 < float(found.lower) <= 1


def test_the_lower_bound_is_the_ritz_value_of_the_krylov_space(x64):
    """On the shorter side, the left one here."""
    operator = testing.with_singular_values(jax.random.key(0), np.linspace(1, 0.1, 30), (30, 34), "complex128")
    matrix = np.asarray(operator.to_dense())
    gram = matrix @ matrix.conj().T
    basis = [np.asarray(jax.random.normal(jax.random.split(KEYS[0], 1)[0], (30,), "complex128"))]
    for steps in (1, 6):
        while len(basis) < steps:
            basis.append(gram @ basis[-1])
        q, _ = np.linalg.qr(np.stack(basis, 1))
        expected = np.linalg.eigvalsh(q.conj().T @ gram @ q)[-1] ** 0.5
        assert_allclose(sx.spectral_norm_bound(operator, key=KEYS[0], num_steps=steps).lower, expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["complex64", pytest.param("complex128", marks=pytest.mark.slow)])
def test_a_full_krylov_space_is_sharp_over_the_gallery(dtype, x64):
    bound = jax.jit(lambda A: sx.spectral_norm_bound(A, key=KEYS[1]))
    for case in testing.gallery(jax.random.key(5), shape=(16, 12)):
        if case.matrix.shape != (16, 12):
            continue
        A = case.operator(dtype).to_dense()
        true = np.linalg.norm(np.asarray(A).astype(np.complex128), 2)
        found = bound(A)
        assert float(found.lower) <= true * (1 + 1e-14)
        assert true <= float(found.value) * (1 + 1e-14)
        assert_allclose(found.value, true, rtol=50 * float(jnp.finfo(dtype).eps), err_msg=case.name)


def test_breakdown_loses_nothing():
    """Spaces that end early: repeated values, of which the start sees one direction each, in 32 bits."""
    for s in (np.ones(100), np.r_[2.0, np.ones(99)], np.r_[np.full(50, 2.0), np.ones(50)], np.r_[1.0, np.zeros(99)]):
        matrix = testing.with_singular_values(jax.random.key(0), s, (100, 100)).to_dense()
        found = bounds(matrix)
        assert (np.asarray(found.value) >= s[0]).all()
        assert_allclose(found.lower, s[0], rtol=1e-4)


def tall_product(v, matrix):
    return {"y": matrix @ v["x"]}


def test_operators_of_pytrees_and_16_bits():
    matrix = testing.with_singular_values(jax.random.key(0), np.linspace(2, 1, 50), (60, 50), "bfloat16").to_dense()
    true = np.linalg.norm(np.asarray(matrix).astype(np.float64), 2)
    operator = sx.aslinearoperator(tall_product, {"x": jax.ShapeDtypeStruct((50,), matrix.dtype)}, matrix)
    for A in (operator.H, matrix):
        found = sx.spectral_norm_bound(A, key=KEYS[0], num_steps=20)
        assert found.value.dtype == jnp.float32
        assert float(found.lower) <= true <= float(found.value) <= 1.3 * true


def test_scales_near_the_ends_of_the_dtype():
    matrix = testing.with_singular_values(jax.random.key(0), np.linspace(2, 1, 40), (40, 40)).to_dense()
    expected = sx.spectral_norm_bound(matrix, key=KEYS[0], num_steps=20).value
    for scale in (1e20, 1e-20, 1e-36):
        found = sx.spectral_norm_bound(matrix * scale, key=KEYS[0], num_steps=20)
        assert_allclose(found.value / scale, expected, rtol=1e-3)
    zero = sx.spectral_norm_bound(jnp.zeros((40, 40)), key=KEYS[0], num_steps=20)
    assert (float(zero.lower), float(zero.value)) == (0, 0)


def test_what_is_not_finite_is_nan():
    for bad in (jnp.nan, jnp.inf):
        found = sx.spectral_norm_bound(jnp.eye(4).at[1, 2].set(bad), key=KEYS[0], num_steps=4)
        assert int(found.status) == sx.Status.NOT_FINITE
        assert np.isnan([found.lower, found.value, found.upper]).all()


def test_a_bound_is_not_differentiated():
    gradient = jax.grad(lambda A: sx.spectral_norm_bound(A, key=KEYS[0], num_steps=4).value)(jnp.eye(4))
    assert_allclose(gradient, np.zeros((4, 4)))


def test_arguments():
    for probability in (0.0, 1.0, -1.0, 2.0):
        with pytest.raises(ValueError, match="failure_probability must"):
            sx.spectral_norm_bound(jnp.eye(3), key=KEYS[0], failure_probability=probability)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        sx.spectral_norm_bound(jnp.eye(3), key=KEYS[0], num_steps=0)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        sx.spectral_norm_bound(jnp.eye(3), key=None)
    with pytest.raises(TypeError, match="v0"):
        sx.spectral_norm_bound(jnp.eye(3), key=KEYS[0], v0=jnp.ones((1, 3)))
