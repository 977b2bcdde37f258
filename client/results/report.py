"""A DICOM report of measurements (PS3.16 TID 1500) that says of itself that it is a draft which nobody has verified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from client.intake.dicom import MAKER, MODEL_NAME
from client.results.about import NOTE, SERIAL, About, identity


def document(headers: Sequence[Dataset], groups: Sequence[Any], about: About, *, in_space: bool = False) -> Dataset:
    """Return a report of measurement groups on images of one study; `in_space` where they have points in mm (SCOORD3D).

    Completion Flag is PARTIAL, Verification Flag UNVERIFIED, Preliminary Flag PRELIMINARY (PS3.3 C.17.2).
    """
    import highdicom.sr as sr

    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=[about.sha256]), name=about.job.name, manufacturer_name=MAKER,
            model_name=MODEL_NAME, serial_number=SERIAL,
        ),
    )  # fmt: skip
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=[header for header in headers if _describable(header)],
    )
    kind = sr.Comprehensive3DSR if in_space else sr.ComprehensiveSR
    report: Dataset = kind(
        evidence=headers,
        content=content[0],
        is_complete=False,
        is_final=False,
        is_verified=False,
        series_description=about.description,
        **identity("SR"),
        **about.device(),
    )
    report.CompletionFlagDescription = NOTE
    return report


def _describable(header: Dataset) -> bool:
    """Whether the report's library of images can have it: not a projection that tells neither direction nor spacing."""
    import highdicom.sr as sr

    try:
        sr.ImageLibraryEntryDescriptors(header)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return False
    return True
