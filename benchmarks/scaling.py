"""Time of a step of the engine on several devices and processes, and a model of it: the figures of docs/scaling.md.

    python benchmarks/scaling.py                 some twenty minutes; goes on where it was interrupted
    python benchmarks/scaling.py --quick         all of it in small, into another file
    python benchmarks/scaling.py --tpu           compiles for TPU v5p-512 (extra `aot`), without a TPU
    python benchmarks/scaling.py --table         writes the tables of docs/scaling.md from the results
    python benchmarks/scaling.py --figure        and its picture

The operator multiplies by a diagonal, without communication; its time, measured apart in a loop of its own, is taken
out. Host devices are those of one process (XLA's `--xla_force_host_platform_device_count`), processes have one device
each and talk by Gloo on this machine. Processor time is the sum over all threads and processes, time of the clock that
of the slowest process; both are the least of interleaved runs. Rows are written when they are done.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from engine import scaling_pages
from engine.sharded_steps import PAIR, REDUCE, STEP, on_v5p, serve
from engine.timing import environment, installed

RESULTS = Path(__file__).parent / "results" / "scaling.json"
HERE = Path(__file__).resolve().parents[1]
DEVICES, PROCESSES = (1, 2, 4, 8), (1, 2, 4)
SIZES, SUBSPACES = (2**14, 2**17, 2**20), (12, 24, 48)
LARGE = ((102_400, 97_664),)  # 1.00008e10 unknowns, whose 200 rows on each of 512 chips are whole tiles
LEAVES = ((8_192, 38_144),) * 32
# so that libtpu asks no metadata server and takes no lock, and JAX itself stays on the CPU
TPU = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip

Row = tuple[str, int, int]


def wanted(count: int, *, quick: bool) -> list[Row]:
    """Return the rows of so many devices: the kind of step, the unknowns, and the size of the subspace."""
    if quick:
        return [(STEP, 2**12, 8), (PAIR, 2**12, 8), (REDUCE, 10, 0)]
    rows = [(case, n, size) for case in (STEP, PAIR) for n in SIZES for size in SUBSPACES]
    weak = (STEP, 2**17 * count, 24)
    rows += [weak] if weak not in rows else []
    return rows + ([(REDUCE, numbers, 0) for numbers in (26, 2**12, 2**16, 2**20)] if count > 1 else [])


def name(place: str, count: int, row: Row) -> str:
    case, n, size = row
    return f"{place} {count}: {case}, {n}, {size}"


def environment_of(place: str, count: int) -> dict[str, str]:
    """Return the variables of the children; collectives of host devices wait for threads, which NPROC grants."""
    here = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE)}
    if place == "devices":
        return {**here, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "NPROC": "16"}
    return {**here, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def run_place(place: str, count: int, rows: list[Row], results: dict[str, Any], out: Path) -> None:
    """Measure rows on so many devices or processes and write each down as soon as all processes have said it."""
    port = free_port() if place == "processes" else None
    many = count if place == "processes" else 1
    children = []
    for process in range(many):
        task = json.dumps({"rows": rows, "port": port, "count": count, "process": process})
        children.append(
            subprocess.Popen(
                [sys.executable, __file__, "--child", task], env=environment_of(place, count), stdout=subprocess.PIPE
            )
        )
    for row in rows:
        said = [found for found in map(answer, children) if found]
        if len(said) < many:
            break
        first = said[0]
        found = {
            **first, "place": place, "count": count, "case": row[0], "n": row[1], "subspace_size": row[2],
            **{key: sum(one[key] for one in said) for key in first if "_cpu" in key},
            **{key: max(one[key] for one in said) for key in first if "_wall" in key},
        }  # fmt: skip
        before = results["rows"].get(name(place, count, row))
        if before is not None:
            found |= {key: min(found[key], before[key]) for key in found if key.endswith(("_cpu", "_wall"))}
        results["rows"][name(place, count, row)] = found
        write(results, out)
        print(
            f"{name(place, count, row):36} {1e6 * found['step_cpu']:10.1f} us CPU {1e6 * found['step_wall']:10.1f} us, "
            f"operator {1e6 * found['operator_cpu']:8.1f} us CPU {1e6 * found['operator_wall']:8.1f} us",
            flush=True,
        )
    codes = [child.wait(timeout=120) for child in children]
    if any(codes):
        raise RuntimeError(f"{place} {count}: exit codes {codes}")


def answer(process: subprocess.Popen) -> dict[str, Any] | None:
    """Return the next line of JSON that a child prints, passing over what Gloo says; None at its end."""
    for line in process.stdout or ():
        if line.startswith(b"{"):
            return json.loads(line)
    return None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def write(results: dict[str, Any], out: Path) -> None:
    out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def measure(out: Path, *, quick: bool, again: bool, only: str) -> None:
    results = json.loads(out.read_text()) if out.exists() else {}
    results.setdefault("rows", {})
    results["environment"] = environment()
    for place, counts in (("devices", DEVICES), ("processes", PROCESSES)):
        for count in counts[:2] if quick else counts:
            rows = wanted(count, quick=quick)
            if not again:
                rows = [row for row in rows if name(place, count, row) not in results["rows"]]
            if rows and f"{place} {count}".startswith(only):
                run_place(place, count, rows, results, out)


def compile_for_tpu(out: Path) -> None:
    """Compile for 512 chips of v5p, each case in a process of its own, with a limit of ten minutes."""
    results = json.loads(out.read_text()) if out.exists() else {"rows": {}}
    cases = [(case, size, LARGE) for case in (STEP, PAIR) for size in (16, 32, 64)] + [(STEP, 32, LEAVES)]
    results["tpu"] = {"libtpu": installed("libtpu"), "jax": installed("jax"), "rows": {}}
    for case, size, shapes in cases:
        task = json.dumps({"tpu": [case, size, shapes]})
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "--child", task],
            env={**os.environ, **TPU}, stdout=subprocess.PIPE, timeout=600, check=True,
        )  # fmt: skip
        found = {"case": case, "subspace_size": size, "leaves": len(shapes), **json.loads(done.stdout)}
        results["tpu"]["rows"][f"{case}, {size}, {len(shapes)}"] = found
        write(results, out)
        print(f"{case:5} {size:3} {len(shapes):3} leaves: {found['counted']}, {time.perf_counter() - began:.0f} s")


def child(task: dict[str, Any]) -> None:
    if "tpu" in task:
        case, size, shapes = task["tpu"]
        print(json.dumps(on_v5p(case, size, tuple(map(tuple, shapes)))))
        return
    rows = [(case, n, size) for case, n, size in task["rows"]]
    for line in serve(rows, task["port"], task["count"], task["process"]):
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small problems, into results/scaling_quick.json")
    parser.add_argument("--again", action="store_true", help="measure all again, and keep the lesser times")
    parser.add_argument("--only", default="", help="places whose names begin so: devices, 'processes 2'")
    parser.add_argument("--tpu", action="store_true", help="compile for v5p-512 instead; needs libtpu")
    parser.add_argument("--table", action="store_true", help="write the tables of docs/scaling.md")
    parser.add_argument("--figure", action="store_true", help="write docs/images/scaling.png")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = arguments.out or (RESULTS.with_name("scaling_quick.json") if arguments.quick else RESULTS)
    if arguments.child:
        child(json.loads(arguments.child))
    elif arguments.tpu:
        compile_for_tpu(out)
    elif arguments.table or arguments.figure:
        results = json.loads(out.read_text())
        if arguments.table:
            scaling_pages.write_tables(results)
        if arguments.figure:
            scaling_pages.write_figure(results)
    else:
        measure(out, quick=arguments.quick, again=arguments.again, only=arguments.only)


if __name__ == "__main__":
    main()
