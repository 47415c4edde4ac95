"""The sweep behind the defaults of `spectrax train`: weight and renewal interval, and three seeds of what they do.

    python benchmarks/penalty_sweep.py --out benchmarks/results/penalty_sweep.json --plot docs/images/loss_curves.png

Trains the default model for some weights and intervals from one seed, and with the defaults and without a penalty from
three, and prints a table; `--plot` also draws the loss curves of the three seeds. All condition numbers are those of
dense decompositions after training, in float32, of the layers as they are, with their padding and stride. Finished
trainings are kept in the file, so that a sweep that was interrupted goes on where it stopped, and one that is finished
is drawn at once.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from spectrax.report.plots import COLOURS, LABELS
from spectrax.training import TrainingConfig, train

# weight and steps between renewals (an epoch has 15 steps): the defaults, over all seeds, and a cross around them
CHOSEN = (0.003, 60)
GRID = ((0.001, 60), (0.01, 60), (0.03, 60), (0.1, 60), (0.003, 15), (0.003, 30), (0.003, 120))
SEEDS = (0, 1, 2)


def one(**options: Any) -> dict[str, Any]:
    """Train once and return what a row of the table needs."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        config = TrainingConfig(out=f"{folder}/run", measure_every=10**6, **options)
        train(config, quiet=True)
        records = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if record["event"] == "epoch"]
    layers = {name: layer["condition_number"] for name, layer in epochs[-1]["layers"].items()}
    return {
        "options": options,
        "layers": layers,
        "median_condition_number": float(np.median([float(value) for value in layers.values()])),
        "test_accuracy": epochs[-1]["test_accuracy"],
        "train_loss": [epoch["train_loss"] for epoch in epochs[1:]],
        "test_loss": [epoch["test_loss"] for epoch in epochs[1:]],
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/penalty_sweep.json"))
    parser.add_argument("--plot", type=Path, default=None, help="a PNG of the loss curves")
    parser.add_argument("--data", default="mnist5k")
    parser.add_argument("--epochs", type=int, default=None)
    arguments = parser.parse_args()
    common: dict[str, Any] = {"data": arguments.data}
    if arguments.epochs:
        common["epochs"] = arguments.epochs
    grid = [{"seed": 0, "penalty_weight": weight, "renew_every": interval} for weight, interval in GRID]
    grid += [{"seed": seed, "penalty_weight": 0.01, "renew_every": 60} for seed in SEEDS[1:]]
    chosen = [{"seed": seed, "penalty_weight": CHOSEN[0], "renew_every": CHOSEN[1]} for seed in SEEDS]
    baselines = [{"seed": seed, "penalty": "none"} for seed in SEEDS]
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    done = {json.dumps(row["options"], sort_keys=True) for row in rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for options in [{**common, **options} for options in baselines + chosen + grid]:
        if json.dumps(options, sort_keys=True) in done:
            continue
        row = one(**options)
        rows.append(row)
        environment = {"python": platform.python_version(), "jax": jax.__version__, "machine": platform.machine()}
        arguments.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
        print(
            options,
            f"{row['median_condition_number']:.3g} {row['test_accuracy']:.4f} {row['seconds']:.0f} s",
            flush=True,
        )
    print(table(rows))
    if arguments.plot:
        loss_curves(rows).savefig(arguments.plot, dpi=110)


def loss_curves(rows: list[dict[str, Any]]) -> Figure:
    """Draw the training and test loss of each seed by epoch, with the chosen penalty and without."""
    figure = Figure(figsize=(4.2 * len(SEEDS), 3.4), layout="constrained")
    panels = figure.subplots(1, len(SEEDS), sharey=True)
    for panel, seed in zip(panels, SEEDS, strict=True):
        for row in rows:
            options = row["options"]
            chosen = (options.get("penalty_weight"), options.get("renew_every")) == CHOSEN
            if options["seed"] != seed or not (chosen or options.get("penalty") == "none"):
                continue
            run = "penalty" if chosen else "baseline"
            epochs = range(1, len(row["train_loss"]) + 1)
            panel.plot(epochs, row["train_loss"], color=COLOURS[run], linewidth=2, label=f"{LABELS[run]}, train")
            dashed = {"linewidth": 1.4, "linestyle": "--", "label": f"{LABELS[run]}, test"}
            panel.plot(epochs, row["test_loss"], color=COLOURS[run], **dashed)
        panel.set_title(f"seed {seed}", loc="left", fontsize=11)
        panel.set_xlabel("epoch")
        panel.set_yscale("log")
        panel.grid(color="#E4E4E4", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("loss")
    panels[0].legend(frameon=False, fontsize=8.5)
    return figure


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| seed | weight | renewed every | median true condition number | test accuracy | last training loss |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        options = row["options"]
        weight, interval = options.get("penalty_weight", "no penalty"), options.get("renew_every", "")
        interval = f"{interval} steps" if interval else ""
        lines.append(
            f"| {options['seed']} | {weight} | {interval} | {row['median_condition_number']:.3g} | "
            f"{row['test_accuracy']:.3f} | {row['train_loss'][-1]:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
