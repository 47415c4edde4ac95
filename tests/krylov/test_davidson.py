"""Two-sided Davidson: right or flagged at any condition number, with any preconditioner, from any start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax.linalg import triangular_solve
from numpy.testing import assert_allclose

from spectrax import krylov, testing

SHAPE = (48, 40)


def floor(dtype, share=1.0):
    return share * (8 + 2 * SHAPE[0] ** 0.5) * float(jnp.finfo(dtype).eps)


@functools.partial(jax.jit, static_argnames=("k", "kind", "max_steps", "subspace_size", "probe"))
def solve(matrix, near, start, key, *, k=1, kind="factor", max_steps=300, subspace_size=20, probe=True):
    """Solve with the factor of a nearby matrix as preconditioner, or with something worse."""
    factor = jnp.linalg.qr(near, mode="r")

    def inverse(r):
        y = triangular_solve(factor, r[:, None], left_side=True, transpose_a=True, conjugate_a=True)
        return triangular_solve(factor, y, left_side=True)[:, 0]

    signs = jnp.asarray(np.resize([1, 2, -1, -3], matrix.shape[1]), matrix.dtype)
    precondition = {
        "factor": inverse,
        "none": None,
        "indefinite": lambda r: signs * r,
        "zero": jnp.zeros_like,
        "nan": lambda r: r * jnp.nan,
    }[kind]
    tol = 1e-10 if matrix.dtype != jnp.float32 else 1e-6
    found = krylov.smallest_triplets(
        krylov.Task(k, "smallest", subspace_size, max_steps, tol, floor(matrix.dtype, 0.5), probe),
        lambda v: jnp.matmul(matrix, v, precision="highest"),
        lambda u: jnp.matmul(u.conj(), matrix, precision="highest").conj(),
        precondition, start, jax.ShapeDtypeStruct(matrix.shape[:1], matrix.dtype), key,
    )  # fmt: skip
    s = found.values[:, None].astype(matrix.dtype)
    forward = jnp.matmul(found.right, matrix.T, precision="highest") - s * found.left
    backward = jnp.matmul(found.left, matrix.conj(), precision="highest") - s * found.right
    residuals = jnp.hypot(jnp.linalg.norm(forward, axis=1), jnp.linalg.norm(backward, axis=1))
    return found, residuals


def problem(values, dtype, seed=0):
    matrix = testing.with_singular_values(jax.random.key(seed), values, SHAPE, dtype).to_dense()
    noise = jax.random.normal(jax.random.key(50 + seed), SHAPE, matrix.dtype)
    near = matrix + jnp.asarray(values[-1] / 50, matrix.dtype) * noise
    return matrix, near, jax.random.normal(jax.random.key(90 + seed), (1, SHAPE[1]), matrix.dtype)


def check(found, residuals, values, max_steps=300):
    """A claim must be true; no claim still gives upper bounds."""
    k, claimed = found.values.shape[0], bool(found.num_steps < max_steps)
    wanted = np.asarray(values)[-k:]
    # the same margin as that of `assert_singular_values`: the matrix itself is known to round-off only
    margin = 3 * floor(found.values.dtype)
    assert (np.asarray(found.values) >= wanted - np.asarray(residuals) - margin).all()
    if claimed:
        assert_allclose(found.values, wanted, atol=margin + float(np.max(residuals)))
    return claimed


@pytest.mark.parametrize(("dtype", "exponents"), [
    ("float64", (1, 2, 4, 6, 8, 10)), ("complex128", (1, 5)), ("float32", (1, 2, 3, 4, 6)),
])  # fmt: skip
def test_with_the_factor_of_a_nearby_matrix(dtype, exponents, x64):
    for exponent in exponents:
        values = np.geomspace(1, 10.0**-exponent, SHAPE[1])
        for k in (1, 3):
            found, residuals = solve(*problem(values, dtype), jax.random.key(1), k=k)
            claimed = check(found, residuals, values)
            assert claimed or exponent > (4 if dtype != "float32" else 3)
            defect = found.right.conj() @ found.right.T - jnp.eye(k, dtype=dtype)
            assert float(jnp.abs(defect).max()) < 200 * jnp.finfo(dtype).eps


@pytest.mark.parametrize("kind", ["none", "indefinite", "zero", "nan"])
def test_a_bad_preconditioner_costs_steps_and_no_truth(kind, x64):
    for exponent, expected in ((0.3, kind != "indefinite"), (6, False)):
        values = np.geomspace(1, 10.0**-exponent, SHAPE[1])
        found, residuals = solve(*problem(values, "float64"), jax.random.key(1), kind=kind)
        assert check(found, residuals, values) == expected


def test_starts_that_avoid_the_minimum(x64):
    """Exact singular vectors of other values, whose residuals are zero."""
    values = np.r_[np.linspace(2, 1, SHAPE[1] - 1), 0.1]
    matrix, near, _ = problem(values, "float64")
    v = jnp.linalg.svd(matrix, full_matrices=False)[2]
    for kind in ("factor", "none"):
        for row in (-2, -3, 0):
            for seed in range(3):
                found, residuals = solve(matrix, near, v[row][None], jax.random.key(seed), kind=kind)
                assert check(found, residuals, values)
                assert_allclose(found.values, [0.1], rtol=1e-9)


def test_the_challenge_finds_what_a_deficient_start_missed(x64):
    """With a preconditioner that is blind to the minimum, random vectors are what brings it up."""
    n = 40
    d = jnp.asarray(np.r_[np.linspace(2, 1, n - 1), 0.1])
    blind = (1 / d**2).at[-1].set(1e-9)

    @functools.partial(jax.jit, static_argnums=1)
    def values(key, probe):
        return krylov.smallest_triplets(
            krylov.Task(1, "smallest", 20, 400, 1e-6, 1e-14, probe),
            lambda v: d * v, lambda u: d * u, lambda r: blind * r, jnp.eye(n)[-3:-1],
            jax.ShapeDtypeStruct((n,), d.dtype), key,
        ).values  # fmt: skip

    keys = jax.random.split(jax.random.key(0), 20)
    assert_allclose(jax.vmap(lambda key: values(key, True))(keys), np.full((20, 1), 0.1), rtol=1e-6)
    assert (jax.vmap(lambda key: values(key, False))(keys) > 0.5).all()


@pytest.mark.parametrize("multiplicity", [2, 3, 6])
def test_repeated_smallest_values(multiplicity, x64):
    values = np.r_[np.linspace(2, 1, SHAPE[1] - multiplicity), np.full(multiplicity, 0.5)]
    for seed in range(4):
        found, residuals = solve(*problem(values, "float64", seed), jax.random.key(seed), k=3)
        assert check(found, residuals, values)


def test_singular_and_zero_matrices(x64):
    values = np.r_[np.linspace(2, 1, SHAPE[1] - 2), 0, 0]
    matrix, _, start = problem(values, "float64")
    found, residuals = solve(matrix, matrix + 1e-3 * jnp.eye(*SHAPE), start, jax.random.key(0), k=3)
    assert check(found, residuals, values)
    zero = jnp.zeros(SHAPE)
    found, residuals = solve(zero, jnp.eye(*SHAPE), start, jax.random.key(0), k=3, subspace_size=40)
    assert_allclose(found.values, np.zeros(3), atol=1e-15)
    assert_allclose(found.left @ found.left.T, np.eye(3), atol=1e-13)


def test_a_basis_of_the_whole_space_ends_in_as_many_steps(x64):
    values = np.geomspace(1, 1e-8, SHAPE[1])
    found, residuals = solve(*problem(values, "float64"), jax.random.key(0), k=2, kind="none", subspace_size=40)
    assert check(found, residuals, values)
    assert int(found.num_steps) <= SHAPE[1] + 4


def test_what_is_not_finite_ends_at_once():
    matrix, near, start = problem(np.linspace(2, 1, SHAPE[1]), "float32")
    for bad in (np.nan, np.inf):
        found, _ = solve(matrix.at[3, 4].set(bad), near, start, jax.random.key(0))
        assert not bool(found.finite)
        assert int(found.num_steps) < 20
    found, _ = solve(matrix, near, start * jnp.nan, jax.random.key(0))
    assert not bool(found.finite)


def test_a_batch_has_the_results_of_its_members(x64):
    each = [problem(np.geomspace(1, 10.0**-e, SHAPE[1]), "float64", e) for e in (1, 3, 5)]
    stacked = [jnp.stack(parts) for parts in zip(*each, strict=True)]
    batch, _ = jax.vmap(lambda *args: solve(*args, jax.random.key(0)))(*stacked)
    for i, args in enumerate(each):
        alone, _ = solve(*args, jax.random.key(0))
        assert_allclose(batch.values[i], alone.values, rtol=1e-8)
    assert len(set(np.asarray(batch.num_steps).tolist())) > 1  # members that have ended wait for the others


def test_the_vector_of_the_step_before_saves_steps(x64, monkeypatch):
    """The +k of GD+k: without it a restart throws away what a conjugate direction needs."""
    import sys

    module = sys.modules["spectrax.krylov.davidson"]
    values = np.linspace(2, 0.5, SHAPE[1])
    steps = []
    shrink = module.restart
    for keep in (True, False):
        if not keep:

            def forgetful(state, *, k):  # the second smallest Ritz vector is kept in any case
                return shrink(state._replace(previous=state.ritz), k=k)

            monkeypatch.setattr(module, "restart", forgetful)
        jax.clear_caches()
        total = 0
        for seed in range(3):
            found, residuals = solve(*problem(values, "float64", seed), jax.random.key(seed), kind="none",
                                     subspace_size=8, max_steps=1500)  # fmt: skip
            assert check(found, residuals, values, 1500)
            total += int(found.num_steps)
        steps.append(total)
    assert steps[0] < 0.9 * steps[1]
