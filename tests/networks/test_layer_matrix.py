"""The statements on a layer's matrix Q, each on random networks that are written a second time in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.theory import perturbation, random_matrices

WIDTH, OUTPUTS, DEPTH, SAMPLES = 5, 6, 3, 8
RHOS = (0.0, 0.3, 1.0) * 3
EPS = np.finfo(float).eps
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": functools.partial(jax.nn.leaky_relu, negative_slope=0.1),
    "abs": jnp.abs,
    "hard_tanh": jax.nn.hard_tanh,
    "linear": lambda h: h,
}
# the same by hand: a h + sum of b max(h - t, 0) + c, as (a, ((b, t), (b, t)), c)
PIECES = {
    "relu": (0.0, ((1.0, 0.0), (0.0, 0.0)), 0.0),
    "leaky_relu": (0.1, ((0.9, 0.0), (0.0, 0.0)), 0.0),
    "abs": (-1.0, ((2.0, 0.0), (0.0, 0.0)), 0.0),
    "hard_tanh": (0.0, ((1.0, -1.0), (-1.0, 1.0)), -1.0),
    "linear": (1.0, ((0.0, 0.0), (0.0, 0.0)), 0.0),
}
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def by_pieces(pieces, h, xp=np):
    slope, bends, offset = pieces
    return slope * h + sum(bend * xp.maximum(h - kink, 0) for bend, kink in bends) + offset


def slopes_at(activation, h):
    slope, bends, _ = PIECES[activation]
    return slope + sum(bend * (h > kink) for bend, kink in bends)


class ByHand:
    """z_k = phi(W_k z_{k-1} + b_k) + rho_k z_{k-1} and a readout C, with its Jacobians."""

    def __init__(self, activation, params, x):
        self.W, self.C, self.rho = params["W"], params["C"], params["rho"]
        self.z, self.h = [x], []
        for W, b, rho in zip(self.W, params["b"], self.rho, strict=True):
            self.h.append(W @ self.z[-1] + b)
            self.z.append(by_pieces(PIECES[activation], self.h[-1]) + rho * self.z[-1])
        self.f = self.C @ self.z[-1]
        self.d = [slopes_at(activation, h) for h in self.h]
        self.c = [by_pieces(PIECES[activation], h) - d * h for d, h in zip(self.d, self.h, strict=True)]
        self.J = [d[:, None] * W + rho * np.eye(len(W)) for d, W, rho in zip(self.d, self.W, self.rho, strict=True)]
        self.M = [self.C]
        for J in self.J[:0:-1]:
            self.M.insert(0, self.M[0] @ J)

    def after(self, k):
        """M_k D_k."""
        return self.M[k] * self.d[k]

    def Q(self, k):
        return np.kron(self.after(k), self.z[k])

    def gradients(self, k):
        """The rows of dh_j / dh_k for the layers j >= k."""
        rows, outputs = [np.eye(len(self.h[k]))], np.diag(self.d[k])
        for W, J in zip(self.W[k + 1 :], self.J[k + 1 :], strict=True):
            rows.append(W @ outputs)
            outputs = J @ outputs
        return np.concatenate(rows)

    def pattern(self):
        return np.concatenate(self.d)


@functools.cache
def instances():
    """Parameters of random networks, one for each rho, and samples for each of them."""
    rng = np.random.default_rng(3)
    found = []
    for rho in RHOS:
        W = [rng.normal(size=(WIDTH, WIDTH)) * rng.choice([0.5, 1.0]) / np.sqrt(WIDTH) for _ in range(DEPTH)]
        b = [rng.normal(size=WIDTH) for _ in range(DEPTH)]
        found.append({"W": W, "b": b, "C": rng.normal(size=(OUTPUTS, WIDTH)), "rho": [rho] * DEPTH})
    return found, rng.normal(size=(len(RHOS), SAMPLES, WIDTH))


def stacked(many):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *many)


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@functools.cache
def network(activation):
    def f(params, x):
        z = x
        for W, b, rho in zip(params["W"], params["b"], params["rho"], strict=True):
            z = ACTIVATIONS[activation](W @ z + b) + rho * z
        return params["C"] @ z

    return f


QUANTITIES = (
    "values", "rank", "flat_directions", "condition_number", "eccentricity", "largest_step", "convergence_rate"
)  # fmt: skip


def spectrum(*args, **options):
    found = sx.landscape.layer_spectrum(*args, **options)
    return {name: getattr(found, name) for name in QUANTITIES} | {"basin_widths": found.basin_widths(1.0)}


@functools.cache
def program(activation):
    """All that the package says of one sample, for a stack of networks."""
    f = network(activation)

    def one(params, x, y):
        names = [f"W/{k}" for k in range(DEPTH)]
        rep = sx.local_linear(f, params, x)
        return {
            "Q": [sx.landscape.layer_operator(f, params, name, x).to_dense() for name in [*names, "C"]],
            "spectrum": spectrum(f, params, names[1], x),
            "with bias": spectrum(f, params, names[1], x, bias=True)["values"],
            "reach": [rep.weight_reach(name) for name in names[:2]],
            "quadratic": sx.landscape.local_quadratic(f, params, names[1], x, y),
        }

    return jax.jit(jax.vmap(one))


@functools.cache
def batch_program(activation):
    f = network(activation)

    def one(params, xs):
        options = {"batched": True}
        Q = [sx.landscape.layer_operator(f, params, f"W/{k}", xs, **options).to_dense() for k in range(2)]
        return Q, [spectrum(f, params, f"W/{k}", xs, **options) for k in range(2)]

    return jax.jit(jax.vmap(one))


def asked(activation, params, xs, targets=None):
    targets = np.ones((len(RHOS), OUTPUTS)) if targets is None else np.stack(targets)
    return jax.tree.map(np.asarray, program(activation)(stacked(params), xs, targets))


@functools.cache
def samples(activation):
    """For each network the truth, and what the package says."""
    params, xs = instances()
    found = asked(activation, params, xs[:, 0])
    truth = [ByHand(activation, p, x) for p, x in zip(params, xs[:, 0], strict=True)]
    return [(true, at(found, index)) for index, true in enumerate(truth)]


def batches(activation, params, xs):
    """For each network and each of two layers: Z, all M_g D_g, the dense Q and its spectrum."""
    Q, spectra = jax.tree.map(np.asarray, batch_program(activation)(stacked(params), xs))
    for index, (p, own) in enumerate(zip(params, xs, strict=True)):
        truths = [ByHand(activation, p, x) for x in own]
        for k in range(2):
            Z, after = np.stack([true.z[k] for true in truths], 1), np.stack([true.after(k) for true in truths])
            yield k, truths, Z, after, Q[k][index], at(spectra[k], index)


def singular_values(A):
    return np.linalg.svd(A, compute_uv=False)


def eigenvalues(H):
    return np.linalg.eigvalsh(H)[::-1]


def kappa(A):
    """The largest singular value over the smallest one that is not zero."""
    s = singular_values(A)
    return s[0] / s[np.linalg.matrix_rank(A) - 1]


def close(found, expected, *, scale=None):
    scale = np.max(np.abs(expected)) if scale is None else scale
    assert_allclose(found, expected, rtol=0, atol=1000 * EPS * scale)


def below(small, large, *, scale):
    """Whether small <= large, up to round-off."""
    assert np.all(small <= large + 1000 * EPS * scale), np.max(small - large)


@every_activation
def test_the_output_in_one_layers_weights(activation, x64):
    """f = Q vec(W) + q with Q = M D kron z^T; the layer's own skip is in q, not in Q."""
    for (true, found), params in zip(samples(activation), instances()[0], strict=True):
        for k in range(DEPTH):
            close(found["Q"][k], true.Q(k), scale=np.max(np.abs(true.Q(k))) + 1)
            later = sum(true.M[j] @ (true.d[j] * params["b"][j] + true.c[j]) for j in range(k + 1, DEPTH))
            q = later + true.after(k) @ params["b"][k] + true.M[k] @ (true.c[k] + true.rho[k] * true.z[k])
            close(found["Q"][k] @ true.W[k].ravel() + q, true.f, scale=np.linalg.norm(true.f) + 1)
        close(found["Q"][-1], np.kron(np.eye(OUTPUTS), true.z[-1]))


