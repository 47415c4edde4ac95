"""What spectral penalties are good for in training, and what not: depth, robustness, low rank.

    taskset -c 0 python benchmarks/regularized_training.py               all three, about half an hour on one core
    taskset -c 0 python benchmarks/regularized_training.py --only depth  one of depth, robustness, low_rank
    taskset -c 0 python benchmarks/regularized_training.py --quick       few steps and seeds: shows that it works
    python benchmarks/regularized_training.py --table                    the README's table, made from the results
    python benchmarks/regularized_training.py --figure                   docs/images/regularized_training.png

Five seeds each, with a split of the data, initial weights and batches of their own; every arm has a grid of as many
values as its rivals, and what was chosen by which rule is in `benchmarks/regularized/`. Finished trainings are kept in
the results, so that a run that was interrupted goes on where it stopped. Seconds are process CPU time.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from engine.timing import environment
from regularized import depth, low_rank, pictures, robustness, seeds

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "regularized_training.json"
QUICK_RESULTS = ROOT / "runs" / "benchmarks" / "regularized_training_quick.json"
FIGURE = ROOT / "docs" / "images" / "regularized_training.png"
EXPERIMENTS = {"depth": depth, "robustness": robustness, "low_rank": low_rank}
QUICK: dict[str, dict[str, Any]] = {
    "depth": {"epochs": 1, "depth": 3},
    "robustness": {"epochs": 1, "attacked": 20},
    "low_rank": {"epochs": 1, "tune_epochs": 1, "energies": (0.9,)},
}


def rounded(value: Any) -> Any:
    """Round to five digits: what is beyond depends on the machine, and fills the file."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)  # JSON knows neither NaN nor infinity
    return value


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the results with a line for each training."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [f'"environment": {json.dumps(results["environment"])}']
    for name in EXPERIMENTS:
        rows = ",\n".join(json.dumps(row) for row in results[name])
        parts.append(f'"{name}": [\n{rows}\n]')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def run(name: str, results: dict[str, Any], path: Path, *, quick: bool) -> None:
    """Do what the results of an experiment lack."""
    module, extra = EXPERIMENTS[name], QUICK[name] if quick else {}
    data: dict[int, seeds.Data] = {}
    done = {json.dumps(row["options"], sort_keys=True) for row in results[name]}

    def train_all(options: list[dict[str, Any]]) -> None:
        if quick:
            options = [one for one in options if one["seed"] in (0, 100) and one.get("activation", "leaky") == "leaky"]
        for number, one in enumerate(options, 1):
            if json.dumps(one, sort_keys=True) in done:
                continue
            seed = one["seed"]
            if seed not in data:
                data[seed] = seeds.load("digits" if module is depth else "mnist5k", seed)
            row = {"options": one, **rounded(module.train(**one, **extra, data=data[seed]))}
            results[name].append(row)
            done.add(json.dumps(one, sort_keys=True))
            write(path, results)
            last = float(row["train_loss"][-1])
            print(f"{name} {number} of {len(options)}", *one.values(), f"loss {last:.4f}",
                  f"{row['cpu_seconds']:.1f} s", flush=True)  # fmt: skip

    train_all(list(module.grid()))
    if module is depth and not quick:
        train_all(list(depth.reports(results[name])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(EXPERIMENTS), default=tuple(EXPERIMENTS))
    parser.add_argument("--quick", action="store_true", help="few steps and seeds: shows that everything works")
    parser.add_argument("--table", action="store_true", help="write the README's table from the results, and stop")
    parser.add_argument("--figure", action="store_true", help="draw the figure from the results, and stop")
    arguments = parser.parse_args()
    path = arguments.out or (QUICK_RESULTS if arguments.quick else RESULTS)
    empty = {name: [] for name in EXPERIMENTS}
    results = empty | (json.loads(path.read_text()) if path.exists() else {"environment": environment()})
    if arguments.table:
        readme = ROOT / "README.md"
        readme.write_text(pictures.replaced(readme.read_text(), results))
        return
    if arguments.figure:
        pictures.overview(results).savefig(FIGURE, dpi=130)
        return
    for name in arguments.only:
        run(name, results, path, quick=arguments.quick)
    if not arguments.quick and all(results[name] for name in EXPERIMENTS):
        print(pictures.table(results))


if __name__ == "__main__":
    main()
