"""Left rows that go without orthogonalisation while the recurrence keeps them orthogonal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax import krylov
from spectrax.krylov import bidiagonalization, factorization
from spectrax.krylov.task import Task

M, N, STEPS = 60, 40, 24
EPS = np.finfo(np.float64).eps


def matrix_of(values, seed=0):
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(size, N)))[0] for size in (M, N))
    return jnp.asarray((u * values) @ v.T)


def steps_of(matrix, adjoint, one_sided):
    start = jax.random.normal(jax.random.key(0), (1, N))
    state = factorization.init(jax.random.key(1), start, jax.ShapeDtypeStruct((M,), matrix.dtype), STEPS)
    products = (lambda rows: rows @ matrix.T), (lambda rows: rows @ adjoint)
    step = jax.jit(functools.partial(bidiagonalization.step, *products, one_sided=one_sided))
    passed = []
    for _ in range(STEPS):
        state = step(state)
        column = np.asarray(state.projected[:, int(state.size) - 1])
        passed.append(bool(np.any(column[: int(state.size) - 2])))  # what a pass took away, as round-off at least
    left = np.asarray(state.left)
    return state, passed, np.abs(left @ left.T - np.eye(STEPS)).max()


@pytest.mark.parametrize("spectrum", ["flat", "graded", "clustered"])
def test_they_are_orthogonal_all_the_same(spectrum, x64):
    values = {
        "flat": np.linspace(2, 1, N),
        "graded": np.geomspace(1, 1e-9, N),
        "clustered": np.r_[2 + 1e-6 * np.arange(10), np.linspace(1, 0.5, N - 10)],
    }[spectrum]
    matrix = matrix_of(values)
    state, passed, defect = steps_of(matrix, matrix, one_sided=True)
    every, all_passed, _ = steps_of(matrix, matrix, one_sided=False)
    assert all(all_passed[3:])
    assert sum(passed) <= STEPS / 2 if spectrum != "graded" else sum(passed) >= 3  # few are needed, or many
    assert defect <= 64 * EPS
    b, whole = np.asarray(state.projected), np.asarray(every.projected)
    assert_allclose(np.linalg.svd(b)[1][:5], np.linalg.svd(whole)[1][:5], rtol=1e-13)
    assert_allclose(matrix @ state.right[:STEPS].T, np.asarray(state.left).T @ b, atol=1e-13)


def test_a_recurrence_whose_adjoint_is_off_is_not_relied_on(x64):
    """A^H that is off by 1e-9 leaves left rows orthogonal to no better than that, unless they are made so."""
    matrix = matrix_of(np.linspace(2, 1, N))
    adjoint = matrix + 1e-9 * jnp.asarray(np.random.default_rng(1).normal(size=(M, N)))
    state, passed, defect = steps_of(matrix, adjoint, one_sided=True)
    assert float(state.mismatch) > 1e-11
    assert all(passed[3:])
    assert defect <= 64 * EPS


@pytest.mark.parametrize("probe", [False, True])
def test_restarts_and_challenges(probe, x64):
    """The first row after a restart is orthogonalised, and all those of a challenge and after one."""
    values = np.r_[[3.0, 3.0, 3.0], np.geomspace(2, 1e-3, N - 3)]
    matrix = matrix_of(values)
    for seed in range(5):
        found = krylov.singular_triplets(
            Task(4, "largest", 12, 4000, 1e-8, 1e-14, probe, one_sided=True),
            lambda rows: rows @ matrix.T, lambda rows: rows @ matrix,
            jax.random.normal(jax.random.key(seed), (1, N)), jax.ShapeDtypeStruct((M,), matrix.dtype),
            jax.random.key(seed),
        )  # fmt: skip
        u, v = np.asarray(found.left), np.asarray(found.right)
        assert_allclose(u @ u.T, np.eye(4), atol=1e-12)
        assert_allclose(v @ v.T, np.eye(4), atol=1e-12)
        assert_allclose(v @ matrix.T, np.asarray(found.values)[:, None] * u, atol=1e-11)
        assert_allclose(u @ matrix, np.asarray(found.values)[:, None] * v, atol=1e-7)
        if probe:
            assert_allclose(found.values, [3.0, 3.0, 3.0, values[3]], rtol=1e-9)
