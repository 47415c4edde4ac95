"""Products of many matrices against exact arithmetic, closed forms and differences."""

import decimal
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.results import Status
from spectrax.spectrum.products import product_log_condition_number, product_log_singular_values

LOG10 = np.log(10)
DECIMALS = decimal.Context(prec=150)


def exact_logs(factors):
    """The logarithms by one-sided Jacobi rotations of the exact product, in 150 digits."""
    with decimal.localcontext(DECIMALS):
        product = np.eye(np.shape(factors[0])[1], dtype=int).astype(object)
        for factor in factors:
            product = np.vectorize(lambda x: decimal.Decimal(float(x)), otypes=[object])(factor) @ product
        rows = list(product.T if product.shape[0] > product.shape[1] else product)
        tol = decimal.Decimal(10) ** -30
        converged = False
        while not converged:
            converged = True
            for i in range(len(rows)):
                for j in range(i + 1, len(rows)):
                    a, b, c = rows[i] @ rows[i], rows[j] @ rows[j], rows[i] @ rows[j]
                    # a remainder of the rounding at 150 digits is a zero, too
                    if abs(c) <= tol * (a * b).sqrt() or min(a, b) <= max(a, b) * decimal.Decimal("1e-240"):
                        continue
                    converged = False
                    z = (b - a) / (2 * c)
                    t = (1 if z >= 0 else -1) / (abs(z) + (1 + z * z).sqrt())
                    cosine = 1 / (1 + t * t).sqrt()
                    rows[i], rows[j] = cosine * (rows[i] - t * rows[j]), cosine * (t * rows[i] + rows[j])
        squares = sorted((row @ row for row in rows), reverse=True)
        least = squares[0] * decimal.Decimal("1e-240")
        return np.array([float(x.ln() / 2) if x > least else -np.inf for x in squares])


def orthogonal(rng, n, *, is_complex=False):
    return np.linalg.qr(rng.normal(size=(n, n)) + (1j * rng.normal(size=(n, n)) if is_complex else 0))[0]


def with_known_values(rng, p, n, decades, *, is_complex=False):
    """Factors Q_j D_j Q_(j-1)^H, whose values are the products of those of the D_j, over about that many decades."""
    bases = [orthogonal(rng, n, is_complex=is_complex) for _ in range(p + 1)]
    d = 10.0 ** -(np.linspace(0, decades / p, n) + rng.uniform(-0.2, 0.2, (p, n)))
    factors = [(bases[j + 1] * d[j]) @ bases[j].conj().T for j in range(p)]
    return np.stack(factors), np.sort(np.log(d).sum(0))[::-1]


def within_error(result, truth):
    """Check every value that is resolved, and return how near the largest error comes to its bound."""
    values, error, rank = (np.asarray(field, np.float64) for field in result[:3])
    rank = int(rank)
    assert np.isfinite(values[:rank]).all()
    assert np.isfinite(error[:rank]).all()
    assert (values[rank:] == -np.inf).all()
    ratio = np.abs(values[:rank] - truth[:rank]) / error[:rank]
    assert (ratio <= 1).all(), (values, truth, error)
    return ratio.max(initial=0)


@functools.cache
def compiled():
    return jax.jit(product_log_singular_values), jax.jit(functools.partial(product_log_condition_number, full=True))


