"""Spectra of convolutions against dense matrices, and the symbol against its definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx

GEOMETRIES = {
    "1-D": ((3, 2, 3), (6,), {}),
    "1-D, odd size": ((3, 2, 3), (7,), {}),
    "1-D, even taps": ((4, 2, 2), (6,), {}),
    "1-D, one position": ((3, 2, 2), (1,), {}),
    "1-D, wraps": ((5, 2, 2), (3,), {}),
    "1-D, strides": ((3, 2, 3), (6,), {"strides": 2}),
    "1-D, strides 3": ((3, 2, 3), (6,), {"strides": 3}),
    "1-D, dilation": ((3, 1, 2), (8,), {"kernel_dilation": 2}),
    "1-D, dilation and strides": ((3, 1, 2), (8,), {"kernel_dilation": 3, "strides": 2}),
    "1-D, groups": ((3, 2, 6), (6,), {"feature_group_count": 2}),
    "2-D": ((3, 2, 2, 3), (4, 5), {}),
    "2-D, strides": ((3, 3, 1, 2), (4, 6), {"strides": (2, 3)}),
    "2-D, one stride": ((2, 3, 2, 1), (4, 5), {"strides": (2, 1), "kernel_dilation": (1, 2)}),
    "3-D": ((2, 2, 2, 1, 2), (2, 3, 2), {}),
}


def kernel_of(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def dense_values(kernel, shape, **options):
    matrix = sx.conv_operator(kernel, shape, **options).to_dense()
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_circular_spectra_come_from_the_symbol(name, x64):
    shape, sizes, options = GEOMETRIES[name]
    kernel = kernel_of(shape)
    expected = dense_values(kernel, sizes, padding="CIRCULAR", **options)
    made = sx.conv_singular_values(kernel, sizes, padding="CIRCULAR", **options)
    assert made.shape == expected.shape
    assert_allclose(made, expected, atol=1e-12)
    estimate = sx.conv_singular_values(kernel, sizes, padding="SAME", method="circular", **options)
    assert_allclose(estimate, expected, atol=1e-12)
    # no matrix is made: the largest array is smaller than it
    jaxpr = jax.make_jaxpr(lambda k: sx.conv_singular_values(k, sizes, padding="CIRCULAR", **options))(kernel)
    assert "conv_general_dilated" not in str(jaxpr)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "FULL", ((1, 0),)])
def test_other_paddings_are_exact(padding, x64):
    kernel = kernel_of((3, 2, 3))
    made = sx.conv_singular_values(kernel, (7, 2), padding=padding, strides=2)
    assert_allclose(made, dense_values(kernel, (7, 2), padding=padding, strides=2), atol=1e-12)


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_complex_kernels(padding, x64):
    kernel = jax.lax.complex(kernel_of((3, 2, 3)), kernel_of((3, 2, 3), seed=1))
    made = sx.conv_singular_values(kernel, (6,), padding=padding, strides=2)
    assert made.dtype == jnp.float64
    assert_allclose(made, dense_values(kernel, (6,), padding=padding, strides=2), atol=1e-12)


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_16_bit_kernels_give_32_bit_values(padding):
    kernel = kernel_of((3, 2, 3)).astype(jnp.bfloat16)
    made = sx.conv_singular_values(kernel, (6,), padding=padding)
    assert made.dtype == jnp.float32
    assert_allclose(made, dense_values(kernel.astype(jnp.float32), (6,), padding=padding), atol=1e-5)


def test_circular_with_strides_that_do_not_divide_is_exact(x64):
    kernel = kernel_of((3, 2, 3))
    made = sx.conv_singular_values(kernel, (7,), padding="CIRCULAR", strides=2)
    assert_allclose(made, dense_values(kernel, (7,), padding="CIRCULAR", strides=2), atol=1e-12)


def test_zero_padding_is_not_circular(x64):
    kernel = kernel_of((3, 1, 1))
    zero = sx.conv_singular_values(kernel, (16,), padding="SAME")
    circular = sx.conv_singular_values(kernel, (16,), padding="CIRCULAR")
    assert np.abs(zero - circular).max() > 1e-3


def test_the_symbol_by_its_definition(x64):
    kernel = np.asarray(kernel_of((3, 2, 2, 3)))
    frequencies = np.random.default_rng(1).uniform(0, 2 * np.pi, size=(4, 2))
    symbol = sx.conv_symbol(jnp.asarray(kernel), jnp.asarray(frequencies), kernel_dilation=(2, 1))
    assert symbol.shape == (4, 3, 2)
    for w, matrix in zip(frequencies, symbol, strict=True):
        expected = sum(
            kernel[p, q].T * np.exp(1j * (2 * p * w[0] + q * w[1])) for p, q in itertools.product(range(3), range(2))
        )
        assert_allclose(matrix, expected, atol=1e-13)
    assert sx.conv_symbol(jnp.asarray(kernel), jnp.asarray(frequencies).reshape(2, 2, 2)).shape == (2, 2, 3, 2)
    assert sx.conv_symbol(jnp.asarray(kernel), jnp.asarray(frequencies), strides=2).shape == (4, 3, 8)


def test_the_symbol_is_what_a_plane_wave_meets(x64):
    """A circular convolution maps exp(j w x) c to exp(j w x) F(w) c, up to the shift of the padding."""
    kernel, size = kernel_of((3, 2, 3)), 6
    w = 2 * np.pi * 2 / size
    c = np.array([1.0, -2.0j])
    wave = np.exp(1j * w * np.arange(size))[:, None] * c
    A = sx.conv_operator(kernel.astype(jnp.complex128), (size,), padding="CIRCULAR")
    image = np.asarray(A.matvec(jnp.asarray(wave)))
    symbol = np.asarray(sx.conv_symbol(kernel, jnp.array([w])))
    expected = np.exp(1j * w * (np.arange(size) - 1))[:, None] * (symbol @ c)
    assert_allclose(image, expected, atol=1e-12)


@pytest.mark.parametrize("padding", ["CIRCULAR", "SAME"])
def test_gradients(padding, x64):
    kernel, direction = kernel_of((3, 2, 3)), kernel_of((3, 2, 3), 1)

    def f(kernel):
        s = sx.conv_singular_values(kernel, (4,), padding=padding)
        return jnp.sum(jnp.sin(s))

    f = jax.jit(f)
    slope = (f(kernel + 1e-6 * direction) - f(kernel - 1e-6 * direction)) / 2e-6
    gradient = jax.grad(f)(kernel)
    assert np.isfinite(gradient).all()  # real kernels have every value but two of them twice
    assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-7)
    assert np.isfinite(jax.grad(f)(jnp.zeros((3, 2, 3)).at[1, 0, 0].set(1.0))).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: sx.conv_singular_values(k, (4,)), TypeError, "padding"),
        (lambda k: sx.conv_singular_values(k, (4,), padding="SAME", method="fast"), ValueError, "'exact', 'circular'"),
        (
            lambda k: sx.conv_singular_values(k, (5,), padding="SAME", strides=2, method="circular"),
            ValueError,
            r"strides \(2,\) must divide the sizes \(5,\)",
        ),
        (lambda k: sx.conv_symbol(k[0], jnp.ones((1, 1))), ValueError, "1, 2 or 3 spatial axes"),
        (lambda k: sx.conv_symbol(k.astype(jnp.int32), jnp.ones((1, 1))), TypeError, "kernel must have a floating"),
        (lambda k: sx.conv_symbol(k, jnp.ones((1, 2))), ValueError, "a last axis of 1 entries"),
        (lambda k: sx.conv_symbol(k, jnp.ones(())), ValueError, "a last axis of 1 entries"),
        (
            lambda k: sx.conv_symbol(k, jnp.ones((1, 1)), strides=(1, 2)),
            ValueError,
            "strides must have one entry for each of 1",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(jnp.ones((3, 1, 2)))
