"""Saliency that people can see: the image in grey with what was looked at in colour, as PNG and in DICOM.

In DICOM it is a secondary capture (PS3.3 A.8), which every viewer shows; of a volume, the slice that was looked at
most, and the whole map as a parametric map (A.75) on the volume's own grid, for viewers that lay one over the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from client.intake.image import FileRefusedError, Pixels
from client.intake.intensity import with_channels
from client.placing import map_back
from client.results.about import NOTE, SERIES_NUMBERS, About, headers_of, identity, making, save
from client.results.prediction import View
from client.results.source import Source

STEPS = 65535
STRENGTH = 0.6
"""How much of a pixel's colour is the map's where that is 1."""
COLOURS = "inferno"
Picture = npt.NDArray[np.uint8]


class Overlays:
    """Writes the overlays of one source, all in one series; the path is the results', without an ending."""

    def __init__(self, source: Source, about: About, path: Path) -> None:
        self.source, self.about, self.path = source, about, path
        self.headers = headers_of(source) if source.dicom else []
        self.series = generate_uid()
        self.written = 0

    def add(self, view: View, values: Pixels, label: str) -> None:
        """Write what was looked at in a view, which has its own image, for `label`. Raises FileRefusedError."""
        if view.own is None:
            raise FileRefusedError("the image as it was is not there")
        self.written += 1
        own = map_back(values, view.place)
        slices, images = (own[None], view.own[None]) if own.ndim == 2 else (own, view.own)
        most = int(slices.reshape(len(slices), -1).sum(axis=1).argmax())
        shown = blended(images[most], slices[most])
        name = f"{self.path.name}.saliency" + (f"-{self.written:04}" if self.source.count > len(slices) else "")
        Image.fromarray(shown).save(self.path.with_name(f"{name}.png"), format="PNG")
        if not self.source.dicom:
            return
        file, frame = view.order[most]
        with making("overlay"):
            save(self._capture(shown, file, frame, label), self.path.with_name(f"{name}.sc.dcm"))
        if len(slices) > 1:
            with making("parametric map"):
                save(self._map(slices, view.order, label), self.path.with_name(f"{name}.pm.dcm"))

    def _capture(self, shown: Picture, file: int, frame: int, label: str) -> Dataset:
        import highdicom

        header = self.headers[file]
        made: Dataset = highdicom.sc.SCImage.from_ref_dataset(
            ref_dataset=header, pixel_array=shown, photometric_interpretation="RGB", bits_allocated=8,
            coordinate_system="PATIENT", patient_orientation=("L", "P"), series_instance_uid=self.series,
            series_number=SERIES_NUMBERS["SC"], sop_instance_uid=generate_uid(), instance_number=self.written,
            series_description=self.about.description, **self.about.device(),
        )  # fmt: skip
        made.PatientOrientation = header.get("PatientOrientation") or ""
        made.ImageType = ["DERIVED", "SECONDARY", "SALIENCY"]
        made.BurnedInAnnotation = "NO"
        made.DerivationDescription = f"Grad-CAM of {label}"
        made.ImageComments = NOTE
        origin = Dataset()
        origin.ReferencedSOPClassUID, origin.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        if self.source.frames[file] > 1:
            origin.ReferencedFrameNumber = frame + 1
        made.SourceImageSequence = [origin]
        return made

    def _map(self, slices: Pixels, order: Sequence[tuple[int, int]], label: str) -> Dataset:
        import highdicom
        from pydicom.sr.codedict import codes

        stored = np.rint(slices.clip(0, 1) * STEPS).astype(np.uint16)
        sources: list[Dataset] = self.headers
        if len(sources) > 1:
            sources = [self.headers[file] for file, _ in order]
        else:  # the frames of one file stand in its own order
            stored = stored[np.argsort([frame for _, frame in order])]
        mapping: Any = highdicom.pm.RealWorldValueMapping(
            "SALIENCY", f"Grad-CAM of {label}"[:64], codes.UCUM.NoUnits, (0, STEPS), slope=1 / STEPS, intercept=0.0
        )
        made: Dataset = highdicom.pm.ParametricMap(
            sources, stored, contains_recognizable_visual_features=False, real_world_value_mappings=[mapping],
            voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=STEPS / 2, window_width=STEPS)],
            content_label="SALIENCY", content_description=NOTE, series_description=self.about.description,
            **identity("PM"), **self.about.device(),
        )  # fmt: skip
        return made


def blended(image: Pixels, values: Pixels) -> Picture:
    """Return an image (rows, columns, C) in grey under a map (rows, columns), both in [0, 1]: (rows, columns, 3)."""
    from matplotlib import colormaps

    grey = np.repeat(with_channels(image, 1), 3, axis=-1)
    coloured = np.asarray(colormaps[COLOURS](values)[..., :3])
    share = STRENGTH * values[..., None]
    return np.asarray(np.rint(255 * (grey * (1 - share) + coloured * share)), dtype=np.uint8)
