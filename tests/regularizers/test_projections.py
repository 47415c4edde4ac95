"""Projections of weights after the step, against NumPy's decompositions of what the step leads to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from numpy.testing import assert_allclose, assert_array_equal

import spectrax as sx
from spectrax.regularizers import MatrixAxes, flax_axes
from spectrax.regularizers.transforms import clip_singular_values, project_spectral_norm


def array_of(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def values(matrix):
    return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)


def stepped(optimizer, params, gradient, count=1, promotion="strict"):
    """The parameters after some steps with the same gradient; Optax's own optimisers need promotion of dtypes."""

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion(promotion):
        state = optimizer.init(params)
        for _ in range(count):
            params, state = step(params, state)
    assert step._cache_size() == 1
    return params


PARAMS = {
    "large": 3 * array_of((4, 6)),
    "small": 0.01 * array_of((3, 3)),
    "bias": array_of((3,)),
    "count": jnp.arange(3),
}
GRADIENT = {
    "large": array_of((4, 6), 1),
    "small": 0.01 * array_of((3, 3), 2),
    "bias": array_of((3,), 3),
    "count": jnp.zeros(3, int),
}


def test_weights_are_scaled_to_the_bound():
    free = stepped(optax.sgd(0.1), PARAMS, GRADIENT, promotion="standard")
    made = stepped(optax.chain(optax.sgd(0.1), project_spectral_norm(1.5)), PARAMS, GRADIENT, promotion="standard")
    expected = np.asarray(free["large"]) * 1.5 / values(free["large"])[0]
    assert_allclose(made["large"], expected, atol=1e-6)
    for name in ("small", "bias", "count"):
        assert_array_equal(made[name], free[name])


def test_singular_values_are_clipped_to_the_nearest_matrix():
    free = np.asarray(stepped(optax.sgd(0.1), PARAMS, GRADIENT, promotion="standard")["large"], np.float64)
    made = stepped(optax.chain(optax.sgd(0.1), clip_singular_values(1.0, 4.0)), PARAMS, GRADIENT, promotion="standard")
    u, s, vh = np.linalg.svd(free, full_matrices=False)
    assert_allclose(made["large"], (u * np.clip(s, 1, 4)) @ vh, atol=1e-5)
    assert_allclose(values(made["small"]), 1, atol=1e-5)
    polar = stepped(
        optax.chain(optax.sgd(0.1), clip_singular_values(1.0, 1.0)), PARAMS, GRADIENT, promotion="standard"
    )["large"]
    assert_allclose(polar, scipy.linalg.polar(free)[0], atol=1e-5)


def test_a_convolution_by_its_own_norm(convolution_matrix):
    kernel = array_of((3, 3, 2, 3))

    def norm(name, leaf):
        return sx.conv_norm(leaf, padding="SAME", certified=True).value if name == "conv" else None

    params, zero = {"conv": kernel, "dense": 9 * jnp.eye(2)}, {"conv": 0 * kernel, "dense": jnp.zeros((2, 2))}
    made = stepped(project_spectral_norm(1.0, norm=norm), params, zero)
    assert_array_equal(made["dense"], params["dense"])
    top = values(convolution_matrix(np.asarray(made["conv"], np.float64), (8, 8), padding="SAME"))[0]
    assert 0.9 < top <= 1


def test_axes():
    """Stacks of scanned layers one by one, and attention as Flax lays it out."""
    stack = array_of((3, 4, 5)) * jnp.array([0.01, 1.0, 9.0])[:, None, None]
    made = stepped(project_spectral_norm(1.0, axes=MatrixAxes(1, 2)), {"w": stack}, {"w": 0 * stack})["w"]
    assert_array_equal(made[0], stack[0])
    assert_allclose([values(each)[0] for each in made[1:]], 1, atol=1e-6)
    attention = {"query": {"kernel": array_of((6, 2, 3))}, "out": {"kernel": array_of((2, 3, 6))}}
    zero = jax.tree.map(jnp.zeros_like, attention)
    made = stepped(clip_singular_values(0.5, 0.5, axes=flax_axes), attention, zero)
    assert_allclose(values(made["query"]["kernel"].reshape(6, 6)), 0.5, atol=1e-5)
    assert_allclose(values(made["out"]["kernel"].reshape(6, 6)), 0.5, atol=1e-5)
    with pytest.raises(ValueError, match=r"conv has shape \(3, 3, 2, 2\): which matrix"):
        stepped(project_spectral_norm(1.0, axes=flax_axes), {"conv": array_of((3, 3, 2, 2))}, {"conv": 0.0})


