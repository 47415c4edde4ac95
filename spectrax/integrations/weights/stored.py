"""What a file of weights holds: names, shapes and dtypes at once, numbers one array at a time."""

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

_CHUNK = 2**22


class UnreadableError(ValueError):
    """An array of a checkpoint that could be opened cannot be read, or the checkpoint has changed since."""


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """One array of a checkpoint, not read yet.

    Attributes:
        name: Its name, the parts of a path joined as the format joins them ("." or "/").
        shape: Its shape, as NumPy has it.
        dtype: What it is stored as: a dtype of NumPy or `ml_dtypes`, or the name of a quantised type ("Q4_1"), whose
            numbers are dequantised to float32.
        load: Reads it: a function without arguments that returns a NumPy array.
        quantized: Whether its numbers are those of a quantisation, rounded before they were stored.
        file: The file that it is in, where that is not the checkpoint itself.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)
    quantized: bool = False
    file: Path | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The arrays of a checkpoint in the file's order, each read when it is asked for.

    Attributes:
        path: The file or directory.
        format: "npz", "npy", "safetensors", "orbax", "torch", "gguf" or "onnx".
        arrays: The arrays.
        files: The files that they are in, sorted.
    """

    path: Path
    format: str
    arrays: tuple[StoredArray, ...]
    files: tuple[Path, ...]

    def fingerprint(self) -> str:
        """Return a checksum of every byte of the files, with their names."""
        checksum, folder = 0, self.path if self.path.is_dir() else self.path.parent
        for file in self.files:
            name = file.relative_to(folder) if len(self.files) > 1 else ""
            checksum = zlib.crc32(str(name).encode(), checksum)
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    checksum = zlib.crc32(chunk, checksum)
        return f"{checksum:08x}"

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Return what tells cheaply whether a file was replaced or written to: inode, size and time of each."""
        found = (file.stat() for file in self.files)
        return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)
