"""The peers of the benchmark of convolutions, and the results that it has written."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks.engine import convolutions

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "convolutions.json"


def matrix(kernel, size, stride, *, circular):
    """The whole matrix of a convolution on a square, by its definition, with windows from -(taps // 2)."""
    taps, _, channels, out = kernel.shape
    coarse = size // stride
    dense = np.zeros((coarse, coarse, out, size, size, channels))
    for a, b, p, q in np.ndindex(coarse, coarse, taps, taps):
        row, column = stride * a + p - taps // 2, stride * b + q - taps // 2
        if circular or (0 <= row < size and 0 <= column < size):
            dense[a, b, :, row % size, column % size] += kernel[p, q].T
    return dense.reshape(coarse * coarse * out, -1)


def random_kernel(seed, taps=3, channels=(2, 3)):
    return np.random.default_rng(seed).standard_normal((taps, taps, *channels)).astype(np.float32)


def test_resnet50_has_its_53_convolutions():
    layers = convolutions.resnet50()
    assert sum(layer.count for layer in layers) == 53
    assert len({layer.name for layer in layers}) == len(layers) == 23
    assert {(layer.channels, layer.size, layer.stride, layer.count) for layer in layers if layer.taps > 1} == {
        ((3, 64), 224, 2, 1), ((64, 64), 56, 1, 3), ((128, 128), 56, 2, 1), ((128, 128), 28, 1, 3),
        ((256, 256), 28, 2, 1), ((256, 256), 14, 1, 5), ((512, 512), 14, 2, 1), ((512, 512), 7, 1, 2),
    }  # fmt: skip
    parameters = sum(layer.count * layer.taps**2 * np.prod(layer.channels) for layer in layers)
    assert parameters == 23_454_912  # torchvision's resnet50, less its normalisations and its last layer


@pytest.mark.parametrize("size", [4, 5])
def test_the_peers_spectra_are_those_of_the_circular_matrix(size):
    kernel = random_kernel(size)
    expected = np.linalg.svd(matrix(kernel, size, 1, circular=True), compute_uv=False)
    tolerance = 50 * np.finfo(np.float32).eps * expected[0]
    for found in (
        convolutions.numpy_spectrum(kernel, size),
        convolutions.numpy_spectrum(kernel, size, half=True),
        convolutions.jax_spectrum(kernel, size),
    ):
        assert_allclose(np.asarray(found), expected[: len(found)], atol=tolerance)


@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_gram_iteration_tends_to_the_norm_from_above(taps, stride):
    kernel, size = random_kernel(taps + stride, taps), 6
    coarse = convolutions.interleaved_parts(kernel, stride)
    norm = np.linalg.norm(matrix(kernel, size, stride, circular=True), 2)
    padded = np.linalg.norm(matrix(kernel, size, stride, circular=False), 2)
    rounding = 1e-5
    previous = np.inf
    for steps in (1, 3, 7):
        bound = float(convolutions.gram_iteration_circular(coarse, size // stride, steps))
        assert norm * (1 - rounding) <= bound <= previous * (1 + rounding)
        assert bound <= norm * min(coarse.shape[-2:]) ** (2.0 ** -(steps + 1)) * (1 + rounding)
        previous = bound
        assert float(convolutions.gram_iteration_padded(coarse, min(steps, 3))) >= padded * (1 - rounding)


def test_gram_iteration_on_kernels_has_known_values():
    """One step is the bound of almost-orthogonal layers; a kernel of orthogonal columns at one tap meets it."""
    kernel = random_kernel(0)
    gram = np.zeros((5, 5, 2, 2))
    for (a, b), (p, q) in ((x, y) for x in np.ndindex(3, 3) for y in np.ndindex(3, 3)):
        gram[2 + p - a, 2 + q - b] += kernel[a, b] @ kernel[p, q].T
    expected = np.sqrt(np.abs(gram).sum((0, 1, 2)).max())
    assert_allclose(float(convolutions.gram_iteration_padded(kernel, 1)), expected, rtol=1e-5)
    alone = np.zeros((3, 3, 2, 2), np.float32)
    alone[1, 1] = np.diag([3.0, 2.0])
    assert_allclose(float(convolutions.gram_iteration_padded(alone, 4)), 3, rtol=1e-5)


def test_results_hold_what_the_pages_say():
    results = json.loads(RESULTS.read_text())
    assert all(row["error"] <= 1e-5 for found in results["spectra"].values() for row in found["arms"].values())
    rows = results["norms"]
    assert sum(row["count"] for row in rows.values()) == 53
    for row in rows.values():
        arms = row["arms"]
        assert arms["certified"]["bound"] >= row["norm"] * (1 - 1e-5)
        if "certified, circular" in arms:  # exact, and below every bound of the same convolution
            assert arms["Gram, circular"]["bound"] >= arms["certified, circular"]["bound"] * (1 - 1e-5)
            assert arms["certified"]["bound"] >= arms["certified, circular"]["bound"] * (1 - 1e-5)
    assert not [name for name, row in results["compilation"].items() if "error" in row["tpu"]]