@pytest.mark.parametrize("is_complex", [False, True])
def test_known_values_over_sixty_decades(is_complex, x64):
    rng = np.random.default_rng(0)
    for seed in range(3):
        factors, truth = with_known_values(rng, 32, 16, 60, is_complex=is_complex)
        result = compiled()[0](factors)
        assert int(result.rank) == 16
        assert int(result.status) == Status.CONVERGED
        assert (truth[0] - truth[-1]) / LOG10 > 55
        # the factors themselves are rounded: kappa of each is about 100
        assert_allclose(result.log_values, truth, atol=2e-12, rtol=0, err_msg=f"seed {seed}")
        assert (np.asarray(result.error) < 1e-11).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_stay_below_what_is_stated(dtype, x64):
    """Against exact arithmetic, for the very factors given; what float32 cannot resolve is not given."""
    n, p = 5, 8
    lost = 0
    rng = np.random.default_rng(1)
    for case in range(24):
        factors = [
            rng.normal(size=(p, n, n)),
            rng.normal(size=(p, n, n)) * 10.0 ** rng.uniform(-2, 2, (p, 1, n)),
            rng.normal(size=(p, n, n)) * 10.0 ** np.sort(rng.uniform(-3, 3, (p, n, 1)), axis=1),
            with_known_values(rng, p, n, 6.0 * case)[0],
            np.eye(n) + 0.1 * rng.normal(size=(p, n, n)),
            np.concatenate([forth := rng.normal(size=(p // 2, n, n)), np.linalg.inv(forth[::-1])]),
        ][case % 6].astype(dtype)
        result = compiled()[0](factors)
        assert result.log_values.dtype == result.error.dtype == dtype
        within_error(result, exact_logs(factors))
        lost += n - int(result.rank)
        assert int(result.status) == (Status.CONVERGED if int(result.rank) == n else Status.AT_ROUND_OFF)
    assert lost > 0 if dtype == "float32" else lost <= 4


@pytest.mark.parametrize("shapes", [[(4, 6), (5, 4), (5, 5), (5, 5), (3, 5)], [(6, 2), (6, 6), (4, 6)]])
def test_rectangular_factors(shapes, x64):
    rng = np.random.default_rng(2)
    factors = [rng.normal(size=shape) for shape in shapes]
    result = product_log_singular_values(factors)
    truth = exact_logs(factors)
    assert result.log_values.shape == truth.shape == (min(shapes[0][1], shapes[-1][0]),)
    assert int(result.rank) == len(truth)
    within_error(result, truth)


def test_an_inner_width_below_the_outer_ones(x64):
    rng = np.random.default_rng(3)
    factors = [rng.normal(size=shape) for shape in [(2, 5), (5, 2), (5, 5)]]
    result = product_log_singular_values(factors)
    assert int(result.rank) == 2
    assert int(result.status) == Status.CONVERGED  # the other values are certainly zero
    assert (result.error[2:] == 0).all()
    within_error(result, exact_logs(factors))


def draw(rng, kind, p, n=32, c=1.0, skip=False):
    """The factors of the Jacobian of a random network at a random point: slopes are those along the way."""
    slope = {"abs": -1.0, "leaky": 0.1, "relu": 0.0}[kind]
    z, factors = rng.normal(size=n), []
    for _ in range(p):
        W = c * rng.normal(size=(n, n)) / np.sqrt(n)
        factor = np.where(W @ z > 0, 1.0, slope)[:, None] * W + (np.eye(n) if skip else 0)
        z = factor @ z
        z /= np.linalg.norm(z)  # the slopes do not depend on it
        factors.append(factor)
    return np.stack(factors)


@pytest.mark.parametrize(
    ("kind", "scale", "skip", "medians"),
    [
        ("abs", lambda p: 1.0, False, (2.0, 3.1, 5.3, 9.9, 17.9, 34.2, 67.8)),
        ("leaky", lambda p: 1.0, False, (3.3, 4.6, 8.4, 15.7, 30.9, 56.2, 111)),
        ("abs", lambda p: 0.25, True, (0.28, 0.41, 0.62, 1.0, 1.9, 3.5, 6.6)),
        ("abs", lambda p: 0.5, True, (0.61, 0.87, 1.3, 2.2, 4.1, 7.6, 14.5)),
        ("leaky", lambda p: 0.5, True, (0.46, 0.63, 0.9, 1.35, 2.4, 4.1, 7.9)),
        ("relu", lambda p: 0.5, True, (0.46, 0.63, 0.9, 1.35, 2.4, 4.1, 7.9)),
        ("relu", lambda p: 0.5 / np.sqrt(p), True, (0.44, 0.44, 0.44, 0.44, 0.49, 0.59, 0.80)),
        ("relu", lambda p: 0.5 / p, True, (0.46, 0.30, 0.21, 0.16, 0.11, 0.10, 0.09)),
    ],
)
@pytest.mark.slow
def test_condition_numbers_by_depth(kind, scale, skip, medians, x64):
    """log10 kappa of random layers of width 32, as medians of 40 draws, against medians found by NumPy."""
    rng = np.random.default_rng(4)
    for p, median in zip((1, 2, 4, 8, 16, 32, 64), medians, strict=True):
        found = [compiled()[1](draw(rng, kind, p, c=scale(p), skip=skip)).whole.value / LOG10 for _ in range(40)]
        spread = 4 * np.std(found) * np.sqrt(np.pi / 2 * (1 / 40 + 1 / 40))  # of the difference of two such medians
        assert abs(np.median(found) - median) <= spread + 0.05, p


def test_the_slope_by_depth_of_gaussian_layers(x64):
    """Each layer adds (psi(n/2) - psi(1/2)) / 2 in the limit, 1.022 decades for n = 32."""
    rng = np.random.default_rng(5)
    found = [product_log_condition_number(draw(rng, "abs", 64)) for _ in range(8)]
    assert_allclose(np.mean(found) / LOG10, 64 * 1.022 + 1.5, atol=4)


def test_ranks_of_rectified_layers(x64):
    """The rank is the smallest number of active units, and the values above it are far from round-off."""
    rng = np.random.default_rng(6)
    for p, median in ((1, 15.5), (8, 11.5), (32, 11)):
        ranks = []
        for _ in range(9):
            factors = draw(rng, "relu", p)
            condition = compiled()[1](factors)
            ranks.append(int(condition.rank))
            assert ranks[-1] == np.min(np.sum(np.any(factors != 0, axis=2), axis=1))
            assert float(condition.whole.value) == np.inf
            assert float(condition.whole.lower) == float(condition.nonzero.lower) > 0
            assert int(condition.whole.status) == Status.AT_ROUND_OFF
            if p <= 8:
                s = np.linalg.svd(functools.reduce(lambda x, y: y @ x, factors), compute_uv=False)
                assert_allclose(condition.nonzero.value, np.log(s[0] / s[ranks[-1] - 1]), rtol=1e-6)
        assert abs(np.median(ranks) - median) <= 2


def test_gradients_against_differences(x64):
    rng = np.random.default_rng(7)
    for shapes, is_complex in (([(4, 4)] * 3, True), ([(5, 3), (6, 5), (6, 6), (4, 6)], False), ([(3, 5)], True)):
        draws = [
            [rng.normal(size=s) + (1j * rng.normal(size=s) if is_complex else 0) for s in shapes] for _ in range(2)
        ]
        factors, direction = draws
        values = jax.jit(lambda factors: product_log_singular_values(factors).log_values)
        _, tangent = jax.jvp(values, (factors,), (direction,))
        step = 1e-5
        above, below = (
            values([a + sign * step * b for a, b in zip(factors, direction, strict=True)]) for sign in (1, -1)
        )
        assert_allclose(tangent, (above - below) / (2 * step), rtol=1e-6, atol=1e-7)
        gradient = jax.grad(lambda factors, values=values: values(factors)[1])(factors)
        assert_allclose(sum(np.sum(g * b).real for g, b in zip(gradient, direction, strict=True)), tangent[1])


def test_gradients_over_sixty_decades(x64):
    """For factors that share their bases, the gradient is u_i v_i^H / d_i in each, however small the value is."""
    rng = np.random.default_rng(8)
    p, n = 16, 6
    bases = [orthogonal(rng, n) for _ in range(p + 1)]
    d = 10.0 ** -np.linspace(0, 60 / p, n)
    factors = np.stack([(bases[j + 1] * d) @ bases[j].T for j in range(p)])
    gradients = jax.jit(jax.jacrev(lambda factors: product_log_singular_values(factors).log_values))(factors)
    for i in (0, 2, n - 1):
        expected = [np.outer(bases[j + 1][:, i], bases[j][:, i]) / d[i] for j in range(p)]
        assert_allclose(gradients[i] * d[i], np.stack(expected) * d[i], atol=1e-8)


def test_scales_do_not_overflow():
    rng = np.random.default_rng(9)
    factors = rng.normal(size=(6, 4, 4)).astype("float32")
    scales = np.float32([1e30, 1e30, 1e-30, 1e30, 1e30, 1e-25])[:, None, None]
    values, scaled = (compiled()[0](x) for x in (factors, factors * scales))
    assert int(scaled.rank) == 4
    assert_allclose(scaled.log_values, values.log_values + 65 * LOG10, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: product_log_singular_values(x).log_values[2]))(factors * scales)
    assert_allclose(jnp.sum(gradient * (factors * scales), axis=(1, 2)), np.ones(6), rtol=1e-4)


def test_zero_and_deficient_factors():
    eye = np.eye(3, dtype="float32")
    zero = compiled()[0](np.stack([eye, 0 * eye, eye]))
    assert (zero.log_values == -np.inf).all()
    assert (zero.error == 0).all()
    assert (int(zero.rank), int(zero.status)) == (0, Status.CONVERGED)
    condition = compiled()[1](np.stack([eye, 0 * eye, eye]))
    assert [float(x) for x in (condition.whole.value, condition.nonzero.value)] == [np.inf, 0]

    deficient = np.stack([eye, np.diag([1, 0, 2]).astype("float32"), np.ones((3, 3), "float32") + eye])
    result = compiled()[0](deficient)
    assert (int(result.rank), int(result.status)) == (2, Status.AT_ROUND_OFF)
    assert float(result.error[2]) == np.inf
    within_error(result, exact_logs(deficient))
    for factors in (deficient, np.stack([eye, 0 * eye, eye])):
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.exp(product_log_singular_values(x).log_values))))(factors)
        whole = jax.jit(jax.grad(product_log_condition_number))(factors)
        assert np.isfinite(gradient).all()
        assert (whole == 0).all()


