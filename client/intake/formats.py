"""The table of formats. A format is one file of this package and one entry here."""

from __future__ import annotations

from client.intake import dicom, kspace, nifti, raster, series, slide, table
from client.intake.image import FileRefusedError, Format

FORMATS = (
    Format("slide", slide.matches, slide.inspect, slide.frames, tiles=slide.tiles),
    Format("dicom", dicom.matches, dicom.inspect, dicom.frames, series.volume, series.grid),
    Format("raster", raster.matches, raster.inspect, raster.frames),
    Format("nifti", nifti.matches, nifti.inspect, nifti.frames, nifti.volume, nifti.grid),
    Format("kspace", kspace.matches, kspace.inspect, kspace.frames, kspace.volume, kspace.grid),
    Format("table", table.matches, table.inspect, table.frames),
)
PROBE = 6
"""Raised whenever reading a file yields other facts or pixels: files are then read, and caches made, anew."""
HEAD_BYTES = 1024
"""So many first bytes tell the format; a file's name does not."""
_KNOWN_OTHERS = {
    b"PK\x03\x04": "an archive or office file: unpack it first",
    b"\x1f\x8b": "a compressed file that is no NIfTI: unpack it first",
    b"%PDF": "a PDF document",
}


def format_named(name: str) -> Format:
    """Return the entry of the table."""
    return next(entry for entry in FORMATS if entry.name == name)


def identify(head: bytes) -> Format:
    """Return the format of a file from its first bytes. Raises FileRefusedError when it is none of the table."""
    if not head:
        raise FileRefusedError("an empty file")
    for entry in FORMATS:
        if entry.matches(head):
            return entry
    for start, reason in _KNOWN_OTHERS.items():
        if head.startswith(start):
            raise FileRefusedError(f"not an image that is read here: {reason}")
    raise FileRefusedError("not an image that is read here: neither DICOM, PNG, JPEG, TIFF, NIfTI nor raw MR data")
