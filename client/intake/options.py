"""What the steward decides about an import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import UsageError

DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)
DEFAULT_SEED = 0


@dataclass(frozen=True)
class ImportOptions:
    """The choices of one import.

    `allow_identified` takes files that identify a person, `allow_burned_in` files that declare text in their pixels.
    `deidentify` makes a de-identified copy of each DICOM file, which is read in its place; in it text that is found in
    the pixels is blanked with `clean_pixels`, and is a reason to refuse the file without.
    `key_column` and `label_column` name the label file's columns. `patient_from` says whose a file is that names no
    patient (PNG, JPEG, NIfTI): its own ("file"), or its top folder's ("folder"). `fractions` (train, validation, test)
    and `seed` make the splits of a new collection (None: 0.7, 0.15, 0.15 and 0); they can't change later.
    `modalities` are the DICOM modalities to take; none means all. `columns` are the features to take of a table; none
    means all that are numbers or a few words.

    `label_tag` is the keyword of the DICOM attribute that is the label, `label_reports` takes the labels of Structured
    Reports: each in place of a label file.

    `masks` is a folder of masks, which lie as the images do, or of DICOM SEG and RTSTRUCT objects; `boxes` a file of
    boxes or a folder of VOC files. `structures` says what a mask's values or an object's names mean, as (found, meant);
    `instances` is the one structure whose single objects an instance map counts.
    `workers` is how many processes read files; 0 takes as many as are worthwhile.
    """

    allow_identified: bool = False
    allow_burned_in: bool = False
    key_column: str | None = None
    label_column: str = "label"
    patient_from: Literal["file", "folder"] = "file"
    fractions: tuple[float, float, float] | None = None
    seed: int | None = None
    modalities: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    label_tag: str = ""
    label_reports: bool = False
    workers: int = 1
    masks: Path | None = None
    boxes: Path | None = None
    structures: tuple[tuple[str, str], ...] = ()
    instances: str = ""
    deidentify: bool = False
    clean_pixels: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for values that make no sense."""
        if self.fractions is not None:
            inside = len(self.fractions) == 3 and all(0 <= part <= 1 for part in self.fractions)
            if not inside or abs(sum(self.fractions) - 1) > 1e-6 or self.fractions[0] == 0:
                raise UsageError(
                    f"the splits' fractions must be three numbers from 0 to 1 that add up to 1, the first not 0: "
                    f"got {', '.join(map(str, self.fractions))}"
                )
        if self.patient_from not in ("file", "folder"):
            raise UsageError(f'patient_from is "file" or "folder", not "{self.patient_from}"')
        if not 0 <= self.workers <= 256:
            raise UsageError(f"workers must be from 0 (as many as are worthwhile) to 256, got {self.workers}")
        if self.clean_pixels and not self.deidentify:
            raise UsageError("pixels are cleaned in de-identified copies only: --clean-pixels needs --deidentify")
        if self.clean_pixels and self.allow_burned_in:
            raise UsageError("--clean-pixels blanks text in the pixels, --allow-burned-in leaves it: say one of them")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"the seed must be from 0 to 2**63 - 1, got {self.seed}")
