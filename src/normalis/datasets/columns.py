"""Which column of a table says what: names that people give to paths, labels, patients, splits.

A name counts in any case and with any punctuation: ``Image Index``, ``image_index`` and
``ImageIndex`` are one. Of several columns for one thing the first of its list is taken.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normalis.datasets.tables import Table, cell_text
from normalis.datasets.words import meaning, split_of
from normalis.errors import DataError
from normalis.errors.words import counted

__all__ = ["LABELS", "PATIENTS", "Columns", "key", "names_a_path", "roles_of"]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PATHS = _listed(
    "path filepath file filename filelocation relativepath relpath imagepath imagefile "
    "imagefilename imgpath imgfile image images img imagename imgname fname dicom dicompath "
    "dicomfile dicomfilename dcm dcmpath dcmfile nifti niftipath niftifile volumepath "
    "volume scanpath scan imageindex imageid imgid dicomid idcode fileid name id"
)
LABELS = _listed(
    "label labels isanomalous isanomaly isabnormal anomalous anomaly abnormal class "
    "classname classlabel classes target targets diagnosis diagnose dx finding findings "
    "findinglabels category disease diseaserisk condition pathology labelname status "
    "outcome y result groundtruth gt imagelabel tumor tumour defect annotation"
)
INVERTED = ("normal", "isnormal", "healthy", "ishealthy")
PATIENTS = _listed(
    "patientid patient patientno patientnumber subjectid subject subj participantid "
    "participant personid caseid pid mrn patid"
)
MASKS = _listed(
    "mask maskpath maskfile maskfilename segmentation segmentationpath seg segpath "
    "segmentationfile groundtruthmask labelmask lesionmask roimask"
)
#: Of images taken together, which are no two independent ones: header key -> names of its column.
EXAMS = {
    "study_uid": _listed(
        "studyuid studyinstanceuid studyid studyno studynumber accession accessionnumber "
        "accessionno examid examno examination visitid sessionid encounterid"
    ),
    "series_uid": _listed("seriesuid seriesinstanceuid seriesid"),
}
SPLIT_NAMES = ("split", "set", "subset", "partition", "phase", "fold", "usage", "dataset")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns, as the table has them; None where it has no such column.

    Attributes:
        path: of the images.
        label: which of them are anomalous.
        inverted: whether 1 in ``label`` means normal, as in a column ``is_normal``.
        kind: a further column of classes, which names the kind of an anomaly.
        patient: of the patient.
        mask: of the region.
        split: train, validation or test.
        exams: header key -> the column of studies or series, where images were taken together.
        notes: what a reader should know of the choice.
    """

    path: str
    label: str | None = None
    inverted: bool = False
    kind: str | None = None
    patient: str | None = None
    mask: str | None = None
    split: str | None = None
    exams: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> set[str | None]:
        """Names of all columns that are something."""
        return {self.path, self.label, self.kind, self.patient, self.mask, self.split}


