"""BIDS, the Brain Imaging Data Structure: ``sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz``.

``sub-`` is the patient. The suffix (``FLAIR``), the data type (``anat``), the session and all
columns of ``participants.tsv`` are columns of the images, so that ``--where suffix=FLAIR --where
group=control`` chooses among them. In ``derivatives`` masks of lesions are masks of their images,
which are then anomalous; other derivatives are left aside. A participant whose ``group``,
``diagnosis`` or the like is a word for normal is normal, also with a mask, which should be empty;
one with a word for ill is anomalous. Other words (``CN`` and ``AD``) are names of groups, of which
``--normal-class CN`` says that it is normal; until then none of the images is trained on.

Reference: Gorgolewski et al., *The brain imaging data structure*, Scientific Data 3 (2016).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normalis.datasets.base import Dataset, Options, Sample
from normalis.datasets.listing import folders_in, is_file, list_images, quote_some, stem_of
from normalis.datasets.tables import read_table
from normalis.datasets.words import Meaning, meaning
from normalis.errors import DataError

__all__ = ["LAYOUT", "entities", "read", "recognise"]

LAYOUT = "BIDS"

_LESION = re.compile(r"label-(lesion|l$|l_|tumou?r|wmh|stroke|infarct)|lesion|tumou?r|wmh", re.I)
_MASK = re.compile(r"_(mask|dseg|roi|probseg)$", re.I)
_SAYS = ("group", "diagnosis", "dx", "status", "label", "disease", "patient_group")


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether there are folders ``sub-`` and a ``dataset_description.json`` or ``derivatives``."""
    if not path.is_dir():
        return False
    names = folders_in(path)
    subjects = any(name.startswith("sub-") for name in names)
    described = is_file(path / "dataset_description.json") or "derivatives" in names
    return subjects and (described or is_file(path / "participants.tsv"))


def read(path: Path, options: Options | None = None) -> Dataset:
    """List the images of all subjects with what file names and participants.tsv say of them.

    Raises:
        DataError: if no subject has an image.
    """
    subjects = [folder for name, folder in folders_in(path).items() if name.startswith("sub-")]
    images = [image for folder in subjects for image in list_images(folder).images]
    raw = [image for image in images if not _MASK.search(stem_of(image))]
    inside = [image for image in images if _MASK.search(stem_of(image))]
    derived = path / "derivatives"
    others = [*inside, *(list_images(derived).images if derived.is_dir() else ())]
    masks = _lesion_masks(raw, others)
    people = _participants(path / "participants.tsv")
    chosen = options or Options()
    samples = tuple(_sample(image, people, masks.get(image, []), chosen) for image in raw)
    if not samples:
        raise DataError(f"{path}: no folder sub- holds an image")
    if chosen.says() and not any(s.is_anomalous is False for s in samples):
        raise DataError(
            f"{path}: no participant is {' or '.join(chosen.normal_class)}, which was said to be "
            f"normal; {_listed(_groups(samples, people)) or 'participants.tsv names no groups'}"
        )
    return Dataset(
        name=path.resolve().name,
        root=path,
        layout=LAYOUT,
        samples=samples,
        notes=tuple(_notes(samples, len(others), sum(map(len, masks.values())))),
        unclear=_unclear(samples, people),
        is_divided=True,
    )


def _groups(
    samples: Sequence[Sample], people: Mapping[str, Mapping[str, str]]
) -> Counter[tuple[str, str]]:
    """Count the images of each (column, group)."""
    return Counter(
        (name, value)
        for sample in samples
        for name, value in people.get(str(sample.patient_id), {}).items()
        if name.casefold() in _SAYS and meaning(value) != "unknown"
    )


def _listed(groups: Counter[tuple[str, str]]) -> str:
    columns: dict[str, list[str]] = defaultdict(list)
    for (name, value), count in groups.items():
        columns[name].append(f"{value} ({count} images)")
    return "; ".join(f"{name}: {quote_some(values)}" for name, values in columns.items())


def _unclear(samples: Sequence[Sample], people: Mapping[str, Mapping[str, str]]) -> str:
    """Say so if no participant is known to be normal and there are groups of other names."""
    groups = _groups(samples, people)
    if not groups or any(s.is_anomalous is False for s in samples):
        return ""
    return (
        f"participants.tsv names groups, but not which is normal ({_listed(groups)}): say it with "
        "--normal-class NAME (in Python open_dataset(..., normal_class='NAME')), or '*' for all of "
        "them"
    )


