"""The pictures of landscapes show what they were given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import report


def f(params, x):
    return jax.nn.relu(params["w"] @ x)


ONE = {"w": jnp.eye(2)}


def test_a_curve_for_each_rho():
    def layers(*values):
        return {
            "layers": {f"l{i}": {"condition_number": v, "batch_condition_number": 10 * v} for i, v in enumerate(values)}
        }

    figure = report.layer_condition_numbers({"1.0": layers(2.0, 3.0), "0.0": layers(5.0, np.nan)})
    one, together = figure.axes
    assert_allclose([line.get_ydata() for line in one.lines], [[2, 3], [5, np.nan]])
    assert_allclose([line.get_ydata() for line in together.lines], [[20, 30], [50, np.nan]])
    assert one.get_yscale() == "log"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rho = 1.0", "rho = 0.0"]
    assert [label.get_text() for label in one.get_xticklabels()] == ["l0", "l1"]
    with pytest.raises(ValueError, match="at least one rho"):
        report.layer_condition_numbers({})


def test_a_line_with_its_kinks():
    line = sx.landscape.loss_along_line(
        f, ONE, "w", jnp.diag(jnp.array([-1.0, -0.5])), jnp.ones(2), jnp.ones(2), stop=3
    )
    loss, curvature = report.loss_line(line, title="a line").axes
    curve, marks = loss.lines
    assert_allclose(curve.get_ydata(), line(curve.get_xdata()))
    assert_allclose(marks.get_xdata(), [1.0, 2.0], rtol=1e-6)
    assert loss.get_title(loc="left") == "a line"
    assert curvature.get_title(loc="left") == "Curvature, 2 kinks"
    assert_allclose(curvature.lines[0].get_ydata(), [2.5, 0.5, 0, 0], atol=1e-6)


def test_a_slice_with_its_border():
    plane = sx.landscape.loss_slice(f, ONE, "w", jnp.ones(2), jnp.zeros(2), extent=3.0, resolution=5)
    figure = report.loss_slices({"near": plane, "wide": plane}, title="the title")
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "near: loss", "near: local quadratic", "wide: loss", "wide: local quadratic"
    ]  # fmt: skip
    for axes in panels:
        (border,) = axes.patches
        assert_allclose(border.get_xy()[:-1], plane.border)
    assert figure.get_suptitle() == "the title"
    with pytest.raises(ValueError, match="at least one slice"):
        report.loss_slices({})


@pytest.mark.parametrize(
    "loss", [1 + 2e-16 * np.eye(5), np.full((5, 5), 1e17), np.full((5, 5), np.nan), np.zeros((5, 5))]
)
def test_a_loss_without_levels_is_drawn_all_the_same(loss):
    plane = sx.landscape.loss_slice(f, ONE, "w", jnp.ones(2), jnp.zeros(2), extent=3.0, resolution=5)
    figure = report.loss_slices({"flat": dataclasses.replace(plane, loss=loss, quadratic=loss)})
    figure.canvas.draw()
    assert len(figure.axes) == 3


def test_a_row_for_each_layer():
    layer = {"batch_condition_number": 12.5, "batch_rank": 3, "batch_full_rank": 4}
    table = report.landscape_table({"1.0": {"layers": {"a": layer, "b": {**layer, "batch_rank": 2}}}})
    assert [list(column.cells) for column in table.columns] == [["a", "b"], ["12.5 (3/4)", "12.5 (2/4)"]]
    assert [column.header for column in table.columns] == ["layer", "rho = 1.0"]
