"""Whole spectra of convolutions against matrices built entry by entry in NumPy, and published numbers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.spectrum.convolution.structure import parts

LAPLACIAN = np.array([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[:, :, None, None]
BOX = np.ones((3, 3, 1, 1)) / 9
SOBEL = np.array([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])[:, :, None, None]


def check(matrix, kernel, sizes, dtype, **options):
    """Compare with the dense matrix, relative to the largest value."""
    names = {"strides": "strides", "groups": "feature_group_count", "dilation": "kernel_dilation"}
    names |= {"spread": "input_dilation"}
    given = {names[name]: value for name, value in options.items() if name in names}
    padding = options["padding"]
    truth = np.linalg.svd(matrix(kernel, sizes, **options), compute_uv=False)
    made = sx.conv_singular_values(jnp.asarray(kernel, dtype), sizes, padding=padding, **given)
    assert made.shape == truth.shape
    assert made.dtype == jnp.finfo(dtype).dtype
    assert np.all(np.diff(made) <= 0)
    assert_allclose(made, truth, atol=(1e-12 if jnp.finfo(dtype).bits == 64 else 1e-5) * truth[0])


@pytest.mark.parametrize("taps", [1, 2, 3, *(pytest.param(taps, marks=pytest.mark.slow) for taps in (4, 7)), 5])
@pytest.mark.parametrize("padding", ["CIRCULAR", "SAME", "VALID", "FULL"])
def test_every_size_from_1_to_17(padding, taps, convolution_matrix, x64):
    """One axis, odd and even, kernels larger than the input, strides that divide and that don't, groups."""
    rng = np.random.default_rng(taps)
    for size in range(1, 18):
        if padding == "VALID" and taps > size:
            continue
        strides, groups = 1 + size % 3, 1 + (size // 3) % 2
        kernel = rng.normal(size=(taps, 2, 2 + 2 * (size % 2)))
        dtype = jnp.float64 if size % 4 else jnp.float32
        check(convolution_matrix, kernel, (size,), dtype, padding=padding, strides=strides, groups=groups)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (5, 6), (6, 9), (9, 4), (17, 2)])
@pytest.mark.parametrize("padding", ["CIRCULAR", "SAME", "VALID", "FULL", ((-1, 2), (1, 0))])
def test_two_axes(padding, size, convolution_matrix, x64):
    rng = np.random.default_rng(sum(size))
    for taps, strides in itertools.product(((1, 1), (3, 3), (2, 5)), ((1, 1), (2, 3))):
        reach = [n + (sum(p) if not isinstance(padding, str) else 0) for n, p in zip(size, padding, strict=False)]
        if padding == "VALID":
            reach = list(size)
        if padding not in {"CIRCULAR", "SAME", "FULL"} and any(t > n for t, n in zip(taps, reach, strict=True)):
            continue
        kernel = rng.normal(size=(*taps, 2, 1))
        check(convolution_matrix, kernel, size, jnp.float64, padding=padding, strides=strides)


@pytest.mark.parametrize(
    ("taps", "size", "options"),
    [
        ((3,), (7,), {"dilation": 2}),
        ((2,), (11,), {"dilation": 5}),
        ((5,), (2,), {"dilation": 3}),
        ((3, 2), (7, 6), {"dilation": 2, "groups": 2}),
        ((3, 3), (7, 5), {"dilation": 2, "strides": 2}),
        ((2,), (9,), {"dilation": 2, "strides": 3}),
        ((2, 2), (9, 7), {"strides": 3}),
        ((1, 3), (8, 7), {}),
        ((3, 1), (9, 8), {"strides": 2, "groups": 2}),
        ((1, 2, 1), (5, 4, 6), {}),
        ((3, 3), (4, 5), {"spread": 2}),
        ((2, 2), (4, 5), {"spread": 3, "groups": 2}),
        ((3,), (6,), {"spread": 2, "strides": 2}),
    ],
)
def test_what_falls_apart(taps, size, options, convolution_matrix, x64):
    """Dilations, windows that don't overlap, transposed convolutions, in all zero paddings and some explicit ones."""
    kernel = np.random.default_rng(0).normal(size=(*taps, 2, 4))
    for padding in ("SAME", "VALID", "FULL", ((1, 0),) * len(size), ((2, -1),) * len(size)):
        if (padding == "VALID" or not isinstance(padding, str)) and options.get("dilation", 1) * (taps[0] - 1) >= size[
            0
        ]:
            continue
        check(convolution_matrix, kernel, size, jnp.float64, padding=padding, **options)


