"""Bounds on singular values under activation slopes against formulas and values computed in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.theory import perturbation

COUNT = 72
NAMES = ["D1", "D2", "D3", "D4", "D4b", "D5", "D5b", "D5c", "D5d", "D2 output"]
SKIP_NAMES = ["D6", "D6 rank", "D6b", "D6b'", "D7", "D7'"]


def instances(m, n, seed=0):
    """Weights, slopes of every kind, and others of the same kind: leaky, ReLU, absolute value, linear, any."""
    rng = np.random.default_rng(seed)
    M = rng.normal(size=(COUNT, m, n)) / np.sqrt(n)
    M[::9, 0] = 0  # rank-deficient when m <= n
    kinds = [0.1, 0.0, -1.0, 1.0, -0.4, None]
    slopes, changed, outputs = np.empty((COUNT, n)), np.empty((COUNT, n)), np.empty((COUNT, m))
    for index in range(COUNT):
        eta = kinds[index % 6]
        for target in (slopes, changed, outputs):
            size = target.shape[1]
            pattern = np.where(rng.random(size) < 0.5, 1.0, 0.0 if eta is None else eta)
            target[index] = 2 * rng.normal(size=size) if eta is None else pattern
    slopes[7] = 0  # no unit is active
    return M, slopes, changed, outputs


def values(M):
    return np.linalg.svd(M, compute_uv=False)


def kappa(s):
    return s[0] / s[-1] if s[-1] > 1e-14 * s[0] else np.inf


def padded(s, count):
    return np.concatenate([s, np.zeros(max(count - len(s), 0))])[:count]


def compare(row, index, applies, lower, upper, actual, quality=1e-9):
    """The row of an instance is the formula's, and holds."""
    case = f"{row.name}, instance {index}"
    assert bool(row.applies[index]) == bool(applies), case
    assert np.all(row.holds[index]), case
    if not applies:
        assert np.all(row.upper[index] == np.inf), case
        return 0
    if np.all(np.isfinite(row.round_off[index])):
        shape = np.shape(actual)
        assert_allclose(row.actual[index], actual, rtol=quality, atol=quality, err_msg=case)
        assert_allclose(row.lower[index], np.broadcast_to(lower, shape), rtol=quality, atol=quality, err_msg=case)
        assert_allclose(row.upper[index], np.broadcast_to(upper, shape), rtol=quality, atol=quality, err_msg=case)
        finite = np.asarray(upper)[np.isfinite(upper)]
        assert np.all(row.round_off[index] <= 1e-6 * (1 + np.max(np.abs(finite), initial=0)) ** 2), case
        assert np.all(actual >= lower - quality * (1 + np.abs(actual))), case
        assert np.all(actual <= upper + quality * (1 + np.abs(actual))), case
    return 1


