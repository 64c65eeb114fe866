"""Imports point downwards only; slow packages are not imported where nobody asked for them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import normalis

ROOT = Path(normalis.__file__).parent

# From the bottom up, as drawn in docs/design.md. A module may import from the layers below its own.
LAYERS = [
    {"errors"},
    {"shelf"},
    {"entropy", "metrics", "images", "baselines", "duplicates", "files"},
    {"backbones"},
    {"models", "scorers", "datasets", "storage"},
    {"studies"},
    {"training", "loading", "calibration"},
    {"panel"},
    {"scoring"},
    {"audit"},
    {"fitting", "notebook"},
    {"fitted"},
    {"detector", "engines"},
    {"evaluation", "output"},
    {"report", "pacs"},
    {"serve"},
    {"cli"},
    {"research"},
    {"__main__"},
]
#: Scorers read models, as their contract says.
ALLOWED_SIDEWAYS = {
    ("scorers", "models"),
}


def modules():
    return sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py" or p.parent != ROOT)


def top(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "normalis" else None


def imported(path):
    """Yield the parts of normalis that a file imports, those for type checking left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "normalis":
            yield from (alias.name for alias in node.names if not alias.name.startswith("_"))
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield top(node.module)
        elif isinstance(node, ast.Import):
            yield from (top(alias.name) for alias in node.names)


def layer(part):
    return next((i for i, names in enumerate(LAYERS) if part in names), None)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    own = layer(part)
    assert own is not None, f"{part} has no layer; give it one here and in docs/design.md"
    for other in imported(path):
        if other in (None, part) or (part, other) in ALLOWED_SIDEWAYS:
            continue
        assert layer(other) is not None, f"{part} imports {other}, which has no layer"
        assert layer(other) < own, f"{part} imports {other}, which is not below it"


def test_the_tool_never_imports_the_laboratory():
    tool = [path for path in modules() if path.relative_to(ROOT).parts[0] != "research"]
    assert [path for path in tool if "research" in set(imported(path))] == []
    named = r'"normalis\.research[.:]'  # a table of variants would import it on use
    assert [path for path in tool if re.search(named, path.read_text())] == []


def test_models_and_datasets_do_not_know_each_other():
    for part, other in (("models", "datasets"), ("datasets", "models")):
        for path in (ROOT / part).rglob("*.py"):
            assert other not in set(imported(path)), path


SLOW = ("torch", "sklearn", "scipy", "pydicom", "nibabel", "matplotlib", "pyarrow", "numba", "ray")


@pytest.mark.parametrize(
    "module",
    [
        "normalis",
        "normalis.cli",
        "normalis.models",
        "normalis.research.experiments",
        "normalis.research.paired",
        "normalis.research.records",
        "normalis.research.reproduce",
        "normalis.storage",
        "normalis.training.settings",
    ],
)
def test_slow_packages_are_imported_on_use(module):
    code = f"import sys, {module}; print(*(m for m in {SLOW!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_everything_listed_is_importable():
    for name in normalis.__all__:
        assert getattr(normalis, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        normalis.nothing  # noqa: B018
