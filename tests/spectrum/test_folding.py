"""Batch normalisation folded into a kernel: the same map as both in a row, by NumPy, by Flax and by our own layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.signal import correlate

import spectrax as sx

EPSILON = 1e-3


def statistics(out, seed=0, **changes):
    rng = np.random.default_rng(seed)
    scale, bias, mean = rng.normal(size=(3, out))
    var = rng.uniform(0.1, 20, size=out)
    var[0] = 0  # a channel that is never active in training
    return {"scale": scale, "bias": bias, "mean": mean, "var": var, "epsilon": EPSILON, **changes}


def normalised(y, scale, bias, mean, var, epsilon):
    scale, bias = 1 if scale is None else scale, 0 if bias is None else bias
    return scale * (y - mean) / np.sqrt(var + epsilon) + bias


def convolved(x, kernel, groups):
    """A zero-padded cross-correlation of a sample (H, W, in), by SciPy."""
    *_, per_group, out = kernel.shape
    channels = []
    for o in range(out):
        first = o // (out // groups) * per_group
        planes = [correlate(x[..., first + i], kernel[..., i, o], "same", "direct") for i in range(per_group)]
        channels.append(sum(planes))
    return np.stack(channels, -1)


@pytest.mark.parametrize("groups", [1, 2, 4], ids=["plain", "grouped", "depthwise"])
@pytest.mark.parametrize("left_out", [(), ("scale",), ("bias",), ("scale", "bias")], ids=str)
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_folded_is_both_in_a_row(groups, left_out, with_bias, x64):
    rng = np.random.default_rng(1)
    kernel, x = rng.normal(size=(3, 3, 4 // groups, 8)), rng.normal(size=(5, 6, 4))
    own = rng.normal(size=8) if with_bias else None
    given = statistics(8, **dict.fromkeys(left_out))
    expected = normalised(convolved(x, kernel, groups) + (0 if own is None else own), **given)
    folded, bias = sx.fold_batch_norm(kernel, conv_bias=own, **given)
    found = sx.conv_operator(folded, (5, 6), padding="SAME", feature_group_count=groups) @ x + bias
    assert_allclose(found, expected, rtol=0, atol=64 * np.finfo(float).eps * np.abs(expected).max())


def test_folded_as_flax_and_our_own_layer_normalise(x64):
    rng = np.random.default_rng(2)
    kernel, x, given = rng.normal(size=(3, 3, 2, 5)), rng.normal(size=(6, 4, 2)), statistics(5)
    epsilon, variables = given["epsilon"], {
        "params": {name: given[name] for name in ("scale", "bias")},
        "batch_stats": {name: given[name] for name in ("mean", "var")},
    }  # fmt: skip
    y = sx.conv_operator(kernel, (6, 4), padding="SAME", strides=2) @ x
    folded, bias = sx.fold_batch_norm(kernel, **variables["params"], **variables["batch_stats"], epsilon=epsilon)
    found = sx.conv_operator(folded, (6, 4), padding="SAME", strides=2) @ x + bias
    flax = nn.BatchNorm(use_running_average=True, epsilon=epsilon).apply(variables, y)
    ours = sx.layers.batch_norm(epsilon=epsilon).apply(jax.tree.map(jnp.asarray, variables), y)
    for expected in (flax, ours):
        assert_allclose(found, expected, rtol=0, atol=64 * np.finfo(float).eps * np.abs(expected).max())


def test_a_dense_layer_folds_alike(x64):
    rng = np.random.default_rng(3)
    kernel, x, given = rng.normal(size=(4, 3)), rng.normal(size=4), statistics(3)
    folded, bias = sx.fold_batch_norm(kernel, **given)
    assert_allclose(x @ folded + bias, normalised(x @ kernel, **given), rtol=1e-13)


def test_gradients_of_the_norm_are_those_of_central_differences(x64):
    rng = np.random.default_rng(4)
    given = statistics(3)
    epsilon = given.pop("epsilon")
    # second derivatives in the variance grow as epsilon^-2.5
    arrays = {
        "kernel": rng.normal(size=(2, 2, 2, 3)),
        **given,
        "var": given["var"] + 1,
        "conv_bias": rng.normal(size=3),
    }

    def number(arrays):
        kernel, *others = arrays["kernel"], {name: a for name, a in arrays.items() if name != "kernel"}
        folded, bias = sx.fold_batch_norm(kernel, epsilon=epsilon, **others[0])
        return jnp.linalg.norm(folded.reshape(-1, 3), 2) + jnp.sum(jnp.sin(bias))

    gradient = jax.jit(jax.grad(number))(arrays)
    for name in arrays:
        direction = rng.normal(size=arrays[name].shape)
        ahead, behind = ({**arrays, name: arrays[name] + step * direction} for step in (1e-5, -1e-5))
        assert_allclose(
            jnp.sum(gradient[name] * direction), (number(ahead) - number(behind)) / 2e-5, rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "complex64"])
def test_the_dtype_is_kept_and_zero_variance_is_finite(dtype):
    rng = np.random.default_rng(5)
    given, kernel = statistics(4), jnp.asarray(rng.normal(size=(3, 2, 4)), dtype)
    made, bias = jax.jit(lambda kernel: sx.fold_batch_norm(kernel, **given))(kernel)
    assert made.dtype == bias.dtype == kernel.dtype
    assert np.all(np.isfinite(made))
    expected = np.asarray(kernel).astype(complex) * given["scale"] / np.sqrt(given["var"] + EPSILON)
    roundings = 0.51 if jnp.finfo(dtype).bits == 16 else 4  # one half, at the end: 16-bit kernels are folded in 32
    rtol = roundings * float(jnp.finfo(dtype).eps)
    assert_allclose(np.asarray(made).astype(complex), expected, rtol=rtol)


def test_what_does_not_fit_is_refused():
    given = statistics(3)
    with pytest.raises(ValueError, match=r"mean must have the shape \(3,\)"):
        sx.fold_batch_norm(np.ones((3, 2, 3)), **{**given, "mean": np.ones(2)})
    with pytest.raises(ValueError, match="scale must"):
        sx.fold_batch_norm(np.ones((3, 2, 3)), **{**given, "scale": np.ones(())})
    with pytest.raises(ValueError, match="conv_bias must"):
        sx.fold_batch_norm(np.ones((3, 2, 3)), **given, conv_bias=np.ones((1, 3)))
    with pytest.raises(ValueError, match="epsilon"):
        sx.fold_batch_norm(np.ones((3, 2, 3)), **{**given, "epsilon": -1.0})
    with pytest.raises(ValueError, match="axes"):
        sx.fold_batch_norm(np.ones(3), **given)
    with pytest.raises(TypeError, match="kernel"):
        sx.fold_batch_norm(np.ones((2, 3), int), **given)
