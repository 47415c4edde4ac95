"""Parametrizations: one contract for all of them, and how near `init` comes to the kernel that it is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import parametrizations

KERNEL = (3, 2, 2, 3)
SIZES = (5, 4)

# Each with the shape of a kernel and of what it becomes.
EVERY = {
    "aol": (parametrizations.aol(), KERNEL, KERNEL),
    "aol, strides and groups": (parametrizations.aol(strides=2, feature_group_count=3), KERNEL, KERNEL),
    "row_normalized": (parametrizations.row_normalized(SIZES), KERNEL, (*SIZES, 2, 3)),
    "row_normalized, 1-D": (parametrizations.row_normalized((6,), strides=2), (3, 1, 2), (6, 1, 2)),
    "cayley_convolution": (parametrizations.cayley_convolution(SIZES), KERNEL, (*SIZES, 2, 3)),
    "cayley_convolution, 3-D": (parametrizations.cayley_convolution((3, 2, 2)), (1, 2, 1, 3, 2), (3, 2, 2, 3, 2)),
    "clipped": (parametrizations.clipped(0.7, SIZES, rounds=2), KERNEL, KERNEL),
    "cayley": (parametrizations.cayley(), (5, 3), (5, 3)),
    "spectral_normalized": (parametrizations.spectral_normalized(0.5), (2, 5, 3), (2, 5, 3)),
    "bjorck": (parametrizations.bjorck(), (5, 3), (5, 3)),
    "factored": (parametrizations.factored(), KERNEL, KERNEL),
    "cayley, wide and batched": (parametrizations.cayley(), (2, 3, 4), (2, 3, 4)),
}


def kernel_of(shape, seed=0, dtype="float64"):
    generator = np.random.default_rng(seed)
    return jnp.asarray(generator.normal(size=shape), dtype)


def round_trip(form):
    return jax.jit(lambda kernel: form.apply(form.init(kernel)))


def values(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize("name", EVERY)
def test_contract(name, x64):
    """`apply` is a pure function of arrays: shapes, dtypes, jit, vmap and gradients, also at a kernel of zeros."""
    form, shape, applied = EVERY[name]
    kernel = kernel_of(shape)
    init = jax.jit(form.init)
    raw = init(kernel)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(raw))
    copy = jax.tree.map(np.array, raw)
    apply = jax.jit(form.apply)
    made = apply(raw)
    assert made.shape == applied
    if form.input_sizes is not None:
        assert made.shape[:-2] == form.input_sizes
    jax.tree.map(np.testing.assert_array_equal, raw, copy)

    several = jax.tree.map(lambda *leaves: jnp.stack(leaves), raw, init(kernel_of(shape, 1)))
    assert_allclose(jax.vmap(apply)(several)[0], made, atol=1e-13)

    gradient = jax.jit(jax.grad(lambda raw: jnp.sum(jnp.sin(form.apply(raw)))))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(raw)))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient(raw)))
    zero = init(0 * kernel)
    assert np.isfinite(apply(zero)).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(zero)))

    for dtype in ("bfloat16", "float16", "float32", "float64"):
        struct = jax.eval_shape(lambda kernel: form.apply(form.init(kernel)), jax.ShapeDtypeStruct(shape, dtype))
        assert (struct.shape, struct.dtype) == (applied, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", EVERY)
def test_degenerate_kernels(name, dtype):
    """Rank one, repeated singular values, a channel of zeros, tiny, and huge but for the Cayley transform."""
    form, shape, _ = EVERY[name]
    random = np.random.default_rng(0).normal(size=shape)
    identity = np.zeros(shape)
    identity[tuple((size - 1) // 2 for size in shape[:-2])] = np.eye(*shape[-2:])
    kernels = [np.broadcast_to(random[..., :1], shape), identity, random * (np.arange(shape[-1]) > 0), 1e-30 * random]
    if "cayley_convolution" not in name:
        kernels.append(1e30 * random)

    @jax.jit
    def both(kernel):
        raw = form.init(kernel)
        return form.apply(raw), jax.grad(lambda raw: jnp.sum(jnp.sin(form.apply(raw).astype(jnp.float32))))(raw)

    for kernel in kernels:
        for leaf in jax.tree.leaves(both(jnp.asarray(kernel, dtype))):
            assert leaf.dtype == dtype
            assert np.isfinite(leaf.astype(jnp.float32)).all()


def test_what_the_applied_kernels_guarantee(convolution_matrix, x64):
    kernel = kernel_of((3, 2, 2, 3))

    def spectrum(form, kernel=kernel, **options):
        made = round_trip(form)(kernel)
        operator = sx.conv_operator(made, SIZES, **options)
        assert_allclose(operator.to_dense(), convolution_matrix(made, SIZES, padding=options["padding"]), atol=1e-14)
        return values(operator.to_dense())

    for padding in ("SAME", "CIRCULAR"):
        assert spectrum(parametrizations.aol(), padding=padding)[0] <= 1 + 1e-14
    assert_allclose(spectrum(parametrizations.cayley_convolution(SIZES), padding="CIRCULAR"), 1, atol=1e-13)
    rows = spectrum(parametrizations.row_normalized(SIZES), padding="CIRCULAR")
    assert 1 <= rows[0] <= 3**0.5
    one = spectrum(parametrizations.row_normalized(SIZES), kernel=kernel[..., :1], padding="CIRCULAR")
    assert_allclose(one, 1, atol=1e-13)
    clipped = spectrum(parametrizations.clipped(0.7, SIZES, rounds=40), padding="CIRCULAR")
    assert 0.7 <= clipped[0] < 0.7 * 1.02
    Q = np.asarray(round_trip(parametrizations.cayley())(kernel_of((4, 6))))
    assert_allclose(Q @ Q.T, np.eye(4), atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (7, 4), (4, 7)])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_cayley_gives_back_every_orthonormal_matrix(shape, dtype, x64):
    """Reflections too, for which the transform alone has no parameters."""
    form = parametrizations.cayley()
    both = jax.jit(lambda Q: (form.apply(form.init(Q)), form.init(Q)["matrix"]))
    for seed in range(4):
        matrix = np.asarray(kernel_of(shape, seed, dtype))
        u, _, vh = np.linalg.svd(matrix, full_matrices=False)
        for sign in (1, -1):
            Q = sign * u @ vh
            made, raw = both(jnp.asarray(Q))
            assert_allclose(made, Q, atol=1e-13)
            assert np.abs(raw).max() < 10  # far from the eigenvalue -1, at which they are infinite
    if dtype == "float64":
        assert_allclose(both(jnp.asarray(np.eye(*shape)[::-1].copy()))[0], np.eye(*shape)[::-1], atol=1e-13)


def test_cayley_takes_the_nearest_orthonormal_matrix(x64):
    matrix = kernel_of((5, 3))
    u, _, vh = np.linalg.svd(matrix, full_matrices=False)
    assert_allclose(round_trip(parametrizations.cayley())(matrix), u @ vh, atol=1e-13)


def test_the_signs_of_cayley_are_not_trained(x64):
    form = parametrizations.cayley()
    raw = form.init(-jnp.eye(3))
    gradient = jax.grad(lambda raw: jnp.sum(jnp.sin(form.apply(raw) + jnp.arange(9.0).reshape(3, 3))))(raw)
    assert (gradient["signs"] == 0).all()
    assert np.any(gradient["matrix"] != 0)
    assert_allclose(form.apply({**raw, "signs": 0.1 * raw["signs"]}), -np.eye(3), atol=1e-14)  # after weight decay


def test_where_init_is_exact(x64):
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    patches = jnp.asarray(orthogonal.reshape(2, 2, 4))
    assert_allclose(round_trip(parametrizations.aol(strides=2))(patches), patches, atol=1e-14)
    kernel = kernel_of((3, 3, 2, 2))
    assert_allclose(round_trip(parametrizations.clipped(100.0, SIZES))(kernel), kernel, atol=1e-14)
    rows = round_trip(parametrizations.row_normalized(SIZES))
    assert_allclose(rows(rows(kernel)), rows(kernel), atol=1e-13)


def test_the_raw_scale_of_cayley_convolution_starts_at_the_kernel(x64):
    kernel, form = kernel_of((3, 2, 2)), parametrizations.cayley_convolution((5,))
    raw = form.init(kernel)
    assert_allclose(raw["scale"], np.linalg.norm(kernel))
    assert_allclose(form.apply(raw), sx.cayley_convolution(kernel, (5,)), atol=1e-14)
    assert_allclose(form.apply({"kernel": 7 * kernel, "scale": raw["scale"]}), form.apply(raw), atol=1e-14)


def test_spectral_normalisation(convolution_matrix, x64):
    kernel = kernel_of((5, 4))
    made = round_trip(parametrizations.spectral_normalized(2.0))(kernel)
    assert_allclose(made, 2 * kernel / values(kernel)[0], rtol=1e-12)
    small = round_trip(parametrizations.spectral_normalized(100.0, shrink_only=True))(kernel)
    assert_allclose(small, kernel, rtol=1e-15)
    # of a convolution, whose reshaped kernel would be too large a layer
    kernel = kernel_of((3, 3, 2, 3))
    norm = lambda k: sx.conv_norm(k, padding="SAME", method="gram").value  # noqa: E731
    made = round_trip(parametrizations.spectral_normalized(norm=norm))(kernel)
    assert 0.8 < values(convolution_matrix(np.asarray(made), (12, 12), padding="SAME"))[0] <= 1
    assert values(convolution_matrix(np.asarray(kernel) / values(kernel.reshape(-1, 3))[0], (12, 12)))[0] > 1.5
    # the gradient is that of W / s, with s = u^T W v
    u, s, vh = np.linalg.svd(np.asarray(kernel_of((5, 4))), full_matrices=False)
    weights = np.asarray(kernel_of((5, 4), 3))
    gradient = jax.grad(lambda raw: jnp.sum(parametrizations.spectral_normalized().apply(raw) * weights))(
        kernel_of((5, 4))
    )
    expected = weights / s[0] - np.sum(weights * np.asarray(kernel_of((5, 4)))) / s[0] ** 2 * np.outer(u[:, 0], vh[0])
    assert_allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 6), (7, 4), (3, 8), (1, 1)])
def test_bjorck_comes_to_the_nearest_orthonormal_matrix(shape, x64):
    matrix = np.asarray(kernel_of(shape, 1))
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    made = round_trip(parametrizations.bjorck(num_steps=40))(jnp.asarray(matrix))
    assert_allclose(made, u @ vh, atol=1e-12)
    few = values(round_trip(parametrizations.bjorck(num_steps=3))(jnp.asarray(matrix)))
    assert few[0] <= 1 + 1e-14
    # what it makes of each singular value
    t = s / np.sqrt(np.abs(matrix).sum(0).max() * np.abs(matrix).sum(1).max())
    for _ in range(3):
        t = t * (3 - t**2) / 2
    assert_allclose(few, np.sort(t)[::-1], rtol=1e-10)


def test_what_is_refused():
    with pytest.raises(ValueError, match="bound must be larger than 0"):
        parametrizations.spectral_normalized(0.0)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        parametrizations.bjorck(num_steps=0)
    for form in (parametrizations.spectral_normalized(), parametrizations.bjorck()):
        with pytest.raises(ValueError, match="at least two axes"):
            form.apply(jnp.ones(3))
    with pytest.raises(ValueError, match="input_sizes"):
        parametrizations.row_normalized((3, 3, 3, 3))
    with pytest.raises(ValueError, match="input_sizes"):
        parametrizations.cayley_convolution((3, 0))
    with pytest.raises(ValueError, match="input_sizes must be the 1, 2 or 3 spatial sizes of the input, got 4"):
        parametrizations.cayley_convolution(4)
    with pytest.raises(ValueError, match="eps"):
        parametrizations.row_normalized((3,), eps=2.0)
    with pytest.raises(ValueError, match="bound"):
        parametrizations.clipped(-1.0, (3,))
    with pytest.raises(ValueError, match="bound"):
        parametrizations.clipped(jnp.array(-1.0), (3,))
    with pytest.raises(TypeError, match="rounds"):
        parametrizations.clipped(1.0, (3,), rounds=0.5)
    with pytest.raises(TypeError, match="strides must be an integer, got None"):
        parametrizations.aol(strides=None)
    with pytest.raises(ValueError, match="feature_group_count must be at least 1"):
        parametrizations.row_normalized((3,), feature_group_count=0)
    with pytest.raises(ValueError, match="two axes"):
        parametrizations.cayley().init(jnp.ones(3))
