"""The engine's benchmark: the README's table is the one made from the results, and its checks see what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.engine import tables

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "svds.json"


def results_of(**answers):
    """Results of one row with a limit that is met and one that is not."""
    limits = [
        {"name": "time / products alone", "median": 1.2, "low": 1.05, "high": 1.3, "limit": 1.1, "at_least": False,
         "met": True, "itself": {"median": 1.01}},
        {"name": "missed", "median": 2.0, "limit": 0, "at_least": False, "met": False},
    ]  # fmt: skip
    own = {"matvecs": 80, "cpu_ms": 4.0, "missed": 0}
    row = {
        "section": "top", "case": "Gaussian", "dtype": "float32", "k": 5, "tol": 1e-6, "load": 0.5, "pairs": 30,
        "unrestarted": {"pairs": 37, "right": True}, "answers": {"svds": own, "svds, with probe": own, **answers},
        "limits": limits,
    }  # fmt: skip
    environment = {"cpu": "a CPU", "cores": 2, "python": "3.11", "packages": {"jax": "0.10", "primme": None}}
    settings = {"pairs": 30}
    return {"environment": environment, "settings": settings, "peers_left_out": ["PRIMME"], "rows": {"top: a": row}}


def test_readme_has_the_table_that_is_made_from_the_results():
    results = json.loads(RESULTS.read_text())
    assert tables.standing((ROOT / "README.md").read_text()) == tables.rendered(results)


def test_a_row_of_the_table_has_pairs_times_and_brackets():
    wrong = {"matvecs": 90, "cpu_ms": 5.25, "reached": False}
    text = tables.rendered(results_of(ARPACK=wrong, PROPACK={"note": "raised", "reached": False}))
    assert "| Gaussian, float32, 1e-06 | 40 / 4 | 40 / 4 | 1.2 [1.05, 1.3] | 37 | (45 / 5.25) | - |" in text
    assert "| top | time / products alone | at most 1.1 | 1 of 1 | 1.2 | 1.2 [1.05, 1.3] | 1.01 to 1.01 |" in text
    assert "| top | missed | at most 0 | 0 of 1 | 2 | 2 |  |" in text
    assert "left out: PRIMME" in text
    assert "primme" not in text


def test_the_page_is_replaced_between_its_markers_only():
    page = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    made = tables.replaced(page, results_of())
    assert made.startswith("before\n")
    assert made.endswith("\nafter\n")
    assert "old" not in made
    assert tables.replaced(made, results_of()) == made
    with pytest.raises(ValueError, match="expected one line"):
        tables.replaced("no markers", results_of())


def test_missed_copies_are_counted_at_both_ends():
    missed = pytest.importorskip("benchmarks.engine.verification").missed
    truth, residuals = np.array([3.0, 3.0, 2.0, 1.0, 1.0]), np.full(2, 1e-6)
    options = {"uncertainty": 1e-9}
    assert missed([3.0, 3.0], residuals, truth, smallest=False, **options) == 0
    assert missed([3.0, 2.0], residuals, truth, smallest=False, **options) == 1
    assert missed([2.0, 1.0], residuals, truth, smallest=False, **options) == 2
    assert missed([1.0, 1.0], residuals, truth, smallest=True, **options) == 0
    assert missed([2.0, 1.0], residuals, truth, smallest=True, **options) == 1
    assert missed([2.0, 2.0], np.full(2, 1.5), truth, smallest=False, **options) == 0


def test_a_limit_is_met_where_the_interval_reaches_it():
    limit = pytest.importorskip("benchmarks.engine.timing").limit
    reading = {"median": 1.2, "low": 1.05, "high": 1.3}
    assert limit("", reading, 1.1)["met"]
    assert not limit("", reading, 1.0)["met"]
    assert limit("", reading, 1.25, at_least=True)["met"]
    assert not limit("", reading, 1.4, at_least=True)["met"]
    assert not limit("", 2, 1)["met"]


def test_the_unrestarted_run_needs_no_more_steps_than_distinct_values(x64):
    cases = pytest.importorskip("benchmarks.engine.cases")
    verification = pytest.importorskip("benchmarks.engine.verification")
    values = np.array([4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    problem = cases.dense("few", cases.with_values(values, (20, 8), 0), "float64")
    assert verification.unrestarted_pairs(problem, 1, 1e-10) == (4, True)
    assert np.allclose(problem.truth[0], values)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_quick_run_works_and_is_resumed(tmp_path):
    out = tmp_path / "quick.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "svds.py"), "--quick", "--out", str(out)]
    clean = {
        name: value for name, value in os.environ.items() if name not in {"XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    }
    subprocess.run(command, check=True, env=clean, timeout=1000)
    results = json.loads(out.read_text())
    assert {row["section"] for row in results["rows"].values()} == {
        "top", "bottom", "gradients", "loop", "misses", "compile",
    }  # fmt: skip
    assert not [name for name, row in results["rows"].items() if "error" in row]
    for name in list(results["rows"]):
        if not name.startswith("loop"):
            results["rows"][name]["kept"] = True
        else:
            del results["rows"][name]
    out.write_text(json.dumps(results))
    subprocess.run([*command, "--resume"], check=True, env=clean, timeout=300)
    again = json.loads(out.read_text())["rows"]
    assert sum("kept" in row for row in again.values()) == len(results["rows"])
    assert any(name.startswith("loop") and "kept" not in row for name, row in again.items())
    assert tables.rendered(json.loads(out.read_text()))
