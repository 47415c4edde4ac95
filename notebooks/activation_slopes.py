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
# # What the activation's slopes do to singular values, and how a skip reverses their order
#
# **Claims.** The activation function shapes the singular values of every architecture.
#
# 1. A leaky ReLU multiplies the condition number of its own layer by up to $1 / \eta$, with skips or without.
# 2. Without skips the order of the activations is: absolute value, leaky ReLU, ReLU (which loses directions). With
#    skips it is the reverse.
# 3. A skip makes singular values more stable when units change their slope, for leaky ReLU and ReLU. For the absolute
#    value it makes them less stable, since there they did not change at all.
#
# **Formula.** In one layer's weights the loss is a quadratic, shaped by the singular values of $M D$: $D$ holds the
# slopes of the layer's own activation, 1 on active units and $\eta$ on the others ($\eta = -1$ is the absolute value,
# $0$ the ReLU), and $M$ is the map behind it. Here that is one further layer, $M = D' W' + \rho I$. With slopes that
# are not zero,
#
# $$\kappa(M D) \le \kappa(M) \, \frac{\max |d_i|}{\min |d_i|}.$$
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
from scipy.stats import quantile_test

import spectrax as sx
from spectrax.theory import perturbation, random_matrices

jax.config.update("jax_enable_x64", True)

SIZE = os.environ.get("SPECTRAX_NOTEBOOK_SIZE", "small")  # or "full"
n, draws = {"small": (64, 21), "full": (256, 41)}[SIZE]  # the first two parts
width, num_weights, num_patterns = {"small": (48, 31, 16), "full": (128, 41, 100)}[SIZE]  # the third


def interval(numbers):
    """Return where the median lies with a probability of 0.9999, whatever the law: between two of the draws."""
    return quantile_test(numbers, p=0.5).confidence_interval(0.9999)


# %% [markdown]
# ## 1. The layer's own slopes


# %%
def two_layers(key, c, rho, eta):
    """Return M and the slopes of D for a random layer and the one behind it, at a random input."""
    keys = jax.random.split(key, 3)
    weight, later = (c / math.sqrt(n) * jax.random.normal(key, (n, n)) for key in keys[:2])
    x = jax.random.normal(keys[2], (n,))
    slopes = jnp.where(weight @ x >= 0, 1.0, eta)
    later_slopes = jnp.where(later @ (slopes * (weight @ x)) >= 0, 1.0, eta)
    return later_slopes[:, None] * later + rho * jnp.eye(n), slopes


@jax.jit
def own_slope_bounds(c, rho, eta):
    """Return the bound on kappa(M D), kappa(M D) itself and kappa(M), for each draw."""

    def one(key):
        M, slopes = two_layers(key, c, rho, eta)
        [bound] = [bound for bound in perturbation.slope_bounds(M, slopes) if bound.name == "D2"]
        return bound, sx.condition_number(M, method=sx.Dense())

    return jax.vmap(one)(jax.random.split(jax.random.key(0), draws))


etas = (1.0, 0.5, 0.2, 0.1, 0.01, 0.001)
networks = {"ConvNet": (1.0, 0.0), "ResNet": (0.5, 1.0)}  # c and rho
bounds = {(kind, eta): own_slope_bounds(*networks[kind], eta) for kind in networks for eta in etas}

# %% [markdown]
# Two independent checks, on a real network with a readout of the identity: `sx.local_linear` finds the same $M D$
# behind the layer, and NumPy has the same condition number of it.

# %%
key = jax.random.split(jax.random.key(0), draws)[0]
leaky = sx.layers.activation("leaky_relu", negative_slope=0.1)
layer = sx.layers.chain(sx.layers.dense(n, use_bias=False), leaky)
net = sx.layers.chain(layer, sx.layers.skip(layer, rho=1.0))
weight_key, later_key, input_key = jax.random.split(key, 3)
kernels = [0.5 / math.sqrt(n) * jax.random.normal(key, (n, n)).T for key in (weight_key, later_key)]
params = {"chain_0": {"dense_0": {"kernel": kernels[0]}}, "skip_1": {"body": {"dense_0": {"kernel": kernels[1]}}}}


@jax.jit
def behind_first_layer(x):
    return sx.local_linear(net, {"params": params}, x).layer_list[0].after.to_dense()


after = behind_first_layer(jax.random.normal(input_key, (n,)))
M, slopes = two_layers(key, 0.5, 1.0, 0.1)
np.testing.assert_allclose(after, M * slopes, atol=1e-13)
bound, _ = bounds["ResNet", 0.1]
np.testing.assert_allclose(bound.actual[0], np.linalg.cond(np.asarray(after)), rtol=1e-8)

