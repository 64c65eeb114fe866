"""What the README says, works."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer

from normalis.cli import app
from small_runs import phantoms, write_pngs

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def command_lines():
    lines = [line.split("#")[0] for block in blocks("") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("normalis ")]


def test_it_is_short():
    assert len(README.splitlines()) <= 100


def test_it_says_how_to_install_before_anything_else():
    headings = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert headings[0] == "Install"
    assert "pip install . " in README


@pytest.mark.slow
def test_the_python_block_runs(tmp_path, monkeypatch):
    (block,) = blocks("python")
    assert "random_state=0" in block
    write_pngs(tmp_path / "normal_scans", phantoms(110))
    write_pngs(tmp_path / "new_scans", phantoms(4, seed=5))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(
        compile(block.replace("random_state=0", "random_state=0, epochs=1"), "README.md", "exec"),
        names,
    )
    assert names["scores"].shape == names["p"].shape == (4,)
    assert names["maps"].ndim == 3
    assert len(names["maps"]) == 4
    assert (tmp_path / "model/model.safetensors").is_file()
    np.testing.assert_array_equal(names["detector"].anomaly_score("new_scans/"), names["scores"])


@pytest.mark.parametrize("line", command_lines(), ids=" ".join)
def test_commands_and_their_options_exist(line):
    _, name, *arguments = line
    command = typer.main.get_command(app).commands[name]
    options = {o for p in command.params for o in p.opts}
    assert {a for a in arguments if a.startswith("--")} <= options
    required = [p for p in command.params if p.param_type_name == "argument" and p.required]
    given = [a for a in arguments if a.isupper() and "." not in a]
    assert len(given) >= len(required)


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []
