"""What the package offers by name: importable, typed as what it is, and documented by examples."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import normalis

SOURCE = Path(normalis.__file__).parent
ROOT = Path(__file__).resolve().parents[1]


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(("normalis", *(p for p in parts if p not in ("__init__", "__main__"))))


def test_public_names_are_those_that_can_be_imported():
    assert sorted(normalis.__all__) == normalis.__dir__()
    for name in normalis.__all__:
        assert getattr(normalis, name) is not None
    assert set(normalis._LAZY) | {"__version__"} == set(normalis.__all__)


@pytest.mark.parametrize("name", [n for n in modules() if ".engines" not in n])
def test_what_a_module_lists_is_there(name):
    module = importlib.import_module(name)
    for listed in getattr(module, "__all__", ()):
        assert hasattr(module, listed), f"{name} lists {listed}"


def own_names(path):
    """Functions and classes of a file without an underscore; commands are offered by their app."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        is_function = isinstance(node, ast.FunctionDef) and not node.decorator_list
        if (is_function or isinstance(node, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_what_a_module_does_not_list_is_private(path):
    listed = re.search(r"^__all__ = (\[.*?\])", path.read_text(encoding="utf-8"), re.S | re.M)
    if listed is not None:
        assert set(own_names(path)) <= set(ast.literal_eval(listed[1]))


def test_objects_that_are_named_are_there():
    named = re.compile(r"`(normalis(?:\.\w+)+)`")
    files = [*SOURCE.rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    mentioned = {m for file in files for m in named.findall(file.read_text(encoding="utf-8"))}
    assert [mention for mention in sorted(mentioned) if not is_there(mention)] == []


def is_there(mention):
    """Whether a dotted name is a module, or something in one."""
    parts = mention.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if part in getattr(found, "__dataclass_fields__", ()):
                return True
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


WRONG = """
from normalis import AnomalyDetector, FittedDetector
import normalis

detector = AnomalyDetector(method="pca")
detector.fitt("scans")
AnomalyDetector(epoch=3)
FittedDetector.load("run").anomaly_scores("scans")
normalis.evaluates
"""


@pytest.mark.slow
def test_a_type_checker_knows_the_public_names(tmp_path):
    pytest.importorskip("mypy", reason="mypy is of the extra dev")
    (tmp_path / "wrong.py").write_text(WRONG)
    options = ["--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "wrong.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"MYPYPATH": str(SOURCE.parent), "PATH": "/usr/bin:/bin"},
    )
    wrong = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line]
    assert wrong == [6, 7, 8, 9], done.stdout + done.stderr
    for said in ('no attribute "fitt"', '"epoch"', 'no attribute "anomaly_scores"', '"evaluates"'):
        assert said in done.stdout


def with_examples():
    for path in sorted(SOURCE.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(SOURCE).with_suffix("").parts
            yield ".".join(("normalis", *(p for p in parts if p != "__init__")))


@pytest.mark.parametrize("name", list(with_examples()))
def test_examples_in_docstrings_hold(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
