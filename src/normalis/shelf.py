"""Tables of variants, and whether a name that was read, not typed, may decide what is imported.

A `Shelf` maps a name to ``"module:attribute"``, imported on use: a method, scorer, network, layout,
format or kind of object is one file and one line there. The two are one module, since what a table
does not list is what has to be trusted.

``"module:Class"`` is a way to use a method of one's own. In a file of somebody else the same words
would run their code, whoever's checksums the file bears. So names are resolved here alone, and
while a model is loaded only those of this package and of installed packages are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, entry_points
from pathlib import Path
from typing import Any

from normalis.errors import MissingExtraError, SettingsError, UntrustedError, did_you_mean

__all__ = [
    "Shelf", "import_named", "may_run", "named_by_a_file", "offered_by_packages", "restoring",
]  # fmt: skip


class Shelf(dict[str, str]):
    """A table of variants: name -> ``"module:attribute"``, or ``"module"`` for the module itself.

    Args:
        what: what the variants are, for messages: ``"method"``.
        targets: the table, in the order in which names are listed.
        group: entry points by which installed packages offer more.
    """

    def __init__(self, what: str, targets: Mapping[str, str], *, group: str = "") -> None:
        super().__init__(targets)
        self.what, self.group = what, group

    @property
    def offered(self) -> dict[str, str]:
        """Of other installed packages; a name of ours is never theirs."""
        found = offered_by_packages(self.group) if self.group else {}
        return {name: target for name, target in found.items() if name not in self}

    def names(self) -> list[str]:
        """Return all names, those of other packages last."""
        return [*self, *self.offered]

    def check(self, name: str) -> None:
        """Raise unless a name is on the shelf.

        Raises:
            SettingsError: naming the nearest one.
        """
        if name not in self and name not in self.offered:
            hint = did_you_mean(name, self.names())
            raise SettingsError(
                f"{self.what} must be one of {', '.join(self.names())}, got {name!r}{hint}"
            )

    def load(self, name: str) -> Any:
        """Return what a name stands for.

        Args:
            name: one of `names`, or ``"module:attribute"`` of one's own.

        Raises:
            SettingsError: if there is none of that name, or it cannot be imported.
            UntrustedError: if a file that is being loaded names what no package offers.
        """
        target = self.get(name) or self.offered.get(name)
        if target is None and not name.partition(":")[2]:
            self.check(name)
        return import_named(target or name, what=self.what, known=self._knows(target or name))

    def _knows(self, target: str) -> bool:
        """Return whether a target is of this package or offered by an installed one.

        What lies in the working folder came with the files there: it is not installed.
        """
        if target in self.values():
            return True
        offered = entry_points(group=self.group) if self.group else ()
        found = [e.dist for e in offered if e.value == target]
        return any(dist is not None and not _lies_here(dist) for dist in found)


@cache
def offered_by_packages(group: str) -> dict[str, str]:
    """Return what installed packages offer in a group of entry points."""
    return {e.name: e.value for e in entry_points(group=group)}


def _lies_here(package: Distribution) -> bool:
    return Path(str(package.locate_file(""))).resolve() == Path.cwd()


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
        target: a module and what it holds; a module alone stands for itself.
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
        found = import_module(module)
        return getattr(found, name) if name else found
    except MissingExtraError:
        raise
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"{what} {target!r} cannot be imported: {error}") from error
