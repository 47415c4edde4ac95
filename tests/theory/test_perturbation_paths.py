"""Derivatives and branches of the singular values of M + rho I against differences, closed forms and E5's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.theory import perturbation


def values(M, rho):
    return np.linalg.svd(M + rho * np.eye(len(M)), compute_uv=False)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_derivatives_against_central_differences(n, x64):
    rng = np.random.default_rng(n)
    M, rhos = rng.normal(size=(60, n, n)), rng.uniform(-1, 1, 60)
    found = jax.vmap(perturbation.identity_shift_derivatives)(M, rhos)
    checked, step = 0, 2e-5
    for index in range(60):
        s, above, below = (values(M[index], rhos[index] + h) for h in (0, step, -step))
        assert_allclose(found.values[index], s, atol=1e-13)
        if s[-1] < 0.05 or (n > 1 and np.diff(s).max() > -0.05):
            continue  # differences see the kinks
        checked += 1
        assert_allclose(found.first[index], (above - below) / (2 * step), atol=1e-6)
        assert_allclose(found.second[index], (above - 2 * s + below) / step**2, rtol=1e-3, atol=1e-4)
        assert np.all(np.abs(found.first[index]) <= 1 + 1e-14)
    assert checked >= 20


def test_the_mean_of_the_derivatives_over_independent_singular_vectors(x64):
    """For Haar-distributed U and V the gain is of second order: s_i' is 0 on average, large values bend up."""
    rng, s, n, count = np.random.default_rng(0), np.array([3.0, 2.0, 0.8]), 3, 12_000
    gaussians = np.linalg.qr(rng.normal(size=(2, count, n, n)))
    U, V = gaussians.Q * np.sign(np.diagonal(gaussians.R, axis1=-2, axis2=-1))[..., None, :]
    matrices = (U * s) @ V.transpose(0, 2, 1)
    found = jax.jit(lambda M: jax.lax.map(lambda A: perturbation.identity_shift_derivatives(A, 0.0), M))(matrices)
    gaps = s[:, None] ** 2 - s**2 + np.diag(np.full(n, np.inf))
    bends = np.sum(2 * s[:, None] / gaps, axis=1) / n
    assert bends[0] > 0 > bends[-1]
    for samples, mean in ((found.first, np.zeros(n)), (found.second, bends)):
        error = np.std(samples, axis=0) / np.sqrt(count)
        assert np.all(np.abs(np.mean(samples, axis=0) - mean) <= 4 * error)
        assert np.all(error <= 0.02 * (1 + np.abs(mean)))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e15])
def test_repeated_values_that_mix_at_second_order_have_no_second_derivative(scale, x64):
    """Equal values with equal slopes, told apart by their second derivatives alone, in any unit."""
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    K = np.block([[np.zeros((2, 2)), turn], [np.eye(2), np.zeros((2, 2))]])
    found = perturbation.identity_shift_derivatives(scale * np.diag([2.0, 2.0, 1.0, 0.5]) @ K.T, 0.0)
    assert_allclose(found.first, np.zeros(4), atol=1e-13)
    assert np.isnan(found.second[:2]).all()
    coupled = [np.sum((K[j] + K[:, j])[:2] ** 2 / (2 * (s - 2)) + (K[j] - K[:, j])[:2] ** 2 / (2 * (s + 2)))
               for j, s in ((2, 1.0), (3, 0.5))]  # fmt: skip
    assert_allclose(found.second[2:] * scale, coupled, rtol=1e-10)


def test_derivatives_where_they_are_not_defined(x64):
    nan = np.isnan
    both = perturbation.identity_shift_derivatives(jnp.diag(jnp.array([1.0, -1.0])), 0.0)  # |1 + rho|, |rho - 1|
    assert nan(both.first).all() or set(np.round(both.first, 6).tolist()) == {1, -1}
    mixed = perturbation.identity_shift_derivatives(jnp.array([[0.0, 1.0], [1.0, 0.0]]), 0.0)
    assert nan(mixed.first).all() or set(np.round(mixed.first, 6).tolist()) == {1, -1}
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert nan(perturbation.identity_shift_derivatives(Q, 0.0).first).all()
    zero = perturbation.identity_shift_derivatives(jnp.zeros((3, 3)), 0.0)
    assert nan(zero.first).all()
    singular = perturbation.identity_shift_derivatives(jnp.diag(jnp.array([2.0, 0.0])), 0.0)
    assert_allclose(singular.first[0], 1)
    assert nan(singular.first[1])
    assert nan(singular.second[1])
    bad = perturbation.identity_shift_derivatives(jnp.full((2, 2), jnp.nan), 0.0)
    assert nan(bad.first).all()
    assert nan(bad.second).all()


