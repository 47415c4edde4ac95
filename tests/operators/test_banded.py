"""Block-banded QR of zero-padded convolutions against the dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.operators import banded

# kernel shape, input shape, options
FACTORISED = {
    "same": ((3, 3, 2, 2), (6, 5), {"padding": "SAME"}),
    "same, more outputs": ((3, 3, 2, 3), (6, 5), {"padding": "SAME"}),
    "same, fewer outputs": ((3, 3, 3, 2), (6, 5), {"padding": "SAME"}),
    "same, even kernel": ((2, 4, 2, 2), (6, 5), {"padding": "SAME"}),
    "valid": ((3, 3, 2, 2), (6, 5), {"padding": "VALID"}),
    "full": ((3, 3, 2, 3), (6, 5), {"padding": "FULL"}),
    "one-sided": ((3, 3, 2, 2), (6, 5), {"padding": ((2, 1), (0, 2))}),
    "wider than the kernel": ((3, 3, 2, 2), (4, 5), {"padding": ((3, 4), (5, 1))}),
    "bottom only": ((3, 3, 2, 2), (6, 5), {"padding": ((0, 3), (1, 1))}),
    "cropped": ((3, 3, 2, 2), (6, 5), {"padding": ((-1, 2), (1, 1))}),
    "dilated": ((3, 3, 2, 3), (7, 5), {"padding": "SAME", "kernel_dilation": (2, 1)}),
    "larger than the image": ((5, 3, 2, 2), (3, 5), {"padding": "SAME"}),
    "one axis": ((3, 2, 2), (7,), {"padding": "SAME"}),
    "one axis, groups": ((3, 1, 2), (7,), {"padding": "SAME", "feature_group_count": 2}),
    "groups": ((3, 3, 1, 4), (6, 5), {"padding": "SAME", "feature_group_count": 2}),
    "three axes": ((2, 3, 2, 2, 2), (4, 3, 3), {"padding": "SAME"}),
    "one tap": ((1, 1, 2, 2), (4, 3), {"padding": "SAME"}),
}
OTHERS = {
    "strides": ((3, 3, 2, 8), (6, 6), {"padding": "SAME", "strides": (1, 2)}),
    "dilated input": ((3, 3, 2, 2), (6, 5), {"padding": "SAME", "input_dilation": 2}),
    "circular": ((3, 3, 2, 2), (6, 5), {"padding": "CIRCULAR"}),
    "singular for every kernel": ((3, 3, 3, 2), (6, 5), {"padding": "FULL"}),
    "no tap that reaches all": ((3, 3, 3, 2), (6, 5), {"padding": ((-1, 3), (1, 1))}),
}


def convolution(name, dtype):
    shape, size, options = {**FACTORISED, **OTHERS}[name]
    kernel = jax.random.normal(jax.random.key(0), shape, dtype)
    return sx.conv_operator(kernel, size, **options)


COMPLEX = [(name, "complex128") for name in ("same", "same, fewer outputs", "one axis")]


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float64") for name in FACTORISED), *COMPLEX])
def test_factors_are_those_of_the_dense_matrix(name, dtype, x64):
    A = convolution(name, dtype)
    dense = np.asarray(A.to_dense())
    dense = dense if dense.shape[0] >= dense.shape[1] else dense.conj().T
    band = banded.band_of(A.geometry)
    assert band is not None
    assert band.shape == dense.shape
    n, width = dense.shape[1], band.width

    @jax.jit
    def everything(kernel, b):
        factors = banded.factorize(band, banded.band_blocks(kernel, A.geometry), key=jax.random.key(0))
        q = banded.expand(band, factors, jnp.eye(n, dtype=dtype))
        return factors.r, q, banded.solve(band, factors, b), banded.adjoint_solve(band, factors, b)

    b = np.random.default_rng(0).normal(size=(n, 2)).astype(dtype)
    rows, q, x, y = map(np.asarray, everything(A.kernel, jnp.asarray(b)))
    r = np.zeros((n, n + (band.extent - 1) * width), dense.dtype)
    for j, row in enumerate(rows):
        r[j * width : (j + 1) * width, j * width : j * width + row.shape[1]] = row
    assert_allclose(r[:, n:], np.zeros_like(r[:, n:]), atol=1e-13)
    r = r[:, :n]
    assert_allclose(np.tril(r, -1), np.zeros((n, n)))
    assert_allclose(q @ r, dense, atol=1e-13)
    assert_allclose(q.conj().T @ q, np.eye(n), atol=1e-13)
    assert_allclose(r @ x, b, atol=1e-13 * np.abs(x).max() * np.abs(r).max() * n)
    assert_allclose(r.conj().T @ y, b, atol=1e-13 * np.abs(y).max() * np.abs(r).max() * n)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_factorised_so(name):
    assert banded.band_of(convolution(name, "float32").geometry) is None


def test_the_adjoint_of_the_adjoint():
    band = banded.band_of(convolution("bottom only", "float32").geometry)
    assert band is not None
    assert band.adjoint.adjoint == band
    assert band.adjoint.shape == band.shape[::-1]


def test_noise_makes_a_singular_matrix_invertible(x64):
    """A channel without a single weight, as a dead unit has."""
    A = convolution("same", "float64")
    kernel = A.kernel.at[..., 1].set(0.0)
    band = banded.band_of(A.geometry)
    assert band is not None
    blocks = banded.band_blocks(kernel, A.geometry)
    b = jnp.ones((band.shape[1], 1))
    for noise, finite in ((0.0, False), (1e-16, True)):
        factors = banded.factorize(band, blocks, key=jax.random.key(0), noise=noise)
        assert bool(jnp.isfinite(banded.solve(band, factors, b)).all()) == finite


def test_the_cost_is_far_below_that_of_the_dense_factorisation():
    A = sx.conv_operator(jnp.ones((3, 3, 16, 16)), (32, 32), padding="SAME")
    band = banded.band_of(A.geometry)
    assert band is not None
    m, n = band.shape
    assert band.flops < 0.01 * 2 * m * n**2
    assert band.entries < 0.25 * m * n
