"""Tables, pictures and the page of a survey of spectra, from plain records."""

import io
import math
import re

import numpy as np
import pytest
from rich.console import Console

from spectrax.report import depth_figure, format_quantity, spectrum_figure, spectrum_page, spectrum_table
from spectrax.report.spectra import role


def layer(name, **quantities):
    found = {"name": name, "kind": "matrix", "shape": [4, 3], "dtype": "float32", "finite": True}
    return found | {key: value if isinstance(value, dict) else {"value": value} for key, value in quantities.items()}


def text(table):
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blk.12.attn_q.weight", ("blk.*.attn_q.weight", 12)),
        ("h.3.c1.weight", ("h.*.c1.weight", 3)),
        ("params/Dense_7/kernel", ("params/Dense_*/kernel", 7)),
        ("scan[11]", ("scan[*]", 11)),
        ("conv1x1", ("conv1x1", 0)),
        ("head", ("head", 0)),
    ],
)
def test_roles(name, expected):
    assert role(name) == expected


def test_marks_of_kinds():
    assert format_quantity({"value": 2.0, "kind": "upper"}) == "<= 2.00"
    assert format_quantity({"value": 2.0, "kind": "exact", "converged": False}) == "2.00 ?"
    assert format_quantity({"value": math.inf, "kind": "lower"}) == "inf"
    assert format_quantity(None) == "-"


def test_the_table_shows_what_was_measured_and_nothing_else():
    bad = layer("b") | {"finite": False}
    shown = text(
        spectrum_table([layer("a", sigma_max=3.0), layer("c", stable_rank={"value": 2.5, "kind": "upper"}), bad])
    )
    assert "largest singular value" in shown
    assert "condition number" not in shown
    assert re.search(r"^ a .* 3\.00 .* - *$", shown, re.MULTILINE)
    assert re.search(r"^ c .* - .* <= 2\.50 *$", shown, re.MULTILINE)
    assert re.search(r"^ b .* not finite", shown, re.MULTILINE)


def test_depth_orders_blocks_and_leaves_out_what_is_no_number():
    layers = [layer(f"blk.{i}.w", sigma_max=1.0 + i, condition_number=math.inf) for i in (10, 2, 1)]
    layers.append(layer("blk.3.w", sigma_max={"value": 9.0, "converged": False}))
    figure = depth_figure(layers)
    top, condition = figure.axes
    line = top.lines[0]
    assert list(line.get_xdata()) == [1, 2, 10]
    assert list(line.get_ydata()) == [2, 3, 11]
    assert np.all(np.isnan(condition.lines[0].get_ydata()))
    with pytest.raises(ValueError, match="got none"):
        depth_figure([layer("a")])


def test_spectra_are_relative_and_one_panel_for_each_role():
    curve = {"rank": [1, 2, 3], "value": [4.0, 2.0, 0.0]}
    figure = spectrum_figure([layer(f"blk.{i}.{w}", spectrum=curve) for i in range(3) for w in "uv"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["blk.*.u", "blk.*.v"]
    x, y = figure.axes[0].lines[0].get_data()
    np.testing.assert_allclose(x, [1 / 3, 2 / 3, 1])
    np.testing.assert_array_equal(y, [1, 0.5, np.nan])
    with pytest.raises(ValueError, match="got none"):
        spectrum_figure([layer("a")])


def test_a_page_of_zeros_and_of_what_is_not_finite():
    zero = layer("z", sigma_max=0.0, sigma_min=0.0, condition_number=math.inf)
    zero["spectrum"] = {"rank": [1, 2], "value": [0.0, 0.0]}
    bad = layer("b") | {"finite": False}
    left_out = [{"name": "conv", "shape": (3, 3, 1, 1), "dtype": "float32", "reason": "<why>"}]
    result = {"checkpoint": "a&b", "format": "npz", "layers": [zero, bad], "left_out": left_out, "settings": {"k": 1}}
    page = spectrum_page(result)
    assert "Spectra of a&amp;b" in page
    assert 'data-key="Infinity"' in page
    assert "not finite" in page
    assert "&lt;why&gt;" in page
    assert spectrum_page(result | {"layers": [bad]}).count("<img") == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([6e300, 7e-300], ["10^{-299}", "10^{-224}", "10^{226}"]),
        ([1.7e308], ["1.7e+308"]),
        ([1.7e308, 5e-324], ["10^{-323}"]),
        ([1e307, 1.7e308], ["10^{307}", "10^{308}"]),
        ([5e-324, 2e-320], ["10^{-323}", "10^{-320}"]),
        ([1.0, 1e300], ["10^{0}", "10^{38}"]),
    ],
)
def test_values_near_the_ends_of_the_floating_point_range(values, labels):
    """Their margins and the ticks beyond them would overflow; in the picture stands each value, between the limits."""
    figure = depth_figure([layer(f"blk.{i}.w", sigma_max=value) for i, value in enumerate(values)])
    panel = figure.axes[0]
    figure.savefig(io.BytesIO(), format="png")
    low, high = panel.get_ylim()
    assert panel.get_yscale() == "log"
    assert 0 < low <= min(values) < high < math.inf
    assert max(values) <= high
    shown = " ".join(text.get_text() for text in panel.get_yticklabels())
    assert all(label in shown for label in labels), shown
