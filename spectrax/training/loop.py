"""One run's training: steps, epochs, records and checkpoints, from wherever it stands to its end."""

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spectrax.integrations import checkpoints
from spectrax.training import diagnosis
from spectrax.training.data import Dataset
from spectrax.training.experiment import Experiment, StepMetrics, TrainState, evaluate
from spectrax.training.interruption import NonFiniteError, StopRequest, TrainingInterrupted
from spectrax.training.measurement import measure_layers
from spectrax.training.progress import Progress
from spectrax.training.run_directory import RunDirectory

# How many steps may be under way before the host reads the metrics of the oldest: enough to keep the device busy, few
# enough that records, the bar and a stop come at once.
_AHEAD = 8
TIMINGS = ("start", "compilation", "steps", "evaluation", "measurement", "checkpoints")


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a run ends with.

    Attributes:
        variables: The trained variables.
        seconds: What the time was spent on, over all sessions of the run.
        checkpoint: Where its last checkpoint is, relative to the run's directory.
    """

    variables: dict[str, Any]
    seconds: dict[str, float]
    checkpoint: str


class Arm:
    """One run on its way: its state, and what was measured but not yet written.

    Args:
        experiment: The experiment.
        data: The data.
        directory: Where records and checkpoints go.
        progress: Who is told.
        stop: Who asks for a stop.
        steps_before: Steps of the runs before this one, for the progress.
        on_step: Called after each step with the run's name and the number of its steps; a `KeyboardInterrupt` that it
            raises counts as Ctrl-C.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: Dataset,
        directory: RunDirectory,
        *,
        progress: Progress,
        stop: StopRequest,
        steps_before: int,
        on_step: Callable[[str, int], None] | None,
    ) -> None:
        self.experiment, self.data, self.directory = experiment, data, directory
        self.progress, self.stop, self.on_step = progress, stop, on_step
        self.name = experiment.arm
        self._steps_before = steps_before
        self._train = jax.device_put((data.x_train, data.y_train))
        self._test = jax.device_put((data.x_test, data.y_test))
        self._pending: collections.deque[tuple[int, StepMetrics]] = collections.deque()
        self._records: list[dict[str, Any]] = []
        self._epoch_steps: list[tuple[float, float]] = []
        self._last_loss: float | None = None
        self.seconds: dict[str, float] = dict.fromkeys(TIMINGS, 0.0)

    def run(self, *, resume: bool) -> Finished:
        """Train to the end.

        Args:
            resume: Go on from the last checkpoint, where there is one.

        Returns:
            The trained variables.

        Raises:
            TrainingInterrupted: If a stop was asked for; a checkpoint was saved.
            NonFiniteError: If a loss or a parameter was not finite.
        """
        experiment, per_epoch = self.experiment, self.experiment.steps_per_epoch
        state, step = self._start(resume=resume)
        train_step = experiment.step_function()
        compiled = False
        while step < experiment.total_steps:
            epoch = step // per_epoch
            order = jax.device_put(experiment.order(epoch))
            began = time.perf_counter()
            while step < (epoch + 1) * per_epoch and not self.stop.requested:
                state, metrics = train_step(state, *self._train, order)
                step += 1
                if not compiled:
                    jax.block_until_ready(metrics)
                    began = self._spent("compilation", began)  # with the first step, which takes little beside it
                    compiled = True
                self._pending.append((step, metrics))
                self._drain(state, order, leave=_AHEAD)
                if self.on_step is not None:
                    try:
                        self.on_step(self.name, step)
                    except KeyboardInterrupt:
                        self.stop.requested = True
            self._drain(state, order, leave=0)
            self._spent("steps", began)
            if step == (epoch + 1) * per_epoch:
                self._end_epoch(state, epoch + 1)
                self._save(state, step)
            if self.stop.requested and step < experiment.total_steps:
                self._save(state, step)
                raise TrainingInterrupted(self.directory.path, self.name, step)
        path = self.directory.checkpoint_directory(self.name) / str(step)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return Finished(variables, self.seconds, str(path.relative_to(self.directory.path)))

    def _start(self, *, resume: bool) -> tuple[TrainState, int]:
        began = time.perf_counter()
        experiment = self.experiment
        path = self.directory.last_checkpoint(self.name) if resume else None
        if path is None:
            self.directory.forget_records(arm=self.name, after=-1, arms=experiment.config.arms)
            # Not compiled as a whole: layers of one shape share what is compiled for their first factorisation.
            state = jax.block_until_ready(experiment.init_state(experiment.init_variables()))
            self._spent("start", began)
            self._end_epoch(state, 0)
            self._save(state, 0)
            return state, 0
        like = jax.eval_shape(lambda: experiment.init_state(experiment.init_variables()))
        restored = checkpoints.restore(path, like=_checkpoint(like, self.seconds))
        step = int(restored["step"])
        self.seconds = {name: float(restored["seconds"][name]) for name in TIMINGS}
        if step < experiment.total_steps:  # of a run that is complete, and of those after it, nothing is written again
            kept = self.directory.forget_records(arm=self.name, after=step, arms=experiment.config.arms)
            epoch_start = step // experiment.steps_per_epoch * experiment.steps_per_epoch
            self._epoch_steps = [
                (r["loss"], r["accuracy"])
                for r in kept
                if r["run"] == self.name and r["event"] == "step" and r["step"] > epoch_start
            ]
        state = TrainState(**{name: restored[name] for name in _STATE}, failed=jnp.zeros((), bool))
        self._spent("start", began)
        return state, step

    def _drain(self, state: TrainState, order: jax.Array, *, leave: int) -> None:
        """Turn the metrics of finished steps into records; raise at the first step that failed."""
        while len(self._pending) > leave:
            step, on_device = self._pending.popleft()
            metrics = jax.device_get(on_device)
            if metrics.failed:
                self._fail(step, metrics, state, order)
            penalised = self.name == "penalty"
            loss, accuracy = float(metrics.loss), float(metrics.accuracy)
            epoch = 1 + (step - 1) // self.experiment.steps_per_epoch
            record = {
                "run": self.name, "event": "step", "step": step, "epoch": epoch,
                "loss": loss, "accuracy": accuracy, "penalty": float(metrics.penalty) if penalised else None,
            }  # fmt: skip
            if self.experiment.names:
                record["estimates"] = dict(zip(self.experiment.names, metrics.estimates.tolist(), strict=True))
            self._records.append(record)
            self._epoch_steps.append((loss, accuracy))
            self._last_loss = loss
            self.progress.step(f"{self.name}, epoch {record['epoch']}", self._steps_before + step, loss)
            if len(self._records) >= 32:
                self._write()

    def _end_epoch(self, state: TrainState, epoch: int) -> None:
        """Evaluate, measure, and write the records of an epoch that has ended."""
        experiment, config = self.experiment, self.experiment.config
        began = time.perf_counter()
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        test_loss, test_accuracy = map(float, evaluate(experiment.net, variables, *self._test, loss=config.loss))
        began = self._spent("evaluation", began)
        losses = np.array(self._epoch_steps, np.float64).reshape(-1, 2)
        train_loss, train_accuracy = losses.mean(axis=0).tolist() if len(losses) else (None, None)
        self._epoch_steps = []
        record: dict[str, Any] = {
            "run": self.name, "event": "epoch", "step": epoch * experiment.steps_per_epoch, "epoch": epoch,
            "train_loss": train_loss, "train_accuracy": train_accuracy,
            "test_loss": test_loss, "test_accuracy": test_accuracy,
            "penalty": float(optax.tree.get(state.opt_state, "penalty")) if self.name == "penalty" and epoch else None,
        }  # fmt: skip
        if epoch % config.measure_every == 0 or epoch == config.epochs:
            record["layers"] = measure_layers(experiment.maps, state.params, key=experiment.measurement_key())
            self._spent("measurement", began)
        tracked = tracked_layers(state.opt_state, experiment.kinds)
        if tracked:
            record["tracked"] = tracked
        self._records.append(record)
        self._write()
        accuracies = f"test accuracy {test_accuracy:.4f}, test loss {test_loss:.4f}"
        text = f"{self.name}: epoch {epoch}/{config.epochs}, "
        text += accuracies if train_loss is None else f"training loss {train_loss:.4f}, {accuracies}"
        if "layers" in record:
            median = float(np.median([layer["condition_number"] for layer in record["layers"].values()]))
            text += f", median condition number of the layers {median:.3g}"
        self.progress.line(text)

    def _save(self, state: TrainState, step: int) -> None:
        began = time.perf_counter()
        self._write()  # first: what a checkpoint stands for must be in the records
        self.directory.save_checkpoint(self.name, step, _checkpoint(state, self.seconds))
        self._spent("checkpoints", began)

    def _write(self) -> None:
        self.directory.append(self._records)
        self._records = []

    def _fail(self, step: int, metrics: StepMetrics, state: TrainState, order: jax.Array) -> None:
        """Say what happened in the first step that failed; the state still has the parameters from before it."""
        batch = np.asarray(order)[(step - 1) % self.experiment.steps_per_epoch]
        reason = diagnosis.explain(
            self.experiment.net,
            self.experiment.loss,
            {"params": state.params, "batch_stats": state.batch_stats},
            self._train[0][batch],
            self._train[1][batch],
            penalty=float(metrics.penalty),
        )
        what = "loss" if not np.isfinite(metrics.loss) else "parameters"
        value = f"was {float(metrics.loss)}" if what == "loss" else "were not finite"
        checkpoint = self.directory.last_checkpoint(self.name)
        self._records.append(
            {"run": self.name, "event": "stopped", "step": step, "reason": f"{what} {value}: {reason}"}
        )
        self._write()
        raise NonFiniteError(
            f"run {self.name!r}, step {step}: the {what} {value}; {reason}. The last good checkpoint is {checkpoint}",
            self.name,
            step,
            checkpoint,
        )

    def _spent(self, name: str, began: float) -> float:
        now = time.perf_counter()
        self.seconds[name] += now - began
        return now


_STATE = ("params", "batch_stats", "opt_state", "step")


def _checkpoint(state: TrainState, seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        **{name: getattr(state, name) for name in _STATE},
        "seconds": {name: np.float64(value) for name, value in seconds.items()},
    }


def tracked_layers(opt_state: Any, kinds: Mapping[str, str], /) -> dict[str, dict[str, Any]]:
    """Read what the penalty tracks of each layer from an optimiser's state.

    Args:
        opt_state: The state of an Optax chain, with or without `add_spectral_penalty`.
        kinds: What the penalty says of its values, by layer: "exact", "lower" or "estimate".

    Returns:
        For each layer `sigma_max`, `sigma_min`, `condition_number`, `residual` and `converged`, without those
        that the penalty does not measure and gives as NaN, and `kind`; empty without a penalty.
    """
    measurements = optax.tree.get(opt_state, "measurements", None)
    if measurements is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for field, values in jax.device_get(measurements)._asdict().items():
        for name, value in values.items():
            if not np.isnan(value):
                found.setdefault(name, {})[field] = bool(value) if field == "converged" else float(value)
    return {name: {**values, "kind": kinds[name]} for name, values in found.items() if values.keys() != {"converged"}}
