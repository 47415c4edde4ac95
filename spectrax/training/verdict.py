"""What a report on a landscape says in words, with the numbers beside."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from spectrax.report.tables import format_number

_ALIKE = 1.25  # a factor below which two numbers are called alike


def verdict(report: Mapping[str, Any], /) -> list[str]:
    """Say what a report shows.

    Args:
        report: What `report.json` holds.

    Returns:
        Sentences.
    """
    settings, by_rho = report["settings"], report["rho"]
    own = next(iter(by_rho))
    measured = by_rho[own]
    samples = _count(settings["samples"], "sample")
    said = [_kind(measured), *_dead(measured), _spectra(own, measured, samples)]
    others = [rho for rho in by_rho if rho != own]
    said += [_rounder(own, measured, rho, by_rho[rho]) for rho in others]
    if "line" in measured:
        said.append(_line(own, measured))
        said += [_smoother(own, measured, rho, by_rho[rho]) for rho in others if "line" in by_rho[rho]]
        said.append(_reach(measured["slice"]["reach"], samples))
    if settings["network"]["model"] == "convnet":
        said.append("A convnet has no skips, so that there is no other rho to compare it with.")
    return said


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _dead(measured: Mapping[str, Any]) -> list[str]:
    dead = [name for name, layer in measured["layers"].items() if layer["batch_rank"] == 0]
    if not dead:
        return []
    return [f"Dead, with Q = 0 at all samples, and left out of what follows: {', '.join(dead)}."]


def _reach(reach: float, samples: str) -> str:
    if math.isinf(reach):
        return (
            "In the plane of the steepest and the flattest direction there is no kink: the quadratic holds everywhere."
        )
    if reach == 0:
        return "The network is at a kink: the quadratic holds on one side at best."
    return (
        f"The nearest kink in the plane of the steepest and the flattest direction is {format_number(reach)} of the "
        f"weight's norm away: beyond it the loss of {samples} is not this quadratic everywhere."
    )


def _kind(measured: Mapping[str, Any]) -> str:
    if measured["exact"]:
        return "The network is piecewise affine: its local maps and quadratics are exact up to the next kink."
    return (
        "The network is not piecewise affine: the condition numbers are those of its linearisation at each sample, and "
        "there are no kinks and no exact quadratic."
    )


def _median(measured: Mapping[str, Any], name: str) -> float:
    values = [float(layer[name]) for layer in measured["layers"].values() if layer["batch_rank"] != 0]
    values = [value for value in values if not math.isnan(value)]
    return float(np.median(values)) if values else math.nan


def _spectra(rho: str, measured: Mapping[str, Any], samples: str) -> str:
    median, together = _median(measured, "condition_number"), _median(measured, "batch_condition_number")
    name, worst = max(measured["layers"].items(), key=lambda item: _order(item[1]["batch_condition_number"]))
    kappa = worst["batch_condition_number"]
    text = (
        f"With rho = {rho} the matrix Q that shapes the loss in one layer's weights has a median condition number of "
        f"{format_number(median)} at a sample and {format_number(together)} for {samples} together (on what is not "
        f"zero; median over {_count(len(measured['layers']), 'layer')})."
    )
    if math.isnan(kappa):
        return text
    return text + (
        f" The worst layer is {name} with {format_number(kappa)}, rank {worst['batch_rank']} of "
        f"{worst['batch_full_rank']}: gradient descent on it alone, with the best step, takes at most "
        f"{format_number(_iterations(kappa))} steps for six digits."
    )


def _order(value: float) -> float:
    return value if not math.isnan(value) else -1.0


def _iterations(kappa: float) -> float:
    """How many steps bring the excess loss down by 1e6, which shrinks by ((k^2 - 1) / (k^2 + 1))^2 in each."""
    if not math.isfinite(kappa):
        return kappa
    return math.ceil(math.log(1e6) / (2 * math.log1p(2 / (kappa**2 - 1)))) if kappa > 1 else 1


def _factor(high: float, low: float) -> str:
    return f"{format_number(high / low)} times"


def _rounder(own: str, measured: Mapping[str, Any], rho: str, other: Mapping[str, Any]) -> str:
    here, there = (_median(each, "batch_condition_number") for each in (measured, other))
    ranks = [_median(each, "batch_rank") for each in (measured, other)]
    text = f"On the same weights with rho = {rho} the median for all samples together is {format_number(there)}"
    if not (math.isfinite(here) and math.isfinite(there) and here > 0 and there > 0):
        text += ", which cannot be compared"
    elif max(ranks) >= _ALIKE * min(ranks):
        text += f" against {format_number(here)}, but of another rank, so that the two cannot be compared"
    elif max(here, there) < _ALIKE * min(here, there):
        text += f", about as with rho = {own}"
    elif there > here:
        text += f", {_factor(there, here)} that with rho = {own}, where the loss is rounder"
    else:
        text += f", with rho = {own} it is {_factor(here, there)} that: the loss is rounder with rho = {rho}"
    if any(map(math.isnan, ranks)):
        return text + "."
    return text + f" (median rank {ranks[1]:g} against {ranks[0]:g})."


def _line(rho: str, measured: Mapping[str, Any]) -> str:
    line = measured["line"]
    return (
        f"Along a random line of {format_number(100 * line['length'])} % of the norm of {line['layer']}'s weight, with "
        f"rho = {rho}, the loss has {_count(line['kinks'], 'kink')}; its curvature jumps by "
        f"{_jump(line)} on average, and the total variation of the curvature's logarithm is "
        f"{format_number(line['total_variation'])}."
    )


def _jump(line: Mapping[str, Any]) -> str:
    jump = line["mean_curvature_jump"]
    return f"{format_number(100 * jump)} %" if math.isfinite(jump) else "more than can be said (from zero)"


def _smoother(own: str, measured: Mapping[str, Any], rho: str, other: Mapping[str, Any]) -> str:
    here, there = measured["line"], other["line"]
    text = (
        f"On the same line with rho = {rho}: {_count(there['kinks'], 'kink')}, jumps of {_jump(there)}, total "
        f"variation {format_number(there['total_variation'])}"
    )
    a, b = here["total_variation"], there["total_variation"]
    if not (math.isfinite(a) and math.isfinite(b)) or max(a, b) < _ALIKE * min(a, b) or a == b:
        return text + "."
    return text + f"; the landscape with rho = {own if a < b else rho} is the less erratic one."