def test_the_skips_that_enter(x64):
    """Another skip over the last hidden layer leaves its own Q alone, and adds (rho' - rho) C D kron z^T before it."""
    params, xs = instances()
    other = [p | {"rho": [*p["rho"][:-1], 0.7]} for p in params]
    changed = asked("leaky_relu", other, xs[:, 0])["Q"]
    for index, (true, found) in enumerate(samples("leaky_relu")):
        close(changed[-2][index], found["Q"][-2])
        more = (0.7 - true.rho[-1]) * np.kron(true.C * true.d[-2], true.z[-3])
        close(changed[-3][index] - found["Q"][-3], more, scale=np.max(np.abs(changed[-3][index])))
        assert np.linalg.norm(more) > 1e-3


@every_activation
def test_singular_values_and_directions(activation, x64):
    """s_i = |z| s_i(M D) with the directions v_i z^T / |z|; kappa+ is that of M D, whatever z is."""
    for true, found in samples(activation):
        after, z, own, Q = true.after(1), true.z[1], found["spectrum"], found["Q"][1]
        u, s, vt = np.linalg.svd(after)
        length, rank = np.linalg.norm(z), np.linalg.matrix_rank(after)
        close(own["values"], np.append(length * s, 0))
        close(found["with bias"], np.append(np.sqrt(z @ z + 1) * s, 0))
        assert own["rank"] == rank
        assert own["flat_directions"] == WIDTH * WIDTH - rank
        assert np.all(np.isinf(own["basin_widths"][rank:]))
        if rank == 0:
            assert np.isnan(own["condition_number"])
            continue
        ratio = s[0] / s[rank - 1]
        assert_allclose(own["condition_number"], ratio, rtol=1000 * EPS * ratio)
        assert_allclose(own["eccentricity"] ** 2, 1 - ratio**-2, atol=1000 * EPS * ratio)
        # semi-axes of {loss <= minimum + 1}
        assert_allclose(own["basin_widths"][:rank] * length * s[:rank], 1, rtol=1000 * EPS * ratio)
        for i in range(rank):
            direction = np.outer(vt[i], z / length)
            close(Q @ direction.ravel(), length * s[i] * u[:, i], scale=length * s[0])
        # a readout after the square matrix A = J_L ... J_{k+1} D_k
        A = functools.reduce(lambda total, J: J @ total, true.J[2:], np.diag(true.d[1]))
        outer, inner = singular_values(true.C), singular_values(A)
        below(length * outer * inner[-1], own["values"][:WIDTH], scale=own["values"][0])
        below(own["values"][:WIDTH], length * outer * inner[0], scale=own["values"][0])
        if rank == WIDTH:
            assert own["condition_number"] <= outer[0] / outer[-1] * inner[0] / inner[-1] * (1 + 1e-9)


