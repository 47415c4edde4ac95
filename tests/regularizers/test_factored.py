"""Kernels as factors: conversion to and fro, pruning, and their penalties, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import parametrizations, regularizers


def array_of(shape, seed=0, dtype="float64"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def as_matrix(kernel, form):
    kernel = np.asarray(kernel)
    if form == "spatial":
        return kernel.transpose(0, 2, 1, 3).reshape(kernel.shape[0] * kernel.shape[2], -1)
    return kernel.reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize(
    ("shape", "form"),
    [((5, 4), "channel"), ((3, 3, 2, 7), "channel"), ((3, 5, 2, 4), "spatial"), ((3, 2, 5), "channel")],
)
def test_to_and_fro(shape, form, x64):
    kernel = array_of(shape)
    whole = parametrizations.factored(form=form)
    raw = jax.jit(whole.init)(kernel)
    assert_allclose(jax.jit(whole.apply)(raw), kernel, atol=1e-13)
    s = np.linalg.svd(as_matrix(kernel, form), compute_uv=False)
    assert_allclose(raw["s"], s, rtol=1e-12)
    low = parametrizations.factored(form=form, rank=2)
    error = as_matrix(low.apply(low.init(kernel)) - kernel, form)
    assert_allclose(np.linalg.norm(error, 2), s[2], rtol=1e-10)  # Eckart and Young
    for name, leaf in parametrizations.factored(rank=2).init(kernel.astype(jnp.bfloat16)).items():
        assert leaf.dtype == jnp.bfloat16, name


def test_pruning_drops_the_energy_that_it_says(x64):
    kernel = array_of((3, 3, 4, 8))
    form = parametrizations.factored()
    raw = form.init(kernel)
    shuffled = {"u": raw["u"][..., ::-1], "s": -raw["s"][::-1], "v": -raw["v"][::-1]}  # signs and order are free
    energies = np.cumsum(np.square(raw["s"])) / np.sum(np.square(raw["s"]))
    for energy in (0.3, 0.9, 1.0, energies[3]):
        pruned = parametrizations.prune_by_energy(shuffled, float(energy))
        assert pruned.kept >= energy - 1e-12
        assert pruned.rank == np.sum(energies < energy - 1e-12) + 1
        dropped = np.sum(np.square(form.apply(pruned.raw) - kernel)) / np.sum(np.square(kernel))
        assert_allclose(dropped, 1 - pruned.kept, atol=1e-12)
    nothing = parametrizations.prune_by_energy({"u": jnp.zeros((2, 2)), "s": jnp.zeros(2), "v": jnp.zeros((2, 2))}, 0.5)
    assert (nothing.rank, nothing.kept) == (1, 1.0)


def test_the_two_layers_are_the_kernel(x64):
    """What the FLOPs count: a k x k and a 1 x 1 convolution, or a k x 1 and a 1 x k one."""
    x = array_of((1, 6, 7, 2), 5)

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    kernel = array_of((3, 3, 2, 4))
    raw = parametrizations.factored(rank=3).init(kernel)
    two = convolve(convolve(x, raw["u"]), (raw["s"][:, None] * raw["v"])[None, None])
    assert_allclose(two, convolve(x, parametrizations.factored().apply(raw)), atol=1e-12)
    form = parametrizations.factored(rank=3, form="spatial")
    raw = form.init(kernel)
    first, second = raw["u"][:, None], (raw["s"][:, None, None] * raw["v"]).transpose(1, 0, 2)[None]
    assert_allclose(convolve(convolve(x, first), second), convolve(x, form.apply(raw)), atol=1e-12)
    for kind, layers in (("channel", (3 * 3 * 2 * 3, 3 * 4)), ("spatial", (3 * 2 * 3, 3 * 3 * 4))):
        flops = parametrizations.low_rank_flops(kernel.shape, 3, form=kind)
        assert flops == (2 * 3 * 3 * 2 * 4, 2 * sum(layers))


@pytest.mark.parametrize(
    ("s", "l1", "hoyer", "square"),
    [
        ((3.0, 2, 1, 0), 6, 0.6035674514745464, 1.5714285714285714),
        ((0.0, 5, 0), 5, 0, 0),
        ((2.0, 2, 2, 2), 8, 1, 3),
        ((0.0, 0), 0, 0, 0),
        ((-1e-30, 1e-30), 2e-30, 2**0.5 - 1, 1),
    ],
)
def test_sparsity(s, l1, hoyer, square):
    raw = {"u": jnp.eye(len(s)), "s": jnp.array(s), "v": jnp.eye(len(s))}
    for form, expected in (("l1", l1), ("hoyer", hoyer), ("hoyer_square", square)):
        penalty = regularizers.factor_sparsity_penalty(form=form)
        value, gradient = jax.value_and_grad(lambda p, a=penalty: a.apply(p, a.init(p, None))[0])({"layer": raw})
        assert_allclose(value, expected, rtol=1e-6, atol=1e-35)
        assert np.isfinite(gradient["layer"]["s"]).all()


def test_orthogonality_of_factors(x64):
    raw = {"u": array_of((3, 2, 4)), "s": array_of((4,), 1), "v": array_of((4, 5), 2)}
    u, v = np.asarray(raw["u"]).reshape(6, 4), np.asarray(raw["v"])
    expected = (np.sum((u.T @ u - np.eye(4)) ** 2) + np.sum((v @ v.T - np.eye(4)) ** 2)) / 16
    penalty = regularizers.factor_orthogonality_penalty()
    params = {"a": raw, "bias": jnp.zeros(3)}
    assert_allclose(penalty.apply(params, penalty.init(params, None))[0], expected, rtol=1e-12)
    orthonormal = {"a": parametrizations.factored().init(array_of((3, 2, 5)))}
    assert_allclose(penalty.apply(orthonormal, penalty.init(orthonormal, None))[0], 0, atol=1e-24)
    assert penalty.kinds(params) == {"a": "exact"}
    for broken, message in (({"w": jnp.ones((2, 2))}, "no parameter is a dict"), (params, "the mask leaves none")):
        with pytest.raises(ValueError, match=message):
            regularizers.factor_orthogonality_penalty(mask=lambda name: False).init(broken, None)


def test_training_a_layer_to_a_low_rank():
    """A factored layer of Flax, with both penalties in an Optax chain: the rank that its data have."""
    from spectrax.integrations.linen import Dense

    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.normal(size=(8, 2)) @ rng.normal(size=(2, 8)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)
    form = parametrizations.factored()
    layer = Dense(8, use_bias=False, parametrization=form)
    params = layer.init(jax.random.key(0), x)
    optimizer = optax.chain(
        sx.transforms.add_spectral_penalty(regularizers.factor_orthogonality_penalty(), 1.0),
        sx.transforms.add_spectral_penalty(regularizers.factor_sparsity_penalty(form="l1"), 0.3),
        optax.adam(2e-2),
    )

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: jnp.mean(jnp.sum((layer.apply(p, x) - x @ target) ** 2, -1)))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for _ in range(500):
            params, state = step(params, state)
    pruned = parametrizations.prune_by_energy(params["params"]["kernel"], 0.99)
    assert pruned.rank == 2
    assert np.linalg.norm(form.apply(pruned.raw) - target) < 0.2 * np.linalg.norm(target)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: parametrizations.factored(form="both"), ValueError, "form must be one of"),
        (lambda: parametrizations.factored(rank=0), ValueError, "rank must be at least 1"),
        (lambda: parametrizations.factored().init(jnp.ones(3)), ValueError, "at least two axes"),
        (lambda: parametrizations.factored(form="spatial").init(jnp.ones((3, 2, 2))), ValueError, "four axes"),
        (lambda: parametrizations.prune_by_energy({"s": jnp.ones(2)}, 0.0), ValueError, "energy must lie in"),
        (lambda: parametrizations.prune_by_energy({"s": jnp.full(2, jnp.nan)}, 0.5), ValueError, "must be finite"),
        (lambda: parametrizations.low_rank_flops((3, 2, 2), 1, form="spatial"), ValueError, "kernel_shape must be"),
        (lambda: regularizers.factor_sparsity_penalty(form="l2"), ValueError, "form must be one of"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
