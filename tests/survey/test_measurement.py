"""What is measured of one matrix, against NumPy's singular values in float64."""

import math

import jax
import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.integrations.weights import StoredArray
from spectrax.survey import SpectrumConfig
from spectrax.survey.measurement import is_dense, measure
from spectrax.survey.selection import Matrix

METHODS = ("dense", "iterative")


SHAPE = (60, 40)  # the same everywhere, and two values, so that the iterations are compiled once for each dtype


def found(values, *, k=2, **options):
    array = StoredArray("w", values.shape, values.dtype.name, lambda: values)
    return measure(Matrix("w", array, "matrix", values.shape), values, SpectrumConfig(checkpoint="", k=k, **options))


def with_values(s, shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    real = lambda *size: rng.normal(size=size) + (1j * rng.normal(size=size) if np.dtype(dtype).kind == "c" else 0)  # noqa: E731
    u, v = (np.linalg.qr(real(side, len(s)))[0] for side in shape)
    return ((u * s) @ v.conj().T).astype(dtype)


def entropy_rank(s):
    p = s / s.sum()
    p = p[p > 0]
    return np.exp(-np.sum(p * np.log(p)))


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("dense", np.float32), ("dense", np.complex64), ("iterative", np.float32), ("iterative", np.float64)],
)
def test_every_quantity_is_that_of_numpy(method, dtype):
    s = np.geomspace(3, 0.02, 40)
    for shape in (SHAPE, SHAPE[::-1]):
        values = with_values(s, shape, dtype)
        record = found(values, method=method)
        s = np.linalg.svd(values.astype(np.complex128), compute_uv=False)
        eps = float(np.finfo(dtype).eps)
        noise = 30 * eps * s[0]
        assert record["finite"]
        assert record["method"] == method
        assert record["precision"] == np.dtype(dtype).name
        assert record["shape"] == list(shape)
        for name, place in (("sigma_max", 0), ("sigma_min", -1)):
            entry = record[name]
            assert entry["converged"]
            assert entry["kind"] == "exact"
            assert entry["lower"] <= entry["value"] <= entry["upper"]
            assert abs(entry["value"] - s[place]) <= noise
            assert entry["lower"] - noise <= s[place] <= entry["upper"] + noise
        assert record["sigma_max"]["residual"] <= (1e-6 if eps > 1e-10 else 1e-10) * s[0]
        assert_allclose([entry["value"] for entry in record["top"]], s[:2], rtol=30 * eps)
        assert_allclose(record["frobenius_norm"]["value"], np.linalg.norm(s), rtol=1e-12)
        assert_allclose(record["stable_rank"]["value"], np.sum(s**2) / s[0] ** 2, rtol=100 * eps)
        condition = record["condition_number"]
        assert_allclose(condition["value"], s[0] / s[-1], rtol=2 * noise / s[-1])
        assert condition["lower"] <= s[0] / s[-1] <= condition["upper"]
        assert_allclose(record["effective_rank"]["value"], entropy_rank(s), rtol=1e3 * eps)
        assert record["rank"]["value"] == 40
        counts, _ = np.histogram(s, record["density"]["edges"])
        assert np.sum(np.abs(counts - record["density"]["counts"])) <= 2  # a value at an edge
        assert np.sum(record["density"]["counts"]) == 40
        assert_allclose(record["spectrum"]["value"], s[np.array(record["spectrum"]["rank"]) - 1], atol=noise)


def test_the_parts_that_are_asked_for():
    values = np.random.default_rng(0).normal(size=SHAPE)
    common = {"frobenius_norm", "sigma_max", "top", "stable_rank"}
    for measure_, expected in (
        ("top", common),
        ("extremes", {*common, "sigma_min", "condition_number"}),
        ("ranks", {"frobenius_norm", "effective_rank", "rank"}),
        ("density", {"frobenius_norm", "density", "spectrum"}),
    ):
        record = found(values, measure=(measure_,), method="dense")
        named = {"sigma_min", "condition_number", "effective_rank", "rank", "density", "spectrum"} | common
        assert named & set(record) == expected
    record = found(values.astype(np.float32), measure=("top",), method="iterative")
    assert record["sigma_max"]["kind"] == "lower"  # nothing shows that no larger one was missed
    assert record["sigma_max"]["upper"] == math.inf
    assert record["stable_rank"]["kind"] == "upper"


@pytest.mark.parametrize("method", METHODS)
def test_singular_matrices_have_an_infinite_condition_number_with_a_bound(method):
    s = np.concatenate([np.linspace(5, 1, 39), [0]])
    record = found(with_values(s, SHAPE, np.float32), method=method)
    condition = record["condition_number"]
    assert condition["value"] == math.inf
    assert 1e5 <= condition["lower"] < math.inf
    assert record["rank"]["value"] == 39
    zero = found(np.zeros(SHAPE, np.float32), method=method)
    assert zero["sigma_max"]["value"] == zero["sigma_min"]["value"] == zero["frobenius_norm"]["value"] == 0
    assert zero["condition_number"]["value"] == math.inf
    assert zero["stable_rank"]["value"] == zero["effective_rank"]["value"] == zero["rank"]["value"] == 0


def test_entries_that_a_scale_takes_to_zero_are_within_the_bounds():
    record = found(np.diag(np.float32([1e30, 1, 1e-30])), method="dense")
    assert record["sigma_min"]["lower"] <= 1e-30 <= record["sigma_min"]["upper"]
    assert record["condition_number"]["lower"] <= 1e60 <= record["condition_number"]["upper"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-35, 1e35, 1e-300])
