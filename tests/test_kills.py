"""Commands that are killed at steps on the file system, and what the same command leaves then."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill_steps.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize(
    ("command", "every", "signal"),
    [
        ("fit", 3, "SIGKILL"),
        ("fit --overwrite", 9, "SIGKILL"),
        ("score", 9, "SIGKILL"),
        ("score --overwrite", 13, "SIGKILL"),
        ("report", 2, "SIGKILL"),
        ("fit, trained", 11, "SIGTERM"),
        ("score", 23, "SIGINT"),
    ],
)
def test_a_killed_command_goes_on_to_the_same_result(command, every, signal):
    arguments = ["--only", command, "--every", str(every), "--signal", signal]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith(f"| {command} "))
    _, _, _, steps, kills, refused, differing, litter, _ = (cell.strip() for cell in row.split("|"))
    assert int(kills) >= int(steps) // every
    assert (refused, differing, litter) == ("0", "0", "0"), done.stdout
