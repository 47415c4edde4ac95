"""The Optax transformation: where it may stand, what it composes with, and what its state carries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import spectrax as sx
from spectrax.regularizers import (
    condition_number_penalty,
    jacobian_maps,
    orthogonality_penalty,
    spectral_norm_penalty,
)
from spectrax.regularizers.transforms import add_spectral_penalty

PENALTIES = {
    "condition_number": condition_number_penalty(block_size=3, renew_every=4),
    "spectral_norm": spectral_norm_penalty(renew_every=4),
    "orthogonality": orthogonality_penalty(),
}
CONDITION = PENALTIES["condition_number"]
NORM = PENALTIES["spectral_norm"]


def kernel(seed=0, shape=(6, 5)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


PARAMS = {"dense": {"kernel": kernel(), "bias": jnp.ones(5)}, "head": {"kernel": kernel(1)}}


def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def log_condition(matrix):
    """With blocks of two at each end, as many as a matrix with five values has."""
    s = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    return np.mean(np.log(s[:2])) - np.mean(np.log(s[-2:]))


def optax_promotion():
    """Optax's adam raises a Python float to an int32 count, which strict promotion refuses."""
    return jax.numpy_dtype_promotion("standard")


def train(optimizer, params, state, steps, **extra):
    """Steps on the penalty alone: the gradient of the loss is zero. Returns the penalty at each step."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(zeros(params), state, params, **extra)
        return (optax.apply_updates(params, updates), state), optax.tree.get(state, "penalty")

    with optax_promotion():
        (params, state), values = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))((params, state))
    return params, state, np.asarray(values)


def one_update(optimizer, params, state=None, grads=None, **extra):
    state = jax.jit(optimizer.init)(params) if state is None else state
    with optax_promotion():
        return jax.jit(optimizer.update)(zeros(params) if grads is None else grads, state, params, **extra)


def place(position, penalty, weight=1.0):
    if position == "before":
        return optax.chain(add_spectral_penalty(penalty, weight), optax.adam(1e-2))
    if position == "between":
        return optax.chain(
            optax.scale_by_adam(), add_spectral_penalty(penalty, weight), optax.scale_by_learning_rate(1e-2)
        )
    last = add_spectral_penalty(penalty, weight, decoupled=True, learning_rate=1e-2)
    return optax.chain(optax.adam(1e-2), last)


@pytest.mark.parametrize("position", ["before", "between", "after"])
@pytest.mark.parametrize("name", list(PENALTIES))
def test_the_penalty_falls_in_every_position(position, name):
    optimizer = place(position, PENALTIES[name])
    params = jax.tree.map(lambda p: 0.5 * p, PARAMS) if name == "orthogonality" else PARAMS
    trained, state, values = train(optimizer, params, jax.jit(optimizer.init)(params), 30)
    assert values[-1] < 0.95 * values[0]
    assert np.all(np.diff(values) < 0.02 * values[0])
    assert_array_equal(trained["dense"]["bias"], params["dense"]["bias"])
    spectra = [np.linalg.svd(np.asarray(tree[k]["kernel"]), compute_uv=False) for k in ("dense", "head")
               for tree in (params, trained)]  # fmt: skip
    if name == "condition_number":
        assert sum(np.log(s[0] / s[-1]) for s in spectra[1::2]) < sum(np.log(s[0] / s[-1]) for s in spectra[::2])
    if name == "spectral_norm":
        assert sum(s[0] for s in spectra[1::2]) < sum(s[0] for s in spectra[::2])
    assert int(optax.tree.get(state, "step")) == 30


def test_the_update_is_the_incoming_one_and_the_weighted_gradient():
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.25), PARAMS)
    updates, state = one_update(add_spectral_penalty(NORM, 0.1), PARAMS, grads=grads)
    for name in ("dense", "head"):
        u, s, v = np.linalg.svd(np.asarray(PARAMS[name]["kernel"]), full_matrices=False)
        expected = 0.25 + 0.1 * s[0] * np.outer(u[:, 0], v[0])
        assert_allclose(updates[name]["kernel"], expected, rtol=1e-4, atol=1e-5)
    assert_array_equal(updates["dense"]["bias"], 0.25)
    assert float(state.weight) == pytest.approx(0.1)
    norms = [np.linalg.norm(np.asarray(PARAMS[name]["kernel"]), 2) for name in ("dense", "head")]
    assert float(state.penalty) == pytest.approx(sum(s**2 / 2 for s in norms), rel=1e-5)


def test_decoupled_subtracts_with_its_own_learning_rate():
    coupled = one_update(add_spectral_penalty(NORM, 0.5), PARAMS)[0]
    own = add_spectral_penalty(NORM, 0.5, decoupled=True, learning_rate=0.02)
    jax.tree.map(lambda a, b: assert_allclose(a, -0.02 * b, rtol=1e-5), one_update(own, PARAMS)[0], coupled)
    scheduled = add_spectral_penalty(NORM, 0.5, decoupled=True, learning_rate=lambda step: 0.02 * (step + 1))
    first, state = one_update(scheduled, PARAMS)
    second, _ = one_update(scheduled, PARAMS, state)
    jax.tree.map(lambda a, b: assert_allclose(2 * a, b, rtol=1e-5), first, second)


def test_a_schedule_for_the_weight():
    optimizer = add_spectral_penalty(NORM, optax.linear_schedule(0.0, 1.0, 4))
    state, seen = jax.jit(optimizer.init)(PARAMS), []
    for _ in range(6):
        updates, state = one_update(optimizer, PARAMS, state)
        seen.append((float(state.weight), float(jnp.linalg.norm(updates["head"]["kernel"]))))
    norm = np.linalg.norm(np.asarray(PARAMS["head"]["kernel"]), 2)
    assert_allclose([weight for weight, _ in seen], [0, 0.25, 0.5, 0.75, 1, 1], atol=1e-6)
    assert_allclose([size for _, size in seen], norm * np.array([0, 0.25, 0.5, 0.75, 1, 1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "mask",
    [
        {"dense": {"kernel": True, "bias": False}, "head": {"kernel": False}},
        {"dense": True, "head": False},
        lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "dense", params),
    ],
    ids=["tree", "prefix", "callable"],
)
def test_masks_of_parameters(mask):
    free = one_update(add_spectral_penalty(NORM, 1.0), PARAMS)[0]
    updates, state = one_update(add_spectral_penalty(NORM, 1.0, mask=mask), PARAMS)
    assert_array_equal(updates["head"]["kernel"], 0)
    assert_allclose(updates["dense"]["kernel"], free["dense"]["kernel"], rtol=1e-6)
    assert set(state.tracked.measurements.sigma_max) == {"dense/kernel", "head/kernel"}  # still measured


def test_a_mask_shields_from_what_is_not_finite():
    params = {"a": jnp.full((3, 3), jnp.nan), "b": jnp.eye(3)}
    updates, _ = one_update(add_spectral_penalty(NORM, 1.0, mask={"a": False, "b": True}), params)
    assert_array_equal(updates["a"], 0)


def test_measurements_are_read_with_optax_tree_get():
    optimizer = place("before", CONDITION)
    state = jax.jit(optimizer.init)(PARAMS)
    true = np.linalg.cond(np.asarray(PARAMS["head"]["kernel"]))
    at_init = optax.tree.get(state, "measurements")
    assert float(at_init.condition_number["head/kernel"]) == pytest.approx(true, rel=1e-4)
    _, state = one_update(optimizer, PARAMS, state)
    measurements = optax.tree.get(state, "measurements")
    assert isinstance(measurements, sx.regularizers.SpectralMeasurements)
    assert set(measurements.sigma_min) == {"dense/kernel", "head/kernel"}
    assert float(optax.tree.get(state, "condition_number")["head/kernel"]) == pytest.approx(true, rel=1e-4)
    assert float(optax.tree.get(state, "penalty")) == pytest.approx(
        sum(log_condition(PARAMS[name]["kernel"]) for name in ("dense", "head")), rel=1e-4
    )


# --- what it composes with ---


def masked(inner):
    return optax.masked(inner, {"dense": True, "head": False})


def partitioned(inner):
    return optax.partition({"a": inner, "b": optax.set_to_zero()}, {"dense": "a", "head": "b"})


WRAPPERS = {
    "chain": lambda: place("before", CONDITION),
    "named chain": lambda: optax.named_chain(("spectral", add_spectral_penalty(CONDITION, 1.0)), ("a", optax.sgd(0.1))),
    "hyperparameters": lambda: optax.chain(
        optax.inject_hyperparams(add_spectral_penalty)(penalty=CONDITION, weight=0.5), optax.sgd(0.1)
    ),
    "masked": lambda: optax.chain(masked(add_spectral_penalty(CONDITION, 1.0)), optax.sgd(0.1)),
    "partition": lambda: partitioned(place("before", CONDITION)),
    "accumulated": lambda: optax.MultiSteps(place("before", CONDITION), 2),
    "if finite": lambda: optax.apply_if_finite(place("before", CONDITION), 3),
    "frozen": lambda: optax.chain(place("before", CONDITION), optax.transforms.freeze({"dense": False, "head": True})),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), place("between", CONDITION), optax.zero_nans()),
}


@pytest.mark.parametrize("name", list(WRAPPERS))
@pytest.mark.parametrize("with_key", [False, True], ids=["", "key"])
def test_wrappers_of_optax(name, with_key, monkeypatch):
    if with_key:
        if name not in ("accumulated", "if finite", "partition"):
            return
        monkeypatch.setitem(globals(), "place", lambda _, penalty: optax.chain(
            add_spectral_penalty(penalty, 1.0, key=jax.random.key(0)), optax.sgd(0.1)
        ))  # fmt: skip
    optimizer = WRAPPERS[name]()
    trained, state, values = train(optimizer, PARAMS, jax.jit(optimizer.init)(PARAMS), 12)
    start = 1 if name == "accumulated" else 0  # the first of two steps only adds up gradients
    assert values[-1] < values[start]
    before, after = (np.linalg.cond(np.asarray(p["dense"]["kernel"])) for p in (PARAMS, trained))
    assert after < before
    if name in ("masked", "partition", "frozen"):
        assert_array_equal(trained["head"]["kernel"], PARAMS["head"]["kernel"])
    assert "dense/kernel" in optax.tree.get(state, "measurements").sigma_max


def test_every_so_many_steps():
    """The gradient at steps 0, 3 and 6; in between the updates pass and the state keeps what it knew."""
    optimizer, plain = add_spectral_penalty(NORM, 1.0, every=3), add_spectral_penalty(NORM, 1.0)
    state, update, params = optimizer.init(PARAMS), jax.jit(optimizer.update), PARAMS
    for step in range(7):
        before = state.penalty
        updates, state = update(zeros(params), state, params)
        expected = plain.update(zeros(params), plain.init(params), params)[0]["head"]["kernel"]
        if step % 3:
            assert_array_equal(updates["head"]["kernel"], 0)
            assert_array_equal(state.penalty, before)
        else:
            assert_allclose(updates["head"]["kernel"], expected, rtol=1e-3)
        params = jax.tree.map(lambda p, u: p - 0.1 * u, params, updates)
    assert update._cache_size() == 1
    assert int(state.step) == 7
    with pytest.raises(ValueError, match="every must be at least 1"):
        add_spectral_penalty(NORM, 1.0, every=0)


def test_before_muon():
    """Its orthogonalised updates still lower the penalty, as Optax's own transformation makes them."""
    params = {name: PARAMS[name] for name in ("dense", "head")}
    optimizer = optax.chain(add_spectral_penalty(CONDITION, 1.0), optax.contrib.muon(1e-2))
    _, _, values = train(optimizer, params, jax.jit(optimizer.init)(params), 15)
    assert values[-1] < values[0]


