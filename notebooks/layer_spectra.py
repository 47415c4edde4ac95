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
# # What a skip connection does to the singular values of one layer
#
# **Claim.** A layer with a skip connection (ResNet, DenseNet) has a small condition number, which does not grow with
# its width as long as the weights are not too large. Without the skip (ConvNet, MLP) it grows in proportion to the
# width, and with ReLU half of the directions are lost altogether.
#
# **Formula.** Near an input, a layer $z \mapsto \phi(W z) + \rho z$ is the linear map
#
# $$J = D W + \rho I, \qquad D = \mathrm{diag}(\phi'(Wz)),$$
#
# and that of a DenseNet, $z \mapsto [\rho z; \phi(W z)]$, is $J = [\rho I; D W]$. The entries of $W$ are independent
# with variance $c^2 / n$. The slopes in $D$ are 1 on active units and $\eta$ on the others: $\eta = -1$ is the absolute
# value, $0.1$ a leaky ReLU, $0$ the ReLU.
#
# The theory is that of Riedi, Balestriero and Baraniuk (doi:10.1007/s00365-022-09601-5). Figures called "expected"
# come from a separate computation in NumPy with random draws of its own, and so with an error of its own.

# %%
import math
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import linregress, quantile_test

import spectrax as sx
from spectrax.theory import random_matrices

jax.config.update("jax_enable_x64", True)

SIZE = os.environ.get("SPECTRAX_NOTEBOOK_SIZE", "small")  # or "full"
n, num_layers = {"small": (200, 2), "full": (1000, 4)}[SIZE]  # first part
widths, draws = {"small": ((16, 32, 64, 128), 21), "full": ((16, 32, 64, 128, 256, 512), 41)}[SIZE]  # second part

activations = {"abs": -1.0, "leaky 0.1": 0.1, "leaky 0.01": 0.01, "ReLU": 0.0}
half_active = {name: ([eta, 1.0], [0.5, 0.5]) for name, eta in activations.items()}  # slopes and their shares

# %% [markdown]
# ## The ends of the spectrum of a wide layer
#
# As the width grows, the largest and the smallest singular value of $DW + I$ go to limits that are known exactly.
# Without a skip the smallest one goes to zero.


# %%
def sample_layers(c, rho, slopes):
    layers = [
        random_matrices.sample_skip_layer(key, n=n, c=c, rho=rho, slopes=slopes)
        for key in jax.random.split(jax.random.key(0), num_layers)
    ]
    return jnp.stack(layers)


@jax.jit
def spectra(layers):
    return jax.lax.map(lambda layer: sx.singular_values(layer, method=sx.Dense()), layers)


shown = ("abs", "leaky 0.1", "ReLU")
scales = (0.25, 0.5, 1 / math.sqrt(3), 0.8, 1.0, math.sqrt(2))
values = {(name, c): spectra(sample_layers(c, 1.0, half_active[name])) for name in shown for c in scales}
plain = {name: spectra(sample_layers(0.5, 0.0, half_active[name])) for name in shown}

# %% [markdown]
# The independent check: NumPy's own decomposition of the same matrices.

# %%
by_numpy = np.linalg.svd(np.asarray(sample_layers(0.5, 1.0, half_active["ReLU"])), compute_uv=False)
np.testing.assert_allclose(values["ReLU", 0.5], by_numpy, atol=100 * n * np.finfo(float).eps)

# %% [markdown]
# Below are the means over the draws beside their limits, the limit of the condition number, and a bound on it, which
# holds in the limit for slopes that are drawn apart from the weights.
#
# **Tolerance.** Four standard errors of the mean, and $2 n^{-2/3}$ for the finite width: on this scale the end of the
# spectrum of a random matrix lies off its limit (Tracy and Widom). Where the smallest value goes to zero, it does so
# like $n^{-1/2}$ or faster, and $2 n^{-1/2}$ stands instead.

