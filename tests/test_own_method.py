"""The tutorial's code runs, and a method from outside the package is found in all three ways."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from normalis import models, shelf
from normalis.models.base import Autoencoder

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorials" / "own_method.md"
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    """Return (file or empty, code) of every block of the tutorial in a language."""
    found = BLOCK.findall(TUTORIAL.read_text(encoding="utf-8"))
    return [(file, code) for lang, file, code in found if lang == language]


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """The tutorial's files on the path, installed with the tutorial's entry points."""
    for file, code in blocks("python"):
        if file:
            (tmp_path / file).write_text(code, encoding="utf-8")
    info = tmp_path / "prefix_ae-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: prefix-ae\nVersion: 1.0\n")
    groups = tomllib.loads(blocks("toml")[0][1])["project"]["entry-points"]
    lines = [f"[{g}]\n{k} = {v}\n" for g, names in groups.items() for k, v in names.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    shelf.offered_by_packages.cache_clear()
    yield tmp_path
    shelf.offered_by_packages.cache_clear()
    for file, _ in blocks("python"):
        sys.modules.pop(file.removesuffix(".py"), None)


@pytest.mark.slow
def test_the_tutorials_code_runs(own_package):
    code = "\n".join(code for file, code in blocks("python") if not file)
    exec(compile(code, str(TUTORIAL), "exec"), {"__name__": "tutorial"})


def test_a_complete_method_takes_about_sixty_lines():
    (code,) = (code for file, code in blocks("python") if file == "prefix_ae.py")
    assert len(code.splitlines()) <= 70
    compile(code, "prefix_ae.py", "exec")


def test_a_method_is_found_by_class_by_module_and_by_entry_point(own_package):
    from prefix_ae import PrefixAE

    for method in (PrefixAE, "prefix_ae:PrefixAE", "prefix-ae"):
        model = models.build(method, image_size=32, hidden_dim=8, used=1)
        assert type(model) is PrefixAE
    assert models.model_names()[-1] == "prefix-ae"
    assert models.method_name(PrefixAE) == "prefix_ae:PrefixAE"
    assert models.method_name("prefix-ae") == "prefix-ae"


def test_a_package_cannot_take_the_name_of_a_built_in_method(own_package):
    entry_points = own_package / "prefix_ae-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text("[normalis.models]\nae = prefix_ae:PrefixAE\n")
    shelf.offered_by_packages.cache_clear()
    assert models.model_class("ae").__module__ == "normalis.models.ae"


def test_the_prefix_autoencoder_keeps_the_first_numbers(own_package):
    from prefix_ae import PrefixAE

    model = models.build(PrefixAE, image_size=32, hidden_dim=8, latent_dim=4)
    assert isinstance(model, Autoencoder)
    kept = model.keep(torch.ones(2, 4), torch.tensor([[1], [3]]))
    assert kept.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]


def test_the_command_line_lists_methods_of_other_packages(own_package):
    """In a process of its own, as a user would see it."""
    done = subprocess.run(
        [sys.executable, "-c", "from normalis import models; print(*models.model_names())"],
        env={**os.environ, "PYTHONPATH": str(own_package)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "prefix-ae" in done.stdout.split()
