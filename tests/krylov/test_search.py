"""The search for triplets and eigenpairs: what holds of them whatever was found, in the loop and on the host."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax import krylov
from spectrax.krylov import bidiagonalization, factorization, tridiagonalization
from spectrax.krylov.extremes import finalize
from spectrax.krylov.search import cycle, init, search
from spectrax.krylov.task import Task

M, N = 30, 24


def matrix_of(seed, values, dtype="float64"):
    rng = np.random.default_rng(seed)

    def q(size):
        draw = rng.normal(size=(size, N)) + (1j * rng.normal(size=(size, N)) if dtype.startswith("complex") else 0)
        return np.linalg.qr(draw)[0]

    return ((q(M) * values) @ q(N).conj().T).astype(dtype)


STATIC = ("k", "smallest", "subspace_size", "max_steps", "tol", "probe", "width")


@functools.partial(jax.jit, static_argnames=STATIC)
def run(matrix, key, *, k=2, smallest=False, subspace_size=10, max_steps=600, tol=1e-11, probe=True, width=1):
    return krylov.singular_triplets(
        Task(k, "smallest" if smallest else "largest", subspace_size, max_steps, tol, 1e-14, probe),
        lambda rows: rows @ matrix.T, lambda rows: rows @ matrix.conj(),
        jax.random.normal(key, (width, N), matrix.dtype), jax.ShapeDtypeStruct((M,), matrix.dtype), key,
    )  # fmt: skip


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("smallest", [False, True])
def test_triplets(dtype, smallest, width, x64):
    values = np.linspace(1, 3, N)[::-1]
    matrix = matrix_of(0, values, dtype)
    found = run(jnp.asarray(matrix), jax.random.key(0), smallest=smallest, width=width, subspace_size=12)
    assert_allclose(found.values, values[::-1][:2] if smallest else values[:2], rtol=1e-10)  # the most extreme first
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
        assert (np.asarray(bottom.values) >= values[::-1][:2] * (1 - 1e-10)).all()
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


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_factorisation_holds_at_every_step(dtype, width, x64):
    """A V = U B and A^H U = V B^H + W K E^H, with orthonormal bases; also after a breakdown."""
    repeated = matrix_of(0, np.repeat([2.0, 1.0, 0.0], N // 3), dtype)
    for matrix in (matrix_of(0, np.linspace(1, 3, N), dtype), repeated, np.eye(M, N, dtype=dtype)):
        start, breaks_down = jax.random.normal(jax.random.key(0), (width, N), dtype), matrix[0, 0] == 1
        matrix = jnp.asarray(matrix)
        state = factorization.init(jax.random.key(1), start, jax.ShapeDtypeStruct((M,), matrix.dtype), 12)
        products = (lambda rows, a=matrix: rows @ a.T), (lambda rows, a=matrix: rows @ a.conj())
        step = jax.jit(functools.partial(bidiagonalization.step, *products))
        for p in range(width, 13, width):
            state = step(state)
            assert int(state.size) == p
            v, u, b = np.asarray(state.right[:p]).T, np.asarray(state.left[:p]).T, np.asarray(state.projected[:p, :p])
            following = np.asarray(state.right[p : p + width]).T
            assert_allclose(v.conj().T @ v, np.eye(p), atol=1e-13)
            assert_allclose(u.conj().T @ u, np.eye(p), atol=1e-13)
            assert_allclose(matrix @ v, u @ b, atol=1e-12)
            rest = following @ np.asarray(state.coupling) @ np.eye(p)[-width:]
            assert_allclose(matrix.conj().T @ u, v @ b.conj().T + rest, atol=1e-12)
            assert_allclose(b, np.triu(b), atol=1e-13)
            assert_allclose(v.conj().T @ following, np.zeros((p, width)), atol=1e-13)
            assert float(state.mismatch) < 1e-13
        assert not breaks_down or int(state.breakdowns) > 0


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_hermitian_factorisation_holds_at_every_step(dtype, width, x64):
    """H V = V T + W K E^H."""
    for values in (np.linspace(-1, 3, N), np.repeat([2.0, -1.0, 0.0], N // 3)):
        draw = matrix_of(0, np.ones(N), dtype)
        q = np.linalg.qr(draw[:N])[0]
        matrix = jnp.asarray((q * values) @ q.conj().T)
        start = jax.random.normal(jax.random.key(0), (width, N), dtype)
        state = factorization.init(jax.random.key(1), start, None, 12)
        step = jax.jit(functools.partial(tridiagonalization.step, lambda rows, a=matrix: rows @ a.T))
        for p in range(width, 13, width):
            state = step(state)
            v = np.asarray(state.right[:p]).T
            upper = np.triu(np.asarray(state.projected[:p, :p]), 1)
            t = upper + upper.conj().T + np.diag(np.diag(np.asarray(state.projected)).real[:p])
            following = np.asarray(state.right[p : p + width]).T
            rest = following @ np.asarray(state.coupling) @ np.eye(p)[-width:]
            assert_allclose(v.conj().T @ v, np.eye(p), atol=1e-13)
            assert_allclose(matrix @ v, v @ t + rest, atol=1e-12)
            assert float(state.mismatch) < 1e-13


@pytest.mark.parametrize("which", ["largest", pytest.param("smallest", marks=pytest.mark.slow), "largest_magnitude"])
@pytest.mark.parametrize("width", [1, 3])
def test_eigenpairs(which, width, x64):
    values = np.r_[[-4.0, -4.0], np.linspace(-3, 2.5, N - 4), [3.9, 3.9]]
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))[0]
    matrix = jnp.asarray((q * values) @ q.T)
    wanted = {"largest": [3.9, 3.9, 2.5], "smallest": [-4, -4, -3], "largest_magnitude": [-4, -4, 3.9]}[which]
    for seed in range(4):
        found = krylov.eigenpairs(
            Task(3, which, 14, 900, 1e-9, 1e-14),
            lambda rows: rows @ matrix, jax.random.normal(jax.random.key(seed), (width, N)), jax.random.key(seed),
        )  # fmt: skip
        assert_allclose(found.values, wanted, atol=1e-8)
        x = np.asarray(found.right)
        assert_allclose(x @ matrix, np.asarray(found.values)[:, None] * x, atol=1e-8)
        assert found.left is None
        assert float(found.mismatch) < 1e-12


def test_an_adjoint_that_does_not_match_is_noticed(x64):
    matrix = jnp.asarray(matrix_of(0, np.linspace(1, 3, N)))
    wrong = matrix + 1e-6 * jnp.asarray(np.random.default_rng(1).normal(size=(M, N)))
    task = Task(2, "largest", 10, 60, 1e-11, 1e-14, probe=False)
    start, struct = jnp.ones((1, N)), jax.ShapeDtypeStruct((M,), matrix.dtype)
    for adjoint, low, high in ((matrix, 0, 1e-13), (wrong, 1e-8, 1e-4)):
        found = krylov.singular_triplets(
            task, lambda rows: rows @ matrix.T, lambda rows, a=adjoint: rows @ a, start, struct, jax.random.key(0)
        )  # fmt: skip
        assert low <= float(found.mismatch) <= high
    for skew, low, high in ((0, 0, 1e-13), (1e-6, 1e-8, 1e-4)):
        square = matrix.T @ matrix + skew * wrong[:N]
        found = krylov.eigenpairs(task, lambda rows, s=square: rows @ s.T, start, jax.random.key(0))
        assert low <= float(found.mismatch) <= high


def test_the_host_drives_the_same_steps_and_a_run_can_be_taken_up_again(tmp_path, x64):
    """With products that JAX doesn't see, a look at every cycle, and a state that went through a file."""
    matrix = matrix_of(0, np.geomspace(1, 1e-2, N))
    struct, key = jax.ShapeDtypeStruct((M,), jnp.float64), jax.random.key(0)
    task = Task(2, "largest", 8, 600, 1e-11, 1e-14)
    state = init(task, jax.random.normal(key, (1, N)), struct, key)
    products = []

    def matmat(rows):
        products.append(len(rows))
        return jnp.asarray(np.asarray(rows) @ matrix.T)

    def step(bases):
        return bidiagonalization.step(matmat, lambda rows: jnp.asarray(np.asarray(rows) @ matrix), bases)

    def on_host(condition, body, value):
        while condition(value):
            value = body(value)
        return value

    compiled = run(jnp.asarray(matrix), key, subspace_size=8)
    seen = []
    while not state.done:
        state = cycle(task, step, state, while_loop=on_host)
        leaves, treedef = jax.tree.flatten(state)
        numbers = {str(i): np.asarray(x) for i, x in enumerate(leaves)}
        np.savez(tmp_path / "state.npz", **numbers)
        with np.load(tmp_path / "state.npz") as stored:
            state = treedef.unflatten([jnp.asarray(stored[str(i)]) for i in range(len(leaves))])
        seen.append(int(state.num_steps))
    found = finalize(task, state)
    assert len(products) == int(found.num_steps) == int(compiled.num_steps) == seen[-1]
    assert len(seen) > 3
    assert_allclose(found.values, compiled.values, rtol=1e-12)
    whole = search(task, step, init(task, jax.random.normal(key, (1, N)), struct, key), while_loop=on_host)
    assert_allclose(finalize(task, whole).values, found.values, rtol=1e-13)


