"""Which format a checkpoint has, by what it is and not only by what it is called."""

import functools
from collections.abc import Callable
from pathlib import Path

from spectrax.integrations.torch_files import read_torch
from spectrax.integrations.weights import numpy_files, orbax_trees, packaged_files, safetensors_files
from spectrax.integrations.weights.stored import StoredArray, Weights

FORMATS = (
    ".npz, .npy, .safetensors (also in several files, by its index), an Orbax directory, PyTorch (.pt, .pth, .bin, "
    ".ckpt), .gguf, .onnx"
)
_SUFFIXES = {
    ".npz": "npz", ".npy": "npy", ".safetensors": "safetensors", ".gguf": "gguf", ".onnx": "onnx", ".pt": "torch",
    ".pth": "torch", ".bin": "torch", ".ckpt": "torch",
}  # fmt: skip


def open_weights(path: str | Path, /) -> Weights:
    """Open a checkpoint of any known format, and read what arrays there are.

    A directory is an Orbax checkpoint (a pytree, or a step of a `CheckpointManager`), or holds one `.safetensors` file
    or index. Nothing of a file is ever executed.

    Args:
        path: A file, or a directory.

    Returns:
        The arrays by name, shape and dtype; each is read when its `load` is called.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If the format is not known, or the file is damaged.
        ImportError: If a package is missing, naming the extra that brings it: "gguf", "onnx", and "demo" for Orbax.

    Cost:
        The headers alone are read; of PyTorch files and ONNX models everything.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(folder + "/weights.npz", kernel=np.ones((3, 2)))
        ...     weights = open_weights(folder + "/weights.npz")
        ...     [(array.name, array.shape, array.dtype, array.load().sum()) for array in weights.arrays]
        [('kernel', (3, 2), 'float64', np.float64(6.0))]
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    if path.is_dir():
        return _open_directory(path)
    if path.name.endswith(safetensors_files.INDEX):
        return _in_several_files(path)
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ValueError(f"{path} has no known format; known are {FORMATS}")
    arrays = tuple(_READERS[found](path))
    beside = {array.file for array in arrays if array.file is not None}
    return Weights(path, found, arrays, (path, *sorted(beside)))


def _open_directory(path: Path) -> Weights:
    indices, files = sorted(path.glob("*" + safetensors_files.INDEX)), sorted(path.glob("*.safetensors"))
    if len(indices) == 1:
        return _in_several_files(indices[0])
    if len(files) == 1 and not indices:
        return Weights(files[0], "safetensors", tuple(safetensors_files.read_file(files[0])), (files[0],))
    if len(files) + len(indices) > 1:
        names = ", ".join(file.name for file in (*indices, *files)[:4])
        raise ValueError(f"{path} holds several checkpoints: give one of the files ({names})")
    if orbax_trees.items(path):
        inside = tuple(sorted(file for file in path.rglob("*") if file.is_file()))
        return Weights(path, "orbax", tuple(orbax_trees.read_trees(path)), inside)
    inside = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name.isdecimal())
    if inside:
        last = max(inside, key=int)
        raise ValueError(f"{path} holds checkpoints of several steps: give one of them, as {path / last}")
    raise ValueError(f"{path} holds no checkpoint; known are {FORMATS}")


def _in_several_files(index: Path) -> Weights:
    arrays, files = safetensors_files.read_index(index)
    return Weights(index.parent, "safetensors", tuple(arrays), (*files, index))


def _read_torch(path: Path) -> list[StoredArray]:
    tensors = read_torch(path)
    return [
        StoredArray(name, tensor.shape, tensor.dtype.name, functools.partial(tensors.__getitem__, name))
        for name, tensor in tensors.items()
    ]


_READERS: dict[str, Callable[[Path], list[StoredArray]]] = {
    "npz": numpy_files.read_npz,
    "npy": numpy_files.read_npy,
    "safetensors": safetensors_files.read_file,
    "gguf": packaged_files.read_gguf,
    "onnx": packaged_files.read_onnx,
    "torch": _read_torch,
}
