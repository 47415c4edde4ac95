"""The notebooks: each runs as Jupyter runs it, in a kernel of its own, without a warning, and shows what it draws."""

import os
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
# The kernel itself warns when it is told to stop, and would not stop.
WARNINGS_ARE_ERRORS = """
import warnings

warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel")
"""


def executed(path, size, *, seconds):
    """Run a notebook at a size, with a limit for each cell; an error in a cell is raised here."""
    notebook = jupytext.read(path)
    notebook.cells.insert(0, new_code_cell(WARNINGS_ARE_ERRORS))
    environment = {
        **os.environ,
        "SPECTRAX_NOTEBOOK_SIZE": size,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # Agg, with the pictures in the cells' outputs
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if size == "full":
        environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    client = NotebookClient(notebook, timeout=seconds, kernel_name="python3")
    return client.execute(env=environment, cwd=str(FOLDER))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("size", "seconds"),
    [
        pytest.param("small", 300, id="small"),
        pytest.param("full", 3600, marks=[pytest.mark.timeout(7200), pytest.mark.slow], id="full"),
    ],
)
def test_notebook_runs(path, size, seconds):
    notebook = executed(path, size, seconds=seconds)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert "".join(output.text for output in outputs if output.get("name") == "stderr") == ""
    assert any("image/png" in output.get("data", {}) for output in outputs), "no picture"


def test_false_claim_and_warning_fail(tmp_path):
    for line, message in (("assert 1 > 2", "AssertionError"), ("np.log(np.zeros(1))", "RuntimeWarning")):
        path = tmp_path / "notebook.py"
        path.write_text(f"# %%\nimport numpy as np\n\n{line}\n")
        with pytest.raises(Exception, match=message):
            executed(path, "small", seconds=60)


def test_every_notebook_is_one_and_is_listed():
    assert NOTEBOOKS
    contents = (FOLDER / "README.md").read_text()
    for path in NOTEBOOKS:
        cells = jupytext.read(path).cells
        assert cells[0].cell_type == "markdown"
        assert cells[0].source.startswith("# ")
        assert any("SPECTRAX_NOTEBOOK_SIZE" in cell.source for cell in cells)
        assert any(line.startswith("assert ") for cell in cells for line in cell.source.splitlines())
        assert f"]({path.name})" in contents
