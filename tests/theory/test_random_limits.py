"""Limits of the extreme singular values: printed tables, the system of equations, NumPy at finite width."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.theory.random_matrices import (
    SkipLayerLimits,
    activation_slopes,
    active_condition_number,
    sample_skip_layer,
    skip_layer_limits,
)
from spectrax.theory.random_matrices.limits import several_moduli
from spectrax.theory.random_matrices.slopes import SlopeDistribution, distribution

LEAKY = activation_slopes("leaky_relu", negative_slope=0.1)
MIXED = (np.array([1.0, -0.3, 0.7]), np.array([0.2, 0.5, 0.3]))
WIDE = (np.array([2.5, 0.0, 1e-3]), np.array([0.01, 0.3, 0.69]))


# c, then s_max, s_min, kappa for abs, leaky ReLU with 0.1 and ReLU, half of the units active, rho = 1
TABLE = [
    (0.25, (1.368, 0.664, 2.06), (1.298, 0.729, 1.78), (1.298, 0.729, 1.78)),
    (0.5, (1.760, 0.369, 4.77), (1.618, 0.490, 3.30), (1.618, 0.491, 3.29)),
    (3**-0.5, (1.886, 0.289, 6.53), (1.721, 0.424, 4.06), (1.720, 0.425, 4.05)),
    (0.8, (2.256, 0.096, 23.6), (2.027, 0.255, 7.94), (2.025, 0.257, 7.88)),
    (1.0, (2.598, 0.0, math.inf), (2.310, 0.134, 17.2), (2.309, 0.136, 16.9)),
    (2**0.5, (3.330, 0.0, math.inf), (2.921, 0.0, math.inf), (2.919, 0.0, math.inf)),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]:.3f}")
def test_the_table_of_limits(row):
    c, *expected = row
    for slopes, (s_max, s_min, number) in zip(("abs", LEAKY, "relu"), expected, strict=True):
        found = skip_layer_limits(c, rho=1.0, slopes=slopes)
        assert abs(found.s_max - s_max) <= 5.01e-4
        assert abs(found.s_min - s_min) <= 5.01e-4
        decimals = 1 if number > 10 else 2
        assert round(found.condition_number, decimals) == number


def test_a_closed_case():
    """c = rho / sqrt 3 makes a = 5: s_max = 4 sqrt 2 / 3 and s_min = sqrt 3 / 6, in units of rho."""
    found = skip_layer_limits(2 / math.sqrt(3), rho=2.0, slopes="linear")
    assert_allclose(found, (2 * 1.885618083164127, 2 * math.sqrt(3) / 6), rtol=1e-14)


@pytest.mark.parametrize("ratio", [1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9, 1.0, 1.3, 40.0])
def test_the_solver_agrees_with_the_closed_form(ratio):
    closed = skip_layer_limits(ratio, rho=1.0, slopes="abs")
    solved = several_moduli(ratio, 1.0, SlopeDistribution(np.ones(1), np.ones(1)))
    assert_allclose(solved.s_max, closed.s_max, rtol=1e-13)
    # near the threshold s_min goes like the gap to the power 3/2, and the gap has an error of eps
    assert_allclose(solved.s_min, closed.s_min, rtol=1e-13 + 4e-16 / max(abs(1 - ratio), 1e-12), atol=1e-300)


def residual(z, x, c, rho, r, share):
    """The two equations of Hachem, Loubaton & Najim in (delta, dt)."""
    delta, dt = z
    inner = 1 + c**2 * r * dt
    T = 1 / (-x * inner + rho**2 / (1 + delta))
    return np.array([delta - c**2 * (share @ (r * T)), dt - share @ (T * inner) / (1 + delta)])


def jacobian(z, x, c, rho, r, share):
    delta, dt = z
    a, inner = 1 + delta, 1 + c**2 * r * dt
    T = 1 / (-x * inner + rho**2 / a)
    by_delta, by_dt = T**2 * rho**2 / a**2, T**2 * x * c**2 * r
    return np.array(
        [
            [1 - c**2 * (share @ (r * by_delta)), -(c**2) * (share @ (r * by_dt))],
            [
                share @ (T * inner) / a**2 - share @ (by_delta * inner) / a,
                1 - share @ (by_dt * inner + T * c**2 * r) / a,
            ],
        ]
    )


def follow(c, rho, r, share, *, from_zero):
    """Continue the real solution of the two equations in x until their Jacobian is singular; an independent way."""
    m2 = share @ r
    if from_zero:
        q = c**2 * m2 / rho**2
        x, step, z = 0.0, 1e-2 * rho**2, np.array([q / (1 - q), 1 / (rho**2 - c**2 * m2)])
    else:
        x = 50 * (c + rho) ** 2
        step, z = -x / 100, np.array([-(c**2) * m2 / x, -1 / x])
    args = (c, rho, r, share)

    def newton(z, x):
        for _ in range(40):
            with np.errstate(all="ignore"):
                derivative = jacobian(z, x, *args)
                if not np.isfinite(derivative).all() or np.linalg.det(derivative) == 0:
                    return None
                change = np.linalg.solve(derivative, residual(z, x, *args))
            z = z - change
            if np.abs(change).max() < 1e-10 * np.abs(z).max():
                return z
        return None

    z = newton(z, x)
    sign = np.sign(np.linalg.det(jacobian(z, x, *args)))
    while abs(step) > 1e-12:
        new = newton(z, x + step)
        same = new is not None and np.linalg.norm(new - z) < 0.5 * np.linalg.norm(z)
        if same and np.sign(np.linalg.det(jacobian(new, x + step, *args))) == sign:
            z, x = new, x + step
        else:
            step /= 2
    return math.sqrt(x)


@pytest.mark.parametrize("c", [0.25, 0.6, 1.0])
@pytest.mark.parametrize("slopes", [LEAKY, activation_slopes("relu"), MIXED], ids=["leaky", "relu", "mixed"])
def test_the_edges_are_where_the_two_equations_become_singular(slopes, c):
    values, share = slopes
    found = skip_layer_limits(c, rho=1.1, slopes=slopes)
    assert_allclose(follow(c, 1.1, values**2, share, from_zero=False), found.s_max, rtol=1e-9)
    assert_allclose(follow(c, 1.1, values**2, share, from_zero=True), found.s_min, rtol=1e-9)


def test_the_bracket_has_one_extremum_for_random_slopes():
    """What the bisection rests on, over slopes of very different sizes and shares; and it finds the extremum."""
    rng = np.random.default_rng(0)
    w = 1 / (1 + np.exp(-np.linspace(-30, 20, 3000)))
    for _ in range(300):
        count = rng.integers(2, 6)
        r = np.exp(rng.normal(size=count) * rng.choice([0.3, 1, 3, 5]))
        share = rng.dirichlet(np.full(count, rng.choice([0.2, 1, 5])))
        ratio = np.exp(rng.normal() * rng.choice([0.5, 2]))
        r = r / r.max()
        m = (1 / (1 - w[:, None] * r)) @ share
        first, second = np.sqrt(ratio**2 + 0.25 / (w * m)), (2 * m - 1) / (2 * np.sqrt(w * m))
        signs = np.sign(np.diff(first + second)[np.abs(np.diff(first + second)) > 1e-12 * (first + second)[1:]])
        assert np.count_nonzero(np.diff(signs)) == 1
        found = skip_layer_limits(1.0, rho=ratio, slopes=(np.sqrt(r), share))
        assert found.s_max <= np.min(first + second) * (1 + 1e-14)
        assert_allclose(found.s_max, np.min(first + second), rtol=1e-3)
        assert_allclose(found.s_min, max(np.max(first - second), 0), rtol=1e-3, atol=1e-9 * ratio)
        assert (found.s_min > 0) == (share @ r < ratio**2)


SETTINGS = [
    (c, rho, slopes, "gaussian") for c in (0.4, 0.8) for rho in (0.5, 1.0) for slopes in ("abs", LEAKY, "relu", MIXED)
] + [(3**-0.5, 1.0, "abs", "uniform"), (0.7, 1.0, "relu", "uniform"), (0.7, 0.0, MIXED, "gaussian")]


@pytest.mark.parametrize(("c", "rho", "slopes", "entries"), SETTINGS)
def test_numpy_agrees_at_finite_width(c, rho, slopes, entries, x64):
    """At n = 300 the edges fluctuate and are shifted like n^(-2/3), some 0.02 in units of c."""
    n = 300
    limits = skip_layer_limits(c, rho=rho, slopes=slopes)
    keys = jax.random.split(jax.random.key(7), 3)
    draw = jax.vmap(lambda key: sample_skip_layer(key, n=n, c=c, rho=rho, slopes=slopes, entries=entries))
    s = np.linalg.svd(np.asarray(draw(keys)), compute_uv=False)
    top = distribution(slopes).largest
    assert_allclose(s[:, 0].mean(), limits.s_max, atol=0.05 * c * max(top, 1))
    assert_allclose(s[:, -1].mean(), limits.s_min, atol=0.05 * c * max(top, 1))
    if limits.s_min > 0.1:
        assert_allclose(s[:, 0].mean() / s[:, -1].mean(), limits.condition_number, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("slopes", ["abs", LEAKY, "relu"])
@pytest.mark.parametrize("c", [row[0] for row in TABLE])
def test_numpy_agrees_at_width_1000(c, slopes, x64):
    """The edge is shifted by some 0.014 c there, with a standard deviation of 0.007 c: that and three of these."""
    limits = skip_layer_limits(c, rho=1.0, slopes=slopes)
    s = np.linalg.svd(sample_skip_layer(jax.random.key(1), n=1000, c=c, slopes=slopes), compute_uv=False)
    assert_allclose(s[[0, -1]], limits, atol=0.035 * c)
    assert s[0] < limits.s_max + 0.007 * c
    assert s[-1] > limits.s_min - 0.021 * c


def test_without_a_skip_it_is_the_law_of_marchenko_and_pastur():
    assert_allclose(skip_layer_limits(0.7, rho=0.0, slopes="abs"), (1.4, 0.0), rtol=1e-14)
    # D W of ReLU is a Gaussian matrix of shape (n / 2, n): c (1 + sqrt(1 / 2))
    assert_allclose(skip_layer_limits(0.7, rho=0.0, slopes="relu"), (0.7 * (1 + 0.5**0.5), 0.0), rtol=1e-14)


def test_active_rows_alone():
    assert round(active_condition_number(0.5), 2) == 5.83
    assert active_condition_number(1.0) == math.inf
    s = np.linalg.svd(np.random.default_rng(0).normal(size=(500, 1000)), compute_uv=False)
    assert_allclose(s[0] / s[-1], active_condition_number(0.5), rtol=0.03)
    with pytest.raises(ValueError, match="must lie in"):
        active_condition_number(0.0)


def test_only_ratios_and_moduli_count():
    base = skip_layer_limits(0.3, rho=1.0, slopes=MIXED)
    for scale in (1e-200, 7.0, 1e150):
        assert_allclose(np.array(skip_layer_limits(0.3 * scale, rho=scale, slopes=MIXED)) / scale, base, rtol=1e-13)
    assert skip_layer_limits(0.3, rho=-1.0, slopes=MIXED) == base
    assert skip_layer_limits(0.3, rho=1.0, slopes=(np.abs(MIXED[0]), MIXED[1])) == base
    assert_allclose(skip_layer_limits(0.1, rho=1.0, slopes=(3 * MIXED[0], MIXED[1])), base, rtol=1e-13)


def test_where_nothing_is_random_or_nothing_is_left():
    assert skip_layer_limits(0.0, rho=-2.0, slopes="relu") == (2.0, 2.0)
    assert skip_layer_limits(1.0, rho=1.5, slopes=[0.0, 0.0]) == (1.5, 1.5)
    assert skip_layer_limits(1e-20, rho=1.0, slopes="relu") == (1.0, 1.0)
    assert skip_layer_limits(0.0, rho=0.0, slopes="abs") == (0.0, 0.0)
    assert skip_layer_limits(0.0, rho=0.0, slopes="abs").condition_number == math.inf
    assert isinstance(skip_layer_limits(0.0, rho=1.0, slopes="abs"), SkipLayerLimits)


@pytest.mark.parametrize("slopes", ["abs", "relu", LEAKY, MIXED, WIDE])
def test_the_threshold_is_where_the_smallest_vanishes(slopes):
    critical = 1 / math.sqrt(distribution(slopes).mean_square)
    assert skip_layer_limits(critical, rho=1.0, slopes=slopes).s_min == 0
    gaps = np.array([1e-2, 1e-4, 1e-6])
    s = np.array([skip_layer_limits(critical * (1 - gap), rho=1.0, slopes=slopes).s_min for gap in gaps])
    assert_allclose(np.diff(np.log(s)) / np.diff(np.log(gaps)), 1.5, atol=0.15 if slopes is WIDE else 0.02)


def test_small_weights_move_the_ends_by_the_norm_of_the_symmetric_part():
    """s - rho -> +- c max / min of Sym: sqrt 2 for slopes of 1, the edge of the semicircle law."""
    found = np.array(skip_layer_limits(1e-6, rho=1.0, slopes="abs")) - 1
    assert_allclose(found, [1e-6 * 2**0.5, -1e-6 * 2**0.5], rtol=1e-5)


def test_slopes_in_all_forms():
    units = np.array([1.0, 0.1, 0.1, 1.0, 0.1, 1.0])
    expected = skip_layer_limits(0.5, rho=1.0, slopes=LEAKY)
    for slopes in (
        units,
        units.tolist(),
        units.reshape(2, 3),
        ([0.1, 1.0], [0.5, 0.5]),
        ([1.0, 0.1, 1.0], [0.2, 0.5, 0.3]),
    ):
        assert_allclose(skip_layer_limits(0.5, rho=1.0, slopes=slopes), expected, rtol=1e-14)
    in_jax = jnp.array(units, jnp.float32)
    assert_allclose(skip_layer_limits(jnp.float32(0.5), rho=jnp.ones(()), slopes=in_jax), expected, rtol=1e-7)
    assert skip_layer_limits(0.5, slopes=jnp.ones(4, jnp.bfloat16)) == skip_layer_limits(0.5, slopes="linear")
    assert skip_layer_limits(0.5, slopes=1) == skip_layer_limits(0.5, slopes="linear")
    assert skip_layer_limits(0.5, slopes="hard_tanh") == skip_layer_limits(0.5, slopes="relu")


def test_activation_slopes_are_distributions():
    for name in ("abs", "hard_tanh", "leaky_relu", "linear", "relu"):
        for active in (0.0, 0.3, 1.0):
            slopes = activation_slopes(name, active_fraction=active)
            assert_allclose(slopes.probabilities.sum(), 1, rtol=1e-15)
            assert slopes.probabilities.min() > 0
    slopes = activation_slopes("leaky_relu", active_fraction=0.3, negative_slope=-0.2)
    assert_allclose((slopes.mean, slopes.mean_square, slopes.largest), (0.3 - 0.14, 0.3 + 0.7 * 0.04, 1), rtol=1e-15)
    assert_allclose(slopes.variance, slopes.mean_square - slopes.mean**2, rtol=1e-14)


@pytest.mark.parametrize(
    ("c", "options", "error", "match"),
    [
        (-0.1, {"slopes": "abs"}, ValueError, "c must be at least 0"),
        (math.nan, {"slopes": "abs"}, ValueError, "c must be finite"),
        (math.inf, {"slopes": "abs"}, ValueError, "c must be finite"),
        ("0.5", {"slopes": "abs"}, TypeError, "c must be a real number"),
        (0.5, {"rho": math.nan, "slopes": "abs"}, ValueError, "rho must be finite"),
        (0.5, {"slopes": "gelu"}, ValueError, "name must be one of"),
        (0.5, {"slopes": [1.0, math.nan]}, ValueError, "slopes must be finite"),
        (0.5, {"slopes": []}, ValueError, "at least, got none"),
        (0.5, {"slopes": [1j]}, TypeError, "slopes must be real"),
        (0.5, {"slopes": (1.0, 0.0)}, ValueError, r"must be \(values, probabilities\)"),
        (0.5, {"slopes": ([1.0, 0.0], [0.5])}, ValueError, "2 values and 1"),
        (0.5, {"slopes": ([1.0, 0.0], [0.5, 0.6])}, ValueError, "sum 1, not 1.1"),
        (0.5, {"slopes": ([1.0, 0.0], [1.5, -0.5])}, ValueError, "not be negative"),
    ],
)
def test_what_is_wrong_is_said(c, options, error, match):
    with pytest.raises(error, match=match):
        skip_layer_limits(c, **options)


def test_tracers_are_refused_by_name():
    with pytest.raises(TypeError, match="c must be a concrete number"):
        jax.jit(lambda c: skip_layer_limits(c, slopes="abs"))(0.5)
    with pytest.raises(TypeError, match="slopes must be concrete"):
        jax.jit(lambda d: skip_layer_limits(0.5, slopes=d))(jnp.ones(3))
