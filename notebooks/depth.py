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
# # What a skip connection does to the singular values of a deep network
#
# **Claim.** The condition number of a network without skips grows exponentially with its depth, by a decade or more
# each layer; with skips it grows much more slowly, and with branches small enough for the depth not at all. Without
# skips a ReLU network loses more and more directions.
#
# **Formula.** The layers behind a given one are the linear map
#
# $$M = J_p \cdots J_1, \qquad J_k = D_k W_k + \rho I,$$
#
# and $\kappa(M)$ is what gradient descent on that layer's weights has to cope with. It leaves the range of any
# floating-point number, so `sx.product_log_condition_number` works in logarithms, with the factors.
#
# The entries of $W_k$ are independent with variance $c^2 / n$; the slopes in $D_k$ are those of a network at an input.
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
n, depths, draws = {"small": (16, (1, 4, 16), 21), "full": (32, (1, 2, 4, 8, 16, 32, 64), 41)}[SIZE]


# %%
def network_layers(weights, x, eta, rho):
    """Return the Jacobians of the layers z -> phi(W z) + rho z at an input, phi with slope eta below zero."""

    def layer(z, weight):
        h = weight @ z
        slopes = jnp.where(h >= 0, 1.0, eta)
        return slopes * h + rho * z, slopes[:, None] * weight + rho * jnp.eye(n)

    return jax.lax.scan(layer, x, weights)[1]


def sample_layers(key, depth, c, rho, eta):
    """Return the layers of a random network, and the identity in place of those beyond `depth`."""
    weight_key, input_key = jax.random.split(key)
    weights = c / math.sqrt(n) * jax.random.normal(weight_key, (depths[-1], n, n))
    layers = network_layers(weights, jax.random.normal(input_key, (n,)), eta, rho)
    return jnp.where(jnp.arange(depths[-1])[:, None, None] < depth, layers, jnp.eye(n))


@jax.jit
def log_conditions(depth, c, rho, eta):
    """Return log10 of kappa+ and the rank of random networks: one program for all depths and all kinds."""

    def one(key):
        found = sx.product_log_condition_number(sample_layers(key, depth, c, rho, eta), full=True)
        return found.nonzero.value / math.log(10), found.rank

    return jax.vmap(one)(jax.random.split(jax.random.key(0), draws))


# %% [markdown]
# Three independent checks. The layers are those that `sx.local_linear` finds in a network. NumPy's condition number of
# the product itself agrees while it is small. And for any depth the logarithms of all singular values have the sum of
# the factors' log-determinants.

# %%
block = sx.layers.chain(sx.layers.dense(n, use_bias=False), sx.layers.activation("leaky_relu", negative_slope=0.1))
net = sx.layers.chain(*[sx.layers.skip(block, rho=0.5)] * 3)
variables = net.init(jax.random.key(1), (n,))
weights = jnp.stack([skip["body"]["dense_0"]["kernel"].T for _, skip in sorted(variables["params"].items())])
x = jax.random.normal(jax.random.key(2), (n,))


@jax.jit
def layer_jacobians(x):
    return jnp.stack([stage.jacobian.to_dense() for stage in sx.local_linear(net, variables, x).stage_list])


found = layer_jacobians(x)
np.testing.assert_allclose(network_layers(weights, x, 0.1, 0.5), found, atol=1e-13)

by_numpy = np.linalg.cond(np.linalg.multi_dot(np.asarray(found)[::-1]))
np.testing.assert_allclose(math.exp(sx.product_log_condition_number(found)), by_numpy, rtol=1e-8)

convnet = sample_layers(jax.random.key(3), depths[-1], 1.0, 0.0, -1.0)
values = sx.product_log_singular_values(convnet)
logdet = np.linalg.slogdet(np.asarray(convnet)).logabsdet.sum()
assert abs(jnp.sum(values.log_values) - logdet) <= jnp.sum(values.error)

# %% [markdown]
# ## The condition number against the depth

