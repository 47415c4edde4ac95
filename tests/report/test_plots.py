"""The figures show what they were given, and touch no global state."""

import math
import xml.etree.ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from spectrax import report
from spectrax.report import plots

LAYERS = ("stem", "block/conv", "head")


def step(run, number, **values):
    return {
        "run": run,
        "event": "step",
        "step": number,
        "loss": 2.0 / number,
        "accuracy": 0.5,
        "penalty": None,
        **values,
    }


def epoch(run, number, **values):
    return {
        "run": run,
        "event": "epoch",
        "step": 10 * number,
        "epoch": number,
        "train_accuracy": None if number == 0 else 0.8,
        "test_accuracy": 0.1 + 0.4 * number,
        "test_loss": 2.0 / (1 + number),
        **values,
    }


def layers(scale, **values):
    return {
        name: {"condition_number": scale * (i + 2), "kind": "exact", "converged": True, **values}
        for i, name in enumerate(LAYERS)
    }


@pytest.fixture
def records():
    found = []
    for run, factor in (("penalty", 0.5), ("baseline", 2.0)):
        for number in range(3):
            found.append(epoch(run, number, layers=layers(10 * factor**number)))
            for i in range(10 * number + 1, 10 * number + 11):
                tracked = dict.fromkeys(LAYERS, 9.0) if run == "penalty" else {}
                found.append(step(run, i, penalty=5.0 if run == "penalty" else None, estimates=tracked))
    return found


def texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_learning_curves_have_the_losses_the_accuracies_and_the_penalty(records):
    figure = report.learning_curves(records)
    assert isinstance(figure, Figure)
    loss, accuracy, penalty = figure.axes
    assert loss.get_yscale() == "log"
    assert [axes.get_xlabel() for axes in figure.axes] == ["step"] * 3
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy", "penalty"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["with the penalty, test", "baseline, test"]
    test_losses = next(line for line in loss.lines if line.get_label() == "baseline, test")
    np.testing.assert_allclose(test_losses.get_ydata(), [2.0, 1.0, 2 / 3])
    train = next(line for line in accuracy.lines if line.get_label() == "baseline, train")
    np.testing.assert_array_equal(train.get_xdata(), [10, 20])  # before training there is none
    assert len(penalty.lines) == 1


def test_learning_curves_without_a_penalty_have_no_panel_for_it(records):
    figure = report.learning_curves([r for r in records if r["run"] == "baseline"])
    assert len(figure.axes) == 2


def test_condition_numbers_tell_true_values_from_tracked_ones(records):
    figure = report.condition_numbers(records)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(LAYERS)
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert len(dashed) == 1  # the baseline tracks nothing
        np.testing.assert_array_equal(dashed[0].get_ydata(), 9.0)
    solid = [line for line in figure.axes[0].lines if line.get_linestyle() == "-" and len(line.get_ydata())]
    np.testing.assert_allclose(solid[0].get_ydata(), [20, 10, 5])
    assert texts(figure) == ["with the penalty, true", "baseline, true", "with the penalty, tracked estimate"]


def test_condition_numbers_mark_estimates_and_infinities():
    records = [
        epoch("baseline", 0, layers=layers(10.0, kind="lower")),
        epoch("baseline", 1, layers=layers(10.0, converged=False)),
        epoch("baseline", 2, layers=layers(math.inf)),
    ]
    figure = report.condition_numbers(records)
    hollow = [
        line for line in figure.axes[0].lines if line.get_marker() == "o" and line.get_markerfacecolor() == "white"
    ]
    assert [list(line.get_xdata()) for line in hollow] == [[0, 10]]
    triangles = [line for line in figure.axes[0].lines if line.get_marker() == "^"]
    assert [list(line.get_xdata()) for line in triangles] == [[20]]
    assert np.isfinite(triangles[0].get_ydata()).all()
    assert "infinite: singular to working precision" in texts(figure)
    assert "measured, but an estimate or a bound" in texts(figure)


def test_singular_values_are_sorted_and_notes_stand_where_there_are_none():
    before = {"a": np.array([1.0, 3.0, 2.0]), "b": None}
    figure = report.singular_values(before, {"penalty": {"a": [1.0, 0.0], "b": None}}, notes={"b": "too large"})
    first, second = figure.axes
    start, end = first.lines
    np.testing.assert_array_equal(start.get_ydata(), [3, 2, 1])
    np.testing.assert_allclose(start.get_xdata(), [1 / 6, 1 / 2, 5 / 6])
    assert start.get_linestyle() == "--"
    assert (end.get_ydata() > 0).all()  # a zero has no place on a logarithmic axis: it stands at the edge
    assert first.get_yscale() == "log"
    assert not second.lines
    assert [text.get_text() for text in second.texts] == ["too large"]
    assert texts(figure) == ["before training", "after, with the penalty"]


def test_the_jacobians_distribution_counts_singular_samples():
    figure = report.jacobian_condition_numbers([8.0, 2.0, 4.0, math.inf], {"penalty": [1.0, 2.0, 3.0]})
    (axes,) = figure.axes
    before = axes.lines[0]
    np.testing.assert_array_equal(before.get_xdata(), [2, 4, 8])
    np.testing.assert_allclose(before.get_ydata(), [0.25, 0.5, 0.75])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["before training: median 6, 1 of 4 singular", "after, with the penalty: median 2"]


def test_figures_leave_the_global_settings_and_pyplot_alone(records):
    settings = dict(matplotlib.rcParams)
    report.learning_curves(records)
    report.condition_numbers(records)
    assert dict(matplotlib.rcParams) == settings
    pyplot = pytest.importorskip("matplotlib.pyplot")
    assert pyplot.get_fignums() == []


def test_runs_that_nobody_knows_get_a_colour_and_their_name():
    figure = report.learning_curves([epoch("mine", 1)])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["mine, test"]


@pytest.mark.parametrize("draw", [report.learning_curves, report.condition_numbers])
def test_no_records(draw):
    with pytest.raises(ValueError, match="got none"):
        draw([])


def test_no_layers_and_no_samples():
    with pytest.raises(ValueError, match="at least one layer"):
        report.singular_values({}, {})
    with pytest.raises(ValueError, match="at least one sample"):
        report.jacobian_condition_numbers([], {})


def test_figures_are_saved_as_png_and_svg(tmp_path, records):
    png, svg = report.save_figure(report.learning_curves(records), tmp_path / "plots" / "curves")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert xml.etree.ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"drawing plots needs the package matplotlib.*jax-spectrax\[demo\]"):
        plots.learning_curves([epoch("baseline", 0)])


def test_a_dot_in_a_name_stays(tmp_path):
    for name in ("rho_0.25", "rho_0.5"):
        report.save_figure(Figure(), tmp_path / name)
    assert {file.name for file in tmp_path.iterdir()} == {
        "rho_0.25.png", "rho_0.25.svg", "rho_0.5.png", "rho_0.5.svg"
    }  # fmt: skip
