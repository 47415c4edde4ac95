"""One self-contained HTML page on the spectra of a checkpoint: tables that can be sorted, pictures, no other files."""

import base64
import dataclasses
import html
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from spectrax.report.spectra import depth_figure, format_quantity, measured_quantities, spectrum_figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { position: sticky; top: 0; background: #fff; cursor: pointer; border-bottom: 1px solid #888; }
td:first-child, th:first-child, td.text { text-align: left; }
tr:hover td { background: #f5f8fb; }
.scroll { overflow-x: auto; } img { max-width: 100%; height: auto; }
.note { color: #666; max-width: 60rem; } svg { vertical-align: middle; }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("table.sortable th")) head.addEventListener("click", () => {
  const table = head.closest("table"), column = [...head.parentNode.children].indexOf(head);
  const up = head.dataset.up = head.dataset.up === "1" ? "" : "1";
  const key = row => row.children[column].dataset.key ?? row.children[column].textContent;
  const number = text => text === "" ? NaN : Number(text);
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [s, t] = [key(a), key(b)], [x, y] = [number(s), number(t)];
    if (Number.isNaN(x) || Number.isNaN(y))
      return Number.isNaN(x) - Number.isNaN(y) || s.localeCompare(t, undefined, {numeric: true});
    return x < y ? -1 : x > y ? 1 : 0;
  });
  if (!up) rows.reverse();
  table.tBodies[0].append(...rows);
});
"""

_LEGEND = (
    "A plain number is exact to round-off. >= marks a lower bound, <= an upper bound, ~ an estimate, ? what did not "
    "converge; inf a matrix that is singular to working precision. Residuals are sqrt(|A v - s u|^2 + |A^H u - s v|^2) "
    "relative to the value. Click a column's head to sort by it."
)


def spectrum_page(result: Mapping[str, Any], /) -> str:
    """Lay out a survey of a checkpoint as one HTML page.

    Args:
        result: What `spectrum.json` holds: `checkpoint`, `format`, `settings`, `layers` and `left_out`.

    Returns:
        The page. Styles, script and pictures are within it; it loads nothing.

    Example:
        >>> layer = {"name": "w", "kind": "matrix", "shape": [2, 2], "dtype": "float32", "finite": True,
        ...          "sigma_max": {"value": 2.0, "kind": "exact"}}
        >>> page = spectrum_page({"checkpoint": "net.npz", "format": "npz", "layers": [layer], "left_out": []})
        >>> page.startswith("<!DOCTYPE html>"), "http" in page
        (True, False)
    """
    layers = result["layers"]
    pictures = []
    if measured_quantities(layers):
        pictures.append(("By depth", depth_figure(layers)))
    if any("spectrum" in layer for layer in layers):
        pictures.append(("Singular values, relative to the largest", spectrum_figure(layers)))
    bad = [layer["name"] for layer in layers if not layer["finite"]]
    title = f"Spectra of {result['checkpoint']}"
    parts = [
        "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>", f"<h1>{html.escape(title)}</h1>",
        f"<p>{len(layers)} matrices, format {html.escape(result['format'])}.</p>",
    ]  # fmt: skip
    if bad:
        parts.append(f"<p><strong>Not finite:</strong> {html.escape(', '.join(bad))}</p>")
    parts += [f"<h2>{html.escape(name)}</h2>{_picture(figure, name)}" for name, figure in pictures]
    parts += ["<h2>Matrices</h2>", f'<p class="note">{html.escape(_LEGEND)}</p>', _layer_table(layers)]
    if result["left_out"]:
        head = ["array", "shape", "dtype", "why"]
        rows = [[item["name"], str(list(item["shape"])), item["dtype"], item["reason"]] for item in result["left_out"]]
        parts += ["<h2>Not measured</h2>", _table(head, [[(cell, cell) for cell in row] for row in rows])]
    settings = [[(name, name), (str(value), str(value))] for name, value in result.get("settings", {}).items()]
    if settings:
        parts += ["<h2>Settings</h2>", _table(["setting", "value"], settings)]
    parts += [f"<script>{_SCRIPT}</script>", "</body></html>"]
    return "\n".join(parts) + "\n"


def _layer_table(layers: Sequence[Mapping[str, Any]]) -> str:
    quantities = measured_quantities(layers)
    head = ["matrix", "kind", "shape", "dtype"]
    for name in quantities:
        head.append(name.replace("_", " "))
        if name in ("sigma_max", "sigma_min"):
            head.append("residual")
    with_curve = any("spectrum" in layer for layer in layers)
    rows = []
    for layer in layers:
        size = layer["shape"][0] * layer["shape"][1]
        row = [
            (layer["name"], layer["name"]), (layer["kind"], layer["kind"]),
            (" x ".join(map(str, layer["shape"])), str(size)), (layer["dtype"], layer["dtype"]),
        ]  # fmt: skip
        for name in quantities:
            entry = layer.get(name)
            shown = format_quantity(entry) if layer["finite"] else "not finite"
            row.append((shown, "" if entry is None else _key(entry["value"])))
            if name in ("sigma_max", "sigma_min"):
                relative = _relative(entry)
                row.append(("-" if relative is None else f"{relative:.1e}", "" if relative is None else _key(relative)))
        rows.append([*row, (_curve(layer), "")] if with_curve else row)
    return _table([*head, "spectrum"] if with_curve else head, rows)


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """What stands in a cell as it is, and not as text."""

    code: str


def _table(head: Sequence[str], rows: Sequence[Sequence[tuple[str | _Drawing, str]]]) -> str:
    """Return a table; a cell is its text, or a drawing, and what it is sorted by."""
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td data-key="{html.escape(key)}"{_text_class(key)}>'
            f"{shown.code if isinstance(shown, _Drawing) else html.escape(shown)}</td>"
            for shown, key in row
        )
        + "</tr>\n"
        for row in rows
    )
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{lines}</tbody></table></div>"
    )


def _text_class(key: str) -> str:
    try:
        float(key or "0")
    except ValueError:
        return ' class="text"'
    return ""


def _key(value: float) -> str:
    value = float(value)
    return {float("inf"): "Infinity"}.get(value, "" if value != value else repr(value))


def _relative(entry: Mapping[str, Any] | None) -> float | None:
    if entry is None or not entry.get("value") or entry.get("residual") is None:
        return None
    return float(entry["residual"]) / float(entry["value"])


def _curve(layer: Mapping[str, Any]) -> str | _Drawing:
    """Return the sorted singular values as a small drawing."""
    if "spectrum" not in layer:
        return "-"
    values = [float(value) for value in layer["spectrum"]["value"]]
    ranks = [float(rank) for rank in layer["spectrum"]["rank"]]
    if not values or values[0] <= 0:
        return "-"
    step = max(1, len(values) // 32)
    points = " ".join(
        f"{80 * (rank - 1) / max(ranks[-1] - 1, 1):.1f},{1 + 18 * (1 - value / values[0]):.1f}"
        for rank, value in list(zip(ranks, values, strict=True))[::step]
    )
    return _Drawing(
        '<svg width="80" height="20" viewBox="0 0 80 20"><polyline fill="none" stroke="#0072B2" stroke-width="1.2" '
        f'points="{points}"/></svg>'
    )


def _picture(figure: Any, name: str) -> str:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of names in scripts that the font has not
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/svg+xml;base64,{data}">'
