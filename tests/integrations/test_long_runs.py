"""Long runs go on from their checkpoints as if nothing had happened, and from no others."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectrax as sx
from spectrax.integrations import checkpoints, long_runs

RNG = np.random.default_rng(5)
M = RNG.normal(size=(48, 48)).astype("f4")
S = M + M.T
X = RNG.normal(size=(3, 4, 48)).astype("f4")
W = np.linspace(-1, 1, 48, dtype="f4")


def batches():
    yield from X


def loss(w, batch):
    return jnp.mean(jnp.tanh(batch @ w) ** 2)


def search(key, S=S):
    return sx.stepwise_eigsh(S, 2, which="largest", key=key, method=sx.Lanczos(subspace_size=10))


def density(key):
    hessian = sx.hessian_operator(loss, W, batches=batches)
    return sx.stepwise_density(hessian, key=key, num_probes=2, num_steps=4, batch_size=1)


def stop_after(count):
    def progress(step, metrics):
        if step == count:
            raise KeyboardInterrupt

    return progress


def count_steps(stepwise):
    state, count = stepwise.init(), 0
    while not stepwise.done(state):
        state, count = stepwise.advance(state), count + 1
    return count


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("make", [search, density])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(make, key, tmp_path):
    expected = make(key).run()
    with pytest.raises(KeyboardInterrupt):
        long_runs.run(make(key), tmp_path, progress=stop_after(3))
    assert checkpoints.checkpoint_steps(tmp_path) == [3]
    seen = []
    found = long_runs.run(
        make(key), tmp_path, every_steps=1, progress=lambda step, metrics: seen.append((step, metrics))
    )
    same(found, expected)
    steps = [step for step, _ in seen]
    assert steps[-1] == count_steps(make(key))
    assert steps == list(range(4, steps[-1] + 1))
    assert all(metrics["num_matvecs"] <= int(expected.num_matvecs) for _, metrics in seen)
    assert checkpoints.checkpoint_steps(tmp_path) == steps[-2:]
    # over: read again, without a step
    same(long_runs.run(make(key), tmp_path, progress=stop_after(steps[-1] + 1)), expected)


def test_a_checkpoint_that_was_not_finished_is_passed_over(key, tmp_path):
    expected = search(key).run()
    with pytest.raises(KeyboardInterrupt):
        long_runs.run(search(key), tmp_path, progress=stop_after(2))
    (tmp_path / "3.orbax-checkpoint-tmp-7").mkdir()
    same(long_runs.run(search(key), tmp_path), expected)


def test_it_is_saved_by_the_clock_as_well(key, tmp_path):
    with pytest.raises(RuntimeError, match="lost"):
        long_runs.run(search(key), tmp_path, every=1e-9, progress=lose)
    assert checkpoints.checkpoint_steps(tmp_path) == [1, 2]


def lose(step, metrics):
    if step == 3:
        raise RuntimeError("lost")


def test_the_directory_of_another_run_is_refused(key, tmp_path):
    long_runs.run(search(key), tmp_path / "run")
    other = jax.random.key(7)
    for wrong, match in (
        (search(other), "key is"),
        (density(key), "computation is StepwiseDensity, was StepwiseSearch"),
        (sx.stepwise_eigsh(S, 3, which="largest", key=key), "plan is"),
        (sx.stepwise_eigsh(S[:40, :40], 2, which="largest", key=key, method=sx.Lanczos(subspace_size=10)), "input is"),
        (search(key, 1.1 * S), "another operator"),
        (search(key, -S), "another operator"),
    ):
        with pytest.raises(ValueError, match=match):
            long_runs.run(wrong, tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["description"]["hermitian"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds no run\.json"):
        long_runs.run(search(key), tmp_path / "notes")


def test_what_a_crash_leaves_of_the_description(key, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.new").write_text("{")  # of a crash before the first checkpoint: nothing is lost
    assert long_runs.run(search(key), run).converged.all()
    assert not (run / "run.new").exists()
    for broken in ("", "[]", "{}", '{"description": {}}'):
        (run / "run.json").write_text(broken)
        with pytest.raises(ValueError, match=r"run\.json cannot be read"):
            long_runs.run(search(key), run)


@pytest.mark.parametrize("options", [{"every": 0.0}, {"every_steps": 0}])
def test_intervals_are_positive(options, key, tmp_path):
    with pytest.raises(ValueError, match="every"):
        long_runs.run(search(key), tmp_path, **options)


def test_a_file_is_no_directory(key, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for path in (file, file / "run"):
        with pytest.raises(ValueError, match=r"got .*: .*notes\.txt is no directory"):
            long_runs.run(search(key), path)
    assert file.read_text() == "mine"
