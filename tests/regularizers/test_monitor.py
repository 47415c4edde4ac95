"""What the monitor says of layers, against NumPy's decompositions, with what kind each number is."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spectrax as sx
from spectrax import monitor

FIELDS = ("sigma_max", "sigma_min", "condition_number", "stable_rank", "effective_rank")


def truth(matrix):
    s = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    p = s / s.sum()
    return dict(
        zip(FIELDS, (s[0], s[-1], s[0] / s[-1], np.sum(s**2) / s[0] ** 2, np.exp(-np.sum(p * np.log(p)))), strict=True)
    )


def array_of(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / shape[0] ** 0.5, jnp.float32)


def test_small_layers_are_exact():
    params = {"a": array_of((6, 9)), "b": {"kernel": array_of((5, 3), 1), "bias": jnp.zeros(3)}}
    watched = monitor.spectrum_monitor()
    metrics, state = jax.jit(watched.update)(params, jax.jit(watched.init)(params))
    assert set(metrics) == {"a", "b/kernel"}
    for name, matrix in (("a", params["a"]), ("b/kernel", params["b"]["kernel"])):
        for field, expected in truth(matrix).items():
            found = getattr(metrics[name], field)
            assert_allclose(found.value, expected, rtol=2e-5)
            assert found.kind == "exact"
            assert int(found.status) == sx.Status.CONVERGED
    assert int(state.step) == 1


def test_large_layers_are_followed(key):
    """Bounds on the side that their kinds say, while the weights drift; exact again after a renewal."""
    watched = monitor.spectrum_monitor(renew_every=3)
    kernel, drift = array_of((150, 140)) + jnp.eye(150, 140), array_of((150, 140), 1)
    update, state = jax.jit(watched.update), watched.init({"w": kernel}, key)
    for step in range(5):
        metrics, state = update({"w": kernel}, state)
        found, expected = metrics["w"], truth(kernel)
        assert {field: getattr(found, field).kind for field in FIELDS} == dict(
            zip(FIELDS, ("lower", "upper", "lower", "upper", "exact"), strict=True)
        )
        assert float(found.sigma_max.value) <= expected["sigma_max"] * (1 + 1e-5)
        assert float(found.sigma_min.value) >= expected["sigma_min"] * (1 - 1e-4)
        assert_allclose(found.sigma_max.value, expected["sigma_max"], rtol=1e-2)
        assert_allclose(found.effective_rank.value, expected["effective_rank"], rtol=1e-4)
        assert_allclose(found.stable_rank.value, expected["stable_rank"], rtol=3e-2)
        if step in (0, 3):
            assert_allclose(found.condition_number.value, expected["condition_number"], rtol=1e-3)
        kernel = kernel + 1e-2 * drift
    assert update._cache_size() == 1
    assert monitor.spectrum_monitor(effective_rank=False).init({"w": kernel}, key).metrics["w"].effective_rank is None


def test_vectors_that_are_left_behind_are_not_called_converged(key):
    """After a jump of the weights; found again by the renewal."""
    watched = monitor.spectrum_monitor(renew_every=2, effective_rank=False)
    before, after = array_of((150, 140)) + jnp.eye(150, 140), array_of((150, 140), 5) + jnp.eye(150, 140)
    state, update, seen = watched.init({"w": before}, key), jax.jit(watched.update), []
    for kernel in (before, after, after):
        metrics, state = update({"w": kernel}, state)
        found = metrics["w"]
        seen.append((int(found.sigma_max.status), int(found.sigma_min.status)))
    good, lost = int(sx.Status.CONVERGED), int(sx.Status.NOT_CONVERGED)
    assert seen == [(good, good), (lost, lost), (good, good)]


def test_convolutions_with_their_padding(convolution_matrix):
    kernel = array_of((3, 3, 2, 3))
    watched = monitor.spectrum_monitor(lambda params: {"conv": sx.conv_operator(params, (5, 5), padding="SAME")})
    metrics, _ = watched.update(kernel, watched.init(kernel))
    for field, expected in truth(convolution_matrix(np.asarray(kernel, np.float64), (5, 5), padding="SAME")).items():
        assert_allclose(getattr(metrics["conv"], field).value, expected, rtol=1e-4)


def test_every_so_many_steps_and_in_a_scan():
    kernels = jnp.stack([array_of((4, 3), seed) for seed in range(5)])
    watched = monitor.spectrum_monitor(every=2)

    def step(state, kernel):
        metrics, state = watched.update({"w": kernel}, state)
        return state, metrics["w"].sigma_max.value

    _, seen = jax.lax.scan(step, watched.init({"w": kernels[0]}), kernels)
    norms = np.linalg.norm(kernels, 2, axis=(1, 2))
    assert_allclose(seen, norms[[0, 0, 2, 2, 4]], rtol=1e-5)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (np.zeros((3, 2)), (0, 0, np.inf, 0, 0)),
        (np.ones((3, 2)), (6**0.5, 0, np.inf, 1, 1)),
        (np.eye(3), (1, 1, 1, 3, 3)),
        (1e-30 * np.eye(3), (1e-30, 1e-30, 1, 3, 3)),
        (np.full((2, 2), np.nan), (np.nan,) * 5),
    ],
)
def test_degenerate_layers(matrix, expected):
    metrics = monitor.spectrum_monitor().init({"w": jnp.asarray(matrix, jnp.float32)}).metrics["w"]
    assert_allclose(
        [getattr(metrics, field).value for field in FIELDS], expected, atol=1e-6 * (matrix.max() > 1e-20), rtol=1e-5
    )
    assert int(metrics.sigma_max.status) == (sx.Status.NOT_FINITE if np.isnan(matrix).any() else sx.Status.CONVERGED)


def test_logging(tmp_path):
    watched = monitor.spectrum_monitor()
    metrics = watched.init({"w": jnp.diag(jnp.array([2.0, 1.0])), "zero": jnp.zeros((2, 2))}).metrics
    numbers = monitor.scalars(metrics)
    assert numbers["w/condition_number"] == 2
    assert monitor.kinds(metrics) == dict.fromkeys(numbers, "exact")
    file = tmp_path / "log.jsonl"
    for step in range(2):
        monitor.log(monitor.jsonl(file), step, metrics)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert lines[1] == {"step": 1} | {name: x if np.isfinite(x) else str(x) for name, x in numbers.items()}
    assert lines[0]["zero/condition_number"] == "inf"


def test_what_is_not_known_is_left_out(key):
    """A map that is too large to be dense has neither rank."""
    large = {"conv": array_of((3, 3, 4, 4))}
    watched = monitor.spectrum_monitor(lambda p: {"conv": sx.conv_operator(p["conv"], (40, 40), padding="SAME")})
    state = jax.eval_shape(watched.init, large, key)
    found = state.metrics["conv"]
    assert (found.sigma_max.kind, found.sigma_min.kind) == ("lower", "estimate")
    assert found.stable_rank is None
    assert found.effective_rank is None
    names = [field.name for field in dataclasses.fields(found) if getattr(found, field.name) is not None]
    assert names == list(FIELDS[:3])
    assert_array_equal(sorted(monitor.kinds(state.metrics)), sorted(f"conv/{name}" for name in names))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: monitor.spectrum_monitor(every=0), "every must be at least 1"),
        (lambda: monitor.spectrum_monitor().init({"w": jnp.ones((200, 150))}), "a PRNG key"),
        (lambda: monitor.spectrum_monitor().init({"w": jnp.ones((3, 3, 2, 2))}), "which matrix it stands for"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