@pytest.mark.parametrize(("m", "n"), [(1, 1), (4, 4), (6, 3), (3, 6)])
def test_slopes(m, n, x64):
    M, slopes, _, outputs = instances(m, n)
    call = jax.jit(jax.vmap(lambda A, d, e: perturbation.slope_bounds(A, d, output_slopes=e)))
    rows = call(M, slopes, outputs)
    assert [row.name for row in rows] == NAMES
    applied = dict.fromkeys(NAMES, 0)
    for index, (A, d, e) in enumerate(zip(M, slopes, outputs, strict=True)):
        s, t, k = values(A), values(A * d), min(m, n)
        sizes, active = np.abs(d), d == 1
        r, others = active.sum(), d[d != 1]
        relu = np.isin(d, (0, 1)).all()
        eta = others[0] if len(others) else 1.0
        leaky = np.all(others == eta) and abs(eta) <= 1
        lo, hi = sizes.min(), sizes.max()
        A_active = values(A * active)
        passive = np.linalg.norm(A[:, ~active], 2) if (~active).any() else 0
        gram = np.linalg.eigvalsh(A[:, active] @ A[:, active].T)
        least, most = (np.sqrt(np.maximum(eta**2 * s**2 + (1 - eta**2) * end, 0)) for end in (gram[0], gram[-1]))
        regular = m == n and lo > 0 and s[-1] > 1e-12
        both = values(e[:, None] * A * d)
        q = lo * np.abs(e).min() / (hi * np.abs(e).max()) if hi * np.abs(e).max() else 0
        selected = values(A[:, active]) if r else np.zeros(1)
        with np.errstate(all="ignore"):
            expected = {
                "D1": (True, lo * s, hi * s, t),
                "D2": (lo > 0, max(kappa(s) * lo / hi, 1), kappa(s) * hi / lo, kappa(t)),
                "D3": (np.all(sizes == 1), s, s, t),
                "D4": (relu, padded(s[n - r :], k), np.where(np.arange(k) < r, s, 0), padded(selected, k)),
                "D4b": (relu and r > 0 and m >= n, 1, kappa(s), kappa(selected)),
                "D5": (leaky, np.maximum(A_active - abs(eta) * passive, 0), A_active + abs(eta) * passive, t),
                "D5b": (leaky, least, most, t),
                "D5c": (leaky, A_active, s, t),
                "D5d": (regular, *(2 * [np.sum(np.log(s)) + np.sum(np.log(sizes))]), np.sum(np.log(t))),
                "D2 output": (q > 0, max(kappa(s) * q, 1), kappa(s) / q if q else np.inf, kappa(both)),
            }
        for row in rows:
            applied[row.name] += compare(row, index, *expected[row.name], quality=1e-7)
    never = {"D4b"} if m < n else set()
    never |= {"D5d"} if m != n else set()
    for name, count in applied.items():
        assert count == 0 if name in never else count >= 6, (name, count)


