"""What functions close over is found; and linear programs in the form that a compiled loop runs fastest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import vectors
from spectrax.programs.canonical import canonical
from spectrax.programs.equations import equations
from spectrax.programs.hoisting import FrozenTree, hoist

STRUCT = jax.ShapeDtypeStruct((3,), jnp.float32)


def double(x):
    return {"twice": 2 * x}


def test_a_function_that_closes_over_nothing_stays_as_it_is():
    one, other = hoist(double, STRUCT), hoist(double, STRUCT)
    assert one.consts == ()
    assert one.program == other.program
    assert hash(one.program) == hash(other.program)
    assert one.out_struct["twice"].shape == (3,)
    assert one.primitives == {"mul"}
    assert_allclose(one.program((), jnp.ones(3))["twice"], 2 * np.ones(3))
    assert "double" in repr(one.program)
    assert one.program != hoist(jnp.sin, STRUCT).program


def test_it_is_traced_once_for_each_set_of_shapes():
    calls = []

    def counted(x):
        calls.append(x.shape)
        return x

    for _ in range(5):
        hoist(counted, STRUCT)
        hoist(counted, jax.ShapeDtypeStruct((4,), jnp.float32))
    assert calls == [(3,), (4,)]


def test_arrays_become_arguments():
    matrix = jnp.arange(6.0).reshape(2, 3)
    hoisted = hoist(lambda x: matrix @ x, STRUCT)
    (const,) = hoisted.consts
    assert const is matrix
    assert_allclose(hoisted.program((2 * matrix,), jnp.ones(3)), 2 * np.asarray(matrix).sum(1))
    # a jaxpr has no cheap identity: two programs are never taken for each other
    assert hoisted.program != hoist(lambda x: matrix @ x, STRUCT).program


@pytest.mark.parametrize("wrap", [jax.jit, jax.vmap, jax.jacfwd, jax.jacrev])
def test_tracers_of_every_kind_become_arguments(wrap):
    def outer(data):
        hoisted = hoist(lambda x: data * x, STRUCT)
        assert len(hoisted.consts) == 1
        return jnp.sum(hoisted.program(hoisted.consts, jnp.arange(3.0)))

    data = jnp.ones(2) if wrap is jax.vmap else jnp.float32(1)
    assert_allclose(wrap(outer)(data), 3 * np.ones_like(data))


def test_unhashable_callables():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return x

    hoisted = hoist(Unhashable(), STRUCT)
    assert_allclose(hoisted.program(hoisted.consts, jnp.ones(3)), np.ones(3))


def test_primitives_of_sub_programs():
    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, u: (u,))

    def f(x):
        def body(carry, _):
            return jax.lax.cond(carry.sum() > 0, lambda y: identity(jnp.sin(y)), jnp.cos, carry), None

        return jax.jit(lambda y: jax.lax.scan(body, y, length=2)[0])(x)

    found = hoist(f, STRUCT).primitives
    assert {"scan", "cond", "sin", "cos"} <= found
    assert any(name.startswith("custom_vjp_call") for name in found)


def test_frozen_trees_are_hashable():
    one = FrozenTree({"a": STRUCT, "b": (STRUCT,)})
    other = FrozenTree({"a": STRUCT, "b": (STRUCT,)})
    assert one == other
    assert hash(one) == hash(other)
    assert one != FrozenTree({"a": STRUCT, "b": STRUCT})
    assert one != FrozenTree({"a": STRUCT, "b": (jax.ShapeDtypeStruct((4,), jnp.float32),)})
    assert one != {"a": STRUCT}
    assert one.tree == {"a": STRUCT, "b": (STRUCT,)}
    assert "ShapeDtypeStruct" in repr(one)


# --- the form that a compiled loop runs fastest ---

CHANNELS_LAST = {
    rank: (
        (0, rank - 1, *range(1, rank - 1)),
        (rank - 1, rank - 2, *range(rank - 2)),
        (0, rank - 1, *range(1, rank - 1)),
    )
    for rank in (3, 4, 5)
}


def convolutions(function, struct):
    """The layouts of all convolutions in a function's program."""
    found = equations(jax.make_jaxpr(function)(struct).jaxpr)
    return [
        (tuple(layout.lhs_spec), tuple(layout.rhs_spec), tuple(layout.out_spec))
        for layout in (e.params["dimension_numbers"] for e in found if e.primitive.name == "conv_general_dilated")
    ]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def convolve(x, kernel, numbers, **options):
    options = {"window_strides": (1,) * (x.ndim - 1), "padding": "SAME", **options}
    return jax.lax.conv_general_dilated(x[None], kernel, dimension_numbers=numbers, **options)[0]


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, u: (2 * u,))


@jax.custom_jvp
def tripled(x):
    return 3 * x


tripled.defjvp(lambda primals, tangents: (3 * primals[0], 3 * tangents[0]))

