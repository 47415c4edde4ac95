"""The model of a step: planted coefficients come back, counts are read rightly, and the page holds what is computed."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks.engine import scaling_model, scaling_pages, sharded_steps

ROOT = Path(__file__).parents[2]
COEFFICIENTS = np.array([3e-5, 4e-11, 6e-11, 2e-11, 1e-5, 8e-4, 1e-9, 3e-9])
CACHE = 2.0**23

PROGRAM = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%first (x: f32[8]) -> f32[] {
  %peak = f32[] all-reduce(%x), to_apply=%add
}

%second (x: f32[8]) -> f32[] {
  ROOT %called = f32[] call(%x), to_apply=%inner
}

%inner (x: f32[8]) -> f32[] {
  %more = f32[64] all-reduce(%x), to_apply=%add
}

%body (state: (f32[8], s32[])) -> (f32[8], s32[]) {
  %reduced = f32[34,1]{0,1:T(1,128)} all-reduce(%p), to_apply=%add
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (f32[8], s32[]) while(%tuple), condition=%condition, body=%body
  %chosen = f32[] conditional(%index, %p, %p), branch_computations={%first, %second}
  %total = (bf16[4]{0}, f32[]) all-reduce(%p, %q), to_apply=%add
}
"""


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())


def planted(rng, place, count, case, n):
    """A row whose time follows from `COEFFICIENTS` and `CACHE`, as the sum over devices."""
    size, step = 20, case == "step"
    counted = {"bytes": rng.uniform(1e6, 1e9), "flops": rng.uniform(1e6, 1e9), "passes": int(step),
               "collectives": 1 + step, "collective_bytes": rng.uniform(1e2, 1e6)}  # fmt: skip
    own = {"bytes": 2e5, "flops": 1e5} if step else {}
    traffic, flops = (counted[kind] - own.get(kind, 0) for kind in ("bytes", "flops"))
    outside = max(0, 1 - CACHE / (4 * 21 * n)) if step else 0
    work = COEFFICIENTS[:4] @ [counted["passes"], traffic, outside * traffic, flops]
    if count > 1:
        kind = scaling_model.PLACES.index(place)
        work += COEFFICIENTS[4 + kind] * np.log2(count) * (2 + 1 / size if step else 1)
        work += COEFFICIENTS[6 + kind] * counted["collective_bytes"]
    return {"place": place, "count": count, "case": case, "n": n, "subspace_size": size, "counted": counted,
            "operator": own, "operator_cpu": 0.5, "step_cpu": 0.5 + count * work}  # fmt: skip


def test_the_fit_finds_planted_coefficients_and_predicts_what_it_has_not_seen():
    rng = np.random.default_rng(0)
    rows = [
        planted(rng, place, count, case, n)
        for place in scaling_model.PLACES for count in (1, 2, 4, 8) for case in ("step", "all-reduce")
        for n in (2**14, 2**18, 2**21)
    ]  # fmt: skip
    found = scaling_model.fit(rows)
    assert found.cache == CACHE
    assert_allclose(found.coefficients, COEFFICIENTS, rtol=1e-6)
    for ratios in scaling_model.left_out(rows, scaling_model.LEFT_OUT["a number of devices or processes"]).values():
        assert_allclose(ratios, 1, rtol=1e-6)
    assert scaling_model.error(np.array([0.5, 1.0, 1.25])) == (0.25, 1.0)


def test_collectives_count_once_in_loops_and_not_in_branches():
    assert sorted(sharded_steps.collective_bytes(PROGRAM)) == [4 * 2 + 4, 32 * 4, 34 * 4]
    assert sharded_steps.cycles('{"estimated_cycles":"12"} "estimated_cycles":"30"') == 42


def test_a_prediction_for_v5p_by_hand():
    """Two all-reduces and 2765 MB: a millisecond of memory, and the latencies; a second pass makes it twice as much."""
    row = {
        "counted": {"bytes": 2.865e9, "flops": 1.5e9, "collectives": 2}, "operator": {"bytes": 1e8, "flops": 1e8},
        "second_pass": {"bytes": 2.765e9, "flops": 1.4e9, "collectives": 1}, "compiler_cycles": 7_000_000,
        "unknowns": 1e10,
    }  # fmt: skip
    once = scaling_model.on_v5p(row)
    assert_allclose([once["memory"], once["arithmetic"], once["latency"]], [1e-3, 1e-4, 48e-6])
    assert_allclose([once["low"], once["middle"]], [1e-3 + 24e-6, 1.1e-3 + 48e-6])
    assert once["high"] > once["middle"]
    assert_allclose(once["latency_below"], 1e10 * 48e-6 / 1.1e-3)
    twice = scaling_model.on_v5p(row, passes=2)
    assert_allclose([twice["memory"], twice["latency"]], [2e-3, 72e-6])


def test_the_page_has_the_tables_of_the_results(results):
    page = scaling_pages.PAGE.read_text()
    assert scaling_pages.replaced(page, results) == page
    assert scaling_pages.PICTURE.is_file()
    with pytest.raises(ValueError, match="marks of the table"):
        scaling_pages.replaced(page.replace("begin measured", "begin"), results)


def test_the_page_has_the_prediction_for_ten_thousand_million_unknowns(results):
    row = results["tpu"]["rows"]["step, 32, 1"]
    assert row["chips"] == 512
    assert_allclose(row["unknowns"], 1e10, rtol=1e-3)
    found = scaling_model.on_v5p(row)
    said = f"between {1e3 * found['low']:.1f} and {1e3 * found['high']:.1f} ms"
    assert said in " ".join(scaling_pages.PAGE.read_text().split())


def test_all_rows_are_there(results):
    """Every number of devices and processes; two all-reduces for a step, whatever the number of devices."""
    rows = results["rows"].values()
    assert {(row["place"], row["count"]) for row in rows} == {
        *(("devices", count) for count in (1, 2, 4, 8)), *(("processes", count) for count in (1, 2, 4))
    }  # fmt: skip
    for row in rows:
        if row["case"] != "all-reduce":
            assert row["counted"]["collectives"] == 2
            assert row["step_cpu"] > row["operator_cpu"] > 0