# %%
expected = {  # limits of s_max and s_min for each scale, rounded
    "abs": ((1.368, 0.664), (1.760, 0.369), (1.886, 0.289), (2.256, 0.096), (2.598, 0), (3.330, 0)),
    "leaky 0.1": ((1.298, 0.729), (1.619, 0.491), (1.722, 0.424), (2.027, 0.255), (2.310, 0.135), (2.921, 0)),
    "ReLU": ((1.298, 0.730), (1.618, 0.492), (1.720, 0.425), (2.025, 0.257), (2.309, 0.136), (2.919, 0)),
}
print(f"n = {n:4}                s_max         s_min              kappa")
print("                     mean  limit   mean  limit     limit   bound")
for name in shown:
    for c, rounded in zip(scales, expected[name], strict=True):
        limits = random_matrices.skip_layer_limits(c, slopes=half_active[name])
        bound = random_matrices.skip_layer_bounds(c, slopes=half_active[name]).condition_number
        ends = np.asarray(values[name, c])[:, [0, -1]]
        mean, error = ends.mean(axis=0), ends.std(axis=0, ddof=1) / math.sqrt(num_layers)
        print(f"{name:9}  c = {c:.3f}  {mean[0]:.3f}  {limits.s_max:.3f}  {mean[1]:.3f}  {limits.s_min:.3f}"
              f"  {limits.condition_number:8.2f}{bound:8.2f}")  # fmt: skip
        shift = np.array([2 * n ** (-2 / 3), 2 * n ** (-2 / 3 if limits.s_min > 0 else -1 / 2)])
        assert np.all(np.abs(mean - limits) <= 4 * error + shift)
        assert np.allclose(limits, rounded, atol=1.1e-3)
        assert limits.condition_number <= bound

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
for ax, name in zip(axes, ("abs", "ReLU"), strict=True):
    bins = np.linspace(0, 2, 50)
    ax.hist(np.ravel(plain[name]), bins, density=True, alpha=0.6, label="without a skip, $DW$")
    ax.hist(np.ravel(values[name, 0.5]), bins, density=True, alpha=0.6, label="with a skip, $DW + I$")
    for limit in random_matrices.skip_layer_limits(0.5, slopes=half_active[name]):
        ax.axvline(limit, color="black", linestyle="--", linewidth=1)
    ax.set(xlabel="singular value", title=f"{name}, c = 0.5, n = {n}; dashed: limits with a skip", ylim=(0, 3))
axes[0].set_ylabel("density")
axes[0].legend()
axes[1].text(0.07, 2.8, "half of the values without a skip are 0", fontsize=9)
plt.show()

# %% [markdown]
# ## The condition number against the width
#
# From here on the slopes are those of a layer at an input $x$, so that $D$ depends on $W$. For ReLU without a skip the
# condition number is that of the values that are not zero, $\kappa_+$. It means nothing without the rank beside it.


# %%
def layer_jacobian(weight, x, eta, rho):
    slopes = jnp.where(weight @ x >= 0, 1.0, eta)
    return slopes[:, None] * weight + rho * jnp.eye(x.size)


@jax.jit(static_argnums=0)
def layer_values(n, c, eta, rho):
    """Return the singular values of random layers, the same weights and inputs for all eta and rho."""

    def one(key):
        weight_key, input_key = jax.random.split(key)
        weight = c / math.sqrt(n) * jax.random.normal(weight_key, (n, n))
        x = jax.random.normal(input_key, (n,))
        return sx.singular_values(layer_jacobian(weight, x, eta, rho), method=sx.Dense())

    return jax.lax.map(one, jax.random.split(jax.random.key(n), draws))


def condition_and_rank(s):
    rank = np.sum(s > s.shape[1] * np.finfo(float).eps * s[:, :1], axis=1)
    return s[:, 0] / s[np.arange(len(s)), rank - 1], rank


