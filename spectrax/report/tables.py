"""Tables of a training run for the terminal, made with rich from plain dicts."""

import math
from collections.abc import Mapping
from typing import Any

from spectrax.report.extras import require

_NAMES = {"penalty": "with penalty", "baseline": "baseline"}


def summary_table(summary: Mapping[str, Any], /) -> Any:
    """Lay out what runs reached: the accuracies, the losses, and the medians of the condition numbers, side by side.

    Args:
        summary: `{"runs": {run: {"train_accuracy", "test_accuracy", "test_loss", "median_condition_number",
            "median_jacobian_condition_number"}}, "before": {...}}`, as in `summary.json`; what is missing is shown as a
            dash.

    Returns:
        A `rich.table.Table` with a row a quantity and a column a run.

    Example:
        >>> table = summary_table({"runs": {"penalty": {"test_accuracy": 0.97}}})
        >>> table.row_count
        5
    """
    runs = summary["runs"]
    before = summary.get("before", {})
    table = _table("What training reached")
    table.add_column("")
    table.add_column("before", justify="right")
    for run in runs:
        table.add_column(_NAMES.get(run, run), justify="right")
    rows = (
        ("test accuracy", "test_accuracy", _fraction),
        ("training accuracy", "train_accuracy", _fraction),
        ("test loss", "test_loss", format_number),
        ("median condition number of the layers", "median_condition_number", format_number),
        ("median condition number of the Jacobian", "median_jacobian_condition_number", format_number),
    )
    for title, name, write in rows:
        table.add_row(title, write(before.get(name)), *(write(values.get(name)) for values in runs.values()))
    return table


def layer_table(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Mapping[str, Any]]], /
) -> Any:
    """Lay out each layer's condition number before and after training, with the kind of value that it is.

    Args:
        before: For each layer `condition_number`, `sigma_max`, `sigma_min`, `kind` and `converged`.
        after: For each run, the same after training.

    Returns:
        A `rich.table.Table` with a row a layer. A value that is not exact carries its kind: `~` an estimate, `<=` an
        upper and `>=` a lower bound; a value that did not converge carries `?`.

    Example:
        >>> layer = {"condition_number": 12.0, "kind": "exact", "converged": True}
        >>> layer_table({"dense_0": layer}, {"penalty": {"dense_0": layer}}).row_count
        1
    """
    table = _table("Condition number of each layer")
    table.add_column("layer", overflow="fold")
    table.add_column("before", justify="right")
    for run in after:
        table.add_column(_NAMES.get(run, run), justify="right")
    if len(after) > 1:
        table.add_column("baseline / penalty", justify="right")
    for layer, start in before.items():
        ends = [values.get(layer, {}) for values in after.values()]
        row = [layer, format_measurement(start), *(format_measurement(end) for end in ends)]
        if len(after) > 1:
            row.append(_ratio(ends[-1], ends[0]))
        table.add_row(*row)
    return table


def landscape_table(by_rho: Mapping[str, Mapping[str, Any]], /) -> Any:
    """Lay out the condition number and the rank of each layer's matrix Q, for all samples together, rho by rho.

    Args:
        by_rho: For each rho `{"layers": {name: {"batch_condition_number", "batch_rank", "batch_full_rank"}}}`.

    Returns:
        A `rich.table.Table` with a row a layer.

    Example:
        >>> layer = {"batch_condition_number": 12.0, "batch_rank": 3, "batch_full_rank": 4}
        >>> landscape_table({"1.0": {"layers": {"dense_0": layer}}}).row_count
        1
    """
    table = _table("Condition number of Q, and its rank")
    table.add_column("layer", overflow="fold")
    for rho in by_rho:
        table.add_column(f"rho = {rho}", justify="right")
    for name in next(iter(by_rho.values()))["layers"]:
        found = [measured["layers"][name] for measured in by_rho.values()]
        table.add_row(
            name,
            *(
                f"{format_number(float(layer['batch_condition_number']))} ({layer['batch_rank']}/"
                f"{layer['batch_full_rank']})"
                for layer in found
            ),
        )
    return table


def timing_table(timings: Mapping[str, float], /) -> Any:
    """Lay out where the time went.

    Args:
        timings: Seconds by what they were spent on; "total" comes last.

    Returns:
        A `rich.table.Table` with a row a part.

    Example:
        >>> timing_table({"total": 3.0, "training": 2.0}).row_count
        2
    """
    table = _table("Time")
    table.add_column("")
    table.add_column("seconds", justify="right")
    for name in [*(name for name in timings if name != "total"), *(["total"] if "total" in timings else [])]:
        table.add_row(name.replace("_", " "), f"{timings[name]:.1f}")
    return table


def format_number(value: float | None) -> str:
    """Write a number with three digits, or a dash for None.

    Args:
        value: The number.

    Returns:
        The text.

    Example:
        >>> format_number(1234.5), format_number(0.0421), format_number(2.5e7), format_number(None)
        ('1,230', '0.0421', '2.50e+07', '-')
    """
    if value is None:
        return "-"
    value = float(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, 2 - math.floor(math.log10(abs(value)))):,.{digits}f}"


def format_measurement(layer: Mapping[str, Any], /) -> str:
    """Write a layer's condition number with a mark for what kind of value it is.

    Args:
        layer: `condition_number`, and `kind` and `converged` where they are known.

    Returns:
        The text: a plain number is exact.

    Example:
        >>> format_measurement({"condition_number": 51.0, "kind": "estimate", "converged": True})
        '~ 51.0'
        >>> format_measurement({"condition_number": 51.0, "kind": "exact", "converged": False})
        '51.0 ?'
    """
    if "condition_number" not in layer:
        return "-"
    mark = {"exact": "", "estimate": "~ ", "lower": ">= ", "upper": "<= "}[layer.get("kind", "exact")]
    return mark + format_number(layer["condition_number"]) + ("" if layer.get("converged", True) else " ?")


def _table(title: str) -> Any:
    # As wide as its title at least: rich would break the title's line otherwise.
    return require("rich.table", "printing tables").Table(
        title=title, title_justify="left", title_style="bold", show_edge=False, min_width=len(title)
    )


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{float(value):.4f}"


def _ratio(high: Mapping[str, Any], low: Mapping[str, Any]) -> str:
    numerator, denominator = high.get("condition_number"), low.get("condition_number")
    if not numerator or not denominator or not math.isfinite(float(numerator)) or not math.isfinite(float(denominator)):
        return "-"
    return f"{float(numerator) / float(denominator):.3g}"
