"""Records are strict JSON, and come back as they were."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from spectrax import report


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_numbers_that_are_not_finite_are_written_as_strings_and_read_as_numbers():
    record = {"a": math.nan, "b": [math.inf, -math.inf], "c": {"d": np.float32("nan"), "e": jnp.inf}}
    text = report.to_json(record)
    assert json.loads(text, parse_constant=refuse) == {
        "a": "NaN",
        "b": ["Infinity", "-Infinity"],
        "c": {"d": "NaN", "e": "Infinity"},
    }
    back = report.from_json(text)
    assert math.isnan(back["a"])
    assert math.isnan(back["c"]["d"])
    assert back["b"] == [math.inf, -math.inf]


def test_float32_survives_the_round_trip_bit_by_bit():
    values = np.random.default_rng(0).normal(size=200).astype(np.float32) * np.float32(1e-6)
    back = np.array(report.from_json(report.to_json({"x": values}))["x"], np.float32)
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.bool_(True), "true"),
        (True, "true"),
        (np.int64(3), "3"),
        (jnp.arange(2), "[0, 1]"),
        ((1, 2.5, None), "[1, 2.5, null]"),
        ({"shape": (2, 3)}, '{"shape": [2, 3]}'),
    ],
)
def test_scalars_and_arrays(value, text):
    assert report.to_json(value) == text


def test_other_things_are_refused():
    with pytest.raises(TypeError, match="got object"):
        report.to_json({"x": object()})


def test_a_line_that_a_killed_process_left_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(report.to_lines([{"step": 1}, {"step": 2}]) + '{"step": 3, "lo')
    assert report.read_records(path) == [{"step": 1}, {"step": 2}]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        report.read_records(path)
