"""The loss landscape of a trained network, or of a model before training: layer by layer, for rho and for other rho.

It is a directory with `report.json`, the numbers, written after each rho, so that an interrupted report goes on; and
`plots/`, with the condition numbers, the loss along a line, and slices.
"""

import contextlib
import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks
from spectrax.networks import find_layers, landscape, layers, local_linear
from spectrax.report import landscapes, plots, records
from spectrax.spectrum.methods import can_be_dense
from spectrax.training.progress import Progress
from spectrax.training.subject import Subject
from spectrax.training.verdict import verdict

_PROGRAM, _FORMAT = "spectrax landscape", 1
_NETWORK = ("model", "depth", "width", "activation", "normalization", "rho")
_CONDITION_NUMBERS = ("condition_number", "batch_condition_number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeConfig:
    """What a report looks at.

    Attributes:
        out: The directory to write.
        rhos: Other fractions of the identity that the network is looked at with, on the same weights; None is 0 and 1.
        samples: How many test samples.
        layer: The layer whose weights the line and the slices go through; None is the second one.
        line_length: How long the line is, relative to the norm of the layer's weight.
        extent: How far the wide slice reaches, likewise.
        resolution: Points on each axis of a slice; odd.
        seed: Seed of the line's direction.
    """

    out: str = "runs/landscape"
    rhos: tuple[float, ...] | None = None
    samples: int = 8
    layer: str | None = None
    line_length: float = 0.1
    extent: float = 0.5
    resolution: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("samples", "resolution"):
            checks.positive_integer(name, getattr(self, name))
        if self.resolution < 3 or self.resolution % 2 == 0:
            raise ValueError(f"resolution must be odd and at least 3, got {self.resolution}")
        for name in ("line_length", "extent"):
            checks.number_in(name, getattr(self, name), 0, 10, low_open=True)
        checks.number_in("seed", self.seed, 0, 2**32 - 1)
        for rho in self.rhos or ():
            checks.number_in("rho", rho, 0, 1)


def prepare(subject: Subject, config: LandscapeConfig, /, *, overwrite: bool = False) -> dict[str, Any]:
    """Check a configuration against the network, and make the directory of its report.

    Args:
        subject: The network.
        config: What to look at.
        overwrite: Replace another report that is in `config.out`.

    Returns:
        What `report.json` holds: of an interrupted report of the same settings, what was found.

    Raises:
        FileExistsError: If `config.out` holds another report or something else.
        ValueError: If the network has no such layer, or the data fewer samples.
    """
    samples = len(subject.data.x_test)
    if config.samples > samples:
        raise ValueError(f"samples must be at most those of the test part, {samples}, got {config.samples}")
    found = find_layers(*subject.at(subject.rho), subject.data.x_test[0])
    names = [layer.name for layer in found]
    if config.layer is not None:
        checks.choice("layer", config.layer, names)
    for layer in found:
        shape = (config.samples * subject.data.num_classes, math.prod(layer.weight_shape))
        if not can_be_dense(shape):
            raise ValueError(f"the matrix Q of layer {layer.name} would have shape {shape}: take fewer samples")
    others = (0.0, 1.0) if config.rhos is None else config.rhos
    rhos = list(dict.fromkeys([subject.rho, *others])) if subject.config.model != "convnet" else [subject.rho]
    settings = {
        "network": {name: getattr(subject.config, name) for name in _NETWORK}, "origin": subject.origin,
        "fingerprint": _fingerprint(subject), **dataclasses.asdict(config), "rhos": rhos,
        "layer": config.layer or names[min(1, len(names) - 1)],
    }  # fmt: skip
    return _started(Path(config.out) / "report.json", records.from_json(records.to_json(settings)), overwrite=overwrite)


def report(subject: Subject, config: LandscapeConfig, found: dict[str, Any], /, *, quiet: bool = True) -> None:
    """Measure a network's landscape for its rho and for others on the same weights, and write it down.

    For each rho: the singular values of each layer's matrix Q, at each sample and for all of them together; the loss
    along a line in one layer's weights, with its kinks; slices of the loss. The loss is the squared error from the
    one-hot labels, summed over the samples. On CPU and GPU all of it is in float64.

    Args:
        subject: The network.
        config: What to look at.
        found: What `prepare` returned; what is measured is added.
        quiet: Report nothing while measuring.
    """
    file = Path(config.out) / "report.json"
    rhos = found["settings"]["rhos"]
    with Progress(quiet=quiet, total=len(rhos)) as progress, _float64():
        for rho in rhos:
            if str(rho) in found["rho"]:
                continue
            progress.line(f"rho = {rho:g}, {subject.origin}")
            measured, figures = _measure(subject, config, rho, found["settings"]["layer"], progress)
            for name, figure in figures.items():
                plots.save_figure(figure, file.parent / "plots" / name)
            found["rho"][str(rho)] = records.from_json(records.to_json(measured))
            _write(file, found)
    found["verdict"] = verdict(found)
    plots.save_figure(landscapes.layer_condition_numbers(found["rho"]), file.parent / "plots" / "condition_numbers")
    _write(file, found)


def _measure(
    subject: Subject, config: LandscapeConfig, rho: float, layer: str, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    shown = _names(*subject.at(subject.rho), subject.data.x_test[0])  # the layers by the names that the run has
    net, variables = subject.at(rho)
    variables, x = jax.tree.map(_in_widest_precision, (variables, subject.data.x_test[: config.samples]))
    y = jax.nn.one_hot(subject.data.y_test[: config.samples], subject.data.num_classes, dtype=x.dtype)
    names = _names(net, variables, x[0])
    local = local_linear(net, variables, x[0])
    measured: dict[str, Any] = {"exact": local.exact, "layers": _spectra(net, variables, x, names, shown)}
    medians = [_median([each[name] for each in measured["layers"].values()]) for name in _CONDITION_NUMBERS]
    progress.line("  condition numbers of Q, medians: one sample {:.3g}, all samples {:.3g}".format(*medians))
    if not local.exact:
        return measured, {}
    if measured["layers"][layer]["batch_rank"] < 2:
        return measured, {}  # no plane, and next to nothing on a line
    name = names[shown.index(layer)]
    kernel = local.layers[name].weight
    size = float(jnp.linalg.norm(kernel))
    direction = jax.random.normal(jax.random.key(config.seed), kernel.shape, kernel.dtype)
    direction *= config.line_length * size / jnp.linalg.norm(direction)
    line = landscape.loss_along_line(net, variables, name, direction, x, y, batched=True)
    jumps = line.curvature_jumps
    measured["line"] = {
        "layer": layer, "length": config.line_length, "kinks": len(line.kinks),
        "mean_curvature_jump": float(np.mean(jumps)) if jumps.size else 0.0,
        "largest_curvature_jump": float(np.max(jumps)) if jumps.size else 0.0,
        "total_variation": line.total_variation,
    }  # fmt: skip
    progress.line(f"  along a line in the weight of {layer}: {len(line.kinks)} kinks")
    slices = functools.partial(landscape.loss_slice, net, variables, name, x, y, batched=True,
                               resolution=config.resolution)  # fmt: skip
    near, wide = slices(), slices(extent=config.extent * size)
    measured["slice"] = {"reach": near.reach / size, "singular_values": near.singular_values.tolist()}
    title = f"{layer}, rho = {rho:g}"
    return measured, {
        f"line_rho_{rho:g}": landscapes.loss_line(line, title=title),
        f"slices_rho_{rho:g}": landscapes.loss_slices({"near": near, "wide": wide}, title=title),
    }


def _spectra(
    net: layers.Layer, variables: Mapping[str, Any], x: jax.Array, names: list[str], shown: list[str]
) -> dict[str, dict[str, Any]]:
    each = jax.jit(lambda v, x: landscape.layer_spectra(net, v, x))(variables, x)
    together = jax.jit(lambda v, x: {name: landscape.layer_spectrum(net, v, name, x, batched=True) for name in names})(
        variables, x
    )
    return {
        layer: {
            "condition_number": _median(each[name].condition_number),
            "dead_samples": int(np.sum(np.asarray(each[name].rank) == 0)),
            "rank": float(np.median(each[name].rank)),
            "full_rank": each[name].values.shape[-1],
            "batch_condition_number": float(together[name].condition_number),
            "batch_rank": int(together[name].rank),
            "batch_full_rank": together[name].values.shape[-1],
            "largest_step": float(together[name].largest_step),
        }
        for layer, name in zip(shown, names, strict=True)
    }


def _median(condition_numbers: Any) -> float:
    """Return the median of those that are not NaN, as at a sample at which the layer is dead; NaN if there is none."""
    values = np.asarray(condition_numbers, float)
    return float(np.median(values[~np.isnan(values)])) if np.any(~np.isnan(values)) else math.nan


def _names(net: layers.Layer, variables: Mapping[str, Any], x: jax.Array) -> list[str]:
    return [layer.name for layer in find_layers(net, variables, x)]


def _float64() -> contextlib.AbstractContextManager[Any]:
    """Work in float64 where the device has it: float32 sees no condition number above some 1e6."""
    return jax.enable_x64(True) if jax.default_backend() in ("cpu", "gpu") else contextlib.nullcontext()


def _in_widest_precision(leaf: Any) -> jax.Array:
    return jnp.asarray(leaf, jnp.result_type(float))


def _fingerprint(subject: Subject) -> str:
    """Return a checksum of the weights and the data."""
    checksum = zlib.crc32(subject.data.fingerprint().encode())
    for leaf in jax.tree.leaves(subject.variables):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), checksum)
    return f"{checksum:08x}"