@every_activation
def test_inside_the_radius_no_unit_changes(activation, x64):
    """Not in random directions, and not in the worst one of any unit; in the critical one exactly one changes."""
    params, xs = instances()
    rng, flips = np.random.default_rng(0), 0
    for index, (true, found) in enumerate(samples(activation)):
        y = rng.normal(size=OUTPUTS)
        for k in range(2):
            radius = found["reach"][k].radius
            assert np.isinf(radius) == (activation == "linear")
            reach = min(radius, 1.0)

            def moved(step, k=k, index=index):
                W = [own + step * (k == j) for j, own in enumerate(params[index]["W"])]
                return ByHand(activation, params[index] | {"W": W}, xs[index, 0])

            directions = list(rng.normal(size=(4, WIDTH, WIDTH)))
            directions += [np.outer(row, true.z[k]) for row in true.gradients(k) if np.any(row)]
            for direction, sign in itertools.product(directions, (1, -1)):
                step = sign * (1 - 1e-6) * reach * direction / np.linalg.norm(direction)
                there = moved(step)
                assert np.array_equal(there.pattern(), true.pattern())
                residual = found["Q"][k] @ step.ravel() + true.f - y
                assert_allclose(np.sum((there.f - y) ** 2), residual @ residual, rtol=1e-12)
            if activation != "linear":
                steps = [share * radius * found["reach"][k].direction for share in (1 - 1e-6, 1 + 1e-6)]
                assert [np.sum(moved(step).pattern() != true.pattern()) for step in steps] == [0, 1]
                flips += 1
    assert flips == (0 if activation == "linear" else 2 * len(RHOS))


