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
# # The shape of the loss in one layer's weights, against the batch size
#
# **Claim.** With a skip in the later layers the loss of a mini-batch, as a function of one layer's weights, is less
# eccentric than without, at every batch size.
#
# **What is not true.** That more samples always help. The condition number first rises with the batch size, is worst
# where there are just as many equations as weights, and only then falls.
#
# **Formula.** With the squared error the loss is the quadratic $|Q_B \, \mathrm{vec}(W) - r|^2$, on the region where
# no unit changes its slope, and $Q_B$ has the rows of all samples below each other:
#
# $$Q_B = \begin{pmatrix} z_1^T \otimes M_1 D_1 \\ \vdots \\ z_G^T \otimes M_G D_G \end{pmatrix},$$
#
# with $z_g$ the layer's inputs, $D_g$ the slopes of its activation and $M_g$ the map behind it, here one further layer
# $D'_g W' + \rho I$. (The layer's own skip does not enter, but for the slopes behind it.) Its level sets have the axes
# $1 / s_i(Q_B)$, so that $\kappa_+(Q_B)$ is how eccentric they are; directions with $s_i = 0$ are flat, and the rank
# says how many are not.
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

jax.config.update("jax_enable_x64", True)

SIZE = os.environ.get("SPECTRAX_NOTEBOOK_SIZE", "small")  # or "full"
n, batch_sizes, draws = {"small": (12, (1, 12, 24, 48), 21), "full": (12, (1, 4, 12, 24, 48, 96, 384), 41)}[SIZE]
c = 0.5

activations = {"abs": -1.0, "leaky 0.1": 0.1, "ReLU": 0.0}
architectures = {"ConvNet": 0.0, "ResNet": 1.0}  # rho


# %%
def network(params, x):
    """Two layers phi(W z) + rho z of width n. The slope of phi below zero and rho are parameters as well."""
    for name in ("layer", "later"):
        h = params[name] @ x
        x = jnp.where(h >= 0, h, params["eta"] * h) + params["rho"] * x
    return x


def sample(key, eta, rho, batch_size):
    """Draw a network and a batch."""
    keys = jax.random.split(key, 3)
    layer, later = (c / math.sqrt(n) * jax.random.normal(key, (n, n)) for key in keys[:2])
    params = {"layer": layer, "later": later, "eta": eta, "rho": rho}
    return params, jax.random.normal(keys[2], (batch_size, n))


@jax.jit(static_argnums=2)
def spectra(eta, rho, batch_size):
    """Return the singular values of Q_B, its condition number kappa+ and its rank, for each draw."""

    def one(key):
        params, batch = sample(key, eta, rho, batch_size)
        found = sx.landscape.layer_spectrum(network, params, "layer", batch, batched=True)
        return found.values, found.condition_number, found.rank

    return jax.lax.map(one, jax.random.split(jax.random.key(0), draws))


# %%
values, kappa, rank = {}, {}, {}
for kind, rho in architectures.items():
    for name, eta in activations.items():
        for size in batch_sizes:
            case = kind, name, size
            values[case], kappa[case], rank[case] = (np.asarray(part) for part in spectra(eta, rho, size))

print("median of kappa+ (rank)   G =" + "".join(f"{size:14}" for size in batch_sizes))
for name in activations:
    for kind in architectures:
        cells = (f"{np.median(kappa[kind, name, size]):.1f} ({np.median(rank[kind, name, size]):.0f})"
                 for size in batch_sizes)  # fmt: skip
        print(f"{kind}, {name:20}" + "".join(f"{cell:>14}" for cell in cells))

# %% [markdown]
# The independent check: $Q_B$ by Kronecker products in NumPy, from the slopes at each sample, and its singular values.
# (Row by row, as JAX flattens an array, $\mathrm{vec}(W)$ stands to the right of $M D \otimes z^T$.)

# %%
for kind, rho in architectures.items():
    for name, eta in activations.items():
        params, batch = sample(jax.random.split(jax.random.key(0), draws)[0], eta, rho, batch_sizes[1])
        layer, later = np.asarray(params["layer"]), np.asarray(params["later"])
        rows = []
        for z in np.asarray(batch):
            slopes = np.where(layer @ z >= 0, 1.0, eta)
            later_slopes = np.where(later @ (slopes * (layer @ z) + rho * z) >= 0, 1.0, eta)
            M = later_slopes[:, None] * later + rho * np.eye(n)
            rows.append(np.kron(M * slopes, z))
        by_numpy = np.linalg.svd(np.concatenate(rows), compute_uv=False)
        found = values[kind, name, batch_sizes[1]][0]
        np.testing.assert_allclose(found, by_numpy, atol=1e-13 * by_numpy[0])

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(3, 2))
for color, name in enumerate(activations):
    for kind, style in (("ConvNet", "o-"), ("ResNet", "s--")):
        for ax, numbers in zip(axes, (kappa, rank), strict=True):
            medians = [np.median(numbers[kind, name, size]) for size in batch_sizes]
            ax.loglog(batch_sizes, medians, style, color=f"C{color}", label=f"{kind}, {name}", markersize=4)