def _started(file: Path, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Return what an interrupted report of the same settings has found, or make the directory of a new one."""
    folder = file.parent
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a report writes a directory")
    if folder.exists() and any(folder.iterdir()):
        content = _read(file)
        differing = [name for name in settings if name != "out" and content["settings"].get(name) != settings[name]]
        if not differing:
            return content
        if not overwrite:
            raise FileExistsError(
                f"{folder} holds a report with other settings ({', '.join(differing)}): choose another directory, or "
                "replace it with --overwrite"
            )
        for picture in (folder / "plots").glob("*"):
            if picture.suffix in (".png", ".svg"):  # those of the old report must not stand beside the new ones
                picture.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    found = {"program": _PROGRAM, "format": _FORMAT, "settings": settings, "rho": {}}
    _write(file, found)
    return found


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileExistsError(f"{file.parent} holds files that are no report of a landscape: choose another directory")
    try:
        content = records.from_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, or choose another directory") from error
    known = isinstance(content, dict) and content.get("program") == _PROGRAM and content.get("format") == _FORMAT
    if not known or not all(isinstance(content.get(name), dict) for name in ("settings", "rho")):
        raise FileExistsError(f"{file} was not written by this version of {_PROGRAM}: choose another directory")
    return content


def _write(file: Path, content: Mapping[str, Any]) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text(records.to_json(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)
