"""Blocks of singular vectors: which side of the truth they are on, and what happens beyond the dense limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.operators.linear_operator import LinearOperator
from spectrax.regularizers import blocks as module
from spectrax.regularizers import condition_number_penalty, spectral_norm_penalty
from spectrax.regularizers.blocks import Blocks, CircularBlock, renew, ritz
from spectrax.spectrum.methods import FACTORIZED_ENTRIES


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def matrix(operator):
    return np.asarray(operator.to_dense()).astype(np.float64)


@pytest.fixture
def tiny_limits(monkeypatch):
    """Nothing is small enough to be made dense."""
    monkeypatch.setattr(module, "can_be_dense", lambda shape: min(shape) <= 8 and math.prod(shape) <= 64)


# --- Rayleigh-Ritz on given blocks ---


def operators():
    conv = sx.conv_operator(normal(3, 3, 2, 3), (4, 4), padding="SAME")
    return {
        "tall": sx.aslinearoperator(normal(12, 7)),
        "wide": sx.aslinearoperator(normal(7, 12)),
        "complex": sx.aslinearoperator(jax.lax.complex(normal(7, 9), normal(7, 9, seed=1))),
        "convolution": conv,
        "wide convolution": sx.conv_operator(normal(3, 3, 3, 2), (4, 4), padding="SAME"),
    }


def random_blocks(operator, count, seed=0):
    """Orthonormal vectors of the shorter side, in its structure: nothing to do with the singular vectors."""
    tall = module.short_side(operator)
    struct = tall.in_struct
    size = tall.shape[1]
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((size, 2 * count))
    if jnp.issubdtype(struct.dtype, jnp.complexfloating):
        q = q + 1j * rng.standard_normal((size, 2 * count))
    rows = jnp.asarray(np.linalg.qr(q)[0].T, struct.dtype).reshape(2 * count, *struct.shape)
    return Blocks(rows[:count], rows[count:], jnp.ones(2, bool))


@pytest.mark.parametrize("name", list(operators()))
@pytest.mark.parametrize("count", [1, 3])
def test_ritz_values_are_those_of_the_map_on_the_block(x64, name, count):
    operator = operators()[name]
    blocks = random_blocks(operator, count)
    top, bottom = ritz(operator, blocks)
    dense = matrix(operator) if name != "complex" else np.asarray(operator.to_dense())
    tall = dense if dense.shape[0] >= dense.shape[1] else dense.conj().T
    true = np.linalg.svd(dense, compute_uv=False)
    for found, rows in ((top, blocks.top), (bottom, blocks.bottom)):
        basis = np.asarray(rows).reshape(count, -1).T
        assert_allclose(found.values, np.linalg.svd(tall @ basis, compute_uv=False), rtol=1e-10)
    for found, index in ((top, 0), (bottom, -1)):
        assert np.abs(true - found.values[index]).min() <= found.residual / np.sqrt(2) + 1e-12
    assert top.values[0] <= true[0] * (1 + 1e-12)
    assert bottom.values[-1] >= true[-1] * (1 - 1e-12)
    # the residual itself: |A^H u - s v| for the Ritz triplet
    for found, rows, index in ((top, blocks.top, 0), (bottom, blocks.bottom, -1)):
        basis = np.asarray(rows).reshape(count, -1).T
        u, s, v = np.linalg.svd(tall @ basis, full_matrices=False)
        u, v = u[:, index], basis @ v[index].conj()
        assert_allclose(found.residual, np.linalg.norm(tall.conj().T @ u - s[index] * v), rtol=1e-8)


def test_ritz_without_a_bottom(x64):
    operator = operators()["tall"]
    top, bottom = ritz(operator, random_blocks(operator, 2)._replace(bottom=None))
    assert top.values.shape == (2,)
    assert np.isnan(bottom.values).all()
    assert np.isnan(bottom.residual)


@pytest.mark.parametrize("name", ["tall", "wide"])
def test_the_derivative_of_ritz_values_of_a_fixed_block(x64, name):
    """At true singular vectors ds = u^H dA v, by central differences of NumPy's values."""
    dense, direction = np.asarray(operators()[name].to_dense()), np.random.default_rng(5).standard_normal((12, 7))
    direction = direction if name == "tall" else direction.T
    found = renew({"a": sx.aslinearoperator(jnp.asarray(dense))}, {"a": (2, 2)}, None, {})["a"]

    def values(a):
        top, bottom = ritz(sx.aslinearoperator(a), found)
        return jnp.concatenate([top.values, bottom.values])

    slopes = jax.jvp(values, (jnp.asarray(dense),), (jnp.asarray(direction),))[1]
    rows = jax.jacrev(values)(jnp.asarray(dense))
    ends = [np.linalg.svd(dense + h * direction, compute_uv=False)[[0, 1, -2, -1]] for h in (1e-6, -1e-6)]
    assert_allclose(slopes, (ends[0] - ends[1]) / 2e-6, rtol=1e-7)
    assert_allclose(jnp.sum(rows * direction, (1, 2)), slopes, rtol=1e-9)


