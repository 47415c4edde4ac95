"""Densities against exact spectra, and how often the intervals hold."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing
from spectrax.spectrum.confidence import share_limits, student_quantile

KEY = jax.random.key(3)
KEYS = jax.random.split(jax.random.key(1), 200)
LEAST = 0.95 - 3 * math.sqrt(0.95 * 0.05 / 200)  # of 200 intervals at 95 %, but for one time in 700
N = 120
SPECTRA = {
    "linear": np.linspace(-1, 3, N),
    "few and geometric": np.r_[-1.0, -0.9, -0.5, np.geomspace(1e-2, 1, N - 3)],
    "two clusters": np.r_[np.linspace(-2, -1, 40), np.linspace(1, 2, N - 40)],
    "repeated": np.repeat([-1.0, 0.5, 1, 2, 5], N // 5),
}


def symmetric(values, dtype="float32"):
    n = len(values)
    q, _ = np.linalg.qr(np.asarray(jax.random.normal(jax.random.key(7), (n, n), dtype)))
    matrix = (q * values) @ q.conj().T
    return jnp.asarray((matrix + matrix.conj().T) / 2, dtype)


def bell(points, values, width):
    return np.mean(np.exp(-0.5 * ((points[:, None] - values) / width) ** 2), 1) / (width * math.sqrt(2 * math.pi))


@functools.partial(jax.jit, static_argnames=("probes", "steps", "spectrum"))
def intervals(matrix, thresholds, points, width, *, probes, steps, spectrum="eigenvalues"):
    """Those of 200 seeds."""

    def one(key):
        found = sx.spectral_density(matrix, key=key, num_probes=probes, num_steps=steps, spectrum=spectrum)
        return {
            "count": jax.vmap(lambda t: found.count(upper=t))(thresholds),
            "inside": found.count(thresholds[0], thresholds[1]),
            "cumulative": found.cumulative(thresholds),
            "density": found.density(points, width=width),
            "squares": found.sum(jnp.square),
            "exponentials": found.sum(lambda x: jnp.exp(-x)),
        }

    return jax.lax.map(one, KEYS)


@pytest.mark.parametrize(
    ("name", "probes", "steps", "dtype", "spectrum"),
    [
        ("few and geometric", 4, 14, "float32", "eigenvalues"),
        ("two clusters", 1, 10, "complex64", "eigenvalues"),
        ("repeated", 3, 8, "float32", "eigenvalues"),
        ("two clusters", 4, 10, "float32", "singular_values"),
    ],
)
def test_intervals_hold_as_often_as_they_say(name, probes, steps, dtype, spectrum):
    values = SPECTRA[name]
    matrix = symmetric(values, dtype)
    if spectrum == "singular_values":
        values = np.sort(np.abs(values))
    thresholds = np.r_[np.quantile(values, [0.1, 0.6]) + 1e-3, 0.0 if values[0] < 0 else 0.7].astype("float32")
    points = np.linspace(values.min(), values.max(), 5).astype("float32")
    width = np.float32(0.12 * (values.max() - values.min()))
    found = intervals(matrix, thresholds, points, width, probes=probes, steps=steps, spectrum=spectrum)
    below = np.array([np.sum(values < t) for t in thresholds])
    true = {
        "count": below,
        "inside": below[1] - below[0],
        "cumulative": below / N,
        "density": bell(points, values, width),
        "squares": np.sum(values**2),
        "exponentials": np.sum(np.exp(-values)),
    }
    for what, quantity in found.items():
        lower, value, upper = (np.asarray(leaf) for leaf in (quantity.lower, quantity.value, quantity.upper))
        assert (np.asarray(quantity.status) == sx.Status.CONVERGED).all()
        assert quantity.kind == "estimate"
        held = np.mean((lower <= true[what]) & (true[what] <= upper), 0)
        assert (held >= LEAST).all(), (what, held)
        # they say something: no wider than the spread of the values needs, and what a node weighs, or the bias, adds
        spread, half = np.std(value, 0), np.mean(upper - lower, 0) / 2
        room = {"count": 3 * N / steps, "inside": 3 * N / steps, "cumulative": 3 / steps}
        assert (half <= 2.6 * spread + room.get(what, 0.03 * np.max(true[what]))).all(), (what, half, spread)
        assert what in room or (half >= 1.5 * spread).all(), (what, half, spread)
    one = sx.spectral_density(matrix, key=KEY, num_probes=probes, num_steps=steps, spectrum=spectrum)
    narrow, wide = (one.sum(jnp.square, level=level) for level in (0.5, 0.99))
    assert wide.upper - wide.lower > 2 * (narrow.upper - narrow.lower)


def test_counts_in_a_gap_become_certain_with_steps():
    """The bounds of masses fall exponentially there; what is left is the number of probes."""
    matrix = symmetric(SPECTRA["two clusters"])
    widths = []
    for steps in (3, 30):
        found = sx.spectral_density(matrix, key=KEY, num_probes=8, num_steps=steps)
        count = found.count(upper=0.0, level=0.999)
        assert count.lower <= 40.0 <= count.upper
        widths.append(float(count.upper - count.lower))
    share = 40 / N
    assert widths[1] <= 1.1 * 2 * 3.29 * N * math.sqrt(2 * share * (1 - share) / ((N + 2) * 8))
    assert widths[0] > 1.5 * widths[1]
    for lower, upper, true in ((-0.9, 0.9, 0), (-math.inf, -3.0, 0), (-3.0, math.inf, N), (-math.inf, math.inf, N)):
        count = found.count(lower, upper)
        assert (float(count.lower), float(count.upper)) == (true, true)
        assert_allclose(count.value, true, atol=1e-3)


@pytest.mark.parametrize("spectrum", ["eigenvalues", "singular_values"])
def test_exhausted_spaces_leave_the_probes_alone(spectrum):
    cases = {
        "identity": (np.eye(6), 1.5, 6),
        "zero": (np.zeros((6, 6)), 1e-3, 6),
        "one by one": (np.full((1, 1), 3.0), 1.5, 0),
        "rank one": (np.ones((6, 6)), 3.0, 5),
        "repeated": (np.diag([1.0, 1, 1, 2, 2, 5]), 1.5, 3),
    }
    for name, (matrix, threshold, true) in cases.items():
        found = sx.spectral_density(jnp.asarray(matrix, jnp.float32), key=KEY, num_probes=40, spectrum=spectrum)
        count = found.count(upper=threshold, level=0.9999)
        assert int(found.status) == sx.Status.CONVERGED, name
        assert float(count.lower) <= true <= float(count.upper), name
        if name in ("identity", "zero", "one by one"):
            assert (float(count.lower), float(count.upper)) == (true, true), name
            assert int(found.num_matvecs) <= 40 * 4
        assert_allclose(jnp.sum(found.weights, 1), 1, rtol=1e-5)
        total = found.sum(jnp.square, level=0.9999)
        square = np.sum(np.abs(matrix) ** 2)
        assert total.lower * (1 - 1e-6) <= square <= total.upper * (1 + 1e-6), name
        assert np.isfinite(found.density(jnp.array([0.0, 1.0])).value).all(), name


def test_values_at_round_off_are_on_either_side():
    """Whether the zeros of a singular matrix are negative is not known, and the interval says so."""
    matrix = symmetric(np.r_[np.zeros(20), np.linspace(1, 2, 20)])
    found = sx.spectral_density(matrix, key=KEY, num_probes=16, num_steps=30)
    count = found.count(upper=0.0)
    assert float(count.lower) == 0
    assert float(count.upper) >= 20
    assert float(found.count(upper=-0.01).upper) == 0
    assert 20 <= float(found.count(upper=0.01).upper) < 30


@pytest.mark.parametrize(("shape", "dtype"), [((40, 25), "complex64"), ((25, 40), "float32")])
def test_wide_and_tall_operators_have_the_singular_values_of_the_shorter_side(shape, dtype):
    s = np.linspace(0.5, 2, 25)
    operator = testing.with_singular_values(KEY, s, shape, dtype)
    struct = jax.ShapeDtypeStruct(shape[1:], dtype)
    function = sx.aslinearoperator(lambda v: operator.to_dense() @ v, struct)
    for A in (operator.to_dense(), function):
        found = sx.spectral_density(A, key=KEY, num_probes=60, num_steps=25, spectrum="singular_values")
        assert found.dimension == 25
        assert found.nodes.shape == (60, 25)
        assert_allclose(jnp.mean(found.nodes, 0), s, rtol=1e-3)  # all steps: every probe sees every value
        count = found.count(upper=1.0, level=0.9999)
        assert float(count.lower) <= np.sum(s < 1) <= float(count.upper)


def test_small_singular_values_are_not_squared():
    """A Gram matrix in 32 bits would lose everything below 3e-4."""
    s = np.r_[np.full(10, 1e-5), np.linspace(0.5, 1, 10)]
    matrix = testing.with_singular_values(KEY, s, (24, 20), "float32").to_dense()
    found = sx.spectral_density(matrix, key=KEY, num_probes=30, num_steps=20, spectrum="singular_values")
    few = found.count(upper=5e-5, level=0.9999)
    assert 5 <= float(few.lower) <= 10 <= float(few.upper)
    assert float(found.count(upper=1e-6).upper) <= 10


def test_half_precision():
    values = np.r_[np.linspace(-1, -0.5, 10), np.linspace(0.5, 2, 30)]
    rounded = symmetric(values).astype(jnp.bfloat16)
    struct = jax.ShapeDtypeStruct((40,), jnp.bfloat16)
    for A in (rounded, (lambda v: rounded @ v, struct)):
        found = sx.spectral_density(A, key=KEY, num_probes=12, num_steps=20)
        assert found.nodes.dtype == jnp.float32
        count = found.count(upper=0.0, level=0.9999)
        assert float(count.lower) <= 10 <= float(count.upper) < 20


def test_what_is_wrong_is_said():
    nan = jnp.full((30, 30), jnp.nan)
    skew = jax.random.normal(KEY, (30, 30))
    for A, status in ((nan, sx.Status.NOT_FINITE), (skew, sx.Status.ADJOINT_MISMATCH)):
        found = sx.spectral_density(A, key=KEY, num_probes=2, num_steps=8)
        results = [found.count(upper=0.0), found.sum(jnp.square), found.density(jnp.zeros(2)), found.cumulative(0.5)]
        for result in results:
            assert (np.asarray(result.status) == status).all()
            for leaf in (result.value, result.lower, result.upper):
                assert np.isnan(leaf).all()
    unfinished = sx.spectral_density(skew + skew.T, key=KEY, num_probes=2, num_steps=1).sum(jnp.square)
    assert float(unfinished.upper) == math.inf  # one step: nothing is known of its error
    for wrong, message in (
        ({"num_probes": 0}, "num_probes"),
        ({"num_steps": 0}, "num_steps"),
        ({"spectrum": "both"}, "spectrum"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            sx.spectral_density(jnp.eye(3), key=KEY, **wrong)
    with pytest.raises(ValueError, match="square"):
        sx.spectral_density(jnp.ones((3, 4)), key=KEY)
    with pytest.raises(TypeError, match="key"):
        sx.spectral_density(jnp.eye(3), key=0)
    with pytest.raises(ValueError, match="level"):
        found.count(level=1.0)
    with pytest.raises(ValueError, match="width"):
        found.density(0.0, width=0.0)
    with pytest.raises(ValueError, match="scalars"):
        found.count(upper=jnp.zeros(3))


def test_a_narrow_density_does_not_pretend():
    """Between the nodes there is nothing to be seen, and the interval says so."""
    values = np.linspace(0, 1, N)
    found = sx.spectral_density(symmetric(values), key=KEY, num_probes=8, num_steps=16)
    points, width = np.linspace(0.2, 0.8, 30), 0.004
    density = found.density(points.astype("float32"), width=width)
    true = bell(points, values, width)
    assert ((np.asarray(density.lower) <= true) & (true <= np.asarray(density.upper))).all()
    usual = found.density(points.astype("float32"))
    assert float(jnp.max(usual.upper - usual.lower)) < 1


def test_batches_transforms_and_derivatives():
    matrix = symmetric(SPECTRA["linear"][:30])

    @functools.partial(jax.jit, static_argnames="batch_size")
    def counted(matrix, batch_size=1):
        found = sx.spectral_density(matrix, key=KEY, num_probes=5, num_steps=9, batch_size=batch_size)
        return found.count(upper=0.0).value, found.sum(jnp.square).value, found.density(jnp.zeros(3)).value

    alone = counted(matrix)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-3), counted(matrix, batch_size=2), alone)
    for place in (0, 1):
        gradient = jax.grad(lambda matrix, place=place: counted(matrix)[place])(matrix)
        assert np.isnan(gradient).all()  # never zero without a word


def test_pytrees_keep_their_shapes():
    values = np.linspace(0.1, 1, 12)
    matrix = symmetric(values)
    struct = {"a": jax.ShapeDtypeStruct((2, 3), jnp.float32), "b": jax.ShapeDtypeStruct((6,), jnp.float32)}

    def apply(v, matrix):
        assert v["a"].shape == (2, 3)
        image = matrix @ jnp.concatenate([v["a"].reshape(-1), v["b"]])
        return {"a": image[:6].reshape(2, 3), "b": image[6:]}

    found = sx.spectral_density(sx.aslinearoperator(apply, struct, matrix), key=KEY, num_probes=2, num_steps=12)
    assert_allclose(found.nodes[0], values, rtol=1e-4)


# Intervals by themselves.


def test_student_quantiles():
    stats = pytest.importorskip("scipy.stats")
    for level in (0.5, 0.95, 0.999):
        for degrees in (1, 2, 3, 4, 7, 30, 101):
            assert_allclose(student_quantile(level, degrees), stats.t.ppf((1 + level) / 2, degrees), rtol=1e-9)
    assert student_quantile(0.95, 0) == math.inf


@pytest.mark.parametrize("is_complex", [False, True])
def test_share_limits_are_those_of_the_beta_distribution(is_complex, x64):
    """By SciPy's quantiles, for one probe, whose distribution is exact."""
    stats = pytest.importorskip("scipy.stats")
    for n, k in ((50, 1), (50, 5), (200, 100), (1000, 999)):
        first, second = (k, n - k) if is_complex else (k / 2, (n - k) / 2)
        options = {"level": 0.95, "dimension": n, "count": 1, "is_complex": is_complex}
        # the limit is k where the mass is a quantile of its distribution under k
        for probability, side in ((0.975, 0), (0.025, 1)):
            mass = stats.beta.ppf(probability, first, second)
            if mass * n < 0.01:
                continue
            limit = share_limits(jnp.asarray(mass), jnp.asarray(mass), **options)[side]
            assert_allclose(float(limit) * n, k, rtol=0.01, atol=0.12)


