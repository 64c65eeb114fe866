"""Which images are independent of each other: the one notion of a *unit*, decided image by image.

A p-value, an interval and a split are about new patients, so that what belongs to one patient must
stay together. Two images are of one unit if

* they are slices, frames or pages of **one file**, whatever is known of patients;
* they have the same known **patient**; a patient id that says nothing (empty, ``nan``,
  ``ANONYMOUS``, one id for all files of many) is unknown, and a note says so;
* their headers name the same DICOM **study** or series, unless the patients named in it differ;
* they have the same **pixels**, or are near duplicates (`normalis.duplicates`) of which at least
  one is of an unknown patient: chest X-rays of different people look alike. A file of several
  images is a copy of another one if half of its images are, since single slices of different
  people look alike too. Blank slices are everyone's and join nothing.

Units are the connected parts: a copy joins the patients of both files. A file of which none of this
is known is a unit of its own. The same units are used where images are held out, divided into
folds, calibrated on, tested for drift and evaluated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.datasets.levels import Level, plural
from normalis.duplicates import THRESHOLDS, codes, duplicate_groups, pixel_digests
from normalis.duplicates.turned import turned_pairs
from normalis.errors import DataError

if TYPE_CHECKING:
    from normalis.loading.arrays import Row

__all__ = [
    "Units",
    "connected",
    "file_of",
    "find_units",
    "known_patients",
    "shared_with",
    "some",
    "unit_name",
]

Numbers = NDArray[np.int64]

_SAYS_NOTHING = re.compile(
    r"((anon(ym|yme|ymous|ymized|ymised|ymisiert|imo|imizado)?|de ?identified|removed|redacted"
    r"|hidden|dummy|nan|none|null|nil|n ?/? ?a|unk|unknown|unspecified|undefined|missing|tbd"
    r"|not (available|known|specified)|no ?(name|id|patient ?id)|unbekannt|inconnu|desconocido"
    r"|sconosciuto|匿名|x{3,})( (patient|patient ?id|subject|name))?"
    r"|(patient|subject)( ?(id|name))?|id)?",
    re.IGNORECASE,
)
_NO_WORD = re.compile(r"[\s_^<>()\[\]{}\"'#*?.\-\u200b-\u200f\ufeff]+")
_MANY = 10  # files from which one id for all of them is no patient
_LISTED = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Units:
    """The units of N images.

    Attributes:
        member: (N,) number of each image's unit, 0 to n - 1.
        level: what a unit mostly is: a ``patient`` where any patient is known, else a ``study`` of
            several files, a ``file`` of several images, a ``group`` of near duplicates, or a single
            ``image``.
        notes: what a reader should know of unknown patients, one sentence each.
    """

    member: Numbers
    level: Level
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Number of units."""
        return int(self.member.max(initial=-1)) + 1

    def take(self, chosen: NDArray[Any]) -> Units:
        """Return the units of some of the images."""
        return replace(self, member=np.unique(self.member[chosen], return_inverse=True)[1])

    def __str__(self) -> str:
        return plural(self.n, self.level)


def some(names: Sequence[str]) -> str:
    """Return the first few names and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def connected(*namings: Sequence[Any] | None) -> Numbers:
    """Number the groups of images that no naming separates.

    Args:
        *namings: (N,) names such as patients, files or groups of duplicates; two images with one
            name belong together, and so do their groups. An entry None joins nothing; None for a
            whole naming that is unknown.

    Returns:
        (N,) numbers from 0, in order of appearance.

    Raises:
        DataError: if no naming is given or their lengths differ.

    Example:
        >>> connected(["a", "a", "b", None], [None, 1, 1, None]).tolist()
        [0, 0, 0, 1]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    given = [codes(list(naming)) for naming in namings if naming is not None]
    if not given or len({len(n) for n in given}) != 1:
        raise DataError(f"groups need names of equal length, got lengths {[len(n) for n in given]}")
    size = nodes = len(given[0])
    images, names = [], []  # a graph of images and of the names that they share
    for numbers in given:
        named = np.flatnonzero(numbers >= 0)
        images.append(named)
        names.append(nodes + numbers[named])
        nodes += int(numbers.max(initial=-1)) + 1
    links = np.concatenate(images), np.concatenate(names)
    graph = coo_array((np.ones(len(links[0]), bool), links), shape=(nodes, nodes))
    return codes(connected_components(graph, directed=False)[1][:size].tolist())


def find_units(
    rows: Sequence[Row],
    pixels: NDArray[Any] | None = None,
    *,
    one_for_all: bool = True,
    alike: Numbers | None = None,
) -> Units:
    """Return the units of images that were loaded.

    Args:
        rows: of `normalis.loading.arrays.Loaded`.
        pixels: (N, C, H, W) of the same images; None looks for no copies.
        one_for_all: whether one patient id for all files of many is unknown. It is a fair guess
            for what is trained on, and none for what is scored: a folder may hold one patient.
        alike: (N,) groups of near duplicates at the first of `duplicates.THRESHOLDS`, if they are
            known already.
    """
    files = [file_of(row) for row in rows]
    patients, notes = known_patients(
        [row.patient_id for row in rows], files, one_for_all=one_for_all
    )
    namings: list[Sequence[Any]] = [files, patients, *_uids(rows, patients)]
    alone = connected(*namings)
    if pixels is not None:
        namings += [
            _equal(pixels, files),
            _turned(pixels, patients),
            _copies(pixels, files, patients, alike),
        ]
    member = connected(*namings)
    level = _level(patients, files, alone, member)
    names = np.array([str(p) for p in patients])
    if None not in patients and len(np.unique(names)) == member.max(initial=-1) + 1:
        member = np.unique(names, return_inverse=True)[1]  # in the order of the patients' names
    return Units(member=member, level=level, notes=notes)


