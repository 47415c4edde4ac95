"""Every method over the whole gallery: what a result claims is true, and what is not certain is flagged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectrax as sx
from spectrax import testing

GALLERY = testing.gallery(jax.random.key(5))
METHODS = {"auto": "auto", "dense": sx.Dense(), "lanczos": sx.Lanczos(), "inverse": sx.InverseLanczos()}
HOPELESS = ("hilbert", "low rank", "zero")  # the smallest value is one of many at round-off


def cases(dtype, k, *, shapes="all"):
    """Those that fit; with `shapes="one"` only those of the common shape, since each shape is a compilation."""
    return [
        case
        for case in GALLERY
        if k <= len(case.singular_values)
        and (dtype.startswith("complex") or not case.is_complex)
        and (shapes == "all" or case.matrix.shape == (40, 32))
    ]


def check(dtype, method, which, k, *, seeds, shapes):
    if method == "inverse" and which == "largest":
        return
    flagged = set()
    for case in cases(dtype, k, shapes=shapes):
        operator = case.operator(dtype)
        for seed in range(seeds):
            result = sx.svds(operator, k, which=which, method=METHODS[method], key=jax.random.key(seed))
            try:
                testing.assert_singular_values(result, operator, which=which)
            except AssertionError as error:
                raise AssertionError(f"{case.name}, seed {seed}: {error}") from error
            if not bool(result.converged.all()):
                flagged.add(case.name)
            real = jnp.finfo(jnp.float32 if dtype == "bfloat16" else dtype).dtype
            assert result.s.dtype == result.residuals.dtype == real
            assert result.s.shape == result.residuals.shape == result.converged.shape == (k,)
            wanted = case.singular_values[:k] if which == "largest" else case.singular_values[-k:]
            if bool(result.converged.all()):
                m, n = operator.shape
                own = (20 + 5 * max(m, n) ** 0.5) * float(jnp.finfo(real).eps) * case.singular_values[0]
                allowed = np.asarray(result.residuals) * 0.5**0.5 + case.rounding(dtype) + own
                assert (np.abs(np.asarray(result.s) - wanted) <= allowed).all(), case.name
    if method in ("auto", "dense"):
        assert not flagged


# One compilation takes as long as hundreds of runs: a few of them here, and all in the slow suite.
@pytest.mark.parametrize(
    ("dtype", "method", "which", "k"),
    [
        ("float32", "lanczos", "largest", 3),
        ("float32", "lanczos", "smallest", 3),
        ("float32", "inverse", "smallest", 3),
        ("complex128", "lanczos", "largest", 1),
        ("complex128", "lanczos", "smallest", 1),
        ("complex128", "inverse", "smallest", 1),
        ("float64", "lanczos", "smallest", 32),
        ("bfloat16", "lanczos", "largest", 3),
    ],
)
def test_what_is_claimed_is_true(dtype, method, which, k, x64):
    check(dtype, method, which, k, seeds=3, shapes="one")


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex128"])
def test_what_is_claimed_by_the_dense_method_is_true(dtype, which, x64):
    for k in (1, 3, 32):
        check(dtype, "auto", which, k, seeds=1, shapes="all" if k == 1 else "one")


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3, 32])
@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "complex64", "complex128"])
def test_what_is_claimed_is_true_everywhere(dtype, method, which, k, x64):
    check(dtype, method, which, k, seeds=5, shapes="all")


@pytest.mark.parametrize("method", ["lanczos", "inverse"])
def test_easy_cases_converge(method, x64):
    """An honest "did not converge" everywhere would be of no use."""
    which = "smallest" if method == "inverse" else "largest"
    for case in cases("complex128", 1, shapes="one"):
        if method == "lanczos" or case.name not in HOPELESS:
            operator = case.operator("complex128")
            result = sx.svds(operator, 1, which=which, method=METHODS[method], key=jax.random.key(0))
            assert bool(result.converged.all()), case.name


def test_intervals_of_random_probes_hold(x64):
    """Densities, traces and log-determinants, at a level at which no interval of them should miss."""
    options = {"level": 0.9999}
    for case in cases("float32", 1, shapes="one"):
        values = case.singular_values
        found = sx.spectral_density(
            case.operator("float32"), key=jax.random.key(1), num_probes=3, num_steps=10, spectrum="singular_values"
        )
        holds(found.sum(jnp.square, **options), np.sum(values**2), case.name)
        for index in (8, 24):
            threshold = float(values[index] + values[index + 1]) / 2
            near = float(found.resolution) + case.rounding("float32")
            least, most = (np.count_nonzero(values < threshold + shift) for shift in (-near, near))
            counted = found.count(upper=threshold, **options)
            assert float(counted.lower) <= most, case.name
            assert float(counted.upper) >= least, case.name

        gram = (case.matrix.T @ case.matrix).astype("float32")
        values = np.linalg.eigvalsh(gram.astype(float))
        traced = sx.trace(gram, key=jax.random.key(2), max_matvecs=16, method=sx.XTrace(), full=True, **options)
        holds(traced, values.sum(), case.name)
        method = sx.StochasticLanczos(num_probes=3, num_steps=10)
        logdet = sx.logdet(gram, key=jax.random.key(3), method=method, full=True, **options)
        if values[0] > 1e-5 * values[-1]:
            holds(logdet, np.log(values).sum(), case.name)
        elif case.name in HOPELESS:
            assert int(logdet.status) == sx.Status.NOT_POSITIVE_DEFINITE, case.name


def holds(found, true, name):
    assert float(found.lower) <= true <= float(found.upper), (name, found, true)
