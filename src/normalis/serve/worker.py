"""The worker: scores what is due, makes result objects, sends them, tries again what failed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from normalis.datasets import Dataset, Sample
from normalis.errors import DataError, NormalisError
from normalis.fitted import FittedDetector
from normalis.pacs.cases import ScoredStudy
from normalis.pacs.export import objects_of
from normalis.pacs.peer import Peer, Sent
from normalis.pacs.pseudonymous import Leaving, as_it_is
from normalis.pacs.scoring import score_studies
from normalis.pacs.transfer import file_name, save
from normalis.serve.store import Job, Store, later

__all__ = ["Worker"]

log = logging.getLogger("normalis.serve")

_PAUSE_S = 0.5
_LONGEST_REST_S = 600.0
_SEND_EVERY_S = 5.0  # while studies are waiting: an association costs more than an object


class Worker:
    """Does one thing after another, for ever or until told to stop.

    Args:
        store: what is to be done.
        detector: fitted.
        kinds: of result objects.
        peer: where results go; None keeps them.
        fpr: share of normals that may be flagged.
        quota_bytes: what the spool may hold of studies that are done; None for no limit.
        leaves: what changes objects that go to the peer (`normalis.pacs.pseudonymous`).
    """

    def __init__(
        self,
        store: Store,
        detector: FittedDetector,
        *,
        kinds: Sequence[str],
        peer: Peer | None,
        fpr: float = 0.05,
        quota_bytes: int | None = None,
        leaves: Leaving = as_it_is,
    ) -> None:
        self.store, self.detector, self.peer = store, detector, peer
        self.kinds, self.fpr, self.quota_bytes = tuple(kinds), fpr, quota_bytes
        self.leaves = leaves
        self.last_seen = store.now()
        self.peer_problem, self._unreached, self._rest_until = "", 0, 0.0
        self._last_sending = 0.0
        self._stop = threading.Event()

    def run(self, on_error: Callable[[BaseException], None] | None = None) -> None:
        """Work until `stop`; whatever goes wrong with one study does not end the others."""
        while not self._stop.is_set():
            self.last_seen = self.store.now()
            try:
                busy = self.score_next()
                if not busy or time.monotonic() - self._last_sending >= _SEND_EVERY_S:
                    busy |= self.send_due()
                    self._last_sending = time.monotonic()
            except Exception as error:
                log.exception("the worker goes on after an error")
                if on_error is not None:
                    on_error(error)
                busy = False
            if not busy:
                self._stop.wait(_PAUSE_S)

    def stop(self) -> None:
        """Finish what is being done and end."""
        self._stop.set()

    def score_next(self) -> bool:
        """Score one study that is due; return whether there was one."""
        job = self.store.next_job()
        if job is None:
            return False
        try:
            result, objects = self._score(job)
        except DataError as error:  # nothing of it can be scored, now or later
            self.store.not_scored(job, str(error), again=False)
        except (NormalisError, OSError, RuntimeError, ValueError, MemoryError) as error:
            log.warning("study %s: %s", job.study, error)
            self.store.not_scored(job, f"{type(error).__name__}: {error}")
        else:
            self.store.scored(job.study, result, objects)
        if self.quota_bytes is not None and self.store.make_room(self.quota_bytes):
            log.info("removed images of studies that were scored longest ago")
        return True

    def _score(self, job: Job) -> tuple[dict[str, Any], dict[str, Path]]:
        files = Dataset(
            name=job.study,
            root=self.store.spool,
            layout="study",
            samples=tuple(Sample(path=p, split="unlabelled") for p in job.paths if p.exists()),
        )
        if not files.samples:
            raise DataError("the images of the study are no longer there")
        chosen = self.detector.select(files)
        gone = len(job.paths) - len(files.samples)
        skipped = [(Path(), "removed to make room")] * gone
        (study,) = score_studies(self.detector, chosen.samples, fpr=self.fpr, skipped=skipped)
        failed: list[tuple[str, str, str]] = []
        folder = self.store.outgoing / file_name(job.study).removesuffix(".dcm")
        objects = {
            str(data.SOPInstanceUID): save(data, folder)
            for data in objects_of(study, self.kinds, failed)
        }
        said = _result(study, chosen.aside, skipped)
        said["within"] = self.detector.grouped.by if self.detector.grouped else ""
        said["not_made"] = [f"{kind}: {why}" for _, kind, why in failed]
        return said, objects

    def send_due(self) -> bool:
        """Send result objects that are due; return whether there were any.

        While the peer cannot be reached, it is asked ever more rarely, and objects wait.
        """
        if self.peer is None or self.store.now() < self._rest_until:
            return False
        import pydicom

        due = self.store.due_objects()
        for sop, _, path in due:
            if not path.exists():
                self.store.sent(sop, "gone", "its file is gone")
        there = [row for row in due if row[2].exists()]
        if not there:
            return bool(due)
        told = self.peer.store([self.leaves(pydicom.dcmread(path)) for _, _, path in there])
        for (sop, study, _), one in zip(there, told, strict=True):
            self.store.sent(sop, one.state, one.problem)
            if one.state != "unreached":
                self.store.note("normalis", one.state, study, sop=sop, why=one.problem)
        return self._reached([one for one in told if one.state == "unreached"])

    def _reached(self, unreached: Sequence[Sent]) -> bool:
        """Note whether the peer could be talked to, and return it; rest if it could not."""
        if not unreached:
            self.peer_problem, self._unreached = "", 0
            return True
        self.peer_problem = unreached[0].problem
        self._rest_until = self.store.now() + min(later(self._unreached), _LONGEST_REST_S)
        self._unreached += 1
        log.warning("results wait: %s", self.peer_problem)
        return False


def _result(
    study: ScoredStudy,
    aside: Sequence[tuple[Path, str]],
    skipped: Sequence[tuple[Path, str]],
) -> dict[str, Any]:
    """Return what the page shows of a study; no name of a person."""
    first = study.images[0]
    reasons: dict[str, int] = {}
    for _, reason in [*aside, *skipped]:
        reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "p_value": study.patient_p_value,
        "notes": list(study.notes),
        "score": first.score,
        "flagged": study.flagged,
        "calibration_units": study.calibration_units,
        "images": len(study.images),
        "aside": reasons,
        "patient_id": str(first.source.get("PatientID", "")),
        "study_date": str(first.source.get("StudyDate", "")),
        "accession_number": str(first.source.get("AccessionNumber", "")),
        "description": str(first.source.get("StudyDescription", "")),
        "modality": str(first.source.get("Modality", "")),
        "worst": first.place,
        "cases": [
            {
                "place": image.place,
                "score": image.score,
                "p_value": image.p_value,
                "regions": sum(region.above for region in image.regions),
            }
            for image in study.images[:50]
        ],
        "model": study.model,
    }
