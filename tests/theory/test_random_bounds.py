"""Bounds at finite width: printed values, and how often each holds in NumPy's singular values of random layers."""

import math

import jax
import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose

from spectrax.theory.random_matrices import (
    ExtremeBounds,
    activation_slopes,
    entrywise_condition_number_bound,
    expected_log_condition_number,
    gaussian_condition_number_cdf,
    gaussian_matrix_bounds,
    norm_concentration,
    norm_condition_number_bound,
    pattern_free_bounds,
    sample_skip_layer,
    skip_layer_bounds,
    skip_layer_limits,
    smallest_singular_value_tail,
)

LEAKY = activation_slopes("leaky_relu", negative_slope=0.1)


def at_least(hits, probability, *, sigmas=4):
    """Whether a share of independent hits speaks against a probability."""
    hits = np.asarray(hits)
    return hits.mean() >= probability - sigmas * math.sqrt(probability * (1 - probability) / hits.size)


def gaussians(seed, count, *shape):
    return np.random.default_rng(seed).normal(size=(count, *shape))


# kappa by the bounds of infinite width: c, then abs, leaky ReLU with 0.1 and ReLU
TABLE = [(0.25, 2.16, 1.93, 1.93), (0.5, 6.31, 4.45, 4.43), (3**-0.5, 10.9, 6.31, 6.28), (0.8, math.inf, 118, 109)]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]:.3f}")
def test_the_table_of_bounds(row):
    c, *expected = row
    for slopes, number in zip(("abs", LEAKY, "relu"), expected, strict=True):
        found = skip_layer_bounds(c, rho=1.0, slopes=slopes)
        assert float(f"{found.condition_number:.3g}") == number
        assert (found.probability_max, found.probability_min, found.probability) == (1, 1, 1)


def test_the_bounds_lie_outside_of_the_limits():
    for slopes in ("abs", "relu", LEAKY, [2.0, -0.3, 0.0], [0.2, 0.4]):
        for c in (0.0, 0.1, 0.3, 0.7, 3.0):
            limits, bounds = skip_layer_limits(c, slopes=slopes), skip_layer_bounds(c, slopes=slopes)
            everywhere = pattern_free_bounds(c, largest_slope=np.max(np.abs(activation(slopes))))
            assert limits.s_max <= bounds.s_max * (1 + 1e-15) <= everywhere.s_max * (1 + 1e-14)
            assert limits.s_min >= bounds.s_min * (1 - 1e-15) >= everywhere.s_min * (1 - 1e-14)


def activation(slopes):
    return (
        activation_slopes(slopes).values
        if isinstance(slopes, str)
        else np.asarray(slopes[0] if slopes is LEAKY else slopes)
    )


@pytest.mark.parametrize(
    ("slopes", "rho", "c"),
    [("abs", 1.0, 0.4), ("relu", 1.0, 0.5), (LEAKY, -0.7, 0.3), ([2.0, -0.3, 0.0, 1.0] * 5, 1.0, 0.3)],
)
def test_how_often_the_bounds_of_a_skip_layer_hold(slopes, rho, c, x64):
    """Each of the two bounds at least as often as it says; and the means lie inside the bounds without e."""
    n, count = 20, 1500
    for seed in (0, 1):
        keys = jax.random.split(jax.random.key(seed), count)
        layers = jax.vmap(lambda key: sample_skip_layer(key, n=n, c=c, rho=rho, slopes=slopes))(keys)
        s = np.linalg.svd(np.asarray(layers), compute_uv=False)
        for t in (0.0, 0.5, 1.5):
            bounds = skip_layer_bounds(c, rho=rho, slopes=slopes, n=n, t=t)
            above, below = s[:, 0] <= bounds.s_max, s[:, -1] >= bounds.s_min
            assert at_least(above, bounds.probability_max)
            assert at_least(below, bounds.probability_min)
            assert at_least(above & below, bounds.probability)
        plain = skip_layer_bounds(c, rho=rho, slopes=slopes)
        assert s[:, -1].mean() >= plain.s_min
        assert s[:, 0].mean() <= plain.s_max