def test_patches_need_no_large_matrix():
    """The embedding of an image in patches: the values of the reshaped kernel, once for each patch."""
    kernel = np.random.default_rng(0).normal(size=(16, 16, 3, 8)).astype(np.float32)
    made = sx.conv_singular_values(jnp.asarray(kernel), (224, 224), padding="VALID", strides=16)
    own = np.linalg.svd(kernel.reshape(-1, 8), compute_uv=False)
    assert_allclose(made, np.repeat(own, 14 * 14), rtol=1e-5)
    geometry = sx.conv_operator(jnp.asarray(kernel), (224, 224), padding="VALID", strides=16).geometry
    (part,) = parts(geometry)
    assert part.geometry is None
    assert part.copies == 196


def test_a_kernel_of_one_tap_is_its_matrix(x64):
    kernel = np.random.default_rng(0).normal(size=(1, 1, 3, 2))
    own = np.linalg.svd(kernel[0, 0], compute_uv=False)
    for padding, count in (("CIRCULAR", 30), ("SAME", 30), ("FULL", 30)):
        made = sx.conv_singular_values(jnp.asarray(kernel), (5, 6), padding=padding)
        assert_allclose(made, np.repeat(own, count), rtol=1e-12)


@pytest.mark.parametrize("transform", ["symbol", "fft", "dft"])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.complex128])
def test_transforms_agree_with_the_matrix(transform, kind, convolution_matrix, x64):
    rng = np.random.default_rng(0)
    for taps, size, strides, dilation in (
        ((3,), (7,), 1, 2),
        ((3, 2), (8, 6), 2, 1),
        ((3, 5), (6, 6), (2, 3), 1),
        ((5, 7), (3, 4), 1, 1),  # wraps
        ((2, 2, 1), (5, 4, 6), 1, 1),
        ((3,), (1,), 1, 1),
    ):
        kernel = rng.normal(size=(*taps, 2, 3)).astype(kind)
        if np.issubdtype(kind, np.complexfloating):
            kernel = kernel + 1j * rng.normal(size=kernel.shape)
        matrix = convolution_matrix(kernel, size, strides=strides, dilation=dilation)
        made = sx.conv_singular_values(
            jnp.asarray(kernel),
            size,
            padding="CIRCULAR",
            strides=strides,
            kernel_dilation=dilation,
            transform=transform,
        )
        truth = np.linalg.svd(matrix, compute_uv=False)
        assert_allclose(made, truth, atol=100 * np.finfo(kind).eps * truth[0])


def test_transforms_make_what_they_say():
    """No FFT on the ways without one, and only half the frequencies of a real kernel are decomposed."""
    kernel = jnp.ones((3, 3, 2, 2))
    for transform in ("symbol", "dft", "fft"):
        way = functools.partial(sx.conv_singular_values, padding="CIRCULAR", transform=transform)
        text = str(jax.make_jaxpr(lambda k, way=way: way(k, (8, 8)))(kernel))
        assert ("fft" in text.replace("fft_type", "")) == (transform == "fft")
        assert "c64[1,34,2,2]" in text  # 30 pairs, and the four frequencies that are their own mirror images


@pytest.mark.parametrize(
    ("kernel", "size", "errors"),
    [
        (LAPLACIAN, 16, (0.0253, 0.0225, 0.0144)),
        (BOX, 16, (0.0728, 0.0653, 0.0424)),
        (SOBEL, 16, (0.0712, 0.0683, 0.0458)),
        (LAPLACIAN, 8, (0.0614, 0.0517, 0.0268)),
        (BOX, 8, (0.1953, 0.1685, 0.0900)),
    ],
)
def test_how_far_the_estimates_are(kernel, size, errors, convolution_matrix, x64):
    """Relative errors in the 2-norm of the whole spectrum with "SAME", beside values computed in NumPy."""
    truth = np.linalg.svd(convolution_matrix(kernel, (size, size), padding="SAME"), compute_uv=False)
    options = ({"method": "circular"}, {"method": "quantile"}, {"method": "quantile", "num_frequencies": 8 * size})
    for option, expected in zip(options, errors, strict=True):
        made = sx.conv_singular_values(jnp.asarray(kernel), (size, size), padding="SAME", full=True, **option)
        assert made.kind == "estimate"
        assert_allclose(np.linalg.norm(made.values - truth) / np.linalg.norm(truth), expected, atol=6e-5)


def test_the_sine_grid_is_exact_for_kernels_that_are_even(convolution_matrix, x64):
    """A symbol at any frequencies: j pi / (n + 1), of the Laplacian and of the box."""
    for kernel in (LAPLACIAN, BOX):
        for n in (5, 8):
            angles = np.pi * np.arange(1, n + 1) / (n + 1)
            grid = np.stack(np.meshgrid(angles, angles, indexing="ij"), -1)
            made = np.sort(np.abs(sx.conv_symbol(jnp.asarray(kernel), jnp.asarray(grid))).ravel())[::-1]
            truth = np.linalg.svd(convolution_matrix(kernel, (n, n), padding="SAME"), compute_uv=False)
            assert_allclose(made, truth, atol=1e-12)


