"""The report on a landscape: its numbers against NumPy, other rho on the same weights, going on, and the command."""

import dataclasses
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
from spectrax.training import TrainingConfig, landscape, subject, train
from spectrax.training.subject import from_run, transplanted
from spectrax.training.verdict import verdict

SMALL = ["--samples", "3", "--resolution", "5", "--line-length", "3"]


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


class ByHand:
    """The trained network once more in NumPy, at a rho: what the second layer's weight does to the outputs."""

    def __init__(self, subject, rho, samples):
        params = subject.variables["params"]
        kernels = [params["dense_1"], *(params[f"skip_{i}"]["body"]["dense_0"] for i in (3, 4)), params["dense_5"]]
        self.W = [np.asarray(layer["kernel"], np.float64).T for layer in kernels]
        self.b = [np.asarray(layer["bias"], np.float64) for layer in kernels]
        self.rho = rho
        self.x = np.asarray(subject.data.x_test[:samples], np.float64).reshape(samples, -1)
        self.y = np.eye(10)[subject.data.y_test[:samples]]

    def run(self, x, weight):
        """Return the output, the input of the second layer, its slopes, the Jacobian behind it, and all signs."""
        W, z, signs, after = [self.W[0], weight, *self.W[2:]], x, [], np.eye(6)
        for k in range(3):
            h = W[k] @ z + self.b[k]
            d = np.where(h > 0, 1, 0.01)
            if k == 1:
                inputs, slopes = z, d
            if k == 2:
                after = d[:, None] * W[2] + self.rho * np.eye(6)
            z = d * h + (self.rho * z if k else 0)
            signs.append(h > 0)
        return W[3] @ z + self.b[3], inputs, slopes, W[3] @ after, np.concatenate(signs)

    def matrices(self):
        """Return Q at each sample; its columns belong to the entries of the kernel, which is W^T."""
        rows = [self.run(x, self.W[1])[1:4] for x in self.x]
        return [np.kron(z[None], M * d) for z, d, M in rows]

    def loss(self, weight):
        return sum(np.sum((self.run(x, weight)[0] - y) ** 2) for x, y in zip(self.x, self.y, strict=True))

    def signs(self, weight):
        return np.concatenate([self.run(x, weight)[4] for x in self.x])


def extremes(matrix):
    s = np.linalg.svd(matrix, compute_uv=False)
    s = s[s > 1e-12 * s[0]]
    return s[0], s[-1], len(s)


