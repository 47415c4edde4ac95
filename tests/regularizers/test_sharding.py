"""Penalties and transformations where shardings are part of types: results of one device, states as the parameters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SPLIT = {
    "fully": {"first": "P('data', 'model')", "bias": "P('model',)", "second": "P('model', 'data')"},
    "tensor": {"first": "P(None, 'model')", "bias": "P('model',)", "second": "P('model', None)"},
    "data": {"first": "P(None, None)", "bias": "P(None,)", "second": "P(None, None)"},
}


@pytest.fixture(scope="module")
def found():
    """What the programs say, run on eight host devices, whose collectives need as many of the threads of NPROC."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"  # compiled sooner
    settings = {"XLA_FLAGS": flags, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "sharded_training.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
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