# %% [markdown]
# That this matrix is the layer's Jacobian is what `sx.local_linear` says of the layer itself. A DenseNet layer's
# singular values follow from those without the skip, exactly: $s_i = \sqrt{\rho^2 + s_i(DW)^2}$.

# %%
body = sx.layers.chain(sx.layers.dense(16, use_bias=False), sx.layers.activation("leaky_relu", negative_slope=0.1))
inner = body.init(jax.random.key(2), (16,))["params"]
weight, x = inner["dense_0"]["kernel"].T, jax.random.normal(jax.random.key(1), (16,))
variables = {"params": {"body": inner}}

resnet = sx.local_linear(sx.layers.skip(body, rho=0.5), variables, x).A.to_dense()
np.testing.assert_allclose(resnet, layer_jacobian(weight, x, 0.1, 0.5), atol=1e-13)
densenet = sx.local_linear(sx.layers.concatenating_skip(body, rho=0.5), variables, x).A.to_dense()
convnet_values = np.linalg.svd(layer_jacobian(weight, x, 0.1, 0.0), compute_uv=False)
np.testing.assert_allclose(sx.singular_values(densenet), np.hypot(0.5, convnet_values), rtol=1e-12)

# %%
default, critical = 1 / math.sqrt(3), 1.0  # PyTorch's default for a linear layer, and LeCun's or Xavier's
kappa, rank = {}, {}
for width in widths:
    for name, eta in activations.items():
        convnet = np.asarray(layer_values(width, 1.0, eta, 0.0))
        for c in (default, critical):
            resnet = np.asarray(layer_values(width, c, eta, 1.0))
            for kind, s in (("ConvNet", convnet), ("ResNet", resnet), ("DenseNet", np.hypot(1, c * convnet))):
                kappa[kind, name, c, width], rank[kind, name, c, width] = condition_and_rank(s)

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for ax, c in zip(axes, (default, critical), strict=True):
    for color, name in enumerate(activations):
        for kind, style in (("ConvNet", "o-"), ("ResNet", "s--"), ("DenseNet", "^:")):
            medians = [np.median(kappa[kind, name, c, width]) for width in widths]
            label = f"{kind}, {name}" + (" (rank n / 2)" if (kind, name) == ("ConvNet", "ReLU") else "")
            ax.loglog(widths, medians, style, color=f"C{color}", label=label, markersize=4)
    ax.set(xlabel="width n", title=f"c = {c:.3f}", xticks=widths, xticklabels=widths)
    ax.minorticks_off()
axes[0].set_ylabel(r"median of $\kappa_+$")
axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# **Tolerance.** Whatever the law of N draws, its median lies between two of them, which the binomial law chooses, with
# a probability of 0.9999 (`scipy.stats.quantile_test`).


# %%
def interval(numbers):
    return quantile_test(numbers, p=0.5).confidence_interval(0.9999)


width = widths[-1]
print(f"median of kappa+ (rank), n = {width}     c = {default:.3f}                       c = {critical:.3f}")
for kind in ("ConvNet", "ResNet", "DenseNet"):
    for name in activations:
        print(f"{kind:9}{name:12}", end="")
        for c in (default, critical):
            low, high = interval(kappa[kind, name, c, width])
            middle, dimension = np.median(kappa[kind, name, c, width]), np.median(rank[kind, name, c, width])
            print(f"{middle:11.2f} in [{low:.4g}, {high:.4g}] ({dimension:.0f})".ljust(44), end="")
        print()

# %% [markdown]
# **Without a skip** the condition number with the absolute value is that of a square Gaussian matrix, whose median is
# 3.7 times the width by Edelman's law. A leaky ReLU is worse. ReLU has a small $\kappa_+$, near
# $(1 + \sqrt{1/2}) / (1 - \sqrt{1/2}) = 5.83$, on half of the directions; the others are lost.

# %%
edelman = next(x for x in np.arange(3, 4, 1e-3) if random_matrices.gaussian_condition_number_cdf(x) >= 0.5)
low, high = interval(kappa["ConvNet", "abs", default, width])
assert low <= edelman * width <= high
assert interval(kappa["ConvNet", "leaky 0.1", default, width])[0] > edelman * width

