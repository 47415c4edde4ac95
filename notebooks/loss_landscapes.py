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
# # What the loss looks like in one layer's weights, and how fast descent is there
#
# **Claims.** With skips, on the same weights,
#
# 1. the loss is less erratic: along a line there are fewer kinks, and its curvature varies less;
# 2. gradient descent on one layer's quadratic takes far fewer steps, as the condition number says;
# 3. inside the region where no unit changes its piece the loss is exactly the quadratic with the singular values of
#    $Q$.
#
# **Formula.** In the weights $W$ of one layer the squared error of a piecewise-affine network is
# $|Q \, \mathrm{vec}(W) - t|^2$ on each region, with $Q = z^T \otimes (M D)$: $z$ is the layer's input, $D$ its slopes,
# $M$ the Jacobian of the later layers. Along the $i$-th right singular direction the curvature is $2 s_i^2$. Descent
# with the best step shrinks the error by $(\kappa^2 - 1) / (\kappa^2 + 1)$ in each.
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
from scipy.stats import binomtest

import spectrax as sx
from spectrax import report

jax.config.update("jax_enable_x64", True)

SIZE = os.environ.get("SPECTRAX_NOTEBOOK_SIZE", "small")  # or "full"
n, draws = {"small": (32, 24), "full": (64, 100)}[SIZE]  # the first part
width, descents = {"small": (16, 12), "full": (32, 40)}[SIZE]  # the second

SLOPES = {"ReLU": 0.0, "leaky .1": 0.1, "absolute value": -1.0}


def network(eta, rho, depth):
    """Return f(params, x): `depth` layers phi(W z) + rho z with slopes 1 and eta."""

    def f(params, x):
        z = x
        for k in range(depth):
            h = params[f"W{k}"] @ z
            z = (jnp.abs(h) if eta == -1 else jnp.maximum(h, eta * h)) + rho * z
        return z

    return f


def random_case(seed, size, depth, c):
    """Return weights of variance c^2 / size, an input and a target."""
    generator = np.random.default_rng(seed)
    params = {f"W{k}": c * generator.normal(size=(size, size)) / math.sqrt(size) for k in range(depth)}
    return jax.tree.map(jnp.asarray, (params, generator.normal(size=size), generator.normal(size=size)))


# %% [markdown]
# ## 1. Along a line
#
# Four layers, of which the first one's weights move by their own norm in a random direction.
# `sx.landscape.loss_along_line` gives the pieces exactly: no kink is missed because a step was too long. Each network
# is looked at without skips and with them, on the same weights and along the same direction.

# %%
measures = ("kinks", "mean relative jump of the curvature", "total variation of its logarithm")
found = {}
for name, eta in SLOPES.items():
    for rho in (0.0, 1.0):
        f = network(eta, rho, 4)
        rows = []
        for seed in range(draws):
            params, x, y = random_case(seed, n, 4, 1.0)
            direction = np.random.default_rng(1000 + seed).normal(size=(n, n))
            direction *= np.linalg.norm(params["W0"]) / np.linalg.norm(direction)
            line = sx.landscape.loss_along_line(f, params, "W0", direction, x, y)
            rows.append((len(line.kinks), line.curvature_jumps.mean(), line.total_variation))
        found[name, rho] = np.array(rows)

expected = {  # medians at n = 64
    "ReLU": [(67, 44), (0.088, 0.044), (5.7, 1.8)],
    "leaky .1": [(65, 44), (0.077, 0.041), (4.9, 1.7)],
    "absolute value": [(64, 46), (0.061, 0.054), (3.8, 2.4)],
}
for name in SLOPES:
    for i, measure in enumerate(measures):
        pair = [np.median(found[name, rho][:, i]) for rho in (0.0, 1.0)]
        beside = f" (expected {expected[name][i][0]} -> {expected[name][i][1]})" if SIZE == "full" else ""
        print(f"{name}: {measure} {pair[0]:.3g} -> {pair[1]:.3g}{beside}")

# %% [markdown]
# The last line that was computed is that of the absolute value with skips. An independent check: between kinks the loss
# is a quadratic, so that evaluating the network itself must give the same numbers, at any place.

# %%
places = np.linspace(0, 1, 101)
direct = [np.sum((np.asarray(f(params | {"W0": params["W0"] + t * direction}, x)) - y) ** 2) for t in places]
assert np.allclose(line(places), direct, rtol=1e-11)
report.loss_line(line, title="absolute value with skips")