K2 = normal(4, 2, 3, 3)  # out, in, height, width
NETS = {
    "1-D": (lambda x: convolve(x, normal(4, 2, 3), ("NCW", "OIW", "NCW")), (2, 7)),
    "2-D": (lambda x: jnp.tanh(convolve(x, K2, ("NCHW", "OIHW", "NCHW"))), (2, 5, 6)),
    "3-D": (lambda x: convolve(x, normal(4, 2, 2, 3, 2), ("NCDHW", "OIDHW", "NCDHW")), (2, 3, 4, 3)),
    "strides": (lambda x: convolve(x, K2, ("NCHW", "OIHW", "NCHW"), window_strides=(2, 1)), (2, 5, 6)),
    "groups": (lambda x: convolve(x, K2[:, :1], ("NCHW", "OIHW", "NCHW"), feature_group_count=2), (2, 5, 6)),
    "kernel dilation": (lambda x: convolve(x, K2, ("NCHW", "OIHW", "NCHW"), rhs_dilation=(2, 1)), (2, 7, 6)),
    "input dilation": (
        lambda x: convolve(x, K2, ("NCHW", "OIHW", "NCHW"), lhs_dilation=(2, 3), padding=[(1, 1), (2, 0)]),
        (2, 4, 3),
    ),
    "jit": (lambda x: jax.jit(jnp.sin)(jax.jit(lambda y: convolve(y, K2, ("NCHW", "OIHW", "NCHW")))(x)), (2, 5, 6)),
    "checkpoint": (jax.checkpoint(lambda x: jnp.sin(convolve(jnp.sin(x), K2, ("NCHW", "OIHW", "NCHW")))), (2, 5, 6)),
    "scan": (
        lambda x: jax.lax.scan(
            lambda c, k: (jnp.tanh(convolve(c, k, ("NCHW", "OIHW", "NCHW"))), None), x, normal(3, 2, 2, 3, 3)
        )[0],
        (2, 5, 6),
    ),
    "fori_loop": (
        lambda x: jax.lax.fori_loop(0, 3, lambda _, c: convolve(c, K2[:2], ("NCHW", "OIHW", "NCHW")), x),
        (2, 5, 6),
    ),
    "cond": (
        lambda x: jax.lax.cond(
            x[0, 0, 0] > 0, lambda: convolve(x, K2, ("NCHW", "OIHW", "NCHW")), lambda: jnp.concatenate([x, 2 * x])
        ),
        (2, 5, 6),
    ),
    "custom_jvp": (lambda x: tripled(convolve(tripled(x), K2, ("NCHW", "OIHW", "NCHW"))), (2, 5, 6)),
    "custom_vjp": (lambda x: doubled(convolve(doubled(x), K2, ("NCHW", "OIHW", "NCHW"))), (2, 5, 6)),
    "dense": (lambda x: normal(3, 30) @ x.reshape(-1), (5, 6)),
    "pytree": (lambda x: {"a": (x["b"] ** 2).sum(), "c": x["d"] * x["b"].sum()}, {"b": (3,), "d": (2,)}),
}


@pytest.mark.parametrize("name", NETS)
def test_products_are_the_same_and_channels_last(name):
    function, shape = NETS[name]
    point = jax.tree.map(lambda s: normal(*s, seed=1), shape, is_leaf=lambda s: isinstance(s, tuple))
    J = sx.jacobian_operator(function, point)
    v, u = (vectors.normal(jax.random.key(2), struct) for struct in (J.in_struct, J.out_struct))
    products, loop_products = J.products(), J.loop_products()
    for plain, fast, vector in zip(products, loop_products, (v, u), strict=True):
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-5), fast(vector), plain(vector))
        stack = jax.tree.map(lambda leaf: jnp.stack([leaf, -2 * leaf, 0 * leaf]), vector)
        batched = jax.jit(jax.vmap(fast))(stack)
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-5), batched, jax.jit(jax.vmap(plain))(stack))
        for layout in convolutions(fast, vectors.structure(vector)):
            assert layout == CHANNELS_LAST[len(layout[0])]
    if "dense" not in name and "pytree" not in name:
        assert any(convolutions(fast, vectors.structure(u)))


