"""NumPy's own files: `.npz`, an archive of arrays, and `.npy`, one array. Pickled objects are never loaded."""

import functools
import zipfile
import zlib
from pathlib import Path

import numpy as np

from spectrax.integrations.weights.stored import StoredArray


def read_npz(path: Path) -> list[StoredArray]:
    """List the arrays of an archive from their headers.

    Args:
        path: The file.

    Returns:
        The arrays in the order of the archive.

    Raises:
        ValueError: If the file is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            found = []
            for entry in names:
                with archive.open(entry) as file:
                    shape, dtype = _header(file)
                name = entry.removesuffix(".npy")
                found.append(StoredArray(name, shape, dtype, functools.partial(_load_entry, path, entry)))
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as an .npz file: {error}") from error
    return found


def read_npy(path: Path) -> list[StoredArray]:
    """List the one array of a file, which takes the file's name.

    Args:
        path: The file.

    Returns:
        A list of one array.

    Raises:
        ValueError: If the file is no array.
    """
    try:
        with path.open("rb") as file:
            shape, dtype = _header(file)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an .npy file: {error}") from error
    return [StoredArray(path.stem, shape, dtype, lambda: np.load(path, mmap_mode="r", allow_pickle=False))]


def _header(file) -> tuple[tuple[int, ...], str]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format is not known")
    shape, _, dtype = read(file)
    return tuple(int(size) for size in shape), dtype.name


def _load_entry(path: Path, entry: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
