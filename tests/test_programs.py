"""What functions close over is found, and what closes over nothing stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax import programs

STRUCT = jax.ShapeDtypeStruct((3,), jnp.float32)


def double(x):
    return {"twice": 2 * x}


def test_a_function_that_closes_over_nothing_stays_as_it_is():
    one, other = programs.hoist(double, STRUCT), programs.hoist(double, STRUCT)
    assert one.consts == ()
    assert one.program == other.program
    assert hash(one.program) == hash(other.program)
    assert one.out_struct["twice"].shape == (3,)
    assert one.primitives == {"mul"}
    assert_allclose(one.program((), jnp.ones(3))["twice"], 2 * np.ones(3))
    assert "double" in repr(one.program)
    assert one.program != programs.hoist(jnp.sin, STRUCT).program


def test_it_is_traced_once_for_each_set_of_shapes():
    calls = []

    def counted(x):
        calls.append(x.shape)
        return x

    for _ in range(5):
        programs.hoist(counted, STRUCT)
        programs.hoist(counted, jax.ShapeDtypeStruct((4,), jnp.float32))
    assert calls == [(3,), (4,)]


def test_arrays_become_arguments():
    matrix = jnp.arange(6.0).reshape(2, 3)
    hoisted = programs.hoist(lambda x: matrix @ x, STRUCT)
    (const,) = hoisted.consts
    assert const is matrix
    assert_allclose(hoisted.program((2 * matrix,), jnp.ones(3)), 2 * np.asarray(matrix).sum(1))
    # a jaxpr has no cheap identity: two programs are never taken for each other
    assert hoisted.program != programs.hoist(lambda x: matrix @ x, STRUCT).program


@pytest.mark.parametrize("wrap", [jax.jit, jax.vmap, jax.jacfwd, jax.jacrev])
def test_tracers_of_every_kind_become_arguments(wrap):
    def outer(data):
        hoisted = programs.hoist(lambda x: data * x, STRUCT)
        assert len(hoisted.consts) == 1
        return jnp.sum(hoisted.program(hoisted.consts, jnp.arange(3.0)))

    data = jnp.ones(2) if wrap is jax.vmap else jnp.float32(1)
    assert_allclose(wrap(outer)(data), 3 * np.ones_like(data))


def test_unhashable_callables():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return x

    hoisted = programs.hoist(Unhashable(), STRUCT)
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

    found = programs.hoist(f, STRUCT).primitives
    assert {"scan", "cond", "sin", "cos"} <= found
    assert any(name.startswith("custom_vjp_call") for name in found)


def test_frozen_trees_are_hashable():
    one = programs.FrozenTree({"a": STRUCT, "b": (STRUCT,)})
    other = programs.FrozenTree({"a": STRUCT, "b": (STRUCT,)})
    assert one == other
    assert hash(one) == hash(other)
    assert one != programs.FrozenTree({"a": STRUCT, "b": STRUCT})
    assert one != programs.FrozenTree({"a": STRUCT, "b": (jax.ShapeDtypeStruct((4,), jnp.float32),)})
    assert one != {"a": STRUCT}
    assert one.tree == {"a": STRUCT, "b": (STRUCT,)}
    assert "ShapeDtypeStruct" in repr(one)
