"""What each command does with its options."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectrax.training import TrainingConfig

_MODEL_OPTIONS = ("model", "data", "depth", "width", "activation", "normalization")


class BadInputError(Exception):
    """What the user gave cannot be used; the message says why."""


@contextlib.contextmanager
def _input_checks() -> Iterator[None]:
    """Turn errors of checks into messages; those of the training itself keep their traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise BadInputError(str(error)) from error


def _split(arguments: argparse.Namespace) -> tuple[dict[str, Any], bool, bool]:
    """What was given of a configuration, whether to keep silent, and whether to overwrite."""
    given = {name: value for name, value in vars(arguments).items() if name != "command"}
    return given, given.pop("quiet", False), given.pop("overwrite", False)


def train(arguments: argparse.Namespace) -> int:
    """Train a network, or go on with a run.

    Args:
        arguments: The options that were given.

    Returns:
        The exit code.

    Raises:
        BadInputError: If what was given cannot be used.
    """
    from spectrax.training import TrainingConfig, runs

    given, quiet, overwrite = _split(arguments)
    if "resume" in given:
        return _resume(Path(given.pop("resume")), given, overwrite=overwrite, quiet=quiet)
    with _input_checks():
        directory, data = runs.prepare(TrainingConfig(**given), overwrite=overwrite)
    _conclude(runs.run(directory, data, resume=False, quiet=quiet, on_step=None), directory.path, quiet=quiet)
    return 0


def _resume(path: Path, given: dict[str, Any], *, overwrite: bool, quiet: bool) -> int:
    from spectrax.training import runs
    from spectrax.training.run_directory import RunDirectory

    with _input_checks():
        directory = RunDirectory.open_existing(path)
        _refuse_contradictions(directory.config, given, path, overwrite=overwrite)
        if directory.finished:
            say(f"The run in {path} is finished already: see {directory.summary}", quiet=quiet, stream=sys.stdout)
            return 0
        data = runs.prepare_resumed(directory)
    _conclude(runs.run(directory, data, resume=True, quiet=quiet, on_step=None), path, quiet=quiet)
    return 0


def _refuse_contradictions(
    config: "TrainingConfig", given: dict[str, Any], directory: Path, *, overwrite: bool
) -> None:
    if overwrite:
        raise ValueError("--resume continues a run and --overwrite deletes it: choose one of the two")
    wrong = []
    for name, value in given.items():
        own = getattr(config, name)
        same = Path(value).resolve() == directory.resolve() if name == "out" else value == own
        if not same:
            wrong.append(f"--{name.replace('_', '-')} {value} (the run has {directory if name == 'out' else own})")
    if wrong:
        raise ValueError(
            f"--resume takes the configuration from {directory / 'config.json'}, which contradicts {', '.join(wrong)}"
        )


def _conclude(summary: dict[str, Any], directory: Path, *, quiet: bool) -> None:
    from spectrax.training.progress import Progress
    from spectrax.training.summary import show

    if quiet:
        return
    print()
    show(summary, Progress(quiet=False, total=0).show)
    print(f"Records: {directory / 'metrics.jsonl'}\nPlots: {directory / 'plots'}")
    for run in summary["runs"].values():
        print(f"Checkpoint: {directory / run['checkpoint']}")


def landscape(arguments: argparse.Namespace) -> int:
    """Report on the loss landscape of a network.

    Args:
        arguments: The options that were given.

    Returns:
        The exit code.

    Raises:
        BadInputError: If what was given cannot be used.
    """
    from spectrax.report import landscape_table
    from spectrax.training import TrainingConfig, landscape, subject
    from spectrax.training.progress import Progress

    given, quiet, overwrite = _split(arguments)
    own = {name: given.pop(name) for name in _MODEL_OPTIONS if name in given}
    rhos = tuple(given.pop("rho")) if "rho" in given else None
    with _input_checks():
        run, arm = given.pop("directory", None), given.pop("arm", None)
        if (run is None) == ("model" not in own):
            raise BadInputError("give either the directory of a run or --model")
        if run is not None and own:
            raise BadInputError(f"a run has its own model and data: leave out --{', --'.join(own)}")
        if run is None and arm is not None:
            raise BadInputError("--arm belongs to the directory of a run")
        config = landscape.LandscapeConfig(**given, rhos=rhos)
        if run is not None:
            chosen = subject.from_run(run, arm=arm)
        else:
            first = {} if rhos is None else {"rho": rhos[0]}
            chosen = subject.from_model(TrainingConfig(**own, **first, penalty="none", seed=config.seed))
        found = landscape.prepare(chosen, config, overwrite=overwrite)
    landscape.report(chosen, config, found, quiet=quiet)
    if not quiet:
        print()
        Progress(quiet=False, total=0).show(landscape_table(found["rho"]))
        print("\n".join(f"- {sentence}" for sentence in found["verdict"]))
        print(f"Numbers: {Path(config.out) / 'report.json'}\nPlots: {Path(config.out) / 'plots'}")
    return 0


def spectrum(arguments: argparse.Namespace) -> int:
    """Measure the spectra of a checkpoint.

    Args:
        arguments: The options that were given.

    Returns:
        The exit code.

    Raises:
        BadInputError: If what was given cannot be used.
    """
    from spectrax.integrations.weights import UnreadableError
    from spectrax.report import spectrum_table
    from spectrax.report.spectra import printable
    from spectrax.survey import SpectrumConfig, runs
    from spectrax.training.progress import Progress

    given, quiet, overwrite = _split(arguments)
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    with _input_checks():
        prepared = runs.prepare(SpectrumConfig(**given), overwrite=overwrite)
    try:
        result = runs.run(prepared, quiet=quiet)
    except (UnreadableError, OSError) as error:
        raise BadInputError(str(error)) from error
    bad = [printable(layer["name"]) for layer in result["layers"] if not layer["finite"]]
    if not quiet:
        print()
        Progress(quiet=False, total=0).show(spectrum_table(result["layers"]))
        for item in result["left_out"]:
            print(f"Not measured: {printable(item['name'])} {item['shape']} {item['dtype']}: {item['reason']}")
        out = Path(prepared.config.out)
        print(f"Numbers: {out / 'spectrum.json'}\nPage: {out / 'spectrum.html'}")
    if bad:
        say(f"spectrax spectrum: {len(bad)} of {len(result['layers'])} matrices are not finite: {', '.join(bad[:5])}")
    return 1 if bad else 0


def say(text: str, *, quiet: bool = False, stream: Any = None) -> None:
    """Print a line, to the standard error unless another stream is given.

    Args:
        text: The line.
        quiet: Whether to keep silent.
        stream: The stream.
    """
    if not quiet:
        print(text, file=stream or sys.stderr, flush=True)
