"""Symbols on the grid of circular frequencies, against their definition and against dense matrices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.spectrum.convolution.fourier import circular_grid

GEOMETRIES = {
    "1-D": ((3, 2, 4), (7,), 1, 1),
    "even": ((4, 2, 2), (6,), 1, 1),
    "one tap": ((1, 2, 3), (1,), 1, 1),
    "as large as the input": ((5, 1, 2), (5,), 1, 1),
    "strides": ((3, 2, 4), (6,), 2, 1),
    "strides that leave an odd size": ((3, 2, 2), (9,), 3, 1),
    "2-D": ((3, 2, 2, 3), (5, 4), 1, 1),
    "2-D, strides and groups": ((3, 3, 2, 6), (9, 4), (3, 2), 2),
    "3-D": ((2, 2, 3, 1, 2), (3, 4, 6), (1, 2, 3), 1),
}


def kernel_of(shape, seed=0, dtype=float):
    generator = np.random.default_rng(seed)
    real = generator.normal(size=shape)
    return jnp.asarray(real + 1j * generator.normal(size=shape) if dtype is complex else real)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("dtype", [float, complex])
def test_there_and_back_and_the_product_with_an_input(name, dtype, convolution_matrix, x64):
    shape, sizes, strides, groups = GEOMETRIES[name]
    kernel = kernel_of(shape, dtype=dtype)
    samples = kernel_of((3, *sizes, shape[-2] * groups), 1, dtype)
    grid = circular_grid(kernel, sizes, strides, groups)

    @jax.jit
    def everything(kernel, samples):
        symbols = grid.symbols(kernel)
        whole = grid.kernel(symbols)
        return whole, grid.crop(whole), grid.convolve(symbols, samples)

    whole, cropped, images = everything(kernel, samples)
    assert_allclose(cropped, kernel, atol=1e-14)
    matrix = convolution_matrix(kernel, sizes, strides=strides, groups=groups)
    assert_allclose(convolution_matrix(whole, sizes, strides=strides, groups=groups), matrix, atol=1e-14)
    expected = matrix @ np.asarray(samples).reshape(3, -1).T
    assert_allclose(images.reshape(3, -1).T, expected, atol=1e-13)


@pytest.mark.parametrize("sizes", [(5, 6), (6, 5)])
def test_the_symbol_is_a_sum_over_taps(sizes, x64):
    kernel = np.asarray(kernel_of((3, 2, 2, 3), dtype=complex))
    symbols = circular_grid(jnp.asarray(kernel), sizes, 1, 1).symbols(jnp.asarray(kernel))
    assert symbols.shape == (*sizes, 1, 3, 2)
    for k in itertools.product(*(range(size) for size in sizes)):
        expected = sum(
            kernel[p].T * np.exp(2j * np.pi * np.dot(np.array(k) / sizes, np.array(p) - (1, 0)))
            for p in np.ndindex(3, 2)
        )
        assert_allclose(symbols[k][0], expected, atol=1e-13)


def test_half_of_the_frequencies_for_real_kernels(x64):
    kernel = kernel_of((3, 2, 2, 3))
    assert circular_grid(kernel, (5, 7), 1, 1).symbols(kernel).shape == (5, 4, 1, 3, 2)


def test_what_is_refused():
    kernel = jnp.ones((3, 3, 1, 1))
    with pytest.raises(ValueError, match=r"spatial sizes \(3, 3\) must be at most the input's, \(2, 4\)"):
        circular_grid(kernel, (2, 4), 1, 1)
    with pytest.raises(ValueError, match=r"strides \(2, 2\) must divide the input's sizes \(4, 5\)"):
        circular_grid(kernel, (4, 5), 2, 1)
    with pytest.raises(ValueError, match="groups"):
        circular_grid(jnp.ones((3, 3, 1, 3)), (4, 5), 1, 2)
