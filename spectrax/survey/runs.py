"""A survey of a checkpoint: prepared, carried out matrix by matrix, taken up again, and brought to its report."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spectrax.integrations.weights import UnreadableError, Weights, open_weights
from spectrax.report import format_number
from spectrax.report.extras import require
from spectrax.report.html import spectrum_page
from spectrax.report.spectra import printable
from spectrax.survey.configuration import SpectrumConfig
from spectrax.survey.directory import SurveyDirectory
from spectrax.survey.measurement import measure
from spectrax.survey.progress import Progress
from spectrax.survey.selection import LeftOut, Matrix, is_named, select

OnMatrix = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is to be measured, and where it is written.

    Attributes:
        config: What to measure.
        weights: The checkpoint.
        stamp: That of the checkpoint when it was opened.
        matrices: The matrices.
        left_out: Arrays that are not measured, and why.
        directory: The directory.
        found: The records that it had, by name.
    """

    config: SpectrumConfig
    weights: Weights
    stamp: tuple[tuple[int, int, int], ...]
    matrices: list[Matrix]
    left_out: list[LeftOut]
    directory: SurveyDirectory
    found: dict[str, dict[str, Any]]


def survey(
    config: SpectrumConfig, /, *, overwrite: bool = False, quiet: bool = True, on_matrix: OnMatrix | None = None
) -> dict[str, Any]:
    """Measure the spectra of all matrices of a checkpoint, one after another.

    Records are written when a matrix is finished. The same call goes on where an interrupted one has stopped, to the
    same numbers; a call with other settings, or for files whose bytes have changed, is refused.

    Args:
        config: What to measure, and the directory for `settings.json`, `layers.jsonl`, `spectrum.json` and
            `spectrum.html`.
        overwrite: Replace another survey that is in `config.out`.
        quiet: Report nothing while measuring.
        on_matrix: Called before each matrix is read, with its name.

    Returns:
        What `spectrum.json` holds: `checkpoint`, `format`, `settings`, `layers` (a record a matrix) and `left_out`.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        FileExistsError: If `config.out` holds another survey, or files that no survey wrote, or if another process is
            writing it.
        ValueError: If the checkpoint is damaged, its format is not known, or it holds no matrix to measure; an
            `UnreadableError` if an array cannot be read, or the checkpoint changes while it is measured.
        ImportError: If a package is missing, naming the extra that brings it.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(folder + "/net.npz", dense=np.diag([4.0, 2.0, 1.0]), bias=np.ones(3))
        ...     found = survey(SpectrumConfig(checkpoint=folder + "/net.npz", out=folder + "/found"))
        >>> [(layer["name"], round(layer["condition_number"]["value"], 6)) for layer in found["layers"]]
        [('dense', 4.0)]
    """  # noqa: DOC502
    return run(prepare(config, overwrite=overwrite), quiet=quiet, on_matrix=on_matrix)


def prepare(config: SpectrumConfig, /, *, overwrite: bool) -> Survey:
    """Look into a checkpoint, and make the survey's directory.

    Args:
        config: What to measure.
        overwrite: Replace another survey.

    Returns:
        What is to be done.

    Raises:
        ValueError: If there is no matrix to measure.
    """
    require("matplotlib", "drawing pictures")
    require("rich", "printing tables")
    weights = open_weights(config.checkpoint)
    stamp = weights.stamp()
    matrices, left_out = select(weights, config)
    if not matrices:
        why = "".join(f"\n  {item.name} {list(item.shape)}: {item.reason}" for item in left_out[:5])
        more = f"\n  and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        what = f"{config.checkpoint} ({weights.format}, {len(weights.arrays)} arrays)"
        if weights.arrays and not any(is_named(array.name, config) for array in weights.arrays):
            why = f"; the names that include={config.include} allows are left out by exclude={config.exclude}"
        raise ValueError(f"{what} holds no matrix to measure{why}{more}")
    names = [matrix.name for matrix in matrices]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{config.checkpoint} holds two matrices of the name {twice!r}")
    settings = config.to_dict() | {"fingerprint": weights.fingerprint(), "matrices": len(matrices)}
    for name in ("checkpoint", "out"):  # where the files are does not matter
        del settings[name]
    directory = SurveyDirectory.begin(Path(config.out), settings, overwrite=overwrite)
    try:
        found = directory.finished()
    except BaseException:
        directory.release()
        raise
    return Survey(config, weights, stamp, matrices, left_out, directory, found)


def run(prepared: Survey, /, *, quiet: bool, on_matrix: OnMatrix | None = None) -> dict[str, Any]:
    """Measure what is not measured yet, write the report, and let go of the directory.

    Args:
        prepared: What `prepare` returned.
        quiet: Report nothing while measuring.
        on_matrix: As in `survey`.

    Returns:
        What `spectrum.json` holds.
    """
    try:
        return _run(prepared, quiet=quiet, on_matrix=on_matrix)
    finally:
        prepared.directory.release()


def _run(prepared: Survey, *, quiet: bool, on_matrix: OnMatrix | None) -> dict[str, Any]:
    directory, config, found = prepared.directory, prepared.config, prepared.found
    work = {matrix.name: _work(matrix) for matrix in prepared.matrices}
    done = sum(amount for name, amount in work.items() if name in found)
    with Progress(quiet=quiet, total=sum(work.values()), done=done) as progress:
        missing = (matrix for matrix in prepared.matrices if matrix.name not in found)
        for matrix, values in _read(missing, progress, on_matrix):
            measured = measure(matrix, values, config)
            if prepared.weights.stamp() != prepared.stamp:
                raise UnreadableError(
                    f"{config.checkpoint} has changed while it was measured: start anew with --overwrite"
                )
            record = directory.append(measured)
            found[matrix.name] = record
            progress.end(summary_line(record), work[matrix.name])
    result = {
        "program": "spectrax spectrum", "format_version": 1, "checkpoint": config.checkpoint,
        "format": prepared.weights.format, "settings": directory.settings,
        "layers": [found[matrix.name] for matrix in prepared.matrices],
        "left_out": [dataclasses.asdict(item) for item in prepared.left_out],
    }  # fmt: skip
    directory.conclude(result, spectrum_page(result))
    return result


def summary_line(record: dict[str, Any]) -> str:
    """Return one line on a matrix.

    Args:
        record: Its record.

    Returns:
        The text.
    """
    shape = "x".join(map(str, record["shape"]))
    name = printable(record["name"])
    if not record["finite"]:
        return f"{name} {shape}: not finite"
    names = ("sigma_max", "sigma_min", "condition_number", "stable_rank", "effective_rank")
    parts = [f"{each.replace('_', ' ')} {format_number(record[each]['value'])}" for each in names if each in record]
    return f"{name} {shape}: {', '.join(parts)}"


def _read(
    matrices: Iterator[Matrix], progress: Progress, on_matrix: OnMatrix | None
) -> Iterator[tuple[Matrix, np.ndarray]]:
    """Read each matrix; those of one stack from one reading."""
    array, values = None, np.zeros(0)
    for matrix in matrices:
        progress.begin(matrix.name)
        if on_matrix is not None:
            on_matrix(matrix.name)
        if matrix.array is not array:
            values = np.zeros(0)  # let go of the last one before the next is read
            array = matrix.array
            try:
                values = np.asarray(array.load())
            except Exception as error:  # whatever the readers of the formats raise
                raise UnreadableError(
                    f"the array {array.name!r} cannot be read: {error or type(error).__name__}"
                ) from error
        yield matrix, matrix.of(values)


def _work(matrix: Matrix) -> float:
    m, n = matrix.shape
    return float(m) * n * min(m, n) + 1e6