def test_the_means_in_the_proof(x64):
    """E lambda_max(Sym(D W)) <= c sqrt(1 + m2) and E |D W| <= c (1 + sqrt m2): with abs and ReLU, at three widths."""
    for n in (10, 50, 200):
        for slopes, m2 in (("abs", 1.0), ("relu", 0.5)):
            keys = jax.random.split(jax.random.key(n), 10)
            draw = jax.vmap(lambda key, n=n, s=slopes: sample_skip_layer(key, n=n, c=1.0, rho=0.0, slopes=s))
            M = np.asarray(draw(keys))
            top = np.linalg.eigvalsh((M + np.swapaxes(M, 1, 2)) / 2)[:, -1].mean()
            norm = np.linalg.norm(M, 2, axis=(1, 2)).mean()
            assert top <= math.sqrt(1 + m2)
            assert norm <= 1 + math.sqrt(m2)
            if n == 200:
                assert top > 0.85 * math.sqrt(1 + m2)
                assert norm > 0.93 * (1 + math.sqrt(m2))


def test_uniformly_over_all_patterns():
    """The worst pattern of every draw: all 2^8 of ReLU."""
    n, c, t = 8, 0.2, 0.7
    bounds = pattern_free_bounds(c, rho=1.0, n=n, t=t)
    patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    hits = []
    for W in gaussians(0, 200, n, n) * c / math.sqrt(n):
        s = np.linalg.svd(patterns[:, :, None] * W + np.eye(n), compute_uv=False)
        hits.append(s[:, 0].max() <= bounds.s_max and s[:, -1].min() >= bounds.s_min)
    assert at_least(hits, bounds.probability)
    assert pattern_free_bounds(0.2, rho=1.0).condition_number == pytest.approx(1.4 / 0.6, rel=1e-14)
    assert pattern_free_bounds(0.5, rho=1.0).condition_number == math.inf
    assert pattern_free_bounds(0.1, rho=-1.0, largest_slope=2.0) == pattern_free_bounds(0.2, rho=1.0)


@pytest.mark.parametrize("shape", [(40, 10), (10, 40), (25, 25), (1, 1)])
def test_gaussian_matrices(shape):
    for seed in range(3):
        s = np.linalg.svd(0.3 * gaussians(seed, 1000, *shape), compute_uv=False)
        for t in (0.1, 1.0, 2.0):
            bounds = gaussian_matrix_bounds(*shape, standard_deviation=0.3, t=t)
            above, below = s[:, 0] <= bounds.s_max, s[:, -1] >= bounds.s_min
            assert at_least(above, bounds.probability_max)
            assert at_least(below, bounds.probability_min)
            assert at_least(above & below, bounds.probability)
    # the bounds are loose at small sizes, so that counting does not see each factor
    both, one = 1 - 2 * math.exp(-2), 1 - math.exp(-2)
    assert_allclose(
        gaussian_matrix_bounds(100, 400, standard_deviation=0.5, t=2.0), (16, 4, one, one, both), rtol=1e-14
    )
    assert gaussian_matrix_bounds(25, 25, t=1.0).s_min == 0
    assert gaussian_matrix_bounds(40, 10, t=0.0).probability_max == 0


def test_the_law_of_edelman():
    printed = [0.018, 0.223, 0.535, 0.755, 0.900]
    assert [round(gaussian_condition_number_cdf(x), 3) for x in (1, 2, 4, 8, 20)] == printed
    assert gaussian_condition_number_cdf(0) == gaussian_condition_number_cdf(1e-200) == 0
    assert gaussian_condition_number_cdf(1e300) == 1
    n, count = 40, 3000
    scaled = np.linalg.cond(gaussians(0, count, n, n)) / n
    for x in (1, 2, 4, 8, 20):
        p = gaussian_condition_number_cdf(x)
        # the law is one of large n; at 40 it is off by some 0.01
        assert abs((scaled < x).mean() - p) < 4 * math.sqrt(p * (1 - p) / count) + 0.015
    assert abs(np.log(scaled * n).mean() - expected_log_condition_number(n)) < 0.15
    assert_allclose(expected_log_condition_number(1), 1.537, atol=5e-4)