dead = rank["ConvNet", "ReLU", default, width]
assert abs(np.mean(dead) - width / 2) <= 4 * math.sqrt(width / 4 / draws)  # standard error of a binomial mean


def near(numbers, s_max, s_min):
    """Whether the median may be s_max / s_min, both ends being off by 2 n^(-2/3)."""
    low, high = interval(numbers)
    shift = 2 * width ** (-2 / 3) * (1 / s_min + 1 / s_max) * s_max / s_min
    return low - shift <= s_max / s_min <= high + shift


assert near(kappa["ConvNet", "ReLU", default, width], 1 + math.sqrt(0.5), 1 - math.sqrt(0.5))

# %% [markdown]
# **With a skip and c = 0.577** the condition number is at its limit, a small number, for every activation, and no
# direction is lost. (That the slopes depend on the weights doesn't matter in one layer.) **A DenseNet layer** is never
# worse than the same layer without a skip, and loses no direction.

# %%
for name in activations:
    assert near(
        kappa["ResNet", name, default, width], *random_matrices.skip_layer_limits(default, slopes=half_active[name])
    )
    for kind in ("ResNet", "DenseNet"):
        assert np.all(rank[kind, name, default, width] == width)
        if name != "ReLU":
            gain = kappa["ConvNet", name, default, width] / kappa[kind, name, default, width]  # of the same weights
            assert interval(gain)[0] > 10
            assert kind == "ResNet" or np.all(gain >= 1)

# %% [markdown]
# **Where the claim ends.**
#
# - With c = 1 and the absolute value the condition number grows with the width in spite of the skip, like $n^{0.6}$
#   (expected) instead of $n$: the smallest singular value is bounded away from zero only below c = 1, for ReLU below
#   $\sqrt 2$. Asserted within four standard errors of a line fitted to the logarithms.
# - With c = 1 and ReLU the skip makes $\kappa_+$ larger, not smaller. What it buys is the rank.
# - An orthogonal layer, whose condition number is 1, only loses by a skip: see the notebook on paths.

# %%
assert random_matrices.skip_layer_limits(critical, slopes="abs").condition_number == math.inf
for kind, exponent in (("ResNet", 0.6), ("ConvNet", 1.0)):
    logs = [np.log(kappa[kind, "abs", critical, width]) for width in widths]
    line = linregress(np.repeat(np.log(widths), draws), np.ravel(logs))
    assert line.slope > 3 * line.stderr
    assert abs(line.slope - exponent) <= 4 * line.stderr
assert interval(kappa["ResNet", "ReLU", critical, width])[0] > interval(kappa["ConvNet", "ReLU", critical, width])[1]
assert np.median(rank["ConvNet", "ReLU", critical, width]) < 0.6 * width

# %% [markdown]
# The expected medians at full size. Their own error is taken to be as large as that of the medians here.

# %%
if SIZE == "full":
    expected = {
        ("ConvNet", "abs", default): 2103, ("ResNet", "abs", default): 6.31,
        ("ConvNet", "leaky 0.1", default): 14406, ("ResNet", "leaky 0.1", default): 3.87,
        ("ConvNet", "leaky 0.01", default): 108661, ("ResNet", "leaky 0.01", default): 3.95,
        ("ConvNet", "ReLU", default): 5.60, ("ResNet", "ReLU", default): 3.94,
        ("ConvNet", "abs", critical): 2140, ("ResNet", "abs", critical): 603,
        ("ConvNet", "ReLU", critical): 5.63, ("ResNet", "ReLU", critical): 15.6,
    }  # fmt: skip
    for case, number in expected.items():
        low, high = interval(kappa[*case, width])
        middle = np.median(kappa[*case, width])
        print(*case, "expected", number, "found", middle)
        assert low**2 / middle <= number <= high**2 / middle
