"""PyTorch checkpoints, read without PyTorch and without running what they hold.

`torch.save` writes a pickle that names functions to call. Here a name is looked up in a short table, which holds the
containers, the storages and the functions that put tensors together, each as a stand-in of ours; any other name is an
error. Both formats are read: the zip archive (since PyTorch 1.6), with `data.pkl` and one entry `data/<key>` for each
storage, and the stream before it, with the storages behind the pickle.
"""

import collections
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_STREAM_MAGIC, _STREAM_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "BFloat16Storage": "bfloat16", "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64", "DoubleStorage": "float64",
    "FloatStorage": "float32", "HalfStorage": "float16", "IntStorage": "int32", "LongStorage": "int64",
    "ShortStorage": "int16", "UntypedStorage": "uint8",
}  # fmt: skip
_DTYPES = {
    *_STORAGES.values(), "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "uint16", "uint32",
    "uint64",
}  # fmt: skip


def read_torch(path: str | Path, /) -> dict[str, np.ndarray]:
    """Read the tensors of a PyTorch checkpoint (`.pth`, `.pt`, `pytorch_model.bin`) as NumPy arrays.

    No code of the file is run, and PyTorch is not needed. What is neither a tensor nor a container (numbers, strings)
    is left out.

    Args:
        path: A file that `torch.save` wrote: a tensor, or nested dicts, lists and tuples of them.

    Returns:
        The tensors by their names, the keys on the way joined by dots and positions in lists as numbers; "" for a
        tensor alone. Shapes and dtypes are the file's (bfloat16 and float8 as `ml_dtypes` has them), so that a
        convolution's kernel is (out, in / groups, spatial...). The arrays are read-only views: tensors that share a
        storage share memory, and strides are the file's.

    Raises:
        ValueError: If the file is cut off or no such checkpoint, if it holds anything that would have to be called or
            imported to be read, or sparse, quantised or big-endian tensors.

    Cost:
        One pass over the file; its tensors are held in memory once.

    Example:
        >>> import pickle, tempfile, zipfile
        >>> with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        ...     with zipfile.ZipFile(file, "w") as archive:
        ...         archive.writestr("archive/data.pkl", pickle.dumps({"epoch": 3}, protocol=2))
        ...     read_torch(file.name)
        {}

    Source:
        The layout is that of `torch.serialization` and `torch._utils` in PyTorch 2.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            is_archive = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            tree, data = _read_archive(file) if is_archive else _read_stream(file)
            found: dict[str, np.ndarray] = {}
            for keys, tensor in _tensors(tree, ()):
                name = ".".join(keys)
                if name in found:
                    raise ValueError(f"two tensors have the name {name!r}")
                found[name] = tensor.array(data)
        except Exception as error:  # a damaged pickle can raise anything
            raise ValueError(
                f"{path} cannot be read as a PyTorch checkpoint: {error or type(error).__name__}"
            ) from error
    return found


# What a pickle is handed can't be changed by it: strings, named tuples and built-in types. (A pickle can set the
# attributes of most objects; NumPy's dtypes are among them, for the whole process.)


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int
    start: int = 0  # where a view of another storage begins


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    conjugate: bool
    negative: bool

    def array(self, data: Mapping[str, bytes]) -> np.ndarray:
        kind, unit = jnp.dtype(self.dtype), jnp.dtype(self.storage.dtype).itemsize
        strides = tuple(step * kind.itemsize for step in self.strides)
        if min((self.offset, *self.shape, *strides)) < 0:
            raise ValueError(f"offset, shape and strides must not be negative, got {self}")
        first = self.storage.start * unit
        whole = memoryview(data[self.storage.key])[first : first + self.storage.size * unit]
        view = np.ndarray(
            self.shape, kind, whole, self.offset * kind.itemsize, strides
        )  # raises where it would reach out
        view = view.conj() if self.conjugate else view
        view = -view if self.negative else view
        view.flags.writeable = False
        return view


class _Stand(NamedTuple):
    """A stand-in for a function of PyTorch."""

    call: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None) -> _Tensor:
    return _typed_tensor(storage, offset, shape, strides, requires_grad, hooks, None, metadata)


def _typed_tensor(storage, offset, shape, strides, _requires_grad, _hooks, dtype, metadata=None) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor must have a storage, got {storage!r}")
    dtype = storage.dtype if dtype is None else dtype
    if dtype not in _DTYPES:
        raise ValueError(f"a tensor cannot have the dtype {dtype!r}")
    bits = dict(metadata or {})
    shape, strides = (tuple(map(int, sizes)) for sizes in (shape, strides))
    return _Tensor(storage, int(offset), shape, strides, dtype, bool(bits.get("conj")), bool(bits.get("neg")))


def _first(data: Any, *_: Any) -> Any:
    return data


def _of_type(rebuild: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    if not isinstance(rebuild, _Stand):
        raise ValueError(f"a tensor cannot be made by {rebuild!r}")
    return rebuild(*arguments)


_NAMES: dict[tuple[str, str], Any] = {
    ("__builtin__", "set"): set,  # as Python 2 called it, and pickles of protocol 2 still do
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch", "Tensor"): "Tensor",
    ("torch", "device"): _Stand(_first),
    ("torch._tensor", "_rebuild_from_type_v2"): _Stand(_of_type),
    ("torch._utils", "_rebuild_parameter"): _Stand(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): _Stand(_first),
    ("torch._utils", "_rebuild_tensor"): _Stand(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Stand(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Stand(_typed_tensor),
    ("torch.nn.parameter", "Parameter"): "Parameter",
    **{("torch", name): name for name in _DTYPES},
}


class _Unpickler(pickle.Unpickler):
    """Knows the names above and storages, and nothing else."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if module in ("torch", "torch.cuda", "torch.storage") and name.removeprefix("_") in _STORAGES:
            return _STORAGES[name.removeprefix("_")]
        raise ValueError(f"it refers to {module}.{name}, which is neither a dense tensor nor a container")

    def persistent_load(self, pid: Any, /) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and pid[1] in _DTYPES):
            raise ValueError(f"unknown reference {pid!r}")
        _, dtype, key, _, size, *view = pid
        whole = self.storages.setdefault(str(key), _Storage(str(key), dtype, int(size)))
        if not view or view[0] is None:
            return whole
        _, start, length = view[0]
        return whole._replace(size=int(length), start=int(start))


