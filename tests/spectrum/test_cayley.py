"""Cayley transforms of matrices and of convolutions, against their definition on dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.spectrum.convolution.cayley import cayley_convolve

OPTIONS = ("strides", "feature_group_count")
cayley = jax.jit(sx.cayley)
cayley_convolution = jax.jit(sx.cayley_convolution, static_argnums=1, static_argnames=OPTIONS)
convolve = jax.jit(cayley_convolve, static_argnames=OPTIONS)


def array_of(shape, seed=0, dtype=float):
    generator = np.random.default_rng(seed)
    real = generator.normal(size=shape)
    return jnp.asarray(real + 1j * generator.normal(size=shape) if dtype is complex else real)


def values(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


def by_definition(top, bottom):
    """The transform of a matrix whose first rows are `top`."""
    a = top - top.conj().T + bottom.conj().T @ bottom
    identity = np.eye(len(a))
    inverse = np.linalg.inv(identity + a)
    return inverse @ (identity - a), -2 * bottom @ inverse


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (6, 3), (5, 1)])
@pytest.mark.parametrize("dtype", [float, complex])
def test_the_definition(shape, dtype, x64):
    W = np.asarray(array_of(shape, dtype=dtype))
    expected = np.concatenate(by_definition(W[: shape[1]], W[shape[1] :]))
    assert_allclose(cayley(jnp.asarray(W)), expected, atol=1e-14)
    assert_allclose(cayley(jnp.asarray(W.conj().T)), expected.conj().T, atol=1e-14)


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 2, 7, 3), (3, 4, 6)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128", "bfloat16"])
def test_columns_or_rows_are_orthonormal_to_round_off(shape, dtype, x64):
    W = array_of(shape, dtype=complex if "complex" in dtype else float).astype(dtype)
    Q = cayley(W)
    assert Q.shape == shape
    assert Q.dtype == dtype
    Q = np.asarray(Q, complex)
    if shape[-2] < shape[-1]:
        Q = np.swapaxes(Q, -1, -2)
    eps = float(jnp.finfo(dtype).eps)
    assert_allclose(
        np.swapaxes(Q, -1, -2).conj() @ Q,
        np.broadcast_to(np.eye(Q.shape[-1]), (*shape[:-2],) + (Q.shape[-1],) * 2),
        atol=20 * eps,
    )


def test_real_square_transforms_are_rotations_and_zero_is_the_identity(x64):
    assert_allclose(jnp.linalg.det(cayley(array_of((5, 4, 4)))), 1, atol=1e-13)
    assert_allclose(cayley(jnp.zeros((4, 2))), np.eye(4, 2), atol=0)


def test_derivatives_of_any_order(x64):
    value = jax.jit(lambda W: jnp.sum(jnp.sin(3 * cayley(W))))
    W, direction = array_of((4, 3)), array_of((4, 3), 1)
    slope = jax.jit(jax.grad(value))

    def central(f):
        return (f(W + 1e-6 * direction) - f(W - 1e-6 * direction)) / 2e-6

    assert_allclose(jnp.sum(slope(W) * direction), central(value), rtol=1e-7)
    assert_allclose(jax.jvp(slope, (W,), (direction,))[1], central(slope), rtol=1e-6, atol=1e-7)
    assert np.isfinite(slope(0 * W)).all()


@pytest.mark.parametrize(
    ("sizes", "features", "dtype"),
    [((5, 4), 2, float), ((4, 5), 5, float), ((7, 3), 2, float), ((7, 3), 5, complex), ((4, 4), 5, float)],
)
def test_convolutions_are_the_transform_of_the_dense_matrix(sizes, features, dtype, convolution_matrix, x64):
    """Odd sizes too, at which the published layer returns one row less and singular values from 0.76 to 1.08."""
    kernel = array_of((3, 2, 2, features), dtype=dtype)
    made = cayley_convolution(kernel, sizes)
    assert made.shape == (*sizes, 2, features)
    assert made.dtype == kernel.dtype
    count = np.prod(sizes)
    before, after = (convolution_matrix(k, sizes).reshape(count, features, count * 2) for k in (kernel, made))
    top, bottom = by_definition(before[:, :2].reshape(count * 2, -1), before[:, 2:].reshape(-1, count * 2))
    assert_allclose(after[:, :2].reshape(count * 2, -1), top, atol=1e-13)
    assert_allclose(after[:, 2:].reshape(-1, count * 2), bottom, atol=1e-13)


GEOMETRIES = {
    "wide": ((3, 4, 2), (7,), 1, 1),
    "even taps": ((4, 2, 2), (5,), 1, 1),
    "strides": ((3, 2, 4), (6,), 2, 1),
    "strides, odd output": ((3, 1, 4), (9,), 3, 1),
    "2-D, strides and groups": ((3, 3, 2, 6), (9, 6), (3, 2), 2),
    "3-D": ((2, 1, 2, 1, 3), (2, 3, 3), 1, 1),
    "one pixel": ((1, 3, 3), (1,), 1, 1),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, float) for name in GEOMETRIES] + [(name, complex) for name in list(GEOMETRIES)[-3:]]
)
def test_all_singular_values_are_one_and_the_product_is_the_same(name, dtype, convolution_matrix, x64):
    shape, sizes, strides, groups = GEOMETRIES[name]
    kernel, samples = array_of(shape, dtype=dtype), array_of((2, *sizes, shape[-2] * groups), 1, dtype)
    options = {"strides": strides, "feature_group_count": groups, "scale": 2.0}
    matrix = convolution_matrix(cayley_convolution(kernel, sizes, **options), sizes, strides=strides, groups=groups)
    assert_allclose(values(matrix), 1, atol=1e-13)
    images = convolve(samples, kernel, **options)
    assert_allclose(images.reshape(2, -1).T, matrix @ np.asarray(samples).reshape(2, -1).T, atol=1e-13)
    operator = sx.conv_operator(
        cayley_convolution(kernel, sizes, **options), sizes, padding="CIRCULAR", strides=strides,
        feature_group_count=groups,
    )  # fmt: skip
    assert_allclose(operator.to_dense(), matrix, atol=1e-14)


def test_float32_to_round_off_at_an_odd_size(convolution_matrix):
    kernel = array_of((3, 3, 4, 4)).astype(jnp.float32) / 6
    made = jax.jit(lambda k: cayley_convolution(k, (7, 7)))(kernel)
    assert_allclose(values(convolution_matrix(made, (7, 7))), 1, atol=2e-6)


def test_the_middle_tap_is_no_shift(convolution_matrix, x64):
    made = cayley_convolution(jnp.zeros((3, 3, 2, 3)), (5, 4))
    expected = np.zeros((5, 4, 2, 3))
    expected[2, 1] = np.eye(2, 3)
    assert_allclose(made, expected, atol=1e-15)
    # shared by kernels of all sizes: zeros around a kernel change nothing
    kernel = array_of((3, 3, 2, 2))
    padded = jnp.pad(kernel, ((1, 1), (1, 0), (0, 0), (0, 0)))  # 5 x 4: its middle is where it was
    with_zeros = jnp.pad(kernel, ((1, 1), (0, 1), (0, 0), (0, 0)))
    assert_allclose(cayley_convolution(with_zeros, (6, 6)), cayley_convolution(kernel, (6, 6)), atol=1e-14)
    assert np.abs(cayley_convolution(padded, (6, 6)) - cayley_convolution(kernel, (6, 6))).max() > 0.01


def test_most_of_the_weight_lies_near_the_middle(x64):
    for seed in range(3):
        kernel = array_of((3, 3, 4, 4), seed) / 6
        made = np.asarray(cayley_convolution(kernel, (9, 9))) ** 2
        shares = [made[4 - r : 5 + r, 4 - r : 5 + r].sum() / made.sum() for r in (1, 2, 3)]
        assert shares[0] > 0.6
        assert shares == sorted(shares)
        assert shares[2] > 0.97


def test_the_scale_is_the_norm_of_the_kernel(x64):
    kernel = array_of((3, 2, 2))
    norm = float(jnp.linalg.norm(kernel))
    expected = cayley_convolution(kernel * (3 / norm), (5,))
    assert_allclose(cayley_convolution(kernel * 1e-5, (5,), scale=3.0), expected, atol=1e-14)
    zero = jax.jit(jax.grad(lambda k, a: jnp.sum(cayley_convolution(k, (5,), scale=a) ** 3), argnums=(0, 1)))
    assert all(np.isfinite(part).all() for part in zero(0 * kernel, 1.0))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_dtypes_and_vmap(dtype):
    kernels = array_of((2, 3, 2, 2)).astype(dtype)
    made = jax.vmap(lambda k: cayley_convolution(k, (5,)))(kernels)
    assert made.dtype == dtype
    wide = "complex64" if dtype == "complex64" else "float32"
    alone = jnp.stack([cayley_convolution(k, (5,)) for k in kernels.astype(wide)])
    assert_allclose(made.astype(wide), alone, atol=8 * float(jnp.finfo(dtype).eps))


def test_what_is_refused():
    with pytest.raises(ValueError, match="two axes"):
        sx.cayley(jnp.ones(3))
    with pytest.raises(TypeError, match="W"):
        sx.cayley(jnp.ones((2, 2), int))
    with pytest.raises(ValueError, match="at most the input's"):
        sx.cayley_convolution(jnp.ones((3, 1, 1)), (2,))
    with pytest.raises(ValueError, match="must divide"):
        sx.cayley_convolution(jnp.ones((3, 1, 1)), (5,), strides=2)