def test_repeated_values_that_move_together_have_derivatives(x64):
    """Pairs of complex eigenvalues a +- bj of a normal matrix: sqrt((a + rho)^2 + b^2), twice."""
    a, b, rho = 0.3, 1.2, 0.4
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    block = np.zeros((4, 4))
    block[:2, :2] = [[a, b], [-b, a]]
    block[2:, 2:] = [[-2, 0.5], [-0.5, -2]]
    found = perturbation.identity_shift_derivatives(Q @ block @ Q.T, rho)
    s = np.sqrt([(rho - 2) ** 2 + 0.25] * 2 + [(a + rho) ** 2 + b**2] * 2)
    assert_allclose(found.values, s, rtol=1e-13)
    assert_allclose(found.first, np.array([rho - 2] * 2 + [a + rho] * 2) / s, rtol=1e-10)
    assert_allclose(found.second, np.array([0.25] * 2 + [b**2] * 2) / s**3, rtol=1e-9)


def test_the_path_of_a_random_matrix_that_gets_worse_before_it_gets_better(x64):
    """A skip may make it worse: kappa is not monotone before -h_min, and falls from there on."""
    M = np.random.default_rng(3).normal(size=(6, 6)) / np.sqrt(6)
    rhos = np.arange(0, 2.25, 0.25)
    kappas = np.asarray(perturbation.condition_numbers(M, rhos))
    assert_allclose(kappas, [765, 14.3, 28.2, 266, 24.8, 9.7, 6.1, 4.5, 3.7], rtol=0.01)
    threshold = float(perturbation.critical_rho(M))
    assert_allclose(threshold, 1.09, atol=0.005)
    assert kappas[3] > kappas[2] > kappas[1]
    assert np.all(np.diff(kappas[rhos >= threshold]) < 0)

    path = perturbation.singular_value_path(M, rhos)
    assert bool(path.followed.all())
    assert_allclose(path.ordered, [values(M, rho) for rho in rhos], atol=1e-13)
    assert_allclose(np.sort(np.abs(path.branches), axis=1)[:, ::-1], path.ordered, atol=1e-13)
    assert np.all(np.asarray(path.branches[0]) >= 0)


@pytest.mark.parametrize("seed", range(4))
def test_branches_are_smooth(seed, x64):
    """Hermite's rule from the branches and their own slopes: s(b) - s(a) = h (s'(a) + s'(b)) / 2 + O(h^3)."""
    M = np.random.default_rng(seed).normal(size=(5, 5))
    rhos = np.linspace(-2, 2, 401)
    path = jax.tree.map(np.asarray, perturbation.singular_value_path(M, rhos))
    assert path.followed.all()
    h = rhos[1] - rhos[0]
    bend = h**2 * (path.second[:-1] - path.second[1:]) / 12
    jump = np.diff(path.branches, axis=0) - h * (path.first[1:] + path.first[:-1]) / 2 - bend
    assert np.nanmax(np.abs(jump)) < 1e-4
    assert np.isfinite(path.first).all()
    # where the determinant has changed sign, an odd number of branches have passed through zero
    signs = np.sign([np.linalg.det(M + rho * np.eye(5)) for rho in rhos])
    assert_allclose(np.prod(np.sign(path.branches), axis=1), signs * signs[0])
    assert len(set(signs)) == (1 if seed == 0 else 2)
    ordered_jump = np.diff(path.ordered, axis=0)
    assert np.abs(ordered_jump).max() <= h + 1e-12


def test_true_crossings_and_zeros_are_passed(x64):
    """Rotated diagonal matrices: lines abs(lambda + rho), with crossings at and between the points."""
    eigenvalues = np.array([2.0, 0.5, -0.25, -1.0, -1.6])
    Q = np.linalg.qr(np.random.default_rng(5).normal(size=(5, 5)))[0]
    rhos = np.linspace(0, 2, 9)
    path = perturbation.singular_value_path(Q @ np.diag(eigenvalues) @ Q.T, rhos)
    assert bool(path.followed.all())
    order = np.argsort(-np.abs(eigenvalues))
    sign = np.sign(eigenvalues[order])
    assert_allclose(path.branches, sign * (eigenvalues[order] + rhos[:, None]), atol=1e-12)
    alone = np.isfinite(path.first)
    assert alone.mean() > 0.8
    assert_allclose(np.where(alone, path.first, sign), np.broadcast_to(sign, (9, 5)), atol=1e-10)
    backwards = perturbation.singular_value_path(Q @ np.diag(eigenvalues) @ Q.T, rhos[::-1].copy())
    assert_allclose(
        np.sort(np.abs(backwards.branches), axis=1), np.sort(np.abs(path.branches), axis=1)[::-1], atol=1e-12
    )


def test_an_avoided_crossing_is_not_passed(x64):
    """[[a, g], [-g, -a]]-like mixing keeps two values apart by 2 g: they turn away from each other."""
    gap = 0.02
    M = np.array([[0.0, gap], [gap, 2.0]])  # symmetric: eigenvalues rho-independent, so tilt one of them
    tilt = np.array([[3.0, gap], [-gap, -3.5]])
    for A in (M, tilt):
        path = perturbation.singular_value_path(A, np.linspace(0, 1, 21))
        assert bool(path.followed.all())
        assert_allclose(np.abs(path.branches), np.sort(np.abs(path.branches), axis=1)[:, ::-1])
    crossing = perturbation.singular_value_path(np.diag([3.0, -3.5]), np.linspace(0, 1, 21))
    assert_allclose(crossing.branches[-1], [2.5, 4.0])  # without mixing they cross


