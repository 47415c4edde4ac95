"""Products of layers with skips against values computed in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.theory import perturbation

NAMES = ["A10 values", "A10", "A10 equal", "A10 deviation", "combined"]


def instances(depth, n, seed=0, count=64):
    rng = np.random.default_rng(seed)
    factors = rng.choice([0.1, 0.2, 0.6], (count, 1, 1, 1)) * rng.normal(size=(count, depth, n, n)) / np.sqrt(n)
    factors[0] = 0
    rhos = rng.choice([1.0, 1.0, -1.0, 0.7, 0.0, 2.0], count)
    slopes = np.where(rng.random((count, n)) < 0.5, 1.0, rng.choice([0.1, -0.5, 0.0], (count, 1)))
    return factors, rhos, slopes


def multiply(factors, rho):
    return functools.reduce(lambda total, A: (A + rho * np.eye(len(A))) @ total, factors, np.eye(len(factors[0])))


def kappa(M):
    s = np.linalg.svd(M, compute_uv=False)
    return s[0] / s[-1] if s[-1] > 1e-15 * s[0] else np.inf


@pytest.mark.parametrize(("depth", "n"), [(1, 1), (2, 4), (5, 6)])
def test_every_row_is_its_formula_and_holds(depth, n, x64):
    factors, rhos, slopes = instances(depth, n)
    call = jax.jit(jax.vmap(lambda A, rho, d: perturbation.product_bounds(A, rho, slopes=d)))
    rows = call(factors, rhos, slopes)
    assert [row.name for row in rows] == NAMES
    applied = np.zeros(5, int)
    for index, (A, rho, d) in enumerate(zip(factors, rhos, slopes, strict=True)):
        M, size = multiply(A, rho), abs(rho)
        deltas = np.linalg.norm(A, 2, axis=(1, 2))
        below, least = deltas.max() < size - 1e-9, np.abs(d).min()
        with np.errstate(all="ignore"):
            limit = np.prod((size + deltas) / (size - deltas))
            expected = [
                (True, np.prod(np.maximum(size - deltas, 0)), np.prod(size + deltas)),
                (below, 1, limit),
                (below, 1, np.exp(2 * depth * np.arctanh(deltas.max() / size))),
                (True, 0, np.prod(size + deltas) - size**depth),
                (below and least > 0, 1, limit * np.abs(d).max() / least),
            ]
        actual = [
            np.linalg.svd(M, compute_uv=False), kappa(M), kappa(M),
            np.linalg.norm(M - rho**depth * np.eye(n), 2), kappa(M * d),
        ]  # fmt: skip
        for place, (row, (applies, lower, upper), true) in enumerate(zip(rows, expected, actual, strict=True)):
            case = f"{row.name}, instance {index}"
            assert bool(row.applies[index]) == bool(applies), case
            assert np.all(row.holds[index]), case
            if not applies:
                assert np.all(row.upper[index] == np.inf), case
                continue
            applied[place] += 1
            assert_allclose(row.actual[index], true, rtol=1e-9, atol=1e-13, err_msg=case)
            assert_allclose(row.lower[index], np.broadcast_to(lower, np.shape(true)), rtol=1e-9, atol=1e-13)
            assert_allclose(row.upper[index], np.broadcast_to(upper, np.shape(true)), rtol=1e-9, atol=1e-13)
            assert np.all(row.round_off[index] <= 1e-9 * (1 + np.max(upper))), case
            assert np.all(true <= upper + 1e-12 * (1 + np.max(upper))), case
            assert np.all(true >= lower - 1e-12), case
    assert applied.min() >= 10


def test_a_product_that_is_not_covered(x64):
    """norm(A) = |rho|: the factor is singular, and no bound on kappa is claimed."""
    rows = {row.name: row for row in perturbation.product_bounds([-jnp.eye(2)], 1.0, slopes=jnp.array([1.0, 0.5]))}
    for name in ("A10", "A10 equal", "combined"):
        assert not bool(rows[name].applies)
        assert float(rows[name].actual) == np.inf
    assert bool(rows["A10 values"].applies)
    no_rho = perturbation.product_bounds([jnp.eye(2)], 0.0)
    assert [bool(row.applies) for row in no_rho] == [True, False, False, True]
    dead = perturbation.product_bounds([0.1 * jnp.eye(2)], 1.0, slopes=jnp.array([1.0, 0.0]))
    assert [bool(row.applies) for row in dead] == [True, True, True, True, False]
    bad = perturbation.product_bounds(jnp.full((2, 2, 2), jnp.nan), 1.0)
    assert not any(bool(row.applies) or np.any(row.holds) for row in bad)


def test_derivatives_of_products_against_central_differences(x64):
    factors, _, _ = instances(3, 4, seed=5, count=50)
    rhos = np.random.default_rng(1).uniform(0.5, 1.5, 50)
    found = jax.vmap(perturbation.product_derivatives)(factors, rhos)
    step, checked = 1e-5, 0
    for index in range(1, 50):
        s, above, below = (
            np.linalg.svd(multiply(factors[index], rhos[index] + h), compute_uv=False) for h in (0, step, -step)
        )
        assert_allclose(found.values[index], s, rtol=1e-12)
        if np.diff(s).max() < -1e-2:
            checked += 1
            assert_allclose(found.first[index], (above - below) / (2 * step), rtol=1e-5, atol=1e-6)
    assert checked >= 20
    assert np.isnan(found.first[0]).all()  # zero factors: all values are repeated
    assert found.second is None


def test_single_precision():
    factors, rhos, slopes = (x.astype(np.float32) for x in instances(4, 5, seed=2))
    rows = jax.jit(jax.vmap(lambda A, rho, d: perturbation.product_bounds(A, rho, slopes=d)))(factors, rhos, slopes)
    for row in rows:
        assert row.upper.dtype == jnp.float32
        assert bool(jnp.all(row.holds)), row.name


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_products_that_leave_the_range_of_single_precision(scale):
    """Condition numbers and slopes don't depend on the unit."""
    rotations = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 4, 4)))[0]
    factors, rho = np.float32(scale) * (0.2 * rotations).astype(np.float32), 1.5 * scale
    rows = {row.name: row for row in perturbation.product_bounds(factors, rho)}
    assert_allclose(rows["A10"].actual, kappa(multiply(factors.astype(np.float64), rho)), rtol=1e-4)
    assert bool(rows["A10"].applies)
    assert_allclose(rows["A10"].upper, (1.7 / 1.3) ** 3, rtol=1e-4)
    for row in rows.values():
        assert not np.isnan(row.lower).any()
    two = perturbation.product_derivatives(scale * jnp.array([[[1.0, 0.0], [0.0, 0.0]]] * 2), 0.5 * scale)
    assert_allclose(two.first, np.array([3.0, 1.0]) * scale, rtol=1e-5)


def test_arguments():
    for function in (perturbation.product_bounds, perturbation.product_derivatives):
        with pytest.raises(ValueError, match="factors must hold at least one matrix"):
            function([], 1.0)
        with pytest.raises(ValueError, match="factors must have one shape"):
            function([jnp.eye(2), jnp.eye(3)], 1.0)
    with pytest.raises(TypeError, match="each factor must have a real floating-point dtype"):
        perturbation.product_bounds([jnp.eye(2, dtype=jnp.int32)], 1.0)
    with pytest.raises(ValueError, match=r"slopes must have shape \(2,\), got \(3,\)"):
        perturbation.product_bounds([jnp.eye(2)], 1.0, slopes=jnp.ones(3))
