"""MINRES against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.krylov import minres

SIZE = 12


def hermitian(rng, eigenvalues, dtype):
    draw = rng.normal(size=(SIZE, SIZE)) + (1j * rng.normal(size=(SIZE, SIZE)) if dtype.startswith("complex") else 0)
    q = np.linalg.qr(draw)[0]
    return ((q * eigenvalues) @ q.conj().T).astype(dtype), q


SPECTRA = {
    "positive": np.linspace(1, 10, SIZE),
    "indefinite": np.concatenate([np.linspace(-5, -1, SIZE // 2), np.linspace(2, 9, SIZE - SIZE // 2)]),
    "symmetric": np.concatenate([-np.arange(1.0, SIZE // 2 + 1), np.arange(1.0, SIZE // 2 + 1)]),
    "two values": np.repeat([-1.0, 2.0], SIZE // 2),
    "identity": np.ones(SIZE),
}


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_against_numpy(spectrum, dtype, x64):
    rng = np.random.default_rng(0)
    matrix, _ = hermitian(rng, SPECTRA[spectrum], dtype)
    b = rng.normal(size=SIZE).astype(dtype)
    solve = jax.jit(lambda m, b: minres(lambda v: m @ v, b, tol=1e-12, max_steps=100))
    x, residual = solve(jnp.asarray(matrix), jnp.asarray(b))
    assert_allclose(x, np.linalg.solve(matrix, b), atol=1e-10)
    assert float(residual) <= 1e-11
    assert_allclose(residual, np.linalg.norm(b - matrix @ np.asarray(x)) / np.linalg.norm(b), atol=1e-14)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_singular_and_consistent_systems_have_the_solution_of_least_norm(dtype, x64):
    rng = np.random.default_rng(0)
    matrix, _ = hermitian(rng, np.concatenate([[0.0, 0.0, 0.0], np.linspace(-2, 5, SIZE - 3)]), dtype)
    b = matrix @ rng.normal(size=SIZE).astype(dtype)
    x, residual = minres(lambda v: jnp.asarray(matrix) @ v, jnp.asarray(b), tol=1e-11, max_steps=200)
    assert float(residual) <= 1e-10
    assert_allclose(x, np.linalg.pinv(matrix, rcond=1e-10, hermitian=True) @ b, atol=1e-8)


def test_a_zero_right_side(x64):
    x, residual = minres(lambda v: 2 * v, jnp.zeros(3), tol=1e-10, max_steps=10)
    assert_allclose(x, np.zeros(3))
    assert float(residual) == 0.0


def test_giving_up_is_told_by_the_residual(x64):
    matrix, _ = hermitian(np.random.default_rng(0), np.logspace(0, 6, SIZE), "float64")
    _, residual = minres(lambda v: jnp.asarray(matrix) @ v, jnp.ones(SIZE), tol=1e-12, max_steps=3)
    assert float(residual) > 1e-3


def test_inconsistent_systems_are_told_by_the_residual(x64):
    diagonal = jnp.array([1.0, 2.0, 0.0])
    _, residual = minres(lambda v: diagonal * v, jnp.ones(3), tol=1e-12, max_steps=20)
    assert float(residual) >= (1 - 1e-12) / np.sqrt(3)  # that of the least-squares solution, which no vector undercuts


def test_pytrees(x64):
    x, residual = minres(
        lambda v: (2 * v[0] + v[1], v[0] - v[1]), (jnp.array([1.0]), jnp.array([0.0])), tol=1e-12, max_steps=10
    )
    assert_allclose([x[0][0], x[1][0]], [1 / 3, 1 / 3], rtol=1e-10)
    assert float(residual) <= 1e-11


def test_counts_its_products(x64):
    counts = []

    def counted(v):
        jax.debug.callback(lambda: counts.append(1))
        return jnp.array([1.0, 2.0, 3.0]) * v

    minres(counted, jnp.ones(3), tol=1e-10, max_steps=50)
    jax.effects_barrier()
    assert len(counts) == 4  # one for each distinct eigenvalue, and one for the residual
