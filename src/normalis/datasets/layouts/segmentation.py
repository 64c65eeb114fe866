"""nnU-Net (v1 and v2) and the Medical Segmentation Decathlon: ``imagesTr``, ``labelsTr``.

``dataset.json`` names the channels and the labels. A file ``case_0000.nii.gz`` is channel 0 of its
case: ``--where channel=FLAIR`` chooses one. A case is a patient. Where all labels are lesions the
masks are masks, and the images anomalous; labels of organs say nothing of what is normal, and are
left aside.

Reference: Isensee et al., *nnU-Net*, Nature Methods 18 (2021); Antonelli et al., *The Medical
Segmentation Decathlon*, Nature Communications 13 (2022).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from normalis.datasets.base import Dataset, Options, Sample
from normalis.datasets.listing import folders_in, is_file, list_images, quote_some, stem_of
from normalis.datasets.words import is_class_name, meaning
from normalis.errors import DataError, LayoutError

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "nnU-Net/Decathlon"

_PARTS = {"imagestr": "labelstr", "imagests": "labelsts", "imagesval": "labelsval"}
_CHANNEL = re.compile(r"(.+)_(\d{4})")
_LESION = re.compile(
    r"tumou?r|lesion|cancer|o?edema|necro|enhanc|metasta|nodule|stroke|infarct|h(a)?emorrh|cyst|wmh",
    re.IGNORECASE,
)
# What a label has to be of, for its images to be normal for all that is known.
_ORGAN = re.compile(
    r"liver|spleen|kidney|pancrea|gallbladder|stomach|esophag|oesophag|aorta|vein|vena|arter|vessel"
    r"|heart|atri|ventric|myocard|cardi|lung|lobe|trachea|bronch|airway|brain|cerebr|cerebell|stem"
    r"|matter|cortex|hippocamp|thalam|caudate|putamen|pallid|amygdal|csf|fluid|skull|spine|vertebra"
    r"|sacrum|disc|rib|sternum|clavic|scapul|humer|femur|tibia|fibula|pelvi|hip|bone|muscle|glute"
    r"|fat|skin|body|bladder|prostate|uter|ovar|testi|seminal|rect|colon|bowel|intestin|duoden"
    r"|adrenal|thyroid|parotid|gland|eye|lens|optic|nerve|chiasm|cochlea|mandib|tooth|teeth|tongue"
    r"|larynx|pharynx|breast|nipple|lymph|cartilage|menisc|ligament|tendon|retina|cup|anterior"
    r"|posterior|peripheral|central|transition|zone|\b[lr]v\b|\bmyo\b",
    re.IGNORECASE,
)


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether there are ``imagesTr`` and ``labelsTr``, or ``imagesTr`` and ``dataset.json``."""
    if not path.is_dir():
        return False
    names = {name.casefold() for name in folders_in(path)}
    described = is_file(path / "dataset.json")
    return any(images in names and (labels in names or described)
               for images, labels in _PARTS.items())  # fmt: skip


def read(path: Path, options: Options | None = None) -> Dataset:
    """List the images of all parts.

    Raises:
        LayoutError: if ``dataset.json`` is not understood.
        DataError: if there is no image.
    """
    said = _described(path / "dataset.json")
    channels, labels = _channels(said), _labels(said)
    use_masks = bool(labels) and all(map(_is_lesion, labels))
    folders = {name.casefold(): folder for name, folder in folders_in(path).items()}
    samples: list[Sample] = []
    aside = 0
    for images, masks in _PARTS.items():
        if images not in folders:
            continue
        found = {stem_of(p): p for p in _files(folders.get(masks))}
        aside += 0 if use_masks else len(found)
        for image in _files(folders[images]):
            samples.append(_sample(image, channels, found if use_masks else {}))
    if not samples:
        raise DataError(f"{path}: imagesTr and imagesTs hold no image")
    return Dataset(
        name=path.resolve().name,
        root=path,
        layout=LAYOUT,
        samples=tuple(samples),
        notes=tuple(_notes(samples, labels, aside)),
        unclear=_unclear(labels) if aside else "",
    )


def _unclear(labels: list[str]) -> str:
    """Say so if the masks that are left aside may be of lesions."""
    if labels and all(map(_is_organ, labels)):
        return ""
    which = f"are {quote_some(labels)}" if labels else "are not described"
    return (
        f"its masks {which}, so some images may show a lesion, and nothing says which are normal. "
        "Give a manifest with the columns path, label and mask, or a folder of normal images"
    )


def _files(folder: Path | None) -> tuple[Path, ...]:
    return () if folder is None else list_images(folder).images


def _sample(image: Path, channels: dict[int, str], masks: dict[str, Path]) -> Sample:
    named = _CHANNEL.fullmatch(stem_of(image))
    is_channel = named is not None and (int(named[2]) in channels or not channels)
    case = named[1] if named and is_channel else stem_of(image)
    number = int(named[2]) if named and is_channel else None
    header: dict[str, Any] = {"case": case}
    if number is not None:
        header["channel"] = channels.get(number, f"{number:04d}")
    elif len(channels) == 1:
        header["channel"] = next(iter(channels.values()))
    mask = masks.get(case)
    return Sample(
        path=image,
        split="unlabelled" if mask is None else "test",
        is_anomalous=None if mask is None else True,
        patient_id=case,
        mask=mask,
        header=header,
    )


def _described(file: Path) -> dict[str, Any]:
    if not is_file(file):
        return {}
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LayoutError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(said, dict):
        raise LayoutError(f"{file}: must describe a data set, holds {type(said).__name__}")
    return said


def _channels(said: dict[str, Any]) -> dict[int, str]:
    given = said.get("channel_names") or said.get("modality") or {}
    if not isinstance(given, dict):
        return {}
    return {int(k): str(v) for k, v in given.items() if str(k).isdecimal()}


def _labels(said: dict[str, Any]) -> list[str]:
    """Return the names of labels but for the background: of either direction of the table."""
    given = said.get("labels")
    if not isinstance(given, dict):
        return []
    names = [str(v) if str(k).isdecimal() else str(k) for k, v in given.items()]
    return [n for n in names if n.casefold() not in ("background", "ignore", "clear label")]


def _is_lesion(name: str) -> bool:
    is_word = meaning(name) == "anomalous" or (is_class_name(name) and meaning(name) != "normal")
    return bool(_LESION.search(name)) or (is_word and not name.isdigit())


def _is_organ(name: str) -> bool:
    return bool(_ORGAN.search(name)) and not _is_lesion(name)


def _notes(samples: list[Sample], labels: list[str], aside: int) -> list[str]:
    notes = []
    channels = Counter(str(s.header.get("channel", "")) for s in samples)
    if len(channels) > 1:
        listed = ", ".join(f"{name} ({count})" for name, count in channels.most_common())
        first = channels.most_common(1)[0][0]
        notes.append(f"Several channels: {listed}. Choose one with --where channel={first}.")
    if aside:
        named = quote_some(labels) or "unknown, for there is no dataset.json with labels"
        notes.append(
            f"Left aside {aside} masks: their labels are {named}, and not lesions alone. Nothing "
            "says which images are normal."
        )
    return notes