@pytest.mark.parametrize(
    "M", [np.zeros((3, 3)), np.eye(3), -np.eye(3), np.diag([1.0, 1.0, 0.0]), np.roll(np.eye(3), 1, 0), np.ones((3, 3))]
)
def test_repeated_and_zero_values_along_the_way(M, x64):
    rhos = np.array([0.0, 0.5, 1.0, 1.5])
    path = perturbation.singular_value_path(M, rhos)
    assert bool(path.followed.all())
    eigenvalues = np.linalg.eigvals(M)
    for index, rho in enumerate(rhos):
        expected = np.sort(np.abs(eigenvalues + rho))[::-1]
        assert_allclose(np.sort(np.abs(path.branches[index]))[::-1], expected, atol=1e-7)
        assert_allclose(path.ordered[index], expected, atol=1e-7)
    # smooth: these branches are convex or straight, never bent down
    assert np.diff(path.branches, 2, axis=0).min() > -1e-7


def test_a_branch_has_its_derivatives_while_it_passes_through_zero(x64):
    """M + I is singular; the branch and its mirror image meet there with opposite slopes."""
    h = 1e-3
    path = perturbation.singular_value_path(np.array([[2.0, 1.0], [0.0, -1.0]]), np.array([1 - h, 1.0, 1 + h]))
    below, at, above = path.branches
    assert_allclose(np.abs(at).min(), 0, atol=1e-14)
    assert_allclose(path.first[1], (above - below) / (2 * h), atol=1e-5)
    assert_allclose(path.second[1], (above - 2 * at + below) / h**2, atol=1e-5)
    assert np.abs(path.second[1]).min() > 0.01


def test_zero_plus_rho_is_a_straight_line_through_zero(x64):
    path = perturbation.singular_value_path(jnp.zeros((2, 2)), jnp.array([-1.0, 0.0, 1.0]))
    assert_allclose(path.branches, [[1, 1], [0, 0], [-1, -1]], atol=1e-14)
    assert_allclose(path.first, -np.ones((3, 2)), atol=1e-12)
    assert_allclose(path.second, np.zeros((3, 2)), atol=1e-10)


def test_single_points_bad_numbers_and_batches():
    one = perturbation.singular_value_path(jnp.diag(jnp.array([1.0, -3.0])), jnp.array([0.5]))
    assert_allclose(one.branches, [[2.5, 1.5]], rtol=1e-6)
    assert bool(one.followed.all())
    bad = perturbation.singular_value_path(jnp.full((2, 2), jnp.nan), jnp.array([0.0, 1.0]))
    assert np.isnan(bad.branches).all()
    assert not bad.followed.any()
    lost = perturbation.singular_value_path(jnp.eye(2), jnp.array([0.0, jnp.nan]))
    assert not bool(lost.followed[-1])
    assert perturbation.condition_numbers(jnp.zeros((2, 2)), jnp.array([0.0, 1.0])).tolist() == [jnp.inf, 1.0]
    assert np.isnan(perturbation.condition_numbers(jnp.eye(2), jnp.array([jnp.nan]))).all()
    stack = jnp.stack([jnp.eye(2), jnp.diag(jnp.array([2.0, -1.0]))])
    batch = jax.vmap(lambda M: perturbation.singular_value_path(M, jnp.array([0.0, 1.5])))(stack)
    assert_allclose(batch.branches[1], [[2, 1], [3.5, -0.5]], rtol=1e-5)
    assert batch.branches.dtype == jnp.float32


def test_a_path_that_is_too_coarse_says_so(x64):
    """One step without halvings over a place where vectors turn by a right angle within 1e-3."""
    A = np.array([[3.0, 1e-3], [-1e-3, -3.5]])
    M = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    M[:2, :2] += A
    rough = perturbation.singular_value_path(M, np.array([-6.0, 6.0]), substeps=1, max_halvings=1)
    assert not bool(rough.followed[-1])
    fine = perturbation.singular_value_path(M, np.array([-6.0, 6.0]))
    assert bool(fine.followed[-1])


def test_arguments():
    M = jnp.eye(2)
    with pytest.raises(TypeError, match="rhos must have a real floating-point dtype"):
        perturbation.condition_numbers(M, jnp.arange(3))
    with pytest.raises(ValueError, match="rhos must have shape"):
        perturbation.singular_value_path(M, jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="substeps must be at least 1, got 0"):
        perturbation.singular_value_path(M, jnp.zeros(2), substeps=0)
    with pytest.raises(TypeError, match="max_halvings must be an integer"):
        perturbation.singular_value_path(M, jnp.zeros(2), max_halvings=1.5)