def test_a_scheduled_weight_as_a_hyperparameter():
    make = optax.inject_hyperparams(add_spectral_penalty)
    optimizer = make(penalty=NORM, weight=optax.linear_schedule(0.0, 1.0, 2))
    state, sizes = jax.jit(optimizer.init)(PARAMS), []
    for _ in range(3):
        updates, state = jax.jit(optimizer.update)(zeros(PARAMS), state, PARAMS)
        sizes.append(float(jnp.linalg.norm(updates["head"]["kernel"])))
    assert_allclose(np.array(sizes) / sizes[-1], [0, 0.5, 1], atol=1e-5)


def test_the_batch_passes_through_a_chain():
    def model(params, x):
        return jnp.tanh(params["w"] @ x)

    params, xs = {"w": kernel(shape=(3, 4))}, kernel(1, shape=(5, 4))
    penalty = spectral_norm_penalty(jacobian_maps(model), batched=True)
    optimizer = optax.chain(add_spectral_penalty(penalty, 1.0), optax.adam(1e-2))
    trained, state, values = train(optimizer, params, jax.jit(optimizer.init)(params), 20, x=xs)
    assert values[-1] < 0.9 * values[0]
    w = np.asarray(params["w"], np.float64)
    jacobians = [(1 - np.tanh(w @ x) ** 2)[:, None] * w for x in np.asarray(xs, np.float64)]
    assert values[0] == pytest.approx(np.mean([np.linalg.norm(j, 2) ** 2 / 2 for j in jacobians]), rel=1e-5)
    assert np.isfinite(optax.tree.get(state, "measurements").sigma_max["jacobian"])
    assert trained["w"].shape == (3, 4)
    with pytest.raises(ValueError, match="needs the samples"):
        optimizer.update(zeros(params), optimizer.init(params), params)


