"""The distribution: what it holds, what it needs, what importing it costs, and what it says beside a rival."""

import importlib
import os
import re
import statistics
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import spectrax
from spectrax import installation

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGE = ROOT / "spectrax"


def python(code, *, path=None, **environment):
    """Run `code` in a new interpreter that sees the checkout, and return what it printed, both streams."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path)!r})\n{code}" if path else code]
    own = {**os.environ, **environment}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=own)
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the project's files by the build backend itself, without an installation."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        yield archive


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    present = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    assert packed == {name for name in present if "__pycache__" not in name}
    assert "spectrax/py.typed" in packed


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["Name"] == "jax-spectrax"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    extras = {"aot", "bench", "bench-torch", "demo", "docs", "gguf", "onnx", "test"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    assert any(file.endswith("/licenses/LICENSE") for file in wheel.namelist())
    (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "spectrax = spectrax.cli:main" in wheel.read(entry).decode()


def test_console_script_points_at_a_function():
    module, _, function = PROJECT["scripts"]["spectrax"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def requirement(text: str) -> tuple[str, str | None]:
    """Split "name[extra]>=bound" into its name and its bound (None without one)."""
    match = re.fullmatch(r"([A-Za-z0-9-]+)(?:\[[a-z,]+\])?(?:>=([0-9.]+))?", text)
    assert match, f"{text!r} is not of the form name>=bound: an upper cap breaks users without being tested"
    return match[1], match[2]


def test_core_dependencies():
    assert {requirement(text)[0] for text in PROJECT["dependencies"]} == {
        "chex",
        "flax",
        "jax",
        "jaxlib",
        "numpy",
        "optax",
    }


def test_oldest_versions_are_the_lower_bounds():
    extras = PROJECT["optional-dependencies"]
    for_users = [*PROJECT["dependencies"], *extras["demo"], *extras["gguf"], *extras["onnx"]]
    lower = dict(map(requirement, [*for_users, *extras["test"]]))
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    pinned = {line.partition("==")[0]: line.partition("==")[2] for line in lines if "==" in line}
    assert {name: lower.get(name) for name in pinned} == pinned
    unpinned = {requirement(text)[0] for text in for_users} - set(pinned)
    assert not unpinned


def test_version_is_said_alike_everywhere():
    assert spectrax.__version__ == PROJECT["version"]
    assert re.search(rf"^## {re.escape(PROJECT['version'])}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_public_workflow_runs_every_python_that_is_claimed():
    claimed = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert claimed
    assert [version for version in claimed if f'"{version}"' not in workflow] == []


def test_import_costs_little_more_than_jax_and_optax(tmp_path):
    # Processor time, since wall time on a shared machine measures the neighbours; import runs on one thread and waits
    # for nothing but files, which the first run has brought into memory and compiled to bytecode, as for a user.
    code = "import time, jax, optax\nstart = time.process_time()\nimport spectrax\nprint(time.process_time() - start)"
    environment = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    seconds = [float(python(code, **environment)[0]) for _ in range(6)][1:]
    assert statistics.median(seconds) <= 0.3, f"importing spectrax cost {seconds} seconds more than jax and optax"


def test_import_leaves_optional_and_heavy_packages_alone():
    heavy = ["equinox", "flax", "lineax", "matplotlib", "mlxtend", "orbax", "pandas", "rich", "sklearn"]
    out, _ = python(f"import sys, spectrax\nprint([name for name in {heavy} if name in sys.modules])")
    assert out.strip() == "[]"


def test_import_neither_warns_nor_starts_a_backend_nor_touches_the_configuration():
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import jax; before = dict(jax.config.values)\n"
        "import spectrax\n"
        "assert dict(jax.config.values) == before\n"
        "from jax._src import xla_bridge; assert not xla_bridge._backends, xla_bridge._backends\n"
    )
    out, err = python(code)
    assert (out, err) == ("", "")


def rival(folder, name, version="9.9"):
    """Lay the metadata of a distribution into `folder`, as an installer would."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_no_collision_here():
    assert installation.rival_distributions() == ()


@pytest.mark.parametrize("names", [["spectrax"], ["spectrax-lib"], ["spectrax", "spectrax-lib"]])
def test_rival_distribution_is_named_once_where_it_is_imported(tmp_path, names):
    for name in names:
        rival(tmp_path, name)
    code = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import spectrax\n"
        "    import spectrax.checks\n"
        "    from spectrax import installation\n"
        "    installation.warn_if_shadowed()\n"
        "for warning in caught:\n"
        "    assert issubclass(warning.category, UserWarning)\n"
        "    print(warning.filename, warning.message)\n"
    )
    out, _ = python(code, path=tmp_path)
    (line,) = out.splitlines()
    assert line.startswith("<string>")
    assert all(f"{name} 9.9" in line for name in names)
    assert "pip uninstall" in line


def test_our_own_metadata_and_other_names_are_no_collision(tmp_path):
    rival(tmp_path, "jax-spectrax")
    rival(tmp_path, "spectrax-plots")
    _, err = python("import spectrax", path=tmp_path)
    assert err == ""