@every_activation
def test_descent_on_the_loss_itself(activation, x64):
    """Coordinate i shrinks by 1 - 2 lr s_i^2: stable below 1 / s_1^2, at best by (kappa^2 - 1) / (kappa^2 + 1)."""
    params, xs = instances()
    rng, targets, truths = np.random.default_rng(1), [], []
    for true, found in samples(activation):
        u, s, vt = np.linalg.svd(true.Q(1))
        rank = np.linalg.matrix_rank(true.Q(1))
        start = rng.choice([-1.0, 1.0], rank)
        start *= 0.1 * min(found["reach"][1].radius, 1) / np.sqrt(max(rank, 1))
        step = start @ vt[:rank]  # from the weights to the minimiser
        rest = u[:, rank:] @ rng.normal(size=OUTPUTS - rank) * np.linalg.norm(step)
        targets.append(true.f + true.Q(1) @ step + rest)
        truths.append((s, vt[:rank], start, step, rest))
    predicted = asked(activation, params, xs[:, 0], targets)["quadratic"]
    for index, (y, (s, vt, start, step, rest)) in enumerate(zip(targets, truths, strict=True)):
        true, own, quadratic = *samples(activation)[index], at(predicted, index)
        rank = len(vt)
        if rank == 0:
            continue
        round_off = 1000 * EPS * np.linalg.norm(true.f) / s[rank - 1]
        assert quadratic.inside
        minimizer = quadratic.minimizer.ravel()
        assert_allclose(minimizer - true.W[1].ravel(), step, atol=round_off)
        assert_allclose(quadratic.minimum, rest @ rest, atol=round_off * s[0] * np.linalg.norm(y - true.f))

        def moved(weights, index=index):
            W = [weights.reshape(WIDTH, WIDTH) if j == 1 else W for j, W in enumerate(params[index]["W"])]
            return ByHand(activation, params[index] | {"W": W}, xs[index, 0])

        # sum s_i^2 (xi_i - xi_i*)^2 above the minimum: along axis i, the height is excess at the basin's edge
        excess = (0.3 * np.linalg.norm(step) * s[rank - 1]) ** 2
        widths = np.sqrt(excess) * own["spectrum"]["basin_widths"][:rank]
        for width, axis in zip(widths, vt, strict=True):
            height = np.sum((moved(minimizer + width * axis).f - y) ** 2) - rest @ rest
            assert_allclose(height, excess, atol=round_off * s[0] * np.linalg.norm(y - true.f))
        largest, best = own["spectrum"]["largest_step"], 1 / (s[0] ** 2 + s[rank - 1] ** 2)
        for lr in (0.8 * largest, 1.05 * largest, best):
            weights, factor = true.W[1].ravel(), 1 - 2 * lr * s[:rank] ** 2
            for _ in range(8):
                here = moved(weights)
                weights = weights - lr * np.kron(2 * here.after(1).T @ (here.f - y), here.z[1])
            assert_allclose(vt @ (weights - minimizer), factor**8 * -start, atol=2 * round_off)
            assert (np.max(np.abs(factor)) < 1) == (lr < largest)
        assert_allclose(np.max(np.abs(factor)), own["spectrum"]["convergence_rate"], atol=1e-9)


@functools.cache
def hessians():
    """Of the squared error and of the softmax cross-entropy in all weights, by JAX, of networks written by hand."""

    def losses(theta, params, x, y, pieces):
        z, place = x, 0
        for b, rho in zip(params["b"], params["rho"], strict=True):
            W = theta[place : place + WIDTH**2].reshape(WIDTH, WIDTH)
            z, place = by_pieces(pieces, W @ z + b, jnp) + rho * z, place + WIDTH**2
        f = theta[place:].reshape(OUTPUTS, WIDTH) @ z
        return jnp.stack([jnp.sum((f - y) ** 2), jax.nn.logsumexp(f) - f[0]])

    return jax.jit(jax.vmap(jax.hessian(losses), in_axes=(0, 0, 0, 0, None)))


BLOCKS = [slice(k * WIDTH**2, (k + 1) * WIDTH**2) for k in range(DEPTH)] + [slice(DEPTH * WIDTH**2, None)]