# %%
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for color, kind in enumerate(networks):
    actual = np.array([bounds[kind, eta][0].actual for eta in etas])
    upper = np.array([bounds[kind, eta][0].upper for eta in etas])
    ax.loglog(etas, np.median(actual, axis=1), "o-", color=f"C{color}", label=rf"{kind}, $\kappa(M D)$")
    ax.loglog(etas, np.median(upper, axis=1), ":", color=f"C{color}", label=rf"{kind}, bound $\kappa(M) / \eta$")
ax.set(xlabel=r"slope $\eta$ of the leaky ReLU", ylabel="median condition number", title=f"n = {n}")
ax.invert_xaxis()
ax.legend()
plt.show()

# %% [markdown]
# The bound holds in every draw, and is nearly reached: the skip protects $M$, never $D$. Without skips the slopes count
# twice, once in $D$ and once within $M$, so that $\kappa(M D)$ grows like $1 / \eta^2$.
#
# **Tolerance.** A power of $\eta$ is asserted by the median, over the draws, of the logarithm's increase between the
# two smallest $\eta$. The interval in which that median lies with a probability of 0.9999 follows from the number of
# draws and the binomial law (`interval`). A twentieth is allowed for $\eta$ not being zero.

# %%
for kind, power in (("ConvNet", 2), ("ResNet", 1)):
    for eta in etas:
        bound, kappa_of_M = bounds[kind, eta]
        assert np.all(bound.applies & bound.holds)
        np.testing.assert_allclose(bound.upper, kappa_of_M * random_matrices.negative_slope_factor(eta), rtol=1e-6)
        low, high = interval(bound.actual)
        loose = np.max(bound.upper / bound.actual)
        print(f"{kind}, eta = {eta:5}: median kappa(M D) {np.median(bound.actual):.4g} in [{low:.4g}, {high:.4g}],"
              f" bound / actual at most {loose:.2f}")  # fmt: skip
    growth = np.log(bounds[kind, etas[-1]][0].actual / bounds[kind, etas[-2]][0].actual) / math.log(etas[-2] / etas[-1])
    low, high = interval(growth)
    assert low - 0.05 <= power <= high + 0.05

# %% [markdown]
# ## 2. The order of the activations, and its reversal

# %%
activations = {"abs": -1.0, "leaky 0.1": 0.1, "ReLU": 0.0}
scale = 1 / math.sqrt(3)


@jax.jit
def values_behind(rho, eta):
    def one(key):
        return sx.singular_values(two_layers(key, scale, rho, eta)[0], method=sx.Dense())

    return jax.vmap(one)(jax.random.split(jax.random.key(1), draws))


def condition_and_rank(s):
    rank = np.sum(s > s.shape[-1] * np.finfo(float).eps * s[..., :1], axis=-1)
    smallest = np.take_along_axis(s, rank[..., None] - 1, axis=-1)[..., 0]
    return s[..., 0] / smallest, smallest, rank


kappa = {}
print(f"median kappa+ of M (rank), n = {n}")
for kind, rho in (("ConvNet", 0.0), ("ResNet", 1.0)):
    for name, eta in activations.items():
        kappa[kind, name], _, rank = condition_and_rank(np.asarray(values_behind(rho, eta)))
        limit = random_matrices.skip_layer_limits(scale, rho=rho, slopes=([eta, 1.0], [0.5, 0.5])).condition_number
        print(f"{kind}  {name:10}{np.median(kappa[kind, name]):10.2f} ({np.median(rank):.0f})    limit {limit:.2f}")

# %% [markdown]
# The comparisons are of the same weights and inputs: what is asserted is on which side of 1 the median of the quotient
# lies. Without skips the ReLU's $\kappa_+$ is small, but of half of the directions; the condition number is infinite.

# %%
assert interval(kappa["ConvNet", "leaky 0.1"] / kappa["ConvNet", "abs"])[0] > 1
assert np.all(condition_and_rank(np.asarray(values_behind(0.0, 0.0)))[2] < 0.8 * n)
assert interval(kappa["ResNet", "leaky 0.1"] / kappa["ResNet", "abs"])[1] < 1
assert interval(kappa["ResNet", "ReLU"] / kappa["ResNet", "abs"])[1] < 1
limits = [random_matrices.skip_layer_limits(scale, slopes=([eta, 1.0], [0.5, 0.5])) for eta in activations.values()]
np.testing.assert_allclose([limit.condition_number for limit in limits], [6.53, 4.06, 4.05], atol=0.01)

# %% [markdown]
# ## 3. Stability when units change their slope
#
# The weights stay as they are, and the pattern of active units is drawn anew again and again, half of them on average.
# How much do the smallest singular value and the condition number vary? The measure is the coefficient of variation,
# the standard deviation divided by the mean, over the patterns; then the median over the weights.


