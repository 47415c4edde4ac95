"""Formats whose readers are packages of their own: GGUF (package `gguf`) and ONNX (package `onnx`)."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from spectrax.integrations.weights.stored import StoredArray
from spectrax.report.extras import require

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_INTEGERS = {"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}


def read_gguf(path: Path) -> list[StoredArray]:
    """List the tensors of a GGUF file. Quantised ones are dequantised to float32 when they are loaded, one at a time.

    Args:
        path: The file.

    Returns:
        The tensors in the file's order; their shapes are those of NumPy, the reverse of the file's.

    Raises:
        ValueError: If the file cannot be read.
    """
    gguf = require("gguf", "reading GGUF files", extra="gguf")
    try:
        tensors = gguf.GGUFReader(path).tensors
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} cannot be read as GGUF: {error or type(error).__name__}") from error
    found = []
    for tensor in tensors:
        stored = tensor.tensor_type.name
        dtype = _FLOATS.get(stored) or _INTEGERS.get(stored)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        load = functools.partial(_dequantized, gguf, tensor, shape)
        found.append(StoredArray(tensor.name, shape, dtype or stored, load, quantized=dtype is None))
    return found


def read_onnx(path: Path) -> list[StoredArray]:
    """List the initializers of an ONNX model, and its constants, where some exporters put weights.

    The model is held in memory, but for data in files of their own.

    Args:
        path: The file; external data is beside it.

    Returns:
        The initializers in the graph's order, and the tensors of its `Constant` nodes by the names of their outputs.

    Raises:
        ValueError: If the file cannot be read.
    """
    onnx = require("onnx", "reading ONNX models", extra="onnx")
    try:
        graph = onnx.load(path, load_external_data=False).graph
        tensors = [(tensor.name, tensor) for tensor in graph.initializer]
        for node in graph.node:
            if node.op_type == "Constant":
                tensors += [(node.output[0], each.t) for each in node.attribute if each.name == "value"]
        return [
            StoredArray(
                name, tuple(int(size) for size in tensor.dims),
                np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).name,
                functools.partial(onnx.numpy_helper.to_array, tensor, base_dir=str(path.parent)),
                file=_place(path, tensor),
            )
            for name, tensor in tensors
        ]  # fmt: skip
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} cannot be read as ONNX: {error or type(error).__name__}") from error


def _place(path: Path, tensor: Any) -> Path | None:
    found = [entry.value for entry in tensor.external_data if entry.key == "location"]
    return path.parent / found[0] if found else None


def _dequantized(gguf: Any, tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
    if tensor.tensor_type.name in _INTEGERS:
        return np.asarray(tensor.data).reshape(shape)
    return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type)).reshape(shape)
