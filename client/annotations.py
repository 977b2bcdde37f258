"""What people drew into a collection's images, in one form whatever it came in: masks of structures, and boxes.

An annotation belongs to one file of the catalog and lies on the very grid of its pixels: (frames, rows, columns), with
frames in the order in which the file gives them. It is kept in the kit, under the SHA-256 of its bytes, which the
catalog knows: another mask is another collection, and is noticed. Nothing of it ever leaves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import DataError
from common.files import write_atomically

FOLDER = "annotations"
ABOUT = "annotation"


@dataclass(frozen=True)
class Annotation:
    """Structures by name, and where they are in one file of `extent` (frames, rows, columns).

    `mask` is (frames, rows, columns) uint8, 0 the background and k the k-th of `names`; None where only boxes are
    known.
    `boxes` is (n, 7) float32: the place of its name in `names`, then the first frame, row and column, and those
    behind the last, in pixels (an edge lies between two pixels); (0, 7) where there are none, None where they are not
    known.
    """

    names: tuple[str, ...]
    extent: tuple[int, int, int]
    mask: npt.NDArray[np.uint8] | None = None
    boxes: npt.NDArray[np.float32] | None = None


def keep(kit_folder: Path, annotation: Annotation) -> str:
    """Write an annotation into the kit, readable by its owner only; return its name there. The same one: the same name.

    Raises
    ------
    DataError
        The disk can't take it.
    """
    parts = {"mask": annotation.mask, "boxes": annotation.boxes}
    tensors = {name: np.ascontiguousarray(part) for name, part in parts.items() if part is not None}
    about = {"names": annotation.names, "extent": annotation.extent}
    content = save(tensors, metadata={ABOUT: json.dumps(about)})  # one entry: several come in any order, by chance
    name = hashlib.sha256(content).hexdigest()
    path = kit_folder / FOLDER / f"{name}.safetensors"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            write_atomically(path, content, mode=0o600)
    except OSError as error:
        raise DataError(f"{path}: an annotation can't be written: {error.strerror}") from error
    return name


def read(kit_folder: Path, name: str) -> Annotation:
    """Read an annotation of the kit. Raises DataError when it is gone or damaged."""
    path = kit_folder / FOLDER / f"{name}.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            names, extent = tuple(about["names"]), tuple(about["extent"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{path}: an annotation is gone or damaged: import its folder again") from error
    return Annotation(names, extent, tensors.get("mask"), tensors.get("boxes"))


def forget_others(kit_folder: Path, names: set[str]) -> None:
    """Remove the kit's annotations that are not among `names`."""
    for path in (kit_folder / FOLDER).glob("*.safetensors"):
        if path.stem not in names:
            path.unlink(missing_ok=True)


def mask_of(annotation: Annotation, labels: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Return the mask (frames, rows, columns) with the place of each structure in `labels`, counted from 1.

    Structures that `labels` does not name are background. Raises DataError where there is no mask.
    """
    if annotation.mask is None:
        raise DataError("the image has boxes and no mask")
    places = {label: place for place, label in enumerate(labels, start=1)}
    table = np.zeros(256, dtype=np.uint8)
    for value, name in enumerate(annotation.names, start=1):
        table[value] = places.get(name, 0)
    return np.asarray(table[annotation.mask])


def boxes_of(annotation: Annotation, labels: Sequence[str], frame: int | None = None) -> npt.NDArray[np.float32]:
    """Return boxes as (n, 1 + 2 axes) float32: the place of each structure in `labels`, from 0, and the two corners.

    Of one frame in 2D (row, column, row, column), or of the whole file in 3D. Structures that `labels` does not name
    are left out. Raises DataError where boxes are not known.
    """
    if annotation.boxes is None:
        raise DataError("the image has a mask and no boxes")
    places = {name: float(labels.index(name)) for name in annotation.names if name in labels}
    known = [place for place, name in enumerate(annotation.names) if name in places]
    boxes = annotation.boxes[np.isin(annotation.boxes[:, 0], known)].copy()
    boxes[:, 0] = [places[annotation.names[int(value)]] for value in boxes[:, 0]]
    if frame is None:
        return boxes
    inside = (boxes[:, 1] <= frame) & (frame < boxes[:, 4])
    return boxes[inside][:, [0, 2, 3, 5, 6]]
