"""Readers of checkpoints: every format against its own writer, and what is damaged or unknown."""

import json
import re
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from spectrax.integrations import checkpoints
from spectrax.integrations.weights import open_weights

RNG = np.random.default_rng(0)
ARRAYS = {
    "blk.0.w": RNG.normal(size=(5, 3)).astype(np.float32),
    "half": RNG.normal(size=(4, 2)).astype(np.float16),
    "brain": RNG.normal(size=(2, 6)).astype(ml_dtypes.bfloat16),
    "double": RNG.normal(size=(3, 3)),
    "count": np.arange(6).reshape(2, 3),
}


def loaded(weights):
    """Every array, after a check that it is what was announced."""
    found = {}
    for array in weights.arrays:
        values = np.asarray(array.load())
        assert values.shape == array.shape
        if not array.quantized:
            assert values.dtype == jnp.dtype(array.dtype)
        found[array.name] = values
    return found


def check(weights, expected, kind):
    found = loaded(weights)
    assert weights.format == kind
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert_array_equal(found[name], values)


def test_npz_and_npy(tmp_path):
    plain = {name: values for name, values in ARRAYS.items() if name != "brain"}  # which NumPy stores as raw bytes
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **plain)
        check(open_weights(tmp_path / "a.npz"), plain, "npz")
    np.save(tmp_path / "one.npy", np.asfortranarray(ARRAYS["double"]))
    check(open_weights(str(tmp_path / "one.npy")), {"one": ARRAYS["double"]}, "npy")


def test_objects_in_npz_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", evil=np.array([print], object), w=np.ones((2, 2)))
    evil, w = open_weights(tmp_path / "a.npz").arrays
    assert (evil.dtype, w.dtype) == ("object", "float64")
    with pytest.raises(ValueError, match="allow_pickle=False"):
        evil.load()


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(ARRAYS, tmp_path / "a.safetensors", metadata={"format": "np"})
    weights = open_weights(tmp_path / "a.safetensors")
    found = loaded(weights)
    assert set(found) == set(ARRAYS)
    for name, values in ARRAYS.items():
        assert found[name].dtype == values.dtype
        assert_array_equal(found[name], values)
    assert open_weights(tmp_path).arrays == weights.arrays  # the one file of a directory


