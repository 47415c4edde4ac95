"""Tables and pictures of the spectra of a checkpoint's matrices, from the records of a survey."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spectrax.report.extras import require
from spectrax.report.panels import decorate, figure_legend, log_axis, make_panels, outer_labels_only
from spectrax.report.tables import format_number

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B", "#000000")
_MARKERS = ("o", "s", "^", "D")
_MARKS = {"exact": "", "estimate": "~ ", "lower": ">= ", "upper": "<= "}
_QUANTITIES: Mapping[str, str] = {
    "sigma_max": "largest singular value",
    "sigma_min": "smallest singular value",
    "condition_number": "condition number",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "frobenius_norm": "Frobenius norm",
}
_MOST_ROLES, _MOST_PANELS = 32, 16


def spectrum_table(layers: Sequence[Mapping[str, Any]], /) -> Any:
    """Lay out what was measured of each matrix.

    Args:
        layers: The records of a survey: `name`, `shape`, `finite`, and quantities as `{"value", "kind", "converged"}`.

    Returns:
        A `rich.table.Table` with a row a matrix. A value that is not exact carries its kind: `~` an estimate, `<=` an
        upper and `>=` a lower bound; a value that did not converge carries `?`.

    Example:
        >>> layer = {"name": "dense", "shape": [3, 2], "finite": True, "sigma_max": {"value": 2.0, "kind": "exact"}}
        >>> spectrum_table([layer]).row_count
        1
    """
    shown = measured_quantities(layers)
    text = require("rich.text", "printing tables").Text  # in which brackets are no markup
    table = require("rich.table", "printing tables").Table(
        title="Spectra", title_justify="left", title_style="bold", show_edge=False
    )
    table.add_column("matrix", overflow="fold")
    table.add_column("shape", justify="right")
    for name in shown:
        table.add_column(_QUANTITIES[name], justify="right")
    for layer in layers:
        cells = [format_quantity(layer.get(name)) for name in shown] if layer["finite"] else ["not finite"]
        table.add_row(text(printable(layer["name"])), "x".join(map(str, layer["shape"])), *cells)
    return table


def measured_quantities(layers: Sequence[Mapping[str, Any]], /) -> list[str]:
    """List the quantities that at least one record holds.

    Args:
        layers: The records of a survey.

    Returns:
        Their names, in the order of the tables.

    Example:
        >>> measured_quantities([{"sigma_max": {"value": 2.0}}])
        ['sigma_max']
    """
    return [name for name in _QUANTITIES if any(name in layer for layer in layers)]


def format_quantity(quantity: Mapping[str, Any] | None, /) -> str:
    """Write a quantity with a mark for what kind of value it is.

    Args:
        quantity: `{"value", "kind", "converged"}`, the last two where they are known; or None.

    Returns:
        The text: a plain number is exact, a dash stands for what was not measured.

    Example:
        >>> format_quantity({"value": 51.0, "kind": "lower", "converged": False}), format_quantity(None)
        ('>= 51.0 ?', '-')
    """
    if quantity is None:
        return "-"
    mark = "" if quantity["value"] == float("inf") else _MARKS[quantity.get("kind", "exact")]
    return mark + format_number(quantity["value"]) + ("" if quantity.get("converged", True) else " ?")


def printable(name: str, /) -> str:
    r"""Replace what is no character to be shown: control characters, and halves of characters.

    Args:
        name: A name from a file.

    Returns:
        The name for a terminal or a picture.

    Example:
        >>> printable("a\x1b[31m"), printable("w[0]")
        ('a�[31m', 'w[0]')
    """
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def _label(name: str, length: int) -> str:
    """Return a name as a label of a picture: cut to a length, and without formulas."""
    name = printable(name)
    return (name if len(name) <= length else "..." + name[3 - length :]).replace("$", r"\$")


def role(name: str, /) -> tuple[str, int]:
    """Split a name into what a matrix is for and the block that it is in: the first number in the name.

    Args:
        name: The name.

    Returns:
        The name with the number replaced by a star, and the number; zero where there is none.

    Example:
        >>> role("blk.12.attn_q.weight"), role("head")
        (('blk.*.attn_q.weight', 12), ('head', 0))
    """
    match = re.search(r"(?<![A-Za-z0-9])\d+|(?<=_)\d+|(?<=\[)\d+", name)
    if match is None:
        return name, 0
    return name[: match.start()] + "*" + name[match.end() :], int(match[0])


def depth_figure(layers: Sequence[Mapping[str, Any]], /) -> Any:
    """Draw each quantity by depth, a curve for the matrices that have the same role.

    Args:
        layers: The records of a survey.

    Returns:
        A `matplotlib.figure.Figure` with a panel a quantity. Hollow dots are bounds and estimates; infinite values and
        those that did not converge are left out.

    Raises:
        ValueError: If nothing was measured.

    Example:
        >>> layer = {"name": "blk.0.w", "shape": [3, 2], "finite": True, "sigma_max": {"value": 2.0, "kind": "exact"}}
        >>> [axes.get_title(loc="left") for axes in depth_figure([layer]).axes]
        ['Largest singular value']
    """
    shown = [name for name in measured_quantities(layers) if name != "frobenius_norm"]
    shown = shown or measured_quantities(layers)
    if not shown:
        raise ValueError("layers must hold at least one that was measured; got none")
    roles = _by_role(layers)
    figure, panels = make_panels(len(shown), columns=3, width=4.6, height=3.4)
    for panel, name in zip(panels, shown, strict=True):
        title = _QUANTITIES[name]
        decorate(panel, title[0].upper() + title[1:], "block" if len(roles) < len(layers) else "", "")
        for place, members in enumerate(roles.values()):
            colour, marker = _style(place)
            have = [(depth, layer[name]) for depth, layer in sorted(members, key=_depth) if name in layer]
            good = [(depth, entry) for depth, entry in have if entry.get("converged", True)]
            x = np.array([depth for depth, _ in good], float)
            y = np.array([entry["value"] for _, entry in good], float)
            y = np.where(np.isfinite(y) & (y > 0), y, np.nan)
            exact = np.array([entry.get("kind", "exact") == "exact" for _, entry in good], bool)
            panel.plot(x, y, color=colour, linewidth=1.1, alpha=0.7)
            for flag, face in ((True, colour), (False, "white")):
                panel.plot(
                    x[exact == flag], y[exact == flag], marker, color=colour, markerfacecolor=face, markersize=3.5
                )
        log_axis(panel)
        panel.tick_params(which="minor", length=0)
    names = list(roles)[:_MOST_ROLES]
    figure_legend(figure, [(*_legend(place), _label(name, 60)) for place, name in enumerate(names)])
    return figure


def spectrum_figure(layers: Sequence[Mapping[str, Any]], /) -> Any:
    """Draw the sorted singular values of each matrix relative to the largest, a panel a role, dark to light by depth.

    Args:
        layers: The records of a survey, with `spectrum` as `{"rank": [...], "value": [...]}`.

    Returns:
        A `matplotlib.figure.Figure`; the sixteen roles with the most matrices have a panel.

    Raises:
        ValueError: If no record has a spectrum.

    Example:
        >>> layer = {"name": "w", "shape": [2, 2], "finite": True, "spectrum": {"rank": [1, 2], "value": [2.0, 1.0]}}
        >>> [axes.get_title(loc="left") for axes in spectrum_figure([layer]).axes]
        ['w']
    """
    drawn = [layer for layer in layers if "spectrum" in layer]
    if not drawn:
        raise ValueError("layers must hold at least one with a spectrum; got none")
    roles = sorted(_by_role(drawn).items(), key=lambda item: -len(item[1]))[:_MOST_PANELS]
    colours = require("matplotlib", "drawing pictures").colormaps["viridis"]
    figure, panels = make_panels(len(roles), columns=4, width=3.4, height=2.7, sharey=True)
    for panel, (name, members) in zip(panels, roles, strict=True):
        decorate(panel, _label(name, 34), "rank / min(m, n)", "singular value / largest")
        for place, (_, layer) in enumerate(sorted(members, key=_depth)):
            rank = np.asarray(layer["spectrum"]["rank"], float)
            value = np.asarray(layer["spectrum"]["value"], float)
            relative = value / value[0] if value[0] > 0 else value
            shade = colours(0.85 * place / max(1, len(members) - 1))
            panel.plot(rank / rank[-1], np.where(relative > 0, relative, np.nan), color=shade, linewidth=1)
        panel.set_yscale("log")
        panel.tick_params(which="minor", length=0)
    outer_labels_only(panels, min(4, len(roles)))
    return figure


def _by_role(layers: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, Mapping[str, Any]]]]:
    """Group the matrices by their roles, in the checkpoint's order, each with its depth."""
    found: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for layer in layers:
        name, depth = role(layer["name"])
        found.setdefault(name, []).append((depth, layer))
    return found


def _depth(member: tuple[int, Any]) -> int:
    return member[0]


def _style(place: int) -> tuple[str, str]:
    return _COLOURS[place % len(_COLOURS)], _MARKERS[place // len(_COLOURS) % len(_MARKERS)]


def _legend(place: int) -> tuple[str, str, str, None]:
    colour, marker = _style(place)
    return colour, "-", marker, None
