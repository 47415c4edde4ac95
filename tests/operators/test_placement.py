"""Shardings of an operator's vectors that the user gives."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose

import spectrax as sx

MESH = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
ROWS = NamedSharding(MESH, PartitionSpec("x"))


def quartic(w):
    return jnp.sum(w["a"] ** 4) + jnp.sum(w["a"]) * w["b"] ** 2


PARAMS = {"a": jnp.array([1.0, 2.0]), "b": jnp.asarray(3.0)}


def test_the_operator_stays_the_same_and_its_structures_say_where_vectors_lie():
    H = sx.hessian_operator(quartic, PARAMS)
    assert sx.with_shardings(H, None).in_struct == H.in_struct
    for operator in (H, 2 * H):
        placed = sx.with_shardings(operator, {"a": ROWS, "b": None})
        assert placed.in_struct["a"].sharding == placed.out_struct["a"].sharding == ROWS
        assert placed.in_struct["b"].sharding is None
        assert_allclose(placed.to_dense(), operator.to_dense())
        assert operator.in_struct["a"].sharding is None


def test_sides_of_different_structure_are_placed_apart():
    matrix = jnp.ones((3, 2))
    assert sx.with_shardings(matrix, ROWS).out_struct.sharding is None
    both = sx.with_shardings(matrix, None, ROWS)
    assert (both.in_struct.sharding, both.out_struct.sharding) == (None, ROWS)
    assert_allclose(sx.svds(both, 1).s, [6**0.5], rtol=1e-6)


def test_explicit_axes_become_automatic_ones():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    placed = sx.with_shardings(jnp.ones((3, 2)), NamedSharding(mesh, PartitionSpec("x")))
    assert placed.in_struct.sharding.mesh.axis_types == (AxisType.Auto,)


def test_what_is_wrong_is_said():
    H = sx.hessian_operator(quartic, PARAMS)
    with pytest.raises(ValueError, match="in_shardings must have the structure of the vectors"):
        sx.with_shardings(H, {"a": ROWS})
    with pytest.raises(TypeError, match="in_shardings must hold NamedSharding or None, got P"):
        sx.with_shardings(H, {"a": PartitionSpec("x"), "b": None})
    with pytest.raises(ValueError, match="rank"):
        sx.with_shardings(H, ROWS)  # a number has no axis