# --- finding them ---


def test_maps_of_one_shorter_side_share_a_decomposition_and_get_their_own_blocks(x64):
    shapes = {"b": (9, 5), "a": (5, 5), "c": (5, 11), "other": (6, 6)}
    ops = {name: sx.aslinearoperator(normal(*shape, seed=i)) for i, (name, shape) in enumerate(shapes.items())}
    found = renew(ops, dict.fromkeys(ops, (2, 2)) | {"c": (1, 2)}, None, {})
    assert set(found) == set(ops)
    assert found["c"].top.shape == (1, 5)
    for name, operator in ops.items():
        u, _, v = np.linalg.svd(matrix(operator))
        side = v if operator.shape[0] >= operator.shape[1] else u.T
        for rows, wanted in ((found[name].top, side[:2]), (found[name].bottom, side[: 5 + (name == "other")][-2:])):
            rows = np.asarray(rows)
            overlap = np.abs(rows @ wanted[: len(rows)].T if len(rows) == 1 else rows @ wanted.T)
            assert_allclose(overlap, np.eye(len(rows)), atol=1e-8)
        assert found[name].converged.all()


def test_warm_starts_begin_at_the_old_block(x64, key, monkeypatch):
    """The old bottom block reaches the solver as its start; the first time there is none."""
    starts, original = [], module.svds

    def recorded(*args, v0=None, **options):
        if options.get("which") == "smallest":
            starts.append(v0)
        return original(*args, v0=v0, **options)

    monkeypatch.setattr(module, "svds", recorded)
    operator = {"a": sx.aslinearoperator(normal(140, 130))}
    first = renew(operator, {"a": (4, 4)}, key, {})
    assert starts == [None]
    second = renew(operator, {"a": (4, 4)}, key, first)
    assert starts[1].shape == (4, 130)
    # one hidden failure is to start from noise: the last rows must span the same space
    overlap = np.linalg.svd(np.asarray(first["a"].bottom) @ np.asarray(second["a"].bottom).T, compute_uv=False)
    assert_allclose(overlap, 1, atol=1e-3)
    assert second["a"].converged.all()


def test_which_maps_need_a_key():
    assert not module.needs_key(sx.aslinearoperator(jnp.zeros((500, 128))))
    assert module.needs_key(sx.aslinearoperator(jnp.zeros((129, 129))))
    assert not module.needs_key(sx.conv_operator(jnp.zeros((3, 3, 2, 2)), (8, 8), padding="SAME"))
    assert module.needs_key(sx.conv_operator(jnp.zeros((3, 3, 4, 4)), (7, 7), padding="SAME"))


def test_what_cannot_be_factorised_needs_a_key():
    assert module.needs_key(jax.eval_shape(lambda: sx.aslinearoperator(jnp.zeros((2, FACTORIZED_ENTRIES)))))


# --- beyond the dense limits ---

KERNEL = np.random.default_rng(3).standard_normal((3, 3, 3, 4)) / 5


def conv_maps(params):
    return {"conv": sx.conv_operator(params["kernel"], (6, 6), padding="SAME")}


def circular_truth(kernel, size=6):
    """The symbol by NumPy's FFT: the smallest singular value at each frequency, ascending."""
    padded = np.zeros((size, size, *kernel.shape[2:]))
    padded[:3, :3] = kernel
    symbols = np.fft.fft2(padded, axes=(0, 1)).reshape(size * size, *kernel.shape[2:])
    return np.sort(np.linalg.svd(symbols, compute_uv=False)[:, -1])