@every_activation
def test_hessians(activation, x64):
    """Layer by layer 2 Q^T Q and Q^T S Q; jointly the loss is no sum of squares. The sum of all Q Q^T is the NTK."""
    params, xs = instances()
    targets = np.random.default_rng(2).normal(size=(len(RHOS), OUTPUTS))
    theta = np.stack([np.concatenate([W.ravel() for W in [*p["W"], p["C"]]]) for p in params])
    found = np.asarray(hessians()(theta, stacked(params), xs[:, 0], targets, PIECES[activation]))
    curved = uncentred = 0
    for index, (true, own) in enumerate(samples(activation)):
        squared, cross_entropy = found[index]
        J = np.concatenate(own["Q"], 1)
        for block, Q in zip(BLOCKS, own["Q"], strict=True):
            close(squared[block, block], 2 * Q.T @ Q, scale=np.linalg.norm(J, 2) ** 2)
        curved += np.linalg.norm(squared - 2 * J.T @ J) > 1e-3 * np.linalg.norm(squared)
        kernel = sum(np.sum(true.z[k] ** 2) * true.after(k) @ true.after(k).T for k in range(DEPTH))
        close(J @ J.T, kernel + np.sum(true.z[-1] ** 2) * np.eye(OUTPUTS))
        # softmax: p_min P <= S <= p_max P on vectors of sum zero
        p = np.exp(true.f - true.f.max()) / np.sum(np.exp(true.f - true.f.max()))
        S, centred = np.diag(p) - np.outer(p, p), np.eye(OUTPUTS) - 1 / OUTPUTS
        for block, Q in zip(BLOCKS[:DEPTH], own["Q"], strict=False):
            H, scale = cross_entropy[block, block], np.linalg.norm(Q, 2) ** 2
            close(H, Q.T @ S @ Q, scale=scale + 1)
            curvatures, values = eigenvalues(H)[:OUTPUTS], singular_values(centred @ Q) ** 2
            below(p.min() * values, curvatures, scale=scale)
            below(curvatures, min(p.max(), 0.5) * values, scale=scale)
            uncentred += np.any(curvatures < 0.99 * p.min() * singular_values(Q) ** 2 - 1e-9 * scale)
    assert curved == len(RHOS)
    assert uncentred or activation == "relu"  # without P the lower bound is wrong


@every_activation
def test_batches(activation, x64):
    """Gram blocks, trace, rank, and the eigenvalues between those of all samples with one curvature."""
    params, xs = instances()
    beyond = 0
    for k, truths, Z, after, Q, own in batches(activation, params, xs):
        s, gram = own["values"], Z.T @ Z
        close(s, singular_values(Q))
        close(Q.T @ Q, sum(np.kron(A.T @ A, np.outer(z, z)) for A, z in zip(after, Z.T, strict=True)))
        blocks = np.einsum("gh,gij,hkj->gihk", gram, after, after).reshape(Q.shape[0], -1)
        close(Q @ Q.T, blocks)
        assert_allclose(np.sum(s**2), np.sum(np.diag(gram) * np.sum(after**2, (1, 2))), rtol=1000 * EPS)
        active = [np.sum(true.d[k] != 0) for true in truths]
        assert own["rank"] <= min(np.sum(active), *Q.shape)
        H, inputs = Q.T @ Q, np.repeat(eigenvalues(Z @ Z.T), WIDTH)
        each = np.stack([singular_values(A) for A in after])
        scale = inputs[0] * each.max() ** 2
        below(each.min() ** 2 * inputs, eigenvalues(H), scale=scale)
        below(eigenvalues(H), each.max() ** 2 * inputs, scale=scale)
        smallest = min(s[s > 1e-9 * each.max()].min(initial=np.inf) for s in each)
        inside = own["condition_number"] <= kappa(Z) * each.max() / smallest * (1 + 1e-9)
        beyond += not inside
        assert inside or each.min() <= 1e-9 * each.max()
        curvatures = np.einsum("gij,gik->gjk", after, after)
        mean = curvatures.mean(0)
        eps = max(np.linalg.norm(A - mean, 2) for A in curvatures)
        same = eigenvalues(np.kron(mean, Z @ Z.T))
        below(np.abs(eigenvalues(H) - same), eps * np.linalg.norm(Z, 2) ** 2, scale=scale)
    # with units that are off, the values that are not zero obey no such bound
    assert (beyond > 0) == (activation in ("relu", "hard_tanh"))


@every_activation
def test_one_pattern_for_all_samples(activation, x64):
    """The singular values are all products s_j(Z) s_i(M D)."""
    params, xs = instances()
    for k, truths, Z, after, _, own in batches(activation, params, 1e-4 * xs):
        assert len({tuple(true.pattern()) for true in truths}) == 1
        products = np.sort(np.outer(singular_values(Z), singular_values(after[0])).ravel())[::-1]
        close(own["values"], products)
        if k == 0 and np.any(after):
            assert_allclose(own["condition_number"], kappa(Z) * kappa(after[0]), rtol=1e-9)


