"""Tables, pictures and records of results; they know plain dicts and arrays, and nothing else of spectrax."""

from spectrax.report.html import spectrum_page
from spectrax.report.landscapes import layer_condition_numbers, loss_line, loss_slices
from spectrax.report.plots import (
    condition_numbers,
    jacobian_condition_numbers,
    learning_curves,
    save_figure,
    singular_values,
)
from spectrax.report.records import from_json, read_records, strict, to_json, to_lines
from spectrax.report.spectra import (
    depth_figure,
    format_quantity,
    spectrum_figure,
    spectrum_table,
)
from spectrax.report.tables import (
    format_measurement,
    format_number,
    landscape_table,
    layer_table,
    summary_table,
    timing_table,
)

__all__ = [
    "condition_numbers",
    "depth_figure",
    "format_measurement",
    "format_number",
    "format_quantity",
    "from_json",
    "jacobian_condition_numbers",
    "landscape_table",
    "layer_condition_numbers",
    "layer_table",
    "learning_curves",
    "loss_line",
    "loss_slices",
    "read_records",
    "save_figure",
    "singular_values",
    "spectrum_figure",
    "spectrum_page",
    "spectrum_table",
    "strict",
    "summary_table",
    "timing_table",
    "to_json",
    "to_lines",
]
