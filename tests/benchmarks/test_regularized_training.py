"""The trainings behind "What it is good for": their attacks, choices and counts, and what the README says of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks.regularized import depth, low_rank, pictures, robustness, seeds
from spectrax.training import load_data

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "regularized_training.json"


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text())


@pytest.fixture
def linear(monkeypatch):
    """A linear classifier of two classes, blind to the mean, in place of the network; gives its weights."""
    weights = np.random.default_rng(0).standard_normal((2, 36))
    weights = jnp.asarray(weights - weights.mean(axis=1, keepdims=True), jnp.float32)
    monkeypatch.setattr(robustness, "apply", lambda params, x: params @ x.reshape(-1))
    robustness.margins.clear_cache()
    yield weights
    robustness.margins.clear_cache()


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_attacks_reach_the_distance_of_a_linear_boundary(linear, norm, dual):
    """Pixels are far from 0 and 1, so that the nearest point of the boundary is margin / |w_0 - w_1|_dual away."""
    x = 0.5 + 0.02 * np.random.default_rng(1).standard_normal((40, 6, 6, 1)).astype(np.float32)
    scores = x.reshape(40, -1) @ np.asarray(linear).T
    y = np.argmax(scores, axis=1)
    distance = np.abs(scores[:, 0] - scores[:, 1]) / np.linalg.norm(np.asarray(linear[0] - linear[1]), dual)
    for share in (0.25, 0.5, 0.75):
        radius = float(np.quantile(distance, share))
        found = robustness.attacked_accuracy(linear, x, y, radius, norm, jax.random.key(0))
        assert np.mean(distance > 1.02 * radius) <= found <= np.mean(distance > 0.98 * radius)


def test_points_of_an_attack_stay_in_the_ball_and_the_box():
    x = jax.random.uniform(jax.random.key(0), (5, 4, 4, 1))
    direction = jax.random.normal(jax.random.key(1), x.shape)
    for norm, size in (("linf", lambda d: jnp.abs(d).max()), ("l2", lambda d: robustness.euclidean(d).max())):
        moved = robustness.stepped(x, x, direction, 3.0, 0.3, norm)
        assert size(moved - x) <= 0.3 * (1 + 1e-5)
        assert moved.min() >= 0
        assert moved.max() <= 1


def test_pruned_and_padded_factors_are_the_best_approximation():
    params = jax.jit(low_rank.network().init, static_argnums=1)(jax.random.key(0), low_rank.SHAPE)["params"]
    smaller = low_rank.pruned(params, 0.8)
    whole, ranks = low_rank.padded(smaller)
    for name, rank in zip(low_rank.HIDDEN, ranks, strict=True):
        kernel = np.asarray(params[name]["kernel"], float)
        u, s, vh = np.linalg.svd(kernel, full_matrices=False)
        share = np.cumsum(s**2) / np.sum(s**2)
        assert rank == np.searchsorted(share, 0.8) + 1
        expected = (u[:, :rank] * s[:rank]) @ vh[:rank]
        for given in (smaller, whole):
            assert_allclose(low_rank.kernels(given)[name]["kernel"], expected, atol=1e-5)


def test_cost_is_that_of_the_cheaper_form():
    assert low_rank.flops(128, None) == 2 * (196 * 128 + 128 * 128 + 128 * 10)
    assert low_rank.flops(128, [3, 5]) == 2 * (3 * (196 + 128) + 5 * (128 + 128) + 128 * 10)
    assert low_rank.flops(128, [128, 128]) == low_rank.flops(128, None)


def test_parts_never_mix_and_images_are_means_of_four():
    data = seeds.load("mnist5k", 3)
    assert [len(part.y) for part in data] == [3200, 800, 1000]
    whole = load_data("mnist5k", seed=3)
    x = (whole.x_test - whole.x_train.min()) / np.ptp(whole.x_train)
    means = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    assert_allclose(data.test.x, means, atol=1e-6)
    assert_array_equal(data.test.y, whole.y_test)
    assert data.train.x.min() == 0
    assert data.train.x.max() <= 1
    rows = {part.x[i].tobytes() for part in data for i in range(len(part.y))}
    assert len(rows) > 4990  # no digit is in two parts


def row(arm, value, seed, **numbers):
    return {"options": {"arm": arm, "value": value, "seed": seed}, **numbers}


def test_the_largest_value_within_a_point_is_chosen():
    clean = {0.0: 0.95, 1e-3: 0.96, 3e-3: 0.93, 1e-2: 0.941, 3e-2: 0.939, 1e-1: 0.1}
    rows = [row("none", 0.0, seed, validation_accuracy=0.95) for seed in seeds.SEEDS]
    rows += [row("weight decay", value, seed, validation_accuracy=accuracy) for value, accuracy in clean.items()
             if value for seed in seeds.SEEDS]  # fmt: skip
    assert robustness.chosen(rows, "weight decay") == 1e-2


def test_the_lowest_training_loss_of_other_seeds_chooses():
    options = {"activation": "tanh", "arm": "log-condition"}
    losses = {(1e-3, 1e-3): (0.3, 0.1), (1e-2, 3e-3): (0.15, 0.2), (1e-1, 3e-4): (0.1, np.nan)}
    rows = [
        {"options": {**options, "value": value, "rate": rate, "seed": seed}, "train_loss": [2.0, loss]}
        for (value, rate), pair in losses.items() for seed, loss in zip(depth.TUNING_SEEDS, pair, strict=True)
    ]  # fmt: skip
    assert depth.chosen(rows, "tanh", "log-condition") == {"value": 1e-2, "rate": 3e-3}
    assert not set(depth.TUNING_SEEDS) & set(seeds.SEEDS)


def test_results_are_complete(results):
    for name, module in {"depth": depth, "robustness": robustness, "low_rank": low_rank}.items():
        found = {json.dumps(row["options"], sort_keys=True) for row in results[name]}
        wanted = {json.dumps(options, sort_keys=True) for options in module.grid()}
        if module is depth:
            wanted |= {json.dumps(options, sort_keys=True) for options in depth.reports(results[name])}
        assert wanted <= found


def test_readme_has_the_tables_that_are_made_from_the_results(results):
    assert pictures.standing((ROOT / "README.md").read_text()) == pictures.table(results)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_quick_run_works_and_is_resumed(tmp_path):
    out = tmp_path / "quick.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "regularized_training.py"), "--quick", "--out", str(out)]
    clean = {
        name: value for name, value in os.environ.items() if name not in {"XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    }
    subprocess.run(command, check=True, env=clean, timeout=1000)
    found = json.loads(out.read_text())
    assert all(found[name] for name in ("depth", "robustness", "low_rank"))
    again = subprocess.run(command, check=True, env=clean, timeout=300, capture_output=True, text=True)
    assert again.stdout == ""
    assert json.loads(out.read_text()) == found