@every_activation
def test_orthogonal_inputs(activation, x64):
    """The singular values are those of all samples together."""
    params, rng = instances()[0], np.random.default_rng(4)
    xs = np.zeros((len(RHOS), SAMPLES, WIDTH))  # a sample that is zero adds nothing
    xs[:, :WIDTH] = np.linalg.qr(rng.normal(size=(len(RHOS), WIDTH, WIDTH)))[0] * rng.uniform(0.5, 2, (WIDTH, 1))
    for k, _, Z, after, _, own in batches(activation, params, xs):
        if k == 0:
            each = [np.linalg.norm(z) * singular_values(A) for A, z in zip(after, Z.T, strict=True)]
            close(own["values"], np.sort(np.ravel(each))[::-1][: WIDTH**2])


@pytest.mark.parametrize("activation", ["relu", "abs"])
def test_one_more_sample(activation, x64):
    """It lowers no singular value, and adds at most as many directions as it has active units."""
    params, xs = instances()
    before = None
    for count in range(1, SAMPLES + 1):
        here = xs * (np.arange(SAMPLES) < count)[:, None]
        first = [case for case in batches(activation, params, here) if case[0] == 0]
        for index, (_, truths, _, _, _, own) in enumerate(first):
            assert own["rank"] <= min(count * OUTPUTS, WIDTH**2)
            if before:
                below(before[index]["values"], own["values"], scale=own["values"][0])
                assert own["rank"] - before[index]["rank"] <= np.sum(truths[count - 1].d[0] != 0)
        before = [case[-1] for case in first]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs", "hard_tanh"])
def test_a_batch_with_all_patterns_averages_them(activation, x64):
    """The curvature in the bias is the mean of D A D: samples that switch each unit on and off, and one M behind it."""
    units, rng = 3, np.random.default_rng(5)
    f, inside = network(activation), [0.2, -0.3, 0.5, -0.7]
    params = {"W": list(rng.normal(size=(2, units, units))), "b": [np.zeros(units), np.array([100.0, -100, 90])],
              "C": rng.normal(size=(OUTPUTS, units)), "rho": [0.3, 0.6]}  # fmt: skip
    call = jax.jit(lambda xs: sx.landscape.layer_operator(f, params, "W/0", xs, batched=True, bias=True).to_dense())
    for on in (1, 2, 3):
        out = [-2.0, 3.0, -4.0, 5.0] if activation == "hard_tanh" else [-1.0, -2.0, -3.0, -4.0]
        levels = (inside if activation == "hard_tanh" else [1.0, 2.0, 3.0, 4.0])[:on] + out[: 4 - on]
        h = np.array(list(itertools.product(levels, repeat=units)))
        xs = np.linalg.solve(params["W"][0], h.T).T
        truths = [ByHand(activation, params, x) for x in xs]
        M = truths[0].M[0]
        assert all(np.array_equal(true.M[0], M) for true in truths)
        of_bias = np.asarray(call(xs))[:, :units]
        mean, A = of_bias.T @ of_bias / len(xs), M.T @ M
        slopes = random_matrices.activation_slopes(activation, active_fraction=on / 4, negative_slope=0.1)
        close(random_matrices.expected_pattern_gram(A, slopes=slopes), mean, scale=np.linalg.norm(A))
        floor, d = random_matrices.expected_gram_floor(A, slopes=slopes), slopes_at(activation, np.array(levels))
        close(floor, d.mean() ** 2 * eigenvalues(A)[-1] + d.var() * np.diag(A).min(), scale=np.linalg.norm(A))
        below(floor, eigenvalues(mean)[-1], scale=np.linalg.norm(A))
        if on == 2:
            ridge = {"relu": (0.25, 0.25), "hard_tanh": (0.25, 0.25), "abs": (0, 1), "leaky_relu": (0.3025, 0.2025)}
            close(mean, ridge[activation][0] * A + ridge[activation][1] * np.diag(np.diag(A)), scale=np.linalg.norm(A))