# %% [markdown]
# How sure are the comparisons? The draws are independent, and in each one the two networks share their weights. If
# skips made no difference, either would have the larger number with probability 1/2, so a sign test tells.

# %%
for name in SLOPES:
    for i, measure in enumerate(measures):
        lower = np.sum(found[name, 1.0][:, i] < found[name, 0.0][:, i])
        chance = binomtest(int(lower), draws, alternative="greater").pvalue
        print(f"{name}: {measure} smaller with skips in {lower} of {draws} draws (by chance: {chance:.1e})")
        if name == "absolute value" and i == 1:
            continue  # the jumps themselves: see below
        assert chance < 1e-3

# %% [markdown]
# **Where the claim ends.** For the absolute value the mean jump hardly differs: without skips a flip of a unit doesn't
# change the singular values of its own layer at all, and the jumps come from the products alone. What skips save there
# is the number of kinks.

# %%
ratio = np.median(found["absolute value", 1.0][:, 1] / found["absolute value", 0.0][:, 1])
others = [np.median(found[name, 1.0][:, 1] / found[name, 0.0][:, 1]) for name in ("ReLU", "leaky .1")]
print(f"jumps with skips / without: absolute value {ratio:.2f}, ReLU {others[0]:.2f}, leaky {others[1]:.2f}")
assert ratio > max(others)

figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
for i, (panel, measure) in enumerate(zip(panels, measures, strict=True)):
    columns = [found[name, rho][:, i] for name in SLOPES for rho in (0.0, 1.0)]
    panel.boxplot(
        columns, tick_labels=[f"{name}\n{word}" for name in ("ReLU", "leaky", "abs") for word in ("-", "skip")]
    )
    panel.set_title(measure, fontsize=10)
    panel.set_yscale("log" if i else "linear")

# %% [markdown]
# ## 2. Descent on one layer's quadratic
#
# Two layers of scale $c = 1/2$; the first one's weights descend on their quadratic with the best constant step $1 /
# (s_1^2 + s_r^2)$, until the excess of the loss over its minimum has fallen by $10^6$. Along the $i$-th left singular
# vector of $Q$ the error shrinks by $1 - 2 \, \text{step} \, s_i^2$ in each step, which gives their number without
# taking them; the condition number alone promises at most $\ln 10^6 \, / \, 2 \ln \frac{\kappa^2 + 1}{\kappa^2 - 1}$.


# %%
def measured(eta, rho):
    """Return a compiled function of (params, x, y): the spectrum of Q, Q itself, and the quadratic."""
    f = network(eta, rho, 2)

    def measure(params, x, y):
        spectrum = sx.landscape.layer_spectrum(f, params, "W0", x)
        Q = sx.landscape.layer_operator(f, params, "W0", x).to_dense()
        return spectrum, Q, sx.landscape.local_quadratic(f, params, "W0", x, y)

    return jax.jit(measure)


def steps_needed(values, coordinates, step):
    """Return the number of steps after which sum c_i^2 (1 - 2 step s_i^2)^(2 t) has fallen by 1e6."""
    excess = lambda t: np.sum(coordinates**2 * np.abs(1 - 2 * step * values**2) ** (2 * t))  # noqa: E731
    low, high = 0, 1
    while excess(high) > 1e-6 * excess(0):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if excess(middle) > 1e-6 * excess(0) else (low, middle)
    return high


def steps_taken(Q, residual, floor, step):
    """Descend on |Q w + residual|^2 and count."""
    w, count = np.zeros(Q.shape[1]), 0
    target = 1e-6 * (residual @ residual - floor)
    while (error := Q @ w + residual) @ error - floor > target:
        w, count = w - 2 * step * (Q.T @ error), count + 1
    return count


descended, taken = {}, 0
for name, eta in SLOPES.items():
    for rho in (0.0, 1.0):
        measure, rows, checked = measured(eta, rho), [], 0
        for seed in range(descents):
            spectrum, Q, quadratic = measure(*random_case(seed, width, 2, 0.5))
            kappa, rank = float(spectrum.condition_number), int(spectrum.rank)
            s = np.asarray(spectrum.values)[:rank]
            step = 1 / (s[0] ** 2 + s[-1] ** 2)
            U = np.linalg.svd(Q)[0][:, :rank]
            residual = np.asarray(quadratic.residual)
            steps = steps_needed(s, U.T @ residual, step)
            rate = float(spectrum.convergence_rate)
            allowed = math.log(1e6) / (-2 * math.log(rate)) if rate > 0 else 1
            assert steps <= math.ceil(allowed)
            assert np.isclose(residual @ residual - np.sum((U.T @ residual) ** 2), float(quadratic.minimum), atol=1e-9)
            if steps < 2000 and not checked:  # once by taking them
                checked = steps_taken(np.asarray(Q), residual, float(quadratic.minimum), step)
                assert abs(checked - steps) <= 1 + steps // 1000
                taken += 1
            rows.append((kappa, steps, steps / allowed, rank))
        descended[name, rho] = np.array(rows)
        kappa, steps, share, rank = np.median(rows, axis=0)
        print(
            f"{name}, rho = {rho:g}: kappa {kappa:.3g}, rank {rank:g}, {steps:.0f} steps, {share:.2f} of those allowed"
        )
