"""Each check says what was expected and what came, and lets pass what is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectrax import checks


def test_what_passes():
    checks.choice("which", "a", ("a", "b"))
    for value in (1, 7, np.int32(3)):
        checks.positive_integer("k", value)
    for value in (0, 1, 0.5, np.float32(0.5)):
        checks.number_in("tol", value, 0.0, 1.0)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.complex64):
        checks.inexact("A", dtype)
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        checks.key("key", key)
    jax.jit(lambda key: checks.key("key", key))(jax.random.key(0))
    checks.same_structure("v", {"a": jnp.ones(2)}, {"a": jax.ShapeDtypeStruct((2,), jnp.float32)})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: checks.choice("which", "c", ("a", "b")), ValueError, "which must be one of 'a', 'b'; got 'c'"),
        (lambda: checks.positive_integer("k", 0), ValueError, "k must be at least 1, got 0"),
        (lambda: checks.positive_integer("k", 1.0), TypeError, "k must be an integer, got 1.0 of type float"),
        (lambda: checks.positive_integer("k", True), TypeError, "k must be an integer, got True"),
        (lambda: checks.positive_integer("k", None), TypeError, "k must be an integer, got None"),
        (lambda: checks.number_in("t", 2, 0, 1), ValueError, r"t must lie in \[0, 1\], got 2"),
        (
            lambda: checks.number_in("t", 0, 0, float("inf"), low_open=True),
            ValueError,
            "t must be larger than 0, got 0",
        ),
        (lambda: checks.number_in("t", -2, -1.5, float("inf")), ValueError, "t must be at least -1.5, got -2"),
        (lambda: checks.number_in("t", 0, 0, 1, low_open=True), ValueError, r"t must lie in \(0, 1\], got 0"),
        (lambda: checks.number_in("t", float("nan"), 0, 1), ValueError, "got nan"),
        (lambda: checks.number_in("t", "1", 0, 1), TypeError, "t must be a real number, got '1' of type str"),
        (lambda: checks.number_in("t", True, 0, 1), TypeError, "t must be a real number, got True"),
        (lambda: checks.number_in("t", 1j, 0, 1), TypeError, "t must be a real number"),
        (lambda: checks.inexact("A", jnp.int32), TypeError, "A must have a floating-point or complex dtype, got int32"),
        (lambda: checks.key("key", 0), TypeError, "key must be a PRNG key such as .*, got int"),
        (lambda: checks.key("key", jax.random.split(jax.random.key(0))), TypeError, r"shape \(2,\)"),
        (lambda: checks.key("key", jnp.zeros(2)), TypeError, "dtype float32"),
        (lambda: checks.key("key", jax.random.split(jax.random.PRNGKey(0))), TypeError, r"shape \(2, 2\)"),
        (
            lambda: checks.same_structure("v", (jnp.ones(2),), jnp.ones(2)),
            ValueError,
            "v must be a pytree of structure .*, got",
        ),
        (
            lambda: checks.same_structure("v", {"a": jnp.ones(3)}, {"a": jax.ShapeDtypeStruct((2,), jnp.float32)}),
            ValueError,
            r"v\['a'\] must have shape \(2,\), got \(3,\)",
        ),
        (
            lambda: checks.same_structure("v", jnp.ones(2, jnp.int32), jax.ShapeDtypeStruct((2,), jnp.float32)),
            TypeError,
            "v must have dtype float32, got int32",
        ),
    ],
)
def test_what_raises(call, error, message):
    with pytest.raises(error, match=message):
        call()
