"""Repeated values: a Krylov space from one start holds one copy of each, and none may be missed without a word."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectrax as sx
from spectrax import testing

SHAPE = (150, 120)
MULTIPLICITIES = (2, 3, 6, 20)
METHODS = {"lanczos": sx.Lanczos(), "block": sx.Lanczos(block_size=3), "inverse": sx.InverseLanczos()}
UNCHALLENGED = {"unchallenged": sx.Lanczos(probe=False)}


def bulk(name, count):
    """Distinct values, descending from 1."""
    if name == "linear":
        return testing.linear_decay(count, condition_number=10.0)
    if name == "geometric":
        return testing.geometric_decay(count, condition_number=30.0)
    gaussian = np.random.default_rng(0).normal(size=(count + 30, count))
    values = np.linalg.svd(gaussian, compute_uv=False)
    return values / values[0]


@functools.cache
def matrices(spectrum, multiplicity, seeds):
    """Matrices whose first and last values occur so often, made on the host, and these values."""
    distinct = bulk(spectrum, SHAPE[1] - 2 * (multiplicity - 1))
    repeats = np.r_[multiplicity, np.ones(len(distinct) - 2, int), multiplicity]
    values = np.repeat(distinct, repeats)
    found = []
    for seed in seeds:
        rng = np.random.default_rng([seed, multiplicity])
        u, v = (np.linalg.qr(rng.normal(size=(size, SHAPE[1])))[0] for size in SHAPE)
        found.append((u * values) @ v.T)
    return values, found


def count_misses(method, which, spectrum, multiplicity, k, tol, seeds, dtype="float64"):
    """Return the seeds at which something was missed silently, and how many results claim to have converged."""
    values, several = matrices(spectrum, multiplicity, tuple(seeds))
    missed, converged = [], 0
    method = {**METHODS, **UNCHALLENGED}[method]
    round_off = 50 * np.finfo(dtype).eps * values[0]
    for seed, matrix in zip(seeds, several, strict=True):
        given = matrix.astype(dtype)
        result = sx.svds(given, k, which=which, method=method, key=jax.random.key(seed), tol=tol)
        if not bool(result.converged.all()):
            assert int(result.status) > sx.Status.AT_ROUND_OFF
            continue
        converged += 1
        s, residuals = np.asarray(result.s, np.float64), np.asarray(result.residuals, np.float64)
        # k values lie at or beyond true[k - 1]: if that is beyond the last of the k found ones, one is not among them
        if which == "largest":
            lost = values[k - 1] > s[-1] + residuals[-1] + round_off
        else:
            lost = values[-k] < s[0] - residuals[0] - round_off
        if lost:
            missed.append(seed)
    return missed, converged


def check(cases, seeds, dtype="float64"):
    """All cases are run before anything is said, so that one failure shows them all."""
    failures, runs, claims = {}, 0, 0
    for case in cases:
        missed, converged = count_misses(*case, seeds, dtype)
        runs, claims = runs + len(seeds), claims + converged
        if missed:
            failures[case] = missed
    assert not failures, f"{sum(map(len, failures.values()))} of {runs} missed a value silently: {failures}"
    assert claims >= 0.3 * runs, f"{claims} of {runs} converged: what is always flagged is of no use"


# One program for each number of values and each tolerance: a few of them here, and all in the slow suite.
@pytest.mark.parametrize(
    ("method", "which", "multiplicity", "extra", "tol"),
    [
        ("lanczos", "largest", 2, 1, 1e-2),
        ("lanczos", "largest", 6, 0, 1e-6),
        ("lanczos", "smallest", 3, 0, 1e-4),
        ("block", "largest", 6, 1, 1e-2),
        ("inverse", "smallest", 3, 1, 1e-10),
    ],
)
def test_no_copy_is_missed(method, which, multiplicity, extra, tol, x64):
    spectra = ("linear", "geometric", "marchenko-pastur")
    check([(method, which, name, multiplicity, multiplicity + extra, tol) for name in spectra], range(20))


def test_the_count_can_tell(x64):
    """Without the challenge copies are missed in silence, and this file's count says so."""
    missed, converged = count_misses("unchallenged", "largest", "linear", 6, 6, 1e-6, range(20))
    assert converged >= 15
    assert len(missed) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("multiplicity", MULTIPLICITIES)
@pytest.mark.parametrize(
    ("method", "which"),
    [
        (method, which)
        for method in METHODS
        for which in ("largest", "smallest")
        if (method, which) != ("inverse", "largest")
    ],
)
def test_no_copy_is_missed_anywhere(method, which, multiplicity, extra, x64):
    cases = [
        (method, which, name, multiplicity, multiplicity + extra, tol)
        for tol in (1e-2, 1e-4, 1e-6, 1e-10)
        for name in ("linear", "geometric", "marchenko-pastur")
    ]
    check(cases, range(20))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("method", ["lanczos", "block"])
def test_no_copy_is_missed_by_complex_vectors(method, which, x64):
    """Whose challenge is shorter, since a random complex number is hardly ever small."""
    cases = [
        (method, which, name, multiplicity, multiplicity, tol)
        for tol in (1e-2, 1e-4, 1e-10)
        for multiplicity in (2, 6)
        for name in ("linear", "geometric", "marchenko-pastur")
    ]
    check(cases, range(20), "complex128")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_no_copy_is_missed_in_32_bits(which):
    cases = [
        ("lanczos", which, name, multiplicity, multiplicity, tol)
        for tol in (1e-2, 1e-4, 1e-6)
        for multiplicity in (2, 6)
        for name in ("linear", "geometric", "marchenko-pastur")
    ]
    check(cases, range(20), "float32")


@pytest.mark.parametrize("k", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_value_is_missed_behind_a_clump(k, x64):
    """Hundreds of values just below the top are met before the top is, and look converged at loose tolerances."""
    n, clump = 600, 400
    silent = missed_without = 0
    for method in (sx.Lanczos(), sx.Lanczos(probe=False)):
        for tol in (1e-1, 1e-2):
            solve = jax.jit(
                jax.vmap(lambda A, key, m=method, t=tol: sx.svds(A, k, method=m, key=key, tol=t), in_axes=(None, 0))
            )
            for gap in (0.03, 0.05):
                rest = np.linspace(0.05, 0.9 * (1 - gap), n - k - clump)
                values = np.r_[np.ones(k), 1 - gap + 1e-3 * np.linspace(-1, 0, clump), rest]
                found = solve(jnp.diag(jnp.asarray(values)), jax.random.split(jax.random.key(1), 20))
                beyond = np.asarray(found.s)[:, -1] + np.asarray(found.residuals)[:, -1] < 1 - 1e-12
                count = int((beyond & np.asarray(found.converged).all(1)).sum())
                silent, missed_without = (
                    (silent + count, missed_without) if method.probe else (silent, missed_without + count)
                )
    assert silent == 0
    assert missed_without > 0


@pytest.mark.parametrize("sign", [1, -1])
def test_no_copy_at_the_far_end_is_missed(sign, x64):
    """The last wanted value of the largest magnitude stands alone at one end, the copy that is missing at the other."""
    values = sign * np.r_[[10, 10, -9.999], np.linspace(-1, 9.9, 397)]
    matrix = jnp.diag(jnp.asarray(values))
    solve = jax.jit(lambda key: sx.eigsh(matrix, 2, which="largest_magnitude", method=sx.Lanczos(), key=key))
    for seed in range(6):
        found = solve(jax.random.key(seed))
        assert bool(found.converged.all())
        assert np.allclose(found.eigenvalues, 10.0 * sign)