assert taken >= 4  # most of the six networks have a draw that is short enough
print("expected at width 32: absolute value kappa 82 -> 4.0 and 5899 -> 69 steps; leaky 2292 -> 21.5, 111310 -> 1370")

# %% [markdown]
# Again each pair shares its weights. ReLU drops the directions of the units that are off, with skips or without, and
# without skips those of the later layers' units, too: read its condition number, which leaves them out, beside the
# rank.

# %%
for name in SLOPES:
    fewer = int(np.sum(descended[name, 1.0][:, 1] < descended[name, 0.0][:, 1]))
    chance = binomtest(fewer, descents, alternative="greater").pvalue
    print(f"{name}: fewer steps with skips in {fewer} of {descents} draws (by chance: {chance:.1e})")
    assert chance < 1e-3
assert np.all(descended["ReLU", 0.0][:, 3] <= descended["ReLU", 1.0][:, 3])  # one more factor cannot raise the rank
assert np.all(descended["leaky .1", 1.0][:, 3] == width)
assert np.median(descended["ReLU", 1.0][:, 3]) < 0.7 * width

figure, panel = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
for (name, rho), rows in descended.items():
    panel.loglog(rows[:, 0], rows[:, 1], "o" if rho else "x", label=f"{name}, {'skip' if rho else 'no skip'}")
grid = np.geomspace(1.5, max(rows[:, 0].max() for rows in descended.values()), 100)
panel.loglog(grid, np.log(1e6) / (2 * np.log1p(2 / (grid**2 - 1))), color="0.5", label="what kappa allows")
panel.set(xlabel="condition number of Q", ylabel="steps until the excess is 1e-6 of the start's")
panel.legend(fontsize=8)

# %% [markdown]
# ## 3. Slices along singular directions
#
# The plane of the steepest and the flattest right singular direction of $Q$, through the weights as they are. Inside
# the white border no unit changes its piece, and the loss is the quadratic; beyond it the two part.
# `sx.landscape.loss_slice` finds the border exactly, as a polygon.

# %%
params, x, y = random_case(7, width, 3, 0.7)
slices = {}
for rho in (0.0, 1.0):
    plane = sx.landscape.loss_slice(network(0.1, rho, 3), params, "W0", x, y, resolution=41)
    a, b = np.meshgrid(plane.coordinates, plane.coordinates, indexing="ij")
    inside = plane.contains(np.stack([a, b], axis=-1))
    apart = np.abs(plane.loss - plane.quadratic) / plane.loss.max()
    print(
        f"rho = {rho:g}: singular values {plane.singular_values[0]:.3g} and {plane.singular_values[1]:.3g}, nearest "
        f"kink at {plane.reach:.2g}; {inside.mean():.0%} of the plane inside; apart by up to {apart[inside].max():.0e} "
        f"inside and {apart[~inside].max():.0e} outside"
    )
    assert apart[inside].max() < 1e-12
    assert apart[~inside].max() > 1e-9
    # by hand, in NumPy: the parabola along the steepest direction
    along = plane.quadratic[:, 20]
    curvature = (along[2:] - 2 * along[1:-1] + along[:-2]) / np.diff(plane.coordinates)[0] ** 2
    assert np.allclose(curvature, 2 * plane.singular_values[0] ** 2, rtol=1e-4)
    slices[f"rho = {rho:g}"] = plane
report.loss_slices(slices, title="Leaky ReLU, the same weights")

# %% [markdown]
# The rounder landscape is the one with the smaller condition number: in the plane of the extreme directions the level
# sets are ellipses whose axes have the ratio of the two singular values.

# %%
ratios = [plane.singular_values[0] / plane.singular_values[1] for plane in slices.values()]
print(f"axes of the ellipses: {ratios[0]:.3g} without skips, {ratios[1]:.3g} with them")
assert ratios[1] < ratios[0]