@pytest.mark.parametrize("width", [1, 5, 7])
def test_the_whole_space(width, x64):
    """Where the last block sticks out of it, what is not in use has no part in the vectors of the null space."""
    for values in (np.repeat([2.0, 1.0, 0.0], N // 3), np.geomspace(1, 1e-22, N)):
        matrix = jnp.asarray(matrix_of(0, values))
        for seed in range(3):
            found = run(matrix, jax.random.key(seed), k=N, subspace_size=-(-N // width) * width, width=width)
            assert_allclose(found.values, values, atol=1e-13)
            for rows in (np.asarray(found.left), np.asarray(found.right)):
                assert_allclose(rows @ rows.T, np.eye(N), atol=1e-13)
            assert int(found.num_steps) == -(-N // width) * width


def test_what_is_not_finite_ends_at_once(x64):
    matrix = jnp.asarray(matrix_of(0, np.linspace(1, 3, N))).at[3, 4].set(jnp.nan)
    found = run(matrix, jax.random.key(0))
    assert not bool(found.finite)
    assert int(found.num_steps) <= 2


@pytest.mark.parametrize(
    ("width", "dtype"), [(1, "float64"), (2, "float64"), (4, "float64"), (1, "complex128"), (3, "complex128")]
)
def test_how_little_a_random_block_has_of_a_vector(width, dtype, monkeypatch, x64):
    """What counts as negligible is that, but for the probability that the challenge allows; and it is not much less."""
    n, allowed, draws = 40, 0.05, 20_000
    search_module = importlib.import_module("spectrax.krylov.search")
    monkeypatch.setattr(search_module, "_FAILURE", allowed)
    struct = jax.ShapeDtypeStruct((n,), dtype)
    bases = factorization.init(jax.random.key(0), jnp.eye(width, n, dtype=dtype), struct, 8)
    rng = np.random.default_rng(width)
    blocks = rng.normal(size=(draws, n, width))
    if dtype == "complex128":
        blocks = blocks + 1j * rng.normal(size=blocks.shape)
    components = np.linalg.norm(np.linalg.qr(blocks)[0][:, 0], axis=1)
    rate = np.mean(components <= search_module._negligible(bases, n))
    assert 0.2 * allowed < rate < allowed + 4 * np.sqrt(allowed / draws)
