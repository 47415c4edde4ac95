"""Gauss quadrature by Krylov factorisations: exact moments, exact bounds of masses, and what ends early."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax import vectors
from spectrax.krylov import quadrature


def products(matrix, *, hermitian):
    matvec = vectors.stacked(lambda v: jnp.matmul(matrix, v, precision="highest"))
    rmatvec = vectors.stacked(lambda u: jnp.matmul(matrix.conj().T, u, precision="highest"))
    return (matvec, None) if hermitian else (matvec, rmatvec)


@functools.partial(jax.jit, static_argnames=("steps", "hermitian"))
def jacobi(matrix, start, *, steps, hermitian):
    left = None if hermitian else jax.ShapeDtypeStruct(matrix.shape[:1], matrix.dtype)
    state = quadrature.init(jax.random.key(0), start, left, steps)
    return quadrature.finalize(quadrature.run(*products(matrix, hermitian=hermitian), state))


@functools.partial(jax.jit, static_argnames="hermitian")
def rule(matrix, *, hermitian):
    nodes, weights = quadrature.gauss(matrix)
    return (nodes, weights) if hermitian else quadrature.folded(nodes, weights, matrix.size)


@jax.jit
def masses(matrix, points):
    gauss = quadrature.gauss(matrix)
    return jax.lax.map(lambda t: quadrature.masses(matrix, gauss, t, 1e-12), points)


def hermitian_matrix(values, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    n = len(values)
    entries = rng.normal(size=(n, n)) + (1j * rng.normal(size=(n, n)) if dtype == "complex128" else 0)
    q, _ = np.linalg.qr(entries)
    matrix = (q * values) @ q.conj().T
    return (matrix + matrix.conj().T) / 2, q


def vector(n, seed=1, dtype="float64"):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n) + (1j * rng.normal(size=n) if dtype == "complex128" else 0)
    return z / np.linalg.norm(z)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_moments_are_exact_to_twice_the_steps(dtype, x64):
    matrix, _ = hermitian_matrix(np.linspace(-1, 2, 20), dtype=dtype)
    z, steps = vector(20, dtype=dtype), 5
    nodes, weights = rule(jacobi(matrix, z, steps=steps, hermitian=True), hermitian=True)
    image = z
    for degree in range(2 * steps + 1):
        got, expected = np.sum(weights * nodes**degree), (z.conj() @ image).real
        if degree < 2 * steps:
            assert_allclose(got, expected, rtol=1e-12, atol=1e-13)
        else:
            assert abs(got - expected) > 1e-6
        image = matrix @ image


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_moments_of_singular_values(dtype, x64):
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(12, 9)) + (1j * rng.normal(size=(12, 9)) if dtype == "complex128" else 0)
    z, steps = vector(9, dtype=dtype), 4
    nodes, weights = rule(jacobi(matrix, z, steps=steps, hermitian=False), hermitian=False)
    assert (np.diff(nodes) > 0).all()
    assert nodes[0] > 0
    gram, image = matrix.conj().T @ matrix, z
    for degree in range(2 * steps):
        assert_allclose(np.sum(weights * nodes ** (2 * degree)), (z.conj() @ image).real, rtol=1e-11)
        image = gram @ image


@pytest.mark.parametrize("hermitian", [True, False])
def test_masses_bound_the_measure_everywhere_and_tightly(hermitian, x64):
    """At points between values, at Gauss nodes, in a gap, and outside."""
    values = np.r_[np.linspace(0.1, 1, 12), np.linspace(2, 3, 12)]
    matrix, q = hermitian_matrix(values)
    z, steps = vector(24), 7
    share = np.abs(q.T @ z) ** 2
    found = jacobi(matrix, z, steps=steps, hermitian=hermitian)
    nodes, _ = rule(found, hermitian=hermitian)
    points = np.r_[np.linspace(0.02, 3.5, 60), nodes, np.nextafter(nodes, 4), -np.inf, np.inf]
    below, up_to = (np.asarray(bound) for bound in masses(found, points))
    if not hermitian:
        below, up_to = 2 * below - 1, 2 * up_to - 1
    true = np.array([share[values < t].sum() for t in points])
    finite = np.isfinite(points)
    assert (below[finite] <= true[finite] + 1e-10).all()
    assert (up_to[finite] >= true[finite] - 1e-10).all()
    assert_allclose(below[~finite], [-1.0 if not hermitian else 0.0, 1.0])
    assert_allclose(up_to[~finite], [-1.0 if not hermitian else 0.0, 1.0])
    # sharp: between them lies the Christoffel function, the largest mass that one point can have
    width = (up_to - below)[:60] / (1 if hermitian else 2)
    assert_allclose(width, [christoffel(found, t) for t in points[:60]], rtol=1e-6, atol=1e-10)
    assert width[(points[:60] > 1.3) & (points[:60] < 1.7)].max() < 0.02


def christoffel(matrix, t):
    """1 / sum p_j(t)^2 over the orthonormal polynomials up to degree m, by their recurrence."""
    diagonal, off_diagonal = np.asarray(matrix.diagonal), np.asarray(matrix.off_diagonal)
    polynomials = [0.0, 1.0]
    for j, (a, b) in enumerate(zip(diagonal, off_diagonal, strict=True)):
        before = off_diagonal[j - 1] if j else 0.0
        polynomials.append(((t - a) * polynomials[-1] - before * polynomials[-2]) / b)
    return 1 / np.sum(np.square(polynomials))


def test_masses_at_a_node_of_the_gauss_quadrature(x64):
    """Where the node at the point would need an entry beyond all others: Gauss's own bounds, one weight wider."""
    matrix, _ = hermitian_matrix(np.linspace(-1, 1, 30))
    found = jacobi(matrix, vector(30), steps=6, hermitian=True)
    nodes, weights = quadrature.gauss(found)
    total = np.r_[0, np.cumsum(weights), 1]
    below, up_to = masses(found, nodes + 1e-3)
    assert_allclose(below, total[:6], atol=2e-2)
    assert_allclose(up_to, total[1:7], atol=2e-2)
    below, up_to = masses(found, nodes + 1e-9)
    assert_allclose(below, total[:6], atol=1e-12)
    assert_allclose(up_to, total[2:], atol=1e-12)