# %%
@jax.jit
def values_by_pattern(rho, eta):
    """Return the singular values of D W + rho I, shape (weights, patterns, width)."""

    def one(key):
        weight_key, pattern_key = jax.random.split(key)
        weight = 0.5 / math.sqrt(width) * jax.random.normal(weight_key, (width, width))
        patterns = jnp.where(jax.random.bernoulli(pattern_key, 0.5, (num_patterns, width)), 1.0, eta)
        layer = lambda slopes: slopes[:, None] * weight + rho * jnp.eye(width)  # noqa: E731
        return jax.vmap(lambda slopes: sx.singular_values(layer(slopes), method=sx.Dense()))(patterns)

    return jax.lax.map(one, jax.random.split(jax.random.key(2), num_weights))


variation = {}
print("coefficient of variation of s_min+ and of kappa+")
for name, eta in activations.items():
    for kind, rho in (("ConvNet", 0.0), ("ResNet", 1.0)):
        condition, smallest, _ = condition_and_rank(np.asarray(values_by_pattern(rho, eta)))
        cells = [x.std(axis=1, ddof=1) / x.mean(axis=1) for x in (smallest, condition)]
        variation[kind, name] = cells
        print(f"{name:10} {kind}", *(f"{np.median(x):.3f} in [{interval(x)[0]:.3f}, {interval(x)[1]:.3f}]"
                                     for x in cells))  # fmt: skip

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
places = np.arange(len(activations))
for offset, kind in ((-0.2, "ConvNet"), (0.2, "ResNet")):
    axes[0].bar(places + offset, [np.median(kappa[kind, name]) for name in activations], 0.4, label=kind)
    axes[1].bar(places + offset, [np.median(variation[kind, name][0]) for name in activations], 0.4, label=kind)
axes[0].set(yscale="log", title=r"median of $\kappa_+(M)$ (ReLU, ConvNet: rank n / 2)")
axes[1].set(title=r"variation of $s_{\min}$ over patterns")
for ax in axes:
    ax.set_xticks(places, list(activations))
    ax.legend()
plt.show()

# %% [markdown]
# With leaky ReLU and ReLU the skip makes both more stable. **With the absolute value the claim is false**: its slopes
# are signs, $D$ is orthogonal, and without a skip the singular values of $DW$ are those of $W$ whatever the pattern,
# exactly. The skip takes that away. (The mean gain over the weights is compared with four of its standard errors.)

# %%
round_off = 100 * width * np.finfo(float).eps
for index in (0, 1):  # s_min+, kappa+
    for name in ("leaky 0.1", "ReLU"):
        gain = variation["ConvNet", name][index] - variation["ResNet", name][index]  # with the same weights
        assert gain.mean() > 4 * gain.std(ddof=1) / math.sqrt(num_weights)
    assert interval(variation["ResNet", "abs"][index])[0] > 0.01
all_values = np.asarray(values_by_pattern(0.0, -1.0))
assert np.all(np.ptp(all_values, axis=1) <= round_off * all_values.max())

# %% [markdown]
# The same as a theorem: of all that `perturbation.slope_change_bounds` says of a changed pattern, the row D8 holds for
# layers without a skip, and for signs its lower and its upper bound are equal.

# %%
weight = jax.random.normal(jax.random.key(3), (width, width)) / math.sqrt(width)
before, after = jax.random.bernoulli(jax.random.key(4), 0.5, (2, width))
for eta in (-1.0, 0.1):
    rows = perturbation.slope_change_bounds(weight, jnp.where(before, 1.0, eta), jnp.where(after, 1.0, eta))
    assert all(bool(jnp.all(row.holds)) for row in rows)
    np.testing.assert_allclose(rows[0].upper / rows[0].lower, eta**-2, rtol=1e-6)

# %% [markdown]
# The expected medians at full size. Their own error is taken to be as large as that of the medians here.

# %%
if SIZE == "full":
    cases = [
        *((f"ConvNet, eta = {eta}", number, bounds["ConvNet", eta][0].actual)
          for eta, number in ((1.0, 806), (0.1, 3.4e4), (0.001, 3.5e8))),
        *((f"ResNet, eta = {eta}", number, bounds["ResNet", eta][0].actual)
          for eta, number in zip(etas, (4.6, 5.3, 12.5, 23.7, 244, 2428), strict=True)),
        *((f"{name}, {kind}, variation", number, found)
          for (kind, name), numbers in {
              ("ConvNet", "leaky 0.1"): (0.073, 0.064), ("ResNet", "leaky 0.1"): (0.038, 0.046),
              ("ConvNet", "ReLU"): (0.113, 0.131), ("ResNet", "ReLU"): (0.039, 0.046),
              ("ResNet", "abs"): (0.043, 0.044),
          }.items() for number, found in zip(numbers, variation[kind, name], strict=True)),
    ]  # fmt: skip
    for name, number, found in cases:
        low, high = interval(found)
        middle = np.median(found)
        print(f"{name}: expected {number:.4g}, found {middle:.4g} in [{low:.4g}, {high:.4g}]")
        assert low**2 / middle <= number <= high**2 / middle
