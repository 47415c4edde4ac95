"""The bottom of a spectrum: convolutions, fallbacks and preconditioned iterations, right or flagged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing
from spectrax.spectrum.methods import banded_shape

KEY = jax.random.key(3)


def convolution(spread, size=(6, 6), channels=(4, 4), dtype="float64", seed=0, **options):
    """The identity and noise: a larger spread gives a larger condition number."""
    kernel = jax.random.normal(jax.random.key(seed), (3, 3, *channels), dtype)
    kernel = kernel * jnp.asarray(spread / (9 * channels[0]) ** 0.5, dtype)
    kernel = kernel.at[1, 1].add(jnp.eye(*channels, dtype=dtype))
    return sx.conv_operator(kernel, size, **{"padding": "SAME", **options})


@functools.partial(jax.jit, static_argnames=("method", "k"))
def smallest(operator, method, k=1, key=KEY):
    return sx.svds(operator, k, which="smallest", method=method, key=key)


def truth(A):
    return np.linalg.svd(np.asarray(A.to_dense()), compute_uv=False)


def test_a_zero_padded_convolution_of_large_condition_number(x64):
    """Right to 1e-12 through the block-banded factorisation, and as accurate as the dense way."""
    A = convolution(3.0, (14, 14), seed=1)
    true = truth(A)
    assert true[0] / true[-1] > 1e4
    assert banded_shape(A) is not None
    result = smallest(A, sx.InverseLanczos(), 3)
    testing.assert_singular_values(result, A, which="smallest")
    assert bool(result.converged.all())
    assert_allclose(result.s, true[-3:], rtol=1e-12, atol=4 * np.finfo(float).eps * true[0])
    assert int(result.num_matvecs) < 20  # those of the norm and of the residuals
    dense = smallest(sx.aslinearoperator(A.to_dense()), sx.InverseLanczos(), 3)
    assert_allclose(result.s, dense.s, atol=20 * np.finfo(float).eps * true[0])
    assert float(result.residuals.max()) < 4 * float(dense.residuals.max()) + 1e-14


@pytest.mark.parametrize(("channels", "dtype"), [((2, 3), "float64"), ((3, 2), "float64"), ((2, 2), "complex64")])
def test_tall_wide_and_complex_convolutions(channels, dtype, x64):
    A = convolution(1.0, (7, 6), channels, dtype)
    result = smallest(A, sx.InverseLanczos(), 2)
    testing.assert_singular_values(result, A, which="smallest")
    assert bool(result.converged.all())
    assert result.s.dtype == jnp.finfo(dtype).dtype


def test_convolutions_without_an_inverse(x64):
    """A dead channel: as many zeros as the image has entries, each with both of its vectors."""
    A = convolution(1.0)
    dead = sx.conv_operator(A.kernel.at[..., 2].set(0.0), (6, 6), padding="SAME")
    zero = sx.conv_operator(A.kernel * 0, (6, 6), padding="SAME")
    for operator in (dead, zero):
        result = smallest(operator, sx.InverseLanczos(), 3)
        testing.assert_singular_values(result, operator, which="smallest")
        assert bool(result.converged.all())
        assert_allclose(result.s, np.zeros(3), atol=1e-13)
    for bad in (np.nan, np.inf):
        operator = sx.conv_operator(A.kernel.at[0, 0, 0, 0].set(bad), (6, 6), padding="SAME")
        for method, k in ((sx.InverseLanczos(), 3), (sx.Fallback(sx.Davidson(), sx.Dense()), 1)):
            result = smallest(operator, method, k)
            assert int(result.status) == sx.Status.NOT_FINITE
            assert np.isnan(result.s).all()


def test_scaled_convolutions(x64):
    A = convolution(1.0, dtype="float32")
    plain = smallest(A, sx.InverseLanczos())
    for size in (1e-20, 1e20):
        scaled = sx.conv_operator(A.kernel * jnp.float32(size), (6, 6), padding="SAME")
        result = smallest(scaled, sx.InverseLanczos())
        assert bool(result.converged.all())
        assert_allclose(result.s / size, plain.s, rtol=1e-4)
        assert bool(smallest(scaled, sx.Davidson()).converged.all())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_circulant_davidson_is_right_or_flagged(dtype, x64):
    converged = []
    for spread in (0.3, 0.7, 3.0):
        A = convolution(spread, (8, 8), dtype=dtype)
        result = smallest(A, sx.Davidson(preconditioner="circulant", max_steps=150), 2)
        testing.assert_singular_values(result, A, which="smallest")
        converged.append(bool(result.converged.all()))
    assert converged[:2] == [True, True]
    plain = smallest(convolution(0.7, (8, 8), dtype=dtype), sx.Davidson(preconditioner="none", max_steps=150), 2)
    assert not bool(plain.converged.all())  # so that it is the preconditioner that does it


@pytest.mark.parametrize(("dtype", "exponents"), [("float64", (1, 4, 7, 10)), ("float32", (1, 3, 6))])
@pytest.mark.parametrize("wide", [False, True])
def test_a_sketch_is_right_or_flagged(dtype, exponents, wide, x64):
    for exponent in exponents:
        shape = (30, 300) if wide else (300, 30)
        values = np.geomspace(1, 10.0**-exponent, 30)
        A = testing.with_singular_values(jax.random.key(1), values, shape, dtype)
        result = smallest(A, sx.Davidson(preconditioner="sketch", max_steps=100))
        testing.assert_singular_values(result, A, which="smallest")
        assert bool(result.converged.all()) or exponent > (5 if dtype == "float64" else 3)


def test_a_fallback_takes_the_second_method_only_where_it_must(x64):
    easy = testing.with_singular_values(KEY, np.r_[np.linspace(2, 1, 39), 0.1], (48, 40), "float64").to_dense()
    hard = testing.with_singular_values(KEY, np.geomspace(1, 1e-9, 40), (48, 40), "float64").to_dense()
    first, then = sx.Lanczos(max_restarts=3), sx.Dense()
    method = sx.Fallback(first, then)
    assert int(smallest(easy, method).num_matvecs) == int(smallest(easy, first).num_matvecs)
    spent = int(smallest(hard, first).num_matvecs) + int(smallest(hard, then).num_matvecs)
    assert int(smallest(hard, method).num_matvecs) == spent
    batch = jax.vmap(lambda A: smallest(A, method))(jnp.stack([easy, hard]))
    for i, A in enumerate((easy, hard)):
        testing.assert_singular_values(jax.tree.map(lambda leaf, i=i: leaf[i], batch), A, which="smallest")
    assert bool(batch.converged.all())
    # where both fail the better bound is kept
    few = sx.Lanczos(max_restarts=1)
    assert_allclose(smallest(hard, sx.Fallback(first, few)).s, smallest(hard, first).s, rtol=1e-12)


def test_derivatives_of_every_method(x64):
    """Values and vectors, through Davidson by MINRES and through a fallback to a factorisation by the dense way."""
    A = convolution(0.5, (4, 3), (2, 2))
    direction = jax.random.normal(jax.random.key(8), A.kernel.shape)

    @functools.partial(jax.jit, static_argnums=1)
    def f(t, method):
        operator = sx.conv_operator(A.kernel + t * direction, (4, 3), padding="SAME")
        result = sx.svds(operator, 1, which="smallest", method=method, key=KEY, tol=1e-13)
        return result.s[0] + jnp.sum(jnp.linspace(0.0, 1.0, 24) * result.v[0].reshape(-1) ** 2)

    zero, step = jnp.float64(0), 1e-5
    expected = (f(step, sx.Dense()) - f(-step, sx.Dense())) / (2 * step)
    for method in (sx.Davidson(), sx.Fallback(sx.Davidson(max_steps=9), sx.Dense())):
        assert_allclose(jax.grad(f)(zero, method), expected, rtol=1e-6)


def test_what_auto_takes_for_the_bottom():
    choose = functools.partial(sx.spectrum.methods.choose, smallest=True, explicit=False)

    def of(A, k=1, **options):
        return choose(A.shape, k, geometry=A.geometry, **options)

    circulant = sx.Davidson(preconditioner="circulant", max_steps=200)
    ones = lambda size, c: sx.conv_operator(jnp.ones((3, 3, c, c)), size, padding="SAME")  # noqa: E731
    assert of(ones((5, 5), 4)) == sx.Dense()
    assert of(ones((8, 8), 8)) == sx.InverseLanczos()
    assert of(ones((16, 16), 8)) == sx.Fallback(circulant, sx.InverseLanczos())
    assert of(ones((32, 32), 32)) == sx.Fallback(circulant, sx.Lanczos())  # the factors take too much memory
    strided = sx.conv_operator(jnp.ones((3, 3, 8, 8)), (32, 32), padding="SAME", strides=2)
    assert of(strided) == sx.InverseLanczos()
    assert choose((2000, 1000), 1) == sx.InverseLanczos()
    sketch = sx.Davidson(preconditioner="sketch", max_steps=200)
    assert choose((10**6, 1000), 1) == sx.Fallback(sketch, sx.Lanczos())
    assert choose((10**6, 10**5), 1) == sx.Lanczos()
    given = sx.Davidson(max_steps=60)
    assert choose((2000, 1000), 1, preconditioned=True) == sx.Fallback(given, sx.InverseLanczos())
    assert choose((20, 10), 1, preconditioned=True) == sx.Fallback(given, sx.Dense())


def test_auto_on_a_large_convolution(x64):
    """One trace; the first stage suffices at a moderate condition number, and the second one is exact beyond."""
    traces = []

    @jax.jit
    def f(kernel):
        traces.append(1)
        return sx.svds(sx.conv_operator(kernel, (18, 16), padding="SAME"), 1, which="smallest", key=KEY)

    for spread in (0.4, 2.0):
        A = convolution(spread, (18, 16))
        result = f(A.kernel)
        assert bool(result.converged.all())
        assert_allclose(result.s, truth(A)[-1:], rtol=1e-9)
    assert len(traces) == 1


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_everything_lowers_elsewhere(platform):
    def both(kernel, matrix):
        A = sx.conv_operator(kernel, (5, 5), padding="SAME")
        banded = sx.svds(A, 1, which="smallest", method=sx.Fallback(sx.Davidson(), sx.InverseLanczos()), key=KEY)
        sketch = sx.svds(matrix, 1, which="smallest", method=sx.Davidson(preconditioner="sketch"), key=KEY)
        return banded.s + sketch.s

    struct = jax.ShapeDtypeStruct((3, 3, 2, 2), jnp.float32), jax.ShapeDtypeStruct((100, 20), jnp.float32)
    exported = export.export(jax.jit(both), platforms=(platform,))(*struct)
    assert "callback" not in exported.mlir_module()


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: sx.Davidson(subspace_size=0), ValueError, "subspace_size must be at least 1"),
    (lambda: sx.Davidson(max_steps=0), ValueError, "max_steps must be at least 1"),
    (lambda: sx.Davidson(preconditioner="ilu"), ValueError, "preconditioner must be one of 'auto', 'circulant'"),
    (lambda: sx.Fallback("auto", sx.Dense()), TypeError, "first must be a method object, got 'auto'"),
    (lambda: sx.Fallback(sx.Fallback(sx.Lanczos(), sx.Dense()), sx.Dense()), TypeError, "first must be a method"),
    (lambda: sx.svds(jnp.eye(4), method=sx.Davidson(), key=KEY), ValueError, "Davidson finds the smallest"),
    (lambda: sx.svds(jnp.eye(4), method=sx.Fallback(sx.Lanczos(), sx.InverseLanczos()), key=KEY), ValueError,
     "InverseLanczos finds the smallest"),
    (lambda: sx.svds(jnp.eye(4), which="smallest", method=sx.Davidson()), ValueError, "svds needs key="),
    (lambda: sx.svds(jnp.eye(40), 5, which="smallest", method=sx.Davidson(subspace_size=8), key=KEY), ValueError,
     "subspace_size must be at least k . 4 = 9, got 8"),
    (lambda: sx.svds(jnp.eye(4), which="smallest", method=sx.Davidson(preconditioner="circulant"), key=KEY), TypeError,
     "circulant preconditioner is for"),
    (lambda: sx.svds(convolution(1.0, dtype="float32"), which="smallest", method=sx.InverseLanczos(max_bytes=99),
                     key=KEY), ValueError, "the factorisation of a convolution of shape .* above max_bytes=99"),
])  # fmt: skip
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_methods_are_hashable_and_frozen():
    for method in (sx.Davidson(), sx.Fallback(sx.Davidson(), sx.Dense())):
        assert hash(method) == hash(type(method)(*vars(method).values()))
        with pytest.raises(AttributeError):
            method.anything = 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", [
    sx.Davidson(preconditioner="circulant", max_steps=300), sx.InverseLanczos(),
    sx.Fallback(sx.Davidson(preconditioner="circulant", max_steps=100), sx.InverseLanczos()),
])  # fmt: skip
def test_many_convolutions_are_right_or_flagged(method, dtype, x64):
    for channels in ((3, 3), (2, 4), (4, 2)):
        for seed in range(4):
            for spread in (0.3, 0.8, 1.0, 3.0):
                A = convolution(spread, (8, 7), channels, dtype, seed)
                result = smallest(A, method, 3, jax.random.key(seed))
                testing.assert_singular_values(result, A, which="smallest")
                assert bool(result.converged.all()) or isinstance(method, sx.Davidson)