def test_dropout(x64):
    """Over all masks of a layer's units, its curvature is z z^T kron D E D with E = A + q / (1 - q) diag(A)."""
    units, rng = 3, np.random.default_rng(8)
    params = {"w": rng.normal(size=(units, units)), "c": rng.normal(size=(OUTPUTS, units))}
    f = lambda params, sample: params["c"] @ (sample["mask"] * jax.nn.leaky_relu(params["w"] @ sample["z"], 0.1))  # noqa: E731
    call = jax.jit(lambda samples: sx.landscape.layer_operator(f, params, "w", samples, batched=True).to_dense())
    z, A = rng.normal(size=units), params["c"].T @ params["c"]
    d = slopes_at("leaky_relu", params["w"] @ z)
    assert len(set(d)) == 2
    for dropped in (1, 2, 3):
        kept = 4 / (4 - dropped)
        masks = np.array(list(itertools.product([0.0] * dropped + [kept] * (4 - dropped), repeat=units)))
        Q = np.asarray(call({"mask": masks, "z": np.tile(z, (len(masks), 1))}))
        expected = np.asarray(random_matrices.expected_dropout_gram(A, rate=dropped / 4))
        close(Q.T @ Q / len(masks), np.kron(d[:, None] * expected * d, np.outer(z, z)))