def known_patients(
    ids: Sequence[Any], files: Sequence[str], *, one_for_all: bool = True
) -> tuple[list[str | None], tuple[str, ...]]:
    """Return the patient of each image, None where the id says nothing, and notes on that.

    Args:
        ids: (N,) ids as manifest or header give them; None where there is none.
        files: (N,) the file of each image.
        one_for_all: as in `find_units`.
    """
    known, alike = _spelt_alike([_patient(value) for value in ids])
    named = {name for name in known if name is not None}
    count = len(set(files))
    if one_for_all and len(named) == 1 and None not in known and count >= _MANY:
        return [None] * len(known), (
            f"all {count} files have the patient id {named.pop()!r}, which is taken as unknown: "
            "each file counts as a patient of its own. Name the patients in a manifest or by "
            "--patient-pattern",
        )
    unknown = {file for file, name in zip(files, known, strict=True) if name is None}
    given = Counter(
        str(value).strip() for value, name in zip(ids, known, strict=True) if name is None and value
    )
    if (not named and not given) or not unknown:  # nobody named a patient, or everybody
        return known, alike
    said = ", ".join(repr(text) for text, _ in given.most_common(3) if text)
    what = f"a patient id that names nobody ({said})" if said else "no patient id"
    return known, (
        f"{len(unknown)} of {count} files have {what}: each of them counts as a patient of its own",
        *alike,
    )


_NUMBER = re.compile(r"0*(\d+)(\.0+)?")


def _spelt_alike(known: list[str | None]) -> tuple[list[str | None], tuple[str, ...]]:
    """Take ids that differ in case, in zeros before them or in ``.0`` as one, and say so."""
    spellings: dict[str, dict[str, None]] = {}
    for name in filter(None, known):
        number = _NUMBER.fullmatch(name)
        spellings.setdefault(number[1] if number else name.casefold(), {})[name] = None
    several = [list(names) for names in spellings.values() if len(names) > 1]
    if not several:
        return known, ()
    first = {name: names[0] for names in several for name in names}
    pairs = ", ".join(" and ".join(names) for names in several[:_LISTED])
    return [None if name is None else first.get(name, name) for name in known], (
        f"{len(several)} patient ids are spelt in several ways ({pairs}), and count as one patient "
        "each where independent images are told apart",
    )


