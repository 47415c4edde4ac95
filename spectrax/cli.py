"""The command line: `spectrax train`, `spectrax landscape` and `spectrax spectrum`."""

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectrax.training import TrainingConfig

_INTERRUPTED = 130  # what a shell gives a command that Ctrl-C ended
_MODEL_OPTIONS = ("model", "data", "depth", "width", "activation", "normalization")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments after the program's name; those of the process if None.

    Returns:
        The exit code: 0 when all went well, 1 when a run had to stop, 2 for bad input, 130 after Ctrl-C.

    Example:
        >>> main(["train", "--data", "no-such-file.npz", "--out", "no-such-directory"])
        2
    """
    from spectrax.training import NonFiniteError, TrainingConfig, TrainingInterrupted

    parser = make_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as exit_request:  # argparse has written the help or the error
        return int(exit_request.code or 0)
    try:
        return arguments.run(arguments)
    except TrainingInterrupted as stopped:
        _say(
            f"Stopped after step {stopped.step} of the run {stopped.arm!r}; nothing is lost. "
            f"Continue with: spectrax train --resume {stopped.directory}"
        )
        return _INTERRUPTED
    except KeyboardInterrupt:
        directory = getattr(arguments, "resume", None) or getattr(arguments, "out", TrainingConfig.out)
        if arguments.command == "landscape":
            _say("Stopped at once. The same command goes on after the last rho that was finished.")
        elif arguments.command == "spectrum":
            _say("Stopped at once. The same command goes on after the last matrix that was finished.")
        else:
            _say(f"Stopped at once. If the run got as far as a checkpoint: spectrax train --resume {directory}")
        return _INTERRUPTED
    except NonFiniteError as error:
        _say(f"spectrax train: stopped: {error}")
        return 1
    except BadInputError as error:
        _say(f"spectrax {arguments.command}: error: {error}")
        return 2


class BadInputError(Exception):
    """What the user gave cannot be used; the message says why."""


@contextlib.contextmanager
def _input_checks() -> Iterator[None]:
    """Turn errors of checks into messages; those of the training itself keep their traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise BadInputError(str(error)) from error