axes[0].axvline(n, color="black", linestyle=":", linewidth=1)
axes[0].set(ylabel=r"median of $\kappa_+(Q_B)$", title=f"n = {n} (dotted: G = n)")
axes[1].set(ylabel=f"median rank of $Q_B$ (at most {n * n})")
axes[0].legend(fontsize=8)
for ax in axes:
    ax.set_xlabel("batch size G")
    ax.set_xticks(batch_sizes, [str(size) for size in batch_sizes])
    ax.minorticks_off()
plt.show()

# %% [markdown]
# **The skip helps at every batch size.** The two architectures have the same weights and inputs, draw by draw, and the
# median of the quotient of their condition numbers is asserted to exceed 1. For ReLU this is said of $\kappa_+$ alone:
# at one sample the skip also has a higher rank.
#
# **Tolerance.** Whatever the law of N draws, its median lies between two of them, which the binomial law chooses, with
# a probability of 0.9999 (`scipy.stats.quantile_test`).


# %%
def interval(numbers):
    return quantile_test(numbers, p=0.5).confidence_interval(0.9999)


for name in activations:
    for size in batch_sizes:
        gain = kappa["ConvNet", name, size] / kappa["ResNet", name, size]
        low, high = interval(gain)
        print(f"{name}, G = {size}: median gain {np.median(gain):.2f} in [{low:.2f}, {high:.2f}]")
        assert np.median(gain) > 1
        if size not in (n, 2 * n):  # around the peak kappa+ is too scattered for this many draws
            assert low > 1

# %% [markdown]
# **The rise and the fall.** Slopes that are not zero give n equations a sample, so that $Q_B$ is square at G = n, and
# its condition number largest. ReLU has about n / 2 equations a sample or less, so that its peak is near G = 2 n.

# %%
first, last = batch_sizes[0], batch_sizes[-1]
for kind in architectures:
    for name, peak in {"abs": n, "leaky 0.1": n, "ReLU": 2 * n}.items():
        assert max(batch_sizes, key=lambda size: np.median(kappa[kind, name, size])) == peak
        assert interval(kappa[kind, name, peak] / kappa[kind, name, first])[0] > 1  # with the same weights
        assert interval(kappa[kind, name, peak] / kappa[kind, name, last])[0] > 1
        for size in batch_sizes:
            if name == "ReLU":
                assert np.all(rank[kind, name, size] <= min(size, n) * n)
            else:
                assert np.all(rank[kind, name, size] == min(size, n) * n)
assert interval(rank["ConvNet", "ReLU", first])[1] < n
assert np.all(rank["ConvNet", "ReLU", first] <= rank["ResNet", "ReLU", first])

# %% [markdown]
# Two statements that hold in every draw. A further sample lowers no singular value of $Q_B$: only their quotient may
# get worse. And with slopes that are not zero, from G = n on,
# $\kappa(Q_B) \le \kappa(Z) \max_g s_1(M_g D_g) / \min_g s_n(M_g D_g)$, with $Z$ the matrix of the layer's inputs.


# %%
@jax.jit
def matrices(params, batch):
    """Return Q_B, and M_g D_g for each sample."""
    Q = sx.landscape.layer_operator(network, params, "layer", batch, batched=True).to_dense()
    after = jax.vmap(lambda x: sx.local_linear(network, params, x).layers["layer"].after.to_dense())(batch)
    return Q, after


for rho in architectures.values():
    params, batch = sample(jax.random.key(1), 0.1, rho, 2 * n)
    Q, after = map(np.asarray, matrices(params, batch))
    before = np.zeros(n * n)
    for size in range(1, 2 * n + 1):
        s = np.linalg.svd(Q[: size * n], compute_uv=False)
        assert np.all(s >= before[: s.size] - 1e-13 * s[0])
        before = np.pad(s, (0, n * n - s.size))
    ends = np.linalg.svd(after, compute_uv=False)
    assert s[0] / s[-1] <= np.linalg.cond(batch) * ends[:, 0].max() / ends[:, -1].min()

# %% [markdown]
# The expected medians at full size. Their own error is taken to be as large as that of the medians here.

# %%
if SIZE == "full":
    expected = {
        ("ConvNet", "abs"): (26, 80, 2938, 22, 8.2, 5.4, 4.1),
        ("ResNet", "abs"): (3.4, 8.3, 128, 8.9, 4.3, 2.7, 1.8),
        ("ConvNet", "leaky 0.1"): (1058, 3327, 32403, 297, 26, 11.5, 7.1),
        ("ResNet", "leaky 0.1"): (19.5, 40, 473, 44, 9.6, 4.6, 2.4),
        ("ConvNet", "ReLU"): (4.6, 18, 63, 560, 33, 11.7, 6.4),
        ("ResNet", "ReLU"): (1.5, 3.9, 11.6, 154, 9.3, 4.2, 2.2),
    }
    for case, numbers in expected.items():
        for size, number in zip(batch_sizes, numbers, strict=True):
            low, high = interval(kappa[*case, size])
            middle = np.median(kappa[*case, size])
            print(*case, f"G = {size}: expected {number}, found {middle:.4g} in [{low:.4g}, {high:.4g}]")
            assert low**2 / middle <= number <= high**2 / middle