def key(name: str) -> str:
    """Return a column's name without case and punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold())


def names_a_path(cells: Sequence[str]) -> bool:
    """Whether cells are the names of columns, one of which holds the images."""
    return bool({key(cell) for cell in cells} & set(PATHS))


def roles_of(table: Table, *, exists: Callable[[str], bool], all_normal: bool = False) -> Columns:
    """Say what the columns of a table are.

    Args:
        table: any.
        exists: whether a cell names a file, to choose among several columns of paths.
        all_normal: whether the user said that all images are normal, so that no column has to be
            one of labels.

    Raises:
        DataError: if no column holds paths, a column is named twice, or a column looks like
            labels and is not named as such.
    """
    by_key = _by_key(table)
    path = _path(table, by_key, exists)
    found = [by_key[name] for name in (*LABELS, *INVERTED) if name in by_key]
    found = [name for name in found if name != path]
    label = found[0] if found else None
    split, notes = _split(table, by_key)
    columns = Columns(
        path=path,
        label=label,
        inverted=label is not None and key(label) in INVERTED,
        kind=by_key.get("kind") or (found[1] if len(found) > 1 else None),
        patient=_first(by_key, PATIENTS, path),
        mask=_first(by_key, MASKS, path),
        split=split,
        exams=_exams(table, by_key),
        notes=notes,
    )
    if label is None and not all_normal:
        _refuse_hidden_labels(table, columns)
        _refuse_binary(table, columns)
    if split is None:
        _refuse_flags_of_splits(table, columns)
    _refuse_contradictions(table, found[:1], [n for n in found[1:] if key(n) in _OF_LABELS])
    return columns


#: Columns that are of labels whatever else there is; others (status, result) may be of something
#: else beside a column of labels.
_OF_LABELS = frozenset(INVERTED) | frozenset(
    _listed(
        "label labels isanomalous isanomaly isabnormal anomalous anomaly abnormal classlabel "
        "target diagnosis dx groundtruth gt imagelabel"
    )
)


def _said(value: str, name: str) -> str | None:
    """Return what a cell of a column of labels says, normal or anomalous; None if neither."""
    said = meaning(value)
    if said not in ("normal", "anomalous"):
        return None
    return {"normal": "anomalous", "anomalous": "normal"}[said] if key(name) in INVERTED else said


def _refuse_contradictions(table: Table, first: list[str], others: list[str]) -> None:
    """Refuse two columns of labels of which one says normal and the other anomalous."""
    for line, row in table.rows if first and others else ():
        cells = {name: cell_text(row.get(name)) for name in (*first, *others)}
        said = {name: _said(value, name) for name, value in cells.items()}
        odd = [name for name in others if said[name] and said[first[0]]]
        if wrong := [name for name in odd if said[name] != said[first[0]]]:
            raise DataError(
                f"{table.file}, line {line}: the column {first[0]} says {cells[first[0]]!r} and "
                f"the column {wrong[0]} says {cells[wrong[0]]!r}: correct one, or take it out"
            )


_FLAGS = re.compile(r"(is|in)?(train|training|test|testing|val|valid|validation|holdout)(set)?")


def _refuse_flags_of_splits(table: Table, columns: Columns) -> None:
    """Refuse columns such as ``is_train``, which say of images that they are not to train on."""
    for name in table.names:
        if name in columns.known or not _FLAGS.fullmatch(key(name)):
            continue
        values = {cell_text(row.get(name)) for _, row in table.rows}
        if len(values) > 1 and all(meaning(value) for value in values):
            raise DataError(
                f"{table.file}: the column {name} looks like a split, but splits are in a column "
                "split that holds train, validation or test; make it one, or take it out"
            )


def _by_key(table: Table) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in table.names:
        if key(name) and key(name) in found:
            raise DataError(f"{table.file}, line {table.line}: the column {name} is named twice")
        found[key(name)] = name
    return found


def _path(table: Table, by_key: dict[str, str], exists: Callable[[str], bool]) -> str:
    names = [by_key[name] for name in PATHS if name in by_key]
    if not names:
        listed = ", ".join(filter(None, table.names)) or "nothing"
        raise DataError(f"{table.file}, line {table.line}: must name a column path, found {listed}")
    some = [row for _, row in table.rows[:20]]
    good = (n for n in names if any(exists(cell_text(row[n])) for row in some if row[n]))
    return next(good, names[0]) if len(names) > 1 else names[0]


def _first(by_key: dict[str, str], names: Sequence[str], path: str) -> str | None:
    return next((by_key[n] for n in names if n in by_key and by_key[n] != path), None)


def _exams(table: Table, by_key: dict[str, str]) -> dict[str, str]:
    """Return the columns of studies and series; one value for all rows names a project."""
    found = {}
    for header, names in EXAMS.items():
        column = next((by_key[name] for name in names if name in by_key), None)
        if column and len({cell_text(row[column]) for _, row in table.rows}) > 1:
            found[header] = column
    return found


def _split(table: Table, by_key: dict[str, str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the column of splits; one that is only named like it has to hold their words."""
    if "split" in by_key:
        return by_key["split"], ()
    for name in SPLIT_NAMES:
        if name not in by_key:
            continue
        column = by_key[name]
        if any(split_of(cell_text(row[column])) for _, row in table.rows):
            return column, ()
        if name in ("fold", "set", "subset", "partition"):
            return None, (
                f"The column {column} names no train, validation or test and is not read as split.",
            )
    return None, ()


_SURE = {"0", "1", "yes", "no", "true", "false", "ok", "bad", "good", "pos", "neg", "clear"}


def _refuse_hidden_labels(table: Table, columns: Columns) -> None:
    for name in table.names:
        if name in columns.known:
            continue
        for line, row in table.rows:
            value = cell_text(row.get(name))
            said: Any = meaning(value)
            if said in ("normal", "anomalous") and value.casefold() not in _SURE:
                raise DataError(
                    f"{table.file}, line {line}: the column {name} holds {value!r}, which looks "
                    "like a label, but labels are in a column label; rename the column"
                )


#: Columns of two values that are no labels of normal and anomalous.
_TWOFOLD = frozenset(
    _listed(
        "sex gender male female ismale isfemale smoker smoking contrast left right side laterality "
        "eye fold view ap pa portable flip flipped mirrored augmented isaugmented pregnant "
        "valid isvalid readable missing duplicate isduplicate"
    )
)


def _refuse_binary(table: Table, columns: Columns) -> None:
    """Refuse a table without labels that has a column of 0 and 1, or of other words for both."""
    for name in table.names:
        if name in columns.known or not key(name) or key(name) in _TWOFOLD:
            continue
        values = Counter(cell_text(row.get(name)) for _, row in table.rows)
        said = {value: meaning(value) for value in values if meaning(value) != "unknown"}
        if set(said.values()) == {"normal", "anomalous"}:
            listed = ", ".join(
                f"{value} ({counted(values[value], 'row')})" for value in sorted(said)
            )
            raise DataError(
                f"{table.file}: has no column of labels, but the column {name} holds {listed}, "
                "which may be labels. If they are, rename it to label (or to is_normal where 1 is "
                "normal); if they are not, take the column out, or say --normal-class '*' if all "
                "images are normal"
            )
