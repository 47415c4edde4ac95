"""Singular triplets: repeated values, what is not finite, extreme sizes, starts, limits, and every argument."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing
from spectrax.spectrum.svds import resolve_method

METHODS = {"dense": sx.Dense(), "lanczos": sx.Lanczos(), "inverse": sx.InverseLanczos()}
BOTH_ENDS = [
    (method, which)
    for method in METHODS
    for which in ("largest", "smallest")
    if (method, which) != ("inverse", "largest")
]


def product(v, matrix):
    return {"image": matrix @ v["x"].reshape(-1)}


def as_function(matrix):
    """The same matrix as a function of pytrees, so that nothing is explicit."""
    struct = {"x": jax.ShapeDtypeStruct((2, matrix.shape[1] // 2), matrix.dtype)}
    return sx.aslinearoperator(product, struct, matrix)


@pytest.mark.parametrize("multiplicity", [2, 3, 6])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_no_copy_of_a_repeated_value_is_missed(multiplicity, which, x64):
    """One starting vector finds one copy; the rest come from the probe."""
    values = testing.repeated(40, multiplicity=multiplicity, condition_number=3.0)
    for seed in range(8):
        A = testing.with_singular_values(jax.random.key(seed), values, (48, 40), "float64")
        result = sx.svds(A, 3, which=which, method=sx.Lanczos(), key=jax.random.key(100 + seed))
        testing.assert_singular_values(result, A, which=which)
        assert bool(result.converged.all())
        if which == "smallest":
            result = sx.svds(A, 3, which=which, method=sx.InverseLanczos(), key=jax.random.key(100 + seed))
            testing.assert_singular_values(result, A, which=which)
            assert bool(result.converged.all())


@pytest.mark.parametrize(("method", "which"), BOTH_ENDS)
@pytest.mark.parametrize("wide", [False, True])
def test_operators_of_pytrees(method, which, wide, x64):
    s = np.linspace(2, 1, 12)
    shape = (12, 16) if wide else (16, 12)
    matrix = testing.with_singular_values(jax.random.key(0), s, shape, "complex128").to_dense()
    A = as_function(matrix)
    result = sx.svds(A, 2, which=which, method=METHODS[method], key=jax.random.key(1))
    testing.assert_singular_values(result, A, which=which)
    assert bool(result.converged.all())
    assert result.u["image"].shape == (2, shape[0])
    assert result.v["x"].shape == (2, 2, shape[1] // 2)
    image = np.asarray(result.v["x"]).reshape(2, -1) @ np.asarray(matrix).T  # v[i] is v_i, not its conjugate
    assert_allclose(image, np.asarray(result.s)[:, None] * np.asarray(result.u["image"]), atol=1e-9)


@pytest.mark.parametrize(("method", "which"), BOTH_ENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_operators_that_are_not_finite(method, which, value):
    matrix = jnp.ones((8, 6)).at[2, 3].set(value)
    for A in (matrix, as_function(matrix)):
        result = sx.svds(A, 2, which=which, method=METHODS[method], key=jax.random.key(0))
        assert int(result.status) == sx.Status.NOT_FINITE
        assert np.isnan(result.s).all()
        assert np.isnan(result.residuals).all()
        assert not result.converged.any()
        with pytest.raises(sx.SpectraxError, match="NaN or Inf"):
            sx.svds(A, 2, which=which, method=METHODS[method], key=jax.random.key(0), throw=True)


@pytest.mark.parametrize(("method", "which"), BOTH_ENDS)
@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_scaling_changes_nothing_but_the_scale(method, which, size):
    """In float32, where the squares of 1e20 overflow and those of 1e-20 vanish."""
    s = np.geomspace(1, 1e-2, 24)
    matrix = testing.with_singular_values(jax.random.key(0), s, (32, 24)).to_dense() * jnp.float32(size)
    result = sx.svds(matrix, 2, which=which, method=METHODS[method], key=jax.random.key(1))
    assert bool(result.converged.all())
    wanted = s[:2] if which == "largest" else s[-2:]
    assert_allclose(np.asarray(result.s, np.float64) / size, wanted, atol=40 * np.finfo(np.float32).eps)
    assert_allclose(result.v @ result.v.T, np.eye(2), atol=1e-5)


@pytest.mark.parametrize(("method", "which"), BOTH_ENDS)
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (2, 2)])
def test_small_shapes(method, which, shape, x64):
    matrix = np.random.default_rng(0).normal(size=shape)
    for k in range(1, min(shape) + 1):
        result = sx.svds(jnp.asarray(matrix), k, which=which, method=METHODS[method], key=jax.random.key(1))
        testing.assert_singular_values(result, jnp.asarray(matrix), which=which)
        assert bool(result.converged.all())


@pytest.mark.parametrize("method", METHODS)
def test_the_zero_and_the_identity(method, x64):
    which = "smallest"
    for matrix, value in ((jnp.zeros((8, 6)), 0.0), (jnp.eye(8, 6), 1.0), (jnp.ones((8, 6)), 0.0)):
        result = sx.svds(matrix, 3, which=which, method=METHODS[method], key=jax.random.key(1))
        assert_allclose(result.s, np.full(3, value), atol=1e-13)
        testing.assert_singular_values(result, matrix, which=which)


@pytest.mark.parametrize("condition_number", [1e3, 1e5, 1e8, 1e12, 1e20])
def test_the_bottom_of_a_large_matrix_converges_at_any_condition_number(condition_number, x64):
    """Vectors that are good enough for R^-1 hold too much of the largest ones to be good enough for R."""
    values = np.geomspace(1, 1 / condition_number, 200)
    matrix = testing.with_singular_values(jax.random.key(0), values, (230, 200), "float64").to_dense()
    for seed in range(3):
        for k in (1, 3):
            key = jax.random.key(seed)
            result = sx.svds(matrix, k, which="smallest", method=sx.InverseLanczos(), key=key)
            testing.assert_singular_values(result, matrix, which="smallest")
            assert bool(result.converged.all())


def bottoms_with_gaps(name):
    """Spectra whose smallest values lie far below the other wanted ones: their round-off must not drown those."""
    rng = np.random.default_rng(0)
    if name == "dead units":
        matrix = rng.normal(size=(200, 140)) / 10
        matrix[:, [3, 5, 17]] = 0
        return matrix
    bottom = {"one": [1e-4], "none left": [0.0], "several scales": [1e-2, 1e-3, 1e-5, 1e-6], "huge": [1e-4]}[name]
    values = np.r_[np.linspace(3, 0.5, 150 - len(bottom)), bottom]
    u, v = (np.linalg.qr(rng.normal(size=(150, 150)))[0] for _ in range(2))
    return (u * values) @ v.T * (1e37 if name == "huge" else 1.0)


@pytest.mark.parametrize("name", ["dead units", "one", "none left", "several scales", "huge"])
def test_values_above_a_gap_at_the_bottom(name):
    matrix = jnp.asarray(bottoms_with_gaps(name), jnp.float32)
    true = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    for k in (1, 8):
        result = sx.svds(matrix, k, which="smallest", method=sx.InverseLanczos(), key=jax.random.key(1))
        assert bool(result.converged.all())
        assert_allclose(result.s, true[-k:], atol=4 * np.finfo(np.float32).eps * true[0])
        testing.assert_singular_values(result, matrix, which="smallest")


@pytest.mark.parametrize("name", METHODS)
def test_a_matrix_so_small_that_products_underflow_has_no_value(name):
    for scale, usable in ((1e-29, True), (1e-36, False)):
        matrix = jnp.asarray(scale * np.diag(np.linspace(2, 1, 30)), jnp.float32)
        result = sx.svds(matrix, 1, which="smallest", method=METHODS[name], key=jax.random.key(1))
        if usable:
            assert_allclose(result.s, [scale], rtol=1e-5)
        else:
            assert int(result.status) == sx.Status.NOT_FINITE
            assert np.isnan(result.s).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wide", [False, True])
def test_solves_that_would_overflow(dtype, wide, x64):
    """The inverse of this matrix has entries up to 2^(n - 2), and no diagonal entry of its factor is small."""
    n = 1200 if dtype == "float64" else 300
    matrix = jnp.asarray(np.eye(n) - np.triu(np.ones((n, n)), 1), dtype)
    matrix = matrix.T if wide else matrix
    result = sx.svds(matrix, 1, which="smallest", method=sx.InverseLanczos(), key=jax.random.key(0))
    assert int(result.status) == sx.Status.AT_ROUND_OFF
    assert bool(result.converged.all())
    norm = 2 * n / np.pi
    assert float(result.s[0]) <= np.finfo(dtype).eps * norm
    testing.assert_singular_values(result, matrix, which="smallest")
    if dtype == "float64":  # so large that this is what "auto" chooses
        assert np.isinf(sx.condition_number(matrix, key=jax.random.key(0)))


def test_the_round_off_of_mixed_leaves_is_that_of_the_widest_error(x64):
    def f(v):
        return v[0] * jnp.float32(1.1), 2 * v[1]

    struct = (jax.ShapeDtypeStruct((20,), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float64))
    with jax.numpy_dtype_promotion("standard"):
        result = sx.svds((f, struct), 1, which="smallest", method=sx.Lanczos(), key=jax.random.key(0))
    assert bool(result.converged.all())
    assert_allclose(result.s, [1.1], rtol=1e-5)


@pytest.mark.parametrize(("method", "which"), BOTH_ENDS)
def test_a_start_that_is_not_finite(method, which):
    v0 = jnp.ones((1, 6)).at[0, 2].set(jnp.nan)
    result = sx.svds(jnp.eye(8, 6), 1, which=which, method=METHODS[method], key=jax.random.key(0), v0=v0)
    unread = method == "dense"
    assert int(result.status) == (sx.Status.CONVERGED if unread else sx.Status.NOT_FINITE)
    assert np.isnan(result.s).all() != unread


def test_explicit_and_automatic_mesh_axes_are_taken():
    for axis_type in (jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto):
        mesh = jax.make_mesh((1,), ("x",), axis_types=(axis_type,))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        matrix = jax.device_put(jnp.diag(jnp.arange(1.0, 9.0)), sharding)
        assert_allclose(sx.spectral_norm(matrix), 8.0, rtol=1e-6)


def test_16_bit_operators_give_32_bit_results():
    A = testing.with_singular_values(jax.random.key(0), np.linspace(2, 1, 12), (16, 12), jnp.bfloat16)
    for operator in (A, as_function(A.to_dense())):
        for method in METHODS:
            result = sx.svds(operator, 2, which="smallest", method=METHODS[method], key=jax.random.key(1))
            assert result.s.dtype == result.residuals.dtype == jnp.float32
            assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((result.u, result.v)))
            testing.assert_singular_values(result, operator, which="smallest")
    truth = np.linalg.svd(np.asarray(A.to_dense()).astype(np.float64), compute_uv=False)
    assert_allclose(sx.singular_values(A), truth, atol=20 * np.finfo(np.float32).eps)  # cast up once, not rounded


def test_a_warm_start_needs_fewer_matvecs(x64):
    method = sx.Lanczos(subspace_size=6, probe=False)
    spent = np.zeros(2)
    for seed in range(5):
        A = testing.with_singular_values(jax.random.key(seed), np.geomspace(1, 0.2, 40), (48, 40), "float64").to_dense()
        drifted = (
            A + 1e-3 * testing.with_singular_values(jax.random.key(50 + seed), [1.0], (48, 40), "float64").to_dense()
        )
        v0 = jnp.linalg.svd(A)[2][:1]
        warm = sx.svds(drifted, 1, method=method, key=jax.random.key(2), v0=v0, tol=1e-3)
        fresh = sx.svds(drifted, 1, method=method, key=jax.random.key(2), tol=1e-3)
        assert bool(warm.converged.all() & fresh.converged.all())
        assert_allclose(warm.s, fresh.s, rtol=2e-3)
        spent += int(warm.num_matvecs), int(fresh.num_matvecs)
    assert spent[0] < 0.8 * spent[1]


def test_a_whole_block_of_starts(x64):
    """The exact vectors of a matrix nearby save most of the products, at both ends; nothing else is changed."""
    values = np.r_[1.0, 0.97, 0.94, np.linspace(0.85, 0.4, 60), 0.3, 0.27, 0.24]
    A = testing.with_singular_values(jax.random.key(0), values, (80, 66), "float64").to_dense()
    drift = testing.with_singular_values(jax.random.key(1), np.ones(66), (80, 66), "float64").to_dense()
    nearby, right = A + 1e-5 * drift, np.linalg.svd(A)[2]
    method = sx.Lanczos(block_size=3, probe=False)
    for which, v0 in (("largest", right[:3]), ("smallest", right[63:])):
        ask = functools.partial(sx.svds, nearby, 3, which=which, key=jax.random.key(2), tol=1e-2)
        warm, fresh = ask(method=method, v0=jnp.asarray(v0)), ask(method=method)
        for result in (warm, fresh):
            assert bool(result.converged.all())
            testing.assert_singular_values(result, nearby, which=which)
        assert int(warm.num_matvecs) <= 0.6 * int(fresh.num_matvecs), (which, warm.num_matvecs, fresh.num_matvecs)
    by_default = ask(method=sx.Lanczos(probe=False), v0=jnp.asarray(v0))  # as many as there are starts
    assert_allclose(by_default.s, warm.s, rtol=1e-12)
    assert int(by_default.num_matvecs) == int(warm.num_matvecs)


def test_how_a_block_and_its_starts_fit(x64):
    A = testing.with_singular_values(jax.random.key(0), np.linspace(2, 1, 30), (40, 30), "float64")
    v0 = jax.random.normal(jax.random.key(1), (3, 30))
    ask = functools.partial(sx.svds, A, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"block_size must be 1 .* at least as large as their number, 3, got 2"):
        ask(method=sx.Lanczos(block_size=2), v0=v0)
    summed = ask(method=sx.Lanczos(block_size=1), v0=v0)
    by_hand = ask(method=sx.Lanczos(block_size=1), v0=v0.sum(0, keepdims=True))
    assert int(summed.num_matvecs) == int(by_hand.num_matvecs)
    assert_allclose(summed.u, by_hand.u, atol=1e-12)
    wider = ask(method=sx.Lanczos(block_size=4), v0=v0)  # random vectors behind those that were given
    for result in (summed, wider):
        assert bool(result.converged.all())
        testing.assert_singular_values(result, A)


def test_a_start_that_is_orthogonal_to_the_answer_or_zero(x64):
    """The noise on every start: without it the answer would never be found."""
    diagonal = jnp.diag(jnp.linspace(2.0, 1.0, 40))
    for v0 in (jnp.eye(40)[5:6], jnp.zeros((1, 40)), 1e-200 * jnp.eye(40)[5:6]):
        for which, method, value in (
            ("largest", sx.Lanczos(), 2.0), ("smallest", sx.Lanczos(), 1.0), ("smallest", sx.InverseLanczos(), 1.0),
        ):  # fmt: skip
            result = sx.svds(diagonal, 1, which=which, method=method, key=jax.random.key(0), v0=v0)
            assert_allclose(result.s, [value], rtol=1e-9)


def test_the_start_of_a_wide_operator_lives_on_its_output(x64):
    A = testing.with_singular_values(jax.random.key(0), np.linspace(2, 1, 12), (12, 30), "float64")
    result = sx.svds(A, 1, method=sx.Lanczos(), key=jax.random.key(0), v0=jnp.ones((1, 12)))
    testing.assert_singular_values(result, A)
    with pytest.raises(ValueError, match=r"v0 must have shape \(1, 12\), got \(1, 30\)"):
        sx.svds(A, 1, method=sx.Lanczos(), key=jax.random.key(0), v0=jnp.ones((1, 30)))


def test_giving_up(x64):
    A = testing.with_singular_values(jax.random.key(0), np.geomspace(1, 1e-4, 60), (60, 60), "float64")
    result = sx.svds(A, 1, which="smallest", method=sx.Lanczos(), key=jax.random.key(0), max_matvecs=60)
    assert int(result.status) == sx.Status.NOT_CONVERGED
    assert not result.converged.any()
    assert int(result.num_matvecs) <= 60 + 2 * 24 + 2  # the cycle in progress is finished, and residuals are computed
    assert float(result.s[0]) >= 1e-4  # an upper bound of the smallest all the same
    testing.assert_singular_values(result, A, which="smallest")
    with pytest.raises(sx.SpectraxError, match="did not converge"):
        sx.svds(A, 1, which="smallest", method=sx.Lanczos(), key=jax.random.key(0), max_matvecs=60, throw=True)
    few = sx.Lanczos(max_restarts=1)
    restarted = sx.svds(A, 1, which="smallest", method=few, key=jax.random.key(0))
    assert int(restarted.num_matvecs) <= 2 * 2 * 24 + 2
    assert int(restarted.status) == sx.Status.NOT_CONVERGED


def test_success_is_returned_with_throw():
    A = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    result = sx.svds(A, 2, throw=True)
    assert_allclose(result.s, [3, 2], rtol=1e-6)
    with pytest.raises(ValueError, match="throw=True needs concrete results"):
        jax.jit(functools.partial(sx.svds, k=2, throw=True))(A)


def test_matvecs_are_counted(x64):
    counts = []

    def counted(v, matrix):
        jax.debug.callback(lambda: counts.append(1))
        return matrix @ v

    matrix = testing.with_singular_values(jax.random.key(0), np.linspace(3, 1, 40), (50, 40), "float64").to_dense()
    A = sx.aslinearoperator(counted, jax.ShapeDtypeStruct((40,), jnp.float64), matrix)
    result = sx.svds(A, 1, method=sx.Lanczos(), key=jax.random.key(0))
    jax.effects_barrier()
    assert len(counts) == int(result.num_matvecs)  # the transpose keeps the callback, so that A^H is counted as well
    dense = sx.svds(A, 1, method=sx.Dense())
    assert int(dense.num_matvecs) == 40 + 2
    assert int(sx.svds(matrix, 1, method=sx.Dense()).num_matvecs) == 2


def test_the_tolerance_has_an_effect(x64):
    A = testing.with_singular_values(jax.random.key(0), np.geomspace(1, 0.1, 60), (60, 60), "float64")
    loose = sx.svds(A, 1, method=sx.Lanczos(probe=False), key=jax.random.key(0), tol=1e-2)
    tight = sx.svds(A, 1, method=sx.Lanczos(probe=False), key=jax.random.key(0), tol=1e-12)
    assert int(loose.num_matvecs) < int(tight.num_matvecs)
    assert float(tight.residuals[0]) < 1e-11 < float(loose.residuals[0]) <= 1e-2


def test_the_flags_are_what_the_residuals_say(x64):
    """converged = residual <= max(tol s, c eps s_max), with c = 8 + 2 sqrt(max(m, n)); and the status tells which."""
    A = testing.with_singular_values(jax.random.key(0), np.geomspace(1, 1e-3, 40), (48, 40), "float64")
    seen = set()
    for which, max_matvecs, tol in (("largest", 40, 1e-2), ("largest", 2000, 1e-16), ("smallest", 40, 1e-2)):
        result = sx.svds(
            A, 3, which=which, method=sx.Lanczos(), key=jax.random.key(0), max_matvecs=max_matvecs, tol=tol
        )
        s, residuals = np.asarray(result.s), np.asarray(result.residuals)
        by_tol = residuals <= tol * s
        floor = (8 + 2 * 48**0.5) * np.finfo(np.float64).eps
        np.testing.assert_array_equal(result.converged, by_tol | (residuals <= floor))
        expected = sx.Status.CONVERGED if by_tol.all() else sx.Status.AT_ROUND_OFF
        expected = expected if result.converged.all() else sx.Status.NOT_CONVERGED
        assert int(result.status) == expected
        seen.add(expected)
    assert {sx.Status.AT_ROUND_OFF, sx.Status.NOT_CONVERGED} <= seen


def test_what_auto_takes():
    choose = sx.spectrum.methods.choose
    assert choose((512, 512), 1, smallest=True, explicit=True) == sx.Dense()
    assert choose((10**6, 512), 1, smallest=False, explicit=True) == sx.Lanczos()  # too many entries
    assert choose((600, 600), 1, smallest=False, explicit=True) == sx.Lanczos()
    assert choose((600, 600), 1, smallest=True, explicit=True) == sx.InverseLanczos()
    assert choose((600, 600), 300, smallest=True, explicit=True) == sx.Dense()
    assert choose((200, 200), 1, smallest=False, explicit=False) == sx.Lanczos()
    assert choose((100, 100), 1, smallest=False, explicit=False) == sx.Dense()
    assert choose((5000, 5000), 1, smallest=True, explicit=True) == sx.Lanczos()


def test_methods_are_hashable_and_frozen():
    for make in (sx.Dense, sx.Lanczos, sx.InverseLanczos):
        assert make() == make()
        assert hash(make()) == hash(make())
        with pytest.raises(AttributeError):
            make().anything = 1
    assert sx.Lanczos(subspace_size=8) != sx.Lanczos()
    assert sx.InverseLanczos() != sx.Lanczos()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sx.Dense(max_bytes=0), ValueError, "max_bytes must be at least 1"),
        (lambda: sx.Dense(max_bytes=1.0), TypeError, "max_bytes must be an integer"),
        (lambda: sx.Lanczos(subspace_size=0), ValueError, "subspace_size must be at least 1"),
        (lambda: sx.Lanczos(max_restarts=-1), ValueError, "max_restarts must be at least 1"),
        (lambda: sx.InverseLanczos(max_bytes=0), ValueError, "max_bytes must be at least 1"),
        (lambda: sx.InverseLanczos(subspace_size=0), ValueError, "subspace_size must be at least 1"),
    ],
)
def test_methods_that_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("shape", "arguments", "error", "message"),
    [
        ((4, 3), {"k": 0}, ValueError, "k must be at least 1, got 0"),
        ((4, 3), {"k": 4}, ValueError, r"k must be at most min\(m, n\) = 3 .* got 4"),
        ((4, 3), {"k": 1.0}, TypeError, "k must be an integer"),
        ((4, 3), {"which": "both"}, ValueError, "which must be one of 'largest', 'smallest'; got 'both'"),
        ((4, 3), {"method": "arpack"}, ValueError, "method must be one of 'auto'; got 'arpack'"),
        ((4, 3), {"method": sx.Lanczos}, TypeError, "method must be 'auto' or a method object"),
        ((4, 3), {"method": sx.InverseLanczos(), "key": KEY}, ValueError, "use which='smallest'"),
        ((4, 3), {"method": sx.Lanczos()}, ValueError, r"svds needs key= \(.*for method Lanczos .*shape \(4, 3\)"),
        ((4, 3), {"method": sx.InverseLanczos(), "which": "smallest"}, ValueError, "for method InverseLanczos"),
        ((600, 600), {}, ValueError, "svds needs key="),
        ((4, 3), {"key": 0}, TypeError, "key must be a PRNG key"),
        ((4, 3), {"tol": 0.0}, ValueError, "tol must lie in"),
        ((4, 3), {"tol": 2.0}, ValueError, "tol must lie in"),
        ((4, 3), {"tol": "1"}, TypeError, "tol must be a real number"),
        ((4, 3), {"max_matvecs": 0}, ValueError, "max_matvecs must be at least 1"),
        ((4, 3), {"max_matvecs": 1.5}, TypeError, "max_matvecs must be an integer"),
        ((4, 3), {"method": sx.Dense(max_bytes=47)}, ValueError, "takes 48 bytes, above max_bytes=47"),
        ((40, 30), {"k": 5, "method": sx.Lanczos(subspace_size=5), "key": KEY}, ValueError, "larger than k = 5, got 5"),
        ((4, 3), {"v0": jnp.ones((1, 4)), "key": KEY}, ValueError, r"v0 must have shape \(1, 3\)"),
        ((4, 3), {"v0": (jnp.ones((1, 3)),), "key": KEY}, ValueError, "v0 must be a pytree of structure"),
        ((4, 3), {"v0": jnp.ones((1, 3), jnp.int32), "key": KEY}, TypeError, "v0 must have dtype float32"),
    ],
)
def test_what_is_refused(shape, arguments, error, message):
    with pytest.raises(error, match=message):
        sx.svds(jnp.ones(shape), **arguments)


def test_a_function_needs_a_key_even_where_it_is_made_dense():
    A = sx.aslinearoperator(jnp.cumsum, jnp.ones(3))
    with pytest.raises(ValueError, match="svds needs key="):
        sx.svds(A)
    assert bool(sx.svds(A, method=sx.Dense()).converged.all())
    assert bool(sx.svds(A, key=KEY).converged.all())


def test_what_auto_takes_for_the_top():
    choose = functools.partial(sx.spectrum.methods.choose, smallest=False, explicit=True)
    block = sx.Lanczos(block_size=4, subspace_size=52)
    assert choose((2000, 1000), 6, blocks=True) == block
    assert choose((2000, 1000), 5, blocks=True) == sx.Lanczos()
    assert choose((2000, 1000), 6) == sx.Lanczos()
    assert choose((2000, 512), 6, blocks=True) == sx.Dense()
    matrix = jnp.zeros((2000, 1000))
    resolve = functools.partial(resolve_method, which="largest", method="auto")
    assert resolve(matrix, 6) == block
    assert resolve(matrix, 6, started=True) == sx.Lanczos()
    assert resolve((lambda v: matrix @ v, jax.ShapeDtypeStruct((1000,), matrix.dtype)), 6) == sx.Lanczos()
