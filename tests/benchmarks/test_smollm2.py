"""SmolLM2's matrices: the README's table is that of the results, and the results hold what it says."""

import json
from pathlib import Path

import pytest

from benchmarks.engine import smollm2

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result():
    return json.loads(smollm2.RESULTS.read_text())


def test_the_readme_has_the_table_of_the_results(result):
    readme = (ROOT / "README.md").read_text()
    assert smollm2.markdown(result) in readme
    assert smollm2.replaced(readme, result) == readme
    assert smollm2.PICTURE.is_file()


def test_every_matrix_has_its_residual(result):
    rows = result["rows"]
    assert len(rows) == 211
    assert sum(row["shape"] == [1536, 576] for row in rows.values()) == 60
    for row in rows.values():
        assert row["converged"]
        assert row["min_converged"]
        assert max(row["residual"], row["solve_residual"]) <= 1e-6
        assert row["error"] <= 1e-9
        assert row["min_error"] <= 1e-6
