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
# # Adding a fraction of the identity: the way from a ConvNet to a ResNet
#
# **Claim.** Adding $\rho I$ to a layer's map moves its singular values in a controlled way, and for $\rho$ large
# enough all of them grow and the condition number falls towards 1.
#
# **What is not true.** That every step towards the identity helps. The condition number need not fall steadily on the
# way: it is infinite wherever $-\rho$ is an eigenvalue, and large nearby. And there are layers that any skip makes
# worse, orthogonal ones above all.
#
# **Formula.** With singular vectors $u_i, v_i$ of $M + \rho I$,
#
# $$\frac{d s_i}{d \rho} = u_i^T v_i \in [-1, 1], \qquad s_i(\rho) \ge \rho + h_i,$$
#
# with $h_i$ the eigenvalues of $(M + M^T) / 2$, descending. All $s_i(\rho)$ are nondecreasing from the critical
# $\rho_c = \max(0, -h_n)$ on.
#
# The theory is that of Riedi, Balestriero and Baraniuk (doi:10.1007/s00365-022-09601-5). Figures called "expected"
# come from a separate computation in NumPy.

# %%
import math
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import spectrax as sx
from spectrax.theory import perturbation

jax.config.update("jax_enable_x64", True)

SIZE = os.environ.get("SPECTRAX_NOTEBOOK_SIZE", "small")  # or "full"
draws, points = {"small": (400, 81), "full": (20000, 401)}[SIZE]
n = 6

# %% [markdown]
# ## One path
#
# A singular value with a sign is a smooth function of $\rho$, through crossings with others and through zero; in order
# of size the values have kinks there. `singular_value_path` follows the smooth branches.

# %%
M = np.random.default_rng(3).normal(size=(n, n)) / math.sqrt(n)
rhos = np.linspace(0, 2, points)
path = perturbation.singular_value_path(M, rhos)
kappa = perturbation.condition_numbers(M, rhos)
critical = float(perturbation.critical_rho(M))
assert path.followed.all()

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for branch in path.branches.T:
    left.plot(rhos, branch)
left.axhline(0, color="black", linewidth=0.5)
left.set(xlabel=r"$\rho$", ylabel=r"singular values of $M + \rho I$, with a sign")
right.semilogy(rhos, kappa)
right.set(xlabel=r"$\rho$", ylabel=r"$\kappa(M + \rho I)$")
for ax in (left, right):
    ax.axvline(critical, color="black", linestyle="--", linewidth=1, label=rf"$\rho_c$ = {critical:.2f}")
right.legend()
plt.show()

# %% [markdown]
# The independent check: NumPy's condition numbers, and the expected ones. They fall, rise to a peak where the smallest
# singular value comes near zero, since $-\rho$ is then close to a pair of complex eigenvalues, and fall again. Beyond
# $\rho_c$ the singular values grow, as the theorem says; that the condition number falls there too is seen in this
# example, not proved.

# %%
quarters = np.linspace(0, 2, 9)
found = perturbation.condition_numbers(M, quarters)
by_numpy = [np.linalg.cond(M + rho * np.eye(n)) for rho in quarters]
np.testing.assert_allclose(found, by_numpy, rtol=1e-9)
print("rho     ", *(f"{rho:7.2f}" for rho in quarters))
print("kappa   ", *(f"{value:7.1f}" for value in found))
expected = [765, 14.3, 28.2, 266, 24.8, 9.7, 6.1, 4.5, 3.7]
np.testing.assert_allclose(found, expected, rtol=5e-3, atol=0.05)
assert abs(critical + np.linalg.eigvalsh(M + M.T)[0] / 2) < 1e-13
assert abs(critical - 1.09) < 0.005

steps = np.diff(kappa)
assert np.any(steps < 0)
assert np.any(steps > 0), "the path of this matrix is not monotone"
beyond = rhos >= critical
assert np.all(np.diff(kappa[beyond]) < 0)
assert np.all(np.diff(path.ordered[beyond], axis=0) > 0)
peaks = rhos[1:-1][(steps[:-1] > 0) & (steps[1:] < 0)]
assert np.all(np.abs(peaks[:, None] - np.linalg.eigvals(-M)).min(axis=1) < 0.1)

# %% [markdown]
# The slopes: no branch is steeper than 1, and the formula $u_i^T v_i$ agrees with differences between neighbouring
# points, to half of the largest second derivative times their distance.

