"""What the service knows, in one SQLite file that survives a crash at any moment.

States of a study: ``waiting`` (for quiet, or to be tried again) -> ``running`` -> ``scored``, or
``failed`` when it was tried too often. States of a result object: ``waiting`` -> ``kept`` (the PACS
was asked and has it), ``sent`` (it said so), or ``dead`` when it was tried too often. After a crash
what was running waits again. The audit table only grows.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normalis.errors import RunError

__all__ = ["MOST_TRIES", "REVIEW_STATES", "Job", "Store", "later"]

REVIEW_STATES = ("new", "seen", "agree", "disagree")

#: Tries after which a study or an object is given up until somebody asks for it.
MOST_TRIES = 8

_SCHEMA = """
CREATE TABLE IF NOT EXISTS instance(
    sop TEXT PRIMARY KEY, study TEXT NOT NULL, series TEXT, sop_class TEXT, path TEXT NOT NULL,
    sender TEXT, arrived REAL NOT NULL);
CREATE INDEX IF NOT EXISTS instance_study ON instance(study);
CREATE TABLE IF NOT EXISTS study(
    uid TEXT PRIMARY KEY, state TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL, arrived REAL NOT NULL, error TEXT NOT NULL DEFAULT '',
    result TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS outbox(
    sop TEXT PRIMARY KEY, study TEXT NOT NULL, path TEXT NOT NULL, state TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS review(
    study TEXT PRIMARY KEY, state TEXT NOT NULL, note TEXT NOT NULL DEFAULT '', who TEXT NOT NULL,
    at REAL NOT NULL, version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS audit(
    at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL, study TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '');
"""


@dataclass(frozen=True)
class Job:
    """A study that is to be scored.

    Attributes:
        study: its UID.
        tries: how often it was tried before.
        paths: its files.
    """

    study: str
    tries: int
    paths: tuple[Path, ...]


def later(tries: int) -> float:
    """Return the seconds until something that failed is tried again: longer each time."""
    return float(min(2.0**tries * 10, 3600))


class Store:
    """The state of the service.

    Args:
        folder: made if it is not there, readable by its owner alone.
        now: the clock, seconds since 1970.
    """

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        self.folder, self.now = folder, now
        self.spool, self.outgoing = folder / "spool", folder / "results"
        for made in (folder, self.spool, self.outgoing):
            made.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(
                folder / "normalis.sqlite", check_same_thread=False, isolation_level=None
            )
            self._db.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"{folder / 'normalis.sqlite'}: cannot be used ({error}); it is the service's "
                "memory: restore it from a backup, or choose another --data"
            ) from error
        self._after_a_crash()

    def _after_a_crash(self) -> None:
        """Let what was being scored wait again; give up what ended the process too often."""
        for uid, tries in self.run("SELECT uid,tries FROM study WHERE state='running'"):
            why = f"the service ended {tries} times while it scored this study"
            if tries >= MOST_TRIES:
                self.run("UPDATE study SET state='failed', error=? WHERE uid=?", why, uid)
                self.note("normalis", "not scored", uid, why=why, last=True)
                continue
            due = self.now() + (later(tries) if tries > 1 else 0)  # others first
            self.run("UPDATE study SET state='waiting', not_before=? WHERE uid=?", due, uid)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def run(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """Execute one statement; return its rows."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def together(self, statements: Iterable[tuple[str, Sequence[Any]]]) -> None:
        """Execute several statements, all or none."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, values in statements:
                    self._db.execute(sql, tuple(values))
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def note(self, who: str, what: str, study: str = "", **detail: Any) -> None:
        """Add a line to the audit."""
        said = json.dumps(detail, default=str) if detail else ""
        self.run("INSERT INTO audit VALUES(?,?,?,?,?)", self.now(), who, what, study, said)

    # --- in ---

    def received(
        self, *, sop: str, study: str, series: str, sop_class: str, path: Path, sender: str,
        quiet_s: float,
    ) -> None:  # fmt: skip
        """Note a file that lies in the spool; its study waits until nothing came for a while."""
        now = self.now()
        self.together(
            [
                (
                    "INSERT OR REPLACE INTO instance VALUES(?,?,?,?,?,?,?)",
                    (sop, study, series, sop_class, str(path), sender, now),
                ),
                (
                    "INSERT INTO study(uid,state,not_before,arrived) VALUES(?,'waiting',?,?) "
                    "ON CONFLICT(uid) DO UPDATE SET state='waiting', tries=0, error='', "
                    "not_before=excluded.not_before",
                    (study, now + quiet_s, now),
                ),
                (
                    "INSERT INTO audit VALUES(?,?,?,?,?)",
                    (now, sender, "received", study, json.dumps({"sop": sop})),
                ),
            ]
        )

    def next_job(self) -> Job | None:
        """Take the study that has waited longest, if one is due."""
        with self._lock:
            due = self.run(
                "SELECT uid,tries FROM study WHERE state='waiting' AND not_before<=? "
                "ORDER BY not_before LIMIT 1",
                self.now(),
            )
            if not due:
                return None
            uid, tries = due[0]
            self.run("UPDATE study SET state='running', tries=tries+1 WHERE uid=?", uid)
            rows = self.run("SELECT path FROM instance WHERE study=? ORDER BY series,sop", uid)
            return Job(uid, tries, tuple(self.spool / Path(row[0]).name for row in rows))

    def scored(self, study: str, result: dict[str, Any], objects: dict[str, Path]) -> None:
        """Keep what a study scored, and put its result objects into the outbox.

        A late image meanwhile made the study wait again; then it stays so.
        """
        statements: list[tuple[str, Sequence[Any]]] = [
            ("UPDATE study SET result=? WHERE uid=?", (json.dumps(result), study)),
            ("UPDATE study SET state='scored', error='' WHERE uid=? AND state='running'", (study,)),
        ]
        statements += [
            (
                "INSERT INTO outbox(sop,study,path,state) VALUES(?,?,?,'waiting') ON CONFLICT(sop) "
                "DO UPDATE SET path=excluded.path, state='waiting', tries=0, not_before=0, "
                "error=''",
                (sop, study, str(path)),
            )
            for sop, path in objects.items()
        ]
        self.together(statements)
        self.note("normalis", "scored", study, objects=len(objects))

    def not_scored(self, job: Job, why: str, *, again: bool = True) -> None:
        """Note that a study could not be scored; it is tried again, later each time."""
        last = not again or job.tries + 1 >= MOST_TRIES
        state = "failed" if last else "waiting"
        due = self.now() + later(job.tries)
        self.run(
            "UPDATE study SET state=?, error=?, not_before=? WHERE uid=? AND state='running'",
            state, why[:500], due, job.study,
        )  # fmt: skip
        self.note("normalis", "not scored", job.study, why=why[:200], last=last)

    # --- out ---

    def due_objects(self, most: int = 50) -> list[tuple[str, str, Path]]:
        """Return result objects that are to be sent now: UID, study, file."""
        rows = self.run(
            "SELECT sop,study,path FROM outbox WHERE state='waiting' AND not_before<=? "
            "ORDER BY tries,study LIMIT ?",
            self.now(), most,
        )  # fmt: skip
        return [(sop, study, self._result(path)) for sop, study, path in rows]

    def _result(self, path: str) -> Path:
        """Return where a result object lies now, wherever the folder lay when it was written."""
        return self.outgoing.joinpath(*Path(path).parts[-2:])

    def sent(self, sop: str, state: str, problem: str) -> None:
        """Note what became of a result object: ``kept``, ``sent``, ``refused`` or ``gone``.

        A refused one is tried again, later each time. One that never came to the peer says why it
        waits, and no more: that is the peer's fault, not its own. One that the peer took and that
        could not be found there afterwards is sent once more: the peer may have ended between.
        """
        (tries,) = self.run("SELECT tries FROM outbox WHERE sop=?", sop)[0]
        due, tries = 0.0, tries + (state != "unreached")
        doubtful = state == "sent" and tries == 1
        if state == "refused" or doubtful:
            due = self.now() + later(tries - 1)
        if state in ("refused", "unreached") or doubtful:
            state = "dead" if tries >= MOST_TRIES else "waiting"
        self.run(
            "UPDATE outbox SET state=?, tries=?, not_before=?, error=? WHERE sop=?",
            "dead" if state == "gone" else state, tries, due, problem[:300], sop,
        )  # fmt: skip

    def send_again(self, study: str, who: str) -> int:
        """Let what was given up be tried again; return the number of objects and studies."""
        with self._lock:
            dead = len(self.run("SELECT 1 FROM outbox WHERE study=? AND state='dead'", study))
            failed = len(self.run("SELECT 1 FROM study WHERE uid=? AND state='failed'", study))
            self.run(
                "UPDATE outbox SET state='waiting', tries=0, not_before=0 "
                "WHERE study=? AND state='dead'", study,
            )  # fmt: skip
            self.run(
                "UPDATE study SET state='waiting', tries=0, not_before=0 "
                "WHERE uid=? AND state='failed'", study,
            )  # fmt: skip
        self.note(who, "try again", study)
        return dead + failed

    # --- reviews ---

    def review(self, study: str) -> dict[str, Any]:
        """Return what readers said of a study; version 0 if nobody did."""
        rows = self.run("SELECT * FROM review WHERE study=?", study)
        if rows:
            return dict(rows[0])
        return {"study": study, "state": "new", "note": "", "who": "", "at": 0.0, "version": 0}

    def set_review(self, study: str, *, state: str, note: str, who: str, version: int) -> bool:
        """Keep a reader's word if it rests on the newest one; return whether it did.

        Args:
            study: UID.
            state: one of `REVIEW_STATES`.
            note: free text.
            who: the reader.
            version: of the review that the reader saw.
        """
        with self._lock:
            if self.review(study)["version"] != version:
                return False
            self.together(
                [
                    (
                        "INSERT OR REPLACE INTO review VALUES(?,?,?,?,?,?)",
                        (study, state, note, who, self.now(), version + 1),
                    ),
                    (
                        "INSERT INTO audit VALUES(?,?,?,?,?)",
                        (self.now(), who, "review", study, json.dumps({"state": state})),
                    ),
                ]
            )
            return True

    # --- looking ---

    def studies(self, uid: str | None = None) -> list[dict[str, Any]]:
        """Return studies with their result, review and outbox, by p-value, then score.

        Args:
            uid: of one; None for every one.
        """
        rows = self.run(
            "SELECT s.*, COALESCE(r.state,'new') AS review, COALESCE(r.note,'') AS note, "
            "COALESCE(r.who,'') AS reader, COALESCE(r.version,0) AS version, "
            "(SELECT COUNT(*) FROM instance i WHERE i.study=s.uid) AS images, "
            "(SELECT COUNT(*) FROM outbox o WHERE o.study=s.uid AND o.state='dead') AS dead "
            "FROM study s LEFT JOIN review r ON r.study=s.uid WHERE ?1 IS NULL OR s.uid=?1",
            uid,
        )
        found = []
        for row in rows:
            entry = dict(row)
            entry["result"] = json.loads(entry["result"]) if entry["result"] else {}
            found.append(entry)
        return sorted(found, key=_rank)

    def counts(self) -> dict[str, int]:
        """Return studies and objects by state, for monitoring."""
        found = {f"studies_{r[0]}": r[1] for r in self.run(
            "SELECT state,COUNT(*) FROM study GROUP BY state")}  # fmt: skip
        found |= {f"objects_{r[0]}": r[1] for r in self.run(
            "SELECT state,COUNT(*) FROM outbox GROUP BY state")}  # fmt: skip
        found["instances"] = self.run("SELECT COUNT(*) FROM instance")[0][0]
        return found

    def oldest_wait_s(self) -> float:
        """Return how long the study that is due longest has been so, seconds."""
        rows = self.run(
            "SELECT MIN(not_before) FROM study WHERE state='waiting' AND not_before<=?", self.now()
        )
        return 0.0 if rows[0][0] is None else self.now() - float(rows[0][0])

    # --- room ---

    def make_room(self, quota_bytes: int) -> int:
        """Remove source files of studies that were scored longest ago; return how many.

        Results and tables stay. What was not scored yet is never removed.

        Args:
            quota_bytes: what the spool may hold.
        """
        sizes = {p: p.stat().st_size for p in self.spool.glob("*.dcm")}
        excess, removed = sum(sizes.values()) - quota_bytes, 0
        if excess <= 0:
            return 0
        rows = self.run(
            "SELECT i.path FROM instance i JOIN study s ON s.uid=i.study WHERE s.state='scored' "
            "AND NOT EXISTS(SELECT 1 FROM outbox o WHERE o.study=s.uid AND o.state='waiting') "
            "ORDER BY s.arrived"
        )
        for path in (self.spool / Path(row[0]).name for row in rows):
            if excess <= 0:
                break
            if path not in sizes:  # removed before
                continue
            excess -= sizes[path]
            path.unlink(missing_ok=True)
            removed += 1
        return removed


def _rank(entry: dict[str, Any]) -> tuple[float, float, float]:
    """Return what studies are sorted by: rare first, of equals the highest score, then the new."""
    result = entry["result"]
    p_value = result.get("p_value")
    unscored = 2.0 if p_value is None else float(p_value)
    return unscored, -float(result.get("score") or 0.0), -float(entry["arrived"])
