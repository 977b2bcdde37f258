"""Small pictures of files, as data that stands in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import islice

import numpy as np
from PIL import Image

from client.catalog import FileRecord
from client.intake.formats import format_named
from client.intake.image import FileRefusedError, Pixels
from client.intake.intensity import with_channels

SIDE = 112
"""The longer side of a picture, in pixels."""
MOST_LABELS, MOST_OF_A_LABEL = 12, 24


class Pictures:
    """Makes the pictures of a page, each once."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], str] = {}

    def of(self, record: FileRecord) -> str:
        """Return a PNG as a data URI; "" for a file that can't be shown, or any more."""
        key = (record.root, record.path)
        if key not in self._made:
            self._made[key] = _picture(record)
        return self._made[key]


def sample(records: Sequence[FileRecord], most: int = MOST_OF_A_LABEL) -> list[FileRecord]:
    """Return `most` of the records: one of each patient before a second of any, else by key: the same each time."""
    seen: dict[str, int] = {}
    ordered = []
    for record in sorted(records, key=lambda record: record.sha256):
        seen[record.patient] = seen.get(record.patient, 0) + 1
        ordered.append((seen[record.patient], record.sha256, record))
    return [record for *_, record in sorted(ordered, key=lambda item: item[:2])[:most]]


def _picture(record: FileRecord) -> str:
    if record.format in ("", "table"):
        return ""
    try:
        frames = format_named(record.format).frames(record.image)
        image = next(islice(frames, max(record.frames - 1, 0) // 2, None), None)
    except (FileRefusedError, OSError):
        return ""
    return "" if image is None else _encoded(image)


def _encoded(image: Pixels) -> str:
    image = with_channels(image, 1) if image.shape[-1] == 2 else image
    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels[..., :3])
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=False)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