def test_every_so_many_steps():
    params, gradient = {"w": 4 * jnp.eye(2)}, {"w": jnp.zeros((2, 2))}
    optimizer = project_spectral_norm(1.0, every=3)
    for count, expected in ((2, 4.0), (3, 1.0), (4, 1.0)):
        assert_allclose(stepped(optimizer, params, gradient, count)["w"], expected * np.eye(2), atol=1e-6)


WRAPPERS = {
    "chain": lambda inner: optax.chain(optax.adam(0.1), inner),
    "named chain": lambda inner: optax.named_chain(("adam", optax.adam(0.1)), ("projection", inner)),
    "masked": lambda inner: optax.chain(optax.adam(0.1), optax.masked(inner, {"large": True, "small": False})),
    "partition": lambda inner: optax.partition(
        {"a": optax.chain(optax.adam(0.1), inner), "b": optax.sgd(0.1)}, {"large": "a", "small": "b"}
    ),
    "accumulated": lambda inner: optax.MultiSteps(optax.chain(optax.adam(0.1), inner), 2),
    "if finite": lambda inner: optax.apply_if_finite(optax.chain(optax.adam(0.1), inner), 3),
    "hyperparameters": lambda inner: optax.chain(
        optax.adam(0.1), optax.inject_hyperparams(project_spectral_norm)(bound=1.5)
    ),
    "frozen": lambda inner: optax.chain(
        optax.adam(0.1), inner, optax.transforms.freeze({"large": False, "small": True})
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_of_optax(name):
    params = {key: PARAMS[key] for key in ("large", "small")}
    gradient = {key: GRADIENT[key] for key in params}
    made = stepped(WRAPPERS[name](project_spectral_norm(1.5)), params, gradient, 4, "standard")
    assert values(made["large"])[0] <= 1.5 * (1 + 1e-6)
    if name == "frozen":
        assert_array_equal(made["small"], params["small"])


def test_degenerate_weights():
    """Zero, rank-deficient and repeated values; NaN comes through."""
    for weight in (jnp.zeros((3, 2)), jnp.ones((3, 2)), jnp.eye(3), jnp.ones((1, 4)), jnp.eye(3).astype(jnp.bfloat16)):
        for inner in (project_spectral_norm(0.5), clip_singular_values(0.1, 0.5)):
            made = stepped(inner, {"w": weight}, {"w": jnp.zeros_like(weight)})["w"]
            assert made.dtype == weight.dtype
            assert values(made.astype(jnp.float32))[0] <= 0.5 * (1 + 1e-2 * (weight.dtype == jnp.bfloat16) + 1e-6)
    assert np.isnan(
        stepped(project_spectral_norm(1.0), {"w": jnp.full((2, 2), jnp.nan)}, {"w": jnp.zeros((2, 2))})["w"]
    ).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: project_spectral_norm(-1.0), ValueError, "bound must be at least 0"),
        (lambda: project_spectral_norm("one"), TypeError, "bound must be a real number"),
        (lambda: project_spectral_norm(1.0, every=0), ValueError, "every must be at least 1"),
        (lambda: project_spectral_norm(1.0, axes=MatrixAxes(), norm=lambda n, w: w), ValueError, "exclude each other"),
        (lambda: clip_singular_values(2.0, 1.0), ValueError, "high must be at least 2"),
        (
            lambda: project_spectral_norm(1.0).update({}, project_spectral_norm(1.0).init({})),
            ValueError,
            "project_spectral_norm needs the parameters",
        ),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
