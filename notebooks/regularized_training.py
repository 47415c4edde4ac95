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
# # Training with spectral penalties: what they are good for, and what not
#
# **Claims**, of five seeds each; rivals had as many values to choose from.
#
# 1. A plain ConvNet of 33 convolutions without normalisation ends, after the same training steps, at a lower loss if
#    the penalty on the logarithm of the condition numbers acted on its initial weights first.
# 2. Penalties on the Jacobian make a small CNN more robust against attacks and noise than weight decay does, at equal
#    clean accuracy.
# 3. Of networks that are cut to a low rank and not trained on, those that were trained as factors with a penalty on
#    $|s|_1$ keep more of their accuracy than those that are decomposed after training. At half of the multiplications
#    nothing is lost.
#
# **What is not true.**
#
# 1. That the same penalty within the loss speeds up that training: it lowers the condition numbers and not the loss.
#    Nor is the first phase free: with its steps counted, nothing is won at this depth. The orthogonality penalty as a
#    first phase does as well with no more steps; within the loss it stops ReLU networks from training, since it takes
#    He's factor away. With 65 convolutions many trainings fail, with the first phase or without.
# 2. That penalties protect best: batches with Gaussian noise do better against all attacks but the weakest, and a
#    penalty beside the noise adds nothing. Spectral norms of the layers do about what weight decay does.
# 3. That low rank is the best way to save multiplications: at an eighth of them or less a narrower dense network is
#    better, and at a quarter factors of a small rank from the beginning are no worse than what was pruned to it.
#    Hoyer's penalty is no help where the network is not trained on.
#
# **How it was tuned.** Each arm with a value to choose had the same number of them, and the rules are below. After
# first results a learning rate of 3e-4 was left out of the first part, since it was slower for all arms, the arm with
# noise and a penalty was added to the second, and both grids of the third were widened; the deeper network has what was
# chosen for the other. Nothing else was changed after it was seen.
#
# **Formulas.** The penalties are $\mathrm{mean}_i \, \log (s_i / s_{n+1-i})$ over eight pairs of singular values of
# each convolution, zero-padded as it is; $\frac12 |J|_F^2$ and $\frac12 s_1(J)^2$ for the Jacobian $J$ of the logits in
# the pixels; and $|s|_1 / |s|_2 - 1$ or $|s|_1$ for a kernel $U \mathrm{diag}(s) V$ of rank r, with $(|U^T U - I|^2 +
# |V V^T - I|^2) / r^2$ beside it.
#
# The figures and tables come from `benchmarks/results/regularized_training.json`, made in about half an hour on one
# core by `benchmarks/regularized_training.py`, whose folder `regularized/` says how everything was chosen. What is live
# here is small, or larger with `SPECTRAX_NOTEBOOK_SIZE=full`. In brackets and shaded: the range of five seeds, which
# holds the median of all with a probability of $1 - 2 / 2^5 = 0.94$. That five of five seeds agree has a probability of
# $2^{-5} = 0.03$ if there is nothing in it.

# %%
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

ROOT = next(folder for folder in (Path(), Path("..")) if (folder / "benchmarks").is_dir())
sys.path.insert(0, str(ROOT))
from benchmarks.regularized import depth, low_rank, pictures, robustness, seeds  # noqa: E402

SIZE = os.environ.get("SPECTRAX_NOTEBOOK_SIZE", "small")  # or "full"
few_layers, first_steps = {"small": (2, 100), "full": (depth.DEPTH, 200)}[SIZE]
live_epochs, live_seeds = {"small": (3, (0,)), "full": (20, seeds.SEEDS)}[SIZE]

results = json.loads((ROOT / "benchmarks" / "results" / "regularized_training.json").read_text())

# %% [markdown]
# ## 1. A deep plain ConvNet
#
# First the penalty itself, live: steps of Adam on the logarithm of the condition numbers alone, with no data at all.
# Each layer's matrix is made by NumPy from the definition of a zero-padded convolution.


# %%
def matrix(kernel, size):
    """Return the matrix of a zero-padded 3 x 3 convolution of stride 1 on size x size images."""
    ins, outs = kernel.shape[2:]
    dense = np.zeros((size, size, outs, size, size, ins))
    for a, b, i, j in np.ndindex(size, size, 3, 3):
        if 0 <= a + i - 1 < size and 0 <= b + j - 1 < size:
            dense[a, b, :, a + i - 1, b + j - 1] = kernel[i, j].T
    return dense.reshape(size * size * outs, -1)


