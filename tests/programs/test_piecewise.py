"""Which functions are piecewise affine: those of the networks that we and others build, and those that are not."""

import jax
import jax.numpy as jnp
import pytest

from spectrax.programs.piecewise import Form, form_of

X = jax.ShapeDtypeStruct((4, 4), jnp.float32)
W = jnp.ones((4, 4))


def scanned(body):
    return lambda x: jax.lax.scan(lambda c, w: (body(c, w), c), x, jnp.ones((3, 4, 4)))


AFFINE = {
    "linear": lambda x: W @ x + 1,
    "relu": lambda x: jax.nn.relu(W @ x),
    "leaky relu": lambda x: jax.nn.leaky_relu(x),
    "clip": lambda x: jnp.clip(x, -1, 1),
    "abs": jnp.abs,
    "written by hand": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "sign times": lambda x: jnp.sign(x) * x,
    "relu6": jax.nn.relu6,
    "maximum of two": lambda x: jnp.maximum(x, x.T),
    "max pool": lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2), (2, 2), "VALID"),
    "average": lambda x: jnp.mean(x, axis=0),
    "sorted": lambda x: jnp.sort(x, axis=0),
    "best": lambda x: x[jnp.argmax(x[:, 0])],
    "loop": scanned(lambda c, w: jax.nn.relu(w @ c) + c),
    "checkpoint": jax.checkpoint(lambda x: jax.nn.relu(W @ x)),
    "branches": lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y, lambda y: 2 * y, x),
    "nested calls": jax.jit(lambda x: jax.jit(jax.nn.relu)(x) / 3),
    "a step and its exponential": lambda x: jnp.exp(jnp.sign(x)) * x,
    "convolution": lambda x: jax.lax.conv(x[None, None], jnp.ones((1, 1, 3, 3)), (1, 1), "SAME"),
}
CURVED = {
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "product": lambda x: x * x,
    "square": lambda x: x**2,
    "quotient": lambda x: 1 / x,
    "softmax": lambda x: jax.nn.softmax(x),
    "attention": lambda x: jax.nn.softmax(x @ x.T) @ x,
    "norm": lambda x: x / jnp.sqrt(jnp.sum(x * x)),
    "layer norm": lambda x: (x - x.mean()) / jnp.sqrt(x.var() + 1e-5),
    "loop": scanned(lambda c, w: c * c + w),
    "a loop whose second step is curved": lambda x: jax.lax.fori_loop(0, 2, lambda _, c: (c[1], c[0] * c[1]), (x, x)),
    "branch by a curve": lambda x: jax.lax.cond(x[0, 0] ** 2 > 1, lambda y: y, lambda y: 2 * y, x),
    "comparison of a curve": lambda x: jnp.where(x * x > 1, x, 0.0),
    "while": lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 3, lambda c: c + 1, x),
}


@jax.custom_jvp
def straight_through(x):
    return jnp.sign(x)


straight_through.defjvp(lambda primals, tangents: (straight_through(*primals), tangents[0]))


@jax.custom_jvp
def relu(x):  # of the right name, but with another rule
    return jnp.maximum(x, 0) + 0 * jnp.tanh(x)


relu.defjvp(lambda primals, tangents: (relu(*primals), tangents[0]))

# the derivative is not the function's, or the pieces have no end: a linear map would hold nowhere
UNTRUSTED = {
    "floor": jnp.floor,
    "rounded": jnp.round,
    "integers": lambda x: (3 * x).astype(int).astype(jnp.float32),
    "equality": lambda x: jnp.where(jnp.floor(x) == 1, x, -x),
    "eight bits": lambda x: x.astype(jnp.float8_e4m3fn).astype(jnp.float32),
    "stop_gradient": lambda x: x - 0.5 * jax.lax.stop_gradient(x),
    "rounded with a straight-through gradient": lambda x: x + jax.lax.stop_gradient(jnp.round(x) - x),
    "decided behind stop_gradient": lambda x: jnp.where(jax.lax.stop_gradient(x) > 0, x, 2 * x),
    "sign with the identity's rule": straight_through,
    "relu by name only": relu,
    "modulus of complex numbers": lambda x: jnp.abs(jax.lax.complex(x, 2 * x)),
    "sign of complex numbers": lambda x: jnp.sign(jax.lax.complex(x, 2 * x)).real,
}


@pytest.mark.parametrize("name", UNTRUSTED)
def test_untrusted(name):
    assert form_of(UNTRUSTED[name], X) == Form.CURVED


@pytest.mark.parametrize("name", AFFINE)
def test_piecewise_affine(name):
    assert form_of(AFFINE[name], X) == Form.AFFINE


@pytest.mark.parametrize("name", CURVED)
def test_curved(name):
    assert form_of(CURVED[name], X) == Form.CURVED


def test_what_hardly_depends():
    assert form_of(lambda x: jnp.zeros(3), X) == Form.CONSTANT
    assert form_of(lambda x: jnp.exp(jnp.sign(x)), X) == Form.STEPWISE
    assert form_of(lambda x: {"a": jnp.argmax(x), "b": x > 1}, X) == Form.STEPWISE
    assert form_of(jnp.zeros_like, X) == Form.CONSTANT
