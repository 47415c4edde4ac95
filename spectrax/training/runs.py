"""Whole training runs: started, continued, and brought to their summary."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spectrax.report import records
from spectrax.report.extras import require
from spectrax.training import loop, summary
from spectrax.training.configuration import TrainingConfig
from spectrax.training.data import Dataset, load_data
from spectrax.training.experiment import make_experiment
from spectrax.training.interruption import StopRequest, TrainingInterrupted
from spectrax.training.progress import Progress
from spectrax.training.run_directory import RunDirectory, check_free

OnStep = Callable[[str, int], None]


def train(
    config: TrainingConfig, /, *, overwrite: bool = False, quiet: bool = True, on_step: OnStep | None = None
) -> dict[str, Any]:
    """Train a network with a spectral penalty, and the same one without it if the configuration asks for the baseline.

    Everything is written into `config.out`: `config.json`, `metrics.jsonl`, `checkpoints/<run>/<step>`, `plots/`, and
    at the end `summary.json`. SIGINT and SIGTERM end the step that is under way, save a checkpoint and raise; `resume`
    goes on from there.

    Args:
        config: What to train.
        overwrite: Delete another run that is in `config.out`. Files that no run wrote are never deleted.
        quiet: Report nothing while training.
        on_step: Called after each step with the run's name ("penalty" or "baseline") and the number of its steps.

    Returns:
        What `summary.json` holds: `config`, `environment`, `data`, `before`, `runs`, `timings`.

    Raises:
        FileExistsError: If `config.out` holds another run, or files that no run wrote.
        FileNotFoundError: If the data file does not exist.
        ValueError: If the data is malformed, or does not fit the model.
        ImportError: If a package of the extra `demo` is missing.
        TrainingInterrupted: If a stop was asked for; it is a `KeyboardInterrupt`.
        NonFiniteError: If a loss or a parameter was not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = TrainingConfig(
        ...         out=folder + "/run", data="digits", model="mlp", width=16, depth=1, epochs=2, penalty="none",
        ...         batch_size=64,
        ...     )
        ...     summary = train(config)
        >>> summary["runs"]["baseline"]["test_accuracy"] > 0.3
        True
    """  # noqa: DOC502
    directory, data = prepare(config, overwrite=overwrite)
    return run(directory, data, resume=False, quiet=quiet, on_step=on_step)


def resume(directory: str | Path, /, *, quiet: bool = True, on_step: OnStep | None = None) -> dict[str, Any]:
    """Continue a run from its last checkpoint, to the same numbers as an unbroken run.

    Records that were written after the checkpoint are dropped and written again. The configuration is the directory's.

    Args:
        directory: The directory of the run.
        quiet: Report nothing while training.
        on_step: As in `train`.

    Returns:
        What `summary.json` holds; of a finished run, what it already holds.

    Raises:
        FileNotFoundError: If there is no run in the directory, or its data file is gone.
        ValueError: If the data is not what the run was started with, or its records or checkpoints are damaged.
        ImportError: If a package of the extra `demo` is missing.
        TrainingInterrupted: If a stop was asked for again.
        NonFiniteError: If a loss or a parameter was not finite.

    Example:
        >>> import tempfile
        >>> def stop(run, step):
        ...     if step == 2:
        ...         raise KeyboardInterrupt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     options = {"data": "digits", "model": "mlp", "width": 8, "depth": 1, "epochs": 1, "penalty": "none"}
        ...     try:
        ...         train(TrainingConfig(out=folder + "/run", **options), on_step=stop)
        ...     except TrainingInterrupted:
        ...         summary = resume(folder + "/run")
        >>> list(summary["runs"])
        ['baseline']
    """  # noqa: DOC502
    started = RunDirectory.open_existing(directory)
    if started.finished:
        return records.from_json(started.summary.read_text(encoding="utf-8"))
    return run(started, prepare_resumed(started), resume=True, quiet=quiet, on_step=on_step)


def prepare(config: TrainingConfig, /, *, overwrite: bool) -> tuple[RunDirectory, Dataset]:
    """Check a configuration against the world, and make its directory.

    Args:
        config: What to train.
        overwrite: Delete another run that is in `config.out`.

    Returns:
        The directory and the data.
    """
    _check_packages()
    check_free(Path(config.out), overwrite=overwrite)
    data = load_data(config.data, seed=config.seed)
    make_experiment(config, data, arm="baseline")  # what does not fit is said before anything is deleted
    return RunDirectory.create(config, data_fingerprint=data.fingerprint(), overwrite=overwrite), data


def prepare_resumed(directory: RunDirectory, /) -> Dataset:
    """Load the data of a run that goes on, and clear away what a killed process left.

    Args:
        directory: The run's directory.

    Returns:
        The data.

    Raises:
        ValueError: If the data is not what the run was started with, or its records or checkpoints are damaged.
    """
    _check_packages()
    data = load_data(directory.config.data, seed=directory.config.seed)
    if data.fingerprint() != directory.data_fingerprint:
        raise ValueError(
            f"{directory.path} was started with other data: {directory.config.data} has checksum {data.fingerprint()}, "
            f"and the run saw {directory.data_fingerprint}"
        )
    directory.remove_unfinished_checkpoints()
    directory.check_before_resuming(steps_per_epoch=len(data.x_train) // directory.config.batch_size)
    return data


def run(
    directory: RunDirectory, data: Dataset, /, *, resume: bool, quiet: bool, on_step: OnStep | None
) -> dict[str, Any]:
    """Train whatever a directory's configuration asks for, and summarise it.

    Args:
        directory: The directory.
        data: The data.
        resume: Go on from the last checkpoints.
        quiet: Report nothing while training.
        on_step: As in `train`.

    Returns:
        What `summary.json` holds.

    Raises:
        TrainingInterrupted: If a stop was asked for.
    """
    config = directory.config
    experiments = {arm: make_experiment(config, data, arm=arm) for arm in config.arms}
    total = sum(experiment.total_steps for experiment in experiments.values())
    finished: dict[str, loop.Finished] = {}
    with Progress(quiet=quiet, total=total) as progress, StopRequest() as stop:
        for index, (arm, experiment) in enumerate(experiments.items()):
            training = loop.Arm(
                experiment,
                data,
                directory,
                progress=progress,
                stop=stop,
                steps_before=index * experiment.total_steps,
                on_step=on_step,
            )
            finished[arm] = training.run(resume=resume)
        if stop.requested:
            raise TrainingInterrupted(directory.path, config.arms[-1], experiments[config.arms[-1]].total_steps)
    began = time.perf_counter()
    result = summary.summarize(directory, experiments[config.arms[0]], data, finished)
    # The seconds of every run and of all sessions, which the checkpoints carry on.
    timings = {name: sum(end.seconds[name] for end in finished.values()) for name in loop.TIMINGS}
    timings["report"] = time.perf_counter() - began
    result["timings"] = timings | {"total": sum(timings.values())}
    directory.write_summary(result)
    return records.from_json(records.to_json(result))


def _check_packages() -> None:
    """Find out before training, not after it, that a package is missing."""
    require("matplotlib", "drawing plots")
    require("rich", "printing tables")
    require("orbax.checkpoint", "saving checkpoints")
