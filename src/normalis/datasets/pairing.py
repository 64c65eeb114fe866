"""Which mask belongs to which image: by the path below their own roots, then by known suffixes.

A mask's key is its path relative to the folder of masks, without suffix, in lower case; so is an
image's, relative to the folder of images. Equal keys belong together. Else a mask may be named
after its image, with one of `ENDINGS` more (``000_mask``, ``000-seg``), with ``seg`` for a contrast
(``P1_seg_77`` of ``P1_flair_77``), or lie in a folder named like its image, which may then have
several masks (``000/000.png``, ``000/001.png``, as in MVTec LOCO). Last, where folders are flatter
on one side, a name that is unique on both sides counts. What is left on either side is said; two
files of one key are an error, for nobody can know which is meant.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from normalis.datasets.listing import Listing, quote_some, stem_of
from normalis.datasets.words import is_mask_name
from normalis.errors import DataError
from normalis.errors.words import counted, verb

__all__ = ["ENDINGS", "Pairs", "below_masks", "divide", "key_of", "of_no_images", "pair_masks"]


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ENDINGS = _split(
    "_mask _masks _seg _segmentation _label _labels _gt _groundtruth _ground_truth "
    "_annotation _lesion _roi _dseg mask"
)
_OF_MASK = re.compile(r"(?<![a-z])(seg|mask|label|gt|annotation)(?![a-z])")

Key = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Masks by image.

    Attributes:
        masks: image -> its masks, in order; images without one are not listed.
        left: masks that belong to no image.
    """

    masks: Mapping[Path, tuple[Path, ...]] = field(default_factory=dict)
    left: tuple[Path, ...] = ()

    def of(self, image: Path) -> dict[str, object]:
        """Return the arguments ``mask`` and ``more_masks`` of an image's sample."""
        first, *more = self.masks.get(image, (None,))
        return {"mask": first, "more_masks": tuple(more)}

    def notes(self, anomalous: Sequence[Path], *, any_masks: bool) -> list[str]:
        """Say which masks match no image, and which anomalous images have none.

        Args:
            anomalous: images that should have a mask.
            any_masks: whether there are masks at all.
        """
        notes = []
        if self.left:
            notes.append(
                f"{counted(len(self.left), 'mask')} {verb(len(self.left), 'matches', 'match')} no "
                f"image by name; the first is {self.left[0].name}."
            )
        bare = [path.name for path in anomalous if path not in self.masks]
        if bare and any_masks:
            notes.append(f"{len(bare)} anomalous images have no mask: {quote_some(bare)}.")
        return notes


def pair_masks(
    images: Iterable[tuple[Path, PurePath]], masks: Iterable[tuple[Path, PurePath]]
) -> Pairs:
    """Pair masks with images.

    Args:
        images: files, each with its path relative to the images' root.
        masks: files, each with its path relative to the masks' root.

    Raises:
        DataError: if two images or two masks have one key.
    """
    image_of = _by_key(images, what="images")
    found: dict[Path, list[tuple[int, Path]]] = defaultdict(list)
    left: list[tuple[Path, Key]] = []
    for mask, place in masks:
        rank, image = _image_of(key_of(place), image_of)
        if image is None:
            left.append((mask, key_of(place)))
        else:
            found[image].append((rank, mask))
    still = _by_unique_name(left, image_of, found)
    pairs = {image: _one(image, candidates) for image, candidates in found.items()}
    return Pairs(masks=pairs, left=tuple(still))


def key_of(place: PurePath) -> Key:
    """Return the parts of a relative path in lower case, the last without suffix."""
    return (*(part.casefold() for part in place.parts[:-1]), stem_of(place).casefold())


def _by_key(files: Iterable[tuple[Path, PurePath]], *, what: str) -> dict[Key, Path]:
    found: dict[Key, Path] = {}
    for path, place in files:
        key = key_of(place)
        if key in found:
            raise DataError(
                f"{path} and {found[key]} are two {what} of one name, so that it is not known "
                "to which of them a mask belongs; rename one, or give a manifest with the column "
                "mask"
            )
        found[key] = path
    return found


_FOLDER = 9  # rank of a mask in a folder named like its image: there may be several


