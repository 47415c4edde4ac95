"""What a finished run leaves: the last measurements, `summary.json`, the plots, and the tables for the terminal."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from spectrax.report import plots, tables
from spectrax.training.data import Dataset
from spectrax.training.experiment import Experiment, evaluate
from spectrax.training.loop import Finished
from spectrax.training.measurement import jacobian_condition_numbers, layer_singular_values
from spectrax.training.run_directory import PLOTS, RunDirectory

_PACKAGES = ("jax-spectrax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def summarize(
    directory: RunDirectory, experiment: Experiment, data: Dataset, finished: Mapping[str, Finished], /
) -> dict[str, Any]:
    """Measure the trained networks, draw the plots, and put together what `summary.json` holds.

    Args:
        directory: The run's directory; the plots are written into it.
        experiment: The experiment of any of the runs; they share the network and the initial variables.
        data: The data.
        finished: What each run ended with.

    Returns:
        Plain dicts: `config`, `environment`, `data`, `before`, `runs`, and `timings` in seconds.
    """
    net, config = experiment.net, experiment.config
    initial = experiment.init_variables()
    history = directory.read_records()
    variables = {"before": initial, **{arm: end.variables for arm, end in finished.items()}}
    spectra: dict[str, dict[str, np.ndarray | None]] = {}
    jacobians: dict[str, np.ndarray] = {}
    notes: dict[str, str] = {}
    for name, values in variables.items():
        spectra[name], notes = layer_singular_values(experiment.maps, values["params"])
        jacobians[name] = jacobian_condition_numbers(net, values, data.x_test)

    records = {arm: [r for r in history if r["run"] == arm and r["event"] == "epoch"] for arm in finished}
    first = records[next(iter(finished))][0]
    stages = {"before": first, **{arm: records[arm][-1] for arm in finished}}
    found: dict[str, dict[str, Any]] = {}
    for name, record in stages.items():
        found[name] = _stage(record, jacobians[name])
        # In an epoch's record the loss of the training part is the mean over its steps; here it is that of the end.
        loss, accuracy = evaluate(net, variables[name], data.x_train, data.y_train, loss=config.loss)
        found[name] |= {"train_loss": float(loss), "train_accuracy": float(accuracy)}
    for arm, end in finished.items():
        found[arm] |= {
            "checkpoint": end.checkpoint,
            "steps": experiment.total_steps,
            "best_test_accuracy": max(r["test_accuracy"] for r in records[arm]),
        }

    _draw(directory, history, spectra, jacobians, notes)
    return {
        "config": config.to_dict(),
        "environment": environment(),
        "data": {
            "name": data.name,
            "fingerprint": directory.data_fingerprint,
            "classes": data.num_classes,
            "x_train": data.x_train.shape,
            "x_test": data.x_test.shape,
        },
        "steps_per_epoch": experiment.steps_per_epoch,
        "renew_every": config.renewal_interval(experiment.steps_per_epoch),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(initial["params"])),
        "before": found["before"],
        "runs": {arm: found[arm] for arm in finished},
        "plots": [f"plots/{name}.{ending}" for name in PLOTS for ending in ("png", "svg")],
    }


def environment() -> dict[str, Any]:
    """Say what a run ran on: versions, platform and devices.

    Returns:
        Plain dicts.
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": versions,
    }


def show(summary: Mapping[str, Any], write: Any, /) -> None:
    """Hand the tables of a finished run to a function that prints them.

    Args:
        summary: What `summarize` returned, with `timings`.
        write: Called with each table.
    """
    write(tables.layer_table(summary["before"]["layers"], {arm: run["layers"] for arm, run in summary["runs"].items()}))
    write(tables.summary_table(summary))
    write(tables.timing_table(summary["timings"]))


def _stage(record: Mapping[str, Any], jacobians: np.ndarray) -> dict[str, Any]:
    """What is known at one moment: before training, or at the end of a run."""
    conditions = [layer["condition_number"] for layer in record["layers"].values()]
    kinds = {layer["kind"] if layer["converged"] else "not converged" for layer in record["layers"].values()}
    return {
        **{name: record[name] for name in ("test_loss", "test_accuracy", "penalty")},
        "layers": record["layers"],
        "median_condition_number": float(np.median(conditions)),
        "kinds": sorted(kinds),
        "median_jacobian_condition_number": float(np.median(jacobians)),
        "singular_jacobians": int(np.sum(~np.isfinite(jacobians))),
    }


def _draw(
    directory: RunDirectory,
    history: Sequence[Mapping[str, Any]],
    spectra: Mapping[str, Mapping[str, np.ndarray | None]],
    jacobians: Mapping[str, np.ndarray],
    notes: Mapping[str, str],
) -> None:
    def after(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name != "before"}

    figures = {
        "learning_curves": plots.learning_curves(history),
        "condition_numbers": plots.condition_numbers(history),
        "singular_values": plots.singular_values(spectra["before"], after(spectra), notes=notes),
        "jacobian_condition_numbers": plots.jacobian_condition_numbers(jacobians["before"], after(jacobians)),
    }
    for name, figure in figures.items():
        plots.save_figure(figure, directory.path / "plots" / name)
