"""Names for persons that leave the hospital: a keyed hash, the same wherever the key is.

A pseudonym is HMAC-SHA256 of the id under a key of 32 random bytes, cut to 10 characters of base
32: there are 2**50, so that a million patients share none with a probability of 99.9 %. Who has the
key and a list of ids can find whose it is; who has not, cannot. DICOM UIDs become other UIDs below
``2.25`` the same way, so that tables still join with each other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from normalis.errors import SettingsError

__all__ = ["Pseudonyms", "no_pseudonyms", "replaced"]

_BYTES, _LENGTH = 32, 10
_BY_COLUMN: dict[str, str] = {
    "patient_id": "person", "patient": "person", "accession_number": "person",
    "study_uid": "uid", "series_uid": "uid", "sop_uid": "uid", "worst_sop_uid": "uid",
}  # fmt: skip


class Pseudonyms:
    """The pseudonyms of one key.

    Args:
        file: of the key; made, readable for its owner alone, if it is not there.

    Raises:
        SettingsError: if the file holds no key, or others may read it.
    """

    def __init__(self, file: Path) -> None:
        if not file.exists():
            _make(file)
        try:
            text = file.read_text(encoding="ascii").strip()
            mode = file.stat().st_mode
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{file}: the key of pseudonyms cannot be read ({error})"
            ) from error
        if os.name == "posix" and mode & 0o077:
            raise SettingsError(
                f"{file}: others may read this key, and with it find whose a pseudonym is; "
                f"run chmod 600 {file}"
            )
        try:
            self._key = bytes.fromhex(text)
        except ValueError:
            self._key = b""
        if len(self._key) != _BYTES:
            raise SettingsError(
                f"{file}: must hold a key of {2 * _BYTES} hexadecimal digits; give a file that is "
                "not there, and one is made"
            )

    def person(self, name: str) -> str:
        """Return the pseudonym of a patient or an accession number; an empty one stays empty."""
        if not name:
            return ""
        digest = base64.b32encode(self._digest("person", name)).decode("ascii")
        return digest[:_LENGTH].lower()

    def uid(self, uid: str) -> str:
        """Return another UID for a UID."""
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16], 'big')}" if uid else ""

    @property
    def identity(self) -> str:
        """What tells this key from others, and tells nothing of it."""
        return self.person("which key")

    def _digest(self, kind: str, name: str) -> bytes:
        text = f"{kind}\0{name}".encode("utf-8", "surrogateescape")
        return hmac.new(self._key, text, hashlib.sha256).digest()

    def __call__(self, column: str, value: str) -> str:
        """Return a cell of a table as it may leave the hospital."""
        kind = _BY_COLUMN.get(column)
        if kind is None:
            return value
        return self.uid(value) if kind == "uid" else self.person(value)


def no_pseudonyms(column: str, value: str) -> str:
    """Return a cell of a table as it is."""
    return value


def replaced(file: Path | None) -> Callable[[str, str], str]:
    """Return what turns cells of tables into those that are written.

    Args:
        file: of the key; None leaves all as it is.
    """
    return no_pseudonyms if file is None else Pseudonyms(file)


def _make(file: Path) -> None:
    """Write a new key that nobody else may read, at no moment."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another process was first
        return
    except OSError as error:
        raise SettingsError(f"{file}: no key of pseudonyms can be written ({error})") from error
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(_BYTES) + "\n")
