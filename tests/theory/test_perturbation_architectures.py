"""What each way of leading a skip guarantees, against Jacobians built in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.theory import perturbation

COUNT = 60


def values(M):
    return np.linalg.svd(M, compute_uv=False)


def matrices(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice([0.1, 0.5, 2.0], (COUNT,) + (1,) * len(shape)) * rng.normal(size=(COUNT, *shape))


def check(row, index, lower, upper, actual, tight=1e-9):
    assert bool(row.applies[index])
    assert np.all(row.holds[index])
    assert_allclose(row.actual[index], actual, rtol=1e-9, atol=1e-12)
    assert_allclose(row.lower[index], np.broadcast_to(lower, actual.shape), rtol=tight, atol=tight)
    assert_allclose(row.upper[index], np.broadcast_to(upper, actual.shape), rtol=tight, atol=tight)
    assert np.max(row.round_off[index]) < 1e-6 * (1 + np.max(actual)) ** 2
    assert np.all((actual >= lower - 1e-9) & (actual <= upper + 1e-9))


@pytest.mark.parametrize(("g", "n"), [(1, 1), (4, 4), (2, 5), (6, 3)])
def test_densenets(g, n, x64):
    first, second = matrices(g, n), matrices(3, n + g, seed=1)
    rhos = np.random.default_rng(2).choice([1.0, 0.5, -2.0, 0.0], COUNT)
    rows = jax.jit(jax.vmap(lambda A, B, rho: perturbation.densenet_bounds([A, B], rho)))(first, second, rhos)
    for index, (A, B, rho) in enumerate(zip(first, second, rhos, strict=True)):
        J = np.concatenate([rho * np.eye(n), A])
        s, a = values(J), np.concatenate([values(A), np.zeros(max(n - g, 0))])[:n]
        check(rows[0], index, *(2 * [np.sqrt(rho**2 + a**2)]), s, tight=1e-7)
        assert s[-1] >= abs(rho) - 1e-12
        assert np.all(rows[1].holds[index])
        assert np.all(rows[2].holds[index])
        assert bool(rows[1].applies[index]) == (rho != 0)
        if rho:
            kappa = s[0] / s[-1]
            assert_allclose(rows[1].actual[index], kappa, rtol=1e-9)
            assert_allclose(rows[1].upper[index], np.sqrt(1 + (a[0] / rho) ** 2), rtol=1e-9)
            assert kappa <= np.sqrt(1 + (a[0] / rho) ** 2) * (1 + 1e-12)
            if a[-1] > 0:
                assert_allclose(rows[2].upper[index], a[0] / a[-1], rtol=1e-9)
                assert kappa <= a[0] / a[-1] * (1 + 1e-12)
            else:
                assert rows[2].upper[index] == np.inf
        total = np.concatenate([rho * np.eye(n + g), B]) @ J
        grown = np.sqrt(rho**2 + a[0] ** 2) * np.sqrt(rho**2 + np.linalg.norm(B, 2) ** 2)
        check(rows[3], index, rho**2, grown, values(total))


def test_constant_gates(x64):
    A, gates = matrices(5, 5), np.random.default_rng(1).uniform(0, 1, (COUNT, 5))
    [row] = jax.jit(jax.vmap(perturbation.gated_bounds))(A, gates)
    for index, (B, g) in enumerate(zip(A, gates, strict=True)):
        branch = np.diag(1 - g) @ B
        reach, skip = np.linalg.norm(branch, 2), np.sort(g)[::-1]
        check(row, index, np.maximum(skip - reach, 0), skip + reach, values(np.diag(g) + branch))


def test_gates_that_depend_on_the_input_are_not_covered(x64):
    """d/dz of g(z) z has another term: at z = 1.2 the derivative leaves the bound for constant gates."""

    def layer(z):
        gate = jax.nn.sigmoid(-6 * (z - 1))
        return gate * z + (1 - gate) * 0.1 * z

    z = jnp.full(1, 1.2)
    gate = jax.nn.sigmoid(-6 * (z - 1))
    [row] = perturbation.gated_bounds(jnp.array([[0.1]]), gate)
    assert abs(float(jax.jacobian(layer)(z)[0, 0])) > float(row.upper[0]) + 0.1


@pytest.mark.parametrize(("m", "n"), [(3, 5), (4, 4), (5, 2)])
def test_projection_skips(m, n, x64):
    A, V = matrices(m, n), matrices(m, n, seed=1)
    rhos = np.random.default_rng(2).choice([1.0, 0.0, -1.5, 4.0], COUNT)
    [row] = jax.jit(jax.vmap(perturbation.projection_skip_bounds))(A, V, rhos)
    for index, (B, P, rho) in enumerate(zip(A, V, rhos, strict=True)):
        skip, reach = abs(rho) * values(P), np.linalg.norm(B, 2)
        check(row, index, np.maximum(skip - reach, 0), skip + reach, values(B + rho * P))


@pytest.mark.parametrize(("m", "n"), [(3, 5), (6, 2)])
def test_two_layer_blocks(m, n, x64):
    W1, W2 = matrices(m, n), matrices(n, m, seed=1)
    rng = np.random.default_rng(2)
    d1, d2 = rng.choice([1.0, 0.1], (COUNT, m)), rng.choice([1.0, -1.0], (COUNT, n))
    d1[::5] *= 2  # above 1: the second row is not for these
    rhos = rng.choice([1.0, 0.0, -1.5, 4.0], COUNT)

    def block(W1, W2, rho, d1, d2):
        return perturbation.two_layer_block_bounds(W1, W2, rho, inner_slopes=d1, outer_slopes=d2)

    rows = jax.jit(jax.vmap(block))(W1, W2, rhos, d1, d2)
    covered = 0
    for index in range(COUNT):
        rho, branch = abs(rhos[index]), np.diag(d2[index]) @ W2[index] @ np.diag(d1[index]) @ W1[index]
        actual, reach = values(rhos[index] * np.eye(n) + branch), np.linalg.norm(branch, 2)
        check(rows[0], index, max(rho - reach, 0), rho + reach, actual)
        small = bool(np.all(d1[index] <= 1))
        assert bool(rows[1].applies[index]) == small
        if small:
            covered += 1
            reach = np.linalg.norm(W1[index], 2) * np.linalg.norm(W2[index], 2)
            check(rows[1], index, max(rho - reach, 0), rho + reach, actual)
    assert 20 < covered < COUNT
    linear = perturbation.two_layer_block_bounds(W1[0], W2[0], 1.0)
    assert_allclose(linear[0].actual, values(np.eye(n) + W2[0] @ W1[0]), rtol=1e-10, atol=1e-12)


def test_activation_first(x64):
    W, rng = matrices(4, 4), np.random.default_rng(2)
    slopes, rhos = rng.choice([0.0, 1.0, -1.0, 0.1], (COUNT, 4)), rng.choice([1.0, 0.0, -1.5, 4.0], COUNT)
    rows = jax.jit(jax.vmap(perturbation.preactivation_bounds))(W, slopes, rhos)
    for row in rows:
        assert np.all(row.holds), row.name
    assert len({row.name for row in rows}) == 20
    for index, (A, d, rho) in enumerate(zip(W, slopes, rhos, strict=True)):
        actual = values(rho * np.eye(4) + A @ np.diag(d))
        for row in rows:
            if row.quantity == "singular values":
                assert_allclose(row.actual[index], actual, rtol=1e-9, atol=1e-12, err_msg=row.name)
        kept = np.linalg.norm(A[:, d != 0], 2) if (d != 0).any() else 0
        floor = next(row for row in rows if row.name == "D6b")
        assert_allclose(floor.lower[index], max(abs(rho) - kept, 0), atol=1e-12)


@pytest.mark.parametrize(
    ("taps", "sizes"),
    [((3,), (6,)), ((2,), (5,)), ((4,), (4,)), ((3, 3), (4, 5)), ((2, 3), (3, 4)), ((2, 1, 2), (2, 3, 2))],
)
def test_circular_convolutions_with_a_skip(taps, sizes, x64):
    """The matrix is built here, tap by tap, with the skip at the pixel itself."""
    rng = np.random.default_rng(len(taps))
    c, count = 2, int(np.prod(sizes))
    for rho in (0.0, 1.0, -0.7, 2.5):
        kernel = rng.normal(size=(*taps, c, c))
        K = np.zeros((*sizes, c, *sizes, c))
        for pixel in np.ndindex(*sizes):
            for tap in np.ndindex(*taps):
                source = tuple(
                    (p + t - (k - 1) // 2) % size for p, t, k, size in zip(pixel, tap, taps, sizes, strict=True)
                )
                K[pixel][(slice(None), *source)] += kernel[tap].T
        expected = values(K.reshape(count * c, count * c) + rho * np.eye(count * c))
        found = perturbation.circular_skip_singular_values(kernel, sizes, rho)
        assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
        [row] = perturbation.circular_skip_bounds(kernel, sizes, rho)
        assert bool(row.applies)
        assert np.all(row.holds)
        assert_allclose(row.actual, expected, rtol=1e-10, atol=1e-12)
        assert np.max(row.round_off) < 1e-10
    [row] = perturbation.circular_skip_bounds(kernel, sizes, 1.0, max_dense_size=2)
    assert row.actual is None
    assert row.holds is None
    bad = perturbation.circular_skip_bounds(kernel * np.nan, sizes, 1.0)[0]
    assert not bool(bad.applies)


def test_max_pooling_selects_rows_only_where_windows_do_not_overlap(x64):
    rng = np.random.default_rng(0)
    for _ in range(50):
        M, z = rng.normal(size=(6, 4)), rng.normal(size=6)
        apart = np.zeros((3, 6))
        for window in range(3):
            apart[window, 2 * window + np.argmax(z[2 * window : 2 * window + 2])] = 1
        chosen = apart.sum(axis=0)
        rows = {row.name: row for row in perturbation.slope_bounds(M.T, chosen)}
        assert bool(rows["D4"].applies)
        assert bool(rows["D4"].holds.all())
        assert_allclose(np.asarray(rows["D4"].actual)[:3], values(apart @ M), atol=1e-12)
    # windows of three at every place, over one peak: selected three times
    overlapping = np.zeros((4, 6))
    overlapping[[0, 1, 2], 2] = overlapping[3, 5] = 1
    assert_allclose(values(overlapping)[0], np.sqrt(3))


def test_single_precision_and_bad_numbers():
    A, d = matrices(4, 4).astype(np.float32), np.ones((COUNT, 4), np.float32)
    rhos = np.linspace(-2, 2, COUNT, dtype=np.float32)
    calls = [
        lambda A, d, rho: perturbation.densenet_bounds([A], rho),
        lambda A, d, rho: perturbation.gated_bounds(A, d * rho),
        lambda A, d, rho: perturbation.projection_skip_bounds(A, A, rho),
        lambda A, d, rho: perturbation.two_layer_block_bounds(A, A, rho),
        perturbation.preactivation_bounds,
    ]
    for call in calls:
        for row in jax.jit(jax.vmap(call))(A, d, rhos):
            assert row.upper.dtype == jnp.float32
            assert np.all(row.holds), row.name
        for row in call(jnp.full((4, 4), jnp.nan), d[0], 1.0):
            assert not bool(row.applies), row.name
            assert not np.any(row.holds), row.name
        for row in call(jnp.zeros((4, 4)), d[0], 0.0):
            assert np.all(row.holds), row.name


def test_a_product_that_leaves_the_range_is_not_judged():
    rows = perturbation.densenet_bounds([jnp.full((2, 3), 1e30), jnp.full((2, 5), 1e30)], 0.0)
    assert [bool(row.applies) for row in rows] == [True, False, True, False]
    assert not np.isnan(rows[-1].lower).any()


def test_arguments():
    with pytest.raises(TypeError, match="spatial_shape must be a sequence of sizes, got 4"):
        perturbation.circular_skip_singular_values(jnp.ones((3, 1, 1)), 4, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"kernel must have one entry at least, got shape \(0, 1, 1\)"):
        perturbation.circular_skip_singular_values(jnp.ones((0, 1, 1)), (4,), 1.0)
    with pytest.raises(ValueError, match="layers must hold at least one"):
        perturbation.densenet_bounds([], 1.0)
    with pytest.raises(ValueError, match=r"must have 5 columns, got shape \(1, 4\)"):
        perturbation.densenet_bounds([jnp.ones((2, 3)), jnp.ones((1, 4))], 1.0)
    with pytest.raises(ValueError, match=r"V must have A's shape \(2, 3\)"):
        perturbation.projection_skip_bounds(jnp.ones((2, 3)), jnp.ones((3, 2)), 1.0)
    with pytest.raises(ValueError, match=r"W2 must have shape \(3, 2\)"):
        perturbation.two_layer_block_bounds(jnp.ones((2, 3)), jnp.ones((2, 3)), 1.0)
    with pytest.raises(ValueError, match=r"kernel must have shape \(spatial..., c, c\)"):
        perturbation.circular_skip_singular_values(jnp.ones((3, 1, 2)), (4,), 1.0)
    with pytest.raises(TypeError, match="kernel must have a real floating-point dtype"):
        perturbation.circular_skip_singular_values(jnp.ones((3, 1, 1), jnp.int32), (4,), 1.0)
    with pytest.raises(ValueError, match="spatial_shape must have 1 entries"):
        perturbation.circular_skip_singular_values(jnp.ones((3, 1, 1)), (4, 4), 1.0)
