"""A whole survey: which matrices, going on, refusals, the page; and the command."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.cli import main
from spectrax.integrations import checkpoints
from spectrax.integrations.weights import UnreadableError
from spectrax.report import from_json
from spectrax.survey import SpectrumConfig, directory, runs, survey

RNG = np.random.default_rng(0)
NETWORK = {
    "blk.0.w": RNG.normal(size=(7, 4)).astype(np.float32),
    "blk.1.w": RNG.normal(size=(4, 7)).astype(np.float32),
    "blk.1.bias": np.ones(7, np.float32),
    "conv": RNG.normal(size=(3, 3, 2, 5)).astype(np.float32),
    "scan": RNG.normal(size=(2, 6, 3)).astype(np.float32),
    "ids": np.ones((4, 4), int),
}


def sigma(values):
    return np.linalg.svd(np.asarray(values, float), compute_uv=False)


def run(capsys, *arguments):
    code = main(["spectrum", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def config(folder, **options):
    return SpectrumConfig(checkpoint=str(folder / "net.npz"), out=str(folder / "found"), **options)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a checkpoint; pictures, which take most of the time, are drawn where the page is looked at."""
    np.savez(tmp_path / "net.npz", **NETWORK)
    monkeypatch.setattr(runs, "spectrum_page", lambda result: "<!DOCTYPE html>")
    return tmp_path


def save(path, arrays):
    """Write float32 arrays of any names as safetensors."""
    header = {
        name: {"dtype": "F32", "shape": values.shape, "data_offsets": [i * values.nbytes, (i + 1) * values.nbytes]}
        for i, (name, values) in enumerate(arrays.items())
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(values.tobytes() for values in arrays.values()))


def values_of(result):
    return {layer["name"]: layer["sigma_max"]["value"] for layer in result["layers"]}


def test_arrays_of_more_axes_are_left_out_unless_said_how(folder):
    result = survey(config(folder))
    assert list(values_of(result)) == ["blk.0.w", "blk.1.w"]
    left_out = {item["name"]: item["reason"] for item in result["left_out"]}
    assert set(left_out) == {"conv", "scan", "ids"}
    assert "--stacked" in left_out["conv"]
    assert "int64 holds no floating-point numbers" in left_out["ids"]

    result = survey(config(folder, stacked=("sc*",), kernels="flax"), overwrite=True)
    kinds = {layer["name"]: layer["kind"] for layer in result["layers"]}
    assert kinds == {
        "blk.0.w": "matrix", "blk.1.w": "matrix", "conv": "reshaped kernel, not the convolution",
        "scan[0]": "matrix of a stack", "scan[1]": "matrix of a stack",
    }  # fmt: skip
    found = values_of(result)
    assert_allclose(found["conv"], sigma(NETWORK["conv"].reshape(18, 5))[0], rtol=1e-5)
    assert_allclose(found["scan[1]"], sigma(NETWORK["scan"][1])[0], rtol=1e-5)

    result = survey(config(folder, kernels="torch", include=("conv",)), overwrite=True)
    assert_allclose(values_of(result)["conv"], sigma(NETWORK["conv"].reshape(3, 30))[0], rtol=1e-5)


def test_filters(folder):
    assert list(values_of(survey(config(folder, include=("*.w",), exclude=("blk.1*",))))) == ["blk.0.w"]
    result = survey(config(folder, stacked=("*",), min_side=4), overwrite=True)
    assert list(values_of(result)) == ["blk.0.w", "blk.1.w"]
    for pattern in ("blk.*.v", "Blk*"):
        with pytest.raises(ValueError, match=r"include must match names .*, got '.*'; there are 'blk.0.w', .* 2 more"):
            survey(config(folder, include=("*.w", pattern)))
    with pytest.raises(ValueError, match=r"include=\('\*',\) allows are left out by exclude=\('\*',\)"):
        survey(config(folder, exclude=("*",)))
    with pytest.raises(ValueError, match=r"holds no matrix to measure\n.*blk.0.w \[7, 4\]: a side shorter than 5"):
        survey(config(folder, min_side=5), overwrite=True)


