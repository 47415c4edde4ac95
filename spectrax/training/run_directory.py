"""The directory that a training run writes, and what in it belongs to the run.

    config.json                    the configuration and a checksum of the data
    metrics.jsonl                  a record a step and a record an epoch, of all runs
    checkpoints/<run>/<step>/      Orbax checkpoints
    plots/*.png, *.svg
    summary.json                   written last: a directory that has it is a finished run

A record has `run` ("penalty" or "baseline"), `event`, `step` (how many steps of its run were made) and, by its event:

- "step": `epoch` from 1 on, `loss` (without the penalty), `accuracy` on the batch, `penalty` (before its weight; null
  without one), and in `estimates` the condition number of each layer that the penalty tracks.
- "epoch" (0 is before training): `train_loss` and `train_accuracy` (means over the epoch's steps), `test_loss`,
  `test_accuracy`, `penalty` at the last step, in `layers` what was measured of each layer (where it was due), and in
  `tracked` what the penalty's own state says.
- "stopped": `reason`, at a number that was not finite.

Numbers that are not finite are the strings "NaN", "Infinity" and "-Infinity", as `spectrax.report.records` reads them.
Times are in the summary alone, so that the records of a resumed run are those of an unbroken one.
"""

import dataclasses
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spectrax.integrations import checkpoints
from spectrax.report import records
from spectrax.training.configuration import TrainingConfig

PLOTS = ("learning_curves", "condition_numbers", "singular_values", "jacobian_condition_numbers")
_PROGRAM, _FORMAT = "spectrax train", 1
_FILES = ("config.json", "metrics.jsonl", "summary.json")
_KEPT_CHECKPOINTS = 2


