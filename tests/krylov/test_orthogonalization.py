"""Gram-Schmidt keeps its identity, and gives a fresh direction where a recurrence breaks down."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.krylov.orthogonalization import direction_seed, orthonormalize, random_rows

DTYPES = ["float32", "complex64", "float64", "complex128"]


def draw(rng, shape, dtype):
    values = rng.normal(size=shape)
    if dtype.startswith("complex"):
        values = values + 1j * rng.normal(size=shape)
    return values.astype(dtype)


def basis_of(rng, count, size, dtype):
    """`count` orthonormal rows and two that are not in use yet."""
    q, _ = np.linalg.qr(draw(rng, (size, count), dtype))
    return jnp.asarray(np.concatenate([q.T, np.zeros((2, size), dtype)]))


class One(NamedTuple):
    coefficients: jax.Array
    length: jax.Array
    direction: jax.Array


def run_block(basis, block, *, scale=0.0, number=0):
    seed = direction_seed(jax.random.key(3))
    real = jnp.finfo(block.dtype).dtype
    return orthonormalize(basis, block, seed, jnp.int32(number), jnp.asarray(scale, real))


def run(basis, w, **options):
    """A block of one vector."""
    found = run_block(basis, w[None], **options)
    assert bool(found.replaced[0]) == (float(jnp.abs(found.factor[0, 0])) == 0)
    return One(found.coefficients[:, 0], found.factor[0, 0].real, found.rows[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_identity_holds(dtype, x64):
    rng = np.random.default_rng(0)
    basis, w = basis_of(rng, 5, 12, dtype), jnp.asarray(draw(rng, (12,), dtype))
    found = run(basis, w)
    eps = float(jnp.finfo(dtype).eps)
    size = float(jnp.linalg.norm(w))
    again = basis.T @ found.coefficients + found.length.astype(dtype) * found.direction
    assert_allclose(again, w, atol=20 * eps * size)
    assert_allclose(jnp.abs(basis.conj() @ found.direction), np.zeros(7), atol=4 * eps)
    assert_allclose(jnp.linalg.norm(found.direction), 1.0, atol=4 * eps)
    assert found.coefficients.dtype == dtype
    assert found.direction.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_passes_are_needed_and_enough_where_most_cancels(dtype, x64):
    rng = np.random.default_rng(0)
    basis = basis_of(rng, 5, 12, dtype)
    eps = float(jnp.finfo(dtype).eps)
    # what is left is 1e3 eps of what was there: one pass leaves an error of 1e-3 in the direction
    w = basis[:5].T @ jnp.asarray(draw(rng, (5,), dtype)) + 1e3 * eps * jnp.asarray(draw(rng, (12,), dtype))
    rows = np.asarray(basis)
    once = np.asarray(w) - rows.T @ (rows.conj() @ np.asarray(w))
    assert np.abs(rows.conj() @ once).max() / np.linalg.norm(once) > 20 * eps
    found = run(basis, w)
    assert float(jnp.abs(basis.conj() @ found.direction).max()) <= 4 * eps
    assert_allclose(jnp.linalg.norm(found.direction), 1.0, atol=4 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_breakdown_gives_a_fresh_direction(dtype, x64):
    rng = np.random.default_rng(0)
    basis = basis_of(rng, 5, 12, dtype)
    eps = float(jnp.finfo(dtype).eps)
    w = basis[:5].T @ jnp.asarray(draw(rng, (5,), dtype))
    directions = []
    for number in (0, 1):
        found = run(basis, w, scale=1.0, number=number)
        assert float(found.length) == 0.0
        assert_allclose(basis.T @ found.coefficients, w, atol=20 * eps)
        assert_allclose(jnp.abs(basis.conj() @ found.direction), np.zeros(7), atol=4 * eps)
        assert_allclose(jnp.linalg.norm(found.direction), 1.0, atol=4 * eps)
        directions.append(found.direction)
    assert abs(float(jnp.abs(jnp.vdot(*directions)))) < 0.999


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_basis_that_almost_fills_the_space(dtype, x64):
    """Nearly all of a random vector lies in the span: a single projection would leave round-off alone."""
    rng = np.random.default_rng(0)
    eps = float(jnp.finfo(dtype).eps)
    basis = basis_of(rng, 39, 40, dtype)
    found = run(basis, jnp.zeros(40, dtype))
    assert_allclose(jnp.abs(basis.conj() @ found.direction), np.zeros(41), atol=10 * eps)
    assert_allclose(jnp.linalg.norm(found.direction), 1.0, atol=4 * eps)


def test_a_full_space_has_no_direction_left(x64):
    basis = basis_of(np.random.default_rng(0), 12, 12, "float64")
    found = run(basis, jnp.ones(12), scale=1.0)
    assert float(found.length) == 0.0
    assert_allclose(found.direction, np.zeros(12))


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks(dtype, x64):
    """The identity, and orthogonality, for vectors that are independent, nearly dependent, in the span, and zero."""
    rng = np.random.default_rng(0)
    basis, eps = basis_of(rng, 5, 24, dtype), float(jnp.finfo(dtype).eps)
    free = draw(rng, (2, 24), dtype)
    inside = np.asarray(basis[:5]).T @ draw(rng, (5,), dtype)
    near = free[0] + 1e3 * eps * draw(rng, (24,), dtype)
    block = jnp.asarray(np.stack([free[0], near, inside, np.zeros(24, dtype), free[1]]))
    found = run_block(basis, block)
    size = float(jnp.linalg.norm(block))
    again = found.coefficients.T @ basis + found.factor.T @ found.rows
    assert_allclose(again, block, atol=40 * eps * size)
    assert_allclose(found.factor, np.triu(found.factor), atol=0)
    rows = jnp.concatenate([basis[:5], found.rows])
    assert_allclose(rows.conj() @ rows.T, np.eye(10), atol=10 * eps)
    assert found.replaced.tolist() == [False, False, True, True, False]
    assert_allclose(np.diag(found.factor)[np.array([2, 3])], 0, atol=0)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_neither_overflow_nor_vanish(size):
    rng = np.random.default_rng(0)
    basis, w = basis_of(rng, 5, 12, "float32"), jnp.asarray(draw(rng, (12,), "float32"))
    plain, scaled = run(basis, w), run(basis, jnp.float32(size) * w)
    assert_allclose(scaled.length / size, plain.length, rtol=1e-5)
    assert_allclose(scaled.direction, plain.direction, atol=1e-6)


def test_pytrees_are_one_space(x64):
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(7, 3)))
    w = rng.normal(size=7)

    def split(rows):
        return {"a": jnp.asarray(rows[..., :4]).reshape(*rows.shape[:-1], 2, 2), "b": jnp.asarray(rows[..., 4:])}

    seed = direction_seed(jax.random.key(3))
    found = orthonormalize(split(q.T), split(w[None]), seed, jnp.int32(0), jnp.float64(0))
    assert_allclose(found.coefficients[:, 0], q.T @ w, atol=1e-14)
    assert_allclose(found.factor[0, 0], np.linalg.norm(w - q @ (q.T @ w)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_rows_are_random(dtype, x64):
    """Mean zero, variance a third, and uncorrelated between entries, leaves, numbers and seeds."""
    like = {"a": jnp.zeros((3, 40, 100), dtype), "b": jnp.zeros((3, 1000), dtype)}
    drawn = []
    for seed, number in ((5, 0), (5, 3), (6, 0)):
        leaves = jax.tree.leaves(random_rows(jnp.uint32(seed), jnp.int32(number), like))
        drawn.append(np.concatenate([np.asarray(leaf).reshape(3, -1) for leaf in leaves], axis=1))
    rows = np.concatenate(drawn)
    if np.iscomplexobj(rows):
        rows = np.concatenate([rows.real, rows.imag])
    count = rows.shape[1]
    assert (np.abs(rows) <= 1).all()
    assert_allclose(rows.mean(1), 0, atol=5 * (1 / 3 / count) ** 0.5)
    assert_allclose(rows @ rows.T / count, np.eye(len(rows)) / 3, atol=5 / 3 / count**0.5)
    for shift in (1, 2, 40, 100, 4000):
        assert_allclose((rows[:, shift:] * rows[:, :-shift]).mean(1), 0, atol=5 / 3 / (count - shift) ** 0.5)