def test_an_interrupted_survey_goes_on_to_the_same_numbers(folder):
    whole = survey(config(folder, stacked=("scan",)))
    unbroken = (folder / "found" / "layers.jsonl").read_text()
    again = SpectrumConfig(checkpoint=str(folder / "net.npz"), out=str(folder / "again"), stacked=("scan",))
    begun = []

    def stop(name):
        begun.append(name)
        if name == "scan[0]":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(again, on_matrix=stop)
    records = folder / "again" / "layers.jsonl"
    assert records.read_text().count("\n") == 2
    assert not (folder / "again" / "spectrum.json").exists()
    with records.open("a") as file:
        file.write('{"name": "scan[0]", "fin')  # a line that was cut off
    resumed = survey(again, on_matrix=begun.append)
    assert begun == ["blk.0.w", "blk.1.w", "scan[0]", "scan[0]", "scan[1]"]
    assert records.read_text() == unbroken
    assert resumed["layers"] == whole["layers"]
    begun.clear()
    assert survey(again, on_matrix=begun.append)["layers"] == whole["layers"]
    assert begun == []


def test_other_settings_other_weights_and_foreign_files_are_refused(folder):
    survey(config(folder))
    with pytest.raises(FileExistsError, match=r"other settings \(k: 1, not 2\)"):
        survey(config(folder, k=2))
    np.savez(folder / "net.npz", **{**NETWORK, "blk.0.w": NETWORK["blk.0.w"] + 1})
    with pytest.raises(FileExistsError, match=r"other settings \(fingerprint: "):
        survey(config(folder))
    assert_allclose(
        values_of(survey(config(folder), overwrite=True))["blk.0.w"], sigma(NETWORK["blk.0.w"] + 1)[0], rtol=1e-5
    )
    (folder / "found" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"are no survey .*\(notes.txt\)"):
        survey(config(folder), overwrite=True)
    (folder / "other").mkdir()
    (folder / "other" / "settings.json").write_text("{}")
    with pytest.raises(FileExistsError, match="are no survey"):
        survey(SpectrumConfig(checkpoint=str(folder / "net.npz"), out=str(folder / "other")), overwrite=True)


def test_damaged_records_are_an_error(folder, capsys):
    survey(config(folder))
    records = folder / "found" / "layers.jsonl"
    whole = records.read_text()
    for damaged, message in (("nonsense\n" + whole, "line 1, is not JSON"), ('{"name": "blk.0.w"}\n', "it is damaged")):
        records.write_text(damaged)
        code, _, err = run(capsys, folder / "net.npz", "--out", folder / "found")
        assert code == 2
        assert message in err


