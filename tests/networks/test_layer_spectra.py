"""Spectra of all layers at many samples, reduced spectra of batches and the Gram form, against NumPy by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx

WIDTHS = (5, 6, 4, 3)


def relu_network(params, x):
    """Three dense layers with biases, a skip of one half around the second one where its widths allow it."""
    for index in range(len(params) - 1):
        own = params[f"layer_{index}"]
        out = jax.nn.relu(own["kernel"] @ x + own["bias"])
        x = out + 0.5 * x if out.shape == x.shape else out
    last = params[f"layer_{len(params) - 1}"]
    return last["kernel"] @ x + last["bias"]


def make(widths=WIDTHS, samples=7, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    params = {
        f"layer_{i}": {
            "kernel": (rng.normal(size=(n, d)) * np.sqrt(2 / d)).astype(dtype),
            "bias": rng.normal(size=n).astype(dtype) / 4,
        }
        for i, (d, n) in enumerate(itertools.pairwise(widths))
    }
    return params, rng.normal(size=(samples, widths[0])).astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 2), static_argnames=("bias", "gram", "max_bytes"))
def of_batch(net, params, layer, xs, **options):
    return sx.landscape.layer_spectrum(net, params, layer, xs, batched=True, **options)


@functools.partial(jax.jit, static_argnums=(0, 2), static_argnames="bias")
def gram_of_batch(net, params, layer, xs, **options):
    return sx.landscape.layer_gram(net, params, layer, xs, batched=True, **options)


def factors_by_hand(params, x):
    """Return z and M D of every layer at one sample: a forward and a backward pass in NumPy, in float64."""
    z, inputs, slopes, skips = x.astype(float), [], [], []
    count = len(params)
    kernels = [params[f"layer_{i}"]["kernel"].astype(float) for i in range(count)]
    for i in range(count):
        h = kernels[i] @ z + params[f"layer_{i}"]["bias"].astype(float)
        inputs.append(z)
        last = i == count - 1
        slopes.append(np.ones_like(h) if last else (h > 0).astype(float))
        skips.append(0.5 if not last and h.shape == z.shape else 0.0)
        z = slopes[-1] * h + (skips[-1] * z if skips[-1] else 0)
    after, found = np.eye(len(z)), []
    for i in reversed(range(count)):
        found.append((inputs[i], after * slopes[i]))
        step = slopes[i][:, None] * kernels[i]
        after = after @ (step + skips[i] * np.eye(*step.shape) if skips[i] else step)
    return found[::-1]


def q_by_hand(params, xs, layer, *, bias=False):
    blocks = []
    for x in xs:
        z, after = factors_by_hand(params, x)[layer]
        blocks.append(np.kron(np.append(z, 1) if bias else z, after))
    return np.concatenate(blocks)


@pytest.mark.parametrize(("bias", "widths"), [(False, WIDTHS), (True, (4, 6, 6, 9))])
def test_each_sample_by_itself(bias, widths, x64):
    params, xs = make(widths)
    found = sx.landscape.layer_spectra(relu_network, params, xs, bias=bias, chunk_size=3)  # 3 does not divide 7
    assert list(found) == [f"layer_{i}" for i in range(len(widths) - 1)]
    for index, spectrum in enumerate(found.values()):
        Q = np.stack([q_by_hand(params, x[None], index, bias=bias) for x in xs])
        s = np.linalg.svd(Q, compute_uv=False)
        assert spectrum.values.shape == s.shape
        assert_allclose(spectrum.values, s, atol=1e-13 * s.max())
        assert spectrum.num_weights == Q.shape[2]
        assert spectrum.num_samples == 1
        rank = np.linalg.matrix_rank(Q)
        assert spectrum.rank.tolist() == rank.tolist()
        assert spectrum.flat_directions.tolist() == (Q.shape[2] - rank).tolist()
        kappa = s[:, 0] / s[np.arange(len(xs)), rank - 1]
        assert_allclose(spectrum.condition_number, kappa, rtol=1e-10)
        assert_allclose(spectrum.eccentricity, np.sqrt(1 - kappa**-2), rtol=1e-10)
        assert_allclose(spectrum.largest_step, s[:, 0] ** -2, rtol=1e-10)
        assert_allclose(spectrum.convergence_rate, (kappa**2 - 1) / (kappa**2 + 1), rtol=1e-10)
        widths_found = np.asarray(spectrum.basin_widths(0.25))
        resolved = np.arange(s.shape[1]) < rank[:, None]
        assert_allclose(widths_found[resolved], 0.5 / s[resolved], rtol=1e-9)
        assert np.all(np.isinf(widths_found[~resolved]))


def test_some_layers_and_one_program(x64):
    params, xs = make()
    calls = []

    def counted(params, x):
        calls.append(1)
        return relu_network(params, x)

    first = sx.landscape.layer_spectra(counted, params, xs, layers=("layer_2", "layer_0"))
    assert list(first) == ["layer_0", "layer_2"]
    everything = sx.landscape.layer_spectra(relu_network, params, xs)
    assert_allclose(first["layer_0"].values, everything["layer_0"].values, atol=1e-14)
    # `counted` closes over no array, so the first call is traced and later ones are not
    traced = len(calls)
    for shift in range(3):
        other = sx.landscape.layer_spectra(counted, params, xs + shift, layers=("layer_2", "layer_0"))
    assert len(calls) == traced
    assert np.abs(np.asarray(other["layer_2"].values) - np.asarray(first["layer_2"].values)).max() > 1e-3


def test_what_the_network_closes_over_is_read_at_every_call(x64):
    held = {"last": jnp.eye(3)}
    f = lambda params, x: held["last"] @ jax.nn.relu(params["w"] @ x)  # noqa: E731
    x = jnp.array([[1.0, 2.0, 2.0]])
    before = sx.landscape.layer_spectra(f, {"w": jnp.eye(3)}, x)["w"].values
    held["last"] = 2 * jnp.eye(3)
    after = sx.landscape.layer_spectra(f, {"w": jnp.eye(3)}, x)["w"].values
    assert_allclose(before, [[3.0, 3.0, 3.0]])
    assert_allclose(after, [[6.0, 6.0, 6.0]])


def conv_network(params, x):
    image = jax.lax.conv_general_dilated(
        x[None], params["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    pooled = jax.nn.relu(image).reshape(-1, params["mix"].shape[0])
    return params["last"] @ (pooled @ params["mix"]).reshape(-1)


def conv_by_hand(params, x):
    """Return the matrices of "conv" and "mix" (a dense layer at four positions) in their weights and biases."""
    kernel = params["conv"]
    patches = np.stack([x[i : i + 2, j : j + 2].ravel() for i in range(2) for j in range(2)])  # (positions, 4 c_in)
    h = patches @ kernel.reshape(-1, 3)
    pooled, slopes = np.maximum(h, 0), (h > 0).astype(float)
    back = params["last"].reshape(-1, 4, 2)  # output, position, unit
    mix = np.einsum("opu,pc->ocu", back, pooled).reshape(-1, 6)
    tap = np.einsum("opu,cu,pc->opc", back, params["mix"], slopes)
    conv = np.einsum("opc,pk->okc", tap, patches).reshape(len(tap), -1)
    return {"conv": (conv, tap.sum(1)), "mix": (mix, back.sum(1))}


@pytest.mark.parametrize("bias", [False, True])
def test_weights_that_are_used_at_several_positions(bias, x64):
    rng = np.random.default_rng(3)
    shapes = {"conv": (2, 2, 2, 3), "mix": (3, 2), "last": (5, 8)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    xs = rng.normal(size=(3, 3, 3, 2))
    found = sx.landscape.layer_spectra(conv_network, params, xs, bias=bias)
    by_hand = [conv_by_hand(params, x) for x in xs]
    for name in ("conv", "mix"):
        Q = [np.hstack(each[name]) if bias else each[name][0] for each in by_hand]
        assert_allclose(found[name].values, np.linalg.svd(np.stack(Q), compute_uv=False), atol=1e-12)
        together = np.concatenate(Q)
        gram = gram_of_batch(conv_network, params, name, xs, bias=bias)
        assert_allclose(gram, together @ together.T, atol=1e-12)
        root = of_batch(conv_network, params, name, xs, bias=bias, gram=True)
        s = np.linalg.svd(together, compute_uv=False)
        assert root.values.shape == s.shape
        assert_allclose(root.values[s > 1e-6], s[s > 1e-6], rtol=1e-9)


# (widths, samples): fewer samples than inputs; fewer rows than units; both; neither
SHAPES = {"G<d": ((9, 3, 4), 5), "Gm<n": ((2, 12, 3), 3), "both": ((9, 12, 2), 4), "neither": ((3, 4, 3), 8)}


@pytest.mark.parametrize(("case", "bias"), [*((case, False) for case in SHAPES), ("both", True)])
def test_a_batch_in_the_basis_of_its_own_inputs(case, bias, x64):
    widths, samples = SHAPES[case]
    params, xs = make(widths, samples, seed=1)
    Q = q_by_hand(params, xs, 0, bias=bias)
    s = np.linalg.svd(Q, compute_uv=False)
    found = of_batch(relu_network, params, "layer_0", xs, bias=bias)
    assert found.values.shape == s.shape
    assert_allclose(found.values, s, atol=1e-13 * s[0])
    assert int(found.rank) == np.linalg.matrix_rank(Q)
    assert found.num_samples == samples
    inputs = widths[0] + bias
    columns = min(samples, inputs) * min(samples * widths[-1], widths[1])
    size = 8 * Q.shape[0] * columns  # that of the reduced matrix
    struct = jax.eval_shape(lambda: of_batch(relu_network, params, "layer_0", xs, bias=bias, max_bytes=size))
    assert struct.values.shape == s.shape
    with pytest.raises(ValueError, match="gram=True"):
        of_batch(relu_network, params, "layer_0", xs, bias=bias, max_bytes=size - 1)


def test_nothing_is_squared(x64):
    """Values far below sqrt(eps) times the largest come out of the reduced matrix, and not of the Gram form."""
    rng = np.random.default_rng(5)
    scales = np.array([1.0, 1e-3, 1e-6, 1e-11])
    basis = np.linalg.qr(rng.normal(size=(20, 4)))[0]
    xs = (basis * scales).T  # orthogonal inputs: the values are the union of |z_g| s_i(M D)
    params = {"w": rng.normal(size=(6, 20)), "out": rng.normal(size=(2, 6))}
    f = lambda params, x: params["out"] @ (params["w"] @ x)  # noqa: E731
    s = np.sort(np.outer(scales, np.linalg.svd(params["out"], compute_uv=False)).ravel())[::-1]
    found = of_batch(f, params, "w", xs)
    assert_allclose(found.values, s, rtol=1e-3)
    assert int(found.rank) == 8
    squared = of_batch(f, params, "w", xs, gram=True)
    assert_allclose(squared.values[:4], s[:4], rtol=1e-6)
    assert int(squared.rank) == np.sum(s > np.sqrt(20 * np.finfo(float).eps) * s[0]) < 8
    assert_allclose(squared.floor, np.sqrt(20 * np.finfo(float).eps) * s[0], rtol=1e-9)
    assert_allclose(squared.condition_number, s[0] / s[int(squared.rank) - 1], rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(4))
def test_the_gram_form_and_its_floor(dtype, seed, x64):
    """Repeated samples make Q rank deficient: what should be zero stays below the floor, what is not stays above."""
    params, xs = make((16, 12, 4), 6, seed=seed, dtype=dtype)
    xs = np.concatenate([xs, xs[:3]])
    Q = q_by_hand(params, xs, 0)
    s = np.linalg.svd(Q, compute_uv=False)
    eps = np.finfo(dtype).eps
    gram = gram_of_batch(relu_network, params, "layer_0", xs)
    assert gram.dtype == dtype
    assert_allclose(gram, Q @ Q.T, atol=36 * eps * s[0] ** 2)
    rank = np.linalg.matrix_rank(Q)
    assert rank < len(s)
    floor = np.sqrt(36 * eps) * s[0]
    found = of_batch(relu_network, params, "layer_0", xs, gram=True)
    assert found.gram
    assert_allclose(found.floor, floor, rtol=1e-5)
    assert np.all(np.asarray(found.values[rank:]) <= floor)
    assert int(found.rank) == np.sum(s > floor)
    assert_allclose(found.values[: int(found.rank)] ** 2, s[s > floor] ** 2, atol=36 * eps * s[0] ** 2)
    plain = of_batch(relu_network, params, "layer_0", xs)
    assert not plain.gram
    assert int(plain.rank) == rank


def test_the_sum_over_the_layers_is_the_tangent_kernel(x64):
    params, xs = make((5, 6, 6, 3), 4)
    jacobian = np.concatenate(
        [np.hstack([q_by_hand(params, x[None], layer, bias=True) for layer in range(3)]) for x in xs]
    )
    grams = [gram_of_batch(relu_network, params, f"layer_{i}", xs, bias=True) for i in range(3)]
    assert_allclose(sum(grams), jacobian @ jacobian.T, atol=1e-12)
    jax_jacobian = jax.vmap(jax.jacrev(relu_network), in_axes=(None, 0))(jax.tree.map(jnp.asarray, params), xs)
    flat = np.hstack([np.asarray(leaf).reshape(12, -1) for leaf in jax.tree.leaves(jax_jacobian)])
    assert_allclose(sum(grams), flat @ flat.T, atol=1e-12)


def test_squares_of_small_and_large_numbers():
    """In float32 the squares of 1e-25 vanish and those of 1e25 overflow."""
    f = lambda params, x: params["w"] @ x  # noqa: E731
    x = jnp.array([[3.0, 4.0], [-4.0, 3.0]])
    for scale in (1e-25, 1e25):
        found = of_batch(f, {"w": jnp.ones((1, 2))}, "w", scale * x, gram=True)
        assert_allclose(found.values, 5 * scale, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_memory_does_not_grow_with_the_layers(chunk_size):
    """Temporaries are a few Jacobians for each sample of a chunk, however many layers there are.

    Skips of one half are what XLA would fuse into sums that keep every layer's matrix.
    """
    width, samples = 64, 8

    def network(params, x):
        for own in params:
            x = jax.nn.relu(own @ x) + 0.5 * x
        return x

    def temporaries(depth):
        params = jax.random.normal(jax.random.key(0), (depth, width, width)) * width**-0.5
        program = jax.jit(
            lambda params, xs: sx.landscape.layer_spectra(network, params, xs, chunk_size=chunk_size)
        ).lower(list(params), jnp.ones((samples, width)))
        return program.compile().memory_analysis().temp_size_in_bytes / (4 * width**2 * chunk_size)

    few, many = temporaries(3), temporaries(9)
    assert many <= 8
    assert many <= few + 0.5


def test_the_long_matrix_of_a_batch_is_never_made():
    f = lambda params, x: params["out"] @ jax.nn.relu(params["w"] @ x)  # noqa: E731
    params, xs = {"w": jnp.ones((30, 200)), "out": jnp.ones((2, 30))}, jnp.ones((4, 200))
    program = of_batch.lower(f, params, "w", xs).compile()  # Q has 8 x 6000 entries, the reduced one 8 x 32
    assert program.memory_analysis().temp_size_in_bytes < 4 * 8 * 6000 / 2


def test_samples_with_nothing_in_them():
    params, xs = make(dtype=np.float32)
    xs[1], xs[3] = 0, np.nan
    params["layer_0"]["bias"][:] = 0
    found = sx.landscape.layer_spectra(relu_network, params, xs, chunk_size=7)["layer_0"]
    assert_allclose(found.values[1], 0)
    assert int(found.rank[1]) == 0
    assert np.isnan(found.condition_number[1])
    assert np.all(np.isnan(found.values[3]))
    assert int(found.rank[3]) == int(found.flat_directions[3]) == -1
    assert np.all(np.isfinite(np.asarray(found.values)[[0, 2, 4, 5, 6]]))
    for gram in (False, True):
        assert int(of_batch(relu_network, params, "layer_0", xs, gram=gram).rank) == -1


def test_derivatives(x64):
    """Of values, also where samples repeat each other, so that the bases that Q is reduced to have no derivative."""
    params, xs = make((9, 12, 2), 3)
    xs = np.concatenate([xs, xs[:1]])
    kernel = params["layer_1"]["kernel"]

    def changed(kernel):
        return params | {"layer_1": params["layer_1"] | {"kernel": kernel}}

    def together(kernel):
        found = sx.landscape.layer_spectrum(relu_network, changed(kernel), "layer_0", xs, batched=True)
        return found.values[0] + found.values[3]

    def apart(kernel):
        return jnp.sum(sx.landscape.layer_spectra(relu_network, changed(kernel), xs)["layer_0"].values[:, 0])

    def by_hand(kernel, *, batch):
        if batch:
            s = np.linalg.svd(q_by_hand(changed(kernel), xs, 0), compute_uv=False)
            return s[0] + s[3]
        return sum(np.linalg.norm(q_by_hand(changed(kernel), x[None], 0), 2) for x in xs)

    step = np.random.default_rng(0).normal(size=kernel.shape)
    for function, batch in ((together, True), (apart, False)):
        slope = np.sum(np.asarray(jax.jit(jax.grad(function))(jnp.asarray(kernel))) * step)
        expected = (by_hand(kernel + 1e-6 * step, batch=batch) - by_hand(kernel - 1e-6 * step, batch=batch)) / 2e-6
        assert_allclose(slope, expected, rtol=1e-6)
        _, tangent = jax.jit(lambda k, f=function: jax.jvp(f, (k,), (jnp.asarray(step),)))(jnp.asarray(kernel))
        assert_allclose(tangent, expected, rtol=1e-6)


def test_transforms_and_16_bits(x64):
    params, xs = make()
    plain = sx.landscape.layer_spectra(relu_network, params, xs)
    jitted = jax.jit(lambda p, x: sx.landscape.layer_spectra(relu_network, p, x, chunk_size=7))(params, xs)
    mapped = jax.vmap(lambda x: sx.landscape.layer_spectra(relu_network, params, x))(jnp.stack([xs, xs]))
    for name, spectrum in plain.items():
        assert_allclose(jitted[name].values, spectrum.values, atol=1e-13)
        assert_allclose(mapped[name].values[1], spectrum.values, atol=1e-13)
        assert mapped[name].rank.shape == (2, 7)
    small = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (params, xs))
    found = sx.landscape.layer_spectra(relu_network, *small)["layer_2"]  # linear in what comes before it
    z = [factors_by_hand(params, x)[2][0] for x in xs]
    assert_allclose(np.asarray(found.values[:, 0], float), np.linalg.norm(z, axis=1), rtol=0.05)


def test_bad_input():
    params, xs = make(dtype=np.float32)
    spectra = functools.partial(sx.landscape.layer_spectra, relu_network, params)
    with pytest.raises(ValueError, match="'layer_0', 'layer_1', 'layer_2'; got 'layer_3'"):
        spectra(xs, layers=["layer_3"])
    with pytest.raises(TypeError, match="sequence of names"):
        spectra(xs, layers="layer_0")
    with pytest.raises(ValueError, match="at least one sample"):
        spectra(xs[:0])
    with pytest.raises(ValueError, match="at least one sample"):
        spectra(jnp.ones(()))
    with pytest.raises(TypeError, match="floating-point"):
        spectra(jnp.ones((2, 5), int))
    with pytest.raises(ValueError, match="chunk_size"):
        spectra(xs, chunk_size=0)
    with pytest.raises(ValueError, match=r"'layer_0' needs a matrix of shape \(3, 6\).* max_bytes=71.*layers="):
        spectra(xs, max_bytes=71)
    with pytest.raises(ValueError, match="'layer_0' needs a matrix of shape"):
        sx.landscape.layer_gram(relu_network, params, "layer_0", xs, batched=True, max_bytes=10)
    with pytest.raises(ValueError, match="layer_0"):
        sx.landscape.layer_gram(relu_network, params, "layer_9", xs, batched=True)
    assert spectra(xs, layers=()) == {}


@pytest.mark.parametrize("place", ["weights", "sample"])
def test_a_network_that_is_lost_has_no_spectrum(place):
    """A unit that is NaN counts as switched off in derivatives: without care, Q would be zero and nothing amiss."""
    params = {"a": jnp.ones((4, 3)), "b": jnp.ones((2, 4))}
    x = jnp.ones(3)
    if place == "weights":
        params["a"] = params["a"].at[0, 0].set(jnp.nan)
    else:
        x = x.at[0].set(jnp.nan)

    def net(params, x):
        return params["b"] @ jax.nn.relu(params["a"] @ x)

    for layer in "ab":
        for gram in (False, True):
            spectrum = sx.landscape.layer_spectrum(net, params, layer, x, gram=gram)
            assert np.isnan(spectrum.values).all()
            assert int(spectrum.rank) == -1
        assert np.isnan(sx.landscape.layer_gram(net, params, layer, x)).all()
        several = sx.landscape.layer_spectra(net, params, jnp.stack([x, jnp.ones(3)]))[layer]
        assert np.isnan(several.values[0]).all()
        assert np.isfinite(several.values[1]).all() == (place == "sample")
        with pytest.raises(ValueError, match="output is not finite"):
            sx.landscape.loss_slice(net, params, layer, x, jnp.zeros(2))