def test_the_law_of_edelman_at_width_100():
    """Householder reflections make a Gaussian matrix bidiagonal: chi_n, ..., chi_1 beside chi_(n-1), ..., chi_1."""
    rng, n, count = np.random.default_rng(0), 100, 3000
    freedom = np.ravel(np.stack([np.arange(n, 0, -1), np.arange(n - 1, -1, -1)], axis=1))[:-1]
    kappas = []
    for entries in np.sqrt(rng.chisquare(freedom, (count, 2 * n - 1))):
        # eigenvalues of [[0, B], [B^T, 0]], with its rows in another order: the s_i and the -s_i
        low, high = (
            scipy.linalg.eigh_tridiagonal(np.zeros(2 * n), entries, eigvals_only=True, select="i", select_range=(k, k))[
                0
            ]
            for k in (n, 2 * n - 1)
        )
        kappas.append(high / low)
    scaled = np.array(kappas) / n
    for x, seen in zip((1, 2, 4, 8, 20), (0.018, 0.222, 0.537, 0.761, 0.902), strict=True):
        share, p = np.mean(scaled < x), gaussian_condition_number_cdf(x)
        error = math.sqrt(p * (1 - p) / count)
        assert abs(share - p) < 4 * error + 0.003
        assert abs(share - seen) < 6 * error + 0.003  # these have an error of their own
    assert abs(np.log(scaled * n).mean() - expected_log_condition_number(n)) < 0.1


def test_edelmans_constant_is_the_mean_of_the_law():
    x = np.exp(np.linspace(-6, 60, 400_001))
    F = np.exp(-2 / x - 2 / x**2)
    mean = np.log(x[-1]) - np.sum((F[1:] + F[:-1]) / 2 * np.diff(np.log(x)))
    assert_allclose(expected_log_condition_number(1), mean, atol=1e-7)


