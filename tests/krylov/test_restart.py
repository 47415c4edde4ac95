"""Restarted bidiagonalisation: what holds of its triplets whatever it found."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax import krylov
from spectrax.krylov import bidiagonalization

M, N = 30, 24


def matrix_of(seed, values, dtype="float64"):
    rng = np.random.default_rng(seed)

    def q(size):
        draw = rng.normal(size=(size, N)) + (1j * rng.normal(size=(size, N)) if dtype.startswith("complex") else 0)
        return np.linalg.qr(draw)[0]

    return ((q(M) * values) @ q(N).conj().T).astype(dtype)


@functools.partial(jax.jit, static_argnames=("k", "smallest", "subspace_size", "max_steps", "tol", "probe"))
def run(matrix, key, *, k=2, smallest=False, subspace_size=10, max_steps=600, tol=1e-11, probe=True):
    return krylov.singular_triplets(
        lambda v: matrix @ v, lambda u: matrix.conj().T @ u, jax.random.normal(key, (N,), matrix.dtype),
        jax.ShapeDtypeStruct((M,), matrix.dtype), key, k=k, smallest=smallest, subspace_size=subspace_size,
        max_steps=max_steps, tol=tol, round_off=1e-14, probe=probe,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("smallest", [False, True])
def test_triplets(dtype, smallest, x64):
    values = np.linspace(1, 3, N)[::-1]
    matrix = matrix_of(0, values, dtype)
    found = run(jnp.asarray(matrix), jax.random.key(0), smallest=smallest)
    assert_allclose(found.values, values[-2:] if smallest else values[:2], rtol=1e-10)
    assert values[0] * 0.9 <= float(found.largest) <= values[0] * (1 + 1e-13)
    u, v = np.asarray(found.left), np.asarray(found.right)
    assert_allclose(u.conj() @ u.T, np.eye(2), atol=1e-13)
    assert_allclose(v.conj() @ v.T, np.eye(2), atol=1e-13)
    s = np.asarray(found.values)[:, None]
    assert_allclose(v @ matrix.T, s * u, atol=1e-9)
    assert_allclose(u @ matrix.conj(), s * v, atol=1e-9)
    assert bool(found.finite)


@pytest.mark.parametrize("max_steps", [1, 15, 25])
def test_ritz_values_are_on_the_inner_side_from_the_first_step_on(max_steps, x64):
    """Of the largest from below, of the smallest from above: unconverged values are one-sided bounds."""
    values = np.geomspace(1, 1e-3, N)
    for seed in range(5):
        matrix = jnp.asarray(matrix_of(seed, values))
        top = run(matrix, jax.random.key(seed), max_steps=max_steps)
        bottom = run(matrix, jax.random.key(seed), smallest=True, max_steps=max_steps)
        assert (np.asarray(top.values) <= values[:2] * (1 + 1e-13)).all()
        assert (np.asarray(bottom.values) >= values[-2:] * (1 - 1e-10)).all()
        assert int(top.num_steps) <= max_steps + 10


@pytest.mark.parametrize("smallest", [False, True])
def test_the_probe_finds_repeated_values(smallest, x64):
    """A copy of a repeated value comes into the space by the probe alone, unless round-off happens to bring it in."""
    options = {"smallest": smallest, "subspace_size": 14, "tol": 1e-5}
    missed = 0
    for multiplicity in (2, 3):
        values = np.linspace(3, 1, N)
        values[:multiplicity], values[-multiplicity:] = 3.0, 1.0
        for seed in range(8):
            matrix = jnp.asarray(matrix_of(seed, values))
            found = run(matrix, jax.random.key(seed), **options)
            assert_allclose(found.values, [1.0, 1.0] if smallest else [3.0, 3.0], rtol=1e-4)
            bare = run(matrix, jax.random.key(seed), probe=False, **options)
            missed += np.abs(np.asarray(bare.values) - found.values).max() > 1e-2
            assert int(bare.num_steps) <= int(found.num_steps) <= 400  # and the probe comes to an end
    assert missed >= 8  # of 16: the option has an effect


def test_the_factorisation_holds_at_every_step(x64):
    """A V = U B and A^H U = V B^H + coupling next e^T, with orthonormal bases; also after a breakdown."""
    for values in (np.linspace(1, 3, N), np.repeat([2.0, 1.0, 0.0], N // 3)):
        matrix = jnp.asarray(matrix_of(0, values))
        start = jax.random.normal(jax.random.key(0), (N,))
        state = bidiagonalization.init(jax.random.key(1), start, jax.ShapeDtypeStruct((M,), jnp.float64), 12)
        products = functools.partial(jnp.matmul, matrix), functools.partial(jnp.matmul, matrix.T)
        step = jax.jit(functools.partial(bidiagonalization.step, *products))
        for p in range(1, 13):
            state = step(state)
            assert int(state.step) == p
            v, u, b = np.asarray(state.right[:p]).T, np.asarray(state.left[:p]).T, np.asarray(state.projected[:p, :p])
            assert_allclose(v.T @ v, np.eye(p), atol=1e-13)
            assert_allclose(u.T @ u, np.eye(p), atol=1e-13)
            assert_allclose(matrix @ v, u @ b, atol=1e-12)
            rest = np.outer(np.asarray(state.right[p]) * float(state.coupling), np.eye(p)[-1])
            assert_allclose(matrix.T @ u, v @ b.T + rest, atol=1e-12)
            assert_allclose(b, np.triu(b), atol=1e-13)
            assert_allclose(
                np.asarray(state.right[: p + 1]) @ np.asarray(state.right[p]), np.eye(p + 1)[-1], atol=1e-13
            )


def test_the_whole_space(x64):
    values = np.repeat([2.0, 1.0, 0.0], N // 3)
    matrix = jnp.asarray(matrix_of(0, values))
    found = run(matrix, jax.random.key(0), k=N, subspace_size=N)
    assert_allclose(found.values, values, atol=1e-13)
    assert int(found.num_steps) == N


def test_what_is_not_finite_ends_at_once(x64):
    matrix = jnp.asarray(matrix_of(0, np.linspace(1, 3, N))).at[3, 4].set(jnp.nan)
    found = run(matrix, jax.random.key(0))
    assert not bool(found.finite)
    assert int(found.num_steps) <= 2
