"""The script that compiles for TPUs: how it reads a compiled program, and that its cases trace."""

from pathlib import Path

import jax
import pytest

PROGRAM = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner.1 (x: f32[8]) -> f32[8] {
  ROOT %gathered = f32[8,4]{1,0} all-gather(%x), dimensions={0}
}

%body (state: (f32[8], s32[])) -> (f32[8], s32[]) {
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  %called = f32[8] call(%y), to_apply=%inner.1
  %reduced = (bf16[16]{0:T(128)}, f32[]) all-reduce(%p, %q), to_apply=%add
}

%condition (state: (f32[8], s32[])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (f32[8], s32[]) while(%tuple), condition=%condition, body=%body
  %all-reduce.7 = f32[4,2]{1,0} all-reduce(%p), channel_id=1, to_apply=%add
}
"""


@pytest.fixture
def aot(monkeypatch):
    """As it is run, from its own folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import aot

    return aot


def test_collectives_are_counted_in_and_outside_of_loops(aot):
    found = aot.collectives(PROGRAM)
    assert found["in_loops"] == {
        "count": {"all-gather": 2, "all-reduce": 1},
        "mib": round((32 * 4 + 32 * 4 + 16 * 2 + 4) / 2**20, 3),
    }
    assert found["outside"] == {"count": {"all-reduce": 1}, "mib": round(32 / 2**20, 3)}


def test_a_case_that_fails_or_takes_too_long_is_said(aot):
    assert aot.in_a_process("svds", "no such", 60.0) == {"failed": "KeyError: 'no such'"}
    assert "longer than 0.1 seconds" in aot.in_a_process("svds", "v5e-8", 0.1)["failed"]


@pytest.mark.slow
def test_every_case_traces(aot):
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.numpy_dtype_promotion("standard"):  # Optax raises Python's numbers to the power of an integer array
        for make in aot.CASES.values():
            function, structs = make(mesh)
            assert jax.tree.leaves(jax.eval_shape(function, *structs))