def test_the_numbers_are_those_of_numpy(trained, found):
    """For the run's own rho, and for rho = 0 on the same weights, whose layers have other names."""
    _, report = found
    assert list(report["rho"]) == ["0.5", "0.0"]
    with jax.enable_x64(True):
        direction = np.asarray(jax.random.normal(jax.random.key(0), (6, 6), jnp.float64)).T
    for rho, measured in report["rho"].items():
        assert list(measured["layers"]) == ["dense_1", "skip_3/body/dense_0", "skip_4/body/dense_0", "dense_5"]
        hand = ByHand(from_run(trained), float(rho), 3)
        each = [extremes(Q) for Q in hand.matrices()]
        top, bottom, rank = extremes(np.concatenate(hand.matrices()))
        layer = measured["layers"]["skip_3/body/dense_0"]
        assert_allclose(layer["condition_number"], np.median([s[0] / s[1] for s in each]), rtol=1e-6)
        assert layer["rank"] == np.median([s[2] for s in each])
        assert_allclose(layer["batch_condition_number"], top / bottom, rtol=1e-6)
        assert_allclose(layer["largest_step"], 1 / top**2, rtol=1e-9)
        assert layer["batch_rank"] == rank
        assert layer["dead_samples"] == 0
        assert measured["exact"] is True

        W = hand.W[1]
        step = 3 * np.linalg.norm(W) / np.linalg.norm(direction) * direction
        t = np.linspace(0, 1, 4001)
        signs = np.array([hand.signs(W + s * step) for s in t])
        flips = np.flatnonzero(np.any(signs[1:] != signs[:-1], axis=1))
        line = measured["line"]
        assert line["layer"] == "skip_3/body/dense_0"
        assert line["kinks"] == np.sum(signs[1:] != signs[:-1]) == len(flips) > 3
        ends = np.concatenate([[0], (t[flips] + t[flips + 1]) / 2, [1]])
        h = np.minimum(1e-3, np.diff(ends) / 8)
        middles = (ends[1:] + ends[:-1]) / 2
        curvature = np.array([
            (hand.loss(W + (m - d) * step) - 2 * hand.loss(W + m * step) + hand.loss(W + (m + d) * step)) / d**2
            for m, d in zip(middles, h, strict=True)
        ])  # fmt: skip
        jumps = np.abs(np.diff(curvature)) / curvature[:-1]
        assert_allclose(line["mean_curvature_jump"], jumps.mean(), rtol=1e-3)
        assert_allclose(line["largest_curvature_jump"], jumps.max(), rtol=1e-3)
        assert_allclose(line["total_variation"], np.abs(np.diff(np.log(curvature))).sum(), rtol=1e-3)
        assert_allclose(measured["slice"]["singular_values"], [top, bottom], rtol=1e-6)
        # no sign changes within the reach, in the plane's directions
        _, _, vt = np.linalg.svd(np.concatenate(hand.matrices()))
        first, second = (v.reshape(6, 6).T for v in (vt[0], vt[rank - 1]))
        reach = measured["slice"]["reach"] * np.linalg.norm(W)
        around = [np.cos(a) * first + np.sin(a) * second for a in np.linspace(0, 2 * np.pi, 721)]
        here = hand.signs(W)
        assert all(np.array_equal(hand.signs(W + 0.99 * reach * d), here) for d in around)
        assert any(not np.array_equal(hand.signs(W + 1.01 * reach * d), here) for d in around)


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
    assert f"On the same weights with rho = 0.0 the median for all samples together is {format_number(median)}" in said
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
    elsewhere = ["landscape", f"{trained}/", "--rho", "0", "--out", f"{out}/../{out.name}", "--quiet", *SMALL]
    assert main(elsewhere) == 0  # the same places, written in another way
    assert main([*command, "--seed", "1"]) == 2
    assert "other settings (seed)" in capsys.readouterr().err
    for text, message in (
        ("", "is damaged"),
        ("[]", "not written by"),
        ('{"program": "spectrax landscape"}', "not written"),
    ):
        (out / "report.json").write_text(text)
        assert main(command) == 2
        error = capsys.readouterr().err
        assert re.search(message, error)
        assert "report.json" in error
    (out / "report.json").write_text(json.dumps(report))


def test_the_verdict_says_which_is_better():
    layer = {"condition_number": 3.0, "batch_condition_number": 10.0, "batch_rank": 4, "batch_full_rank": 5}
    line = {"layer": "a", "length": 0.1, "kinks": 7, "mean_curvature_jump": 0.02, "total_variation": 0.5}
    own = {"exact": True, "layers": {"a": layer}, "line": line, "slice": {"reach": 1.25e-3}}
    worse = {**own, "layers": {"a": {**layer, "batch_condition_number": 50.0}}, "line": {**line, "total_variation": 2}}

    def said(first=own, other=own, samples=4, model="mlp"):
        settings = {"samples": samples, "network": {"model": model}}
        return " ".join(verdict({"settings": settings, "rho": {"1.0": first, "0.0": other}}))

    def with_layer(**changes):
        return {**own, "layers": {"a": {**layer, **changes}}}

    text = said(other=worse)
    assert "is 50.0, 5.00 times that with rho = 1.0, where the loss is rounder (median rank 4 against 4)" in text
    assert "the landscape with rho = 1.0 is the less erratic one" in text
    assert "is 0.00125 of the weight's norm away: beyond it the loss of 4 samples" in text
    assert "has 7 kinks; its curvature jumps by 2.00 % on average" in text
    assert "no skips" not in text
    assert "about as with rho = 1.0" in said(other=with_layer(batch_condition_number=11.0))
    swapped = said(worse, own)
    assert "is 10.0, with rho = 1.0 it is 5.00 times that: the loss is rounder with rho = 0.0" in swapped
    assert "the landscape with rho = 0.0 is the less erratic one" in swapped
    # ((k^2 - 1) / (k^2 + 1))^(2 n) = 1e-6 at k = 10
    assert "takes at most 346 steps for six digits" in text


