"""What kinds of images a data set mixes: by modality, view, plane and series description."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from normalis.studies.index import Entry, Series

__all__ = ["Kind", "kinds_of", "mixture"]

_FEW = 4  # kinds that a sentence names


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Images that headers describe alike.

    Attributes:
        modality: empty where the header says nothing.
        view: likewise.
        plane: likewise.
        description: of the series.
        studies: number of studies.
        series: number of series.
        images: number of images, frames counted.
        lie: how the slices of its series lie in space, the most frequent way first.
    """

    modality: str
    view: str
    plane: str
    description: str
    studies: int
    series: int
    images: int
    lie: str

    @property
    def name(self) -> str:
        """What tells it from others of another make: modality, view and plane."""
        return " ".join(part for part in (self.modality, self.view, self.plane) if part)


def kinds_of(series: Iterable[Series]) -> list[Kind]:
    """Count series by what their headers say, most images first."""
    groups: dict[tuple[str, str, str, str], list[Series]] = defaultdict(list)
    for one in series:
        groups[_key(one.entries[0])].append(one)
    found = [
        Kind(
            modality=key[0],
            view=key[1],
            plane=key[2],
            description=key[3],
            studies=len({str(s.entries[0].columns.get("study_uid", s.uid)) for s in members}),
            series=len(members),
            images=sum(s.images for s in members),
            lie=_lie(members),
        )
        for key, members in groups.items()
    ]
    return sorted(found, key=lambda kind: (-kind.images, kind.name, kind.description))


def mixture(kinds: Iterable[Kind]) -> str:
    """Say in one sentence that several kinds of images are mixed; empty if they are of one."""
    counts: dict[str, int] = defaultdict(int)
    for kind in kinds:
        if kind.name:
            counts[kind.name] += kind.images
    if len(counts) < 2:
        return ""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    said = ", ".join(f"{count} {name}" for name, count in ranked[:_FEW])
    more = f" and {len(ranked) - _FEW} more kinds" if len(ranked) > _FEW else ""
    return (
        f"Images of {len(ranked)} kinds are mixed: {said}{more}. A model of one kind finds more; "
        "choose with --where, for instance --where Modality=... --where plane=..."
    )


def _key(entry: Entry) -> tuple[str, str, str, str]:
    columns = entry.columns
    return (
        columns.get("modality", ""),
        columns.get("view", ""),
        entry.plane or "",
        columns.get("series_description", ""),
    )


def _lie(members: list[Series]) -> str:
    if all(len(s.entries) == 1 for s in members):
        return "single images"
    counts: dict[str, int] = defaultdict(int)
    for one in members:
        counts[one.stack.sentence()] += 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ranked[0][0] + (f" (and {len(ranked) - 1} other ways)" if len(ranked) > 1 else "")
