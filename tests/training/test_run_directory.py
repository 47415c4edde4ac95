"""A directory belongs to one run, and nothing else in the world is deleted."""

import shutil

import jax.numpy as jnp
import pytest

from spectrax.training import TrainingConfig
from spectrax.training.run_directory import RunDirectory, check_free


@pytest.fixture
def config(tmp_path):
    return TrainingConfig(out=str(tmp_path / "run"), data="digits", seed=4)


@pytest.fixture
def run(config):
    run = RunDirectory.create(config, data_fingerprint="abc", overwrite=False)
    run.append([{"run": "penalty", "event": "step", "step": 1}])
    run.save_checkpoint("penalty", 1, {"a": jnp.zeros(2)})
    (run.path / "plots").mkdir()
    (run.path / "plots" / "learning_curves.png").touch()
    run.write_summary({"runs": {}})
    return run


def test_a_directory_is_opened_with_its_configuration(run, config):
    opened = RunDirectory.open_existing(run.path)
    assert opened.config == config
    assert opened.data_fingerprint == "abc"
    assert opened.finished


def test_a_directory_that_was_moved_keeps_its_configuration_but_for_its_place(run, tmp_path):
    moved = run.path.rename(tmp_path / "moved")
    assert RunDirectory.open_existing(moved).config.out == str(moved)


def test_another_run_is_refused_unless_overwritten(run, config):
    with pytest.raises(FileExistsError, match=r"holds another run: .*--resume .*--overwrite"):
        RunDirectory.create(config, data_fingerprint="abc", overwrite=False)
    fresh = RunDirectory.create(config, data_fingerprint="abc", overwrite=True)
    assert [entry.name for entry in fresh.path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "plots/mine.png", "checkpoints/penalty/best", "checkpoints/other", "plots/learning_curves.pdf"],
)
def test_files_of_others_are_never_deleted(run, config, name):
    file = run.path / name
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text("precious")
    with pytest.raises(FileExistsError, match=f"holds files that no run of spectrax train wrote .{name}."):
        RunDirectory.create(config, data_fingerprint="abc", overwrite=True)
    assert file.read_text() == "precious"
    assert run.summary.exists()


def test_a_link_out_of_the_directory_is_foreign(run, config, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (run.path / "link").symlink_to(outside)
    with pytest.raises(FileExistsError, match="link"):
        RunDirectory.create(config, data_fingerprint="abc", overwrite=True)
    assert (outside / "precious").exists()


def test_a_directory_without_our_mark_is_refused_even_with_overwrite(tmp_path, config):
    path = tmp_path / "run"
    path.mkdir()
    (path / "metrics.jsonl").touch()
    (path / "config.json").write_text('{"program": "another"}')
    with pytest.raises(FileExistsError, match="no run of spectrax train wrote"):
        RunDirectory.create(config, data_fingerprint="abc", overwrite=True)
    assert (path / "metrics.jsonl").exists()


def test_a_file_and_an_empty_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        check_free(tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / "empty", overwrite=False)
    check_free(tmp_path / "missing", overwrite=False)


def test_opening_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        RunDirectory.open_existing(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="was not written by spectrax train"):
        RunDirectory.open_existing(tmp_path)


def test_entries_of_another_version_are_refused(run):
    text = (run.path / "config.json").read_text().replace('"seed": 4', '"seed": 4, "ema": true')
    (run.path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="entries that this version does not know: ema"):
        RunDirectory.open_existing(run.path)


def damage(path):
    """Cut every file of data off in its middle."""
    for file in path.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lines(count, run="penalty"):
    return [{"run": run, "event": "step", "step": step} for step in range(1, count + 1)]


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(run):
    run.append(lines(3)[1:])
    run.save_checkpoint("penalty", 3, {"a": jnp.arange(2.0)})
    with pytest.raises(ValueError, match=r"up to its checkpoint at step 3: epoch 0 and 0 more"):
        run.check_before_resuming(steps_per_epoch=10)
    run.append([{"run": "penalty", "event": "epoch", "step": 0, "epoch": 0}])
    run.check_before_resuming(steps_per_epoch=10)
    damage(run.checkpoint_directory("penalty") / "3")
    with pytest.warns(UserWarning, match=r"penalty/3 cannot be restored .*; going on from step 1"):
        run.check_before_resuming(steps_per_epoch=10)
    assert run.last_checkpoint("penalty") == run.checkpoint_directory("penalty") / "1"
    damage(run.checkpoint_directory("penalty") / "1")
    with pytest.raises(ValueError, match=r"none of the checkpoints in .*penalty can be restored \(step 1: "):
        run.check_before_resuming(steps_per_epoch=10)
    assert run.last_checkpoint("penalty") is not None  # nothing is deleted that cannot be replaced


def test_missing_checkpoints_and_records_are_told(run):
    run.save_checkpoint("penalty", 3, {"a": jnp.arange(2.0)})
    with pytest.raises(ValueError, match=r"lacks records of the run 'penalty' up to its checkpoint at step 3: step 2 "):
        run.check_before_resuming(steps_per_epoch=10)
    run.metrics.write_text('{"run": "penalty"}\n garbage \n{}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is not JSON"):
        run.check_before_resuming(steps_per_epoch=10)
    run.metrics.unlink()
    with pytest.raises(ValueError, match=r"step 1 and 2 more.* start anew with --overwrite"):
        run.check_before_resuming(steps_per_epoch=10)
    run.append(lines(3))
    shutil.rmtree(run.path / "checkpoints")
    with pytest.warns(UserWarning, match="no checkpoint of the run 'penalty' is left; it starts from the beginning"):
        run.check_before_resuming(steps_per_epoch=10)


def test_records_after_the_checkpoint_are_dropped_and_those_before_stay(run):
    run.metrics.unlink()
    lines = [
        {"run": name, "event": event, "step": step}
        for name in ("penalty", "baseline")
        for step in (1, 2, 3)
        for event in ("step", "epoch")
    ]
    run.append(lines)
    with run.metrics.open("a") as file:
        file.write('{"run": "basel')  # what a killed process leaves
    arms = ("penalty", "baseline")
    kept = run.forget_records(arm="baseline", after=2, arms=arms)
    assert kept == run.read_records() == lines[:10]
    assert run.forget_records(arm="baseline", after=-1, arms=arms) == lines[:6]
    assert run.forget_records(arm="penalty", after=1, arms=arms) == lines[:2]


def test_only_complete_checkpoints_count_and_unfinished_ones_are_cleared(run):
    unfinished = run.checkpoint_directory("penalty") / "2.orbax-checkpoint-tmp-17"
    unfinished.mkdir()
    assert run.last_checkpoint("penalty") == run.checkpoint_directory("penalty") / "1"
    assert run.last_checkpoint("baseline") is None
    check_free(run.path, overwrite=True)  # it is a run's own
    run.remove_unfinished_checkpoints()
    assert not unfinished.exists()


def test_two_checkpoints_are_kept(run):
    for step in (2, 3):
        run.save_checkpoint("penalty", step, {"a": jnp.zeros(2)})
    assert sorted(path.name for path in run.checkpoint_directory("penalty").iterdir()) == ["2", "3"]