# %%
networks = {  # c as a function of the depth p, rho, eta
    "ConvNet, abs, c = 1": (lambda p: 1.0, 0.0, -1.0),
    "ConvNet, leaky 0.1, c = 1": (lambda p: 1.0, 0.0, 0.1),
    "ConvNet, ReLU, c = 1": (lambda p: 1.0, 0.0, 0.0),
    "ResNet, abs, c = 0.25": (lambda p: 0.25, 1.0, -1.0),
    "ResNet, abs, c = 0.5": (lambda p: 0.5, 1.0, -1.0),
    "ResNet, leaky 0.1, c = 0.5": (lambda p: 0.5, 1.0, 0.1),
    "ResNet, ReLU, c = 0.5": (lambda p: 0.5, 1.0, 0.0),
    "ResNet, ReLU, c = 0.5 / sqrt(p)": (lambda p: 0.5 / math.sqrt(p), 1.0, 0.0),
    "ResNet, ReLU, c = 0.5 / p": (lambda p: 0.5 / p, 1.0, 0.0),
}
log_kappa, ranks = {}, {}
for name, (scale, rho, eta) in networks.items():
    found = [log_conditions(depth, scale(depth), rho, eta) for depth in depths]
    log_kappa[name], ranks[name] = (np.array(part) for part in zip(*found, strict=True))  # shapes (depths, draws)

print("median of log10 kappa+ (rank)      p =" + "".join(f"{depth:12}" for depth in depths))
for name in networks:
    cells = [f"{np.median(kappa):.2f} ({np.median(rank):.0f})"
             for kappa, rank in zip(log_kappa[name], ranks[name], strict=True)]  # fmt: skip
    print(f"{name:38}" + "".join(f"{cell:>12}" for cell in cells))

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained", width_ratios=(2, 1))
for number, (name, kappa) in enumerate(log_kappa.items()):
    style = "o-" if name.startswith("ConvNet") else "s--"
    left.loglog(depths, np.median(kappa, axis=1), style, color=f"C{number}", label=name, markersize=4)
left.set(xlabel="depth p", ylabel=r"median of $\log_{10} \kappa_+(M)$", xticks=depths, xticklabels=depths)
fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
right.semilogx(depths, np.median(ranks["ConvNet, ReLU, c = 1"], axis=1), "o-", color="C2", label="ConvNet, ReLU")
right.semilogx(depths, np.median(ranks["ResNet, ReLU, c = 0.5"], axis=1), "s--", color="C6", label="ResNet, ReLU")
right.set(xlabel="depth p", ylabel=f"median rank of M (n = {n})", xticks=depths, xticklabels=depths, ylim=(0, n + 1))
right.legend()
for ax in (left, right):
    ax.minorticks_off()
plt.show()

# %% [markdown]
# **Without skips** the logarithm grows in proportion to the depth. For Gaussian weights and the absolute value the rate
# is known, $\frac12 (\psi(n/2) - \psi(1/2))$ a layer, with $\psi$ the digamma function. It is reached from above: the
# first layers bring more. So the mean increase a layer, between the two largest depths, may exceed the rate by 5 %, and
# by four standard errors, which come from the draws.

# %%
last, before = depths[-1], depths[-2]


def increase(name):
    """Return log10 kappa+ gained a layer between the two largest depths: the mean and its standard error."""
    gained = (log_kappa[name][-1] - log_kappa[name][-2]) / (last - before)
    return gained.mean(), gained.std(ddof=1) / math.sqrt(draws)


rate = random_matrices.convnet_depth_slope(n) / math.log(10)
mean, error = increase("ConvNet, abs, c = 1")
print(f"decades a layer: {mean:.3f} +- {error:.3f}, expected {rate:.3f}")
assert -4 * error <= mean - rate <= 0.05 * rate + 4 * error
leaky, leaky_error = increase("ConvNet, leaky 0.1, c = 1")
assert leaky - mean > 4 * (leaky_error + error)

# %% [markdown]
# **With skips** it grows as well, but by a fraction of that. With $|D_k W_k| \le \delta < 1$ no draw exceeds the bound
# $\left(\frac{1 + \delta}{1 - \delta}\right)^p$.

# %%
for name in networks:
    if name.startswith("ResNet"):
        assert increase(name)[0] + 4 * increase(name)[1] < (mean - 4 * error) / 3
        assert np.all(ranks[name] == n)