@pytest.mark.parametrize(("c", "rho", "eta"), [(0.3, 1.0, 1.0), (1.0, 1.0, 1.0), (3.0, 0.5, 1.0), (1.0, 1.0, 0.3)])
def test_the_floor_of_sankar_spielman_and_teng(c, rho, eta, x64):
    n, count = 10, 3000
    slopes = [1.0, -eta] * (n // 2)
    keys = jax.random.split(jax.random.key(5), count)
    layers = jax.vmap(lambda key: sample_skip_layer(key, n=n, c=c, rho=rho, slopes=slopes))(keys)
    s_min = np.linalg.svd(np.asarray(layers), compute_uv=False)[:, -1]
    for epsilon in (1e-3, 3e-3, 1e-2, 0.03):
        tail = smallest_singular_value_tail(epsilon, n=n, c=c, smallest_slope=eta)
        assert at_least(s_min > epsilon, 1 - tail)
    assert smallest_singular_value_tail(1e-3, n=n, c=c, smallest_slope=-eta) == 2.35 * n * 1e-3 / (c * eta)
    assert smallest_singular_value_tail(10.0, n=n, c=c) == 1
    assert (
        smallest_singular_value_tail(0.1, n=n, c=0.0)
        == smallest_singular_value_tail(0.1, n=n, c=c, smallest_slope=0)
        == 1
    )


def test_bounds_that_hold_for_certain():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, rho = rng.integers(1, 7), rng.choice([-1, 1]) * rng.uniform(0.2, 2)
        W = rng.uniform(-1, 1, (n, n)) * rng.choice([0.05, 0.2, 1])
        d = rng.uniform(-1, 1, n)
        actual = np.linalg.cond(d[:, None] * W + rho * np.eye(n)) * (1 - 1e-12)
        assert actual <= entrywise_condition_number_bound(np.abs(W).max(), n=int(n), rho=rho)
        assert actual <= norm_condition_number_bound(np.linalg.norm(W), rho=rho)
        assert actual <= norm_condition_number_bound(np.linalg.norm(W, 2), rho=rho)
        assert actual <= norm_condition_number_bound(np.linalg.norm(d[:, None] * W, 2), rho=rho)
    # it is reached by the matrix of equal entries with slopes -1 against slopes of 1
    n, a = 4, 0.2
    worst = np.linalg.norm(np.eye(n) + a, 2) / np.linalg.svd(np.eye(n) - a, compute_uv=False)[-1]
    assert_allclose(entrywise_condition_number_bound(a, n=n), worst, rtol=1e-12)
    assert norm_condition_number_bound(1.0, rho=1.0) == math.inf
    assert norm_condition_number_bound(0.0, rho=0.0) == math.inf
    assert norm_condition_number_bound(0.0, rho=-2.0) == 1
    assert entrywise_condition_number_bound(0.1, n=5, largest_slope=-2.0) == math.inf


def test_concentration_of_the_norm_of_bounded_entries():
    a = 0.5
    norms = np.linalg.norm(np.random.default_rng(0).uniform(-a, a, (2000, 15, 15)), 2, axis=(1, 2))
    distance = np.abs(norms - np.median(norms))
    for t in (0.5, 1.0, 3.5, 4.0):
        assert at_least(distance < t, 1 - norm_concentration(t, half_width=a))
    assert norm_concentration(0.0, half_width=a) == 1
    assert_allclose(norm_concentration(8 * a, half_width=a), 4 * math.exp(-4), rtol=1e-14)
    assert norm_concentration(1e300, half_width=1e-300) == 0


def test_what_the_margin_adds():
    """e = c d t / sqrt(n): a change of the width and t that keeps t / sqrt(n) keeps the bounds."""
    options = {"rho": 1.0, "slopes": [2.0, 0.5]}
    plain, wide = skip_layer_bounds(0.1, **options), skip_layer_bounds(0.1, n=100, t=2.0, **options)
    assert_allclose(plain.s_min - wide.s_min, 0.1 * 2 * 2 / 10, rtol=1e-12)
    assert_allclose(wide[:2], skip_layer_bounds(0.1, n=25, t=1.0, **options)[:2], rtol=1e-14)
    m2, e = 2.125, 0.04
    norm, radius = 0.1 * (2 + math.sqrt(m2)) + e, 0.1 * math.sqrt(4 + m2) + e
    assert_allclose(wide.s_max, math.sqrt(norm**2 + 2 * radius + 1), rtol=1e-14)
    everywhere = pattern_free_bounds(0.1, largest_slope=2.0, n=100, t=2.0)
    assert_allclose(everywhere[:2], (1.44, 0.56), rtol=1e-14)
    assert_allclose(everywhere.probability, 1 - math.exp(-2), rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_squares_leave_the_range_of_double_precision(scale):
    """Only c / rho and c times the slopes count."""
    plain = skip_layer_bounds(0.1, rho=1.0, slopes=[2.0, 0.5], n=100, t=2.0)
    scaled = skip_layer_bounds(0.1 * scale, rho=scale, slopes=[2.0, 0.5], n=100, t=2.0)
    assert_allclose(np.array(scaled[:2]) / scale, plain[:2], rtol=1e-13)
    steep = skip_layer_bounds(0.1 / scale, rho=1.0, slopes=[2 * scale, 0.5 * scale], n=100, t=2.0)
    assert_allclose(steep[:2], plain[:2], rtol=1e-13)


def test_bounds_without_content_say_so():
    bounds = skip_layer_bounds(0.9, rho=1.0, slopes="abs", n=10, t=0.5)
    assert (bounds.s_min, bounds.condition_number, bounds.probability) == (0, math.inf, 0)
    assert skip_layer_bounds(0.5, rho=0.0, slopes="abs").condition_number == math.inf
    assert skip_layer_bounds(0.0, rho=-2.0, slopes="abs", n=1, t=6.0) == ExtremeBounds(
        2, 2, *(1 - k * math.exp(-18) for k in (2, 1, 3))
    )
    assert skip_layer_bounds(5.0, rho=1.0, slopes=[0.0], n=1, t=1.0).condition_number == 1


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (lambda: skip_layer_bounds(0.5, slopes="abs", n=10), ValueError, "together"),
        (lambda: skip_layer_bounds(0.5, slopes="abs", t=1.0), ValueError, "together"),
        (lambda: skip_layer_bounds(0.5, slopes="abs", n=10, t=-1.0), ValueError, "t must be at least 0"),
        (lambda: skip_layer_bounds(-0.5, slopes="abs"), ValueError, "c must be at least 0"),
        (lambda: skip_layer_bounds(0.5, slopes="abs", rho=math.nan), ValueError, "rho must be finite"),
        (lambda: pattern_free_bounds(0.5, n=0, t=1.0), ValueError, "n must be at least 1"),
        (lambda: gaussian_matrix_bounds(0, 3, t=1.0), ValueError, "rows"),
        (lambda: gaussian_matrix_bounds(3, 2.0, t=1.0), TypeError, "columns"),  # type: ignore[arg-type]
        (lambda: gaussian_condition_number_cdf(-1.0), ValueError, "x must be at least 0"),
        (lambda: expected_log_condition_number(0), ValueError, "n must be at least 1"),
        (lambda: smallest_singular_value_tail(math.nan, n=3, c=1.0), ValueError, "epsilon must be finite"),
        (lambda: norm_condition_number_bound(-1.0), ValueError, "norm must be at least 0"),
        (lambda: entrywise_condition_number_bound(0.1, n=True), TypeError, "n must be an integer"),
        (lambda: norm_concentration(1.0, half_width=0.0), ValueError, "half_width must be larger than 0"),
    ],
)
def test_what_is_wrong_is_said(function, error, match):
    with pytest.raises(error, match=match):
        function()