def test_a_count_lies_in_its_interval():
    for matrix in (jnp.eye(60), jnp.zeros((60, 60)), -jnp.diag(jnp.linspace(1.0, 2.0, 60))):
        found = sx.spectral_density(matrix, key=jax.random.key(0), num_probes=4, num_steps=12).count(upper=0.5)
        assert float(found.lower) <= float(found.value) <= float(found.upper)


def test_thresholds_far_beyond_the_spectrum_and_nan():
    largest = float(np.finfo(np.float32).max)
    for matrix in (jnp.zeros((60, 60)), -jnp.diag(jnp.linspace(1.0, 2.0, 60))):
        found = sx.spectral_density(matrix, key=jax.random.key(0), num_probes=4, num_steps=12)
        assert [float(found.count(upper=end).lower) for end in (1e30, largest)] == [60, 60]
        assert [float(found.count(lower=end).upper) for end in (1e30, largest)] == [0, 0]
        assert float(found.count(upper=-largest).upper) == 0
        with pytest.raises(TypeError, match="points must be real"):
            found.cumulative(1j)
        with pytest.raises(ValueError, match="level must lie in"):
            found.count(level=1 - 1e-16)
        for unknown in (found.count(upper=np.nan), found.count(lower=np.nan), found.cumulative(np.nan)):
            assert np.isnan([unknown.value, unknown.lower, unknown.upper]).all()