@pytest.mark.parametrize(("size", "padding", "wide"), [(3, 0, True), (2, 0, False), (3, 1, False)])
def test_convolutions_have_patches_for_inputs(size, padding, wide, x64):
    """Q Q^T = M D (I kron P P^T) D M^T, so the norm of the input is replaced by the singular values of P."""
    rng, c_in, c_out, length = np.random.default_rng(7), 2 if wide else 1, 2, 4
    side = length + 2 * padding - size + 1
    params = {"kernel": rng.normal(size=(4, size, size, c_in, c_out)),
              "readout": rng.normal(size=(4, OUTPUTS, side * side * c_out))}  # fmt: skip
    xs = rng.normal(size=(4, length, length, c_in))

    def f(params, x):
        h = jax.lax.conv_general_dilated(
            x[None], params["kernel"], (1, 1), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return params["readout"] @ jax.nn.leaky_relu(h, 0.1).ravel()

    def one(params, x):
        found = sx.landscape.layer_spectrum(f, params, "kernel", x)
        return sx.landscape.layer_operator(f, params, "kernel", x).to_dense(), found.values, found.condition_number

    for index, (Q, values, ratio) in enumerate(zip(*jax.jit(jax.vmap(one))(params, xs), strict=True)):
        padded = np.pad(xs[index], ((padding, padding), (padding, padding), (0, 0)))
        P = np.stack([padded[i : i + size, j : j + size].ravel() for i in range(side) for j in range(side)])
        h = P @ params["kernel"][index].reshape(-1, c_out)
        after = params["readout"][index] * slopes_at("leaky_relu", h).ravel()
        expected = np.einsum("mpo,pr->mro", after.reshape(OUTPUTS, -1, c_out), P).reshape(OUTPUTS, -1)
        close(Q, expected)
        close(values, singular_values(expected))
        close(Q @ Q.T, after @ np.kron(P @ P.T, np.eye(c_out)) @ after.T)
        lowest, highest = np.sqrt(np.maximum(np.linalg.eigvalsh(P @ P.T)[[0, -1]], 0))
        s = singular_values(after)
        below(lowest * s, values, scale=values[0])
        below(values, highest * s, scale=values[0])
        assert (lowest > 1e-6 * highest) == wide  # more positions than entries of a patch: nothing from below
        if wide:
            assert ratio <= highest / lowest * kappa(after)
        # the Kronecker formula of dense layers is another number
        assert np.max(np.abs(values - np.linalg.norm(xs[index]) * s)) > 0.05 * values[0]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs", "linear"])
def test_conditioning_through_all_later_layers(activation, x64):
    """kappa(M_k D_k) <= max |d| / min |d| prod (rho + delta_j) / (rho - delta_j), where each delta_j < rho."""
    params, xs = instances()
    isometry = np.linalg.qr(params[0]["C"])[0]  # a readout that changes no singular value
    bounds = jax.jit(jax.vmap(lambda A, rho, d: perturbation.product_bounds(A, rho, slopes=d)[-1]))
    applied = dead = 0
    for share, shift in ((0.1, 0.0), (0.3, 2.0), (1.0, 0.0)):
        scaled = [{"W": [share * W for W in p["W"]], "b": [b + shift for b in p["b"]], "C": isometry, "rho": p["rho"]}
                  for p in params]  # fmt: skip
        found = asked(activation, scaled, xs[:, 0])["Q"][:2]
        truths = [ByHand(activation, p, x) for p, x in zip(scaled, xs[:, 0], strict=True)]
        for k in range(2):
            factors = np.stack([[true.d[j][:, None] * true.W[j] for j in range(k + 1, DEPTH)] for true in truths])
            rows = bounds(factors, np.array(RHOS), np.stack([true.d[k] for true in truths]))
            assert rows.name == "combined"
            for index, (true, rho) in enumerate(zip(truths, RHOS, strict=True)):
                row, deltas = at(rows, index), np.linalg.norm(factors[index], 2, axis=(1, 2))
                least, most = np.abs(true.d[k]).min(), np.abs(true.d[k]).max()
                assert bool(row.applies) == (deltas.max() < rho and least > 0)
                if not row.applies:
                    assert np.isinf(row.upper)
                    dead += least == 0
                    continue
                s = singular_values(found[k][index])
                assert_allclose(row.upper, most / least * np.prod((rho + deltas) / (rho - deltas)), rtol=1e-9)
                assert_allclose(row.actual, s[0] / s[WIDTH - 1], rtol=1e-9)
                assert s[0] / s[WIDTH - 1] <= row.upper * (1 + 1e-9)
                applied += 1
    assert applied > 8
    assert (dead > 0) == (activation == "relu")


def other_skips(name, p, x):
    """Concatenation, a skip over two layers, activation first, a projection where widths differ."""
    rho, first, second, narrow, relu = p["rho"], p["first"], p["second"], p["narrow"], jax.nn.relu
    if name == "concatenation":
        z = jnp.concatenate([rho * x, relu(first @ x)])
        return p["out"] @ jnp.concatenate([rho * z, relu(p["wide"] @ z)])
    if name == "two layers":
        return p["C"] @ (rho * x + relu(second @ relu(first @ x)))
    z = rho * x + (first @ relu(x) if name == "activation first" else relu(first @ x))
    if name == "activation first":
        return p["C"] @ (rho * z + second @ relu(z))
    return p["last"] @ (relu(narrow @ z) + rho * p["V"] @ z)


def other_matrices(name, p, x):
    """Q of the first layer."""
    rho, first, second, narrow = p["rho"], p["first"], p["second"], p["narrow"]
    on, relu = functools.partial(slopes_at, "relu"), lambda h: np.maximum(h, 0)
    if name == "concatenation":
        z = np.concatenate([rho * x, relu(first @ x)])
        M = p["out"] @ np.concatenate([rho * np.eye(2 * WIDTH), on(p["wide"] @ z)[:, None] * p["wide"]])
        return np.kron(M[:, WIDTH:] * on(first @ x), x)  # the columns of the new features
    if name == "two layers":  # the skip leaves the factor D_2 W_2 as it is: no rho
        return np.kron(p["C"] * on(second @ relu(first @ x)) @ second * on(first @ x), x)
    if name == "activation first":
        z = rho * x + first @ relu(x)
        return np.kron(p["C"] @ (rho * np.eye(WIDTH) + second * on(z)), relu(x))
    z = rho * x + relu(first @ x)
    return np.kron(p["last"] @ (on(narrow @ z)[:, None] * narrow + rho * p["V"]) * on(first @ x), x)


@pytest.mark.parametrize("name", ["concatenation", "two layers", "activation first", "projection"])
def test_other_skips(name, x64):
    n, rng = WIDTH, np.random.default_rng(9)
    shapes = {"first": (n, n), "second": (n, n), "narrow": (3, n), "wide": (3, 2 * n), "V": (3, n), "C": (OUTPUTS, n),
              "out": (OUTPUTS, 2 * n + 3), "last": (OUTPUTS, 3)}  # fmt: skip
    params = {key: rng.normal(size=(len(RHOS), *shape)) for key, shape in shapes.items()} | {"rho": np.array(RHOS)}
    xs = rng.normal(size=(len(RHOS), n))
    f = lambda p, x: other_skips(name, p, x)  # noqa: E731
    found = jax.jit(jax.vmap(lambda p, x: sx.landscape.layer_operator(f, p, "first", x).to_dense()))(params, xs)
    seen = 0
    for index, (Q, x) in enumerate(zip(found, xs, strict=True)):
        expected = other_matrices(name, at(params, index), x)
        close(Q, expected)
        seen += np.any(expected)
    assert seen > 5
