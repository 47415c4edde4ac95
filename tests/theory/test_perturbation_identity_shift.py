"""Bounds on the singular values of M + rho I against formulas and values computed in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.theory import perturbation

COUNT = 96
DIMENSIONS = (1, 2, 3, 6)
NAMES = ["A1", "A4", "A5", "A6", "A7", "A7'", "A8", "A8 kappa", "A11", "A12", "A12'", "A13", "A14", "A15"]


def instances(n, seed=0):
    """Gaussian, symmetric, positive semidefinite, normal, orthogonal, singular, ill-conditioned and zero matrices."""
    rng = np.random.default_rng(seed)
    matrices = []
    for index in range(COUNT):
        scale = rng.choice([0.1, 0.3, 1.0, 3.0])
        G = scale * rng.normal(size=(n, n)) / np.sqrt(n)
        Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
        kinds = [
            G,
            G,
            (G + G.T) / 2,
            G @ G.T,
            Q,
            scale * Q,
            G - G.T,
            np.roll(np.eye(n), 1, axis=0) * scale,
            G * (np.arange(n) > 0),
            Q @ np.diag(np.geomspace(1, 1e-5, n)) @ G,
            scale * np.eye(n),
            np.zeros((n, n)),
        ]
        matrices.append(kinds[index % len(kinds)])
    return np.array(matrices), rng.choice([-2.0, -1, -0.5, 0, 0.3, 1, 1.5, 4], COUNT) * rng.choice([1.0, 0.9], COUNT)


def kappa(s):
    return s[0] / s[-1] if s[-1] > 0 else np.inf


def values(M):
    return np.linalg.svd(M, compute_uv=False)


def expected(M, rho):
    """Hypotheses and bounds by the textbook formulas, in NumPy: name to (applies, lower, upper, actual)."""
    M, rho = (M, rho) if rho >= 0 else (-M, -rho)
    n, eye = len(M), np.eye(len(M))
    s, t = values(M), values(M + rho * eye)
    h = np.linalg.eigvalsh((M + M.T) / 2)[::-1]
    S = (M + M.T) / 2
    delta = np.linalg.norm(M.T @ M - S @ S, 2)
    u, _, vt = np.linalg.svd(M)
    start = np.maximum(-h[-1], 0)
    at_start = values(M + start * eye)
    eigenvalues = np.linalg.eigvals(M)
    inf, tiny = np.inf, 1e-12

    def root(x):
        return np.sqrt(np.maximum(x, 0))

    with np.errstate(all="ignore"):
        return {
            "A1": (True, np.maximum(s - rho, 0), s + rho, t),
            "A4": (True, root(s**2 + 2 * rho * h[-1] + rho**2), root(s**2 + 2 * rho * h[0] + rho**2), t),
            "A5": (True, np.maximum(np.maximum(rho + h, -(rho + h)[::-1]), 0), inf, t),
            "A6": (s[0] < rho - tiny, 1, (rho + s[0]) / (rho - s[0]), kappa(t)),
            "A7": (s[0] < rho - tiny and s[-1] * (rho + s[0]) <= s[0] * (rho - s[0]), 1, kappa(s), kappa(t)),
            "A7'": (
                rho > 0 and rho + 2 * h[-1] > tiny
                and (s[0] / s[-1]) ** 2 > (1 + tiny) * (rho + 2 * h[0]) / (rho + 2 * h[-1]),
                1, kappa(s), kappa(t),
            ),
            "A8": (rho + h[-1] > tiny, rho + h, root((rho + h) ** 2 + delta), t),
            "A8 kappa": (
                rho + h[-1] > tiny, np.maximum((rho + h[0]) / root((rho + h[-1]) ** 2 + delta), 1),
                root((rho + h[0]) ** 2 + delta) / (rho + h[-1]), kappa(t),
            ),
            "A11": (True, *(2 * [np.sum(M**2) + 2 * rho * np.trace(M) + n * rho**2]), np.sum(t**2)),
            "A12": (rho >= start - tiny, at_start, inf, t),
            "A12'": (h[-1] >= -tiny, root(s**2 + rho**2), inf, t),
            "A13": (
                np.linalg.norm(M @ M.T - M.T @ M) < tiny * max(s[0] ** 2, 1e-30),
                *(2 * [np.sort(np.abs(eigenvalues + rho))[::-1]]), t,
            ),
            "A14": (np.abs(s - 1).max() < tiny, *(2 * [root(1 + 2 * rho * h + rho**2)]), t),
            "A15": (
                True, np.maximum(np.cumsum(s) + rho * np.cumsum(np.sum(u * vt.T, axis=0)), 0),
                (np.cumsum(s) + np.cumsum(values(M + 2 * rho * eye))) / 2, np.cumsum(t),
            ),
        }  # fmt: skip


def unrepeated(M):
    s = np.linalg.svd(M, compute_uv=False)
    return len(s) == 1 or np.diff(s).max() < -1e-6


@pytest.mark.parametrize("n", DIMENSIONS)
def test_every_row_is_its_formula_and_holds(n, x64):
    matrices, rhos = instances(n)
    rows = jax.jit(jax.vmap(perturbation.identity_shift_bounds))(matrices, rhos)
    assert [row.name for row in rows] == NAMES
    applied = dict.fromkeys(NAMES, 0)
    for index, (M, rho) in enumerate(zip(matrices, rhos, strict=True)):
        for name, (applies, lower, upper, actual) in expected(M, rho).items():
            row = jax.tree.map(lambda x, index=index: np.asarray(x[index]), rows[NAMES.index(name)])
            case = f"{name}, instance {index}, rho {rho}"
            if not np.isinf(row.round_off).any():  # of condition numbers beyond the dtype nothing is known
                assert_allclose(row.actual, actual, rtol=1e-7, atol=1e-13, err_msg=case)
            assert np.all(row.holds), case
            assert bool(row.applies) == bool(applies), case
            if not applies:
                least = 1 if row.quantity == "condition number" else 0
                assert np.all(row.lower == least), case
                assert np.all(row.upper == np.inf), case
                continue
            applied[name] += 1
            # The truth lies within the bounds as computed, up to the claimed round-off, which is tiny.
            finite = np.isfinite(row.round_off)
            largest = max(np.max(np.abs(actual)), np.max(row.upper[np.isfinite(row.upper)], initial=0))
            assert np.all(row.round_off[finite] <= 1e-6 * (1 + largest) ** 2), case
            close = finite & np.isfinite(np.broadcast_to(upper, row.upper.shape))
            if name != "A15" or unrepeated(M):  # the tangent depends on the choice of vectors
                assert_allclose(
                    row.lower[finite], np.broadcast_to(lower, row.lower.shape)[finite], rtol=1e-6, atol=1e-7
                )
            assert_allclose(row.upper[close], np.broadcast_to(upper, row.upper.shape)[close], rtol=1e-6, atol=1e-7)
            slack = 1e-7 if name in ("A4", "A8", "A12'", "A13", "A14") else 1e-10 * (1 + np.max(np.abs(actual)))
            assert np.all(actual >= row.lower - slack) or not finite.all(), case
            assert np.all(actual <= row.upper + slack) or not finite.all(), case
    rare = {"A7": 3, "A7'": 3} if n > 1 else {"A7": 0, "A7'": 0}
    for name, count in applied.items():
        assert count >= rare.get(name, 5), (name, count)


def test_hypotheses_that_do_not_hold_are_reported(x64):
    def applied(M, rho):
        rows = perturbation.identity_shift_bounds(jnp.asarray(M), rho)
        return {row.name for row in rows if row.applies}

    always = {"A1", "A4", "A5", "A11", "A15"}
    jordan = np.array([[0.0, 2.0], [0.0, 0.0]])  # not normal, h = 1, -1, s = 2, 0
    assert applied(jordan, 0.5) == always
    assert applied(jordan, 1.5) == always | {"A8", "A8 kappa", "A12"}
    assert applied(jordan, 2.5) == always | {"A6", "A7", "A7'", "A8", "A8 kappa", "A12"}
    assert "A14" not in applied(1.001 * np.eye(2), 1.0)
    assert "A14" in applied(np.eye(2), 1.0)
    assert "A13" not in applied(np.array([[1.0, 1e-6], [0.0, 2.0]]), 1.0)
    assert "A12'" not in applied(np.diag([1.0, -1e-6]), 1.0)
    assert "A7" not in applied(np.diag([0.5, 0.4]), 1.0)


def test_a_skip_makes_an_orthogonal_matrix_worse(x64):
    """kappa is 1 without a skip, and infinite where -rho is an eigenvalue."""
    angle = 2.5
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    Q = np.zeros((4, 4))
    Q[:2, :2], Q[2, 2], Q[3, 3] = rotation, 1, -1
    kappas = np.asarray(perturbation.condition_numbers(Q, np.array([0.0, 0.5, 0.9])))
    assert_allclose(kappas[0], 1, rtol=1e-14)
    assert_allclose(kappas[1:], [1.5 / 0.5, 1.9 / 0.1], rtol=1e-12)
    at_one = {row.name: row for row in perturbation.identity_shift_bounds(Q, 1.0)}
    assert bool(at_one["A14"].applies)
    assert_allclose(at_one["A14"].lower, [2, *(2 * [np.sqrt(2 + 2 * np.cos(angle))]), 0], atol=1e-7)
    assert float(at_one["A1"].actual[-1]) < 1e-15
    assert not at_one["A7"].applies
    assert not at_one["A7'"].applies


def test_the_critical_rho(x64):
    matrices, _ = instances(5, seed=4)
    found = jax.vmap(perturbation.critical_rho)(matrices)
    smallest = np.linalg.eigvalsh((matrices + matrices.transpose(0, 2, 1)) / 2)[:, 0]
    assert_allclose(found, np.maximum(-smallest, 0), atol=1e-14)
    # from there on no value falls; just below, for some matrices, one does
    steps = np.linspace(0, 3, 13)
    shifted = matrices[:, None] + (np.asarray(found)[:, None] + steps)[..., None, None] * np.eye(5)
    rise = np.diff(np.linalg.svd(shifted, compute_uv=False), axis=1)
    assert rise.min() > -1e-13
    symmetric = np.diag([1.0, -2.0])
    below = np.linalg.svd(symmetric + 1.5 * np.eye(2), compute_uv=False)
    assert below[-1] > np.linalg.svd(symmetric + 1.75 * np.eye(2), compute_uv=False)[-1]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15, 1e30])
def test_single_precision_at_any_scale(scale):
    """No overflow, no vanishing, and rounding allowed for: every row holds, and says nothing false."""
    matrices, rhos = instances(6, seed=1)
    M, rho = (scale * matrices).astype(np.float32), (scale * rhos).astype(np.float32)
    rows = jax.jit(jax.vmap(perturbation.identity_shift_bounds))(M, rho)
    for row in rows:
        assert row.actual.dtype == row.lower.dtype == row.upper.dtype == jnp.float32
        assert bool(jnp.all(row.holds)), row.name
    weyl = rows[0]
    exact = np.linalg.svd(M.astype(np.float64) + rho[:, None, None] * np.eye(6), compute_uv=False)
    assert np.all(np.abs(weyl.actual - exact) <= weyl.round_off)
    assert np.max(weyl.round_off) <= 1e-3 * scale * 10


def test_what_is_not_finite_applies_nowhere():
    for M, rho in (
        (jnp.eye(3).at[0, 1].set(jnp.nan), 1.0),
        (jnp.eye(3).at[2, 2].set(jnp.inf), 1.0),
        (jnp.eye(3), jnp.nan),
    ):
        for row in perturbation.identity_shift_bounds(M, rho):
            assert not bool(row.applies), row.name
            assert np.isnan(row.actual).all(), row.name
            assert not np.any(row.holds), row.name
            assert np.isnan(row.slack).all(), row.name
    assert np.isnan(perturbation.critical_rho(jnp.full((2, 2), jnp.nan)))


def test_squares_that_leave_the_range_are_not_judged():
    """The sum of squares of -M + rho I with M = rho I is zero in the common unit, and 0 inf in the squared one."""
    rows = {row.name: row for row in perturbation.identity_shift_bounds(-1e30 * jnp.eye(2), 1e30)}
    assert not bool(rows["A11"].applies)
    assert not np.isnan([rows["A11"].lower, rows["A11"].upper]).any()
    assert bool(rows["A1"].applies)
    assert bool(rows["A1"].holds.all())


def test_results_that_are_flushed_to_zero_hold():
    """Values below the smallest normal number are lost; what is computed of them counts as round-off."""
    rng = np.random.default_rng(0)
    M = (1e-36 * rng.normal(size=(64, 3, 3)) * rng.choice([1, 1e-2], (64, 1, 1))).astype(np.float32)
    rho = (1e-37 * rng.normal(size=64)).astype(np.float32)
    for row in jax.jit(jax.vmap(perturbation.identity_shift_bounds))(M, rho):
        assert bool(jnp.all(row.holds)), row.name


def test_holds_is_false_outside_and_slack_negative():
    """The record itself must be able to say no."""
    row = perturbation.identity_shift_bounds(jnp.diag(jnp.array([2.0, 1.0])), 0.5)[0]
    wrong = perturbation.Bound(
        row.name, row.quantity, row.statement, row.applies, row.lower, row.upper, row.actual + 1, row.round_off
    )
    assert not np.any(wrong.holds)
    assert_allclose(wrong.slack, [-1, -1], atol=1e-6)
    too_low = perturbation.Bound(
        row.name, row.quantity, row.statement, row.applies, row.lower, row.upper, row.actual - 2, row.round_off
    )
    assert not np.any(too_low.holds)
    assert_allclose(too_low.slack, [-1, -1], atol=1e-6)
    unknown = perturbation.Bound("", "", "", row.applies, row.lower, row.upper, None, row.round_off)
    assert unknown.slack is None
    assert unknown.holds is None


def test_gradients_against_central_differences(x64):
    rng = np.random.default_rng(8)
    M, direction = 0.4 * rng.normal(size=(2, 4, 4))

    names = [name for name in NAMES if name not in ("A13", "A14")]

    def numbers(t):
        rows = perturbation.identity_shift_bounds(M + t * direction, 1.3 + t)
        return [(row.lower, row.upper, row.actual) for row in rows if row.name in names]

    _, slopes = jax.jvp(numbers, (0.0,), (1.0,))
    step = 1e-6
    for name, found, above, below in zip(names, slopes, numbers(step), numbers(-step), strict=True):
        for side, one, high, low in zip(("lower", "upper", "actual"), found, above, below, strict=True):
            finite = np.isfinite(high)
            difference = np.where(finite, np.subtract(high, low, where=finite, out=np.zeros_like(high)) / (2 * step), 0)
            if name == "A15" and side == "lower":
                continue  # a tangent with fixed vectors: another valid bound at the neighbouring matrix
            assert_allclose(np.where(finite, one, 0), difference, rtol=1e-5, atol=1e-7, err_msg=f"{name} {side}")
    reverse = jax.grad(lambda M: sum(jnp.sum(jnp.where(jnp.isfinite(row.upper), row.upper, 0))
                                     for row in perturbation.identity_shift_bounds(M, 1.3)))(M)  # fmt: skip
    assert np.isfinite(reverse).all()


def test_sixteen_bits_are_computed_in_single_precision():
    rows = perturbation.identity_shift_bounds(jnp.eye(3, dtype=jnp.bfloat16), 0.5)
    assert all(row.lower.dtype == jnp.float32 for row in rows)


def test_arguments():
    with pytest.raises(TypeError, match="M must have a real floating-point dtype, got complex64"):
        perturbation.identity_shift_bounds(jnp.eye(2, dtype=jnp.complex64), 1.0)
    with pytest.raises(TypeError, match="M must have a real floating-point dtype, got int32"):
        perturbation.critical_rho(jnp.eye(2, dtype=jnp.int32))
    with pytest.raises(ValueError, match=r"M must be square, got shape \(2, 3\)"):
        perturbation.identity_shift_bounds(jnp.ones((2, 3)), 1.0)
    with pytest.raises(ValueError, match=r"M must be a matrix of at least one entry, got shape \(0, 0\)"):
        perturbation.identity_shift_bounds(jnp.ones((0, 0)), 1.0)
    with pytest.raises(ValueError, match=r"rho must be a scalar, got shape \(1,\)"):
        perturbation.identity_shift_bounds(jnp.eye(2), jnp.ones(1))
    for rho in (1j, "1", None, True, jnp.array(1j), jnp.array(True)):
        with pytest.raises(TypeError, match="rho must be a real number"):
            perturbation.identity_shift_bounds(jnp.eye(2), rho)
    assert perturbation.identity_shift_bounds(jnp.eye(2), 1)[0].upper.tolist() == [2.0, 2.0]
    assert perturbation.identity_shift_bounds(jnp.eye(2), 2**31)[0].upper.tolist() == [2.0**31, 2.0**31]
