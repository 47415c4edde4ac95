"""Penalties and transformations where shardings are part of types: results of one device, states as the parameters."""

import json
from pathlib import Path

import pytest

SPLIT = {
    "fully": {"first": "P('data', 'model')", "bias": "P('model',)", "second": "P('model', 'data')"},
    "tensor": {"first": "P(None, 'model')", "bias": "P('model',)", "second": "P('model', None)"},
    "data": {"first": "P(None, None)", "bias": "P(None,)", "second": "P(None, None)"},
}


@pytest.fixture(scope="module")
def found(on_eight_devices):
    """What the programs say."""
    said = json.loads(on_eight_devices(Path(__file__).with_name("sharded_training.py")))
    assert said["devices"] == 8
    return said


@pytest.mark.parametrize("name", SPLIT)
def test_training_is_that_of_one_device(found, name):
    """Losses and parameters after some steps in one trace, and a state whose types never change."""
    run = found["training"][name]
    assert run["difference"] <= 1e-4  # round-off in float32, enlarged by Adam, which divides by the gradients' size
    assert run["traces"] == 1
    assert run["kept"]
    assert run["params"] == SPLIT[name]


def test_states_lie_as_the_parameters(found):
    """Gradients and parameters that are kept as these, vectors as the shorter side, sketches as the longer one."""
    state = found["training"]["fully"]["state"]
    for part in ("0/previous", "0/params", "2/mu", "2/nu"):
        assert {leaf: state[f"{part}/{leaf}"] for leaf in SPLIT["fully"]} == SPLIT["fully"]
    for leaf in ("first", "second"):
        assert state[f"1/tracked/blocks/{leaf}/top"] == "P(None, 'model')"
    (sketch,) = (spec for path, spec in state.items() if path.endswith("sketch"))
    assert sketch == "P(None, None, 'data')"


def test_every_member_is_traced_with_its_types(found):
    """Gradients as the parameters, a state that keeps its types, and a value that is one number everywhere."""
    for name, member in found["typed"].items():
        assert member["gradient"] == SPLIT["fully"], name
        assert member["kept"], name
    assert len(found["typed"]) > 25


def test_outside_of_jit(found):
    assert found["eager"]["gradient"] == SPLIT["fully"]
    assert found["eager"]["update"] == SPLIT["fully"]
    assert found["eager"]["difference"] <= 1e-5
    assert found["eager"]["curvature"] == {
        "0": "P(None, 'model')", "1": "P(None, 'data', 'model')", "2": "P(None, 'model', 'data')"
    }  # fmt: skip


def test_closures_host_arrays_and_mixed_axes(found):
    """Arrays that a jitted function closes over, NumPy arrays, and a mesh only one of whose axes is explicit."""
    assert found["eager"]["values"] <= 1e-5
    assert found["eager"]["mixed"] <= 1e-5
