"""How fast and how right `svds` is: against the products alone, LAPACK, ARPACK, PROPACK, PRIMME, matfree and others.

    taskset -c 0 python benchmarks/svds.py                      everything; some hours on one core
    taskset -c 0 python benchmarks/svds.py --only top,bottom    sections: top, bottom, blocks, gradients, loop, ...
    taskset -c 0 python benchmarks/svds.py --resume             go on where an interrupted run ended
    taskset -c 0 python benchmarks/svds.py --quick              every section in small: shows that it works
    python benchmarks/svds.py --table                           the README's table, made from the results
    python benchmarks/svds.py --figure                          docs/images/engine.png, made from the results

Time is process CPU time on one core, all programs of a row run in turns, with the median of the ratios, its 95 %
bootstrap interval and the same program against itself; compile time apart. Every answer is verified in the same way,
in 64 bits. Results are written after each row to benchmarks/results/svds.json (those of a quick run to another file).
Peers that are not installed are left out, which the file says. A row that raises is kept with its message.
"""

import os

if __name__ == "__main__":  # before NumPy starts its threads
    CORES = sorted(os.sched_getaffinity(0))
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

RESULTS = ROOT / "benchmarks" / "results" / "svds.json"
QUICK_RESULTS = ROOT / "runs" / "benchmarks" / "svds_quick.json"
SECTIONS = ("top", "bottom", "blocks", "gradients", "loop", "misses", "compile")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--match", default="", help="only rows whose name holds this text")
    parser.add_argument("--pairs", type=int, default=None, help="runs of each program (30; 3 in a quick run)")
    parser.add_argument("--seeds", type=int, default=None, help="seeds of the misses (20; 2 in a quick run)")
    parser.add_argument("--peers", default="", help="only these peers, separated by commas (all that are installed)")
    parser.add_argument("--resume", action="store_true", help="keep the finished rows of the results and skip them")
    parser.add_argument("--quick", action="store_true", help="small cases, few runs: shows that everything works")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--table", action="store_true", help="write the README's table from the results, and stop")
    parser.add_argument("--figure", action="store_true", help="draw docs/images/engine.png from the results, and stop")
    parser.add_argument("--compile-once", nargs=2, metavar=("CASE", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = arguments.out or (QUICK_RESULTS if arguments.quick else RESULTS)
    if arguments.table or arguments.figure:
        return write_documents(out, table=arguments.table, figure=arguments.figure)
    if arguments.compile_once:
        return compile_once(*arguments.compile_once, quick=arguments.quick)
    chosen = [name.strip() for name in arguments.only.split(",")]
    if unknown := sorted(set(chosen) - set(SECTIONS)):
        parser.error(f"unknown sections {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    os.sched_setaffinity(0, CORES[:1])
    return run(arguments, chosen, out)


def run(arguments: argparse.Namespace, chosen: list[str], out: Path) -> int:
    from engine import blocks, bottom, gradients, misses, peers, timing, top
    from engine.sections import Settings

    made = {
        "top": top.section, "bottom": bottom.section, "blocks": blocks.section, "gradients": gradients.section,
        "loop": gradients.loop_section, "misses": misses.section, "compile": gradients.compile_section,
    }  # fmt: skip
    quick = arguments.quick
    pairs, seeds = arguments.pairs or (3 if quick else 30), arguments.seeds or (2 if quick else 20)
    rivals = [name.strip() for name in arguments.peers.split(",") if name.strip()] or list(peers.NAMES)
    if unknown := sorted(set(rivals) - set(peers.NAMES)):
        print(f"unknown peers {', '.join(unknown)}; there are {', '.join(peers.NAMES)}", file=sys.stderr)
        return 2
    if quick and not arguments.peers:
        rivals = [name for name in rivals if name not in {"matfree", "JAX LOBPCG"}]  # compiled anew for each setting
    rivals = [name for name in rivals if name not in peers.missing()]
    settings = Settings(quick=quick, pairs=pairs, seeds=seeds, peers=tuple(rivals))
    results: dict[str, Any] = {"rows": {}}
    if arguments.resume and out.exists():
        results = json.loads(out.read_text())
    results["settings"] = {"quick": quick, "pairs": pairs, "seeds": seeds, "peers": rivals}
    results["environment"] = timing.environment()
    results["peers_left_out"] = peers.missing()
    failed = 0
    for section in chosen:
        for name, row in made[section](settings):
            title = f"{section}: {name}"
            if arguments.match not in name or "error" not in results["rows"].get(title, {"error": ""}):
                continue
            began, load = time.perf_counter(), os.getloadavg()[0]
            try:
                result = row()
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}", "limits": []}
                traceback.print_exc()
                failed += 1
            result |= {"section": section, "load": load, "seconds": round(time.perf_counter() - began, 2)}
            result["pairs"] = pairs
            results["rows"][title] = result
            save(results, out)
            print(f"{title} ({result['seconds']:.0f} s)", *map(shown, result["limits"]), sep="\n    ", flush=True)
    print(f"{len(results['rows'])} rows in {out}" + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


def shown(entry: dict[str, Any]) -> str:
    text = f"{entry['name']}: {entry['median']:.3g}"
    if "low" in entry:
        text += f" [{entry['low']:.3g}, {entry['high']:.3g}]"
    if "rival" in entry:
        text += f" ({entry['rival']})"
    if "limit" in entry:
        sign = ">=" if entry["at_least"] else "<="
        text += f"; limit {sign} {entry['limit']:g}: {'met' if entry['met'] else 'NOT MET'}"
    return text


def save(results: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(out)


def write_documents(out: Path, *, table: bool, figure: bool) -> int:
    from engine import tables

    results = json.loads(out.read_text())
    if table:
        readme = ROOT / "README.md"
        readme.write_text(tables.replaced(readme.read_text(), results))
    if figure:
        from engine.figure import draw

        draw(results, ROOT / "docs" / "images" / "engine.png")
    return 0


def compile_once(case: str, dtype: str, *, quick: bool) -> int:
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    from engine.gradients import compile_once as measure

    print(json.dumps(measure(case, dtype, quick=quick)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
