"""Every block of code in the tutorials and how-tos runs, on small generated data.

A page says by ``<!-- example: NAME -->`` which folders it speaks of. Blocks run in its order in
one empty folder: `console` through the command line, where `fit` trains for one epoch; `python` in
one namespace. Blocks of `sh` are for other machines: of them, commands and options are checked to
exist. `own_method.md` and the README have tests of their own.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from normalis.cli import app
from small_runs import anomalies, phantoms, write_pngs

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for room in ("tutorials", "howto")
    for page in (ROOT / "docs" / room).glob("*.md")
    if page.name not in ("own_method.md", "own_backbone.md")
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, *languages):
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, code) for language, code in found if language in languages]


def example(page):
    found = re.search(r"<!-- example: (\w+) -->", page.read_text(encoding="utf-8"))
    return found[1] if found else None


# -- the folders that pages speak of --------------------------------------------------------------


def flair():
    import nibabel as nib

    for folder, first, count in (("normal_volumes", 0, 8), ("new_volumes", 50, 2)):
        Path(folder).mkdir()
        for i in range(first, first + count):
            slices = phantoms(8, size=48, seed=i)
            volume = nib.Nifti1Image(np.moveaxis(slices, 0, 2), np.diag([1.0, 1, 4, 1]))
            volume.to_filename(f"{folder}/sub-{i:02d}_flair.nii.gz")


def few():
    write_pngs(Path("few_normals"), phantoms(44))


def scored():
    """A run, its scores, and folders of normal and of new images."""
    write_pngs(Path("normals"), phantoms(90))
    write_pngs(Path("normals_there"), phantoms(40, seed=5))
    write_pngs(Path("new"), anomalies(12))
    command("normalis fit normals --out run --members feature-knn --image-size 64")
    command("normalis score run new --out scored --no-overlays")


def archive():
    write_pngs(Path("normals"), phantoms(60))
    write_pngs(Path("archive"), np.concatenate([phantoms(12, seed=9), anomalies(12)]))


def leaky():
    images = phantoms(30)
    for folder, chosen in (("train/good", images[:20]), ("test/good", images[16:26])):
        paths = write_pngs(Path("leaky") / folder, chosen)
        for i, path in enumerate(paths):
            path.rename(path.with_name(f"p{i:02d}_{folder[:2]}.png"))
    write_pngs(Path("leaky/test/lesion"), anomalies(8))
    for i, path in enumerate(sorted(Path("leaky/test/lesion").iterdir())):
        path.rename(path.with_name(f"p{60 + i}_x.png"))
    Image.open("leaky/train/good/p00_tr.png").save("leaky/test/good/p99_te.png")


def notebook():
    write_pngs(Path("normals"), phantoms(60))
    write_pngs(Path("new"), anomalies(4))


EXAMPLES = {"notebook": notebook, "flair": flair, "few": few, "scored": scored, "leaky": leaky,
            "archive": archive}  # fmt: skip


# -- running them ---------------------------------------------------------------------------------


def command(line):
    """Run one line of a console; `fit` trains for one epoch."""
    _, *arguments = shlex.split(line)
    if arguments[0] == "fit":
        arguments += ["--epochs", "1"]
    result = CliRunner().invoke(app, arguments, standalone_mode=False)
    if result.exception is not None:
        raise AssertionError(f"{line}\n{result.output}") from result.exception
    return result.output


def commands(code):
    lines = re.sub(r"\\\n\s*", " ", code).splitlines()
    return [line[2:].split("  #")[0] for line in lines if line.startswith("$ ")]


RUN = [page for page in PAGES if blocks(page, "console", "python")]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch):
    if page.stem == "export_onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    if page.stem == "notebook":
        pytest.importorskip("pandas", reason="needs the extra notebook")
    if page.stem == "dicom_chest":
        pytest.importorskip("highdicom", reason="needs the extra pacs")
    monkeypatch.chdir(tmp_path)
    if prepare := example(page):
        EXAMPLES[prepare]()
    names = {"__name__": "page"}
    ran = 0
    for language, code in blocks(page, "console", "python"):
        if language == "python":
            exec(compile(code, str(page), "exec"), names)
            ran += 1
            continue
        for line in commands(code):
            command(line)
            ran += 1
    assert ran


def test_a_console_block_has_commands_of_ours_alone():
    for page in PAGES:
        for _, code in blocks(page, "console"):
            assert commands(code)
            assert all(line.startswith("normalis ") for line in commands(code)), page


def lines_of_sh():
    for page in PAGES:
        for _, code in blocks(page, "sh"):
            for line in re.sub(r"\\\n\s*", " ", code).splitlines():
                if re.match(r"(srun )?normalis ", line):
                    yield pytest.param(line.removeprefix("srun "), id=f"{page.stem}: {line[:60]}")


@pytest.mark.parametrize("line", [*lines_of_sh()])
def test_commands_for_other_machines_exist(line):
    _, *arguments = shlex.split(line.split("  #")[0])
    group = typer.main.get_command(app)
    found = group
    while arguments and hasattr(found, "commands") and arguments[0] in found.commands:
        found = found.commands[arguments.pop(0)]
    options = {o for p in found.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    if found is group:
        options |= {"--install-completion", "--show-completion"}
    assert {a for a in arguments if a.startswith("--")} <= options
    assert found is not group or all(a.startswith("--") for a in arguments)


def test_the_examples_are_used():
    assert {example(page) for page in PAGES} - {None} == set(EXAMPLES)
