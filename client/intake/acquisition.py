"""How an image was made, of whom in general, and where its slices lie: what a DICOM header says of it, and no more.

A description is free text, in which a name can stand: of it only words of a fixed list are kept (PS3.15 E.3.6, Clean
Descriptors). Age becomes a decade; from 80 on it is one. Dates are not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from client.intake.image import Acquired

_LONGEST = 40
_OLDEST = 80
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_GAUSS_A_TESLA = 1e4
WORDS = frozenset([
    "t1", "t1w", "t2", "t2w", "t2star", "pd", "pdw", "flair", "stir", "dwi", "adc", "dti", "swi", "tof", "mra",
    "mrv", "mrcp", "asl", "perf", "perfusion", "diffusion", "trace", "bold", "fmri", "b0", "b1000", "tse", "fse",
    "se", "gre", "ge", "epi", "mprage", "mpr", "spgr", "flash", "vibe", "lava", "dixon", "haste", "trufi", "ciss",
    "fiesta", "space", "cube", "fs", "fatsat", "fat", "water", "inphase", "outphase", "dyn", "dynamic", "dce",
    "localizer", "localiser", "scout", "survey", "topogram", "ax", "axial", "tra", "transversal", "cor", "coronal",
    "sag", "sagittal", "obl", "oblique", "pre", "post", "contrast", "gd", "gad", "km", "nativ", "native", "plain",
    "ce", "arterial", "venous", "portal", "delayed", "late", "early", "ap", "pa", "lat", "lateral", "ll", "rl",
    "stehend", "liegend", "supine", "prone", "erect", "standing", "cc", "mlo", "spot", "head", "brain", "kopf",
    "skull", "schaedel", "neck", "hals", "cervical", "spine", "wirbelsaeule", "lumbar", "thoracic", "thorax",
    "chest", "lung", "lunge", "abdomen", "pelvis", "becken", "hip", "huefte", "knee", "knie", "shoulder",
    "schulter", "hand", "foot", "fuss", "ankle", "wrist", "elbow", "leg", "arm", "heart", "herz", "cardiac",
    "liver", "leber", "kidney", "niere", "prostate", "prostata", "breast", "mamma", "eye", "retina", "fundus",
    "optic", "hippocampus", "ct", "cta", "hrct", "soft", "tissue", "bone", "knochen", "weichteil", "lungenfenster",
    "kernel", "thin", "thick", "recon", "reg", "mip", "minip", "vrt", "2d", "3d", "4d", "iso", "1mm", "2mm", "3mm",
    "5mm", "repeat", "motion", "corrected", "series", "left", "right", "links", "rechts", "xray", "cr", "dx",
    "us", "mg", "mr", "pet", "spect", "nm", "oct",
])  # fmt: skip
"""Words of protocols: sequences, planes, parts of the body, phases. None of them names a person."""
_ONE_OF = "|".join(sorted(WORDS, key=len, reverse=True))
_KNOWN, _ALL_KNOWN = re.compile(_ONE_OF), re.compile(f"(?:{_ONE_OF})+")
OTHER_WORDS = "(other words)"


def acquired(headers: Sequence[Dataset]) -> Acquired:
    """Return what is kept of a file's headers, one for each of its frames. A value that can't be read is none."""
    header = headers[0]
    places = [place(frame) for frame in headers]
    whole = all(distance is not None for _, distance in places)
    return Acquired(
        manufacturer=_words(header, "Manufacturer"),
        model=_words(header, "ManufacturerModelName"),
        field=_field(header),
        protocol=_protocol(header),
        sex=sex if (sex := _words(header, "PatientSex").upper()) in {"M", "F", "O"} else "",
        age=_decade(_words(header, "PatientAge")),
        spacing=next((found for keyword in _SPACINGS if len(found := numbers(header, keyword)) == 2), ()),
        thickness=_number(header, "SliceThickness"),
        between=_number(header, "SpacingBetweenSlices"),
        orientation=_orientation(headers) if whole else (),
        places=tuple(round(distance, 4) for _, distance in places if distance is not None) if whole else (),
    )


def place(frame: Dataset) -> tuple[npt.NDArray[np.float64] | None, float | None]:
    """Return a slice's unit normal and its distance along it (mm); both None when the header does not say.

    The distance is that of Image Position (Patient) along the normal of Image Orientation (Patient), PS3.3 C.7.6.2.1.1.
    """
    orientation, position = numbers(frame, "ImageOrientationPatient"), numbers(frame, "ImagePositionPatient")
    if len(orientation) != 6 or len(position) != 3:
        return None, None
    normal = np.cross(np.asarray(orientation[:3]), np.asarray(orientation[3:]))
    length = float(np.linalg.norm(normal))
    if length == 0:
        return None, None
    normal = normal / length
    return normal, float(normal @ np.asarray(position))


def _orientation(headers: Sequence[Dataset]) -> tuple[float, ...]:
    """The direction cosines of all frames where they are the same; nothing where they differ."""
    found = {tuple(round(number, 3) for number in numbers(frame, "ImageOrientationPatient")) for frame in headers}
    return found.pop() if len(found) == 1 else ()


def _protocol(header: Dataset) -> str:
    text = _words(header, "SeriesDescription", 200) or _words(header, "ProtocolName", 200)
    parts = re.findall(r"[a-z0-9]+", text.casefold())
    known = [word for part in parts if _ALL_KNOWN.fullmatch(part) for word in _KNOWN.findall(part)]
    return " ".join(dict.fromkeys(known))[:_LONGEST] or (OTHER_WORDS if parts else "")


def _field(header: Dataset) -> float | None:
    """Tesla, to a tenth. Some scanners write gauss."""
    found = _number(header, "MagneticFieldStrength")
    if found is None:
        return None
    return round(found / _GAUSS_A_TESLA if found > 100 else found, 1)


def _decade(age: str) -> int | None:
    """The decade of an Age String (PS3.5 6.2): "045Y" is 40, "006M" is 0."""
    if not re.fullmatch(r"\d{1,3}[DWMY]", age):
        return None
    years = int(age[:-1]) if age[-1] == "Y" else 0
    return min(years // 10 * 10, _OLDEST)


def _words(header: Dataset, keyword: str, limit: int = _LONGEST) -> str:
    """An attribute's text, printable and in one line; nothing when it is absent or broken."""
    try:
        value = header.get(keyword)
        text = str(value[0]) if isinstance(value, MultiValue) else str(value or "")
    except Exception:  # a broken value is no value
        return ""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())[:limit]


def numbers(header: Dataset, keyword: str) -> tuple[float, ...]:
    """Return an attribute's numbers; nothing when it is absent, broken or not finite."""
    try:
        value = header.get(keyword)
        found = tuple(float(number) for number in (value if hasattr(value, "__iter__") else [value]))
    except Exception:  # a broken value is no value
        return ()
    return found if np.isfinite(found).all() else ()


def _number(header: Dataset, keyword: str) -> float | None:
    found = numbers(header, keyword)
    return found[0] if len(found) == 1 else None