class RunDirectory:
    """The files of one run. Use `create` or `open_existing`; the arguments are attributes.

    Args:
        path: The directory.
        config: The configuration of its run.
        data_fingerprint: The checksum of the data that the run was started with.
    """

    def __init__(self, path: Path, config: TrainingConfig, data_fingerprint: str) -> None:
        self.path = path
        self.config = config
        self.data_fingerprint = data_fingerprint

    @classmethod
    def create(cls, config: TrainingConfig, /, *, data_fingerprint: str, overwrite: bool) -> "RunDirectory":
        """Make the directory of a new run.

        Args:
            config: The configuration; `config.out` is the directory.
            data_fingerprint: The checksum of the data.
            overwrite: Delete another run that is there; never anything else.

        Returns:
            The directory.

        Raises:
            FileExistsError: If the directory holds another run and `overwrite` is False, or holds files of anybody
                else.
        """
        path = Path(config.out)
        check_free(path, overwrite=overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(f"the directory {path} cannot be made: {error}") from error
        for entry in path.iterdir():  # check_free has seen that all of them are a run's
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        content = {
            "program": _PROGRAM, "format": _FORMAT, "config": config.to_dict(), "data_fingerprint": data_fingerprint,
        }  # fmt: skip
        _write(path / "config.json", records.to_json(content, indent=2) + "\n")
        return cls(path, config, data_fingerprint)

    @classmethod
    def open_existing(cls, path: str | Path, /) -> "RunDirectory":
        """Open the directory of a run that was started before.

        Args:
            path: The directory.

        Returns:
            The directory; its `config` has `path` as `out`, wherever the run was started.

        Raises:
            FileNotFoundError: If there is no run at `path`.
            ValueError: If its `config.json` is not one of this program.
        """
        path = Path(path)
        file = path / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"{path} holds no run of {_PROGRAM}: there is no {file}")
        content = _read_config(file)
        if content is None:
            raise ValueError(f"{file} was not written by {_PROGRAM}")
        if content["format"] != _FORMAT:
            raise ValueError(f"{file} has format {content['format']}, and this version reads format {_FORMAT}")
        unknown = set(content["config"]) - {field.name for field in dataclasses.fields(TrainingConfig)}
        if unknown:
            raise ValueError(f"{file} has entries that this version does not know: {', '.join(sorted(unknown))}")
        config = TrainingConfig(**content["config"])
        return cls(path, dataclasses.replace(config, out=str(path)), content["data_fingerprint"])

    @property
    def metrics(self) -> Path:
        """The file of records."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """The file that a finished run has."""
        return self.path / "summary.json"

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.summary.is_file()

    def append(self, new: Iterable[Mapping[str, Any]], /) -> None:
        """Append records to `metrics.jsonl`."""
        text = records.to_lines(new)
        if text:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(text)

    def read_records(self) -> list[dict[str, Any]]:
        """Read `metrics.jsonl`."""
        return records.read_records(self.metrics) if self.metrics.is_file() else []

    def forget_records(self, *, arm: str, after: int, arms: tuple[str, ...]) -> list[dict[str, Any]]:
        """Drop the records that a resumed run will write again.

        Args:
            arm: The run that goes on.
            after: The step of its checkpoint: its records of later steps are dropped. -1 drops all of them.
            arms: The order of the runs: records of those after `arm` are dropped.

        Returns:
            The records that stay.
        """
        earlier = arms[: arms.index(arm)]
        kept = [r for r in self.read_records() if r["run"] in earlier or (r["run"] == arm and r["step"] <= after)]
        _write(self.metrics, records.to_lines(kept))
        return kept

    def checkpoint_directory(self, arm: str) -> Path:
        """The directory of one run's checkpoints."""
        return self.path / "checkpoints" / arm

    def save_checkpoint(self, arm: str, step: int, tree: Any) -> Path:
        """Save a checkpoint, and keep the newest two."""
        return checkpoints.save_step(self.checkpoint_directory(arm), step, tree, keep=_KEPT_CHECKPOINTS)

    def last_checkpoint(self, arm: str) -> Path | None:
        """The newest complete checkpoint of one run, or None."""
        steps = checkpoints.checkpoint_steps(self.checkpoint_directory(arm))
        return self.checkpoint_directory(arm) / str(steps[-1]) if steps else None

    def check_before_resuming(self, *, steps_per_epoch: int) -> None:
        """See that what a resumed run goes on from is there and whole, and drop what is not.

        A checkpoint that cannot be restored is deleted where an older one can, with a warning.

        Args:
            steps_per_epoch: Steps in an epoch, to know which records there must be.

        Raises:
            ValueError: If no checkpoint of a run can be restored, or records of steps or epochs before it are missing.
        """
        found = self.read_records()
        for arm in self.config.arms:
            steps = [r.get("step") for r in found if r.get("run") == arm and r.get("event") == "step"]
            last = self._drop_damaged_checkpoints(arm)
            if last is None:
                if steps:
                    text = f"{self.path}: no checkpoint of the run {arm!r} is left; it starts from the beginning"
                    warnings.warn(text, stacklevel=4)
                continue
            epochs = [r.get("epoch") for r in found if r.get("run") == arm and r.get("event") == "epoch"]
            wanted = {"step": range(1, last + 1), "epoch": range(last // steps_per_epoch + 1)}
            for event, numbers in (("step", steps), ("epoch", epochs)):
                missing = sorted(set(wanted[event]) - set(numbers))
                if missing:
                    raise ValueError(
                        f"{self.metrics} lacks records of the run {arm!r} up to its checkpoint at step {last}: {event} "
                        f"{missing[0]} and {len(missing) - 1} more. Put the file back, or start anew with --overwrite"
                    )

    def _drop_damaged_checkpoints(self, arm: str) -> int | None:
        directory, errors = self.checkpoint_directory(arm), {}
        for step in checkpoints.checkpoint_steps(directory)[::-1]:
            try:
                checkpoints.restore(directory / str(step))
            except Exception as error:  # whatever Orbax and its file formats raise
                errors[step] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
                continue
            for damaged, reason in errors.items():
                text = f"{directory / str(damaged)} cannot be restored ({reason}); going on from step {step}"
                warnings.warn(text, stacklevel=5)
                shutil.rmtree(directory / str(damaged))
            return step
        if errors:
            shown = "; ".join(f"step {step}: {reason}" for step, reason in errors.items())
            raise ValueError(f"none of the checkpoints in {directory} can be restored ({shown})")
        return None

    def remove_unfinished_checkpoints(self) -> None:
        """Delete what a killed process left of a checkpoint that it was writing."""
        for arm in ("penalty", "baseline"):
            directory = self.checkpoint_directory(arm)
            for entry in directory.iterdir() if directory.is_dir() else ():
                if not entry.name.isdecimal() and _is_checkpoint_name(entry.name):
                    shutil.rmtree(entry)

    def write_summary(self, summary: Mapping[str, Any], /) -> None:
        """Write `summary.json`, which marks the run as finished."""
        _write(self.summary, records.to_json(summary, indent=2) + "\n")


def check_free(path: Path, /, *, overwrite: bool) -> None:
    """Raise unless a new run may write into a directory.

    Args:
        path: The directory; it may be missing.
        overwrite: Whether a run that is there may be deleted.

    Raises:
        FileExistsError: If the directory holds another run and `overwrite` is False, or if it holds files that no run
            wrote; those are never deleted.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file; a run writes a directory")
    if not any(path.iterdir()):
        return
    foreign = foreign_files(path)
    if foreign:
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise FileExistsError(
            f"{path} holds files that no run of {_PROGRAM} wrote ({shown}); they are never deleted: "
            "choose another directory"
        )
    if not overwrite:
        raise FileExistsError(
            f"{path} holds another run: choose another directory, continue it with --resume {path}, "
            "or delete it with --overwrite"
        )


def foreign_files(path: Path, /) -> list[str]:
    """List the entries of a directory that no run wrote, relative to it; all of them where no run has left its mark.

    Args:
        path: The directory.

    Returns:
        Names, sorted.
    """
    config = path / "config.json"
    ours = config.is_file() and not config.is_symlink() and _read_config(config) is not None
    if not ours:
        return sorted(entry.name for entry in path.iterdir())
    plots = {f"{name}.{ending}" for name in PLOTS for ending in ("png", "svg")}
    foreign = []
    for entry in path.iterdir():
        if entry.is_symlink():
            foreign.append(entry.name)
        elif entry.name == "plots" and entry.is_dir():
            foreign += [f"plots/{file.name}" for file in entry.iterdir() if file.name not in plots]
        elif entry.name == "checkpoints" and entry.is_dir():
            for arm in entry.iterdir():
                known = arm.name in ("penalty", "baseline") and arm.is_dir() and not arm.is_symlink()
                if not known:
                    foreign.append(f"checkpoints/{arm.name}")
                    continue
                foreign += [
                    f"checkpoints/{arm.name}/{step.name}"
                    for step in arm.iterdir()
                    if not (_is_checkpoint_name(step.name) and step.is_dir())
                ]
        elif not (entry.is_file() and entry.name.removesuffix(".partial") in _FILES):
            foreign.append(entry.name)
    return sorted(foreign)


def _is_checkpoint_name(name: str) -> bool:
    # Orbax writes into <step>.orbax-checkpoint-tmp... and renames.
    return name.partition(".orbax-checkpoint-tmp")[0].isdecimal()


def _read_config(file: Path) -> dict[str, Any] | None:
    try:
        content = records.from_json(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    known = isinstance(content, dict) and content.get("program") == _PROGRAM
    return content if known and {"format", "config", "data_fingerprint"} <= content.keys() else None


def _write(path: Path, text: str) -> None:
    """Write a file so that it is at every moment the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