def test_repeated_values_and_orthogonal_factors():
    rng = np.random.default_rng(10)
    factors = np.stack([orthogonal(rng, 4) for _ in range(6)]).astype("float32")
    result = compiled()[0](factors)
    assert_allclose(result.log_values, np.zeros(4), atol=1e-5)
    within_error(result, exact_logs(factors))


def test_one_factor_and_size_one(x64):
    rng = np.random.default_rng(11)
    for shape in ((6, 6), (3, 5), (5, 1), (1, 1)):
        matrix = rng.normal(size=shape)
        result = product_log_singular_values([matrix])
        assert_allclose(result.log_values, np.log(np.linalg.svd(matrix, compute_uv=False)), atol=1e-12)
    scalars = np.full((50, 1, 1), -1e-20)
    result = product_log_singular_values(scalars)
    assert_allclose(result.log_values, [-1000 * LOG10], rtol=1e-14)
    assert float(product_log_condition_number(scalars)) == 0


def test_what_is_not_finite():
    for bad in (np.nan, np.inf):
        factors = np.stack([np.eye(3, dtype="float32")] * 3)
        factors[1, 0, 2] = bad
        result = compiled()[0](factors)
        assert int(result.status) == Status.NOT_FINITE
        assert np.isnan(result.log_values).all()
        assert np.isnan(result.error).all()
        assert np.isnan(product_log_condition_number(factors))
        gradient = jax.jit(jax.grad(lambda x: product_log_singular_values(x).log_values[0]))(factors)
        assert np.isnan(gradient).all()


