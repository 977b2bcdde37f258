"""Masks beside images: NIfTI label maps and PNG, found by their path; and instance maps, which give boxes too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from client.annotations import Annotation
from client.catalog import FileRecord
from client.intake import nifti
from client.intake.formats import format_named
from client.intake.image import FileRefusedError, one_line

ENDINGS = (".nii.gz", ".nii", ".png", ".tif", ".tiff", ".bmp")
MOST_STRUCTURES = 255
SAME_PLACE = 1e-2
"""Affines of an image and its mask may differ by so much, in mm."""


@dataclass(frozen=True)
class Structures:
    """What a mask's values, or an object's names, mean: `names` by what stands there.

    `instances` is the structure whose single objects an instance map counts; "" for maps of structures.
    """

    names: Mapping[str, str]
    instances: str = ""

    def called(self, found: str) -> str:
        """Return what is meant by a value or name."""
        return self.names.get(found, found)


def stem_of(path: str) -> str:
    """Return a path without the ending of an image."""
    for ending in (*ENDINGS, ".jpg", ".jpeg", ".dcm"):
        if path.casefold().endswith(ending):
            return path[: -len(ending)]
    return path


def masks_in(folder: Path) -> dict[str, Path]:
    """Return the masks of a folder by their path without ending. Raises FileRefusedError for two of one path."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name.casefold().endswith(ENDINGS):
            stem = stem_of(str(PurePosixPath(path.relative_to(folder))))
            if stem in found:
                raise FileRefusedError(f"two masks have the same path, apart from their endings: {path}")
            found[stem] = path
    return found


def drawn_in(path: Path, record: FileRecord, structures: Structures) -> Annotation:
    """Return the annotation of an image from its mask file.

    Raises
    ------
    FileRefusedError
        The mask can't be read, is no label map, or is not on the image's grid.
    """
    values = nifti.read_classes(path) if path.name.casefold().endswith((".nii", ".nii.gz")) else _plane(path)
    extent = (record.frames, record.rows, record.columns)
    if values.shape != extent:
        raise FileRefusedError(f"its mask is {_by(values.shape)}, and the image {_by(extent)}")
    _check_place(path, Path(record.root) / record.path, record.format)
    if structures.instances:
        return of_instances(values, structures.instances)
    present = [int(value) for value in np.unique(values) if value != 0]
    names = tuple(dict.fromkeys(structures.called(str(value)) for value in present))
    if len(names) > MOST_STRUCTURES:
        raise FileRefusedError(
            f"its mask has {len(names)} values, and at most {MOST_STRUCTURES} structures are taken: a map of single "
            "objects is imported with --instances NAME"
        )
    mask = np.zeros(extent, dtype=np.uint8)
    for value in present:
        mask[values == value] = names.index(structures.called(str(value))) + 1
    return Annotation(names, extent, mask)


def of_instances(values: npt.NDArray[np.int64], name: str) -> Annotation:
    """Return the mask and the boxes of an instance map (frames, rows, columns): each value above 0 is one object."""
    _, numbers = np.unique(values, return_inverse=True)  # ndimage wants values without gaps
    numbers = numbers.reshape(values.shape) + (0 if (values == 0).any() else 1)
    boxes = [
        [0.0, *(float(side.start) for side in place), *(float(side.stop) for side in place)]
        for place in ndimage.find_objects(numbers)
        if place is not None
    ]
    extent = (values.shape[0], values.shape[1], values.shape[2])
    return Annotation((name,), extent, (values != 0).astype(np.uint8), np.array(boxes, dtype=np.float32).reshape(-1, 7))


def _plane(path: Path) -> npt.NDArray[np.int64]:
    try:
        with Image.open(path, formats=("PNG", "TIFF", "BMP")) as picture:
            grey = picture.convert("RGB") if picture.mode == "RGBA" else picture
            values = np.asarray(grey)
    except Exception as error:  # foreign bytes make Pillow raise many kinds
        raise FileRefusedError(f"its mask can't be decoded: {one_line(error)}".replace(str(path), "it")) from error
    if values.ndim == 3:
        if not (values == values[..., :1]).all():
            raise FileRefusedError("its mask is a colour image: give one whose grey values tell the structures")
        values = values[..., 0]
    return values.astype(np.int64)[np.newaxis]


def _check_place(mask: Path, image: Path, kind: str) -> None:
    """Refuse a NIfTI mask that lies elsewhere than its NIfTI image."""
    if kind != "nifti" or not mask.name.casefold().endswith((".nii", ".nii.gz")):
        return
    grid = format_named(kind).grid
    ours, theirs = (grid([path]).affine for path in (image, mask)) if grid else (None, None)
    if ours is not None and theirs is not None and np.abs(ours - theirs).max() > SAME_PLACE:
        raise FileRefusedError("its mask lies elsewhere: the two affines differ")


def _by(extent: tuple[int, ...]) -> str:
    return " x ".join(map(str, extent))
