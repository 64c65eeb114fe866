"""Whether a name that was read, not typed, may decide what is imported.

``"module:Class"`` is a way to use a method of one's own. In a file of somebody else the same words
would run their code, whoever's checksums the file bears. So names are resolved here alone, and
while a model is loaded only those of this package and of installed packages are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from normalis.errors import SettingsError, UntrustedError

__all__ = ["import_named", "may_run", "named_by_a_file", "restoring"]

#: The file that is being loaded, and whether the user trusts it.
_FILE: ContextVar[tuple[str, bool] | None] = ContextVar("normalis_file", default=None)


@contextmanager
def named_by_a_file(file: Any, *, trust: bool = False) -> Iterator[None]:
    """Resolve only known names while the block runs, since a file chose them.

    Args:
        file: for the message.
        trust: whether the user said that code which the file names may run.
    """
    token = _FILE.set((str(file), trust))
    try:
        yield
    finally:
        _FILE.reset(token)


def restoring() -> bool:
    """Return whether a stored model is being loaded, which brings all that it needs."""
    return _FILE.get() is not None


def may_run() -> bool:
    """Return whether code may run that was named: by the user, or by a file that they trust."""
    return (_FILE.get() or ("", True))[1]


def import_named(target: str, *, what: str, known: bool) -> Any:
    """Return what ``"module:name"`` stands for.

    Args:
        target: a module and what it holds.
        what: what is being looked for, for messages.
        known: whether the target is of a table of ours or of an installed entry point.

    Raises:
        UntrustedError: if a file chose a target that is not known, and nobody trusts it.
        SettingsError: if it cannot be imported.
    """
    file, trusted = _FILE.get() or ("", True)
    if not (known or trusted):
        raise UntrustedError(
            f"{file}: names the {what} {target!r}, which is neither part of normalis nor of an "
            "installed package that offers it. To load it is to run whatever code is found by "
            "that name. If you trust who wrote the folder, and that code is yours or theirs, load "
            "with trust=True (on the command line --trust)"
        )
    module, _, name = target.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"{what} {target!r} cannot be imported: {error}") from error