def test_sums_know_of_the_round_off_of_products():
    """In 16 bits every node is off, all of them in the same direction: more probes don't mend it."""
    struct = jax.ShapeDtypeStruct((60,), jnp.bfloat16)
    operator = sx.aslinearoperator(lambda v: v, struct)
    found = sx.spectral_density(operator, key=KEY, num_probes=4, num_steps=8)
    total, log = (
        found.sum(lambda node: node),
        sx.logdet(operator, key=KEY, method=sx.StochasticLanczos(4, 8), full=True),
    )
    assert float(total.lower) <= 60 <= float(total.upper)
    assert float(log.lower) <= 0 <= float(log.upper)
    # a function that is not defined below zero has an interval nevertheless
    root = sx.spectral_density(jnp.zeros((30, 30)), key=KEY, num_probes=2, num_steps=4).sum(jnp.sqrt)
    assert float(root.lower) <= 0 <= float(root.upper)


def test_widths_that_are_not_positive():
    found = sx.spectral_density(jnp.diag(jnp.arange(20.0)), key=KEY, num_probes=2, num_steps=6)
    expected = found.density(3.0, width=0.5)
    for width in (np.float32(0.5), jnp.asarray(0.5)):
        assert_allclose(found.density(3.0, width=width).value, expected.value, rtol=1e-6)
    for width in (-1.0, 0, jnp.asarray(-1.0), np.float32(0), np.float64(math.nan)):
        with pytest.raises(ValueError, match="width must be larger than 0, got"):
            found.density(3.0, width=width)
    with pytest.raises(ValueError, match="the least of float32, got 1e-50"):
        found.density(3.0, width=1e-50)
    with pytest.raises(ValueError, match=r"width must be a scalar, got shape \(2,\): use jax\.vmap"):
        found.density(3.0, width=jnp.ones(2))
    with pytest.raises(TypeError, match="width must be a real number"):
        found.density(3.0, width=1j)
    traced = jax.vmap(lambda width: found.density(3.0, width=width))(jnp.array([0.5, 0.0, -1.0, jnp.nan]))
    for numbers, first in ((traced.value, expected.value), (traced.lower, expected.lower)):
        assert_allclose(numbers, [first, math.nan, math.nan, math.nan], rtol=1e-5)
    assert_allclose(traced.upper, [expected.upper, math.nan, math.nan, math.nan], rtol=1e-5)