def _read_archive(file: IO[bytes]) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("the archive has no entry data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in names:
            raise ValueError("it is a TorchScript archive, which holds a program")
        if folder + "byteorder" in names and archive.read(folder + "byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        with archive.open(pickles[0]) as entry:
            unpickler = _Unpickler(entry)
            tree = unpickler.load()
        data = {key: archive.read(f"{folder}data/{key}") for key in unpickler.storages}
    for key, storage in unpickler.storages.items():
        _check_length(storage, data[key])
    return tree, data


def _read_stream(file: IO[bytes]) -> tuple[Any, dict[str, bytes]]:
    try:
        magic = _Unpickler(file).load()
    except Exception as error:
        raise ValueError("it begins neither as a zip archive nor as a pickle") from error
    if magic != _STREAM_MAGIC or _Unpickler(file).load() != _STREAM_PROTOCOL:
        raise ValueError("it does not begin as torch.save begins")
    _Unpickler(file).load()  # sizes of C types on the machine that wrote it; its numbers are little-endian all the same
    unpickler = _Unpickler(file)
    tree, keys, data = unpickler.load(), _Unpickler(file).load(), {}
    for storage in (unpickler.storages[str(key)] for key in keys):
        file.read(8)  # the size once more
        data[storage.key] = file.read(storage.size * jnp.dtype(storage.dtype).itemsize)
        _check_length(storage, data[storage.key])
    return tree, data


def _check_length(storage: _Storage, data: bytes) -> None:
    expected = storage.size * jnp.dtype(storage.dtype).itemsize
    if len(data) != expected:
        raise ValueError(f"storage {storage.key} has {len(data)} bytes in place of {expected}")


def _tensors(tree: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Tensor]]:
    if isinstance(tree, _Tensor):
        yield keys, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _tensors(value, (*keys, str(key)))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _tensors(value, (*keys, str(index)))
