"""A slide's heat map as a file: a pyramid TIFF in colours, or a DICOM parametric map that refers to the slide.

Both say how large their pixels are, so a viewer lays them over the slide. The TIFF begins in the slide's upper left
corner, as the tiles do. The DICOM object (PS3.3 A.75) is of the slide's study, patient, specimen and frame of
reference; its stored values are 65535ths, and a real world value mapping makes them 0 to 1. Where there is no tissue,
the TIFF is white and the DICOM map 0.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from client.intake.pyramid import is_dicom, read_dicom_header
from client.results.heat_map import HeatMap
from common.errors import DataError, UsageError
from common.files import write_atomically

TILE_EDGE = 8
"""Pixels of the TIFF, down and across, that show one tile of the slide."""
COLOURS = "viridis"
"""A scale that is ordered in grey and to colour-blind eyes too."""
STEPS = 65535
DICOM_TILE = 512
"""Most rows and columns of a frame of the DICOM map."""
_TIFF, _DICOM = (".tif", ".tiff"), (".dcm",)


def write_heat_map(heat_map: HeatMap, path: Path, slide: Sequence[Path]) -> Path:
    """Write the heat map to `path`, as its ending says (.tif, .tiff or .dcm); return the path.

    `slide` are the files that it was made from: a DICOM map is only made of a DICOM slide.

    Raises
    ------
    UsageError
        The ending is another, or a DICOM map is wanted of a TIFF.
    DataError
        The file can't be written; nothing is left behind.
    """
    kind = path.suffix.lower()
    if kind not in _TIFF + _DICOM:
        raise UsageError(f"{path}: a heat map is written as {', '.join(_TIFF + _DICOM)}")
    if kind in _DICOM and not is_dicom(slide[0]):
        raise UsageError(f"{path}: a DICOM heat map belongs to a DICOM slide, and {slide[0]} is none: write a .tif")
    content = _tiff(heat_map) if kind in _TIFF else _dicom(heat_map, slide)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DataError(f"{path}: the heat map can't be written: {error.strerror}") from error
    return path


def _tiff(heat_map: HeatMap) -> bytes:
    import tifffile

    level = coloured(heat_map.values).repeat(TILE_EDGE, axis=0).repeat(TILE_EDGE, axis=1)
    a_centimetre = [1e4 * TILE_EDGE / edge for edge in (heat_map.edges[1], heat_map.edges[0])]
    stream, first = io.BytesIO(), True
    with tifffile.TiffWriter(stream) as file:
        while first or min(level.shape[:2]) >= TILE_EDGE * 2:
            file.write(
                level, tile=(256, 256), photometric="rgb", compression="zlib", subfiletype=int(not first),
                resolution=(a_centimetre[0], a_centimetre[1]), resolutionunit="CENTIMETER", metadata=None,
                description=f"{heat_map.meaning}, 0 to 1, {COLOURS}", software="wardround",
            )  # fmt: skip
            level, a_centimetre, first = level[::2, ::2], [each / 2 for each in a_centimetre], False
    return stream.getvalue()


def coloured(values: np.ndarray) -> np.ndarray:
    """Return values in [0, 1] as colours, (rows, columns, 3) uint8; white for NaN."""
    from matplotlib import colormaps

    scale = colormaps[COLOURS].with_extremes(bad="white")
    return np.asarray(scale(np.ma.masked_invalid(values), bytes=True)[..., :3])


def _dicom(heat_map: HeatMap, slide: Sequence[Path]) -> bytes:
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    source = _finest(slide)
    stored = np.rint(np.nan_to_num(heat_map.values, nan=0.0).clip(0, 1) * STEPS).astype(np.uint16)
    version = metadata.version("wardround")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a source that leaves out what highdicom would copy
        made = highdicom.pm.ParametricMap(
            [source], stored, series_instance_uid=generate_uid(), series_number=1000, sop_instance_uid=generate_uid(),
            instance_number=1, manufacturer="Ward Round", manufacturer_model_name="wardround",
            software_versions=version, device_serial_number="0", contains_recognizable_visual_features=False,
            real_world_value_mappings=[
                highdicom.pm.RealWorldValueMapping(
                    "HEAT", f"{heat_map.meaning} from 0 to 1"[:64], codes.UCUM.NoUnits, (0, STEPS), slope=1 / STEPS,
                    intercept=0.0,
                )
            ],
            voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=STEPS / 2, window_width=STEPS)],
            content_label="HEAT_MAP", content_description=f"{heat_map.meaning} of a model, by tile"[:64],
            pixel_measures=highdicom.PixelMeasuresSequence(
                [edge / 1000 for edge in heat_map.edges], slice_thickness=_thickness(source)
            ),
            plane_positions=[_position(source, heat_map)], tile_pixel_array=True,
            tile_size=[min(DICOM_TILE, extent) for extent in stored.shape], dimension_organization_type="TILED_FULL",
        )  # fmt: skip
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _finest(slide: Sequence[Path]) -> Any:
    """The header of the slide's finest level, which the tiles are counted on."""
    headers = [read_dicom_header(path) for path in slide]
    return max(headers, key=lambda header: int(header.TotalPixelMatrixColumns))


def _thickness(source: Any) -> float:
    measures = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    return float(measures.get("SliceThickness") or 0.001)


def _position(source: Any, heat_map: HeatMap) -> Any:
    """Where the centre of the map's first pixel lies on the slide: from corner to corner, not from centre to centre."""
    import highdicom

    origin = source.TotalPixelMatrixOriginSequence[0]
    spacing = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    cosines = np.asarray(source.ImageOrientationSlide, dtype=float)
    inward = [(edge / 1000 - float(step)) / 2 for edge, step in zip(heat_map.edges, spacing, strict=True)]
    corner = np.array([float(origin.XOffsetInSlideCoordinateSystem), float(origin.YOffsetInSlideCoordinateSystem), 0.0])
    centre = corner + cosines[:3] * inward[1] + cosines[3:] * inward[0]
    return highdicom.PlanePositionSequence(
        coordinate_system="SLIDE", image_position=centre.tolist(), pixel_matrix_position=(1, 1)
    )