def test_transforms(key):
    batch = jax.random.normal(key, (2, 3, 5, 4, 4))
    one = jax.jit(lambda x: (*product_log_singular_values(x), jax.grad(product_log_condition_number)(x)))
    many = jax.jit(jax.vmap(jax.vmap(one)))(batch)
    for i, j in ((0, 0), (1, 2)):
        for got, want in zip(many, one(batch[i, j]), strict=True):
            assert_allclose(got[i, j], want, rtol=2e-3, atol=2e-5)
    shapes = jax.eval_shape(product_log_singular_values, batch[0, 0])
    assert [x.shape for x in shapes] == [(4,), (4,), (), ()]
    listed = product_log_singular_values(list(batch[0, 0]))
    assert_allclose(listed.log_values, one(batch[0, 0])[0], atol=1e-5)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        jax.grad(lambda t: jax.grad(lambda t: product_log_singular_values(t * batch[0, 0]).log_values[0])(t))(1.0)


def test_compile_time_does_not_grow_with_depth():
    sizes = [len(str(jax.make_jaxpr(product_log_singular_values)(jnp.zeros((p, 3, 3))))) for p in (40, 400)]
    assert sizes[1] <= 1.02 * sizes[0]


def test_lists_of_numbers():
    result = product_log_singular_values([[[2.0, 0.0], [0.0, 1.0]], [[3.0, 0.0]]])
    assert_allclose(result.log_values, [np.log(6)], rtol=1e-6)


def test_16_bits():
    factors = np.random.default_rng(12).normal(size=(4, 3, 3))
    result = product_log_singular_values(jnp.asarray(factors, "bfloat16"))
    assert result.log_values.dtype == jnp.float32
    within_error(result, exact_logs(np.asarray(jnp.asarray(factors, "bfloat16")).astype("float64")))


def test_arguments():
    for function in (product_log_singular_values, product_log_condition_number):
        with pytest.raises(ValueError, match="needs one factor or more"):
            function([])
        with pytest.raises(ValueError, match=r"needs one factor or more.*\(0, 3, 3\)"):
            function(jnp.zeros((0, 3, 3)))
        with pytest.raises(ValueError, match=r"factor 1 of shape \(2, 4\) cannot follow factor 0 of shape \(3, 2\)"):
            function([jnp.ones((3, 2)), jnp.ones((2, 4))])
        with pytest.raises(ValueError, match=r"shape \(p, n, n\), got \(2, 3, 4\)"):
            function(jnp.zeros((2, 3, 4)))
        with pytest.raises(ValueError, match=r"shape \(p, n, n\), got \(3, 3\)"):
            function(jnp.zeros((3, 3)))
        with pytest.raises(ValueError, match=r"factor 1 must be a matrix with entries, got shape \(3,\)"):
            function([jnp.ones((3, 2)), jnp.ones(3)])
        with pytest.raises(TypeError, match="factor 0 must have a floating-point or complex dtype, got int32"):
            function([jnp.ones((3, 2), "int32")])
        with pytest.raises(TypeError, match="the factors must have a floating-point or complex dtype, got int32"):
            function(jnp.ones((2, 3, 3), "int32"))
        with pytest.raises(TypeError, match="one dtype, got complex64, float32"):
            function([jnp.ones((2, 2)), jnp.ones((2, 2), "complex64")])
