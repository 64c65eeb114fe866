"""What is typed on the command line, and what a run says, as values and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["rate_found", "typed_values"]


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


def rate_found(info: Mapping[str, Any]) -> str:
    """Say what rate was measured after a fit, with its interval; empty if none was."""
    measured = info.get("measured", {})
    if "rate" not in measured:
        return ""
    said = f"{measured['rate']:.1f} nats"
    if "rate_low" not in measured:  # a run of before there was one
        return said
    return f"{said} ({measured['rate_low']:.1f} to {measured['rate_high']:.1f})"
