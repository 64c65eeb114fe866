"""What a scoring is of: the models, settings and files that two scorings have in common, hashed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normalis.files import ANY_NAME
from normalis.output.journal import stamp
from normalis.output.noted import key_of
from normalis.output.options import ScoreOptions
from normalis.storage import content_hash

if TYPE_CHECKING:
    from normalis.datasets import Sample
    from normalis.fitted import FittedDetector

__all__ = ["Asked"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
    """What is asked of a scoring.

    Attributes:
        detector: the one that scores.
        root: folder that names of maps and pictures are relative to.
        options: what to write.
        aside: (path, reason) of files that rules left aside.
        leaves: what turns cells of tables into those that are written.
        similar: how many of the most similar normal images are written of each image.
    """

    detector: FittedDetector
    root: Path
    options: ScoreOptions
    aside: tuple[tuple[Path, str], ...]
    leaves: Callable[[str, str], str]
    similar: int

    def identity(self, samples: Sequence[Sample]) -> str:
        """Return what a resumed scoring must have in common with the one interrupted."""
        files = hashlib.sha256(os.path.abspath(self.root).encode("utf-8", ANY_NAME))  # noqa: PTH100
        for sample in samples:
            files.update(f"{key_of(sample)}\n{sample.patient_id}\n".encode("utf-8", ANY_NAME))
        return content_hash(
            {
                "detector": self.detector.identity,
                "maps": self.options.maps,
                "engine": "onnx" if self.options.engine == "onnx" else "torch",  # ray is torch
                "files": files.hexdigest(),
                "by": self.detector.grouped.by if self.detector.grouped else "",
                **({"similar": self.similar} if self.similar else {}),
            }
        )

    def whole(self, samples: Sequence[Sample], stamps: Iterable[tuple[str, str]]) -> str:
        """Return what a finished scoring was of: models, settings, and the files' contents.

        Of what is noted the contents are those that were scored, of the rest those there now.

        Args:
            samples: what is to be scored.
            stamps: (key, stamp) of what is noted, of `normalis.output.journal.Journal.stamps`.
        """
        total, noted = 0, set()
        for key, seen in stamps:
            noted.add(key)
            total += _number(key, seen)
        total += sum(_number(key_of(s), stamp(s.path)) for s in samples if key_of(s) not in noted)
        options = self.options
        asked: list[Any] = [
            options.fpr,
            options.overlays,
            options.all_overlays,
            options.relative_paths,
            options.fdr,
        ]
        asked.append(getattr(self.leaves, "identity", ""))  # which key, if any
        asked.append([[str(path), why] for path, why in self.aside])
        labels = hashlib.sha256(repr([(s.is_anomalous, s.kind) for s in samples]).encode())
        return content_hash(
            [self.identity(samples), asked, str(total % 2**256), labels.hexdigest(), self._known()]
        )

    def _known(self) -> str:
        """Return what p-values are made from, which a calibration elsewhere changes."""
        parts = self.detector.calibration, self.detector.grouped
        return content_hash([part.to_dict() if part else None for part in parts])


def _number(key: str, seen: str) -> int:
    """Return a number of a file and its stamp; a sum of them is the same in any order."""
    text = f"{key}\n{seen}".encode("utf-8", ANY_NAME)
    return int.from_bytes(hashlib.sha256(text).digest(), "big")