def entities(image: Path) -> dict[str, str]:
    """Return what a name says: ``sub``, ``ses``, ``run`` and so on, and ``suffix``."""
    *pairs, suffix = stem_of(image).split("_")
    found = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return {**found, "suffix": suffix}


def _sample(
    image: Path, people: Mapping[str, Mapping[str, str]], masks: list[Path], options: Options
) -> Sample:
    named = entities(image)
    patient = f"sub-{named['sub']}" if "sub" in named else image.relative_to(image.anchor).parts[0]
    said = people.get(patient, {})
    header: dict[str, Any] = {**said, "suffix": named["suffix"], "modality": named["suffix"]}
    header["datatype"] = image.parent.name
    if "ses" in named:
        header["session"] = named["ses"]
    values = [said[name] for name in said if name.casefold() in _SAYS]
    words = [_meaning(value, options) for value in values]
    if not values and "*" in options.normal_class:
        words = ["normal"]
    is_normal = "normal" in words and "anomalous" not in words
    is_anomalous = not is_normal and (bool(masks) or "anomalous" in words)
    return Sample(
        path=image,
        split="test" if is_anomalous else "train" if is_normal else "unlabelled",
        is_anomalous=True if is_anomalous else False if is_normal else None,
        patient_id=patient,
        mask=masks[0] if masks else None,
        more_masks=tuple(masks[1:]),
        header=header,
    )


def _meaning(value: str, options: Options) -> Meaning | None:
    said = meaning(value)
    if not options.says() or said == "unknown":
        return said
    return "normal" if options.is_normal(value) else "anomalous"


def _lesion_masks(images: Sequence[Path], others: Sequence[Path]) -> dict[Path, list[Path]]:
    """Pair masks of lesions with the images of the same subject, session and run.

    A mask without the suffix of an image is of all images of that session: they are of one space
    or of none, which the reader of the mask says.
    """
    by_key: dict[tuple[str, str, str], list[Path]] = defaultdict(list)
    for image in images:
        by_key[_key(entities(image))].append(image)
    found: dict[Path, list[Path]] = defaultdict(list)
    for mask in others:
        named = entities(mask)
        if not (_MASK.search(stem_of(mask)) and _LESION.search(stem_of(mask))):
            continue
        fitting = by_key.get(_key(named), [])
        wanted = {part.casefold() for part in re.split(r"[_-]", stem_of(mask))}
        exact = [i for i in fitting if entities(i)["suffix"].casefold() in wanted]
        for image in exact or fitting:
            found[image].append(mask)
    return found


def _key(named: Mapping[str, str]) -> tuple[str, str, str]:
    return named.get("sub", ""), named.get("ses", ""), named.get("run", "")


def _participants(file: Path) -> dict[str, dict[str, str]]:
    """Return the columns of each participant; nothing if there is no such table."""
    if not is_file(file):
        return {}
    table = read_table(file, is_head=lambda names: "participant_id" in names)
    if "participant_id" not in table.names:
        raise DataError(f"{file}: has no column participant_id")
    found = {}
    for _, row in table.rows:
        values = dict(row)
        name = values.pop("participant_id")
        full = name if name.startswith("sub-") else f"sub-{name}"
        found[full] = {k: v for k, v in values.items() if k and v not in ("", "n/a")}
    return found


def _notes(samples: Sequence[Sample], others: int, used: int) -> list[str]:
    notes = []
    suffixes = Counter(str(s.header["suffix"]) for s in samples)
    if len(suffixes) > 1:
        listed = ", ".join(f"{name} ({count})" for name, count in suffixes.most_common())
        notes.append(
            f"Several kinds of images: {listed}. Choose one with --where "
            f"suffix={suffixes.most_common(1)[0][0]}."
        )
    if all(s.is_anomalous is None for s in samples):
        notes.append(
            "No participant is said to be normal (participants.tsv may say it, in a column group); "
            "where nothing is said of any, fit takes all of them as normal."
        )
    elif unknown := len({s.patient_id for s in samples if s.is_anomalous is None}):
        notes.append(f"{unknown} participants are neither normal nor anomalous, and left out.")
    if others:
        notes.append(f"{used} masks of lesions are used; other derivatives and masks are not.")
    return notes