def test_the_verdict_does_not_mislead():
    layer = {"condition_number": 3.0, "batch_condition_number": 10.0, "batch_rank": 4, "batch_full_rank": 5}
    dead_layer = {**layer, "batch_condition_number": float("nan"), "batch_rank": 0}
    line = {"layer": "a", "length": 0.1, "kinks": 7, "mean_curvature_jump": 0.02, "total_variation": 0.5}
    own = {"exact": True, "layers": {"a": layer}, "line": line, "slice": {"reach": 1.25e-3}}

    def said(first=own, other=own, samples=4, model="mlp"):
        settings = {"samples": samples, "network": {"model": model}}
        return " ".join(verdict({"settings": settings, "rho": {"1.0": first, "0.0": other}}))

    lost = said(other={**own, "layers": {"a": {**layer, "batch_condition_number": 1.5, "batch_rank": 1}}})
    assert "of another rank, so that the two cannot be compared" in lost
    assert "rounder" not in lost
    assert "which cannot be compared" in said(other={**own, "layers": {"a": dead_layer}})
    both = said({**own, "layers": {"a": layer, "b": dead_layer}})
    assert "Dead, with Q = 0 at all samples, and left out of what follows: b." in both
    assert "nan" not in both
    one = said({**own, "line": {**line, "kinks": 1, "mean_curvature_jump": float("inf")}}, samples=1)
    assert "for 1 sample together" in one
    assert "the loss has 1 kink; its curvature jumps by more than can be said" in one
    assert "the quadratic holds everywhere" in said({**own, "slice": {"reach": float("inf")}})
    assert "The network is at a kink" in said({**own, "slice": {"reach": 0.0}})
    smooth = {"exact": False, "layers": {"a": layer}}
    assert "not piecewise affine" in said(smooth, smooth)
    assert "A convnet has no skips" in said(smooth, smooth, model="convnet")


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


def test_files_of_others_are_left_alone(tmp_path, trained):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no report of a landscape"):
        landscape.prepare(from_run(trained), landscape.LandscapeConfig(out=str(tmp_path)), overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_another_report_is_replaced_with_its_pictures(tmp_path):
    out = tmp_path / "report"
    command = ["landscape", "--model", "mlp", "--data", "digits", "--depth", "1", "--width", "4", "--quiet", *SMALL]
    command += ["--activation", "gelu", "--out", str(out)]
    (out / "plots").mkdir(parents=True)
    (out / "plots" / "line_rho_1.png").write_text("old")
    (out / "report.json").write_text('{"program": "spectrax landscape", "format": 1, "settings": {}, "rho": {}}')
    assert main([*command, "--rho", "0"]) == 2
    assert (out / "plots" / "line_rho_1.png").exists()
    assert main([*command, "--rho", "0", "--overwrite"]) == 0
    assert sorted(file.stem for file in (out / "plots").iterdir()) == ["condition_numbers"] * 2
    report = from_json((out / "report.json").read_text())
    assert report["rho"]["0.0"]["exact"] is False
    assert "line" not in report["rho"]["0.0"]
    assert report["verdict"][0].startswith("The network is not piecewise affine")


def test_a_dead_network_is_said_to_be_dead(tmp_path, capsys):
    command = ["landscape", "--model", "mlp", "--data", "digits", "--depth", "6", "--width", "1", "--rho", "0", *SMALL]
    assert main([*command, "--out", str(tmp_path / "report")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Dead, with Q = 0 at all samples" in printed


def test_other_data_and_too_many_samples_are_refused(trained, tmp_path, monkeypatch):
    load_data = subject.load_data

    def other(*arguments, **options):
        data = load_data(*arguments, **options)
        return dataclasses.replace(data, x_train=data.x_train + 1)

    monkeypatch.setattr(subject, "load_data", other)
    with pytest.raises(ValueError, match="was trained on other data"):
        from_run(trained)
    config = TrainingConfig(data="digits", model="mlp", width=2048, depth=1, penalty="none")
    with pytest.raises(ValueError, match=r"would have shape .* take fewer samples"):
        landscape.prepare(
            subject.from_model(config), landscape.LandscapeConfig(out=str(tmp_path / "report"), samples=359)
        )