def shared_with(
    first: Sequence[Row], second: Sequence[Row], pixels: tuple[NDArray[Any], NDArray[Any]]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return what two splits share that must share nothing.

    Likeness alone is no proof here: only images that are equal, or near duplicates at the highest
    of `normalis.duplicates.THRESHOLDS`, are copies.

    Args:
        first: images of one split.
        second: images of the other.
        pixels: (N, C, H, W) and (M, C, H, W) of both, in one range.

    Returns:
        The names of patients, studies and files in both, and pairs (file of the second, its copy
        in the first).
    """
    rows, split = [*first, *second], len(first)
    files = [file_of(row) for row in rows]
    patients, _ = known_patients([row.patient_id for row in rows], files, one_for_all=False)
    names: list[str] = []
    for naming in (patients, files, *_uids(rows, patients)):
        both = set(naming[:split]) & set(naming[split:]) - {None}
        names += sorted(str(name) for name in both)
    x = np.concatenate(pixels)
    textured = np.flatnonzero(~_blank(x))
    who = codes(patients)[textured]
    near = np.full(len(rows), -1)
    near[textured] = duplicate_groups(x[textured], threshold=THRESHOLDS[-1], patients=who)
    copies: dict[str, str] = {}
    like = [None if n < 0 else n for n in near.tolist()]
    for group in (_equal(x, files), _turned(x, patients), like):
        pairs = zip(group[:split], files, strict=False)
        known = {name: file for name, file in pairs if name is not None}
        for name, file, patient in zip(group[split:], files[split:], patients[split:], strict=True):
            if name in known and patient not in names and file not in names:
                copies.setdefault(file, known[name])
    return names, list(copies.items())


def _uids(
    rows: Sequence[Row], patients: Sequence[str | None]
) -> tuple[list[str | None], list[str | None]]:
    study, series = (
        _consistent([row.header.get(uid) for row in rows], patients)
        for uid in ("study_uid", "series_uid")
    )
    return study, series


def unit_name(row: Row) -> str:
    """Return the unit of an image that is seen alone: its patient, else its study, else its file.

    What `find_units` finds among many images without looking for copies; for images that are
    scored one after the other.
    """
    header = row.header
    return (
        _patient(row.patient_id)
        or _text(header.get("study_uid"))
        or _text(header.get("series_uid"))
        or file_of(row)
    )


def file_of(row: Row) -> str:
    """Return what names a row's file, or its row in an array file."""
    sample = row.sample
    return (
        str(sample.path) if sample.index is None else f"{sample.path}#{sample.array}/{sample.index}"
    )


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    return text or None


def _patient(value: Any) -> str | None:
    text = _text(value)
    if text is None:
        return None
    words = _NO_WORD.sub(" ", text).strip()
    halves = words.split()  # ANONYMOUS^ANONYMOUS: family and given name
    once = halves[0] if len(set(halves)) == 1 else words
    return None if _SAYS_NOTHING.fullmatch(once) else text


def _consistent(uids: Sequence[Any], patients: Sequence[str | None]) -> list[str | None]:
    """Return the uids that name at most one known patient; others were not meant as such."""
    named: dict[str, set[str]] = {}
    texts = [_text(uid) for uid in uids]
    for text, patient in zip(texts, patients, strict=True):
        if text is not None and patient is not None:
            named.setdefault(text, set()).add(patient)
    return [None if t is None or len(named.get(t, ())) > 1 else t for t in texts]


def _equal(pixels: NDArray[Any], files: Sequence[str]) -> list[bytes | None]:
    """Return a digest of each image's pixels, None for a blank slice of a file that shows more."""
    blank = _blank(pixels)
    shown = {file for file, empty in zip(files, blank, strict=True) if not empty}
    found = zip(pixel_digests(pixels), files, blank, strict=True)
    return [None if empty and file in shown else digest for digest, file, empty in found]


def _turned(pixels: NDArray[Any], patients: Sequence[str | None]) -> list[int | None]:
    """Return a name that images share of which one is the other flipped or turned.

    As with other likeness, images of different known patients are no copies.
    """
    names = list(range(len(pixels)))
    for first, second in turned_pairs(pixels):
        both = {patients[first], patients[second]} - {None}
        if len(both) < 2:
            names[second] = names[first]
    shared = Counter(names)
    return [name if shared[name] > 1 else None for name in names]


def _blank(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    flat = pixels.reshape(len(pixels), -1)
    return np.asarray(flat.min(axis=1) == flat.max(axis=1))


def _copies(
    pixels: NDArray[Any],
    files: Sequence[str],
    patients: Sequence[str | None],
    alike: Numbers | None,
) -> Sequence[Any]:
    """Return a name that files share of which one is a near duplicate of the other."""
    textured = np.flatnonzero(~_blank(pixels))
    if all(p is not None for p in patients) or len(textured) < 2:
        return [None] * len(files)
    file = codes(files)[textured]
    first = None if alike is None else codes(alike[textured].tolist())
    found = _alike(pixels[textured], codes(list(patients))[textured], file, first)
    of_file = np.full(int(codes(files).max()) + 1, -1)
    joined = _files_alike(file, found)
    of_file[: len(joined)] = joined
    return [None if n < 0 else n for n in of_file[codes(files)].tolist()]


def _alike(pixels: NDArray[Any], patient: Numbers, file: Numbers, first: Numbers | None) -> Numbers:
    """Group near duplicates at the lowest threshold at which no group dominates.

    See `normalis.duplicates.likeness_groups`; here a group is as large as it has files.
    """
    most = max(2, len(np.unique(file)) / 10)
    for threshold in THRESHOLDS:
        groups, first = first, None
        if groups is None:
            groups = duplicate_groups(pixels, threshold=threshold, patients=patient)
        pairs = np.unique(np.stack([groups, file]), axis=1)
        if np.bincount(pairs[0]).max() <= most:
            return groups
    return np.arange(len(file))  # equal pixels join elsewhere


def _files_alike(file: Numbers, group: Numbers) -> Numbers:
    """Join files of which one has at least half of its images in groups of the other."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(file.max()) + 1
    size = np.bincount(file, minlength=count)
    held = coo_array((np.ones(len(file)), (file, group))).tocsr()  # images of a file in a group
    single, several = np.flatnonzero(size == 1), np.flatnonzero(size > 1)
    links = [(single, count + held[single].indices)]
    if len(several):
        there = held.copy()
        there.data[:] = 1
        shared = (held[several] @ there.T).tocoo()  # images with a near duplicate in the other
        ours, theirs = several[shared.row], shared.col
        enough = (2 * shared.data >= size[ours]) | (size[theirs] == 1)
        links.append((ours[enough], theirs[enough]))
    ends = tuple(np.concatenate(part) for part in zip(*links, strict=True))
    nodes = count + int(group.max()) + 1
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(nodes, nodes))
    return np.asarray(connected_components(graph, directed=False)[1][:count])


def _level(
    patients: Sequence[str | None], files: Sequence[str], alone: Numbers, member: Numbers
) -> Level:
    if any(p is not None for p in patients):
        return "patient"
    count = len(set(files))
    if alone.max(initial=-1) + 1 < count:
        return "study"
    if count < len(files):
        return "file"
    return "group" if member.max(initial=0) < alone.max(initial=0) else "image"
