"""What is typed on the command line, and what a run says, as values and words."""

from __future__ import annotations

import os
from typing import Any

import typer

__all__ = ["options_of", "typed_values", "use_threads", "wait_without_spinning"]


def typed_values(pairs: dict[str, str]) -> dict[str, Any]:
    """Read values as TOML would, else as text."""
    import tomllib

    typed: dict[str, Any] = {}
    for name, value in pairs.items():
        try:
            typed[name.replace("-", "_")] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            typed[name.replace("-", "_")] = value
    return typed


def options_of(pairs: list[str] | None) -> dict[str, Any] | None:
    """Read NAME=VALUE pairs; values as TOML would read them, else text."""
    given: dict[str, str] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"--option must be NAME=VALUE, got {pair!r}")
        given[name] = value
    return typed_values(given) or None


def wait_without_spinning() -> None:
    """Let threads that wait for each other sleep; call it before any numeric package is imported.

    Waiting threads of OpenMP and OpenBLAS spin by default. Beside another process on the same cores
    they burn the time that the working ones need (docs/reference/performance.md).
    """
    for name, value in _PATIENT.items():
        os.environ.setdefault(name, value)


_PATIENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
    "OPENBLAS_THREAD_TIMEOUT": "4",
}


def use_threads(count: int | None) -> None:
    """Fix the number of threads of everything numeric; None leaves the choice to each step."""
    if count is None:
        return
    for name in ("NORMALIS_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    import torch

    torch.set_num_threads(count)  # where it was imported before the environment was set