def test_every_singular_value_rises_with_the_leak(x64):
    """ReLU <= leaky <= absolute value, one by one; abs leaves them alone."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        M, pattern = rng.normal(size=(5, 5)), rng.random(5) < 0.5
        etas = (0, 0.1, -0.3, 0.7, -1)
        ladder = np.array([values(M * np.where(pattern, 1.0, eta)) for eta in etas])
        assert np.diff(ladder, axis=0).min() > -1e-13
        for eta, true in zip(etas, ladder, strict=True):
            rows = {row.name: row for row in perturbation.slope_bounds(M, np.where(pattern, 1.0, eta))}
            assert_allclose(rows["D5c"].actual, true, atol=1e-13)
            assert bool(rows["D5c"].applies)
            assert bool(rows["D3"].applies) == (eta == -1 or bool(pattern.all()))


def test_hypotheses_of_slopes_that_do_not_hold(x64):
    def applied(*slopes):
        return {row.name for row in perturbation.slope_bounds(jnp.eye(3) + 1, jnp.array(slopes)) if row.applies}

    leaky = {"D5", "D5b", "D5c"}
    assert applied(1.0, 0.5, 0.2) == {"D1", "D2", "D5d"}
    assert applied(1.0, 2.0, 1.0) == {"D1", "D2", "D5d"}  # eta above 1
    assert applied(1.0, 0.0, 0.0) == {"D1", "D4", "D4b"} | leaky
    assert applied(0.0, 0.0, 0.0) == {"D1", "D4"} | leaky
    assert applied(-1.0, 1.0, 1.0) == {"D1", "D2", "D3", "D5d"} | leaky
    assert applied(1.0, 1.0, 1.0) == {"D1", "D2", "D3", "D4", "D4b", "D5d"} | leaky
    assert applied(jnp.nan, 1.0, 1.0) == set()
    wide = perturbation.slope_bounds(jnp.ones((2, 3)), jnp.array([1.0, 0.0, 1.0]))
    assert not any(row.applies for row in wide if row.name in ("D4b", "D5d"))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_slopes_with_a_skip(n, x64):
    W, slopes, _, _ = instances(n, n, seed=1)
    rhos = np.random.default_rng(2).choice([1.0, -0.6, 0.0, 3.0], COUNT)
    rows = jax.jit(jax.vmap(perturbation.skip_slope_bounds))(W, slopes, rhos)
    assert [row.name for row in rows] == SKIP_NAMES
    applied = dict.fromkeys(SKIP_NAMES, 0)
    for index, (A, d, rho) in enumerate(zip(W, slopes, rhos, strict=True)):
        J, active, size = np.diag(d) @ A + rho * np.eye(n), d != 0, abs(rho)
        s, r = values(J), active.sum()
        whole, kept = np.linalg.norm(A, 2), np.linalg.norm(A[active], 2) if r else 0
        block = (np.diag(d) @ A)[np.ix_(active, active)] + rho * np.eye(r)
        place, small, signs = np.arange(n), np.all(np.abs(d) <= 1), np.all(np.abs(d) == 1)
        regular = rho != 0 and s[-1] > 1e-12 and (r == 0 or values(block)[-1] > 1e-12)
        with np.errstate(all="ignore"):
            logs = (n - r) * np.log(size) + np.log(np.abs(np.linalg.det(block)))
            log_actual = np.log(np.abs(np.linalg.det(J)))
        expected = {
            "D6": (regular, logs, logs, log_actual),
            "D6 rank": (True, np.where(place < n - r, size, 0), np.where(place >= r, size, np.inf), s),
            "D6b": (small, max(size - kept, 0), np.inf, s[-1]),
            "D6b'": (small, max(size - whole, 0), np.inf, s[-1]),
            "D7": (signs, *(2 * [values(A + rho * np.diag(d))]), s),
            "D7'": (signs, np.maximum(values(A) - size, 0), values(A) + size, s),
        }
        for row in rows:
            applied[row.name] += compare(row, index, *expected[row.name])
    assert min(applied.values()) >= 12


def test_the_absolute_value_with_a_skip_is_not_the_linear_layer_with_a_skip(x64):
    W, d = np.random.default_rng(0).normal(size=(4, 4)), np.array([1.0, -1.0, -1.0, 1.0])
    with_slopes, without = values(np.diag(d) @ W + np.eye(4)), values(W + np.eye(4))
    assert np.abs(with_slopes - without).max() > 0.1


@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 5), (4, 3)])
def test_changes_of_slopes(m, n, x64):
    M, slopes, changed, _ = instances(n, m, seed=4)
    W = M.transpose(0, 2, 1)
    changed[::4] = np.where(np.arange(m) == 0, changed[::4], slopes[::4])  # at most one flip
    rhos = np.random.default_rng(2).choice([1.0, -2.0, 0.0, 4.0], COUNT) * (m == n)
    if m == n:
        rows = jax.jit(jax.vmap(perturbation.slope_change_bounds))(W, slopes, changed, rhos)
    else:
        rows = jax.jit(jax.vmap(perturbation.slope_change_bounds))(W, slopes, changed)
    names = ["D8", "D8b", "D8b relative", "D8c"]
    assert [row.name for row in rows] == names
    applied = dict.fromkeys(names, 0)
    for index, (A, d, e, rho) in enumerate(zip(W, slopes, changed, rhos, strict=True)):
        eye = rho * np.eye(m, n)
        s, t = values(np.diag(d) @ A + eye), values(np.diag(e) @ A + eye)
        counts, flipped = (d != 0) | (e != 0), d != e
        with np.errstate(all="ignore"):
            quotients = np.abs(e / d)[counts]
        finite = quotients[np.isfinite(quotients)]
        low, high = finite.min(initial=np.inf), quotients.max(initial=0)
        low = low if np.isfinite(low) else 0
        reach = np.abs(e - d).max() * (np.linalg.norm(A[flipped], 2) if flipped.any() else 0)
        room = abs(rho) - np.linalg.norm(np.diag(d) @ A, 2)
        k, count = flipped.sum(), len(s)
        relative = np.abs(t - s) / s if s[-1] > 1e-10 else np.zeros(count)
        expected = {
            "D8": (rho == 0, low * s, high * s if np.isfinite(high) else np.full(count, np.inf), t),
            "D8b": (True, np.maximum(s - reach, 0), s + reach, t),
            "D8b relative": (room > 1e-10, 0, reach / max(room, 1e-10), relative),
            "D8c": (True, padded(s[k:], count), np.concatenate([np.full(min(k, count), np.inf), s])[:count], t),
        }
        for row in rows:
            applied[row.name] += compare(row, index, *expected[row.name])
    assert applied["D8"] >= 12
    assert applied["D8b relative"] >= (8 if m == n else 0)


def test_single_precision(key):
    M, slopes, changed, outputs = (x.astype(np.float32) for x in instances(5, 5, seed=6))
    rhos = np.linspace(-2, 2, COUNT, dtype=np.float32)
    for scale in (1.0, 1e-25, 1e25):
        scaled, shift = np.float32(scale) * M, np.float32(scale) * rhos
        rows = jax.vmap(lambda A, d, e: perturbation.slope_bounds(A, d, output_slopes=e))(scaled, slopes, outputs)
        rows += jax.vmap(perturbation.skip_slope_bounds)(scaled, slopes, shift)
        rows += jax.vmap(perturbation.slope_change_bounds)(scaled, slopes, changed, shift)
        for row in rows:
            assert row.lower.dtype == jnp.float32
            assert bool(jnp.all(row.holds)), (row.name, scale)


def test_zero_matrices_and_bad_numbers():
    ones = jnp.ones(3)
    for row in [
        *perturbation.slope_bounds(jnp.zeros((3, 3)), ones, output_slopes=ones),
        *perturbation.skip_slope_bounds(jnp.zeros((3, 3)), ones, 0.0),
        *perturbation.slope_change_bounds(jnp.zeros((3, 3)), ones, -ones, 0.0),
        *perturbation.slope_change_bounds(jnp.zeros((3, 3)), ones, -ones, jnp.float32(0)),
    ]:
        assert np.all(row.holds), row.name
    nan = jnp.full((3, 3), jnp.nan)
    for row in [
        *perturbation.slope_bounds(nan, ones, output_slopes=ones),
        *perturbation.skip_slope_bounds(nan, ones, 1.0),
        *perturbation.slope_change_bounds(nan, ones, -ones, 1.0),
        *perturbation.skip_slope_bounds(jnp.eye(3), ones * jnp.nan, 1.0),
        *perturbation.slope_change_bounds(jnp.eye(3), ones, ones * jnp.nan, 1.0),
    ]:
        assert not bool(row.applies), row.name
        assert not np.any(row.holds), row.name


def test_gradients_are_finite_and_right(x64):
    rng = np.random.default_rng(0)
    W, direction = rng.normal(size=(2, 4, 4))
    d, e = np.array([1.0, 0.1, 0.1, 1.0]), np.array([0.1, 0.1, 1.0, 1.0])

    def numbers(t):
        A = W + t * direction
        rows = perturbation.slope_bounds(A, d, output_slopes=e) + perturbation.skip_slope_bounds(A, d, 0.7 + t)
        rows += perturbation.slope_change_bounds(A, d, e, 0.7 + t)
        return [[jnp.where(jnp.isfinite(x), x, 0) for x in (row.lower, row.upper, row.actual)] for row in rows]

    _, slopes = jax.jvp(numbers, (0.0,), (1.0,))
    high, low = numbers(1e-6), numbers(-1e-6)
    jax.tree.map(lambda x, a, b: assert_allclose(x, (a - b) / 2e-6, rtol=1e-5, atol=1e-6), slopes, high, low)


def test_arguments():
    with pytest.raises(ValueError, match=r"slopes must have shape \(3,\), got \(2,\)"):
        perturbation.slope_bounds(jnp.ones((2, 3)), jnp.ones(2))
    with pytest.raises(ValueError, match=r"output_slopes must have shape \(2,\), got \(3,\)"):
        perturbation.slope_bounds(jnp.ones((2, 3)), jnp.ones(3), output_slopes=jnp.ones(3))
    with pytest.raises(TypeError, match="slopes must have a real floating-point dtype, got int32"):
        perturbation.slope_bounds(jnp.eye(2), jnp.array([0, 1]))
    with pytest.raises(TypeError, match="W must have a real floating-point dtype, got complex64"):
        perturbation.skip_slope_bounds(jnp.eye(2, dtype=jnp.complex64), jnp.ones(2), 1.0)
    with pytest.raises(ValueError, match="W must be square"):
        perturbation.slope_change_bounds(jnp.ones((2, 3)), jnp.ones(2), jnp.ones(2), 1.0)
    with pytest.raises(TypeError, match="rho must be a real number, got False"):
        perturbation.slope_change_bounds(jnp.eye(2), jnp.ones(2), jnp.ones(2), False)
    assert perturbation.slope_change_bounds(jnp.ones((2, 3)), jnp.ones(2), jnp.ones(2))[0].applies
