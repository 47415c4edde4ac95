"""The report on a landscape: its numbers against NumPy, other rho on the same weights, going on, and the command."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.cli import main
from spectrax.networks import models
from spectrax.report import format_number, from_json
from spectrax.training import TrainingConfig, landscape, train
from spectrax.training.subject import from_run, transplanted
from spectrax.training.verdict import verdict

SMALL = ["--samples", "3", "--resolution", "5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(
        TrainingConfig(
            out=str(folder), data="digits", model="mlp", depth=3, width=6, rho=0.5, epochs=1, penalty="none",
            activation="leaky_relu", batch_size=256, loss="squared_error",
        )
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def found(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report"
    assert main(["landscape", str(trained), "--rho", "0", "--out", str(out), "--quiet", *SMALL]) == 0
    return out, from_json((out / "report.json").read_text())


def numpy_batch_condition_number(subject, rho, samples):
    """The second layer's Q for all samples, from the weights, in NumPy."""
    params = subject.variables["params"]
    kernels = [params["dense_1"], *(params[f"skip_{i}"]["body"]["dense_0"] for i in (3, 4)), params["dense_5"]]
    W = [np.asarray(layer["kernel"], np.float64).T for layer in kernels]
    b = [np.asarray(layer["bias"], np.float64) for layer in kernels]
    rows = []
    for x in np.asarray(subject.data.x_test[:samples], np.float64).reshape(samples, -1):
        z, after, inputs = x, [], []
        for k in range(3):
            inputs.append(z)
            h = W[k] @ z + b[k]
            d = np.where(h > 0, 1, 0.01)
            after.append((d[:, None] * W[k] + (rho * np.eye(6) if k else 0), d))
            z = d * h + (rho * z if k else 0)
        M = W[3] @ after[2][0]
        rows.append(np.kron(inputs[1][None], M * after[1][1]))
    s = np.linalg.svd(np.concatenate(rows), compute_uv=False)
    s = s[s > 1e-12 * s[0]]
    return s[0] / s[-1], len(s)


def test_the_numbers_are_those_of_numpy(trained, found):
    """For the run's own rho, and for rho = 0 on the same weights, whose layers have other names."""
    _, report = found
    assert list(report["rho"]) == ["0.5", "0.0"]
    subject = from_run(trained)
    for rho, measured in report["rho"].items():
        assert list(measured["layers"]) == ["dense_1", "skip_3/body/dense_0", "skip_4/body/dense_0", "dense_5"]
        kappa, rank = numpy_batch_condition_number(subject, float(rho), 3)
        layer = measured["layers"]["skip_3/body/dense_0"]
        assert_allclose(layer["batch_condition_number"], kappa, rtol=1e-6)
        assert layer["batch_rank"] == rank
        assert measured["exact"] is True
        assert measured["line"]["layer"] == "skip_3/body/dense_0"


def test_everything_is_written_and_said(found):
    out, report = found
    plots = {file.name for file in (out / "plots").iterdir()}
    assert plots == {
        f"{name}.{ending}" for ending in ("png", "svg")
        for name in ("condition_numbers", "line_rho_0", "line_rho_0.5", "slices_rho_0", "slices_rho_0.5")
    }  # fmt: skip
    said = " ".join(report["verdict"])
    own, other = report["rho"].values()
    median = np.median([layer["batch_condition_number"] for layer in other["layers"].values()])
    assert f"On the same weights with rho = 0.0 the median is {format_number(median)}" in said
    assert f"{own['line']['kinks']} kinks" in said


def test_a_report_goes_on_and_never_mixes(trained, found, capsys):
    out, report = found
    command = ["landscape", str(trained), "--rho", "0", "--out", str(out), *SMALL]
    content = json.loads((out / "report.json").read_text())
    content["rho"]["0.0"]["line"]["kinks"] = 12345  # what is there is taken as it is
    del content["verdict"]
    (out / "report.json").write_text(json.dumps(content))
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "12345 kinks" in printed
    assert "skip_4/body/dense_0" in printed
    assert main([*command, "--seed", "1"]) == 2
    assert "other settings (seed)" in capsys.readouterr().err
    (out / "report.json").write_text(json.dumps(report))