def test_closed_forms(x64):
    n = 16
    j = np.arange(1, n + 1)
    values = functools.partial(sx.conv_singular_values, padding="SAME")
    laplacian = np.add.outer(2 - 2 * np.cos(j * np.pi / (n + 1)), 2 - 2 * np.cos(j * np.pi / (n + 1)))
    assert_allclose(values(jnp.asarray(LAPLACIAN), (n, n)), np.sort(laplacian.ravel())[::-1], atol=1e-12)
    one = 1 + 2 * np.cos(j * np.pi / (n + 1))
    box = np.sort(np.abs(np.multiply.outer(one, one)).ravel())[::-1] / 9
    assert_allclose(values(jnp.asarray(BOX), (n, n)), box, atol=1e-12)
    difference = jnp.array([1.0, -1.0]).reshape(2, 1, 1)
    expected = 2 * np.sin(np.arange(n - 1, 0, -1) * np.pi / (2 * n))
    assert_allclose(sx.conv_singular_values(difference, (n,), padding="VALID"), expected, atol=1e-12)
    rows = sx.conv_singular_values(difference[:, None], (n, n), padding="VALID")
    assert_allclose(rows, np.repeat(expected, n), atol=1e-12)


def test_the_smallest_value_of_a_padded_convolution(x64):
    """Bidiagonal, 1 on the diagonal and 2 below: 1.5 * 2^-n where the circular convolution has one."""
    kernel = jnp.array([2.0, 1.0, 0.0]).reshape(3, 1, 1)
    for n, expected in ((16, 2.2888e-5), (32, 3.4925e-10)):
        made = sx.conv_singular_values(kernel, (n,), padding="SAME")
        assert_allclose(made[-1], 1.5 * 2.0**-n, rtol=1e-4)
        assert_allclose(made[-1], expected, rtol=1e-4)
        assert_allclose(sx.conv_singular_values(kernel, (n,), padding="CIRCULAR")[-1], 1, rtol=1e-12)
    assert_allclose(sx.conv_singular_values(kernel, (16,), padding="SAME")[-2], 1.0426, rtol=1e-4)
    assert_allclose(sx.conv_singular_values(kernel[::-1], (16,), padding="SAME")[-1], 1.5 * 2.0**-16, rtol=1e-4)
    swapped = jnp.array([1.0, 2.0, 0.0]).reshape(3, 1, 1)
    assert_allclose(sx.conv_singular_values(swapped, (16,), padding="SAME")[-1], 1.0300, rtol=1e-4)


def test_the_mean_square(x64):
    """Szego's theorem at its simplest: the squares of a circular spectrum add up to n^2 |K|^2."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4))
    values = sx.conv_singular_values(jnp.asarray(kernel), (6, 5), padding="CIRCULAR")
    assert_allclose(np.sum(np.square(values)), 30 * np.sum(kernel**2), rtol=1e-12)


def test_gradients_of_what_falls_apart(x64):
    rng = np.random.default_rng(0)
    kernel, direction = (jnp.asarray(rng.normal(size=(2, 3, 2, 2))) for _ in range(2))
    for options in ({"strides": (2, 1)}, {"kernel_dilation": 2}, {"method": "quantile"}):

        def value(t, options=options):
            values = sx.conv_singular_values(kernel + t * direction, (4, 5), padding="SAME", **options)
            return values @ jnp.cos(jnp.arange(len(values), dtype=values.dtype))

        expected = (value(1e-5) - value(-1e-5)) / 2e-5
        assert_allclose(jax.grad(value)(0.0), expected, rtol=1e-6)


def test_not_finite_kernels_say_so():
    kernel = jnp.ones((3, 2, 2)).at[0, 0, 0].set(jnp.nan)
    for padding, method in itertools.product(("CIRCULAR", "SAME"), ("exact", "circular", "quantile")):
        assert np.isnan(sx.conv_singular_values(kernel, (6,), padding=padding, method=method)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "SAME", "num_frequencies": 4}, "num_frequencies is for method='quantile'"),
        ({"padding": "SAME", "method": "quantile", "num_frequencies": 0}, "num_frequencies must be"),
        ({"padding": "SAME", "method": "circular", "input_dilation": 2}, "not defined for a dilated input"),
        ({"padding": "SAME", "transform": "wavelet"}, "transform must be one of"),
        ({"padding": "SAME", "max_bytes": 10}, "max_bytes=10"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sx.conv_singular_values(jnp.ones((3, 2, 2)), (6,), **options)


def test_a_matrix_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="above the limits"):
        sx.conv_singular_values(jnp.ones((3, 3, 64, 64)), (64, 64), padding="SAME")
