"""The inverse question: thresholds, initialisations, and choices that meet a target exactly or are refused."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.theory.random_matrices import (
    activation_slopes,
    branch_norm_for_depth,
    convnet_depth_slope,
    initializations,
    largest_depth,
    largest_negative_slope,
    largest_scale,
    largest_step_size,
    negative_slope_factor,
    scale_thresholds,
    skip_for_depth,
    skip_layer_bounds,
    skip_layer_limits,
    smallest_skip,
)

LEAKY = activation_slopes("leaky_relu", negative_slope=0.1)
ALL_SLOPES = pytest.mark.parametrize(
    "slopes", ["abs", "relu", LEAKY, [2.0, -0.3, 0.0]], ids=["abs", "relu", "leaky", "mixed"]
)


def number(c, rho, slopes):
    return skip_layer_limits(c, rho=rho, slopes=slopes).condition_number


def test_the_printed_thresholds():
    assert [round(x, 3) for x in scale_thresholds(slopes="abs")] == [0.5, 0.707, 1.0]
    assert [round(x, 3) for x in scale_thresholds(slopes="relu")] == [0.5, 0.816, 1.414]
    assert scale_thresholds(rho=0.0, slopes="relu") == (0, 0, 0)
    assert scale_thresholds(rho=1.0, slopes=[0.0]) == (math.inf,) * 3
    assert scale_thresholds(rho=0.0, slopes=[0.0]) == (0, 0, 0)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_slopes_whose_squares_leave_the_range(scale):
    slopes = [scale, 0.5 * scale]
    assert_allclose(np.array(scale_thresholds(slopes=slopes)) * scale, scale_thresholds(slopes=[1.0, 0.5]), rtol=1e-13)
    assert_allclose(largest_scale(3.0, slopes=slopes) * scale, largest_scale(3.0, slopes=[1.0, 0.5]), rtol=1e-12)


@ALL_SLOPES
def test_thresholds_are_where_bounds_end(slopes):
    thresholds = scale_thresholds(rho=-2.0, slopes=slopes)
    assert thresholds == tuple(sorted(thresholds))
    for factor, finite in ((1 - 1e-6, True), (1 + 1e-6, False)):
        bound = skip_layer_bounds(thresholds.guaranteed * factor, rho=2.0, slopes=slopes).condition_number
        assert math.isfinite(bound) == finite
        assert math.isfinite(number(thresholds.exact * factor, 2.0, slopes)) == finite


def test_the_usual_initialisations():
    table = initializations(rho=1.0)
    assert list(table) == ["pytorch_linear", "lecun", "xavier", "he", "orthogonal"]
    assert [round(row.scale, 3) for row in table.values()] == [0.577, 1.0, 1.0, 1.414, 1.0]
    assert table["pytorch_linear"].verdicts == {"abs": "guaranteed", "relu": "guaranteed", "leaky_relu": "guaranteed"}
    assert table["lecun"].verdicts == {"abs": "critical", "relu": "bounded", "leaky_relu": "bounded"}
    assert table["xavier"] == table["lecun"]
    assert table["he"].verdicts == {"abs": "unbounded", "relu": "critical", "leaky_relu": "unbounded"}
    assert table["orthogonal"].verdicts == {"abs": "critical", "relu": "unknown", "leaky_relu": "unknown"}
    printed = {"abs": 6.53, "relu": 4.05, "leaky_relu": 4.06}
    assert {name: round(k, 2) for name, k in table["pytorch_linear"].condition_numbers.items()} == printed
    assert table["he"].condition_numbers["relu"] == math.inf
    for row in initializations(rho=0.0).values():
        assert set(row.verdicts.values()) <= {"unbounded", "guaranteed", "unknown"}
    assert set(initializations(rho=0.0)["he"].verdicts.values()) == {"unbounded"}


@pytest.mark.parametrize("gain", [0.0, 0.3, 0.9, 1.5, 4.0])
def test_orthogonal_initialisation(gain):
    row = initializations(rho=1.0, gain=gain)["orthogonal"]
    assert_allclose(row.condition_numbers["abs"], (1 + gain) / abs(1 - gain), rtol=1e-14)
    assert row.verdicts["abs"] == "guaranteed"
    assert row.verdicts["relu"] == ("guaranteed" if gain < 1 else "unknown")
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = rng.integers(1, 20)
        W = gain * np.linalg.qr(rng.normal(size=(n, n)))[0]
        for name, d in (
            ("abs", rng.choice([-1, 1], n)),
            ("relu", rng.choice([0, 1], n)),
            ("leaky_relu", rng.choice([0.1, 1], n)),
        ):
            actual = np.linalg.cond(d[:, None] * W + np.eye(n))
            assert actual <= row.condition_numbers[name] * (1 + 1e-12)


@ALL_SLOPES
@pytest.mark.parametrize("target", [1.001, 2.0, 50.0, 1e8])
def test_the_largest_scale_meets_its_target(slopes, target):
    c = largest_scale(target, rho=-1.5, slopes=slopes)
    assert number(c, 1.5, slopes) <= target * (1 + 1e-9)
    assert_allclose(number(c, 1.5, slopes), target, rtol=1e-6)
    assert number(c * (1 + 1e-6), 1.5, slopes) > target
    assert_allclose(smallest_skip(target, c=c, slopes=slopes), 1.5, rtol=1e-12)
    deep = largest_scale(target**3, rho=-1.5, slopes=slopes, depth=3)
    assert_allclose(deep, c, rtol=1e-9)
    assert_allclose(smallest_skip(target**3, c=c, slopes=slopes, depth=3), 1.5, rtol=1e-9)


@ALL_SLOPES
def test_the_condition_number_grows_with_the_scale(slopes):
    numbers = [number(c, 1.0, slopes) for c in np.linspace(0, scale_thresholds(slopes=slopes).exact * 0.999, 200)]
    assert (np.diff(numbers) > 0).all()


def test_the_condition_number_grows_with_the_slope_of_inactive_units():
    for active in (0.0, 0.1, 0.5, 0.9):
        for c in (0.1, 0.5, 0.9):
            slopes = [
                activation_slopes("leaky_relu", active_fraction=active, negative_slope=x) for x in np.linspace(0, 1, 30)
            ]
            limits = np.array([skip_layer_limits(c, slopes=s) for s in slopes])
            assert (np.diff(limits[:, 0]) >= -1e-14).all()
            assert (np.diff(limits[:, 1]) <= 1e-14).all()


def test_the_largest_negative_slope_meets_its_target():
    for c, target, active, depth in ((0.5, 4.0, 0.5, 1), (0.6, 5.0, 0.2, 1), (0.25, 100.0, 0.5, 7)):
        eta = largest_negative_slope(target, c=c, active_fraction=active, depth=depth)
        assert 0 < eta < 1
        slopes = activation_slopes("leaky_relu", active_fraction=active, negative_slope=eta)
        assert_allclose(number(c, 1.0, slopes) ** depth, target, rtol=1e-9)
    assert largest_negative_slope(100.0, c=0.5) == 1
    with pytest.raises(ValueError, match=r"at least that of ReLU.* 3\.291.*got 3"):
        largest_negative_slope(3.0, c=0.5)


def test_the_largest_depth():
    for c in (0.25, 0.4):
        one = number(c, 1.0, "relu")
        for depth in range(1, 41):  # at some of them the quotient of the logarithms is rounded down
            assert largest_depth(one**depth, c=c, slopes="relu") == depth
            assert largest_depth(one**depth * 0.999, c=c, slopes="relu") == depth - 1 if depth > 1 else True
    assert largest_depth(2.0, c=0.0, slopes="relu") == largest_depth(1.0, c=0.5, slopes=[0.0]) == math.inf
    for options in (
        {"c": 0.25, "slopes": "abs"},
        {"c": 2.0, "slopes": "abs"},
        {"c": 0.1, "rho": 0.0, "slopes": "relu"},
    ):
        with pytest.raises(ValueError, match="at least that of one layer"):
            largest_depth(1.5, **options)


def test_a_product_of_layers_stays_under_the_target():
    """The design on random layers: three of width 150, with the finite-size shift of the edges allowed for."""
    rng, n, depth, target = np.random.default_rng(1), 150, 3, 30.0
    c = largest_scale(target, slopes="relu", depth=depth)
    for _ in range(5):
        M = np.eye(n)
        for _ in range(depth):
            M = (rng.integers(0, 2, n)[:, None] * rng.normal(size=(n, n)) * c / np.sqrt(n) + np.eye(n)) @ M
        assert np.linalg.cond(M) <= target * 1.05


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_depth_rules_are_inverse_and_hold(depth):
    rng, target = np.random.default_rng(depth), 20.0
    for rho in (0.3, -1.0, 2.0):
        delta = branch_norm_for_depth(target, depth=depth, rho=rho)
        assert_allclose(((abs(rho) + delta) / (abs(rho) - delta)) ** depth, target, rtol=1e-10)
        assert_allclose(skip_for_depth(target, depth=depth, branch_norm=delta), abs(rho), rtol=1e-12)
        for _ in range(10):
            M = np.eye(5)
            for _ in range(depth):
                W = rng.normal(size=(5, 5))
                M = (W * delta / np.linalg.norm(W, 2) + rho * np.eye(5)) @ M
            assert np.linalg.cond(M) <= target * (1 + 1e-9)
    assert branch_norm_for_depth(1.0, depth=depth) == 0
    assert skip_for_depth(1.0, depth=depth, branch_norm=0.0) == 0
    with pytest.raises(ValueError, match="larger than 1"):
        skip_for_depth(1.0, depth=depth, branch_norm=0.1)


def test_the_slope_of_depth():
    assert round(convnet_depth_slope(32) / math.log(10), 3) == 1.022
    assert convnet_depth_slope(1) == 0
    # psi(k) - psi(1/2) = H_(k-1) + 2 log 2, and psi(k + 1/2) - psi(1/2) = sum_j 2 / (2 j + 1) over j < k
    for k in (1, 2, 5, 16, 400):
        even = sum(1 / j for j in range(1, k)) + 2 * math.log(2)
        odd = sum(2 / (2 * j + 1) for j in range(k))
        assert_allclose(convnet_depth_slope(2 * k), even / 2, rtol=1e-14)
        assert_allclose(convnet_depth_slope(2 * k + 1), odd / 2, rtol=1e-14)
    assert_allclose(convnet_depth_slope(10**9), (math.log(2e9) + 0.5772156649015329) / 2, rtol=1e-9)


def test_the_slope_of_depth_on_random_products():
    """The two outermost growth rates of products of 4 x 4 Gaussians, by QR from either side over 4000 factors."""
    n, count = 4, 4000
    factors = np.random.default_rng(0).normal(size=(count, n, n))
    Q, logs = np.eye(n), np.zeros((count, n))
    for i, W in enumerate(factors):
        Q, R = np.linalg.qr(W @ Q)
        logs[i] = np.log(np.abs(np.diag(R)))
    each = logs[:, 0] - logs[:, -1]
    assert abs(each.mean() - convnet_depth_slope(n)) < 4 * each.std() / math.sqrt(count)


def test_the_factor_of_a_layers_own_slopes():
    rng = np.random.default_rng(0)
    for eta in (1.0, 0.3, -0.1):
        for _ in range(50):
            M, d = rng.normal(size=(6, 5)), rng.choice([1.0, eta], 5)
            assert np.linalg.cond(M * d) <= np.linalg.cond(M) * negative_slope_factor(eta) * (1 + 1e-12)
    # reached by an M whose directions are those of the units
    assert_allclose(np.linalg.cond(np.diag([1.0, 0.5]) * [1, 0.1]), 2 * negative_slope_factor(0.1), rtol=1e-14)
    assert negative_slope_factor(0.0) == math.inf
    with pytest.raises(ValueError, match="must lie in"):
        negative_slope_factor(1.5)


def test_the_largest_step_size():
    rng = np.random.default_rng(0)
    Q, batch = rng.normal(size=(12, 7)), 4
    limit = largest_step_size(np.linalg.norm(Q, 2), batch_size=batch)
    for factor, stable in ((0.999, True), (1.001, False)):
        step = np.eye(7) - factor * limit * 2 * Q.T @ Q / batch
        assert (np.max(np.abs(np.linalg.eigvalsh(step))) < 1) == stable
    assert largest_step_size(0.0) == math.inf


def test_where_nothing_limits_or_nothing_helps():
    assert largest_scale(1.0, slopes="abs") == 0
    assert largest_scale(1.0, slopes=[0.0, 0.0]) == math.inf
    assert smallest_skip(2.0, c=1.0, slopes=[0.0]) == 0
    with pytest.raises(ValueError, match="no skip gives"):
        smallest_skip(1.0, c=1.0, slopes="abs")
    with pytest.raises(ValueError, match="rho must not be 0"):
        largest_scale(10.0, rho=0.0, slopes="abs")


@pytest.mark.parametrize("target", [0.5, 0.999, -3.0, math.nan, math.inf])
def test_targets_that_are_none(target):
    for function in (
        lambda: largest_scale(target, slopes="abs"),
        lambda: smallest_skip(target, c=1.0, slopes="abs"),
        lambda: largest_depth(target, c=0.1, slopes="abs"),
        lambda: largest_negative_slope(target, c=0.1),
        lambda: branch_norm_for_depth(target, depth=2),
        lambda: skip_for_depth(target, depth=2, branch_norm=0.1),
    ):
        with pytest.raises(ValueError, match="target_condition_number must be"):
            function()


def test_other_arguments_that_are_none():
    for function, match in (
        (lambda: largest_scale(2.0, slopes="abs", depth=0), "depth must be at least 1"),
        (lambda: smallest_skip(2.0, c=0.0, slopes="abs"), "c must be larger than 0"),
        (lambda: initializations(negative_slope=2.0), "negative_slope must lie in"),
        (lambda: initializations(rho=math.nan), "rho must be finite"),
        (lambda: convnet_depth_slope(0), "n must be at least 1"),
        (lambda: largest_step_size(-1.0), "s_max must be at least 0"),
        (lambda: largest_negative_slope(2.0, c=0.1, active_fraction=1.5), "active_fraction must lie in"),
    ):
        with pytest.raises(ValueError, match=match):
            function()
