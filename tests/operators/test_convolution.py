"""Convolutions against a dense matrix that is built tap by tap, in NumPy."""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx


def pads_of(padding, sizes, window, strides):
    """As TensorFlow and JAX define them."""
    if not isinstance(padding, str):
        return list(padding)
    if padding == "VALID":
        return [(0, 0)] * len(sizes)
    if padding == "FULL":
        return [(extent - 1, extent - 1) for extent in window]
    if padding == "CIRCULAR":
        return [((extent - 1) // 2, extent // 2) for extent in window]
    pads = []
    for size, extent, stride in zip(sizes, window, strides, strict=True):
        total = max((int(np.ceil(size / stride)) - 1) * stride + extent - size, 0)
        pads.append((total // 2, total - total // 2))
    return pads


def dense_convolution(kernel, spatial, *, padding, strides, input_dilation, kernel_dilation, groups):
    """The matrix, entry by entry: output position p, tap t: input at p * stride + t * dilation - pad."""
    rank = kernel.ndim - 2
    taps, per_group, out = kernel.shape[:rank], kernel.shape[-2], kernel.shape[-1]
    sizes = [(size - 1) * step + 1 for size, step in zip(spatial, input_dilation, strict=True)]
    window = [(size - 1) * step + 1 for size, step in zip(taps, kernel_dilation, strict=True)]
    pads = pads_of(padding, sizes, window, strides)
    image = [
        (size + low + high - extent) // stride + 1
        for size, (low, high), extent, stride in zip(sizes, pads, window, strides, strict=True)
    ]
    matrix = np.zeros((*image, out, *spatial, per_group * groups), kernel.dtype)
    for p in itertools.product(*map(range, image)):
        for t in itertools.product(*map(range, taps)):
            q = []
            for axis in range(rank):
                position = p[axis] * strides[axis] + t[axis] * kernel_dilation[axis] - pads[axis][0]
                if padding == "CIRCULAR":
                    position %= sizes[axis]
                if not 0 <= position < sizes[axis] or position % input_dilation[axis]:
                    break
                q.append(position // input_dilation[axis])
            else:
                for group in range(groups):
                    inputs = slice(group * per_group, (group + 1) * per_group)
                    outputs = slice(group * (out // groups), (group + 1) * (out // groups))
                    matrix[(*p, outputs, *q, inputs)] += kernel[t][:, outputs].T
    return matrix.reshape(int(np.prod(image)) * out, -1), (*image, out)


def case(taps, spatial, *, channels=(2, 3), padding="SAME", strides=1, input_dilation=1, kernel_dilation=1, groups=1):
    rank = len(taps)
    spread = [
        value if isinstance(value, tuple) else (value,) * rank for value in (strides, input_dilation, kernel_dilation)
    ]
    options = dict(zip(("strides", "input_dilation", "kernel_dilation"), spread, strict=True))
    return (*taps, *channels), spatial, {"padding": padding, "groups": groups, **options}


CASES = {
    **{
        f"1-D {padding} strides {stride}": case((3,), (7,), padding=padding, strides=stride)
        for padding in ("SAME", "VALID", "FULL", "CIRCULAR")
        for stride in (1, 2, 3)
    },
    "1-D even taps, same": case((4,), (7,), strides=2),
    "1-D even taps, circular": case((4,), (6,), padding="CIRCULAR", strides=2),
    "1-D more taps than inputs": case((5,), (3,), padding="FULL"),
    "1-D one tap, strides": case((1,), (5,), strides=2),
    "1-D explicit": case((3,), (6,), padding=((2, 1),), strides=2),
    "1-D cropped": case((3,), (8,), padding=((-1, -2),)),
    "1-D input dilation": case((3,), (4,), padding=((2, 2),), input_dilation=3, strides=2),
    "1-D input dilation, same": case((3,), (4,), input_dilation=2),
    "1-D kernel dilation, circular": case((3,), (7,), padding="CIRCULAR", kernel_dilation=2, strides=2),
    "1-D kernel dilation, wraps twice": case((4,), (5,), padding="CIRCULAR", kernel_dilation=2),
    "1-D groups": case((3,), (5,), channels=(2, 6), groups=2),
    "1-D depthwise": case((3,), (5,), channels=(1, 6), groups=3, strides=2),
    **{
        f"2-D {padding} strides {strides}": case((3, 2), (5, 4), padding=padding, strides=strides)
        for padding in ("SAME", "VALID", "FULL", "CIRCULAR")
        for strides in (1, (2, 3))
    },
    "2-D all at once": case(
        (2, 3), (4, 3), padding=((1, 3), (2, 0)), strides=(2, 1), input_dilation=(1, 2), kernel_dilation=(2, 1),
        channels=(2, 4), groups=2,
    ),
    "2-D groups, circular": case((3, 2), (4, 3), padding="CIRCULAR", channels=(1, 4), groups=2),
    "3-D same": case((2, 2, 3), (3, 2, 3), channels=(2, 2), strides=(1, 2, 2)),
    "3-D circular": case((2, 1, 2), (3, 2, 2), channels=(2, 1), padding="CIRCULAR"),
    "3-D full": case((2, 2, 1), (2, 2, 2), channels=(1, 2), padding="FULL", strides=(2, 1, 1)),
}  # fmt: skip


def both(name, rng, dtype="float64"):
    kernel_shape, spatial, options = CASES[name]
    kernel = rng.normal(size=kernel_shape)
    if dtype == "complex128":
        kernel = kernel + 1j * rng.normal(size=kernel_shape)
    dense, image = dense_convolution(kernel, spatial, **options)
    keywords = dict(options)
    keywords["feature_group_count"] = keywords.pop("groups")
    return sx.conv_operator(jnp.asarray(kernel), spatial, **keywords), dense, image


@pytest.mark.parametrize("name", CASES)
def test_against_the_matrix(name, x64):
    rng = np.random.default_rng(1)
    A, dense, image = both(name, rng)
    assert A.out_struct.shape == image
    assert A.shape == dense.shape
    matmat, rmatmat = A.matmat, A.rmatmat
    units = jnp.eye(A.shape[1]).reshape(-1, *A.in_struct.shape)
    assert_allclose(np.asarray(matmat(units)).reshape(len(units), -1).T, dense, atol=1e-14)
    units = jnp.eye(A.shape[0]).reshape(-1, *A.out_struct.shape)
    assert_allclose(np.asarray(rmatmat(units)).reshape(len(units), -1), dense, atol=1e-14)


@pytest.mark.parametrize("name", ["1-D CIRCULAR strides 2", "2-D all at once"])
def test_complex_kernels(name, x64):
    rng = np.random.default_rng(1)
    A, dense, image = both(name, rng, "complex128")
    assert_allclose(A.to_dense(), dense, atol=1e-14)
    u = rng.normal(size=image) + 1j * rng.normal(size=image)
    assert_allclose(A.rmatvec(jnp.asarray(u)).reshape(-1), dense.conj().T @ u.reshape(-1), atol=1e-13)
    assert_allclose(A.T.matvec(jnp.asarray(u)).reshape(-1), dense.T @ u.reshape(-1), atol=1e-13)


def test_the_adjoint_is_one_in_float32(key):
    """<A v, u> = <v, A^H u> at the size of a layer."""
    shapes = (3, 3, 8, 16), (17, 14, 8), (9, 7, 16)
    kernel, v, u = (jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key, 3), shapes, strict=True))
    A = sx.conv_operator(kernel, (17, 14), strides=2, padding="SAME")
    left, right = jnp.vdot(A.matvec(v), u), jnp.vdot(v, A.rmatvec(u))
    eps = float(jnp.finfo(jnp.float32).eps)
    assert abs(float(left - right)) <= 50 * eps * float(jnp.linalg.norm(A.matvec(v)) * jnp.linalg.norm(u))


@pytest.mark.parametrize(
    ("layouts", "input_axes", "kernel_axes", "output_axes"),
    [
        (("NCHW", "OIHW", "NCHW"), "CHW", "OIHW", "CHW"),
        (("NHWC", "HWIO", "NHWC"), "HWC", "HWIO", "HWC"),
        (("NCHW", "HWIO", "NHWC"), "CHW", "HWIO", "HWC"),
        (("NHCW", "IOWH", "NWHC"), "HCW", "IOWH", "WHC"),
        (None, "HWC", "HWIO", "HWC"),
    ],
)
def test_layouts(layouts, input_axes, kernel_axes, output_axes, x64):
    rng = np.random.default_rng(1)
    kernel, sample = rng.normal(size=(3, 2, 2, 3)), rng.normal(size=(5, 4, 2))
    reference = sx.conv_operator(jnp.asarray(kernel), (5, 4, 2), padding="SAME", strides=(2, 1))
    # as in lax, the order of the spatial axes is the kernel's
    options = {"padding": "SAME", "strides": (1, 2) if kernel_axes.endswith("WH") else (2, 1)}

    def permuted(array, source, target):
        return jnp.asarray(array).transpose([source.index(axis) for axis in target])

    v = permuted(sample, "HWC", input_axes)
    A = sx.conv_operator(permuted(kernel, "HWIO", kernel_axes), v.shape, dimension_numbers=layouts, **options)
    assert A.in_struct.shape == v.shape
    expected = reference.matvec(jnp.asarray(sample))
    assert_allclose(A.matvec(v), permuted(expected, "HWC", output_axes), atol=1e-14)
    assert A.out_struct.shape == A.matvec(v).shape
    back = permuted(reference.rmatvec(expected), "HWC", input_axes)
    assert_allclose(A.rmatvec(A.matvec(v)), back, atol=1e-13)
    kernels = permuted(kernel, "HWIO", kernel_axes)
    sizes = (4, 5) if kernel_axes.endswith("WH") else (5, 4)
    spatial = sx.conv_operator(kernels, sizes, dimension_numbers=layouts, **options)
    assert spatial.shape == A.shape
    assert spatial.in_struct.shape == A.in_struct.shape


def test_the_layout_agrees_with_lax(x64):
    rng = np.random.default_rng(1)
    kernel, sample = jnp.asarray(rng.normal(size=(3, 2, 3, 2))), jnp.asarray(rng.normal(size=(2, 5, 4)))
    expected = jax.lax.conv_general_dilated(
        sample[None], kernel, (2, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
    )[0]
    A = sx.conv_operator(kernel, (2, 5, 4), strides=(2, 1), padding="SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    assert_allclose(A.matvec(sample), expected, atol=1e-14)


def test_kernels_are_differentiated_and_batched(x64):
    rng = np.random.default_rng(1)
    kernels, v, u = rng.normal(size=(4, 3, 2, 3)), rng.normal(size=(5, 2)), rng.normal(size=(5, 3))

    def value(kernel):
        A = sx.conv_operator(kernel, (5,), padding="SAME")
        return jnp.sum(A.matvec(jnp.asarray(v)) * u), jnp.sum(A.rmatvec(jnp.asarray(u)) * v)

    forward, backward = (
        jax.vmap(jax.grad(lambda k: value(k)[0]))(kernels),
        jax.vmap(jax.grad(lambda k: value(k)[1]))(kernels),
    )
    padded = np.pad(v, ((1, 1), (0, 0)))
    expected = np.stack([padded[tap : tap + 5].T @ u for tap in range(3)])  # both are linear in the kernel
    for gradient in (forward, backward):
        assert_allclose(gradient, np.broadcast_to(expected, gradient.shape), atol=1e-13)
    batch = jax.vmap(lambda kernel: sx.conv_operator(kernel, (5,), padding="SAME"))(jnp.asarray(kernels))
    assert batch.shape == (15, 10)
    dense = jax.vmap(lambda A: A.to_dense())(batch)
    for kernel, matrix in zip(kernels, dense, strict=True):
        assert_allclose(matrix, sx.conv_operator(jnp.asarray(kernel), (5,), padding="SAME").to_dense())


def test_padding_has_no_default():
    with pytest.raises(TypeError, match="padding"):
        sx.conv_operator(jnp.ones((3, 1, 1)), (5,))


@pytest.mark.parametrize(
    ("kernel", "shape", "options", "error", "message"),
    [
        (jnp.ones((3, 1)), (5,), {}, ValueError, "1, 2 or 3 spatial axes"),
        (jnp.ones((3, 0, 1)), (5,), {}, ValueError, "at least one entry"),
        (jnp.ones((3, 1, 1), jnp.int32), (5,), {}, TypeError, "kernel must have a floating"),
        (jnp.ones((3, 1, 1)), (5, 5), {}, ValueError, "has 5 channels, but a kernel"),
        (jnp.ones((3, 1, 1)), (5, 5, 1), {}, ValueError, "input_shape must have 1 spatial sizes"),
        (jnp.ones((3, 1, 1)), (0,), {}, ValueError, "each size of input_shape must be at least 1"),
        (jnp.ones((3, 2, 3)), (5,), {"feature_group_count": 2}, ValueError, "cannot be split into 2 groups"),
        (jnp.ones((3, 2, 3)), (5,), {"feature_group_count": 0}, ValueError, "feature_group_count must be at least 1"),
        (jnp.ones((3, 1, 1)), (5,), {"strides": 0}, ValueError, "strides must be at least 1"),
        (jnp.ones((3, 1, 1)), (5,), {"strides": (1, 1)}, ValueError, "strides must have one entry for each of 1"),
        (jnp.ones((3, 1, 1)), (5,), {"strides": 1.5}, TypeError, "strides must be an integer"),
        (jnp.ones((3, 1, 1)), (5,), {"kernel_dilation": 0}, ValueError, "kernel_dilation must be at least 1"),
        (jnp.ones((3, 1, 1)), (5,), {"padding": "REFLECT"}, ValueError, "SAME, VALID, FULL, CIRCULAR.*'REFLECT'"),
        (jnp.ones((3, 1, 1)), (5,), {"padding": ((1, 1), (1, 1))}, ValueError, "one pair"),
        (jnp.ones((3, 1, 1)), (5,), {"padding": (1,)}, ValueError, "one pair"),
        (jnp.ones((3, 1, 1)), (5,), {"padding": ((1, 0.5),)}, ValueError, "of integers"),
        (jnp.ones((3, 1, 1)), (2,), {"padding": "VALID"}, ValueError, "does not fit into an input"),
        (jnp.ones((3, 1, 1)), (5,), {"padding": "CIRCULAR", "input_dilation": 2}, ValueError, "for a dilated"),
        (
            jnp.ones((3, 1, 1)), (5, 1), {"dimension_numbers": ("HNC", "HIO", "HNC")}, ValueError,
            "the batch axis must come first",
        ),
        (jnp.ones((3, 1, 1)), (5, 1, 1), {"dimension_numbers": ("NHC", "HIO", "NHC")}, ValueError, "the channels, got"),
    ],
)  # fmt: skip
def test_what_is_refused(kernel, shape, options, error, message):
    with pytest.raises(error, match=message):
        sx.conv_operator(kernel, shape, **{"padding": "SAME", **options})


@pytest.mark.parametrize("pads", [[(-1, 1)], [(-2, -1)], [(5, 0)], [(12, -11)], [(-10, 14)]])
@pytest.mark.parametrize("strides", [1, 2])
def test_negative_pads_agree_one_by_one_and_in_a_batch(pads, strides):
    kernel = jax.random.normal(jax.random.key(0), (4, 2, 4))
    operator = sx.conv_operator(kernel, (9,), padding=pads, strides=strides)
    padded = np.zeros((9 + max(pads[0][0], 0) + max(pads[0][1], 0), 2, 18))
    start = max(pads[0][0], 0)
    padded[start : start + 9] = np.eye(18).reshape(18, 9, 2).transpose(1, 2, 0)
    padded = padded[max(-pads[0][0], 0) : padded.shape[0] - max(-pads[0][1], 0)]
    rows = [
        np.einsum("tin,tio->on", padded[first : first + 4], np.asarray(kernel, np.float64))
        for first in range(0, padded.shape[0] - 3, strides)
    ]
    expected = np.concatenate(rows)
    units = jnp.eye(18).reshape(18, 9, 2)
    np.testing.assert_allclose(operator.matmat(units).reshape(18, -1).T, expected, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(operator.matvec)(units).reshape(18, -1).T, expected, atol=1e-5)
    np.testing.assert_allclose(operator.H.to_dense().T, expected, atol=1e-5)


def test_layers_of_equinox(key):
    """Channels first and kernels (out, in / groups, spatial...), as Equinox has them; depthwise, too."""
    equinox = pytest.importorskip("equinox")
    for groups, channels in ((1, (2, 3)), (4, (4, 4))):
        layer = equinox.nn.Conv2d(*channels, 3, stride=2, padding=1, groups=groups, use_bias=False, key=key)
        A = sx.conv_operator(
            layer.weight, (channels[0], 7, 6), strides=2, padding=((1, 1), (1, 1)), feature_group_count=groups,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        )  # fmt: skip
        sample = jax.random.normal(key, A.in_struct.shape)
        assert_allclose(A.matvec(sample), layer(sample), atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_transposed_layers_of_flax(padding, key):
    """A transposed convolution is one of a dilated input, with the pads that `lax.conv_transpose` takes."""
    linen = pytest.importorskip("flax.linen")
    taps, stride, sizes = 4, 2, (5, 6)
    layer = linen.ConvTranspose(3, (taps, taps), strides=(stride, stride), padding=padding, use_bias=False)
    sample = jax.random.normal(key, (*sizes, 2))
    variables = layer.init(key, sample)
    pads = {"SAME": (2, 2), "VALID": (3, 3)}[padding]  # taps + stride - 2 in sum, and taps - 1
    kernel = variables["params"]["kernel"]
    A = sx.conv_operator(kernel, sizes, padding=(pads, pads), input_dilation=stride)
    expected = layer.apply(variables, sample)
    assert A.out_struct.shape == expected.shape
    assert_allclose(A.matvec(sample), expected, atol=1e-5)


def convolutions_in(function, *arguments):
    """The pads and dilations of the convolutions in a program."""
    equations = jax.make_jaxpr(function)(*arguments).eqns
    return [e.params for e in equations if e.primitive.name == "conv_general_dilated"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_what_is_padded_beforehand(dtype, x64):
    """In 64 bits XLA on CPU may read in front of an input that it pads itself, and end the process."""
    options = {"padding": "SAME", "strides": 2, "input_dilation": 3}
    A = sx.conv_operator(jnp.ones((3, 2, 2), dtype), (5,), **options)

    def plain(v):
        return jax.lax.conv_general_dilated(v[None], jnp.ones((3, 2, 2), dtype), (1,), ((1, 1),), (3,), None, (
            "NHC", "HIO", "NHC"))[0]  # fmt: skip

    own = sx.aslinearoperator(plain, A.in_struct)
    for function in (A.matvec, A.rmatvec, own.loop_products()[0]):
        struct = A.out_struct if function == A.rmatvec else A.in_struct
        (params,) = convolutions_in(function, jnp.ones(struct.shape, dtype))
        assert (max(params["padding"][0]) == 0) == (dtype != "float32")
        assert params["lhs_dilation"] == (1,) or dtype == "float32"
    assert_allclose(own.loop_products()[0](jnp.ones((5, 2), dtype)), plain(jnp.ones((5, 2), dtype)))


def test_a_program_that_ended_the_process():
    """As compiled with all optimisations, which the tests go without."""
    program = """
import jax, jax.numpy as jnp, spectrax as sx
jax.config.update("jax_enable_x64", True)
kernel = jnp.array([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[:, :, None, None]
print(float(sx.conv_singular_values(kernel, (16, 16), padding="SAME")[0]))
layout = ("NHWC", "HWIO", "NHWC")
f = lambda x: jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=layout)[0]
A = sx.jacobian_operator(f, jnp.ones((16, 16, 1)))
print(float(jax.jit(lambda: sx.singular_values(A, key=jax.random.key(0))[0])()))
C = sx.conv_operator(kernel, (16, 16), padding="SAME")
for product in (C.matvec, A.loop_products()[0]):
    text = jax.jit(product).lower(jnp.ones((16, 16, 1))).compile().as_text()
    lines = [line for line in text.splitlines() if " convolution(" in line]
    assert lines and not any("pad=" in line for line in lines), lines
"""
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert_allclose([float(line) for line in done.stdout.split()], 4 + 4 * np.cos(np.pi / 17), rtol=1e-12)
