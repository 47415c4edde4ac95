"""One training step: what it does, that it compiles once, and that it stops at numbers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectrax.training import TrainingConfig, load_data
from spectrax.training.configuration import PENALTIES, WEIGHT_PENALTIES
from spectrax.training.experiment import (
    batch_order,
    evaluate,
    make_experiment,
    make_optimizer,
    sample_losses,
)

SMALL = {"data": "digits", "model": "convnet", "depth": 1, "width": 2, "batch_size": 32, "block_size": 2}


@pytest.fixture(scope="module")
def data():
    return load_data("digits", seed=0)


def prepared(data, **values):
    arm = "baseline" if values.get("penalty") == "none" else "penalty"
    experiment = make_experiment(TrainingConfig(**SMALL | values), data, arm=arm)
    return experiment, experiment.init_state(experiment.init_variables())


def test_an_epoch_sees_no_sample_twice_and_its_order_depends_on_seed_and_epoch():
    order = batch_order(3, 5, steps=6, batch_size=7, samples=45)
    assert order.dtype == np.int32
    assert len(np.unique(order)) == 42
    assert order.min() >= 0
    assert order.max() < 45
    np.testing.assert_array_equal(order, batch_order(3, 5, steps=6, batch_size=7, samples=45))
    for seed, epoch in ((3, 6), (4, 5)):
        assert (order != batch_order(seed, epoch, steps=6, batch_size=7, samples=45)).any()


def test_a_step_is_gradient_descent_on_its_batch(data):
    """Against the update worked out by hand, with a loss written in NumPy and central differences for one weight."""
    experiment, state = prepared(data, penalty="none", optimizer="sgd", learning_rate=0.1, model="mlp", width=3)
    order = experiment.order(0)
    x, y = data.x_train[order[0]], data.y_train[order[0]]

    def loss(params):
        hidden = np.maximum(x.reshape(len(x), -1) @ params["dense_1"]["kernel"] + params["dense_1"]["bias"], 0)
        logits = hidden @ params["dense_3"]["kernel"] + params["dense_3"]["bias"]
        return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y])

    before = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
    assert float(loss(before)) == pytest.approx(
        float(experiment.loss(state.params, {}, jnp.asarray(x), jnp.asarray(y))[0]), rel=1e-5
    )
    new, metrics = experiment.step_function()(state, data.x_train, data.y_train, order)
    assert float(metrics.loss) == pytest.approx(loss(before), rel=1e-5)
    step = 1e-5
    for name, index in (("dense_3", (1, 2)), ("dense_1", (20, 0))):
        up, down = (jax.tree.map(np.copy, before) for _ in range(2))
        up[name]["kernel"][index] += step
        down[name]["kernel"][index] -= step
        slope = (loss(up) - loss(down)) / (2 * step)
        assert float(new.params[name]["kernel"][index]) == pytest.approx(
            before[name]["kernel"][index] - 0.1 * slope, abs=1e-6
        )


@pytest.mark.parametrize("values", [{}, {"penalty": "none", "normalization": "batch"}, {"optimizer": "muon"}])
def test_ten_steps_compile_once(data, values):
    experiment, state = prepared(data, **values)
    step = experiment.step_function()
    arrays = jax.device_put((data.x_train, data.y_train))
    for _ in range(2):
        state, _ = step(state, *arrays, jax.device_put(experiment.order(0)))
    assert step._cache_size() == 1
    assert int(state.step) == 2


@pytest.mark.parametrize("penalty", PENALTIES[:-1])
def test_every_penalty_by_its_name(data, penalty):
    """On layers and, where it can be, on Jacobians: a step as it would be compiled."""
    for target in ("weights", "jacobian"):
        if target == "jacobian" and penalty in WEIGHT_PENALTIES:
            continue
        experiment, state = prepared(data, penalty=penalty, penalty_on=target, model="mlp", width=4, depth=2)
        step, order = experiment.step_function(), experiment.order(0)
        after, metrics = jax.eval_shape(step, state, data.x_train, data.y_train, order)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert metrics.penalty.shape == metrics.loss.shape


def test_the_numbers_of_band_and_rank(data):
    """They reach the penalty: outside the band, and below the threshold, it is not zero."""
    values = {}
    for penalty, numbers in (("band", (10.0, 20.0)), ("band", (0.0, 20.0)), ("rank", (10.0,)), ("rank", (1e-6,))):
        given = dict(zip(("penalty_low", "penalty_high"), numbers, strict=False))
        experiment, state = prepared(data, penalty=penalty, model="mlp", width=4, depth=2, **given)
        _, metrics = experiment.step_function()(state, data.x_train, data.y_train, experiment.order(0))
        values[penalty, numbers[0]] = float(metrics.penalty)
    assert values["band", 10.0] > 10
    assert values["band", 0.0] == 0
    assert values["rank", 10.0] > 1
    assert values["rank", 1e-6] < 1e-9


def test_the_parameters_stay_as_they_were_from_the_first_step_that_fails(data):
    experiment, state = prepared(data, penalty="none")
    step = experiment.step_function()
    x = data.x_train.copy()
    x[experiment.order(0)[1]] = np.nan
    state, metrics = step(state, x, data.y_train, experiment.order(0))
    assert not metrics.failed
    good = jax.tree.map(np.asarray, state.params)
    for _ in range(2):  # the step that fails, and one after it whose batch is fine
        state, metrics = step(state, x, data.y_train, experiment.order(0))
        assert metrics.failed
        jax.tree.map(np.testing.assert_array_equal, state.params, good)


def test_batch_statistics_are_learnt_in_training_and_used_in_inference(data):
    experiment, state = prepared(data, penalty="none", normalization="batch")
    start = jax.tree.map(np.asarray, state.batch_stats)
    assert start
    state, _ = experiment.step_function()(state, data.x_train, data.y_train, experiment.order(0))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(state.batch_stats), strict=True))
    shifted = jax.tree.map(lambda leaf: leaf + 1, state.batch_stats)
    first, second = (
        evaluate(
            experiment.net,
            {"params": state.params, "batch_stats": stats},
            data.x_test,
            data.y_test,
            loss="cross_entropy",
        )
        for stats in (state.batch_stats, shifted)
    )
    assert float(first[0]) != float(second[0])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_the_learning_rate_decays_to_zero_by_a_cosine(optimizer):
    config = TrainingConfig(optimizer=optimizer, learning_rate=0.5)
    tx = make_optimizer(config, total_steps=10)
    params = {"conv": {"kernel": jnp.full((3, 3, 2, 4), 0.1), "bias": jnp.ones(4)}, "dense": {"kernel": jnp.eye(3)}}
    grads = jax.tree.map(jnp.ones_like, params)
    state, sizes = tx.init(params), []
    for _ in range(11):
        updates, state = tx.update(grads, state, params)
        sizes.append(float(optax.tree.norm(updates)))
        assert jax.tree.all(jax.tree.map(lambda u: bool(jnp.isfinite(u).all()), updates))
    assert sizes[-1] == pytest.approx(0, abs=1e-6 * sizes[0])
    if optimizer == "adamw":
        np.testing.assert_allclose(sizes[5] / sizes[0], 0.5, rtol=1e-3)


def test_muon_orthogonalises_convolutions_too():
    """With the singular values of the momentum set to one, all columns of the reshaped update have about one norm."""
    config = TrainingConfig(optimizer="muon", learning_rate=0.1)
    tx = make_optimizer(config, total_steps=10)
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4)) * jnp.array([100.0, 1.0, 1.0, 0.01])
    params = {"kernel": jnp.zeros_like(kernel)}
    updates, _ = tx.update({"kernel": kernel}, tx.init(params), params)
    values = np.linalg.svd(np.asarray(updates["kernel"]).reshape(18, 4), compute_uv=False)
    assert values[0] / values[2] < 2


def test_losses_of_samples():
    logits, labels = jnp.array([[2.0, 0.0], [1.0, 3.0]]), jnp.array([0, 0])
    np.testing.assert_allclose(
        sample_losses("cross_entropy", logits, labels), [np.log(1 + np.exp(-2.0)), np.log(1 + np.exp(2.0))], rtol=1e-6
    )
    np.testing.assert_allclose(sample_losses("squared_error", logits, labels), [1 + 0, 0 + 9])


def test_evaluation_takes_parts_of_any_size(data):
    experiment, state = prepared(data, penalty="none")
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = jax.vmap(lambda sample: experiment.net.apply(variables, sample))(data.x_test)
    _, accuracy = evaluate(experiment.net, variables, data.x_test, data.y_test, loss="cross_entropy")
    assert float(accuracy) == pytest.approx(np.mean(np.argmax(logits, axis=1) == data.y_test))
