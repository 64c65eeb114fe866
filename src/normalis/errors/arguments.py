"""What callers hand over, checked before anything is done with it: one message for each kind."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from normalis.errors import NormalisError, SettingsError

__all__ = ["check_kind", "path_of", "rate_of", "shown"]

_LONGEST = 60  # characters of a value that a message shows


def check_kind(name: str, value: Any, kind: str) -> None:
    """Refuse a setting of the wrong kind.

    Args:
        name: of the setting.
        value: what was given.
        kind: ``whole``, ``number``, ``text``, ``flag``, ``options`` (names with values) or
            ``texts`` (a list of them); with ``?`` after it None is allowed too.

    Raises:
        SettingsError: saying what must hold and what was given.
    """
    may_be_none, plain = kind.endswith("?"), kind.rstrip("?")
    words, fits = _KINDS[plain]
    if (value is None and may_be_none) or (value is not None and fits(value)):
        return
    none = " or None" if may_be_none else ""
    raise SettingsError(f"{name} must be {words}{none}, got {shown(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_texts(value: Any) -> bool:
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return listed and all(isinstance(one, str) for one in value)


_KINDS: dict[str, tuple[str, Any]] = {
    "whole": ("a whole number", lambda v: isinstance(v, Integral) and not isinstance(v, bool)),
    "number": ("a number", _is_number),
    "text": ("a text", lambda v: isinstance(v, str)),
    "flag": ("True or False", lambda v: type(v).__name__ in ("bool", "bool_")),
    "options": (
        "names with values (a dict)",
        lambda v: isinstance(v, Mapping) and all(isinstance(k, str) for k in v),
    ),
    "texts": ("a list of texts", _is_texts),
}


def rate_of(name: str, value: Any) -> float:
    """Return a share in (0, 1).

    Raises:
        SettingsError: if it is none.
    """
    if not _is_number(value) or not 0 < value < 1:
        raise SettingsError(f"{name} must be in (0, 1), got {shown(value)}")
    return float(value)


def path_of(name: str, value: Any, error: type[NormalisError] = SettingsError) -> Path:
    """Return a path.

    Raises:
        SettingsError: if it is none, or what ``error`` says.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise error(f"{name} must be a path, got {shown(value)}")
    if not os.fspath(value) or "\0" in os.fspath(value):
        raise error(f"{name} must be a path, and no empty one, got {os.fspath(value)!r}")
    return Path(value)


def shown(value: Any) -> str:
    """Return a value as a message shows it: itself if that is short, else its type."""
    if isinstance(value, str | bytes | bool | Real | type) or value is None:
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    text = repr(value) if isinstance(value, list | tuple | Mapping | set) else ""
    return text if text and len(text) <= _LONGEST else f"a value of type {type(value).__name__}"