def test_beyond_the_limit_a_convolution_has_a_circular_estimate(x64, key, tiny_limits):
    penalty = condition_number_penalty(conv_maps, block_size=1)
    params = {"kernel": jnp.asarray(KERNEL)}
    assert penalty.kinds(params) == {"conv": "estimate"}
    state = jax.jit(penalty.init)(params, key)
    assert isinstance(state.blocks["conv"].bottom, CircularBlock)
    measured = state.measurements
    true = np.linalg.svd(matrix(conv_maps(params)["conv"]), compute_uv=False)
    circular = circular_truth(KERNEL)
    assert_allclose(measured.sigma_max["conv"], true[0], rtol=1e-5)
    assert measured.sigma_max["conv"] <= true[0] * (1 + 1e-12)
    assert_allclose(measured.sigma_min["conv"], circular[0], rtol=1e-10)
    assert abs(circular[0] - true[-1]) > 1e-3 * true[-1]  # it is another number than the true one
    assert np.isnan(measured.residual["conv"])
    assert not measured.converged["conv"]
    value, gradient = jax.jit(jax.value_and_grad(lambda p: penalty.apply(p, state)[0]))(params)
    assert_allclose(value, np.log(true[0]) - np.log(circular[0] + 2.2e-16 * true[0]), rtol=1e-6)
    direction, h = np.random.default_rng(4).standard_normal(KERNEL.shape), 1e-6

    def numpy_value(kernel):
        top = np.linalg.norm(matrix(conv_maps({"kernel": jnp.asarray(kernel)})["conv"]), 2)
        return np.log(top) - np.log(circular_truth(kernel)[0])

    expected = (numpy_value(KERNEL + h * direction) - numpy_value(KERNEL - h * direction)) / (2 * h)
    assert_allclose(np.vdot(gradient["kernel"], direction), expected, rtol=5e-3)


def test_the_circular_block_holds_the_lowest_frequencies_each_once(x64, key, tiny_limits):
    bottom = jax.jit(condition_number_penalty(conv_maps, block_size=4).init)(
        {"kernel": jnp.asarray(KERNEL)}, key
    ).blocks["conv"]
    values = np.sort(ritz(conv_maps({"kernel": jnp.asarray(KERNEL)})["conv"], bottom)[1].values)
    circular = circular_truth(KERNEL)
    distinct = circular[np.concatenate([[True], np.diff(circular) > 1e-9])]  # w and -w have one value
    assert_allclose(values, distinct[:4], rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_circular_estimate_in_few_bits(key, tiny_limits, dtype):
    penalty = condition_number_penalty(conv_maps, block_size=2)
    params = {"kernel": jnp.asarray(KERNEL, dtype)}
    state = jax.jit(penalty.init)(params, key)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: penalty.apply(p, state)[0]))(params)
    assert gradient["kernel"].dtype == dtype
    assert np.isfinite(np.asarray(gradient["kernel"], np.float32)).all()
    assert np.isfinite(value)
    exact = circular_truth(np.asarray(params["kernel"]).astype(np.float64))[0]
    assert_allclose(state.measurements.sigma_min["conv"], exact, rtol=1e-5)
    after = jax.eval_shape(penalty.apply, params, state)[1]
    assert jax.tree.map(lambda a: a.dtype, state) == jax.tree.map(lambda a: a.dtype, after)


def test_beyond_the_limit_another_map_has_upper_bounds(x64, key, tiny_limits):
    dense = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 60)))[0] @ np.diag(np.geomspace(10, 1e-3, 60))
    penalty = condition_number_penalty(block_size=2)
    params = {"kernel": jnp.asarray(dense)}
    assert penalty.kinds(params) == {"kernel": "lower"}
    state = jax.jit(penalty.init)(params, key)
    measured = state.measurements
    assert_allclose(measured.sigma_max["kernel"], 10, rtol=1e-5)
    low = float(measured.sigma_min["kernel"])
    assert 1e-3 * (1 - 1e-9) <= low <= 1.0
    true = np.linalg.svd(dense, compute_uv=False)
    assert np.abs(true - low).min() <= float(measured.residual["kernel"]) * low / np.sqrt(2) + 1e-10
    assert np.isfinite(jax.jit(jax.grad(lambda p: penalty.apply(p, state)[0]))(params)["kernel"]).all()