def test_the_verdict_says_which_is_better():
    layer = {"condition_number": 3.0, "batch_condition_number": 10.0, "batch_rank": 4, "batch_full_rank": 5}
    line = {"layer": "a", "length": 0.1, "kinks": 7, "mean_curvature_jump": 0.02, "total_variation": 0.5}
    own = {"exact": True, "layers": {"a": layer}, "line": line, "slice": {"reach": 1e-3}}
    worse = {**own, "layers": {"a": {**layer, "batch_condition_number": 50.0}}, "line": {**line, "total_variation": 2}}
    alike = {**own, "layers": {"a": {**layer, "batch_condition_number": 11.0}}}
    settings = {"samples": 4}

    def said(other):
        return " ".join(verdict({"settings": settings, "rho": {"1.0": own, "0.0": other}}))

    assert "is 50.0, 5.00 times that with rho = 1.0, where the loss is rounder" in said(worse)
    assert "the landscape with rho = 1.0 is the less erratic one" in said(worse)
    assert "about as with rho = 1.0" in said(alike)
    swapped = " ".join(verdict({"settings": settings, "rho": {"1.0": worse, "0.0": own}}))
    assert "is 10.0, with rho = 1.0 it is 5.00 times that: the loss is rounder with rho = 0.0" in swapped
    assert "the landscape with rho = 0.0 is the less erratic one" in swapped
    broken = {**own, "layers": {"a": {**layer, "batch_condition_number": float("nan")}}}
    assert "cannot be compared" in said(broken)
    smooth = {"exact": False, "layers": {"a": layer}}
    alone = " ".join(verdict({"settings": settings, "rho": {"0.0": smooth}}))
    assert "not piecewise affine" in alone
    assert "no skips" in alone
    # ((k^2 - 1) / (k^2 + 1))^(2 n) = 1e-6 at k = 10
    assert "takes 346 steps for six digits" in alone


@pytest.mark.parametrize("model", ["resnet", "densenet", "mlp"])
def test_weights_move_to_another_rho_and_back(model):
    shape = (6, 6, 1)
    build = lambda rho: getattr(models, model)(3, width=4, depth=2, rho=rho, normalization="batch")  # noqa: E731
    own, other = build(1.0), build(0.0)
    variables = own.init(jax.random.key(0), shape)
    there = transplanted(variables, own, other, shape)
    assert jax.tree.structure(there) == jax.tree.structure(other.init(jax.random.key(0), shape))
    back = transplanted(there, other, own, shape)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), back, variables))
    with pytest.raises(ValueError, match=r"different layers|shorter|longer"):
        transplanted(variables, own, getattr(models, model)(3, width=5, depth=2, rho=0.0), shape)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either the directory of a run or --model"),
        (["nowhere"], "nowhere holds no run"),
        (["nowhere", "--model", "mlp"], "give either"),
        (["nowhere", "--width", "3"], "leave out --width"),
        (["--model", "mlp", "--arm", "penalty"], "--arm belongs to the directory of a run"),
        (["--model", "mlp", "--data", "digits", "--layer", "dense_9"], "dense_9"),
        (["--model", "mlp", "--rho", "2"], r"rho must lie in \[0, 1\]"),
        (["--model", "mlp", "--resolution", "4"], "resolution must be odd"),
        (["--model", "mlp", "--data", "digits", "--samples", "100000"], "samples must be at most"),
    ],
)
def test_bad_input_is_said_in_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["landscape", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("spectrax landscape: error: ")
    assert re.search(message, error)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_not_piecewise_affine(tmp_path):
    out = tmp_path / "report"
    command = ["landscape", "--model", "mlp", "--data", "digits", "--depth", "1", "--width", "4", "--rho", "0"]
    assert main([*command, "--activation", "gelu", "--out", str(out), "--quiet", *SMALL]) == 0
    report = from_json((out / "report.json").read_text())
    assert report["rho"]["0.0"]["exact"] is False
    assert "line" not in report["rho"]["0.0"]
    assert report["verdict"][0].startswith("The network is not piecewise affine")
    assert [file.name for file in sorted((out / "plots").iterdir())] == [
        "condition_numbers.png",
        "condition_numbers.svg",
    ]


def test_files_of_others_are_left_alone(tmp_path, trained):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no report of a landscape"):
        landscape.prepare(from_run(trained), landscape.LandscapeConfig(out=str(tmp_path)), overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
