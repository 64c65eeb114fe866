"""An absent extra is answered by a line that works where the user is."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

from normalis.errors import MissingExtraError, extras
from normalis.errors.extras import install_line, packages_of, require

ROOT = Path(__file__).resolve().parents[1]


class Installed:
    """What the metadata of an installed package answer."""

    def __init__(self, direct_url=None):
        self.direct_url = direct_url

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.direct_url


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """The package lies in site-packages, and the shell's pip is this environment's."""
    monkeypatch.setattr(
        extras, "__file__", str(tmp_path / "lib/site-packages/normalis/errors/extras.py")
    )
    monkeypatch.setattr(
        extras.shutil, "which", lambda name: str(Path(sys.executable).parent / name)
    )
    lines = ["numpy>=2", "onnx>=1.17; extra == 'onnx'", "onnxruntime>=1.20; extra == \"onnx\"",
             "normalis[pacs]; extra == 'serve'", "pynetdicom>=3; extra == 'pacs'",
             "starlette>=0.40; extra == 'serve'"]  # fmt: skip
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    return monkeypatch


def test_in_a_clone_it_names_the_clone():
    assert install_line("onnx").endswith(f"pip install -e '{ROOT}[onnx]'")


def test_from_the_index_it_names_the_package(elsewhere):
    elsewhere.setattr(importlib.metadata, "distribution", lambda name: Installed())
    assert install_line("onnx") == "pip install 'normalis[onnx]'"


def test_from_a_wheel_it_names_the_packages_since_the_index_may_not_have_ours(elsewhere):
    there = Installed('{"url": "file:///somewhere/normalis.whl"}')
    elsewhere.setattr(importlib.metadata, "distribution", lambda name: there)
    assert install_line("onnx") == "pip install 'onnx>=1.17' 'onnxruntime>=1.20'"
    assert install_line("serve") == "pip install 'pynetdicom>=3' 'starlette>=0.40'"


def test_where_the_shell_has_another_pip_it_says_which_is_meant(elsewhere):
    elsewhere.setattr(extras.shutil, "which", lambda name: "/usr/bin/pip")
    elsewhere.setattr(importlib.metadata, "distribution", lambda name: Installed())
    assert install_line("onnx") == f"{sys.executable} -m pip install 'normalis[onnx]'"


@pytest.mark.parametrize("extra", ["codecs", "onnx", "ray"])
def test_the_installed_extras_are_known(extra):
    assert packages_of(extra)


def test_an_absent_module_is_answered_by_that_line():
    with pytest.raises(MissingExtraError) as error:
        require("no_such_module", extra="onnx", why="the engine onnx")
    assert str(error.value).startswith("the engine onnx needs the package 'no_such_module'")
    assert str(error.value).endswith(install_line("onnx"))


# -- what is imported is promised ------------------------------------------------------------------


def third_party():
    """Yield (file, module) of every import of the package that is not its own or Python's."""
    for file in sorted((ROOT / "src/normalis").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top != "normalis" and top not in sys.stdlib_module_names:
                    yield file.relative_to(ROOT), top


def test_every_import_is_of_a_declared_dependency():
    """What is there only because the tests need it is missing where users install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    own = [d for extra in extras if extra not in ("test", "dev", "docs") for d in extras[extra]]
    lines = [*project["dependencies"], *own]
    promised = {re.match(r"[\w.-]+", d)[0].lower().replace("_", "-") for d in lines}
    distributions = importlib.metadata.packages_distributions()
    missing = {
        (str(file), module)
        for file, module in third_party()
        if not promised & {d.lower().replace("_", "-") for d in distributions.get(module, [module])}
    }
    assert missing - {(file, module) for file, module in missing if module in INDIRECT} == set()


#: Modules that a declared package always brings, or that are where it runs (a notebook).
INDIRECT = {"click", "joblib", "requests", "IPython"}
