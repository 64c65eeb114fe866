"""What is not installed is said with the line that installs it; the core needs none of it."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from normalis.datasets import open_dataset
from normalis.errors import MissingExtraError
from normalis.errors.extras import install_line
from normalis.research import packed
from normalis.research.records import Records

LINE = re.escape(f"needs the package 'pyarrow', which is not installed: {install_line('research')}")


@pytest.fixture
def no_arrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)


def test_records_without_pyarrow(no_arrow, tmp_path):
    with pytest.raises(MissingExtraError, match=f"records {LINE}"):
        Records(tmp_path).append("a", {"dataset": "x"})
    (tmp_path / packed.RECORDS).touch()
    with pytest.raises(MissingExtraError, match=LINE):
        list(packed.read(tmp_path))


def test_a_parquet_manifest_without_pyarrow(no_arrow, tmp_path):
    file = tmp_path / "list.parquet"
    file.touch()
    with pytest.raises(MissingExtraError, match=f"list.parquet: reading a Parquet table {LINE}"):
        open_dataset(file)


#: Extras, and what tests alone need; not there in a plain installation.
NOT_CORE = ("pyarrow", "skimage", "onnx", "onnxruntime", "ray", "pynetdicom", "highdicom",
            "starlette", "uvicorn", "gdcm", "pylibjpeg", "pandas")  # fmt: skip


def test_the_main_job_needs_no_extra(tmp_path):
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NOT_CORE!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
import numpy as np
from normalis.cli import app
x, new = np.random.default_rng(0).integers(0, 256, (2, 60, 32, 32), np.uint8)
np.save("x.npy", x)
np.savez("y.npz", train=x, test=new[:20], test_label=np.arange(20) % 2)
for command in (
    "check y.npz",
    "fit y.npz --out run --method pca --image-size 32 --device cpu",
    "score run x.npy --out scored --device cpu",
    "evaluate run y.npz --device cpu",
    "report scored --out page.html",
    "methods",
):
    app(command.split(), standalone_mode=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_the_list_of_core_packages_is_short():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) <= 15
    assert not any(line.startswith("scikit-image") for line in project["dependencies"])
    optional = project["optional-dependencies"]
    assert any(line.startswith("pyarrow") for line in optional["research"])


def _imported(file):
    """Top names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_make_test_installs_every_package_that_a_test_imports():
    # A package that happens to lie in a developer's environment hides that a fresh clone lacks it.
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    makefile = (root / "Makefile").read_text("utf-8")
    extras = re.search(r"-e '\.\[([\w,]*\btest\b[\w,]*)\]'", makefile)[1].split(",")
    lines = project["dependencies"] + [
        line for extra in extras for line in project["optional-dependencies"][extra]
    ]
    installed = {re.match(r"[\w.-]+", line)[0].lower() for line in lines}
    offered = metadata.packages_distributions()
    missing = {
        (file.name, name)
        for file in (root / "tests").rglob("*.py")
        for name in _imported(file)
        if name in offered and not {d.lower() for d in offered[name]} & {*installed, "normalis"}
    }
    assert not missing
