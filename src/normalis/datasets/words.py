"""Words that say of an image that it is normal, that it is not, or that nobody knows.

They name folders, labels of tables and lists of a JSON. A word that stands here nowhere is a class
of its own, and whether that class is normal has to be said with ``--normal-class``.
"""

from __future__ import annotations

import re
from typing import Literal

from normalis.datasets.base import Split

__all__ = [
    "SPLITS",
    "Meaning",
    "is_class_name",
    "is_mask_name",
    "meaning",
    "names_a_part",
    "plain",
    "says_normal",
    "speaks_of_a_finding",
    "split_of",
]

Meaning = Literal["normal", "anomalous", "unknown"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split(", "))


_NORMAL = _words(
    "0, clean, clear, control, controls, defect free, disease free, false, good, good "
    "images, hc, health, healthy, healthy control, healthy controls, healthy images, "
    "inlier, lesion free, neg, negative, no, no abnormality, no anomaly, no defect, no "
    "disease, no dr, no finding, no findings, no findings normal, no hemorrhage, no lesion, "
    "no pneumonia, no tumor, no tumour, nodisease, nofinding, nofindings, non anomalous, "
    "non covid, non demented, non tumor, non tumour, noncovid, nondefective, nondemented, "
    "nontumor, norm, normal, normal cases, normal data, normal images, normal slices, "
    "normals, not abnormal, not anomalous, notumor, notumour, ok, undamaged, uninfected, "
    "unremarkable, wnl, "
    "gesund, gesunde, unauffällig, unauffaellig, ohne befund, sain, sains, sano, sanos, sani, "
    "saudável, saudáveis, normaal, gezond, норма, здоровые, 正常"
)
_ANOMALOUS = _words(
    "1, abnormal, abnormal cases, abnormal images, abnormality, abnormals, anomalies, "
    "anomalous, anomaly, anormal, bad, broken, cancer, damaged, defect, defective, defects, "
    "disease, diseased, faulty, ill, infected, lesion, lesions, malignant, ng, no good, "
    "nogood, nok, non normal, nonnormal, not good, not normal, notgood, outlier, "
    "pathologic, pathological, pathology, pos, positive, sick, true, tumor, tumors, tumour, "
    "tumours, ungood, unhealthy, yes, "
    "krank, kranke, auffällig, auffaellig, pathologisch, malade, malades, pathologique, enfermo, "
    "enfermos, malati, doente, doentes, afwijkend, ziek, патология, больные, 異常, 异常, 不正常"
)
_UNKNOWN = _words(
    ", missing, n a, na, nan, none, not available, null, uncertain, undefined, unk, "
    "unknown, unlabeled, unlabelled, unspecified"
)
# Findings that often name a folder or a label: enough to say that a name is that of a class.
_FINDINGS = re.compile(
    r"(?<=...)oma$|omata$|itis$|(?<=...)os[ie]s$|a?emia$|pathy$|plasia$|trophy$|rrhage$|ectasis$"
    r"|(^| )(pneumo\w*|covid\w*|benign|malignan\w*|cancer\w*|tumou?rs?|lesions?|effusion"
    r"|opacit\w*|nodules?|fractur\w*|infarct\w*|ischa?emi\w*|bleed\w*|cataract|o?edema|drusen"
    r"|moderate|severe|proliferat\w*|\w*demented|hernia|polyps?|contamination|dementia"
    r"|alzheimer\w*|parkinson\w*|infect\w*|virus|viral|bacteria\w*|patholog\w*|diseased?|disease"
    r"|abnormal\w*|normals?|healthy|defect\w*|anomal\w*)( |$)"
    r"|^(class|klasse|classe|clase|cls|category|label|grade|stage) ?\d$"
)
_SHORT = _words(  # names of classes only if they are the whole name
    "ad, akiec, amd, bcc, bkl, cn, cnv, crack, cut, cyst, df, dme, dr, hole, mass, mci, mel, mild, "
    "nv, pituitary, scc, scratch, stone, stroke, tb, vasc"
)
_MASKS = _words(
    "annotation, annotations, anomaly maps, anomaly mask, anomaly masks, contours, "
    "derivatives, dseg, ground truth, ground truths, groundtruth, groundtruths, gt, gts, "
    "label, labels, labels tr, labels ts, labelstr, labelsts, labelsva, lesion mask, lesion "
    "masks, lesions mask, mask, mask images, masks, outlines, roi, rois, seg, segmentation, "
    "segmentation class, segmentation object, segmentationclass, segmentationobject, "
    "segmentations, segs, truth, "
    "maske, masken, segmentierung, segmentierungen, masque, masques, máscara, máscaras, mascara, "
    "mascaras, maschera, maschere, maska, maski, маска, маски, 掩码, 掩膜, マスク"
)
_MASK_END = re.compile(
    r"( |^)(masks?|segs?|segmentations?|gts?|labels?|annotations?|dseg|probseg|groundtruth"
    r"|ground truth|roi|matte|maske|masque)$"
)
# Words that tell parts of one data set apart, of which all may be normal.
_PARTS = _words(
    "left, right, l, r, od, os, axial, coronal, sagittal, transversal, ap, pa, lateral, cc, mlo, "
    "frontal, male, female, men, women, adult, adults, child, children, t1, t2, t1w, t2w, t1c, "
    "t1ce, flair, dwi, adc, swi, anat, func, ct, mr, mri, dx, cr, us, xray, dicom, nifti, png, "
    "jpg, jpeg, tif, tiff, image, images, img, imgs, picture, pictures, scan, scans, slice, "
    "slices, volume, volumes, photo, photos, bilder, data, raw, original, originals, new, more, "
    "ge, siemens, philips, toshiba, canon, hitachi, fuji, fujifilm, agfa, carestream, samsung, "
    "zeiss, heidelberg, topcon, scanner, site, hospital, clinic, center, centre, institution, "
    "batch, part, group, set, session, visit, baseline, series, study, patient, subject, case, "
    "normal, normals, healthy"
)
SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "tr", "trn", "trainset", "train set"), "train"),
    **dict.fromkeys(
        ("validation", "val", "valid", "dev", "tune", "tuning", "calibration", "calib", "va"),
        "validation",
    ),
    **dict.fromkeys(
        ("test", "testing", "ts", "tst", "testset", "test set", "holdout", "hold out", "eval"),
        "test",
    ),
}


