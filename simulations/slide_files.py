"""Writes a slide's picture as slide scanners do: a tiled pyramid TIFF, or a DICOM whole-slide image, a file a level.

DICOM objects follow PS3.3 A.32.8 and are de-identified as PS3.15 Annex E asks.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

from simulations.radiographs import make_code, make_uid, save

MPP = 1.0
"""Micrometres a pixel of the finest level."""
LEVELS = 3
"""Each half as fine as the one before."""
TILE = 128
_EMPTY = (
    "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
    "ReferringPhysicianName", "PositionReferenceIndicator", "BarcodeValue", "LabelText",
)  # fmt: skip
"""Type 2: present and empty, since they would identify."""
Picture = np.ndarray
"""(rows, columns, 3) uint8."""


def pyramid(picture: Picture, levels: int = LEVELS) -> Iterator[Picture]:
    """Yield the levels, the finest first."""
    for _ in range(levels):
        yield picture
        rows, columns = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
        halves = picture[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, 3)
        picture = np.asarray(halves.mean(axis=(1, 3)).round(), dtype=np.uint8)


def write_tiff(picture: Picture, path: Path, *, mpp: float = MPP) -> Path:
    """Write a slide as a tiled pyramid TIFF with its resolution, as slide scanners' software exports them."""
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(pyramid(picture)):
            a_centimetre = 1e4 / (mpp * 2**number)
            file.write(
                level, tile=(TILE, TILE), photometric="rgb", compression="zlib", subfiletype=int(number > 0),
                resolution=(a_centimetre, a_centimetre), resolutionunit="CENTIMETER", metadata=None, software=False,
            )  # fmt: skip
    return path


def write_dicom(
    picture: Picture, folder: Path, slide: str, *, patient: str, mpp: float = MPP, jpeg: bool = False
) -> Path:
    """Write a slide as DICOM (PS3.3 A.32.8), a file a level, TILED_FULL; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, level in enumerate(pyramid(picture)):
        dataset = _level(level, slide, patient, number, mpp * 2**number)
        _put_tiles(dataset, level, jpeg=jpeg)
        save(dataset, folder / f"level-{number}.dcm")
    return folder


def _level(level: Picture, slide: str, patient: str, number: int, mpp: float) -> FileDataset:
    """Everything but the pixels of one level."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = make_uid("slide level", slide, number)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (
        make_uid("slide study", slide),
        make_uid("slide series", slide),
    )
    dataset.FrameOfReferenceUID, dataset.PyramidUID = make_uid("slide frame", slide), make_uid("slide pyramid", slide)
    dataset.PatientID, dataset.PatientIdentityRemoved = patient, "YES"
    dataset.DeidentificationMethod = "PS3.15 Annex E; code as PatientID, dates removed"
    for keyword in _EMPTY:
        setattr(dataset, keyword, "")
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "SM", 1, number + 1
    dataset.Manufacturer, dataset.ManufacturerModelName = "Ward Round Phantoms", "Slide"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "0", "1"
    dataset.ContentDate, dataset.ContentTime, dataset.AcquisitionDateTime = "19000101", "000000", "19000101"
    dataset.ImageType = [
        "ORIGINAL" if number == 0 else "DERIVED",
        "PRIMARY",
        "VOLUME",
        "NONE" if number == 0 else "RESAMPLED",
    ]
    dataset.BurnedInAnnotation = dataset.SpecimenLabelInImage = "NO"
    dataset.VolumetricProperties, dataset.FocusMethod, dataset.ExtendedDepthOfField = "VOLUME", "AUTO", "NO"
    dataset.ContainerIdentifier = slide.split("/", maxsplit=1)[0]
    dataset.IssuerOfTheContainerIdentifierSequence, dataset.ContainerTypeCodeSequence = Items(), Items()
    dataset.AcquisitionContextSequence = Items()
    dataset.SpecimenDescriptionSequence = [
        _item(
            SpecimenIdentifier=f"{dataset.ContainerIdentifier}-1", SpecimenUID=make_uid("specimen", slide),
            IssuerOfTheSpecimenIdentifierSequence=Items(), SpecimenPreparationSequence=Items(),
        )
    ]  # fmt: skip
    rows, columns = level.shape[:2]
    dataset.ImagedVolumeHeight, dataset.ImagedVolumeWidth = rows * mpp / 1000, columns * mpp / 1000
    dataset.ImagedVolumeDepth = 0.004
    dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns = rows, columns
    dataset.TotalPixelMatrixOriginSequence = [
        _item(XOffsetInSlideCoordinateSystem=20.0, YOffsetInSlideCoordinateSystem=40.0)
    ]
    dataset.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    dataset.DimensionOrganizationType = "TILED_FULL"
    organization = make_uid("slide dimensions", slide)
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    dataset.SharedFunctionalGroupsSequence = [
        _item(
            PixelMeasuresSequence=[_item(PixelSpacing=[mpp / 1000, mpp / 1000], SliceThickness=0.004)],
            WholeSlideMicroscopyImageFrameTypeSequence=[_item(FrameType=list(dataset.ImageType))],
            OpticalPathIdentificationSequence=[_item(OpticalPathIdentifier="1")],
        )
    ]
    dataset.NumberOfOpticalPaths, dataset.TotalPixelMatrixFocalPlanes = 1, 1
    dataset.OpticalPathSequence = [_optical_path()]
    return dataset


def _optical_path() -> Dataset:
    return _item(
        OpticalPathIdentifier="1",
        IlluminationTypeCodeSequence=[make_code("111744", "DCM", "Brightfield illumination")],
        IlluminationColorCodeSequence=[make_code("371251000", "SCT", "White color")],
    )


def _put_tiles(dataset: FileDataset, level: Picture, *, jpeg: bool) -> None:
    """The level's tiles in reading order, white beyond the edge."""
    down, across = (-(-extent // TILE) for extent in level.shape[:2])
    whole = np.full((down * TILE, across * TILE, 3), 255, dtype=np.uint8)
    whole[: level.shape[0], : level.shape[1]] = level
    tiles = whole.reshape(down, TILE, across, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    dataset.Rows = dataset.Columns = TILE
    dataset.NumberOfFrames, dataset.SamplesPerPixel, dataset.PlanarConfiguration = len(tiles), 3, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PhotometricInterpretation, dataset.LossyImageCompression = "RGB", "00"
    if not jpeg:
        dataset.PixelData = tiles.tobytes()
        dataset["PixelData"].VR = "OB"
        return
    frames = [_jpeg(tile) for tile in tiles]
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PhotometricInterpretation, dataset.LossyImageCompression = "YBR_FULL_422", "01"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.LossyImageCompressionRatio = round(tiles.nbytes / sum(map(len, frames)), 2)
    dataset.PixelData = encapsulate(frames)


def _jpeg(tile: Picture) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, "JPEG", quality=90, subsampling="4:2:2")
    return stream.getvalue()


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
