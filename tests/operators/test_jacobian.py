"""Jacobian operators, and Jacobians as they were always made, against forward-mode derivatives and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx


@jax.custom_jvp
def with_jvp(x):
    return x**2


@with_jvp.defjvp
def _(primals, tangents):
    (x,), (v,) = primals, tangents
    return x**2, 3.0 * v  # a rule of its own, to tell it by


@jax.custom_vjp
def with_vjp(x):
    return x**2


def _forward(x):
    return x**2, None


def _backward(_, u):
    return (5.0 * u,)


with_vjp.defvjp(_forward, _backward)


def network(x, weights):
    hidden = jnp.tanh(weights["a"] @ x["left"] + x["right"])
    return {"first": weights["b"] @ hidden, "second": jnp.sum(hidden)[None]}


def network_data(rng):
    x = {"left": jnp.asarray(rng.normal(size=4)), "right": jnp.asarray(rng.normal(size=3))}
    weights = {"a": jnp.asarray(rng.normal(size=(3, 4))), "b": jnp.asarray(rng.normal(size=(2, 3)))}
    return x, weights


def dense_jacobian(f, x, *args):
    leaves = jax.tree.leaves(jax.jacfwd(f)(x, *args), is_leaf=lambda leaf: isinstance(leaf, jax.Array))
    count = len(jax.tree.leaves(x))
    rows = [
        np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in leaves[i : i + count]], axis=1)
        for i in range(0, len(leaves), count)
    ]
    return np.concatenate(rows)


def test_pytrees_with_arguments(x64):
    x, weights = network_data(np.random.default_rng(4))
    expected = dense_jacobian(network, x, weights)
    J = sx.jacobian_operator(network, x, weights)
    assert J.shape == (3, 7)
    assert_allclose(J.to_dense(), expected, atol=1e-14)
    assert_allclose(J.H.to_dense(), expected.T, atol=1e-14)
    for mode in ("auto", "forward", "reverse"):
        for chunk_size in (None, 2, 50):
            made = sx.jacobian(network, x, weights, mode=mode, chunk_size=chunk_size)
            assert_allclose(made, expected, atol=1e-14)


@pytest.mark.parametrize(("function", "slope"), [(with_jvp, 3.0), (with_vjp, 5.0)])
def test_custom_rules_are_respected(function, slope, x64):
    x, v = jnp.arange(3.0), jnp.array([1.0, -2.0, 4.0])
    J = sx.jacobian_operator(lambda x: jnp.sin(1.0) * function(x), x)
    assert_allclose(J.matvec(v), np.sin(1.0) * slope * np.asarray(v), rtol=1e-14)
    assert_allclose(J.rmatvec(v), np.sin(1.0) * slope * np.asarray(v), rtol=1e-14)
    assert_allclose(sx.jacobian(function, x), slope * np.eye(3), rtol=1e-14)
    assert_allclose(jax.jit(lambda x: sx.jacobian_operator(function, x).matvec(v))(x), slope * np.asarray(v))


def test_custom_vjp_has_no_forward_mode():
    x = jnp.arange(3.0)
    assert_allclose(sx.jacobian(with_vjp, x, mode="reverse"), 5.0 * np.eye(3))
    with pytest.raises(TypeError, match="mode 'forward' needs forward-mode derivatives"):
        sx.jacobian(with_vjp, x, mode="forward")


def test_custom_vjp_inside_control_flow_and_sub_programs():
    @jax.jit
    def inner(x):
        return jax.lax.scan(lambda carry, _: (with_vjp(carry), None), x, length=2)[0]

    J = sx.jacobian_operator(inner, jnp.arange(3.0))
    assert_allclose(J.matvec(jnp.ones(3)), 25.0 * np.ones(3))


def test_matvec_is_the_transpose_of_the_vjp_for_complex_custom_rules():
    @jax.custom_vjp
    def multiply(x):
        return (1 + 2j) * x

    multiply.defvjp(lambda x: ((1 + 2j) * x, None), lambda _, u: ((1 + 2j) * u,))
    J = sx.jacobian_operator(multiply, jnp.ones(2, jnp.complex64))
    assert_allclose(J.matvec(jnp.ones(2, jnp.complex64)), [1 + 2j, 1 + 2j])
    assert_allclose(J.rmatvec(jnp.ones(2, jnp.complex64)), [1 - 2j, 1 - 2j])


def test_holomorphic_functions(x64):
    rng = np.random.default_rng(4)
    weights = jnp.asarray(rng.normal(size=(2, 3)) + 1j * rng.normal(size=(2, 3)))
    x = jnp.asarray(rng.normal(size=3) + 1j * rng.normal(size=3))
    expected = np.cos(np.asarray(weights @ x))[:, None] * np.asarray(weights)
    for mode in ("auto", "forward", "reverse"):
        assert_allclose(sx.jacobian(lambda x: jnp.sin(weights @ x), x, mode=mode), expected, atol=1e-13)
    J = sx.jacobian_operator(lambda x: jnp.sin(weights @ x), x)
    assert_allclose(J.rmatvec(jnp.ones(2, jnp.complex128)), expected.conj().T @ np.ones(2), atol=1e-13)


@jax.custom_vjp
def custom_conj(x):
    return x.conj()


custom_conj.defvjp(lambda x: (x.conj(), None), lambda _, u: (u.conj(),))


def test_what_does_not_depend_on_the_vector_may_be_conjugated():
    x = jnp.array([3 + 4j, 1j])
    J = sx.jacobian_operator(lambda z: z * jnp.abs(x).astype(z.dtype) * jnp.conj(x), x)
    assert_allclose(J.matvec(jnp.ones(2, x.dtype)), np.abs(x) * np.conj(x), rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        custom_conj,
        jnp.conj,
        lambda x: x * jnp.conj(x),
        lambda x: jnp.real(x).astype(x.dtype),
        lambda x: x / jnp.abs(x).astype(x.dtype),
    ],
)
def test_functions_that_are_not_holomorphic_raise(function):
    with pytest.raises(TypeError, match="holomorphic"):
        sx.jacobian_operator(function, jnp.ones(2, jnp.complex64))


@pytest.mark.parametrize(
    ("function", "x", "message"),
    [
        (jnp.sin, jnp.ones(2, jnp.int32), "x must have a floating-point"),
        (lambda x: x.astype(jnp.int32), jnp.ones(2), "the output of a linear operator must have a floating-point"),
        (jnp.abs, jnp.ones(2, jnp.complex64), "real on both sides or complex on both sides"),
        (lambda x: x.astype(jnp.complex64), jnp.ones(2), "real on both sides or complex on both sides"),
    ],
)
def test_dtypes_that_are_refused(function, x, message):
    with pytest.raises(TypeError, match=message):
        sx.jacobian_operator(function, x)


def test_options_that_are_refused():
    with pytest.raises(ValueError, match="mode must be one of 'auto', 'forward', 'reverse'; got 'both'"):
        sx.jacobian(jnp.sin, jnp.ones(2), mode="both")
    with pytest.raises(ValueError, match="mode must be one of"):
        sx.batched_jacobian(jnp.sin, jnp.ones((2, 2)), mode="both")
    for function, x in ((sx.jacobian, jnp.ones(2)), (sx.batched_jacobian, jnp.ones((2, 2)))):
        with pytest.raises(ValueError, match="chunk_size must be at least 1"):
            function(jnp.sin, x, chunk_size=0)
        with pytest.raises(TypeError, match="chunk_size must be an integer"):
            function(jnp.sin, x, chunk_size=1.0)
    for xs in (jnp.ones(()), (), (jnp.ones((2, 1)), jnp.ones((3, 1)))):
        with pytest.raises(ValueError, match="one leading batch axis"):
            sx.batched_jacobian(jnp.sin, xs)


def test_closures_over_tracers(x64):
    rng = np.random.default_rng(4)
    weights, x = rng.normal(size=(3, 4)), rng.normal(size=4)
    v, u = jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.normal(size=3))

    def value(weights, x):
        J = sx.jacobian_operator(lambda x: jnp.sin(weights @ x), x)
        return u @ J.matvec(v)

    def expected(weights, x):
        return u @ (jnp.cos(weights @ x) * (weights @ v))

    arguments = jnp.asarray(weights), jnp.asarray(x)
    for wrap in (lambda f: f, jax.jit):
        assert_allclose(wrap(value)(*arguments), expected(*arguments), rtol=1e-12)
        for argnum in (0, 1):
            assert_allclose(
                wrap(jax.grad(value, argnum))(*arguments), jax.grad(expected, argnum)(*arguments), rtol=1e-10
            )
    batch = jnp.asarray(rng.normal(size=(5, 3, 4)))
    assert_allclose(jax.vmap(value, (0, None))(batch, arguments[1]), jax.vmap(expected, (0, None))(batch, arguments[1]))
    assert_allclose(jax.hessian(value, 1)(*arguments), jax.hessian(expected, 1)(*arguments), rtol=1e-9, atol=1e-12)


def test_given_data_is_differentiated(x64):
    x, weights = network_data(np.random.default_rng(4))
    v = jax.tree.map(jnp.ones_like, x)

    def value(weights):
        return jnp.sum(sx.jacobian_operator(network, x, weights).matvec(v)["first"] ** 2)

    gradient = jax.grad(value)(weights)
    step = 1e-6
    for name in weights:
        direction = jnp.asarray(np.random.default_rng(0).normal(size=weights[name].shape))
        ahead = value({**weights, name: weights[name] + step * direction})
        behind = value({**weights, name: weights[name] - step * direction})
        assert_allclose(jnp.sum(gradient[name] * direction), (ahead - behind) / (2 * step), rtol=1e-7)


def test_one_trace_for_ten_points():
    calls = []

    def counted(x, w):
        calls.append(x)
        return jnp.tanh(w @ x)

    @jax.jit
    def product(J, v):
        return J.matvec(v)

    for number in range(10):
        product(sx.jacobian_operator(counted, jnp.full(3, float(number)), jnp.ones((2, 3))), jnp.ones(3))
    assert product._cache_size() == 1
    assert len(calls) <= 3  # once to learn what it closes over and returns, and in the one compilation


def test_integer_arguments_pass_through(x64):
    J = sx.jacobian_operator(lambda x, index: x[index] ** 2, jnp.arange(3.0), jnp.array([2, 0]))
    assert_allclose(J.to_dense(), [[0, 0, 4], [0, 0, 0]])


def test_bfloat16_and_float16():
    for dtype in (jnp.bfloat16, jnp.float16):
        made = sx.jacobian(lambda x: x**2, jnp.arange(3, dtype=dtype))
        assert made.dtype == dtype
        assert_allclose(made.astype(jnp.float32), np.diag([0.0, 2.0, 4.0]))


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 50])
def test_batched_jacobian(mode, chunk_size, x64):
    rng = np.random.default_rng(4)
    _, weights = network_data(rng)
    xs = {"left": jnp.asarray(rng.normal(size=(5, 4))), "right": jnp.asarray(rng.normal(size=(5, 3)))}
    made = sx.batched_jacobian(network, xs, weights, mode=mode, chunk_size=chunk_size)
    assert made.shape == (5, 3, 7)
    for index in range(5):
        x = jax.tree.map(lambda leaf, index=index: leaf[index], xs)
        assert_allclose(made[index], dense_jacobian(network, x, weights), atol=1e-14)


def test_a_callable_that_changes_its_arrays_is_not_remembered():
    class Model:
        def __call__(self, x):
            return jnp.tanh(self.w @ x)

    model, x = Model(), jnp.ones(2)
    for scale in (1.0, 3.0):
        model.w = scale * jnp.array([[0.1, 0.2], [0.3, -0.4]])
        expected = jax.jacobian(lambda x: jnp.tanh(model.w @ x))(x)
        np.testing.assert_allclose(sx.jacobian(model, x), expected, rtol=1e-5)