def _image_of(mask: Key, images: Mapping[Key, Path]) -> tuple[int, Path | None]:
    """Return the image of a mask's key, and the rule that found it; the first rule wins."""
    *folders, name = mask
    for rank, candidate in enumerate(_names(name)):
        if image := images.get((*folders, candidate)):
            return rank, image
    if folders and (image := images.get(tuple(folders))):
        return _FOLDER, image
    return 0, None


def _names(name: str) -> list[str]:
    """Return the names that the image of a mask of this name may have, likeliest first."""
    names = [name]
    for end in ENDINGS:
        for variant in {end, end.replace("_", "-"), end.replace("_", " "), end.replace("_", ".")}:
            if name.endswith(variant) and len(name) > len(variant):
                names.append(name[: -len(variant)].rstrip("_-. "))
    for start in ("mask_", "seg_", "gt_", "label_", "mask-", "seg-"):
        if name.startswith(start):
            names.append(name[len(start) :])
    if _OF_MASK.search(name):
        contrasts = ("flair", "t1ce", "t1", "t1w", "t2", "t2w", "image", "img", "ct")
        names += [_OF_MASK.sub(contrast, name) for contrast in contrasts]
    base = names[1:]
    names += [f"{one}_0000" for one in (name, *base)]  # nnU-Net: the first channel
    names += [f"{one}{end}" for one in base for end in ("_flair", "_t1", "_t1w", "_image", "_img")]
    return list(dict.fromkeys(names))


def _by_unique_name(
    left: Sequence[tuple[Path, Key]],
    images: Mapping[Key, Path],
    found: dict[Path, list[tuple[int, Path]]],
) -> list[Path]:
    """Pair what is left where one side has flatter folders; return what is left then."""
    by_name: dict[str, list[tuple[Key, Path]]] = defaultdict(list)
    for key, image in images.items():
        by_name[key[-1]].append((key[:-1], image))
    counts = Counter(key[-1] for _, key in left)
    still = []
    for mask, key in left:
        fitting = [
            image
            for name in _names(key[-1])
            for folders, image in by_name.get(name, [])
            if image not in found and (_within(key[:-1], folders) or _within(folders, key[:-1]))
        ]
        if len(set(fitting)) == 1 and counts[key[-1]] == 1:
            found[fitting[0]].append((0, mask))
        else:
            still.append(mask)
    return still


def _within(few: Key, many: Key) -> bool:
    """Whether the folders of one path are among those of the other, in order."""
    rest = iter(many)
    return all(part in rest for part in few)


def _one(image: Path, candidates: list[tuple[int, Path]]) -> tuple[Path, ...]:
    if len(candidates) > 1 and not all(rank == _FOLDER for rank, _ in candidates):
        both = quote_some(mask for _, mask in candidates)
        raise DataError(
            f"{image}: {len(candidates)} masks have its name: {both}; remove the wrong ones, or "
            "give a manifest with the column mask"
        )
    return tuple(mask for _, mask in candidates)


def of_no_images(listing: Listing) -> list[str]:
    """Say which files of a folder of masks are no images, so that they mask nothing."""
    if not listing.aside:
        return []
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(listing.aside.items()))
    return [f"Files of folders of masks that are no images are not read as masks: {kinds}."]


def divide(files: Iterable[Path], root: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Tell images from masks: by a folder below the root, or by the end of the name.

    Where all names end as those of masks do (``patch_roi``), the end says nothing.

    Returns:
        The images and the masks, each in order.
    """
    listed = list(files)
    by_folder = {p: any(map(is_mask_name, p.relative_to(root).parts[:-1])) for p in listed}
    by_name = {p: is_mask_name(stem_of(p)) for p in listed}
    if all(by_name[p] for p in listed if not by_folder[p]):
        by_name = dict.fromkeys(listed, False)
    masks = tuple(p for p in listed if by_folder[p] or by_name[p])
    images = tuple(p for p in listed if not (by_folder[p] or by_name[p]))
    return images, masks


def below_masks(mask: Path, root: Path) -> PurePath:
    """Return a mask's path below the root without the folders that are named as masks are."""
    place = mask.relative_to(root)
    return PurePath(*(part for part in place.parts[:-1] if not is_mask_name(part)), place.name)