def test_safetensors_in_several_files(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    names = list(ARRAYS)
    parts = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    for file, inside in parts.items():
        safetensors.save_file({name: ARRAYS[name] for name in inside}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    places = {name: file for file, inside in parts.items() for name in inside}
    index.write_text(json.dumps({"weight_map": places}))
    for path in (tmp_path, index):
        weights = open_weights(path)
        found = loaded(weights)
        assert set(found) == set(names)
        for name, values in ARRAYS.items():
            assert_array_equal(found[name], values)
    before = weights.fingerprint()
    (tmp_path / "README").touch()
    assert open_weights(tmp_path).fingerprint() == before
    safetensors.save_file({names[0]: -ARRAYS[names[0]], names[1]: ARRAYS[names[1]]}, tmp_path / "model-1.safetensors")
    assert open_weights(tmp_path).fingerprint() != before

    index.write_text(json.dumps({"weight_map": {**places, "lost": "model-2.safetensors"}}))
    with pytest.raises(ValueError, match="arrays that the files lack: lost"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {**places, "lost": "../elsewhere.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"elsewhere.safetensors, which is not beside it"):
        open_weights(tmp_path)
    index.unlink()
    with pytest.raises(ValueError, match=r"several checkpoints: give one of the files \(model-1.safetensors"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b'{"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}', bytes(12), "cut off"),
        (b'{"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 16]}}', bytes(16), "does not fit its shape"),
        (b'{"w": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}', bytes(16), "must not be negative"),
        (b'{"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [-16, 0]}}', bytes(16), "cut off"),
        (b'{"w": {"dtype": "F32", "shape": [2, 2]}}', bytes(16), "data_offsets"),
        (b'{"w": 3', bytes(16), "cannot be read as safetensors"),
        (b"[]", bytes(16), "cannot be read as safetensors"),
    ],
)
def test_damaged_safetensors(tmp_path, header, data, message):
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    with pytest.raises(ValueError, match=message):
        open_weights(file)
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match="header would have"):
        open_weights(file)


def test_a_dtype_of_safetensors_that_is_not_known_is_named(tmp_path):
    header = b'{"w": {"dtype": "F4", "shape": [4, 2], "data_offsets": [0, 4]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (array,) = open_weights(tmp_path / "a.safetensors").arrays
    assert array.dtype == "F4"
    with pytest.raises(TypeError, match="not known"):
        array.load()


def test_orbax(tmp_path):
    tree = {
        "params": {"dense": {"kernel": jnp.asarray(ARRAYS["blk.0.w"]), "bias": jnp.ones(3, jnp.bfloat16)},
                   "blocks": [jnp.ones((2, 2)), jnp.asarray(ARRAYS["half"])]},
        "step": jnp.int32(3),
    }  # fmt: skip
    path = checkpoints.save(tmp_path / "run" / "4", tree)
    weights = open_weights(path)
    found = loaded(weights)
    assert weights.format == "orbax"
    assert set(found) == {
        "params/dense/kernel", "params/dense/bias", "params/blocks/0", "params/blocks/1", "step"
    }  # fmt: skip
    assert_array_equal(found["params/dense/kernel"], ARRAYS["blk.0.w"])
    assert_array_equal(found["params/blocks/1"], ARRAYS["half"])
    with pytest.raises(ValueError, match=r"checkpoints of several steps: give one of them, as \S+run/4"):
        open_weights(tmp_path / "run")
    # as a CheckpointManager has them, a step holds named items
    (tmp_path / "7").mkdir()
    path.rename(tmp_path / "7" / "default")
    assert set(loaded(open_weights(tmp_path / "7"))) == set(found)
    checkpoints.save(tmp_path / "7" / "other", {"w": jnp.ones((2, 3))})
    assert {"default/step", "other/w"} < set(loaded(open_weights(tmp_path / "7")))


def test_torch(tmp_path):
    """What `torch.save` writes, by hand; the reader has its own tests."""
    program = (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\n"
        b"OrderedDict\n)RtRs."
    )
    values = np.arange(6, dtype=np.float32)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", values.tobytes())
    check(open_weights(tmp_path / "a.pt"), {"w": values.reshape(2, 3)}, "torch")


def test_gguf(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "test")
    matrix = RNG.normal(size=(3, 64)).astype(np.float32)
    packed = gguf.quantize(matrix, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.w", matrix)
    writer.add_tensor("blk.0.half", matrix.astype(np.float16))
    writer.add_tensor("blk.0.q", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    weights = open_weights(tmp_path / "a.gguf")
    plain, half, quantized = weights.arrays
    assert [(a.shape, a.dtype, a.quantized) for a in weights.arrays] == [
        ((3, 64), "float32", False), ((3, 64), "float16", False), ((3, 64), "Q8_0", True)
    ]  # fmt: skip
    assert_array_equal(plain.load(), matrix)
    assert_array_equal(half.load(), matrix.astype(np.float16))
    block = matrix.reshape(3, 2, 32)
    step = (np.abs(block).max(-1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    assert np.max(np.abs(quantized.load().reshape(block.shape) - block) / step) <= 0.6
    assert quantized.load().dtype == np.float32
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(3))
    with pytest.raises(ValueError, match="cannot be read as GGUF"):
        open_weights(tmp_path / "bad.gguf")


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    arrays = {name: ARRAYS[name] for name in ("blk.0.w", "half", "count")}
    constant = onnx.helper.make_node("Constant", [], ["late"], value=onnx.numpy_helper.from_array(ARRAYS["double"]))
    graph = onnx.helper.make_graph(
        [constant], "graph", [], [], [onnx.numpy_helper.from_array(values, name) for name, values in arrays.items()]
    )
    graph.initializer.append(
        onnx.helper.make_tensor("brain", onnx.TensorProto.BFLOAT16, [2, 6], ARRAYS["brain"].astype(np.float32).ravel())
    )
    model = onnx.helper.make_model(graph)
    onnx.save(model, tmp_path / "a.onnx")
    check(open_weights(tmp_path / "a.onnx"), {**arrays, "brain": ARRAYS["brain"], "late": ARRAYS["double"]}, "onnx")
    onnx.save(
        model, tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0
    )  # numbers in a file beside it
    found = open_weights(tmp_path / "b.onnx")
    check(found, {**arrays, "brain": ARRAYS["brain"], "late": ARRAYS["double"]}, "onnx")
    before = found.fingerprint()
    (tmp_path / "b.data").write_bytes(bytes((tmp_path / "b.data").stat().st_size))
    assert open_weights(tmp_path / "b.onnx").fingerprint() != before
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ValueError, match="cannot be read as ONNX"):
        open_weights(tmp_path / "bad.onnx")


@pytest.mark.parametrize("ending", ["gguf", "onnx"])
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, ending):
    monkeypatch.setitem(__import__("sys").modules, ending, None)
    (tmp_path / f"a.{ending}").touch()
    with pytest.raises(ImportError, match=re.escape(f'"jax-spectrax[{ending}]"')):
        open_weights(tmp_path / f"a.{ending}")


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        open_weights(tmp_path / "missing.npz")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"no known format; known are \.npz"):
        open_weights(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        open_weights(tmp_path)
    deep = b"[" * 100_000
    np.savez_compressed(tmp_path / "a.npz", w=np.ones((3, 3)))
    packed = bytearray((tmp_path / "a.npz").read_bytes())
    packed[56:60] = b"\xff" * 4  # within the compressed header of the array
    contents = {
        "bad.npz": b"nonsense", "bad.npy": b"nonsense", "bad.pt": b"nonsense", "packed.npz": packed,
        "deep.safetensors": len(deep).to_bytes(8, "little") + deep,
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as"):
            open_weights(tmp_path / name)