def plain(name: str) -> str:
    """Return a name in lower case with spaces for its punctuation: ``No_Finding`` is no finding."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip()) if not name.isupper() else name
    return " ".join(re.split(r"[\W_]+", text.casefold())).strip()


def _known(name: str) -> set[str]:
    joined = " ".join(re.split(r"[\W_]+", name.casefold())).strip()
    return {plain(name), joined}


def meaning(name: str) -> Meaning | None:
    """Return what a word says of an image; None where it is the name of some class."""
    text = name.strip()
    if re.fullmatch(r"[01]\.0*", text):
        text = text[0]
    if text.startswith("-"):  # -1 is another class, not 1
        return None
    known = _known(text)
    if known & _NORMAL:
        return "normal"
    if known & _ANOMALOUS:
        return "anomalous"
    return "unknown" if known & _UNKNOWN else None


def names_a_part(name: str) -> bool:
    """Whether a folder's name is that of a part of a data set: ``left``, ``site B``, ``GE_T1``."""
    return not _PARTS.isdisjoint(word for text in _known(name) for word in text.split())


def is_class_name(name: str) -> bool:
    """Whether a folder of this name holds a class, as far as words tell."""
    known = _known(name)
    if meaning(name) in ("normal", "anomalous") and not name.isdigit():
        return True
    return bool(known & _SHORT) or any(_FINDINGS.search(text) for text in known)


def says_normal(name: str) -> bool:
    """Whether a name says normal, alone or with words of no finding: ``normal_films``.

    ``non_normal``, ``normal_and_tumor`` and ``abnormal films`` do not.
    """
    if meaning(name) is not None:
        return meaning(name) == "normal"
    words = plain(name).split()
    spoken = [w for w in words if w not in ("and", "vs")]
    doubtful = [w for w in spoken if meaning(w) != "normal" and is_class_name(w)]
    negated = {"no", "non", "not", "near", "ab"} & set(words)
    good = any(meaning(w) == "normal" and not w.isdigit() and len(w) > len("ok") for w in spoken)
    return good and not doubtful and not negated


def speaks_of_a_finding(stem: str) -> bool:
    """Whether a word of a file's name is that of an anomaly: ``tumor_4``, ``person1_virus_6``."""
    words = (word for word in re.split(r"[\W\d_]+", stem) if len(word) > len("true"))
    return any(is_class_name(word) and meaning(word) != "normal" for word in words)


def is_mask_name(name: str) -> bool:
    """Whether a folder, or the stem of a file, is named as masks are."""
    known = _known(name)
    return bool(known & _MASKS) or any(_MASK_END.search(text) for text in known)


def split_of(name: str) -> Split | None:
    """Return the split that a word names, None if it names none."""
    return next((SPLITS[text] for text in _known(name) if text in SPLITS), None)
