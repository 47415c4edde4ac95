"""The scripts behind the tables on the page about convolutions."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose


@pytest.fixture
def scripts(monkeypatch):
    """As they are run, from their own folder."""
    from pathlib import Path

    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")


def test_steps_to_the_ends(scripts):
    """Two distinct values take two steps; the smallest of a geometric decay takes the whole dimension."""
    from conv_ends import steps_to_the_ends

    assert steps_to_the_ends(np.diag([3.0, 3, 3, 1, 1, 1]))[:4] == [2, 2, 2, 2]
    decay = np.diag(10.0 ** -np.arange(12.0))
    top, close, low, lowest = steps_to_the_ends(np.vstack([decay, np.zeros((2, 12))]))
    assert top <= close <= 4
    assert low >= 8
    assert lowest >= low


def test_what_norm_control_attains(scripts, x64):
    import conv_control

    found = dict(zip(conv_control.NAMES, jax.jit(conv_control.measured)(conv_control.he(0)), strict=True))
    assert_allclose(found["clip_spectral_norm, 1 rounds: norm / bound"], 1.27, atol=0.04)
    assert_allclose(found["clip_spectral_norm, 50 rounds: norm / bound"], 1.0015, atol=1e-3)
    assert_allclose(found["aol_rescale: norm"], 0.6, atol=0.05)
    assert 1 < found["conv_row_normalize: norm"] < found["conv_row_normalize: norm before"]
    assert found["cayley_convolution: largest deviation from one"] < 1e-13


def test_the_kernels_of_the_bounds(scripts, x64):
    import conv_bounds

    kernels = conv_bounds.kernels()
    assert [kernel.shape for kernel in kernels[3:6]] == [(3, 3, 1, 1), (3, 3, 3, 5), (3, 3, 8, 8)]
    box = float(conv_bounds.ratio(kernels[1], "certified", "CIRCULAR", 1, 1.0))
    assert 1 <= box < 1.03  # the norm of the box is one
