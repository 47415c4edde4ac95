"""Checkpoints come back as they were, also by plain Orbax."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

from spectrax.integrations import checkpoints


class State(NamedTuple):
    key: jax.Array
    blocks: dict
    count: jax.Array


@pytest.fixture
def tree(key):
    params = {"dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.zeros(3)}, "empty": {}}
    return {
        "params": params,
        "batch_stats": {},
        "opt_state": (
            State(key, {"a/b": jnp.ones((4, 2), jnp.bfloat16)}, jnp.int32(3)),
            optax.adamw(1e-3).init(params),
        ),
        "seconds": {"steps": np.float64(0.1)},
    }


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_with_named_tuples_keys_and_empty_trees(tmp_path, tree):
    path = checkpoints.save(tmp_path / "one", tree)
    same(checkpoints.restore(path, like=tree), tree)


def test_shapes_alone_are_enough_to_restore(tmp_path, tree):
    path = checkpoints.save(tmp_path / "one", tree)
    like = jax.eval_shape(lambda tree: tree, {**tree, "seconds": {}}) | {"seconds": tree["seconds"]}
    same(checkpoints.restore(path, like=like), tree)


def test_plain_orbax_restores_it(tmp_path, tree, key):
    path = checkpoints.save(tmp_path / "one", tree)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        back = checkpointer.restore(path)
    np.testing.assert_array_equal(back["params"]["dense_0"]["kernel"], tree["params"]["dense_0"]["kernel"])
    np.testing.assert_array_equal(back["opt_state"][0]["key"], jax.random.key_data(key))
    assert back["batch_stats"] == {}


def test_an_existing_checkpoint_is_replaced_only_on_request(tmp_path):
    checkpoints.save(tmp_path / "one", {"a": jnp.zeros(2)})
    with pytest.raises(FileExistsError, match="overwrite=True"):
        checkpoints.save(tmp_path / "one", {"a": jnp.ones(2)})
    checkpoints.save(tmp_path / "one", {"a": jnp.ones(2)}, overwrite=True)
    np.testing.assert_array_equal(checkpoints.restore(tmp_path / "one")["a"], [1, 1])


def test_another_shape_or_structure_is_refused(tmp_path):
    path = checkpoints.save(tmp_path / "one", {"a": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"\(3,\) is not compatible with the stored shape: \(2,\)"):
        checkpoints.restore(path, like={"a": jnp.zeros(3)})
    with pytest.raises(ValueError, match="b"):
        checkpoints.restore(path, like={"b": jnp.zeros(2)})


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoints.restore(tmp_path / "none")


def test_only_the_newest_steps_are_kept_and_unfinished_ones_do_not_count(tmp_path):
    (tmp_path / "99.orbax-checkpoint-tmp-1").mkdir()
    for step in (0, 5, 10, 10):
        checkpoints.save_step(tmp_path, step, {"step": jnp.int32(step)}, keep=2)
    assert checkpoints.checkpoint_steps(tmp_path) == [5, 10]
    assert checkpoints.checkpoint_steps(tmp_path / "missing") == []


def test_a_failed_save_leaves_the_older_checkpoint(tmp_path):
    checkpoints.save_step(tmp_path, 1, {"a": jnp.zeros(2)}, keep=1)
    with pytest.raises(ValueError, match="object"):
        checkpoints.save_step(tmp_path, 2, {"a": object()}, keep=1)
    assert checkpoints.checkpoint_steps(tmp_path) == [1]


def test_without_orbax_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"jax-spectrax\[demo\]"):
        checkpoints.save(tmp_path / "one", {})