def test_a_layout_where_every_axis_has_moved():
    kernel = normal(3, 4, 2, 5)  # width, out, in, height

    def f(x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("HCNW", "WOIH", "CWNH"))

    x = normal(6, 2, 3, 5)
    fast = canonical(f, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert_allclose(fast(x), f(x), rtol=1e-5, atol=1e-5)
    assert convolutions(fast, x) == [CHANNELS_LAST[4]]


SMALL = {  # samples, kernel, options; more taps than pixels, so that XLA would exchange the operands
    "stride 1": ((2, 2, 2), (3, 3), {}, True),
    "stride 2": ((2, 2, 3), (3, 3), {"window_strides": (2, 2)}, True),
    "one row": ((2, 1, 4), (3, 3), {}, True),
    "input dilation": ((2, 2, 2), (3, 3), {"lhs_dilation": (2, 3), "padding": [(1, 2), (-1, 2)]}, True),
    "kernel dilation": ((2, 2, 3), (3, 3), {"rhs_dilation": (2, 1), "padding": [(3, 2), (1, 1)]}, True),
    "as many pixels as taps": ((2, 3, 3), (3, 3), {}, False),
    "one pixel": ((2, 1, 1), (3, 3), {}, False),
    "groups": ((2, 2, 2), (3, 3), {"feature_group_count": 2}, False),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_pictures_are_padded_apart(name):
    """XLA on CPU compiles what comes out of the exchange to code that is 7 to 30 times slower."""
    shape, taps, options, apart = SMALL[name]
    kernel = normal(4, 2 // options.get("feature_group_count", 1), *taps)

    def f(x):
        return convolve(x, kernel, ("NCHW", "OIHW", "NCHW"), **options)

    x = normal(*shape, seed=1)
    fast = canonical(f, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert_allclose(fast(x), f(x), rtol=1e-5, atol=1e-5)
    traced = list(equations(jax.make_jaxpr(fast)(x).jaxpr))
    assert any(e.primitive.name == "optimization_barrier" for e in traced) == apart
    (convolution,) = (e for e in traced if e.primitive.name == "conv_general_dilated")
    assert (max(max(pair) for pair in convolution.params["padding"]) == 0) == apart
    tangent = jax.jvp(fast, (x,), (2 * x,))[1]
    assert_allclose(tangent, 2 * f(x), rtol=1e-5, atol=1e-5)
    (back,) = jax.linear_transpose(fast, x)(f(x))
    assert_allclose(jnp.vdot(back, x), jnp.vdot(f(x), f(x)), rtol=1e-5)


def test_what_does_not_depend_on_the_vector_is_computed_once():
    """Of a linearised `checkpoint` too, which would go forward again at every product."""
    x = normal(2, 5, 6)
    f, _ = NETS["checkpoint"]
    J = sx.jacobian_operator(f, x)
    for product, struct in zip(J.loop_products(), (J.in_struct, J.out_struct), strict=True):
        names = {e.primitive.name for e in equations(jax.make_jaxpr(product)(struct).jaxpr)}
        assert not names & {"sin", "cos", "tanh", "checkpoint", "remat2"}
        assert names & {"conv_general_dilated"}


def test_equations_with_effects_stay_as_they_are():
    seen = []

    def f(x):
        io_callback(lambda: seen.append(0), None, ordered=True)
        return jax.jit(lambda y: 2 * y)(x)

    fast = canonical(f, jax.ShapeDtypeStruct((3,), jnp.float32))
    before = len(seen)
    for _ in range(3):
        assert_allclose(jax.jit(lambda: fast(jnp.ones(3)))(), 2.0)
    jax.effects_barrier()
    assert len(seen) == before + 3


def test_derivatives_pass_through(x64):
    x, v, u, kernel, direction = (
        normal(*shape, seed=seed).astype("float64")
        for seed, shape in enumerate([(2, 5, 6), (2, 5, 6), (4, 5, 6), (4, 2, 3, 3), (4, 2, 3, 3)])
    )

    def value(kernel):
        J = sx.jacobian_operator(lambda x, k: jnp.tanh(convolve(x, k, ("NCHW", "OIHW", "NCHW"))), x, kernel)
        matvec, rmatvec = J.loop_products()
        return jnp.sum(matvec(v) ** 2) + jnp.sum(rmatvec(u) ** 2)

    slope = (value(kernel + 1e-5 * direction) - value(kernel - 1e-5 * direction)) / 2e-5
    assert_allclose(jnp.sum(jax.grad(value)(kernel) * direction), slope, rtol=1e-7)
    assert_allclose(jax.jvp(value, (kernel,), (direction,))[1], slope, rtol=1e-7)


def test_a_batch_of_operators():
    kernels = normal(3, 4, 2, 3, 3)
    f = functools.partial(convolve, numbers=("NCHW", "OIHW", "NCHW"))
    x = normal(2, 5, 6)

    def adjoint_product(kernel, fast):
        J = sx.jacobian_operator(f, x, kernel)
        return (J.loop_products() if fast else J.products())[1](jnp.ones((4, 5, 6)))

    fast, plain = (jax.vmap(functools.partial(adjoint_product, fast=flag))(kernels) for flag in (True, False))
    assert_allclose(fast, plain, rtol=1e-5, atol=1e-5)


def test_calls_with_shardings_stay():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    f = jax.jit(lambda y: 2 * y, in_shardings=sharding, out_shardings=sharding)
    fast = canonical(f, jax.ShapeDtypeStruct((4,), jnp.float32))
    names = [e.primitive.name for e in jax.make_jaxpr(fast)(jnp.ones(4)).jaxpr.eqns]
    assert names in (["jit"], ["pjit"])
    assert_allclose(fast(jnp.ones(4)), 2.0)