def test_masses_far_beyond_a_single_node():
    """The node at the point is rounded as the point is, however small the resolution of the others."""
    matrix, _ = hermitian_matrix(np.linspace(-1, 1, 10))
    matrix = matrix.astype("float32")
    for seed in range(20):
        one = jacobi(matrix, vector(10, seed).astype("float32"), steps=1, hermitian=True)
        points = np.linspace(1.1, 40, 50, dtype="float32")
        assert_allclose(masses(one, points)[1], 1, rtol=1e-6)
        assert_allclose(masses(one, -points)[0], 0, atol=1e-6)


BREAKDOWNS = {
    "identity": (np.eye(5), [1.0]),
    "zero": (np.zeros((5, 5)), [0.0]),
    "one by one": (np.array([[-2.0]]), [-2.0]),
    "rank one": (np.ones((5, 5)), [0.0, 5.0]),
    "repeated": (np.diag([1.0, 1, 1, 3, 3]), [1.0, 3.0]),
    "fewer dimensions": (np.diag([1.0, 2, 4, 5, 7]), [1.0, 2, 4, 5, 7]),
}


@pytest.mark.parametrize("hermitian", [True, False])
@pytest.mark.parametrize("name", BREAKDOWNS)
def test_an_exhausted_space_is_exact(name, hermitian, x64):
    matrix, values = BREAKDOWNS[name]
    values, n = np.asarray(values), len(matrix)
    z = vector(n)
    eigenvalues, q = np.linalg.eigh(matrix)
    if not hermitian:
        values, eigenvalues = np.sort(np.abs(values)), np.abs(eigenvalues)
    found = jacobi(matrix, z, steps=n, hermitian=hermitian)
    assert int(found.off_diagonal[found.size - 1] == 0)
    nodes, weights = (np.asarray(leaf) for leaf in rule(found, hermitian=hermitian))
    count = len(values)
    assert (weights[count:] == 0).all()
    assert_allclose(nodes[:count], values, atol=1e-13)
    shares = [np.sum((np.abs(q.T @ z) ** 2)[np.abs(eigenvalues - value) < 1e-8]) for value in values]
    assert_allclose(weights[:count], shares, atol=1e-12)
    # masses: no room between the bounds but at the values themselves
    points = np.r_[values + 0.3, values]
    below, up_to = (np.asarray(bound) for bound in masses(found, points))
    if not hermitian:
        below, up_to = np.maximum(2 * below - 1, 0), 2 * up_to - 1
    assert_allclose(below[:count], np.cumsum(shares), atol=1e-12)
    assert_allclose(up_to[:count], np.cumsum(shares), atol=1e-12)
    assert_allclose(up_to[count:] - below[count:], shares, atol=1e-12)


def test_driven_from_outside_it_is_the_same(x64):
    """By a loop on the host, with products from anywhere, and states to be kept."""
    matrix = np.diag([1.0, 2, 2, 4, 5, 5])
    z, kept = vector(6), []

    def fetched(stack):
        return jnp.asarray(np.asarray(stack) @ matrix)

    def on_the_host(condition, body, state):
        while condition(state):
            state = body(state)
            kept.append(state)
        return state

    start = quadrature.init(jax.random.key(0), jnp.asarray(z), None, 6)
    expected = jacobi(matrix, z, steps=6, hermitian=True)
    for state, steps in ((start, 4), (kept, 2)):  # from the start, and from what was kept on the way
        state = state[1] if state is kept else state
        before = len(kept)
        found = quadrature.finalize(quadrature.run(fetched, None, state, while_loop=on_the_host))
        assert len(kept) - before == steps
        jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-12), found, expected)


def test_vectors_are_pytrees(x64):
    rng = np.random.default_rng(0)
    matrix, _ = hermitian_matrix(np.linspace(-1, 2, 6))
    z = rng.normal(size=6)

    def apply(v):
        flat = jnp.concatenate([v["a"].reshape(-1), v["b"]])
        image = jnp.asarray(matrix) @ flat
        return {"a": image[:4].reshape(2, 2), "b": image[4:]}

    start = {"a": jnp.asarray(z[:4].reshape(2, 2)), "b": jnp.asarray(z[4:])}
    state = quadrature.init(jax.random.key(0), start, None, 4)
    found = quadrature.finalize(jax.jit(lambda state: quadrature.run(vectors.stacked(apply), None, state))(state))
    expected = jacobi(matrix, z, steps=4, hermitian=True)
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-12), found, expected)
