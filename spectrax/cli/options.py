"""The options of each command."""

import argparse
import dataclasses
import math
from collections.abc import Callable
from typing import Any


class _Options:
    """The parser of a command, and groups of options in it; the defaults of a configuration stand in their help."""

    def __init__(self, commands: Any, command: str, configuration: type, **texts: str):
        self.parser = commands.add_parser(command, argument_default=argparse.SUPPRESS, allow_abbrev=False, **texts)
        self.parser.set_defaults(command=command)
        self.group = self.parser.add_argument_group()
        self._defaults = {field.name: field.default for field in dataclasses.fields(configuration)}

    def begin(self, title: str) -> None:
        """Begin a group; what is added from now on belongs to it."""
        self.group = self.parser.add_argument_group(title)

    def add(self, name: str, text: str, *, field: str = "", default: Any = None, **options: Any) -> None:
        """Add an option; `field` is that of the configuration, if it has another name."""
        field = field or name.replace("-", "_")
        self.group.add_argument(
            f"--{name}", dest=field, help=f"{text} (default: {default or self._defaults[field]})", **options
        )


def make_parser() -> argparse.ArgumentParser:
    """Build the parser. Options that are not given are absent from its result, so `--resume` can tell them apart.

    Returns:
        The parser of the whole command line.
    """
    parser = argparse.ArgumentParser(
        prog="spectrax", description="Train networks with healthy spectra, and see what that did.", allow_abbrev=False
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_train(commands)
    _add_landscape(commands)
    _add_spectrum(commands)
    return parser


def _add_train(commands: Any) -> None:
    from spectrax.training import configuration, data

    options = _Options(
        commands,
        "train",
        configuration.TrainingConfig,
        help="train a network with a spectral penalty",
        description="Train a network on images with a penalty on the spectra of its layers, and measure what it did. "
        "The run's records, checkpoints and plots go into a directory. Ctrl-C saves a checkpoint; --resume goes on.",
        epilog="Exit codes: 0 finished; 1 a loss or a parameter was not finite; 2 bad input; 130 stopped by Ctrl-C.",
    )

    def from_models(name: str) -> str:
        values = {model: configuration.model_defaults(model)[name] for model in configuration.MODELS}
        return ", ".join(f"{value} for {model}" for model, value in values.items())

    rates = ", ".join(f"{rate:g} for {name}" for name, rate in configuration.LEARNING_RATES.items())

    options.begin("data")
    named = ", ".join(data.NAMES)
    options.add(
        "data",
        f"{named}, or the path of an .npz file with the arrays x_train, y_train, x_test, y_test",
        metavar="NAME|PATH",
    )
    options.begin("model")
    options.add("model", "the network", choices=configuration.MODELS)
    options.add("depth", "number of blocks", type=_positive, metavar="N", default=from_models("depth"))
    options.add("width", "channels of a layer", type=_positive, metavar="N", default=from_models("width"))
    options.add("activation", "the activation", choices=configuration.ACTIVATIONS)
    options.add("rho", "fraction of the identity in each skip", type=_real, metavar="X", default=from_models("rho"))
    options.add("normalization", "between a linear map and its activation", choices=configuration.NORMALIZATIONS)
    options.begin("training")
    options.add("optimizer", "the optimiser", choices=configuration.OPTIMIZERS)
    options.add("learning-rate", "at the start of its cosine decay to zero", type=_real, metavar="X", default=rates)
    options.add("epochs", "passes over the training part", type=_positive, metavar="N")
    options.add("batch-size", "samples in a step", type=_positive, metavar="N")
    options.add("loss", "the loss", choices=configuration.LOSSES)
    options.add("seed", "seed of the split, the weights, the order of samples and the penalty", type=int, metavar="N")
    options.begin("penalty")
    options.add("penalty", "what is penalised", choices=configuration.PENALTIES)
    options.add("penalty-weight", "what it is multiplied by before it is added to the loss", type=_real, metavar="X")
    options.add(
        "penalty-low",
        "lower end of the band, or threshold of rank",
        type=_real,
        metavar="X",
        default=f"{configuration.BAND[0]:g}",
    )
    options.add("penalty-high", "upper end of the band", type=_real, metavar="X", default=f"{configuration.BAND[1]:g}")
    options.add(
        "penalty-on",
        "each layer as the linear map that it is, or the network's Jacobian at its samples",
        choices=configuration.PENALTY_TARGETS,
    )
    options.add(
        "renew-every",
        "steps between two renewals of the penalty's vectors by a factorisation",
        type=_positive,
        metavar="STEPS",
        default="those of four epochs",
    )
    options.add("block-size", "vectors that the penalty carries at each end of a spectrum", type=_positive, metavar="N")
    options.begin("output")
    options.add("out", "the directory to write; one that holds another run is refused", metavar="DIR")
    options.group.add_argument(
        "--overwrite", action="store_true", help="delete the other run that --out holds, and nothing else"
    )
    options.group.add_argument(
        "--baseline", action="store_true", help="train the same network from the same seed without the penalty, too"
    )
    options.add(
        "measure-every",
        "epochs between two measurements of the layers' true spectra",
        type=_positive,
        metavar="EPOCHS",
    )
    options.group.add_argument(
        "--resume",
        metavar="DIR",
        help="continue the run in DIR, with its own configuration, to the numbers of an unbroken run",
    )
    options.group.add_argument("--quiet", action="store_true", help="report nothing but errors")


def _add_landscape(commands: Any) -> None:
    from spectrax.training import configuration, landscape

    options = _Options(
        commands,
        "landscape",
        landscape.LandscapeConfig,
        help="report on the loss landscape of a network, layer by layer",
        description="Look at the squared error of a trained network, or of a model before training, in the weights of "
        "each layer: condition numbers, kinks, slices; for the network's own rho and for others on the same weights. "
        "A report that was interrupted goes on when the command is repeated.",
        epilog="Exit codes: 0 finished; 2 bad input; 130 stopped by Ctrl-C.",
    )
    options.parser.add_argument("directory", nargs="?", metavar="RUN", help="a directory that spectrax train wrote")
    options.parser.add_argument("--arm", choices=("penalty", "baseline"), help="which of its runs (default: the first)")
    options.begin("a model before training, instead of RUN")
    options.group.add_argument("--model", choices=configuration.MODELS, help="the network")
    options.group.add_argument("--data", metavar="NAME|PATH", help="as for spectrax train (default: mnist5k)")
    for name, kind in (("depth", "blocks"), ("width", "channels of a layer")):
        options.group.add_argument(f"--{name}", type=_positive, metavar="N", help=f"{kind} (default: the model's own)")
    options.group.add_argument("--activation", choices=configuration.ACTIVATIONS, help="the activation (default: relu)")
    options.group.add_argument("--normalization", choices=configuration.NORMALIZATIONS, help="as for spectrax train")
    options.begin("report")
    options.add(
        "rho",
        "other fractions of the identity to look at; of a model before training the first is its own",
        type=_real,
        nargs="+",
        metavar="X",
        default="0 and 1",
    )
    options.add("samples", "test samples", type=_positive, metavar="N")
    options.add("layer", "the layer that the line and the slices go through", metavar="NAME", default="the second")
    options.add("line-length", "length of the line, relative to the norm of the weight", type=_real, metavar="X")
    options.add("extent", "how far the wide slice reaches, likewise", type=_real, metavar="X")
    options.add("resolution", "points on each axis of a slice, odd", type=_positive, metavar="N")
    options.add("seed", "seed of the line's direction, and of a model's weights", type=int, metavar="N")
    options.add("out", "the directory to write; one that holds anything else is refused", metavar="DIR")
    options.group.add_argument("--overwrite", action="store_true", help="replace another report that --out holds")
    options.group.add_argument("--quiet", action="store_true", help="report nothing but errors")


def _add_spectrum(commands: Any) -> None:
    from spectrax.survey import configuration

    options = _Options(
        commands,
        "spectrum",
        configuration.SpectrumConfig,
        help="measure the spectra of all matrices of a checkpoint",
        description="Measure the extreme singular values, densities and ranks of each matrix of a checkpoint: .npz, "
        ".npy, .safetensors (also in several files), an Orbax directory, PyTorch, .gguf (extra gguf), .onnx (extra "
        "onnx). Each matrix is written when it is finished, and the same command goes on after an interruption.",
        epilog="Exit codes: 0 finished; 1 a matrix was not finite; 2 bad input; 130 stopped by Ctrl-C. Patterns are "
        "those of a shell; put them in quotes.",
    )
    options.parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the file or directory")

    options.begin("which matrices")
    options.add("include", "names to measure", nargs="+", metavar="PATTERN", default="all")
    options.add("exclude", "names to leave out", nargs="+", metavar="PATTERN", default="none")
    options.add("min-side", "leave out matrices whose shorter side is smaller", type=_positive, metavar="N")
    options.add(
        "stacked",
        "arrays of more than two axes whose leading axes count matrices",
        nargs="+",
        metavar="PATTERN",
        default="none",
    )
    options.add(
        "kernels",
        "measure other arrays of more than two axes as reshaped kernels of this layout, which have "
        "not the singular values of the convolution",
        choices=configuration.KERNELS,
        default="leave them out",
    )
    options.begin("what is measured")
    options.add(
        "only",
        "the largest values, both ends, ranks of the whole spectrum, its density",
        field="measure",
        nargs="+",
        choices=configuration.MEASURES,
        default="all four",
    )
    options.add("k", "how many of the largest values", type=_positive, metavar="N")
    options.add("max-side", "do not factorise matrices whose shorter side is larger", type=_positive, metavar="N")
    options.add(
        "method",
        "decompose wholly, iterate, or what is faster for the number of equal shapes",
        choices=configuration.METHODS,
    )
    options.add(
        "tol",
        "relative residual to reach",
        type=_real,
        metavar="X",
        default="1e-6 in 32 bits, 1e-10 in 64",
    )
    options.add(
        "precision",
        "what is computed in; stored is 64 bits for what is stored so",
        choices=configuration.PRECISIONS,
    )
    options.add("seed", "seed of the iterations' starts", type=int, metavar="N")
    options.begin("output")
    options.add("out", "the directory to write; one that holds anything else is refused", metavar="DIR")
    options.group.add_argument("--overwrite", action="store_true", help="replace another survey that --out holds")
    options.group.add_argument("--quiet", action="store_true", help="report nothing but errors")


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