def layer_values(params):
    """Return the singular values of the convolutions of stride 1, in float64."""
    names = sorted((name for name in params if name.startswith("conv_")), key=lambda name: int(name.split("_")[1]))
    kernels = [np.asarray(params[name]["kernel"], float) for name in names]
    return np.stack([np.linalg.svd(matrix(kernel, 4), compute_uv=False) for kernel in kernels])


run = depth.programs("leaky", "log-condition first", few_layers)
key = jax.random.key(0)
initial, state, _ = run.start(0.0, 1e-3, key)
params = initial
for _ in range(first_steps):
    params, state = run.first(params, state, key)
params = depth.rescaled(params, jax.tree.map(jnp.linalg.norm, initial))
before, after = layer_values(initial), layer_values(params)
np.testing.assert_allclose(np.sort(run.spectra(params)), np.sort(after), atol=1e-5 * after.max())
conditions = [np.median(values[:, 0] / values[:, -1]) for values in (before, after)]
print("median condition number of the layers: {:.0f} as drawn, {:.1f} after the penalty".format(*conditions))
assert conditions[1] < conditions[0] / 5

# %%
fig, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
for values, colour, label in ((before, "#D55E00", "as drawn"), (after, "#0072B2", "after the penalty")):
    for row in values:
        ax.semilogy(row, color=colour, linewidth=0.8)
    ax.plot([], [], color=colour, label=label)
ax.set(title="singular values of each layer", xlabel="index")
ax.legend()
plt.show()

# %% [markdown]
# Then the training, from the stored results: the median of five seeds and their range. Weights, steps of the first
# phase and learning rates were chosen by two other seeds, for the lowest training loss.

# %%
fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained", sharey=True)
for ax, activation in zip(axes, depth.ACTIVATIONS, strict=True):
    pictures.depth_panel(ax, results["depth"], activation)
axes[-1].legend(fontsize=7)
plt.show()
print(pictures.depth_table(results["depth"]))

# %% [markdown]
# Both first phases win for each activation, and the penalty within the loss for none. With the steps of the first phase
# counted, the penalty on condition numbers has won nothing.


# %%
def last_losses(activation, arm, *, steps=None):
    """Return the seeds' losses at the end, or after so many steps in all."""
    curves = [depth.losses_by_steps(row) for row in depth.reported(results["depth"], activation, arm)]
    return np.array([losses[-1 if steps is None else np.flatnonzero(ends <= steps)[-1]] for ends, losses in curves])


for activation in depth.ACTIVATIONS:
    without = last_losses(activation, "none")
    assert len(without) == len(seeds.SEEDS)
    for arm in ("log-condition first", "orthogonality first"):
        assert np.median(last_losses(activation, arm)) < 0.7 * np.median(without)
    assert np.median(last_losses(activation, "log-condition")) > 0.9 * np.median(without)
    total = depth.EPOCHS * results["depth"][0]["steps_per_epoch"]
    counted = last_losses(activation, "log-condition first", steps=total)
    print(f"{activation}: after {total} steps in all, {seeds.written(without)} without, {seeds.written(counted)} with")
    assert np.median(counted) > 0.9 * np.median(without)
    conditions = [row["condition_numbers"][-1] for arm in ("none", "log-condition")
                  for row in depth.reported(results["depth"], activation, arm)]  # fmt: skip
    assert max(conditions[5:]) < min(conditions[:5]) / 3

# %% [markdown]
# Twice as deep, with what was chosen before: a loss of 2.3 is that of guessing.

# %%
for arm in depth.DEEPER_ARMS:
    deeper = [row["train_loss"][-1] for row in depth.reported(results["depth"], "leaky", arm, depth.DEEPER)]
    print(f"{depth.DEEPER + 1} convolutions, {arm}:", *(f"{loss:.2f}" for loss in deeper))
    assert max(deeper) > 2.29  # some seed has learnt nothing, whatever the arm

# %% [markdown]
# ## 2. Robustness
#
# Live: some epochs with the penalty on the Jacobian and without. The norms are those of the Jacobian at test samples.

# %%
live = {
    arm: [robustness.train(arm=arm, value=value, seed=seed, epochs=live_epochs, attacked=100) for seed in live_seeds]
    for arm, value in (("none", 0.0), ("Jacobian, Frobenius", 0.003))
}
for arm, rows in live.items():
    print(f"{arm:20} clean {seeds.written(row['test_accuracy'] for row in rows)},",
          f"attacked {seeds.written(row['attacks']['linf']['0.05'] for row in rows)},",
          f"norm of the Jacobian {seeds.written((row['jacobian_norm'] for row in rows), '.1f')}")  # fmt: skip
for without, with_penalty in zip(*live.values(), strict=True):
    assert with_penalty["jacobian_norm"] < without["jacobian_norm"] / 1.5