# %%
differences = np.diff(path.branches, axis=0) / (rhos[1] - rhos[0])
assert np.all(np.abs(path.first) <= 1 + 1e-12)
steepest = 1.5 * np.max(np.abs(path.second))  # it may be larger between the points than on them
assert np.all(np.abs(differences - path.first[:-1]) <= 0.5 * steepest * (rhos[1] - rhos[0]))

# %% [markdown]
# Every bound of the catalogue on this path: those whose hypotheses hold, with the slack that is left.

# %%
for rho in (0.5, 1.0, 3.0):
    rows = perturbation.identity_shift_bounds(M, rho)
    assert all(bool(jnp.all(row.holds)) for row in rows)
    print(f"rho = {rho}:", *(f"{row.name} ({float(jnp.min(row.slack)):.3g})" for row in rows if row.applies))

# %% [markdown]
# ## A layer that gets worse: orthogonal weights
#
# An orthogonal layer has all singular values 1, the best condition number there is. With a skip they become
# $\sqrt{1 + 2 \rho \cos\theta + \rho^2}$, with $e^{\pm i \theta}$ the eigenvalues: the condition number can only rise.
# At $\rho = 1$ it is infinite if -1 is an eigenvalue. The bounds know it: `A7`, "no worse than without a skip", says
# that it does not apply.

# %%
rng = np.random.default_rng(0)
Q = np.linalg.qr(rng.normal(size=(32, 32)))[0]
orthogonal_kappa = np.asarray(perturbation.condition_numbers(Q, rhos))
cosines = np.linalg.eigvals(Q).real
for rho in (0.5, 1.5):
    values = np.sqrt(1 + 2 * rho * cosines + rho**2)
    np.testing.assert_allclose(sx.singular_values(Q + rho * np.eye(32)), np.sort(values)[::-1], atol=1e-12)
rows = {row.name: row for row in perturbation.identity_shift_bounds(Q, 0.5)}
assert rows["A14"].applies
assert rows["A14"].holds.all()
assert not rows["A7"].applies
assert abs(orthogonal_kappa[0] - 1) < 1e-12
assert np.all(orthogonal_kappa[1:] > 1)

fig, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
ax.semilogy(rhos, np.minimum(orthogonal_kappa, 1e6))
ax.set(xlabel=r"$\rho$", ylabel=r"$\kappa(Q + \rho I)$", title="Orthogonal weights, n = 32")
plt.show()

# %% [markdown]
# ## Many paths
#
# How often is the way steady? Of N Gaussian matrices the share with a condition number that rises somewhere on
# $[0, 2]$ has the standard error $\sqrt{p (1 - p) / N}$. Each singular value alone is nondecreasing beyond $\rho_c$, in
# every draw.

# %%
coarse = np.linspace(0, 2, 41)
matrices = jax.random.normal(jax.random.key(0), (draws, n, n)) / math.sqrt(n)


@jax.jit
def walk(M):
    values = jax.vmap(lambda rho: sx.singular_values(M + rho * jnp.eye(n), method=sx.Dense()))(coarse)
    first = perturbation.identity_shift_derivatives(M, 0.0).first
    return values, perturbation.critical_rho(M), first


values, criticals, first = (np.asarray(part) for part in jax.lax.map(walk, matrices))
conditions = values[:, :, 0] / values[:, :, -1]
rises = np.any(np.diff(conditions, axis=1) > 0, axis=1).mean()
error = math.sqrt(rises * (1 - rises) / draws)
worse = (conditions[:, 20] > conditions[:, 0]).mean()  # at rho = 1
print(f"kappa rises somewhere on the way in {rises:.1%} +- {error:.1%} of the draws,")
print(f"and is larger at rho = 1 than at rho = 0 in {worse:.1%} of them")
assert rises - 4 * error > 0.5
growing = np.diff(values, axis=1) >= -1e-12
assert np.all(growing | (coarse[:-1] < criticals[:, None])[:, :, None])

# %% [markdown]
# To first order the skip does nothing on average: for Gaussian matrices the angle between $u_i$ and $v_i$ is any, and
# $E\, s_i' = 0$ at $\rho = 0$. The gain is one of second order, and of distance. Asserted within four standard errors.

# %%
mean, error = first.mean(axis=0), first.std(axis=0, ddof=1) / math.sqrt(draws)
print("mean slope of each singular value at rho = 0:", np.round(mean, 3), "+-", np.round(error, 3))
assert np.all(np.abs(mean) <= 4 * error)
np.testing.assert_allclose(first.var(axis=0), 1 / n, rtol=4 * math.sqrt(2 / draws))  # of a random unit vector's entry
