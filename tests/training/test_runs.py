"""Whole runs, small: train, stop, continue, compare; and runs that go wrong."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint
import pytest

from spectrax.report import read_records
from spectrax.training import NonFiniteError, TrainingConfig, TrainingInterrupted, resume, summary, train
from spectrax.training.run_directory import PLOTS

SMALL = {
    "data": "digits",
    "model": "resnet",
    "depth": 1,
    "width": 4,
    "epochs": 2,
    "batch_size": 128,
    "block_size": 2,
    "measure_every": 2,
}
STEPS = 1438 // 128  # in an epoch
LAYERS = {"stem_0/conv_0", "skip_1/body/conv_0", "dense_3"}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run with its baseline, from start to end, that the others are compared with."""
    config = TrainingConfig(out=str(tmp_path_factory.mktemp("runs") / "unbroken"), baseline=True, **SMALL)
    return config, train(config)


@pytest.fixture
def no_plots(monkeypatch):
    """Leave the drawing out where it is not what is tested."""
    monkeypatch.setattr(summary, "_draw", lambda *arguments: None)


def stop_at(arm, step, error=KeyboardInterrupt):
    def on_step(name, number):
        if (name, number) == (arm, step):
            raise error

    return on_step


def assert_close(a, b, path=""):
    """Compare nested records to float32 round-off, amplified by the layers' condition numbers."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert list(a) == list(b), path
        for name in a:
            assert_close(a[name], b[name], f"{path}/{name}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, f"{path}/{i}")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5, nan_ok=True), path
    else:
        assert a == b, path


def restored(directory, arm):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((directory / "checkpoints" / arm / str(2 * STEPS)).absolute())


def test_a_run_leaves_everything_that_it_promises(unbroken):
    config, result = unbroken
    directory = Path(config.out)
    for name in PLOTS:
        assert (directory / "plots" / f"{name}.png").stat().st_size > 10_000
        assert (directory / "plots" / f"{name}.svg").stat().st_size > 10_000

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    stored = json.loads((directory / "summary.json").read_text(), parse_constant=refuse)
    assert stored == json.loads(json.dumps(result))
    assert stored["config"] == config.to_dict()
    assert stored["environment"]["versions"]["jax"] == jax.__version__
    assert stored["environment"]["versions"]["optax"] == optax.__version__
    timings = dict(stored["timings"])
    assert timings.pop("total") == pytest.approx(sum(timings.values()))
    assert all(seconds > 0 for seconds in timings.values())
    for arm in ("penalty", "baseline"):
        run = stored["runs"][arm]
        assert set(run["layers"]) == LAYERS
        assert run["median_condition_number"] == np.median([v["condition_number"] for v in run["layers"].values()])
        assert (directory / run["checkpoint"]).is_dir()
        assert 0 < run["test_accuracy"] < 1


def test_there_is_a_record_for_each_step_and_each_epoch_of_each_run(unbroken):
    config, _ = unbroken
    records = read_records(f"{config.out}/metrics.jsonl")
    for arm in ("penalty", "baseline"):
        steps = [r for r in records if r["run"] == arm and r["event"] == "step"]
        epochs = [r for r in records if r["run"] == arm and r["event"] == "epoch"]
        assert [r["step"] for r in steps] == list(range(1, 2 * STEPS + 1))
        assert [r["epoch"] for r in epochs] == [0, 1, 2]
        assert epochs[0]["train_loss"] is None
        assert epochs[1]["train_loss"] == pytest.approx(np.mean([r["loss"] for r in steps[:STEPS]]))
        assert ["layers" in r for r in epochs] == [True, False, True]  # measured every second epoch
        for record in epochs[::2]:
            assert set(record["layers"]) == LAYERS
            for layer in record["layers"].values():
                assert set(layer) == {"sigma_max", "sigma_min", "condition_number", "residual", "converged", "kind"}
        assert [r["penalty"] is None for r in steps] == [arm == "baseline"] * len(steps)
        assert ["estimates" in r for r in steps] == [arm == "penalty"] * len(steps)
        assert ["tracked" in r for r in epochs] == [arm == "penalty"] * 3
        for record in epochs[::2]:
            for name, layer in record.get("tracked", {}).items():
                # From above at the bottom and from below at the top: the tracked number never exceeds the true one.
                assert layer["kind"] == "lower"
                assert layer["condition_number"] <= record["layers"][name]["condition_number"] * (1 + 1e-3)


def test_both_runs_start_from_the_same_weights_and_the_penalty_makes_a_difference(unbroken):
    config, result = unbroken
    first = [r for r in read_records(f"{config.out}/metrics.jsonl") if r["event"] == "epoch" and r["epoch"] == 0]
    assert first[0]["layers"] == first[1]["layers"]
    assert first[0]["test_loss"] == first[1]["test_loss"]
    runs = result["runs"]
    assert runs["penalty"]["median_condition_number"] < runs["baseline"]["median_condition_number"]


def test_the_measured_spectra_are_those_of_the_trained_layers(unbroken):
    """The true convolution matrix, built from shifted kernels, against what the run measured."""
    config, result = unbroken
    params = restored(Path(config.out), "penalty")["params"]
    kernel = np.asarray(params["skip_1"]["body"]["conv_0"]["kernel"], np.float64)
    size, channels = 4, 4
    matrix = np.zeros((size, size, channels, size, size, channels))
    for i, j, di, dj in np.ndindex(size, size, 3, 3):
        a, b = i + di - 1, j + dj - 1
        if 0 <= a < size and 0 <= b < size:
            matrix[i, j, :, a, b, :] = kernel[di, dj].T
    values = np.linalg.svd(matrix.reshape(size * size * channels, -1), compute_uv=False)
    layer = result["runs"]["penalty"]["layers"]["skip_1/body/conv_0"]
    assert layer["kind"] == "exact"
    assert layer["sigma_max"] == pytest.approx(values[0], rel=1e-5)
    assert layer["sigma_min"] == pytest.approx(values[-1], abs=1e-5 * values[0])


@pytest.mark.parametrize(
    ("arm", "step"),
    [
        pytest.param("penalty", STEPS // 2, id="in the middle of an epoch"),
        pytest.param("penalty", 2 * STEPS, id="after the last step", marks=pytest.mark.slow),
        pytest.param("baseline", STEPS + 3, id="in the second run"),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path, unbroken, no_plots, arm, step):
    config = dataclasses.replace(unbroken[0], out=str(tmp_path / "run"), baseline=arm == "baseline")
    with pytest.raises(TrainingInterrupted) as stopped:
        train(config, on_step=stop_at(arm, step))
    assert stopped.value.directory == tmp_path / "run"
    assert not (tmp_path / "run" / "summary.json").exists()
    resume(tmp_path / "run")
    expected = [r for r in read_records(f"{unbroken[0].out}/metrics.jsonl") if r["run"] in config.arms]
    assert_close(read_records(tmp_path / "run/metrics.jsonl"), expected)
    for name in config.arms:
        ours = restored(tmp_path / "run", name)
        theirs = restored(Path(unbroken[0].out), name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours["params"], theirs["params"]
        )


def test_a_crash_leaves_the_last_checkpoint_usable(tmp_path, unbroken, no_plots):
    """As after kill -9: nothing is saved on the way out, and there are half-written files."""
    config = dataclasses.replace(unbroken[0], out=str(tmp_path / "run"), baseline=False)
    with pytest.raises(ZeroDivisionError):
        train(config, on_step=stop_at("penalty", STEPS + 5, ZeroDivisionError))
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        # Written after the last checkpoint: a step that will be made again, and a line that was cut off.
        file.write(f'{{"run": "penalty", "event": "step", "step": {STEPS + 1}, "loss": 7.0}}\n{{"run": "penalty", "ev')
    (tmp_path / "run/checkpoints/penalty/17.orbax-checkpoint-tmp-1").mkdir()
    resume(tmp_path / "run")
    expected = [r for r in read_records(f"{unbroken[0].out}/metrics.jsonl") if r["run"] == "penalty"]
    assert_close(read_records(tmp_path / "run/metrics.jsonl"), expected)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints/penalty").iterdir()) == [
        str(STEPS),
        str(2 * STEPS),
    ]


def test_a_finished_run_is_not_run_again(unbroken):
    def never(arm, step):
        raise AssertionError

    assert resume(unbroken[0].out, on_step=never)["runs"] == unbroken[1]["runs"]


def test_a_run_whose_report_is_missing_only_gets_its_report(tmp_path, unbroken, no_plots):
    directory = shutil.copytree(unbroken[0].out, tmp_path / "run")
    (directory / "summary.json").unlink()
    records = (directory / "metrics.jsonl").rename(tmp_path / "records")
    with pytest.raises(ValueError, match=r"metrics\.jsonl lacks records of the run 'penalty'"):
        resume(directory)
    lines = records.read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if '"event": "epoch"' in line or '"event":"epoch"' in line)
    (directory / "metrics.jsonl").write_text("\n".join(lines[:last] + lines[last + 1 :]) + "\n")
    with pytest.raises(ValueError, match=r"lacks records of the run 'baseline' up to .*: epoch 2 and 0 more"):
        resume(directory)
    records.rename(directory / "metrics.jsonl")

    def never(arm, step):
        raise AssertionError

    again = resume(directory, on_step=never)
    assert_close(again["runs"], unbroken[1]["runs"])


def test_a_checkpoint_is_restored_by_plain_orbax_and_gives_the_reported_accuracy(unbroken):
    from spectrax.training import load_data
    from spectrax.training.experiment import evaluate

    config, result = unbroken
    tree = restored(Path(config.out), "baseline")
    variables = {"params": tree["params"], "batch_stats": tree["batch_stats"]}
    data = load_data("digits", seed=0)
    net = config.network(num_classes=10)
    loss, accuracy = evaluate(net, variables, data.x_test, data.y_test, loss="cross_entropy")
    assert float(accuracy) == pytest.approx(result["runs"]["baseline"]["test_accuracy"])
    assert float(loss) == pytest.approx(result["runs"]["baseline"]["test_loss"], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_with_the_step_the_layer_and_the_last_checkpoint(tmp_path):
    config = TrainingConfig(
        out=str(tmp_path / "run"), optimizer="sgd", learning_rate=1e30, penalty="none", **SMALL | {"epochs": 1}
    )
    with pytest.raises(NonFiniteError) as stopped:
        train(config)
    error = stopped.value
    assert 1 < error.step <= 3
    assert f"run 'baseline', step {error.step}: the loss was" in str(error)
    assert any(f"layer {name} " in str(error) for name in LAYERS), str(error)
    assert error.checkpoint == tmp_path / "run/checkpoints/baseline/0"
    assert error.checkpoint.is_dir()
    assert str(error.checkpoint) in str(error)
    records = read_records(tmp_path / "run/metrics.jsonl")
    assert [r["event"] for r in records][-1] == "stopped"
    assert [r["step"] for r in records if r["event"] == "step"] == list(range(1, error.step))
    assert all(math.isfinite(r["loss"]) for r in records if r["event"] == "step")


def test_resuming_with_other_data_is_refused(tmp_path, no_plots):
    rng = np.random.default_rng(0)
    arrays = {"y_train": np.arange(64) % 2, "y_test": np.arange(16) % 2}
    path = tmp_path / "data.npz"
    np.savez(path, x_train=rng.normal(size=(64, 5)), x_test=rng.normal(size=(16, 5)), **arrays)
    config = TrainingConfig(
        out=str(tmp_path / "run"),
        data=str(path),
        model="mlp",
        depth=1,
        width=4,
        epochs=2,
        batch_size=32,
        penalty="none",
    )
    with pytest.raises(TrainingInterrupted):
        train(config, on_step=stop_at("baseline", 1))
    np.savez(path, x_train=rng.normal(size=(64, 5)), x_test=rng.normal(size=(16, 5)), **arrays)
    with pytest.raises(ValueError, match="was started with other data"):
        resume(tmp_path / "run")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.npz does not exist"):
        resume(tmp_path / "run")


def test_what_does_not_fit_is_refused_before_anything_is_written_or_deleted(tmp_path, unbroken):
    rng = np.random.default_rng(0)
    path = tmp_path / "flat.npz"
    labels = {"y_train": np.arange(64) % 2, "y_test": np.arange(16) % 2}
    np.savez(path, x_train=rng.normal(size=(64, 5)), x_test=rng.normal(size=(16, 5)), **labels)
    old = shutil.copytree(unbroken[0].out, tmp_path / "run")
    with pytest.raises(ValueError, match=r"takes images, but x_train has shape \(64, 5\): choose model 'mlp'"):
        train(TrainingConfig(out=str(old), data=str(path), batch_size=16), overwrite=True)
    with pytest.raises(ValueError, match="batch_size 65 is larger than the training part, 64 samples"):
        train(TrainingConfig(out=str(old), data=str(path), model="mlp", batch_size=65), overwrite=True)
    with pytest.raises(FileExistsError, match="holds another run"):
        train(unbroken[0])
    assert (old / "summary.json").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "muon", "normalization": "batch", "penalty": "spectral_norm"},
        {"optimizer": "sgd", "loss": "squared_error", "model": "convnet", "penalty": "orthogonality"},
        {"model": "densenet", "normalization": "layer", "activation": "gelu", "penalty": "none"},
        {"model": "mlp", "width": 8, "activation": "abs", "penalty_on": "jacobian"},
    ],
)
def test_the_other_choices_train(tmp_path, no_plots, values):
    config = TrainingConfig(out=str(tmp_path / "run"), **SMALL | {"epochs": 1} | values)
    result = train(config)
    (run,) = result["runs"].values()
    assert run["train_loss"] < result["before"]["train_loss"]
    assert math.isfinite(run["median_condition_number"])