def test_a_bottom_that_was_not_reached_is_not_called_converged(x64, key, tiny_limits):
    dense = np.linalg.qr(np.random.default_rng(0).standard_normal((300, 300)))[0] @ np.diag(np.linspace(1, 1e-7, 300))
    state = jax.jit(condition_number_penalty(block_size=2).init)({"kernel": jnp.asarray(dense)}, key)
    assert not state.measurements.converged["kernel"]
    assert state.measurements.sigma_min["kernel"] >= 1e-7
    top_only = jax.jit(spectral_norm_penalty(block_size=1).init)(
        {"kernel": jnp.asarray(np.diag(np.arange(1.0, 301)))}, key
    )
    assert top_only.measurements.converged["kernel"]


@pytest.mark.parametrize("options", [{"feature_group_count": 3}, {"input_dilation": 2}])
def test_convolutions_without_one_symbol_are_not_estimated(tiny_limits, options):
    channels = 1 if "feature_group_count" in options else 3
    operator = sx.conv_operator(jnp.ones((3, 3, channels, 3)), (6, 6), padding="SAME", **options)
    assert module.bottom_kind(operator) == "upper"
    plain = sx.conv_operator(jnp.ones((3, 3, 3, 3)), (6, 6), padding="SAME")
    assert module.bottom_kind(plain) == "estimate"


def test_within_the_limit_a_convolution_is_not_estimated():
    assert module.bottom_kind(sx.conv_operator(jnp.ones((3, 3, 3, 3)), (6, 6), padding="SAME")) == "upper"


@pytest.mark.parametrize("strides", [1, 2])
def test_the_circular_estimate_of_a_strided_convolution(x64, key, tiny_limits, strides):
    """Against the dense circular convolution, whose smallest singular value the symbol gives."""
    kernel = jnp.asarray(KERNEL)

    def maps(params):
        return {"conv": sx.conv_operator(params, (6, 6), padding="SAME", strides=strides)}

    measured = jax.jit(condition_number_penalty(maps, block_size=1).init)(kernel, key).measurements
    circular = matrix(sx.conv_operator(kernel, (6, 6), padding="CIRCULAR", strides=strides))
    assert_allclose(measured.sigma_min["conv"], np.linalg.svd(circular, compute_uv=False)[-1], rtol=1e-8)


def test_short_side_has_at_least_as_many_rows_as_columns():
    for shape in ((3, 5), (5, 3), (4, 4)):
        operator = module.short_side(sx.aslinearoperator(jnp.ones(shape)))
        assert isinstance(operator, LinearOperator)
        assert operator.shape == (max(shape), min(shape))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 2)])
def test_the_circular_estimate_where_the_symbol_goes_through_zero(tiny_limits, shape):
    """Between two renewals: the value is never below the symbol's, and its slope points back up on the other side."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, *shape)) * 1e-2
    kernel[0] += 3 * np.eye(*shape)
    kernel[0, 0, 0], kernel[1, 0, 0] = 1.0, 0.95  # the symbol at pi: 0.05

    def operator(second):
        return sx.conv_operator(jnp.asarray(kernel).at[1, 0, 0].set(second), (40,), padding="SAME")

    blocks = renew({"conv": operator(0.95)}, {"conv": (1, 2)}, jax.random.key(0), {})["conv"]
    value = jax.jit(lambda second: ritz(operator(second), blocks)[1].values[-1])
    for second, sign in ((0.9, -1), (0.95, -1), (1.05, 1), (1.2, 1)):
        frequencies = np.linspace(0, 2 * np.pi, 40, endpoint=False)[:, None]
        symbol = sx.conv_symbol(operator(second).kernel, frequencies)
        truth = np.linalg.svd(np.asarray(symbol), compute_uv=False).min()
        assert float(value(second)) >= truth - 1e-6
        assert_allclose(value(second), truth, rtol=0.2, atol=1e-3)
        assert_allclose(jax.grad(value)(second), sign, atol=0.1)
        assert_allclose(jax.grad(value)(second), (value(second + 1e-3) - value(second - 1e-3)) / 2e-3, atol=1e-2)
