"""Progress without a terminal is plain lines, also while a step reports nothing."""

import io
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from normalis.cli import data as data_module
from normalis.cli.console import progress
from normalis.cli.evaluate import _figures
from normalis.cli.values import use_threads
from normalis.datasets import Dataset
from normalis.evaluation.result import TableRow
from normalis.images import remarks

module = sys.modules["normalis.cli.console"]  # the package has a console of that name


@pytest.fixture
def heard(monkeypatch):
    """What goes to standard error, which is no terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(module, "errors", Console(file=stream, width=60))
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    return stream


def lines(heard, at_least):
    end = time.monotonic() + 20
    while heard.getvalue().count("\n") < at_least and time.monotonic() < end:
        time.sleep(0.005)
    return heard.getvalue().splitlines()


def test_a_silent_step_prints_its_time(heard):
    with progress("fit [ae-u]"):
        first = lines(heard, 2)[0]
    assert first.startswith("fit [ae-u]: ")
    assert first.endswith(" s")
    after = heard.getvalue()
    time.sleep(0.05)
    assert heard.getvalue() == after, "it must end with the step"


def test_a_line_says_how_far_and_how_long_and_never_breaks(heard):
    with progress("score") as shown:
        shown.update(512, 40_000, "a note [that] is long " * 5)
        said = next(line for line in lines(heard, 3) if "512" in line)
    assert "512 of 40000" in said
    assert " s left" in said
    assert said.rstrip().endswith("a note [that] is long")


def test_the_time_left_of_a_second_phase_is_its_own(monkeypatch):
    clock = iter([0.0, 100.0, 104.0])  # begun; the pictures begin; a line is written
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    lines = module._Lines("score", 30)
    lines.update(800, 800)
    lines.update(200, 800, "pictures")
    assert lines.line() == "score: 200 of 800, 104 s, about 12 s left, pictures"


def test_the_number_of_threads_reaches_everything(monkeypatch):
    import torch

    before = torch.get_num_threads()
    for name in ("NORMALIS_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    try:
        use_threads(2)
        assert torch.get_num_threads() == 2
        assert os.environ["NORMALIS_THREADS"] == "2"
    finally:
        torch.set_num_threads(before)


def test_waiting_threads_sleep_unless_the_user_says_otherwise():
    code = "from normalis.cli.values import *; import os; wait_without_spinning(); "
    code += "print(os.environ['GOMP_SPINCOUNT'], os.environ['OMP_WAIT_POLICY'])"
    bare = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    said = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
        ).stdout.split()
        for env in (bare, bare | {"OMP_WAIT_POLICY": "ACTIVE"})
    ]
    assert said == [["0", "PASSIVE"], ["0", "ACTIVE"]]


def test_remarks_of_other_packages_are_printed_once_a_kind(heard, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(module, "errors", module.PlainConsole(file=stream, width=200))
    remarks.taken()
    for i in range(5):
        for kind in "abcde"[: 1 + i % 2 * 4]:
            remarks.note("pydicom", f"odd {kind} {i}")
    module.print_remarks()
    assert stream.getvalue().splitlines() == [
        "remark of pydicom: odd a 0",
        "remark of pydicom: odd b 1",
        "remark of pydicom: odd c 1",
        "2 more kinds of remarks; --verbose shows them",
    ]


def test_figures_of_an_evaluation_fit_into_80_columns():
    names = ["auroc", "pixel_average_precision", "sensitivity_at_5_percent_fpr"]
    notes = [
        "",
        "does not beat contrast, mean_image_residual, pca16_residual and 3 more",
        "n lesions",
    ]
    numbers = {"value": 0.5, "low": 0.123, "high": 0.456, "n_images": 1200, "n_units": 1200}
    rows = [
        TableRow(section="ranking", subset=subset, name=name, note=note, **numbers)
        for subset in ("all", "without 0.999")
        for name, note in zip(names, notes, strict=True)
    ]
    stream = io.StringIO()
    module.PlainConsole(file=stream, width=80, force_terminal=True, color_system=None).print(
        _figures("Ranking: films", rows)
    )
    shown = stream.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("sensitivity at 5 % fpr") == shown.count("[2]") - 1 == 2
    assert "[1] does not beat contrast, mean image residual, pca16 residual and 3 more" in shown


def test_a_command_that_asks_no_labels_says_nothing_of_unclear_ones(monkeypatch, tmp_path):
    stream = io.StringIO()
    monkeypatch.setattr(data_module, "errors", module.PlainConsole(file=stream, width=200))
    data = Dataset(name="x", root=tmp_path, layout="x", samples=(), unclear="which are normal?")
    data_module.describe(data, labels=False)
    assert "unclear" not in stream.getvalue()
    data_module.describe(data)
    assert "unclear: which are normal?" in stream.getvalue()
