"""Sphinx configuration: MyST pages, the API reference from the docstrings, the pydata theme."""

import re
import tomllib
from pathlib import Path

_project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

project = "spectrax"
author = "The spectrax authors"
release = version = _project["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
default_role = "code"  # the docstrings are plain text with code between single backticks, as in Markdown

# The pages' own Python blocks are run by the tests, as plain code.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say shapes and dtypes, which the hints cannot
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Cost", "notes_style"), ("Derivatives", "notes_style"), ("Source", "notes_style")]

html_theme = "pydata_sphinx_theme"
html_title = f"spectrax {release}"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
}


def plain_text_to_rst(app, what, name, obj, options, lines):
    """Escape what plain text means literally and reStructuredText does not: stars and bars outside of code."""
    converted, in_table = [], False
    for line in lines:
        if line.startswith("|"):
            if not in_table:
                converted += ["", ".. code-block:: text", ""]
            in_table = True
            converted.append(f"   {line}")
            continue
        if in_table and line.strip():
            converted.append("")
        in_table = False
        if not line.lstrip().startswith((">>>", "...")):
            pieces = re.split(r"(`+[^`]*`+)", line)
            pieces[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", piece) for piece in pieces[::2]]
            line = "".join(pieces)
        converted.append(line)
    lines[:] = converted


def setup(app):
    """Convert before napoleon (priority 500) reads the sections."""
    app.connect("autodoc-process-docstring", plain_text_to_rst, priority=400)
