"""The documents: what they promise exists, what they show runs, and what is public stands in them."""

import importlib
import inspect
import os
import pkgutil
import re
from pathlib import Path

import jax
import pytest

import spectrax

ROOT = Path(__file__).parents[1]
SKIPPED_FOLDERS = {"__pycache__", "_build", "build", "dist", "generated", "runs"}


def project_files():
    """Every file that belongs to the project: no caches, no environments, no build products."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            name for name in folders if name not in SKIPPED_FOLDERS and (name[0] != "." or name in {".ci", ".github"})
        ]
        for name in files:
            yield Path(folder) / name


def text_files():
    for path in project_files():
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


PAGES = sorted(path for path in project_files() if path.suffix == ".md")


def page_id(path):
    return path.relative_to(ROOT).as_posix()


# Public symbols.


def public_packages():
    """Every package with an `__all__`: what it lists is public."""
    yield spectrax
    for module in pkgutil.walk_packages(spectrax.__path__, "spectrax."):
        if module.ispkg:
            package = importlib.import_module(module.name)
            if hasattr(package, "__all__"):
                yield package


def public_symbols():
    """What the packages list; where that is a module (`checkpoints`, `models`), its functions as well."""
    for package in public_packages():
        for name in package.__all__:
            symbol = getattr(package, name)
            yield f"{package.__name__}.{name}", symbol
            if inspect.ismodule(symbol) and not hasattr(symbol, "__path__"):
                for inner, function in inspect.getmembers(symbol, inspect.isfunction):
                    if function.__module__ == symbol.__name__ and not inner.startswith("_"):
                        yield f"{symbol.__name__}.{inner}", function


def reference_entries():
    """The full names in docs/api.md: each entry of an autosummary, under the module that was named last."""
    module, inside = "spectrax", False
    for line in (ROOT / "docs" / "api.md").read_text().splitlines():
        if match := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = match[1]
        elif re.match(r"\.\. autosummary::", line):
            inside = True
        elif line.strip() and not line.startswith(" "):
            inside = False
        elif inside and re.fullmatch(r" +[A-Za-z_][\w.]*", line):
            yield f"{module}.{line.strip()}"


def resolve(full_name):
    parts = full_name.split(".")
    found = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:depth]))
        found = getattr(found, part)
    return found


def test_api_reference_names_only_what_exists():
    missing = []
    for entry in reference_entries():
        try:
            resolve(entry)
        except (AttributeError, ImportError):
            missing.append(entry)
    assert not missing


def test_every_public_symbol_stands_in_the_api_reference():
    entries = [resolve(entry) for entry in reference_entries()]
    assert entries
    assert [name for name, symbol in public_symbols() if not any(symbol is entry for entry in entries)] == []


@pytest.mark.parametrize("package", list(public_packages()), ids=lambda package: package.__name__)
def test_all_is_sorted_and_exists(package):
    assert list(package.__all__) == sorted(package.__all__)
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


def public_callables():
    seen = {}
    for name, symbol in public_symbols():
        if inspect.isfunction(symbol) or inspect.isclass(symbol):
            seen.setdefault(id(symbol), (name, symbol))
    return [pytest.param(symbol, id=name) for name, symbol in seen.values()]


@pytest.mark.parametrize("symbol", public_callables())
def test_docstring_of_a_public_symbol_is_a_contract(symbol):
    doc = inspect.getdoc(symbol) or ""
    missing = [] if re.match(r"\S.*\.(\n\n|$)", doc) else ["a first line that ends in a full stop"]
    if inspect.isfunction(symbol):
        signature = inspect.signature(symbol)
        if signature.parameters and "\nArgs:\n" not in doc:
            missing.append("Args:")
        if signature.return_annotation not in (None, "None") and "\nReturns:\n" not in doc:
            missing.append("Returns:")
        if ">>> " not in doc:
            missing.append("an example that runs (>>>)")
    if inspect.isclass(symbol):
        for name, member in inspect.getmembers(symbol):
            function = member.fget if isinstance(member, property) else member
            ours = inspect.isfunction(function) and function.__module__.startswith("spectrax")
            if ours and not name.startswith("_") and not inspect.getdoc(getattr(symbol, name)):
                missing.append(f"a docstring of {name}")
    assert not missing


# What the pages show.


def code_blocks(path):
    """The Python blocks of a page, each preceded by empty lines so that a traceback names the page's own line."""
    text = path.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield "\n" * text.count("\n", 0, match.start(1)) + match[1]


@pytest.mark.parametrize("page", [page for page in PAGES if "```python\n" in page.read_text()], ids=page_id)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    # As a reader has it: Optax's own Adam, run without jit, is not written for strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        for block in code_blocks(page):
            exec(compile(block, page, "exec"), namespace)


def test_readme_has_an_example_that_runs():
    blocks = list(code_blocks(ROOT / "README.md"))
    assert any("flax" in block for block in blocks)
    assert any("add_spectral_penalty" in block for block in blocks)


@pytest.mark.parametrize(
    ("extra", "ending"), [("demo", r"\.venv/bin/spectrax train .+"), ("test", r"\.venv/bin/python -m pytest( .+)?")]
)
def test_readme_has_one_line_for_each_of_the_two_commands(extra, ending):
    # .ci/run takes both lines out of the README by the same beginning and ending. Each makes its own environment, since
    # many systems refuse to install packages outside one.
    lines = (ROOT / "README.md").read_text().splitlines()
    commands = [line for line in lines if re.fullmatch(rf"python3 -m venv \.venv && .* && {ending}", line)]
    assert len(commands) == 1
    assert f".venv/bin/pip install '.[{extra}]'" in commands[0]


def heading_anchors(path):
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_to_files_of_the_project_lead_somewhere(page):
    broken = []
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in heading_anchors(path)):
            broken.append(target)
    assert not broken


# What no file may hold.


def test_no_file_names_a_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.}$-])/(work|root|home|tmp|farm|Users)/\w")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path, text in text_files()
        if (match := pattern.search(text)) is not None
    ]
    assert not found


def test_no_file_names_a_package_registry():
    pattern = re.compile(r"pypi\.org|pythonhosted\.org|npmjs\.(org|com)|deb\.debian\.org")
    assert [page_id(path) for path, text in text_files() if pattern.search(text)] == []