def test_numbers_of_any_size(method, scale):
    base = with_values(np.linspace(5, 1, 40), SHAPE, np.float64)
    dtype = np.float64 if scale < 1e-40 else np.float32
    values = (base * scale).astype(dtype)
    exact = np.linalg.svd(values.astype(np.float64) / scale, compute_uv=False)
    record = found(values, method=method)
    for name, place in (("sigma_max", 0), ("sigma_min", -1)):
        assert record[name]["converged"]
        assert_allclose(record[name]["value"] / scale, exact[place], rtol=1e-4)
        assert record[name]["lower"] <= record[name]["value"] <= record[name]["upper"]
    assert_allclose(record["spectrum"]["value"][0], record["sigma_max"]["value"], rtol=1e-5)
    assert_allclose(record["density"]["edges"][-1] / scale, exact[0], rtol=1e-5)
    assert_allclose(record["frobenius_norm"]["value"] / scale, np.linalg.norm(exact), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_said_and_not_measured(bad):
    values = np.ones((40, 30), np.float32)
    values[3, 4] = bad
    for dtype in (np.float32, np.complex64):
        record = found(values.astype(dtype))
        assert not record["finite"]
        assert "sigma_max" not in record
    too_large = found(np.full((4, 3), 1e300), precision="float32")
    assert not too_large["finite"]


def test_16_bits_are_measured_in_32_and_64_on_demand():
    values = np.random.default_rng(0).normal(size=SHAPE).astype(ml_dtypes.bfloat16)
    s = np.linalg.svd(values.astype(float), compute_uv=False)
    for precision, name, noise in (("stored", "float32", 1e-5), ("float64", "float64", 1e-13)):
        record = found(values, precision=precision, method="dense")
        assert (record["dtype"], record["precision"]) == ("bfloat16", name)
        assert_allclose(record["condition_number"]["value"], s[0] / s[-1], rtol=noise * s[0] / s[-1])
    assert found(np.longdouble(values.astype(float)), method="dense")["precision"] == "float64"
    assert jax.numpy.ones(1, float).dtype == np.float32  # 64 bits were for the measurement alone


def test_residuals_at_round_off_are_refined_to_the_tolerance():
    """Products in 32 bits leave some 1e-7; the refined values and residuals are those of 64 bits."""
    values = with_values(np.geomspace(5, 0.1, 40), SHAPE, np.float32)
    exact = np.linalg.svd(values.astype(float), compute_uv=False)
    plain, refined = (found(values, measure=("top",), method="dense", tol=tol) for tol in (1e-4, 1e-8))
    assert not plain["sigma_max"]["refined"]
    assert refined["sigma_max"]["refined"]
    assert refined["sigma_max"]["status"] == "converged"
    assert_allclose([entry["value"] for entry in refined["top"]], exact[:2], rtol=1e-9)
    assert max(entry["residual"] for entry in refined["top"]) <= 1e-8 * exact[0]
    assert plain["sigma_max"]["residual"] > 1e-8 * exact[0]


@pytest.mark.parametrize("method", METHODS)
def test_more_values_than_the_rank_are_zeros(method):
    rng = np.random.default_rng(0)
    values = np.outer(rng.normal(size=SHAPE[0]), rng.normal(size=SHAPE[1])).astype(np.float32)
    first, second = found(values, method=method)["top"]
    assert first["converged"]
    assert second["converged"]
    assert first["residual"] <= 1e-6 * first["value"]
    assert max(second["value"], second["residual"]) <= 1e-5 * first["value"]


def test_values_of_two_ways_that_disagree_are_not_published(monkeypatch):
    values = with_values(np.linspace(5, 1, 40), SHAPE, np.float32)
    from spectrax.survey import measurement

    honest = measurement._values
    monkeypatch.setattr(measurement, "_values", lambda array: honest(array) * 1.01)
    record = found(values, method="iterative")
    assert not record["sigma_max"]["converged"]
    assert record["sigma_max"]["kind"] == "estimate"
    assert math.isnan(record["condition_number"]["value"])
    assert math.isnan(record["stable_rank"]["value"])


def test_what_is_too_large_to_be_factorised_is_named():
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    record = found(values, max_side=20)
    assert record["method"] == "iterative"
    assert record["sigma_max"]["converged"]
    assert "sigma_min" not in record
    assert set(record["not_measured"]) >= {"sigma_min", "condition_number"}
    assert "40, is above --max-side 20" in record["not_measured"]["sigma_min"]

    s = np.linalg.svd(values.astype(float), compute_uv=False)
    density = record["density"]
    assert density["kind"] == record["effective_rank"]["kind"] == "estimate"
    assert_allclose(record["effective_rank"]["value"], entropy_rank(s), rtol=0.1)
    assert_allclose(np.sum(density["counts"]), 40, rtol=0.05)
    below = np.searchsorted(s[::-1], density["edges"]) / 40
    cumulative = density["cumulative"]
    inside = (cumulative["lower"] - 1e-3 <= below) & (below <= cumulative["upper"] + 1e-3)
    assert np.mean(inside) >= 0.9  # intervals of 95 %, each for itself


def test_many_large_matrices_of_a_shape_are_iterated_on():
    def dense(shape, twins, **options):
        array = StoredArray("w", shape, "float32", lambda: np.zeros(shape))
        return is_dense(Matrix("w", array, "matrix", shape, twins=twins), SpectrumConfig(checkpoint="", **options))

    assert dense((1536, 576), 1)
    assert not dense((1536, 576), 90)
    assert not dense((4096, 4096), 1)
    assert dense((4096, 4096), 1, method="dense")
    assert not dense((40, 30), 1, method="iterative")
    assert dense((40, 10), 1, method="iterative")  # too small to iterate on
    assert not dense((4000, 3000), 1, method="dense", max_side=2000)
