"""Eigenpairs of Hermitian operators: values, vectors, derivatives, what is refused, and what the status says."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx

KEY = jax.random.key(4)
METHODS = {
    "dense": sx.Dense(),
    "lanczos": sx.Lanczos(subspace_size=16),
    "block": sx.Lanczos(subspace_size=16, block_size=3),
}
N = 30


def hermitian(values, dtype="float64", seed=0):
    """A NumPy matrix with the given eigenvalues, rounded once."""
    rng = np.random.default_rng(seed)
    draw = rng.normal(size=(len(values),) * 2)
    if np.dtype(dtype).kind == "c":
        draw = draw + 1j * rng.normal(size=draw.shape)
    q = np.linalg.qr(draw)[0]
    matrix = (q * np.asarray(values)) @ q.conj().T
    return ((matrix + matrix.conj().T) / 2).astype(dtype)


def product(v, matrix):
    """The same space with another structure."""
    flat = jnp.concatenate([v["a"].reshape(-1), v["b"]])
    image = matrix @ flat
    size = v["a"].size
    return {"a": image[:size].reshape(v["a"].shape), "b": image[size:]}


def as_function(matrix):
    n = matrix.shape[0]
    first, second = (2, n // 4), (n - 2 * (n // 4),)
    struct = {"a": jax.ShapeDtypeStruct(first, matrix.dtype), "b": jax.ShapeDtypeStruct(second, matrix.dtype)}
    return sx.aslinearoperator(product, struct, jnp.asarray(matrix))


def assert_pairs(result, matrix, which, *, complete=True):
    """Nothing is claimed that is not so, and everything that is wanted has converged."""
    sx.testing.assert_eigenvalues(result, np.asarray(matrix), which=which)
    assert bool(result.converged.all()) == complete


@pytest.mark.parametrize("which", ["largest", "smallest", "largest_magnitude"])
@pytest.mark.parametrize("method", METHODS)
def test_values_and_vectors(method, which, x64):
    spectra = {
        "indefinite": np.linspace(-2, 3, N),
        "positive": np.geomspace(1e-1, 1, N),
        "negative": -np.linspace(1, 4, N),
        "repeated": np.r_[np.full(3, -2.0), np.linspace(-1, 1, N - 6), np.full(3, 2.0)],
        "identity": np.ones(N),
        "zero": np.zeros(N),
        "low rank": np.r_[-3.0, np.zeros(N - 3), 1.0, 2.0],
    }
    for name, values in spectra.items():
        for seed in range(2):
            matrix = hermitian(values, "float64", seed)
            result = sx.eigsh(matrix, 3, which=which, method=METHODS[method], key=jax.random.key(seed))
            try:
                assert_pairs(result, matrix, which)
            except AssertionError as error:
                raise AssertionError(f"{name}, seed {seed}: {error}") from error


@pytest.mark.parametrize("method", METHODS)
def test_complex_operators_of_pytrees(method, x64):
    matrix = hermitian(np.linspace(-2, 3, N), "complex128")
    operator = as_function(matrix)
    result = sx.eigsh(operator, 2, which="smallest", method=METHODS[method], key=KEY)
    assert_pairs(result, matrix, "smallest")
    assert result.eigenvectors["a"].shape == (2, 2, 7)
    assert result.eigenvectors["b"].shape == (2, 16)


@pytest.mark.parametrize("method", METHODS)
def test_ties_of_both_signs(method, x64):
    """Of +-3, both twice, no copy is missed; the values of one modulus are all there, with their signs."""
    values = np.r_[-3.0, -3.0, np.linspace(-2, 2, N - 4), 3.0, 3.0]
    for seed in range(5):
        matrix = hermitian(values, seed=seed)
        result = sx.eigsh(matrix, 4, which="largest_magnitude", method=METHODS[method], key=jax.random.key(seed))
        assert_pairs(result, matrix, "largest_magnitude")
        assert_allclose(np.sort(result.eigenvalues), [-3, -3, 3, 3], rtol=1e-9)


@pytest.mark.parametrize("multiplicity", [2, 6])
def test_no_copy_is_missed(multiplicity, x64):
    values = np.r_[np.linspace(-1, 0.9, 60 - multiplicity), np.ones(multiplicity)]
    for seed in range(10):
        matrix = hermitian(values, seed=seed)
        result = sx.eigsh(
            matrix, multiplicity, which="largest", method=sx.Lanczos(), key=jax.random.key(seed), tol=1e-6
        )
        assert_pairs(result, matrix, "largest")


@pytest.mark.parametrize("which", ["largest", pytest.param("smallest", marks=pytest.mark.slow), "largest_magnitude"])
def test_the_whole_spectrum_and_small_sizes(which, x64):
    for n in (1, 2, 5):
        matrix = hermitian(np.linspace(-2, 1, n))
        for method in (sx.Dense(), sx.Lanczos(), sx.Lanczos(block_size=2)):
            assert_pairs(sx.eigsh(matrix, n, which=which, method=method, key=KEY), matrix, which)


def test_32_and_16_bits():
    for dtype in ("float32", "complex64", jnp.bfloat16, jnp.float16):
        wide = "complex128" if dtype == "complex64" else "float64"
        matrix = hermitian(np.linspace(-2, 3, N), wide).astype(dtype)
        for method in (sx.Dense(), sx.Lanczos()):
            result = sx.eigsh(jnp.asarray(matrix), 2, which="largest", method=method, key=KEY)
            assert result.eigenvalues.dtype == result.residuals.dtype == np.float32
            assert result.eigenvectors.dtype == (dtype if dtype == "complex64" else np.float32)
            assert_pairs(result, matrix.astype(wide), "largest")


@pytest.mark.parametrize("method", METHODS)
def test_not_finite(method):
    for value in (np.nan, np.inf):
        matrix = np.eye(N, dtype="float32")
        matrix[2, 2] = value
        for operator in (matrix, as_function(matrix)):
            result = sx.eigsh(operator, 2, which="largest", method=METHODS[method], key=KEY)
            assert int(result.status) == sx.Status.NOT_FINITE
            assert np.isnan(result.eigenvalues).all()
            assert not result.converged.any()
        with pytest.raises(sx.SpectraxError, match="NaN or Inf"):
            sx.eigsh(matrix, 2, which="largest", method=METHODS[method], key=KEY, throw=True)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scale(scale):
    for method in (sx.Dense(), sx.Lanczos()):
        matrix = (hermitian(np.linspace(-2, 3, N)) * scale).astype("float32")
        result = sx.eigsh(matrix, 2, which="largest", method=method, key=KEY)
        assert bool(result.converged.all())
        allowed = 2e-6 * np.asarray(result.eigenvalues, np.float64) / scale
        assert (np.abs(np.asarray(result.eigenvalues, np.float64) / scale - [3, 3 - 5 / 29]) <= allowed).all()


def test_giving_up(x64):
    matrix = hermitian(1 - np.geomspace(1e-6, 1, 100) ** 0.5)
    few = sx.Lanczos(max_restarts=1)
    result = sx.eigsh(matrix, 2, which="smallest", method=few, key=KEY)
    assert bool(result.converged.all())
    result = sx.eigsh(matrix, 2, which="largest", method=few, key=KEY, tol=1e-12)
    assert int(result.status) == sx.Status.NOT_CONVERGED
    assert int(result.num_matvecs) <= 2 * 24 + 2 * 2
    assert_pairs(result, matrix, "largest", complete=False)
    limited = sx.eigsh(matrix, 2, which="largest", method=sx.Lanczos(), key=KEY, tol=1e-12, max_matvecs=30)
    assert int(limited.num_matvecs) <= 30 + 24 + 2 * 2
    with pytest.raises(sx.SpectraxError, match="did not converge"):
        sx.eigsh(matrix, 2, which="largest", method=few, key=KEY, tol=1e-12, throw=True)
    with pytest.raises(ValueError, match="throw=True needs concrete results"):
        jax.jit(functools.partial(sx.eigsh, which="largest", throw=True))(jnp.eye(3))


@pytest.mark.timeout(60)
def test_products_that_run_out_in_the_course_of_the_challenge(x64):
    """Whatever the limit, the search comes to an end, and what it claims is true."""
    matrix = hermitian(np.r_[np.full(3, -2.0), np.linspace(-1, 1, N - 6), np.full(3, 2.0)], seed=1)
    method = METHODS["lanczos"]
    cut = 0
    for limit in (44, 52, 60):  # each is a compilation
        result = sx.eigsh(matrix, 3, which="smallest", method=method, key=jax.random.key(1), max_matvecs=limit)
        complete = bool(result.converged.all())
        assert_pairs(result, matrix, "smallest", complete=complete)
        assert int(result.num_matvecs) <= limit + 2 * 16 + 2 * 3
        cut += not complete
    assert 0 < cut < 3


def test_matvecs_are_counted(x64):
    counts = []

    def counted(v, matrix):
        jax.debug.callback(lambda: counts.append(1))
        return matrix @ v

    matrix = jnp.asarray(hermitian(np.linspace(-2, 3, N)))
    operator = sx.aslinearoperator(counted, jax.ShapeDtypeStruct((N,), matrix.dtype), matrix)
    result = sx.eigsh(operator, 1, which="largest", method=sx.Lanczos(), key=KEY)
    jax.effects_barrier()
    assert len(counts) == int(result.num_matvecs)
    for k in (1, 2):  # the product and, for the test of symmetry, its adjoint with each vector
        assert int(sx.eigsh(operator, k, which="largest", method=sx.Dense()).num_matvecs) == N + 2 * k
        assert int(sx.eigsh(matrix, k, which="largest", method=sx.Dense()).num_matvecs) == 2 * k


def test_a_whole_block_of_starts(x64):
    """Vectors of a matrix nearby save most of the products."""
    matrix = hermitian(np.r_[np.linspace(-1, 0.7, 97), 0.9, 0.95, 1.0])
    nearby = matrix + 1e-4 * hermitian(np.linspace(-1, 1, 100), seed=1)
    v0 = np.linalg.eigh(matrix)[1].T[-3:]
    method = sx.Lanczos(block_size=3, probe=False)
    warm = sx.eigsh(nearby, 3, which="largest", method=method, key=KEY, v0=jnp.asarray(v0), tol=1e-3)
    fresh = sx.eigsh(nearby, 3, which="largest", method=method, key=KEY, tol=1e-3)
    assert_pairs(warm, nearby, "largest")
    assert int(warm.num_matvecs) < 0.75 * int(fresh.num_matvecs)
    start_of_pytrees = {"a": jnp.ones((1, 2, 25)), "b": jnp.ones((1, 50))}
    result = sx.eigsh(as_function(nearby), 1, which="largest", method=sx.Lanczos(), key=KEY, v0=start_of_pytrees)
    assert_pairs(result, nearby, "largest")


def scalar(method, which, matrix):
    """A smooth function of values, and of vectors where no common phase changes it."""
    result = sx.eigsh((matrix + matrix.conj().T) / 2, 2, which=which, method=method, key=KEY, tol=1e-13)
    weights = jnp.linspace(1.0, 2.0, matrix.shape[0])
    other = jnp.linspace(-1.0, 1.0, matrix.shape[0]).astype(matrix.dtype)
    x = result.eigenvectors[1]
    of_values = jnp.sin(result.eigenvalues[0]) + result.eigenvalues[1] ** 2 * result.eigenvalues[0]
    return of_values + jnp.sum(weights * jnp.abs(x) ** 2) + jnp.abs(jnp.vdot(other, x)) ** 2


@pytest.mark.parametrize(
    ("method", "which", "dtype"),
    [
        ("dense", "largest", "float64"),
        ("dense", "smallest", "complex128"),
        ("lanczos", "largest_magnitude", "float64"),
        pytest.param("lanczos", "smallest", "complex128", marks=pytest.mark.slow),
        pytest.param("block", "largest", "float64", marks=pytest.mark.slow),
    ],
)
def test_derivatives_to_the_second_order(method, which, dtype, x64):
    A = jnp.asarray(hermitian([-3.0, -1.4, 0.1, 0.5, 1.1, 2.0, 2.6], dtype))
    D = jnp.asarray(hermitian(np.linspace(-1, 1, 7), dtype, seed=5))
    f = jax.jit(functools.partial(scalar, METHODS[method], which))

    def slope(g, step=1e-5):
        return (g(A + step * D) - g(A - step * D)) / (2 * step)

    first = jax.jit(lambda A: jax.jvp(f, (A,), (D,))[1])
    assert_allclose(first(A), slope(f), rtol=1e-6, atol=1e-8)
    assert_allclose(jnp.sum(jax.jit(jax.grad(f))(A) * D).real, slope(f), rtol=1e-6, atol=1e-8)
    second = jax.jit(jax.grad(lambda t: jax.jvp(lambda t: f(A + t.astype(A.dtype) * D), (t,), (jnp.ones_like(t),))[1]))
    assert_allclose(second(jnp.zeros(())), slope(first), rtol=1e-5, atol=1e-6)


def test_the_derivative_of_a_repeated_value_is_finite(x64):
    def top(matrix):
        return sx.eigsh(matrix, 2, which="largest").eigenvalues.sum()

    gradient = jax.grad(top)(jnp.diag(jnp.asarray([1.0, 3.0, 3.0, 2.0])))
    assert_allclose(gradient, np.diag([0, 1, 1, 0]), atol=1e-12)  # that of a sum over a whole tie is unique


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_transforms(method, x64):
    def f(matrix, key=KEY):
        result = sx.eigsh(matrix, 2, which="largest_magnitude", method=METHODS[method], key=key)
        return result.eigenvalues, result.residuals <= 1e-8, result.converged

    several = jnp.stack([jnp.asarray(hermitian(np.linspace(-2.3 - seed, 3, 12), seed=seed)) for seed in range(4)])
    each = [f(matrix) for matrix in several]
    stacked = [np.stack(parts) for parts in zip(*each, strict=True)]
    known = jax.eval_shape(f, several[0])
    assert [(a.shape, a.dtype) for a in known] == [(a.shape, a.dtype) for a in each[0]]
    for got in (jax.jit(jax.vmap(f))(several), jax.lax.scan(lambda c, A: (c, f(A)), 0, several)[1]):
        for a, b in zip(got, stacked, strict=True):
            assert_allclose(a, b, rtol=1e-9)
    assert stacked[2].all()


def test_one_trace_for_several_calls():
    cache = sys.modules["spectrax.spectrum.eigsh"]._jitted
    before = None
    for number in range(5):
        matrix = jnp.asarray(hermitian(np.linspace(-1, 2, 8), seed=number).astype("float32"))
        v0 = jnp.full((1, 8), number + 1.0)
        sx.eigsh(matrix, 2, which="largest", method=sx.Lanczos(), key=jax.random.key(number), v0=v0)
        before = cache._cache_size() if before is None else before
    assert cache._cache_size() == before


@pytest.mark.parametrize(
    ("shape", "arguments", "error", "message"),
    [
        ((4, 3), {}, ValueError, r"eigsh needs a square operator, got shape \(4, 3\)"),
        ((4, 4), {"which": "SM"}, ValueError, "which must be one of 'largest', 'smallest', 'largest_magnitude'"),
        ((4, 4), {"k": 0}, ValueError, "k must be at least 1, got 0"),
        ((4, 4), {"k": 5}, ValueError, "k must be at most n = 4 .* got 5"),
        ((4, 4), {"k": 1.0}, TypeError, "k must be an integer"),
        ((4, 4), {"method": "lanczos"}, ValueError, "method must be one of 'auto'; got 'lanczos'"),
        ((4, 4), {"method": sx.Lanczos}, TypeError, r"method must be 'auto', Dense\(\) or Lanczos\(\) for eigsh"),
        ((4, 4), {"method": sx.InverseLanczos(), "key": KEY}, TypeError, "for eigsh"),
        ((4, 4), {"method": sx.Davidson(), "key": KEY}, TypeError, "for eigsh"),
        ((4, 4), {"method": sx.Lanczos()}, ValueError, "eigsh needs key= .* for method Lanczos"),
        ((600, 600), {}, ValueError, "eigsh needs key="),
        ((4, 4), {"key": 0}, TypeError, "key must be a PRNG key"),
        ((4, 4), {"tol": 0.0}, ValueError, "tol must lie in"),
        ((4, 4), {"max_matvecs": 0}, ValueError, "max_matvecs must be at least 1"),
        ((4, 4), {"method": sx.Dense(max_bytes=63)}, ValueError, "takes 64 bytes, above max_bytes=63"),
        ((40, 40), {"k": 5, "method": sx.Lanczos(subspace_size=5), "key": KEY}, ValueError, "larger than k = 5, got 5"),
        ((4, 4), {"v0": jnp.ones((1, 3)), "key": KEY}, ValueError, r"v0 must have shape \(1, 4\), got \(1, 3\)"),
        ((4, 4), {"v0": jnp.ones((1, 4), jnp.int32), "key": KEY}, TypeError, "v0 must have dtype float32"),
        (
            (9, 9), {"v0": jnp.ones((3, 9)), "method": sx.Lanczos(block_size=2), "key": KEY}, ValueError,
            "at least as large as their number, 3, got 2",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(shape, arguments, error, message):
    with pytest.raises(error, match=message):
        sx.eigsh(jnp.ones(shape), **{"which": "largest", **arguments})


def test_spaces_that_differ_are_refused():
    with pytest.raises(ValueError, match="the output of the operator"):
        sx.eigsh((lambda v: v["x"], {"x": jnp.ones(3)}), which="largest", key=KEY)
    with pytest.raises(TypeError, match="which"):
        sx.eigsh(jnp.eye(3))