branches = sample_layers(jax.random.key(4), last, 0.25, 1.0, -1.0) - jnp.eye(n)
[bound] = [bound for bound in perturbation.product_bounds(branches, 1.0) if bound.name == "A10"]
log_bound = float(jnp.log10(bound.upper))
print(f"p = {last}, ResNet, abs, c = 0.25: log10 kappa {float(jnp.log10(bound.actual)):.2f}, bound {log_bound:.2f}")
assert bound.applies
assert sx.product_log_condition_number(branches + jnp.eye(n)) / math.log(10) <= log_bound

# %% [markdown]
# **How small the branches must be.** Weights of the order $1/p$ keep the condition number for any depth; that is what
# `random_matrices.branch_norm_for_depth` computes. With $1/\sqrt p$ it nearly does, but not quite: the outputs of ReLU
# are never negative, so that the layers drift in a common direction, and their small contributions add up.
#
# Tolerance here and below: whatever the law of N draws, its median lies between two of them, which the binomial law
# chooses, with a probability of 0.9999 (`scipy.stats.quantile_test`).


# %%
def interval(numbers):
    return quantile_test(numbers, p=0.5).confidence_interval(0.9999)


shrinking, drifting = log_kappa["ResNet, ReLU, c = 0.5 / p"], log_kappa["ResNet, ReLU, c = 0.5 / sqrt(p)"]
assert interval(shrinking[-1])[1] < interval(shrinking[0])[0]
assert interval(drifting[-1])[1] < 1
if SIZE == "full":
    assert interval(drifting[-1])[0] > interval(drifting[0])[1]

# %% [markdown]
# **The rank.** Without skips a ReLU network of n units keeps about n / 2 directions after one layer, and fewer after
# each further one. Its $\kappa_+$, that of the directions that are left, still grows: it is no consolation. With skips
# all n directions are there at every depth.

# %%
rank = ranks["ConvNet, ReLU, c = 1"]
assert abs(rank[0].mean() - n / 2) <= 4 * math.sqrt(n / 4 / draws)  # standard error of a binomial mean
assert np.all(np.diff(rank, axis=0) <= 0)
assert interval(rank[0] - rank[-1])[0] > 0  # of the same networks
assert interval(log_kappa["ConvNet, ReLU, c = 1"][-1] - log_kappa["ConvNet, ReLU, c = 1"][0])[0] > 0

# %% [markdown]
# The expected medians at full size. Their own error is taken to be as large as that of the medians here, and half a
# unit of their last digit for rounding.

# %%
if SIZE == "full":
    expected = {
        "ConvNet, abs, c = 1": (2.0, 3.1, 5.3, 9.9, 17.9, 34.2, 67.8),
        "ConvNet, leaky 0.1, c = 1": (3.3, 4.6, 8.4, 15.7, 30.9, 56.2, 111),
        "ResNet, abs, c = 0.25": (0.28, 0.41, 0.62, 1.0, 1.9, 3.5, 6.6),
        "ResNet, abs, c = 0.5": (0.61, 0.87, 1.3, 2.2, 4.1, 7.6, 14.5),
        "ResNet, leaky 0.1, c = 0.5": (0.46, 0.63, 0.9, 1.35, 2.4, 4.1, 7.9),
        "ResNet, ReLU, c = 0.5": (0.46, 0.63, 0.9, 1.35, 2.4, 4.1, 7.9),
        "ResNet, ReLU, c = 0.5 / sqrt(p)": (0.44, 0.44, 0.44, 0.44, 0.49, 0.59, 0.80),
        "ResNet, ReLU, c = 0.5 / p": (0.46, 0.30, 0.21, 0.16, 0.11, 0.10, 0.09),
        "rank": (15.5, 14, 13, 11.5, 11, 11),
    }
    for name, numbers in expected.items():
        found = rank if name == "rank" else log_kappa[name]
        print(name, *(f"{number} ({np.median(row):.2f})" for number, row in zip(numbers, found, strict=False)))
        for number, row in zip(numbers, found, strict=False):
            low, high = interval(row)
            rounding = 0.5 if number >= 10 else 0.05 if number >= 1 else 0.005
            assert 2 * low - np.median(row) - rounding <= number <= 2 * high - np.median(row) + rounding
