"""Scored studies -> DICOM objects in a folder, one sub-folder a study."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normalis.errors.extras import require
from normalis.pacs import OBJECTS
from normalis.pacs.cases import ScoredStudy
from normalis.pacs.pseudonymous import Leaving, as_it_is
from normalis.pacs.transfer import file_name, save

__all__ = ["DEFAULT_KINDS", "Exported", "check_kinds", "export_studies", "objects_of"]

log = logging.getLogger("normalis.pacs")

#: What is written unless asked otherwise: what viewers show without harm.
DEFAULT_KINDS = ("sc", "sr", "seg")


@dataclass(kw_only=True)
class Exported:
    """What was written.

    Attributes:
        studies: how many.
        paths: of the objects.
        failed: (study, kind, reason) of what could not be made.
    """

    studies: int = 0
    paths: list[Path] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds in the order of `OBJECTS`.

    Raises:
        SettingsError: if one is unknown.
        MissingExtraError: if the extra ``pacs`` is not installed.
    """
    for kind in kinds:
        OBJECTS.check(kind)
    require("highdicom", extra="pacs", why="writing DICOM objects")
    return tuple(kind for kind in OBJECTS if kind in kinds)


def objects_of(
    study: ScoredStudy, kinds: Sequence[str], failed: list[tuple[str, str, str]] | None = None
) -> list[Any]:
    """Return the objects of a study; a kind that cannot be made does not stop the others.

    Args:
        study: scored.
        kinds: as from `check_kinds`.
        failed: receives (study, kind, reason).
    """
    made: list[Any] = []
    for kind in kinds:
        build = OBJECTS.load(kind)
        try:
            made += build(study)
        except Exception as error:  # of a header that highdicom cannot work with
            log.warning("study %s: no %s (%s)", study.uid, kind, error)
            if failed is not None:
                failed.append((study.uid, kind, str(error) or type(error).__name__))
    return made


def export_studies(
    studies: Iterable[ScoredStudy],
    folder: Path,
    *,
    kinds: Sequence[str] = DEFAULT_KINDS,
    leaves: Leaving = as_it_is,
    progress: Callable[[int], None] | None = None,
) -> Exported:
    """Write the objects of studies; the same study and model replace what they wrote before.

    Args:
        studies: scored.
        folder: where to.
        kinds: keys of `OBJECTS`.
        leaves: what changes objects that leave the hospital (`normalis.pacs.pseudonymous`).
        progress: called as ``progress(studies done)``.
    """
    done, chosen = Exported(), check_kinds(kinds)
    for study in studies:
        made = [leaves(data) for data in objects_of(study, chosen, done.failed)]
        for data in made:
            below = folder / file_name(str(data.StudyInstanceUID)).removesuffix(".dcm")
            done.paths.append(save(data, below))
        done.studies += 1
        if progress is not None:
            progress(done.studies)
    return done
