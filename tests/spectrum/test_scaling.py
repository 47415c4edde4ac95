"""Rows of unit length and almost-orthogonal rescaling, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx

OPTIONS = ("strides", "feature_group_count")
conv_row_normalize = jax.jit(sx.conv_row_normalize, static_argnums=1, static_argnames=(*OPTIONS, "eps"))
row_isometry_error = jax.jit(sx.row_isometry_error, static_argnums=1, static_argnames=OPTIONS)
aol_rescale = jax.jit(sx.aol_rescale, static_argnames=OPTIONS)

GEOMETRIES = {
    "1-D": ((3, 2, 4), (7,), 1, 1),
    "even taps, wide": ((4, 3, 2), (6,), 1, 1),
    "strides": ((3, 2, 2), (6,), 2, 1),
    "2-D": ((3, 2, 2, 1), (4, 3), 1, 1),
    "2-D, strides and groups": ((3, 3, 2, 4), (6, 4), (3, 2), 2),
    "3-D": ((2, 1, 2, 1, 2), (2, 3, 2), 1, 1),
}
EVERY = pytest.mark.parametrize(
    ("name", "dtype"), [(name, float) for name in GEOMETRIES] + [(name, complex) for name in list(GEOMETRIES)[-2:]]
)
# Their symbols vanish: at zero frequency, for n divisible by three, along an axis.
LAPLACIAN = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0.0]])
BOX = np.ones((3, 3)) / 9
SOBEL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1.0]])


def kernel_of(shape, seed=0, dtype=float):
    generator = np.random.default_rng(seed)
    real = generator.normal(size=shape)
    return jnp.asarray(real + 1j * generator.normal(size=shape) if dtype is complex else real)


def values(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


@EVERY
def test_the_rows_of_each_output_channel_become_their_polar_factor(name, dtype, convolution_matrix, x64):
    shape, sizes, strides, groups = GEOMETRIES[name]
    kernel = kernel_of(shape, dtype=dtype)
    options = {"strides": strides, "feature_group_count": groups}
    made = conv_row_normalize(kernel, sizes, **options)
    assert made.shape == (*sizes, *shape[-2:])
    assert made.dtype == kernel.dtype
    before, after = (
        convolution_matrix(k, sizes, strides=strides, groups=groups).reshape(
            -1, shape[-1], np.prod(sizes) * shape[-2] * groups
        )
        for k in (kernel, made)
    )
    for channel in range(shape[-1]):
        u, _, vh = np.linalg.svd(before[:, channel], full_matrices=False)
        assert_allclose(after[:, channel], u @ vh, atol=1e-12)
    assert float(row_isometry_error(made, sizes, **options)) < 1e-13


def test_row_isometry_error_is_the_largest_deviation(convolution_matrix, x64):
    kernel = kernel_of((3, 2, 4))
    matrix = convolution_matrix(kernel, (6,)).reshape(6, 4, 12)
    # the rows of one channel are a block circulant matrix, with the lengths of the symbol's rows as singular values
    lengths = np.concatenate([values(matrix[:, channel]) for channel in range(4)])
    assert_allclose(row_isometry_error(kernel, (6,)), np.abs(lengths - 1).max(), rtol=1e-12)
    assert_allclose(row_isometry_error(0 * kernel, (6,)), 1)
    assert np.isfinite(jax.grad(row_isometry_error)(0 * kernel, (6,))).all()


def test_one_output_channel_is_an_isometry(convolution_matrix, x64):
    made = conv_row_normalize(kernel_of((3, 3, 2, 1)), (5, 4))
    assert_allclose(values(convolution_matrix(made, (5, 4))), 1, atol=1e-13)


def test_the_norm_lies_between_one_and_the_root_of_the_channels_and_may_rise(convolution_matrix, x64):
    generator = np.random.default_rng(0)
    for seed in range(3):
        made = conv_row_normalize(kernel_of((3, 3, 8), seed), (8,))
        assert 1 <= values(convolution_matrix(made, (8,)))[0] <= 8**0.5
    alike = np.array([0.25, 0.5, 0.25])[:, None, None] * (1 + 0.01 * generator.normal(size=(1, 3, 8))) / 24**0.5
    norms = [values(convolution_matrix(k, (8,)))[0] for k in (alike, conv_row_normalize(jnp.asarray(alike), (8,)))]
    assert norms[0] < 1.1
    assert norms[1] > 2


@pytest.mark.parametrize("image", [LAPLACIAN, BOX, SOBEL], ids=["laplacian", "box", "sobel"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_zeros_of_the_symbol_stay_zeros(image, dtype, convolution_matrix, x64):
    """Where the published layer divides by zero."""
    kernel = jnp.asarray(image[..., None, None], dtype)
    made = conv_row_normalize(kernel, (6, 6))
    size = float(jnp.finfo(dtype).eps) ** 0.5
    symbol = np.abs(np.fft.fft2(image, (6, 6))).ravel()
    expected = np.sort(np.where(symbol > 1e-6, 1, 0))[::-1]
    assert expected.min() == 0
    assert_allclose(values(convolution_matrix(made, (6, 6))), expected, atol=20 * size)
    assert np.isfinite(jax.jit(jax.grad(lambda k: jnp.sum(conv_row_normalize(k, (6, 6)) ** 3)))(kernel)).all()


@pytest.mark.parametrize("eps", [None, 0.0, 0.3])
def test_zero_channels_stay_zero_with_finite_gradients(eps, x64):
    kernel = kernel_of((3, 2, 3)).at[..., 1].set(0)
    for k in (kernel, 0 * kernel):
        made = conv_row_normalize(k, (5,), eps=eps)
        assert (made[..., 1] == 0).all()
        assert np.isfinite(made).all()
        assert np.isfinite(jax.jit(jax.grad(lambda k: jnp.sum(jnp.sin(conv_row_normalize(k, (5,), eps=eps)))))(k)).all()


def test_eps_is_relative_to_the_longest_row_of_a_channel(x64):
    kernel = jnp.array([1.0, -0.5]).reshape(2, 1, 1) * jnp.array([1.0, 1e-9])
    made = conv_row_normalize(kernel, (4,), eps=0.5)
    lengths = np.abs(np.fft.fft(made[:, 0, 0]))  # before: 0.5, sqrt(1.25), 1.5, sqrt(1.25); the floor is 0.75
    assert_allclose(lengths, [0.5 / 0.75, 1, 1, 1], atol=1e-14)
    assert_allclose(made[..., 1], made[..., 0], atol=1e-14)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter_and_nothing_overflows(scale):
    kernel = kernel_of((3, 2, 3)).astype(jnp.float32)
    for made in (lambda k: conv_row_normalize(k, (5,)), aol_rescale):
        assert_allclose(made(kernel * scale), made(kernel), rtol=1e-5, atol=1e-6)


def central(f, x, direction, step=1e-6):
    return (f(x + step * direction) - f(x - step * direction)) / (2 * step)


@pytest.mark.parametrize("name", ["rows", "isometry error", "aol"])
def test_derivatives(name, x64):
    made = {
        "rows": lambda k: conv_row_normalize(k, (5,), eps=1e-3),
        "isometry error": lambda k: row_isometry_error(k, (5,)),
        "aol": lambda k: aol_rescale(k, strides=2),
    }[name]
    value = jax.jit(lambda k: jnp.sum(jnp.sin(made(k)) * jnp.arange(1.0, made(k).size + 1).reshape(made(k).shape)))
    kernel, direction = kernel_of((3, 2, 3)), kernel_of((3, 2, 3), 1)
    assert_allclose(jnp.sum(jax.grad(value)(kernel) * direction), central(value, kernel, direction), rtol=1e-7)


@EVERY
def test_aol_bounds_the_norm_for_every_padding(name, dtype, convolution_matrix, x64):
    shape, sizes, strides, groups = GEOMETRIES[name]
    for seed in range(3):
        kernel = kernel_of(shape, seed, dtype)
        made = aol_rescale(kernel, strides=strides, feature_group_count=groups)
        assert made.shape == kernel.shape
        for padding in ("CIRCULAR", "SAME", "FULL") + (("VALID",) if min(np.array(sizes) - shape[:-2]) >= 0 else ()):
            matrix = convolution_matrix(made, sizes, padding=padding, strides=strides, groups=groups)
            assert values(matrix)[0] <= 1 + 1e-14


def test_aol_scales_channels_by_the_sums_of_the_gram_matrix(convolution_matrix, x64):
    kernel = kernel_of((3, 2, 4))
    matrix = convolution_matrix(kernel, (7,), padding="FULL")
    sums = np.abs(matrix.T @ matrix).sum(0).reshape(7, 2)[3]  # of a pixel that sees no border
    assert_allclose(aol_rescale(kernel), kernel / np.sqrt(sums)[:, None], rtol=1e-13)
    matrix = convolution_matrix(kernel, (12,), padding="FULL", strides=2)
    sums = np.abs(matrix.T @ matrix).sum(0).reshape(12, 2)
    expected = np.asarray(kernel).copy()
    for tap in range(3):
        expected[tap] /= np.sqrt(sums[4 + tap % 2])[:, None]  # the tap p meets inputs of the residue (p - 2) mod 2
    assert_allclose(aol_rescale(kernel, strides=2), expected, rtol=1e-13)


def test_aol_attains_one_for_orthogonal_kernels_only(convolution_matrix, x64):
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    kernel = jnp.asarray(3 * q.reshape(2, 2, 4))  # stride 2: blocks that don't overlap
    made = aol_rescale(kernel, strides=2)
    assert_allclose(made, kernel / 3, atol=1e-14)
    assert_allclose(values(convolution_matrix(made, (6,), strides=2)), 1, atol=1e-14)
    assert values(convolution_matrix(aol_rescale(kernel_of((3, 3, 3))), (6,)))[0] < 0.99


def test_aol_keeps_zero_channels(x64):
    kernel = kernel_of((3, 2, 3)).at[:, 1].set(0)
    for k in (kernel, 0 * kernel, jax.lax.complex(kernel, 0 * kernel)):
        assert (aol_rescale(k)[:, 1] == 0).all()
        assert np.isfinite(aol_rescale(k)).all()
        gradient = jax.jit(jax.grad(lambda k: jnp.sum(jnp.abs(aol_rescale(k) - 1) ** 2)))(k)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_dtypes_and_vmap(dtype):
    kernels = kernel_of((2, 3, 2, 2)).astype(dtype)
    wide = "complex64" if dtype == "complex64" else "float32"
    for function in (lambda k: conv_row_normalize(k, (5,)), aol_rescale):
        made = jax.vmap(function)(kernels)
        assert made.dtype == dtype
        alone = jnp.stack([function(k) for k in kernels.astype(wide)])
        assert_allclose(made.astype(wide), alone, atol=4 * float(jnp.finfo(dtype).eps))
    assert jax.eval_shape(lambda k: row_isometry_error(k, (5,)), kernels[0]).dtype == jnp.float32


def test_no_square_overflows():
    kernel = jnp.asarray(kernel_of((3, 2, 2)), jnp.float32)
    for scale in (2.0**100, 2.0**-100):
        found = row_isometry_error(scale * kernel, (5,))
        expected = np.abs(scale * np.sqrt(np.sum(np.abs(symbols_of(kernel, 5)) ** 2, axis=-1)) - 1).max()
        assert_allclose(found, expected, rtol=1e-5)


def symbols_of(kernel, size):
    waves = np.exp(2j * np.pi / size * np.outer(np.arange(size), np.arange(kernel.shape[0])))
    return np.einsum("wp,pio->woi", waves, np.asarray(kernel, np.float64))


def test_what_is_refused():
    kernel = jnp.ones((3, 1, 1))
    for function in (sx.conv_row_normalize, sx.row_isometry_error):
        with pytest.raises(ValueError, match="at most the input's"):
            function(kernel, (2,))
    with pytest.raises(ValueError, match="eps"):
        sx.conv_row_normalize(kernel, (4,), eps=-1.0)
    with pytest.raises(ValueError, match="strides"):
        sx.aol_rescale(kernel, strides=(1, 2))
    with pytest.raises(ValueError, match="groups"):
        sx.aol_rescale(jnp.ones((3, 1, 3)), feature_group_count=2)
    with pytest.raises(TypeError, match="kernel"):
        sx.aol_rescale(jnp.ones((3, 1, 1), int))