def test_a_flax_nnx_optimizer():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(6, 8, rngs=rngs)
            self.out = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.out(jax.nn.relu(self.hidden(x)))

    model = Model(nnx.Rngs(0))
    chain = optax.chain(add_spectral_penalty(CONDITION, 1.0, key=jax.random.key(0)), optax.sgd(0.05))
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        grads = nnx.grad(lambda model: 0 * jnp.mean(model(x)))(model)
        optimizer.update(model, grads)

    before = [np.linalg.cond(np.asarray(layer.kernel[...])) for layer in (model.hidden, model.out)]
    with optax_promotion():
        for _ in range(6):
            step(model, optimizer, jnp.ones((2, 6)))
    after = [np.linalg.cond(np.asarray(layer.kernel[...])) for layer in (model.hidden, model.out)]
    assert np.log(after).sum() < np.log(before).sum()
    names = set(optax.tree.get(optimizer.opt_state, "measurements").sigma_max)
    assert names == {"hidden/kernel", "out/kernel"}


# --- its state ---


def test_one_trace_for_many_steps():
    optimizer, traces = place("before", CONDITION), []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = optimizer.update(zeros(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, jax.jit(optimizer.init)(PARAMS)
    with optax_promotion():
        for _ in range(20):
            params, state = step(params, state)
    assert len(traces) == 1


@pytest.mark.parametrize("name", list(PENALTIES))
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_structure_and_dtypes_never_change(request, name, dtype):
    if dtype == "float64":
        request.getfixturevalue("x64")
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    optimizer = add_spectral_penalty(PENALTIES[name], 0.1)
    state = jax.jit(optimizer.init)(params)
    updates, after = jax.eval_shape(optimizer.update, zeros(params), state, params)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(updates))
    describe = jax.tree_util.Partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert describe(state) == describe(after)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_a_checkpoint_through_numpy_goes_on_with_the_same_numbers():
    optimizer = place("before", CONDITION)
    params, state, _ = train(optimizer, PARAMS, jax.jit(optimizer.init)(PARAMS), 3)
    expected, _, values = train(optimizer, params, state, 4)
    leaves, treedef = jax.tree.flatten((params, state))
    saved = [np.asarray(leaf).copy() for leaf in leaves]
    params, state = treedef.unflatten([jnp.asarray(array) for array in saved])
    actual, _, again = train(optimizer, params, state, 4)
    assert_array_equal(values, again)
    jax.tree.map(assert_array_equal, expected, actual)


def test_vmap_over_seeds():
    optimizer = place("before", CONDITION)
    stacked = {"kernel": jnp.stack([kernel(seed) for seed in range(3)])}

    @jax.jit
    @jax.vmap
    def run(params):
        updates, state = optimizer.update(zeros(params), optimizer.init(params), params)
        return updates, optax.tree.get(state, "penalty")

    with optax_promotion():
        updates, values = run(stacked)
    for seed in range(3):
        params = {"kernel": kernel(seed)}
        alone, state = one_update(optimizer, params)
        assert_allclose(values[seed], optax.tree.get(state, "penalty"), rtol=1e-5)
        assert_allclose(updates["kernel"][seed], alone["kernel"], rtol=1e-3, atol=1e-6)


# --- errors ---


@pytest.mark.parametrize("weight", [-0.1, -1, jnp.float32(-2.0), float("nan")])
def test_a_negative_weight(weight):
    with pytest.raises(ValueError, match=r"weight must be finite and not negative.*climb"):
        add_spectral_penalty(NORM, weight)
    with pytest.raises(ValueError, match="learning_rate must be finite and not negative"):
        add_spectral_penalty(NORM, 1.0, decoupled=True, learning_rate=weight)


@pytest.mark.parametrize("weight", [None, "0.1", np.ones(2), [0.1]])
def test_a_weight_that_is_no_number(weight):
    with pytest.raises(TypeError, match="weight must be a number or a function of the step count"):
        add_spectral_penalty(NORM, weight)


def test_a_schedule_that_turns_negative_is_seen():
    optimizer = add_spectral_penalty(NORM, lambda step: 1.0 - step.astype(jnp.float32))
    params, state = {"kernel": kernel()}, optimizer.init({"kernel": kernel()})
    for step, finite in enumerate((True, True, False)):
        updates, state = optimizer.update(zeros(params), state, params)
        assert bool(jnp.isfinite(updates["kernel"]).all()) is finite, step
    assert np.isnan(state.weight)


def test_nothing_is_known_before_the_first_step():
    state = add_spectral_penalty(NORM, 0.1).init(PARAMS)
    assert np.isnan(optax.tree.get(state, "penalty"))
    assert np.isnan(optax.tree.get(state, "weight"))


@pytest.mark.parametrize("mask", [None, {"head": False, "kernel": True, "steps": True}])
def test_integers_among_the_parameters_are_left_alone(mask):
    params = {"head": kernel(1), "kernel": kernel(), "steps": jnp.int32(3)}
    optimizer = add_spectral_penalty(NORM, 0.5, mask=mask)
    updates = zeros(params) | {"steps": jnp.int32(7)}
    updates, _ = jax.jit(optimizer.update)(updates, optimizer.init(params), params)
    real = {name: params[name] for name in ("head", "kernel")}
    alone = jax.grad(lambda p: NORM.apply(p, NORM.init(p, None))[0])(real)
    assert updates["steps"].dtype == jnp.int32
    assert int(updates["steps"]) == 7
    assert_allclose(updates["kernel"], 0.5 * alone["kernel"], rtol=1e-5)
    assert_allclose(updates["head"], (0.5 if mask is None else 0.0) * alone["head"], rtol=1e-5)


@pytest.mark.parametrize("options", [{"decoupled": True}, {"learning_rate": 0.1}])
def test_decoupled_and_its_learning_rate_come_together(options):
    with pytest.raises(ValueError, match="decoupled=True needs a learning_rate of its own"):
        add_spectral_penalty(NORM, 0.1, **options)


def test_parameters_and_keys_are_asked_for():
    optimizer = add_spectral_penalty(NORM, 0.1)
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(zeros(PARAMS), state)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        add_spectral_penalty(NORM, 0.1, key=0)
    with pytest.raises(ValueError, match=r"key.* is needed .*wide"):
        optimizer.init({"wide": jnp.ones((200, 150))} | PARAMS | {"norm": jnp.ones(3)})


def test_maps_that_close_over_arrays_on_explicit_axes_are_refused():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    placed = jax.device_put(PARAMS, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    kernel = next(leaf for leaf in jax.tree.leaves(placed) if leaf.ndim == 2)
    penalty = sx.regularizers.spectral_norm_penalty(lambda params: {"fixed": sx.aslinearoperator(kernel)})
    with pytest.raises(ValueError, match="on a mesh with the explicit axes x that is none of the arguments"):
        add_spectral_penalty(penalty, 0.1).init(placed)
