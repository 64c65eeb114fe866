"""Rules that select images by what their headers say: ``Modality=DX``, ``slices>=20``.

Grammar of one rule, ``KEY OPERATOR VALUE``:

====================  =============================================================
``Key=a,b``           equal to one of the values, whatever their case
``Key!=a,b``          equal to none of them
``Key~pattern``       a regular expression is found in the value, whatever its case
``Key<3``, ``Key>=3`` a number below, at most, above, at least
====================  =============================================================

A key is a DICOM keyword (``ViewPosition``), a column of a manifest, or a computed one: ``plane``,
``slices``, ``thickness`` (see `normalis.studies.index`). Several rules must all hold. Where a
header says nothing, a rule has no answer: *unknown* is not *no*, and is counted apart.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normalis.errors import SettingsError

__all__ = ["Rule", "answer", "parse", "parse_all"]

_SYNTAX = re.compile(r"\s*([A-Za-z_][\w .-]*?)\s*(!=|>=|<=|=|~|<|>)\s*(.*?)\s*\Z", re.DOTALL)
_NUMERIC: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        key: what is looked at.
        operator: ``=``, ``!=``, ``~``, ``<``, ``<=``, ``>`` or ``>=``.
        value: as it was written.
    """

    key: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}{self.operator}{self.value}"

    def holds(self, values: Mapping[str, Any]) -> bool | None:
        """Return whether the rule holds; None where nothing is known of its key.

        Args:
            values: what is known, by lower-case key.
        """
        found = values.get(self.key.lower())
        if found is None or str(found).strip() == "":
            return None
        if self.operator in _NUMERIC:
            number = _number(found)
            return None if number is None else _NUMERIC[self.operator](number, float(self.value))
        if self.operator == "~":
            return re.search(self.value, str(found), re.IGNORECASE) is not None
        same = any(_same(found, wanted) for wanted in self.value.split(","))
        return same if self.operator == "=" else not same


def parse(text: str) -> Rule:
    """Read one rule.

    Raises:
        SettingsError: if it is none; the message says what one looks like.
    """
    match = _SYNTAX.match(text)
    if match is None or not match[3]:
        raise SettingsError(
            f"a rule must be KEY=VALUE, KEY~PATTERN or KEY<NUMBER, got {text!r}; for instance "
            "Modality=DX or ViewPosition=PA,AP"
        )
    key, sign, value = match.groups()
    if sign in _NUMERIC and _number(value) is None:
        raise SettingsError(f"{key}{sign} must be followed by a number, got {value!r}")
    if sign == "~":
        try:
            re.compile(value)
        except re.error as error:
            raise SettingsError(
                f"{key}~ must be followed by a regular expression, got {value!r}: {error}"
            ) from error
    return Rule(key, sign, value)


def parse_all(texts: Sequence[str]) -> tuple[Rule, ...]:
    """Read rules that must all hold."""
    return tuple(map(parse, texts))


def answer(rules: Sequence[Rule], values: Mapping[str, Any]) -> tuple[bool | None, Rule | None]:
    """Say whether all rules hold, and which one decided.

    Args:
        rules: all must hold.
        values: what is known, by lower-case key.

    Returns:
        (True, None) if all hold; (False, the first that does not); (None, the first without an
        answer) where no rule fails and some have none.
    """
    unknown = None
    for rule in rules:
        held = rule.holds(values)
        if held is False:
            return False, rule
        if held is None and unknown is None:
            unknown = rule
    return (True, None) if unknown is None else (None, unknown)


def _number(value: Any) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _same(found: Any, wanted: str) -> bool:
    given, asked = str(found).strip().lower(), wanted.strip().lower()
    if given == asked:
        return True
    left, right = _number(given), _number(asked)
    return left is not None and left == right
