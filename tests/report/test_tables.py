"""The tables say what they were given."""

import io
import math

import pytest
from rich.console import Console

from spectrax import report


def printed(table):
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def layer(value, **values):
    return {"condition_number": value, "kind": "exact", "converged": True, **values}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.0, "1.00"), (12.345, "12.3"), (999.6, "1,000"), (123456.0, "123,000"), (2.5e7, "2.50e+07"),
        (0.00001, "1.00e-05"), (-3.14159, "-3.14"), (math.inf, "inf"), (math.nan, "nan"), (None, "-"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert report.format_number(value) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "51.0"), ({"kind": "estimate"}, "~ 51.0"), ({"kind": "lower"}, ">= 51.0"), ({"kind": "upper"}, "<= 51.0"),
        ({"converged": False}, "51.0 ?"),
    ],
)  # fmt: skip
def test_what_is_not_exact_is_marked(values, text):
    assert report.format_measurement(layer(51.0, **values)) == text


def test_layers_stand_side_by_side_with_their_ratio():
    text = printed(
        report.layer_table(
            {"head": layer(10.0), "stem": layer(7.0)},
            {
                "penalty": {"head": layer(5.0), "stem": layer(2.0)},
                "baseline": {"head": layer(50.0), "stem": layer(math.inf)},
            },
        )
    )
    head = next(line for line in text.splitlines() if "head" in line)
    assert [part.strip() for part in head.split("│")] == ["head", "10.0", "5.00", "50.0", "10"]
    stem = next(line for line in text.splitlines() if "stem" in line)
    assert [part.strip() for part in stem.split("│")] == ["stem", "7.00", "2.00", "inf", "-"]


def test_the_summary_has_a_column_a_run():
    text = printed(
        report.summary_table(
            {
                "before": {"test_accuracy": 0.1},
                "runs": {"penalty": {"test_accuracy": 0.972}, "baseline": {"test_loss": 0.5}},
            }
        )
    )
    row = next(line for line in text.splitlines() if "test accuracy" in line)
    assert [part.strip() for part in row.split("│")] == ["test accuracy", "0.1000", "0.9720", "-"]


def test_the_total_comes_last():
    text = printed(report.timing_table({"total": 3.0, "steps": 2.0, "start": 1.0}))
    assert [line.split("│")[0].strip() for line in text.splitlines()[-3:]] == ["steps", "start", "total"]
