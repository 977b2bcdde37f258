"""What happens to each attribute: the Basic Application Level Confidentiality Profile of PS3.15 Annex E, with options.

`profile.csv` is Table E.1-1 (edition 2026c) as data: tag, action of the basic profile, and the actions of the options
that are used here. They keep what training needs, and no more:

    113107  Retain Longitudinal Temporal Information with Modified Dates: shifted, for each patient alike
    113109  Retain Device Identity
    113108  Retain Patient Characteristics
    113105  Clean Descriptors: of a description only words of a fixed list stay
    113104  Clean Structured Content: codes, numbers and references stay, texts don't
    113111  Retain Safe Private (see `safe_private`)

Where the table leaves a choice to the object's definition (X/Z, X/D, Z/D) the value that is always valid is taken:
empty where it may be, else a dummy. The table says nothing of most attributes, and leaves them as they are. Here that
holds for numbers and codes only: free text that is not in `TEXTS`, and bytes that are not in `ARRAYS`, do not stay.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files

from pydicom.datadict import tag_for_keyword

from client.intake.confidentiality import ACTIONS

EDITION = "2026c"
DATES, DEVICE, PATIENT, DESCRIPTORS, STRUCTURED = "113107", "113109", "113108", "113105", "113104"


class Action(StrEnum):
    """What is done to an attribute."""

    REMOVE = "removed"
    EMPTY = "emptied"
    DUMMY = "replaced by a dummy"
    UID = "replaced by a keyed UID"
    SHIFT = "shifted in time"
    CLEAN = "cleaned to known words"
    KEEP = "kept"
    ENTER = "entered"


@dataclass(frozen=True)
class Rule:
    """What the profile says of one attribute. `otherwise` is what a cleaning does that leaves nothing over.

    `option` is the code of the option by which the attribute stays, or "".
    """

    action: Action
    otherwise: Action = Action.REMOVE
    option: str = ""


TEXTS = frozenset([
    "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "SecondaryCaptureDeviceManufacturer",
    "SecondaryCaptureDeviceManufacturerModelName", "SecondaryCaptureDeviceSoftwareVersions", "SequenceName",
    "PulseSequenceName", "ImagedNucleus", "ResonantNucleus", "ReceiveCoilName", "TransmitCoilName",
    "ReceiveCoilManufacturerName", "ConvolutionKernel", "FilterType", "DetectorManufacturerName",
    "DetectorManufacturerModelName", "Radiopharmaceutical", "RandomsCorrectionMethod", "AttenuationCorrectionMethod",
    "ScatterCorrectionMethod", "ReconstructionMethod", "DecayCorrection", "RescaleType", "ModalityLUTType",
    "WindowCenterWidthExplanation", "LUTExplanation", "CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion",
    "CodeMeaning", "LongCodeValue", "SegmentLabel", "SegmentAlgorithmName", "AlgorithmName", "AlgorithmVersion",
    "StackID", "DimensionDescriptionLabel", "OpticalPathIdentifier", "ViewName", "RTImageLabel",
    "CodingSchemeRegistry",
])  # fmt: skip
"""Texts that the table does not list and that stay: of technique, device and coded concepts."""
ARRAYS = frozenset([
    "PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "LUTData", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "AlphaPaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData", "ICCProfile", "PointCoordinatesData", "DoublePointCoordinatesData",
    "LongPrimitivePointIndexList", "VectorCoordinateData", "TrackPointIndexList", "FloatingPointValues",
])  # fmt: skip
"""Arrays of bytes or numbers that stay."""
CLASSES = frozenset(["CodingSchemeUID", "ContextUID", "MappingResourceUID", "ContextGroupExtensionCreatorUID"])
"""UIDs that name a kind of thing, besides those of SOP classes, and stay."""
_BASIC = {
    "X": Action.REMOVE, "Z": Action.EMPTY, "X/Z": Action.EMPTY, "D": Action.DUMMY, "Z/D": Action.DUMMY,
    "X/D": Action.DUMMY, "X/Z/D": Action.DUMMY, "U": Action.UID, "X/Z/U*": Action.ENTER,
}  # fmt: skip
_TIMES = ("Date", "Time")
_OF_TEXT = Rule(Action.CLEAN, Action.DUMMY, DESCRIPTORS)
_OWN = {"TextValue": _OF_TEXT, "GraphicAnnotationSequence": Rule(Action.REMOVE)}
"""Texts of structured reports, of which known words stay; and drawings, which are not cleaned but removed."""


@cache
def rules() -> dict[int, Rule]:
    """Return the rule for each attribute that has one, by tag."""
    table = files("client.intake.deidentification").joinpath("profile.csv").read_text(encoding="ascii")
    found = {int(row["tag"], 16): _rule(row) for row in csv.DictReader(table.splitlines())}
    people = {tag: Rule(_BASIC[action], _BASIC[action]) for tag, action in ACTIONS.items() if tag is not None}
    own = {tag: rule for keyword, rule in _OWN.items() if (tag := tag_for_keyword(keyword)) is not None}
    return people | found | own


def _rule(row: dict[str, str]) -> Rule:
    basic = _BASIC[row["basic"]]
    if row["keyword"].endswith("Sequence") and "X" in row["basic"].split("/") and basic is Action.DUMMY:
        basic = Action.REMOVE  # a sequence of dummies tells nobody anything
    if row["dates"] and any(word in row["keyword"] for word in _TIMES):
        return Rule(Action.SHIFT, basic, DATES)
    for column, option in (("device", DEVICE), ("patient", PATIENT)):
        if row[column] == "K":
            return Rule(Action.KEEP, basic, option)
    if row["structured"]:
        return Rule(Action.ENTER, basic, STRUCTURED)
    if int(row["tag"], 16) not in ACTIONS and (
        row["descriptors"] or row["patient"]
    ):  # a comment on a person is removed
        return Rule(Action.CLEAN, basic, DESCRIPTORS if row["descriptors"] else PATIENT)
    return Rule(basic, basic)
