"""Statuses, results as pytrees, and raising on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectrax as sx
from spectrax.results import KINDS


def result(status, shape=()):
    status = jnp.full(shape, int(status), jnp.int32)
    rows = jnp.ones((*shape, 1, 2))
    one = jnp.ones((*shape, 1))
    return sx.SVDResult(rows, one, rows, one, one > 0, status, status)


def test_every_status_says_what_it_means():
    assert [status.value for status in sx.Status] == [0, 1, 2, 3, 4, 5, 6]
    texts = [status.text for status in sx.Status]
    assert all(texts)
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("status", [sx.Status.CONVERGED, sx.Status.AT_ROUND_OFF])
def test_success_is_returned(status):
    for shape in ((), (3,)):
        given = result(status, shape)
        assert sx.raise_unless_successful(given) is given


@pytest.mark.parametrize("status", [sx.Status.NOT_CONVERGED, sx.Status.NOT_FINITE])
def test_failure_is_raised(status):
    with pytest.raises(sx.SpectraxError, match=status.text[:20]):
        sx.raise_unless_successful(result(status))
    batch = result(sx.Status.CONVERGED, (3,))
    batch = batch._replace(status=batch.status.at[1].set(int(status)))
    with pytest.raises(sx.SpectraxError, match=status.text[:20]):
        sx.raise_unless_successful(batch)
    assert issubclass(sx.SpectraxError, RuntimeError)


def test_nothing_is_raised_under_a_trace():
    with pytest.raises(ValueError, match="throw=True needs concrete results"):
        jax.jit(sx.raise_unless_successful)(result(sx.Status.CONVERGED))


def test_quantities_are_pytrees_with_a_static_kind():
    one = sx.Quantity(jnp.ones(()), jnp.zeros(()), jnp.full((), jnp.inf), jnp.zeros((), jnp.int32), kind="lower")
    doubled = jax.jit(lambda q: jax.tree.map(lambda leaf: 2 * leaf, q))(one)
    assert doubled.kind == "lower"
    assert float(doubled.value) == 2.0
    assert one.kind in KINDS
    with pytest.raises(AttributeError):
        one.value = 2.0
    batch = jax.vmap(lambda x: sx.Quantity(x, x, x, x, kind="exact"))(jnp.arange(3.0))
    assert batch.kind == "exact"
    np.testing.assert_array_equal(batch.value, np.arange(3.0))
