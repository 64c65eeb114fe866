"""Who may read: a file of names and scrypt hashes, sessions in memory, a lock after many failures.

A line of the file is JSON: name, salt and hash in hexadecimal digits. Passwords are never stored,
and the file may be readable by the service alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from normalis.errors import SettingsError
from normalis.storage import write_atomically

__all__ = ["Session", "Sessions", "Users", "add_user"]

_COST = {"n": 2**14, "r": 8, "p": 1, "maxmem": 64 * 2**20}
_SHORTEST = 10
_FAILURES, _LOCKED_S = 10, 300.0
SESSION_S = 8 * 3600.0


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, dklen=32, **_COST)


def add_user(file: Path, name: str, password: str) -> None:
    """Add a user to a file, or change the password of one.

    Raises:
        SettingsError: if the name or password will not do, or the file cannot be read.
    """
    if not name or not name.isprintable() or len(name) > 64:
        raise SettingsError(f"a user's name must be 1 to 64 printable characters, got {name!r}")
    if len(password) < _SHORTEST:
        raise SettingsError(f"a password must have at least {_SHORTEST} characters")
    known = Users.read(file).known if file.exists() else {}
    salt = secrets.token_bytes(16)
    known[name] = (salt, _hash(password, salt))
    lines = [
        json.dumps({"name": n, "salt": s.hex(), "hash": h.hex()}) for n, (s, h) in known.items()
    ]

    def write(part: Path) -> None:
        part.touch(mode=0o600)
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")

    write_atomically(file, write)
    file.chmod(0o600)


@dataclass
class Users:
    """Names with their salted hashes.

    Attributes:
        known: name -> (salt, hash).
        now: the clock.
    """

    known: dict[str, tuple[bytes, bytes]]
    now: Callable[[], float] = time.monotonic
    _failed: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Users:
        """Read a file that `add_user` wrote.

        Raises:
            SettingsError: if it cannot be read, or holds nobody.
        """
        known = {}
        try:
            for line in file.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                known[str(entry["name"])] = (
                    bytes.fromhex(entry["salt"]),
                    bytes.fromhex(entry["hash"]),
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{file}: cannot be read as a file of users ({error}); add users with "
                "normalis serve-user FILE NAME"
            ) from error
        if not known:
            raise SettingsError(f"{file}: holds no user; add one with normalis serve-user")
        return cls(known)

    def check(self, name: str, password: str) -> bool:
        """Return whether a password is a user's; a name is locked after many failures."""
        recent = [t for t in self._failed.get(name, []) if self.now() - t < _LOCKED_S]
        if len(recent) >= _FAILURES:
            return False
        salt, kept = self.known.get(name, (b"\0" * 16, b"\0" * 32))
        right = hmac.compare_digest(_hash(password, salt), kept) and name in self.known
        self._failed[name] = [] if right else [*recent, self.now()]
        return right


@dataclass(frozen=True)
class Session:
    """Somebody who has logged in.

    Attributes:
        user: the name.
        csrf: what a form must send along.
        ends: when it is over.
    """

    user: str
    csrf: str
    ends: float


class Sessions:
    """Sessions in memory: a restart logs everyone out."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._open: dict[str, Session] = {}

    def begin(self, user: str) -> str:
        """Return the token of a new session."""
        self._open = {t: s for t, s in self._open.items() if s.ends > self.now()}
        token = secrets.token_urlsafe(32)
        self._open[token] = Session(user, secrets.token_urlsafe(32), self.now() + SESSION_S)
        return token

    def find(self, token: str) -> Session | None:
        """Return the session of a token; None if there is none, or it is over."""
        session = self._open.get(token)
        return session if session is not None and session.ends > self.now() else None

    def end(self, token: str) -> None:
        """End a session."""
        self._open.pop(token, None)