def test_one_process_writes_a_directory_at_a_time(folder):
    def second(name):
        with pytest.raises(FileExistsError, match=r"another survey is writing .*found: wait until"):
            survey(config(folder), overwrite=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(config(folder), on_matrix=second)
    survey(config(folder))


def test_a_checkpoint_that_changes_meanwhile_is_an_error(folder):
    """What was read of the new one is not written beside what was measured of the old one."""

    def change(name):
        if name == "blk.1.w":
            np.savez(folder / "net.npz", **{**NETWORK, "blk.1.w": NETWORK["blk.1.w"] + 1})

    with pytest.raises(UnreadableError, match=r"net.npz has changed while it was measured: start anew"):
        survey(config(folder), on_matrix=change)
    assert (folder / "found" / "layers.jsonl").read_text().count("\n") == 1
    with pytest.raises(FileExistsError, match=r"other settings \(fingerprint: "):
        survey(config(folder))


def test_a_process_that_is_killed_leaves_a_directory_that_can_be_used(folder, monkeypatch):
    out = folder / "found"
    out.mkdir()
    (out / "settings.json.partial").write_text('{"prog')
    survey(config(folder))

    def killed(path, missing_ok):
        if path.name == "layers.jsonl":
            raise KeyboardInterrupt
        os.unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(directory.Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            survey(config(folder, measure=("ranks",)), overwrite=True)
    assert "effective_rank" in survey(config(folder, measure=("ranks",)), overwrite=True)["layers"][0]


def test_arrays_that_cannot_be_read_end_with_code_2(folder, capsys):
    values = NETWORK["blk.0.w"]
    np.save(folder / "w.npy", values)
    torn = (folder / "w.npy").read_bytes()[:-8]
    (folder / "w.npy").write_bytes(torn)
    code, _, err = run(capsys, folder / "w.npy", "--out", folder / "found")
    assert code == 2
    assert "the array 'w' cannot be read: mmap length" in err


def test_other_formats_have_the_same_numbers(folder):
    expected = {name: sigma(NETWORK[name])[0] for name in ("blk.0.w", "blk.1.w")}
    checkpoints.save(folder / "orbax", {"blk": [{"w": jnp.asarray(NETWORK[f"blk.{i}.w"])} for i in (0, 1)]})
    found = survey(SpectrumConfig(checkpoint=str(folder / "orbax"), out=str(folder / "a")))
    assert found["format"] == "orbax"
    assert_allclose(list(values_of(found).values()), list(expected.values()), rtol=1e-5)

    safetensors = pytest.importorskip("safetensors.numpy")
    brain = {name: values.astype(ml_dtypes.bfloat16) for name, values in NETWORK.items() if name in expected}
    safetensors.save_file(brain, folder / "a.safetensors")
    found = survey(SpectrumConfig(checkpoint=str(folder / "a.safetensors"), out=str(folder / "b")))
    assert {layer["dtype"] for layer in found["layers"]} == {"bfloat16"}
    for name, value in values_of(found).items():
        assert_allclose(value, sigma(brain[name].astype(float))[0], rtol=1e-6)


def test_the_page_holds_everything_and_loads_nothing(tmp_path):
    folder = tmp_path
    arrays = {"a<b>.0": NETWORK["blk.0.w"], "a<b>.1": np.full((3, 3), np.nan), "ids": NETWORK["ids"]}
    np.savez(folder / "net.npz", **arrays)
    result = survey(config(folder))
    page = (folder / "found" / "spectrum.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert re.findall(r"https?:|url\(|@import|<link|src=\"(?!data:)", page) == []
    assert all(f'<td data-key="a&lt;b&gt;.{i}" class="text">a&lt;b&gt;.{i}</td>' in page for i in (0, 1))
    assert "a<b>" not in page
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "Not finite:" in page
    assert "int64 holds no floating-point numbers" in page
    number = format(result["layers"][0]["sigma_max"]["value"], "")
    assert f'data-key="{number}"' in page  # sorted by all digits


NAMES = ("<svg onload=alert(1)>", "w[/]", "a$_{$", "\x1b[31m", "NaN", "a\ud800b", "\u5c64")


def test_names_of_any_letters(tmp_path, capsys):
    save(tmp_path / "net.safetensors", dict.fromkeys(NAMES, NETWORK["blk.0.w"]))
    out = tmp_path / "found"
    arguments = tmp_path / "net.safetensors", "--out", out, "--only", "density"
    code, shown, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "w[/]" in shown
    assert "\x1b" not in shown
    page = (out / "spectrum.html").read_text()
    assert "<svg onload" not in page
    assert page.count("<svg width") == len(NAMES)

    lines = (out / "layers.jsonl").read_bytes()
    (out / "layers.jsonl").write_bytes(lines[: lines.rindex("\u5c64".encode()) + 1])  # cut off within a letter
    begun = []
    config = SpectrumConfig(checkpoint=str(arguments[0]), out=str(out), measure=("density",))
    found = survey(config, on_matrix=begun.append)
    assert begun == [NAMES[-1]]
    assert [layer["name"] for layer in found["layers"]] == list(NAMES)
    assert (out / "layers.jsonl").read_bytes() == lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": ()}, "at least one of top, extremes"),
        ({"measure": ("all",)}, "measure must be .*'extremes'.* got 'all'"),
        ({"kernels": "keras"}, "kernels must be"),
        ({"method": "fast"}, "method must be"),
        ({"precision": "bfloat16"}, "precision must be"),
        ({"k": 0}, "k must be"),
        ({"min_side": 0}, "min_side must be"),
        ({"tol": 0.0}, "tol must lie in"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SpectrumConfig(checkpoint="a.npz", **options)


# The command.


def test_the_command_prints_a_table_and_where_things_are(folder, capsys):
    found = folder / "found"
    options = (folder / "net.npz", "--out", found, "--k", "2", "--seed", "1", "--include", "*.w", "ids")
    code, out, err = run(capsys, *options)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert re.match(r"blk\.0\.w 7x4: sigma max \d", lines[0])
    assert "condition" in out
    assert "Not measured: ids (4, 4) int64: the dtype" in out
    assert f"Page: {found}/spectrum.html" in out
    result = from_json((found / "spectrum.json").read_text())
    assert [len(layer["top"]) for layer in result["layers"]] == [2, 2]
    json.loads((found / "spectrum.json").read_text(), parse_constant=pytest.fail)  # strict: no NaN, no Infinity
    assert run(capsys, *options, "--quiet") == (0, "", "")
    code, _, err = run(capsys, *options, "--only", "top")
    assert code == 2
    assert "measure: ['top', 'extremes', 'ranks', 'density'], not ['top']" in err
    assert run(capsys, *options, "--only", "top", "--overwrite", "--quiet")[0] == 0


def test_matrices_that_are_not_finite_end_with_code_1(folder, capsys):
    np.savez(folder / "bad.npz", good=np.eye(3), bad=np.full((3, 3), np.inf))
    code, out, err = run(capsys, folder / "bad.npz", "--out", folder / "found")
    assert code == 1
    assert "1 of 2 matrices are not finite: bad" in err
    assert "bad 3x3: not finite" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.npz"], "there is no checkpoint at missing.npz"),
        (["notes.txt"], "notes.txt has no known format; known are .npz"),
        (["empty.npz"], r"empty.npz \(npz, 0 arrays\) holds no matrix to measure"),
        (["bias.npz"], r"bias.npz \(npz, 1 arrays\) holds no matrix to measure"),
        (["conv.npz"], r"conv \[3, 3, 2, 5\]: more than two axes: name it in --stacked"),
        (["torn.npz"], "torn.npz cannot be read as an .npz file"),
        (["bias.npz", "--tol", "2"], "tol must lie in"),
        (["bias.npz", "--only", "bottom"], "invalid choice: 'bottom'"),
        ([], "the following arguments are required: CHECKPOINT"),
    ],
)
def test_bad_input_is_said_and_leaves_nothing(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.savez("empty.npz")
    np.savez("bias.npz", bias=np.ones(3))
    np.savez("conv.npz", conv=NETWORK["conv"])
    (tmp_path / "torn.npz").write_bytes((tmp_path / "conv.npz").read_bytes()[:100])
    (tmp_path / "notes.txt").touch()
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


def test_ctrl_c_in_a_terminal_leaves_what_is_finished_and_the_command_goes_on(tmp_path):
    many = {f"blk.{i}.w": RNG.normal(size=(60, 40 + i)).astype(np.float32) for i in range(400)}
    np.savez(tmp_path / "net.npz", **many)
    out = tmp_path / "found"
    arguments = [sys.executable, "-m", "spectrax", "spectrum", str(tmp_path / "net.npz"), "--out", str(out)]
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*arguments, "--only", "top"], stdout=child, stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else ignored in the background
    )  # fmt: skip
    os.close(child)
    records, shown = out / "layers.jsonl", b""
    os.set_blocking(parent, False)
    try:
        deadline = time.monotonic() + 120
        while not records.is_file() or records.read_text().count("\n") < 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
            with contextlib.suppress(BlockingIOError):
                shown += os.read(parent, 65536)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(parent)
    assert process.returncode == 130
    assert "The same command goes on after the last matrix that was finished." in err.decode()
    assert "Traceback" not in err.decode()
    assert "left" in shown.decode()
    assert "━" in shown.decode()
    finished = records.read_text().count("\n")
    assert 3 <= finished < 400
    begun = []

    def stop(name):
        begun.append(name)
        if len(begun) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(SpectrumConfig(checkpoint=str(tmp_path / "net.npz"), out=str(out), measure=("top",)), on_matrix=stop)
    assert begun[0] == f"blk.{finished}.w"
