"""Files in the format safetensors, read without a package: a JSON header, then the numbers of one array after another.

The layout is that of the format's description: eight bytes with the length of the header, the header, which gives each
array its dtype, shape and place, and the data, little-endian and in row-major order.
"""

import functools
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from spectrax.integrations.weights.stored import StoredArray

INDEX = ".safetensors.index.json"  # of a checkpoint in several files
_MAX_HEADER = 10**8  # bytes, as the format limits it
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


def read_file(path: Path) -> list[StoredArray]:
    """List the arrays of one file.

    Args:
        path: The file.

    Returns:
        The arrays in the order of their data.

    Raises:
        ValueError: If the file is cut off or not in this format.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        entries = {name: _entry(value) for name, value in header.items() if name != "__metadata__"}
        for name, (dtype, shape, begin, end) in entries.items():
            needed = math.prod(shape) * (0 if dtype is None else jnp.dtype(dtype).itemsize)
            if not 0 <= begin <= end <= size - 8 - length or (dtype is not None and end - begin != needed):
                raise ValueError(f"the place of {name!r} does not fit its shape, or the file is cut off")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    return [
        StoredArray(
            name, shape, header[name]["dtype"] if dtype is None else dtype,
            functools.partial(_load, path, dtype, shape, 8 + length + begin),
        )
        for name, (dtype, shape, begin, _) in sorted(entries.items(), key=lambda item: item[1][2])
    ]  # fmt: skip


def read_index(path: Path) -> tuple[list[StoredArray], list[Path]]:
    """List the arrays of a checkpoint in several files.

    Args:
        path: The file `*.safetensors.index.json`, which says where each array is.

    Returns:
        The arrays, file by file, and the files.

    Raises:
        ValueError: If the index is damaged, or a file lacks an array that it should have.
        FileNotFoundError: If a file is missing.
    """
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no index of a safetensors checkpoint: {error}") from error
    found = []
    for name in files:
        file = path.parent / name
        if Path(name).name != name or not file.is_file():
            raise FileNotFoundError(f"{path} names the file {name}, which is not beside it")
        found += [array for array in read_file(file) if places.get(array.name) == name]
    missing = sorted(set(places) - {array.name for array in found})
    if missing:
        raise ValueError(f"{path} names arrays that the files lack: {', '.join(missing[:3])}")
    return found, [path.parent / name for name in files]


def _entry(value: dict[str, Any]) -> tuple[str | None, tuple[int, ...], int, int]:
    begin, end = (int(place) for place in value["data_offsets"])
    shape = tuple(int(size) for size in value["shape"])
    if min(shape, default=0) < 0:
        raise ValueError(f"a shape must not be negative, got {shape}")
    return _DTYPES.get(value["dtype"]), shape, begin, end


def _load(path: Path, dtype: str | None, shape: tuple[int, ...], offset: int) -> np.ndarray:
    if dtype is None:
        raise TypeError("the dtype is not known")
    kind, count = jnp.dtype(dtype), math.prod(shape)
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(count * kind.itemsize)
    return np.frombuffer(data, kind, count).reshape(shape)
