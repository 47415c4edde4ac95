"""The distance from orthogonality, against dense matrices and against the sum over frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx

conv_orthogonality = jax.jit(sx.conv_orthogonality, static_argnames=("strides", "side", "feature_group_count"))

GEOMETRIES = {
    "1-D": ((3, 2, 4), (6,), 1, 1),
    "even taps": ((4, 3, 2), (8,), 1, 1),
    "strides": ((3, 2, 3), (8,), 2, 1),
    "strides beyond the taps": ((2, 1, 2), (6,), 3, 1),
    "2-D, strides and groups": ((3, 2, 2, 4), (6, 6), (1, 2), 2),
    "3-D": ((2, 1, 2, 2, 1), (3, 2, 3), 1, 1),
}


def kernel_of(shape, seed=0, dtype=float):
    generator = np.random.default_rng(seed)
    real = generator.normal(size=shape)
    return jnp.asarray(real + 1j * generator.normal(size=shape) if dtype is complex else real)


def orthonormal(shape, seed=0):
    """With orthonormal columns, or rows if it is wide."""
    m, n = shape
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(max(m, n), min(m, n))))[0]
    return q if m >= n else q.T


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, float) for name in GEOMETRIES] + [(name, complex) for name in list(GEOMETRIES)[-2:]]
)
def test_circular_matrices_without_overlap(name, dtype, convolution_matrix, x64):
    shape, sizes, strides, groups = GEOMETRIES[name]
    kernel = kernel_of(shape, dtype=dtype)
    matrix = convolution_matrix(kernel, sizes, strides=strides, groups=groups)
    pixels = matrix.shape[0] // shape[-1]

    def distance(gram):
        return np.linalg.norm(gram - np.eye(len(gram))) ** 2 / pixels

    expected = {"rows": distance(matrix @ matrix.conj().T), "columns": distance(matrix.conj().T @ matrix)}
    for side, value in expected.items():
        made = conv_orthogonality(kernel, strides=strides, side=side, feature_group_count=groups)
        assert_allclose(made, value, rtol=1e-12)
    taller = matrix.shape[0] > matrix.shape[1]
    auto = conv_orthogonality(kernel, strides=strides, feature_group_count=groups)
    assert_allclose(auto, expected["columns" if taller else "rows"], rtol=1e-12)


def test_parseval(x64):
    """The mean over frequencies; 9 > 2 (4 - 1) of them in each direction make it exact."""
    kernel = np.asarray(kernel_of((4, 3, 2, 3)))
    total = 0
    for k in np.ndindex(9, 9):
        phases = np.exp(2j * np.pi / 9 * (k[0] * np.arange(4)[:, None] + k[1] * np.arange(3)))
        symbol = np.einsum("pq,pqio->oi", phases, kernel)
        total += np.linalg.norm(symbol @ symbol.conj().T - np.eye(3)) ** 2
    assert_allclose(conv_orthogonality(jnp.asarray(kernel), side="rows"), total / 81, rtol=1e-12)


def by_shifts(kernel, stride, padding):
    """The published formula for one axis: every shift by the stride that `padding` lets in."""
    taps, _, features = kernel.shape
    total = 0
    for shift in range(-padding, padding + 1, stride):
        overlap = np.zeros((features, features))
        for p in range(taps):
            if 0 <= p + shift < taps:
                overlap += kernel[p].T @ kernel[p + shift]
        total += np.linalg.norm(overlap - (shift == 0) * np.eye(features)) ** 2
    return total


@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (5, 1), (5, 2), (4, 2), (4, 3), (2, 2)])
def test_all_shifts_count_and_no_others(taps, stride, x64):
    """With the padding that the method needs, not the fixed one of its code, which drops the outer taps."""
    kernel = np.asarray(kernel_of((taps, 3, 3)))
    made = conv_orthogonality(jnp.asarray(kernel), strides=stride, side="rows")
    assert_allclose(made, by_shifts(kernel, stride, (taps - 1) // stride * stride), rtol=1e-13)
    if taps == 5 and stride == 1:
        assert by_shifts(kernel, 1, 1) < 0.95 * made


def test_zero_means_orthogonal(convolution_matrix, x64):
    """Patches of stride 2, which a padding by one would charge with sqrt(c_out); and columns, without the constant."""
    patches = jnp.asarray(orthonormal((2 * 2 * 3, 3)).reshape(2, 2, 3, 3))
    assert float(conv_orthogonality(patches, strides=2)) < 1e-28
    matrix = convolution_matrix(patches, (4, 4), strides=2)
    assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-14)
    columns = jnp.asarray(orthonormal((6, 2)).T.reshape(1, 1, 2, 6))
    assert_allclose(conv_orthogonality(columns, side="rows"), 4, atol=1e-13)  # out - in
    assert float(conv_orthogonality(columns, side="columns")) < 1e-28
    assert float(conv_orthogonality(columns)) < 1e-28
    cayley = sx.cayley_convolution(kernel_of((3, 2, 4)), (3,))
    assert float(conv_orthogonality(cayley)) > 1e-3  # orthogonal for circular padding of its size alone


def test_existence(x64):
    """Rows up to in * k^d outputs; columns only if the stride is at most the size of the kernel."""
    most = jnp.asarray(orthonormal((6, 6)).reshape(3, 2, 6))
    assert float(conv_orthogonality(most, strides=3, side="rows")) < 1e-28
    # a stride larger than the kernel leaves inputs out, each of which costs one
    gaps = jnp.asarray(orthonormal((2, 4)).reshape(2, 1, 4))
    assert_allclose(conv_orthogonality(gaps, strides=3, side="columns"), 1, atol=1e-13)


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_derivatives(side, x64):
    kernel, direction = kernel_of((3, 2, 3)), kernel_of((3, 2, 3), 1)
    value = jax.jit(lambda k: conv_orthogonality(k, strides=2, side=side))
    expected = (value(kernel + 1e-5 * direction) - value(kernel - 1e-5 * direction)) / 2e-5
    assert_allclose(jnp.sum(jax.grad(value)(kernel) * direction), expected, rtol=1e-7)
    assert (jax.grad(value)(0 * kernel) == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_dtypes_and_vmap(dtype):
    kernels = kernel_of((2, 3, 2, 2)).astype(dtype)
    made = jax.vmap(conv_orthogonality)(kernels)
    assert made.dtype == jnp.float32
    wide = "complex64" if dtype == "complex64" else "float32"
    assert_allclose(made, [conv_orthogonality(k) for k in kernels.astype(wide)], rtol=1e-5)


def test_what_is_refused():
    kernel = jnp.ones((3, 1, 3))
    with pytest.raises(ValueError, match="side"):
        sx.conv_orthogonality(kernel, side="left")
    with pytest.raises(ValueError, match="groups"):
        sx.conv_orthogonality(kernel, feature_group_count=2)
    with pytest.raises(ValueError, match="strides"):
        sx.conv_orthogonality(kernel, strides=(2, 2))
    with pytest.raises(TypeError, match="kernel"):
        sx.conv_orthogonality(kernel.astype(int))