def make_parser() -> argparse.ArgumentParser:
    """Build the parser. Options that are not given are absent from its result, so `--resume` can tell them apart.

    Returns:
        The parser of the whole command line.
    """
    from spectrax.training import configuration, data

    parser = argparse.ArgumentParser(
        prog="spectrax", description="Train networks with healthy spectra, and see what that did.", allow_abbrev=False
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    train = commands.add_parser(
        "train",
        help="train a network with a spectral penalty",
        description="Train a network on images with a penalty on the spectra of its layers, and measure what it did. "
        "The run's records, checkpoints and plots go into a directory. Ctrl-C saves a checkpoint; --resume goes on.",
        epilog="Exit codes: 0 finished; 1 a loss or a parameter was not finite; 2 bad input; 130 stopped by Ctrl-C.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    train.set_defaults(run=_train, command="train")
    defaults = {field.name: field.default for field in dataclasses.fields(configuration.TrainingConfig)}

    def add(group: Any, name: str, text: str, *, default: str | None = None, **options: Any) -> None:
        shown = default or defaults[name.replace("-", "_")]
        group.add_argument(f"--{name}", help=f"{text} (default: {shown})", **options)

    def from_models(name: str) -> str:
        values = {model: configuration.model_defaults(model)[name] for model in configuration.MODELS}
        return ", ".join(f"{value} for {model}" for model, value in values.items())

    rates = ", ".join(f"{rate:g} for {name}" for name, rate in configuration.LEARNING_RATES.items())

    group = train.add_argument_group("data")
    named = ", ".join(data.NAMES)
    add(
        group, "data", f"{named}, or the path of an .npz file with the arrays x_train, y_train, x_test, y_test",
        metavar="NAME|PATH",
    )  # fmt: skip
    group = train.add_argument_group("model")
    add(group, "model", "the network", choices=configuration.MODELS)
    add(group, "depth", "number of blocks", type=_positive, metavar="N", default=from_models("depth"))
    add(group, "width", "channels of a layer", type=_positive, metavar="N", default=from_models("width"))
    add(group, "activation", "the activation", choices=configuration.ACTIVATIONS)
    add(group, "rho", "fraction of the identity in each skip", type=_real, metavar="X", default=from_models("rho"))
    add(group, "normalization", "between a linear map and its activation", choices=configuration.NORMALIZATIONS)
    group = train.add_argument_group("training")
    add(group, "optimizer", "the optimiser", choices=configuration.OPTIMIZERS)
    add(
        group, "learning-rate", "at the start of its cosine decay to zero", type=_real, metavar="X", default=rates
    )  # fmt: skip
    add(group, "epochs", "passes over the training part", type=_positive, metavar="N")
    add(group, "batch-size", "samples in a step", type=_positive, metavar="N")
    add(group, "loss", "the loss", choices=configuration.LOSSES)
    add(group, "seed", "seed of the split, the weights, the order of samples and the penalty", type=int, metavar="N")
    group = train.add_argument_group("penalty")
    add(group, "penalty", "what is penalised", choices=configuration.PENALTIES)
    add(group, "penalty-weight", "what it is multiplied by before it is added to the loss", type=_real, metavar="X")
    add(
        group, "penalty-low", "lower end of the band, or threshold of rank", type=_real, metavar="X",
        default=f"{configuration.BAND[0]:g}",
    )  # fmt: skip
    add(
        group, "penalty-high", "upper end of the band", type=_real, metavar="X", default=f"{configuration.BAND[1]:g}"
    )  # fmt: skip
    add(
        group, "penalty-on", "each layer as the linear map that it is, or the network's Jacobian at its samples",
        choices=configuration.PENALTY_TARGETS,
    )  # fmt: skip
    add(
        group, "renew-every", "steps between two renewals of the penalty's vectors by a factorisation", type=_positive,
        metavar="STEPS", default="those of four epochs",
    )  # fmt: skip
    add(group, "block-size", "vectors that the penalty carries at each end of a spectrum", type=_positive, metavar="N")
    group = train.add_argument_group("output")
    add(group, "out", "the directory to write; one that holds another run is refused", metavar="DIR")
    group.add_argument(
        "--overwrite", action="store_true", help="delete the other run that --out holds, and nothing else"
    )
    group.add_argument(
        "--baseline", action="store_true", help="train the same network from the same seed without the penalty, too"
    )
    add(
        group, "measure-every", "epochs between two measurements of the layers' true spectra", type=_positive,
        metavar="EPOCHS",
    )  # fmt: skip
    group.add_argument(
        "--resume",
        metavar="DIR",
        help="continue the run in DIR, with its own configuration, to the numbers of an unbroken run",
    )
    group.add_argument("--quiet", action="store_true", help="report nothing but errors")
    _add_landscape(commands)
    _add_spectrum(commands)
    return parser


def _add_landscape(commands: Any) -> None:
    from spectrax.training import configuration, landscape

    parser = commands.add_parser(
        "landscape",
        help="report on the loss landscape of a network, layer by layer",
        description="Look at the squared error of a trained network, or of a model before training, in the weights of "
        "each layer: condition numbers, kinks, slices; for the network's own rho and for others on the same weights. "
        "A report that was interrupted goes on when the command is repeated.",
        epilog="Exit codes: 0 finished; 2 bad input; 130 stopped by Ctrl-C.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_landscape, command="landscape")
    defaults = {field.name: field.default for field in dataclasses.fields(landscape.LandscapeConfig)}
    parser.add_argument("directory", nargs="?", metavar="RUN", help="a directory that spectrax train wrote")
    parser.add_argument("--arm", choices=("penalty", "baseline"), help="which of its runs (default: the first)")
    group = parser.add_argument_group("a model before training, instead of RUN")
    group.add_argument("--model", choices=configuration.MODELS, help="the network")
    group.add_argument("--data", metavar="NAME|PATH", help="as for spectrax train (default: mnist5k)")
    for name, kind in (("depth", "blocks"), ("width", "channels of a layer")):
        group.add_argument(f"--{name}", type=_positive, metavar="N", help=f"{kind} (default: the model's own)")
    group.add_argument("--activation", choices=configuration.ACTIVATIONS, help="the activation (default: relu)")
    group.add_argument("--normalization", choices=configuration.NORMALIZATIONS, help="as for spectrax train")
    group = parser.add_argument_group("report")

    def add(name: str, text: str, *, default: Any = None, **options: Any) -> None:
        shown = default or defaults[name.replace("-", "_")]
        group.add_argument(f"--{name}", help=f"{text} (default: {shown})", **options)

    add("rho", "other fractions of the identity to look at; of a model before training the first is its own",
        type=_real, nargs="+", metavar="X", default="0 and 1")  # fmt: skip
    add("samples", "test samples", type=_positive, metavar="N")
    add("layer", "the layer that the line and the slices go through", metavar="NAME", default="the second")
    add("line-length", "length of the line, relative to the norm of the weight", type=_real, metavar="X")
    add("extent", "how far the wide slice reaches, likewise", type=_real, metavar="X")
    add("resolution", "points on each axis of a slice, odd", type=_positive, metavar="N")
    add("seed", "seed of the line's direction, and of a model's weights", type=int, metavar="N")
    add("out", "the directory to write; one that holds anything else is refused", metavar="DIR")
    group.add_argument("--overwrite", action="store_true", help="replace another report that --out holds")
    group.add_argument("--quiet", action="store_true", help="report nothing but errors")


def _add_spectrum(commands: Any) -> None:
    from spectrax.survey import configuration

    parser = commands.add_parser(
        "spectrum",
        help="measure the spectra of all matrices of a checkpoint",
        description="Measure the extreme singular values, densities and ranks of each matrix of a checkpoint: .npz, "
        ".npy, .safetensors (also in several files), an Orbax directory, PyTorch, .gguf (extra gguf), .onnx (extra "
        "onnx). Each matrix is written when it is finished, and the same command goes on after an interruption.",
        epilog="Exit codes: 0 finished; 1 a matrix was not finite; 2 bad input; 130 stopped by Ctrl-C. Patterns are "
        "those of a shell; put them in quotes.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_spectrum, command="spectrum")
    defaults = {field.name: field.default for field in dataclasses.fields(configuration.SpectrumConfig)}
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the file or directory")

    def add(group: Any, name: str, text: str, *, field: str = "", default: Any = None, **options: Any) -> None:
        field = field or name.replace("-", "_")
        shown = default or defaults[field]
        group.add_argument(f"--{name}", dest=field, help=f"{text} (default: {shown})", **options)

    group = parser.add_argument_group("which matrices")
    add(group, "include", "names to measure", nargs="+", metavar="PATTERN", default="all")
    add(group, "exclude", "names to leave out", nargs="+", metavar="PATTERN", default="none")
    add(group, "min-side", "leave out matrices whose shorter side is smaller", type=_positive, metavar="N")
    add(
        group, "stacked", "arrays of more than two axes whose leading axes count matrices", nargs="+",
        metavar="PATTERN", default="none",
    )  # fmt: skip
    add(
        group, "kernels", "measure other arrays of more than two axes as reshaped kernels of this layout, which have "
        "not the singular values of the convolution", choices=configuration.KERNELS, default="leave them out",
    )  # fmt: skip
    group = parser.add_argument_group("what is measured")
    add(
        group, "only", "the largest values, both ends, ranks of the whole spectrum, its density", field="measure",
        nargs="+", choices=configuration.MEASURES, default="all four",
    )  # fmt: skip
    add(group, "k", "how many of the largest values", type=_positive, metavar="N")
    add(group, "max-side", "do not factorise matrices whose shorter side is larger", type=_positive, metavar="N")
    add(
        group, "method", "decompose wholly, iterate, or what is faster for the number of equal shapes",
        choices=configuration.METHODS,
    )  # fmt: skip
    add(
        group, "tol", "relative residual to reach", type=_real, metavar="X",
        default="1e-6 in 32 bits, 1e-10 in 64",
    )  # fmt: skip
    add(
        group,
        "precision",
        "what is computed in; stored is 64 bits for what is stored so",
        choices=configuration.PRECISIONS,
    )
    add(group, "seed", "seed of the iterations' starts", type=int, metavar="N")
    group = parser.add_argument_group("output")
    add(group, "out", "the directory to write; one that holds anything else is refused", metavar="DIR")
    group.add_argument("--overwrite", action="store_true", help="replace another survey that --out holds")
    group.add_argument("--quiet", action="store_true", help="report nothing but errors")


def _landscape(arguments: argparse.Namespace) -> int:
    from spectrax.report import landscape_table
    from spectrax.training import TrainingConfig, landscape, subject
    from spectrax.training.progress import Progress

    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "command")}
    quiet, overwrite = given.pop("quiet", False), given.pop("overwrite", False)
    own = {name: given.pop(name) for name in _MODEL_OPTIONS if name in given}
    rhos = tuple(given.pop("rho")) if "rho" in given else None
    with _input_checks():
        run, arm = given.pop("directory", None), given.pop("arm", None)
        if (run is None) == ("model" not in own):
            raise ValueError("give either the directory of a run or --model")
        if run is not None and own:
            raise ValueError(f"a run has its own model and data: leave out --{', --'.join(own)}")
        if run is None and arm is not None:
            raise ValueError("--arm belongs to the directory of a run")
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


def _spectrum(arguments: argparse.Namespace) -> int:
    from spectrax.integrations.weights import UnreadableError
    from spectrax.report import spectrum_table
    from spectrax.report.spectra import printable
    from spectrax.survey import SpectrumConfig, runs
    from spectrax.training.progress import Progress

    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "command")}
    quiet, overwrite = given.pop("quiet", False), given.pop("overwrite", False)
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
        _say(f"spectrax spectrum: {len(bad)} of {len(result['layers'])} matrices are not finite: {', '.join(bad[:5])}")
    return 1 if bad else 0


def _train(arguments: argparse.Namespace) -> int:
    from spectrax.training import TrainingConfig, runs

    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "command")}
    quiet = given.pop("quiet", False)
    overwrite = given.pop("overwrite", False)
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
            _say(f"The run in {path} is finished already: see {directory.summary}", quiet=quiet, stream=sys.stdout)
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


def _say(text: str, *, quiet: bool = False, stream: Any = None) -> None:
    if not quiet:
        print(text, file=stream or sys.stderr, flush=True)


def _number(text: str, kind: Callable[[str], Any], wanted: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}") from None


def _positive(text: str) -> int:
    value = _number(text, int, "an integer of at least 1")
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {value}")
    return value


def _real(text: str) -> float:
    value = _number(text, float, "a number")
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value
