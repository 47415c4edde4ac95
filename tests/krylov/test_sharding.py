"""Vectors keep their shardings, nothing is gathered, and a pass of orthogonalisation is one all-reduce."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def found(on_eight_devices):
    """What the programs say."""
    said = json.loads(on_eight_devices(Path(__file__).with_name("sharded_programs.py")))
    assert said["devices"] == 8
    return said


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_a_step_reduces_once_a_pass_and_gathers_nothing(found, kind, width):
    """Leaves split over both axes, over one, over the other and over none; the operator itself needs no communication.

    A loop holds one pass, and runs once or twice. A symmetric step takes its own block's inner products besides.
    In branches stand the two kinds of passes of a block, of which one is taken, and the size of the operator's first
    image, which is taken in the first step.
    """
    step = found["steps"][f"{kind}, {width}"]
    assert set(step["always"]) | set(step["in branches"]) <= {"all-reduce"}
    outside = {"symmetric": 1, "pair": 0}[kind]
    passes = {"symmetric": 1, "pair": 2}[kind]
    if width == 1:
        assert step["always"].get("all-reduce", 0) == outside + passes
    else:
        assert step["always"].get("all-reduce", 0) == outside
        assert step["in branches"]["all-reduce"] <= 4 * passes
    assert step["kept"]
    assert step["defect"] <= 1e-6


@pytest.mark.parametrize(("name", "most"), [("davidson", 18), ("trace", 11)])
def test_davidson_and_traces_gather_nothing(found, name, most):
    """Orthogonalisations reduce once a pass; norms and residuals, numbers each, are left to the compiler."""
    counts = found["steps"][name]
    assert set(counts["always"]) | set(counts["in branches"]) <= {"all-reduce"}
    assert counts["always"]["all-reduce"] <= most
    assert counts.get("within", True)


def test_slices_are_those_of_what_each_device_holds(found):
    """Of leaves split over both axes, over one, over the other and over none."""
    assert found["slices"]["wrong"] <= 1e-5
    assert found["slices"]["collectives"] == {"always": {}, "in branches": {}}
    assert found["slices"]["kept"]


@pytest.mark.parametrize("name", ["fully", "tensor", "data", "function", "under jit", "rows", "both sides"])
def test_results_are_those_of_one_device_and_lie_as_the_operator_does(found, name):
    result = found["results"][name]
    assert result["converged"]
    assert result["kept"]
    assert result["excess"] <= 1
    assert result.get("mean", 0) <= 1e-5  # that of the density of the same probes
    assert result.get("subspace", 0) <= 1e-4  # a residual of 1e-6 over gaps of a tenth


def test_explicit_axes(found):
    """What is computed on arrays whose shardings are part of their types, under `jit`, is what one device gives."""
    assert found["explicit"]["types"][:3] == ["float32[2,64@data]", "float32[2,32@model]", "float32[2]"]
    assert "batches" in found["explicit"]["differences"]
    for name, difference in found["explicit"]["differences"].items():
        assert difference <= 2e-5, name


def test_jacobians_and_steps_on_explicit_axes(found):
    """Jacobians lie as their samples do, and those of replicated parameters need no collective but sums."""
    assert found["explicit"]["jacobians"]["types"] == [
        "float32[16@data,8,32]",
        "float32[16@data,8]",
        "float32[16@data]",
    ]
    assert found["explicit"]["jacobians"]["collectives"] <= 1
    assert found["explicit"]["jacobians"]["refused"]
    assert found["explicit"]["steps"] == ["float32[17,32@model]", "float32[2,32@model]"]