# %%
fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained", sharey=True)
pictures.noise_panel(axes[0], results["robustness"])
for ax, norm in zip(axes[1:], robustness.RADII, strict=True):
    pictures.attack_panel(ax, results["robustness"], norm)
axes[-1].legend(fontsize=7)
plt.show()
print(pictures.robustness_table(results["robustness"]))

# %% [markdown]
# Each arm has the largest of its five values whose median clean accuracy on validation data is within one point of that
# without a penalty; the figures are those of test data. Attacks are projected gradient ascent on the margin, of 20
# steps from two random starts.


# %%
def protected(arm, norm, radius):
    return np.array([row["attacks"][norm][radius] for row in robustness.reported(results["robustness"], arm)])


clean = {arm: np.median([row["test_accuracy"] for row in robustness.reported(results["robustness"], arm)])
         for arm in robustness.GRID}  # fmt: skip
assert max(clean.values()) - min(clean.values()) < 0.015
for norm, radius in (("linf", "0.05"), ("linf", "0.1"), ("l2", "0.5"), ("l2", "1.0")):
    for arm in ("Jacobian, Frobenius", "Jacobian, spectral"):
        assert np.all(protected(arm, norm, radius) > protected("weight decay", norm, radius))
    best = np.maximum(protected("Jacobian, Frobenius", norm, radius), protected("Jacobian, spectral", norm, radius))
    assert np.median(protected("noise", norm, radius)) > np.median(best)
    assert np.median(protected("noise and Frobenius", norm, radius)) < np.median(protected("noise", norm, radius))
under_noise = {arm: np.median([row["noise"]["0.3"] for row in robustness.reported(results["robustness"], arm)])
               for arm in robustness.GRID}  # fmt: skip
assert under_noise["weight decay"] < under_noise["Jacobian, spectral"] < under_noise["Jacobian, Frobenius"]
assert under_noise["Jacobian, Frobenius"] < under_noise["noise"]
assert np.all(protected("noise", "linf", "0.1") > protected("Jacobian, Frobenius", "linf", "0.1"))

# %% [markdown]
# ## 3. Low rank
#
# Live: factors trained with Hoyer's penalty, and pruned.

# %%
live_options = {"epochs": live_epochs, "tune_epochs": 1, "energies": (0.9,)}
for seed in live_seeds:
    trained = low_rank.train(arm="SVD training, hoyer", value=0.3, seed=seed, **live_options)
    [cut] = trained["pruned"]
    print(f"ranks {cut['ranks']} of {low_rank.WIDTH}, {cut['flops'] / low_rank.flops(low_rank.WIDTH, None):.0%} of the",
          f"multiplications; test accuracy {trained['before']['test']:.3f} before the cut, {cut['before']['test']:.3f}",
          f"after it, {cut['after']['test']:.3f} after training on")  # fmt: skip
    first, second = cut["ranks"]
    taken = first * (196 + 128) + second * (128 + 128)
    assert cut["flops"] <= 2 * (taken + 128 * 10)
    assert max(cut["ranks"]) < low_rank.WIDTH / 2

# %% [markdown]
# From the stored results: for each arm what is best on validation data within each budget, and its test accuracy.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for ax, tuned in zip(axes, (False, True), strict=True):
    pictures.rank_panel(ax, results["low_rank"], tuned=tuned)
    ax.set(title="trained on after the cut" if tuned else "as cut", ylim=(0.5, 1))
axes[-1].legend(fontsize=7)
plt.show()
print("as cut\n" + pictures.low_rank_table(results["low_rank"], tuned=False))
print("trained on\n" + pictures.low_rank_table(results["low_rank"]))

# %% [markdown]
# "All" is the best of an arm whatever it costs.


# %%
def kept(arm, budget, *, tuned=True):
    return np.array(low_rank.best(results["low_rank"], arm, budget, tuned=tuned)["test"])


assert np.median(kept("SVD training, hoyer", 1 / 2)) >= np.median(kept("narrow", 1.0))  # half the cost, nothing lost
for budget in (1 / 2, 1 / 4, 1 / 8):
    assert np.median(kept("SVD training, l1", budget, tuned=False)) > np.median(kept("truncated", budget, tuned=False))
assert kept("SVD training, l1", 1 / 4, tuned=False).min() > kept("truncated", 1 / 4, tuned=False).max()
for arm in ("SVD training, hoyer", "SVD training, l1"):
    assert np.median(kept("narrow", 1 / 8)) > np.median(kept(arm, 1 / 8))
    assert kept("narrow", 1 / 16).min() > kept(arm, 1 / 16).max()
    assert np.median(kept("given rank", 1 / 4)) > np.median(kept(arm, 1 / 4))
